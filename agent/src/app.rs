//! The one place where everything is wired together: build, run, drain.

use std::collections::BTreeSet;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use anyhow::{Context, Result, anyhow};
use redmesh_api::ids::MeshId;
use redmesh_api::secret::RedisSecrets;
use redmesh_api::tls;
use sd_notify::NotifyState;
use tokio::sync::watch;
use tokio::task::JoinSet;
use tokio_util::sync::CancellationToken;
use tracing::{error, info};

use crate::census::{Census, HeardCounts, ParsedHosts};
use crate::cluster::{self, AdminOptions};
use crate::config::{Config, OnAgentExit, RedisAuth, RedisTlsMode};
use crate::consensus::{Consensus, ConsensusOptions};
use crate::control::Control;
use crate::control::runs::RateSampler;
use crate::control::serve::Server;
use crate::coordinator::Coordinator;
use crate::coordinator::bootstrap::Bootstrap;
use crate::coordinator::orders::Orders;
use crate::effects::Effects;
use crate::enrol::signer::Signer;
use crate::enrol::{Again, Gate, RenewalCounts, Renewing, renew};
use crate::facts::{self, HostFacts};
use crate::firewall;
use crate::host::directives::{self, Applying};
use crate::host::forgetting::Forgetting;
use crate::host::instances::{LocalSettings, Sources};
use crate::host::joining::Joining;
use crate::host::rotation::{Rotating, Rotation};
use crate::host::shares::{ShareSettings, Shares};
use crate::host::views::Views;
use crate::host::{certificates, forgetting, instances, joining, levels, settling, shares, views};
use crate::identity::HostIdentity;
use crate::level::LevelCell;
use crate::login::{Access, Login, Logins};
use crate::mesh::{Mesh, MeshOptions};
use crate::metrics;
use crate::preflight::Reader;
use crate::redis_tls::RedisTls;
use crate::reload::{self, Reloads};
use crate::renewal;
use crate::supervisor::{OnExit, Supervise, SupervisorOptions};
use crate::transport::Transport;
use crate::transport::quic::{Barred, JoinPort, LocalPeer, QuicOptions, QuicTransport};

/// Time for load threads to drain and publish their last counts when the agent stops.
const DRAIN_SHARES: Duration = Duration::from_secs(5);

/// Gossip rounds in which a stopping agent's last counts reach somebody: each goes to
/// several peers, so the first that is sent will mostly do.
const FAREWELL_ROUNDS: u32 = 3;

/// Between two looks at what the service manager should be told.
const NOTIFY_INTERVAL: Duration = Duration::from_secs(1);

/// Why an agent ends that would be refused by everybody: its host was removed. The words are
/// the agent's that said so; a host that may say it may order whatever it likes anyway.
#[derive(Debug, thiserror::Error)]
#[error("{0}")]
pub struct Removed(String);

/// An agent: all that runs, in the order in which it is drained.
pub struct Agent {
    shares: Shares,
    mesh: Mesh,
    supervisor: Arc<dyn Supervise>,
    consensus: Consensus,
    transport: Arc<dyn Transport>,
    control: Control,
    census: Census,
    tasks: JoinSet<&'static str>,
    cancel: CancellationToken,
    /// For the last counts to be gossiped.
    farewell: Duration,
    /// What another agent says where this host was removed from the mesh.
    told_removed: watch::Receiver<Option<String>>,
    /// Holds the state directory's lock until nothing uses the directory any more.
    host: HostIdentity,
}

impl std::fmt::Debug for Agent {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Agent").field("host", &self.host).finish_non_exhaustive()
    }
}

/// Runs an agent on this machine until `stop` is cancelled.
///
/// # Errors
/// What kept it from starting, or the part of it that failed.
pub async fn run(config: Config, reloads: Reloads, stop: CancellationToken) -> Result<()> {
    let exposition = metrics::install().context("can't install the metrics recorder")?;
    build(config, Effects::real(exposition, reloads)).await?.run(stop).await
}

