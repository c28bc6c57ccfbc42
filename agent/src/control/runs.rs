//! Runs as any agent sees them: counts from gossip, rates over the last seconds,
//! latencies pulled from the hosts when asked for.

use std::collections::BTreeMap;
use std::sync::{Arc, Mutex};
use std::time::Duration;

use redmesh_api::control::{ControlReply, Refusal, RefusalKind, RunDetail, RunRef, RunView};
use redmesh_api::ids::RunId;
use redmesh_api::level::{Level, Stamp};
use redmesh_api::run::{LatencySummary, Run, RunStage, Tally};
use tokio::time::Instant;
use tokio_util::sync::CancellationToken;

use super::{Answer, Control};
use crate::census::{Census, CensusHost, Hosts};
use crate::coordinator::settle::{self, Gathered};
use crate::facts::Observed;
use crate::stats::{self, RateWindow};

/// Between two samples of the counters.
const SAMPLE_INTERVAL: Duration = Duration::from_millis(250);

/// Time over which a live rate is averaged.
const RATE_WINDOW: Duration = Duration::from_secs(2);

/// How old latencies may be that are shown of a run that is going on.
const LATENCY_AGE_MAX: Duration = Duration::from_millis(500);

/// The latencies that were gathered last.
#[derive(Debug, Clone, Copy)]
pub(super) struct LastLatency {
    run: RunId,
    at: Instant,
    summaries: Summaries,
}

/// Service times, and for an open loop those from the intended begin.
type Summaries = (LatencySummary, Option<LatencySummary>);

fn summaries(gathered: &Gathered) -> Summaries {
    (stats::summary(&gathered.latency), gathered.intended.as_ref().map(stats::summary))
}

/// Cloneable handle to the rates of the runs that are going on.
#[derive(Debug, Clone, Default)]
pub struct RateSampler {
    rates: Arc<Mutex<BTreeMap<(RunId, u16), RateWindow>>>,
}

impl RateSampler {
    /// Samples all open runs until cancelled.
    pub async fn run(self, census: Census, cancel: CancellationToken) {
        let began = Instant::now();
        let mut ticks = tokio::time::interval(SAMPLE_INTERVAL);
        ticks.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Delay);
        loop {
            tokio::select! {
                _ = ticks.tick() => self.sample(&census, began.elapsed()),
                () = cancel.cancelled() => return,
            }
        }
    }

    fn sample(&self, census: &Census, at: Duration) {
        let level = census.level();
        let mut rates = self.rates.lock().unwrap_or_else(|poisoned| poisoned.into_inner());
        let open = || level.runs.iter().filter(|run| run.stage != RunStage::Done);
        rates.retain(|(run, _), _| open().any(|candidate| candidate.id == *run));
        for run in open() {
            let tallies = census.tallies(run);
            for index in indices(run) {
                let rate = rates.entry((run.id, index)).or_insert_with(|| RateWindow::new(RATE_WINDOW));
                rate.record(at, stats::total(of_share(&tallies, index)).acked);
            }
        }
    }

    fn of(&self, run: RunId, share: u16) -> f64 {
        let rates = self.rates.lock().unwrap_or_else(|poisoned| poisoned.into_inner());
        rates.get(&(run, share)).map_or(0.0, RateWindow::per_second)
    }
}

/// Indices of a run's shares.
fn indices(run: &Run) -> impl Iterator<Item = u16> {
    (0..).zip(&run.shares).map(|(index, _)| index)
}

fn of_share(tallies: &[Tally], share: u16) -> impl Iterator<Item = &Tally> {
    tallies.iter().filter(move |tally| tally.share == share)
}

