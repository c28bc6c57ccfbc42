//! Reading back what a run has written: the run that does it, or why it can't be.

use std::collections::{BTreeMap, BTreeSet};

use redmesh_api::control::{Refusal, RefusalKind, RunRef, VerifyRequest};
use redmesh_api::ids::HostId;
use redmesh_api::level::Level;
use redmesh_api::limits::WORKERS_MAX;
use redmesh_api::run::{Job, ReadBack, Run, RunSpec, RunStage, RunUntil, Share};
use redmesh_api::workload::Keys;

use super::{refuse, runs};
use crate::census::Hosts;
use crate::coordinator::account;

const ALL: u32 = ReadBack::ALL;

/// The run that is to be read back. The latest is the latest that has written something:
/// whoever verifies twice means the same one.
pub fn find<'a>(level: &'a Level, reference: &RunRef) -> Result<&'a Run, Refusal> {
    let loads = |run: &&Run| matches!(run.spec.job, Job::Load(_));
    match (reference, level.runs.iter().rev().find(loads)) {
        (RunRef::Latest, Some(run)) => Ok(run),
        _ => runs::find(level, reference),
    }
}

/// Spec and shares of a run that reads back `run`.
pub fn read_back(
    run: &Run,
    request: &VerifyRequest,
    hosts: &Hosts,
) -> Result<(RunSpec, Vec<Share>), Refusal> {
    let conflict = |reason: String| refuse(RefusalKind::Conflict, reason);
    let invalid = |reason: String| refuse(RefusalKind::Invalid, reason);
    let id = run.id;
    let Job::Load(workload) = &run.spec.job else {
        return invalid(format!("run {id} read back itself and wrote nothing: name the run that wrote"));
    };
    let Keys::Counter { wrap } = workload.keys else {
        return invalid(format!(
            "run {id} ({}) draws keys from a pool, so which key holds what is not known: only runs of \
             counted keys, like uuid-counter, can be read back",
            workload.name
        ));
    };
    let (RunStage::Done, Some(result)) = (run.stage, &run.result) else {
        return conflict(format!("run {id} is still going on: wait for it or stop it (redmeshctl run stop)"));
    };

    let mut wrote: BTreeSet<HostId> = BTreeSet::new();
    let mut keys: u64 = 0;
    for tally in result.tallies.iter().filter(|tally| tally.counts.issued > 0) {
        wrote.insert(tally.host);
        let workers = run.shares.get(usize::from(tally.share)).map_or(0, |share| u64::from(share.workers));
        // Of a counter that wraps there are no more keys than this.
        let most = wrap.map_or(u64::MAX, |wrap| wrap.saturating_mul(workers));
        keys = keys.saturating_add(tally.counts.issued.min(most));
    }
    if keys == 0 {
        return conflict(format!("run {id} wrote nothing: there is nothing to read back"));
    }
    let silent: Vec<String> = wrote
        .iter()
        .filter(|host| hosts.get(host).is_none_or(|host| !host.alive))
        .map(|id| hosts.get(id).map_or_else(|| id.to_string(), |host| host.name()))
        .collect();
    if !silent.is_empty() {
        return conflict(format!(
            "{}, not heard of: each host reads back what it wrote, so all that wrote in run {id} must run",
            silent.join(", ")
        ));
    }
    let fewest = u32::try_from(wrote.len()).unwrap_or(u32::MAX);
    if !(fewest..=WORKERS_MAX).contains(&request.workers) {
        return invalid(format!(
            "workers = {}: must be {fewest} (one for each host that wrote) to {WORKERS_MAX}",
            request.workers
        ));
    }
    let per_million = match request.sample {
        Some(0) => return invalid("sample = 0: must be at least 1, or leave it out for all keys".to_owned()),
        Some(sample) if sample < keys => {
            let part = (u128::from(sample) * u128::from(ALL)).div_ceil(u128::from(keys));
            u32::try_from(part).unwrap_or(ALL).clamp(1, ALL)
        }
        _ => ALL,
    };
    let expected = (u128::from(keys) * u128::from(per_million)).div_ceil(u128::from(ALL));
    let job = Job::ReadBack(ReadBack { of: id, wrap, pipeline: run.spec.pipeline, per_million });
    let until = RunUntil::Writes(u64::try_from(expected).unwrap_or(u64::MAX));
    let spec = RunSpec { job, ..RunSpec::closed_loop(workload.clone(), request.workers, until) };

    // Shares in the order of the run's, so that reports of both read alike.
    let order: BTreeMap<HostId, usize> =
        run.shares.iter().enumerate().rev().map(|(index, share)| (share.host, index)).collect();
    let mut readers: Vec<HostId> = wrote.into_iter().collect();
    readers.sort_by_key(|host| order.get(host).copied());
    Ok((spec, account::shares(&readers, request.workers, None)))
}

#[cfg(test)]
mod tests {
    use redmesh_api::ids::RunId;
    use redmesh_api::run::{Counts, LatencySummary, Ledger, Outcome, RunResult, Tally};
    use redmesh_api::workload::{Pick, Workload};
    use uuid::Uuid;

