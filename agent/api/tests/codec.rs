//! Every kind of value that crosses the wire comes back as it was, and hostile bytes
//! come back as errors.

use proptest::prelude::*;
use redmesh_api::codec::{self, Channel, CodecError, Direction, HEADER_BYTES, PROTOCOL_VERSION};
use redmesh_api::control::*;
use redmesh_api::ids::{HostId, MeshId, NodeId, PlanId, RunId};
use redmesh_api::level::*;
use redmesh_api::run::*;
use uuid::Uuid;

fn plan() -> ClusterPlan {
    let instance = |port, role| PlannedInstance {
        host: 0,
        port,
        node_id: NodeId([port as u8; 20]),
        shard_id: NodeId([1; 20]),
        role,
    };
    ClusterPlan {
        id: PlanId(Uuid::from_u128(1)),
        spec: ClusterSpec { instances_per_host: 2, replicas: 1, node_timeout_ms: Some(5000) },
        node_timeout_ms: 5000,
        stage: PlanStage::Release,
        hosts: vec![PlannedHost {
            id: HostId(7),
            name: "host-1".to_owned(),
            ip: "2001:db8::1".parse().expect("an address"),
            base_port: 6379,
        }],
        instances: vec![
            instance(
                6379,
                PlannedRole::Primary { slots: SlotRange { first: 0, last: SLOTS - 1 }, config_epoch: 1 },
            ),
            instance(6380, PlannedRole::Replica { primary: 0 }),
        ],
        created_unix_ms: 1,
        formed_unix_ms: Some(2),
    }
}

fn tally() -> Tally {
    let counts = Counts { issued: u64::MAX, acked: 1, ..Counts::default() };
    Tally { host: HostId(7), epoch: 3, closed: true, counts }
}

fn sample() -> ServerSample {
    ServerSample {
        host: HostId(7),
        port: 6379,
        run_id: "abc".to_owned(),
        primary: true,
        dbsize: 1,
        set_calls: 2,
        cpu_us: 3,
    }
}

fn run(outcome: Outcome) -> Run {
    Run {
        id: RunId(Uuid::from_u128(2)),
        spec: RunSpec {
            workload: UUID_COUNTER.to_owned(),
            workers: 5,
            load_hosts: Some(3),
            until: RunUntil::Seconds(9),
        },
        shares: vec![Share { host: HostId(7), workers: 5, first_worker: 0, writes: Some(8) }],
        stage: RunStage::Done,
        created_unix_ms: 1,
        before: vec![sample()],
        result: Some(RunResult {
            outcome,
            tallies: vec![tally()],
            latency: LatencySummary { count: 1, ..LatencySummary::default() },
            ledger: Ledger { dbsize: -1, notes: vec!["note".to_owned()], ..Ledger::default() },
            after: vec![sample()],
            server_cpu_us: 1,
            ended_unix_ms: 2,
        }),
    }
}

fn view() -> RunView {
    RunView {
        run: run(Outcome::Completed),
        tallies: vec![tally()],
        writes_per_s: 1.5,
        host_writes_per_s: vec![1.5],
        latency: None,
        waiting_for: Some("host-2".to_owned()),
    }
}

fn requests() -> Vec<ControlRequest> {
    vec![
        ControlRequest::Members,
        ControlRequest::ClusterCreate(plan().spec),
        ControlRequest::ClusterStatus,
        ControlRequest::ClusterCheck,
        ControlRequest::RunStart(RunSpec { until: RunUntil::Writes(1), ..run(Outcome::Completed).spec }),
        ControlRequest::RunStop(RunRef::Latest),
        ControlRequest::RunList,
        ControlRequest::RunShow { run: RunRef::Prefix("ab".to_owned()), latency: true },
    ]
}

