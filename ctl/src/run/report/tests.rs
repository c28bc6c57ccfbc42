use redmesh_api::control::RunDetail;
use redmesh_api::ids::RunId;
use redmesh_api::run::{Counts, Findings, ReadBack, Run, RunResult, RunUntil, Share, ShareDetail, Tally};
use redmesh_api::workload::Workload;
use serde_json::json;

use super::*;
use crate::run::detail::tests::share as kept;
use crate::run::workload;

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
        intended: None,
        ledger: Ledger {
            dbsize: 1_000_000,
            calls: 1_000_000,
            lost: 0,
            lost_at: Vec::new(),
            ok: true,
            notes: Vec::new(),
        },
        after: Vec::new(),
        server_cpu_us: 5_800_000,
        ended_unix_ms: 0,
    });
    view
}

/// Hosts 1 and 2 have shares 0 and 1.
pub fn tally(host: u32, writes: u64) -> Tally {
    let counts = Counts {
        issued: writes,
        acked: writes,
        moved: 3,
        cpu_us: 160_000,
        active_us: 2_000_000,
        ..Counts::default()
    };
    Tally { host: HostId(host), share: host as u16 - 1, epoch: 0, closed: true, counts }
}

/// A run of two hosts in its midst.
pub fn running() -> RunView {
    let share = |host, first_worker| Share {
        host: HostId(host),
        workers: 1000,
        first_worker,
        writes: Some(500_000),
        given_up: false,
        rest_of: None,
    };
    let mut half = tally(1, 1_000);
    half.counts.issued = 2_000;
    RunView {
        run: Run {
            id: RunId("3f2a9c1d-0000-4000-8000-000000000000".parse().unwrap()),
            spec: RunSpec::closed_loop(Workload::uuid_counter(), 2000, RunUntil::Writes(1_000_000)),
            shares: vec![share(1, 0), share(2, 1000)],
            stage: RunStage::Running,
            created_unix_ms: 0,
            starts_unix_ms: 0,
            before: Vec::new(),
            result: None,
        },
        tallies: vec![half],
        writes_per_s: 1234.5,
        share_writes_per_s: vec![1234.5, 0.0],
        latency: None,
        intended: None,
        waiting_for: Some("host-2, silent for 5 s".to_owned()),
    }
}

/// The same load as `done` of a cache, by a schedule: 10 s after a warm-up of 10 s, each
/// host with 50,000 operations in either.
pub fn open_loop() -> RunView {
    let mut view = done();
    let spec = &mut view.run.spec;
    spec.job = Job::Load(workload::resolve("cache").unwrap());
    (spec.pipeline, spec.rate, spec.ramp_s, spec.warm_up_s) = (8, Some(10_000), 5, 10);
    spec.until = RunUntil::Seconds(20);
    let result = view.run.result.as_mut().unwrap();
    let latency = result.latency;
    result.intended = Some(LatencySummary { p50_us: 4_000, max_us: 99_000, ..latency });
    for tally in &mut result.tallies {
        let counts = &mut tally.counts;
        (counts.issued, counts.acked, counts.warm_acked, counts.missed) = (100_000, 100_000, 50_000, 70);
        (counts.active_us, counts.warm_us) = (20_000_000, 10_000_000);
    }
    view
}

/// A read-back of `done`'s keys; each host has read half of them.
fn verify() -> RunDetail {
    let mut view = done();
    let of = view.run.id;
    view.run.spec.job = Job::ReadBack(ReadBack { of, wrap: None, pipeline: 1, per_million: 1_000 });
    let found = Findings { right: 500, arrived: 2, not_arrived: 1, ..Findings::default() };
    let details = [1, 2].map(|host| ShareDetail { findings: Some(found.clone()), ..kept(host, 0, &[]) });
    RunDetail { view, details: details.into(), missing: Vec::new() }
}

fn report_of(detail: &RunDetail) -> RunReport {
    RunReport::of(&detail.view, &names()).with_detail(DetailFigures::of(detail))
}

