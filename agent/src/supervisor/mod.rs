//! This host's redis-servers as processes: started, watched, restarted, adopted.
//!
//! [`Supervisor`] is the handle over a private task; [`Instance`] is the pure state
//! machine of one server; `process`, `sockets`, `layout`, `starter` and `probe` are the
//! effects. A server outlives the agent: a supervisor that starts finds the servers of
//! an earlier one by their directories and adopts them. It never starts a second one
//! on a directory, and never ends one unless [`Supervisor::stop_all`] (or
//! [`OnExit::Stop`]) asks for it. Nothing here knows of slots, roles or plans beyond
//! a plan's id.

mod actor;
mod cause;
mod ending;
mod instance;
mod layout;
mod probe;
mod process;
mod sockets;
mod starter;
mod survey;

use std::collections::BTreeSet;
use std::fmt;
use std::net::SocketAddr;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::{Duration, Instant};

use async_trait::async_trait;
use redmesh_api::ids::PlanId;
use redmesh_api::level::BUS_PORT_OFFSET;
use tokio::sync::{Mutex, mpsc, oneshot, watch};
use tokio::task::JoinHandle;
use tokio_util::sync::CancellationToken;

use crate::login::Login;
use crate::redis_tls::RedisTls;

pub use ending::{Ended, end_all};
pub use instance::{CRASH_WINDOW, Effect, Event, Instance};
pub use process::{FDS_RESERVED, ProcessError, find_server};
pub use sockets::PortProblem;
pub use survey::{DirProblem, PORTS_NAMED_MAX, Survey};

/// Commands that may wait for the supervisor's task.
const COMMANDS_MAX: usize = 16;

/// How long [`OnExit::Stop`] gives servers between SIGTERM and SIGKILL.
pub const STOP_DEADLINE: Duration = Duration::from_secs(10);

/// What becomes of the servers when the supervisor ends.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum OnExit {
    /// They keep running and the next supervisor adopts them.
    #[default]
    Leave,
    /// They are stopped, within [`STOP_DEADLINE`].
    Stop,
}

/// Where and how servers run.
#[derive(Clone)]
pub struct SupervisorOptions {
    /// Directory of the instances' directories, made if it isn't there.
    pub data_dir: PathBuf,
    /// The server's binary; `None` searches PATH for `redis-server`, then
    /// `valkey-server`.
    pub server: Option<PathBuf>,
    /// `MALLOC_CONF` of the servers' jemalloc; `None` leaves it its own defaults.
    pub malloc_conf: Option<String>,
    /// What servers want to be told before PING and INFO, if anything.
    pub login: Option<Login>,
    /// Set where servers speak TLS.
    pub tls: Option<RedisTls>,
    /// Held servers that a paced level releases at a time, the next when one answers; `None`
    /// is one for each core.
    pub release_at_once: Option<usize>,
    /// What becomes of the servers at the end.
    pub on_exit: OnExit,
    /// Ends the supervisor like [`Supervisor::shutdown`].
    pub cancel: CancellationToken,
}

impl fmt::Debug for SupervisorOptions {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("SupervisorOptions")
            .field("data_dir", &self.data_dir)
            .field("server", &self.server)
            .field("malloc_conf", &self.malloc_conf)
            .field("login", &self.login)
            .field("tls", &self.tls)
            .field("on_exit", &self.on_exit)
            .finish_non_exhaustive()
    }
}

/// Everything that this host is to run.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct WantedLevel {
    /// The plan under which directories are made and seeded.
    pub plan: PlanId,
    /// Whether held servers are released a few at a time (see
    /// [`SupervisorOptions::release_at_once`]) or all at once.
    pub paced: bool,
    /// All instances.
    pub instances: Vec<WantedInstance>,
}

/// One server to be.
#[derive(Clone, PartialEq, Eq)]
pub struct WantedInstance {
    /// Data address; its port names the directory.
    pub addr: SocketAddr,
    /// `redis.conf`, complete; written before each start.
    pub config: String,
    /// `nodes.conf`, written only where there is none: from then on the file is the
    /// server's. `None` leaves it to the server altogether.
    pub nodes_conf: Option<String>,
    /// Held or running.
    pub run: Run,
    /// `maxclients` that it must have.
    pub clients_needed: u32,
    /// Least time between the end of a server that served and the next start: one that
    /// comes back empty before its replica was promoted would empty the replica too.
    pub restart_pause: Duration,
}

impl fmt::Debug for WantedInstance {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        // The files are long, and the configuration may hold a password.
        f.debug_struct("WantedInstance")
            .field("addr", &self.addr)
            .field("run", &self.run)
            .field("clients_needed", &self.clients_needed)
            .finish_non_exhaustive()
    }
}

