//! Every kind of value that crosses the wire comes back as it was, and hostile bytes
//! come back as errors.

use proptest::prelude::*;
use redmesh_api::codec::{self, Channel, CodecError, Direction, HEADER_BYTES, PROTOCOL_VERSION};
use redmesh_api::control::*;
use redmesh_api::ids::{HostId, MeshId, NodeId, PlanId, RunId};
use redmesh_api::join::{
    Enrolled, JoinAsk, JoinRefusal, JoinReply, JoinRequest, JoinedIdentity, TokenId, TokenRecord,
};
use redmesh_api::level::*;
use redmesh_api::preflight::{Check, Finding, Report, Severity};
use redmesh_api::run::*;
use redmesh_api::workload::{Keys, Pick, UUID_COUNTER, ValueBytes, Verb, Workload};
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
        spec: ClusterSpec {
            instances_per_host: 2,
            replicas: 1,
            node_timeout_ms: Some(5000),
            ..Default::default()
        },
        node_timeout_ms: 5000,
        hz: 10,
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
        formation: Formation::Meet,
        reached: vec![StageReached { stage: PlanStage::Formed, at_unix_ms: 2 }],
        convergence: Some(Convergence { agreed_by_s: vec![1, 2], unknown: 1 }),
    }
}

fn tally() -> Tally {
    let counts = Counts {
        issued: u64::MAX,
        acked: 1,
        failed: 2,
        unknown: 3,
        moved: 4,
        asked: 5,
        retried: 6,
        cpu_us: 7,
        active_us: 8,
        missed: 9,
        warm_acked: 10,
        warm_us: 11,
    };
    Tally { host: HostId(7), share: 65_535, epoch: 3, closed: true, counts }
}

fn token() -> TokenRecord {
    let key = [7; 32];
    let host = Enrolled { name: "host-1".to_owned(), ip: [10, 0, 0, 1].into(), key: [8; 32], at_unix_ms: 3 };
    TokenRecord {
        id: TokenId::of(&key),
        key,
        created_unix_ms: 1,
        expires_unix_ms: u64::MAX,
        uses: 2,
        revoked: true,
        enrolled: vec![host],
    }
}

fn sample() -> ServerSample {
    ServerSample {
        host: HostId(7),
        port: 6379,
        run_id: "abc".to_owned(),
        primary: true,
        dbsize: 1,
        calls: 2,
        cpu_us: 3,
    }
}

/// Every shape that keys, picks, sizes and commands may have, in turn.
fn workloads() -> Vec<Workload> {
    let pool = |pick| Keys::Pool { count: 1_000_000_000_000, pick };
    let workload = |keys, value| Workload {
        name: "cache".to_owned(),
        seed: u64::MAX,
        keys,
        value,
        mix: Verb::ALL.into_iter().zip(0..).collect(),
        ttl_s: Some(3600),
        fields: 5,
        keys_per_command: 10,
    };
    vec![
        Workload::uuid_counter(),
        workload(Keys::Counter { wrap: Some(1000) }, ValueBytes::Fixed(100)),
        workload(pool(Pick::Uniform), ValueBytes::Uniform { min: 1, max: u32::MAX }),
        workload(pool(Pick::Zipf { exponent: 0.99 }), ValueBytes::Weighted(vec![(100, 9), (1000, 1)])),
        workload(pool(Pick::Zipf { exponent: f64::MIN_POSITIVE }), ValueBytes::KeyTwice),
    ]
}

fn jobs() -> Vec<Job> {
    let back = ReadBack { of: RunId(Uuid::from_u128(9)), wrap: Some(7), pipeline: 16, per_million: 1_000 };
    let whole = ReadBack { wrap: None, per_million: 1_000_000, ..back };
    workloads().into_iter().map(Job::Load).chain([Job::ReadBack(back), Job::ReadBack(whole)]).collect()
}

/// With all options.
fn spec(job: Job) -> RunSpec {
    RunSpec {
        job,
        workers: 5,
        pipeline: 16,
        load_hosts: Some(3),
        threads_per_host: Some(2),
        rate: Some(u64::MAX),
        ramp_s: 4,
        warm_up_s: 6,
        until: RunUntil::Seconds(9),
    }
}

fn latency() -> LatencySummary {
    LatencySummary { count: 1, p50_us: 2, p90_us: 3, p99_us: 4, p999_us: 5, max_us: 6 }
}

fn at_server() -> Vec<(std::net::SocketAddr, u64)> {
    vec![("127.0.0.1:7003".parse().expect("an address"), 5), ("[2001:db8::1]:6379".parse().expect("one"), 6)]
}

