//! The task that keeps chitchat running: transport below, published values in, view out.
//!
//! chitchat awaits `send` inside its loop, so the adapter only queues; and it ends for
//! good when `recv` fails, so the adapter drops what it can't read and fails only when
//! the transport is closed. Should gossip end all the same, it is started again as a
//! later generation, with everything that was published.

use std::collections::BTreeMap;
use std::net::SocketAddr;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use async_trait::async_trait;
use bytes::Bytes;
use chitchat::transport as chitchat_transport;
use chitchat::{
    ChitchatConfig, ChitchatHandle, ChitchatId, ChitchatMessage, Deserializable, FailureDetectorConfig,
    Serializable,
};
use tokio::sync::{Mutex, mpsc, watch};
use tokio::time::MissedTickBehavior;
use tokio_util::sync::CancellationToken;

use super::view::{self, Mark};
use super::{MeshError, MeshOptions, MeshView, Published};
use crate::transport::Transport;

/// Low bits of a chitchat generation that count restarts of gossip in one agent's life.
pub(super) const RESTART_BITS: u32 = 16;
/// Restarts of gossip after which the task gives up.
const RESTARTS_MAX: u64 = 1000;
/// Pause before the first restart; it doubles with each that follows.
const RESTART_PAUSE_MIN: Duration = Duration::from_millis(200);
/// Longest pause before a restart.
const RESTART_PAUSE_MAX: Duration = Duration::from_secs(10);
/// How unlikely silence must be before a host is dead (phi accrual failure detector,
/// Hayashibara 2004); chitchat's own default.
const PHI_THRESHOLD: f64 = 8.0;
/// Heartbeats by which the failure detector judges. Small: the cost is per peer.
const SAMPLES: usize = 100;
/// Pauses longer than this many gossip intervals, and at least
/// [`HEARTBEAT_PAUSE_MIN`], are no sample of a healthy peer's.
const HEARTBEAT_PAUSE_ROUNDS: u32 = 20;
/// See [`HEARTBEAT_PAUSE_ROUNDS`].
const HEARTBEAT_PAUSE_MIN: Duration = Duration::from_secs(5);
/// How long a dead host, or an earlier life of a live one, is remembered. Long enough
/// for a reboot, short enough that a crash loop leaves no heap of dead lives in every
/// digest.
const DEAD_GRACE: Duration = Duration::from_secs(10 * 60);
/// How long an unpublished key is remembered as such.
const UNPUBLISHED_GRACE: Duration = Duration::from_secs(10 * 60);

/// The transport as chitchat sees it. Sockets come and go with restarts and share the
/// one receiver.
pub(super) struct Adapter {
    transport: Arc<dyn Transport>,
    inbox: Arc<Mutex<mpsc::Receiver<(SocketAddr, Bytes)>>>,
    undecodable: Arc<AtomicU64>,
}

impl Adapter {
    /// `None` if the transport's gossip was taken before.
    pub(super) fn new(transport: Arc<dyn Transport>, undecodable: Arc<AtomicU64>) -> Option<Self> {
        let inbox = Arc::new(Mutex::new(transport.take_gossip()?));
        Some(Self { transport, inbox, undecodable })
    }
}

#[async_trait]
impl chitchat_transport::Transport for Adapter {
    async fn open(&self, _listen_addr: SocketAddr) -> anyhow::Result<Box<dyn chitchat_transport::Socket>> {
        Ok(Box::new(Socket {
            transport: Arc::clone(&self.transport),
            inbox: Arc::clone(&self.inbox),
            undecodable: Arc::clone(&self.undecodable),
        }))
    }
}

struct Socket {
    transport: Arc<dyn Transport>,
    inbox: Arc<Mutex<mpsc::Receiver<(SocketAddr, Bytes)>>>,
    undecodable: Arc<AtomicU64>,
}

#[async_trait]
impl chitchat_transport::Socket for Socket {
    async fn send(&mut self, to: SocketAddr, message: ChitchatMessage) -> anyhow::Result<()> {
        self.transport.gossip(to, message.serialize_to_vec());
        Ok(())
    }

