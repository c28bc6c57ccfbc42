//! Forming a cluster by MEET: of servers that run already, of servers whose nodes.conf nobody
//! knows how to write, and with everything killed in every stage of it.

use std::net::TcpListener;
use std::os::unix::fs::PermissionsExt;
use std::process::{Command, Stdio};
use std::time::Duration;

use redmesh_tests::process::send;
use redmesh_tests::{Mesh, MeshBuilder, until};
use rustix::process::Signal;
use serde_json::Value;

const SOON: Duration = Duration::from_secs(60);

/// Starts a server that is nobody's; it ends with the mesh's directory.
fn start_existing(mesh: &Mesh, host: usize, port: u16, announce: bool) {
    let dir = mesh.dir().join(format!("existing/{host}-{port}"));
    std::fs::create_dir_all(&dir).expect("make a directory");
    let ip = mesh.ip(host);
    let mut command = Command::new("redis-server");
    let port = port.to_string();
    command.args(["--port", &port, "--bind", &ip, "--cluster-enabled", "yes", "--save", ""]);
    command.args(["--cluster-node-timeout", "3000"]);
    if announce {
        command.args(["--cluster-announce-ip", &ip]);
    }
    command.args(["--daemonize", "yes"]);
    command.current_dir(dir).stdin(Stdio::null()).stdout(Stdio::null()).stderr(Stdio::null());
    assert!(command.status().expect("start a redis-server").success());
    await_pong(mesh, host, port.parse().expect("a port"));
}

fn await_pong(mesh: &Mesh, host: usize, port: u16) {
    until("a server to answer", SOON, || (mesh.redis_cli(host, port, &["PING"]) == "PONG").then_some(()));
}

fn assert_whole(mesh: &Mesh) {
    let check = until("a check without errors", SOON, || {
        let check = mesh.try_json_at(0, &["cluster", "check"])?;
        check["errors"].as_array()?.is_empty().then_some(check)
    });
    assert_eq!(
        (&check["agreed"], &check["warnings"]),
        (&Value::Bool(true), &Value::Array(vec![])),
        "{check}"
    );
    let text = mesh.redis_cli(0, 6379, &["--cluster", "check", &format!("{}:6379", mesh.ip(0))]);
    assert!(text.contains("[OK] All nodes agree about slots configuration."), "{text}");
    assert!(text.contains("[OK] All 16384 slots covered."), "{text}");
}

#[test]
fn servers_that_run_already_are_refused_with_reasons_then_joined_and_left_to_their_owner() {
    let mesh = MeshBuilder::new(3).without_redis_auth().ready();
    let ports = || (0..3).flat_map(|host| [(host, 6379), (host, 6380)]);
    for (host, port) in ports().filter(|at| *at != (2, 6380)) {
        start_existing(&mesh, host, port, (host, port) != (1, 6379));
    }
    mesh.redis_cli(0, 6379, &["CLUSTER", "ADDSLOTS", "7"]);
    let create = ["cluster", "create", "--instances-per-host", "2", "--replicas", "1", "--existing"];
    let refused = mesh.ctl_at(0, &create);
    assert_eq!(refused.status.code(), Some(1));
    let words = String::from_utf8_lossy(&refused.stderr);
    for part in [
        format!("host-1: {}:6379 serves 1 slots", mesh.ip(0)),
        format!("host-2: {}:6379 does not announce its address", mesh.ip(1)),
        format!("host-3: {}:6380 does not answer", mesh.ip(2)),
    ] {
        assert!(words.contains(&part), "lacks {part:?}:\n{words}");
    }
    let seeded = mesh.ctl_at(0, &[&create[..], &["--formation", "seeded"]].concat());
    assert!(String::from_utf8_lossy(&seeded.stderr).contains("--formation meet"));

    mesh.redis_cli(0, 6379, &["CLUSTER", "RESET", "HARD"]);
    mesh.redis_cli(1, 6379, &["CONFIG", "SET", "cluster-announce-ip", &mesh.ip(1)]);
    start_existing(&mesh, 2, 6380, true);
    let before = mesh.servers();
    let created = mesh.json_at(1, &create);
    assert_eq!((&created["formed"], &created["plan"]["formation"]), (&Value::Bool(true), &"meet".into()));
    assert_eq!((&created["primaries"], &created["plan"]["node_timeout_ms"]), (&3.into(), &3000.into()));
    assert_whole(&mesh);
    assert_eq!(mesh.servers(), before, "none was started or ended");
    mesh.ok_at(0, &["run", "start", "--workers", "10", "--writes", "2000"]);

    // One that has never been in sync could not take over.
    until("every replica to be in sync", SOON, || {
        let info = |(host, port)| mesh.redis_cli(host, port, &["INFO", "replication"]);
        let synced = |info: String| info.contains("role:master") || info.contains("master_link_status:up");
        ports().map(info).all(synced).then_some(())
    });

    // Its owner ends it: nobody starts it again, and that is said until he does.
    let victim = mesh.servers().into_iter().find(|server| server.dir.ends_with("1-6380")).expect("it runs");
    send(&victim, Signal::KILL);
    let told = format!("{}:6380", mesh.ip(1));
    until("the lost server to be missed", SOON, || {
        let members = mesh.try_json_at(0, &["members"])?;
        let member = members["members"].as_array()?.iter().find(|m| m["name"] == "host-2")?;
        (member["instances_up"] == 1 && member["problem"].as_str()?.contains(&told)).then_some(())
    });
    assert_eq!(mesh.servers().len(), 5);
    start_existing(&mesh, 1, 6380, true);
    assert_whole(&mesh);
}