fn run(outcome: Outcome) -> Run {
    let share = Share {
        host: HostId(7),
        workers: 5,
        first_worker: 0,
        writes: Some(8),
        given_up: true,
        rest_of: None,
    };
    let rest = Share { host: HostId(8), writes: None, given_up: false, rest_of: Some(0), ..share.clone() };
    Run {
        id: RunId(Uuid::from_u128(2)),
        spec: spec(jobs().remove(0)),
        shares: vec![share, rest],
        stage: RunStage::Done,
        created_unix_ms: 1,
        starts_unix_ms: 3,
        before: vec![sample()],
        result: Some(RunResult {
            outcome,
            tallies: vec![tally()],
            latency: latency(),
            intended: Some(latency()),
            ledger: Ledger {
                dbsize: -1,
                calls: -2,
                lost: 3,
                lost_at: at_server(),
                ok: true,
                notes: vec!["note".to_owned()],
            },
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
        share_writes_per_s: vec![1.5, 0.25],
        latency: None,
        intended: Some(latency()),
        waiting_for: Some("host-2".to_owned()),
    }
}

fn detail() -> RunDetail {
    let found = Findings {
        right: 1,
        wrong: 2,
        lost: 3,
        arrived: 4,
        not_arrived: 5,
        lost_at: at_server(),
        examples: vec!["a-1".to_owned()],
    };
    let kept = ShareDetail {
        host: HostId(7),
        epoch: 3,
        started_unix_ms: 1,
        resolution_s: 2,
        acked: vec![1, 2],
        worker_acked_min: 1,
        worker_acked_max: 2,
        errors: vec![ErrorCount { kind: "OOM".to_owned(), count: 2, first: "OOM command".to_owned() }],
        histogram: vec![1],
        intended: vec![2],
        behind: 4,
        threads: 3,
        acked_by: at_server(),
        findings: Some(found),
    };
    let plain = ShareDetail { findings: None, ..kept.clone() };
    RunDetail { view: view(), details: vec![kept, plain], missing: vec!["host-2".to_owned()] }
}

fn findings() -> Vec<Finding> {
    let finding = |severity, remedy: Option<&str>| Finding {
        check: Check::Memory,
        hosts: vec!["host-1".to_owned()],
        severity,
        figure: "27.3 GiB".to_owned(),
        threshold: "18 GiB".to_owned(),
        words: "too much".to_owned(),
        remedy: remedy.map(ToOwned::to_owned),
    };
    vec![
        finding(Severity::Ok, None),
        finding(Severity::Warn, Some("less")),
        finding(Severity::Fail, Some("less")),
    ]
}

fn removed() -> Vec<RemovedHost> {
    let host = |id, certificates| RemovedHost { id, name: "host-3".to_owned(), certificates, at_unix_ms: 9 };
    vec![host(Some(HostId(3)), true), host(None, false)]
}

fn revoked() -> Vec<RevokedOperator> {
    vec![RevokedOperator { name: "bob".to_owned(), at_unix_ms: u64::MAX }]
}

fn requests() -> Vec<ControlRequest> {
    let share = |run, writes| ShareRequest { run, host: "host-11".to_owned(), workers: 200, writes };
    let verify = |run, sample| VerifyRequest { run, sample, workers: 2000 };
    let starts = jobs().into_iter().map(|job| ControlRequest::RunStart(spec(job)));
    let others = vec![
        ControlRequest::Members,
        ControlRequest::OperatorList,
        ControlRequest::OperatorRevoke(OperatorRevoke {
            name: "bob".to_owned(),
            force: vec![RevocationCheck::Itself],
        }),
        ControlRequest::HostRemove(HostRemove {
            host: "host-3".to_owned(),
            force: vec![RemovalCheck::Slots, RemovalCheck::Unknown],
        }),
        ControlRequest::HostReplace(HostReplace {
            host: "host-3".to_owned(),
            with: Some("00000009".to_owned()),
        }),
        ControlRequest::ClusterCreate(ClusterCreate { spec: plan().spec, force: Check::ALL.to_vec() }),
        ControlRequest::Doctor(plan().spec),
        ControlRequest::ClusterStatus,
        ControlRequest::ClusterCheck,
        ControlRequest::RunStart(RunSpec::closed_loop(Workload::uuid_counter(), 1, RunUntil::Writes(1))),
        ControlRequest::RunShare(share(RunRef::Latest, None)),
        ControlRequest::RunShare(share(RunRef::Prefix("ab".to_owned()), Some(u64::MAX))),
        ControlRequest::RunVerify(verify(RunRef::Latest, None)),
        ControlRequest::RunVerify(verify(RunRef::Prefix("ab".to_owned()), Some(100_000))),
        ControlRequest::RunStop(RunRef::Latest),
        ControlRequest::RunList,
        ControlRequest::RunShow { run: RunRef::Prefix("ab".to_owned()), latency: true },
        ControlRequest::RunDetail(RunRef::Latest),
        ControlRequest::TokenCreate(TokenCreate {
            key: [1; 32],
            mesh: MeshId(Uuid::from_u128(1)),
            ttl_s: 2,
            uses: 3,
        }),
        ControlRequest::TokenList,
        ControlRequest::TokenRevoke(token().id),
    ];
    starts.chain(others).collect()
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
        secrets: Some(SecretState { accepts: vec!["0a1b2c3d".to_owned()], replicates: None }),
    };
    let progress = HostProgress {
        id: HostId(7),
        name: "host-1".to_owned(),
        alive: true,
        stage: Some(PlanStage::Prepare),
        planned: 2,
        held: 1,
        up: 1,
        agreed: 0,
        problems: vec!["port taken".to_owned()],
        removed: false,
        forgotten: vec![HostId(3)],
        withheld: Some("it holds slots".to_owned()),
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
        ControlReply::Created(Created {
            plan: plan(),
            fresh: true,
            warnings: findings(),
            notes: vec!["because".to_owned()],
        }),
        ControlReply::Doctor(Box::new(Report {
            spec: plan().spec,
            instances: 1000,
            hosts: vec!["host-1".to_owned()],
            machines: 1,
            node_timeout_ms: 5000,
            hz: 10,
            findings: findings(),
        })),
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
        ControlReply::RunDetail(detail()),
        ControlReply::Token(token()),
        ControlReply::Tokens(vec![token()]),
        ControlReply::Refused(Refusal { kind: RefusalKind::Deadline, message: "late".to_owned() }),
        ControlReply::Refused(Refusal { kind: RefusalKind::Preflight, message: "memory".to_owned() }),
        ControlReply::Revoked(revoked().remove(0)),
        ControlReply::Operators(revoked()),
        ControlReply::Replaced(Replaced {
            from: HostId(3),
            to: plan().hosts[0].clone(),
            instances: 100,
            fresh: true,
        }),
        ControlReply::Removed(Removed {
            host: removed().remove(0),
            fresh: true,
            nodes: 2,
            notes: vec!["forget".to_owned()],
        }),
    ]
}

#[test]
fn a_sign_is_no_digit_of_a_node_id() {
    assert!("+f".repeat(20).parse::<NodeId>().is_err());
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
fn what_a_joining_host_says_and_hears_comes_back() {
    let ask = JoinAsk {
        mesh: MeshId(Uuid::from_u128(1)),
        name: "host-1".to_owned(),
        ip: "2001:db8::1".parse().expect("an address"),
        csr: vec![1, 2],
        unix_ms: 3,
    };
    let bytes = codec::encode(&ask).expect("encodes");
    assert_eq!(codec::decode::<JoinAsk>(&bytes).expect("decodes"), ask);
    let request = JoinRequest { token: token().id, ask: bytes, proof: vec![4; 64] };
    let bytes = codec::encode(&request).expect("encodes");
    assert_eq!(codec::decode::<JoinRequest>(&bytes).expect("decodes"), request);
    let joined = JoinedIdentity {
        ca: "CA".to_owned(),
        chain: "chain".to_owned(),
        redis_secret: Some("top secret".to_owned()),
    };
    assert!(!format!("{joined:?}").contains("top secret"));
    for reply in [JoinReply::Joined(joined), JoinReply::Refused(JoinRefusal::unproven())] {
        let bytes = codec::encode(&reply).expect("encodes");
        assert_eq!(codec::decode::<JoinReply>(&bytes).expect("decodes"), reply);
    }
}

#[test]
fn workloads_come_back_from_bytes_and_from_json() {
    let workloads = workloads();
    assert_eq!(workloads[1].mix.len(), Verb::ALL.len());
    for workload in workloads {
        let bytes = codec::encode(&workload).expect("encodes");
        let back: Workload = codec::decode(&bytes).expect("decodes");
        assert_eq!(back, workload);
        let json = serde_json::to_string(&workload).expect("JSON");
        assert_eq!(serde_json::from_str::<Workload>(&json).expect("the same again"), workload);
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
        tokens: vec![token()],
        removed: removed(),
        revoked: revoked(),
    };
    let bytes = codec::encode(&level).expect("encodes");
    assert_eq!(codec::decode::<Level>(&bytes).expect("decodes"), level);
}

#[test]
fn json_is_for_people() {
    let json = serde_json::to_value(replies()).expect("JSON");
    assert_eq!(json[0]["Members"]["answered_by"], "00000007");
    assert_eq!(json[2]["Doctor"]["findings"][2]["check"], "memory");
    assert_eq!(json[2]["Doctor"]["findings"][2]["severity"], "fail");
    assert_eq!(json[5]["RunStarted"]["spec"]["job"]["Load"]["name"], UUID_COUNTER);
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
    fn a_cut_or_lengthened_reply_is_refused(index in 0_usize..9, cut in 0_usize..50) {
        let bytes = codec::encode(&replies()[index]).expect("encodes");
        let shorter = &bytes[..bytes.len().saturating_sub(1 + cut)];
        prop_assert!(codec::decode::<ControlReply>(shorter).is_err());
        let mut longer = bytes.clone();
        longer.push(0);
        prop_assert!(codec::decode::<ControlReply>(&longer).is_err());
    }
}
