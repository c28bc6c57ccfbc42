//! Every parser of outside bytes in this crate, under `redmesh_tests::fuzz`.

use redmesh_api::codec::{self, Channel, Direction, HEADER_BYTES};
use redmesh_api::control::{
    ClusterCreate, ControlReply, ControlRequest, Refusal, RefusalKind, RunRef, ShareRequest,
};
use redmesh_api::ids::{HostId, MeshId};
use redmesh_api::join::{CaPin, EXPORTER_BYTES, JoinAsk, JoinRefusal, JoinReply, JoinRequest, JoinToken};
use redmesh_api::level::{ClusterSpec, Stamp};
use redmesh_api::run::{RunSpec, RunUntil};
use redmesh_api::workload::Workload;
use redmesh_tests::fuzz::fuzz;

use crate::cluster::{ClusterInfo, InfoMap, ServerVersion, Topology, redis_conf};
use crate::config::{Config, Overrides};
use crate::enrol::signer::Request;
use crate::facts::HostFacts;
use crate::load::resp;
use crate::peer::{PeerReply, PeerRequest};
use crate::transport::quic::{HELLO_PROTOCOL, Hello, HelloReply};

fn text(bytes: &[u8]) -> String {
    String::from_utf8_lossy(bytes).into_owned()
}

fn requests() -> Vec<ControlRequest> {
    let run = RunRef::Prefix("3f2a".to_owned());
    let share = ShareRequest { run: run.clone(), host: "h".to_owned(), workers: 1, writes: None };
    vec![
        ControlRequest::Members,
        ControlRequest::ClusterCreate(ClusterCreate { spec: ClusterSpec::default(), force: Vec::new() }),
        ControlRequest::Doctor(ClusterSpec::default()),
        ControlRequest::RunStart(RunSpec::closed_loop(Workload::uuid_counter(), 9, RunUntil::Writes(7))),
        ControlRequest::RunShare(share),
        ControlRequest::RunShow { run, latency: true },
    ]
}

#[test]
fn fuzz_frames_and_what_they_carry() {
    let encoded = |bytes: Result<Vec<u8>, codec::CodecError>| bytes.expect("encodes");
    let hello = Hello {
        protocol: HELLO_PROTOCOL,
        id: HostId(1),
        name: "a".to_owned(),
        boot_id: 1,
        addr: ([127, 0, 0, 1], 1).into(),
        mesh_name: "m".to_owned(),
        mesh_id: None,
        agent_version: "1".to_owned(),
    };
    let mut seeds: Vec<_> = requests().iter().map(|request| encoded(codec::encode(request))).collect();
    seeds
        .extend(requests().into_iter().map(|request| encoded(codec::encode(&PeerRequest::Forward(request)))));
    let refusal = Refusal { kind: RefusalKind::Busy, message: "é".to_owned() };
    seeds.push(encoded(codec::encode(&ControlReply::Refused(refusal))));
    seeds.push(encoded(codec::encode(&PeerRequest::PushLevel(Box::default()))));
    seeds.push(encoded(codec::encode(&PeerRequest::PullLevel { newer_than: Stamp::default() })));
    seeds.push(encoded(codec::encode(&PeerReply::Level(Some(Box::default())))));
    seeds.push(encoded(codec::encode(&hello)));
    seeds.push(encoded(codec::encode(&HelloReply::Welcome(hello))));
    let token = JoinToken::generate(MeshId(uuid::Uuid::nil()), CaPin::of(b"ca")).expect("a token");
    let key = rcgen::KeyPair::generate().expect("a key");
    let csr = rcgen::CertificateParams::default().serialize_request(&key).expect("a request");
    let ask = JoinAsk {
        mesh: token.mesh,
        name: "a".to_owned(),
        ip: [127, 0, 0, 1].into(),
        csr: csr.der().to_vec(),
        unix_ms: 1,
    };
    seeds.push(encoded(codec::encode(&ask)));
    let proof = token.prove(b"", &[0; EXPORTER_BYTES]).expect("a proof");
    seeds.push(encoded(codec::encode(&JoinRequest { token: token.id(), ask: Vec::new(), proof })));
    seeds.push(encoded(codec::encode(&JoinReply::Refused(JoinRefusal::unproven()))));
    seeds.push(csr.der().to_vec());
    seeds.push(token.text().into_bytes());
    fuzz("frames", seeds, |bytes| {
        if let Some(header) = bytes.first_chunk::<HEADER_BYTES>() {
            for direction in [Direction::Request, Direction::Reply] {
                if let Ok((channel, len)) = codec::parse_header(*header, direction) {
                    assert!(len <= channel.limit(direction));
                }
            }
        }
        // What comes back whole is what was sent: nothing has two encodings.
        if let Ok(request) = codec::decode::<ControlRequest>(bytes) {
            let again = codec::encode(&request).expect("what was decoded encodes");
            assert!(again.len() <= Channel::Peer.limit(Direction::Request));
        }
        let _ = codec::decode::<ControlReply>(bytes);
        let _ = codec::decode::<PeerRequest>(bytes);
        let _ = codec::decode::<PeerReply>(bytes);
        let _ = codec::decode::<Hello>(bytes);
        let _ = codec::decode::<HelloReply>(bytes);
        let _ = codec::decode::<JoinRequest>(bytes);
        let _ = codec::decode::<JoinAsk>(bytes);
        let _ = codec::decode::<JoinReply>(bytes);
        let _ = Request::parse(bytes);
        let _ = JoinToken::parse(&text(bytes));
        let _ = serde_json::from_slice::<HostFacts>(bytes);
        let _ = redmesh_api::frames::readable(bytes);
    });
}

