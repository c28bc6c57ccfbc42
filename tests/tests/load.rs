//! What a run is asked to be: workloads, schedules, takeovers, reading back; and that its
//! account closes when everything goes wrong at once.

use std::process::Child;
use std::time::Duration;

use redmesh_tests::run::{assert_accounted, count, formed};
use redmesh_tests::{Mesh, process, until};
use rustix::process::Signal;
use serde_json::Value;

const LONG: Duration = Duration::from_secs(120);

fn until_acked(mesh: &Mesh, host: usize, acked: u64) {
    until(&format!("{acked} acked operations"), LONG, || {
        let run = mesh.try_json_at(host, &["run", "show"])?;
        (run["run"]["acked"].as_u64()? >= acked).then_some(())
    });
}

fn until_state(mesh: &Mesh, host: usize, state: &str) -> Value {
    until(&format!("the run to be {state}"), LONG, || {
        // A report whose ledger is not whole is exit code 1, with the report all the same.
        let output = mesh.ctl_at(host, &["-o", "json", "run", "show"]);
        let run: Value = serde_json::from_slice(&output.stdout).ok()?;
        (run["run"]["state"] == state).then_some(run)
    })
}

/// redis-cli as a process of its own: resharding takes as long as it takes.
fn reshard(mesh: &Mesh, from: &str, to: &str, slots: &str) -> Child {
    let entry = format!("{}:6379", mesh.ip(0));
    mesh.redis_cli_command()
        .args(["--cluster", "reshard", &entry, "--cluster-from", from, "--cluster-to", to])
        .args(["--cluster-slots", slots, "--cluster-yes"])
        .stdin(std::process::Stdio::null())
        .stdout(std::process::Stdio::piped())
        .stderr(std::process::Stdio::piped())
        .spawn()
        .expect("run redis-cli")
}

#[test]
fn a_server_killed_an_agent_killed_and_slots_migrated_and_the_ledger_closes() {
    let mut mesh = formed(3, "2");
    let coordinator = mesh.coordinator_at(0).expect("a coordinator");
    let killed_agent = (coordinator + 1) % 3;
    mesh.ok_at(
        coordinator,
        &["run", "start", "--workers", "60", "--writes", "1200000", "--rate", "40000", "--no-wait"],
    );
    until_acked(&mesh, coordinator, 20_000);

    let id = |host: usize, port| mesh.redis_cli(host, port, &["CLUSTER", "MYID"]);
    let (from, to) = (id(coordinator, 6379), id(killed_agent, 6379));
    // Again until some write was redirected: twenty slots may move between two writes to them,
    // and the kill below makes every thread look up the slots anew.
    until("a write to be redirected", LONG, || {
        let moving = reshard(&mesh, &from, &to, "20");
        let moved = moving.wait_with_output().expect("redis-cli ends");
        assert!(moved.status.success(), "{}", String::from_utf8_lossy(&moved.stdout));
        let run = mesh.try_json_at(coordinator, &["run", "show"])?;
        (count(&run["run"]["moved"]) > 0).then_some(())
    });

    let victim = mesh.servers_of(coordinator).pop().expect("a server");
    process::send(&victim, Signal::KILL);
    mesh.kill_agent(killed_agent);
    until("the killed server's successor", LONG, || (mesh.servers_of(coordinator).len() == 2).then_some(()));
    mesh.start_agent(killed_agent);

    let run = until_state(&mesh, coordinator, "completed");
    assert_accounted(&run);
    assert_eq!(count(&run["run"]["issued"]), 1_200_000, "{run}");
    assert!(count(&run["run"]["moved"]) > 0, "slots have moved: {run}");
    let ledger = &run["ledger"];
    let lost = count(&ledger["lost"]);
    assert!(lost > 0 && ledger["ok"] == false, "what a killed server held is lost: {run}");
    let at = ledger["lost_at"].as_array().expect("where");
    assert!(!at.is_empty(), "lost writes are named by instance: {run}");
    let named: u64 = at.iter().map(|entry| count(&entry["writes"])).sum();
    assert!(named <= lost && named > 0, "{run}");

    // Reading all of it back finds the same.
    let output = mesh.ctl_at(coordinator, &["-o", "json", "run", "verify", "--all"]);
    assert_eq!(output.status.code(), Some(1), "{}", String::from_utf8_lossy(&output.stderr));
    let found: Value = serde_json::from_slice(&output.stdout).expect("JSON");
    let findings = &found["detail"]["findings"];
    assert_eq!(count(&findings["wrong"]), 0, "{found}");
    let arrived = count(&findings["arrived"]);
    assert_eq!(count(&findings["lost"]), lost + arrived, "{found}\n{run}");
}

#[test]
fn a_dead_hosts_rest_is_taken_over_and_its_return_makes_the_account_exact() {
    let mut mesh = formed(3, "1");
    let coordinator = mesh.coordinator_at(0).expect("a coordinator");
    let dead = (coordinator + 1) % 3;
    mesh.ok_at(
        coordinator,
        &["run", "start", "--workers", "30", "--writes", "900000", "--rate", "15000", "--no-wait"],
    );
    until_acked(&mesh, coordinator, 10_000);
    mesh.kill_agent(dead);
    let taken = until("others to take over", LONG, || {
        let run = mesh.try_json_at(coordinator, &["run", "show"])?;
        run["takeovers"].as_array().is_some_and(|all| !all.is_empty()).then_some(run)
    });
    assert_eq!(taken["takeovers"][0]["from"], format!("host-{}", dead + 1), "{taken}");
    mesh.start_agent(dead);
    let run = until_state(&mesh, coordinator, "completed");
    assert_accounted(&run);
    // What the dead host issued after its last word comes on top; nothing is missing.
    assert!(count(&run["run"]["issued"]) >= 900_000, "{run}");
    assert_eq!(run["ledger"]["ok"], true, "{run}");
    let found = mesh.json_at(coordinator, &["run", "verify", "--all"]);
    assert_eq!(
        (count(&found["detail"]["findings"]["lost"]), count(&found["detail"]["findings"]["wrong"])),
        (0, 0),
        "{found}"
    );
}