    /// Safe to cancel: nothing is awaited once a message is taken.
    async fn recv(&mut self) -> anyhow::Result<(SocketAddr, ChitchatMessage)> {
        let mut inbox = self.inbox.lock().await;
        loop {
            let Some((from, bytes)) = inbox.recv().await else {
                anyhow::bail!("the transport is closed");
            };
            match ChitchatMessage::deserialize(&mut &bytes[..]) {
                Ok(message) => return Ok((from, message)),
                Err(error) => {
                    self.undecodable.fetch_add(1, Ordering::Relaxed);
                    tracing::debug!(%from, %error, bytes = bytes.len(), "undecodable gossip");
                }
            }
        }
    }
}

/// Owner of the chitchat server.
pub(super) struct Driver {
    options: MeshOptions,
    adapter: Adapter,
    published: Arc<Published>,
    view: watch::Sender<Arc<MeshView>>,
    chitchat: ChitchatHandle,
    /// What the running chitchat was told to say.
    said: BTreeMap<String, String>,
    /// What the view was built from.
    mark: Mark,
    restarts: u64,
}

/// Why one chitchat server's time is over.
enum End {
    Cancelled,
    Closed,
    Failed(String),
}

impl Driver {
    pub(super) async fn start(
        options: MeshOptions,
        adapter: Adapter,
        published: Arc<Published>,
        view: watch::Sender<Arc<MeshView>>,
    ) -> Result<Self, MeshError> {
        let said = published.lock().clone();
        let chitchat = spawn(&options, &adapter, &said, 0).await?;
        let mark = Mark::new();
        let mut driver = Self { options, adapter, published, view, chitchat, said, mark, restarts: 0 };
        // So that the first reader sees at least this host itself.
        driver.refresh().await;
        Ok(driver)
    }

    pub(super) async fn run(mut self, cancel: CancellationToken) {
        loop {
            match self.serve(&cancel).await {
                End::Cancelled => break,
                End::Closed => {
                    tracing::error!("gossip has ended: the transport is closed");
                    break;
                }
                End::Failed(reason) => {
                    tracing::error!(reason, restarts = self.restarts, "gossip has ended, starting it again");
                    if !self.restart(&cancel).await {
                        break;
                    }
                }
            }
        }
        if let Err(error) = self.chitchat.shutdown().await {
            tracing::debug!(%error, "gossip had ended before it was stopped");
        }
    }

    async fn serve(&mut self, cancel: &CancellationToken) -> End {
        let ended = self.chitchat.termination_watcher();
        tokio::pin!(ended);
        let mut tick = tokio::time::interval(self.options.gossip_interval);
        tick.set_missed_tick_behavior(MissedTickBehavior::Delay);
        let published = Arc::clone(&self.published);
        loop {
            tokio::select! {
                () = cancel.cancelled() => return End::Cancelled,
                result = &mut ended => {
                    let reason = result.err().map_or_else(|| "it was stopped".to_owned(), |error| error.to_string());
                    let closed = match self.adapter.inbox.try_lock() {
                        Ok(inbox) => inbox.is_closed() && inbox.is_empty(),
                        Err(_) => false,
                    };
                    return if closed { End::Closed } else { End::Failed(reason) };
                }
                () = published.changed.notified() => self.say().await,
                _ = tick.tick() => self.refresh().await,
            }
        }
    }

    /// Starts gossip again, under a later generation; false when there is no more to try.
    async fn restart(&mut self, cancel: &CancellationToken) -> bool {
        let mut pause = RESTART_PAUSE_MIN;
        while self.restarts < RESTARTS_MAX {
            tokio::select! {
                () = cancel.cancelled() => return false,
                () = tokio::time::sleep(pause) => {}
            }
            pause = (pause * 2).min(RESTART_PAUSE_MAX);
            self.restarts += 1;
            self.said = self.published.lock().clone();
            match spawn(&self.options, &self.adapter, &self.said, self.restarts).await {
                Ok(chitchat) => {
                    self.chitchat = chitchat;
                    return true;
                }
                Err(error) => tracing::error!(%error, restarts = self.restarts, "restarting gossip"),
            }
        }
        tracing::error!(restarts = self.restarts, "gossip is given up: restart the agent");
        false
    }

    /// Brings chitchat's own values in line with the published ones.
    async fn say(&mut self) {
        let wanted = self.published.lock().clone();
        let said = &self.said;
        self.chitchat
            .with_chitchat(|chitchat| {
                let own = chitchat.self_node_state();
                for (key, value) in &wanted {
                    if said.get(key) != Some(value) {
                        own.set(key, value);
                    }
                }
                for key in said.keys().filter(|key| !wanted.contains_key(*key)) {
                    own.delete(key);
                }
            })
            .await;
        self.said = wanted;
    }

