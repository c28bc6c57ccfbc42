//! Requests from the wire to whoever answers them.

use std::net::SocketAddr;
use std::sync::Arc;

use async_trait::async_trait;
use bytes::Bytes;
use redmesh_api::codec::{self, Channel, CodecError};
use redmesh_api::control::{ControlReply, ControlRequest, InstanceView, Refusal, RefusalKind};
use redmesh_api::join::JoinRefusal;
use redmesh_api::level::ClusterPlan;
use redmesh_api::limits::INSTANCES_PER_HOST_MAX;
use tokio::sync::watch;
use tracing::{debug, info, warn};

use super::{Control, access};
use crate::census::Census;
use crate::cluster::{AdminPool, Target};
use crate::consensus::Consensus;
use crate::host::shares::Shares;
use crate::host::views::Views;
use crate::level::LevelError;
use crate::peer::{HostSurvey, PeerReply, PeerRequest};
use crate::preflight::Reader;
use crate::supervisor::Supervise;
use crate::transport::{Handler, Peer};

/// Serves all channels of this agent.
#[derive(Debug)]
pub struct Server {
    /// Answers control requests.
    pub control: Control,
    /// Takes pushed levels and gives them to who lags.
    pub census: Census,
    /// Serves Raft and pledges.
    pub consensus: Consensus,
    /// Asks own instances.
    pub admin: AdminPool,
    /// Own part of the runs.
    pub shares: Shares,
    /// Own instances' views.
    pub seen: watch::Receiver<Arc<Views>>,
    /// Reads this host for a preflight.
    pub reader: Reader,
    /// Own instances' states and the server's version.
    pub supervisor: Arc<dyn Supervise>,
    /// Signs for hosts that renew.
    pub signing: Arc<dyn SignAgain>,
}

/// Signs another certificate for whoever has one.
#[async_trait]
pub trait SignAgain: std::fmt::Debug + Send + Sync {
    /// A chain, PEM, for the key of the request `csr` (DER) and what `peer` has proven to be.
    ///
    /// # Errors
    /// What is to be answered instead.
    async fn sign_again(&self, peer: &Peer, csr: &[u8]) -> Result<String, JoinRefusal>;
}

#[async_trait]
impl Handler for Server {
    async fn handle(&self, peer: &Peer, channel: Channel, payload: Bytes) -> Result<Vec<u8>, CodecError> {
        match channel {
            Channel::Control => {
                let request: ControlRequest = codec::decode(&payload)?;
                debug!(?peer, ?request, "control request");
                if let Some(refusal) = access::forbidden(peer, &request) {
                    warn!(?peer, request = request.name(), "refused by its certificate's role");
                    return codec::encode(&ControlReply::Refused(refusal));
                }
                if request.changes() {
                    info!(?peer, request = request.name(), "asked for a change");
                }
                codec::encode(&self.control.answer(request).await)
            }
            Channel::Peer => {
                let request: PeerRequest = codec::decode(&payload)?;
                codec::encode(&self.answer(peer, request).await)
            }
            Channel::Raft => self.consensus.handle(payload).await,
            Channel::Gossip | Channel::Hello | Channel::Join => {
                Err(CodecError::Channel { got: channel as u8 })
            }
        }
    }
}

