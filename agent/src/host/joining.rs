//! This host's instances made part of a cluster by MEET, each by a task of its own.
//!
//! What an instance needs is decided by [`formation::next_move`] out of its own view, and
//! done here: looked at again and again, at a bounded pace, until the plan's stage asks no
//! more of it. Nothing is remembered that a restarted agent would miss. What an instance
//! waits for is status, which the mesh gossips; the coordinator advances the plan when
//! nobody waits any more.

use std::collections::BTreeMap;
use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use redmesh_api::ids::{HostId, PlanId};
use redmesh_api::level::{ClusterPlan, Formation, Level, PlanStage};
use tokio::sync::{Semaphore, watch};
use tokio::task::JoinSet;
use tokio::time::Instant;
use tokio_util::sync::CancellationToken;
use tracing::{debug, info};

use crate::cluster::admin::ASKED_AT_ONCE_MAX;
use crate::cluster::formation::{self, Move};
use crate::cluster::{AdminError, AdminPool};

/// Between two looks at one instance, for each hundred nodes of the cluster begun: a view
/// of a thousand is 100 KB.
const LOOK_INTERVAL: Duration = Duration::from_millis(250);

/// Time that gossip gets before an instance that lacks others is introduced to them
/// directly.
const STRAGGLER_AFTER: Duration = Duration::from_secs(2);

/// The same for each node of the cluster, added to it.
const STRAGGLER_AFTER_EACH: Duration = Duration::from_millis(10);

/// Redis forgets a handshake that was not answered after the node timeout, but not before
/// this (`clusterCron` of `cluster.c`).
const HANDSHAKE_MIN: Duration = Duration::from_secs(1);

/// Moves of one instance between two pauses: an epoch, its slots, and a look at both.
const MOVES_AT_ONCE_MAX: usize = 4;

/// How far this host's instances have joined.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Joining {
    /// The plan and the stage that the rest belongs to.
    stage: Option<(PlanId, PlanStage)>,
    /// What each instance that was looked at waits for; `None` when for nothing.
    waits: BTreeMap<SocketAddr, Option<String>>,
}

impl Joining {
    /// What the instance at `addr` waits for before it is where `plan`'s stage wants it;
    /// `None` when it is there.
    pub fn waits_for(&self, plan: &ClusterPlan, addr: SocketAddr) -> Option<String> {
        let not_yet = || Some("has not been looked at yet".to_owned());
        if self.stage != Some((plan.id, plan.stage)) {
            return not_yet();
        }
        self.waits.get(&addr).cloned().unwrap_or_else(not_yet)
    }
}

/// Joins this host's instances as each level's plan wants it, until cancelled.
pub async fn join(
    host: HostId,
    mut levels: watch::Receiver<Arc<Level>>,
    admin: AdminPool,
    joining: watch::Sender<Joining>,
    cancel: CancellationToken,
) {
    let mut tasks = JoinSet::new();
    let mut at = None;
    loop {
        let level = levels.borrow_and_update().clone();
        let plan = level.plan.as_ref().filter(|plan| plan.formation == Formation::Meet);
        let stage = plan.map(|plan| (plan.id, plan.stage));
        if stage != at {
            at = stage;
            tasks.shutdown().await;
            joining.send_replace(Joining { stage, waits: BTreeMap::new() });
            if let Some(plan) = plan.filter(|plan| plan.stage != PlanStage::Formed) {
                info!(plan = %plan.id, stage = ?plan.stage, "joining by MEET");
                begin(&mut tasks, host, plan, &admin, &joining);
            }
        }
        tokio::select! {
            changed = levels.changed() => if changed.is_err() { return },
            Some(ended) = tasks.join_next(), if !tasks.is_empty() => {
                // None ends by itself: it has failed, and all are begun again.
                tracing::error!(?ended, "joining an instance failed");
                at = None;
                tokio::time::sleep(LOOK_INTERVAL).await;
            }
            () = cancel.cancelled() => return,
        }
    }
}

fn begin(
    tasks: &mut JoinSet<()>,
    host: HostId,
    plan: &ClusterPlan,
    admin: &AdminPool,
    joining: &watch::Sender<Joining>,
) {
    let plan = Arc::new(plan.clone());
    let permits = Arc::new(Semaphore::new(ASKED_AT_ONCE_MAX));
    for (index, instance) in plan.instances.iter().enumerate() {
        if plan.host_of(instance).id != host {
            continue;
        }
        let joiner = Joiner {
            plan: plan.clone(),
            index,
            addr: plan.addr_of(instance),
            admin: admin.clone(),
            met: BTreeMap::new(),
            began: Instant::now(),
        };
        tasks.spawn(joiner.run(permits.clone(), joining.clone()));
    }
}

