//! Gives this host's instances back their everyday settings once a seeded cluster is formed.
//!
//! While it is being formed they run with a long node timeout (see
//! [`crate::cluster::redis_conf::FORMING_NODE_TIMEOUT_MS`]). An instance that starts later
//! reads the right ones from its file; those that run are told once in this agent's life,
//! so that whatever a person sets afterwards stays.

use std::collections::BTreeSet;
use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use redmesh_api::ids::PlanId;
use redmesh_api::level::{ClusterPlan, Formation, Level, PlanStage};
use tokio::sync::watch;
use tokio_util::sync::CancellationToken;
use tracing::{info, warn};

use super::instances::LocalSettings;
use super::telling::tell_each;
use crate::cluster::{AdminPool, RedisConf};

/// Between two tries to tell those that did not take it.
const RETRY_INTERVAL: Duration = Duration::from_secs(2);

/// Who has been told, of which plan.
#[derive(Debug, Default)]
struct Told {
    plan: Option<PlanId>,
    instances: BTreeSet<SocketAddr>,
}

/// Tells each own instance, until all have taken it, for each plan, until cancelled;
/// `unsettled` says of one that does not.
pub async fn settle(
    mut levels: watch::Receiver<Arc<Level>>,
    admin: AdminPool,
    local: LocalSettings,
    unsettled: watch::Sender<Option<String>>,
    cancel: CancellationToken,
) {
    let mut told = Told::default();
    loop {
        let level = levels.borrow_and_update().clone();
        let words = match &level.plan {
            Some(plan) if plan.formation == Formation::Seeded && plan.stage == PlanStage::Formed => {
                tokio::select! {
                    words = tell(plan, &admin, &local, &mut told) => words,
                    () = cancel.cancelled() => return,
                }
            }
            _ => None,
        };
        let pause = if words.is_some() { RETRY_INTERVAL } else { Duration::MAX };
        unsettled.send_if_modified(|known| {
            let changed = *known != words;
            if changed {
                known.clone_from(&words);
            }
            changed
        });
        tokio::select! {
            changed = levels.changed() => if changed.is_err() { return },
            () = tokio::time::sleep(pause) => {}
            () = cancel.cancelled() => return,
        }
    }
}

/// Tells those that have not been told; what the first one that fails says.
async fn tell(
    plan: &ClusterPlan,
    admin: &AdminPool,
    local: &LocalSettings,
    told: &mut Told,
) -> Option<String> {
    if told.plan != Some(plan.id) {
        *told = Told { plan: Some(plan.id), instances: BTreeSet::new() };
    }
    let telling = tell_each(plan, admin, local, &mut told.instances, RedisConf::settings_once_formed).await?;
    for (addr, error) in &telling.failed {
        warn!(%addr, error, "an instance keeps the node timeout of the formation, tried again");
    }
    let words = telling.failed.first().map(|(addr, error)| {
        format!(
            "{addr} keeps the node timeout of the formation until it takes CONFIG SET or is started again: {error}"
        )
    });
    if words.is_none() {
        info!(instances = telling.due, "the instances have their everyday settings");
    }
    words
}
