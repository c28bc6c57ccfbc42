//! Has this host's instances forget the nodes of hosts that were removed from the mesh.
//!
//! Redis forgets node by node, instance by instance, and whoever still knows a node tells
//! the others of it again once their ban of a minute is over (`CLUSTER FORGET`). Every host
//! does this for its own instances as soon as it sees the removal, so that all are through
//! within seconds, and looks again for good: a host that comes back later, or an instance
//! that was down, brings the nodes back. A node that holds slots is not forgotten, for
//! whoever asks for its keys would not be told where they are.

use std::collections::{BTreeMap, BTreeSet};
use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use futures_util::{StreamExt, stream};
use redmesh_api::ids::{HostId, NodeId};
use redmesh_api::level::{ClusterPlan, Level, PlanStage};
use tokio::sync::watch;
use tokio_util::sync::CancellationToken;
use tracing::{info, warn};

use crate::cluster::admin::ASKED_AT_ONCE_MAX;
use crate::cluster::{AdminPool, Topology};

/// Between two sweeps while some instance knows such a node: well within the ban.
const SWEEP_FORGETTING: Duration = Duration::from_secs(2);

/// Between two sweeps afterwards.
const SWEEP_STEADY: Duration = Duration::from_secs(10);

/// How far this host's instances have forgotten removed hosts.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Forgetting {
    /// Removed hosts of the plan whose nodes none of the instances that answer knows.
    pub forgotten: Vec<HostId>,
    /// Why one that is known is not being forgotten, and the remedy.
    pub withheld: Option<String>,
}

/// Nodes of the plan on hosts that were removed, each with its host.
fn gone(level: &Level, plan: &ClusterPlan) -> BTreeMap<NodeId, HostId> {
    let instances = plan.instances.iter().map(|instance| (instance.node_id, plan.host_of(instance).id));
    instances.filter(|(_, host)| level.is_removed(*host)).collect()
}

/// What one instance is to do about the nodes `gone`, by its own view.
#[derive(Debug, Default, PartialEq, Eq)]
struct Todo {
    /// To be forgotten.
    forget: Vec<NodeId>,
    /// To be left, and why.
    leave: Vec<(NodeId, String)>,
}

fn todo(view: &Topology, gone: &BTreeMap<NodeId, HostId>) -> Todo {
    let follows = view.myself().and_then(|me| me.primary);
    let mut todo = Todo::default();
    for node in view.nodes.iter().filter(|node| !node.myself && gone.contains_key(&node.id)) {
        let slots: usize = node.slots.iter().map(|range| range.len()).sum();
        if slots > 0 {
            let reason = format!(
                "it holds {slots} slots: move them to others (`redis-cli --cluster reshard`, or `--cluster fix` where \
                 they are lost)"
            );
            todo.leave.push((node.id, reason));
        } else if follows == Some(node.id) {
            let reason = "a replica follows it: let the replica follow another (`CLUSTER REPLICATE`)";
            todo.leave.push((node.id, reason.to_owned()));
        } else {
            todo.forget.push(node.id);
        }
    }
    todo
}

/// Sweeps until cancelled, as long as removed hosts have nodes in the plan.
pub async fn forget(
    host: HostId,
    mut levels: watch::Receiver<Arc<Level>>,
    admin: AdminPool,
    progress: watch::Sender<Forgetting>,
    cancel: CancellationToken,
) {
    loop {
        let level = levels.borrow_and_update().clone();
        let formed = level.plan.as_ref().filter(|plan| plan.stage == PlanStage::Formed);
        let (swept, pause) = match formed.map(|plan| (plan, gone(&level, plan))) {
            Some((plan, gone)) if !gone.is_empty() => {
                let own = plan.instances_of(host).map(|instance| plan.addr_of(instance)).collect();
                let swept = tokio::select! {
                    swept = sweep(own, &gone, plan, &admin) => swept,
                    () = cancel.cancelled() => return,
                };
                let all: BTreeSet<_> = gone.values().collect();
                let pause = if swept.forgotten.len() == all.len() { SWEEP_STEADY } else { SWEEP_FORGETTING };
                (swept, pause)
            }
            _ => (Forgetting::default(), Duration::MAX),
        };
        progress.send_if_modified(|known| {
            let changed = *known != swept;
            if changed {
                *known = swept;
            }
            changed
        });
        tokio::select! {
            () = tokio::time::sleep(pause) => {}
            changed = levels.changed() => if changed.is_err() { return },
            () = cancel.cancelled() => return,
        }
    }
}

