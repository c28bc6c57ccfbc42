//! Load runs: what is asked, who bears which share, what was counted.
//!
//! The ledger's one equation: issued = acked + failed + unknown + in flight, and
//! in flight is 0 once a share is closed.

use serde::{Deserialize, Serialize};

use crate::ids::{HostId, RunId};

/// The built-in workload of the article: unique keys `<uuid>-<n>`, value the key twice.
pub const UUID_COUNTER: &str = "uuid-counter";

/// What a person asks of `run start`.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct RunSpec {
    /// Name of the workload; [`UUID_COUNTER`] is the one there is.
    pub workload: String,
    /// Closed-loop workers over the whole mesh, each with one outstanding write.
    pub workers: u32,
    /// Hosts that bear the load: the first so many that are alive, in the plan's order;
    /// all of them if not said. Fewer hosts have fewer connections, so larger batches.
    pub load_hosts: Option<u16>,
    /// When it is over.
    pub until: RunUntil,
}

/// When a run is over.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum RunUntil {
    /// After exactly so many writes were issued.
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
    /// Each load host's part; workers and writes add up to the spec's.
    pub shares: Vec<Share>,
    /// How far it has got.
    pub stage: RunStage,
    /// When it was committed, Unix milliseconds by the coordinator's clock.
    pub created_unix_ms: u64,
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

/// Grow-only counts of one (run, host, epoch). An epoch is one life of the agent:
/// counts of an earlier life are recovered from its ledger file and stay as they are.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Counts {
    /// Writes given to a worker, each with a key of its own.
    pub issued: u64,
    /// Answered `+OK`.
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
}

impl Counts {
    /// Writes issued whose fate is still open.
    pub fn in_flight(&self) -> u64 {
        self.issued.saturating_sub(self.acked + self.failed + self.unknown)
    }

    /// The larger of each count: how two sightings of one grow-only counter merge.
    pub fn max(self, other: Self) -> Self {
        self.zip(other, u64::max)
    }

    /// Sum, except `active_us`, of which the longer counts.
    pub fn plus(self, other: Self) -> Self {
        let active_us = self.active_us.max(other.active_us);
        Self { active_us, ..self.zip(other, |a, b| a + b) }
    }

    fn zip(self, other: Self, f: impl Fn(u64, u64) -> u64) -> Self {
        Self {
            issued: f(self.issued, other.issued),
            acked: f(self.acked, other.acked),
            failed: f(self.failed, other.failed),
            unknown: f(self.unknown, other.unknown),
            moved: f(self.moved, other.moved),
            asked: f(self.asked, other.asked),
            retried: f(self.retried, other.retried),
            cpu_us: f(self.cpu_us, other.cpu_us),
            active_us: f(self.active_us, other.active_us),
        }
    }
}

/// One (host, epoch)'s part of a run's account.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Tally {
    /// Who.
    pub host: HostId,
    /// Which life of its agent.
    pub epoch: u32,
    /// No write of this epoch is in flight and none will be issued.
    pub closed: bool,
    /// What was counted.
    pub counts: Counts,
}

/// What one (host, epoch) kept beside its counts: too large for gossip and for the
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
    /// Service times in microseconds, see [`crate::histogram`]; empty if it was lost.
    pub histogram: Vec<u8>,
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
    /// `cmdstat_set` calls (executed ones; redirections are not).
    pub set_calls: u64,
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
    /// Service time of the acked writes, over all hosts.
    pub latency: LatencySummary,
    /// The account held against the servers' own.
    pub ledger: Ledger,
    /// Every instance's own figures after the last write.
    pub after: Vec<ServerSample>,
    /// CPU that the servers used meanwhile, microseconds.
    pub server_cpu_us: u64,
    /// When it was closed, Unix milliseconds by the coordinator's clock.
    pub ended_unix_ms: u64,
}

/// Service times (from send to answer, closed loop) in microseconds.
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

/// The clients' account held against the servers': what `DBSIZE` and `cmdstat_set`
/// grew by, over all primaries, between the first write and the last.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Ledger {
    /// Sum of all primaries' `DBSIZE` after, less before.
    pub dbsize: i64,
    /// Sum of all primaries' `cmdstat_set` calls after, less before.
    pub cmdstat_set_calls: i64,
    /// Acked writes that the servers no longer hold, at the least.
    pub lost: u64,
    /// Closed, nothing lost, and not more keys than acked + unknown.
    pub ok: bool,
    /// What a reader has to know: restarted servers, missing samples, failovers.
    pub notes: Vec<String>,
}
