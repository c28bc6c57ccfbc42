//! How a level reaches this host when nobody pushes it, and how the others learn what
//! this host knows of leadership.

use std::sync::Arc;
use std::time::Duration;

use redmesh_api::level::Level;
use tokio::sync::watch;
use tokio_util::sync::CancellationToken;
use tracing::{debug, error, info, warn};

use crate::census::Census;
use crate::error_chain;
use crate::facts::{self, LeadFacts};
use crate::level::{LevelCell, LevelError};
use crate::mesh::Mesh;
use crate::peer::{self, PeerReply, PeerRequest};
use crate::transport::Transport;

/// Between two tries to pull a level that somebody announces.
const PULL_INTERVAL: Duration = Duration::from_millis(200);

/// Between two tries to take a level that could not be kept (a full disk can be emptied).
const RETRY_INTERVAL: Duration = Duration::from_secs(2);

/// Takes whatever the local Raft node applies, until cancelled.
pub async fn follow_raft(
    cell: LevelCell,
    mut applied: watch::Receiver<Arc<Level>>,
    cancel: CancellationToken,
) {
    loop {
        let level = applied.borrow_and_update().clone();
        // A node that never voted has applied nothing.
        let done = level.mesh.is_none() || take(&cell, level, "Raft").await;
        tokio::select! {
            changed = applied.changed() => if changed.is_err() { return },
            () = tokio::time::sleep(RETRY_INTERVAL), if !done => {}
            () = cancel.cancelled() => return,
        }
    }
}

/// Pulls any newer level that gossip announces, until cancelled.
pub async fn pull(census: Census, transport: Arc<dyn Transport>, cancel: CancellationToken) {
    let mut view = census.view.clone();
    loop {
        view.mark_unchanged();
        let own = census.level().stamp;
        let hosts = census.hosts();
        let newest = hosts
            .values()
            .filter(|host| host.alive && host.id != census.host && host.lead.stamp > own)
            .max_by_key(|host| host.lead.stamp);
        let behind = newest.is_some();
        if let Some(host) = newest {
            let request = PeerRequest::PullLevel { newer_than: own };
            match peer::ask(&*transport, host.addr, &request, peer::QUICK_DEADLINE).await {
                Ok(PeerReply::Level(Some(level))) => {
                    take(&census.levels, Arc::from(level), &host.name()).await;
                }
                Ok(PeerReply::Level(None)) => {}
                Ok(other) => warn!(from = host.name(), ?other, "can't pull the level"),
                Err(error) => warn!(from = host.name(), error = %error_chain(&error), "can't pull the level"),
            }
        }
        tokio::select! {
            () = tokio::time::sleep(PULL_INTERVAL) => {}
            () = cancel.cancelled() => return,
        }
        tokio::select! {
            _ = view.changed() => {}
            // What failed is tried again, also where gossip has no news.
            () = tokio::time::sleep(RETRY_INTERVAL), if behind => {}
            () = cancel.cancelled() => return,
        }
    }
}

/// Whether nothing is left to do about `level`; `false` if it could not be kept.
async fn take(cell: &LevelCell, level: Arc<Level>, from: &str) -> bool {
    let stamp = level.stamp;
    let known = cell.problem();
    match cell.accept(level).await {
        Ok(true) => info!(%stamp, from, "new level"),
        Ok(false) => {}
        Err(LevelError::Stale { newest, .. }) => debug!(%stamp, %newest, from, "older level passed over"),
        Err(error @ LevelError::Io { .. }) => {
            let words = error_chain(&error);
            if known.as_ref() != Some(&words) {
                error!(%stamp, from, error = words, "level not taken, tried again");
            }
            return false;
        }
        Err(error) => error!(%stamp, from, error = %error_chain(&error), "level not taken"),
    }
    true
}

/// Publishes this host's view of leadership whenever it changes, until cancelled.
pub async fn publish_lead(census: Census, mesh: Mesh, cancel: CancellationToken) {
    let mut leadership = census.leadership.clone();
    let mut levels = census.levels.subscribe();
    loop {
        let lead = {
            let leadership = leadership.borrow_and_update();
            let level = levels.borrow_and_update();
            LeadFacts {
                mesh: level.mesh,
                term: leadership.term,
                acting: leadership.acting,
                voters: if leadership.acting { leadership.voters.clone() } else { Default::default() },
                stamp: level.stamp,
            }
        };
        if let Err(error) = mesh.publish(facts::LEAD, &lead) {
            warn!(error = %error_chain(&error), "can't publish leadership");
        }
        tokio::select! {
            changed = leadership.changed() => if changed.is_err() { return },
            changed = levels.changed() => if changed.is_err() { return },
            () = cancel.cancelled() => return,
        }
    }
}
