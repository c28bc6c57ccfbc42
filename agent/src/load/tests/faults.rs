//! What servers may answer, or fail to, and what the account makes of it.

use std::collections::HashSet;
use std::net::TcpListener;
use std::path::Path;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::sync::{Arc, OnceLock};
use std::time::Duration;

use super::fake::{Action, FakeServer, error, ok};
use super::*;
use crate::load::LoadError;
use crate::load::workload::{slot_of, worker_uuid};

fn short() -> Limits {
    Limits {
        write_deadline: Duration::from_millis(300),
        reply_timeout: Duration::from_millis(300),
        drain_max: Duration::from_secs(5),
        connect_timeout: Duration::from_millis(300),
    }
}

/// No key may be answered `+OK` twice: that a server's script can tell.
fn keys(log: &[Vec<String>]) -> Vec<&String> {
    log.iter().filter(|words| words[0] == "SET").map(|words| &words[1]).collect()
}

#[test]
fn every_write_is_issued_once_with_the_article_s_shape() {
    let server = FakeServer::start(|_| ok());
    let bench = Bench::to(spec(7, ShareUntil::Writes(500)), &[server.addr]);
    let counts = bench.close();
    assert_eq!((counts.issued, counts.acked), (500, 500));
    assert!(counts.active_us > 0);

    let log = server.log();
    let unique: HashSet<_> = keys(&log).into_iter().collect();
    assert_eq!((log.len(), unique.len()), (500, 500));
    let uuids: Vec<_> = (0..7).map(|w| worker_uuid(run_id(), HostId(0xa1), 1, w).to_string()).collect();
    for words in &log {
        assert_eq!(words[2], format!("{0}{0}", words[1]));
        assert!(uuids.iter().any(|uuid| words[1].starts_with(uuid)));
    }
    // Numbers of a worker follow each other from 0.
    for uuid in &uuids {
        let numbers: Vec<u64> = log
            .iter()
            .filter_map(|words| words[1].strip_prefix(uuid)?.strip_prefix('-')?.parse().ok())
            .collect();
        assert_eq!(numbers, (0..numbers.len() as u64).collect::<Vec<_>>());
    }
    let (min, max) = bench.handle.worker_spread();
    assert!(min > 0 && max < 500 && min <= max);
    assert_eq!(bench.handle.error(), None);
}

#[test]
fn threads_share_the_quota_exactly() {
    let server = FakeServer::start(|_| ok());
    let threads = ShareSpec { threads: 3, first_worker: 10, ..spec(8, ShareUntil::Writes(1001)) };
    let counts = Bench::to(threads, &[server.addr]).close();
    assert_eq!(counts.acked, 1001);
    let log = server.log();
    assert_eq!(keys(&log).into_iter().collect::<HashSet<_>>().len(), 1001);
}

/// Writes issued by the file. Recovery reads what nobody writes any more; a reader beside
/// the writer may see half of each record, and looks again.
fn read_while_written(path: &Path) -> u64 {
    const LOOKS_MAX: usize = 1000;
    let mut looks = (0..LOOKS_MAX).map(|_| ledger::recover(path));
    looks.find_map(Result::ok).expect("a whole record within a thousand looks").counts.issued
}

#[test]
fn the_file_knows_every_write_before_the_server_does() {
    let path: Arc<OnceLock<PathBuf>> = Arc::default();
    let late = Arc::new(AtomicBool::new(false));
    let (seen, flag) = (path.clone(), late.clone());
    let received = AtomicUsize::new(0);
    let server = FakeServer::start(move |_| {
        let received = received.fetch_add(1, Ordering::SeqCst) as u64 + 1;
        if let Some(path) = seen.get() {
            let issued = read_while_written(path);
            flag.fetch_or(issued < received, Ordering::SeqCst);
        }
        ok()
    });
    let bench = Bench::start(spec(20, ShareUntil::Writes(2000)), SlotMap::default(), Limits::default());
    path.set(bench.ledger.clone()).expect("first");
    bench.map.send_replace(Arc::new(SlotMap::new(even(&[server.addr])).expect("a map")));
    assert_eq!(bench.close().acked, 2000);
    assert!(!late.load(Ordering::SeqCst), "a server received a write that the file did not know");
}

