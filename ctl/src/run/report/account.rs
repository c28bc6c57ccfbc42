//! What a run's tallies add up to. Pure.
//!
//! A host may have several shares (its own, rests that it took over, what `run share`
//! added) and each share several lives. Shares go on beside each other; lives of one
//! share follow each other, and so does a rest the share that it is of. Between those
//! nobody was at work: of a run that had such gaps the whole counts from its begin to its
//! end by the clock.

use std::collections::HashMap;

use redmesh_api::control::RunView;
use redmesh_api::ids::HostId;
use redmesh_api::run::{Counts, Job, RunSpec, Share, Tally};
use redmesh_api::workload::Verb;

/// A run's counts by share and by host.
#[derive(Debug)]
pub struct Account<'a> {
    shares: &'a [Share],
    tallies: &'a [Tally],
    lately: &'a [f64],
    /// Active and warm-up time of all lives of a share, µs.
    lives: HashMap<u16, (u64, u64)>,
    /// From the run's begin to its end, µs, where something was interrupted meanwhile.
    with_gaps_us: Option<u64>,
}

impl<'a> Account<'a> {
    /// Of a run as it stands. A closed account is the result's; gossip's view of it may
    /// lag behind.
    pub fn of(view: &'a RunView) -> Self {
        let tallies = view.run.result.as_ref().map_or(&view.tallies, |result| &result.tallies);
        let mut lives: HashMap<u16, (u64, u64)> = HashMap::new();
        for tally in tallies {
            let (active_us, warm_us) = lives.entry(tally.share).or_default();
            *active_us = active_us.saturating_add(tally.counts.active_us);
            *warm_us = warm_us.saturating_add(tally.counts.warm_us);
        }
        let run = &view.run;
        let gaps = tallies.len() > lives.len() || run.shares.iter().any(|share| share.rest_of.is_some());
        let wall_ms = run.result.as_ref().map(|it| it.ended_unix_ms.saturating_sub(run.starts_unix_ms));
        let with_gaps_us = wall_ms.filter(|_| gaps).map(|ms| ms.saturating_mul(1000));
        Self { shares: &run.shares, tallies, lately: &view.share_writes_per_s, lives, with_gaps_us }
    }

    /// All of it.
    pub fn total(&self) -> Counts {
        let sum = self.sum(|_| true);
        Counts { active_us: sum.active_us.max(self.with_gaps_us.unwrap_or(0)), ..sum }
    }

    /// One host's part.
    pub fn of_host(&self, host: HostId) -> Counts {
        self.sum(|tally| tally.host == host)
    }

    /// The hosts that have shares, in the order of their first ones.
    pub fn hosts(&self) -> Vec<HostId> {
        let mut seen = std::collections::HashSet::new();
        self.shares.iter().map(|share| share.host).filter(|host| seen.insert(*host)).collect()
    }

    /// Workers over all hosts, those of shares that were added later included; whose share
    /// others have taken over counts once.
    pub fn workers(&self) -> u32 {
        let first = self.shares.iter().filter(|share| share.rest_of.is_none());
        first.fold(0, |sum, share| sum.saturating_add(share.workers))
    }

    /// Workers over a host's shares.
    pub fn workers_of(&self, host: HostId) -> u32 {
        let shares = self.shares.iter().filter(|share| share.host == host);
        shares.fold(0, |sum, share| sum.saturating_add(share.workers))
    }

    /// Operations that a host acked per second lately.
    pub fn lately(&self, host: HostId) -> f64 {
        let shares = self.shares.iter().zip(self.lately);
        shares.filter(|(share, _)| share.host == host).map(|(_, per_s)| per_s).sum()
    }

    fn sum(&self, of: impl Fn(&Tally) -> bool) -> Counts {
        let tallies = || self.tallies.iter().filter(|tally| of(tally));
        let counts = tallies().fold(Counts::default(), |sum, tally| sum.plus(tally.counts));
        let times = tallies().map(|tally| self.elapsed(tally.share));
        let (active_us, warm_us) = times.max().unwrap_or((0, 0));
        Counts { active_us, warm_us, ..counts }
    }

