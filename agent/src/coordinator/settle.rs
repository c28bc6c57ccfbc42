//! Gathers what a run's closed account needs from all hosts.

use hdrhistogram::Histogram;
use redmesh_api::ids::RunId;
use redmesh_api::run::{Outcome, Run, RunResult, RunStage, ServerSample, ShareDetail, Tally};
use tracing::warn;

use super::account::{self, Closing};
use crate::census::{Census, CensusHost};
use crate::clock::now_unix_ms;
use crate::peer::{self, PeerReply, PeerRequest, ShareReport};
use crate::stats;
use crate::transport::Transport;

/// Every instance's own figures, as far as they could be had.
#[derive(Debug, Default)]
pub struct Sampled {
    /// Of the instances that answered.
    pub samples: Vec<ServerSample>,
    /// The others, each with its reason.
    pub missing: Vec<String>,
}

impl Sampled {
    fn none(reason: String) -> Self {
        Self { samples: Vec::new(), missing: vec![reason] }
    }

    /// Notes instances that `host` says nothing of: it may not have heard of the plan yet,
    /// and a ledger must not be held against a part of the servers unawares.
    fn of_all(mut self, host: &str, planned: usize) -> Self {
        let said = self.samples.len() + self.missing.len();
        if said < planned {
            self.missing.push(format!("{host}: answered for {said} of {planned} instances"));
        }
        self
    }
}

/// Asks all hosts of the plan for their instances' figures.
pub async fn sample_servers(census: &Census, transport: &dyn Transport) -> Sampled {
    let level = census.level();
    let Some(plan) = &level.plan else { return Sampled::default() };
    let hosts = census.hosts();
    let asked = plan.hosts.iter().map(|planned| async {
        let name = &planned.name;
        let to = hosts.get(&planned.id).map(|host| host.addr);
        match peer::ask_known(transport, to, &PeerRequest::SampleServers, peer::INSTANCES_DEADLINE).await {
            Ok(PeerReply::Samples { samples, missing }) => {
                Sampled { samples, missing }.of_all(name, plan.instances_of(planned.id).count())
            }
            Ok(other) => Sampled::none(format!("{name}: answered {other:?}")),
            Err(reason) => Sampled::none(format!("{name}: {reason}")),
        }
    });
    let mut all = Sampled::default();
    for sampled in futures_util::future::join_all(asked).await {
        all.samples.extend(sampled.samples);
        all.missing.extend(sampled.missing);
    }
    all
}

/// What the hosts of a run report, put together.
#[derive(Debug)]
pub struct Gathered {
    /// Service times, microseconds.
    pub latency: Histogram<u64>,
    /// Exact counts of the hosts that answered.
    pub tallies: Vec<Tally>,
    /// What they kept beside them.
    pub details: Vec<ShareDetail>,
    /// What could not be had, in words.
    pub notes: Vec<String>,
}

/// Asks all share hosts of `run` for their exact counts and latencies.
pub async fn gather(census: &Census, transport: &dyn Transport, run: &Run) -> Gathered {
    let mut gathered = Gathered {
        latency: stats::empty_histogram(),
        tallies: Vec::new(),
        details: Vec::new(),
        notes: Vec::new(),
    };
    for (name, report) in reports(census, transport, run).await {
        match report {
            Ok(report) => {
                gathered.add_latencies(&name, &report);
                gathered.tallies.extend(report.tallies);
                gathered.details.extend(report.details);
            }
            Err(reason) => gathered.notes.push(format!(
                "{name} did not report: {reason}; its gossiped counts are taken, its latencies are missing"
            )),
        }
    }
    gathered
}

impl Gathered {
    fn add_latencies(&mut self, name: &str, report: &ShareReport) {
        for tally in &report.tallies {
            let detail = report.details.iter().find(|detail| detail.epoch == tally.epoch);
            let histogram = detail.filter(|detail| !detail.histogram.is_empty());
            let added = match histogram.map(|detail| stats::decode(&detail.histogram)) {
                Some(Ok(histogram)) => self.latency.add(&histogram).map_err(|error| error.to_string()),
                Some(Err(error)) => Err(crate::error_chain(&error)),
                None if tally.counts.acked == 0 => Ok(()),
                None => Err(format!("lost with the agent's life {}", tally.epoch)),
            };
            if let Err(reason) = added {
                self.notes.push(format!("latencies of {name} are missing: {reason}"));
            }
        }
    }
}

async fn reports(
    census: &Census,
    transport: &dyn Transport,
    run: &Run,
) -> Vec<(String, Result<ShareReport, String>)> {
    let hosts = census.hosts();
    let asked = run.shares.iter().map(|share| async {
        let host = hosts.get(&share.host);
        let request = PeerRequest::RunReport(run.id);
        let to = host.map(|host| host.addr);
        let report = match peer::ask_known(transport, to, &request, peer::QUICK_DEADLINE).await {
            Ok(PeerReply::Report(report)) => Ok(report),
            Ok(other) => Err(format!("answered {other:?}")),
            Err(reason) => Err(reason),
        };
        (host.map_or_else(|| share.host.to_string(), CensusHost::name), report)
    });
    futures_util::future::join_all(asked).await
}

/// The closed account of `run`, or `None` if it is closed already.
///
/// All shares are spent or lost by now, so what gossip says of them is final; only
/// latencies and the servers' figures have to be asked for.
pub async fn settle(
    census: &Census,
    transport: &dyn Transport,
    run: RunId,
    outcome: Outcome,
) -> Option<RunResult> {
    let level = census.level();
    let run = level.runs.iter().find(|candidate| candidate.id == run)?;
    if run.stage == RunStage::Done {
        return None;
    }
    let gossiped = census.tallies(run);
    let Gathered { latency, tallies: exact, mut notes, .. } = gather(census, transport, run).await;
    let sampled = sample_servers(census, transport).await;
    let all_sampled = sampled.missing.is_empty();
    for reason in sampled.missing {
        warn!(run = %run.id, reason, "instance not sampled");
        notes.push(format!("not sampled: {reason}"));
    }
    let tallies = stats::merge(gossiped.into_iter().chain(exact)).into_values().collect();
    let closing = Closing {
        outcome,
        tallies,
        latency: stats::summary(&latency),
        after: sampled.samples,
        notes,
        all_sampled,
        ended_unix_ms: now_unix_ms(),
    };
    Some(account::close(run, closing))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn instances_that_a_host_does_not_mention_are_missing() {
        let all = Sampled::none("127.0.0.1:6379: refused".to_owned()).of_all("host-1", 1);
        assert_eq!(all.missing.len(), 1);
        let lagging = Sampled::default().of_all("host-1", 3);
        assert_eq!(lagging.missing, ["host-1: answered for 0 of 3 instances"]);
    }
}