fn assert_lines(text: &str, lines: &[&str]) {
    for line in lines {
        assert!(text.lines().any(|known| known == *line), "{line}\nis not in\n{text}");
    }
}

fn names() -> Names {
    Names([1, 2, 3].map(|id| (HostId(id), format!("host-{id}"))).into())
}

#[test]
fn a_closed_run_as_text() {
    assert_eq!(
        RunReport::of(&done(), &names()).text(),
        "\
run 3f2a9c1d  uuid-counter, 2,000 workers on 2 hosts, closed loop, 1,000,000 writes: completed
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
run 3f2a9c1d  uuid-counter, 2,000 workers on 2 hosts, closed loop, 1,000,000 writes: running
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
    result.ledger.lost_at =
        vec![("127.0.0.1:7003".parse().unwrap(), 12_345), ("127.0.0.1:7004".parse().unwrap(), 1)];
    result.ledger.notes = vec!["127.0.0.1:6379 restarted".to_owned()];
    result.outcome = Outcome::Incomplete("host-2 died".to_owned());
    let report = RunReport::of(&view, &names());
    assert!(!report.is_ok());
    assert_lines(
        &report.text(),
        &[
            "run 3f2a9c1d  uuid-counter, 2,000 workers on 2 hosts, closed loop, 1,000,000 writes: incomplete",
            "            host-2 died",
            "ledger      NOT OK: 1,000,000 acked, DBSIZE -3, cmdstat_set 1,000,000, 7 lost",
            "            lost with a server's memory: 127.0.0.1:7003 12,345, 127.0.0.1:7004 1",
            "            127.0.0.1:6379 restarted",
        ],
    );
    assert_eq!(
        serde_json::to_value(&report).unwrap()["ledger"]["lost_at"],
        json!([{"server": "127.0.0.1:7003", "writes": 12345}, {"server": "127.0.0.1:7004", "writes": 1}])
    );
}

#[test]
fn an_open_loop_tells_its_schedule_and_both_latencies() {
    let mut view = open_loop();
    let report = RunReport::of(&view, &names());
    assert_eq!(
        report.text(),
        "\
run 3f2a9c1d  cache, 2,000 workers with 8 outstanding each on 2 hosts, open loop at 10,000/s, 20 s: completed
operations  200,000 issued = 200,000 acked + 0 failed + 0 unknown
            besides 6 moved, 0 asked, 0 retried (not operations); 140 reads found no key
rate        10,000 operations/s over 10.0 s after 10.0 s of warm-up; asked 10,000/s, held 100.00 %
latency     p50 4.0 ms  p90 5.0 ms  p99 14.4 ms  p99.9 30.0 ms  max 99.0 ms  (from the intended begin)
            p50 3.0 ms  p90 5.0 ms  p99 14.4 ms  p99.9 30.0 ms  max 45.7 ms  (service time)
cpu         client 0.3 s (1.60 µs an operation), servers 5.8 s (29.00 µs an operation)
ledger      OK: 200,000 acked, 1,000,000 calls at the servers

HOST    WORKERS   ISSUED    ACKED  FAILED  UNKNOWN  OPERATIONS/S
host-1    1,000  100,000  100,000       0        0         5,000
host-2    1,000  100,000  100,000       0        0         5,000
"
    );
    let value = serde_json::to_value(&report).unwrap();
    let run = &value["run"];
    assert_eq!(
        (&run["workload"], &run["pipeline"], &run["missed"]),
        (&json!("cache"), &json!(8), &json!(140))
    );
    assert_eq!((&run["schedule_per_s"], &run["held_percent"]), (&json!(10_000), &json!(100.0)));
    assert_eq!((&run["intended_us"]["p50"], &run["latency_us"]["p50"]), (&json!(4000), &json!(3050)));
    assert_eq!(value["spec"]["job"]["Load"]["keys"]["pool"]["count"], 1_000_000);

    view.run.result.as_mut().unwrap().tallies[1].counts.acked -= 3;
    let details = vec![kept(1, 0, &[]), kept(2, 0, &[])];
    let report = report_of(&RunDetail { view, details, missing: Vec::new() });
    assert_lines(
        &report.text(),
        &[
            "rate        10,000 operations/s over 10.0 s after 10.0 s of warm-up; asked 10,000/s, held 100.00 %",
            "            10 operations were never begun: their time had come and no worker was free",
        ],
    );
}

/// With 2 threads on each of 2 hosts.
fn limit_of(mut view: RunView, busy_percent: u64) -> (Option<Limit>, String) {
    for tally in &mut view.run.result.as_mut().unwrap().tallies {
        tally.counts.cpu_us = tally.counts.active_us * 2 * busy_percent / 100;
    }
    let details = vec![kept(1, 0, &[]), kept(2, 0, &[])];
    let report = report_of(&RunDetail { view, details, missing: Vec::new() });
    let line = report.text().lines().find(|line| line.starts_with("limit")).map(str::to_owned);
    (report.limit, line.unwrap_or_default())
}

#[test]
fn the_limit_is_named_where_it_was_measured() {
    let (limit, line) = limit_of(done(), 97);
    assert_eq!(limit, Some(Limit { by: LimitBy::Client, client_busy_percent: 97.0 }));
    assert_eq!(
        line,
        "limit       the client: load threads were busy 97 % of the time; try --threads-per-host or more \
         --load-hosts"
    );
    assert_eq!(limit_of(done(), 34).1, "limit       the servers (load threads were busy 34 % of the time)");
    assert_eq!(
        limit_of(open_loop(), 34).1,
        "limit       neither: the schedule (load threads were busy 34 % of the time)"
    );
    let mut behind = open_loop();
    behind.run.spec.rate = Some(20_000);
    assert!(limit_of(behind.clone(), 34).1.contains("the servers, or too few workers for the schedule ("));
    assert!(limit_of(behind, 95).1.contains("the client: "));
    // A host that doesn't tell its threads may be the one that was full.
    let details = vec![kept(1, 0, &[]), ShareDetail { threads: 0, ..kept(2, 0, &[]) }];
    let report = report_of(&RunDetail { view: done(), details, missing: Vec::new() });
    assert!(report.limit.is_none() && !report.text().contains("limit"));
}

#[test]
fn a_host_has_one_row_and_takeovers_are_told() {
    let mut view = done();
    let rest = |host, writes| Share {
        host: HostId(host),
        rest_of: Some(1),
        writes: Some(writes),
        workers: 500,
        ..view.run.shares[0].clone()
    };
    let rests = [rest(1, 1_000), rest(3, 234)];
    view.run.shares[1].given_up = true;
    view.run.shares.extend(rests);
    let more = Tally { share: 2, epoch: 1, ..tally(1, 1_000) };
    view.run.result.as_mut().unwrap().tallies.extend([more, Tally { share: 3, ..tally(3, 234) }]);
    let report = RunReport::of(&view, &names());
    let taken = Takeover {
        from: "host-2".to_owned(),
        writes: Some(1_234),
        by: vec!["host-1".to_owned(), "host-3".to_owned()],
    };
    assert_eq!(report.takeovers, [taken]);
    // The rest took 2 s after the 2 s of what it is the rest of.
    assert_lines(
        &report.text(),
        &[
            "taken over  host-2's rest, 1,234 writes, by host-1, host-3",
            "rate        250,309 writes/s over 4.0 s",
            "host-1    1,500  601,000  601,000       0        0   150,250",
            "host-2    1,000  400,000  400,000       0        0   200,000",
            "host-3      500      234      234       0        0        59",
        ],
    );
    view.run.shares[2].writes = None;
    assert!(RunReport::of(&view, &names()).text().contains("taken over  host-2's rest, by host-1, host-3\n"));
}

#[test]
fn a_read_back_tells_what_it_found() {
    let report = report_of(&verify());
    assert!(report.is_ok());
    assert_lines(
        &report.text(),
        &[
            "run 3f2a9c1d  verify of 3f2a9c1d, about 1,000 of each 1,000,000 keys, 2,000 workers on 2 hosts, \
             closed loop: completed",
            "reads       1,000,000 issued = 1,000,000 acked + 0 failed + 0 unknown",
            "            besides 6 moved, 0 asked, 0 retried (not reads)",
            "ledger      OK: 1,000,000 acked, 1,000,000 calls at the servers",
            "read back   1,000 acked = 1,000 right + 0 wrong + 0 lost",
            "            of unknown fate: 4 have arrived, 2 have not",
            "verdict     OK: every acked write that was read back holds what was written",
        ],
    );
    let value = serde_json::to_value(&report).unwrap();
    assert_eq!(
        (&value["run"]["workload"], &value["detail"]["findings"]["right"]),
        (&json!("verify"), &json!(1000))
    );
}

#[test]
fn a_read_back_that_misses_something_is_not_ok() {
    let verdict = |detail: &RunDetail| {
        let report = report_of(detail);
        let text = report.text();
        assert!(!report.is_ok(), "{text}");
        text
    };
    let mut lost = verify();
    let found = lost.details[0].findings.as_mut().unwrap();
    (found.lost, found.wrong, found.examples) = (2, 1, vec!["a-1".to_owned(), "a-2".to_owned()]);
    found.lost_at = vec![("127.0.0.1:7003".parse().unwrap(), 2)];
    lost.details[1].findings.as_mut().unwrap().lost_at = vec![("127.0.0.1:7003".parse().unwrap(), 5)];
    assert_lines(
        &verdict(&lost),
        &[
            "read back   1,003 acked = 1,000 right + 1 wrong + 2 lost",
            "            lost at 127.0.0.1:7003 7",
            "            lost or wrong, for example: a-1, a-2",
            "verdict     NOT OK: 2 lost, 1 wrong",
        ],
    );
    let mut untold = verify();
    untold.missing = vec!["host-2 does not answer".to_owned()];
    assert!(verdict(&untold).contains("verdict     NOT OK: not all hosts have told"));
    let mut unread = verify();
    unread.view.run.result.as_mut().unwrap().tallies[0].counts.unknown = 5;
    assert!(verdict(&unread).contains("verdict     NOT OK: 5 keys could not be read"));
    let mut silent = verify();
    silent.details.clear();
    assert!(verdict(&silent).contains("verdict     NOT OK: no host kept"));
    let mut running = verify();
    running.view.run.result = None;
    assert!(!verdict(&running).contains("verdict"));
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
            "id": "3f2a9c1d-0000-4000-8000-000000000000", "workload": "uuid-counter", "state": "completed",
            "reason": null, "workers": 2000, "pipeline": 1, "load_hosts": 2, "issued": 1_000_000,
            "acked": 1_000_000, "failed": 0, "unknown": 0, "missed": 0, "moved": 6, "asked": 0, "retried": 0,
            "seconds": 2.0, "warm_up_seconds": 0.0, "writes_per_s": 500_000.0, "schedule_per_s": null,
            "held_percent": null, "intended_us": null,
            "latency_us": {"p50": 3050, "p90": 5000, "p99": 14400, "p999": 30000, "max": 45678},
            "client_cpu_s": 0.32, "server_cpu_s": 5.8,
        })
    );
    assert_eq!(
        value["ledger"],
        json!({
            "dbsize": 1_000_000, "calls": 1_000_000, "lost": 0, "lost_at": [], "ok": true, "notes": []
        })
    );
    assert_eq!(value["hosts"].as_array().unwrap().len(), 2);
    let keys: Vec<&String> = value.as_object().unwrap().keys().collect();
    assert_eq!(keys, ["detail", "hosts", "ledger", "limit", "run", "spec", "takeovers"]);
}
