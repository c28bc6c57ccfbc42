//! Large meshes: the real gossip of many agents over the in-memory transport, in one
//! thread and in virtual time, with the values that agents publish.

use std::net::{IpAddr, Ipv4Addr, SocketAddr};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, AtomicUsize, Ordering};
use std::time::Duration;

use async_trait::async_trait;
use bytes::Bytes;
use redmesh_agent::facts::{self, EpochCounts, HostFacts, LeadFacts, Observed, ShareCounts};
use redmesh_agent::mesh::{GOSSIP_INTERVAL, Mesh, MeshOptions, MeshView};
use redmesh_agent::transport::memory::MemoryNetwork;
use redmesh_agent::transport::{Handler, Transport, TransportError};
use redmesh_api::codec::Channel;
use redmesh_api::ids::{HostId, MeshId, PlanId, RunId};
use redmesh_api::level::{PlanStage, Stamp};
use redmesh_api::run::Counts;
use rustix::time::{ClockId, clock_gettime};
use tokio::sync::mpsc;
use tokio::time::Instant;
use tokio_util::sync::CancellationToken;
use uuid::Uuid;

/// Rounds over which traffic is measured.
const ROUNDS: u32 = 20;

/// Between two looks at who knows what.
const LOOK_INTERVAL: Duration = Duration::from_millis(50);

/// Virtual time by which everybody must know what is waited for.
const PATIENCE: Duration = Duration::from_secs(120);

/// What was measured of a mesh. Traffic is gossip's alone, per agent and gossip round.
#[derive(Debug, Clone, Copy)]
pub struct Figures {
    /// Agents.
    pub agents: usize,
    /// From the start of all until everybody sees everybody.
    pub members: Duration,
    /// From a value's publication until everybody has it.
    pub value: Duration,
    /// Bytes sent while nothing happens.
    pub idle_bytes: u64,
    /// Bytes sent while every host publishes write counts in every round.
    pub busy_bytes: u64,
    /// The largest message, bytes.
    pub message_max: usize,
    /// CPU time of everything in the agent that gossips, microseconds, while busy.
    pub busy_cpu_us: u64,
}

#[derive(Default)]
struct Traffic {
    bytes: AtomicU64,
    message_max: AtomicUsize,
}

/// Counts the gossip that goes through a transport.
struct Counting {
    inner: Arc<dyn Transport>,
    traffic: Arc<Traffic>,
}

#[async_trait]
impl Transport for Counting {
    fn advertise_addr(&self) -> SocketAddr {
        self.inner.advertise_addr()
    }

    async fn request(
        &self,
        to: SocketAddr,
        channel: Channel,
        payload: Vec<u8>,
        deadline: Duration,
    ) -> Result<Bytes, TransportError> {
        self.inner.request(to, channel, payload, deadline).await
    }

    fn gossip(&self, to: SocketAddr, message: Vec<u8>) {
        self.traffic.bytes.fetch_add(message.len() as u64, Ordering::Relaxed);
        self.traffic.message_max.fetch_max(message.len(), Ordering::Relaxed);
        self.inner.gossip(to, message);
    }

    fn take_gossip(&self) -> Option<mpsc::Receiver<(SocketAddr, Bytes)>> {
        self.inner.take_gossip()
    }

    fn serve(&self, handler: Arc<dyn Handler>) {
        self.inner.serve(handler);
    }

    async fn close(&self) {
        self.inner.close().await;
    }
}

fn addr(index: usize) -> SocketAddr {
    let [a, b] = u16::try_from(index + 1).expect("so many addresses").to_be_bytes();
    (Ipv4Addr::new(10, 8, a, b), 7379).into()
}

fn id(index: usize) -> HostId {
    // Real ids are random; what counts is that they have eight digits.
    HostId(0x1000_0000 + index as u32)
}

