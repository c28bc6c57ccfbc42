//! One agent's control service, over QUIC with an operator's certificate.
//!
//! The connection is made when it is first needed and again when it was lost in between.
//! A request whose fate is open is repeated only where repeating does no harm: beginning
//! a run twice would write twice, and a share given twice is two.

#[cfg(test)]
mod tests;

use std::io::ErrorKind;
use std::net::SocketAddr;
use std::time::Duration;

use quinn::{Connection, ConnectionError, Endpoint, VarInt};
use redmesh_api::codec::{self, Channel, CodecError};
use redmesh_api::control::{ControlReply, ControlRequest, Refusal, RefusalKind};
use redmesh_api::frames::{self, CLOSE_DONE, FrameError};
use redmesh_api::tls::{self, Identity, Role, TlsError};
use tokio::net::UdpSocket;
use tokio::sync::Mutex;
use tokio::time::{Instant, timeout_at};

/// Times that one request is tried, each on a connection of its own.
const ATTEMPTS_MAX: usize = 2;

/// Before an agent is dialled again that had no room for another connection.
const TURNED_AWAY_PAUSE: Duration = Duration::from_millis(100);

/// For an agent to hear that we are done.
const GOODBYE_TIMEOUT: Duration = Duration::from_millis(200);

/// Why a request brought no answer.
#[derive(Debug, thiserror::Error)]
pub enum ClientError {
    /// Nobody there.
    #[error(
        "can't reach the agent at {agent}: {reason}. Is it running there (`systemctl status redmesh-agent` on that \
         host), and is this its mesh address (`--agent HOST_IP:PORT`)?"
    )]
    Unreachable {
        /// Whom.
        agent: SocketAddr,
        /// Why, in words.
        reason: String,
    },
    /// A certificate was refused, here or there.
    #[error("no trust between this side and the agent at {agent}: {reason}")]
    Untrusted {
        /// Whom.
        agent: SocketAddr,
        /// Why, in words, with the remedy where one is known.
        reason: String,
    },
    /// The mesh says no.
    #[error("{0}")]
    Refused(Refusal),
    /// The agent could not make sense of the request, or may not answer it.
    #[error("the agent at {agent} turned the request down: {reason}")]
    TurnedDown {
        /// Whom.
        agent: SocketAddr,
        /// Why, in its words.
        reason: String,
    },
    /// Connected, and no answer.
    #[error("no answer from the agent at {agent} within {} ms: it may still be at it, or be overloaded", .after.as_millis())]
    Timeout {
        /// Whose.
        agent: SocketAddr,
        /// The deadline.
        after: Duration,
    },
    /// The connection ended before the answer.
    #[error("the connection to the agent at {agent} was lost: {reason}")]
    Lost {
        /// With whom.
        agent: SocketAddr,
        /// Why, in words.
        reason: String,
    },
    /// Bytes that can't be sent or understood.
    #[error("with the agent at {agent}")]
    Codec {
        /// With whom.
        agent: SocketAddr,
        /// What is wrong.
        #[source]
        source: CodecError,
    },
    /// The identity can't be used.
    #[error("TLS can't be set up")]
    Tls(#[from] TlsError),
    /// No socket for ourselves.
    #[error("can't open a UDP socket")]
    Socket(#[source] std::io::Error),
}

/// A client of one agent. Requests may run at once.
#[derive(Debug)]
pub struct Client {
    agent: SocketAddr,
    deadline: Duration,
    endpoint: Endpoint,
    connection: Mutex<Option<Connection>>,
}

impl Client {
    /// Connects to `agent`. `deadline` bounds this and each request.
    pub async fn connect(
        agent: SocketAddr,
        identity: &Identity,
        deadline: Duration,
    ) -> Result<Self, ClientError> {
        let any: SocketAddr = if agent.is_ipv4() { ([0, 0, 0, 0], 0).into() } else { ([0u16; 8], 0).into() };
        let mut endpoint = Endpoint::client(any).map_err(ClientError::Socket)?;
        endpoint.set_default_client_config(tls::quic_client_config(identity)?);
        let client = Self { agent, deadline, endpoint, connection: Mutex::new(None) };
        client.connection(Instant::now() + deadline, deadline).await?;
        Ok(client)
    }

    /// One request, within the deadline given to [`Client::connect`]. A
    /// [`ControlReply::Refused`] comes back as [`ClientError::Refused`].
    pub async fn request(&self, request: &ControlRequest) -> Result<ControlReply, ClientError> {
        self.request_within(request, self.deadline).await
    }

    /// The same within another deadline.
    pub async fn request_within(
        &self,
        request: &ControlRequest,
        deadline: Duration,
    ) -> Result<ControlReply, ClientError> {
        let payload = codec::encode(request).map_err(|source| self.codec(source))?;
        let until = Instant::now() + deadline;
        let mut tries = 0;
        loop {
            tries += 1;
            let connection = self.connection(until, deadline).await?;
            let attempt = timeout_at(until, self.attempt(&connection, &payload)).await;
            let reply = attempt.map_err(|_| ClientError::Timeout { agent: self.agent, after: deadline })?;
            match reply {
                Err(Failure { error: ClientError::Lost { .. }, sent })
                    if tries < ATTEMPTS_MAX && (!sent || request.repeatable()) => {}
                Err(Failure { error, .. }) => return Err(error),
                Ok(ControlReply::Refused(refusal)) => return Err(ClientError::Refused(refusal)),
                Ok(reply) => return Ok(reply),
            }
        }
    }

    /// Says goodbye. Optional: the agent forgets a silent client by itself.
    pub async fn close(&self) {
        self.endpoint.close(VarInt::from_u32(CLOSE_DONE), b"done");
        let _ = tokio::time::timeout(GOODBYE_TIMEOUT, self.endpoint.wait_idle()).await;
    }

    async fn attempt(&self, connection: &Connection, payload: &[u8]) -> Result<ControlReply, Failure> {
        let streams = match connection.open_bi().await {
            Ok(streams) => streams,
            Err(error) => return Err(Failure { error: self.ended(&error), sent: false }),
        };
        let failed = |error| Failure { error, sent: true };
        let reply = match frames::exchange(streams, Channel::Control, payload).await {
            Ok(Ok(reply)) => reply,
            Ok(Err(reason)) => return Err(failed(ClientError::TurnedDown { agent: self.agent, reason })),
            Err(FrameError::Codec(source)) => return Err(failed(self.codec(source))),
            Err(FrameError::Connection(error)) => return Err(failed(self.ended(&error))),
            Err(error) => {
                return Err(failed(ClientError::Lost { agent: self.agent, reason: error.to_string() }));
            }
        };
        codec::decode(&reply).map_err(|source| failed(self.codec(source)))
    }

    /// The live connection, or a new one.
    async fn connection(&self, until: Instant, deadline: Duration) -> Result<Connection, ClientError> {
        // Another request may be connecting already.
        let mut current = timeout_at(until, self.connection.lock())
            .await
            .map_err(|_| ClientError::Timeout { agent: self.agent, after: deadline })?;
        if let Some(connection) = current.as_ref().filter(|c| c.close_reason().is_none()) {
            return Ok(connection.clone());
        }
        let unreachable = |reason: String| ClientError::Unreachable { agent: self.agent, reason };
        let connecting = async {
            loop {
                // Hosts' certificates name their addresses.
                let dialled = self.endpoint.connect(self.agent, &self.agent.ip().to_string());
                match dialled.map_err(|error| unreachable(error.to_string()))?.await {
                    Err(error) if tls::turned_away(&error) && Instant::now() + TURNED_AWAY_PAUSE < until => {
                        tokio::time::sleep(TURNED_AWAY_PAUSE).await;
                    }
                    connected => return Ok::<_, ClientError>(connected),
                }
            }
        };
        let connected = tokio::select! {
            connected = timeout_at(until, connecting) => connected,
            () = nobody_listens(self.agent) => return Err(unreachable("nothing listens there".into())),
        };
        let connection = connected
            .map_err(|_| unreachable(format!("no answer within {} ms", deadline.as_millis())))??
            .map_err(|error| match self.ended(&error) {
                ClientError::Lost { reason, .. } => unreachable(reason),
                error => error,
            })?;
        match tls::peer_of(&tls::chain_of(&connection)?)? {
            (Role::Host, _) => {}
            (role, name) => {
                let reason = format!("it presents the certificate of {role} {name}, not a host's");
                return Err(ClientError::Untrusted { agent: self.agent, reason });
            }
        }
        *current = Some(connection.clone());
        Ok(connection)
    }

    fn ended(&self, error: &ConnectionError) -> ClientError {
        let agent = self.agent;
        let reason = tls::explain(error).unwrap_or_else(|| error.to_string());
        if tls::is_busy(error) {
            ClientError::Refused(Refusal { kind: RefusalKind::Busy, message: reason })
        } else if tls::is_refusal(error) {
            ClientError::Untrusted { agent, reason }
        } else {
            ClientError::Lost { agent, reason }
        }
    }

    fn codec(&self, source: CodecError) -> ClientError {
        ClientError::Codec { agent: self.agent, source }
    }
}

struct Failure {
    error: ClientError,
    /// Whether the agent may have acted upon it.
    sent: bool,
}

/// Returns once the other machine says (by ICMP) that no socket is bound there, which
/// QUIC does not heed; never returns otherwise. Without it, a mistyped port would show
/// only when the deadline ends.
async fn nobody_listens(agent: SocketAddr) {
    let any: SocketAddr = if agent.is_ipv4() { ([0, 0, 0, 0], 0).into() } else { ([0u16; 8], 0).into() };
    let probe = async {
        let socket = UdpSocket::bind(any).await?;
        socket.connect(agent).await?;
        // An agent drops a datagram that is no QUIC packet.
        socket.send(&[0]).await?;
        socket.recv(&mut [0; 1]).await
    };
    match probe.await {
        Err(error) if error.kind() == ErrorKind::ConnectionRefused => {}
        _ => std::future::pending().await,
    }
}
