use redmesh_api::ids::RunId;
use redmesh_api::run::{Run, RunResult, RunSpec, Share, Tally};
use serde_json::json;

use super::*;

/// A completed run of two hosts.
pub fn done() -> RunView {
    let mut view = running();
    view.run.stage = RunStage::Done;
    view.waiting_for = None;
    view.run.result = Some(RunResult {
        outcome: Outcome::Completed,
        tallies: vec![tally(1, 600_000), tally(2, 400_000)],
        latency: LatencySummary {
            count: 1_000_000,
            p50_us: 3_050,
            p90_us: 5_000,
            p99_us: 14_400,
            p999_us: 30_000,
            max_us: 45_678,
        },
        ledger: Ledger {
            dbsize: 1_000_000,
            cmdstat_set_calls: 1_000_000,
            lost: 0,
            ok: true,
            notes: Vec::new(),
        },
        after: Vec::new(),
        server_cpu_us: 5_800_000,
        ended_unix_ms: 0,
    });
    view
}

fn tally(host: u32, writes: u64) -> Tally {
    let counts = Counts {
        issued: writes,
        acked: writes,
        moved: 3,
        cpu_us: 160_000,
        active_us: 2_000_000,
        ..Counts::default()
    };
    Tally { host: HostId(host), epoch: 1, closed: true, counts }
}

/// A run of two hosts in its midst.
pub fn running() -> RunView {
    let share =
        |host, first_worker| Share { host: HostId(host), workers: 1000, first_worker, writes: Some(500_000) };
    let mut half = tally(1, 1_000);
    half.counts.issued = 2_000;
    RunView {
        run: Run {
            id: RunId("3f2a9c1d-0000-4000-8000-000000000000".parse().unwrap()),
            spec: RunSpec {
                workload: "uuid-counter".to_owned(),
                workers: 2000,
                load_hosts: None,
                until: RunUntil::Writes(1_000_000),
            },
            shares: vec![share(1, 0), share(2, 1000)],
            stage: RunStage::Running,
            created_unix_ms: 0,
            before: Vec::new(),
            result: None,
        },
        tallies: vec![half],
        writes_per_s: 1234.5,
        host_writes_per_s: vec![1234.5, 0.0],
        latency: None,
        waiting_for: Some("host-2, silent for 5 s".to_owned()),
    }
}

fn names() -> Names {
    Names([(HostId(1), "host-1".to_owned()), (HostId(2), "host-2".to_owned())].into())
}

#[test]
fn a_closed_run_as_text() {
    assert_eq!(
        RunReport::of(&done(), &names()).text(),
        "\
run 3f2a9c1d  uuid-counter, 2,000 workers on 2 hosts, 1,000,000 writes: completed
writes      1,000,000 issued = 1,000,000 acked + 0 failed + 0 unknown
            besides 6 moved, 0 asked, 0 retried (not writes)
rate        500,000 writes/s over 2.0 s
latency     p50 3.0 ms  p90 5.0 ms  p99 14.4 ms  p99.9 30.0 ms  max 45.7 ms  (service time, closed loop)
cpu         client 0.3 s (0.32 µs a write), servers 5.8 s (5.80 µs a write)
ledger      OK: 1,000,000 acked, DBSIZE 1,000,000, cmdstat_set 1,000,000, 0 lost

HOST    WORKERS   ISSUED    ACKED  FAILED  UNKNOWN  WRITES/S
host-1    1,000  600,000  600,000       0        0   300,000
host-2    1,000  400,000  400,000       0        0   200,000
"
    );
}

#[test]
fn a_run_that_goes_on_as_text() {
    assert_eq!(
        RunReport::of(&running(), &Names::default()).text(),
        "\
run 3f2a9c1d  uuid-counter, 2,000 workers on 2 hosts, 1,000,000 writes: running
writes      2,000 issued = 1,000 acked + 0 failed + 0 unknown + 1,000 in flight
            besides 3 moved, 0 asked, 0 retried (not writes)
rate        1,235 writes/s over 2.0 s
latency     not known
cpu         client 0.2 s (160.00 µs a write)
ledger      open until the run is done
waiting for host-2, silent for 5 s

HOST      WORKERS  ISSUED  ACKED  FAILED  UNKNOWN  WRITES/S
00000001    1,000   2,000  1,000       0        0     1,235
00000002    1,000       0      0       0        0         0
"
    );
}

#[test]
fn a_broken_ledger_says_so_and_is_not_ok() {
    let mut view = done();
    let result = view.run.result.as_mut().unwrap();
    result.ledger.ok = false;
    result.ledger.lost = 7;
    result.ledger.dbsize = -3;
    result.ledger.notes = vec!["127.0.0.1:6379 restarted".to_owned()];
    result.outcome = Outcome::Incomplete("host-2 died".to_owned());
    let report = RunReport::of(&view, &names());
    assert!(!report.is_ok());
    let text = report.text();
    for line in [
        "run 3f2a9c1d  uuid-counter, 2,000 workers on 2 hosts, 1,000,000 writes: incomplete",
        "            host-2 died",
        "ledger      NOT OK: 1,000,000 acked, DBSIZE -3, cmdstat_set 1,000,000, 7 lost",
        "            127.0.0.1:6379 restarted",
    ] {
        assert!(text.lines().any(|l| l == line), "{line} in {text}");
    }
}

#[test]
fn a_run_without_a_single_write_divides_by_nothing() {
    let mut view = running();
    view.tallies.clear();
    let report = RunReport::of(&view, &names());
    assert!(report.text().contains("cpu         client 0.0 s (- a write)\n"));
    assert!(!report.is_ok());
}

#[test]
fn the_json_has_its_documented_shape() {
    let value = serde_json::to_value(RunReport::of(&done(), &names())).unwrap();
    assert_eq!(
        value["run"],
        json!({
            "id": "3f2a9c1d-0000-4000-8000-000000000000", "state": "completed", "reason": null,
            "workers": 2000, "load_hosts": 2, "issued": 1_000_000, "acked": 1_000_000, "failed": 0, "unknown": 0,
            "moved": 6, "retried": 0, "seconds": 2.0, "writes_per_s": 500_000.0,
            "latency_us": {"p50": 3050, "p90": 5000, "p99": 14400, "p999": 30000, "max": 45678},
            "client_cpu_s": 0.32, "server_cpu_s": 5.8,
        })
    );
    assert_eq!(
        value["ledger"],
        json!({"dbsize": 1_000_000, "cmdstat_set_calls": 1_000_000, "lost": 0, "ok": true, "notes": []})
    );
    assert_eq!(value["hosts"].as_array().unwrap().len(), 2);
    assert_eq!(value.as_object().unwrap().len(), 4);
}
