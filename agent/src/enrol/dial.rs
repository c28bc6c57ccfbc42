//! The joining side: asks one agent after another for a certificate until one gives it.
//!
//! The key is made here and kept on file before anybody is asked, so that a host whose
//! answer was lost asks again with the same one and costs the token one use. `cert.pem` is
//! written last: a directory that has it is a whole identity, and then nobody is asked.

use std::io::ErrorKind;
use std::net::{IpAddr, SocketAddr};
use std::os::unix::fs::DirBuilderExt;
use std::path::{Path, PathBuf};
use std::time::Duration;

use quinn::{Connection, Endpoint, VarInt};
use rcgen::{CertificateParams, KeyPair};
use redmesh_api::codec::{self, Channel};
use redmesh_api::frames::{self, CLOSE_DONE};
use redmesh_api::join::{
    CaPin, EXPORTER_BYTES, EXPORTER_LABEL, JOIN_PORT_DEFAULT, JoinAsk, JoinRefusal, JoinRefusalKind,
    JoinReply, JoinRequest, JoinToken, JoinedIdentity, TokenError,
};
use redmesh_api::secret::{REDIS_SECRET_FILE, RedisSecrets};
use redmesh_api::tls::{self, Identity, NAME_BYTES_MAX, TlsError, valid_name};
use rustls::pki_types::CertificateDer;
use rustls::pki_types::pem::PemObject;
use tokio::time::timeout;
use tracing::{info, warn};

use crate::clock::now_unix_ms;
use crate::config::Config;
use crate::files;

/// For one agent to be reached.
const CONNECT_TIMEOUT: Duration = Duration::from_secs(5);

/// For its answer: it commits to Raft before.
const ANSWER_TIMEOUT: Duration = Duration::from_secs(50);

/// Between two rounds over all agents.
pub const ROUND_PAUSE: Duration = Duration::from_secs(2);

/// For an agent to hear that we are done.
const GOODBYE_TIMEOUT: Duration = Duration::from_millis(200);

/// Mode of what everybody may read.
const PUBLIC: u32 = 0o644;

