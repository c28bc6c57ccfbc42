//! Changes, made on the coordinator alone: create a cluster, start and stop runs.

use redmesh_api::control::{ControlReply, ControlRequest, RefusalKind, RunRef};
use redmesh_api::ids::{HostId, PlanId, RunId};
use redmesh_api::level::{ClusterSpec, Level, PlanStage, PlannedHost};
use redmesh_api::limits::{INSTANCES_PER_HOST_MAX, WORKERS_MAX};
use redmesh_api::run::{Run, RunSpec, RunStage, RunUntil, UUID_COUNTER};
use uuid::Uuid;

use super::{Control, refused, runs};
use crate::clock::now_unix_ms;
use crate::cluster::{self, PlanInput};
use crate::consensus::{Applied, Command, ProposeError};
use crate::coordinator::{account, settle};

/// Longest run that is bounded by time, seconds: a week.
const SECONDS_MAX: u32 = 7 * 24 * 3600;

impl Control {
    pub(super) async fn change(&self, request: ControlRequest) -> ControlReply {
        // Nothing below may rest on a level that a newer coordinator has changed.
        let level = match self.orders.confirm().await {
            Ok(level) => level,
            Err(error) => return not_begun(&error),
        };
        match request {
            ControlRequest::ClusterCreate(spec) => self.create(&level, spec).await,
            ControlRequest::RunStart(spec) => self.start(&level, spec).await,
            ControlRequest::RunStop(run) => self.stop(&level, &run).await,
            other => refused(RefusalKind::Internal, format!("{other:?} changes nothing")),
        }
    }

    async fn create(&self, level: &Level, spec: ClusterSpec) -> ControlReply {
        if level.mesh.is_none() {
            return refused(RefusalKind::NoCoordinator, "the mesh is just being founded: try again");
        }
        if let Some(plan) = &level.plan {
            return if plan.spec == spec {
                ControlReply::Created { plan: plan.clone(), fresh: false }
            } else {
                refused(
                    RefusalKind::Conflict,
                    format!(
                        "a cluster of {} instances ({} per host, {} replicas) is there already; a create \
                         with the same values continues or confirms it, other values would destroy it",
                        plan.instances.len(),
                        plan.spec.instances_per_host,
                        plan.spec.replicas
                    ),
                )
            };
        }
        if !(1..=INSTANCES_PER_HOST_MAX).contains(&spec.instances_per_host) {
            return refused(
                RefusalKind::Invalid,
                format!(
                    "instances per host = {}: must be 1 to {INSTANCES_PER_HOST_MAX}",
                    spec.instances_per_host
                ),
            );
        }
        let known = self.census.hosts();
        let hosts: Vec<PlannedHost> = known
            .values()
            .filter(|host| host.alive)
            .filter_map(|host| {
                let facts = host.facts.as_ref()?;
                Some(PlannedHost {
                    id: host.id,
                    name: facts.name.clone(),
                    ip: facts.redis_ip,
                    base_port: facts.base_port,
                })
            })
            .collect();
        if hosts.len() < usize::from(self.census.bootstrap_expect) {
            let silent: Vec<_> = known.values().filter(|host| !host.alive).map(|host| host.name()).collect();
            return refused(
                RefusalKind::Invalid,
                format!(
                    "{} of the {} hosts that mesh.bootstrap_expect names are here; not heard of: {}",
                    hosts.len(),
                    self.census.bootstrap_expect,
                    if silent.is_empty() { "unknown hosts".to_owned() } else { silent.join(", ") }
                ),
            );
        }
        let mut hosts = hosts;
        hosts.sort_by_cached_key(|host| super::natural(&host.name));
        let instances = hosts.len() * usize::from(spec.instances_per_host);
        let input = PlanInput {
            id: PlanId(Uuid::new_v4()),
            node_timeout_ms: spec.node_timeout_ms.unwrap_or_else(|| cluster::node_timeout_ms(instances)),
            spec,
            hosts,
            created_unix_ms: now_unix_ms(),
        };
        let planned = match cluster::plan(input, &mut rand::rng()) {
            Ok(planned) => planned,
            Err(error) => return refused(RefusalKind::Invalid, crate::error_chain(&error)),
        };
        match self.orders.commit(Command::CreatePlan(Box::new(planned.clone()))).await {
            Ok(Applied::Done | Applied::Unchanged) => ControlReply::Created { plan: planned, fresh: true },
            Ok(Applied::Rejected(reason)) => refused(RefusalKind::Conflict, reason),
            Err(error) => uncertain(&error),
        }
    }

