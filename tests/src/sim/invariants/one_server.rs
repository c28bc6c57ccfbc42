//! An instance's directory has at most one live server.
//!
//! Two servers on one directory overwrite each other's files, and the cluster takes one
//! node for another. Servers outlive agents, so an agent that starts must look first.

use std::collections::BTreeMap;
use std::path::PathBuf;
use std::time::Duration;

use super::Invariant;
use crate::sim::event::Event;

/// See the module.
#[derive(Debug, Default)]
pub struct OneServer {
    live: BTreeMap<PathBuf, u32>,
}

impl Invariant for OneServer {
    fn name(&self) -> &'static str {
        "one server"
    }

    fn see(&mut self, _: Duration, event: &Event) -> Result<(), String> {
        match event {
            Event::ServerStarted { dir, pid, .. } => {
                if let Some(other) = self.live.insert(dir.clone(), *pid) {
                    return Err(format!(
                        "server {pid} was started in {}, where {other} lives",
                        dir.display()
                    ));
                }
            }
            Event::ServerEnded { dir, pid } if self.live.get(dir) == Some(pid) => {
                self.live.remove(dir);
            }
            _ => {}
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use redmesh_api::ids::PlanId;
    use uuid::Uuid;

    use super::*;

    fn started(dir: &str, pid: u32) -> Event {
        Event::ServerStarted { dir: dir.into(), pid, plan: PlanId(Uuid::nil()) }
    }

    fn judge(events: &[Event]) -> Result<(), String> {
        let mut invariant = OneServer::default();
        events.iter().try_for_each(|event| invariant.see(Duration::ZERO, event))
    }

    #[test]
    fn a_second_server_in_a_directory_is_caught() {
        let ended = Event::ServerEnded { dir: "a".into(), pid: 1 };
        judge(&[started("a", 1), started("b", 2), ended, started("a", 3)]).expect("one at a time");
        let two = judge(&[started("a", 1), Event::Killed { host: 0, wiped: false }, started("a", 2)]);
        assert!(two.expect_err("caught").contains("where 1 lives"));
    }
}
