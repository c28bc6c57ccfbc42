//! One simulated host: a real agent, built by `app::build` itself, in a simulated world.

use std::collections::VecDeque;
use std::fmt;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicI64, AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use rand::rngs::SmallRng;
use rand::{Rng, SeedableRng};
use redmesh_agent::app;
use redmesh_agent::census::Census;
use redmesh_agent::cluster::AdminPool;
use redmesh_agent::config::{
    Config, JoinConfig, LogConfig, LogFormat, MeshConfig, OnAgentExit, RedisAuth, RedisConfig, RedisTlsMode,
};
use redmesh_agent::control::Control;
use redmesh_agent::disk::Disk;
use redmesh_agent::effects::Effects;
use redmesh_agent::transport::quic::Wire;
use redmesh_api::control::{ControlReply, ControlRequest};
use tokio_util::sync::CancellationToken;

use super::clock::HostClock;
use super::driver::Scenario;
use super::event::Event;
use super::flaw::Flaw;
use super::line::SimLine;
use super::load::SimLoad;
use super::net::{Net, SimSocket, ip};
use super::pki;
use super::servers::SimServers;
use super::world::World;

/// Mesh port of every host.
const MESH_PORT: u16 = 7379;

/// First data port of every host.
const BASE_PORT: u16 = 6379;

/// Between two looks at what operators ask.
const DESK_INTERVAL: Duration = Duration::from_millis(50);

/// What a host shares with the driver.
#[derive(Clone)]
pub struct Host {
    index: usize,
    dir: PathBuf,
    flaw: Option<Flaw>,
    config: Config,
    seed: u64,
    world: Arc<World>,
    net: Arc<Net>,
    /// By how much its wall clock is off, milliseconds.
    pub skew_ms: Arc<AtomicI64>,
    /// Longest time, milliseconds, that its disk takes before and after an access.
    pub disk_ms: Arc<AtomicU64>,
    lives: Arc<AtomicU64>,
    desk: Arc<Mutex<Desk>>,
}

/// What passes between the driver and the agent of the moment.
#[derive(Default)]
struct Desk {
    census: Option<Census>,
    requests: VecDeque<(u64, ControlRequest)>,
    replies: Vec<(u64, ControlReply)>,
}

impl fmt::Debug for Host {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Host").field("index", &self.index).finish_non_exhaustive()
    }
}

impl Host {
    /// Prepares a host of a scenario below `dir`.
    pub fn new(index: usize, scenario: &Scenario, dir: &Path, world: Arc<World>, net: Arc<Net>) -> Self {
        let Scenario { hosts, seed, flaw, .. } = *scenario;
        let founders = match flaw {
            Some(Flaw::Founders(few)) => few,
            _ => u16::try_from(hosts).expect("few hosts"),
        };
        let name = format!("host-{}", index + 1);
        let dir = dir.join(&name);
        let identity_dir = dir.join("identity");
        pki::write_identity(&identity_dir, &name, ip(index));
        let seeds = (0..hosts.min(2)).map(|seed| format!("{}:{MESH_PORT}", ip(seed))).collect();
        let config = Config {
            mesh: MeshConfig {
                name: "simulation".to_owned(),
                listen: (ip(index), MESH_PORT).into(),
                advertise: (ip(index), MESH_PORT).into(),
                seeds,
                bootstrap_expect: founders,
                gossip_interval: redmesh_agent::mesh::GOSSIP_INTERVAL,
            },
            identity_dir,
            state_dir: dir.join("state"),
            redis: RedisConfig {
                server: None,
                data_dir: dir.join("redis_cluster"),
                ip: ip(index),
                base_port: BASE_PORT,
                release_at_once: None,
                malloc_conf: None,
                on_agent_exit: OnAgentExit::Leave,
                auth: RedisAuth::Off,
                tls: RedisTlsMode::Off,
                directives: Default::default(),
            },
            load_threads: 1,
            http_listen: None,
            log: LogConfig { filter: "info".to_owned(), format: LogFormat::Text },
            join: JoinConfig::default(),
            firewall_manage: false,
        };
        Self {
            index,
            dir,
            flaw,
            config,
            seed,
            world,
            net,
            skew_ms: Arc::default(),
            disk_ms: Arc::default(),
            lives: Arc::default(),
            desk: Arc::default(),
        }
    }

