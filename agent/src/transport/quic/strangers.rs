//! The one port where somebody without a certificate is heard: a request to join, and
//! nothing else.
//!
//! An endpoint of its own, so that the agents' port goes on ending strangers in the
//! handshake, and so that a firewall can close it. One stream, one frame, one answer, and
//! the connection is closed; handshakes are bounded as on the agents' port, connections
//! more narrowly, and whoever takes longer than [`JOIN_TIMEOUT`] is cut off. Who is let in
//! is decided by [`Strangers`].

use std::net::SocketAddr;
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use async_trait::async_trait;
use quinn::{Connection, Endpoint, EndpointConfig, Incoming, ServerConfig, TokioRuntime, VarInt};
use redmesh_api::codec::{self, Channel, Direction};
use redmesh_api::frames::{self, CLOSE_DONE, CLOSE_REFUSED};
use redmesh_api::join::{EXPORTER_BYTES, EXPORTER_LABEL, JoinRefusal, JoinReply, JoinRequest};
use redmesh_api::tls::{self, Identity};
use tokio::sync::Semaphore;
use tokio::task::JoinSet;
use tokio::time::timeout;
use tokio_util::sync::CancellationToken;

use super::intake::{Intake, Pending, Verdict};
use super::refusals::Refusals;
use super::serve::HANDSHAKE_TIMEOUT;
use super::{BindError, QuicTransport};

/// Connections of strangers, pending ones included.
pub const CONNECTIONS_MAX: usize = 64;

/// For a request to arrive.
pub const REQUEST_TIMEOUT: Duration = Duration::from_secs(5);

/// For all of it, the commit of the token's use included.
pub const JOIN_TIMEOUT: Duration = Duration::from_secs(60);

/// For an answer to arrive before the connection is closed.
const FAREWELL_TIMEOUT: Duration = Duration::from_secs(2);

/// Judges what strangers ask.
#[async_trait]
pub trait Strangers: Send + Sync + 'static {
    /// A request from `from`, whose address is proven, on the connection that exported
    /// `binding`.
    async fn join(&self, request: JoinRequest, from: SocketAddr, binding: [u8; EXPORTER_BYTES]) -> JoinReply;
}

/// The port, bound.
pub struct JoinPort {
    endpoint: Endpoint,
    transport: Arc<QuicTransport>,
    /// What the endpoint presents, and what that was made of.
    presented: (Identity, Arc<ServerConfig>),
}

impl std::fmt::Debug for JoinPort {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("JoinPort").field("listen", &self.endpoint.local_addr().ok()).finish_non_exhaustive()
    }
}

impl JoinPort {
    /// Listens at `listen`, and presents what `transport` does.
    ///
    /// # Errors
    /// [`BindError`].
    pub fn bind(listen: SocketAddr, transport: Arc<QuicTransport>) -> Result<Self, BindError> {
        let identity = transport.identity();
        let config = Arc::new(tls::join_server_config(&identity).map_err(BindError::Tls)?);
        let failed = |source| BindError::of(listen, source);
        let socket = std::net::UdpSocket::bind(listen).map_err(failed)?;
        let runtime = Arc::new(TokioRuntime);
        let server = Some(ServerConfig::clone(&config));
        let endpoint = Endpoint::new(EndpointConfig::default(), server, socket, runtime).map_err(failed)?;
        Ok(Self { endpoint, transport, presented: (identity, config) })
    }

