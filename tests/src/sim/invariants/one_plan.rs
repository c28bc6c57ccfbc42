//! A mesh is founded once, and one plan is ever carried out.
//!
//! A second plan would lay other slots over servers that hold data. Both are set by one
//! entry of the log; whoever proposes twice, or on two sides of a partition, must find
//! that out.

use std::time::Duration;

use redmesh_api::ids::{MeshId, PlanId};

use super::Invariant;
use crate::sim::event::Event;

/// See the module.
#[derive(Debug, Default)]
pub struct OnePlan {
    mesh: Option<MeshId>,
    plan: Option<PlanId>,
}

fn once<T: Copy + PartialEq + std::fmt::Display>(
    known: &mut Option<T>,
    seen: T,
    what: &str,
) -> Result<(), String> {
    match known.get_or_insert(seen) {
        first if *first == seen => Ok(()),
        first => Err(format!("{what} {first}, then {what} {seen}")),
    }
}

impl Invariant for OnePlan {
    fn name(&self) -> &'static str {
        "one plan"
    }

    fn see(&mut self, _: Duration, event: &Event) -> Result<(), String> {
        match event {
            Event::Level { level, .. } => {
                level.mesh.map_or(Ok(()), |mesh| once(&mut self.mesh, mesh, "mesh"))?;
                level.plan.as_ref().map_or(Ok(()), |plan| once(&mut self.plan, plan.id, "plan"))
            }
            Event::ServerStarted { plan, .. } => once(&mut self.plan, *plan, "plan"),
            _ => Ok(()),
        }
    }
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use redmesh_api::level::Level;
    use uuid::Uuid;

    use super::*;

    fn founded(mesh: u128) -> Event {
        let level = Level { mesh: Some(MeshId(Uuid::from_u128(mesh))), ..Level::default() };
        Event::Level { host: 0, level: Arc::new(level) }
    }

    fn started(plan: u128) -> Event {
        Event::ServerStarted { dir: "a".into(), pid: 1, plan: PlanId(Uuid::from_u128(plan)) }
    }

    fn judge(events: &[Event]) -> Result<(), String> {
        let mut invariant = OnePlan::default();
        events.iter().try_for_each(|event| invariant.see(Duration::ZERO, event))
    }

    #[test]
    fn a_second_mesh_or_plan_is_caught() {
        judge(&[founded(1), founded(1), started(2), started(2)]).expect("one of each");
        assert!(judge(&[founded(1), founded(2)]).is_err());
        assert!(judge(&[started(1), started(2)]).is_err());
    }
}