impl Server {
    async fn answer(&self, peer: &Peer, request: PeerRequest) -> PeerReply {
        match request {
            PeerRequest::Pledge(pledge) => match self.consensus.pledge(&pledge).await {
                Ok(reply) => PeerReply::Pledge(reply),
                Err(error) => internal(&error),
            },
            PeerRequest::PullLevel { newer_than } => {
                let level = self.census.level();
                PeerReply::Level((level.stamp > newer_than).then(|| Box::new((*level).clone())))
            }
            PeerRequest::PushLevel(level) => match self.census.levels.accept(Arc::from(level)).await {
                Ok(_) => PeerReply::Accepted,
                Err(LevelError::Stale { newest, got }) => {
                    debug!(?peer, %got, %newest, "refused an order by its fence");
                    PeerReply::Stale { newest }
                }
                Err(error) => {
                    warn!(?peer, error = %crate::error_chain(&error), "refused an order");
                    internal(&error)
                }
            },
            PeerRequest::SampleServers => self.sample().await,
            PeerRequest::Survey { addrs, nodes } => PeerReply::Survey(self.survey(addrs, nodes).await),
            PeerRequest::NodeIds => self.node_ids().await,
            PeerRequest::CheckInstances => PeerReply::Views(self.views().await),
            PeerRequest::Convergence(plan) => PeerReply::Agreed(self.seen.borrow().agreeing.of(plan)),
            PeerRequest::RunReport(run) => PeerReply::Report(self.shares.report(run).await),
            PeerRequest::Clock => PeerReply::Clock { unix_ms: self.census.clock.now_unix_ms() },
            PeerRequest::Preflight { spec, plan } => match self.reader.read(&spec, plan).await {
                Ok(readings) => PeerReply::Readings(Box::new(readings)),
                Err(message) => PeerReply::Refused(Refusal { kind: RefusalKind::Internal, message }),
            },
            PeerRequest::Forward(request) => {
                PeerReply::Control(Box::new(self.serve_forwarded(request).await))
            }
            PeerRequest::HandOver => match self.consensus.hand_over().await {
                Ok(()) => PeerReply::Accepted,
                Err(error) => internal(&error),
            },
            PeerRequest::Enrol { token, host } => {
                PeerReply::Enrolled(self.control.enrol_here(token, *host).await)
            }
            PeerRequest::Renew { csr } => PeerReply::Renewed(self.signing.sign_again(peer, &csr).await),
        }
    }

    /// A forwarded request is answered here or refused, never passed on again: two
    /// agents that each take the other for the coordinator must not play ball.
    async fn serve_forwarded(&self, request: ControlRequest) -> ControlReply {
        if self.census.acting() {
            return match request.changes() {
                true => self.control.change(request).await,
                false => self.control.answer(request).await,
            };
        }
        ControlReply::Refused(Refusal::new(
            RefusalKind::NoCoordinator,
            "the coordinator has just changed: try again",
        ))
    }

    /// Addresses of own instances.
    fn own(&self) -> Vec<SocketAddr> {
        let (level, host) = (self.census.level(), self.census.host);
        let of = |plan: &ClusterPlan| plan.instances_of(host).map(|i| plan.addr_of(i)).collect();
        level.plan.as_ref().map(of).unwrap_or_default()
    }

    async fn survey(&self, mut addrs: Vec<SocketAddr>, nodes: u32) -> HostSurvey {
        addrs.truncate(INSTANCES_PER_HOST_MAX.into());
        let binary = self.supervisor.server_version().await.map_err(|error| crate::error_chain(&error));
        HostSurvey { binary, servers: self.admin.survey_all(addrs, nodes).await }
    }

    async fn node_ids(&self) -> PeerReply {
        let (mut ids, mut missing) = (Vec::new(), Vec::new());
        for (addr, answer) in self.admin.my_id_all(self.own()).await {
            match answer {
                Ok(id) => ids.push((addr, id)),
                Err(error) => missing.push(crate::error_chain(&error)),
            }
        }
        PeerReply::NodeIds { ids, missing }
    }

    async fn sample(&self) -> PeerReply {
        let own = self.own().into_iter().map(|addr| (self.census.host, addr)).collect();
        let (mut samples, mut missing) = (Vec::new(), Vec::new());
        for answer in self.admin.sample_all(own).await {
            match answer {
                Ok(sample) => samples.push(sample),
                Err(error) => missing.push(crate::error_chain(&error)),
            }
        }
        PeerReply::Samples { samples, missing }
    }

    /// What own instances say, beside what the supervisor knows of those that say nothing.
    async fn views(&self) -> Vec<InstanceView> {
        let level = self.census.level();
        let Some(plan) = &level.plan else { return Vec::new() };
        let host = self.census.host;
        let targets = plan.instances_of(host).map(|instance| Target {
            host,
            addr: plan.addr_of(instance),
            node_id: instance.node_id,
        });
        let mut views = self.admin.check_all(targets.collect()).await;
        let statuses = self.supervisor.statuses().borrow().clone();
        for view in &mut views {
            let status = statuses.iter().find(|status| status.addr == view.addr);
            if let Some(problem) = status.and_then(|status| status.problem.clone()) {
                view.problem = Some(match view.problem.take() {
                    None => problem,
                    Some(said) => format!("{problem} ({said})"),
                });
            }
        }
        views
    }
}

fn internal(error: &dyn std::error::Error) -> PeerReply {
    PeerReply::Refused(Refusal { kind: RefusalKind::Internal, message: crate::error_chain(error) })
}
