//! What ctl, and any other client, asks of an agent.
//!
//! Questions are answered by whichever agent is asked, from its census and by asking
//! other agents; changes are passed on to the coordinator and made there. Nothing here
//! decides what the mesh does next: that is the coordinator's.

pub mod access;
mod added_share;
pub mod apart;
pub mod change;
pub mod check;
pub mod doctor;
pub mod operators;
pub mod removing;
mod replacing;
pub mod runs;
pub mod serve;
pub mod surveying;
pub mod tokens;
pub mod verify;

use std::sync::Arc;

use redmesh_api::control::{
    ClusterStatus, ControlReply, ControlRequest, HostProgress, Member, MemberState, Members, Refusal,
    RefusalKind,
};
use redmesh_api::ids::HostId;
use redmesh_api::level::{ClusterPlan, PlanStage};
use tokio::sync::{Mutex, watch};

use crate::census::{Census, CensusHost, Hosts};
use crate::coordinator::orders::Orders;
use crate::peer::{self, PeerReply, PeerRequest};
use crate::transport::{Transport, TransportError};
use runs::{LastLatency, RateSampler};

/// Time that a formation of `n` instances may take before it is called overdue:
/// measured formations stay far below, and what hangs is to be named soon.
pub fn formation_deadline_ms(instances: usize) -> u64 {
    60_000 + 300 * instances as u64
}

/// Answers control requests.
#[derive(Clone)]
pub struct Control {
    census: Census,
    transport: Arc<dyn Transport>,
    orders: Orders,
    rates: RateSampler,
    waiting: watch::Receiver<Option<String>>,
    latency: Arc<Mutex<Option<LastLatency>>>,
}

impl std::fmt::Debug for Control {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Control").field("host", &self.census.host).finish_non_exhaustive()
    }
}

/// The host that goes by `name` and is alive.
fn host_by_name(hosts: &Hosts, name: &str) -> Result<HostId, Refusal> {
    let named = || hosts.values().filter(|host| host.name() == name);
    // One that lost its disk has left a dead namesake.
    if let Some(host) = named().find(|host| host.alive) {
        return Ok(host.id);
    }
    if named().next().is_some() {
        return refuse(
            RefusalKind::Conflict,
            format!("host {name:?} is not heard of: is its agent running?"),
        );
    }
    let mut known: Vec<_> = hosts.values().map(CensusHost::name).collect();
    known.sort_by_cached_key(|name| natural(name));
    refuse(RefusalKind::NotFound, format!("there is no host {name:?}; known are {}", known.join(", ")))
}

/// What a request comes to.
type Answer = Result<ControlReply, Refusal>;

fn refuse<T>(kind: RefusalKind, message: impl Into<String>) -> Result<T, Refusal> {
    Err(Refusal::new(kind, message))
}

impl Control {
    /// `waiting` tells what the mesh waits for while it isn't initialised.
    pub fn new(
        census: Census,
        transport: Arc<dyn Transport>,
        orders: Orders,
        rates: RateSampler,
        waiting: watch::Receiver<Option<String>>,
    ) -> Self {
        Self { census, transport, orders, rates, waiting, latency: Arc::default() }
    }

    /// Answers `request`, passing it on to the coordinator if it changes something.
    pub async fn answer(&self, request: ControlRequest) -> ControlReply {
        self.try_to_answer(request).await.unwrap_or_else(ControlReply::Refused)
    }

