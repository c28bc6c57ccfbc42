//! A host that joined by token renews its certificate by itself, before it expires.
//!
//! From the last third of its life on, hosts with a signer are asked one after another over
//! the mesh's own connections, which prove the present certificate; the key of the next one
//! is made here. Key and certificate change together or not at all: both are written into a
//! directory of their own, whose name is the commit, and [`finish`] moves them from there,
//! again after a crash. That the files have changed is noticed and taken up by
//! [`crate::renewal`]. A certificate that was issued with the CA's key is left alone.

use std::fs::{self, DirBuilder, File};
use std::io::{self, ErrorKind};
use std::os::unix::fs::DirBuilderExt;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use rcgen::{CertificateParams, KeyPair};
use redmesh_api::tls::{self, Identity};
use rustls::client::WebPkiServerVerifier;
use rustls::client::danger::ServerCertVerifier as _;
use rustls::pki_types::{ServerName, UnixTime};
use tokio::time::Instant;
use tokio_util::sync::CancellationToken;
use tracing::{info, warn};

use crate::census::Census;
use crate::clock::now_unix_ms;
use crate::files;
use crate::peer::{self, PeerReply, PeerRequest};
use crate::transport::quic::QuicTransport;

/// Between two looks at the certificate.
pub const LOOK_INTERVAL: Duration = Duration::from_secs(60);

/// Renewed when less than this part of its life is left: one in so many.
pub const LIFE_PART: u64 = 3;

/// First pause after a try that failed; each further one is twice as long, up to the longest.
const RETRY_FIRST: Duration = Duration::from_secs(2);

/// See [`RETRY_FIRST`].
const RETRY_LONGEST: Duration = Duration::from_secs(600);

/// Tries that may fail before anybody is told: at its start an agent knows nobody yet.
const QUIET_TRIES: u32 = 3;

/// Between two warnings that say the same.
const WARN_INTERVAL: Duration = Duration::from_secs(6 * 3600);

/// For a host to sign.
const ANSWER_DEADLINE: Duration = Duration::from_secs(10);

/// For a renewed certificate to be taken up.
const TAKE_UP_MAX: Duration = Duration::from_secs(60);

/// Between two looks whether it has been.
const TAKE_UP_LOOK: Duration = Duration::from_millis(500);

/// Where key and certificate lie together until they are in their places.
const RENEWED_DIR: &str = "renewed";

/// The same while it is being written.
const UNFINISHED_DIR: &str = "renewed.new";

/// Mode of what everybody may read.
const PUBLIC: u32 = 0o644;

/// Why there is no renewed certificate yet.
#[derive(Debug, thiserror::Error)]
pub enum RenewError {
    /// Nobody who is alive can sign.
    #[error(
        "no host with a signer is alive: make one (`redmeshctl pki signer --host NAME`), or renew this host's \
         certificate with `redmeshctl pki issue … --renew`"
    )]
    NoSigner,
    /// All were asked in vain.
    #[error("asked {asked} hosts with a signer, the last one: {last}")]
    Refused {
        /// How many.
        asked: usize,
        /// What the last one said.
        last: String,
    },
    /// No key, or no request for it, can be made.
    #[error("can't make a key")]
    Key(#[source] rcgen::Error),
    /// A file can't be written.
    #[error("can't write below {}: the agent's user must own the directory, and it must not be read-only (identity.dir)", .dir.display())]
    Write {
        /// The identity's directory.
        dir: PathBuf,
        /// Why.
        #[source]
        source: io::Error,
    },
    /// The files are there, and are not in use.
    #[error("the renewed certificate was written and not taken up within {} s", TAKE_UP_MAX.as_secs())]
    NotTakenUp,
}

/// How renewals went, for metrics; all only grow.
#[derive(Debug, Clone, Default)]
pub struct RenewalCounts {
    /// Certificates of this host that were renewed.
    pub renewed: Arc<AtomicU64>,
    /// Tries that failed.
    pub failed: Arc<AtomicU64>,
    /// Certificates that were signed here for hosts that renew.
    pub signed: Arc<AtomicU64>,
}

/// Whether a certificate is to be renewed now: by a signer's, and in the last third of its life.
fn is_due(identity: &Identity, now_unix_ms: u64) -> bool {
    let chain = identity.chain();
    let until_ms = tls::valid_until_unix_ms(chain);
    let life_ms = until_ms.saturating_sub(tls::issued_unix_ms(chain));
    tls::by_signer(chain, identity.roots()) && until_ms.saturating_sub(now_unix_ms) < life_ms / LIFE_PART
}

/// What renews this host's certificate.
pub struct Renewing {
    /// Who can sign.
    pub census: Census,
    /// Carries the requests, and says what is in use.
    pub transport: Arc<QuicTransport>,
    /// Where key and certificate are.
    pub identity_dir: PathBuf,
    /// Counted here.
    pub counts: RenewalCounts,
}

impl std::fmt::Debug for Renewing {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Renewing").field("identity_dir", &self.identity_dir).finish_non_exhaustive()
    }
}

