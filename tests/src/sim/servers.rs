//! The supervisor of a simulated host: starts, holds and releases servers of the
//! [`World`], and finds those that an earlier agent has left.

use std::collections::BTreeSet;
use std::net::SocketAddr;
use std::path::PathBuf;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use async_trait::async_trait;
use redmesh_agent::supervisor::{
    InstanceStatus, Phase, ProcessError, Run, Supervise, SupervisorError, Survey, WantedInstance, WantedLevel,
};
use redmesh_api::ids::PlanId;
use tokio::sync::watch;
use tokio::task::JoinHandle;
use tokio_util::sync::CancellationToken;

use super::clock::HostClock;
use super::world::World;

/// Between two looks at the servers.
const LOOK_INTERVAL: Duration = Duration::from_millis(50);

/// What `--version` of every simulated server prints.
const VERSION: &str = "Redis server v=7.0.15 sha=00000000:0 malloc=jemalloc-5.2.1 bits=64 build=1";

/// See the module.
#[derive(Debug)]
pub struct SimServers {
    wanted: Arc<Mutex<Option<WantedLevel>>>,
    statuses: watch::Receiver<Arc<Vec<InstanceStatus>>>,
    cancel: CancellationToken,
    task: Mutex<Option<JoinHandle<()>>>,
}

impl SimServers {
    /// Begins; starts nothing before something is wanted. One that is `blind` doesn't look
    /// whether what it has not started itself is there.
    pub fn start(
        world: Arc<World>,
        clock: HostClock,
        data_dir: PathBuf,
        blind: bool,
        cancel: CancellationToken,
    ) -> Self {
        let wanted = Arc::<Mutex<Option<WantedLevel>>>::default();
        let (publish, statuses) = watch::channel(Arc::default());
        let started = blind.then(BTreeSet::new);
        let mut keeper = Keeper { world, clock, data_dir, wanted: wanted.clone(), started };
        let ended = cancel.clone();
        let task = tokio::spawn(async move {
            let mut ticks = tokio::time::interval(LOOK_INTERVAL);
            loop {
                tokio::select! {
                    _ = ticks.tick() => {}
                    () = ended.cancelled() => return,
                }
                let now = Arc::new(keeper.look());
                publish.send_if_modified(|known| {
                    let changed = *known != now;
                    *known = now;
                    changed
                });
            }
        });
        Self { wanted, statuses, cancel, task: Mutex::new(Some(task)) }
    }
}

struct Keeper {
    world: Arc<World>,
    clock: HostClock,
    data_dir: PathBuf,
    wanted: Arc<Mutex<Option<WantedLevel>>>,
    /// Of a blind one: what it has started, which is all that it knows of.
    started: Option<BTreeSet<SocketAddr>>,
}

impl Keeper {
    /// Does what is due; how all servers stand.
    fn look(&mut self) -> Vec<InstanceStatus> {
        let wanted = self.wanted.lock().unwrap_or_else(PoisonError::into_inner).clone();
        let Some(level) = wanted else { return Vec::new() };
        level.instances.iter().map(|instance| self.keep(level.plan, instance)).collect()
    }

    fn keep(&mut self, plan: PlanId, wanted: &WantedInstance) -> InstanceStatus {
        let now = self.clock.now();
        let held = wanted.run == Run::Held;
        let mut status = InstanceStatus {
            addr: wanted.addr,
            phase: Phase::Starting,
            pid: None,
            run_id: None,
            problem: None,
            restarts: 0,
            adopted: false,
        };
        let seen = self.started.as_mut().is_none_or(|started| !started.insert(wanted.addr));
        let Some(server) = self.world.server(wanted.addr).filter(|_| seen) else {
            let dir = self.data_dir.join(wanted.addr.port().to_string());
            // Simulated clusters are seeded.
            let nodes_conf = wanted.nodes_conf.clone().unwrap_or_default();
            self.world.start_server(now, wanted.addr, &dir, plan, nodes_conf, held);
            return status;
        };
        status.pid = Some(server.pid);
        if server.plan != plan {
            status.phase = Phase::Blocked;
            status.problem = Some(format!("the port is taken by a server of plan {}", server.plan));
            return status;
        }
        if !held {
            self.world.release(now, server.pid);
        }
        if server.listens(now) {
            status.phase = if server.released.is_some() { Phase::Running } else { Phase::Held };
            status.run_id = server.released.is_some().then(|| server.run_id());
        }
        status
    }
}

#[async_trait]
impl Supervise for SimServers {
    async fn set_wanted(&self, level: WantedLevel) -> Result<(), SupervisorError> {
        *self.wanted.lock().unwrap_or_else(PoisonError::into_inner) = Some(level);
        Ok(())
    }

    fn statuses(&self) -> watch::Receiver<Arc<Vec<InstanceStatus>>> {
        self.statuses.clone()
    }

    async fn server_version(&self) -> Result<String, ProcessError> {
        Ok(VERSION.to_owned())
    }

    /// Nothing stands in the way of simulated servers.
    async fn survey(&self, _: Vec<SocketAddr>, _: Option<PlanId>) -> Result<Survey, ProcessError> {
        Ok(Survey::default())
    }

    async fn shutdown(&self) {
        self.cancel.cancel();
        let task = self.task.lock().unwrap_or_else(PoisonError::into_inner).take();
        if let Some(task) = task {
            let _ = task.await;
        }
    }
}