    async fn try_to_answer(&self, request: ControlRequest) -> Answer {
        match request {
            ControlRequest::Members => Ok(ControlReply::Members(self.members())),
            ControlRequest::ClusterStatus => Ok(ControlReply::ClusterStatus(self.cluster_status())),
            ControlRequest::ClusterCheck => {
                check::cluster_check(&self.census, &*self.transport).await.map(ControlReply::ClusterCheck)
            }
            ControlRequest::Doctor(spec) => self.doctor(spec).await,
            ControlRequest::RunList => Ok(ControlReply::Runs(self.run_list())),
            ControlRequest::RunShow { run, latency } => self.run_show(&run, latency).await,
            ControlRequest::RunDetail(run) => self.run_detail(&run).await,
            ControlRequest::TokenList => Ok(self.token_list()),
            ControlRequest::OperatorList => Ok(self.operator_list()),
            ControlRequest::HostRemove(_)
            | ControlRequest::HostReplace(_)
            | ControlRequest::ClusterCreate(_)
            | ControlRequest::RunStart(_)
            | ControlRequest::RunStop(_)
            | ControlRequest::RunShare(_)
            | ControlRequest::RunVerify(_)
            | ControlRequest::TokenCreate(_)
            | ControlRequest::TokenRevoke(_)
            | ControlRequest::OperatorRevoke(_) => self.pass_on(request).await,
        }
    }

    /// What it lacks to serve, in words; `None` when a coordinator acts.
    pub fn waiting_for(&self) -> Option<String> {
        if let Some(words) = self.waiting.borrow().clone() {
            return Some(words);
        }
        if self.census.coordinator().is_none() {
            let voters = self.census.voters();
            let hosts = self.census.hosts();
            let silent: Vec<_> = voters
                .iter()
                .filter(|id| hosts.get(id).is_none_or(|host| !host.alive))
                .map(|id| hosts.get(id).map_or_else(|| id.to_string(), CensusHost::name))
                .collect();
            return Some(if silent.is_empty() {
                "the voters to elect a coordinator".to_owned()
            } else {
                format!("a majority of the {} voters; not heard of: {}", voters.len(), silent.join(", "))
            });
        }
        None
    }

    async fn pass_on(&self, request: ControlRequest) -> Answer {
        if let ControlRequest::HostRemove(remove) = &request {
            if self.removes(remove, self.census.host) {
                // Its answer would be cut off with it.
                let reason =
                    format!("this agent is {}'s: ask another one (--agent) to remove it", remove.host);
                return refuse(RefusalKind::Conflict, reason);
            }
            if let Some(coordinator) = self.census.coordinator()
                && self.removes(remove, coordinator.id)
            {
                self.succeed(&coordinator).await?;
            }
        }
        if self.census.acting() { self.try_to_change(request).await } else { self.forward(request).await }
    }

    async fn forward(&self, request: ControlRequest) -> Answer {
        let Some(coordinator) = self.census.coordinator() else {
            let why = self.waiting_for().unwrap_or_else(|| "an election".to_owned());
            return refuse(
                RefusalKind::NoCoordinator,
                format!("no coordinator acts at the moment; waiting for {why}"),
            );
        };
        let forwarded = PeerRequest::Forward(request);
        match peer::ask(&*self.transport, coordinator.addr, &forwarded, peer::FORWARD_DEADLINE).await {
            Ok(PeerReply::Control(reply)) => Ok(*reply),
            Ok(other) => refuse(RefusalKind::Internal, format!("{} answered {other:?}", coordinator.name())),
            Err(error) => {
                let kind = match error {
                    TransportError::Unreachable { .. } | TransportError::Refused { .. } => {
                        RefusalKind::NoCoordinator
                    }
                    // It may have got as far as doing it.
                    _ => RefusalKind::Deadline,
                };
                let error = crate::error_chain(&error);
                refuse(kind, format!("the coordinator {} did not answer: {error}", coordinator.name()))
            }
        }
    }

