//! What workers do, and when: mixes, pipelines, schedules, warm-up, and reading back.

use std::collections::HashSet;

use redmesh_api::run::Findings;
use redmesh_api::workload::{Keys, Pick, ValueBytes, Verb};

use super::fake::{Action, FakeServer, Request, ok};
use super::*;
use crate::load::ReadBackTask;
use crate::load::workload::worker_uuid;
use crate::load::written::{Exception, Written};

fn task(workload: Workload) -> Task {
    workload.check().expect("a workload that can be carried out");
    Task::Load(Arc::new(workload))
}

fn pool(mix: &[(Verb, u32)]) -> Workload {
    Workload {
        name: "pool".to_owned(),
        seed: 7,
        keys: Keys::Pool { count: 50, pick: Pick::Uniform },
        value: ValueBytes::Uniform { min: 1, max: 200_000 },
        mix: mix.to_vec(),
        ttl_s: None,
        fields: 3,
        keys_per_command: 4,
    }
}

fn bulk(text: &str) -> String {
    format!("${}\r\n{text}\r\n", text.len())
}

#[test]
fn a_mix_issues_each_command_and_takes_its_answer() {
    let server = FakeServer::start(|request: Request| {
        Action::Reply(match request.words[0].as_str() {
            "GET" if request.index.is_multiple_of(2) => "$-1\r\n".into(),
            // More than is read at once.
            "GET" => bulk(&"v".repeat(150_000)),
            "MGET" => format!("*4\r\n$-1\r\n{}$-1\r\n$-1\r\n", bulk("x")),
            _ => "+OK\r\n".into(),
        })
    });
    let mix = [(Verb::Get, 4), (Verb::Set, 2), (Verb::Mget, 1), (Verb::Mset, 1)];
    let bench =
        Bench::to(ShareSpec { task: task(pool(&mix)), ..spec(8, ShareUntil::Writes(400)) }, &[server.addr]);
    let counts = bench.close();
    assert_eq!((counts.acked, counts.failed, counts.unknown), (400, 0, 0), "{:?}", bench.handle.error());
    let log = server.log();
    let of = |name: &str| log.iter().filter(|words| words[0] == name).count();
    for (verb, weight) in mix {
        let share = of(&verb.name().to_uppercase());
        assert!(share > 0, "{verb:?} weighs {weight} and was never issued");
    }
    assert!(of("GET") > of("MSET"));
    assert!(counts.missed > 0 && counts.missed <= of("GET") as u64, "{counts:?}");
    assert_eq!(bench.handle.written(), None);
}

#[test]
fn an_answer_that_is_not_the_commands_ends_the_connection() {
    let server = FakeServer::start(|request| match request.index {
        0 => ok(),
        _ => Action::Reply("$-1\r\n".into()),
    });
    let only_get = task(pool(&[(Verb::Get, 1)]));
    let bench = Bench::to(ShareSpec { task: only_get, ..spec(1, ShareUntil::Writes(3)) }, &[server.addr]);
    let counts = bench.close();
    assert_eq!((counts.acked, counts.unknown, counts.missed), (2, 1, 2));
    assert!(bench.handle.error().expect("is noted").contains("+OK to get"));
}

#[test]
fn a_pipeline_keeps_so_many_outstanding_and_repeats_no_key() {
    let server = FakeServer::start(|_| ok());
    let spec = ShareSpec { pipeline: 8, ..spec(3, ShareUntil::Writes(600)) };
    let bench = Bench::to(spec, &[server.addr]);
    assert_eq!(bench.close().acked, 600);
    let log = server.log();
    let keys: HashSet<_> = log.iter().map(|words| &words[1]).collect();
    assert_eq!(keys.len(), 600);
    let written = bench.handle.written().expect("counted keys");
    assert_eq!((written.ended.len(), written.ended.iter().sum::<u64>(), written.closed), (24, 600, true));
    // Lane r of worker 0 issued r, r + 8, …: what the record says is what was sent.
    let uuid = worker_uuid(run_id(), HostId(0xa1), 1, 0).to_string();
    for (lane, ended) in written.ended[..8].iter().enumerate() {
        for index in 0..*ended {
            assert!(keys.contains(&format!("{uuid}-{}", index * 8 + lane as u64)));
        }
    }
}

#[test]
fn a_counter_that_wraps_repeats_its_keys() {
    let server = FakeServer::start(|_| ok());
    let workload = Workload { keys: Keys::Counter { wrap: Some(10) }, ..Workload::uuid_counter() };
    let spec = ShareSpec { task: task(workload), ..spec(2, ShareUntil::Writes(500)) };
    assert_eq!(Bench::to(spec, &[server.addr]).close().acked, 500);
    let log = server.log();
    let keys: HashSet<_> = log.iter().map(|words| &words[1]).collect();
    assert_eq!(keys.len(), 20);
}