#[test]
fn fuzz_replies_of_servers_to_load_threads() {
    fuzz("resp", vec![], |bytes| {
        let (mut at, mut skimmed) = (0, 0);
        loop {
            let used = match resp::parse(&bytes[at..]) {
                resp::Parsed::Incomplete | resp::Parsed::Garbage => break,
                resp::Parsed::Ok(used) | resp::Parsed::Value(_, used) => used,
                resp::Parsed::Error(line, used) => {
                    let _ = resp::classify(line);
                    let _ = resp::kind(line);
                    used
                }
            };
            assert!(used > 0 && used <= bytes.len() - at, "{used} of {}", bytes.len() - at);
            at += used;
        }
        let mut skim = resp::Skim::new();
        while let Ok((used, reply)) = skim.feed(&bytes[skimmed..]) {
            assert!(used <= bytes.len() - skimmed);
            skimmed += used;
            if reply.is_none() {
                break;
            }
            assert!(used > 0, "a reply of no bytes");
        }
    });
}

#[test]
fn fuzz_what_instances_say() {
    fuzz("cluster_nodes", vec![], |bytes| {
        if let Ok(topology) = Topology::parse(&text(bytes)) {
            let _ =
                (topology.myself(), topology.slot_map(), topology.slots_covered(), topology.view_digest());
        }
    });
    fuzz("cluster_info", vec![], |bytes| drop(ClusterInfo::parse(&text(bytes))));
    fuzz("info", vec![], |bytes| {
        let info = InfoMap::parse(&text(bytes));
        let _ = (info.keys(), info.calls("set"), info.cpu_us(), info.iter().count());
        let _ = ServerVersion::parse(&text(bytes));
    });
}

#[test]
fn fuzz_configurations() {
    let dir = tempfile::tempdir().expect("temp dir");
    let path = dir.path().join("agent.toml");
    fuzz("agent_toml", vec![], |bytes| {
        std::fs::write(&path, bytes).expect("write");
        if let Ok(config) = Config::load(&path, &Overrides::default()) {
            let directives: Vec<_> = config.redis.directives.into_iter().collect();
            if redis_conf::check_directives(&directives).is_ok() {
                let _ = redis_conf::check_access(&directives);
                let _ = redis_conf::password(&directives);
            }
        }
    });
    fuzz("redis_value", vec![], |bytes| {
        let directives = [("user".to_owned(), vec![text(bytes)])];
        if redis_conf::check_directives(&directives).is_ok() {
            let _ = redis_conf::check_access(&directives);
        }
    });
}
