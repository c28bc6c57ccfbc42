//! Forming a cluster: whole, agreed by everybody, the same plan again; and what stands
//! in its way.

use std::net::TcpListener;
use std::time::Duration;

use redmesh_tests::{MeshBuilder, until};
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

/// One plain HTTP request, as Prometheus makes it.
fn http_get(ip: &str, path: &str) -> String {
    use std::io::{Read, Write};
    let mut stream = std::net::TcpStream::connect((ip, 7380)).expect("the HTTP port is open");
    stream.set_read_timeout(Some(Duration::from_secs(10))).expect("set a timeout");
    write!(stream, "GET {path} HTTP/1.1\r\nHost: {ip}\r\nConnection: close\r\n\r\n").expect("ask");
    let mut answer = String::new();
    stream.read_to_string(&mut answer).expect("read the answer");
    answer
}

fn metrics_are_served(ip: &str) {
    assert!(http_get(ip, "/healthz").starts_with("HTTP/1.1 200"));
    assert!(http_get(ip, "/readyz").starts_with("HTTP/1.1 200"));
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
        let text = http_get(ip, "/metrics");
        expected.iter().all(|line| text.contains(line)).then_some(())
    });
}

#[test]
fn a_taken_port_is_named_and_the_create_continues_once_it_is_free() {
    let mesh = MeshBuilder::new(3).ready();
    let taken = TcpListener::bind((mesh.ip(1).as_str(), 6380)).expect("take a port");
    let output = mesh.ctl_at(0, &["cluster", "create", "--instances-per-host", "2", "--deadline", "8"]);
    assert_eq!(output.status.code(), Some(1));
    let words = String::from_utf8_lossy(&output.stdout);
    let me = format!("pid {}", std::process::id());
    for part in ["host-2", &format!("{}:6380", mesh.ip(1)), "taken", &me] {
        assert!(words.contains(part), "lacks {part:?}:\n{words}");
    }
    drop(taken);
    let created = mesh.json_at(0, &["cluster", "create", "--instances-per-host", "2"]);
    assert_eq!((&created["formed"], &created["fresh"]), (&Value::Bool(true), &Value::Bool(false)));
}

#[test]
fn a_missing_server_binary_is_named_with_its_remedy() {
    let mesh = MeshBuilder::new(3).config("server = \"/nowhere/redis-server\"\n").ready();
    let output = mesh.ctl_at(0, &["cluster", "create", "--instances-per-host", "1", "--deadline", "5"]);
    assert_eq!(output.status.code(), Some(1));
    let words = String::from_utf8_lossy(&output.stdout);
    assert!(words.contains("/nowhere/redis-server"), "{words}");
    assert!(words.contains("redis.server"), "{words}");
}

#[test]
fn a_directory_of_another_cluster_is_left_alone() {
    let mesh = MeshBuilder::new(3).ready();
    let foreign = mesh.host_dir(2).join("redis_cluster/6379");
    std::fs::create_dir_all(&foreign).expect("make a directory");
    let nodes =
        "07c37dfeb235213a872192d90877d0cd55635b91 127.0.0.1:1@10001 myself,master - 0 0 1 connected\n";
    std::fs::write(foreign.join("nodes.conf"), nodes).expect("write nodes.conf");
    let output = mesh.ctl_at(0, &["cluster", "create", "--instances-per-host", "1", "--deadline", "6"]);
    assert_eq!(output.status.code(), Some(1));
    let words = String::from_utf8_lossy(&output.stdout);
    assert!(words.contains("nodes.conf") && words.contains("host-3"), "{words}");
    assert_eq!(std::fs::read_to_string(foreign.join("nodes.conf")).expect("still there"), nodes);
}

#[test]
fn the_coordinator_is_killed_during_create_and_another_finishes() {
    let mut mesh = MeshBuilder::new(3).servers_outlive_agents().ready();
    let coordinator = mesh.coordinator_at(0).expect("a coordinator");
    let other = (coordinator + 1) % 3;
    // Its instances wait for a port, so that the plan is surely unfinished when it dies.
    let taken = TcpListener::bind((mesh.ip(other).as_str(), 6379)).expect("take a port");
    mesh.ok_at(other, &["cluster", "create", "--instances-per-host", "4", "--replicas", "1", "--no-wait"]);
    until("some servers to be held", Duration::from_secs(30), || (mesh.servers().len() >= 6).then_some(()));
    mesh.kill_agent(coordinator);
    until("another coordinator", Duration::from_secs(20), || {
        mesh.coordinator_at(other).filter(|&new| new != coordinator)
    });
    drop(taken);
    mesh.start_agent(coordinator);
    let created = mesh.json_at(other, CREATE);
    assert_eq!((&created["formed"], &created["fresh"]), (&Value::Bool(true), &Value::Bool(false)));
    assert_eq!(mesh.servers().len(), 12, "no server was started twice");
}
