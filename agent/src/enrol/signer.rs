//! The key with which this host signs for others: an intermediate below the mesh's CA.
//!
//! Read anew for each request, so that a renewed one needs no restart. It is never logged,
//! and never leaves this module.

use std::io::Read;
use std::net::IpAddr;
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};

use rcgen::{CertificateSigningRequestParams, Issuer, KeyPair, PublicKeyData};
use redmesh_api::issue::{self, SIGNER_CERT_FILE, SIGNER_KEY_FILE, Validity};
use redmesh_api::tls::{BACKDATED, Role};
use ring::digest;
use rustls::pki_types::pem::PemObject;
use rustls::pki_types::{CertificateDer, CertificateSigningRequestDer};
use time::{Duration, OffsetDateTime};

/// Days that a certificate of a joined host is valid, if the signer's own lasts as long.
pub const LEAF_DAYS: i64 = 365;

/// A file of more bytes is none of ours.
const FILE_BYTES_MAX: u64 = 64 * 1024;

/// Why this host can't sign.
#[derive(Debug, thiserror::Error)]
pub enum SignerError {
    /// A file can't be read.
    #[error("can't read {}: make it with `redmeshctl pki signer --host NAME`", .path.display())]
    Read {
        /// Which.
        path: PathBuf,
        /// Why.
        #[source]
        source: std::io::Error,
    },
    /// Others than the owner may read the key.
    #[error("{} has mode {mode:04o}, so others than its owner can sign with it: `chmod 600 {}`", .path.display(), .path.display())]
    Mode {
        /// The key.
        path: PathBuf,
        /// Its permission bits.
        mode: u32,
    },
    /// Not what `pki signer` writes.
    #[error("{} and {} are no signer: copy both from the same `redmeshctl pki signer`", .dir.join(SIGNER_CERT_FILE).display(), .dir.join(SIGNER_KEY_FILE).display())]
    Unusable {
        /// Where they are.
        dir: PathBuf,
    },
    /// Its certificate is over.
    #[error("the signer in {} has expired: `redmeshctl pki signer --host NAME --renew`", .dir.display())]
    Expired {
        /// Where it is.
        dir: PathBuf,
    },
    /// The request for a certificate is none, or rcgen won't sign it.
    #[error("can't sign the request")]
    Sign(#[source] rcgen::Error),
}

/// See the module.
pub struct Signer {
    issuer: Issuer<'static, KeyPair>,
    /// PEM.
    certificate: String,
    until: OffsetDateTime,
}

impl std::fmt::Debug for Signer {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Signer").field("until", &self.until).finish_non_exhaustive()
    }
}

/// A public key that wants a certificate; its owner has proven to have the private half.
#[derive(Debug)]
pub struct Request(CertificateSigningRequestParams);

impl Request {
    /// Reads one, and checks its signature.
    ///
    /// # Errors
    /// [`SignerError::Sign`].
    pub fn parse(der: &[u8]) -> Result<Self, SignerError> {
        let der = CertificateSigningRequestDer::from(der);
        CertificateSigningRequestParams::from_der(&der).map(Self).map_err(SignerError::Sign)
    }

    /// SHA-256 of the public key.
    pub fn key(&self) -> [u8; 32] {
        let mut sum = [0; 32];
        let key = self.0.public_key.subject_public_key_info();
        sum.copy_from_slice(digest::digest(&digest::SHA256, &key).as_ref());
        sum
    }
}

impl Signer {
    /// Whether there is one in `dir`.
    pub fn is_in(dir: &Path) -> bool {
        dir.join(SIGNER_KEY_FILE).exists()
    }

