//! The coordinator: carries out what [`steps`] decides, while this agent may act.
//!
//! It runs on every host and acts on one: the Raft leader with a fresh quorum. It holds
//! no state that its successor needs; all of that is in the level (Raft) or observed
//! (gossip). Whatever it does is committed first and pushed to the hosts then, under
//! the commit's stamp, so that a deposed coordinator's word is refused by its fence.
//!
//! What takes long (settling a run, changing the voters) is an errand: a task of its
//! own, one of a kind at a time, so that nothing else waits for it. Two coordinators,
//! an old one and its successor, may settle the same run; Raft takes the first account
//! and rejects the other.

pub mod account;
pub mod bootstrap;
pub mod naming;
pub mod orders;
pub mod settle;
pub mod shares;
pub mod steps;

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;

use futures_util::future::join_all;
use redmesh_api::ids::{HostId, MeshId, PlanId, RunId};
use redmesh_api::level::{Convergence, Level, PlanStage};
use redmesh_api::run::{RunStage, Tally};
use tokio::task::{JoinError, JoinHandle};
use tokio::time::Instant;
use tokio_util::sync::CancellationToken;
use tracing::{debug, error, info, warn};
use uuid::Uuid;

use crate::census::{Census, CensusHost, Hosts};
use crate::consensus::voters::{HostState, STABILISATION, replace_voters, voters_without};
use crate::consensus::{Applied, Command, Consensus, VoterNode};
use crate::host::convergence;
use crate::peer::{self, PeerReply, PeerRequest};
use crate::transport::Transport;
use orders::Orders;
use steps::{Seen, Step};

/// Between two looks at the mesh; news by gossip or Raft makes it look at once.
const LOOK_INTERVAL: Duration = Duration::from_millis(100);

/// Between two looks at who should vote.
const VOTERS_INTERVAL: Duration = Duration::from_secs(2);

/// The coordinator's task on one host.
pub struct Coordinator {
    hands: Hands,
    alive: LastAlive,
    voters_due: Instant,
    errands: BTreeMap<Errand, JoinHandle<()>>,
}

/// What takes too long to be waited for.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
enum Errand {
    /// Gathering how a plan's instances came to agree, and committing that it is formed.
    Form(PlanId),
    /// Settling a run and committing its account.
    Close(RunId),
    /// Asking all servers for their node ids and committing these.
    NameNodes(PlanId),
    /// A change of voters.
    Voters,
}

/// Everything that the coordinator, and each of its errands, reads from and acts through.
#[derive(Clone)]
struct Hands {
    census: Census,
    consensus: Consensus,
    transport: Arc<dyn Transport>,
    orders: Orders,
}

/// Since when each host has been dead, and since when alive.
#[derive(Debug)]
struct LastAlive {
    seen: BTreeMap<HostId, (bool, Instant)>,
    /// Since when hosts that gossip doesn't know have been missing, at the least.
    began: Instant,
}

impl LastAlive {
    fn new(began: Instant) -> Self {
        Self { seen: BTreeMap::new(), began }
    }

    fn look(&mut self, hosts: &Hosts, now: Instant) {
        for host in hosts.values() {
            let entry = self.seen.entry(host.id).or_insert((host.alive, now));
            if entry.0 != host.alive {
                *entry = (host.alive, now);
            }
        }
        self.seen.retain(|id, _| hosts.contains_key(id));
    }

    /// Whether a host is alive, and since when. One that gossip doesn't know was either
    /// forgotten after a long absence, or has not been heard of yet by an agent that has
    /// just begun: it counts as dead from that beginning on.
    fn state(&self, id: HostId) -> HostState {
        let (alive, since) = self.seen.get(&id).copied().unwrap_or((false, self.began));
        HostState { alive, since: since.into_std() }
    }

    fn dead_for(&self, id: HostId, now: Instant) -> Duration {
        match self.state(id) {
            HostState { alive: true, .. } => Duration::ZERO,
            HostState { since, .. } => now.into_std().saturating_duration_since(since),
        }
    }
}

impl std::fmt::Debug for Coordinator {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Coordinator")
            .field("host", &self.hands.census.host)
            .field("errands", &self.errands.keys())
            .finish_non_exhaustive()
    }
}

impl Coordinator {
    /// Everything that it reads from and acts through.
    pub fn new(census: Census, consensus: Consensus, transport: Arc<dyn Transport>, orders: Orders) -> Self {
        let now = Instant::now();
        Self {
            hands: Hands { census, consensus, transport, orders },
            alive: LastAlive::new(now),
            voters_due: now,
            errands: BTreeMap::new(),
        }
    }