impl Renewing {
    /// Renews whenever it is due, until cancelled.
    pub async fn run(self, cancel: CancellationToken) {
        let mut failures = 0_u32;
        let mut warned: Option<(String, Instant)> = None;
        loop {
            let mut pause = LOOK_INTERVAL;
            if is_due(&self.transport.identity(), now_unix_ms()) {
                let tried = tokio::select! {
                    tried = self.renew() => tried,
                    () = cancel.cancelled() => return,
                };
                match tried {
                    Ok(by) => {
                        (failures, warned) = (0, None);
                        self.counts.renewed.fetch_add(1, Ordering::Relaxed);
                        let until_unix_s = self.transport.certificate_valid_until_unix_s();
                        info!(by, until_unix_s, "this host's certificate was renewed");
                    }
                    Err(error) => {
                        self.counts.failed.fetch_add(1, Ordering::Relaxed);
                        failures = failures.saturating_add(1);
                        pause = RETRY_FIRST.saturating_mul(1 << (failures - 1).min(16)).min(RETRY_LONGEST);
                        let words = crate::error_chain(&error);
                        let known = warned
                            .as_ref()
                            .is_some_and(|(said, at)| *said == words && at.elapsed() < WARN_INTERVAL);
                        if failures > QUIET_TRIES && !known {
                            warn!(error = words, "this host's certificate is not renewed yet, tried again");
                            warned = Some((words, Instant::now()));
                        }
                    }
                }
            }
            tokio::select! {
                () = tokio::time::sleep(pause) => {}
                () = cancel.cancelled() => return,
            }
        }
    }

    /// Asks, writes, and waits until it is in use; who has signed.
    async fn renew(&self) -> Result<String, RenewError> {
        let key = KeyPair::generate().map_err(RenewError::Key)?;
        let csr = CertificateParams::default().serialize_request(&key).map_err(RenewError::Key)?;
        let (by, chain) = self.ask(csr.der().to_vec()).await?;
        let (dir, key) = (self.identity_dir.clone(), key.serialize_pem());
        let before = self.transport.identity();
        let advertise = peer_addr(&*self.transport);
        let kept = tokio::task::spawn_blocking(move || keep(&dir, &key, &chain, &before, advertise)).await;
        let kept = kept.unwrap_or_else(|error| Err(Unkept::Useless(error.to_string())));
        kept.map_err(|error| match error {
            Unkept::Useless(reason) => {
                RenewError::Refused { asked: 1, last: format!("what {by} sent can't be used: {reason}") }
            }
            Unkept::Write(source) => RenewError::Write { dir: self.identity_dir.clone(), source },
        })?;
        let until = Instant::now() + TAKE_UP_MAX;
        while is_due(&self.transport.identity(), now_unix_ms()) {
            if Instant::now() >= until {
                return Err(RenewError::NotTakenUp);
            }
            tokio::time::sleep(TAKE_UP_LOOK).await;
        }
        Ok(by)
    }

    /// The first answer of a host that can sign: its name, and the chain.
    async fn ask(&self, csr: Vec<u8>) -> Result<(String, String), RenewError> {
        let hosts = self.census.hosts();
        let signs = |host: &&crate::census::CensusHost| {
            host.alive && host.facts.as_ref().is_some_and(|facts| facts.signs)
        };
        let signers: Vec<_> = hosts.values().filter(signs).collect();
        if signers.is_empty() {
            return Err(RenewError::NoSigner);
        }
        // Hosts begin with different ones.
        let first = self.census.host.0 as usize % signers.len();
        let mut last = String::new();
        for host in signers.iter().cycle().skip(first).take(signers.len()) {
            let request = PeerRequest::Renew { csr: csr.clone() };
            last = match peer::ask(&*self.transport, host.addr, &request, ANSWER_DEADLINE).await {
                Ok(PeerReply::Renewed(Ok(chain))) => return Ok((host.name(), chain)),
                Ok(PeerReply::Renewed(Err(refusal))) => format!("{}: {refusal}", host.name()),
                Ok(_) => format!("{} gave an answer of another kind", host.name()),
                Err(error) => format!("{}: {}", host.name(), crate::error_chain(&error)),
            };
        }
        Err(RenewError::Refused { asked: signers.len(), last })
    }
}

fn peer_addr(transport: &dyn crate::transport::Transport) -> std::net::IpAddr {
    transport.advertise_addr().ip()
}

/// Why nothing was kept.
#[derive(Debug)]
enum Unkept {
    Useless(String),
    Write(io::Error),
}

impl From<io::Error> for Unkept {
    fn from(error: io::Error) -> Self {
        Self::Write(error)
    }
}

