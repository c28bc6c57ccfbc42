//! What agents ask each other, on [`Channel::Peer`].
//!
//! Types and one helper; who serves them is in `control::serve`.

use std::net::SocketAddr;
use std::time::Duration;

use redmesh_api::codec::Channel;
use redmesh_api::control::{ControlReply, ControlRequest, InstanceView, Refusal};
use redmesh_api::ids::{NodeId, PlanId, RunId};
use redmesh_api::join::{Enrolled, JoinRefusal, TokenId};
use redmesh_api::level::{ClusterSpec, Level, Stamp};
use redmesh_api::run::{ServerSample, ShareDetail, Tally};
use serde::{Deserialize, Serialize};

use crate::cluster::survey::SurveyedServer;
use crate::consensus::{Pledge, PledgeReply};
use crate::preflight::Readings;
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
    /// What is there before a cluster is planned: the server's binary, and the servers
    /// that run at these addresses of the host. → `Survey`
    Survey {
        /// Addresses to look at; none where the host is to start the servers itself.
        addrs: Vec<SocketAddr>,
        /// Nodes that the cluster is to have.
        nodes: u32,
    },
    /// The node ids of own instances, by their own account. → `NodeIds`
    NodeIds,
    /// Own instances' views of the cluster. → `Views`
    CheckInstances,
    /// When own instances first agreed, under this plan. → `Agreed`
    Convergence(PlanId),
    /// Exact counts and latencies of this host's share of a run. → `Report`
    RunReport(RunId),
    /// What time is it? → `Clock`
    Clock,
    /// What the host is like, for this cluster. → `Readings`
    Preflight {
        /// The cluster that is asked for.
        spec: ClusterSpec,
        /// The plan that there is.
        plan: Option<PlanId>,
    },
    /// A control request passed on to the coordinator. → `Control`
    Forward(ControlRequest),
    /// Give leadership up to another voter, and say so once one leads. → `Accepted`
    HandOver,
    /// Use a join token up by one; only the coordinator does. → `Enrolled`
    Enrol {
        /// Which.
        token: TokenId,
        /// For whom.
        host: Box<Enrolled>,
    },
    /// Sign another certificate with the name and the addresses of the asker's present one.
    /// → `Renewed`
    Renew {
        /// A certificate signing request (PKCS #10, DER); of it the key alone counts.
        csr: Vec<u8>,
    },
}

/// An answer between agents.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub enum PeerReply {
    /// See [`PeerRequest::Pledge`].
    Pledge(PledgeReply),
    /// See [`PeerRequest::PullLevel`].
    Level(Option<Box<Level>>),
    /// See [`PeerRequest::PushLevel`] and [`PeerRequest::HandOver`].
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
    /// See [`PeerRequest::Survey`].
    Survey(HostSurvey),
    /// See [`PeerRequest::NodeIds`].
    NodeIds {
        /// Of the instances that answered.
        ids: Vec<(SocketAddr, NodeId)>,
        /// The others, each with its reason.
        missing: Vec<String>,
    },
    /// See [`PeerRequest::CheckInstances`].
    Views(Vec<InstanceView>),
    /// See [`PeerRequest::Convergence`]: milliseconds since the plan's release, an entry
    /// for each instance that has agreed; `None` where the time is not known.
    Agreed(Vec<Option<u64>>),
    /// See [`PeerRequest::RunReport`].
    Report(ShareReport),
    /// See [`PeerRequest::Clock`].
    Clock {
        /// By the answering host's clock, Unix milliseconds.
        unix_ms: u64,
    },
    /// See [`PeerRequest::Preflight`].
    Readings(Box<Readings>),
    /// See [`PeerRequest::Forward`].
    Control(Box<ControlReply>),
    /// See [`PeerRequest::Enrol`].
    Enrolled(Result<(), JoinRefusal>),
    /// See [`PeerRequest::Renew`]: the certificate and the signer's, PEM.
    Renewed(Result<String, JoinRefusal>),
    /// Not done, and why.
    Refused(Refusal),
}

