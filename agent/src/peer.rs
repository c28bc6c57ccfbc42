//! What agents ask each other, on [`Channel::Peer`].
//!
//! Types and one helper; who serves them is in `control::serve`.

use std::net::SocketAddr;
use std::time::Duration;

use redmesh_api::codec::Channel;
use redmesh_api::control::{ControlReply, ControlRequest, InstanceView, Refusal};
use redmesh_api::ids::RunId;
use redmesh_api::level::{Level, Stamp};
use redmesh_api::run::{ServerSample, Tally};
use serde::{Deserialize, Serialize};

use crate::consensus::{Pledge, PledgeReply};
use crate::transport::{self, Transport, TransportError};

/// For questions that a peer answers from memory.
pub const QUICK_DEADLINE: Duration = Duration::from_secs(3);

/// For questions for which a peer asks all of its instances first.
pub const INSTANCES_DEADLINE: Duration = Duration::from_secs(20);

/// For a request passed on to the coordinator: it may ask all hosts' instances and
/// commit to Raft before it answers.
pub const FORWARD_DEADLINE: Duration = Duration::from_secs(30);

/// A question between agents; each is answered by the [`PeerReply`] beside it.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub enum PeerRequest {
    /// Promise to be initialised by nobody else. → `Pledge`
    Pledge(Pledge),
    /// The level, if it is newer than this. → `Level`
    PullLevel {
        /// What the asker has.
        newer_than: Stamp,
    },
    /// The coordinator's order: reconcile to this. → `Accepted`, or `Stale`
    PushLevel(Box<Level>),
    /// Own instances' counters. → `Samples`
    SampleServers,
    /// Own instances' views of the cluster. → `Views`
    CheckInstances,
    /// Exact counts and latencies of this host's share of a run. → `Report`
    RunReport(RunId),
    /// A control request passed on to the coordinator. → `Control`
    Forward(ControlRequest),
}

/// An answer between agents.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub enum PeerReply {
    /// See [`PeerRequest::Pledge`].
    Pledge(PledgeReply),
    /// See [`PeerRequest::PullLevel`].
    Level(Option<Box<Level>>),
    /// See [`PeerRequest::PushLevel`].
    Accepted,
    /// The order's fence is older than one seen before.
    Stale {
        /// The newest seen.
        newest: Stamp,
    },
    /// See [`PeerRequest::SampleServers`].
    Samples {
        /// Of the instances that answered.
        samples: Vec<ServerSample>,
        /// The others, each with its reason.
        missing: Vec<String>,
    },
    /// See [`PeerRequest::CheckInstances`].
    Views(Vec<InstanceView>),
    /// See [`PeerRequest::RunReport`].
    Report(ShareReport),
    /// See [`PeerRequest::Forward`].
    Control(Box<ControlReply>),
    /// Not done, and why.
    Refused(Refusal),
}

/// One host's exact account of its share.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
pub struct ShareReport {
    /// One per epoch of this host.
    pub tallies: Vec<Tally>,
    /// Service times in microseconds, an encoded HDR histogram; empty if none.
    pub histogram: Vec<u8>,
}

/// One request to the agent at `to`.
pub async fn ask(
    transport: &dyn Transport,
    to: SocketAddr,
    request: &PeerRequest,
    deadline: Duration,
) -> Result<PeerReply, TransportError> {
    transport::call(transport, to, Channel::Peer, request, deadline).await
}