/// Puts key and chain in the places of the present ones, once they are known to be good:
/// of the same host, under the same CA, and for longer than `before`.
fn keep(
    dir: &Path,
    key: &str,
    chain: &str,
    before: &Identity,
    advertise: std::net::IpAddr,
) -> Result<(), Unkept> {
    finish(dir)?;
    let unfinished = dir.join(UNFINISHED_DIR);
    match fs::remove_dir_all(&unfinished) {
        Err(error) if error.kind() != ErrorKind::NotFound => return Err(error.into()),
        _ => {}
    }
    DirBuilder::new().mode(0o700).create(&unfinished)?;
    let written = || -> Result<(), Unkept> {
        let put = |name: &str, bytes: &[u8], mode| files::replace(&unfinished.join(name), bytes, mode);
        put("key.pem", key.as_bytes(), files::PRIVATE)?;
        put("cert.pem", chain.as_bytes(), PUBLIC)?;
        // Beside them as long as they are tried out.
        put("ca.pem", &fs::read(dir.join("ca.pem"))?, PUBLIC)?;
        check(&unfinished, before, advertise).map_err(Unkept::Useless)?;
        fs::remove_file(unfinished.join("ca.pem"))?;
        File::open(&unfinished)?.sync_all()?;
        fs::rename(&unfinished, dir.join(RENEWED_DIR))?;
        Ok(File::open(dir)?.sync_all()?)
    };
    written().inspect_err(|_| drop(fs::remove_dir_all(&unfinished)))?;
    Ok(finish(dir)?)
}

fn check(dir: &Path, before: &Identity, advertise: std::net::IpAddr) -> Result<(), String> {
    let after = Identity::load(dir).map_err(|error| crate::error_chain(&error))?;
    if after.role() != before.role() || after.name() != before.name() || !after.names_ip(advertise) {
        return Err(format!("its certificate is {}'s, or for another address", after.name()));
    }
    if after.valid_until_unix_s() <= before.valid_until_unix_s() {
        return Err("its certificate ends no later than the present one".to_owned());
    }
    let provider = Arc::new(rustls::crypto::ring::default_provider());
    let verifier = WebPkiServerVerifier::builder_with_provider(after.roots().clone(), provider)
        .build()
        .map_err(|error| error.to_string())?;
    let (leaf, others) = after.chain().split_first().ok_or("there is no certificate")?;
    let name = ServerName::IpAddress(advertise.into());
    verifier
        .verify_server_cert(leaf, others, &name, &[], UnixTime::now())
        .map_err(|error| format!("its certificate is not one of this mesh's CA: {error}"))?;
    Ok(())
}

/// Completes a renewal that was cut off after its commit; does nothing where there is none.
///
/// # Errors
/// The file system's; it may be tried again.
pub fn finish(dir: &Path) -> io::Result<()> {
    let renewed = dir.join(RENEWED_DIR);
    if !renewed.try_exists()? {
        return Ok(());
    }
    // Moved, not copied: so they stay their owner's, whoever does it.
    for name in ["key.pem", "cert.pem"] {
        match fs::rename(renewed.join(name), dir.join(name)) {
            Err(error) if error.kind() != ErrorKind::NotFound => return Err(error),
            _ => {}
        }
    }
    File::open(dir)?.sync_all()?;
    match fs::remove_dir(&renewed) {
        // Somebody else has completed it at the same time.
        Err(error) if error.kind() == ErrorKind::NotFound => Ok(()),
        removed => removed,
    }
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::PermissionsExt;

    use super::*;

    /// An identity's directory with files of these contents.
    fn dir_with(files: &[(&str, &str)]) -> tempfile::TempDir {
        let dir = tempfile::tempdir().expect("a directory");
        for (name, text) in files {
            let path = dir.path().join(name);
            fs::create_dir_all(path.parent().expect("below the directory")).expect("make directories");
            files::replace(&path, text.as_bytes(), files::PRIVATE).expect("write");
        }
        dir
    }

    #[test]
    fn a_renewal_that_was_cut_off_is_completed_from_any_point_after_its_commit() {
        let old = [("key.pem", "old key"), ("cert.pem", "old cert")];
        let at = [
            vec![("renewed/key.pem", "new key"), ("renewed/cert.pem", "new cert")],
            vec![("key.pem", "new key"), ("renewed/cert.pem", "new cert")],
            vec![("key.pem", "new key"), ("cert.pem", "new cert"), ("renewed/x", "")],
        ];
        for files in at {
            let dir = dir_with(&[&old[..], &files].concat());
            let _ = fs::remove_file(dir.path().join("renewed/x"));
            finish(dir.path()).expect("completes");
            let read = |name: &str| fs::read_to_string(dir.path().join(name)).expect("a file");
            assert_eq!((read("key.pem"), read("cert.pem")), ("new key".to_owned(), "new cert".to_owned()));
            assert!(!dir.path().join(RENEWED_DIR).exists());
            let mode = fs::metadata(dir.path().join("key.pem")).expect("a key").permissions().mode();
            assert_eq!(mode & 0o777, 0o600);
            finish(dir.path()).expect("once more changes nothing");
        }
        // Before the commit nothing of it counts.
        let dir = dir_with(&[&old[..], &[("renewed.new/key.pem", "new key")]].concat());
        finish(dir.path()).expect("nothing to do");
        assert_eq!(fs::read_to_string(dir.path().join("key.pem")).expect("a key"), "old key");
    }
}