/// Makes an agent and starts all of its tasks.
///
/// # Errors
/// What kept it from starting.
pub async fn build(config: Config, effects: Effects) -> Result<Agent> {
    let Effects { wire, servers, admin, load, clock, disk, exposition, reloads } = effects;
    renew::finish(&config.identity_dir)
        .with_context(|| format!("identity.dir = {}", config.identity_dir.display()))?;
    let host = HostIdentity::open(&config.state_dir)
        .with_context(|| format!("state.dir = {}", config.state_dir.display()))?;
    let identity = tls::Identity::load(&config.identity_dir)
        .with_context(|| format!("identity.dir = {}", config.identity_dir.display()))?;
    let secret = redis_secret(&config)?;
    let redis_tls = redis_tls(&config, &identity)?;
    let name = identity.name().to_owned();
    let levels_cell = LevelCell::open(&config.state_dir, disk.clone())?;
    info!(host = %host.id(), name, generation = host.generation(), mesh = config.mesh.name, "starting");

    let mut tasks = JoinSet::new();
    let cancel = CancellationToken::new();

    let (mesh_id, known_mesh) = watch::channel(levels_cell.get().mesh);
    let (barred, known_barred) = watch::channel(Barred::of(&levels_cell.get()));
    let announce = announce_mesh(levels_cell.clone(), mesh_id, barred, cancel.clone());
    tasks.spawn(named("mesh id", announce));
    let quic = QuicTransport::bind(QuicOptions {
        listen: config.mesh.listen,
        advertise: config.mesh.advertise,
        identity: identity.clone(),
        host_secret: *host.secret(),
        local: LocalPeer { id: host.id(), boot_id: host.generation(), mesh_name: config.mesh.name.clone() },
        mesh_id: known_mesh,
        barred: known_barred,
        wire,
    })
    .context("can't open the mesh port")?;
    let udp_buffers = quic.udp_buffers();
    let told_removed = quic.told_removed();
    let transport: Arc<dyn Transport> = quic.clone();

    let host_facts = HostFacts {
        name: name.clone(),
        version: env!("CARGO_PKG_VERSION").to_owned(),
        http: config.http_listen,
        redis_ip: config.redis.ip,
        base_port: config.redis.base_port,
        bootstrap_expect: config.mesh.bootstrap_expect,
        signs: Signer::is_in(&config.identity_dir),
        redis_tls: redis_tls.is_some(),
    };
    let mesh = Mesh::start(
        MeshOptions {
            mesh_name: config.mesh.name.clone(),
            id: host.id(),
            generation: host.generation(),
            seeds: config.mesh.seeds.clone(),
            gossip_interval: config.mesh.gossip_interval,
            initial: vec![(facts::HOST.to_owned(), serde_json::to_string(&host_facts)?)],
        },
        transport.clone(),
        cancel.child_token(),
    )
    .await
    .context("can't start gossip")?;

    let view = mesh.view();
    let resolve = {
        let view = view.clone();
        Arc::new(move |id| view.borrow().members.get(&id).map(|member| member.addr))
    };
    let in_mesh = levels_cell.get().mesh.is_some();
    let options = ConsensusOptions {
        in_mesh,
        disk: disk.clone(),
        ..ConsensusOptions::new(host.id(), name.clone(), &config.state_dir)
    };
    let consensus =
        Consensus::start(options, transport.clone(), resolve).await.context("can't start the Raft node")?;

    let directives: Vec<_> = config.redis.directives.clone().into_iter().collect();
    cluster::redis_conf::check_directives(&directives)?;
    let logins = match (&secret, cluster::redis_conf::password(&directives)) {
        (Some(secrets), _) => Logins::agent(secrets),
        (None, Some(password)) => Login::default_user(password).into(),
        (None, None) => Logins::default(),
    };
    let access = secret.map(|secrets| watch::channel(Access::from(secrets)));
    let (give_access, access) = access.unzip();
    let supervisor = servers(SupervisorOptions {
        data_dir: config.redis.data_dir.clone(),
        server: config.redis.server.clone(),
        malloc_conf: config.redis.malloc_conf.clone(),
        logins: logins.clone(),
        tls: redis_tls.clone(),
        release_at_once: config.redis.release_at_once,
        on_exit: match config.redis.on_agent_exit {
            OnAgentExit::Leave => OnExit::Leave,
            OnAgentExit::Stop => OnExit::Stop,
        },
        cancel: cancel.child_token(),
    })
    .context("can't start the supervisor")?;
    let admin =
        admin(AdminOptions { logins: logins.clone(), tls: redis_tls.clone(), ..AdminOptions::default() });

    let census = Census {
        host: host.id(),
        mesh_name: config.mesh.name.clone(),
        bootstrap_expect: config.mesh.bootstrap_expect,
        view,
        levels: levels_cell.clone(),
        leadership: consensus.leadership(),
        parsed: ParsedHosts::default(),
        heard: HeardCounts::default(),
        clock: clock.clone(),
    };
    let shares = Shares::new(ShareSettings {
        host: host.id(),
        generation: host.generation(),
        state_dir: config.state_dir.clone(),
        threads: config.load_threads,
        logins: logins.clone(),
        tls: redis_tls.clone(),
        engine: load,
        clock,
        disk,
    });
    let orders = Orders::new(census.clone(), consensus.clone(), transport.clone());
    let renewals = RenewalCounts::default();
    let rates = RateSampler::default();
    let (viewed, seen) = watch::channel(Arc::new(Views::default()));
    let (waiting, awaited) = watch::channel(Some("gossip to begin".to_owned()));
    let control = Control::new(census.clone(), transport.clone(), orders.clone(), rates.clone(), awaited);
    transport.serve(Arc::new(Server {
        control: control.clone(),
        census: census.clone(),
        consensus: consensus.clone(),
        admin: admin.clone(),
        shares: shares.clone(),
        seen: seen.clone(),
        reader: Reader {
            name,
            redis_ip: config.redis.ip,
            base_port: config.redis.base_port,
            udp_buffers,
            supervisor: supervisor.clone(),
            data_dir: config.redis.data_dir.clone(),
            firewall_manage: config.firewall_manage,
        },
        supervisor: supervisor.clone(),
        signing: Arc::new(Again::new(census.clone(), config.identity_dir.clone(), renewals.signed.clone())),
    }));

    // The level: in from Raft and peers, out as what this host knows of leadership.
    let follow = levels::follow_raft(levels_cell.clone(), consensus.level(), cancel.clone());
    tasks.spawn(named("levels from Raft", follow));
    let pull = levels::pull(census.clone(), transport.clone(), cancel.clone());
    tasks.spawn(named("levels from peers", pull));
    let lead = levels::publish_lead(census.clone(), mesh.clone(), cancel.clone());
    tasks.spawn(named("leadership", lead));

    // This host, reconciled to it.
    let (refused, refusals) = watch::channel(None);
    let (in_force, directives_in_force) = watch::channel(Arc::new(directives));
    let local = LocalSettings {
        host: host.id(),
        data_dir: config.redis.data_dir.clone(),
        directives: directives_in_force,
        somaxconn: somaxconn(),
        access,
        tls: redis_tls.as_ref().map(|_| config.identity_dir.clone()),
    };
    let reconcile = instances::reconcile(
        levels_cell.subscribe(),
        supervisor.clone(),
        local.clone(),
        refused,
        cancel.clone(),
    );
    tasks.spawn(named("instances", reconcile));
    let (unsettled, settled) = watch::channel(None);
    let applying =
        Applying { in_force, levels: levels_cell.subscribe(), admin: admin.clone(), local: local.clone() };
    let (change_directives, changes) = directives::channel();
    tasks.spawn(named("directives", applying.run(changes, cancel.clone())));
    let (outdated, outdates) = watch::channel(None);
    let refresh = certificates::refresh(
        levels_cell.subscribe(),
        redis_tls.clone(),
        admin.clone(),
        local.clone(),
        outdated,
        cancel.clone(),
    );
    tasks.spawn(named("servers' certificates", refresh));
    let settle =
        settling::settle(levels_cell.subscribe(), admin.clone(), local.clone(), unsettled, cancel.clone());
    tasks.spawn(named("settling", settle));
    let watching =
        views::watch_views(host.id(), levels_cell.subscribe(), admin.clone(), viewed, cancel.clone());
    tasks.spawn(named("views", watching));
    let (joined, progress) = watch::channel(Joining::default());
    let joins = joining::join(host.id(), levels_cell.subscribe(), admin.clone(), joined, cancel.clone());
    tasks.spawn(named("joining", joins));
    let (forgetting, forgotten) = watch::channel(Forgetting::default());
    let forgets =
        forgetting::forget(host.id(), levels_cell.subscribe(), admin.clone(), forgetting, cancel.clone());
    tasks.spawn(named("forgetting", forgets));
    let (rotating, rotated) = watch::channel(Rotating::default());
    let sources = Sources {
        levels: levels_cell.clone(),
        statuses: supervisor.statuses(),
        views: seen,
        joining: progress,
        refused: refusals,
        unsettled: settled,
        forgetting: forgotten,
        rotating: rotated,
        outdated: outdates,
        shares: shares.clone(),
    };
    tasks.spawn(named("observed", instances::publish(host.id(), sources, mesh.clone(), cancel.clone())));
    let driving = shares::drive(shares.clone(), census.clone(), admin.clone(), mesh.clone(), cancel.clone());
    tasks.spawn(named("shares", driving));

    // The mesh: its beginning, and its coordinator wherever that is.
    let bootstrap = Bootstrap {
        census: census.clone(),
        consensus: consensus.clone(),
        transport: transport.clone(),
        pledges: BTreeSet::new(),
    };
    tasks.spawn(named("bootstrap", bootstrap.run(waiting, cancel.clone())));
    let coordinator = Coordinator::new(census.clone(), consensus.clone(), transport.clone(), orders);
    tasks.spawn(named("coordinator", coordinator.run(cancel.clone())));

    let stopped = watch_consensus(consensus.clone(), config.state_dir.clone(), cancel.clone());
    tasks.spawn(named("consensus", stopped));

    // Watching.
    tasks.spawn(named("rates", rates.run(census.clone(), cancel.clone())));
    let gauges = metrics::own::update(census.clone(), supervisor.statuses(), cancel.clone());
    tasks.spawn(named("agent metrics", gauges));
    let sweep = metrics::instances::sweep(host.id(), levels_cell.subscribe(), admin.clone(), cancel.clone());
    tasks.spawn(named("instance metrics", sweep));
    if let Some(reloads) = reloads {
        let dirs =
            vec![("state.dir", config.state_dir.clone()), ("redis.data_dir", config.redis.data_dir.clone())];
        tasks.spawn(named(
            "machine metrics",
            metrics::machine::update(quic.clone(), dirs, renewals.clone(), cancel.clone()),
        ));
        let renewing = renewal::watch(
            config.identity_dir.clone(),
            identity,
            quic.clone(),
            redis_tls.clone(),
            cancel.clone(),
        );
        tasks.spawn(named("certificate", renewing));
        let renewing = Renewing {
            census: census.clone(),
            transport: quic.clone(),
            identity_dir: config.identity_dir.clone(),
            counts: renewals,
        };
        tasks.spawn(named("renewal", renewing.run(cancel.clone())));
        if let Some(give_access) = give_access {
            let rotation = Rotation {
                identity_dir: config.identity_dir.clone(),
                census: census.clone(),
                admin,
                statuses: supervisor.statuses(),
                local,
                logins,
            };
            tasks.spawn(named("redis secret", rotation.run(give_access, rotating, cancel.clone())));
        }
        if config.firewall_manage {
            let keep = firewall::keep(census.clone(), config.mesh.seeds.clone(), cancel.clone());
            tasks.spawn(named("firewall", keep));
        }
        if let Some(port) = join_port(&config, quic.clone())? {
            let gate = Gate::new(census.clone(), control.clone(), config.identity_dir.clone());
            tasks.spawn(named("join port", port.serve(Arc::new(gate), cancel.clone())));
        }
        tasks.spawn(named(
            "reload",
            reload::on_hangup(reloads, config.clone(), quic, redis_tls, change_directives, cancel.clone()),
        ));
    }
    if let (Some(addr), Some(exposition)) = (config.http_listen, exposition) {
        let listener = metrics::http::bind(addr).await.map_err(|words| anyhow!(words))?;
        let served = metrics::http::serve(listener, exposition, control.clone(), cancel.clone());
        tasks.spawn(named("http", served));
    }
    let farewell = config.mesh.gossip_interval * FAREWELL_ROUNDS;
    Ok(Agent {
        shares,
        mesh,
        supervisor,
        consensus,
        transport,
        control,
        census,
        tasks,
        cancel,
        farewell,
        told_removed,
        host,
    })
}

