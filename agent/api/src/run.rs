//! Load runs: what is asked, who bears which share, what was counted.
//!
//! The ledger's one equation: issued = acked + failed + unknown + in flight, and
//! in flight is 0 once a share is closed.

use std::net::SocketAddr;
use std::time::Duration;

use serde::{Deserialize, Serialize};

use crate::ids::{HostId, RunId};
use crate::workload::Workload;

/// How far ahead of a host's or a coordinator's clock a run may begin: no share waits longer, and
/// a begin further ahead was set by an earlier coordinator whose clock is ahead, so that the end
/// that follows from it says nothing.
pub const BEGIN_AHEAD_MAX: Duration = Duration::from_secs(2);

/// What a person asks of `run start` and `run verify`.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct RunSpec {
    /// What is done.
    pub job: Job,
    /// Workers over the whole mesh.
    pub workers: u32,
    /// Operations that one worker has outstanding.
    pub pipeline: u16,
    /// Hosts that bear the load: the first so many that are alive, in the plan's order;
    /// all of them if not said. Fewer hosts have fewer connections, so larger batches.
    pub load_hosts: Option<u16>,
    /// Load threads on each host; what its agent's configuration says if not said.
    pub threads_per_host: Option<u16>,
    /// Open loop: so many operations a second over the whole mesh are begun by a
    /// schedule. `None` is a closed loop: each worker begins one when one has ended.
    pub rate: Option<u64>,
    /// The load grows to its whole over so many seconds.
    pub ramp_s: u32,
    /// What is answered in the first so many seconds counts, but neither in the rate
    /// nor in the latencies.
    pub warm_up_s: u32,
    /// When it is over.
    pub until: RunUntil,
}

impl RunSpec {
    /// `workers` closed loops of `workload` with one outstanding operation each, on all hosts.
    pub fn closed_loop(workload: Workload, workers: u32, until: RunUntil) -> Self {
        Self {
            job: Job::Load(workload),
            workers,
            pipeline: 1,
            load_hosts: None,
            threads_per_host: None,
            rate: None,
            ramp_s: 0,
            warm_up_s: 0,
            until,
        }
    }
}

/// What a run does.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub enum Job {
    /// Issues a workload's operations.
    Load(Workload),
    /// Reads back what an earlier run of counted keys has written and compares values.
    /// Each host reads what it wrote itself.
    ReadBack(ReadBack),
}

impl Job {
    /// What it is called.
    pub fn name(&self) -> &str {
        match self {
            Self::Load(workload) => &workload.name,
            Self::ReadBack(_) => "verify",
        }
    }
}

/// Which keys are read back.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct ReadBack {
    /// Of which run.
    pub of: RunId,
    /// The counter's wrap of that run, see [`crate::workload::Keys::Counter`].
    pub wrap: Option<u64>,
    /// That run's outstanding operations of one worker.
    pub pipeline: u16,
    /// About so many of each 1,000,000 keys, evenly strewn; 1,000,000 is all.
    pub per_million: u32,
}

impl ReadBack {
    /// All keys, in [`ReadBack::per_million`].
    pub const ALL: u32 = 1_000_000;
}

/// When a run is over.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum RunUntil {
    /// After exactly so many operations were issued.
    Writes(u64),
    /// After so many seconds of issuing.
    Seconds(u32),
}

/// A run: what was asked, and how far it has got.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Run {
    /// Its id.
    pub id: RunId,
    /// What was asked.
    pub spec: RunSpec,
    /// Parts of it; a host has one at first, and more if it takes over a lost host's or
    /// is given another. The order never changes: a share is known by its index.
    pub shares: Vec<Share>,
    /// How far it has got.
    pub stage: RunStage,
    /// When it was committed, Unix milliseconds by the coordinator's clock.
    pub created_unix_ms: u64,
    /// When all hosts begin to issue, each by its own clock, Unix milliseconds.
    pub starts_unix_ms: u64,
    /// Every instance's own figures before the first write.
    pub before: Vec<ServerSample>,
    /// The closed account; set when the stage becomes [`RunStage::Done`].
    pub result: Option<RunResult>,
}

/// One host's part of a run.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Share {
    /// Who.
    pub host: HostId,
    /// Its closed loops.
    pub workers: u32,
    /// Index of its first worker among all workers of the run.
    pub first_worker: u32,
    /// Its quota, when the run is bounded by writes.
    pub writes: Option<u64>,
    /// Its host was lost in mid-run and others have taken over the rest of it: whoever
    /// finds this share of its own given up only accounts for it.
    pub given_up: bool,
    /// Index (in [`Run::shares`]) of the share whose rest this is.
    pub rest_of: Option<u16>,
}

