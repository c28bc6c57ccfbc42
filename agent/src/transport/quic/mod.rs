//! The real transport: QUIC with mutual TLS.
//!
//! One endpoint both dials and listens, so that the source address is the listening one.
//! Connections are one-way: what I dialled carries my requests and my gossip, what others
//! dialled carries theirs. Two agents that dial each other at once therefore end up with
//! one connection each way, and there is nothing to break a tie about.
//!
//! The keys of stateless resets and of connection ids come from the host's lasting
//! secret: an agent that was killed and started again can tell its peers at once that
//! their old connections are dead (RFC 9000, section 10.3), instead of letting each wait
//! for its idle timeout.
//!
//! It must never dial or wait in a gossiping caller's time, and nothing that arrives may
//! panic or allocate beyond a bound.

mod barred;
mod expiry;
mod gossip;
mod hello;
mod intake;
mod lives;
mod operators;
mod pool;
mod refusals;
mod serve;
mod strangers;

#[cfg(test)]
pub(crate) mod testing;
#[cfg(test)]
mod tests;

use std::fmt;
use std::io::{self, ErrorKind};
use std::net::{SocketAddr, UdpSocket};
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use async_trait::async_trait;
use bytes::Bytes;
use quinn::{AsyncUdpSocket, Connection, Endpoint, EndpointConfig, TokioRuntime, VarInt};
use quinn_proto::HashedConnectionIdGenerator;
use redmesh_api::codec::Channel;
use redmesh_api::frames::{self, CLOSE_DONE, FrameError};
use redmesh_api::ids::{HostId, MeshId};
use redmesh_api::tls::{self, Identity, Role, TlsError};
use ring::hmac;
use tokio::sync::{mpsc, watch};
use tokio::time::{Instant, timeout, timeout_at};
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;

pub use barred::{Barred, is_removed};
pub use hello::{HELLO_PROTOCOL, Hello, HelloReply};
pub use strangers::{JoinPort, Strangers};

use super::{GOSSIP_QUEUE_MAX, Handler, Peer, Presented, Transport, TransportError};
use gossip::GossipOut;
use intake::Intake;
use lives::Lives;
use operators::Operators;
use pool::Pool;
use refusals::Refusals;

/// Asked of the kernel for the one UDP socket that all connections share; it gives what
/// `net.core.rmem_max` and `wmem_max` allow.
pub const SOCKET_BUFFER_BYTES: usize = 4 * 1024 * 1024;

/// For peers to hear of our end.
pub const GOODBYE_TIMEOUT: Duration = Duration::from_secs(1);

/// Connections that a request tries: the pooled one may turn out to have ended before
/// anything was sent on it.
const LINKS_TRIED_MAX: usize = 2;

/// What a transport needs to be bound.
#[derive(Debug)]
pub struct QuicOptions {
    /// UDP address to listen at. With port 0 the system chooses one.
    pub listen: SocketAddr,
    /// Where peers reach us; the certificate must be for its IP. With a listening port 0
    /// its port becomes the one that the system chose.
    pub advertise: SocketAddr,
    /// A host's identity; its name becomes ours.
    pub identity: Identity,
    /// Lasting secret of this host.
    pub host_secret: [u8; 32],
    /// What peers are told about us.
    pub local: LocalPeer,
    /// The mesh that we have joined, once we have.
    pub mesh_id: watch::Receiver<Option<MeshId>>,
    /// Whom nobody speaks with any more.
    pub barred: watch::Receiver<Barred>,
    /// Carries the packets in the place of a UDP socket of ours.
    pub wire: Option<Wire>,
}

/// Packets and randomness of somebody else's making: those of a simulated network.
#[derive(Debug)]
pub struct Wire {
    /// Bound already; where it listens counts, not [`QuicOptions::listen`].
    pub socket: Arc<dyn AsyncUdpSocket>,
    /// What QUIC draws is drawn from here.
    pub rng_seed: [u8; 32],
}

/// What peers are told about us besides the certificate's name.
#[derive(Debug, Clone)]
pub struct LocalPeer {
    /// This host's id.
    pub id: HostId,
    /// Which life of it this is: must grow at every start.
    pub boot_id: u64,
    /// The mesh that the configuration names.
    pub mesh_name: String,
}

