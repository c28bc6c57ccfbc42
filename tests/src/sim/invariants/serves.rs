//! After healing the mesh serves within a bound: everybody sees everybody, one
//! coordinator acts, all have its level, the cluster is formed and every run has been
//! closed. And no agent ends by itself, whatever is done to the network.

use std::time::Duration;

use super::Invariant;
use crate::sim::event::Event;

/// Virtual time from healing until the mesh must serve. The longest waits that are meant
/// to be: 60 s until a run is closed without a share that nobody else can take over, and
/// the 30 s after which a lost voter is replaced; elections and gossip take seconds.
pub const SERVES_WITHIN: Duration = Duration::from_secs(90);

/// See the module.
#[derive(Debug, Default)]
pub struct Serves {
    healed: Option<Duration>,
    waiting: String,
}

impl Invariant for Serves {
    fn name(&self) -> &'static str {
        "serves"
    }

    fn see(&mut self, at: Duration, event: &Event) -> Result<(), String> {
        match event {
            Event::Failed { host, why } => return Err(format!("the agent of host {host} ended: {why}")),
            Event::Healed => self.healed = Some(at),
            Event::Serving => self.healed = None,
            Event::Waiting(why) => self.waiting.clone_from(why),
            _ => {}
        }
        match self.healed {
            Some(healed) if at > healed + SERVES_WITHIN => {
                Err(format!("not served {} s after healing: {}", SERVES_WITHIN.as_secs(), self.waiting))
            }
            _ => Ok(()),
        }
    }

    fn end(&mut self) -> Result<(), String> {
        self.healed.map_or(Ok(()), |_| Err(format!("ended without serving: {}", self.waiting)))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_never_serves_again_is_caught_with_its_reason() {
        let mut invariant = Serves::default();
        let at = Duration::from_secs;
        invariant.see(at(5), &Event::Healed).expect("not yet due");
        invariant.see(at(20), &Event::Serving).expect("served");
        invariant.see(at(500), &Event::Waiting("x".to_owned())).expect("not since a healing");
        invariant.see(at(600), &Event::Healed).expect("not yet due");
        let late = invariant.see(at(691), &Event::Waiting("no coordinator".to_owned()));
        assert!(late.expect_err("caught").contains("no coordinator"));
        assert!(invariant.end().is_err());
    }

    #[test]
    fn an_agent_that_ends_is_caught() {
        let failed = Event::Failed { host: 1, why: "store".to_owned() };
        assert!(Serves::default().see(Duration::ZERO, &failed).is_err());
    }
}
