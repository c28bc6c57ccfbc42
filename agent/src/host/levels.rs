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

/// Takes whatever the local Raft node applies, until cancelled.
pub async fn follow_raft(
    cell: LevelCell,
    mut applied: watch::Receiver<Arc<Level>>,
    cancel: CancellationToken,
) {
    loop {
        let level = applied.borrow_and_update().clone();
        // A node that never voted has applied nothing.
        if level.mesh.is_some() {
            take(&cell, level, "Raft").await;
        }
        tokio::select! {
            changed = applied.changed() => if changed.is_err() { return },
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
        let newest = census
            .hosts()
            .into_values()
            .filter(|host| host.alive && host.id != census.host && host.lead.stamp > own)
            .max_by_key(|host| host.lead.stamp);
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
            () = cancel.cancelled() => return,
        }
    }
}

async fn take(cell: &LevelCell, level: Arc<Level>, from: &str) {
    let stamp = level.stamp;
    match cell.accept(level).await {
        Ok(true) => info!(%stamp, from, "new level"),
        Ok(false) => {}
        Err(LevelError::Stale { newest, .. }) => debug!(%stamp, %newest, from, "older level passed over"),
        Err(error) => error!(%stamp, from, error = %error_chain(&error), "level not taken"),
    }
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