    /// Serves until `cancel`.
    pub async fn serve(mut self, strangers: Arc<dyn Strangers>, cancel: CancellationToken) {
        let intake: Arc<Mutex<Intake>> = Arc::default();
        let refusals = Arc::new(Refusals::default());
        let places = Arc::new(Semaphore::new(CONNECTIONS_MAX));
        // Bounded by the places.
        let mut serving = JoinSet::new();
        loop {
            let incoming = tokio::select! {
                incoming = self.endpoint.accept() => incoming,
                Some(_) = serving.join_next() => continue,
                () = cancel.cancelled() => break,
            };
            let Some(incoming) = incoming else { break };
            let from = incoming.remote_address();
            let proven = incoming.remote_address_validated() || !incoming.may_retry();
            let pending = match Pending::judge(&intake, from.ip(), proven, Instant::now()) {
                Ok(pending) => pending,
                Err(Verdict::Refuse(reason)) => {
                    refusals.note(from, reason);
                    incoming.refuse();
                    continue;
                }
                Err(Verdict::Retry | Verdict::Admit) => {
                    // Only fails where may_retry() is false.
                    let _ = incoming.retry();
                    continue;
                }
            };
            let Ok(place) = places.clone().try_acquire_owned() else {
                refusals.note(from, "too many hosts join at once");
                incoming.refuse();
                continue;
            };
            let config = self.present();
            let (strangers, refusals) = (strangers.clone(), refusals.clone());
            serving.spawn(async move {
                let heard = hear(incoming, config, pending, &*strangers);
                match timeout(JOIN_TIMEOUT, heard).await {
                    Ok(Ok(())) => {}
                    Ok(Err(reason)) => refusals.note(from, &reason),
                    Err(_) => refusals.note(from, "a request to join took too long"),
                }
                drop(place);
            });
        }
        self.endpoint.close(VarInt::from_u32(CLOSE_DONE), b"agent is stopping");
        serving.shutdown().await;
    }

    /// For the identity in use; made anew only where that has changed.
    fn present(&mut self) -> Arc<ServerConfig> {
        let identity = self.transport.identity();
        if !identity.same_as(&self.presented.0) {
            match tls::join_server_config(&identity) {
                Ok(config) => self.presented = (identity, Arc::new(config)),
                Err(error) => {
                    tracing::warn!(error = crate::error_chain(&error), "the join port keeps its certificate");
                }
            }
        }
        self.presented.1.clone()
    }
}

/// One connection, from its handshake to its end.
async fn hear(
    incoming: Incoming,
    config: Arc<ServerConfig>,
    pending: Pending,
    strangers: &dyn Strangers,
) -> Result<(), String> {
    let handshake = async { incoming.accept_with(config)?.await };
    let connection = timeout(HANDSHAKE_TIMEOUT, handshake)
        .await
        .map_err(|_| format!("no TLS handshake within {} s", HANDSHAKE_TIMEOUT.as_secs()))?
        .map_err(|error| tls::explain(&error).unwrap_or_else(|| error.to_string()))?;
    let answered = answer(&connection, pending, strangers).await;
    let (code, words) = match &answered {
        Ok(()) => (CLOSE_DONE, ""),
        Err(reason) => (CLOSE_REFUSED, reason.as_str()),
    };
    connection.close(VarInt::from_u32(code), words.as_bytes());
    answered
}

/// `pending` until the request is there: the handshake proves nothing, so whoever then says
/// nothing counts against its source.
async fn answer(connection: &Connection, pending: Pending, strangers: &dyn Strangers) -> Result<(), String> {
    let request = async {
        let (send, mut recv) = connection.accept_bi().await.map_err(|error| error.to_string())?;
        let (channel, len) = frames::read_header(&mut recv, Direction::Request)
            .await
            .map_err(|error| crate::error_chain(&error))?;
        if channel != Channel::Join {
            return Err(format!("{channel:?} on the join port, where nothing else is answered"));
        }
        let payload =
            frames::read_payload(&mut recv, len).await.map_err(|error| crate::error_chain(&error))?;
        Ok((send, payload))
    };
    let (mut send, payload) = timeout(REQUEST_TIMEOUT, request)
        .await
        .map_err(|_| format!("no request to join within {} s", REQUEST_TIMEOUT.as_secs()))??;
    drop(pending);
    let request: JoinRequest = codec::decode(&payload).map_err(|error| crate::error_chain(&error))?;
    let mut binding = [0; EXPORTER_BYTES];
    connection
        .export_keying_material(&mut binding, EXPORTER_LABEL, b"")
        .map_err(|_| "TLS exports nothing for the proof".to_owned())?;
    let reply = strangers.join(request, connection.remote_address(), binding).await;
    let encoded = codec::encode(&reply)
        .or_else(|error| codec::encode(&JoinReply::Refused(JoinRefusal::later(crate::error_chain(&error)))));
    let bytes = encoded.map_err(|error| crate::error_chain(&error))?;
    frames::write_reply(&mut send, Channel::Join, Ok(&bytes))
        .await
        .map_err(|error| crate::error_chain(&error))?;
    let _ = timeout(FAREWELL_TIMEOUT, send.stopped()).await;
    match reply {
        JoinReply::Joined(_) => Ok(()),
        JoinReply::Refused(refusal) => Err(refusal.message),
    }
}
