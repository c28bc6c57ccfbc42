//! The load engine: workers that issue a workload's operations to a Redis Cluster, in a
//! closed loop or by a schedule, and account for every one exactly.
//!
//! A plain synchronous loop over `mio` on a thread of its own; one connection per
//! (thread, primary), shared by all workers of the thread, so that independent workers
//! with one outstanding write each batch by themselves. Nothing on the path of a write
//! allocates, locks or waits.
//!
//! What the engine never does: resend a write whose bytes may have reached a server
//! (its fate is *unknown*, and counted so), count a redirection or a retry as a write,
//! or let anything wait without a bound. It knows nothing of how redis-servers are
//! supervised or a cluster is formed: it gets a [`routing::SlotMap`] and asks for a
//! newer one when servers contradict it.
//!
//! Every operation ends as exactly one of acked, failed (proven not executed) or unknown;
//! [`ledger`] keeps that account in a file that survives `kill -9` of the agent.

mod conn;
mod dispatch;
mod engine;
pub mod ledger;
mod issue;
pub mod quota;
mod read_back;
pub mod resp;
pub mod routing;
mod running;
mod schedule;
mod shared;
mod stream;
mod thread;
mod written;
pub mod workload;

use std::io;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::{Duration, Instant};

use redmesh_api::ids::{HostId, RunId};
use redmesh_api::workload::Workload;

use crate::login::Login;
use crate::redis_tls::RedisTls;

pub use engine::{Engine, ShareHandle};
pub use running::{LoadEngine, RunningShare, ShareFigures};
pub use shared::ShareView;
pub use written::{EXCEPTIONS_MAX, Exception, Written};

/// A write that was never executed is given up this long after its first try, seconds.
pub const WRITE_DEADLINE: Duration = Duration::from_secs(30);

/// A server that owes answers and sends no byte for so long counts as hung.
pub const REPLY_TIMEOUT: Duration = Duration::from_secs(30);

/// After the last issue, what is not answered within this is closed as unknown.
pub const DRAIN_MAX: Duration = Duration::from_secs(30);

/// A connection attempt may take so long.
pub const CONNECT_TIMEOUT: Duration = Duration::from_secs(3);

/// One share of a run, in one epoch (life of the agent).
#[derive(Debug, Clone)]
pub struct ShareSpec {
    /// Of which run.
    pub run: RunId,
    /// Whose share.
    pub host: HostId,
    /// Its index in the run.
    pub share: u16,
    /// Which life of the host's agent.
    pub epoch: u32,
    /// Index of the first worker among all workers of the run.
    pub first_worker: u32,
    /// Workers.
    pub workers: u32,
    /// Operations that each has outstanding.
    pub pipeline: u16,
    /// What they do.
    pub task: Task,
    /// Open loop: operations a second. `None` is a closed loop.
    pub rate: Option<f64>,
    /// The load grows to its whole over so long.
    pub ramp: Duration,
    /// What is answered in the first so long is kept out of latencies and rate.
    pub warm_up: Duration,
    /// Nothing is issued before; connections are opened as soon as servers are known.
    pub begin: Instant,
    /// When it is over.
    pub until: ShareUntil,
    /// Load threads to spread the workers over; more only when one core is full, since
    /// every further thread has connections of its own and so smaller batches.
    pub threads: usize,
    /// What connections say before anything else, if the servers want it.
    pub login: Option<Login>,
    /// Set where the servers speak TLS: then nothing else is spoken to them.
    pub tls: Option<RedisTls>,
}

/// What a share's workers do.
#[derive(Debug, Clone)]
pub enum Task {
    /// A workload's operations.
    Load(Arc<Workload>),
    /// Reading back what earlier epochs of this host have written; ends by itself.
    ReadBack(Arc<ReadBackTask>),
}

/// What is read back, and how much of it.
#[derive(Debug)]
pub struct ReadBackTask {
    /// One per epoch, its exceptions sorted.
    pub written: Vec<Written>,
    per_million: u32,
    acked_beyond: u64,
}

impl ReadBackTask {
    /// `written` has one per epoch. About `per_million` of each 1,000,000 keys are read;
    /// 1,000,000 is all. `acked_beyond` are acked writes that the epochs' ledgers have and
    /// the files of written keys don't: those of a killed agent's last second.
    pub fn new(mut written: Vec<Written>, per_million: u32, acked_beyond: u64) -> Self {
        for epoch in &mut written {
            epoch.exceptions.sort_unstable_by_key(|exception| (exception.lane, exception.index));
        }
        Self { written, per_million, acked_beyond }
    }
}

/// When a share is over.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum ShareUntil {
    /// Exactly so many writes are issued (fewer only when stopped).
    Writes(u64),
    /// Writes are issued for so many seconds after the first.
    Seconds(u32),
    /// Until the task ends by itself.
    Exhausted,
}

/// Why a share could not be started.
#[derive(Debug, thiserror::Error)]
pub enum LoadError {
    /// Writes to do and nobody to do them.
    #[error("share of run {run} has {writes} writes but no workers: give it at least 1 worker")]
    NoWorkers {
        /// Which run.
        run: RunId,
        /// The quota.
        writes: u64,
    },
    /// A number outside its bounds.
    #[error("{what} is {got}, must be {min}..={max}")]
    OutOfBounds {
        /// Which field.
        what: &'static str,
        /// Its value.
        got: u64,
        /// Smallest allowed.
        min: u64,
        /// Largest allowed.
        max: u64,
    },
    /// The account can't be kept, so nothing may be written.
    #[error("can't keep the ledger of run {run}")]
    Ledger {
        /// Which run.
        run: RunId,
        /// Why.
        #[source]
        source: ledger::LedgerError,
    },
    /// The operating system refused a thread or an event queue.
    #[error("can't start a load thread: {what}")]
    Thread {
        /// Which call.
        what: &'static str,
        /// Why.
        #[source]
        source: io::Error,
    },
}

/// The bounds of one share's engine. Production uses [`Limits::default`]; tests that
/// wait for a bound use shorter ones.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Limits {
    /// See [`WRITE_DEADLINE`].
    pub write_deadline: Duration,
    /// See [`REPLY_TIMEOUT`].
    pub reply_timeout: Duration,
    /// See [`DRAIN_MAX`].
    pub drain_max: Duration,
    /// See [`CONNECT_TIMEOUT`].
    pub connect_timeout: Duration,
}

impl Default for Limits {
    fn default() -> Self {
        Self {
            write_deadline: WRITE_DEADLINE,
            reply_timeout: REPLY_TIMEOUT,
            drain_max: DRAIN_MAX,
            connect_timeout: CONNECT_TIMEOUT,
        }
    }
}

/// Where the ledger file of an epoch belongs, in a directory of its run's own.
pub fn ledger_path(dir: &Path, epoch: u32) -> PathBuf {
    dir.join(format!("{epoch}.{}", ledger::EXTENSION))
}

#[cfg(test)]
mod tests;