#[test]
fn a_schedule_begins_operations_at_their_time_however_slow_answers_are() {
    const STALL: Duration = Duration::from_millis(200);
    let server = FakeServer::start(|request| {
        if request.index == 0 {
            std::thread::sleep(STALL);
        }
        ok()
    });
    let begin = Instant::now() + Duration::from_millis(300);
    let earliest_unix_ms = crate::clock::now_unix_ms() + 299;
    let spec = ShareSpec { rate: Some(500.0), begin, ..spec(1, ShareUntil::Writes(200)) };
    let bench = Bench::to(spec, &[server.addr]);
    assert_eq!(bench.handle.began_unix_ms(), None);
    let counts = bench.close();
    assert!(bench.handle.began_unix_ms() >= Some(earliest_unix_ms), "nothing is issued before its begin");
    assert_eq!(counts.acked, 200);
    // The last was due 398 ms after the first, and nothing begins before it is due.
    assert!(counts.active_us >= 398_000, "{} µs", counts.active_us);
    let intended = bench.handle.intended().expect("an open loop");
    let service = bench.handle.histogram();
    assert_eq!(intended.len(), 200);
    // One operation was slow, but all that were due meanwhile waited for it.
    let slow = |histogram: &hdrhistogram::Histogram<u64>| histogram.count_between(50_000, u64::MAX);
    assert!(slow(&service) < slow(&intended), "{} {}", slow(&service), slow(&intended));
    assert!(slow(&intended) >= 60, "{}", slow(&intended));
    assert_eq!(bench.handle.behind(), 0);
}

#[test]
fn what_was_due_and_never_begun_is_told() {
    let server = FakeServer::start(|_| {
        std::thread::sleep(Duration::from_millis(20));
        ok()
    });
    let spec = ShareSpec { rate: Some(1000.0), ..spec(1, ShareUntil::Seconds(1)) };
    let bench = Bench::to(spec, &[server.addr]);
    let counts = bench.close();
    assert_eq!(counts.issued + bench.handle.behind(), 1000);
    assert!(counts.issued < 60);
}

#[test]
fn warm_up_counts_but_is_not_in_the_latencies() {
    let server = FakeServer::start(|_| ok());
    let spec = ShareSpec {
        warm_up: Duration::from_millis(500),
        ramp: Duration::from_millis(200),
        ..spec(4, ShareUntil::Seconds(1))
    };
    // Bench::close holds the histogram against acked less warm_acked.
    let counts = Bench::to(spec, &[server.addr]).close();
    assert!(counts.warm_acked > 0 && counts.warm_acked < counts.acked, "{counts:?}");
    assert_eq!(counts.warm_us, 500_000);
}

/// A server that keeps what it is told, but for keys that `lose` names.
fn store(lose: impl Fn(&str) -> bool + Send + Sync + 'static) -> FakeServer {
    let kept = std::sync::Mutex::new(std::collections::HashMap::new());
    FakeServer::start(move |request| {
        let mut kept = kept.lock().expect("not poisoned");
        match request.words[0].as_str() {
            "SET" => {
                if !lose(&request.words[1]) {
                    kept.insert(request.words[1].clone(), request.words[2].clone());
                }
                ok()
            }
            _ => Action::Reply(kept.get(&request.words[1]).map_or("$-1\r\n".into(), |value| bulk(value))),
        }
    })
}

fn read_back(server: &FakeServer, written: Vec<Written>, per_million: u32, acked_beyond: u64) -> Findings {
    let task = ReadBackTask::new(written, per_million, acked_beyond);
    let task = Task::ReadBack(Arc::new(task));
    let spec = ShareSpec { task, epoch: 9, threads: 2, ..spec(5, ShareUntil::Exhausted) };
    let bench = Bench::to(spec, &[server.addr]);
    let counts = bench.close();
    assert_eq!(counts.failed + counts.unknown, 0);
    bench.handle.findings().expect("a read-back")
}

#[test]
fn reading_back_finds_every_write_and_names_what_is_lost() {
    let lost = format!("{}-3", worker_uuid(run_id(), HostId(0xa1), 1, 2));
    let gone = lost.clone();
    let server = store(move |key| key == gone);
    let bench = Bench::to(ShareSpec { pipeline: 2, ..spec(4, ShareUntil::Writes(300)) }, &[server.addr]);
    bench.close();
    let written = bench.handle.written().expect("counted keys");

    let dir = tempfile::tempdir().expect("a directory");
    written.save(dir.path()).expect("saves");
    assert_eq!(Written::load(dir.path(), 1).expect("loads"), written);

    let found = read_back(&server, vec![written.clone()], 1_000_000, 0);
    assert_eq!((found.right, found.wrong, found.lost, found.arrived), (299, 0, 1, 0));
    assert_eq!(found.lost_at, [(server.addr, 1)]);
    assert_eq!(found.examples, [format!("{lost} is not there")]);

    let sample = read_back(&server, vec![written], 100_000, 0);
    // Each of the two threads takes a tenth of its part.
    let taken = sample.right + sample.lost;
    assert!((29..=30).contains(&taken), "{taken}");
}

#[test]
fn what_came_after_a_killed_agents_last_record_is_followed() {
    let server = store(|_| false);
    let bench = Bench::to(spec(4, ShareUntil::Writes(100)), &[server.addr]);
    bench.close();
    let mut written = bench.handle.written().expect("counted keys");
    // As if the agent had been killed before the record knew of the last writes.
    written.closed = false;
    let mut hidden = 0;
    for ended in &mut written.ended {
        let less = (*ended).min(5);
        *ended -= less;
        hidden += less;
    }
    written.exceptions.push(Exception { lane: 0, index: 0, unknown: true });
    let all_acked = read_back(&server, vec![written.clone()], 1_000_000, hidden);
    assert_eq!((all_acked.right, all_acked.arrived, all_acked.lost), (99, 1, 0));
    let three_unknown = read_back(&server, vec![written.clone()], 1_000_000, hidden - 3);
    assert_eq!((three_unknown.right, three_unknown.arrived, three_unknown.lost), (96, 4, 0));
    let two_lost = read_back(&server, vec![written], 1_000_000, hidden + 2);
    assert_eq!((two_lost.right, two_lost.arrived, two_lost.lost), (99, 1, 2));
}
