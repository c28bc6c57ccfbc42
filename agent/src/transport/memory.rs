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

use super::{GOSSIP_QUEUE_MAX, Handler, Peer, Presented, Transport, TransportError};

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
        f.debug_struct("MemoryNetwork").field("nodes", &shared.nodes.len()).field("cut", &shared.cut).finish()
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
        let peer = Peer::Agent { id, name: name.into(), addr, presented: Presented::default() };
        Arc::new(MemoryTransport {
            network: self.clone(),
            addr,
            peer,
            join,
            handler,
            inbox: Mutex::new(Some(inbox)),
        })
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
        let fits = redmesh_api::codec::header(Channel::Gossip, Direction::Request, message.len()).is_ok();
        if !fits || !self.is_open() || self.network.is_cut(self.addr, to) {
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

#[cfg(test)]
mod tests {
    use std::net::Ipv4Addr;

    use redmesh_api::codec::CodecError;

    use super::*;

    const DEADLINE: Duration = Duration::from_millis(50);

    /// Answers with the request and who sent it.
    struct Echo;

    #[async_trait]
    impl Handler for Echo {
        async fn handle(&self, peer: &Peer, _: Channel, payload: Bytes) -> Result<Vec<u8>, CodecError> {
            if payload.is_empty() {
                return Err(CodecError::Channel { got: 9 });
            }
            let Peer::Agent { id, .. } = peer else { panic!("an agent asks") };
            Ok([&id.0.to_le_bytes()[..], &payload].concat())
        }
    }

    fn addr(port: u16) -> SocketAddr {
        (Ipv4Addr::LOCALHOST, port).into()
    }

    async fn ask(from: &MemoryTransport, to: u16, deadline: Duration) -> Result<Bytes, TransportError> {
        from.request(addr(to), Channel::Peer, b"?".to_vec(), deadline).await
    }

    #[tokio::test]
    async fn requests_are_answered_lost_or_refused() {
        let network = MemoryNetwork::new();
        let [a, b] = [1, 2].map(|id| network.join(addr(id), HostId(id.into()), "host"));
        b.serve(Arc::new(Echo));
        let long = Duration::from_secs(30);
        assert_eq!(&ask(&a, 2, long).await.unwrap()[..], [1, 0, 0, 0, b'?']);
        assert!(matches!(ask(&a, 3, long).await, Err(TransportError::Unreachable { .. })));
        let refused = a.request(addr(2), Channel::Peer, Vec::new(), long).await;
        assert!(matches!(refused, Err(TransportError::Lost { .. })));
        // Nobody serves there yet.
        assert!(matches!(ask(&b, 1, DEADLINE).await, Err(TransportError::Timeout { .. })));
        for (from, to) in [(1, 2), (2, 1)] {
            network.cut(addr(from), addr(to));
            assert!(matches!(ask(&a, 2, DEADLINE).await, Err(TransportError::Timeout { .. })));
            network.heal();
        }
        ask(&a, 2, long).await.unwrap();
        b.close().await;
        assert!(matches!(ask(&a, 2, long).await, Err(TransportError::Unreachable { .. })));
        assert!(matches!(ask(&b, 1, long).await, Err(TransportError::Unreachable { .. })));
    }

    #[tokio::test]
    async fn a_successor_outlives_its_predecessors_close() {
        let network = MemoryNetwork::new();
        let a = network.join(addr(1), HostId(1), "a");
        let old = network.join(addr(2), HostId(2), "b");
        let mut old_inbox = old.take_gossip().unwrap();
        assert!(old.take_gossip().is_none());
        let new = network.join(addr(2), HostId(2), "b");
        old.close().await;
        let mut inbox = new.take_gossip().unwrap();
        a.gossip(addr(2), b"hello".to_vec());
        assert_eq!(inbox.recv().await, Some((addr(1), Bytes::from_static(b"hello"))));
        assert_eq!(old_inbox.recv().await, None);
        network.cut(addr(1), addr(2));
        a.gossip(addr(2), b"lost".to_vec());
        a.gossip(addr(9), b"nobody".to_vec());
        network.heal();
        a.gossip(addr(2), b"again".to_vec());
        assert_eq!(inbox.recv().await.unwrap().1, "again");
    }
}
