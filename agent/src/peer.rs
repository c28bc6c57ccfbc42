//! What agents ask each other, on [`Channel::Peer`].
//!
//! Types and one helper; who serves them is in `control::serve`.

use std::net::SocketAddr;
use std::time::Duration;

use redmesh_api::codec::Channel;
use redmesh_api::control::{ControlReply, ControlRequest, InstanceView, Refusal};
use redmesh_api::ids::RunId;
use redmesh_api::level::{Level, Stamp};
use redmesh_api::run::{ServerSample, ShareDetail, Tally};
use serde::{Deserialize, Serialize};

use crate::consensus::{Pledge, PledgeReply};
use crate::transport::{self, Transport, TransportError};

/// For questions that a peer answers from memory.
pub const QUICK_DEADLINE: Duration = Duration::from_secs(3);

/// For questions for which a peer asks all of its instances first.
pub const INSTANCES_DEADLINE: Duration = Duration::from_secs(20);

/// For a request passed on to the coordinator: it may ask all hosts' instances, commit
/// to Raft and push before it answers, each with a deadline of its own.
pub const FORWARD_DEADLINE: Duration = Duration::from_secs(40);

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
    /// What is kept beside them; an epoch whose agent was killed has none.
    pub details: Vec<ShareDetail>,
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

/// One request to a host at its address, if the mesh still knows one; else, and on any
/// failure, the reason in words that follow the host's name.
pub async fn ask_known(
    transport: &dyn Transport,
    to: Option<SocketAddr>,
    request: &PeerRequest,
    deadline: Duration,
) -> Result<PeerReply, String> {
    let to = to.ok_or_else(|| "gone from the mesh".to_owned())?;
    ask(transport, to, request, deadline).await.map_err(|error| crate::error_chain(&error))
}

#[cfg(test)]
mod tests {
    use redmesh_api::codec;
    use redmesh_api::control::RefusalKind;
    use redmesh_api::ids::HostId;
    use redmesh_api::run::Counts;
    use uuid::Uuid;

    use super::*;

    #[test]
    fn every_question_and_answer_comes_back() {
        let run = RunId(Uuid::from_u128(1));
        let pledge = Pledge { to: HostId(1), to_name: "a".to_owned(), expect: 3, holds: vec![HostId(2)] };
        for request in [
            PeerRequest::Pledge(pledge),
            PeerRequest::PullLevel { newer_than: Stamp::default() },
            PeerRequest::PushLevel(Box::default()),
            PeerRequest::SampleServers,
            PeerRequest::CheckInstances,
            PeerRequest::RunReport(run),
            PeerRequest::Forward(ControlRequest::RunList),
        ] {
            let bytes = codec::encode(&request).expect("encodes");
            assert_eq!(codec::decode::<PeerRequest>(&bytes).expect("decodes"), request);
        }
        let tally = Tally { host: HostId(1), epoch: 0, closed: true, counts: Counts::default() };
        let refusal = Refusal { kind: RefusalKind::Internal, message: "no".to_owned() };
        for reply in [
            PeerReply::Pledge(PledgeReply::PledgedToAnother { to: HostId(1), to_name: "a".to_owned() }),
            PeerReply::Level(Some(Box::default())),
            PeerReply::Accepted,
            PeerReply::Stale { newest: Stamp::default() },
            PeerReply::Samples { samples: Vec::new(), missing: vec!["x".to_owned()] },
            PeerReply::Views(Vec::new()),
            PeerReply::Report(ShareReport { tallies: vec![tally], details: Vec::new() }),
            PeerReply::Control(Box::new(ControlReply::Runs(Vec::new()))),
            PeerReply::Refused(refusal),
        ] {
            let bytes = codec::encode(&reply).expect("encodes");
            assert_eq!(codec::decode::<PeerReply>(&bytes).expect("decodes"), reply);
        }
    }
}