/// Why the transport can't be bound.
#[derive(Debug, thiserror::Error)]
pub enum BindError {
    /// Something listens there.
    #[error(
        "{addr}/udp is in use: stop what listens there (`ss -ulnp`), or choose another address to listen at"
    )]
    InUse {
        /// The address.
        addr: SocketAddr,
    },
    /// No such address here.
    #[error("no interface of this machine has the address {}: compare `ip addr` with the address to listen at", .addr.ip())]
    NoSuchAddress {
        /// The address.
        addr: SocketAddr,
    },
    /// Another error of the socket.
    #[error("can't listen at {addr}/udp")]
    Socket {
        /// The address.
        addr: SocketAddr,
        /// Why.
        #[source]
        source: io::Error,
    },
    /// An operator's certificate.
    #[error(
        "the certificate of {name} is an operator's, and an agent needs a host's: `redmeshctl pki issue --host`"
    )]
    NotAHost {
        /// Its name.
        name: String,
    },
    /// Peers would refuse us.
    #[error(
        "the certificate of {name} is not for {}, the advertised address: issue it again with `redmeshctl pki issue \
         --host {name} --ip {} --renew`, or advertise another one", .addr.ip(), .addr.ip()
    )]
    NotForAddress {
        /// The certificate's name.
        name: String,
        /// Advertised address.
        addr: SocketAddr,
    },
    /// A host keeps its name while its agent runs.
    #[error(
        "the certificate is {name}'s, and this agent runs as {running}: restart it to give the host another name"
    )]
    Renamed {
        /// The new certificate's name.
        name: String,
        /// The name in use.
        running: String,
    },
    /// The identity can't be used.
    #[error("TLS can't be set up")]
    Tls(#[source] TlsError),
}

impl BindError {
    fn of(addr: SocketAddr, source: io::Error) -> Self {
        match source.kind() {
            ErrorKind::AddrInUse => Self::InUse { addr },
            ErrorKind::AddrNotAvailable => Self::NoSuchAddress { addr },
            _ => Self::Socket { addr, source },
        }
    }
}

/// Figures for metrics; all but the last two only grow.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct QuicStats {
    /// Gossip messages sent.
    pub gossip_sent: u64,
    /// Gossip messages that did not go: queue full, or peer out of reach.
    pub gossip_dropped_out: u64,
    /// Gossip messages that arrived broken, or faster than they were read.
    pub gossip_dropped_in: u64,
    /// Connections and requests refused.
    pub refused: u64,
    /// Links that we dialled, alive now.
    pub links: u64,
    /// Connections of both ways, open now.
    pub connections: u64,
}

/// The half of our identity that dials; the other half is the endpoint's.
struct Dialling {
    client: quinn::ClientConfig,
    identity: Identity,
}

#[derive(Debug, Default)]
struct Counts {
    gossip_sent: AtomicU64,
    gossip_dropped_out: AtomicU64,
    gossip_dropped_in: AtomicU64,
}

impl Counts {
    fn gossip_sent(&self) {
        self.gossip_sent.fetch_add(1, Ordering::Relaxed);
    }

    fn gossip_dropped_out(&self, messages: u64) {
        self.gossip_dropped_out.fetch_add(messages, Ordering::Relaxed);
    }

    fn gossip_dropped_in(&self) {
        self.gossip_dropped_in.fetch_add(1, Ordering::Relaxed);
    }
}

/// What the handle and all tasks have in common.
struct Shared {
    endpoint: Endpoint,
    /// What dials from now on present and trust; links that were dialled before are replaced.
    dialling: watch::Sender<Dialling>,
    advertise: SocketAddr,
    name: String,
    local: LocalPeer,
    mesh_id: watch::Receiver<Option<MeshId>>,
    barred: watch::Receiver<Barred>,
    /// Set once another agent has said that this host was removed: its words.
    told_removed: watch::Sender<Option<String>>,
    /// Receiving and sending, bytes.
    udp_buffers: (u64, u64),
    handler: watch::Sender<Option<Arc<dyn Handler>>>,
    gossip_in: mpsc::Sender<(SocketAddr, Bytes)>,
    gossip_out: GossipOut,
    pool: Pool,
    lives: Mutex<Lives<Connection>>,
    intake: Arc<Mutex<Intake>>,
    operators: Operators,
    refusals: Refusals,
    counts: Counts,
    tasks: TaskTracker,
    cancel: CancellationToken,
}

