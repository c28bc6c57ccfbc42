//! What a share is to do, out of what was asked of the run: pure arithmetic, the caller
//! brings the time.

use std::time::Duration;

use redmesh_api::run::{BEGIN_AHEAD_MAX, Job, Run, RunUntil, Share};

use crate::load::ShareUntil;

/// A share that begins so late still issues for the whole time that was asked; a later
/// one (its agent was away) for what is left of it.
const START_GRACE: Duration = Duration::from_secs(5);

/// What earlier lives did of a share.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Done {
    /// Lives that there were.
    pub lives: usize,
    /// Operations that they issued.
    pub issued: u64,
}

/// What a share has left to issue; `None` for nothing.
pub fn remaining(run: &Run, share: &Share, done: Done, now_unix_ms: u64) -> Option<ShareUntil> {
    if share.given_up {
        return None;
    }
    match (&run.spec.job, run.spec.until) {
        // What an earlier life has read back would be counted twice.
        (Job::ReadBack(_), _) => (done.lives == 0).then_some(ShareUntil::Exhausted),
        (Job::Load(_), RunUntil::Writes(_)) => {
            let left = share.writes.unwrap_or(0).saturating_sub(done.issued);
            (left > 0).then_some(ShareUntil::Writes(left))
        }
        (Job::Load(_), RunUntil::Seconds(seconds)) => {
            let gone = now_unix_ms.saturating_sub(run.starts_unix_ms) / 1000;
            // What came in mid-run ends with the others.
            let grace = if came_later(run, share) { 0 } else { START_GRACE.as_secs() };
            let end = u64::from(seconds) + grace;
            let left = u32::try_from(end.saturating_sub(gone)).unwrap_or(u32::MAX).min(seconds);
            (left > 0).then_some(ShareUntil::Seconds(left))
        }
    }
}

/// The time by which a host may go that learned of `run` just now and knew all there was
/// to know until `ignorant_for` ago: the run can't be much older than that, whatever this
/// host's clock says. Without it the wall clock is all there is.
pub fn plausible_now(run: &Run, now_unix_ms: u64, ignorant_for: Option<Duration>) -> u64 {
    let Some(ignorant_for) = ignorant_for else { return now_unix_ms };
    let gone = u64::try_from((ignorant_for + START_GRACE).as_millis()).unwrap_or(u64::MAX);
    now_unix_ms.min(run.starts_unix_ms.saturating_add(gone))
}

/// Whether `share` was taken over or added while the run was going on.
fn came_later(run: &Run, share: &Share) -> bool {
    share.rest_of.is_some() || share.first_worker >= run.spec.workers
}

/// How long a share waits before it issues. One that had a life before, or that comes
/// later than the others, begins at once.
pub fn begins_in(run: &Run, share: &Share, done: Done, now_unix_ms: u64) -> Duration {
    if done.lives > 0 || came_later(run, share) {
        return Duration::ZERO;
    }
    Duration::from_millis(run.starts_unix_ms.saturating_sub(now_unix_ms)).min(BEGIN_AHEAD_MAX)
}

/// What is left of the run's first `seconds` (its ramp, its warm-up) for a share that
/// begins now: all of it for one that begins with the run.
pub fn left_of(seconds: u32, run: &Run, share: &Share, done: Done, now_unix_ms: u64) -> Duration {
    let gone = Duration::from_millis(now_unix_ms.saturating_sub(run.starts_unix_ms));
    let whole = Duration::from_secs(seconds.into());
    match done.lives == 0 && !came_later(run, share) && gone <= START_GRACE {
        true => whole,
        false => whole.saturating_sub(gone),
    }
}

/// A share's part of the run's rate, operations a second.
pub fn rate(run: &Run, share: &Share) -> Option<f64> {
    let whole = f64::from(run.spec.workers.max(1));
    run.spec.rate.map(|rate| rate as f64 * f64::from(share.workers) / whole)
}

#[cfg(test)]
mod tests {
    use redmesh_api::ids::{HostId, RunId};
    use redmesh_api::run::{BEGIN_AHEAD_MAX, ReadBack, RunSpec, RunStage};
    use redmesh_api::workload::Workload;
    use uuid::Uuid;

    use super::*;

    const FRESH: Done = Done { lives: 0, issued: 0 };

    fn run(until: RunUntil) -> Run {
        Run {
            id: RunId(Uuid::from_u128(1)),
            spec: RunSpec::closed_loop(Workload::uuid_counter(), 10, until),
            shares: Vec::new(),
            stage: RunStage::Running,
            created_unix_ms: 1,
            starts_unix_ms: 1_000_000,
            before: Vec::new(),
            result: None,
        }
    }

    fn share(writes: Option<u64>) -> Share {
        Share { host: HostId(1), workers: 4, first_worker: 0, writes, given_up: false, rest_of: None }
    }

