//! Committing a change and telling everybody: the one way in which desired state is
//! altered.

use std::collections::BTreeMap;
use std::sync::Arc;

use redmesh_api::ids::HostId;
use redmesh_api::level::Level;
use tokio::task::JoinSet;
use tracing::{debug, warn};

use crate::census::Census;
use crate::consensus::{Applied, Command, Consensus, ProposeError, VoterNode};
use crate::peer::{self, PeerReply, PeerRequest};
use crate::transport::Transport;

/// Cloneable handle through which the coordinator commits.
#[derive(Clone)]
pub struct Orders {
    census: Census,
    consensus: Consensus,
    transport: Arc<dyn Transport>,
}

impl std::fmt::Debug for Orders {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Orders").field("host", &self.census.host).finish_non_exhaustive()
    }
}

impl Orders {
    /// Commits through `consensus`, pushes through `transport`.
    pub fn new(census: Census, consensus: Consensus, transport: Arc<dyn Transport>) -> Self {
        Self { census, consensus, transport }
    }

    /// Proves that no other coordinator has taken over, as of now.
    ///
    /// # Errors
    /// [`ProposeError`] when this host does not lead or has no quorum.
    pub async fn confirm(&self) -> Result<Arc<Level>, ProposeError> {
        self.consensus.confirm_leadership().await?;
        Ok(self.consensus.level().borrow().clone())
    }

    /// Commits `command` and pushes the new level to every live host, waiting (bounded)
    /// for their acceptance. A host that is not reached pulls the level by itself.
    ///
    /// # Errors
    /// [`ProposeError`]; the command may then have been committed or not, and is safe
    /// to be proposed again.
    pub async fn commit(&self, command: Command) -> Result<Applied, ProposeError> {
        let (applied, _) = self.consensus.propose(command).await?;
        if applied == Applied::Done {
            let level = self.consensus.level().borrow().clone();
            self.push(level).await;
        }
        Ok(applied)
    }

    /// Makes these hosts the voters.
    ///
    /// # Errors
    /// [`ProposeError`]; it may be repeated.
    pub async fn set_voters(&self, voters: BTreeMap<HostId, VoterNode>) -> Result<(), ProposeError> {
        self.consensus.set_voters(voters).await
    }

    async fn push(&self, level: Arc<Level>) {
        let mut pushes = JoinSet::new();
        let hosts = self.census.hosts();
        for host in hosts.values().filter(|host| host.alive && host.id != self.census.host) {
            let (transport, level, host) = (self.transport.clone(), level.clone(), host.clone());
            pushes.spawn(async move {
                let order = PeerRequest::PushLevel(Box::new(Level::clone(&level)));
                let reply = peer::ask(&*transport, host.addr, &order, peer::QUICK_DEADLINE).await;
                (host, reply)
            });
        }
        while let Some(pushed) = pushes.join_next().await {
            match pushed {
                Ok((_, Ok(PeerReply::Accepted))) => {}
                // Two pushes that overtook each other; or a newer coordinator.
                Ok((host, Ok(PeerReply::Stale { newest }))) => {
                    debug!(host = host.name(), stamp = %level.stamp, %newest, "order refused by its fence");
                }
                Ok((host, Ok(other))) => warn!(host = host.name(), ?other, "order not accepted"),
                Ok((host, Err(error))) => {
                    debug!(host = host.name(), error = %crate::error_chain(&error), "order not delivered; the host will pull it");
                }
                Err(error) => warn!(%error, "push ended early"),
            }
        }
    }
}