/// Looks at each own instance, has it forget what it may, and says what is left.
async fn sweep(
    own: Vec<SocketAddr>,
    gone: &BTreeMap<NodeId, HostId>,
    plan: &ClusterPlan,
    admin: &AdminPool,
) -> Forgetting {
    let stay = plan.instances.len() - gone.len();
    let asked = admin.cluster_info_all(own).await;
    // Most know nobody too many, which the short answer tells.
    let knowing = asked
        .into_iter()
        .filter_map(|(addr, info)| info.is_ok_and(|info| info.known_nodes as usize > stay).then_some(addr));
    let told = knowing.map(|addr| tell(addr, gone, admin));
    let told: Vec<_> = stream::iter(told).buffered(ASKED_AT_ONCE_MAX).collect().await;
    let mut known = BTreeSet::new();
    let mut withheld = None;
    for (node, reason) in told.into_iter().flatten() {
        let Some(host) = gone.get(&node) else { continue };
        known.insert(*host);
        let name = plan.hosts.iter().find(|it| it.id == *host).map_or("?", |it| it.name.as_str());
        let addr = plan.instances.iter().find(|instance| instance.node_id == node);
        let addr = addr.map(|instance| plan.addr_of(instance).to_string()).unwrap_or_default();
        withheld.get_or_insert_with(|| {
            format!("node {addr} of the removed host {name} is not forgotten yet, {reason}")
        });
    }
    let forgotten = gone.values().copied().collect::<BTreeSet<_>>();
    Forgetting { forgotten: forgotten.difference(&known).copied().collect(), withheld }
}

/// Has one instance forget; the nodes that it goes on knowing, each with the reason.
async fn tell(addr: SocketAddr, gone: &BTreeMap<NodeId, HostId>, admin: &AdminPool) -> Vec<(NodeId, String)> {
    let view = match admin.topology(addr).await {
        Ok(view) => view,
        Err(error) => {
            let error = crate::error_chain(&error);
            warn!(%addr, error, "an instance can't be asked whom it knows, tried again");
            return Vec::new();
        }
    };
    let Todo { forget, mut leave } = todo(&view, gone);
    let mut count = 0;
    for node in forget {
        match admin.cluster_forget(addr, node).await {
            Ok(()) => count += 1,
            Err(error) => leave.push((node, crate::error_chain(&error))),
        }
    }
    if count > 0 {
        info!(%addr, nodes = count, "an instance has forgotten the nodes of removed hosts");
    }
    leave
}

#[cfg(test)]
mod tests {
    use super::*;

    fn node(n: u8) -> NodeId {
        NodeId([n; 20])
    }

    #[test]
    fn what_holds_slots_or_is_followed_stays_and_the_rest_goes() {
        let id = |n: u8| node(n).to_string();
        let line = |n: u8, rest: &str| format!("{} 127.0.0.1:{n}@1{n} {rest}\n", id(n));
        let text = [
            line(1, &format!("myself,slave {} 0 0 1 connected", id(2))),
            line(2, "master - 0 0 2 connected"),
            line(3, "master - 0 0 3 connected 0-99 200"),
            line(4, &format!("slave,fail {} 0 0 3 disconnected", id(3))),
            line(5, "master - 0 0 5 connected 300"),
        ]
        .concat();
        let view = Topology::parse(&text).expect("a view");
        let gone = |nodes: &[u8]| nodes.iter().map(|n| (node(*n), HostId(9))).collect();
        assert_eq!(todo(&view, &gone(&[4])), Todo { forget: vec![node(4)], leave: Vec::new() });
        let left = todo(&view, &gone(&[1, 2, 3, 4, 8]));
        assert_eq!(left.forget, [node(4)], "it never forgets itself, and knows no node 8");
        let words: Vec<_> = left.leave.iter().map(|(node, words)| (*node, words.as_str())).collect();
        let [(two, followed), (three, holds)] = words[..] else { panic!("{words:?}") };
        assert_eq!((two, three), (node(2), node(3)));
        assert!(followed.contains("a replica follows it") && holds.contains("101 slots"), "{words:?}");
    }
}
