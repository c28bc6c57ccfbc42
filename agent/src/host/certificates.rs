//! Has this host's running instances read their certificate again once it was renewed.
//!
//! An instance reads the files of the host's identity when it starts, and again when it is
//! told one of their names (CONFIG SET). Each is told once whenever the agent takes up
//! another identity, and once in an agent's life: the files may have changed while no agent
//! was there. What an instance has read it shows new connections; those that stand go on.

use std::collections::BTreeSet;
use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use redmesh_api::ids::PlanId;
use redmesh_api::level::{ClusterPlan, Level, PlanStage, Servers};
use tokio::sync::watch;
use tokio_util::sync::CancellationToken;
use tracing::{info, warn};

use super::instances::LocalSettings;
use super::telling::tell_each;
use crate::cluster::{AdminPool, RedisConf};
use crate::redis_tls::RedisTls;

/// Between two tries to tell those that did not take it.
const RETRY_INTERVAL: Duration = Duration::from_secs(3);

/// Tells each own instance, until all have read the newest, until cancelled; `outdated` says
/// of one that has not. Without TLS there is nothing to tell.
pub async fn refresh(
    mut levels: watch::Receiver<Arc<Level>>,
    tls: Option<RedisTls>,
    admin: AdminPool,
    local: LocalSettings,
    outdated: watch::Sender<Option<String>>,
    cancel: CancellationToken,
) {
    let Some(tls) = tls else { return cancel.cancelled().await };
    let mut identities = tls.changes();
    let mut plan_told: Option<PlanId> = None;
    let mut told = BTreeSet::new();
    loop {
        let level = levels.borrow_and_update().clone();
        let formed = level
            .plan
            .as_ref()
            .filter(|plan| plan.spec.servers == Servers::Supervised && plan.stage == PlanStage::Formed);
        if plan_told != formed.map(|plan| plan.id) {
            plan_told = formed.map(|plan| plan.id);
            told.clear();
        }
        let words = match formed {
            Some(plan) => tokio::select! {
                words = tell(plan, &admin, &local, &mut told) => words,
                () = cancel.cancelled() => return,
            },
            None => None,
        };
        let pause = if words.is_some() { RETRY_INTERVAL } else { Duration::MAX };
        outdated.send_if_modified(|known| {
            let changed = *known != words;
            if changed {
                if let Some(words) = &words {
                    warn!("{words}");
                }
                known.clone_from(&words);
            }
            changed
        });
        tokio::select! {
            changed = levels.changed() => if changed.is_err() { return },
            changed = identities.changed() => match changed {
                Ok(()) => told.clear(),
                Err(_) => return,
            },
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
    told: &mut BTreeSet<SocketAddr>,
) -> Option<String> {
    let settings = |conf: &RedisConf| conf.setting_to_read_certificates().into_iter().collect();
    let telling = tell_each(plan, admin, local, told, settings).await?;
    let words = telling.failed.first().map(|(addr, error)| {
        format!(
            "{addr} has not been told to read its certificate again, it may show an old one until it takes CONFIG \
             SET or is started again: {error}"
        )
    });
    if words.is_none() {
        info!(instances = telling.due, "the instances have read their certificate");
    }
    words
}