#[test]
fn workloads_are_data_and_mistakes_are_named_by_line() {
    let mesh = formed(2, "2");
    for workload in ["cache", "session", "multikey"] {
        let run = mesh.json_at(
            0,
            &[
                "run",
                "start",
                "--workload",
                workload,
                "--workers",
                "40",
                "--writes",
                "20000",
                "--warm-up",
                "1",
            ],
        );
        assert_accounted(&run);
        assert_eq!(
            (count(&run["run"]["acked"]), &run["ledger"]["ok"]),
            (20_000, &Value::Bool(true)),
            "{run}"
        );
        assert_eq!(count(&run["ledger"]["calls"]), 20_000, "{run}");
    }
    let file = mesh.dir().join("mine.toml");
    std::fs::write(
        &file,
        "name = \"mine\"\n[keys]\nkind = \"pool\"\ncount = 10\npick = \"uniform\"\n[mix]\nst = 1\n",
    )
    .expect("writes");
    let refused =
        mesh.ctl_at(0, &["run", "start", "--writes", "1", "--workload", file.to_str().expect("UTF-8")]);
    let words = String::from_utf8_lossy(&refused.stderr).into_owned();
    assert!(
        !refused.status.success() && words.contains("mine.toml:7:") && words.contains("mix.st"),
        "{words}"
    );
}

#[test]
fn an_open_loop_keeps_its_rate_and_tells_both_latencies() {
    let mesh = formed(2, "2");
    let run = mesh.json_at(
        0,
        &["run", "start", "--workers", "100", "--rate", "2000", "--writes", "8000", "--pipeline", "2"],
    );
    assert_accounted(&run);
    let figures = &run["run"];
    assert_eq!(count(&figures["acked"]), 8_000, "{run}");
    // 8000 are due over 4 seconds, and none begins before it is due.
    assert!(figures["seconds"].as_f64().expect("seconds") >= 3.9, "{run}");
    assert!(count(&figures["intended_us"]["p50"]) > 0 && count(&figures["latency_us"]["p50"]) > 0, "{run}");
    assert_eq!(run["ledger"]["ok"], true, "{run}");
}

#[test]
fn what_is_lost_is_found_by_reading_back() {
    let mesh = formed(2, "2");
    mesh.ok_at(0, &["run", "start", "--workers", "20", "--writes", "5000"]);
    let whole = mesh.json_at(1, &["run", "verify", "--all"]);
    assert_eq!(
        (count(&whole["detail"]["findings"]["right"]), count(&whole["detail"]["findings"]["lost"])),
        (5_000, 0),
        "{whole}"
    );
    let key = mesh.redis_cli(0, 6379, &["RANDOMKEY"]);
    assert_eq!(mesh.redis_cli(0, 6379, &["DEL", &key]), "1");
    let other = mesh.redis_cli(0, 6379, &["RANDOMKEY"]);
    assert_eq!(mesh.redis_cli(0, 6379, &["SET", &other, "something else"]), "OK");
    let runs = mesh.json_at(0, &["run", "list"]);
    let first = runs["runs"].as_array().and_then(|runs| {
        runs.iter()
            .find(|run| run["run"]["workload"] == "uuid-counter")
            .and_then(|run| run["run"]["id"].as_str())
    });
    let output = mesh.ctl_at(1, &["-o", "json", "run", "verify", first.expect("the run"), "--all"]);
    assert_eq!(output.status.code(), Some(1));
    let found: Value = serde_json::from_slice(&output.stdout).expect("JSON");
    let verify = &found["detail"]["findings"];
    assert_eq!(
        (count(&verify["right"]), count(&verify["lost"]), count(&verify["wrong"])),
        (4_998, 1, 1),
        "{found}"
    );
    assert!(verify["examples"].to_string().contains(&key), "{found}");
}

#[test]
fn a_host_is_given_a_share_of_a_run_that_is_going_on() {
    let mesh = formed(3, "1");
    mesh.ok_at(
        0,
        &["run", "start", "--workers", "10", "--load-hosts", "1", "--seconds", "3600", "--no-wait"],
    );
    until_acked(&mesh, 0, 1000);
    let before = mesh.json_at(0, &["run", "show"]);
    assert_eq!(before["hosts"].as_array().map(Vec::len), Some(1), "{before}");
    mesh.ok_at(1, &["run", "share", "--host", "host-3", "--workers", "5"]);
    until("the third host to write", LONG, || {
        let run = mesh.try_json_at(0, &["run", "show"])?;
        let hosts = run["hosts"].as_array()?;
        let third = hosts.iter().find(|host| host["host"] == "host-3")?;
        (third["acked"].as_u64()? > 100).then_some(())
    });
    mesh.ok_at(2, &["run", "stop"]);
    let run = until_state(&mesh, 0, "stopped");
    assert_accounted(&run);
    assert_eq!((count(&run["run"]["workers"]), &run["ledger"]["ok"]), (15, &Value::Bool(true)), "{run}");
}
