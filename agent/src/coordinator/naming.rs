//! The node ids of servers that are joined by MEET: drawn by the servers themselves, asked
//! for once all of them are ready, and written into the plan.

use std::collections::BTreeMap;
use std::net::SocketAddr;
use std::time::Duration;

use redmesh_api::ids::{NodeId, PlanId};

use crate::census::Census;
use crate::peer::{self, PeerReply, PeerRequest};
use crate::transport::Transport;

/// Pause before servers that didn't answer are asked again.
pub const RETRY_INTERVAL: Duration = Duration::from_secs(1);

/// The ids of all instances of `plan`, in its order, by their own account.
///
/// # Errors
/// In words: the first that could not be had.
pub async fn node_ids(
    census: &Census,
    transport: &dyn Transport,
    plan: PlanId,
) -> Result<Vec<NodeId>, String> {
    let level = census.level();
    let plan = level.plan.as_ref().filter(|known| known.id == plan);
    let plan = plan.ok_or_else(|| "the plan has not reached this host yet".to_owned())?;
    let hosts = census.hosts();
    let asked = plan.hosts.iter().map(|planned| async {
        let to = hosts.get(&planned.id).map(|host| host.addr);
        match peer::ask_known(transport, to, &PeerRequest::NodeIds, peer::INSTANCES_DEADLINE).await {
            Ok(PeerReply::NodeIds { ids, missing }) => match missing.into_iter().next() {
                None => Ok(ids),
                Some(reason) => Err(format!("{}: {reason}", planned.name)),
            },
            Ok(other) => Err(format!("{}: answered {other:?}", planned.name)),
            Err(reason) => Err(format!("{}: {reason}", planned.name)),
        }
    });
    let answers = futures_util::future::join_all(asked).await;
    let said: Vec<_> = answers.into_iter().collect::<Result<_, _>>()?;
    let ids: BTreeMap<SocketAddr, NodeId> = said.into_iter().flatten().collect();
    let mut bearers = BTreeMap::new();
    for (addr, id) in &ids {
        if let Some(other) = bearers.insert(id, addr) {
            return Err(format!(
                "{other} and {addr} both say that they are {id}: CLUSTER RESET HARD one of them"
            ));
        }
    }
    let id_of = |addr| ids.get(&addr).copied().ok_or_else(|| format!("{addr}: its host does not mention it"));
    plan.instances.iter().map(|instance| id_of(plan.addr_of(instance))).collect()
}
