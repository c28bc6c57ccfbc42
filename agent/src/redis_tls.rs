//! TLS to redis-servers, the agent's side: `redis.tls = "on"`.
//!
//! One value for all that talk to servers: probes, admin connections, load threads. Whoever
//! has it dials nobody without TLS. A server's certificate must lead to the mesh's CA and
//! name the IP address that was dialled; the agent presents its own. A renewed identity
//! counts for connections made from then on.

use std::fmt;
use std::io;
use std::net::{IpAddr, SocketAddr};
use std::sync::Arc;

use redmesh_api::tls::{Identity, TlsError, redis_client_config};
use rustls::pki_types::ServerName;
use rustls::{AlertDescription, ClientConfig, ClientConnection};
use tokio::net::TcpStream;
use tokio::sync::watch;
use tokio_rustls::TlsConnector;
use tokio_rustls::client::TlsStream;

/// An identity that can't serve redis-servers.
#[derive(Debug, thiserror::Error)]
pub enum RedisTlsError {
    /// rustls refuses it.
    #[error("TLS to the redis-servers can't be set up")]
    Config(#[source] TlsError),
    /// Peers and clients would refuse the servers.
    #[error(
        "redis.tls is \"on\", but this host's certificate does not name redis.ip {ip}, at which others dial its \
         servers: issue it with `redmeshctl pki issue … --ip {ip}` as well"
    )]
    Address {
        /// `redis.ip`.
        ip: IpAddr,
    },
}

/// Makes TLS connections to redis-servers. Clones see the same identity.
#[derive(Clone)]
pub struct RedisTls {
    ip: IpAddr,
    config: Arc<watch::Sender<Arc<ClientConfig>>>,
}

impl fmt::Debug for RedisTls {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("RedisTls").finish_non_exhaustive()
    }
}

impl RedisTls {
    /// With `identity`, whose certificate this host's servers at `ip` present as well.
    ///
    /// # Errors
    /// The certificate does not name `ip`.
    pub fn new(identity: &Identity, ip: IpAddr) -> Result<Self, RedisTlsError> {
        let config = config(identity, ip)?;
        Ok(Self { ip, config: Arc::new(watch::Sender::new(config)) })
    }

    /// What [`RedisTls::adopt`] takes to use `identity`.
    ///
    /// # Errors
    /// As of [`RedisTls::new`].
    pub fn prepare(&self, identity: &Identity) -> Result<Arc<ClientConfig>, RedisTlsError> {
        config(identity, self.ip)
    }

    /// Uses what was prepared from now on.
    pub fn adopt(&self, prepared: Arc<ClientConfig>) {
        self.config.send_replace(prepared);
    }

    /// Changes whenever another identity is used.
    pub fn changes(&self) -> watch::Receiver<Arc<ClientConfig>> {
        self.config.subscribe()
    }

    /// A connection to `addr` whose handshake is done.
    ///
    /// # Errors
    /// What the network or the handshake says.
    pub async fn connect(&self, addr: SocketAddr) -> io::Result<TlsStream<TcpStream>> {
        let stream = TcpStream::connect(addr).await?;
        stream.set_nodelay(true)?;
        let connector = TlsConnector::from(self.config.borrow().clone());
        connector.connect(name(addr), stream).await
    }

    /// The state of a connection to `addr` that the caller carries bytes for.
    ///
    /// # Errors
    /// rustls can't begin one.
    pub fn session(&self, addr: SocketAddr) -> Result<ClientConnection, rustls::Error> {
        ClientConnection::new(self.config.borrow().clone(), name(addr))
    }
}

/// Whether `error` is a server's word that it does not take this side's certificate. With
/// TLS 1.3 it comes after this side has taken its handshake for done; a server that says it
/// has read no command.
pub fn is_refusal(error: &io::Error) -> bool {
    use AlertDescription as Alert;
    let inner = error.get_ref().and_then(|inner| inner.downcast_ref::<rustls::Error>());
    matches!(
        inner,
        Some(rustls::Error::AlertReceived(
            Alert::BadCertificate
                | Alert::UnsupportedCertificate
                | Alert::CertificateRevoked
                | Alert::CertificateExpired
                | Alert::CertificateUnknown
                | Alert::CertificateRequired
                | Alert::UnknownCA
                | Alert::AccessDenied
        ))
    )
}

fn config(identity: &Identity, ip: IpAddr) -> Result<Arc<ClientConfig>, RedisTlsError> {
    if !identity.names_ip(ip) {
        return Err(RedisTlsError::Address { ip });
    }
    redis_client_config(identity).map(Arc::new).map_err(RedisTlsError::Config)
}

fn name(addr: SocketAddr) -> ServerName<'static> {
    ServerName::IpAddress(addr.ip().into())
}
