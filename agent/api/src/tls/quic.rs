//! rustls and quinn configured the same way on every side.

use std::sync::Arc;
use std::time::Duration;

use quinn::crypto::rustls::{QuicClientConfig, QuicServerConfig};
use quinn::{ClientConfig, IdleTimeout, ServerConfig, TransportConfig, VarInt};
use rustls::client::Resumption;
use rustls::server::{NoServerSessionStorage, WebPkiClientVerifier};

use super::identity::provider;
use super::{Identity, TlsError};

/// The application protocol; another one is not a redmesh.
pub const ALPN: &[u8] = b"redmesh/1";

/// A peer that was silent for so long is gone.
pub const IDLE_TIMEOUT: Duration = Duration::from_secs(5);

/// How often a connection without traffic proves that it lives.
pub const KEEP_ALIVE: Duration = Duration::from_secs(1);

/// Round trip assumed before the first measurement: QUIC's own 333 ms (RFC 9002) makes
/// the first lost packet on a local network cost a second.
pub const INITIAL_RTT: Duration = Duration::from_millis(20);

/// Streams of either kind that an agent may have open on one connection to another; also
/// the bound of its requests in service.
pub const STREAMS_MAX: u32 = 256;

/// Requests that whoever has dialled may have open before it is known for an agent;
/// operators never get more.
pub const STRANGER_STREAMS_MAX: u32 = 32;

/// Gossip streams likewise: one, to say on it that there is no gossip for strangers.
pub const STRANGER_UNI_STREAMS_MAX: u32 = 1;

/// Bytes that arrive on one stream and are not read yet.
pub const STREAM_WINDOW_BYTES: u32 = 1024 * 1024;

/// Bytes that arrive on one connection and are not read yet: two of the largest frames.
pub const WINDOW_BYTES: u32 = 16 * 1024 * 1024;

/// The same before the peer is known for an agent: several of an operator's largest requests.
pub const STRANGER_WINDOW_BYTES: u32 = 256 * 1024;

/// Bytes that were sent on one connection and not received yet; further ones stay with
/// their senders, who have deadlines.
pub const SEND_WINDOW_BYTES: u64 = 4 * 1024 * 1024;

/// Bytes of a handshake out of order (a chain of certificates has a few KB).
pub const CRYPTO_BUFFER_BYTES: usize = 16 * 1024;

/// First datagrams of connections that nobody has accepted or turned away yet.
pub const INCOMING_MAX: usize = 256;

/// Early datagrams kept of one such connection, bytes.
pub const INCOMING_BUFFER_BYTES: u64 = 16 * 1024;

/// Early datagrams kept of all such connections, bytes.
pub const INCOMING_BUFFER_TOTAL_BYTES: u64 = 1024 * 1024;

/// What the two ends of a connection have in common.
pub(super) fn common() -> TransportConfig {
    let mut config = TransportConfig::default();
    let idle = IdleTimeout::try_from(IDLE_TIMEOUT).expect("a few seconds fit into a QUIC integer");
    config
        .max_idle_timeout(Some(idle))
        .keep_alive_interval(Some(KEEP_ALIVE))
        .initial_rtt(INITIAL_RTT)
        .stream_receive_window(VarInt::from_u32(STREAM_WINDOW_BYTES))
        .send_window(SEND_WINDOW_BYTES)
        .crypto_buffer_size(CRYPTO_BUFFER_BYTES)
        .datagram_receive_buffer_size(None);
    config
}

/// Of the side that is dialled: by a stranger, until [`trust_agent`].
fn server_transport() -> Arc<TransportConfig> {
    let mut config = common();
    config
        .max_concurrent_bidi_streams(VarInt::from_u32(STRANGER_STREAMS_MAX))
        .max_concurrent_uni_streams(VarInt::from_u32(STRANGER_UNI_STREAMS_MAX))
        .receive_window(VarInt::from_u32(STRANGER_WINDOW_BYTES));
    Arc::new(config)
}