    async fn start(&self, level: &Level, spec: RunSpec) -> ControlReply {
        if let Some(reason) = spec_problem(&spec) {
            return refused(RefusalKind::Invalid, reason);
        }
        let Some(plan) = level.plan.as_ref().filter(|plan| plan.stage == PlanStage::Formed) else {
            return refused(
                RefusalKind::Conflict,
                "there is no formed cluster to write into: redmeshctl cluster create comes first",
            );
        };
        if let Some(active) = level.runs.iter().find(|run| run.stage != RunStage::Done) {
            return refused(
                RefusalKind::Conflict,
                format!("run {} is going on: wait for it or stop it (redmeshctl run stop)", active.id),
            );
        }
        let known = self.census.hosts();
        let alive: Vec<HostId> = plan
            .hosts
            .iter()
            .map(|host| host.id)
            .filter(|id| known.get(id).is_some_and(|host| host.alive))
            .collect();
        let bearers = match load_hosts(&alive, spec.load_hosts) {
            Ok(bearers) => bearers,
            Err((kind, reason)) => return refused(kind, reason),
        };
        let writes = match spec.until {
            RunUntil::Writes(writes) => Some(writes),
            RunUntil::Seconds(_) => None,
        };
        let sampled = settle::sample_servers(&self.census, &*self.transport).await;
        if let Some(reason) = sampled.missing.first() {
            return refused(
                RefusalKind::Conflict,
                format!(
                    "{} of {} instances could not be sampled, so the ledger could not be held against them; first: {reason}",
                    sampled.missing.len(),
                    plan.instances.len()
                ),
            );
        }
        let run = Run {
            id: RunId(Uuid::new_v4()),
            shares: account::shares(bearers, spec.workers, writes),
            spec,
            stage: RunStage::Running,
            created_unix_ms: now_unix_ms(),
            before: sampled.samples,
            result: None,
        };
        match self.orders.commit(Command::StartRun(Box::new(run.clone()))).await {
            Ok(Applied::Done | Applied::Unchanged) => ControlReply::RunStarted(run),
            Ok(Applied::Rejected(reason)) => refused(RefusalKind::Conflict, reason),
            Err(error) => uncertain(&error),
        }
    }

    async fn stop(&self, level: &Level, run: &RunRef) -> ControlReply {
        let run = match runs::find(level, run) {
            Ok(run) => run.clone(),
            Err(refusal) => return ControlReply::Refused(refusal),
        };
        if run.stage == RunStage::Running {
            let stop = Command::AdvanceRun { run: run.id, to: RunStage::Stopping };
            match self.orders.commit(stop).await {
                Ok(Applied::Done | Applied::Unchanged) => {}
                Ok(Applied::Rejected(reason)) => return refused(RefusalKind::Conflict, reason),
                Err(error) => return uncertain(&error),
            }
        }
        self.run_show(&RunRef::Prefix(run.id.0.to_string()), false).await
    }
}

fn spec_problem(spec: &RunSpec) -> Option<String> {
    if spec.workload != UUID_COUNTER {
        return Some(format!("workload {:?} is not known; there is {UUID_COUNTER:?}", spec.workload));
    }
    if !(1..=WORKERS_MAX).contains(&spec.workers) {
        return Some(format!("workers = {}: must be 1 to {WORKERS_MAX}", spec.workers));
    }
    match spec.until {
        RunUntil::Writes(0) => Some("writes = 0: must be at least 1".to_owned()),
        RunUntil::Seconds(seconds) if !(1..=SECONDS_MAX).contains(&seconds) => {
            Some(format!("seconds = {seconds}: must be 1 to {SECONDS_MAX}"))
        }
        _ => None,
    }
}

/// Whom of the hosts that are alive the load is placed on.
fn load_hosts(alive: &[HostId], wanted: Option<u16>) -> Result<&[HostId], (RefusalKind, String)> {
    let count = wanted.map_or(alive.len(), usize::from);
    match alive.get(..count) {
        _ if alive.is_empty() => {
            Err((RefusalKind::Conflict, "no host of the plan is alive to bear load".to_owned()))
        }
        Some(bearers) if count > 0 => Ok(bearers),
        _ => Err((
            RefusalKind::Invalid,
            format!(
                "load_hosts = {count}: must be 1 to {}, the hosts of the plan that are alive",
                alive.len()
            ),
        )),
    }
}

/// It never came to a proposal, so nothing was done.
fn not_begun(error: &ProposeError) -> ControlReply {
    let message = format!("nothing was changed: {}; try again", crate::error_chain(error));
    refused(RefusalKind::NoCoordinator, message)
}

/// A proposal that may be committed all the same, even by a successor.
fn uncertain(error: &ProposeError) -> ControlReply {
    let message =
        format!("it may have been done or not: {}; look before trying again", crate::error_chain(error));
    refused(RefusalKind::Deadline, message)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn load_is_placed_on_as_many_hosts_as_asked() {
        let alive = [HostId(1), HostId(2), HostId(3)];
        assert_eq!(load_hosts(&alive, None), Ok(&alive[..]));
        assert_eq!(load_hosts(&alive, Some(2)), Ok(&alive[..2]));
        for wanted in [0, 4] {
            let (kind, reason) = load_hosts(&alive, Some(wanted)).expect_err("is refused");
            assert_eq!(kind, RefusalKind::Invalid);
            assert!(reason.contains(&format!("load_hosts = {wanted}: must be 1 to 3")), "{reason}");
        }
        assert_eq!(load_hosts(&[], Some(1)).map_err(|(kind, _)| kind), Err(RefusalKind::Conflict));
    }
}
