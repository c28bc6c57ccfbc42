//! Streams to a peer: one request and its reply, or one gossip message, at a time.
//!
//! Everything above speaks to [`Transport`] alone. [`quic`] is the real one, [`memory`]
//! serves tests; faults are to be decorators of either.

pub mod memory;
pub mod quic;

use std::fmt;
use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use async_trait::async_trait;
use bytes::Bytes;
use redmesh_api::codec::{self, Channel, CodecError};
use redmesh_api::ids::HostId;
use redmesh_api::tls::Role;
use rustls::pki_types::CertificateDer;
use serde::Serialize;
use serde::de::DeserializeOwned;
use tokio::sync::mpsc;

/// Gossip messages that may wait to be read before newer ones are dropped (gossip
/// repairs itself; a queue without bound does not).
pub const GOSSIP_QUEUE_MAX: usize = 1024;

/// Why a request brought no reply.
#[derive(Debug, thiserror::Error)]
pub enum TransportError {
    /// No connection could be made.
    #[error("can't reach {to}: {reason}")]
    Unreachable {
        /// Whom.
        to: SocketAddr,
        /// Why, in words, with the remedy where one is known.
        reason: String,
    },
    /// The peer refused us (certificate, mesh, version), in its words.
    #[error("{by} refused: {reason}")]
    Refused {
        /// Who.
        by: SocketAddr,
        /// Why.
        reason: String,
    },
    /// Connected, and no reply in time.
    #[error("no reply from {from} within {} ms", .after.as_millis())]
    Timeout {
        /// Whose.
        from: SocketAddr,
        /// The deadline.
        after: Duration,
    },
    /// The connection ended before the reply.
    #[error("connection to {to} lost: {reason}")]
    Lost {
        /// With whom.
        to: SocketAddr,
        /// Why.
        reason: String,
    },
    /// Bytes that can't be sent or understood.
    #[error("with {with}")]
    Codec {
        /// The peer.
        with: SocketAddr,
        /// What is wrong.
        #[source]
        source: CodecError,
    },
}

/// The certificate chain that a peer presented, leaf first; shown by nothing.
#[derive(Clone, Default, PartialEq, Eq)]
pub struct Presented(Arc<Vec<CertificateDer<'static>>>);

impl Presented {
    /// What TLS has checked.
    pub fn new(chain: Vec<CertificateDer<'static>>) -> Self {
        Self(Arc::new(chain))
    }

    /// The chain, leaf first.
    pub fn chain(&self) -> &[CertificateDer<'static>] {
        &self.0
    }
}

impl fmt::Debug for Presented {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_tuple("Presented").field(&self.0.len()).finish()
    }
}

/// Who opened a stream to us, as proven by the certificate and said in the hello.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Peer {
    /// Another agent.
    Agent {
        /// Its id.
        id: HostId,
        /// Its certificate's name.
        name: String,
        /// Its mesh address.
        addr: SocketAddr,
        /// Its certificate.
        presented: Presented,
    },
    /// A person's client.
    Operator {
        /// The certificate's name.
        name: String,
        /// What it entitles to: [`Role::Operator`] or [`Role::Reader`].
        role: Role,
        /// Where from.
        addr: SocketAddr,
    },
}

/// Serves requests of peers. Answers are payloads; a request that can't be decoded
/// ends its stream with the error's words.
#[async_trait]
pub trait Handler: Send + Sync + 'static {
    /// Serves one request.
    async fn handle(&self, peer: &Peer, channel: Channel, payload: Bytes) -> Result<Vec<u8>, CodecError>;
}

/// Requests and gossip to peers. Cheap to clone behind an [`Arc`].
#[async_trait]
pub trait Transport: Send + Sync + 'static {
    /// The address at which peers reach us.
    fn advertise_addr(&self) -> SocketAddr;

    /// Sends one request and waits for its reply, dialling if there is no live
    /// connection; the deadline covers both.
    async fn request(
        &self,
        to: SocketAddr,
        channel: Channel,
        payload: Vec<u8>,
        deadline: Duration,
    ) -> Result<Bytes, TransportError>;

    /// Queues one gossip message. Never waits and never dials in the caller's time; a
    /// message that can't go is dropped.
    fn gossip(&self, to: SocketAddr, message: Vec<u8>);

    /// Gossip that arrives, with the sender's mesh address; may be taken once.
    fn take_gossip(&self) -> Option<mpsc::Receiver<(SocketAddr, Bytes)>>;

    /// Sets who serves requests; until then they wait. May be set once.
    fn serve(&self, handler: Arc<dyn Handler>);

    /// Stops accepting, says goodbye to all peers and waits (bounded) until they know.
    async fn close(&self);
}

/// One typed request over any transport.
pub async fn call<Q: Serialize + Sync, A: DeserializeOwned>(
    transport: &dyn Transport,
    to: SocketAddr,
    channel: Channel,
    request: &Q,
    deadline: Duration,
) -> Result<A, TransportError> {
    let codec_error = |source| TransportError::Codec { with: to, source };
    let payload = codec::encode(request).map_err(codec_error)?;
    let reply = transport.request(to, channel, payload, deadline).await?;
    codec::decode(&reply).map_err(codec_error)
}