/// Stages of a run; they only advance.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum RunStage {
    /// Hosts issue writes until their share is spent.
    Running,
    /// Somebody asked to stop: hosts issue no more and wait for what is in flight.
    Stopping,
    /// Closed: `result` is set.
    Done,
}

/// Grow-only counts of one (run, share, epoch). An epoch is one life of the agent:
/// counts of an earlier life are recovered from its ledger file and stay as they are.
/// What is counted are operations: commands with one answer each.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Counts {
    /// Given to a worker.
    pub issued: u64,
    /// Answered as the command should be.
    pub acked: u64,
    /// Refused for good by a server, or never sent before the deadline.
    pub failed: u64,
    /// Sent, and the connection or the agent died before the answer: fate not known.
    pub unknown: u64,
    /// MOVED redirections followed. Not writes.
    pub moved: u64,
    /// ASK redirections followed. Not writes.
    pub asked: u64,
    /// Sent again after an answer that proves that the write was not executed
    /// (TRYAGAIN, CLUSTERDOWN, LOADING, …). Not writes.
    pub retried: u64,
    /// CPU time of the load threads, microseconds.
    pub cpu_us: u64,
    /// From the first issue to the last answer, microseconds.
    pub active_us: u64,
    /// Of `acked`, reads that found no key.
    pub missed: u64,
    /// Of `acked`, those answered during warm-up.
    pub warm_acked: u64,
    /// Of `active_us`, what was warm-up.
    pub warm_us: u64,
}

impl Counts {
    /// Numbers that it consists of.
    pub const WORDS: usize = 12;

    /// Operations per second after warm-up.
    pub fn per_second(&self) -> f64 {
        match self.active_us.saturating_sub(self.warm_us) {
            0 => 0.0,
            us => self.acked.saturating_sub(self.warm_acked) as f64 * 1e6 / us as f64,
        }
    }

    /// Operations issued whose fate is still open.
    pub fn in_flight(&self) -> u64 {
        self.issued.saturating_sub(self.acked + self.failed + self.unknown)
    }

    /// The larger of each count: how two sightings of one grow-only counter merge.
    pub fn max(self, other: Self) -> Self {
        self.zip(other, u64::max)
    }

    /// Sum, except `active_us` and `warm_us`, of which the longer counts.
    pub fn plus(self, other: Self) -> Self {
        let active_us = self.active_us.max(other.active_us);
        let warm_us = self.warm_us.max(other.warm_us);
        Self { active_us, warm_us, ..self.zip(other, u64::saturating_add) }
    }

    fn zip(self, other: Self, f: impl Fn(u64, u64) -> u64) -> Self {
        let (own, others) = (self.to_words(), other.to_words());
        Self::from_words(std::array::from_fn(|at| f(own[at], others[at])))
    }

    /// As numbers in a fixed order, `issued` first and those that are mostly 0 last.
    pub fn to_words(self) -> [u64; Self::WORDS] {
        // Without `..`: a field that is added must be added here too.
        let Self {
            issued,
            acked,
            failed,
            unknown,
            moved,
            asked,
            retried,
            cpu_us,
            active_us,
            missed,
            warm_acked,
            warm_us,
        } = self;
        [
            issued, acked, active_us, cpu_us, moved, unknown, failed, retried, missed, warm_acked, warm_us,
            asked,
        ]
    }

    /// From numbers in the same order.
    pub fn from_words(words: [u64; Self::WORDS]) -> Self {
        let [issued, acked, active_us, cpu_us, moved, unknown, failed, retried, more @ ..] = words;
        let [missed, warm_acked, warm_us, asked] = more;
        Self {
            issued,
            acked,
            failed,
            unknown,
            moved,
            asked,
            retried,
            cpu_us,
            active_us,
            missed,
            warm_acked,
            warm_us,
        }
    }
}

/// One (share, epoch)'s part of a run's account.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Tally {
    /// Who.
    pub host: HostId,
    /// Which share, by its index in [`Run::shares`].
    pub share: u16,
    /// Which life of its agent; a host's epochs of one run differ over all its shares.
    pub epoch: u32,
    /// No write of this epoch is in flight and none will be issued.
    pub closed: bool,
    /// What was counted.
    pub counts: Counts,
}

