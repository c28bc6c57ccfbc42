//! redis-servers that speak TLS: a mesh whose agents, servers and clients speak nothing else.

use std::net::{SocketAddr, TcpStream};
use std::process::Command;
use std::time::Duration;

use redmesh_agent::redis_tls::RedisTls;
use redmesh_api::tls::Identity;
use redmesh_tests::run::{assert_accounted, count};
use redmesh_tests::{Mesh, MeshBuilder, until};
use serde_json::Value;

const SOON: Duration = Duration::from_secs(60);

fn redis_cli(mesh: &Mesh, host: usize, before: &[&str], words: &[&str]) -> String {
    let output = Command::new("redis-cli")
        .args(before)
        .args(["-h", &mesh.ip(host), "-p", "6379"])
        .env("REDISCLI_AUTH", mesh.redis_password())
        .args(words)
        .output()
        .expect("run redis-cli");
    String::from_utf8_lossy(&output.stdout).into_owned() + &String::from_utf8_lossy(&output.stderr)
}

/// A host's certificate as it is on disk now.
fn on_disk(mesh: &Mesh, host: usize) -> Vec<u8> {
    Identity::load(&mesh.identity_dir(host)).expect("an identity").chain()[0].to_vec()
}

/// The certificate that a server shows whoever dials it.
fn shown(mesh: &Mesh, host: usize, port: u16) -> Option<Vec<u8>> {
    let identity = Identity::load(&mesh.identity_dir(host)).expect("an identity");
    let ip = mesh.ip(host).parse().expect("an address");
    let addr = SocketAddr::new(ip, port);
    let mut session =
        RedisTls::new(&identity, ip).expect("it names the address").session(addr).expect("begins");
    session.complete_io(&mut TcpStream::connect(addr).ok()?).ok()?;
    Some(session.peer_certificates()?.first()?.to_vec())
}

fn ok(mesh: &Mesh, args: &[&str]) {
    assert!(mesh.ctl(args).status.success(), "{args:?}");
}

#[test]
fn a_mesh_of_tls_forms_writes_reads_back_and_takes_renewed_certificates() {
    let mut mesh = MeshBuilder::new(3).servers_outlive_agents().with_redis_tls().ready();
    mesh.ok_at(0, &["cluster", "create", "--instances-per-host", "2", "--replicas", "1"]);
    mesh.await_whole(0, 6);

    // The plan is what the servers say, ports and bus ports included.
    let nodes = mesh.redis_cli(0, 6379, &["CLUSTER", "NODES"]);
    assert!(nodes.contains(&format!("{}:6380@16380", mesh.ip(2))), "{nodes}");
    let check = mesh.redis_cli(0, 6379, &["--cluster", "check", &format!("{}:6379", mesh.ip(0))]);
    assert!(check.contains("[OK] All 16384 slots covered"), "{check}");
    until("all replicas to be online, through TLS", SOON, || {
        let each = (0..3).flat_map(|host| [6379, 6380].map(|port| (host, port)));
        let online =
            |(host, port)| mesh.redis_cli(host, port, &["INFO", "replication"]).contains("state=online");
        (each.filter(|at| online(*at)).count() == 3).then_some(())
    });

    let run = mesh.json_at(1, &["run", "start", "--workers", "60", "--writes", "60000"]);
    assert_accounted(&run);
    assert_eq!((count(&run["run"]["acked"]), &run["ledger"]["ok"]), (60_000, &Value::Bool(true)), "{run}");
    let found = mesh.json_at(2, &["run", "verify", "--all"]);
    assert_eq!(count(&found["detail"]["findings"]["right"]), 60_000, "{found}");

    // In plain text a server says nothing at all.
    let plain = redis_cli(&mesh, 0, &[], &["PING"]);
    assert!(!plain.contains("PONG"), "{plain}");
    let ca = mesh.dir().join("pki/ca.pem");
    let with = redis_cli(&mesh, 0, &["--tls", "--cacert", ca.to_str().expect("text")], &["PING"]);
    assert!(with.contains("PONG"), "{with}");
    // A client may do without a certificate; one of a foreign CA is refused, and whoever
    // trusts another CA refuses the server.
    ok(&mesh, &["pki", "init", "--dir", "other"]);
    ok(&mesh, &["pki", "issue", "--dir", "other", "--operator", "mallory"]);
    let other = mesh.dir().join("other/mallory");
    let file = |name: &str| other.join(name).display().to_string();
    let (cert, key) = (file("cert.pem"), file("key.pem"));
    let foreign = ["--tls", "--cacert", ca.to_str().expect("text"), "--cert", &cert, "--key", &key];
    let said = redis_cli(&mesh, 0, &foreign, &["PING"]);
    assert!(!said.contains("PONG"), "{said}");
    let said = redis_cli(&mesh, 0, &["--tls", "--cacert", &file("ca.pem")], &["PING"]);
    assert!(said.contains("certificate verify failed"), "{said}");

    // A renewed certificate reaches the servers that run.
    let before = on_disk(&mesh, 1);
    assert_eq!(shown(&mesh, 1, 6379).as_ref(), Some(&before));
    ok(&mesh, &["pki", "issue", "--dir", "pki", "--host", "host-2", "--ip", &mesh.ip(1), "--renew"]);
    let renewed = on_disk(&mesh, 1);
    assert_ne!(before, renewed);
    for port in [6379, 6380] {
        until("a running server to show the renewed one", SOON, || {
            (shown(&mesh, 1, port)? == renewed).then_some(())
        });
    }
    // Also where it was renewed while no agent was there.
    mesh.end_agent(2);
    ok(&mesh, &["pki", "issue", "--dir", "pki", "--host", "host-3", "--ip", &mesh.ip(2), "--renew"]);
    assert_ne!(shown(&mesh, 2, 6380).expect("it runs"), on_disk(&mesh, 2));
    mesh.start_agent(2);
    until("an adopted server to show the renewed one", SOON, || {
        (shown(&mesh, 2, 6380)? == on_disk(&mesh, 2)).then_some(())
    });
    mesh.await_whole(0, 6);
    let run = mesh.json_at(0, &["run", "start", "--workers", "60", "--writes", "6000"]);
    assert_eq!(count(&run["run"]["acked"]), 6_000, "{run}");
}