#[test]
fn moved_is_followed_and_not_counted_as_a_write() {
    let target = FakeServer::start(|_| ok());
    let to = target.addr;
    let source = FakeServer::start(move |request| {
        error(format!("MOVED {} {to}", slot_of(request.words[1].as_bytes())))
    });
    let mut bench = Bench::to(spec(4, ShareUntil::Writes(100)), &[source.addr]);
    let counts = bench.close();
    assert_eq!((counts.issued, counts.acked, counts.failed), (100, 100, 0));
    assert_eq!(counts.moved, source.log().len() as u64);
    assert_eq!(target.log().len(), 100);
    bench.refresh.try_recv().expect("a newer map was asked for");
}

#[test]
fn a_newer_map_is_followed() {
    let old = FakeServer::start(|_| ok());
    let new = FakeServer::start(|_| ok());
    let bench = Bench::to(spec(4, ShareUntil::Seconds(60)), &[old.addr]);
    wait_for("first writes", || bench.handle.counts().acked > 10);
    bench.map.send_replace(Arc::new(SlotMap::new(even(&[new.addr])).expect("a map")));
    wait_for("writes to the new server", || new.log().len() > 10);
    bench.handle.stop();
    let counts = bench.close();
    assert_eq!(counts.acked, (old.log().len() + new.log().len()) as u64);
    assert_eq!((counts.moved, counts.unknown, counts.failed), (0, 0, 0));
}

#[test]
fn ask_is_followed_with_asking_right_before_the_write() {
    let asked = AtomicUsize::new(0);
    let target = FakeServer::start(move |request| match request.words[0].as_str() {
        "ASKING" => {
            asked.fetch_add(1, Ordering::SeqCst);
            ok()
        }
        _ if asked.swap(0, Ordering::SeqCst) == 1 => ok(),
        _ => error("ERR no ASKING before it"),
    });
    let to = target.addr;
    let source =
        FakeServer::start(move |request| error(format!("ASK {} {to}", slot_of(request.words[1].as_bytes()))));
    let counts = Bench::to(spec(5, ShareUntil::Writes(200)), &[source.addr]).close();
    assert_eq!((counts.acked, counts.asked, counts.moved, counts.failed), (200, 200, 0, 0));
    assert_eq!(target.log().len(), 400);
}

#[test]
fn redirections_in_a_circle_end_at_the_deadline() {
    let addr: Arc<OnceLock<SocketAddr>> = Arc::default();
    let own = addr.clone();
    let server = FakeServer::start(move |request| {
        let slot = slot_of(request.words[1].as_bytes());
        error(format!("MOVED {slot} {}", own.get().expect("set before the first write")))
    });
    addr.set(server.addr).expect("first");
    let map = SlotMap::new(even(&[server.addr])).expect("a map");
    let counts = Bench::start(spec(2, ShareUntil::Writes(4)), map, short()).close();
    assert_eq!((counts.issued, counts.failed), (4, 4));
    assert!(counts.moved > 4);
}

#[test]
fn try_again_is_tried_again() {
    for kind in ["TRYAGAIN Multiple keys", "CLUSTERDOWN The cluster is down", "LOADING", "READONLY", "BUSY x"]
    {
        let server = FakeServer::start(move |request| match request.index {
            0..10 => error(kind),
            _ => ok(),
        });
        let counts = Bench::to(spec(3, ShareUntil::Writes(30)), &[server.addr]).close();
        assert_eq!((counts.acked, counts.failed, counts.retried), (30, 0, 10), "{kind}");
        assert_eq!(server.log().len(), 40);
    }
}

#[test]
fn what_no_server_takes_fails_at_its_deadline() {
    let server = FakeServer::start(|_| error("CLUSTERDOWN Hash slot not served"));
    let map = SlotMap::new(even(&[server.addr])).expect("a map");
    let bench = Bench::start(spec(3, ShareUntil::Writes(6)), map, short());
    let counts = bench.close();
    assert_eq!((counts.acked, counts.failed, counts.unknown), (0, 6, 0));
    assert!(counts.retried >= 6);
    assert!(bench.handle.error().is_some_and(|text| text.contains("6 × deadline")));
}

