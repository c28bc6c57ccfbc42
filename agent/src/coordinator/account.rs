//! Shares of a run, and its closed account: pure arithmetic.

use redmesh_api::ids::HostId;
use redmesh_api::run::{Counts, LatencySummary, Ledger, Outcome, Run, RunResult, ServerSample, Share, Tally};

use crate::stats;

/// Splits `workers` and `writes` over `hosts`: workers as evenly as can be, writes in
/// proportion to workers, both adding up exactly. A host without a worker has no share.
pub fn shares(hosts: &[HostId], workers: u32, writes: Option<u64>) -> Vec<Share> {
    let count = u32::try_from(hosts.len()).unwrap_or(u32::MAX).max(1);
    let mut first_worker = 0;
    let mut shares = Vec::new();
    for (index, &host) in (0..count).zip(hosts) {
        let mine = workers / count + u32::from(index < workers % count);
        let upto = |worker: u32| {
            // N·worker/W in 128 bits: N may be anything that fits 64.
            let part = |n| u128::from(n) * u128::from(worker) / u128::from(workers.max(1));
            writes.map(|n| u64::try_from(part(n)).expect("a part of N is at most N"))
        };
        let quota = upto(first_worker + mine).zip(upto(first_worker)).map(|(end, begin)| end - begin);
        if mine > 0 {
            shares.push(Share { host, workers: mine, first_worker, writes: quota });
        }
        first_worker += mine;
    }
    shares
}

/// All that is needed to close an account.
#[derive(Debug)]
pub struct Closing {
    /// How it ended.
    pub outcome: Outcome,
    /// Final counts by host and epoch.
    pub tallies: Vec<Tally>,
    /// Merged service times.
    pub latency: LatencySummary,
    /// The servers' figures after the last write.
    pub after: Vec<ServerSample>,
    /// What could not be had, in words.
    pub notes: Vec<String>,
    /// Whether every instance of the cluster was sampled.
    pub all_sampled: bool,
    /// The coordinator's clock.
    pub ended_unix_ms: u64,
}

/// Settles `run`.
pub fn close(run: &Run, closing: Closing) -> RunResult {
    let total = stats::total(&closing.tallies);
    let all_closed = closing.tallies.iter().all(|tally| tally.closed);
    let server_cpu_us = growth(&run.before, &closing.after, |sample| sample.cpu_us);
    let mut ledger = hold_against(&run.before, &closing.after, total, closing.notes);
    ledger.ok &= all_closed && closing.all_sampled && total.in_flight() == 0;
    if !closing.all_sampled && ledger.lost > 0 {
        // What an unsampled instance holds is not lost, only not seen.
        ledger.notes.push(format!(
            "{} acked writes are not on the instances that were sampled; how many are lost can't be told",
            ledger.lost
        ));
        ledger.lost = 0;
    }
    RunResult {
        outcome: closing.outcome,
        tallies: closing.tallies,
        latency: closing.latency,
        ledger,
        server_cpu_us: u64::try_from(server_cpu_us).unwrap_or(0),
        after: closing.after,
        ended_unix_ms: closing.ended_unix_ms,
    }
}

fn earlier<'a>(before: &'a [ServerSample], sample: &ServerSample) -> Option<&'a ServerSample> {
    before.iter().find(|b| (b.host, b.port) == (sample.host, sample.port))
}

/// How much a counter of all `after` grew; a restarted server's began again at 0.
fn growth(before: &[ServerSample], after: &[ServerSample], of: impl Fn(&ServerSample) -> u64) -> i64 {
    let grown = after.iter().map(|sample| {
        let base = earlier(before, sample).filter(|b| b.run_id == sample.run_id).map_or(0, &of);
        of(sample) as i64 - base as i64
    });
    grown.sum()
}

/// The servers' own account beside ours. Primaries only: replicas repeat theirs.
fn hold_against(
    before: &[ServerSample],
    after: &[ServerSample],
    total: Counts,
    mut notes: Vec<String>,
) -> Ledger {
    let primaries: Vec<_> = after.iter().filter(|sample| sample.primary).cloned().collect();
    let keys = |samples: &[ServerSample]| -> i64 {
        samples.iter().filter(|sample| sample.primary).map(|sample| sample.dbsize as i64).sum()
    };
    let dbsize = keys(after) - keys(before);
    let set_calls = growth(before, &primaries, |sample| sample.set_calls);

    let mut restarted = 0;
    let mut promoted = 0;
    for sample in &primaries {
        match earlier(before, sample) {
            Some(b) if b.run_id != sample.run_id => restarted += 1,
            Some(b) if !b.primary => promoted += 1,
            _ => {}
        }
    }
    if restarted > 0 {
        notes.push(format!(
            "primaries restarted in the run: {restarted}; what they held in memory and counted before is gone"
        ));
    }
    if promoted > 0 {
        notes.push(format!(
            "replicas promoted in the run: {promoted}; their cmdstat_set includes replicated writes"
        ));
    }

    let (acked, most) = (total.acked as i64, (total.acked + total.unknown) as i64);
    let lost = u64::try_from(acked - dbsize).unwrap_or(0);
    if dbsize > most {
        notes.push(format!("{} keys more than this run wrote: did another client write?", dbsize - most));
    }
    let calls_fit = (acked..=most).contains(&set_calls) || restarted + promoted > 0;
    if !calls_fit {
        notes.push(format!(
            "cmdstat_set grew by {set_calls}, acked + unknown is {acked} to {most}: did another client write?"
        ));
    }
    Ledger { dbsize, cmdstat_set_calls: set_calls, lost, ok: lost == 0 && dbsize <= most && calls_fit, notes }
}

#[cfg(test)]
mod tests;