    fn desk(&self) -> MutexGuard<'_, Desk> {
        self.desk.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// What its agent knows of the mesh; `None` while there is none.
    pub fn census(&self) -> Option<Census> {
        self.desk().census.clone()
    }

    /// Asks its agent something under a number of the caller's.
    pub fn ask(&self, number: u64, request: ControlRequest) {
        self.desk().requests.push_back((number, request));
    }

    /// Answers that have come.
    pub fn take_replies(&self) -> Vec<(u64, ControlReply)> {
        std::mem::take(&mut self.desk().replies)
    }

    /// Its agent is no more; with `wipe`, neither is its state directory.
    pub fn gone(&self, wipe: bool) {
        *self.desk() = Desk::default();
        let state = self.dir.join("state");
        if wipe {
            std::fs::remove_dir_all(&state).expect("the state directory can be removed");
        } else if let Some(flaw) = self.flaw {
            flaw.crash(&state, &self.dir.join("kept"));
        }
    }

    /// One life of its agent; to be run on the simulated host.
    pub async fn live(self) -> turmoil::Result {
        let clock = HostClock::start();
        let ended = Box::pin(self.clone().run(clock)).await;
        let why = ended.map_or_else(|error| format!("{error:#}"), |()| "it was not asked to".to_owned());
        tracing::error!(why, "the agent ended");
        self.desk().census = None;
        self.world.tell(clock.now(), Event::Failed { host: self.index, why });
        Ok(())
    }

    async fn run(self, clock: HostClock) -> Result<(), String> {
        let life = self.lives.fetch_add(1, Ordering::Relaxed);
        let socket = SimSocket::bind(self.index, MESH_PORT, self.net.clone()).await;
        let socket = socket.map_err(|error| error.to_string())?;
        let mut dice = SmallRng::seed_from_u64(self.seed ^ (self.index as u64) << 32 ^ life << 48);
        let (world, line_world) = (self.world.clone(), self.world.clone());
        let blind = self.flaw == Some(Flaw::BlindSupervisor);
        let effects = Effects {
            wire: Some(Wire { socket, rng_seed: dice.random() }),
            servers: Box::new(move |options| {
                Ok(Arc::new(SimServers::start(world, clock, options.data_dir, blind, options.cancel)))
            }),
            admin: Box::new(move |_| AdminPool::over(Arc::new(SimLine { world: line_world, clock }))),
            load: Arc::new(SimLoad { world: self.world.clone(), clock, flaw: self.flaw }),
            clock: clock.wall(self.skew_ms.clone()),
            disk: slow_disk(self.disk_ms.clone(), SmallRng::from_rng(&mut dice)),
            exposition: None,
            reloads: None,
        };
        let agent = app::build(self.config.clone(), effects).await.map_err(|error| format!("{error:#}"))?;
        let census = agent.census().clone();
        self.world.tell(clock.now(), Event::Began { host: self.index, id: census.host });
        self.desk().census = Some(census);
        let clerk = tokio::spawn(self.clone().serve_desk(agent.control().clone()));
        let ended = agent.run(CancellationToken::new()).await;
        clerk.abort();
        ended.map_err(|error| format!("{error:#}"))
    }

    async fn serve_desk(self, control: Control) {
        let mut ticks = tokio::time::interval(DESK_INTERVAL);
        loop {
            ticks.tick().await;
            let asked: Vec<_> = self.desk().requests.drain(..).collect();
            for (number, request) in asked {
                let (control, desk) = (control.clone(), self.desk.clone());
                tokio::spawn(async move {
                    let reply = control.answer(request).await;
                    desk.lock().unwrap_or_else(PoisonError::into_inner).replies.push((number, reply));
                });
            }
        }
    }
}

/// A disk that takes up to `ms` before and after each access.
fn slow_disk(ms: Arc<AtomicU64>, dice: SmallRng) -> Disk {
    let dice = Mutex::new(dice);
    Disk::slow(move || match ms.load(Ordering::Relaxed) {
        0 => Duration::ZERO,
        max => {
            let mut dice = dice.lock().unwrap_or_else(PoisonError::into_inner);
            Duration::from_millis(dice.random_range(0..=max))
        }
    })
}
