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

/// Streams of either kind that a peer may have open on one connection; also the bound
/// of its requests in service.
pub const STREAMS_MAX: u32 = 256;

/// Settings of every connection.
pub fn transport_config() -> Arc<TransportConfig> {
    let mut config = TransportConfig::default();
    let idle = IdleTimeout::try_from(IDLE_TIMEOUT).expect("a few seconds fit into a QUIC integer");
    config
        .max_idle_timeout(Some(idle))
        .keep_alive_interval(Some(KEEP_ALIVE))
        .initial_rtt(INITIAL_RTT)
        .max_concurrent_bidi_streams(VarInt::from_u32(STREAMS_MAX))
        .max_concurrent_uni_streams(VarInt::from_u32(STREAMS_MAX))
        .datagram_receive_buffer_size(None);
    Arc::new(config)
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
    let mut config = rustls::ClientConfig::builder_with_provider(provider())
        .with_protocol_versions(&[&rustls::version::TLS13])
        .map_err(TlsError::Config)?
        .with_root_certificates(identity.roots().clone())
        .with_client_auth_cert(identity.chain().to_vec(), identity.key())
        .map_err(TlsError::Config)?;
    config.alpn_protocols = vec![ALPN.to_vec()];
    config.resumption = Resumption::disabled();
    Ok(config)
}

/// [`server_config`] and [`transport_config`] for a quinn endpoint.
pub fn quic_server_config(identity: &Identity) -> Result<ServerConfig, TlsError> {
    let crypto = QuicServerConfig::try_from(server_config(identity)?)
        .map_err(|error| TlsError::Config(rustls::Error::General(error.to_string())))?;
    let mut config = ServerConfig::with_crypto(Arc::new(crypto));
    // Hosts keep their addresses; a connection that wanders is nobody's.
    config.transport_config(transport_config()).migration(false);
    Ok(config)
}

/// [`client_config`] and [`transport_config`] for a quinn endpoint.
pub fn quic_client_config(identity: &Identity) -> Result<ClientConfig, TlsError> {
    let crypto = QuicClientConfig::try_from(client_config(identity)?)
        .map_err(|error| TlsError::Config(rustls::Error::General(error.to_string())))?;
    let mut config = ClientConfig::new(Arc::new(crypto));
    config.transport_config(transport_config());
    Ok(config)
}