/// What one (share, epoch) kept beside its counts: too large for gossip and for the
/// replicated state, so it stays on its host and is asked for.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct ShareDetail {
    /// Who.
    pub host: HostId,
    /// Which life of its agent.
    pub epoch: u32,
    /// When it began to issue, Unix milliseconds by its host's clock.
    pub started_unix_ms: u64,
    /// Seconds that one point of `acked` stands for.
    pub resolution_s: u32,
    /// Writes acked in each interval since the start.
    pub acked: Vec<u64>,
    /// Fewest acked writes of any one worker.
    pub worker_acked_min: u64,
    /// Most acked writes of any one worker.
    pub worker_acked_max: u64,
    /// What went wrong, by kind.
    pub errors: Vec<ErrorCount>,
    /// Service times in microseconds, see [`crate::histogram`].
    pub histogram: Vec<u8>,
    /// Open loop: times from the intended begin to the answer, likewise; else empty.
    pub intended: Vec<u8>,
    /// Open loop: operations whose time had come and that were never begun.
    pub behind: u64,
    /// Load threads.
    pub threads: u16,
    /// Acked writes by the server that acked them.
    pub acked_by: Vec<(SocketAddr, u64)>,
    /// What a read-back has found.
    pub findings: Option<Findings>,
}

/// What was found of the keys that were read back.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Findings {
    /// Acked writes whose key holds what was written.
    pub right: u64,
    /// Acked writes whose key holds something else.
    pub wrong: u64,
    /// Acked writes whose key is not there.
    pub lost: u64,
    /// Writes of unknown fate that have arrived.
    pub arrived: u64,
    /// Writes of unknown fate that have not.
    pub not_arrived: u64,
    /// Lost ones by the server that should hold them.
    pub lost_at: Vec<(SocketAddr, u64)>,
    /// A few keys that are lost or wrong.
    pub examples: Vec<String>,
}

/// One kind of error that load threads met with.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct ErrorCount {
    /// The server's error code, or what failed.
    pub kind: String,
    /// How often.
    pub count: u64,
    /// Its first message.
    pub first: String,
}

/// One instance's own figures, read with `INFO` and `DBSIZE`.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct ServerSample {
    /// Host that bears it.
    pub host: HostId,
    /// Data port.
    pub port: u16,
    /// `run_id`: a new one means that the server's counters began again.
    pub run_id: String,
    /// Whether it is a primary now; replicas' counters repeat their primary's.
    pub primary: bool,
    /// Keys.
    pub dbsize: u64,
    /// Calls of the commands that load consists of ([`crate::workload::Verb`]): executed
    /// ones, redirections are not.
    pub calls: u64,
    /// `used_cpu_user + used_cpu_sys`, microseconds.
    pub cpu_us: u64,
}

/// How a run ended.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Outcome {
    /// Every share was spent.
    Completed,
    /// Stopped on request; every share is closed.
    Stopped,
    /// Some share could not be closed: the text says whose and why.
    Incomplete(String),
}

/// A closed account.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct RunResult {
    /// How it ended.
    pub outcome: Outcome,
    /// All tallies, by host and epoch.
    pub tallies: Vec<Tally>,
    /// Service times of the acked operations, over all hosts.
    pub latency: LatencySummary,
    /// Open loop: the same from the intended begin.
    pub intended: Option<LatencySummary>,
    /// The account held against the servers' own.
    pub ledger: Ledger,
    /// Every instance's own figures after the last write.
    pub after: Vec<ServerSample>,
    /// CPU that the servers used meanwhile, microseconds.
    pub server_cpu_us: u64,
    /// When it was closed, Unix milliseconds by the coordinator's clock.
    pub ended_unix_ms: u64,
}

/// Times until the answer in microseconds: from the send (service time), or from the
/// begin that an open loop's schedule intended.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct LatencySummary {
    /// Recorded values.
    pub count: u64,
    /// 50th percentile.
    pub p50_us: u64,
    /// 90th percentile.
    pub p90_us: u64,
    /// 99th percentile.
    pub p99_us: u64,
    /// 99.9th percentile.
    pub p999_us: u64,
    /// Largest.
    pub max_us: u64,
}

/// The clients' account held against the servers': what `DBSIZE` and the calls of load
/// commands grew by, over all primaries, between the first write and the last.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Ledger {
    /// Sum of all primaries' `DBSIZE` after, less before.
    pub dbsize: i64,
    /// Sum of all primaries' calls of load commands after, less before.
    pub calls: i64,
    /// Acked writes that the servers no longer hold, at the least; told by `DBSIZE`, so
    /// only of workloads that never write a key twice.
    pub lost: u64,
    /// Where they were lost: servers that restarted in the run, each with how many writes
    /// it had acked and holds no more.
    pub lost_at: Vec<(SocketAddr, u64)>,
    /// Closed, nothing lost, and not more keys than acked + unknown.
    pub ok: bool,
    /// What a reader has to know: restarted servers, missing samples, failovers.
    pub notes: Vec<String>,
}