#[test]
fn refused_for_good_is_failed_and_kept_by_kind() {
    let server = FakeServer::start(|request| match request.index % 4 {
        0 => error("OOM command not allowed when used memory > 'maxmemory'."),
        1 => error("NOAUTH Authentication required."),
        _ => ok(),
    });
    let bench = Bench::to(spec(2, ShareUntil::Writes(40)), &[server.addr]);
    let counts = bench.close();
    assert_eq!((counts.acked, counts.failed, counts.unknown, counts.retried), (20, 20, 0, 0));
    let text = bench.handle.error().expect("errors");
    assert!(text.contains("10 × OOM (first: ") && text.contains("10 × NOAUTH"), "{text}");
}

#[test]
fn cut_in_mid_reply_is_unknown_and_never_sent_again() {
    for half in ["", "+", "+O", "+OK", "+OK\r", "-MOV"] {
        let server = FakeServer::start(move |request| match request.index {
            50 => Action::Last(half.into()),
            _ => ok(),
        });
        let bench = Bench::to(spec(4, ShareUntil::Writes(200)), &[server.addr]);
        let counts = bench.close();
        assert_eq!((counts.issued, counts.failed), (200, 0), "{half:?}");
        assert!((1..=4).contains(&counts.unknown), "{half:?}: {counts:?}");
        let log = server.log();
        assert_eq!(keys(&log).into_iter().collect::<HashSet<_>>().len(), log.len(), "{half:?}: sent twice");
    }
}

#[test]
fn out_of_step_answers_drop_the_connection() {
    let long = format!("-{}\r\n", "x".repeat(600));
    for garbage in [":1\r\n", "+OKAY\r\n", "$3\r\nabc\r\n", "+OK\r\n+OK\r\n+OK\r\n", "\0\0\0", &long] {
        let text = garbage.to_owned();
        let server = FakeServer::start(move |request| match request.index {
            20 => Action::Reply(text.clone()),
            _ => ok(),
        });
        let bench = Bench::to(spec(1, ShareUntil::Writes(50)), &[server.addr]);
        let counts = bench.close();
        assert_eq!((counts.issued, counts.failed), (50, 0), "{garbage:?}");
        assert!(counts.unknown <= 2, "{garbage:?}: {counts:?}");
        let log = server.log();
        assert!(counts.acked <= log.len() as u64, "{garbage:?}: acked what was never received");
        assert_eq!(counts.issued, log.len() as u64, "{garbage:?}: each write was sent");
        assert_eq!(
            keys(&log).into_iter().collect::<HashSet<_>>().len(),
            log.len(),
            "{garbage:?}: sent twice"
        );
    }
}

#[test]
fn turned_away_at_the_door_is_proven_not_executed() {
    let server = FakeServer::start(|request| match request.conn {
        0..3 => Action::Last("-ERR max number of clients reached\r\n".into()),
        _ => ok(),
    });
    let counts = Bench::to(spec(4, ShareUntil::Writes(50)), &[server.addr]).close();
    assert_eq!((counts.acked, counts.failed, counts.unknown), (50, 0, 0));
    assert!(counts.retried >= 3);
}

#[test]
fn a_hung_server_s_writes_are_unknown() {
    let server = FakeServer::start(|request| if request.index < 10 { ok() } else { Action::Silence });
    let map = SlotMap::new(even(&[server.addr])).expect("a map");
    let counts = Bench::start(spec(3, ShareUntil::Writes(16)), map, short()).close();
    assert_eq!((counts.acked, counts.unknown, counts.failed), (10, 6, 0));
}

#[test]
fn a_server_that_comes_late_gets_its_writes_once() {
    let listener = TcpListener::bind("127.0.0.1:0").expect("binds");
    let addr = listener.local_addr().expect("an address");
    drop(listener);
    let bench = Bench::to(spec(4, ShareUntil::Writes(100)), &[addr]);
    wait_for("a refused connection", || bench.handle.error().is_some());
    assert_eq!(bench.handle.counts().acked, 0);
    let server = FakeServer::serve(TcpListener::bind(addr).expect("binds again"), |_| ok());
    let counts = bench.close();
    assert_eq!((counts.issued, counts.acked), (100, 100));
    assert_eq!(server.log().len(), 100);
}

#[test]
fn an_unreachable_server_s_writes_fail_at_their_deadline() {
    let listener = TcpListener::bind("127.0.0.1:0").expect("binds");
    let addr = listener.local_addr().expect("an address");
    drop(listener);
    let map = SlotMap::new(even(&[addr])).expect("a map");
    let counts = Bench::start(spec(4, ShareUntil::Writes(8)), map, short()).close();
    assert_eq!((counts.issued, counts.failed, counts.unknown), (8, 8, 0));
}

