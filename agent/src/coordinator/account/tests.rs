use proptest::prelude::*;
use redmesh_api::ids::RunId;
use redmesh_api::run::{ReadBack, RunSpec, RunStage};
use redmesh_api::workload::{Keys, Workload};
use uuid::Uuid;

use super::*;

proptest! {
    #[test]
    fn shares_add_up_exactly(hosts in 1_u32..40, workers in 1_u32..5000, writes in 0_u64..u64::MAX) {
        let ids: Vec<_> = (0..hosts).map(HostId).collect();
        let shares = shares(&ids, workers, Some(writes));
        prop_assert_eq!(shares.iter().map(|share| share.workers).sum::<u32>(), workers);
        let quotas = shares.iter().map(|share| u128::from(share.writes.unwrap_or(0)));
        prop_assert_eq!(quotas.sum::<u128>(), u128::from(writes));
        let (least, most) = shares.iter().fold((u32::MAX, 0), |(a, b), s| (a.min(s.workers), b.max(s.workers)));
        prop_assert!(most - least <= 1);
        let mut next = 0;
        for share in &shares {
            prop_assert_eq!(share.first_worker, next);
            next += share.workers;
        }
    }
}

fn sample(port: u16, run_id: &str, primary: bool, dbsize: u64, calls: u64) -> ServerSample {
    ServerSample { host: HostId(1), port, run_id: run_id.to_owned(), primary, dbsize, calls, cpu_us: calls }
}

fn run(before: Vec<ServerSample>) -> Run {
    Run {
        id: RunId(Uuid::from_u128(1)),
        spec: RunSpec::closed_loop(Workload::uuid_counter(), 1, RunUntil::Writes(100)),
        shares: Vec::new(),
        stage: RunStage::Running,
        created_unix_ms: 0,
        starts_unix_ms: 0,
        before,
        result: None,
    }
}

fn closing(acked: u64, unknown: u64, after: Vec<ServerSample>) -> Closing {
    let counts = Counts { issued: acked + unknown, acked, unknown, ..Counts::default() };
    Closing {
        outcome: Outcome::Completed,
        tallies: vec![Tally { host: HostId(1), share: 0, epoch: 0, closed: true, counts }],
        latency: LatencySummary::default(),
        intended: None,
        acked_by: AckedBy::new(),
        after,
        notes: Vec::new(),
        all_sampled: true,
        ended_unix_ms: 1,
    }
}

#[test]
fn a_plain_run_is_ok_and_replicas_do_not_count() {
    let before = vec![sample(1, "a", true, 10, 10), sample(2, "b", false, 10, 10)];
    let after = vec![sample(1, "a", true, 110, 110), sample(2, "b", false, 110, 110)];
    let ledger = close(&run(before), closing(100, 0, after)).ledger;
    assert_eq!((ledger.dbsize, ledger.calls, ledger.lost, ledger.ok), (100, 100, 0, true));
    assert!(ledger.notes.is_empty(), "{ledger:?}");
}

#[test]
fn writes_that_went_with_a_servers_memory_are_lost() {
    let before = vec![sample(1, "a", true, 0, 0), sample(2, "b", true, 0, 0)];
    let after = vec![sample(1, "a", true, 50, 50), sample(2, "b2", true, 20, 20)];
    let ledger = close(&run(before), closing(100, 0, after)).ledger;
    assert_eq!((ledger.lost, ledger.ok), (30, false));
    assert!(ledger.notes[0].contains("primaries restarted in the run: 1"), "{ledger:?}");
}

#[test]
fn unknown_writes_may_have_arrived_or_not() {
    for arrived in [100, 103, 105] {
        let after = vec![sample(1, "a", true, arrived, arrived)];
        let ledger = close(&run(vec![sample(1, "a", true, 0, 0)]), closing(100, 5, after)).ledger;
        assert!(ledger.ok, "{ledger:?}");
    }
    let after = vec![sample(1, "a", true, 106, 106)];
    let ledger = close(&run(vec![sample(1, "a", true, 0, 0)]), closing(100, 5, after)).ledger;
    assert!(!ledger.ok && ledger.notes[0].contains("another client"), "{ledger:?}");
}