/// One instance on its way into the cluster.
struct Joiner {
    plan: Arc<ClusterPlan>,
    index: usize,
    addr: SocketAddr,
    admin: AdminPool,
    /// When it was last introduced to whom, by the plan's index, and how often.
    met: BTreeMap<usize, (Instant, u32)>,
    began: Instant,
}

impl Joiner {
    async fn run(mut self, permits: Arc<Semaphore>, joining: watch::Sender<Joining>) {
        let hundreds = u32::try_from(self.plan.instances.len().div_ceil(100)).unwrap_or(u32::MAX);
        let pause = LOOK_INTERVAL.saturating_mul(hundreds.max(1));
        loop {
            let waits = {
                // Never closed.
                let Ok(_permit) = permits.acquire().await else { return };
                self.move_on().await
            };
            joining.send_if_modified(|joining| {
                let known = joining.waits.insert(self.addr, waits.clone());
                known != Some(waits)
            });
            tokio::time::sleep(pause).await;
        }
    }

    /// Does what is due; what it waits for then, `None` for nothing.
    async fn move_on(&mut self) -> Option<String> {
        for _ in 0..MOVES_AT_ONCE_MAX {
            let view = match self.admin.topology(self.addr).await {
                Ok(view) => view,
                Err(error) => return Some(format!("does not answer ({})", crate::error_chain(&error))),
            };
            let patience = u32::try_from(self.plan.instances.len()).unwrap_or(u32::MAX);
            let patience = STRAGGLER_AFTER + STRAGGLER_AFTER_EACH.saturating_mul(patience);
            let straggling = self.began.elapsed() >= patience;
            let due = formation::next_move(&self.plan, self.index, &view, straggling);
            debug!(addr = %self.addr, ?due, "joining");
            let done = match due {
                Move::Done => return None,
                Move::Wait(words) | Move::Stuck(words) => return Some(words),
                Move::SetEpoch(epoch) => self.admin.set_config_epoch(self.addr, epoch).await,
                Move::AddSlots(ranges) => self.admin.add_slots(self.addr, &ranges).await,
                Move::Follow(primary) => {
                    let done = self.admin.replicate(self.addr, primary).await;
                    if let Err(error) = done {
                        return Some(format!(
                            "can't be made a replica ({}): a replica-to-be must hold no keys",
                            crate::error_chain(&error)
                        ));
                    }
                    done
                }
                Move::Meet(others) => return Some(self.introduce(&others, view.nodes.len()).await),
            };
            if let Err(error) = done {
                return Some(crate::error_chain(&error));
            }
        }
        Some("is being given its place".to_owned())
    }

    /// Introduces it to others, to each again only when the last handshake is forgotten.
    async fn introduce(&mut self, others: &[usize], known: usize) -> String {
        let forgotten = Duration::from_millis(self.plan.node_timeout_ms.into()).max(HANDSHAKE_MIN);
        for &other in others {
            let (last, times) = self.met.get(&other).copied().unwrap_or((self.began, 0));
            if times > 0 && last.elapsed() < forgotten {
                continue;
            }
            if let Err(error) = self.meet(other).await {
                return crate::error_chain(&error);
            }
            self.met.insert(other, (Instant::now(), times.saturating_add(1)));
        }
        let times = others.iter().filter_map(|other| self.met.get(other)).map(|(_, times)| *times).max();
        let first = others.first().and_then(|other| self.plan.instances.get(*other));
        format!(
            "knows {known} of {} nodes; introduced to {}{} ({} times so far)",
            self.plan.instances.len(),
            first.map(|first| self.plan.addr_of(first).to_string()).unwrap_or_default(),
            if others.len() > 1 { format!(" and {} more", others.len() - 1) } else { String::new() },
            times.unwrap_or(0)
        )
    }

    async fn meet(&self, other: usize) -> Result<(), AdminError> {
        match self.plan.instances.get(other) {
            Some(instance) => self.admin.meet(self.addr, self.plan.addr_of(instance)).await,
            None => Ok(()),
        }
    }
}
