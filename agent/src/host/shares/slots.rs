//! Where keys go: at first as the plan laid the slots, then as the cluster says.

use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use redmesh_api::ids::HostId;
use redmesh_api::level::{ClusterPlan, PlannedRole};
use tokio::sync::{mpsc, watch};
use tracing::warn;

use crate::cluster::AdminPool;
use crate::load::routing::{SlotMap, SlotMapError};

/// Shortest time between two topology refreshes, however many redirections ask.
const REFRESH_INTERVAL_MIN: Duration = Duration::from_millis(100);

/// Instances asked for the topology before a refresh gives up until it is asked again.
const REFRESH_TRIES_MAX: usize = 5;

/// Slots as the plan laid them: right until the first failover or migration, after
/// which MOVED tells better.
pub fn planned_slots(plan: &ClusterPlan) -> Result<SlotMap, SlotMapError> {
    SlotMap::new(plan.instances.iter().filter_map(|instance| match &instance.role {
        PlannedRole::Primary { slots, .. } => Some((*slots, plan.addr_of(instance))),
        PlannedRole::Replica { .. } => None,
    }))
}

/// Whom to ask for the topology: own instances first.
pub fn refresh_sources(plan: &ClusterPlan, host: HostId) -> Vec<SocketAddr> {
    let (mut own, others): (Vec<_>, Vec<_>) =
        plan.instances.iter().partition(|instance| plan.host_of(instance).id == host);
    own.extend(others);
    own.into_iter().map(|instance| plan.addr_of(instance)).collect()
}

/// One refresher a share: any number of redirections make one question.
pub async fn refresh_slots(
    sources: Vec<SocketAddr>,
    admin: AdminPool,
    mut asked: mpsc::Receiver<()>,
    slots: watch::Sender<Arc<SlotMap>>,
) {
    let mut first = 0;
    while asked.recv().await.is_some() {
        for try_number in 0..REFRESH_TRIES_MAX.min(sources.len()) {
            let source = (first + try_number) % sources.len();
            match admin.slot_map(sources[source]).await.map(SlotMap::new) {
                Ok(Ok(map)) => {
                    slots.send_replace(Arc::new(map));
                    first = source;
                    break;
                }
                Ok(Err(error)) => {
                    warn!(from = %sources[source], error = %crate::error_chain(&error), "unusable topology")
                }
                Err(error) => {
                    warn!(from = %sources[source], error = %crate::error_chain(&error), "can't refresh the topology")
                }
            }
        }
        tokio::time::sleep(REFRESH_INTERVAL_MIN).await;
    }
}