/// How far a server is wanted to go.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Run {
    /// Started, its bus port listening, then stopped (SIGSTOP): so that all servers of
    /// a new cluster begin to look for each other when each can be found.
    Held,
    /// Serving. A server that was released is never held again.
    Running,
}

/// Where a server is in its life.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Phase {
    /// Not there, and not wanted or not begun yet.
    Absent,
    /// Being prepared, started, or not answering yet.
    Starting,
    /// Its bus port listens and it is stopped (SIGSTOP).
    Held,
    /// It answered PING.
    Running,
    /// It ended; another start comes.
    Backoff {
        /// When.
        until: Instant,
        /// How often it ended within [`CRASH_WINDOW`].
        exits: u32,
    },
    /// It ended too often; tried again at long intervals.
    CrashLoop,
    /// Something outside must change first; tried again every few seconds.
    Blocked,
    /// Asked to end.
    Stopping,
    /// Ended on request.
    Stopped,
}

/// What is known of one server.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct InstanceStatus {
    /// Data address.
    pub addr: SocketAddr,
    /// Where it is in its life.
    pub phase: Phase,
    /// Its process, while there is one.
    pub pid: Option<u32>,
    /// Its `run_id`, once it answered.
    pub run_id: Option<String>,
    /// What is amiss, with the remedy.
    pub problem: Option<String>,
    /// Starts after the first, by this supervisor.
    pub restarts: u32,
    /// Whether the process was started by an earlier supervisor.
    pub adopted: bool,
}

/// How a stop went.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct StopReport {
    /// Servers that ended on SIGTERM, or weren't there.
    pub stopped: Vec<SocketAddr>,
    /// Servers that had to be killed at the deadline.
    pub killed: Vec<SocketAddr>,
    /// Servers that are there still.
    pub left: Vec<SocketAddr>,
}

/// Why the supervisor can't do what is asked.
#[derive(Debug, thiserror::Error)]
pub enum SupervisorError {
    /// The data directory can't be made.
    #[error("can't make the data directory {dir:?}; set redis.data_dir to one that the agent may write")]
    DataDir {
        /// The directory.
        dir: PathBuf,
        /// Why.
        #[source]
        source: std::io::Error,
    },
    /// The level contradicts itself.
    #[error("two instances are wanted with port {port}, which names their directory")]
    DuplicatePort {
        /// The port.
        port: u16,
    },
    /// A port without a bus port.
    #[error("port {port} can't be an instance's: its bus port would be {port} + {BUS_PORT_OFFSET}")]
    Port {
        /// The port.
        port: u16,
    },
    /// Servers are being stopped for good.
    #[error("the servers were told to stop; start the agent again to run them")]
    Stopping,
    /// The supervisor has ended.
    #[error("the supervisor has ended")]
    Ended,
}

/// What runs a host's servers, as the rest of the agent sees it. [`Supervisor`] is the real
/// one; a simulation brings servers without processes.
#[async_trait]
pub trait Supervise: fmt::Debug + Send + Sync {
    /// See [`Supervisor::set_wanted`].
    ///
    /// # Errors
    /// [`SupervisorError`]; what was wanted before still is.
    async fn set_wanted(&self, level: WantedLevel) -> Result<(), SupervisorError>;

    /// See [`Supervisor::statuses`].
    fn statuses(&self) -> watch::Receiver<Arc<Vec<InstanceStatus>>>;

    /// See [`Supervisor::server_version`].
    ///
    /// # Errors
    /// [`ProcessError`].
    async fn server_version(&self) -> Result<String, ProcessError>;

    /// See [`Supervisor::survey`].
    ///
    /// # Errors
    /// [`ProcessError`].
    async fn survey(&self, addrs: Vec<SocketAddr>, plan: Option<PlanId>) -> Result<Survey, ProcessError>;

    /// See [`Supervisor::shutdown`].
    async fn shutdown(&self);
}

#[async_trait]
impl Supervise for Supervisor {
    async fn set_wanted(&self, level: WantedLevel) -> Result<(), SupervisorError> {
        Self::set_wanted(self, level).await
    }

    fn statuses(&self) -> watch::Receiver<Arc<Vec<InstanceStatus>>> {
        Self::statuses(self)
    }

    async fn server_version(&self) -> Result<String, ProcessError> {
        Self::server_version(self).await
    }