    #[test]
    fn a_restarted_agent_issues_what_its_earlier_lives_left() {
        let left = |lives, issued| {
            let run = run(RunUntil::Writes(100));
            remaining(&run, &share(Some(40)), Done { lives, issued }, 1_000_000)
        };
        assert_eq!(left(0, 0), Some(ShareUntil::Writes(40)));
        assert_eq!(left(2, 20), Some(ShareUntil::Writes(20)));
        assert_eq!(left(1, 40), None);
        let given_up = Share { given_up: true, ..share(Some(40)) };
        assert_eq!(remaining(&run(RunUntil::Writes(100)), &given_up, FRESH, 1_000_000), None);
    }

    #[test]
    fn time_goes_on_while_an_agent_is_away() {
        let left = |share: &Share, gone_ms: u64| {
            remaining(&run(RunUntil::Seconds(60)), share, FRESH, 1_000_000 + gone_ms)
        };
        let whole = share(None);
        assert_eq!(left(&whole, 0), Some(ShareUntil::Seconds(60)));
        assert_eq!(left(&whole, 4_000), Some(ShareUntil::Seconds(60)));
        assert_eq!(left(&whole, 35_000), Some(ShareUntil::Seconds(30)));
        assert_eq!(left(&whole, 65_000), None);
        for late in [Share { rest_of: Some(0), ..share(None) }, Share { first_worker: 10, ..share(None) }] {
            assert_eq!(left(&late, 35_000), Some(ShareUntil::Seconds(25)));
            assert_eq!(left(&late, 60_000), None);
        }
        let early = remaining(&run(RunUntil::Seconds(60)), &whole, FRESH, 999_000);
        assert_eq!(early, Some(ShareUntil::Seconds(60)));
    }

    #[test]
    fn a_clock_that_is_ahead_takes_nothing_from_a_run_that_was_heard_of_at_once() {
        let run = run(RunUntil::Seconds(60));
        let left = |ahead_ms: u64, ignorant_for| {
            let now = plausible_now(&run, 1_000_000 + ahead_ms, ignorant_for);
            remaining(&run, &share(None), FRESH, now)
        };
        let at_once = Some(Duration::from_millis(200));
        assert_eq!(left(120_000, at_once), Some(ShareUntil::Seconds(60)));
        assert_eq!(left(4_000, at_once), Some(ShareUntil::Seconds(60)));
        assert_eq!(left(120_000, None), None, "an agent that was away goes by its clock");
        assert_eq!(left(120_000, Some(Duration::from_secs(30))), Some(ShareUntil::Seconds(30)));
        assert_eq!(left(20_000, Some(Duration::from_secs(30))), Some(ShareUntil::Seconds(45)));
        let behind = plausible_now(&run, 880_000, at_once);
        assert_eq!(remaining(&run, &share(None), FRESH, behind), Some(ShareUntil::Seconds(60)));
        assert_eq!(begins_in(&run, &share(None), FRESH, behind), BEGIN_AHEAD_MAX);
    }

    #[test]
    fn nothing_is_read_back_twice() {
        let mut run = run(RunUntil::Writes(100));
        let of = RunId(Uuid::from_u128(2));
        run.spec.job = Job::ReadBack(ReadBack { of, wrap: None, pipeline: 1, per_million: 1 });
        assert_eq!(remaining(&run, &share(None), FRESH, 0), Some(ShareUntil::Exhausted));
        assert_eq!(remaining(&run, &share(None), Done { lives: 1, issued: 0 }, 0), None);
    }

    #[test]
    fn all_begin_together_but_nobody_waits_long_for_a_clock() {
        let run = run(RunUntil::Seconds(60));
        let wait = |share: &Share, done, now| begins_in(&run, share, done, now).as_millis();
        let whole = share(None);
        assert_eq!(wait(&whole, FRESH, 999_600), 400);
        assert_eq!(wait(&whole, FRESH, 1_000_100), 0);
        assert_eq!(wait(&whole, FRESH, 5_000), 2_000, "this host's clock is slow");
        assert_eq!(wait(&whole, Done { lives: 1, issued: 0 }, 999_600), 0);
        assert_eq!(wait(&Share { rest_of: Some(0), ..share(None) }, FRESH, 999_600), 0);
    }

    #[test]
    fn who_begins_later_has_what_is_left_of_the_warm_up() {
        let run = run(RunUntil::Seconds(60));
        let left = |share: &Share, done, now| left_of(10, &run, share, done, now).as_secs();
        let whole = share(None);
        assert_eq!([5, 1_000_000, 1_004_000].map(|now| left(&whole, FRESH, now)), [10; 3]);
        assert_eq!([1_006_000, 1_011_000].map(|now| left(&whole, FRESH, now)), [4, 0]);
        assert_eq!(left(&whole, Done { lives: 1, issued: 9 }, 1_004_000), 6);
        assert_eq!(left(&Share { rest_of: Some(0), ..whole }, FRESH, 1_004_000), 6);
    }

    #[test]
    fn a_share_has_its_workers_part_of_the_rate() {
        let mut run = run(RunUntil::Seconds(60));
        assert_eq!(rate(&run, &share(None)), None);
        run.spec.rate = Some(1001);
        assert_eq!(rate(&run, &share(None)), Some(400.4));
    }
}
