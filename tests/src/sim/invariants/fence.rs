//! No host accepts an order under an older fence than the newest that it has seen, not
//! even after a restart with its disk; and a fence stands for one level only.
//!
//! The fence is what makes a deposed coordinator's late word harmless (Lamport's fencing
//! tokens, as in Chubby's sequencers, Burrows 2006, section 2.4). A host that lost its disk
//! is another host and begins anew.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;

use redmesh_api::level::{Level, Stamp};

use super::Invariant;
use crate::sim::event::Event;

/// See the module.
#[derive(Debug, Default)]
pub struct Fence {
    newest: BTreeMap<usize, Stamp>,
    levels: BTreeMap<Stamp, Arc<Level>>,
}

impl Invariant for Fence {
    fn name(&self) -> &'static str {
        "fence"
    }

    fn see(&mut self, _: Duration, event: &Event) -> Result<(), String> {
        match event {
            Event::Killed { host, wiped: true } => {
                self.newest.remove(host);
            }
            Event::Level { host, level } => {
                let newest = self.newest.entry(*host).or_default();
                if level.stamp < *newest {
                    return Err(format!("host {host} went from level {newest} back to {}", level.stamp));
                }
                *newest = level.stamp;
                let known = self.levels.entry(level.stamp).or_insert_with(|| level.clone());
                if !Arc::ptr_eq(known, level) && **known != **level {
                    return Err(format!("level {} is not the same on all hosts", level.stamp));
                }
            }
            _ => {}
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use redmesh_api::ids::{HostId, MeshId};

    use super::*;

    fn level(host: usize, term: u64, mesh: Option<MeshId>) -> Event {
        let stamp = Stamp { term, index: 5, leader: HostId(1) };
        Event::Level { host, level: Arc::new(Level { stamp, mesh, ..Level::default() }) }
    }

    fn judge(events: &[Event]) -> Result<(), String> {
        let mut invariant = Fence::default();
        events.iter().try_for_each(|event| invariant.see(Duration::ZERO, event))
    }

    #[test]
    fn levels_that_grow_are_fine() {
        let lost = Event::Killed { host: 0, wiped: true };
        judge(&[level(0, 1, None), level(0, 2, None), level(1, 1, None), lost, level(0, 1, None)])
            .expect("a host without a memory begins anew");
    }

    #[test]
    fn an_older_fence_is_caught_also_after_a_restart() {
        let restart = Event::Killed { host: 0, wiped: false };
        let back = judge(&[level(0, 2, None), restart, level(0, 1, None)]);
        assert!(back.expect_err("caught").contains("back to 1.5"));
    }

    #[test]
    fn one_fence_for_two_levels_is_caught() {
        let other = Some(MeshId(uuid::Uuid::from_u128(1)));
        let two = judge(&[level(0, 2, None), level(1, 2, other)]);
        assert!(two.expect_err("caught").contains("not the same"));
    }
}
