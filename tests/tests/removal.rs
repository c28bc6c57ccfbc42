//! Removing a host for good: what speaks against it, that everybody refuses it from then on,
//! what it says itself, and how it joins again as another.

use std::time::Duration;

use redmesh_tests::{Mesh, MeshBuilder, until};
use serde_json::Value;

const SOON: Duration = Duration::from_secs(60);

/// Exit code of an agent whose host was removed.
const EXIT_REMOVED: i32 = 4;

fn named(host: usize) -> String {
    format!("host-{}", host + 1)
}

fn refused(mesh: &Mesh, at: usize, args: &[&str]) -> String {
    let output = mesh.ctl_at(at, args);
    assert_eq!(output.status.code(), Some(1), "{}", String::from_utf8_lossy(&output.stdout));
    String::from_utf8_lossy(&output.stderr).into_owned()
}

fn instances(mesh: &Mesh, at: usize) -> Option<Vec<Value>> {
    mesh.try_json_at(at, &["cluster", "check"])?["instances"].as_array().cloned()
}

fn member(mesh: &Mesh, name: &str) -> Option<Value> {
    let members = mesh.try_json_at(0, &["members"])?;
    members["members"].as_array()?.iter().find(|member| member["name"] == name).cloned()
}

/// Lets replicas elsewhere take over all that the servers of `host` hold, as `at` sees it.
fn fail_over_from(mesh: &Mesh, at: usize, host: usize) {
    let ip = mesh.ip(host);
    let on_host =
        |instance: &Value| instance["addr"].as_str().is_some_and(|addr| addr.starts_with(&format!("{ip}:")));
    until("replicas to take over", SOON, || {
        let all = instances(mesh, at)?;
        let held: Vec<_> = all.iter().filter(|it| on_host(it) && it["primary"] == true).collect();
        for primary in &held {
            let replica = all.iter().find(|it| it["primary_id"] == primary["node_id"])?;
            let (ip, port) = replica["addr"].as_str()?.rsplit_once(':')?;
            mesh.redis_cli_command()
                .args(["-h", ip, "-p", port, "CLUSTER", "FAILOVER"])
                .output()
                .expect("run redis-cli");
        }
        held.is_empty().then_some(())
    });
}

