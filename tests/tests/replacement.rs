//! A host that lost its state, or all of its disk, comes back as another one and is given what
//! the plan had for it.

use std::collections::BTreeSet;
use std::time::Duration;

use redmesh_tests::{Mesh, MeshBuilder, process, until};
use rustix::process::Signal;
use serde_json::Value;

const SOON: Duration = Duration::from_secs(60);

fn named(host: usize) -> String {
    format!("host-{}", host + 1)
}

fn pids(mesh: &Mesh, host: usize) -> BTreeSet<i32> {
    mesh.servers_of(host).iter().map(|server| server.pid).collect()
}

/// A host that neither coordinates nor is the one that is asked.
fn any_other(mesh: &Mesh) -> usize {
    let coordinator = until("a coordinator", SOON, || mesh.coordinator_at(0));
    (1..mesh.hosts()).find(|host| *host != coordinator).expect("a third host")
}

fn primaries(mesh: &Mesh) -> Option<Vec<Value>> {
    // It fails while a host is away, and says all the same what it saw.
    let output = mesh.ctl_at(0, &["-o", "json", "cluster", "check"]);
    let check: Value = serde_json::from_slice(&output.stdout).ok()?;
    Some(check["instances"].as_array()?.iter().filter(|it| it["primary"] == true).cloned().collect())
}

fn slots(primary: &Value) -> u64 {
    let ranges = primary["slots"].as_array().into_iter().flatten();
    let bound = |range: &Value, end: &str| range[end].as_u64().expect("a slot");
    ranges.map(|range| bound(range, "last") + 1 - bound(range, "first")).sum()
}

/// Of all primaries that hold slots.
fn keys(mesh: &Mesh) -> Option<u64> {
    let all = primaries(mesh)?;
    all.iter().filter(|it| slots(it) > 0).map(|it| it["keys"].as_u64()).sum()
}

/// Has the host's successor take its place, as soon as the mesh knows who is gone and who came.
fn replace(mesh: &Mesh, lost: usize) -> Value {
    until("the successor to take the place", SOON, || {
        mesh.try_json_at(0, &["members", "replace", &named(lost)])
    })
}

#[test]
fn servers_whose_host_lost_its_state_are_given_to_its_new_id() {
    let mut mesh = MeshBuilder::new(3).servers_outlive_agents().ready();
    mesh.ok_at(0, &["cluster", "create", "--instances-per-host", "2"]);
    let lost = any_other(&mesh);
    let words = mesh.ctl_at(0, &["members", "replace", &named(lost)]);
    let words = String::from_utf8_lossy(&words.stderr).into_owned();
    assert!(words.contains("is alive, and bears its instances itself"), "{words}");
    let before = pids(&mesh, lost);
    assert_eq!(before.len(), 2);

    mesh.kill_agent(lost);
    std::fs::remove_dir_all(mesh.host_dir(lost).join("state")).expect("lose the state");
    mesh.start_agent(lost);
    let replaced = replace(&mesh, lost);
    assert_eq!((&replaced["fresh"], &replaced["instances"]), (&Value::Bool(true), &2.into()));
    let again = mesh.json_at(0, &["members", "replace", &named(lost)]);
    assert_eq!((&again["fresh"], &again["to"]), (&Value::Bool(false), &replaced["to"]));
    mesh.await_whole(0, 6);
    assert_eq!(pids(&mesh, lost), before, "no server was started anew");

    // They are supervised again.
    let victim = mesh.servers_of(lost).remove(0);
    process::send(&victim, Signal::KILL);
    until("the killed server to be back", SOON, || {
        let now = pids(&mesh, lost);
        (now.len() == 2 && !now.contains(&victim.pid)).then_some(())
    });
    mesh.await_whole(0, 6);
    mesh.ok_at(0, &["run", "start", "--workers", "10", "--writes", "2000"]);
}

#[test]
fn a_host_with_a_new_disk_gets_its_servers_empty_and_their_replicas_fill_them() {
    let mut mesh = MeshBuilder::new(4).ready();
    mesh.ok_at(0, &["cluster", "create", "--instances-per-host", "2", "--replicas", "1"]);
    mesh.ok_at(0, &["run", "start", "--workers", "10", "--writes", "2000"]);
    let keys = until("the keys", SOON, || keys(&mesh));
    assert!(keys > 0);
    let lost = any_other(&mesh);
    mesh.end_agent(lost);
    assert_eq!(pids(&mesh, lost).len(), 0);
    for dir in ["state", "redis_cluster"] {
        std::fs::remove_dir_all(mesh.host_dir(lost).join(dir)).expect("lose the disk");
    }
    let ip = format!("{}:", mesh.ip(lost));
    let elsewhere = |it: &&Value| it["addr"].as_str().is_some_and(|addr| !addr.starts_with(&ip));
    until("replicas elsewhere to take over", SOON, || {
        let all = primaries(&mesh)?;
        (all.iter().filter(elsewhere).map(slots).sum::<u64>() == 16_384).then_some(())
    });
    mesh.start_agent(lost);
    replace(&mesh, lost);
    mesh.await_whole(0, 8);
    assert_eq!(pids(&mesh, lost).len(), 2);
    assert_eq!(until("the keys", SOON, || self::keys(&mesh)), keys, "replicas had all of them");
}
