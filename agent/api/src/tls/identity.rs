//! An identity directory: `ca.pem`, `cert.pem` and `key.pem`.

use std::fmt;
use std::fs::File;
use std::io::Read;
use std::net::IpAddr;
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use rustls::RootCertStore;
use rustls::crypto::CryptoProvider;
use rustls::pki_types::pem::PemObject;
use rustls::pki_types::{CertificateDer, PrivateKeyDer};
use rustls::sign::CertifiedKey;

use super::{Role, TlsError, names_ip, peer_of};

/// Largest file of an identity directory that is read, bytes.
const PEM_BYTES_MAX: u64 = 1024 * 1024;

/// Who this side is, and whom it trusts. Cheap to clone.
#[derive(Clone)]
pub struct Identity {
    role: Role,
    name: String,
    certified: Arc<CertifiedKey>,
    key: Arc<PrivateKeyDer<'static>>,
    cas: Arc<Vec<CertificateDer<'static>>>,
    roots: Arc<RootCertStore>,
}

impl fmt::Debug for Identity {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        // Never the key.
        f.debug_struct("Identity").field("role", &self.role).field("name", &self.name).finish_non_exhaustive()
    }
}

impl Identity {
    /// Reads `ca.pem`, `cert.pem` and `key.pem`. The key must be its owner's alone, and
    /// the certificate's. Whether the certificate is still valid is the peers' to judge:
    /// they name the reason.
    pub fn load(dir: &Path) -> Result<Self, TlsError> {
        let (ca_path, cert_path, key_path) = (dir.join("ca.pem"), dir.join("cert.pem"), dir.join("key.pem"));
        let mut roots = RootCertStore::empty();
        let cas = certificates(&ca_path)?;
        for ca in &cas {
            roots
                .add(ca.clone())
                .map_err(|error| TlsError::Unusable { path: ca_path.clone(), reason: error.to_string() })?;
        }
        let chain = certificates(&cert_path)?;
        let (role, name) = peer_of(&chain)?;
        let pem = read(&key_path, true)?;
        let key = PrivateKeyDer::from_pem_slice(&pem).map_err(|source| TlsError::Pem {
            path: key_path.clone(),
            what: "private key",
            source: Some(source),
        })?;
        let signing = provider()
            .key_provider
            .load_private_key(key.clone_key())
            .map_err(|error| TlsError::Unusable { path: key_path.clone(), reason: error.to_string() })?;
        let certified = CertifiedKey::new(chain, signing);
        certified.keys_match().map_err(|_| TlsError::KeyMismatch { cert: cert_path, key: key_path })?;
        let (certified, key) = (Arc::new(certified), Arc::new(key));
        Ok(Self { role, name, certified, key, cas: Arc::new(cas), roots: Arc::new(roots) })
    }

    /// What the certificate entitles to.
    pub fn role(&self) -> Role {
        self.role
    }

    /// The name in the certificate, without the role's suffix.
    pub fn name(&self) -> &str {
        &self.name
    }

    /// The certificate chain, leaf first, DER.
    pub fn chain(&self) -> &[CertificateDer<'static>] {
        &self.certified.cert
    }

    /// Whether the certificate is valid for `ip`: peers dial by address, and refuse
    /// another one's certificate.
    pub fn names_ip(&self, ip: IpAddr) -> bool {
        names_ip(self.chain(), ip)
    }

    /// When the certificate expires, Unix seconds; `None` if it can't be read as X.509.
    pub fn valid_until_unix_s(&self) -> Option<i64> {
        let leaf = self.chain().first()?;
        let (_, cert) = x509_parser::parse_x509_certificate(leaf).ok()?;
        Some(cert.validity().not_after.timestamp())
    }

    /// The CA certificates that peers' chains must lead to.
    pub fn roots(&self) -> &Arc<RootCertStore> {
        &self.roots
    }

    /// The CA certificates themselves, in the order of the file, DER.
    pub fn cas(&self) -> &[CertificateDer<'static>] {
        &self.cas
    }

    /// Whether `other` has the same certificate and trusts the same CAs.
    pub fn same_as(&self, other: &Self) -> bool {
        self.chain() == other.chain() && self.roots.roots == other.roots.roots
    }

    pub(super) fn key(&self) -> PrivateKeyDer<'static> {
        self.key.clone_key()
    }
}

/// ring, by name: never whichever provider some dependency installed for the process.
pub(super) fn provider() -> Arc<CryptoProvider> {
    Arc::new(rustls::crypto::ring::default_provider())
}

fn certificates(path: &Path) -> Result<Vec<CertificateDer<'static>>, TlsError> {
    let bad = |source| TlsError::Pem { path: path.to_owned(), what: "certificate", source };
    let pem = read(path, false)?;
    let chain = CertificateDer::pem_slice_iter(&pem)
        .collect::<Result<Vec<_>, _>>()
        .map_err(|source| bad(Some(source)))?;
    if chain.is_empty() { Err(bad(None)) } else { Ok(chain) }
}

fn read(path: &Path, secret: bool) -> Result<Vec<u8>, TlsError> {
    let failed = |source| TlsError::Read { path: PathBuf::from(path), source };
    // The mode of the very file that is read, not of whatever the name meant before.
    let file = File::open(path).map_err(failed)?;
    let mode = file.metadata().map_err(failed)?.permissions().mode() & 0o7777;
    if secret && mode & 0o077 != 0 {
        return Err(TlsError::KeyMode { path: path.to_owned(), mode });
    }
    let mut bytes = Vec::new();
    file.take(PEM_BYTES_MAX).read_to_end(&mut bytes).map_err(failed)?;
    Ok(bytes)
}