#[test]
fn a_version_of_unknown_format_is_formed_by_meet() {
    let dir = tempfile::tempdir().expect("temp dir");
    let server = dir.path().join("redis-server");
    let script = "#!/bin/sh\ncase \"$1\" in --version) echo 'Redis server v=99.0.0 sha=0'; exit 0;; esac\n\
                  exec redis-server \"$@\"\n";
    std::fs::write(&server, script).expect("write a script");
    std::fs::set_permissions(&server, std::fs::Permissions::from_mode(0o755)).expect("make it executable");
    let mesh = MeshBuilder::new(3).config(&format!("server = \"{}\"\n", server.display())).ready();
    let create = ["cluster", "create", "--instances-per-host", "1"];
    let seeded = mesh.ctl_at(0, &[&create[..], &["--formation", "seeded"]].concat());
    let words = String::from_utf8_lossy(&seeded.stderr);
    assert!(seeded.status.code() == Some(1) && words.contains("99.0.0"), "{words}");
    let created = mesh.json_at(0, &create);
    assert_eq!((&created["formed"], &created["plan"]["formation"]), (&Value::Bool(true), &"meet".into()));
    assert!(created["notes"][0].as_str().is_some_and(|why| why.contains("99.0.0")), "{created}");
    assert_whole(&mesh);
}

/// Lets every server do what its configuration forbids, which is what holds a stage.
fn allow(mesh: &Mesh, command: &str) {
    for (host, port) in (0..3).flat_map(|host| [(host, 6379), (host, 6380)]) {
        mesh.redis_cli(host, port, &["ACL", "SETUSER", "default", &format!("+cluster|{command}")]);
    }
}

fn await_stage(mesh: &Mesh, host: usize, stage: &str, mut meanwhile: impl FnMut()) {
    until(&format!("stage {stage}"), SOON, || {
        meanwhile();
        let info = mesh.try_json_at(host, &["cluster", "info"])?;
        (info["status"]["plan"]["stage"] == stage).then_some(())
    });
}

/// kill -9 for the coordinator, for the agent of another host, and for a server of each;
/// all come back.
fn kill_everything_once(mesh: &mut Mesh) {
    let coordinator = until("a coordinator", SOON, || mesh.coordinator_at(0));
    let other = (coordinator + 1) % 3;
    mesh.kill_agent(coordinator);
    until("another coordinator", SOON, || mesh.coordinator_at(other).filter(|&new| new != coordinator));
    mesh.start_agent(coordinator);
    mesh.await_members(3);
    mesh.kill_agent(other);
    mesh.start_agent(other);
    mesh.await_members(3);
    for host in [coordinator, other] {
        let victim = mesh.servers_of(host).pop().expect("a server");
        send(&victim, Signal::KILL);
        until("a new server in its place", SOON, || {
            mesh.servers_of(host)
                .into_iter()
                .find(|server| server.dir == victim.dir && server.pid != victim.pid)
        });
    }
}

#[test]
fn coordinator_agents_and_servers_are_killed_in_every_stage_and_the_cluster_forms() {
    // What holds a stage is a command that the servers refuse until they are told otherwise.
    let acl =
        "[redis.directives]\nuser = \"default on nopass ~* &* +@all -cluster|meet -cluster|replicate\"\n";
    let mut mesh = MeshBuilder::new(3).servers_outlive_agents().without_redis_auth().config(acl).ready();
    let taken = TcpListener::bind((mesh.ip(1).as_str(), 6379)).expect("take a port");
    let create = [
        "cluster",
        "create",
        "--instances-per-host",
        "2",
        "--replicas",
        "1",
        "--formation",
        "meet",
        "--node-timeout",
        "2000",
    ];
    mesh.ok_at(0, &[&create[..], &["--no-wait", "--force", "ports"]].concat());
    until("the other servers to run", SOON, || (mesh.servers().len() == 5).then_some(()));
    await_stage(&mesh, 0, "prepare", || ());
    kill_everything_once(&mut mesh);
    drop(taken);

    await_stage(&mesh, 0, "release", || ());
    kill_everything_once(&mut mesh);
    await_stage(&mesh, 0, "release", || ());
    let ids = |mesh: &Mesh| mesh.json_at(0, &["cluster", "info"])["status"]["plan"]["instances"].clone();
    let named = ids(&mesh);
    await_stage(&mesh, 0, "replicate", || allow(&mesh, "meet"));

    kill_everything_once(&mut mesh);
    await_stage(&mesh, 0, "replicate", || ());
    // One that has lost all of its files comes back as who it was, and is joined again.
    let victim = mesh.servers_of(2).pop().expect("a server");
    std::fs::remove_file(victim.dir.join("nodes.conf")).expect("lose a nodes.conf");
    send(&victim, Signal::KILL);
    until("a new server in its place", SOON, || {
        mesh.servers_of(2).into_iter().find(|server| server.dir == victim.dir && server.pid != victim.pid)
    });
    await_stage(&mesh, 0, "formed", || {
        allow(&mesh, "meet");
        allow(&mesh, "replicate");
    });
    let again = mesh.json_at(0, &create);
    assert_eq!((&again["formed"], &again["fresh"]), (&Value::Bool(true), &Value::Bool(false)));
    assert_eq!(ids(&mesh), named, "node ids are named once");
    assert_eq!(mesh.servers().len(), 6, "no server was started twice");
    assert_whole(&mesh);
}
