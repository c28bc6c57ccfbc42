//! The redmesh agent: one per host, all alike.
//!
//! Modules stand in the order in which data flows; each imports only from those above
//! it, and `supervisor`, `cluster` and `load` never import each other. Decisions are
//! pure functions of state, time and randomness passed in; effects live at the edge.

pub mod clock;
pub mod files;
pub mod config;
pub mod identity;
pub mod transport;
pub mod mesh;
pub mod consensus;
pub mod supervisor;
pub mod cluster;
pub mod stats;
pub mod load;
pub mod level;
pub mod facts;
pub mod peer;
pub mod census;
pub mod host;
pub mod coordinator;
pub mod control;
pub mod metrics;
pub mod app;

/// An error and all its sources in one line, printed where the error is handled. Our
/// errors never repeat their source; of others that do, the repetition is left out.
pub fn error_chain(error: &dyn std::error::Error) -> String {
    let mut words = error.to_string();
    let mut source = error.source();
    while let Some(inner) = source {
        let text = inner.to_string();
        if !words.ends_with(&text) {
            words.push_str(": ");
            words.push_str(&text);
        }
        source = inner.source();
    }
    words
}
