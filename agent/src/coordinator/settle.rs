//! Gathers what a run's closed account needs from all hosts.

use std::collections::{BTreeMap, BTreeSet};
use std::net::SocketAddr;

use hdrhistogram::Histogram;
use redmesh_api::ids::{HostId, RunId};
use redmesh_api::level::{ClusterPlan, PlannedInstance};
use redmesh_api::run::{Outcome, Run, RunResult, RunStage, ServerSample, ShareDetail, Tally};
use tracing::warn;

use super::account::{self, AckedBy, Closing};
use crate::census::{Census, CensusHost};
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

/// Asks all hosts of the plan for their instances' figures, but those that were removed.
pub async fn sample_servers(census: &Census, transport: &dyn Transport) -> Sampled {
    let level = census.level();
    let Some(plan) = &level.plan else { return Sampled::default() };
    let hosts = census.hosts();
    let there = plan.hosts.iter().filter(|planned| !level.is_removed(planned.id));
    let asked = there.map(|planned| async {
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
    /// Times from the intended begin, microseconds; `None` of a closed loop.
    pub intended: Option<Histogram<u64>>,
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
        intended: run.spec.rate.map(|_| stats::empty_histogram()),
        tallies: Vec::new(),
        details: Vec::new(),
        notes: Vec::new(),
    };
    for (name, report) in reports(census, transport, run).await {
        match report {
            Ok(report) => gathered.add(&name, report),
            Err(reason) => gathered.notes.push(format!(
                "{name} did not report: {reason}; its gossiped counts are taken, its latencies are missing"
            )),
        }
    }
    gathered
}

impl Gathered {
    fn add(&mut self, name: &str, report: ShareReport) {
        for tally in &report.tallies {
            let detail = report.details.iter().find(|detail| detail.epoch == tally.epoch);
            // A share without a life of its own may bear another's epoch: nothing is its.
            if tally.counts.issued > 0
                && let Err(reason) = self.add_latencies(tally, detail)
            {
                let epoch = tally.epoch;
                self.notes.push(format!("of {name}, its agent's life {epoch}: {reason}"));
            }
        }
        self.tallies.extend(report.tallies);
        self.details.extend(report.details);
    }

    fn add_latencies(&mut self, tally: &Tally, detail: Option<&ShareDetail>) -> Result<(), String> {
        let merged = |into: &mut Histogram<u64>, bytes: &[u8]| {
            if bytes.is_empty() {
                return Ok(0);
            }
            let histogram = stats::decode(bytes).map_err(|error| crate::error_chain(&error))?;
            into.add(&histogram).map_err(|error| error.to_string())?;
            Ok::<_, String>(histogram.len())
        };
        let mut known = 0;
        if let Some(detail) = detail {
            known = merged(&mut self.latency, &detail.histogram)?;
            if let Some(intended) = &mut self.intended {
                merged(intended, &detail.intended)?;
            }
        }
        // Those of a share that is going on are a moment behind its counts.
        let all = tally.counts.acked.saturating_sub(tally.counts.warm_acked);
        match all.saturating_sub(known) {
            missing if missing > 0 && tally.closed => {
                Err(format!("{missing} of {all} latencies are missing, they were lost with that life"))
            }
            _ => Ok(()),
        }
    }

    /// Writes by the server that acked them.
    fn acked_by(&self, plan: &ClusterPlan) -> AckedBy {
        let mut by_addr: BTreeMap<SocketAddr, u64> = BTreeMap::new();
        for (addr, acked) in self.details.iter().flat_map(|detail| &detail.acked_by) {
            *by_addr.entry(*addr).or_default() += acked;
        }
        let of = |instance: &PlannedInstance| {
            let addr = plan.addr_of(instance);
            let acked = by_addr.get(&addr).copied().unwrap_or(0);
            ((plan.host_of(instance).id, instance.port), (addr, acked))
        };
        plan.instances.iter().map(of).collect()
    }
}

async fn reports(
    census: &Census,
    transport: &dyn Transport,
    run: &Run,
) -> Vec<(String, Result<ShareReport, String>)> {
    let hosts = census.hosts();
    // A host with several shares reports them all at once.
    let bearers: BTreeSet<HostId> = run.shares.iter().map(|share| share.host).collect();
    let asked = bearers.into_iter().map(|bearer| {
        let host = hosts.get(&bearer);
        let name = host.map_or_else(|| bearer.to_string(), CensusHost::name);
        let to = host.map(|host| host.addr);
        async move {
            let request = PeerRequest::RunReport(run.id);
            let report = match peer::ask_known(transport, to, &request, peer::QUICK_DEADLINE).await {
                Ok(PeerReply::Report(report)) => Ok(report),
                Ok(other) => Err(format!("answered {other:?}")),
                Err(reason) => Err(reason),
            };
            (name, report)
        }
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
    let gathered = gather(census, transport, run).await;
    let acked_by = level.plan.as_ref().map(|plan| gathered.acked_by(plan)).unwrap_or_default();
    let Gathered { latency, intended, tallies: exact, mut notes, .. } = gathered;
    let sampled = sample_servers(census, transport).await;
    let all_sampled = sampled.missing.is_empty();
    for reason in sampled.missing {
        warn!(run = %run.id, reason, "instance not sampled");
        notes.push(format!("not sampled: {reason}"));
    }
    let mut tallies: Vec<_> = stats::merge(gossiped.into_iter().chain(exact)).into_values().collect();
    let hosts = census.hosts();
    let name = |id| hosts.get(&id).map_or_else(|| id.to_string(), CensusHost::name);
    for (host, open) in account::settle_open(&mut tallies) {
        notes.push(format!(
            "{} never closed its account (is its ledger lost?): its last gossiped counts are taken, and the \
             {open} writes that they leave open count as unknown",
            name(host)
        ));
    }
    if let Some(more) = account::overshoot(run, &tallies) {
        let given_up = run.shares.iter().filter(|share| share.given_up).map(|share| name(share.host));
        let given_up: BTreeSet<_> = given_up.collect();
        notes.push(format!(
            "{more} more were issued than asked: {} issued after the last word that was heard, and others took \
             over what seemed to be left; each operation is counted once",
            given_up.into_iter().collect::<Vec<_>>().join(", ")
        ));
    }
    let closing = Closing {
        outcome,
        tallies,
        latency: stats::summary(&latency),
        intended: intended.as_ref().map(stats::summary),
        acked_by,
        after: sampled.samples,
        notes,
        all_sampled,
        ended_unix_ms: census.clock.now_unix_ms(),
    };
    Some(account::close(run, closing))
}

#[cfg(test)]
mod tests {
    use redmesh_api::run::Counts;

    use super::*;

    #[test]
    fn instances_that_a_host_does_not_mention_are_missing() {
        let all = Sampled::none("127.0.0.1:6379: refused".to_owned()).of_all("host-1", 1);
        assert_eq!(all.missing.len(), 1);
        let lagging = Sampled::default().of_all("host-1", 3);
        assert_eq!(lagging.missing, ["host-1: answered for 0 of 3 instances"]);
    }

    fn gathered(rate: bool) -> Gathered {
        Gathered {
            latency: stats::empty_histogram(),
            intended: rate.then(stats::empty_histogram),
            tallies: Vec::new(),
            details: Vec::new(),
            notes: Vec::new(),
        }
    }

    fn tally(share: u16, epoch: u32, acked: u64, warm_acked: u64) -> Tally {
        let counts = Counts { issued: acked, acked, warm_acked, ..Counts::default() };
        Tally { host: HostId(1), share, epoch, closed: true, counts }
    }

    fn detail(epoch: u32, times: u64) -> ShareDetail {
        let mut histogram = stats::empty_histogram();
        (0..times).for_each(|_| histogram.record(100).expect("in bounds"));
        let bytes = stats::encode(&histogram).expect("encodes");
        ShareDetail {
            host: HostId(1),
            epoch,
            started_unix_ms: 0,
            resolution_s: 1,
            acked: Vec::new(),
            worker_acked_min: 0,
            worker_acked_max: 0,
            errors: Vec::new(),
            intended: bytes.clone(),
            histogram: bytes,
            behind: 0,
            threads: 1,
            acked_by: Vec::new(),
            findings: None,
        }
    }

    #[test]
    fn a_hosts_shares_and_lives_are_added_once_each() {
        let idle = Tally { counts: Counts::default(), ..tally(3, 0, 0, 0) };
        let report = ShareReport {
            tallies: vec![tally(0, 0, 10, 2), tally(2, 1, 5, 0), idle],
            details: vec![detail(0, 8), detail(1, 5)],
        };
        let mut all = gathered(true);
        all.add("host-1", report.clone());
        assert_eq!((all.latency.len(), all.intended.map(|it| it.len())), (13, Some(13)));
        assert!(all.notes.is_empty(), "{:?}", all.notes);
        let mut closed_loop = gathered(false);
        closed_loop.add("host-1", report);
        assert!(closed_loop.intended.is_none());
    }

    #[test]
    fn latencies_that_went_with_a_killed_agent_are_numbered() {
        let mut all = gathered(false);
        let report =
            ShareReport { tallies: vec![tally(0, 0, 10, 0), tally(0, 1, 4, 0)], details: vec![detail(0, 7)] };
        all.add("host-1", report);
        assert_eq!(all.latency.len(), 7);
        assert!(all.notes[0].contains("life 0: 3 of 10 latencies"), "{:?}", all.notes);
        assert!(all.notes[1].contains("life 1: 4 of 4 latencies"), "{:?}", all.notes);
    }
}