/// The run that `reference` names.
pub fn find<'a>(level: &'a Level, reference: &RunRef) -> Result<&'a Run, Refusal> {
    let not_found = |message| Refusal { kind: RefusalKind::NotFound, message };
    match reference {
        RunRef::Latest => level
            .runs
            .last()
            .ok_or_else(|| not_found("there has been no run yet: redmeshctl run start".to_owned())),
        RunRef::Prefix(prefix) => {
            let prefix = prefix.to_lowercase();
            let mut matching = level.runs.iter().filter(|run| run.id.0.to_string().starts_with(&prefix));
            match (matching.next(), matching.next()) {
                (Some(run), None) => Ok(run),
                (None, _) => {
                    Err(not_found(format!("no run begins with {prefix:?}: see redmeshctl run list")))
                }
                (Some(_), Some(_)) => {
                    Err(not_found(format!("several runs begin with {prefix:?}: give more of its id")))
                }
            }
        }
    }
}

impl Control {
    pub(super) fn run_list(&self) -> Vec<RunView> {
        let level = self.census.level();
        level.runs.iter().map(|run| self.run_view(run)).collect()
    }

    pub(super) async fn run_show(&self, reference: &RunRef, latency: bool) -> Answer {
        let level = self.census.level();
        let run = find(&level, reference)?;
        let mut view = self.run_view(run);
        if latency && run.result.is_none() {
            let (latency, intended) = self.live_latency(run).await;
            (view.latency, view.intended) = (Some(latency), intended);
        }
        Ok(ControlReply::Run(view))
    }

    /// Latencies so far of a run that is going on. However many ask at once, the hosts
    /// are asked once, and not more often than every [`LATENCY_AGE_MAX`].
    async fn live_latency(&self, run: &Run) -> Summaries {
        let mut last = self.latency.lock().await;
        if let Some(last) = last.filter(|last| last.run == run.id && last.at.elapsed() < LATENCY_AGE_MAX) {
            return last.summaries;
        }
        let gathered = settle::gather(&self.census, &*self.transport, run).await;
        let summaries = summaries(&gathered);
        *last = Some(LastLatency { run: run.id, at: Instant::now(), summaries });
        summaries
    }

    pub(super) async fn run_detail(&self, reference: &RunRef) -> Answer {
        let level = self.census.level();
        let run = find(&level, reference)?;
        let gathered = settle::gather(&self.census, &*self.transport, run).await;
        let mut view = self.run_view(run);
        if run.result.is_none() {
            let (latency, intended) = summaries(&gathered);
            (view.latency, view.intended) = (Some(latency), intended);
        }
        Ok(ControlReply::RunDetail(RunDetail { view, details: gathered.details, missing: gathered.notes }))
    }

    pub(super) fn run_view(&self, run: &Run) -> RunView {
        let tallies = self.census.tallies(run);
        let share_writes_per_s: Vec<f64> = match &run.result {
            // A closed run's rate is its own average.
            Some(_) => {
                indices(run).map(|index| stats::total(of_share(&tallies, index)).per_second()).collect()
            }
            None => indices(run).map(|index| self.rates.of(run.id, index)).collect(),
        };
        let writes_per_s = match &run.result {
            Some(_) => stats::total(&tallies).per_second(),
            None => share_writes_per_s.iter().sum(),
        };
        RunView {
            run: run.clone(),
            latency: run.result.as_ref().map(|result| result.latency),
            intended: run.result.as_ref().and_then(|result| result.intended),
            waiting_for: self.run_waits_for(run, &tallies),
            tallies,
            writes_per_s,
            share_writes_per_s,
        }
    }

    fn run_waits_for(&self, run: &Run, tallies: &[Tally]) -> Option<String> {
        if run.stage == RunStage::Done {
            return None;
        }
        awaited(run, tallies, &self.census.hosts(), self.census.level().stamp).or_else(|| self.waiting_for())
    }
}