/// The port for hosts that join, where this host may sign for them.
fn join_port(config: &Config, quic: Arc<QuicTransport>) -> Result<Option<JoinPort>> {
    let listen = config.join.listen.filter(|_| Signer::is_in(&config.identity_dir));
    listen
        .map(|listen| JoinPort::bind(listen, quic).context("can't open the join port (join.listen)"))
        .transpose()
}

/// The secret of the servers' passwords, as far as the configuration wants any.
///
/// # Errors
/// There is none where there should be one, or a directive contradicts it.
pub fn redis_secret(config: &Config) -> Result<Option<RedisSecrets>> {
    if config.redis.auth == RedisAuth::Off {
        return Ok(None);
    }
    cluster::redis_conf::check_access(&config.redis.directives.clone().into_iter().collect::<Vec<_>>())?;
    let secret = RedisSecrets::load(&config.identity_dir)
        .with_context(|| format!("identity.dir = {}", config.identity_dir.display()))?;
    Ok(Some(secret))
}

/// TLS to the redis-servers, where the configuration wants it.
///
/// # Errors
/// The host's certificate can't serve its servers.
pub fn redis_tls(config: &Config, identity: &tls::Identity) -> Result<Option<RedisTls>> {
    if config.redis.tls == RedisTlsMode::Off {
        return Ok(None);
    }
    Ok(Some(RedisTls::new(identity, config.redis.ip)?))
}