    /// Looks and acts until cancelled, or until gossip has ended for good. Never ends by
    /// a failure: whatever could not be done is due again at the next look.
    pub async fn run(mut self, cancel: CancellationToken) {
        tokio::select! {
            () = self.look_and_act() => {}
            () = cancel.cancelled() => {}
        }
        for (errand, task) in self.errands {
            task.abort();
            log_end(errand, task.await);
        }
    }

    async fn look_and_act(&mut self) {
        let mut view = self.hands.census.view.clone();
        let mut leadership = self.hands.census.leadership.clone();
        let mut levels = self.hands.census.levels.subscribe();
        loop {
            let now = Instant::now();
            self.alive.look(&self.hands.census.hosts(), now);
            self.reap().await;
            if leadership.borrow_and_update().acting {
                self.act(now).await;
            } else {
                self.voters_due = now + VOTERS_INTERVAL;
            }
            view.mark_unchanged();
            levels.mark_unchanged();
            tokio::select! {
                () = tokio::time::sleep(LOOK_INTERVAL) => {}
                changed = view.changed() => if changed.is_err() { return },
                changed = levels.changed() => if changed.is_err() { return },
                changed = leadership.changed() => if changed.is_err() { return },
            }
        }
    }

    async fn act(&mut self, now: Instant) {
        // The level that was committed, not one that a push from elsewhere brought: a
        // leader's own state machine is the newest there is.
        let level = self.hands.consensus.level().borrow().clone();
        let hosts = self.hands.census.hosts();
        let seen = self.seen(&level, &hosts, now);
        let tallies: BTreeMap<RunId, Vec<Tally>> = level
            .runs
            .iter()
            .filter(|run| run.stage != RunStage::Done)
            .map(|run| (run.id, self.hands.census.tallies(run)))
            .collect();
        for step in steps::steps(&level, &seen, &tallies, self.hands.census.clock.now_unix_ms()) {
            let errand = match step {
                Step::CloseRun { run, .. } => Errand::Close(run),
                Step::AdvancePlan { plan, to: PlanStage::Formed } => Errand::Form(plan),
                Step::NameNodes { plan } => Errand::NameNodes(plan),
                Step::Found | Step::AdvancePlan { .. } | Step::TakeOver { .. } => {
                    self.hands.take(step).await;
                    continue;
                }
            };
            let hands = self.hands.clone();
            self.send(errand, async move { hands.take(step).await });
        }
        if now >= self.voters_due {
            self.voters_due = now + VOTERS_INTERVAL;
            self.mend_voters(&hosts, now);
        }
    }

    /// The hosts that gossip knows, and those without which a run can't be closed.
    fn seen(&self, level: &Level, hosts: &Hosts, now: Instant) -> BTreeMap<HostId, Seen> {
        let bearers = level.runs.iter().filter(|run| run.stage != RunStage::Done).flat_map(|run| &run.shares);
        let ids = hosts.keys().copied().chain(bearers.map(|share| share.host));
        ids.map(|id| {
            let host = hosts.get(&id);
            let seen = Seen {
                name: host.map_or_else(|| id.to_string(), CensusHost::name),
                dead_for: self.alive.dead_for(id, now),
                observed: host.map(|host| host.observed.clone()).unwrap_or_default(),
            };
            (id, seen)
        })
        .collect()
    }

    /// Begins an errand unless one of its kind is under way.
    fn send(&mut self, errand: Errand, work: impl Future<Output = ()> + Send + 'static) {
        self.errands.entry(errand).or_insert_with(|| tokio::spawn(work));
    }

    /// Takes leave of the errands that have ended.
    async fn reap(&mut self) {
        let ended: Vec<_> =
            self.errands.iter().filter(|(_, task)| task.is_finished()).map(|(errand, _)| *errand).collect();
        for errand in ended {
            if let Some(task) = self.errands.remove(&errand) {
                log_end(errand, task.await);
            }
        }
    }