/// Which hosts a run waits for, and why, in words; `None` if all do what they should.
/// `newest` is the level that all should have.
fn awaited(run: &Run, tallies: &[Tally], hosts: &Hosts, newest: Stamp) -> Option<String> {
    let open = indices(run).zip(&run.shares).filter(|(index, _)| {
        let mut mine = of_share(tallies, *index).peekable();
        mine.peek().is_none() || mine.any(|tally| !tally.closed)
    });
    let (mut silent, mut stuck) = (Vec::new(), Vec::new());
    for (index, share) in open {
        match hosts.get(&share.host) {
            // Others have the rest of it.
            None | Some(CensusHost { alive: false, .. }) if share.given_up => {}
            None => silent.push(share.host.to_string()),
            Some(host) if !host.alive => silent.push(host.name()),
            Some(host) => match &host.observed {
                Observed { share_lost: Some(lost), .. } if lost.has(run.id, index) => {
                    stuck.push(format!("{} can't bear its share: {}", host.name(), lost.reason));
                }
                Observed { level_lost: Some(reason), .. } if host.lead.stamp < newest => {
                    stuck.push(format!("{} can't take its orders: {reason}", host.name()));
                }
                _ => {}
            },
        }
    }
    silent.dedup();
    stuck.dedup();
    if !silent.is_empty() {
        stuck.insert(0, format!("{}, not heard of: is the agent running?", silent.join(", ")));
    }
    (!stuck.is_empty()).then(|| stuck.join("; "))
}

#[cfg(test)]
mod tests {
    use redmesh_api::ids::HostId;
    use redmesh_api::run::{Counts, RunSpec, RunUntil};
    use redmesh_api::workload::Workload;
    use uuid::Uuid;

    use super::*;
    use crate::coordinator::account;
    use crate::facts::{LeadFacts, ShareLost};

    fn host(id: u32) -> CensusHost {
        CensusHost {
            id: HostId(id),
            addr: "127.0.0.1:1".parse().expect("an address"),
            alive: true,
            facts: None,
            lead: LeadFacts::default(),
            observed: Observed::default(),
        }
    }

    #[test]
    fn a_run_says_what_each_of_its_hosts_lacks() {
        let mut run = Run {
            id: RunId(Uuid::from_u128(1)),
            spec: RunSpec::closed_loop(Workload::uuid_counter(), 4, RunUntil::Writes(8)),
            shares: account::shares(&[HostId(1), HostId(2), HostId(3), HostId(4)], 4, Some(8)),
            stage: RunStage::Running,
            created_unix_ms: 0,
            starts_unix_ms: 0,
            before: Vec::new(),
            result: None,
        };
        let newest = Stamp { term: 1, index: 1, leader: HostId(1) };
        let all = |hosts: [CensusHost; 4]| -> Hosts { hosts.into_iter().map(|it| (it.id, it)).collect() };
        let well = || [1, 2, 3, 4].map(host);
        assert_eq!(awaited(&run, &[], &all(well()), newest), None);

        let [one, mut two, mut three, mut four] = well();
        two.alive = false;
        let reason = "disk full".to_owned();
        three.observed.share_lost = Some(ShareLost { run: run.id, shares: vec![2], reason });
        four.observed.level_lost = Some("read-only".to_owned());
        let hosts = all([one, two, three, four]);
        let words = awaited(&run, &[], &hosts, newest).expect("three of them");
        for part in [
            "00000002, not heard of",
            "00000003 can't bear its share: disk full",
            "00000004 can't take its orders: read-only",
        ] {
            assert!(words.contains(part), "{words}");
        }

        let closed = |share| Tally {
            host: HostId(u32::from(share) + 1),
            share,
            epoch: 0,
            closed: true,
            counts: Counts::default(),
        };
        let rest = awaited(&run, &[closed(2), closed(3)], &hosts, newest).expect("one");
        assert!(rest.starts_with("00000002, not") && !rest.contains("00000003"), "{rest}");
        run.shares[1].given_up = true;
        assert_eq!(awaited(&run, &[closed(2), closed(3)], &hosts, newest), None, "others have its rest");
    }
}
