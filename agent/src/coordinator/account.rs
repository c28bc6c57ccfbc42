//! Shares of a run, and its closed account: pure arithmetic.

use std::collections::BTreeMap;
use std::net::SocketAddr;

use redmesh_api::ids::HostId;
use redmesh_api::run::{
    Counts, Job, LatencySummary, Ledger, Outcome, Run, RunResult, RunUntil, ServerSample, Share, Tally,
};

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
            shares.push(Share {
                host,
                workers: mine,
                first_worker,
                writes: quota,
                given_up: false,
                rest_of: None,
            });
        }
        first_worker += mine;
    }
    shares
}

/// Writes that the clients say a server acked, and its address, by host and port.
pub type AckedBy = BTreeMap<(HostId, u16), (SocketAddr, u64)>;

/// All that is needed to close an account.
#[derive(Debug)]
pub struct Closing {
    /// How it ended.
    pub outcome: Outcome,
    /// Final counts by host, share and epoch.
    pub tallies: Vec<Tally>,
    /// Merged service times.
    pub latency: LatencySummary,
    /// Open loop: merged times from the intended begin.
    pub intended: Option<LatencySummary>,
    /// Every planned server's.
    pub acked_by: AckedBy,
    /// The servers' figures after the last write.
    pub after: Vec<ServerSample>,
    /// What could not be had, in words.
    pub notes: Vec<String>,
    /// Whether every instance of the cluster was sampled.
    pub all_sampled: bool,
    /// The coordinator's clock.
    pub ended_unix_ms: u64,
}

/// Gives the writes of shares that nobody accounts for any more the one fate that is left
/// to them: sent, and no answer was heard of. Returns how many of which host; their
/// tallies stay open, for the host may have done more than it told.
pub fn settle_open(tallies: &mut [Tally]) -> BTreeMap<HostId, u64> {
    let mut settled = BTreeMap::new();
    for tally in tallies.iter_mut().filter(|tally| !tally.closed) {
        let open = tally.counts.in_flight();
        tally.counts.unknown += open;
        *settled.entry(tally.host).or_default() += open;
    }
    settled
}

/// Settles `run`.
pub fn close(run: &Run, closing: Closing) -> RunResult {
    let total = stats::total(&closing.tallies);
    let all_closed = closing.tallies.iter().all(|tally| tally.closed);
    let server_cpu_us = growth(&run.before, &closing.after, |sample| sample.cpu_us);
    let mut ledger = hold_against(run, &closing, total);
    ledger.ok &= all_closed && closing.all_sampled && total.in_flight() == 0;
    if !closing.all_sampled && ledger.lost > 0 {
        // What an unsampled instance holds is not lost, only not seen.
        ledger.notes.push(format!(
            "{} acked writes are not on the instances that were sampled; how many are lost can't be told",
            ledger.lost
        ));
        ledger.lost = 0;
    }
    if ledger.lost > 0 {
        attribute(&mut ledger, &run.before, &closing);
    }
    RunResult {
        outcome: closing.outcome,
        tallies: closing.tallies,
        latency: closing.latency,
        intended: closing.intended,
        ledger,
        server_cpu_us: u64::try_from(server_cpu_us).unwrap_or(0),
        after: closing.after,
        ended_unix_ms: closing.ended_unix_ms,
    }
}