/// Why a host did not join.
#[derive(Debug, thiserror::Error)]
pub enum JoinError {
    /// The token can't be used.
    #[error("join.token_file")]
    Token(#[from] TokenError),
    /// A setting that is needed isn't there, or can't be.
    #[error("{0}")]
    Setting(String),
    /// The mesh says no.
    #[error("{peer} refused: {refusal}")]
    Refused {
        /// Who.
        peer: String,
        /// Why.
        refusal: JoinRefusal,
    },
    /// Nobody there is under the token's CA.
    #[error("{peer} can't be trusted: {reason} (the token's CA has SHA-256 {pin})")]
    Untrusted {
        /// Who.
        peer: String,
        /// Why.
        reason: String,
        /// What the token says.
        pin: CaPin,
    },
    /// What was given makes no identity.
    #[error("what {peer} sent can't be used: {reason}")]
    Useless {
        /// Who.
        peer: String,
        /// Why.
        reason: String,
    },
    /// The key of an earlier try is there and can't be read.
    #[error("can't read {}: give it to the agent's user, or move it away to ask with a new key", .path.display())]
    Read {
        /// Which.
        path: PathBuf,
        /// Why.
        #[source]
        source: std::io::Error,
    },
    /// A file can't be written.
    #[error("can't write {}: the agent's user must own the directory, and it must not be read-only (identity.dir)", .path.display())]
    Write {
        /// Which.
        path: PathBuf,
        /// Why.
        #[source]
        source: std::io::Error,
    },
    /// The key there can't be used, or none can be made.
    #[error("{} can't be used: take it away, and the host makes another", .path.display())]
    Key {
        /// Which.
        path: PathBuf,
        /// Why.
        #[source]
        source: rcgen::Error,
    },
    /// TLS or a socket can't be had.
    #[error("can't dial")]
    Tls(#[from] TlsError),
    /// No socket.
    #[error("can't open a UDP socket at {addr}")]
    Socket {
        /// Where.
        addr: SocketAddr,
        /// Why.
        #[source]
        source: std::io::Error,
    },
}

/// Why one agent did not give a certificate this time.
enum Attempt {
    /// Nobody will, for the same reason.
    Never(JoinError),
    /// This one won't; another one may.
    NotHere(JoinError),
    /// It may later.
    Later(String),
}

/// A host that is to join.
#[derive(Debug)]
pub struct Joining {
    token: JoinToken,
    name: String,
    ip: IpAddr,
    bind: SocketAddr,
    peers: Vec<String>,
    dir: PathBuf,
}

/// Whether `config` wants this host to join before it does anything else.
pub fn is_due(config: &Config) -> bool {
    config.join.token_file.is_some() && !config.identity_dir.join("cert.pem").exists()
}

impl Joining {
    /// As the configuration says.
    ///
    /// # Errors
    /// [`JoinError::Token`] or [`JoinError::Setting`].
    pub fn of(config: &Config) -> Result<Self, JoinError> {
        let file = config.join.token_file.as_ref();
        let file = file
            .ok_or_else(|| JoinError::Setting("no token: set join.token_file, or --token-file".to_owned()))?;
        let token = JoinToken::load(file)?;
        let name = match &config.join.name {
            Some(name) => name.clone(),
            None => hostname(),
        };
        if !valid_name(&name) {
            return Err(JoinError::Setting(format!(
                "host name {name:?} must be 1 to {NAME_BYTES_MAX} of a-z, 0-9 and -, with no - at either end: set \
                 join.name (or --name)"
            )));
        }
        let mut peers = config.join.peers.clone();
        if peers.is_empty() {
            // The seeds, at the other port.
            let hosts = config.mesh.seeds.iter().filter_map(|seed| seed.rsplit_once(':'));
            peers = hosts.map(|(host, _)| format!("{host}:{JOIN_PORT_DEFAULT}")).collect();
        }
        if peers.is_empty() {
            return Err(JoinError::Setting(
                "nobody to ask: set join.peers (or --peers), or mesh.seeds".to_owned(),
            ));
        }
        let ip = config.mesh.advertise.ip();
        // From the address that the certificate is to be for, where it is one of this machine.
        let bind = SocketAddr::new(config.mesh.listen.ip(), 0);
        Ok(Self { token, name, ip, bind, peers, dir: config.identity_dir.clone() })
    }

    /// What it is about to do, in words.
    pub fn intent(&self) -> String {
        format!(
            "host {} at {} joins by token {} through {}",
            self.name,
            self.ip,
            self.token.id(),
            self.peers.join(", ")
        )
    }

    /// Asks until a certificate is there, or it is certain that there will be none;
    /// `waiting` is told what it waits for.
    ///
    /// # Errors
    /// Any [`JoinError`].
    pub async fn join(&self, mut waiting: impl FnMut(&str)) -> Result<String, JoinError> {
        let key = self.key()?;
        let config = tls::join_client_config(self.token.ca)?;
        let socket = |source| JoinError::Socket { addr: self.bind, source };
        let mut endpoint = Endpoint::client(self.bind).map_err(socket)?;
        endpoint.set_default_client_config(config);
        let joined = self.rounds(&endpoint, &key, &mut waiting).await;
        endpoint.close(VarInt::from_u32(CLOSE_DONE), b"done");
        let _ = timeout(GOODBYE_TIMEOUT, endpoint.wait_idle()).await;
        joined
    }

    async fn rounds(
        &self,
        endpoint: &Endpoint,
        key: &KeyPair,
        waiting: &mut impl FnMut(&str),
    ) -> Result<String, JoinError> {
        loop {
            let (mut refused, mut passing) = (None, None);
            for peer in &self.peers {
                match self.ask(endpoint, peer, key).await {
                    Ok(joined) => {
                        self.keep(peer, &joined)?;
                        info!(name = self.name, ip = %self.ip, peer, "joined by token");
                        return Ok(self.name.clone());
                    }
                    Err(Attempt::Never(error)) => return Err(error),
                    Err(Attempt::NotHere(error)) => refused = Some(error),
                    Err(Attempt::Later(reason)) => passing = Some(format!("{peer}: {reason}")),
                }
            }
            match (passing, refused) {
                (None, Some(error)) => return Err(error),
                (Some(reason), _) => {
                    warn!(reason, "not joined yet: trying again");
                    waiting(&format!("a certificate: {reason}"));
                }
                (None, None) => {}
            }
            tokio::time::sleep(ROUND_PAUSE).await;
        }
    }

    async fn ask(&self, endpoint: &Endpoint, peer: &str, key: &KeyPair) -> Result<JoinedIdentity, Attempt> {
        let later = |reason: String| Attempt::Later(reason);
        let with_port = if peer.rsplit_once(':').is_some_and(|(_, port)| port.parse::<u16>().is_ok()) {
            peer.to_owned()
        } else {
            format!("{peer}:{JOIN_PORT_DEFAULT}")
        };
        let mut addrs =
            tokio::net::lookup_host(&with_port).await.map_err(|error| later(error.to_string()))?;
        let same_kind = |addr: &SocketAddr| addr.is_ipv4() == self.bind.is_ipv4();
        let addr = addrs.find(same_kind).ok_or_else(|| later("the name has no address".to_owned()))?;
        let dialled = endpoint.connect(addr, &addr.ip().to_string());
        let connecting = dialled.map_err(|error| later(error.to_string()))?;
        let connection = match timeout(CONNECT_TIMEOUT, connecting).await {
            Ok(Ok(connection)) => connection,
            Ok(Err(error)) => {
                let reason = tls::explain(&error).unwrap_or_else(|| error.to_string());
                if tls::is_refusal(&error) {
                    let (peer, pin) = (peer.to_owned(), self.token.ca);
                    return Err(Attempt::NotHere(JoinError::Untrusted { peer, reason, pin }));
                }
                return Err(later(reason));
            }
            Err(_) => return Err(later("no answer: does it sign for others, and does UDP pass?".to_owned())),
        };
        let exchange = self.exchange(&connection, key);
        let reply = match timeout(ANSWER_TIMEOUT, exchange).await {
            Ok(reply) => reply.map_err(later)?,
            Err(_) => return Err(later(format!("no answer within {} s", ANSWER_TIMEOUT.as_secs()))),
        };
        match reply {
            JoinReply::Joined(joined) => Ok(joined),
            JoinReply::Refused(refusal) => {
                let (peer, kind, message) = (peer.to_owned(), refusal.kind, refusal.message.clone());
                let error = JoinError::Refused { peer, refusal };
                Err(match kind {
                    JoinRefusalKind::Later => Attempt::Later(message),
                    JoinRefusalKind::Unproven => Attempt::NotHere(error),
                    JoinRefusalKind::Token | JoinRefusalKind::Invalid => Attempt::Never(error),
                })
            }
        }
    }

    async fn exchange(&self, connection: &Connection, key: &KeyPair) -> Result<JoinReply, String> {
        let words = |error: &dyn std::error::Error| crate::error_chain(error);
        let csr = CertificateParams::default().serialize_request(key).map_err(|error| words(&error))?;
        let ask = JoinAsk {
            mesh: self.token.mesh,
            name: self.name.clone(),
            ip: self.ip,
            csr: csr.der().to_vec(),
            unix_ms: now_unix_ms(),
        };
        let ask = codec::encode(&ask).map_err(|error| words(&error))?;
        let mut binding = [0; EXPORTER_BYTES];
        connection
            .export_keying_material(&mut binding, EXPORTER_LABEL, b"")
            .map_err(|_| "TLS exports nothing for the proof".to_owned())?;
        let proof = self.token.prove(&ask, &binding).map_err(|error| words(&error))?;
        let request = codec::encode(&JoinRequest { token: self.token.id(), ask, proof });
        let request = request.map_err(|error| words(&error))?;
        let streams = connection.open_bi().await.map_err(|error| words(&error))?;
        let reply =
            frames::exchange(streams, Channel::Join, &request).await.map_err(|error| words(&error))??;
        codec::decode(&reply).map_err(|error| words(&error))
    }

    /// The key that is there from an earlier try, or a new one that is kept.
    fn key(&self) -> Result<KeyPair, JoinError> {
        let path = self.dir.join("key.pem");
        let failed = |source| JoinError::Key { path: path.clone(), source };
        match std::fs::read_to_string(&path) {
            Ok(pem) => KeyPair::from_pem(&pem).map_err(failed),
            // Another one in its place would make a certificate worthless that was given for it.
            Err(source) if source.kind() != ErrorKind::NotFound => Err(JoinError::Read { path, source }),
            Err(_) => {
                let key = KeyPair::generate().map_err(failed)?;
                let made = std::fs::DirBuilder::new().recursive(true).mode(0o700).create(&self.dir);
                made.map_err(|source| JoinError::Write { path: self.dir.clone(), source })?;
                self.write("key.pem", key.serialize_pem().as_bytes(), files::PRIVATE)?;
                Ok(key)
            }
        }
    }

    /// Puts what was given beside the key, the certificate last.
    fn keep(&self, peer: &str, joined: &JoinedIdentity) -> Result<(), JoinError> {
        let useless = |reason: String| JoinError::Useless { peer: peer.to_owned(), reason };
        let cas = CertificateDer::pem_slice_iter(joined.ca.as_bytes());
        if !cas.flatten().any(|ca| CaPin::of(&ca) == self.token.ca) {
            return Err(useless("the token's CA is not among its CAs".to_owned()));
        }
        self.write("ca.pem", joined.ca.as_bytes(), PUBLIC)?;
        if let Some(text) = &joined.redis_secret {
            let secret =
                RedisSecrets::parse(text).ok_or_else(|| useless("its redis.secret is none".to_owned()))?;
            self.write(REDIS_SECRET_FILE, secret.file_text().as_bytes(), files::PRIVATE)?;
        }
        // Tried as a whole elsewhere first: a certificate that is there must be a good one.
        let trial = self.dir.join("joining");
        let loaded = self.try_out(&trial, joined);
        let _ = std::fs::remove_dir_all(&trial);
        let identity = loaded.map_err(|error| useless(crate::error_chain(&error)))?;
        if identity.name() != self.name || !identity.names_ip(self.ip) {
            return Err(useless(format!("its certificate is {}'s, or for another address", identity.name())));
        }
        self.write("cert.pem", joined.chain.as_bytes(), PUBLIC)
    }

    fn try_out(&self, trial: &Path, joined: &JoinedIdentity) -> Result<Identity, TlsError> {
        let failed = |source| TlsError::Read { path: trial.to_owned(), source };
        let key = std::fs::read(self.dir.join("key.pem")).map_err(failed)?;
        std::fs::DirBuilder::new().recursive(true).mode(0o700).create(trial).map_err(failed)?;
        let put =
            |name: &str, bytes: &[u8], mode| files::replace(&trial.join(name), bytes, mode).map_err(failed);
        put("key.pem", &key, files::PRIVATE)?;
        put("ca.pem", joined.ca.as_bytes(), PUBLIC)?;
        put("cert.pem", joined.chain.as_bytes(), PUBLIC)?;
        Identity::load(trial)
    }

    fn write(&self, name: &str, bytes: &[u8], mode: u32) -> Result<(), JoinError> {
        let path = self.dir.join(name);
        files::replace(&path, bytes, mode).map_err(|source| JoinError::Write { path, source })
    }
}

/// This machine's name, as far as it is a host's.
fn hostname() -> String {
    let uname = rustix::system::uname();
    let name = uname.nodename().to_string_lossy().to_lowercase();
    name.split('.').next().unwrap_or_default().to_owned()
}
