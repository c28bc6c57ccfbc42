//! What happens in a simulation, as the invariants see it.

use std::fmt;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use redmesh_api::ids::{HostId, PlanId, RunId};
use redmesh_api::level::Level;
use redmesh_api::run::Counts;

/// One thing that happened. Hosts are named by their index.
#[derive(Debug, Clone)]
pub enum Event {
    /// An agent began a life.
    Began {
        /// Where.
        host: usize,
        /// Its id.
        id: HostId,
    },
    /// An agent was killed.
    Killed {
        /// Where.
        host: usize,
        /// Whether its state directory went with it.
        wiped: bool,
    },
    /// An agent ended by itself.
    Failed {
        /// Where.
        host: usize,
        /// In its words.
        why: String,
    },
    /// An agent began or ceased to act as the coordinator.
    Acting {
        /// Where.
        host: usize,
        /// Its id.
        id: HostId,
        /// The Raft term.
        term: u64,
        /// Whether it does.
        acting: bool,
    },
    /// An agent has accepted a level.
    Level {
        /// Where.
        host: usize,
        /// Which.
        level: Arc<Level>,
    },
    /// A redis-server was started.
    ServerStarted {
        /// Its directory.
        dir: PathBuf,
        /// Its process.
        pid: u32,
        /// Under which plan.
        plan: PlanId,
    },
    /// A redis-server has ended.
    ServerEnded {
        /// Its directory.
        dir: PathBuf,
        /// Its process.
        pid: u32,
    },
    /// What all load engines have done of a run by now: the truth.
    Done {
        /// Which run.
        run: RunId,
        /// Sent to servers.
        issued: u64,
        /// Executed by servers.
        executed: u64,
        /// Executed, and the answer has been counted.
        acked: u64,
    },
    /// What an agent says that the mesh has done of a run.
    Counted {
        /// Who says so.
        host: usize,
        /// Which run.
        run: RunId,
        /// The sum over all hosts.
        total: Counts,
    },
    /// A fault begins or ends; for whoever reads a history.
    Fault(String),
    /// All faults are over and all agents run.
    Healed,
    /// The mesh does not do all that it should, and why; for a while after healing.
    Waiting(String),
    /// It does.
    Serving,
}

/// An event and when it happened.
#[derive(Debug, Clone)]
pub struct Happened {
    /// Since the simulation began.
    pub at: Duration,
    /// What.
    pub event: Event,
}

impl fmt::Display for Happened {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{:>8.3} s  ", self.at.as_secs_f64())?;
        match &self.event {
            Event::Began { host, id } => write!(f, "host {host} begins as {id}"),
            Event::Killed { host, wiped: false } => write!(f, "host {host}: agent killed"),
            Event::Killed { host, wiped: true } => write!(f, "host {host}: agent killed, state lost"),
            Event::Failed { host, why } => write!(f, "host {host}: agent ended by itself: {why}"),
            Event::Acting { host, term, acting, .. } => {
                let verb = if *acting { "acts" } else { "acts no more" };
                write!(f, "host {host} {verb} as coordinator of term {term}")
            }
            Event::Level { host, level } => {
                let plan = level.plan.as_ref().map(|plan| plan.stage);
                let runs: Vec<_> = level.runs.iter().map(|run| (run.stage, run.shares.len())).collect();
                write!(f, "host {host} has level {}: plan {plan:?}, runs {runs:?}", level.stamp)
            }
            Event::ServerStarted { dir, pid, .. } => write!(f, "server {pid} starts in {}", dir.display()),
            Event::ServerEnded { dir, pid } => write!(f, "server {pid} in {} has ended", dir.display()),
            Event::Done { run, issued, acked, .. } => write!(f, "run {run}: {issued} sent, {acked} acked"),
            Event::Counted { host, run, total } => {
                write!(f, "host {host} counts of run {run}: {} issued, {} acked", total.issued, total.acked)
            }
            Event::Fault(words) => write!(f, "fault: {words}"),
            Event::Healed => write!(f, "healed"),
            Event::Waiting(why) => write!(f, "waiting: {why}"),
            Event::Serving => write!(f, "serving"),
        }
    }
}