    async fn survey(&self, addrs: Vec<SocketAddr>, plan: Option<PlanId>) -> Result<Survey, ProcessError> {
        Self::survey(self, addrs, plan).await
    }

    async fn shutdown(&self) {
        Self::shutdown(self).await;
    }
}

pub(crate) enum Command {
    SetWanted(Arc<WantedLevel>, oneshot::Sender<Result<(), SupervisorError>>),
    StopAll(Duration, oneshot::Sender<StopReport>),
}

/// Runs this host's servers. Clones are handles to the same task, which ends when the
/// last one is dropped, at [`Supervisor::shutdown`], or by the options' token.
#[derive(Debug, Clone)]
pub struct Supervisor {
    commands: mpsc::Sender<Command>,
    statuses: watch::Receiver<Arc<Vec<InstanceStatus>>>,
    cancel: CancellationToken,
    task: Arc<Mutex<Option<JoinHandle<()>>>>,
    server: Option<PathBuf>,
    tls: bool,
    data_dir: PathBuf,
}

impl Supervisor {
    /// Makes the data directory, raises the soft limit of open files to the hard one
    /// (servers inherit it) and begins. Starts nothing before [`Supervisor::set_wanted`].
    pub fn start(options: SupervisorOptions) -> Result<Self, SupervisorError> {
        let dir = options.data_dir.clone();
        let data_dir = std::fs::create_dir_all(&dir)
            .and_then(|()| std::fs::canonicalize(&dir))
            .map_err(|source| SupervisorError::DataDir { dir, source })?;
        process::raise_nofile();
        let (commands, receiver) = mpsc::channel(COMMANDS_MAX);
        let (publish, statuses) = watch::channel(Arc::default());
        // A child: shutting this supervisor down must not end the caller's tree.
        let cancel = options.cancel.child_token();
        let server = options.server.clone();
        let tls = options.tls.is_some();
        let options = SupervisorOptions { data_dir: data_dir.clone(), cancel: cancel.clone(), ..options };
        let task = tokio::spawn(actor::Actor::new(options, publish).run(receiver));
        Ok(Self { commands, statuses, cancel, task: Arc::new(Mutex::new(Some(task))), server, tls, data_dir })
    }

    /// Sets all that is wanted; the same level again changes nothing. An instance that
    /// isn't in it any more is left as it is.
    pub async fn set_wanted(&self, level: WantedLevel) -> Result<(), SupervisorError> {
        let mut ports = BTreeSet::new();
        for instance in &level.instances {
            let port = instance.addr.port();
            if port == 0 || port.checked_add(BUS_PORT_OFFSET).is_none() {
                return Err(SupervisorError::Port { port });
            }
            if !ports.insert(port) {
                return Err(SupervisorError::DuplicatePort { port });
            }
        }
        let (reply, answer) = oneshot::channel();
        let command = Command::SetWanted(Arc::new(level), reply);
        self.commands.send(command).await.map_err(|_| SupervisorError::Ended)?;
        answer.await.map_err(|_| SupervisorError::Ended)?
    }

    /// What is known of all instances, by address; changes as it changes.
    pub fn statuses(&self) -> watch::Receiver<Arc<Vec<InstanceStatus>>> {
        self.statuses.clone()
    }

    /// Ends every server of this host for good, those of an earlier level included:
    /// SIGTERM, and SIGKILL for what is there after `deadline`. No server is started
    /// afterwards.
    pub async fn stop_all(&self, deadline: Duration) -> Result<StopReport, SupervisorError> {
        let (reply, answer) = oneshot::channel();
        let command = Command::StopAll(deadline, reply);
        self.commands.send(command).await.map_err(|_| SupervisorError::Ended)?;
        answer.await.map_err(|_| SupervisorError::Ended)
    }

    /// What `--version` of the server's binary prints, if it can do what the options ask.
    ///
    /// # Errors
    /// There is none, or it was built without the TLS that servers are to speak.
    pub async fn server_version(&self) -> Result<String, ProcessError> {
        let (server, tls) = (self.server.clone(), self.tls);
        let blocking = move || {
            if tls {
                process::check_tls(server.as_deref())?;
            }
            process::server_version(server.as_deref())
        };
        tokio::task::spawn_blocking(blocking).await.map_err(|_| ProcessError::Interrupted)?
    }

    /// Ends the supervisor and waits until it has; its servers fare as the options say.
    pub async fn shutdown(&self) {
        self.cancel.cancel();
        if let Some(task) = self.task.lock().await.take()
            && let Err(error) = task.await
        {
            tracing::error!(error = %error, "the supervisor's task failed");
        }
    }
}

#[cfg(test)]
mod tests;
