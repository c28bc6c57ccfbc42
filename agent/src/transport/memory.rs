//! Transports of one process that reach each other through memory, with faults that a
//! test switches on and off.
//!
//! It serves tests and simulations only: nothing is encrypted and nobody is refused.
//! A cut link loses what is sent over it without a word, as a network would; a peer
//! that never joined or has closed is refused at once.

use std::collections::{HashMap, HashSet};
use std::fmt;
use std::net::SocketAddr;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use async_trait::async_trait;
use bytes::Bytes;
use redmesh_api::codec::{Channel, Direction};
use redmesh_api::ids::HostId;
use tokio::sync::{mpsc, watch};
use tokio::time::{Instant, sleep_until, timeout_at};

use super::{GOSSIP_QUEUE_MAX, Handler, Peer, Transport, TransportError};

type Gossip = (SocketAddr, Bytes);
type HandlerSlot = watch::Sender<Option<Arc<dyn Handler>>>;

/// The medium: who is there, and which links are cut. Cheap to clone.
#[derive(Clone, Default)]
pub struct MemoryNetwork {
    shared: Arc<Mutex<Shared>>,
}

#[derive(Default)]
struct Shared {
    nodes: HashMap<SocketAddr, Node>,
    /// Links (from, to) that lose everything.
    cut: HashSet<(SocketAddr, SocketAddr)>,
    /// Number of joins so far; tells a transport from its successor at one address.
    joins: u64,
}

#[derive(Clone)]
struct Node {
    join: u64,
    gossip: mpsc::Sender<Gossip>,
    handler: HandlerSlot,
}

impl fmt::Debug for MemoryNetwork {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let shared = self.lock();
        f.debug_struct("MemoryNetwork")
            .field("nodes", &shared.nodes.len())
            .field("cut", &shared.cut)
            .finish()
    }
}

impl MemoryNetwork {
    /// An empty medium without faults.
    pub fn new() -> Self {
        Self::default()
    }

    /// Puts a transport at `addr`, in place of any that was there.
    pub fn join(&self, addr: SocketAddr, id: HostId, name: impl Into<String>) -> Arc<MemoryTransport> {
        let (gossip, inbox) = mpsc::channel(GOSSIP_QUEUE_MAX);
        let handler = watch::Sender::new(None);
        let mut shared = self.lock();
        shared.joins += 1;
        let join = shared.joins;
        shared.nodes.insert(addr, Node { join, gossip, handler: handler.clone() });
        drop(shared);
        let peer = Peer::Agent { id, name: name.into(), addr };
        Arc::new(MemoryTransport { network: self.clone(), addr, peer, join, handler, inbox: Mutex::new(Some(inbox)) })
    }

    /// Loses everything that `from` sends to `to` from now on: requests one way, replies
    /// the other, gossip.
    pub fn cut(&self, from: SocketAddr, to: SocketAddr) {
        self.lock().cut.insert((from, to));
    }

    /// Cuts both directions between `addr` and everybody who is there now.
    pub fn isolate(&self, addr: SocketAddr) {
        let mut shared = self.lock();
        let others: Vec<_> = shared.nodes.keys().copied().filter(|other| *other != addr).collect();
        for other in others {
            shared.cut.insert((addr, other));
            shared.cut.insert((other, addr));
        }
    }

    /// Mends every link.
    pub fn heal(&self) {
        self.lock().cut.clear();
    }

    fn lock(&self) -> MutexGuard<'_, Shared> {
        // Nothing that can panic runs under the lock, so a poisoned one is still whole.
        self.shared.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn is_cut(&self, from: SocketAddr, to: SocketAddr) -> bool {
        self.lock().cut.contains(&(from, to))
    }

    fn node(&self, addr: SocketAddr) -> Option<Node> {
        self.lock().nodes.get(&addr).cloned()
    }
}

/// One host's end of a [`MemoryNetwork`].
pub struct MemoryTransport {
    network: MemoryNetwork,
    addr: SocketAddr,
    peer: Peer,
    join: u64,
    handler: HandlerSlot,
    inbox: Mutex<Option<mpsc::Receiver<Gossip>>>,
}

impl fmt::Debug for MemoryTransport {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("MemoryTransport").field("addr", &self.addr).finish_non_exhaustive()
    }
}

impl MemoryTransport {
    /// The network that it is part of.
    pub fn network(&self) -> &MemoryNetwork {
        &self.network
    }

    fn is_open(&self) -> bool {
        self.network.node(self.addr).is_some_and(|node| node.join == self.join)
    }
}

#[async_trait]
impl Transport for MemoryTransport {
    fn advertise_addr(&self) -> SocketAddr {
        self.addr
    }

    async fn request(
        &self,
        to: SocketAddr,
        channel: Channel,
        payload: Vec<u8>,
        deadline: Duration,
    ) -> Result<Bytes, TransportError> {
        let until = Instant::now() + deadline;
        let late = TransportError::Timeout { from: to, after: deadline };
        let codec = |source| TransportError::Codec { with: to, source };
        redmesh_api::codec::header(channel, Direction::Request, payload.len()).map_err(codec)?;
        if !self.is_open() {
            return Err(TransportError::Unreachable { to, reason: "this transport is closed".to_owned() });
        }
        if self.network.is_cut(self.addr, to) {
            sleep_until(until).await;
            return Err(late);
        }
        let Some(node) = self.network.node(to) else {
            return Err(TransportError::Unreachable { to, reason: "nobody listens there".to_owned() });
        };
        let served = async {
            let mut slot = node.handler.subscribe();
            let handler = slot.wait_for(Option::is_some).await.ok()?.clone()?;
            Some(handler.handle(&self.peer, channel, Bytes::from(payload)).await)
        };
        let reply = match timeout_at(until, served).await {
            Err(_) => return Err(late),
            Ok(None) => return Err(TransportError::Lost { to, reason: "it has closed".to_owned() }),
            Ok(Some(Err(error))) => return Err(TransportError::Lost { to, reason: error.to_string() }),
            Ok(Some(Ok(reply))) => reply,
        };
        if self.network.is_cut(to, self.addr) || !self.is_open() {
            sleep_until(until).await;
            return Err(late);
        }
        redmesh_api::codec::header(channel, Direction::Reply, reply.len()).map_err(codec)?;
        Ok(Bytes::from(reply))
    }

    fn gossip(&self, to: SocketAddr, message: Vec<u8>) {
        if !self.is_open() || self.network.is_cut(self.addr, to) {
            return;
        }
        if let Some(node) = self.network.node(to) {
            // A full queue loses the message, as the contract says.
            let _ = node.gossip.try_send((self.addr, Bytes::from(message)));
        }
    }

    fn take_gossip(&self) -> Option<mpsc::Receiver<Gossip>> {
        self.inbox.lock().unwrap_or_else(PoisonError::into_inner).take()
    }

    fn serve(&self, handler: Arc<dyn Handler>) {
        self.handler.send_if_modified(|slot| {
            let first = slot.is_none();
            slot.get_or_insert(handler);
            first
        });
    }

    async fn close(&self) {
        let mut shared = self.network.lock();
        // A successor at the same address stays.
        if shared.nodes.get(&self.addr).is_some_and(|node| node.join == self.join) {
            shared.nodes.remove(&self.addr);
        }
        drop(shared);
        // Handlers often hold what holds this transport: break the circle.
        self.handler.send_replace(None);
    }
}