/// By how many writes a run went past what was asked of it, if it did: a host whose share
/// was given up had issued more than was known, or went on because nobody could reach it.
/// Nothing is counted twice, each write has its own key.
pub fn overshoot(run: &Run, tallies: &[Tally]) -> Option<u64> {
    let RunUntil::Writes(_) = run.spec.until else { return None };
    if !run.shares.iter().any(|share| share.given_up) {
        return None;
    }
    // Rests are parts of what was asked already.
    let asked = run.shares.iter().filter(|share| share.rest_of.is_none()).filter_map(|share| share.writes);
    let issued = stats::total(tallies).issued;
    issued.checked_sub(asked.sum()).filter(|more| *more > 0)
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

/// What tells that servers hold what the clients say.
enum Proof {
    /// Each executed write is one call and one key.
    KeysAndCalls,
    /// Each executed operation is one call; one that was refused for good may be too.
    Calls {
        /// Whether refused ones may have been counted as calls.
        failed: bool,
    },
}

impl Proof {
    fn of(job: &Job) -> Self {
        match job {
            Job::Load(workload) if workload.counts_by_keys() => Self::KeysAndCalls,
            Job::Load(_) => Self::Calls { failed: true },
            Job::ReadBack(_) => Self::Calls { failed: false },
        }
    }
}

/// The servers' own account beside ours. Primaries only: replicas repeat theirs.
fn hold_against(run: &Run, closing: &Closing, total: Counts) -> Ledger {
    let mut notes = closing.notes.clone();
    let primaries: Vec<_> = closing.after.iter().filter(|sample| sample.primary).cloned().collect();
    let keys = |samples: &[ServerSample]| -> i64 {
        samples.iter().filter(|sample| sample.primary).map(|sample| sample.dbsize as i64).sum()
    };
    let dbsize = keys(&closing.after) - keys(&run.before);
    let calls = growth(&run.before, &primaries, |sample| sample.calls);

    let mut restarted = 0;
    let mut promoted = 0;
    for sample in &primaries {
        match earlier(&run.before, sample) {
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
            "replicas promoted in the run: {promoted}; their cmdstat includes replicated writes"
        ));
    }

    let proof = Proof::of(&run.spec.job);
    let stranger = match closing.tallies.iter().all(|tally| tally.closed) {
        true => "did another client work?",
        false => "a host whose account is open may have done more than it told",
    };
    let (acked, most) = (total.acked as i64, (total.acked + total.unknown) as i64);
    let (calls_most, words) = match proof {
        Proof::Calls { failed: true } => (most + total.failed as i64, "acked + unknown + failed"),
        Proof::Calls { failed: false } | Proof::KeysAndCalls => (most, "acked + unknown"),
    };
    let calls_fit = (acked..=calls_most).contains(&calls) || restarted + promoted > 0;
    if !calls_fit {
        notes.push(format!(
            "the servers' calls grew by {calls}, {words} is {acked} to {calls_most}: {stranger}"
        ));
    }
    let (lost, keys_fit) = match proof {
        Proof::KeysAndCalls => {
            if dbsize > most {
                let more = dbsize - most;
                notes.push(format!("{more} keys more than this run wrote: {stranger}"));
            }
            (u64::try_from(acked - dbsize).unwrap_or(0), dbsize <= most)
        }
        Proof::Calls { failed: true } => {
            notes.push(
                "DBSIZE doesn't count the operations of this workload, whose keys are written again or \
                 expire: calls alone are held against the account"
                    .to_owned(),
            );
            (0, true)
        }
        Proof::Calls { failed: false } => (0, true),
    };
    let ok = lost == 0 && keys_fit && calls_fit;
    Ledger { dbsize, calls, lost, lost_at: Vec::new(), ok, notes }
}

/// Says where writes were lost: with the memory of primaries that were restarted, as far
/// as these held them.
fn attribute(ledger: &mut Ledger, before: &[ServerSample], closing: &Closing) {
    let restarted = closing.after.iter().filter(|sample| sample.primary).filter_map(|sample| {
        let before = earlier(before, sample).filter(|before| before.run_id != sample.run_id)?;
        let (addr, acked) = *closing.acked_by.get(&(sample.host, sample.port))?;
        let held = sample.dbsize as i64 - before.dbsize as i64;
        let missing = u64::try_from(i128::from(acked) - i128::from(held)).unwrap_or(0);
        (missing > 0).then_some((addr, missing))
    });
    let mut lost_at: Vec<_> = restarted.collect();
    let sum: u128 = lost_at.iter().map(|(_, missing)| u128::from(*missing)).sum();
    let lost = u128::from(ledger.lost);
    if sum > lost {
        // Some of what a server acked has moved elsewhere since, with its slot.
        for (_, missing) in &mut lost_at {
            *missing = u64::try_from(u128::from(*missing) * lost / sum).unwrap_or(ledger.lost);
        }
        lost_at.retain(|(_, missing)| *missing > 0);
    }
    let attributed: u64 = lost_at.iter().map(|(_, missing)| *missing).sum();
    if attributed < ledger.lost {
        ledger.notes.push(format!(
            "{} of the lost writes can't be attributed to a restarted server (did slots move?): \
             redmeshctl run verify --all names them by key",
            ledger.lost - attributed
        ));
    }
    ledger.lost_at = lost_at;
}

#[cfg(test)]
mod tests;