    /// Reads the one in `dir`; good at `now`.
    ///
    /// # Errors
    /// Any [`SignerError`] but the last.
    pub fn load(dir: &Path, now: OffsetDateTime) -> Result<Self, SignerError> {
        let (certificate, key) =
            (read(&dir.join(SIGNER_CERT_FILE), false)?, read(&dir.join(SIGNER_KEY_FILE), true)?);
        let unusable = || SignerError::Unusable { dir: dir.to_owned() };
        let der = CertificateDer::from_pem_slice(certificate.as_bytes()).map_err(|_| unusable())?;
        let key = KeyPair::from_pem(&key).map_err(|_| unusable())?;
        let (matches, until) = {
            let (_, parsed) = x509_parser::parse_x509_certificate(&der).map_err(|_| unusable())?;
            let matches = parsed.is_ca() && parsed.public_key().raw == key.subject_public_key_info();
            (matches, parsed.validity().not_after.to_datetime())
        };
        if !matches {
            return Err(unusable());
        }
        if until <= now {
            return Err(SignerError::Expired { dir: dir.to_owned() });
        }
        let issuer = Issuer::from_ca_cert_der(&der, key).map_err(|_| unusable())?;
        Ok(Self { issuer, certificate, until })
    }

    /// When what it signs at `now` ends.
    pub fn signs_until(&self, now: OffsetDateTime) -> OffsetDateTime {
        self.until.min(now + Duration::days(LEAF_DAYS))
    }

    /// A host's certificate and this signer's own, PEM; never valid for longer than the latter.
    ///
    /// # Errors
    /// [`SignerError::Sign`].
    pub fn sign(
        &self,
        request: &Request,
        name: &str,
        ips: &[IpAddr],
        now: OffsetDateTime,
    ) -> Result<String, SignerError> {
        let validity = Validity { from: now - BACKDATED, until: self.signs_until(now) };
        let names = issue::names(Role::Host, name, ips);
        let leaf =
            issue::leaf(&names, &request.0.public_key, &self.issuer, validity).map_err(SignerError::Sign)?;
        Ok(leaf.pem() + &self.certificate)
    }
}

fn read(path: &Path, secret: bool) -> Result<String, SignerError> {
    let failed = |source| SignerError::Read { path: path.to_owned(), source };
    let file = std::fs::File::open(path).map_err(failed)?;
    let mode = file.metadata().map_err(failed)?.permissions().mode() & 0o7777;
    if secret && mode & 0o077 != 0 {
        return Err(SignerError::Mode { path: path.to_owned(), mode });
    }
    let mut text = String::new();
    file.take(FILE_BYTES_MAX).read_to_string(&mut text).map_err(failed)?;
    Ok(text)
}

#[cfg(test)]
mod tests {
    use std::fs;

    use rcgen::{BasicConstraints, CertificateParams, IsCa};
    use redmesh_api::tls::{Identity, names_ip, peer_of};
    use rustls::RootCertStore;
    use rustls::client::WebPkiServerVerifier;
    use rustls::client::danger::ServerCertVerifier as _;
    use rustls::pki_types::{ServerName, UnixTime};

    use super::*;

    struct Ca {
        dir: tempfile::TempDir,
        certificate: String,
    }

    /// A CA, and in its directory a signer that it made, good for `days`.
    fn ca(days: i64) -> Ca {
        let (key, now) = (KeyPair::generate().unwrap(), OffsetDateTime::now_utc());
        let mut params = CertificateParams::default();
        params.is_ca = IsCa::Ca(BasicConstraints::Constrained(1));
        let certificate = params.self_signed(&key).unwrap().pem();
        let issuer = Issuer::new(params, key);
        let validity = Validity { from: now - BACKDATED, until: now + Duration::days(days) };
        let key = KeyPair::generate().unwrap();
        let signer = issue::signer("a", &key, &issuer, validity).unwrap();
        let dir = tempfile::tempdir().unwrap();
        fs::write(dir.path().join(SIGNER_CERT_FILE), signer.pem()).unwrap();
        fs::write(dir.path().join(SIGNER_KEY_FILE), key.serialize_pem()).unwrap();
        private(&dir.path().join(SIGNER_KEY_FILE), 0o600);
        Ca { dir, certificate }
    }

    fn private(path: &Path, mode: u32) {
        fs::set_permissions(path, fs::Permissions::from_mode(mode)).unwrap();
    }

    impl Ca {
        fn load(&self) -> Result<Signer, SignerError> {
            Signer::load(self.dir.path(), OffsetDateTime::now_utc())
        }

