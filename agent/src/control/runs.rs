//! Runs as any agent sees them: counts from gossip, rates over the last seconds,
//! latencies pulled from the hosts when asked for.

use std::collections::BTreeMap;
use std::sync::{Arc, Mutex};
use std::time::Duration;

use redmesh_api::control::{ControlReply, Refusal, RefusalKind, RunDetail, RunRef, RunView};
use redmesh_api::ids::{HostId, RunId};
use redmesh_api::level::Level;
use redmesh_api::run::{Counts, LatencySummary, Run, RunStage, Tally};
use tokio::time::Instant;
use tokio_util::sync::CancellationToken;

use super::Control;
use crate::census::Census;
use crate::coordinator::settle;
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
    summary: LatencySummary,
}

/// Cloneable handle to the rates of the runs that are going on.
#[derive(Debug, Clone, Default)]
pub struct RateSampler {
    rates: Arc<Mutex<BTreeMap<(RunId, HostId), RateWindow>>>,
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
            for share in &run.shares {
                let rate = rates.entry((run.id, share.host)).or_insert_with(|| RateWindow::new(RATE_WINDOW));
                rate.record(at, acked_by(&tallies, share.host));
            }
        }
    }

    fn of(&self, run: RunId, host: HostId) -> f64 {
        let rates = self.rates.lock().unwrap_or_else(|poisoned| poisoned.into_inner());
        rates.get(&(run, host)).map_or(0.0, RateWindow::per_second)
    }
}

fn acked_by(tallies: &[Tally], host: HostId) -> u64 {
    tallies.iter().filter(|tally| tally.host == host).map(|tally| tally.counts.acked).sum()
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

    pub(super) async fn run_show(&self, reference: &RunRef, latency: bool) -> ControlReply {
        let level = self.census.level();
        let run = match find(&level, reference) {
            Ok(run) => run,
            Err(refusal) => return ControlReply::Refused(refusal),
        };
        let mut view = self.run_view(run);
        if latency && run.result.is_none() {
            view.latency = Some(self.live_latency(run).await);
        }
        ControlReply::Run(view)
    }

    /// Latencies so far of a run that is going on. However many ask at once, the hosts
    /// are asked once, and not more often than every [`LATENCY_AGE_MAX`].
    async fn live_latency(&self, run: &Run) -> LatencySummary {
        let mut last = self.latency.lock().await;
        if let Some(last) = last.filter(|last| last.run == run.id && last.at.elapsed() < LATENCY_AGE_MAX) {
            return last.summary;
        }
        let gathered = settle::gather(&self.census, &*self.transport, run).await;
        let summary = stats::summary(&gathered.latency);
        *last = Some(LastLatency { run: run.id, at: Instant::now(), summary });
        summary
    }

    pub(super) async fn run_detail(&self, reference: &RunRef) -> ControlReply {
        let level = self.census.level();
        let run = match find(&level, reference) {
            Ok(run) => run,
            Err(refusal) => return ControlReply::Refused(refusal),
        };
        let gathered = settle::gather(&self.census, &*self.transport, run).await;
        let mut view = self.run_view(run);
        view.latency.get_or_insert_with(|| stats::summary(&gathered.latency));
        ControlReply::RunDetail(RunDetail { view, details: gathered.details, missing: gathered.notes })
    }

    fn run_view(&self, run: &Run) -> RunView {
        let tallies = self.census.tallies(run);
        let host_writes_per_s: Vec<f64> = match &run.result {
            // A closed run's rate is its own average.
            Some(_) => run.shares.iter().map(|share| average(&tallies, share.host)).collect(),
            None => run.shares.iter().map(|share| self.rates.of(run.id, share.host)).collect(),
        };
        let writes_per_s = match &run.result {
            Some(_) => per_second(stats::total(&tallies)),
            None => host_writes_per_s.iter().sum(),
        };
        RunView {
            run: run.clone(),
            latency: run.result.as_ref().map(|result| result.latency),
            waiting_for: self.run_waits_for(run, &tallies),
            tallies,
            writes_per_s,
            host_writes_per_s,
        }
    }

    fn run_waits_for(&self, run: &Run, tallies: &[Tally]) -> Option<String> {
        if run.stage == RunStage::Done {
            return None;
        }
        let hosts = self.census.hosts();
        let silent: Vec<String> = run
            .shares
            .iter()
            .filter(|share| {
                let closed =
                    tallies.iter().filter(|tally| tally.host == share.host).all(|tally| tally.closed);
                let any = tallies.iter().any(|tally| tally.host == share.host);
                !(any && closed) && hosts.get(&share.host).is_none_or(|host| !host.alive)
            })
            .map(|share| hosts.get(&share.host).map_or_else(|| share.host.to_string(), |host| host.name()))
            .collect();
        if !silent.is_empty() {
            return Some(format!("{}, not heard of: is the agent running?", silent.join(", ")));
        }
        self.waiting_for()
    }
}

fn average(tallies: &[Tally], host: HostId) -> f64 {
    let mine = tallies.iter().filter(|tally| tally.host == host);
    per_second(stats::total(mine))
}

fn per_second(counts: Counts) -> f64 {
    match counts.active_us {
        0 => 0.0,
        us => counts.acked as f64 * 1e6 / us as f64,
    }
}