impl Shared {
    fn client_config(&self) -> quinn::ClientConfig {
        self.dialling.borrow().client.clone()
    }

    fn hello(&self) -> Hello {
        Hello {
            protocol: HELLO_PROTOCOL,
            id: self.local.id,
            name: self.name.clone(),
            boot_id: self.local.boot_id,
            addr: self.advertise,
            mesh_name: self.local.mesh_name.clone(),
            mesh_id: *self.mesh_id.borrow(),
            agent_version: env!("CARGO_PKG_VERSION").into(),
        }
    }
}

/// See the module. Dropping it ends all its tasks, but only [`Transport::close`] says
/// goodbye and waits.
pub struct QuicTransport {
    shared: Arc<Shared>,
    gossip_arrives: Mutex<Option<mpsc::Receiver<(SocketAddr, Bytes)>>>,
}

impl fmt::Debug for QuicTransport {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("QuicTransport").field("advertise", &self.shared.advertise).finish_non_exhaustive()
    }
}

impl QuicTransport {
    /// Whether peers will take `identity` for the agent at `advertise`.
    ///
    /// # Errors
    /// [`BindError::NotAHost`] or [`BindError::NotForAddress`].
    pub fn check_identity(identity: &Identity, advertise: SocketAddr) -> Result<(), BindError> {
        let name = identity.name().to_owned();
        if identity.role() != Role::Host {
            return Err(BindError::NotAHost { name });
        }
        if !identity.names_ip(advertise.ip()) {
            return Err(BindError::NotForAddress { name, addr: advertise });
        }
        Ok(())
    }

    /// Listens; must be called inside a tokio runtime. Requests of peers wait until
    /// [`Transport::serve`].
    pub fn bind(options: QuicOptions) -> Result<Arc<Self>, BindError> {
        let QuicOptions { listen, mut advertise, identity, host_secret, local, mesh_id, barred, wire } =
            options;
        Self::check_identity(&identity, advertise)?;
        let name = identity.name().to_owned();
        let server = tls::quic_server_config(&identity).map_err(BindError::Tls)?;
        let client = tls::quic_client_config(&identity).map_err(BindError::Tls)?;
        let failed = |source| BindError::of(listen, source);
        let mut config = endpoint_config(&host_secret);
        let runtime = Arc::new(TokioRuntime);
        let (endpoint, udp_buffers) = match wire {
            None => {
                let (socket, buffers) = bind_udp(listen).map_err(failed)?;
                (Endpoint::new(config, Some(server), socket, runtime), buffers)
            }
            Some(Wire { socket, rng_seed }) => {
                config.rng_seed(Some(rng_seed));
                (Endpoint::new_with_abstract_socket(config, Some(server), socket, runtime), (0, 0))
            }
        };
        let endpoint = endpoint.map_err(failed)?;
        let bound = endpoint.local_addr().map_err(failed)?;
        let dialling = watch::Sender::new(Dialling { client, identity });
        if listen.port() == 0 {
            advertise.set_port(bound.port());
        }
        let (gossip_in, gossip_arrives) = mpsc::channel(GOSSIP_QUEUE_MAX);
        let shared = Arc::new(Shared {
            endpoint,
            dialling,
            advertise,
            name,
            local,
            mesh_id,
            barred,
            told_removed: watch::Sender::new(None),
            udp_buffers,
            handler: watch::Sender::new(None),
            gossip_in,
            gossip_out: GossipOut::default(),
            pool: Pool::default(),
            lives: Mutex::default(),
            intake: Arc::default(),
            operators: Operators::default(),
            refusals: Refusals::default(),
            counts: Counts::default(),
            tasks: TaskTracker::new(),
            cancel: CancellationToken::new(),
        });
        shared.tasks.spawn(serve::accept_all(shared.clone()));
        Ok(Arc::new(Self { shared, gossip_arrives: Mutex::new(Some(gossip_arrives)) }))
    }

