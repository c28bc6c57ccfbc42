//! At most one coordinator acts in a term, and at most one at a time.
//!
//! The first is Raft's election safety (Ongaro and Ousterhout 2014, section 5.2): a voter
//! votes once in a term. The second is what the leader's lease adds: a voter that heard of
//! a leader within the longest election time votes for nobody else, and a leader acts no
//! longer than that after a quorum has last acknowledged it. Clocks of simulated hosts run
//! at the same speed, so it must hold exactly.

use std::collections::{BTreeMap, BTreeSet};
use std::time::Duration;

use redmesh_api::ids::HostId;

use super::Invariant;
use crate::sim::event::Event;

/// See the module.
#[derive(Debug, Default)]
pub struct OneCoordinator {
    of_term: BTreeMap<u64, HostId>,
    acting: BTreeSet<usize>,
}

impl Invariant for OneCoordinator {
    fn name(&self) -> &'static str {
        "one coordinator"
    }

    fn see(&mut self, _: Duration, event: &Event) -> Result<(), String> {
        match event {
            Event::Acting { host, acting: false, .. }
            | Event::Killed { host, .. }
            | Event::Failed { host, .. } => {
                self.acting.remove(host);
            }
            Event::Acting { host, id, term, acting: true } => {
                let first = *self.of_term.entry(*term).or_insert(*id);
                if first != *id {
                    return Err(format!("{first} and {id} both act in term {term}"));
                }
                self.acting.insert(*host);
                if self.acting.len() > 1 {
                    return Err(format!("hosts {:?} act at the same time", self.acting));
                }
            }
            _ => {}
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn acting(host: usize, term: u64, acting: bool) -> Event {
        Event::Acting { host, id: HostId(host as u32 + 1), term, acting }
    }

    fn judge(events: &[Event]) -> Result<(), String> {
        let mut invariant = OneCoordinator::default();
        events.iter().try_for_each(|event| invariant.see(Duration::ZERO, event))
    }

    #[test]
    fn one_after_the_other_is_fine() {
        judge(&[acting(0, 1, true), acting(0, 1, false), acting(0, 1, true)]).expect("the same again");
        judge(&[acting(0, 1, true), Event::Killed { host: 0, wiped: false }, acting(1, 2, true)])
            .expect("fine");
    }

    #[test]
    fn two_in_one_term_or_at_one_time_are_caught() {
        let same_term = judge(&[acting(0, 1, true), acting(0, 1, false), acting(1, 1, true)]);
        assert!(same_term.expect_err("caught").contains("both act in term 1"));
        let same_time = judge(&[acting(0, 1, true), acting(1, 2, true)]);
        assert!(same_time.expect_err("caught").contains("at the same time"));
    }
}