#[test]
fn nothing_is_ok_that_was_not_sampled_or_not_closed() {
    let after = || vec![sample(1, "a", true, 100, 100)];
    let before = || vec![sample(1, "a", true, 0, 0)];
    let unsampled = |acked| Closing { all_sampled: false, ..closing(acked, 0, after()) };
    assert!(!close(&run(before()), unsampled(100)).ledger.ok);
    let unseen = close(&run(before()), unsampled(150)).ledger;
    assert_eq!((unseen.lost, unseen.ok), (0, false), "an instance that was not asked may hold them");
    assert!(unseen.notes.iter().any(|note| note.starts_with("50 acked writes")), "{unseen:?}");
    let mut open = closing(100, 0, after());
    open.tallies[0].closed = false;
    assert!(!close(&run(before()), open).ledger.ok);
    let mut lost_host = closing(90, 0, after());
    lost_host.tallies[0].closed = false;
    let more = close(&run(before()), lost_host).ledger;
    assert!(more.notes[1].contains("10 keys more") && more.notes[1].contains("account is open"), "{more:?}");
}

#[test]
fn what_a_lost_ledger_leaves_open_is_unknown_and_the_account_adds_up() {
    let tally = |host, epoch, closed, issued, acked| {
        let counts = Counts { issued, acked, failed: 1, ..Counts::default() };
        Tally { host: HostId(host), share: 0, epoch, closed, counts }
    };
    let whole = tally(1, 0, true, 50, 49);
    let mut tallies = vec![whole.clone(), tally(2, 0, false, 40, 35), tally(2, 1, false, 7, 6)];
    assert_eq!(settle_open(&mut tallies), BTreeMap::from([(HostId(2), 4)]));
    assert_eq!(tallies[0], whole);
    let total = stats::total(&tallies);
    assert_eq!((total.issued, total.acked, total.failed, total.unknown), (97, 90, 3, 4));
    assert_eq!(total.in_flight(), 0);
    let again = tallies.clone();
    settle_open(&mut tallies);
    assert_eq!(tallies, again);
    for held in [90, 94] {
        let before = vec![sample(1, "a", true, 0, 0)];
        let closing =
            Closing { tallies: tallies.clone(), ..closing(0, 0, vec![sample(1, "a", true, held, held)]) };
        let ledger = close(&run(before), closing).ledger;
        assert_eq!(
            (ledger.lost, ledger.ok),
            (0, false),
            "an account that its host did not close proves nothing"
        );
    }
}

fn acked_by(acked: &[(u16, u64)]) -> AckedBy {
    let of = |&(port, acked)| ((HostId(1), port), (SocketAddr::from(([127, 0, 0, 1], port)), acked));
    acked.iter().map(of).collect()
}

fn lost_at(ledger: &Ledger) -> Vec<(u16, u64)> {
    ledger.lost_at.iter().map(|(addr, lost)| (addr.port(), *lost)).collect()
}

#[test]
fn lost_writes_are_attributed_to_the_servers_that_were_restarted() {
    let before = || vec![sample(1, "a", true, 5, 0), sample(2, "b", true, 5, 0), sample(3, "c", true, 5, 0)];
    let after =
        |b, c| vec![sample(1, "a", true, 45, 40), sample(2, "b2", true, b, 0), sample(3, "c2", true, c, 0)];
    let closed = |acked: &[(u16, u64)], b, c| {
        let closing = Closing { acked_by: acked_by(acked), ..closing(100, 0, after(b, c)) };
        close(&run(before()), closing).ledger
    };
    let plain = closed(&[(1, 40), (2, 35), (3, 25)], 15, 25);
    assert_eq!((plain.lost, lost_at(&plain)), (30, vec![(2, 25), (3, 5)]));
    assert_eq!(plain.notes.len(), 1, "{plain:?}");

    // Half of what they acked has moved to the first since.
    let moved = closed(&[(1, 0), (2, 60), (3, 40)], 15, 25);
    assert_eq!((moved.lost, lost_at(&moved)), (30, vec![(2, 21), (3, 8)]));
    assert!(moved.notes[1].starts_with("1 of the lost writes can't be attributed"), "{moved:?}");

    let unknown = closed(&[], 15, 25);
    assert_eq!((unknown.lost, lost_at(&unknown)), (30, vec![]));
    assert!(unknown.notes[1].contains("30 of the lost") && unknown.notes[1].contains("verify --all"));

    let whole = closed(&[(1, 40), (2, 35), (3, 25)], 40, 30);
    assert_eq!((whole.lost, lost_at(&whole), whole.notes.len()), (0, vec![], 1));
}