        /// What TLS says of a chain, PEM, that is presented at `ip`.
        fn verify(&self, chain: &str, ip: IpAddr) -> Result<(), rustls::Error> {
            let mut roots = RootCertStore::empty();
            roots.add(CertificateDer::from_pem_slice(self.certificate.as_bytes()).unwrap()).unwrap();
            let provider = rustls::crypto::ring::default_provider();
            let verifier = WebPkiServerVerifier::builder_with_provider(roots.into(), provider.into());
            let chain: Vec<_> = CertificateDer::pem_slice_iter(chain.as_bytes()).flatten().collect();
            let name = ServerName::IpAddress(ip.into());
            verifier
                .build()
                .unwrap()
                .verify_server_cert(&chain[0], &chain[1..], &name, &[], UnixTime::now())
                .map(drop)
        }
    }

    fn request(key: &KeyPair) -> Vec<u8> {
        CertificateParams::default().serialize_request(key).unwrap().der().to_vec()
    }

    #[test]
    fn what_it_signs_is_a_host_under_the_meshs_ca_and_ends_no_later_than_itself() {
        let (ca, ip, now) = (ca(30), IpAddr::from([10, 0, 0, 9]), OffsetDateTime::now_utc());
        let key = KeyPair::generate().unwrap();
        let request = Request::parse(&request(&key)).unwrap();
        let chain = ca.load().unwrap().sign(&request, "db-9", &[ip], now).unwrap();
        ca.verify(&chain, ip).unwrap();
        let ders: Vec<_> = CertificateDer::pem_slice_iter(chain.as_bytes()).flatten().collect();
        assert_eq!(peer_of(&ders).unwrap(), (Role::Host, "db-9".to_owned()));
        assert!(names_ip(&ders, ip) && !names_ip(&ders, [10, 0, 0, 8].into()));
        let left_ms = redmesh_api::tls::valid_until_unix_ms(&ders) / 1000;
        assert!(left_ms <= (now + Duration::days(30)).unix_timestamp() as u64 + 1);
        // And it is an identity, with the key that never left its owner.
        let dir = tempfile::tempdir().unwrap();
        for (file, text) in
            [("ca.pem", &ca.certificate), ("cert.pem", &chain), ("key.pem", &key.serialize_pem())]
        {
            fs::write(dir.path().join(file), text).unwrap();
            private(&dir.path().join(file), 0o600);
        }
        assert_eq!(Identity::load(dir.path()).unwrap().name(), "db-9");
    }

    #[test]
    fn tls_takes_no_operator_that_a_signer_made() {
        let (ca, now) = (ca(30), OffsetDateTime::now_utc());
        let signer = ca.load().unwrap();
        let key = KeyPair::generate().unwrap();
        let ip = IpAddr::from([10, 0, 0, 9]);
        for role in Role::ALL {
            let validity = Validity { from: now - BACKDATED, until: now + Duration::days(1) };
            let leaf =
                issue::leaf(&issue::names(role, "mallory", &[ip]), &key, &signer.issuer, validity).unwrap();
            let verified = ca.verify(&(leaf.pem() + &signer.certificate), ip);
            assert_eq!(verified.is_ok(), role == Role::Host, "{role}: {verified:?}");
        }
    }

    #[test]
    fn what_cannot_sign_says_why() {
        let words = |ca: &Ca| ca.load().unwrap_err().to_string();
        assert!(words(&ca(-1)).contains("has expired"));
        let open = ca(1);
        private(&open.dir.path().join(SIGNER_KEY_FILE), 0o644);
        assert!(words(&open).contains("chmod 600"));
        let (one, other) = (ca(1), ca(1));
        fs::copy(other.dir.path().join(SIGNER_KEY_FILE), one.dir.path().join(SIGNER_KEY_FILE)).unwrap();
        assert!(words(&one).contains("are no signer"));
        fs::remove_file(one.dir.path().join(SIGNER_CERT_FILE)).unwrap();
        assert!(words(&one).contains("pki signer") && Signer::is_in(one.dir.path()));
        // A request that was signed by somebody else than the key's owner.
        let mut forged = request(&KeyPair::generate().unwrap());
        let last = forged.len() - 1;
        forged[last] ^= 1;
        assert!(Request::parse(&forged).is_err() && Request::parse(b"").is_err());
    }
}