    /// Replaces voters that have been dead for long, adds voters as the mesh grows.
    fn mend_voters(&mut self, hosts: &Hosts, now: Instant) {
        let current = self.hands.census.leadership.borrow().voters.clone();
        let known = hosts.values().filter(|host| host.facts.is_some()).map(|host| host.id);
        let states = known.chain(current.iter().copied()).map(|id| (id, self.alive.state(id))).collect();
        let level = self.hands.consensus.level().borrow().clone();
        let wanted = match current.iter().find(|id| level.is_removed(**id)) {
            Some(removed) => {
                let alive =
                    hosts.values().filter(|host| host.alive && host.facts.is_some()).map(|host| host.id);
                voters_without(&current, *removed, &alive.collect()).ok()
            }
            None => replace_voters(&current, &states, now.into_std(), STABILISATION),
        };
        let Some(wanted) = wanted else { return };
        let nodes: BTreeMap<HostId, VoterNode> = wanted
            .iter()
            .filter_map(|id| {
                let host = hosts.get(id)?;
                Some((*id, VoterNode { addr: host.addr, name: host.name() }))
            })
            .collect();
        if nodes.len() != wanted.len() {
            return;
        }
        let consensus = self.hands.consensus.clone();
        self.send(Errand::Voters, async move {
            info!(?current, ?wanted, "changing the voters");
            if let Err(error) = consensus.set_voters(nodes).await {
                warn!(error = %crate::error_chain(&error), "the voters stay as they are for now");
            }
        });
    }
}

fn log_end(errand: Errand, ended: Result<(), JoinError>) {
    if let Err(error) = ended
        && error.is_panic()
    {
        error!(?errand, %error, "an errand failed, due again");
    }
}

/// Says how long the phase took that has just ended.
fn log_phase(level: &Level) {
    let ended = level.plan.as_ref().and_then(|plan| plan.phases_ms().last().copied());
    if let Some((phase, ms)) = ended {
        info!(phase = phase.name(), seconds = ms as f64 / 1e3, "a phase of the formation is over");
    }
}

impl Hands {
    /// What all hosts of the plan noted of its convergence.
    async fn convergence(&self, plan: PlanId) -> Option<Convergence> {
        let level = self.census.level();
        let plan = level.plan.as_ref().filter(|known| known.id == plan)?;
        let hosts = self.census.hosts();
        let request = PeerRequest::Convergence(plan.id);
        let asked = plan.hosts.iter().map(|host| {
            let to = hosts.get(&host.id).map(|host| host.addr);
            peer::ask_known(&*self.transport, to, &request, peer::QUICK_DEADLINE)
        });
        let noted = join_all(asked).await.into_iter().flat_map(|answer| match answer {
            Ok(PeerReply::Agreed(noted)) => noted,
            // Unknown, then: it must not keep the plan from being formed.
            _ => Vec::new(),
        });
        Some(convergence::sum(plan.instances.len(), noted))
    }

    async fn take(&self, step: Step) {
        let command = match &step {
            Step::Found => Command::Found { mesh: MeshId(Uuid::new_v4()) },
            Step::AdvancePlan { plan, to } => {
                let at_unix_ms = self.census.clock.now_unix_ms();
                let convergence = match to {
                    PlanStage::Formed => self.convergence(*plan).await,
                    _ => None,
                };
                Command::AdvancePlan { plan: *plan, to: *to, at_unix_ms, convergence }
            }
            Step::NameNodes { plan } => match naming::node_ids(&self.census, &*self.transport, *plan).await {
                Ok(ids) => {
                    let at_unix_ms = self.census.clock.now_unix_ms();
                    Command::NameNodes { plan: *plan, ids, at_unix_ms }
                }
                Err(reason) => {
                    warn!(reason, "not all servers say their node ids, asked again");
                    tokio::time::sleep(naming::RETRY_INTERVAL).await;
                    return;
                }
            },
            Step::TakeOver { run, known, given_up, shares } => Command::AddShares {
                run: *run,
                known: *known,
                given_up: Some(*given_up),
                shares: shares.clone(),
            },
            Step::CloseRun { run, known, outcome } => {
                match settle::settle(&self.census, &*self.transport, *run, outcome.clone()).await {
                    Some(result) => Command::CloseRun { run: *run, known: *known, result: Box::new(result) },
                    None => return,
                }
            }
        };
        match self.orders.commit(command).await {
            Ok(Applied::Done) => {
                info!(?step, "step taken");
                if let Step::AdvancePlan { .. } | Step::NameNodes { .. } = step {
                    // What was committed: this host's own level may be a moment behind.
                    log_phase(&self.consensus.level().borrow());
                }
            }
            Ok(Applied::Unchanged) => debug!(?step, "step was taken before"),
            Ok(Applied::Rejected(reason)) => warn!(?step, reason, "step rejected"),
            Err(error) => warn!(?step, error = %crate::error_chain(&error), "step not committed, due again"),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_host_that_was_never_heard_of_is_missing_since_the_watch_began() {
        let began = Instant::now();
        let mut alive = LastAlive::new(began);
        let now = began + Duration::from_secs(7);
        alive.look(&BTreeMap::new(), now);
        assert_eq!(alive.dead_for(HostId(1), now), Duration::from_secs(7));
        assert!(!alive.state(HostId(1)).alive);
    }
}