proptest! {
    #[test]
    fn no_more_is_attributed_than_was_lost(acked in prop::collection::vec(0_u64..1000, 1..6), held in 0_u64..500) {
        let ports = 1_u16..;
        let before = ports.clone().zip(&acked).map(|(port, _)| sample(port, "a", true, 3, 0)).collect();
        let after = ports.clone().zip(&acked).map(|(port, _)| sample(port, "b", true, held, 0)).collect();
        let by: Vec<_> = ports.zip(acked.iter().copied()).collect();
        let total = acked.iter().sum::<u64>() / 2;
        let closing = Closing { acked_by: acked_by(&by), ..closing(total, 0, after) };
        let ledger = close(&run(before), closing).ledger;
        let sum: u64 = ledger.lost_at.iter().map(|(_, lost)| *lost).sum();
        prop_assert!(sum <= ledger.lost, "{ledger:?}");
        let told = ledger.notes.iter().any(|note| note.contains("can't be attributed"));
        prop_assert_eq!(told, sum < ledger.lost);
    }
}

#[test]
fn a_workload_that_writes_keys_again_is_told_by_calls_alone() {
    let mut cache = run(vec![sample(1, "a", true, 50, 0)]);
    let wraps = Workload { keys: Keys::Counter { wrap: Some(10) }, ..Workload::uuid_counter() };
    cache.spec.job = Job::Load(wraps);
    let ledger = |calls, failed| {
        let mut closing = closing(100, 5, vec![sample(1, "a", true, 40, calls)]);
        closing.tallies[0].counts.failed = failed;
        closing.tallies[0].counts.issued += failed;
        close(&cache, closing).ledger
    };
    for (calls, failed) in [(100, 0), (105, 0), (107, 2)] {
        let ledger = ledger(calls, failed);
        assert!(ledger.ok && ledger.lost == 0, "{ledger:?}");
        assert!(ledger.notes.iter().any(|note| note.starts_with("DBSIZE doesn't count")), "{ledger:?}");
    }
    for (calls, failed) in [(99, 0), (106, 0), (108, 2)] {
        let ledger = ledger(calls, failed);
        assert!(!ledger.ok && ledger.lost == 0, "{ledger:?}");
        assert!(ledger.notes.iter().any(|note| note.contains("another client")), "{ledger:?}");
    }
}

#[test]
fn reading_back_is_told_by_calls_and_changes_no_keys() {
    let mut reads = run(vec![sample(1, "a", true, 50, 0)]);
    let of = RunId(Uuid::from_u128(2));
    reads.spec.job = Job::ReadBack(ReadBack { of, wrap: None, pipeline: 1, per_million: 1_000_000 });
    for (calls, ok) in [(99, false), (100, true), (105, true), (106, false)] {
        let ledger = close(&reads, closing(100, 5, vec![sample(1, "a", true, 50, calls)])).ledger;
        assert_eq!((ledger.lost, ledger.ok, ledger.notes.is_empty()), (0, ok, ok), "{ledger:?}");
    }
}

#[test]
fn what_goes_past_the_asked_is_told_where_others_took_over() {
    let mut run = run(Vec::new());
    run.shares = shares(&[HostId(1), HostId(2)], 4, Some(100));
    let tally = |share, issued| Tally {
        host: HostId(1),
        share,
        epoch: 0,
        closed: true,
        counts: Counts { issued, ..Counts::default() },
    };
    let issued = |lost| vec![tally(0, 50), tally(1, lost), tally(2, 30)];
    assert_eq!(overshoot(&run, &issued(23)), None, "nothing was taken over");
    run.shares[1].given_up = true;
    let rest = Share { rest_of: Some(1), writes: Some(30), ..shares(&[HostId(1)], 2, None).remove(0) };
    run.shares.push(rest);
    assert_eq!(overshoot(&run, &issued(20)), None);
    assert_eq!(overshoot(&run, &issued(23)), Some(3));
    let added = Share { writes: Some(10), ..shares(&[HostId(3)], 2, None).remove(0) };
    run.shares.push(added);
    assert_eq!(overshoot(&run, &issued(23)), None, "ten more were asked for");
    run.spec.until = RunUntil::Seconds(5);
    assert_eq!(overshoot(&run, &issued(5000)), None);
}