    /// Buffers that the UDP socket was given, which may be less than
    /// [`SOCKET_BUFFER_BYTES`]: receiving and sending, bytes.
    pub fn udp_buffers(&self) -> (u64, u64) {
        self.shared.udp_buffers
    }

    /// Presents `identity`, and trusts its CA, in every connection from now on. Links that
    /// we dialled with the earlier one are replaced; what others dialled lives on until they
    /// do so, or until the earlier certificate expires. The one in use is taken as no change.
    ///
    /// # Errors
    /// When peers would refuse it; then nothing changes.
    pub fn replace_identity(&self, identity: &Identity) -> Result<(), BindError> {
        if identity.same_as(&self.shared.dialling.borrow().identity) {
            return Ok(());
        }
        Self::check_identity(identity, self.shared.advertise)?;
        if identity.name() != self.shared.name {
            let (name, running) = (identity.name().to_owned(), self.shared.name.clone());
            return Err(BindError::Renamed { name, running });
        }
        let server = tls::quic_server_config(identity).map_err(BindError::Tls)?;
        let client = tls::quic_client_config(identity).map_err(BindError::Tls)?;
        self.shared.endpoint.set_server_config(Some(server));
        self.shared.dialling.send_replace(Dialling { client, identity: identity.clone() });
        Ok(())
    }

    /// Who we are at the moment.
    pub fn identity(&self) -> Identity {
        self.shared.dialling.borrow().identity.clone()
    }

    /// When our certificate expires, Unix seconds; `None` if it doesn't say.
    pub fn certificate_valid_until_unix_s(&self) -> Option<i64> {
        self.shared.dialling.borrow().identity.valid_until_unix_s()
    }

    /// Follows whether another agent has said that this host was removed from the mesh.
    pub fn told_removed(&self) -> watch::Receiver<Option<String>> {
        self.shared.told_removed.subscribe()
    }

    /// Figures for metrics.
    pub fn stats(&self) -> QuicStats {
        let Shared { counts, refusals, pool, endpoint, .. } = &*self.shared;
        QuicStats {
            gossip_sent: counts.gossip_sent.load(Ordering::Relaxed),
            gossip_dropped_out: counts.gossip_dropped_out.load(Ordering::Relaxed),
            gossip_dropped_in: counts.gossip_dropped_in.load(Ordering::Relaxed),
            refused: refusals.total(),
            links: pool.len() as u64,
            connections: endpoint.open_connections() as u64,
        }
    }

    async fn request_self(&self, channel: Channel, payload: Bytes) -> Result<Bytes, TransportError> {
        let shared = &self.shared;
        let by = shared.advertise;
        let refused = |reason| TransportError::Refused { by, reason };
        let handler = shared.handler().await.ok_or_else(|| refused("this agent is still starting".into()))?;
        let presented = Presented::new(shared.dialling.borrow().identity.chain().to_vec());
        let peer = Peer::Agent { id: shared.local.id, name: shared.name.clone(), addr: by, presented };
        let answer = handler.handle(&peer, channel, payload).await;
        answer.map(Bytes::from).map_err(|error| refused(crate::error_chain(&error)))
    }

    async fn streams(
        &self,
        to: SocketAddr,
    ) -> Result<(quinn::SendStream, quinn::RecvStream), TransportError> {
        let mut ended = None;
        for _ in 0..LINKS_TRIED_MAX {
            let link = self.shared.pool.get(&self.shared, to).await.map_err(|error| error.about(to))?;
            match link.connection.open_bi().await {
                Ok(streams) => return Ok(streams),
                Err(error) => ended = Some(error),
            }
        }
        let error = ended.expect("the loop ran, and did not return");
        Err(lost(to, FrameError::Connection(error)))
    }
}

/// Binds with buffers as large as the system allows (small ones only cost speed), and tells
/// how large they are: receiving and sending, bytes.
fn bind_udp(listen: SocketAddr) -> io::Result<(UdpSocket, (u64, u64))> {
    let socket = UdpSocket::bind(listen)?;
    let _ = rustix::net::sockopt::set_socket_recv_buffer_size(&socket, SOCKET_BUFFER_BYTES);
    let _ = rustix::net::sockopt::set_socket_send_buffer_size(&socket, SOCKET_BUFFER_BYTES);
    // The kernel doubles what it gives, for its own book-keeping (socket(7)).
    let given = |size: rustix::io::Result<usize>| size.map_or(0, |bytes| bytes as u64 / 2);
    let buffers = (
        given(rustix::net::sockopt::socket_recv_buffer_size(&socket)),
        given(rustix::net::sockopt::socket_send_buffer_size(&socket)),
    );
    Ok((socket, buffers))
}