    /// All hosts that are known, as this one sees them.
    pub fn members(&self) -> Members {
        let hosts = self.census.hosts();
        let voters = self.census.voters();
        let coordinator = self.census.coordinator().map(|host| host.id);
        let level = self.census.level();
        let mut members: Vec<Member> = hosts
            .values()
            .map(|host| Member {
                id: host.id,
                name: host.name(),
                addr: host.addr,
                state: if host.alive { MemberState::Alive } else { MemberState::Dead },
                voter: voters.contains(&host.id),
                coordinator: coordinator == Some(host.id),
                instances_up: host.observed.up,
                instances_planned: level.plan.as_ref().map_or(0, |plan| planned_on(plan, host)),
                version: host.facts.as_ref().map(|facts| facts.version.clone()).unwrap_or_default(),
                http_addr: host.facts.as_ref().and_then(|facts| facts.http),
                problem: host.observed.problems.first().cloned(),
                secrets: host.observed.secrets.clone(),
            })
            .collect();
        members.sort_by_cached_key(|member| natural(&member.name));
        Members {
            mesh_name: self.census.mesh_name.clone(),
            mesh: self.census.mesh(),
            answered_by: self.census.host,
            coordinator,
            bootstrap_expect: self.census.bootstrap_expect,
            waiting_for: self.waiting_for(),
            stamp: level.stamp,
            members,
        }
    }

    fn cluster_status(&self) -> ClusterStatus {
        let level = self.census.level();
        let Some(plan) = level.plan.clone() else {
            return ClusterStatus { plan: None, hosts: Vec::new(), since_ms: 0, overdue: None };
        };
        let known = self.census.hosts();
        let hosts: Vec<_> = plan
            .hosts
            .iter()
            .map(|planned| {
                let host = known.get(&planned.id);
                let observed = host.map(|host| host.observed.clone()).unwrap_or_default();
                let current = observed.plan.filter(|(id, _)| *id == plan.id);
                HostProgress {
                    id: planned.id,
                    name: planned.name.clone(),
                    alive: host.is_some_and(|host| host.alive),
                    stage: current.map(|(_, stage)| stage),
                    planned: plan.instances_of(planned.id).count() as u32,
                    held: observed.held,
                    up: observed.up,
                    agreed: observed.agreed,
                    problems: observed.problems,
                    removed: level.is_removed(planned.id),
                    forgotten: observed.forgotten,
                    withheld: observed.withheld,
                }
            })
            .collect();
        let until_ms =
            plan.reached_unix_ms(PlanStage::Formed).unwrap_or_else(|| self.census.clock.now_unix_ms());
        let since_ms = until_ms.saturating_sub(plan.created_unix_ms);
        let late = plan.stage != PlanStage::Formed && since_ms > formation_deadline_ms(plan.instances.len());
        let overdue = late.then(|| awaited(&plan, &hosts));
        ClusterStatus { plan: Some(plan), hosts, since_ms, overdue }
    }
}

fn planned_on(plan: &ClusterPlan, host: &CensusHost) -> u32 {
    plan.instances_of(host.id).count() as u32
}

/// Which hosts a formation waits for, and for what.
fn awaited(plan: &ClusterPlan, hosts: &[HostProgress]) -> String {
    let reasons = hosts.iter().filter_map(|host| {
        let (have, what) = match plan.stage {
            PlanStage::Prepare => (host.ready(), "servers listening"),
            PlanStage::Release | PlanStage::Replicate | PlanStage::Formed => {
                (host.agreed, "instances agreed")
            }
        };
        let why = match (host.alive, host.problems.first()) {
            (false, _) => " (not heard of: is its agent running?)".to_owned(),
            (true, Some(problem)) => format!(" ({problem})"),
            (true, None) => String::new(),
        };
        (have < host.planned || !host.alive)
            .then(|| format!("{}: {have} of {} {what}{why}", host.name, host.planned))
    });
    reasons.collect::<Vec<_>>().join("; ")
}

/// `host-10` sorts after `host-9`.
fn natural(name: &str) -> (String, u64, String) {
    let digits = name.len() - name.trim_end_matches(|c: char| c.is_ascii_digit()).len();
    let (stem, number) = name.split_at(name.len() - digits);
    (stem.to_owned(), number.parse().unwrap_or(0), name.to_owned())
}
