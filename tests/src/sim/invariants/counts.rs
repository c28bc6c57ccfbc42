//! Counters only grow, and no agent's sum for the mesh ever exceeds what was issued.
//!
//! Counts travel as grow-only counters (Shapiro et al. 2011, G-Counter) by gossip, which
//! repeats, reorders and forgets; a sum that ran ahead would show writes that nobody has
//! made, and one that went back would have lost some that it knew of.

use std::collections::BTreeMap;
use std::time::Duration;

use redmesh_api::ids::RunId;

use super::Invariant;
use crate::sim::event::Event;

/// See the module.
#[derive(Debug, Default)]
pub struct Counts {
    /// Issued and acked, by the engines.
    done: BTreeMap<RunId, (u64, u64)>,
    /// The same by each agent of the moment.
    said: BTreeMap<(usize, RunId), (u64, u64)>,
}

impl Invariant for Counts {
    fn name(&self) -> &'static str {
        "counts"
    }

    fn see(&mut self, _: Duration, event: &Event) -> Result<(), String> {
        match event {
            Event::Done { run, issued, acked, .. } => {
                self.done.insert(*run, (*issued, *acked));
            }
            // A new life of an agent has forgotten what gossip told the last one.
            Event::Killed { host, .. } | Event::Failed { host, .. } => {
                self.said.retain(|(of, _), _| of != host);
            }
            Event::Counted { host, run, total } => {
                let (issued, acked) = self.done.get(run).copied().unwrap_or_default();
                if total.issued > issued || total.acked > acked {
                    return Err(format!(
                        "host {host} counts {} issued and {} acked of run {run}, but {issued} and {acked} were",
                        total.issued, total.acked
                    ));
                }
                let said = self.said.entry((*host, *run)).or_default();
                if total.issued < said.0 || total.acked < said.1 {
                    return Err(format!(
                        "host {host} counted {} issued and {} acked of run {run}, and then {} and {}",
                        said.0, said.1, total.issued, total.acked
                    ));
                }
                *said = (total.issued, total.acked);
            }
            _ => {}
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use uuid::Uuid;

    use super::*;

    const RUN: RunId = RunId(Uuid::nil());

    fn done(issued: u64, acked: u64) -> Event {
        Event::Done { run: RUN, issued, executed: acked, acked }
    }

    fn counted(issued: u64, acked: u64) -> Event {
        let total = redmesh_api::run::Counts { issued, acked, ..Default::default() };
        Event::Counted { host: 0, run: RUN, total }
    }

    fn judge(events: &[Event]) -> Result<(), String> {
        let mut invariant = Counts::default();
        events.iter().try_for_each(|event| invariant.see(Duration::ZERO, event))
    }

    #[test]
    fn counts_that_lag_and_grow_are_fine() {
        let restart = Event::Killed { host: 0, wiped: false };
        judge(&[done(9, 8), counted(5, 4), counted(9, 8), restart, counted(0, 0)]).expect("fine");
    }

    #[test]
    fn too_much_or_a_step_back_is_caught() {
        assert!(judge(&[done(9, 8), counted(10, 8)]).is_err());
        assert!(judge(&[done(9, 8), counted(9, 9)]).is_err());
        assert!(judge(&[done(9, 8), counted(5, 5), counted(5, 4)]).expect_err("back").contains("and then"));
    }
}
