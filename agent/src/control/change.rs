//! Changes, made on the coordinator alone: create a cluster, start and stop runs, tokens, remove
//! hosts.

use redmesh_api::control::{
    ClusterCreate, ControlReply, ControlRequest, Created, Refusal, RefusalKind, RunRef, ShareRequest,
    VerifyRequest,
};
use redmesh_api::ids::{HostId, PlanId, RunId};
use redmesh_api::level::{Level, PlanStage, PlannedHost};
use redmesh_api::limits::{OUTSTANDING_MAX, PIPELINE_MAX, THREADS_PER_HOST_MAX, WORKERS_MAX};
use redmesh_api::run::{Job, Run, RunSpec, RunStage, RunUntil, Share};
use uuid::Uuid;

use super::{Answer, Control, added_share, apart, doctor, host_by_name, refuse, runs, surveying, verify};
use crate::cluster::{self, PlanInput};
use crate::consensus::{Applied, Command, ProposeError};
use crate::coordinator::{account, settle};

/// Longest run that is bounded by time, seconds: a week.
const SECONDS_MAX: u32 = 7 * 24 * 3600;

/// Largest rate of an open loop, operations a second.
const RATE_MAX: u64 = 100_000_000;

/// Longest ramp, and longest warm-up, seconds.
const RAMP_S_MAX: u32 = 3600;

/// From the commit of a run to its begin: enough for the order to reach all hosts, so
/// that they begin together.
const BEGIN_AHEAD_MS: u64 = 500;

impl Control {
    pub(super) async fn change(&self, request: ControlRequest) -> ControlReply {
        self.try_to_change(request).await.unwrap_or_else(ControlReply::Refused)
    }

    pub(super) async fn try_to_change(&self, request: ControlRequest) -> Answer {
        // Nothing below may rest on a level that a newer coordinator has changed.
        let level = self.orders.confirm().await.map_err(|error| not_begun(&error))?;
        match request {
            ControlRequest::HostRemove(request) => self.remove(&level, &request).await,
            ControlRequest::HostReplace(request) => self.replace(&level, &request).await,
            ControlRequest::ClusterCreate(create) => self.create(&level, create).await,
            ControlRequest::RunStart(spec) => self.start(&level, spec).await,
            ControlRequest::RunShare(request) => self.share(&level, &request).await,
            ControlRequest::RunVerify(request) => self.verify(&level, &request).await,
            ControlRequest::RunStop(run) => self.stop(&level, &run).await,
            ControlRequest::TokenCreate(create) => self.token_create(&level, &create).await,
            ControlRequest::TokenRevoke(id) => self.token_revoke(&level, id).await,
            ControlRequest::OperatorRevoke(request) => self.operator_revoke(&request).await,
            other => refuse(RefusalKind::Internal, format!("{} changes nothing", other.name())),
        }
    }

    /// Makes a change, unless it was made before.
    pub(super) async fn commit(&self, command: Command) -> Result<(), Refusal> {
        match self.orders.commit(command).await {
            Ok(Applied::Done | Applied::Unchanged) => Ok(()),
            Ok(Applied::Rejected(reason)) => refuse(RefusalKind::Conflict, reason),
            Err(error) => Err(uncertain(&error)),
        }
    }