#[test]
fn uncovered_slots_wait_for_a_map_that_covers_them() {
    let server = FakeServer::start(|_| ok());
    let half = SlotMap::new([(SlotRange { first: 0, last: 8191 }, server.addr)]).expect("a map");
    let mut bench = Bench::start(spec(8, ShareUntil::Writes(400)), half, Limits::default());
    wait_for("a refresh", || bench.refresh.try_recv().is_ok());
    bench.map.send_replace(Arc::new(SlotMap::new(even(&[server.addr])).expect("a map")));
    let counts = bench.close();
    assert_eq!((counts.acked, counts.retried), (400, 0));
}

#[test]
fn stop_drains_and_abort_does_not_wait() {
    let server = FakeServer::start(|_| ok());
    let bench = Bench::to(spec(4, ShareUntil::Writes(u64::MAX)), &[server.addr]);
    wait_for("writes", || bench.handle.counts().acked > 100);
    bench.handle.stop();
    let counts = bench.close();
    assert_eq!((counts.acked, counts.unknown), (counts.issued, 0));

    let silent = FakeServer::start(|_| Action::Silence);
    let bench = Bench::to(spec(4, ShareUntil::Writes(100)), &[silent.addr]);
    wait_for("writes", || silent.log().len() == 4);
    bench.handle.abort();
    let counts = bench.close();
    assert_eq!((counts.issued, counts.unknown), (4, 4));
}

#[test]
fn drain_is_bounded() {
    let silent = FakeServer::start(|_| Action::Silence);
    let map = SlotMap::new(even(&[silent.addr])).expect("a map");
    let limits = Limits { drain_max: Duration::from_millis(200), ..Limits::default() };
    let bench = Bench::start(spec(4, ShareUntil::Writes(4)), map, limits);
    let view = bench.handle.view();
    let counts = bench.close();
    assert_eq!((counts.issued, counts.unknown), (4, 4));
    // Or a read-back would take as many keys for lost.
    let written = view.written().expect("counted keys");
    assert_eq!((written.acked(), written.exceptions.len()), (counts.acked, 4));
    assert_eq!(written.ended.iter().sum::<u64>(), 4);
}

#[test]
fn dropping_the_handle_ends_the_threads() {
    let silent = FakeServer::start(|_| Action::Silence);
    let bench = Bench::to(spec(4, ShareUntil::Seconds(3600)), &[silent.addr]);
    wait_for("writes", || silent.log().len() == 4);
    let view = bench.handle.view();
    drop(bench);
    assert!(view.closed());
    assert_eq!(view.counts().unknown, 4);
}

#[test]
fn nothing_to_do_closes_at_once() {
    for (workers, until) in [
        (0, ShareUntil::Writes(0)),
        (5, ShareUntil::Writes(0)),
        (0, ShareUntil::Seconds(5)),
        (5, ShareUntil::Seconds(0)),
    ] {
        let server = FakeServer::start(|_| ok());
        let counts = Bench::to(spec(workers, until), &[server.addr]).close();
        assert!(counts.issued <= u64::from(workers), "{until:?}");
    }
    // Stopped before there was a server to write to.
    let bench = Bench::start(spec(5, ShareUntil::Writes(10)), SlotMap::default(), Limits::default());
    bench.handle.stop();
    assert_eq!(bench.close().issued, 0);
}

#[test]
fn impossible_shares_are_refused_by_name() {
    let start = |spec: ShareSpec| {
        let dir = tempfile::tempdir().expect("a directory");
        let (_map, slots) = watch::channel(Arc::new(SlotMap::default()));
        let (poke, _refresh) = mpsc::channel(1);
        Engine::start(spec, slots, poke, dir.path().join("x.ledger")).map(|_| ())
    };
    assert!(matches!(start(spec(0, ShareUntil::Writes(1))), Err(LoadError::NoWorkers { writes: 1, .. })));
    let none = ShareSpec { threads: 0, ..spec(1, ShareUntil::Writes(1)) };
    assert!(matches!(start(none), Err(LoadError::OutOfBounds { .. })));
    let wrap = ShareSpec { first_worker: u32::MAX, ..spec(1, ShareUntil::Writes(1)) };
    assert!(matches!(start(wrap), Err(LoadError::OutOfBounds { .. })));
}