    /// Builds a new view if anything changed since the last.
    async fn refresh(&mut self) {
        let last = &self.mark;
        let next = self
            .chitchat
            .with_chitchat(|chitchat| {
                let mark = view::mark(chitchat);
                (mark != *last).then(|| (mark, view::build(chitchat)))
            })
            .await;
        if let Some((mark, view)) = next {
            self.mark = mark;
            self.view.send_if_modified(|current| {
                let changed = **current != view;
                if changed {
                    *current = Arc::new(view);
                }
                changed
            });
        }
    }
}

async fn spawn(
    options: &MeshOptions,
    adapter: &Adapter,
    values: &BTreeMap<String, String>,
    restarts: u64,
) -> Result<ChitchatHandle, MeshError> {
    let addr = adapter.transport.advertise_addr();
    let interval = options.gossip_interval;
    let config = ChitchatConfig {
        chitchat_id: ChitchatId::new(
            options.id.to_string(),
            (options.generation << RESTART_BITS) + restarts,
            addr,
        ),
        cluster_id: options.mesh_name.clone(),
        gossip_interval: interval,
        listen_addr: addr,
        seed_nodes: options.seeds.clone(),
        failure_detector_config: FailureDetectorConfig {
            phi_threshold: PHI_THRESHOLD,
            sampling_window_size: SAMPLES,
            max_interval: (interval * HEARTBEAT_PAUSE_ROUNDS).max(HEARTBEAT_PAUSE_MIN),
            initial_interval: interval,
            dead_node_grace_period: DEAD_GRACE,
        },
        marked_for_deletion_grace_period: UNPUBLISHED_GRACE,
        catchup_callback: None,
        extra_liveness_predicate: None,
    };
    let values = values.iter().map(|(key, value)| (key.clone(), value.clone())).collect();
    chitchat::spawn_chitchat(config, values, adapter)
        .await
        .map_err(|error| MeshError::Start { reason: format!("{error:#}") })
}

#[cfg(test)]
mod tests {
    use std::net::Ipv4Addr;

    use redmesh_api::ids::HostId;
    use tokio::time::timeout;

    use super::super::Mesh;
    use super::*;
    use crate::transport::memory::MemoryNetwork;

    const PATIENCE: Duration = Duration::from_secs(30);

    fn options(id: u32, seed: SocketAddr) -> MeshOptions {
        MeshOptions {
            mesh_name: "test".to_owned(),
            id: HostId(id),
            generation: 5,
            seeds: vec![seed.to_string()],
            gossip_interval: Duration::from_millis(20),
            initial: Vec::new(),
        }
    }

    /// Should chitchat die, peers go on hearing the same life of this host.
    #[tokio::test]
    async fn gossip_that_ended_starts_again() {
        let network = MemoryNetwork::new();
        let [own, peer] = [1, 2].map(|port| SocketAddr::from((Ipv4Addr::LOCALHOST, port)));
        let transport = network.join(peer, HostId(2), "peer");
        let witness = Mesh::start(options(2, own), transport, CancellationToken::new()).await.unwrap();

        let adapter = Adapter::new(network.join(own, HostId(1), "own"), Arc::default()).unwrap();
        let published = Arc::new(Published::default());
        published.set("before", "1".to_owned()).unwrap();
        let (sender, _view) = watch::channel(Arc::default());
        let driver = Driver::start(options(1, peer), adapter, Arc::clone(&published), sender).await.unwrap();
        driver.chitchat.abort();
        let cancel = CancellationToken::new();
        let task = tokio::spawn(driver.run(cancel.clone()));
        published.set("after", "2".to_owned()).unwrap();

        let mut view = witness.view();
        let heard = view.wait_for(|view| {
            view.members.get(&HostId(1)).is_some_and(|member| {
                let said = (member.get("before"), member.get("after"));
                member.alive
                    && member.generation == 5
                    && member.older.is_empty()
                    && said == (Some(1), Some(2))
            })
        });
        drop(timeout(PATIENCE, heard).await.expect("the peer hears it again").unwrap());
        cancel.cancel();
        timeout(PATIENCE, task).await.expect("the task ends").unwrap();
        witness.shutdown().await;
    }
}
