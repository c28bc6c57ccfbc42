//! Load runs: the account closes to the last write, whoever is asked and whoever dies.

use std::time::Duration;

use redmesh_tests::run::{assert_accounted, count, formed};
use redmesh_tests::{Mesh, until};
use serde_json::Value;

const LONG: Duration = Duration::from_secs(90);

/// Sum over all primaries, asked by redis-cli and nobody of ours.
fn keys_by_redis_cli(mesh: &Mesh, hosts: usize, per_host: u16) -> u64 {
    (0..hosts)
        .flat_map(|host| (0..per_host).map(move |i| (host, 6379 + i)))
        .map(|(host, port)| {
            mesh.redis_cli(host, port, &["DBSIZE"]).parse::<u64>().expect("DBSIZE is a number")
        })
        .sum()
}

fn assert_closed(run: &Value) {
    assert_accounted(run);
    let figures = &run["run"];
    let hosts = run["hosts"].as_array().expect("hosts");
    for field in ["issued", "acked", "failed", "unknown", "workers"] {
        let sum: u64 = hosts.iter().map(|host| count(&host[field])).sum();
        assert_eq!(sum, count(&figures[field]), "{field} over the hosts: {run}");
    }
}

#[test]
fn a_run_closes_to_the_last_write_and_every_agent_knows_the_total() {
    let mesh = formed(3, "4");
    let run = mesh.json_at(1, &["run", "start", "--workers", "100", "--writes", "50021"]);
    assert_closed(&run);
    let figures = &run["run"];
    assert_eq!(figures["state"], "completed");
    for (field, expected) in [("issued", 50_021), ("acked", 50_021), ("failed", 0), ("unknown", 0)] {
        assert_eq!(count(&figures[field]), expected, "{field}: {run}");
    }
    let ledger = &run["ledger"];
    assert_eq!((count(&ledger["dbsize"]), count(&ledger["calls"])), (50_021, 50_021), "{run}");
    assert_eq!((&ledger["lost"], &ledger["ok"]), (&Value::from(0), &Value::Bool(true)), "{run}");
    assert!(count(&figures["latency_us"]["p50"]) > 0, "{run}");
    assert_eq!(keys_by_redis_cli(&mesh, 3, 4), 50_021);

    let id = figures["id"].as_str().expect("an id");
    for host in 0..3 {
        let shown = mesh.json_at(host, &["run", "show", &id[..8]]);
        assert_eq!(shown["run"]["acked"], figures["acked"], "asked of host {host}");
        let listed = mesh.json_at(host, &["run", "list"]);
        assert_eq!(listed["runs"].as_array().map(Vec::len), Some(1));
    }
    // What the hosts kept beside the counts adds up to them, also on file after the run.
    let detail = &mesh.json_at(0, &["run", "show", &id[..8]])["detail"];
    let over_time = detail["timeline"]["acked"].as_array().expect("a timeline");
    assert_eq!(over_time.iter().map(count).sum::<u64>(), 50_021, "{detail}");
    assert!(count(&detail["worker_writes"]["min"]) > 0, "no worker starved: {detail}");
    assert_eq!(detail["missing"], Value::Array(vec![]), "{detail}");
    let exported = mesh.json_at(1, &["run", "export", &id[..8], "--out", "run.hlog"]);
    assert_eq!(exported["histograms"], 3);
    let log = std::fs::read_to_string(mesh.dir().join("run.hlog")).expect("the log is there");
    assert!(log.contains("#[StartTime: ") && log.contains("Tag=host-2"), "{log}");

    // Fewer writes than workers: some shares have nothing to do, and the run ends.
    let few = mesh.json_at(2, &["run", "start", "--workers", "30", "--writes", "2"]);
    assert_eq!((count(&few["run"]["acked"]), &few["ledger"]["ok"]), (2, &Value::Bool(true)), "{few}");

    // Keys and values have the documented shape.
    let key = mesh.redis_cli(0, 6379, &["RANDOMKEY"]);
    let (uuid, number) = key.rsplit_once('-').expect("<uuid>-<n>");
    assert_eq!(uuid.len(), 36, "{key}");
    number.parse::<u64>().expect("a counter");
    assert_eq!(mesh.redis_cli(0, 6379, &["GET", &key]), format!("{key}{key}"));
}

#[test]
fn a_run_is_counted_live_by_a_host_that_does_not_coordinate_and_stopped_on_request() {
    let mesh = formed(3, "1");
    let coordinator = mesh.coordinator_at(0).expect("a coordinator");
    let other = (coordinator + 1) % 3;
    mesh.ok_at(other, &["run", "start", "--workers", "30", "--seconds", "3600", "--no-wait"]);
    let early = until("a live count", LONG, || {
        let run = mesh.try_json_at(other, &["run", "show"])?;
        (run["run"]["acked"].as_u64()? > 1000).then_some(run)
    });
    assert_eq!(early["run"]["state"], "running");
    assert_eq!(early["hosts"].as_array().map(Vec::len), Some(3));
    let second = mesh.ctl_at(other, &["run", "start", "--seconds", "1"]);
    assert_eq!(second.status.code(), Some(1), "one run at a time");
    mesh.ok_at(other, &["run", "stop"]);
    let closed = until("the run to close", LONG, || {
        let run = mesh.try_json_at(other, &["run", "show"])?;
        (run["run"]["state"] == "stopped").then_some(run)
    });
    assert_closed(&closed);
    assert_eq!(closed["ledger"]["ok"], true, "{closed}");
    assert_eq!(count(&closed["ledger"]["dbsize"]), count(&closed["run"]["acked"]), "{closed}");
    assert!(count(&closed["run"]["acked"]) >= count(&early["run"]["acked"]), "counters only grow");

    // Most hosts have nothing to write, which is an account to close too.
    let single = mesh.json_at(other, &["run", "start", "--workers", "9", "--writes", "1"]);
    assert_eq!(
        (count(&single["run"]["acked"]), &single["ledger"]["ok"]),
        (1, &Value::Bool(true)),
        "{single}"
    );
}

#[test]
fn the_coordinator_is_killed_during_a_run_and_the_account_still_closes() {
    let mut mesh = formed(3, "2");
    let coordinator = mesh.coordinator_at(0).expect("a coordinator");
    let other = (coordinator + 1) % 3;
    mesh.ok_at(other, &["run", "start", "--workers", "60", "--writes", "600000", "--no-wait"]);
    until("the run to be under way", LONG, || {
        let run = mesh.try_json_at(other, &["run", "show"])?;
        (run["run"]["acked"].as_u64()? > 3000).then_some(())
    });
    let pids = mesh.servers();
    mesh.kill_agent(coordinator);
    until("another coordinator", Duration::from_secs(20), || {
        mesh.coordinator_at(other).filter(|&new| new != coordinator)
    });
    mesh.start_agent(coordinator);
    let run = until("the run to close", LONG, || {
        let run = mesh.try_json_at(other, &["run", "show"])?;
        (run["run"]["state"] == "completed").then_some(run)
    });
    assert_closed(&run);
    assert_eq!(count(&run["run"]["issued"]), 600_000, "the quota is spent exactly: {run}");
    assert_eq!(run["ledger"]["ok"], true, "{run}");
    assert_eq!(mesh.servers(), pids, "the servers did not notice");
}