/// Names a task, so that one that ends can be told.
async fn named(name: &'static str, task: impl Future<Output = ()>) -> &'static str {
    task.await;
    name
}

/// Tells the transport which mesh this host belongs to, once it does, and whom that one
/// refuses.
async fn announce_mesh(
    cell: LevelCell,
    mesh_id: watch::Sender<Option<MeshId>>,
    barred: watch::Sender<Barred>,
    cancel: CancellationToken,
) {
    let mut levels = cell.subscribe();
    loop {
        let level = levels.borrow_and_update().clone();
        let mesh = level.mesh;
        let refused = Barred::of(&level);
        barred.send_if_modified(|known| {
            let changed = *known != refused;
            if changed {
                *known = refused;
            }
            changed
        });
        mesh_id.send_if_modified(|known| std::mem::replace(known, mesh) != mesh);
        tokio::select! {
            changed = levels.changed() => if changed.is_err() { return },
            () = cancel.cancelled() => return,
        }
    }
}

/// Ends when the Raft node has stopped for good: only a new start can open its store
/// again, and the service manager tries that until it succeeds. The servers stay.
async fn watch_consensus(consensus: Consensus, state_dir: PathBuf, cancel: CancellationToken) {
    tokio::select! {
        reason = consensus.stopped() => error!(
            reason,
            "the Raft store failed, the agent must be started again: check free space under {}",
            state_dir.display()
        ),
        () = cancel.cancelled() => {}
    }
}

fn somaxconn() -> Option<u32> {
    let text = std::fs::read_to_string(Path::new("/proc/sys/net/core/somaxconn")).ok()?;
    text.trim().parse().ok()
}

impl Agent {
    /// What it knows of the mesh.
    pub fn census(&self) -> &Census {
        &self.census
    }

    /// Answers what operators ask.
    pub fn control(&self) -> &Control {
        &self.control
    }

    /// Runs until `stop` is cancelled, then drains.
    ///
    /// # Errors
    /// The part of it that failed; it is drained all the same.
    pub async fn run(mut self, stop: CancellationToken) -> Result<()> {
        let _ = sd_notify::notify(&[NotifyState::Ready]);
        info!("ready");
        let ended = self.watch_over(&stop).await;
        let _ = sd_notify::notify(&[NotifyState::Stopping]);
        info!("stopping");
        self.drain().await;
        ended
    }

    /// Until `stop`, or until a task ends that never should.
    async fn watch_over(&mut self, stop: &CancellationToken) -> Result<()> {
        let mut ticks = tokio::time::interval(NOTIFY_INTERVAL);
        let mut said = None;
        loop {
            tokio::select! {
                () = stop.cancelled() => return Ok(()),
                Ok(told) = self.told_removed.wait_for(Option::is_some) => {
                    return Err(Removed(told.clone().unwrap_or_default()).into());
                }
                ended = self.tasks.join_next() => match ended {
                    Some(Ok(name)) => return Err(anyhow!("the task {name:?} ended by itself")),
                    Some(Err(error)) => return Err(anyhow!(error).context("a task failed")),
                    None => return Err(anyhow!("no task is left")),
                },
                _ = ticks.tick() => {
                    // From the loop that everything hangs on, so that a stuck one is noticed.
                    let _ = sd_notify::notify(&[NotifyState::Watchdog]);
                    let status = self.control.waiting_for().map_or_else(
                        || "serving".to_owned(),
                        |words| format!("waiting for {words}"),
                    );
                    if said.as_ref() != Some(&status) {
                        let _ = sd_notify::notify(&[NotifyState::Status(&status)]);
                        said = Some(status);
                    }
                }
            }
        }
    }

    async fn drain(self) {
        let Self {
            shares, mesh, supervisor, consensus, transport, mut tasks, cancel, farewell, host, ..
        } = self;
        if shares.drain(&mesh, DRAIN_SHARES).await {
            tokio::time::sleep(farewell).await;
        }
        cancel.cancel();
        while tasks.join_next().await.is_some() {}
        supervisor.shutdown().await;
        consensus.shutdown().await;
        mesh.shutdown().await;
        transport.close().await;
        drop(host);
    }
}