fn replies() -> Vec<ControlReply> {
    let member = Member {
        id: HostId(7),
        name: "host-1".to_owned(),
        addr: "127.0.0.1:7379".parse().expect("an address"),
        state: MemberState::Dead,
        voter: true,
        coordinator: false,
        instances_up: 1,
        instances_planned: 2,
        version: "0.1.0".to_owned(),
        http_addr: None,
        problem: Some("disk full".to_owned()),
    };
    let progress = HostProgress {
        id: HostId(7),
        name: "host-1".to_owned(),
        alive: true,
        stage: Some(PlanStage::Prepare),
        planned: 2,
        ready: 1,
        agreed: 0,
        problems: vec!["port taken".to_owned()],
    };
    let instance = InstanceView {
        host: HostId(7),
        addr: "127.0.0.1:6379".parse().expect("an address"),
        node_id: NodeId([1; 20]),
        up: true,
        primary: false,
        primary_id: Some(NodeId([2; 20])),
        slots: vec![SlotRange { first: 1, last: 2 }],
        keys: 1,
        state_ok: true,
        known_nodes: 2,
        slots_assigned: 3,
        view_digest: 4,
        open_slots: vec![5],
        problem: None,
    };
    vec![
        ControlReply::Members(Members {
            mesh_name: "m".to_owned(),
            mesh: Some(MeshId(Uuid::from_u128(3))),
            answered_by: HostId(7),
            coordinator: None,
            bootstrap_expect: 3,
            waiting_for: None,
            stamp: Stamp { term: 1, index: 2, leader: HostId(7) },
            members: vec![member],
        }),
        ControlReply::Created { plan: plan(), fresh: true },
        ControlReply::ClusterStatus(ClusterStatus {
            plan: Some(plan()),
            hosts: vec![progress],
            since_ms: 1,
            overdue: Some("host-1".to_owned()),
        }),
        ControlReply::ClusterCheck(ClusterCheck {
            instances: vec![instance],
            slots_covered: SLOTS,
            agreed: true,
            open_slots: vec![1],
            errors: vec!["e".to_owned()],
            warnings: vec!["w".to_owned()],
        }),
        ControlReply::RunStarted(run(Outcome::Stopped)),
        ControlReply::Run(view()),
        ControlReply::Runs(vec![view()]),
        ControlReply::Refused(Refusal { kind: RefusalKind::Deadline, message: "late".to_owned() }),
    ]
}

#[test]
fn every_request_and_reply_comes_back() {
    for request in requests() {
        let bytes = codec::encode(&request).expect("encodes");
        assert_eq!(codec::decode::<ControlRequest>(&bytes).expect("decodes"), request);
    }
    for reply in replies() {
        let bytes = codec::encode(&reply).expect("encodes");
        assert_eq!(codec::decode::<ControlReply>(&bytes).expect("decodes"), reply);
    }
}

#[test]
fn levels_with_every_outcome_come_back() {
    let outcomes = [Outcome::Completed, Outcome::Stopped, Outcome::Incomplete("host-2".to_owned())];
    let level = Level {
        stamp: Stamp { term: 3, index: 4, leader: HostId(7) },
        mesh: Some(MeshId(Uuid::from_u128(3))),
        plan: Some(plan()),
        runs: outcomes.into_iter().map(run).collect(),
    };
    let bytes = codec::encode(&level).expect("encodes");
    assert_eq!(codec::decode::<Level>(&bytes).expect("decodes"), level);
}

#[test]
fn json_is_for_people() {
    let json = serde_json::to_value(replies()).expect("JSON");
    assert_eq!(json[0]["Members"]["answered_by"], "00000007");
    assert_eq!(json[1]["Created"]["plan"]["instances"][0]["node_id"], "eb".repeat(20));
}

#[test]
fn frames_are_refused_by_version_channel_and_size() {
    let good = codec::header(Channel::Control, Direction::Request, 10).expect("small enough");
    assert_eq!(codec::parse_header(good, Direction::Request).expect("valid"), (Channel::Control, 10));
    let mut other = good;
    other[0] = PROTOCOL_VERSION + 1;
    let refused = codec::parse_header(other, Direction::Request);
    assert!(matches!(refused, Err(CodecError::Version { got }) if got == PROTOCOL_VERSION + 1));
    let mut other = good;
    other[1] = 99;
    assert!(matches!(codec::parse_header(other, Direction::Request), Err(CodecError::Channel { got: 99 })));
    let mut huge = good;
    huge[2..].copy_from_slice(&u32::MAX.to_le_bytes());
    assert!(matches!(codec::parse_header(huge, Direction::Request), Err(CodecError::TooLarge { .. })));
    assert!(codec::header(Channel::Control, Direction::Request, 1 << 20).is_err());
}

proptest! {
    #[test]
    fn hostile_bytes_are_errors(
        header in any::<[u8; HEADER_BYTES]>(),
        payload in proptest::collection::vec(any::<u8>(), 0..2000),
    ) {
        for direction in [Direction::Request, Direction::Reply] {
            if let Ok((channel, len)) = codec::parse_header(header, direction) {
                prop_assert!(len <= channel.limit(direction));
            }
        }
        let _ = codec::decode::<ControlRequest>(&payload);
        let _ = codec::decode::<ControlReply>(&payload);
        let _ = codec::decode::<Level>(&payload);
    }

    #[test]
    fn a_cut_or_lengthened_reply_is_refused(index in 0_usize..8, cut in 0_usize..50) {
        let bytes = codec::encode(&replies()[index]).expect("encodes");
        let shorter = &bytes[..bytes.len().saturating_sub(1 + cut)];
        prop_assert!(codec::decode::<ControlReply>(shorter).is_err());
        let mut longer = bytes.clone();
        longer.push(0);
        prop_assert!(codec::decode::<ControlReply>(&longer).is_err());
    }
}
