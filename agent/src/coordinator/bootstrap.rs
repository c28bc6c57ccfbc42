//! Initialising a mesh, once: the driver around `consensus::bootstrap`'s decision.
//!
//! Every host runs it; the decision makes one of them the initializer. Pledges are kept
//! on the pledgers' disks, so the initializer may forget and collect them again.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;
use std::time::Duration;

use redmesh_api::ids::HostId;
use tokio::sync::watch;
use tokio_util::sync::CancellationToken;
use tracing::info;

use crate::census::{Census, CensusHost};
use crate::consensus::bootstrap::{self, BootstrapHost, BootstrapStep};
use crate::consensus::{Consensus, ConsensusError, Pledge, PledgeReply, VoterNode};
use crate::error_chain;
use crate::peer::{self, PeerReply, PeerRequest};
use crate::transport::Transport;

/// Between two looks while the mesh is not initialised.
const LOOK_INTERVAL: Duration = Duration::from_millis(100);

/// Between two looks afterwards: only to notice a mesh that was initialised apart.
const STEADY_INTERVAL: Duration = Duration::from_secs(5);

/// One host's part in the bootstrap.
pub struct Bootstrap {
    /// Who is here.
    pub census: Census,
    /// What is to be initialised.
    pub consensus: Consensus,
    /// To ask for pledges.
    pub transport: Arc<dyn Transport>,
    /// Hosts that have pledged to this one.
    pub pledges: BTreeSet<HostId>,
}

impl std::fmt::Debug for Bootstrap {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Bootstrap").field("pledges", &self.pledges).finish_non_exhaustive()
    }
}

impl Bootstrap {
    /// Drives this host's part until cancelled. `waiting` says in words what it waits
    /// for, `None` once the mesh is founded.
    pub async fn run(mut self, waiting: watch::Sender<Option<String>>, cancel: CancellationToken) {
        let mut said = Some(String::new());
        loop {
            let words = match self.look().await {
                Ok(words) => words,
                Err(error) => Some(format!("this host's Raft node: {}", error_chain(&error))),
            };
            if words != said {
                match &words {
                    Some(words) => info!(waiting_for = words, "the mesh is not initialised yet"),
                    None => info!(mesh = ?self.census.mesh(), "the mesh is initialised"),
                }
                said.clone_from(&words);
            }
            let pause = if words.is_some() { LOOK_INTERVAL } else { STEADY_INTERVAL };
            waiting.send_replace(words);
            tokio::select! {
                () = tokio::time::sleep(pause) => {}
                () = cancel.cancelled() => return,
            }
        }
    }

    async fn look(&mut self) -> Result<Option<String>, ConsensusError> {
        let hosts = self.census.hosts();
        let live: BTreeMap<HostId, BootstrapHost> = hosts
            .values()
            .filter(|host| host.alive)
            .filter_map(|host| {
                let facts = host.facts.as_ref()?;
                let host = BootstrapHost {
                    id: host.id,
                    name: facts.name.clone(),
                    mesh: host.lead.mesh,
                    expect: facts.bootstrap_expect,
                };
                Some((host.id, host))
            })
            .collect();
        let step = bootstrap::decide(self.census.host, &live, &self.pledges);
        if let BootstrapStep::Conflict(words) = step {
            return Ok(Some(words));
        }
        if self.census.mesh().is_some() {
            return Ok(None);
        }
        if self.consensus.is_initialized().await? {
            return Ok(Some("the voters to elect the first coordinator".to_owned()));
        }
        match step {
            BootstrapStep::Wait(words) | BootstrapStep::Conflict(words) => Ok(Some(words)),
            BootstrapStep::NotMine { initializer } => {
                let name = hosts.get(&initializer).map_or_else(|| initializer.to_string(), CensusHost::name);
                Ok(Some(format!("{name} (the lowest id) to initialise the mesh")))
            }
            BootstrapStep::Done { mesh } => Ok(Some(format!("the level of mesh {mesh}"))),
            BootstrapStep::CollectPledges { from } => self.collect(&hosts, &from).await,
            BootstrapStep::Initialize { voters } => {
                let nodes = voters
                    .iter()
                    .filter_map(|id| hosts.get(id))
                    .map(|host| (host.id, VoterNode { addr: host.addr, name: host.name() }))
                    .collect();
                info!(?voters, "all pledges are in, initialising the mesh");
                self.consensus.initialize(nodes).await?;
                Ok(Some("the voters to elect the first coordinator".to_owned()))
            }
        }
    }

    /// Asks each of `from` for its pledge; words about the first that refused.
    async fn collect(
        &mut self,
        hosts: &BTreeMap<HostId, CensusHost>,
        from: &[HostId],
    ) -> Result<Option<String>, ConsensusError> {
        let Some(me) = hosts.get(&self.census.host) else { return Ok(None) };
        let holds = self.pledges.iter().copied().collect();
        let pledge = Pledge { to: me.id, to_name: me.name(), expect: self.census.bootstrap_expect, holds };
        let mut refused = None;
        for host in from.iter().filter_map(|id| hosts.get(id)) {
            let reply = if host.id == me.id {
                Ok(self.consensus.pledge(&pledge).await?)
            } else {
                let request = PeerRequest::Pledge(pledge.clone());
                match peer::ask(&*self.transport, host.addr, &request, peer::QUICK_DEADLINE).await {
                    Ok(PeerReply::Pledge(reply)) => Ok(reply),
                    Ok(other) => Err(format!("answered {other:?}")),
                    Err(error) => Err(error_chain(&error)),
                }
            };
            let reason = match reply {
                Ok(PledgeReply::Pledged) => {
                    self.pledges.insert(host.id);
                    continue;
                }
                Ok(PledgeReply::Initialized) => "it belongs to an initialised mesh already".to_owned(),
                Ok(PledgeReply::PledgedToAnother { to, to_name }) => format!(
                    "it has pledged to {to_name} ({to}); bring that host back, or, if its state is lost \
                     for good, move the state directories of all hosts away"
                ),
                Err(reason) => reason,
            };
            refused = Some(format!("the pledge of {}: {reason}", host.name()));
        }
        Ok(Some(refused.unwrap_or_else(|| "the pledges of all hosts".to_owned())))
    }
}