    use super::*;
    use crate::census::CensusHost;
    use crate::facts::{LeadFacts, Observed};

    fn hosts(alive: &[bool]) -> Hosts {
        let host = |(id, alive): (u32, &bool)| CensusHost {
            id: HostId(id),
            addr: "127.0.0.1:1".parse().expect("an address"),
            alive: *alive,
            facts: None,
            lead: LeadFacts::default(),
            observed: Observed::default(),
        };
        (1..).zip(alive).map(host).map(|host| (host.id, host)).collect()
    }

    fn tally(host: u32, share: u16, issued: u64) -> Tally {
        let counts = Counts { issued, acked: issued, ..Counts::default() };
        Tally { host: HostId(host), share, epoch: 0, closed: true, counts }
    }

    /// Hosts 2, 1 and 3 in this order; the third wrote nothing.
    fn run(workload: Workload) -> Run {
        let spec = RunSpec { pipeline: 4, ..RunSpec::closed_loop(workload, 9, RunUntil::Writes(1000)) };
        Run {
            id: RunId(Uuid::from_u128(1)),
            shares: account::shares(&[HostId(2), HostId(1), HostId(3)], 9, Some(1000)),
            spec,
            stage: RunStage::Done,
            created_unix_ms: 0,
            starts_unix_ms: 0,
            before: Vec::new(),
            result: Some(RunResult {
                outcome: Outcome::Completed,
                tallies: vec![tally(1, 1, 400), tally(2, 0, 600), tally(3, 2, 0)],
                latency: LatencySummary::default(),
                intended: None,
                ledger: Ledger::default(),
                after: Vec::new(),
                server_cpu_us: 0,
                ended_unix_ms: 0,
            }),
        }
    }

    fn ask(sample: Option<u64>, workers: u32) -> VerifyRequest {
        VerifyRequest { run: RunRef::Latest, sample, workers }
    }

    #[test]
    fn those_who_wrote_read_back_what_was_asked_for() {
        let run = run(Workload::uuid_counter());
        let of = |sample| {
            let (spec, shares) = read_back(&run, &ask(sample, 5), &hosts(&[true, true])).expect("begins");
            let Job::ReadBack(read) = spec.job else { panic!("{spec:?}") };
            assert_eq!((read.of, read.wrap, read.pipeline), (run.id, None, 4));
            let hosts: Vec<_> = shares.iter().map(|share| (share.host.0, share.workers)).collect();
            assert_eq!(hosts, [(2, 3), (1, 2)]);
            assert!(shares.iter().all(|share| share.writes.is_none()));
            (read.per_million, spec.until)
        };
        assert_eq!(of(None), (1_000_000, RunUntil::Writes(1000)));
        assert_eq!(of(Some(5000)), (1_000_000, RunUntil::Writes(1000)));
        assert_eq!(of(Some(100)), (100_000, RunUntil::Writes(100)));
        assert_eq!(of(Some(1)), (1_000, RunUntil::Writes(1)));
    }

    #[test]
    fn a_counter_that_wraps_has_fewer_keys() {
        let mut workload = Workload::uuid_counter();
        workload.keys = Keys::Counter { wrap: Some(50) };
        let (spec, _) = read_back(&run(workload), &ask(None, 5), &hosts(&[true, true])).expect("begins");
        assert_eq!(spec.until, RunUntil::Writes(300), "three workers on each host");
    }

    #[test]
    fn what_cannot_be_read_back_is_refused_in_words() {
        let good = run(Workload::uuid_counter());
        let words = |run: &Run, request: VerifyRequest, alive: &[bool], text: &str| {
            let refusal = read_back(run, &request, &hosts(alive)).expect_err("is refused");
            assert!(refusal.message.contains(text), "{refusal}");
        };
        let all = [true, true];
        words(&good, ask(Some(0), 5), &all, "sample = 0");
        words(&good, ask(None, 1), &all, "workers = 1: must be 2");
        words(&good, ask(None, 5), &[true, false], "00000002, not heard of");
        words(
            &Run { stage: RunStage::Running, result: None, ..good.clone() },
            ask(None, 5),
            &all,
            "going on",
        );
        let mut nothing = good.clone();
        nothing.result.as_mut().expect("a result").tallies.clear();
        words(&nothing, ask(None, 5), &all, "wrote nothing");
        let mut pool = Workload::uuid_counter();
        pool.keys = Keys::Pool { count: 5, pick: Pick::Uniform };
        words(&run(pool), ask(None, 5), &all, "from a pool");
        let mut reads = good.clone();
        reads.spec.job = Job::ReadBack(ReadBack { of: good.id, wrap: None, pipeline: 1, per_million: 1 });
        words(&reads, ask(None, 5), &all, "name the run that wrote");

        let level = Level { runs: vec![good.clone(), reads], ..Level::default() };
        assert_eq!(find(&level, &RunRef::Latest).map(|run| run.id), Ok(good.id));
        assert!(find(&Level::default(), &RunRef::Latest).is_err());
    }
}
