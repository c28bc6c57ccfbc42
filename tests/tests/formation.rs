//! Forming a cluster: whole, agreed by everybody, the same plan again; and what stands
//! in its way.

use std::net::TcpListener;
use std::time::Duration;

use redmesh_tests::{Mesh, MeshBuilder, http, until};
use serde_json::Value;

const CREATE: &[&str] = &["cluster", "create", "--instances-per-host", "4", "--replicas", "1"];

#[test]
fn three_hosts_form_a_cluster_that_redis_cli_finds_whole() {
    let mesh = MeshBuilder::new(3).ready();
    // Through a host that need not be the coordinator.
    let created = mesh.json_at(1, CREATE);
    assert_eq!((&created["nodes"], &created["primaries"]), (&Value::from(12), &Value::from(6)));
    assert_eq!(created["formed"], true);
    assert_eq!(created["fresh"], true);

    for host in 0..3 {
        let check = mesh.json_at(host, &["cluster", "check"]);
        assert_eq!(check["slots_covered"], 16384, "{check}");
        assert_eq!(check["agreed"], true, "{check}");
        assert_eq!(check["errors"], Value::Array(vec![]), "{check}");
        assert_eq!(check["warnings"], Value::Array(vec![]), "replicas apart from their primaries: {check}");
    }
    let text = mesh.redis_cli(0, 6379, &["--cluster", "check", &format!("{}:6379", mesh.ip(0))]);
    assert!(text.contains("[OK] All nodes agree about slots configuration."), "{text}");
    assert!(text.contains("[OK] All 16384 slots covered."), "{text}");

    // A stock Redis Cluster through any host.
    assert_eq!(mesh.redis_cli(2, 6380, &["-c", "SET", "greeting", "hello"]), "OK");
    assert_eq!(mesh.redis_cli(0, 6382, &["-c", "GET", "greeting"]), "hello");

    // Again: confirmed. With other values: refused, and the cluster left alone.
    let again = mesh.json_at(2, CREATE);
    assert_eq!(again["fresh"], false);
    assert_eq!(again["plan"]["id"], created["plan"]["id"]);
    let other = mesh.ctl_at(0, &["cluster", "create", "--instances-per-host", "5"]);
    assert_eq!(other.status.code(), Some(1));
    let words = String::from_utf8_lossy(&other.stderr);
    assert!(words.contains("12 instances") && words.contains("is there already"), "{words}");
    assert_eq!(mesh.redis_cli(1, 6379, &["-c", "GET", "greeting"]), "hello");

    metrics_are_served(&mesh.ip(1));
}

fn metrics_are_served(ip: &str) {
    let get = |path| http::get(&format!("{ip}:7380"), path);
    assert!(get("/healthz").is_some() && get("/readyz").is_some());
    let instance = format!("redis_up{{instance_addr=\"{ip}:6382\"}} 1");
    let expected = [
        "redmesh_members_alive 3",
        "redmesh_plan_stage 4",
        "redmesh_primaries 2",
        "redmesh_primaries_planned 2",
        "redmesh_replicas_beside_primary 0",
        "redis_memory_used_bytes{",
        instance.as_str(),
    ];
    until(&format!("/metrics to show {expected:?}"), Duration::from_secs(30), || {
        let text = get("/metrics")?;
        expected.iter().all(|line| text.contains(line)).then_some(())
    });
}

/// A create of one instance on each host is refused by this check, in these words.
fn refused_by(mesh: &Mesh, check: &str, parts: &[&str]) {
    let output = mesh.ctl_at(0, &["cluster", "create", "--instances-per-host", "1"]);
    assert_eq!(output.status.code(), Some(1));
    let words = String::from_utf8_lossy(&output.stderr);
    for part in parts.iter().chain(&[format!("--force {check}").as_str()]) {
        assert!(words.contains(part), "lacks {part:?}:\n{words}");
    }
}

#[test]
fn a_taken_port_is_named_and_the_create_continues_once_it_is_free() {
    let mesh = MeshBuilder::new(3).ready();
    let taken = TcpListener::bind((mesh.ip(1).as_str(), 6380)).expect("take a port");
    let create = ["cluster", "create", "--instances-per-host", "2", "--deadline", "8", "--force", "ports"];
    let output = mesh.ctl_at(0, &create);
    assert_eq!(output.status.code(), Some(1));
    let words = String::from_utf8_lossy(&output.stdout);
    let me = format!("pid {}", std::process::id());
    let (_, awaited) = words.split_once("Still awaited:").expect("it says whom it waits for");
    for part in ["host-2", &format!("{}:6380", mesh.ip(1)), "taken", &me] {
        assert!(awaited.contains(part), "lacks {part:?}:\n{words}");
    }
    drop(taken);
    let created = mesh.json_at(0, &["cluster", "create", "--instances-per-host", "2"]);
    assert_eq!((&created["formed"], &created["fresh"]), (&Value::Bool(true), &Value::Bool(false)));
}

#[test]
fn a_missing_server_binary_is_named_with_its_remedy() {
    let mesh = MeshBuilder::new(3).config("server = \"/nowhere/redis-server\"\n").ready();
    refused_by(&mesh, "server", &["/nowhere/redis-server", "apt-get install redis-server"]);
    let create = ["cluster", "create", "--instances-per-host", "1", "--deadline", "5", "--force", "server"];
    let output = mesh.ctl_at(0, &create);
    assert_eq!(output.status.code(), Some(1));
    let words = String::from_utf8_lossy(&output.stdout);
    let (_, awaited) = words.split_once("Still awaited:").expect("it says whom it waits for");
    assert!(awaited.contains("/nowhere/redis-server"), "{words}");
    assert!(awaited.contains("redis.server"), "{words}");
}

#[test]
fn a_directory_of_another_cluster_is_left_alone() {
    let mesh = MeshBuilder::new(3).ready();
    let foreign = mesh.host_dir(2).join("redis_cluster/6379");
    std::fs::create_dir_all(&foreign).expect("make a directory");
    let nodes =
        "07c37dfeb235213a872192d90877d0cd55635b91 127.0.0.1:1@10001 myself,master - 0 0 1 connected\n";
    std::fs::write(foreign.join("nodes.conf"), nodes).expect("write nodes.conf");
    let remedy = format!("mv {0} {0}.before-redmesh", foreign.display());
    refused_by(&mesh, "data-dir", &["host-3", "nodes.conf of another cluster", &remedy]);
    let create = ["cluster", "create", "--instances-per-host", "1", "--deadline", "6", "--force", "data-dir"];
    let output = mesh.ctl_at(0, &create);
    assert_eq!(output.status.code(), Some(1));
    let words = String::from_utf8_lossy(&output.stdout);
    let (_, awaited) = words.split_once("Still awaited:").expect("it says whom it waits for");
    assert!(awaited.contains("nodes.conf") && awaited.contains("host-3"), "{words}");
    assert_eq!(std::fs::read_to_string(foreign.join("nodes.conf")).expect("still there"), nodes);
}
