use redmesh_api::ids::{PlanId, RunId};
use redmesh_api::level::{ClusterSpec, Formation, PlanStage, PlannedHost};
use redmesh_api::run::{ReadBack, RunSpec};
use redmesh_api::workload::Workload;
use uuid::Uuid;

use super::*;
use crate::facts::{Observed, ShareLost};

const A: HostId = HostId(1);
const B: HostId = HostId(2);
const C: HostId = HostId(3);
const D: HostId = HostId(4);

/// Host, workers, first worker, writes.
type Taken = (HostId, u32, u32, Option<u64>);

/// A run of A, B and C, with 90 writes and 6 workers, or for some time; D has no share.
struct Bench {
    run: Run,
    dead_s: BTreeMap<HostId, u64>,
    stuck: BTreeMap<HostId, Vec<u16>>,
    tallies: Vec<Tally>,
    now: u64,
}

impl Bench {
    fn new(until: RunUntil) -> Self {
        let writes = matches!(until, RunUntil::Writes(_)).then_some(90);
        let run = Run {
            id: RunId(Uuid::from_u128(3)),
            spec: RunSpec::closed_loop(Workload::uuid_counter(), 6, until),
            shares: account::shares(&[A, B, C], 6, writes),
            stage: RunStage::Running,
            created_unix_ms: 1_000,
            starts_unix_ms: 1_500,
            before: Vec::new(),
            result: None,
        };
        Self { run, dead_s: BTreeMap::new(), stuck: BTreeMap::new(), tallies: Vec::new(), now: 2_000 }
    }

    fn writes() -> Self {
        Self::new(RunUntil::Writes(90))
    }

    fn tally(&mut self, share: u16, epoch: u32, closed: bool, issued: u64) -> &mut Self {
        let host = self.run.shares[usize::from(share)].host;
        let counts = Counts { issued, acked: issued, ..Counts::default() };
        self.tallies.retain(|tally| (tally.share, tally.epoch) != (share, epoch));
        self.tallies.push(Tally { host, share, epoch, closed, counts });
        self
    }

    fn dead(&mut self, host: HostId, seconds: u64) -> &mut Self {
        self.dead_s.insert(host, seconds);
        self
    }

