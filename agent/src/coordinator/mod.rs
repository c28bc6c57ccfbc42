//! The coordinator: carries out what [`steps`] decides, while this agent may act.
//!
//! It runs on every host and acts on one: the Raft leader with a fresh quorum. It holds
//! no state that its successor needs; all of that is in the level (Raft) or observed
//! (gossip). Whatever it does is committed first and pushed to the hosts then, under
//! the commit's stamp, so that a deposed coordinator's word is refused by its fence.

pub mod account;
pub mod bootstrap;
pub mod orders;
pub mod settle;
pub mod steps;

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;

use redmesh_api::ids::{HostId, MeshId, RunId};
use redmesh_api::run::{RunStage, Tally};
use tokio::time::Instant;
use tokio_util::sync::CancellationToken;
use tracing::{debug, info, warn};
use uuid::Uuid;

use crate::census::{Census, CensusHost};
use crate::consensus::voters::{HostState, STABILISATION, replace_voters};
use crate::consensus::{Applied, Command, Consensus, VoterNode};
use crate::transport::Transport;
use orders::Orders;
use steps::{Seen, Step};

/// Between two looks at the mesh; news by gossip or Raft makes it look at once.
const LOOK_INTERVAL: Duration = Duration::from_millis(100);

/// Between two looks at who should vote.
const VOTERS_INTERVAL: Duration = Duration::from_secs(2);

/// The coordinator's task on one host.
pub struct Coordinator {
    census: Census,
    consensus: Consensus,
    transport: Arc<dyn Transport>,
    orders: Orders,
    alive: LastAlive,
    voters_due: Instant,
}

/// Since when each host has been dead, and since when alive.
#[derive(Debug, Default)]
struct LastAlive {
    seen: BTreeMap<HostId, (bool, Instant)>,
}

impl LastAlive {
    fn look(&mut self, hosts: &BTreeMap<HostId, CensusHost>, now: Instant) {
        for host in hosts.values() {
            let entry = self.seen.entry(host.id).or_insert((host.alive, now));
            if entry.0 != host.alive {
                *entry = (host.alive, now);
            }
        }
        self.seen.retain(|id, _| hosts.contains_key(id));
    }

    fn dead_for(&self, id: HostId, now: Instant) -> Duration {
        match self.seen.get(&id) {
            Some(&(false, since)) => now.duration_since(since),
            _ => Duration::ZERO,
        }
    }
}

impl std::fmt::Debug for Coordinator {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Coordinator").field("host", &self.census.host).finish_non_exhaustive()
    }
}

impl Coordinator {
    /// Everything that it reads from and acts through.
    pub fn new(census: Census, consensus: Consensus, transport: Arc<dyn Transport>, orders: Orders) -> Self {
        Self { census, consensus, transport, orders, alive: LastAlive::default(), voters_due: Instant::now() }
    }

    /// Looks and acts until cancelled. Never ends by a failure: whatever could not be
    /// done is due again at the next look.
    pub async fn run(mut self, cancel: CancellationToken) {
        let mut view = self.census.view.clone();
        let mut leadership = self.census.leadership.clone();
        let mut levels = self.census.levels.subscribe();
        loop {
            let now = Instant::now();
            self.alive.look(&self.census.hosts(), now);
            if leadership.borrow_and_update().acting {
                self.act(now).await;
            } else {
                self.voters_due = now + VOTERS_INTERVAL;
            }
            view.mark_unchanged();
            levels.mark_unchanged();
            tokio::select! {
                () = tokio::time::sleep(LOOK_INTERVAL) => {}
                _ = view.changed() => {}
                _ = levels.changed() => {}
                _ = leadership.changed() => {}
                () = cancel.cancelled() => return,
            }
        }
    }

    async fn act(&mut self, now: Instant) {
        // The level that was committed, not one that a push from elsewhere brought: a
        // leader's own state machine is the newest there is.
        let level = self.consensus.level().borrow().clone();
        let hosts = self.census.hosts();
        let seen = hosts.values().map(|host| {
            let seen = Seen {
                name: host.name(),
                dead_for: self.alive.dead_for(host.id, now),
                observed: host.observed.clone(),
            };
            (host.id, seen)
        });
        let tallies: BTreeMap<RunId, Vec<Tally>> = level
            .runs
            .iter()
            .filter(|run| run.stage != RunStage::Done)
            .map(|run| (run.id, self.census.tallies(run)))
            .collect();
        for step in steps::steps(&level, &seen.collect(), &tallies, orders::now_unix_ms()) {
            self.take(step).await;
        }
        if now >= self.voters_due {
            self.voters_due = now + VOTERS_INTERVAL;
            self.mend_voters(&hosts, now).await;
        }
    }

    async fn take(&self, step: Step) {
        let command = match &step {
            Step::Found => Command::Found { mesh: MeshId(Uuid::new_v4()) },
            Step::AdvancePlan { plan, to } => {
                Command::AdvancePlan { plan: *plan, to: *to, at_unix_ms: orders::now_unix_ms() }
            }
            Step::CloseRun { run, outcome } => {
                match settle::settle(&self.census, &*self.transport, *run, outcome.clone()).await {
                    Some(result) => Command::CloseRun { run: *run, result: Box::new(result) },
                    None => return,
                }
            }
        };
        match self.orders.commit(command).await {
            Ok(Applied::Done) => info!(?step, "step taken"),
            Ok(Applied::Unchanged) => debug!(?step, "step was taken before"),
            Ok(Applied::Rejected(reason)) => warn!(?step, reason, "step rejected"),
            Err(error) => warn!(?step, error = %crate::error_chain(&error), "step not committed, due again"),
        }
    }

    /// Replaces voters that have been dead for long, adds voters as the mesh grows.
    async fn mend_voters(&self, hosts: &BTreeMap<HostId, CensusHost>, now: Instant) {
        let current = self.census.leadership.borrow().voters.clone();
        let states = hosts.values().filter(|host| host.facts.is_some()).map(|host| {
            let (alive, since) = self.alive.seen.get(&host.id).copied().unwrap_or((host.alive, now));
            (host.id, HostState { alive, since: since.into_std() })
        });
        let wanted = replace_voters(&current, &states.collect(), now.into_std(), STABILISATION);
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
        info!(?current, ?wanted, "changing the voters");
        if let Err(error) = self.consensus.set_voters(nodes).await {
            warn!(error = %crate::error_chain(&error), "the voters stay as they are for now");
        }
    }
}
