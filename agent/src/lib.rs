//! The redmesh agent: one per host, all alike.
//!
//! Modules stand in the order in which data flows; each imports only from those above
//! it, and `supervisor`, `cluster` and `load` never import each other. Decisions are
//! pure functions of state, time and randomness passed in; effects live at the edge.

pub mod clock;
pub mod credit;
pub mod files;
pub mod disk;
pub mod config;
pub mod identity;
pub mod login;
pub mod redis_tls;
pub mod transport;
pub mod renewal;
pub mod mesh;
pub mod consensus;
pub mod supervisor;
pub mod cluster;
pub mod stats;
pub mod load;
pub mod level;
pub mod facts;
pub mod preflight;
pub mod peer;
pub mod census;
pub mod host;
pub mod coordinator;
pub mod control;
pub mod enrol;
pub mod firewall;
pub mod metrics;
pub mod reload;
pub mod effects;
pub mod app;
#[cfg(test)]
mod fuzz;

pub use redmesh_api::error_chain;