    async fn create(&self, level: &Level, ClusterCreate { spec, force }: ClusterCreate) -> Answer {
        if level.mesh.is_none() {
            return refuse(RefusalKind::NoCoordinator, "the mesh is just being founded: try again");
        }
        if let Some(plan) = &level.plan {
            return if plan.spec == spec {
                let (warnings, notes) = (Vec::new(), Vec::new());
                Ok(ControlReply::Created(Created { plan: plan.clone(), fresh: false, warnings, notes }))
            } else {
                refuse(
                    RefusalKind::Conflict,
                    format!(
                        "a cluster of {} instances ({} per host{}, {} replicas) is there already; a create \
                         with the same values continues or confirms it, other values would destroy it",
                        plan.instances.len(),
                        plan.spec.instances_per_host,
                        apart::in_words(&plan.spec),
                        plan.spec.replicas
                    ),
                )
            };
        }
        if let Some(reason) = doctor::per_host_problem(&spec) {
            return refuse(RefusalKind::Invalid, reason);
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
            return refuse(
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
        apart::known(&spec, &known)?;
        hosts.sort_by_cached_key(|host| super::natural(&host.name));
        // The survey first: of servers that run already it knows more than that their ports
        // are silent.
        let surveyed = surveying::survey(&self.census, &*self.transport, &spec, &hosts).await?;
        let report = self.examine(level, &spec).await;
        let (suited_ms, hz) = (report.node_timeout_ms, report.hz);
        let warnings =
            doctor::pass(report, &force).map_err(|reason| Refusal::new(RefusalKind::Preflight, reason))?;
        let node_timeout_ms = spec.node_timeout_ms.or(surveyed.node_timeout_ms);
        let input = PlanInput {
            id: PlanId(Uuid::new_v4()),
            node_timeout_ms: node_timeout_ms.unwrap_or(suited_ms),
            hz,
            formation: surveyed.formation,
            spec,
            hosts,
            created_unix_ms: self.census.clock.now_unix_ms(),
        };
        let plan = cluster::plan(input, &mut rand::rng())
            .map_err(|error| Refusal::new(RefusalKind::Invalid, crate::error_chain(&error)))?;
        self.commit(Command::CreatePlan(Box::new(plan.clone()))).await?;
        Ok(ControlReply::Created(Created { plan, fresh: true, warnings, notes: surveyed.notes }))
    }

    async fn start(&self, level: &Level, spec: RunSpec) -> Answer {
        if let Job::ReadBack(_) = spec.job {
            return refuse(RefusalKind::Invalid, "what was written is read back by redmeshctl run verify");
        }
        if let Some(reason) = spec_problem(&spec) {
            return refuse(RefusalKind::Invalid, reason);
        }
        let known = self.census.hosts();
        let planned = level.plan.iter().flat_map(|plan| &plan.hosts).map(|host| host.id);
        let alive: Vec<HostId> = planned.filter(|id| known.get(id).is_some_and(|host| host.alive)).collect();
        let writes = match spec.until {
            RunUntil::Writes(writes) => Some(writes),
            RunUntil::Seconds(_) => None,
        };
        let (workers, wanted) = (spec.workers, spec.load_hosts);
        self.begin(level, spec, || {
            load_hosts(&alive, wanted).map(|bearers| account::shares(bearers, workers, writes))
        })
        .await
    }

    async fn verify(&self, level: &Level, request: &VerifyRequest) -> Answer {
        let run = verify::find(level, &request.run)?;
        let (spec, shares) = verify::read_back(run, request, &self.census.hosts())?;
        self.begin(level, spec, || Ok(shares)).await
    }

    /// Begins a run, if there is a cluster for it and no other run is going on.
    async fn begin(
        &self,
        level: &Level,
        spec: RunSpec,
        shares: impl FnOnce() -> Result<Vec<Share>, Refusal>,
    ) -> Answer {
        let Some(plan) = level.plan.as_ref().filter(|plan| plan.stage == PlanStage::Formed) else {
            return refuse(
                RefusalKind::Conflict,
                "there is no formed cluster to write into: redmeshctl cluster create comes first",
            );
        };
        if let Some(active) = level.runs.iter().find(|run| run.stage != RunStage::Done) {
            return refuse(
                RefusalKind::Conflict,
                format!("run {} is going on: wait for it or stop it (redmeshctl run stop)", active.id),
            );
        }
        let shares = shares()?;
        let sampled = settle::sample_servers(&self.census, &*self.transport).await;
        if let Some(reason) = sampled.missing.first() {
            return refuse(
                RefusalKind::Conflict,
                format!(
                    "{} of {} instances could not be sampled, so the ledger could not be held against them; first: {reason}",
                    sampled.missing.len(),
                    plan.instances.len()
                ),
            );
        }
        let created_unix_ms = self.census.clock.now_unix_ms();
        let run = Run {
            id: RunId(Uuid::new_v4()),
            shares,
            spec,
            stage: RunStage::Running,
            created_unix_ms,
            starts_unix_ms: created_unix_ms + BEGIN_AHEAD_MS,
            before: sampled.samples,
            result: None,
        };
        self.commit(Command::StartRun(Box::new(run.clone()))).await?;
        Ok(ControlReply::RunStarted(run))
    }

    async fn share(&self, level: &Level, request: &ShareRequest) -> Answer {
        let run = runs::find(level, &request.run)?;
        let host = host_by_name(&self.census.hosts(), &request.host)?;
        let share = added_share::of(run, request, host, self.census.clock.now_unix_ms())?;
        // Bounded by SHARES_MAX.
        let known = u16::try_from(run.shares.len()).unwrap_or(u16::MAX);
        let add = Command::AddShares { run: run.id, known, given_up: None, shares: vec![share] };
        self.commit(add).await?;
        self.changed(run.id).await
    }

    async fn stop(&self, level: &Level, run: &RunRef) -> Answer {
        let run = runs::find(level, run)?;
        if run.stage == RunStage::Running {
            self.commit(Command::AdvanceRun { run: run.id, to: RunStage::Stopping }).await?;
        }
        self.changed(run.id).await
    }

    /// A run as it stands after a change: this host's copy of the level may be a moment
    /// behind what was committed.
    async fn changed(&self, run: RunId) -> Answer {
        let level = match self.orders.confirm().await {
            Ok(level) => level,
            Err(_) => self.census.level(),
        };
        let run = runs::find(&level, &RunRef::Prefix(run.0.to_string()))?;
        Ok(ControlReply::Run(self.run_view(run)))
    }
}

fn spec_problem(spec: &RunSpec) -> Option<String> {
    if let Job::Load(workload) = &spec.job
        && let Err(error) = workload.check()
    {
        return Some(error.to_string());
    }
    let bounds = [
        ("workers", u64::from(spec.workers), 1, u64::from(WORKERS_MAX)),
        ("pipeline", spec.pipeline.into(), 1, PIPELINE_MAX.into()),
        ("threads per host", spec.threads_per_host.unwrap_or(1).into(), 1, THREADS_PER_HOST_MAX.into()),
        ("rate", spec.rate.unwrap_or(1), 1, RATE_MAX),
        ("ramp", spec.ramp_s.into(), 0, RAMP_S_MAX.into()),
        ("warm-up", spec.warm_up_s.into(), 0, RAMP_S_MAX.into()),
    ];
    if let Some((what, got, least, most)) =
        bounds.into_iter().find(|(_, got, least, most)| !(least..=most).contains(&got))
    {
        return Some(format!("{what} = {got}: must be {least} to {most}"));
    }
    let outstanding = u64::from(spec.workers) * u64::from(spec.pipeline);
    if outstanding > OUTSTANDING_MAX {
        return Some(format!(
            "workers = {} with pipeline = {} have {outstanding} operations outstanding, at most \
             {OUTSTANDING_MAX} are possible: use fewer of either",
            spec.workers, spec.pipeline
        ));
    }
    match spec.until {
        RunUntil::Writes(0) => Some("writes = 0: must be at least 1".to_owned()),
        RunUntil::Seconds(seconds) if !(1..=SECONDS_MAX).contains(&seconds) => {
            Some(format!("seconds = {seconds}: must be 1 to {SECONDS_MAX}"))
        }
        RunUntil::Seconds(seconds) if spec.warm_up_s >= seconds => Some(format!(
            "warm-up = {}: must be shorter than the {seconds} s of the run, or nothing is measured",
            spec.warm_up_s
        )),
        _ => None,
    }
}

/// Whom of the hosts that are alive the load is placed on.
fn load_hosts(alive: &[HostId], wanted: Option<u16>) -> Result<&[HostId], Refusal> {
    let count = wanted.map_or(alive.len(), usize::from);
    match alive.get(..count) {
        _ if alive.is_empty() => refuse(RefusalKind::Conflict, "no host of the plan is alive to bear load"),
        Some(bearers) if count > 0 => Ok(bearers),
        _ => refuse(
            RefusalKind::Invalid,
            format!(
                "load_hosts = {count}: must be 1 to {}, the hosts of the plan that are alive",
                alive.len()
            ),
        ),
    }
}

/// It never came to a proposal, so nothing was done.
fn not_begun(error: &ProposeError) -> Refusal {
    let message = format!("nothing was changed: {}; try again", crate::error_chain(error));
    Refusal::new(RefusalKind::NoCoordinator, message)
}

/// A proposal that may be committed all the same, even by a successor.
pub(super) fn uncertain(error: &ProposeError) -> Refusal {
    let message =
        format!("it may have been done or not: {}; look before trying again", crate::error_chain(error));
    Refusal::new(RefusalKind::Deadline, message)
}

#[cfg(test)]
mod tests {
    use redmesh_api::workload::Workload;

    use super::*;

    #[test]
    fn a_spec_is_within_its_bounds_or_says_which_it_breaks() {
        type Change = fn(&mut RunSpec);
        let spec = |change: Change| {
            let mut spec = RunSpec::closed_loop(Workload::uuid_counter(), 100, RunUntil::Seconds(10));
            change(&mut spec);
            spec_problem(&spec)
        };
        assert_eq!(spec(|_| {}), None);
        assert_eq!(spec(|it| (it.rate, it.ramp_s, it.warm_up_s) = (Some(1), 3600, 9)), None);
        let writes = |it: &mut RunSpec| (it.until, it.warm_up_s) = (RunUntil::Writes(1), 3600);
        assert_eq!(spec(writes), None, "a bound by writes may be far away");
        let wrong: [(Change, &str); 12] = [
            (|it| it.workers = 0, "workers = 0"),
            (|it| it.workers = WORKERS_MAX + 1, "workers = 1000001"),
            (|it| it.pipeline = 0, "pipeline = 0"),
            (|it| it.pipeline = PIPELINE_MAX + 1, "pipeline = 1025"),
            (|it| (it.workers, it.pipeline) = (1000, 1001), "1001000 operations outstanding"),
            (|it| it.threads_per_host = Some(0), "threads per host = 0"),
            (|it| it.threads_per_host = Some(257), "threads per host = 257"),
            (|it| it.rate = Some(0), "rate = 0"),
            (|it| it.ramp_s = 3601, "ramp = 3601"),
            (|it| it.warm_up_s = 10, "warm-up = 10: must be shorter than the 10 s"),
            (|it| it.until = RunUntil::Writes(0), "writes = 0"),
            (|it| it.job = Job::Load(Workload { fields: 0, ..Workload::uuid_counter() }), "fields"),
        ];
        for (change, words) in wrong {
            let reason = spec(change).expect(words);
            assert!(reason.contains(words), "{reason}");
        }
    }

    #[test]
    fn load_is_placed_on_as_many_hosts_as_asked() {
        let alive = [HostId(1), HostId(2), HostId(3)];
        assert_eq!(load_hosts(&alive, None), Ok(&alive[..]));
        assert_eq!(load_hosts(&alive, Some(2)), Ok(&alive[..2]));
        for wanted in [0, 4] {
            let refusal = load_hosts(&alive, Some(wanted)).expect_err("is refused");
            assert_eq!(refusal.kind, RefusalKind::Invalid);
            assert!(refusal.message.contains(&format!("load_hosts = {wanted}: must be 1 to 3")), "{refusal}");
        }
        assert_eq!(load_hosts(&[], Some(1)).map_err(|refusal| refusal.kind), Err(RefusalKind::Conflict));
    }
}