#[test]
fn a_server_with_a_wrong_certificate_is_not_spoken_to() {
    let mesh = MeshBuilder::new(1).with_redis_tls().ready();
    mesh.ok_at(0, &["cluster", "create", "--instances-per-host", "3"]);
    mesh.await_whole(0, 3);
    ok(&mesh, &["pki", "init", "--dir", "other"]);
    ok(&mesh, &["pki", "issue", "--dir", "other", "--host", "host-1", "--ip", &mesh.ip(0)]);
    let other = mesh.dir().join("other/host-1");
    let files = ["tls-cert-file", "cert.pem", "tls-key-file", "key.pem", "tls-ca-cert-file", "ca.pem"];
    let mut set = vec!["CONFIG".to_owned(), "SET".to_owned()];
    for pair in files.chunks(2) {
        set.extend([pair[0].to_owned(), other.join(pair[1]).display().to_string()]);
    }
    let words: Vec<&str> = set.iter().map(String::as_str).collect();
    assert_eq!(mesh.redis_cli(0, 6381, &words), "OK");

    // One agent's connections stand; a new agent makes new ones.
    let mut mesh = mesh;
    mesh.kill_agent(0);
    mesh.start_agent(0);
    until("the agent to name the certificate", SOON, || {
        let members = mesh.ctl_at(0, &["members"]);
        let said =
            String::from_utf8_lossy(&members.stdout).into_owned() + &String::from_utf8_lossy(&members.stderr);
        (said.contains(":6381") && said.contains("certificate")).then_some(())
    });
}

#[test]
fn a_certificate_by_a_join_token_serves_redis_as_well() {
    let mut mesh = MeshBuilder::new(2).signers(1).spare(1).with_redis_tls().ready();
    let token = mesh.token_file();
    mesh.ok_at(0, &["join-token", "create", "--out", token.to_str().expect("text")]);
    mesh.start_agent(2);
    mesh.await_members(3);
    mesh.ok_at(0, &["cluster", "create", "--instances-per-host", "1"]);
    // Its chain has a signer in it, which Redis' TLS has to follow, as server and as client.
    let run = mesh.json_at(2, &["run", "start", "--workers", "30", "--writes", "3000"]);
    assert_eq!((count(&run["run"]["acked"]), &run["ledger"]["ok"]), (3_000, &Value::Bool(true)), "{run}");
    let check = mesh.redis_cli(2, 6379, &["--cluster", "check", &format!("{}:6379", mesh.ip(2))]);
    assert!(check.contains("[OK] All 16384 slots covered"), "{check}");
}

#[test]
fn hosts_must_agree_and_a_certificate_must_name_the_servers_address() {
    let mesh = MeshBuilder::new(3).config_of(1, "tls = \"on\"\n").ready();
    let refused = mesh.ctl_at(0, &["cluster", "create", "--instances-per-host", "2"]);
    let said = String::from_utf8_lossy(&refused.stderr);
    assert!(!refused.status.success(), "{said}");
    assert!(
        said.contains("redis-tls (host-2): on") && said.contains("redis-tls (host-1, host-3): off"),
        "{said}"
    );
    let checked = mesh.agent_command(1, &["check-config", "--set", "redis.ip=127.1.2.3"]);
    let said = String::from_utf8_lossy(&checked.stderr);
    assert!(!checked.status.success() && said.contains("--ip 127.1.2.3"), "{said}");
    assert!(mesh.agent_command(1, &["check-config"]).status.success());
}