    fn look<T>(&self, ask: impl FnOnce(Look<'_>, &ClusterPlan) -> T) -> T {
        let seen = [A, B, C, D].map(|id| {
            let lost = |shares: &Vec<u16>| ShareLost {
                run: self.run.id,
                shares: shares.clone(),
                reason: "disk full".to_owned(),
            };
            let observed = Observed { share_lost: self.stuck.get(&id).map(lost), ..Observed::default() };
            let dead_for = Duration::from_secs(self.dead_s.get(&id).copied().unwrap_or(0));
            (id, Seen { name: format!("host-{}", id.0), dead_for, observed })
        });
        let seen = BTreeMap::from(seen);
        let look = Look { run: &self.run, seen: &seen, tallies: &self.tallies, now_unix_ms: self.now };
        ask(look, &plan())
    }

    fn outcome(&self) -> Option<Outcome> {
        self.look(|look, _| look.outcome())
    }

    fn incomplete(&self) -> String {
        match self.outcome() {
            Some(Outcome::Incomplete(reason)) => reason,
            other => panic!("{other:?}"),
        }
    }

    /// What is to be taken over: which share, and by whom.
    fn takeover(&self) -> Option<(u16, Vec<Taken>)> {
        let Step::TakeOver { run, known, given_up, shares } =
            self.look(|look, plan| look.takeover(Some(plan)))?
        else {
            panic!("another step")
        };
        assert_eq!((run, usize::from(known)), (self.run.id, self.run.shares.len()));
        assert!(shares.iter().all(|share| share.rest_of == Some(given_up) && !share.given_up));
        Some((given_up, shares.iter().map(|it| (it.host, it.workers, it.first_worker, it.writes)).collect()))
    }

    /// Takes it as the state machine does.
    fn take(&mut self) {
        match self.look(|look, plan| look.takeover(Some(plan))) {
            Some(Step::TakeOver { given_up, shares, .. }) => {
                self.run.shares[usize::from(given_up)].given_up = true;
                self.run.shares.extend(shares);
            }
            other => panic!("{other:?}"),
        }
    }
}

fn plan() -> ClusterPlan {
    let host = |id: HostId| PlannedHost {
        id,
        name: format!("host-{}", id.0),
        ip: "127.0.0.1".parse().expect("an address"),
        base_port: 6379,
    };
    ClusterPlan {
        id: PlanId(Uuid::from_u128(5)),
        spec: ClusterSpec { instances_per_host: 1, replicas: 0, node_timeout_ms: None, ..Default::default() },
        node_timeout_ms: 5000,
        hz: 10,
        stage: PlanStage::Formed,
        hosts: [A, B, C, D].map(host).to_vec(),
        instances: Vec::new(),
        created_unix_ms: 0,
        formation: Formation::Seeded,
        reached: Vec::new(),
        convergence: None,
    }
}

#[test]
fn a_run_by_writes_closes_when_every_quota_is_spent() {
    let mut bench = Bench::writes();
    bench.tally(0, 0, true, 30).tally(1, 0, true, 30);
    assert_eq!(bench.outcome(), None, "nothing heard of the third share");
    assert_eq!(bench.tally(2, 0, false, 30).outcome(), None, "not closed");
    assert_eq!(bench.tally(2, 0, true, 20).outcome(), None, "ten are left");
    assert_eq!(bench.tally(2, 1, true, 10).outcome(), Some(Outcome::Completed));
}

#[test]
fn a_run_by_seconds_closes_when_its_time_is_over() {
    let mut bench = Bench::new(RunUntil::Seconds(5));
    bench.tally(0, 0, true, 6).tally(1, 0, true, 6).tally(2, 0, true, 6);
    bench.now = 6_499;
    assert_eq!(bench.outcome(), None, "a restarted agent may still go on");
    bench.now = 6_500;
    assert_eq!(bench.outcome(), Some(Outcome::Completed));
    (bench.now, bench.run.stage) = (3_000, RunStage::Stopping);
    assert_eq!(bench.outcome(), Some(Outcome::Stopped));
}

/// Found by seed 344 of the simulation: the run's first coordinator was 116 s ahead, and the
/// next one held a run of some seconds open until its own clock came there.
#[test]
fn a_begin_by_a_clock_that_was_ahead_does_not_hold_the_run_open() {
    let mut bench = Bench::new(RunUntil::Seconds(5));
    bench.run.starts_unix_ms = bench.now + 116_000;
    bench.tally(0, 0, true, 6).tally(1, 0, true, 6).tally(2, 0, false, 6);
    assert_eq!(bench.outcome(), None, "the third share goes on");
    assert_eq!(bench.tally(2, 0, true, 6).outcome(), Some(Outcome::Completed));
    bench.now = bench.run.starts_unix_ms - 500;
    assert_eq!(bench.outcome(), None, "so far ahead is what a coordinator sets");
}

#[test]
fn a_host_that_stays_away_does_not_hold_the_account_open_for_ever() {
    let mut bench = Bench::writes();
    bench.run.stage = RunStage::Stopping;
    bench.tally(0, 0, true, 30).tally(1, 0, false, 17).tally(2, 0, true, 30);
    assert_eq!(bench.dead(B, 59).outcome(), None);
    assert_eq!(bench.takeover(), None, "nobody goes on with a run that is being stopped");
    bench.dead(B, 61);
    assert!(bench.incomplete().contains("host-2 has been silent for 61 s"));
}

#[test]
fn a_share_that_its_host_cannot_bear_is_lost_at_once_and_its_others_are_not() {
    let mut bench = Bench::writes();
    bench.tally(0, 0, true, 30).tally(2, 0, false, 30);
    bench.stuck.insert(B, vec![1]);
    assert_eq!(bench.outcome(), None, "another share goes on");
    let reason = bench.tally(2, 0, true, 30).incomplete();
    assert!(reason.contains("host-2") && reason.contains("disk full"), "{reason}");
    bench.stuck.insert(B, vec![7]);
    assert_eq!(bench.outcome(), None, "it is another share that it can't bear");
}

#[test]
fn a_life_whose_account_is_lost_is_not_waited_for() {
    let mut bench = Bench::writes();
    bench.tally(0, 0, true, 30).tally(2, 0, true, 30).tally(1, 0, false, 17);
    assert_eq!(bench.outcome(), None, "its host may come back and close it");
    assert_eq!(bench.tally(1, 1, false, 20).outcome(), None, "its next life goes on");
    let reason = bench.tally(1, 1, true, 30).incomplete();
    assert!(reason.contains("host-2 was restarted without its account"), "{reason}");
    // Of another share's life nothing follows.
    let mut bench = Bench::writes();
    bench.tally(0, 0, true, 30).tally(1, 0, false, 30).tally(2, 1, true, 30);
    assert_eq!(bench.outcome(), None);
}

#[test]
fn the_others_take_over_what_a_lost_host_has_left() {
    let mut bench = Bench::writes();
    bench.tally(0, 0, false, 5).tally(1, 0, false, 17).tally(2, 0, false, 5);
    assert_eq!(bench.dead(B, 15).takeover(), None, "it may come back and keep its share");
    let taken = Some((1, vec![(A, 1, 2, Some(6)), (C, 1, 3, Some(7))]));
    assert_eq!(bench.dead(B, 16).takeover(), taken);
    bench.take();
    assert_eq!(bench.takeover(), None, "once");
    assert_eq!(bench.outcome(), None);

    bench.tally(0, 0, true, 30).tally(2, 0, true, 30).tally(3, 1, true, 6);
    assert_eq!(bench.outcome(), None, "one of the takers goes on");
    bench.tally(4, 1, true, 7);
    let reason = bench.incomplete();
    for words in ["host-2 was lost", "host-1, host-3 took over 13 writes", "at most 13 writes"] {
        assert!(reason.contains(words), "{reason}");
    }
}

#[test]
fn a_lost_host_that_comes_back_makes_the_account_exact() {
    let mut bench = Bench::writes();
    bench.tally(0, 0, true, 30).tally(1, 0, false, 17).tally(2, 0, true, 30).dead(B, 16);
    bench.take();
    bench.tally(3, 1, true, 6).tally(4, 1, true, 7);
    assert_eq!(bench.dead(B, 0).outcome(), None, "it is back: its account follows");
    assert_eq!(bench.tally(1, 0, true, 19).outcome(), Some(Outcome::Completed));
}

#[test]
fn a_taker_may_be_lost_too() {
    let mut bench = Bench::writes();
    bench.tally(0, 0, true, 30).tally(1, 0, false, 20).tally(2, 0, false, 30).dead(B, 16);
    bench.take();
    bench.tally(4, 1, false, 2).dead(C, 16);
    // Its own quota is issued, so there is nothing left of that to take over.
    assert_eq!(bench.takeover(), Some((4, vec![(A, 1, 3, Some(3))])));
    bench.take();
    assert_eq!(bench.takeover(), None);
    bench.tally(3, 1, true, 5).tally(5, 2, true, 3);
    assert_eq!(bench.outcome(), None, "whether C's own share is accounted for is waited for");
    let reason = bench.dead(C, 61).incomplete();
    assert!(reason.contains("host-1 took over 3 writes of its share"), "{reason}");
}

#[test]
fn what_is_left_of_the_time_is_taken_over_with_its_workers() {
    let mut bench = Bench::new(RunUntil::Seconds(60));
    bench.dead(B, 16).dead(C, 3);
    assert_eq!(bench.takeover(), Some((1, vec![(A, 2, 2, None)])), "who is dead takes nothing");
    // Drained and gone: its time is not over all the same.
    bench.tally(1, 0, true, 100);
    assert!(bench.takeover().is_some());
    bench.now = 61_500;
    assert_eq!(bench.takeover(), None, "nothing is left of it");
    bench.now = 10_000;
    bench.take();
    bench.now = 61_500;
    bench.tally(0, 0, true, 9).tally(2, 0, true, 9).tally(3, 1, true, 9);
    assert_eq!(bench.outcome(), Some(Outcome::Completed), "it had closed its account before it left");
    bench.tally(1, 0, false, 100);
    let reason = bench.incomplete();
    assert!(reason.contains("the rest of the time") && !reason.contains("at most"), "{reason}");
}

#[test]
fn any_host_of_the_plan_takes_over_where_no_load_host_can() {
    let mut bench = Bench::writes();
    bench.dead(A, 16).dead(B, 16);
    bench.stuck.insert(C, vec![2]);
    assert_eq!(bench.takeover(), Some((0, vec![(D, 2, 0, Some(30))])));
    bench.dead(D, 1);
    assert_eq!(bench.takeover(), None, "nobody can");
    assert_eq!(bench.outcome(), None);
    let reason = bench.dead(A, 61).dead(B, 61).incomplete();
    assert!(reason.contains("host-1 has been silent for 61 s; its last"), "{reason}");
}

#[test]
fn a_quota_smaller_than_the_takers_leaves_none_without_work() {
    let mut bench = Bench::writes();
    bench.tally(1, 0, false, 29).dead(B, 16);
    assert_eq!(bench.takeover(), Some((1, vec![(C, 1, 3, Some(1))])));
    assert_eq!(bench.tally(1, 0, false, 30).takeover(), None, "all of it was issued");
}

#[test]
fn shares_are_bounded_in_number() {
    let mut bench = Bench::writes();
    let more = Share { writes: Some(0), ..bench.run.shares[0].clone() };
    bench.run.shares.resize(SHARES_MAX - 1, more);
    bench.dead(B, 16);
    assert_eq!(bench.takeover(), None);
    bench.run.shares.truncate(SHARES_MAX - 2);
    assert!(bench.takeover().is_some());
}

#[test]
fn reading_back_is_over_when_its_shares_are_closed_and_nobody_takes_over() {
    let mut bench = Bench::writes();
    let of = RunId(Uuid::from_u128(2));
    bench.run.spec.job = Job::ReadBack(ReadBack { of, wrap: None, pipeline: 1, per_million: 1_000_000 });
    bench.run.shares.iter_mut().for_each(|share| share.writes = None);
    bench.tally(0, 0, true, 30).tally(1, 0, true, 29).tally(2, 0, false, 3);
    assert_eq!(bench.outcome(), None);
    assert_eq!(bench.dead(C, 20).takeover(), None);
    assert_eq!(bench.tally(2, 0, true, 4).outcome(), Some(Outcome::Completed));
}