    /// Active and warm-up time until a share's end, µs.
    fn elapsed(&self, share: u16) -> (u64, u64) {
        let mut sum = (0_u64, 0_u64);
        let mut next = Some(share);
        while let Some(index) = next {
            let (active_us, warm_us) = self.lives.get(&index).copied().unwrap_or((0, 0));
            sum = (sum.0.saturating_add(active_us), sum.1.saturating_add(warm_us));
            // A rest comes after what it is of; anything else would go round in circles.
            let share = self.shares.get(usize::from(index));
            next = share.and_then(|share| share.rest_of).filter(|earlier| *earlier < index);
        }
        sum
    }

    /// Shares that are rests: of which share, and all shares that took of it.
    pub fn rests(&self) -> Vec<(&'a Share, Vec<&'a Share>)> {
        let mut rests: Vec<(u16, &Share, Vec<&Share>)> = Vec::new();
        for share in self.shares {
            let Some(of) = share.rest_of else { continue };
            match rests.iter_mut().find(|(known, ..)| *known == of) {
                Some((.., takers)) => takers.push(share),
                None => {
                    let lost = self.shares.get(usize::from(of));
                    rests.extend(lost.map(|lost| (of, lost, vec![share])));
                }
            }
        }
        rests.into_iter().map(|(_, lost, takers)| (lost, takers)).collect()
    }
}

/// Share of its schedule that an open loop has held, percent: its rate after warm-up
/// against what the schedule (which grows evenly over the ramp) asked for in that time.
/// `None` in a closed loop, and where nothing was measured.
pub fn held_percent(spec: &RunSpec, counts: &Counts) -> Option<f64> {
    let rate = spec.rate? as f64;
    let (from, to) = (counts.warm_us as f64 / 1e6, counts.active_us as f64 / 1e6);
    let ramp = f64::from(spec.ramp_s);
    let scheduled_until =
        |s: f64| if s < ramp { rate * s * s / (2.0 * ramp) } else { rate * (s - ramp / 2.0) };
    let asked_per_s = (scheduled_until(to) - scheduled_until(from)) / (to - from);
    // Not a number and infinity are no answer either.
    (asked_per_s > 0.0 && to > from).then(|| (counts.per_second() / asked_per_s * 100.0).min(100.0))
}

/// What a run's operations are called.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Noun {
    /// One of them.
    pub one: &'static str,
    /// Many.
    pub many: &'static str,
    /// One of them with its article.
    pub a: &'static str,
    /// What a run of them is at.
    pub doing: &'static str,
}

impl Noun {
    /// Of a workload that does nothing but write.
    pub const WRITES: Self = Self { one: "write", many: "writes", a: "a write", doing: "writing" };
    /// Of a workload that does more.
    pub const OPERATIONS: Self =
        Self { one: "operation", many: "operations", a: "an operation", doing: "working" };
    /// Of what is read back.
    pub const READS: Self = Self { one: "read", many: "reads", a: "a read", doing: "reading" };

    /// Of a run that does `job`.
    pub fn of(job: &Job) -> Self {
        let writes = |verb| matches!(verb, Verb::Set | Verb::Hset | Verb::Mset);
        match job {
            Job::ReadBack(_) => Self::READS,
            Job::Load(workload)
                if workload.mix.iter().all(|(verb, weight)| writes(*verb) || *weight == 0) =>
            {
                Self::WRITES
            }
            Job::Load(_) => Self::OPERATIONS,
        }
    }
}

#[cfg(test)]
mod tests {
    use redmesh_api::run::RunUntil;
    use redmesh_api::workload::Workload;

    use super::*;
    use crate::run::report::tests::{done, running, tally};

    fn timed(host: u32, share: u16, epoch: u32, acked: u64, active_us: u64) -> Tally {
        let mut tally = tally(host, acked);
        (tally.share, tally.epoch, tally.counts.active_us) = (share, epoch, active_us);
        tally
    }

    fn rest(view: &RunView, host: u32, rest_of: u16) -> Share {
        Share { host: HostId(host), rest_of: Some(rest_of), writes: Some(600), ..view.run.shares[0].clone() }
    }