/// Keys from the host's secret, one for each use.
fn endpoint_config(host_secret: &[u8; 32]) -> EndpointConfig {
    let secret = hmac::Key::new(hmac::HMAC_SHA256, host_secret);
    let derive = |label: &[u8]| hmac::sign(&secret, label);
    let reset_key = hmac::Key::new(hmac::HMAC_SHA256, derive(b"redmesh quic stateless reset").as_ref());
    let mut config = EndpointConfig::new(Arc::new(reset_key));
    let mut cid_key = [0; 8];
    cid_key.copy_from_slice(&derive(b"redmesh quic connection ids").as_ref()[..8]);
    let cid_key = u64::from_le_bytes(cid_key);
    config.cid_generator(move || Box::new(HashedConnectionIdGenerator::from_key(cid_key)));
    config
}

fn lost(to: SocketAddr, error: FrameError) -> TransportError {
    match error {
        FrameError::Codec(source) => TransportError::Codec { with: to, source },
        FrameError::Connection(error) => {
            let reason = tls::explain(&error).unwrap_or_else(|| error.to_string());
            if tls::is_refusal(&error) {
                TransportError::Refused { by: to, reason }
            } else {
                TransportError::Lost { to, reason }
            }
        }
        error => TransportError::Lost { to, reason: error.to_string() },
    }
}

#[async_trait]
impl Transport for QuicTransport {
    fn advertise_addr(&self) -> SocketAddr {
        self.shared.advertise
    }

    async fn request(
        &self,
        to: SocketAddr,
        channel: Channel,
        payload: Vec<u8>,
        deadline: Duration,
    ) -> Result<Bytes, TransportError> {
        let until = Instant::now() + deadline;
        let late = |_| TransportError::Timeout { from: to, after: deadline };
        if to == self.shared.advertise {
            return timeout_at(until, self.request_self(channel, payload.into())).await.map_err(late)?;
        }
        let streams = timeout_at(until, self.streams(to)).await.map_err(|_| {
            let reason = format!("no connection within {} ms", deadline.as_millis());
            TransportError::Unreachable { to, reason }
        })??;
        let exchange = frames::exchange(streams, channel, &payload);
        match timeout_at(until, exchange).await.map_err(late)? {
            Ok(Ok(answer)) => Ok(answer),
            Ok(Err(reason)) => Err(TransportError::Refused { by: to, reason }),
            Err(error) => Err(lost(to, error)),
        }
    }

    fn gossip(&self, to: SocketAddr, message: Vec<u8>) {
        if to == self.shared.advertise || !self.shared.gossip_out.enqueue(&self.shared, to, message) {
            self.shared.counts.gossip_dropped_out(1);
        }
    }

    fn take_gossip(&self) -> Option<mpsc::Receiver<(SocketAddr, Bytes)>> {
        self.gossip_arrives.lock().unwrap_or_else(PoisonError::into_inner).take()
    }

    fn serve(&self, handler: Arc<dyn Handler>) {
        let set = self.shared.handler.send_if_modified(|current| {
            let free = current.is_none();
            if free {
                *current = Some(handler);
            }
            free
        });
        if !set {
            tracing::warn!("somebody serves requests already: the second handler is not used");
        }
    }

    async fn close(&self) {
        let shared = &self.shared;
        shared.cancel.cancel();
        shared.endpoint.close(VarInt::from_u32(CLOSE_DONE), b"agent is stopping");
        shared.tasks.close();
        let farewell = async { tokio::join!(shared.endpoint.wait_idle(), shared.tasks.wait()) };
        if timeout(GOODBYE_TIMEOUT, farewell).await.is_err() {
            tracing::debug!("some peers did not hear our goodbye in time");
        }
        // It may hold whoever holds us.
        shared.handler.send_replace(None);
    }
}

impl Drop for QuicTransport {
    fn drop(&mut self) {
        self.shared.cancel.cancel();
    }
}