#[test]
fn a_removed_host_is_refused_by_all_for_good_and_joins_again_as_another() {
    let mut mesh = MeshBuilder::new(4).ready();
    mesh.ok_at(0, &["cluster", "create", "--instances-per-host", "2", "--replicas", "1"]);
    let coordinator = until("a coordinator", SOON, || mesh.coordinator_at(0));
    let mut others = (1..4).filter(|host| *host != coordinator);
    let (gone, forced) = (others.next().expect("a host"), others.next().expect("another"));

    let words = refused(&mesh, 0, &["members", "remove", "host-9"]);
    assert!(words.contains("host-1, host-2, host-3, host-4") && words.contains("--force unknown"), "{words}");
    let words = refused(&mesh, gone, &["members", "remove", &named(gone)]);
    assert!(words.contains("ask another one"), "{words}");
    let words = refused(&mesh, 0, &["members", "remove", &named(gone)]);
    assert!(
        words.contains("slots are covered by no other host") && words.contains("--force slots"),
        "{words}"
    );
    assert!(mesh.agent_runs(gone));

    fail_over_from(&mesh, 0, gone);
    let removed = mesh.json_at(0, &["members", "remove", &named(gone)]);
    assert_eq!(
        (&removed["fresh"], &removed["host"]["certificates"]),
        (&Value::Bool(true), &Value::Bool(true))
    );
    assert_eq!(mesh.await_agent_end(gone), Some(EXIT_REMOVED));
    let said = format!(
        "host {} ({}) was removed from the mesh",
        named(gone),
        removed["host"]["id"].as_str().expect("an id")
    );
    assert!(mesh.log(gone).contains(&said), "{}", mesh.log(gone));
    mesh.await_members(3);
    assert_eq!(member(&mesh, &named(gone)), None);
    let voters = || {
        let members = mesh.try_json_at(0, &["members"])?;
        Some(members["members"].as_array()?.iter().filter(|member| member["voter"] == true).count())
    };
    until("three voters", SOON, || (voters()? == 3).then_some(()));
    let again = mesh.json_at(0, &["members", "remove", &named(gone)]);
    assert_eq!((&again["fresh"], &again["host"]), (&Value::Bool(false), &removed["host"]));

    // Its servers, which still run, are forgotten by all the others, and the command said so; the
    // account of a run closes without the host.
    assert_eq!(removed["nodes"], 2);
    assert_eq!((&removed["forgetting"]["hosts"], &removed["forgetting"]["of"]), (&3.into(), &3.into()));
    assert_eq!(removed["forgetting"]["left"], Value::Array(Vec::new()));
    until("the cluster to be whole without it", SOON, || {
        let check = mesh.try_json_at(0, &["cluster", "check"])?;
        let known = |it: &Value| it["known_nodes"] == 6;
        let whole = check["errors"].as_array()?.is_empty() && check["agreed"] == true;
        (whole && check["instances"].as_array()?.iter().all(known)).then_some(())
    });
    mesh.ok_at(0, &["run", "start", "--workers", "10", "--writes", "2000"]);

    // It is refused by agents that have been restarted since, whatever it was told itself.
    mesh.kill_agent(0);
    mesh.start_agent(0);
    mesh.await_members(3);
    mesh.start_agent(gone);
    assert_eq!(mesh.await_agent_end(gone), Some(EXIT_REMOVED));
    // Another id alone does not help whoever has its key.
    std::fs::remove_dir_all(mesh.host_dir(gone).join("state")).expect("empty the state directory");
    mesh.start_agent(gone);
    assert_eq!(mesh.await_agent_end(gone), Some(EXIT_REMOVED));
    let pki = mesh.dir().join("pki");
    let pki = pki.to_str().expect("temp paths are UTF-8");
    let issue = ["pki", "issue", "--dir", pki, "--host", &named(gone), "--ip", &mesh.ip(gone), "--renew"];
    assert!(mesh.ctl(&issue).status.success());
    mesh.start_agent(gone);
    let new = until("it to join as another", SOON, || member(&mesh, &named(gone)));
    assert_ne!(new["id"], removed["host"]["id"]);

    // By name of the check, also one that still holds slots.
    let remove = ["members", "remove", &named(forced)];
    assert!(refused(&mesh, 0, &remove).contains("--force slots"));
    let said = mesh.ok_at(0, &[&remove[..], &["--force", "slots"]].concat());
    assert!(said.contains("is not forgotten yet, it holds") && said.contains("slots: move them"), "{said}");
    assert_eq!(mesh.await_agent_end(forced), Some(EXIT_REMOVED));
    mesh.await_members(3);
    assert_eq!(member(&mesh, &named(forced)), None);
}

#[test]
fn the_coordinator_hands_over_and_is_removed_and_its_servers_are_forgotten() {
    let mut mesh = MeshBuilder::new(4).ready();
    mesh.ok_at(0, &["cluster", "create", "--instances-per-host", "2", "--replicas", "1"]);
    let coordinator = until("a coordinator", SOON, || mesh.coordinator_at(0));
    let asked = (coordinator + 1) % 4;
    let words = refused(&mesh, coordinator, &["members", "remove", &named(coordinator)]);
    assert!(words.contains("ask another one"), "{words}");
    fail_over_from(&mesh, asked, coordinator);
    let removed = mesh.json_at(asked, &["members", "remove", &named(coordinator)]);
    assert_eq!(removed["fresh"], true);
    assert_eq!(removed["forgetting"]["left"], Value::Array(Vec::new()), "{removed}");
    assert_eq!(mesh.await_agent_end(coordinator), Some(EXIT_REMOVED));
    assert!(mesh.log(coordinator).contains("handing leadership over"), "{}", mesh.log(coordinator));
    let next = until("another coordinator", SOON, || mesh.coordinator_at(asked));
    assert_ne!(next, coordinator);
    // The cluster serves without it, and a minute's ban is not what keeps it forgotten.
    mesh.ok_at(asked, &["run", "start", "--workers", "10", "--writes", "2000"]);
    let check = mesh.json_at(asked, &["cluster", "check"]);
    let knows = |it: &Value| it["known_nodes"] == 6;
    assert!(check["instances"].as_array().expect("instances").iter().all(knows), "{check}");
}
