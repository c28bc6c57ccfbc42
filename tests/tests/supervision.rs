//! redis-servers and their agent: each may die without the other.

use std::time::Duration;

use redmesh_tests::process::send;
use redmesh_tests::{Mesh, MeshBuilder, until};
use rustix::process::Signal;

const SOON: Duration = Duration::from_secs(30);

fn run_ids(mesh: &Mesh, host: usize, per_host: u16) -> Vec<String> {
    (0..per_host)
        .map(|i| {
            let info = mesh.redis_cli(host, 6379 + i, &["INFO", "server"]);
            let line = info.lines().find_map(|line| line.strip_prefix("run_id:")).expect("a run_id");
            line.trim().to_owned()
        })
        .collect()
}

fn await_whole(mesh: &Mesh, host: usize, members: u64) {
    until("the cluster to be whole", SOON, || {
        let up: u64 = mesh.try_json_at(host, &["members"])?["members"]
            .as_array()?
            .iter()
            .map(|member| member["instances_up"].as_u64().unwrap_or(0))
            .sum();
        let check = mesh.try_json_at(host, &["cluster", "check"])?;
        (up == members && check["errors"].as_array()?.is_empty()).then_some(())
    });
}

#[test]
fn servers_keep_their_pids_while_their_agent_is_killed_and_comes_back() {
    let mut mesh = MeshBuilder::new(3).servers_outlive_agents().ready();
    mesh.ok_at(0, &["cluster", "create", "--instances-per-host", "2"]);
    let (pids, ids) = (mesh.servers(), run_ids(&mesh, 1, 2));
    mesh.kill_agent(1);
    until("the others to notice", SOON, || {
        let members = mesh.try_json_at(0, &["members"])?;
        members["members"]
            .as_array()?
            .iter()
            .any(|m| m["name"] == "host-2" && m["state"] == "dead")
            .then_some(())
    });
    assert_eq!(mesh.servers(), pids, "servers outlive their agent");
    mesh.start_agent(1);
    await_whole(&mesh, 0, 6);
    assert_eq!(mesh.servers(), pids, "adopted, not started again");
    assert_eq!(run_ids(&mesh, 1, 2), ids);
}

#[test]
fn a_killed_server_comes_back_under_the_same_node_id() {
    let mesh = MeshBuilder::new(3).ready();
    mesh.ok_at(0, &["cluster", "create", "--instances-per-host", "1"]);
    let before = mesh.redis_cli(2, 6379, &["CLUSTER", "MYID"]);
    let victim = mesh.servers_of(2).pop().expect("a server");
    send(&victim, Signal::KILL);
    until("a new server in its place", SOON, || {
        mesh.servers_of(2).pop().filter(|server| server.pid != victim.pid)
    });
    await_whole(&mesh, 0, 3);
    assert_eq!(mesh.redis_cli(2, 6379, &["CLUSTER", "MYID"]), before);
}

#[test]
fn a_killed_primary_stays_away_until_its_replica_has_its_keys() {
    let mesh = MeshBuilder::new(3).ready();
    let create =
        ["cluster", "create", "--instances-per-host", "2", "--replicas", "1", "--node-timeout", "1000"];
    mesh.ok_at(0, &create);
    mesh.ok_at(0, &["run", "start", "--workers", "10", "--writes", "3000"]);
    until("every replica to be in sync", SOON, || {
        let synced = |host, port| {
            let info = mesh.redis_cli(host, port, &["INFO", "replication"]);
            info.contains("role:master") || info.contains("master_link_status:up")
        };
        (0..3).all(|host| synced(host, 6379) && synced(host, 6380)).then_some(())
    });
    let keys = || {
        let role = |host, port| mesh.redis_cli(host, port, &["ROLE"]).starts_with("master");
        let size = |host, port| mesh.redis_cli(host, port, &["DBSIZE"]).parse::<u64>().unwrap_or(0);
        (0..3)
            .flat_map(|host| [(host, 6379), (host, 6380)])
            .filter(|&(host, port)| role(host, port))
            .map(|(host, port)| size(host, port))
            .sum::<u64>()
    };
    assert_eq!(keys(), 3000);
    let primary = |port| mesh.redis_cli(2, port, &["ROLE"]).starts_with("master");
    let port = [6379, 6380].into_iter().find(|&port| primary(port)).expect("a primary on each host");
    let victim = mesh
        .servers_of(2)
        .into_iter()
        .find(|server| server.dir.ends_with(port.to_string()))
        .expect("its process");
    send(&victim, Signal::KILL);
    until("it to come back as a replica", SOON, || {
        mesh.redis_cli(2, port, &["ROLE"]).starts_with("slave").then_some(())
    });
    await_whole(&mesh, 0, 6);
    assert_eq!(keys(), 3000, "no key is lost");
}

#[test]
fn a_directive_that_redis_refuses_ends_in_its_own_words() {
    let mesh = MeshBuilder::new(3).config("[redis.directives]\nmaxmemory-policy = \"whatever\"\n").ready();
    let output = mesh.ctl_at(0, &["cluster", "create", "--instances-per-host", "1", "--deadline", "6"]);
    assert_eq!(output.status.code(), Some(1));
    let words = String::from_utf8_lossy(&output.stdout);
    assert!(words.contains("maxmemory-policy"), "{words}");
}
