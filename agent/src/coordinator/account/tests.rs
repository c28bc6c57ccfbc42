use proptest::prelude::*;
use redmesh_api::ids::RunId;
use redmesh_api::run::{RunSpec, RunStage, RunUntil, UUID_COUNTER};
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

fn sample(port: u16, run_id: &str, primary: bool, dbsize: u64, set_calls: u64) -> ServerSample {
    ServerSample {
        host: HostId(1),
        port,
        run_id: run_id.to_owned(),
        primary,
        dbsize,
        set_calls,
        cpu_us: set_calls,
    }
}

fn run(before: Vec<ServerSample>) -> Run {
    Run {
        id: RunId(Uuid::from_u128(1)),
        spec: RunSpec {
            workload: UUID_COUNTER.to_owned(),
            workers: 1,
            load_hosts: None,
            until: RunUntil::Writes(100),
        },
        shares: Vec::new(),
        stage: RunStage::Running,
        created_unix_ms: 0,
        before,
        result: None,
    }
}

fn closing(acked: u64, unknown: u64, after: Vec<ServerSample>) -> Closing {
    let counts = Counts { issued: acked + unknown, acked, unknown, ..Counts::default() };
    Closing {
        outcome: Outcome::Completed,
        tallies: vec![Tally { host: HostId(1), epoch: 0, closed: true, counts }],
        latency: LatencySummary::default(),
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
    assert_eq!((ledger.dbsize, ledger.cmdstat_set_calls, ledger.lost, ledger.ok), (100, 100, 0, true));
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
}
