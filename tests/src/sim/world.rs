//! What is outside of the agents: redis-servers, which outlive them, and the log of what
//! has happened.
//!
//! A server has no task: what it does at a moment follows from when it was started and
//! released. It holds numbers of keys, not keys.

use std::collections::BTreeMap;
use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use redmesh_api::ids::{PlanId, RunId};

use super::event::{Event, Happened};

/// From a server's start until its ports listen.
pub const LISTENS_AFTER: Duration = Duration::from_millis(40);

/// From a server's release until it says that the cluster is fine, if all others serve.
pub const AGREES_AFTER: Duration = Duration::from_secs(2);

/// A redis-server's process.
#[derive(Debug, Clone)]
pub struct Server {
    /// Its process id; every process has another one.
    pub pid: u32,
    /// Where it listens.
    pub addr: SocketAddr,
    /// Where it works.
    pub dir: PathBuf,
    /// Under which plan it was started.
    pub plan: PlanId,
    /// The `nodes.conf` that it was started with.
    pub nodes_conf: Arc<str>,
    /// Whether that says that it is a primary.
    pub primary: bool,
    /// When.
    pub started: Duration,
    /// Since when it has been running without being held; `None` while it is held.
    pub released: Option<Duration>,
    /// Whether it was held once.
    pub was_held: bool,
    /// Keys.
    pub keys: u64,
    /// Calls of SET.
    pub calls: u64,
}

impl Server {
    /// Whether its ports listen.
    pub fn listens(&self, now: Duration) -> bool {
        now >= self.started + LISTENS_AFTER
    }

    /// Whether it answers.
    pub fn answers(&self, now: Duration) -> bool {
        self.released.is_some() && self.listens(now)
    }

    /// Its `run_id`.
    pub fn run_id(&self) -> String {
        format!("{:040x}", self.pid)
    }
}

/// What the load engines have done of one run.
#[derive(Debug, Clone, Copy, Default)]
struct Work {
    issued: u64,
    executed: u64,
    acked: u64,
}

#[derive(Debug, Default)]
struct State {
    servers: BTreeMap<SocketAddr, Vec<Server>>,
    pids: u32,
    work: BTreeMap<RunId, Work>,
    happened: Vec<Happened>,
}

/// See the module.
#[derive(Debug, Default)]
pub struct World {
    state: Mutex<State>,
}

impl World {
    fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Something happened.
    pub fn tell(&self, at: Duration, event: Event) {
        self.state().happened.push(Happened { at, event });
    }

    /// What has happened since the last time.
    pub fn take_happened(&self) -> Vec<Happened> {
        std::mem::take(&mut self.state().happened)
    }

    /// Starts a process; whoever asks is to have looked whether one is there.
    pub fn start_server(
        &self,
        now: Duration,
        addr: SocketAddr,
        dir: &Path,
        plan: PlanId,
        nodes_conf: String,
        held: bool,
    ) {
        let mut state = self.state();
        state.pids += 1;
        let pid = state.pids;
        let server = Server {
            pid,
            addr,
            dir: dir.to_owned(),
            plan,
            primary: nodes_conf.lines().any(|line| line.contains("myself,master")),
            nodes_conf: nodes_conf.into(),
            started: now,
            released: (!held).then_some(now),
            was_held: held,
            keys: 0,
            calls: 0,
        };
        state.servers.entry(addr).or_default().push(server);
        let event = Event::ServerStarted { dir: dir.to_owned(), pid, plan };
        state.happened.push(Happened { at: now, event });
    }

    /// SIGCONT.
    pub fn release(&self, now: Duration, pid: u32) {
        let mut state = self.state();
        let servers = state.servers.values_mut().flatten();
        for server in servers.filter(|server| server.pid == pid && server.released.is_none()) {
            server.released = Some(now);
        }
    }

    /// SIGKILL for every server at one of these addresses.
    pub fn kill_servers(&self, now: Duration, mut which: impl FnMut(SocketAddr) -> bool) {
        let mut state = self.state();
        let mut ended = Vec::new();
        for (addr, servers) in &mut state.servers {
            if which(*addr) {
                ended.append(servers);
            }
        }
        for Server { dir, pid, .. } in ended {
            state.happened.push(Happened { at: now, event: Event::ServerEnded { dir, pid } });
        }
    }

    /// The live process at an address.
    pub fn server(&self, addr: SocketAddr) -> Option<Server> {
        self.state().servers.get(&addr)?.first().cloned()
    }

    /// Why the cluster is not fine; `None` when it is.
    pub fn cluster_problem(&self, now: Duration) -> Option<String> {
        let state = self.state();
        let servers: Vec<_> = state.servers.values().flatten().collect();
        let nodes = servers.first()?.nodes_conf.lines().filter(|line| !line.starts_with("vars")).count();
        let fine = |server: &&&Server| server.released.is_some_and(|at| now >= at + AGREES_AFTER);
        let up = servers.iter().filter(fine).count();
        (up < nodes).then(|| format!("{up} of {nodes} servers serve"))
    }

    /// Sends `writes` of a run, spread over all servers that are primaries; how many were
    /// executed. What nobody could take has failed.
    pub fn write(&self, now: Duration, run: RunId, writes: u64) -> u64 {
        let mut state = self.state();
        let state = &mut *state;
        let all = state.servers.values_mut().flatten();
        let mut primaries: Vec<_> = all.filter(|server| server.primary).collect();
        let count = primaries.len() as u64;
        let mut executed = 0;
        for (index, server) in primaries.iter_mut().enumerate() {
            let part = writes / count + u64::from((index as u64) < writes % count);
            if server.answers(now) {
                server.calls += part;
                server.keys += part;
                executed += part;
            }
        }
        let work = state.work.entry(run).or_default();
        work.issued += writes;
        work.executed += executed;
        executed
    }

    /// Answers to writes of a run have been counted.
    pub fn ack(&self, run: RunId, acked: u64) {
        self.state().work.entry(run).or_default().acked += acked;
    }

    /// What was done of each run, as events.
    pub fn work(&self) -> Vec<Event> {
        let state = self.state();
        let done = |(run, work): (&RunId, &Work)| Event::Done {
            run: *run,
            issued: work.issued,
            executed: work.executed,
            acked: work.acked,
        };
        state.work.iter().map(done).collect()
    }
}