/// Everything that a host of a mesh says that has a cluster.
fn publish_all(mesh: &Mesh, agents: usize) {
    let lead = LeadFacts {
        mesh: Some(MeshId(Uuid::from_u128(1))),
        term: 3,
        acting: false,
        voters: Default::default(),
        stamp: Stamp { term: 3, index: 40, leader: id(0) },
    };
    let observed = Observed {
        plan: Some((PlanId(Uuid::from_u128(2)), PlanStage::Formed)),
        planned: 100,
        up: 100,
        agreed: 100,
        ..Observed::default()
    };
    let host = HostFacts {
        name: format!("host-{agents}"),
        version: "0.1.0".to_owned(),
        http: None,
        redis_ip: IpAddr::V4(Ipv4Addr::LOCALHOST),
        base_port: 6379,
        bootstrap_expect: 10,
        signs: false,
        redis_tls: false,
    };
    mesh.publish(facts::HOST, &host).expect("small");
    mesh.publish(facts::LEAD, &lead).expect("small");
    mesh.publish(facts::OBSERVED, &observed).expect("small");
}

fn publish_counts(mesh: &Mesh, round: u32) {
    let done = u64::from(round) * 20_000;
    let counts = Counts { issued: done + 200, acked: done, active_us: done, ..Counts::default() };
    let epochs = vec![EpochCounts { share: 3, epoch: 0, closed: false, counts }];
    let key = facts::run_keys(RunId(Uuid::from_u128(9))).next().expect("a first one");
    mesh.publish(&key, &ShareCounts { epochs }).expect("small");
}

async fn until(what: &str, meshes: &[Mesh], knows: impl Fn(&MeshView) -> bool) -> Duration {
    let began = Instant::now();
    while !meshes.iter().all(|mesh| knows(&mesh.view().borrow())) {
        assert!(began.elapsed() < PATIENCE, "{what}: not within {PATIENCE:?}");
        tokio::time::sleep(LOOK_INTERVAL).await;
    }
    began.elapsed()
}

fn cpu_us() -> u64 {
    let time = clock_gettime(ClockId::ThreadCPUTime);
    (time.tv_sec as u64) * 1_000_000 + (time.tv_nsec as u64) / 1000
}

/// Measures a mesh of so many agents at the default gossip interval.
pub fn measure(agents: usize) -> Figures {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_time().start_paused(true).build();
    runtime.expect("a runtime").block_on(Box::pin(measured(agents)))
}

async fn measured(agents: usize) -> Figures {
    let network = MemoryNetwork::new();
    let traffic = Arc::<Traffic>::default();
    let mut meshes = Vec::new();
    for index in 0..agents {
        let options = MeshOptions {
            mesh_name: "large".to_owned(),
            id: id(index),
            generation: 1,
            seeds: vec![addr(0).to_string()],
            gossip_interval: GOSSIP_INTERVAL,
            initial: Vec::new(),
        };
        let inner = network.join(addr(index), id(index), format!("host-{index}"));
        let transport = Arc::new(Counting { inner, traffic: traffic.clone() });
        let mesh = Mesh::start(options, transport, CancellationToken::new()).await.expect("gossip starts");
        publish_all(&mesh, agents);
        meshes.push(mesh);
    }
    let members = until("all see all", &meshes, |view| {
        view.live().filter(|member| member.values.len() == 3).count() == agents
    })
    .await;

    meshes[agents / 2].publish("probe", &true).expect("small");
    let value = until("a value is everywhere", &meshes, |view| {
        view.members[&id(agents / 2)].get::<bool>("probe").is_some()
    })
    .await;

    let per_round = |bytes: u64| bytes / agents as u64 / u64::from(ROUNDS);
    let before = traffic.bytes.load(Ordering::Relaxed);
    tokio::time::sleep(GOSSIP_INTERVAL * ROUNDS).await;
    let idle_bytes = per_round(traffic.bytes.load(Ordering::Relaxed) - before);

    let (before, cpu_before) = (traffic.bytes.load(Ordering::Relaxed), cpu_us());
    for round in 0..ROUNDS {
        meshes.iter().for_each(|mesh| publish_counts(mesh, round));
        tokio::time::sleep(GOSSIP_INTERVAL).await;
    }
    let busy_bytes = per_round(traffic.bytes.load(Ordering::Relaxed) - before);
    let busy_cpu_us = per_round(cpu_us() - cpu_before);
    for mesh in &meshes {
        mesh.shutdown().await;
    }
    Figures {
        agents,
        members,
        value,
        idle_bytes,
        busy_bytes,
        message_max: traffic.message_max.load(Ordering::Relaxed),
        busy_cpu_us,
    }
}