/// Of the side that dials: it is only answered.
fn client_transport() -> Arc<TransportConfig> {
    let mut config = common();
    config
        .max_concurrent_bidi_streams(VarInt::from_u32(0))
        .max_concurrent_uni_streams(VarInt::from_u32(0))
        .receive_window(VarInt::from_u32(WINDOW_BYTES));
    Arc::new(config)
}

/// Gives a peer that has dialled and proven to be an agent an agent's limits.
pub fn trust_agent(connection: &quinn::Connection) {
    connection.set_max_concurrent_bi_streams(VarInt::from_u32(STREAMS_MAX));
    connection.set_max_concurrent_uni_streams(VarInt::from_u32(STREAMS_MAX));
    connection.set_receive_window(VarInt::from_u32(WINDOW_BYTES));
}

/// TLS of the side that is dialled: every client must present a certificate of the same CA.
pub fn server_config(identity: &Identity) -> Result<rustls::ServerConfig, TlsError> {
    let verifier = WebPkiClientVerifier::builder_with_provider(identity.roots().clone(), provider())
        .build()
        .map_err(|error| TlsError::Config(rustls::Error::General(error.to_string())))?;
    let mut config = rustls::ServerConfig::builder_with_provider(provider())
        .with_protocol_versions(&[&rustls::version::TLS13])
        .map_err(TlsError::Config)?
        .with_client_cert_verifier(verifier)
        .with_single_cert(identity.chain().to_vec(), identity.key())
        .map_err(TlsError::Config)?;
    config.alpn_protocols = vec![ALPN.to_vec()];
    config.session_storage = Arc::new(NoServerSessionStorage {});
    config.send_tls13_tickets = 0;
    Ok(config)
}

/// TLS of the side that dials.
pub fn client_config(identity: &Identity) -> Result<rustls::ClientConfig, TlsError> {
    let mut config = redis_client_config(identity)?;
    config.alpn_protocols = vec![ALPN.to_vec()];
    Ok(config)
}

/// TLS to a redis-server: the same CA, this side's certificate beside a password, no
/// application protocol, for Redis knows none.
pub fn redis_client_config(identity: &Identity) -> Result<rustls::ClientConfig, TlsError> {
    let mut config = rustls::ClientConfig::builder_with_provider(provider())
        .with_protocol_versions(&[&rustls::version::TLS13])
        .map_err(TlsError::Config)?
        .with_root_certificates(identity.roots().clone())
        .with_client_auth_cert(identity.chain().to_vec(), identity.key())
        .map_err(TlsError::Config)?;
    config.resumption = Resumption::disabled();
    Ok(config)
}

/// [`server_config`] for a quinn endpoint, with the limits of whoever dials it.
pub fn quic_server_config(identity: &Identity) -> Result<ServerConfig, TlsError> {
    let crypto = QuicServerConfig::try_from(server_config(identity)?)
        .map_err(|error| TlsError::Config(rustls::Error::General(error.to_string())))?;
    let mut config = ServerConfig::with_crypto(Arc::new(crypto));
    // Hosts keep their addresses; a connection that wanders is nobody's.
    config.transport_config(server_transport()).migration(false);
    bound_incoming(&mut config);
    Ok(config)
}

/// What is kept of connections that nobody has accepted yet.
pub(super) fn bound_incoming(config: &mut ServerConfig) {
    config
        .max_incoming(INCOMING_MAX)
        .incoming_buffer_size(INCOMING_BUFFER_BYTES)
        .incoming_buffer_size_total(INCOMING_BUFFER_TOTAL_BYTES);
}

/// [`client_config`] for a quinn endpoint.
pub fn quic_client_config(identity: &Identity) -> Result<ClientConfig, TlsError> {
    let crypto = QuicClientConfig::try_from(client_config(identity)?)
        .map_err(|error| TlsError::Config(rustls::Error::General(error.to_string())))?;
    let mut config = ClientConfig::new(Arc::new(crypto));
    config.transport_config(client_transport());
    Ok(config)
}
