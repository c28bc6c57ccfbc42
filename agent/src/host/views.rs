//! What this host's instances see of the cluster.
//!
//! Each host asks its own instances only: asking a thousand of them from one place
//! would be 110 MB a sweep. Until all agree they are asked often, then seldom; only the
//! short `CLUSTER INFO` is asked for, the whole topology when somebody wants a check.

use std::collections::HashMap;
use std::net::SocketAddr;
use std::sync::Arc;
use std::time::{Duration, Instant};

use redmesh_api::ids::HostId;
use redmesh_api::level::{Formation, Level, PlanStage, SLOTS};
use tokio::sync::watch;
use tokio_util::sync::CancellationToken;

use super::convergence::Agreeing;
use crate::cluster::{AdminPool, ClusterInfo};

/// Between two sweeps while some instance disagrees.
const SWEEP_CONVERGING: Duration = Duration::from_millis(250);

/// Between two sweeps once all agree.
const SWEEP_STEADY: Duration = Duration::from_secs(5);

/// The latest answer, or the latest failure, of each own instance.
#[derive(Debug, Clone, Default)]
pub struct Views {
    /// Nodes that an instance knows, at the least and at the most.
    nodes: (usize, usize),
    answers: HashMap<SocketAddr, Result<ClusterInfo, String>>,
    /// Since when which instances agree.
    pub agreeing: Agreeing,
}

impl Views {
    /// Why `addr`'s view is not whole yet; `None` when it is.
    pub fn disagreement(&self, addr: SocketAddr) -> Option<String> {
        let info = match self.answers.get(&addr) {
            None => return Some("has not been asked for its view yet".to_owned()),
            Some(Err(reason)) => return Some(reason.clone()),
            Some(Ok(info)) => info,
        };
        let mut reasons = Vec::new();
        if !info.state_ok {
            reasons.push("cluster_state:fail".to_owned());
        }
        let (least, most) = self.nodes;
        if !(least..=most).contains(&(info.known_nodes as usize)) {
            reasons.push(format!("knows {} of {most} nodes", info.known_nodes));
        }
        if info.slots_assigned != SLOTS {
            reasons.push(format!("{} of {SLOTS} slots assigned", info.slots_assigned));
        }
        (!reasons.is_empty()).then(|| reasons.join(", "))
    }

    fn agreed(&self) -> impl Iterator<Item = SocketAddr> {
        self.answers.keys().copied().filter(|&addr| self.disagreement(addr).is_none())
    }

    /// Whether `addr` answered when it was last asked.
    pub fn answers(&self, addr: SocketAddr) -> bool {
        matches!(self.answers.get(&addr), Some(Ok(_)))
    }

    fn all_agree(&self) -> bool {
        self.answers.keys().all(|&addr| self.disagreement(addr).is_none())
    }
}

/// Sweeps over this host's instances until cancelled, publishing the views.
pub async fn watch_views(
    host: HostId,
    mut levels: watch::Receiver<Arc<Level>>,
    admin: AdminPool,
    views: watch::Sender<Arc<Views>>,
    cancel: CancellationToken,
) {
    let mut agreeing = Agreeing::default();
    loop {
        let level = levels.borrow_and_update().clone();
        if let Some(plan) = &level.plan {
            agreeing.on_plan(plan, Instant::now());
        }
        let pause = match &level.plan {
            // Servers that are joined by MEET run from the beginning.
            Some(plan) if plan.stage > PlanStage::Prepare || plan.formation == Formation::Meet => {
                let own = plan.instances_of(host).map(|i| plan.addr_of(i)).collect();
                let answers = tokio::select! {
                    answers = admin.cluster_info_all(own) => answers,
                    () = cancel.cancelled() => return,
                };
                let answers = answers
                    .into_iter()
                    .map(|(addr, answer)| (addr, answer.map_err(|error| crate::error_chain(&error))))
                    .collect();
                let mut swept = Views {
                    nodes: level.nodes_known(plan).into_inner(),
                    answers,
                    agreeing: Agreeing::default(),
                };
                agreeing.on_look(swept.agreed(), Instant::now());
                swept.agreeing = agreeing.clone();
                let pause = if swept.all_agree() { SWEEP_STEADY } else { SWEEP_CONVERGING };
                views.send_replace(Arc::new(swept));
                pause
            }
            _ => SWEEP_STEADY,
        };
        tokio::select! {
            () = tokio::time::sleep(pause) => {}
            changed = levels.changed() => if changed.is_err() { return },
            () = cancel.cancelled() => return,
        }
    }
}