    #[test]
    fn lives_follow_each_other_and_shares_go_on_beside_each_other() {
        let mut view = running();
        view.tallies = vec![
            timed(1, 0, 0, 100, 10_000_000),
            timed(2, 1, 0, 50, 4_000_000),
            timed(2, 1, 1, 70, 8_000_000),
        ];
        let account = Account::of(&view);
        assert_eq!((account.total().acked, account.total().active_us), (220, 12_000_000));
        assert_eq!(account.of_host(HostId(2)).per_second(), 10.0);
        assert_eq!(account.of_host(HostId(1)).per_second(), 10.0);
        assert_eq!(account.of_host(HostId(9)), Counts::default());
    }

    #[test]
    fn a_rest_follows_what_it_is_of() {
        let mut view = running();
        view.run.shares[1].given_up = true;
        view.run.shares.push(rest(&view, 1, 1));
        view.run.shares.push(rest(&view, 3, 1));
        view.tallies = vec![
            timed(1, 0, 0, 100, 10_000_000),
            timed(2, 1, 0, 50, 4_000_000),
            timed(1, 2, 1, 70, 8_000_000),
            timed(3, 3, 0, 70, 7_000_000),
        ];
        let account = Account::of(&view);
        assert_eq!(account.total().active_us, 12_000_000);
        assert_eq!(account.hosts(), [HostId(1), HostId(2), HostId(3)]);
        assert_eq!(account.workers_of(HostId(1)), 2000);
        assert_eq!(account.of_host(HostId(1)).acked, 170);
        let rests = account.rests();
        assert_eq!((rests.len(), rests[0].0.host, rests[0].1.len()), (1, HostId(2), 2));
    }

    #[test]
    fn a_run_that_was_interrupted_took_as_long_as_the_clock_says() {
        let mut view = done();
        view.run.starts_unix_ms = 1_000;
        let result = view.run.result.as_mut().expect("a closed run");
        result.ended_unix_ms = 31_000;
        result.tallies = vec![timed(1, 0, 0, 100, 4_000_000), timed(2, 1, 0, 100, 5_000_000)];
        assert_eq!(Account::of(&view).total().active_us, 5_000_000);
        let result = view.run.result.as_mut().expect("a closed run");
        result.tallies.push(timed(1, 0, 1, 100, 9_000_000));
        assert_eq!(Account::of(&view).total().active_us, 30_000_000);
    }

    #[test]
    fn shares_that_make_no_sense_end_all_the_same() {
        let mut view = running();
        view.run.shares.push(rest(&view, 1, 2));
        view.run.shares.push(rest(&view, 1, 999));
        view.run.shares[0].rest_of = Some(1);
        view.tallies = vec![timed(1, 2, 0, 1, u64::MAX), timed(1, 0, 1, 1, 5), timed(1, 77, 2, 1, 5)];
        let account = Account::of(&view);
        assert_eq!(account.total().active_us, u64::MAX);
        assert_eq!(account.rests().len(), 2);
    }

    #[test]
    fn a_schedule_is_held_in_so_far_as_its_rate_was_reached() {
        let mut spec = RunSpec::closed_loop(Workload::uuid_counter(), 1, RunUntil::Seconds(10));
        let mut counts = Counts { acked: 900, active_us: 10_000_000, ..Counts::default() };
        assert_eq!(held_percent(&spec, &counts), None);
        spec.rate = Some(100);
        assert_eq!(held_percent(&spec, &counts), Some(90.0));
        // A ramp of 4 s asks for 2 s' worth less.
        spec.ramp_s = 4;
        counts.acked = 400;
        assert_eq!(held_percent(&spec, &counts), Some(50.0));
        // What was warm-up doesn't count on either side.
        (counts.warm_us, counts.warm_acked, counts.acked) = (5_000_000, 300, 800);
        assert_eq!(held_percent(&spec, &counts), Some(100.0));
        assert_eq!(held_percent(&spec, &Counts::default()), None);
        counts.warm_us = counts.active_us;
        assert_eq!(held_percent(&spec, &counts), None);
    }

    #[test]
    fn operations_are_called_what_they_are() {
        let mut job = done().run.spec.job;
        assert_eq!(Noun::of(&job), Noun::WRITES);
        let Job::Load(workload) = &mut job else { panic!() };
        workload.mix.push((Verb::Get, 0));
        assert_eq!(Noun::of(&job), Noun::WRITES);
        let Job::Load(workload) = &mut job else { panic!() };
        workload.mix.push((Verb::Expire, 1));
        assert_eq!(Noun::of(&job), Noun::OPERATIONS);
    }
}
