//! What must hold in every simulation, one file each. An invariant reads events and
//! nothing else, so that a history made by hand shows that it can fail.

mod counts;
mod fence;
mod ledger;
mod one_coordinator;
mod one_plan;
mod one_server;
mod serves;

use std::fmt;
use std::time::Duration;

use super::event::Event;

pub use counts::Counts;
pub use fence::Fence;
pub use ledger::LedgerCloses;
pub use one_coordinator::OneCoordinator;
pub use one_plan::OnePlan;
pub use one_server::OneServer;
pub use serves::{SERVES_WITHIN, Serves};

/// A property of histories.
pub trait Invariant: fmt::Debug {
    /// Its name in failures.
    fn name(&self) -> &'static str;

    /// Takes the next event.
    ///
    /// # Errors
    /// How it breaks the property, in words.
    fn see(&mut self, at: Duration, event: &Event) -> Result<(), String>;

    /// The history is over.
    ///
    /// # Errors
    /// What should have happened by now.
    fn end(&mut self) -> Result<(), String> {
        Ok(())
    }
}

/// All of them, as at the beginning of a history.
pub fn all() -> Vec<Box<dyn Invariant>> {
    vec![
        Box::new(OneCoordinator::default()),
        Box::new(Fence::default()),
        Box::new(OnePlan::default()),
        Box::new(OneServer::default()),
        Box::new(Counts::default()),
        Box::new(Serves::default()),
        Box::new(LedgerCloses::default()),
    ]
}