/// What a host has for a cluster that is to be planned.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct HostSurvey {
    /// What `--version` of its server's binary prints; else why that can't be told.
    pub binary: Result<String, String>,
    /// What runs at the addresses that were asked for.
    pub servers: Vec<SurveyedServer>,
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
    use redmesh_api::control::{RefusalKind, RunRef, ShareRequest, VerifyRequest};
    use redmesh_api::ids::HostId;
    use redmesh_api::run::{
        Counts, ErrorCount, Findings, Job, ReadBack, Run, RunSpec, RunStage, RunUntil, Share,
    };
    use redmesh_api::workload::{Keys, Pick, ValueBytes, Verb, Workload};
    use uuid::Uuid;

    use super::*;

    fn pool() -> Workload {
        Workload {
            name: "cache".to_owned(),
            seed: 3,
            keys: Keys::Pool { count: 10, pick: Pick::Zipf { exponent: 0.99 } },
            value: ValueBytes::Weighted(vec![(10, 1), (20, 2)]),
            mix: vec![(Verb::Get, 9), (Verb::Set, 1)],
            ttl_s: Some(60),
            ..Workload::uuid_counter()
        }
    }

    fn detail() -> ShareDetail {
        let addr = "127.0.0.1:7000".parse().expect("an address");
        ShareDetail {
            host: HostId(1),
            epoch: 2,
            started_unix_ms: 3,
            resolution_s: 1,
            acked: vec![4, 5],
            worker_acked_min: 6,
            worker_acked_max: 7,
            errors: vec![ErrorCount { kind: "CLUSTERDOWN".to_owned(), count: 8, first: "x".to_owned() }],
            histogram: vec![9],
            intended: vec![10],
            behind: 11,
            threads: 12,
            acked_by: vec![(addr, 13)],
            findings: Some(Findings {
                right: 14,
                wrong: 15,
                lost: 16,
                arrived: 17,
                not_arrived: 18,
                lost_at: vec![(addr, 19)],
                examples: vec!["key".to_owned()],
            }),
        }
    }

    #[test]
    fn every_question_and_answer_comes_back() {
        let run = RunId(Uuid::from_u128(1));
        let pledge = Pledge { to: HostId(1), to_name: "a".to_owned(), expect: 3, holds: vec![HostId(2)] };
        let share =
            ShareRequest { run: RunRef::Latest, host: "host-3".to_owned(), workers: 5, writes: Some(9) };
        let verify = VerifyRequest { run: RunRef::Latest, sample: Some(100), workers: 20 };
        let enrolled =
            Enrolled { name: "a".to_owned(), ip: [10, 0, 0, 1].into(), key: [2; 32], at_unix_ms: 3 };
        let mut spec = RunSpec::closed_loop(pool(), 7, RunUntil::Seconds(60));
        (spec.rate, spec.ramp_s, spec.warm_up_s, spec.threads_per_host) = (Some(1000), 1, 2, Some(3));
        let read = ReadBack { of: run, wrap: Some(5), pipeline: 2, per_million: 1000 };
        let reads = Run {
            id: run,
            spec: RunSpec { job: Job::ReadBack(read), ..spec.clone() },
            shares: vec![Share {
                host: HostId(1),
                workers: 1,
                first_worker: 2,
                writes: None,
                given_up: true,
                rest_of: Some(3),
            }],
            stage: RunStage::Running,
            created_unix_ms: 1,
            starts_unix_ms: 2,
            before: Vec::new(),
            result: None,
        };
        for request in [
            PeerRequest::Pledge(pledge),
            PeerRequest::PullLevel { newer_than: Stamp::default() },
            PeerRequest::PushLevel(Box::default()),
            PeerRequest::SampleServers,
            PeerRequest::Survey { addrs: vec!["127.0.0.1:6379".parse().expect("an address")], nodes: 3 },
            PeerRequest::NodeIds,
            PeerRequest::CheckInstances,
            PeerRequest::Convergence(PlanId(Uuid::from_u128(2))),
            PeerRequest::RunReport(run),
            PeerRequest::Clock,
            PeerRequest::Preflight { spec: ClusterSpec::default(), plan: Some(PlanId(Uuid::from_u128(2))) },
            PeerRequest::HandOver,
            PeerRequest::Forward(ControlRequest::RunList),
            PeerRequest::Enrol { token: TokenId::of(&[1; 32]), host: Box::new(enrolled) },
            PeerRequest::Renew { csr: vec![7; 300] },
            PeerRequest::Forward(ControlRequest::RunShare(share)),
            PeerRequest::Forward(ControlRequest::RunVerify(verify)),
            PeerRequest::Forward(ControlRequest::RunStart(spec.clone())),
            PeerRequest::PushLevel(Box::new(Level { runs: vec![reads], ..Level::default() })),
        ] {
            let bytes = codec::encode(&request).expect("encodes");
            assert_eq!(codec::decode::<PeerRequest>(&bytes).expect("decodes"), request);
        }
        let tally = Tally { host: HostId(1), share: 7, epoch: 0, closed: true, counts: Counts::default() };
        let refusal = Refusal { kind: RefusalKind::Internal, message: "no".to_owned() };
        for reply in [
            PeerReply::Pledge(PledgeReply::PledgedToAnother { to: HostId(1), to_name: "a".to_owned() }),
            PeerReply::Level(Some(Box::default())),
            PeerReply::Accepted,
            PeerReply::Stale { newest: Stamp::default() },
            PeerReply::Samples { samples: Vec::new(), missing: vec!["x".to_owned()] },
            PeerReply::Views(Vec::new()),
            PeerReply::Agreed(vec![Some(1), None]),
            PeerReply::Survey(HostSurvey {
                binary: Err("none".to_owned()),
                servers: vec![SurveyedServer {
                    addr: "127.0.0.1:6379".parse().expect("an address"),
                    node_id: Some(NodeId([7; 20])),
                    version: Some("7.0.15".to_owned()),
                    node_timeout_ms: Some(15_000),
                    problems: vec!["has keys".to_owned()],
                }],
            }),
            PeerReply::NodeIds {
                ids: vec![("127.0.0.1:6379".parse().expect("an address"), NodeId([7; 20]))],
                missing: vec!["x".to_owned()],
            },
            PeerReply::Report(ShareReport { tallies: vec![tally], details: vec![detail()] }),
            PeerReply::Clock { unix_ms: u64::MAX },
            PeerReply::Readings(Box::new(crate::preflight::readings::roomy("a"))),
            PeerReply::Control(Box::new(ControlReply::Runs(Vec::new()))),
            PeerReply::Enrolled(Ok(())),
            PeerReply::Enrolled(Err(JoinRefusal::unproven())),
            PeerReply::Renewed(Ok("PEM".to_owned())),
            PeerReply::Refused(refusal),
        ] {
            let bytes = codec::encode(&reply).expect("encodes");
            assert_eq!(codec::decode::<PeerReply>(&bytes).expect("decodes"), reply);
        }
    }
}
