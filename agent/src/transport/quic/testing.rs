//! Certificates for tests: a CA in memory that issues identities.

use std::net::IpAddr;
use std::os::unix::fs::OpenOptionsExt;
use std::path::Path;

use rcgen::{
    BasicConstraints, CertificateParams, DnType, ExtendedKeyUsagePurpose, IsCa, Issuer, KeyPair,
    KeyUsagePurpose,
};
use redmesh_api::tls::{Identity, Role};
use time::{Duration, OffsetDateTime};

/// A mesh's CA.
pub(crate) struct TestCa {
    pem: String,
    issuer: Issuer<'static, KeyPair>,
}

impl TestCa {
    pub(crate) fn new() -> Self {
        let key = KeyPair::generate().unwrap();
        let mut params = CertificateParams::default();
        params.is_ca = IsCa::Ca(BasicConstraints::Constrained(0));
        params.key_usages = vec![KeyUsagePurpose::KeyCertSign];
        let number: u64 = rand::random();
        params.distinguished_name.push(DnType::CommonName, format!("test CA {number:x}"));
        let pem = params.self_signed(&key).unwrap().pem();
        Self { pem, issuer: Issuer::new(params, key) }
    }

    pub(crate) fn host(&self, name: &str, ips: &[IpAddr]) -> Identity {
        self.issue(Role::Host, name, ips, self, Duration::days(1))
    }

    pub(crate) fn operator(&self, name: &str) -> Identity {
        self.issue(Role::Operator, name, &[], self, Duration::days(1))
    }

    /// An identity of this CA that trusts `trusted`'s, valid from a month ago until `left` from now.
    pub(crate) fn issue(
        &self,
        role: Role,
        name: &str,
        ips: &[IpAddr],
        trusted: &Self,
        left: Duration,
    ) -> Identity {
        let dir = tempfile::tempdir().unwrap();
        self.write(dir.path(), role, name, ips, trusted, left);
        Identity::load(dir.path()).unwrap()
    }

    /// A host's files in `dir`, for a server that trusts `trusted`'s.
    pub(crate) fn write_host(&self, dir: &Path, name: &str, ips: &[IpAddr], trusted: &Self) {
        self.write(dir, Role::Host, name, ips, trusted, Duration::days(1));
    }

    fn write(&self, dir: &Path, role: Role, name: &str, ips: &[IpAddr], trusted: &Self, left: Duration) {
        let names: Vec<String> = std::iter::once(format!("{name}{}", role.suffix()))
            .chain(ips.iter().map(IpAddr::to_string))
            .collect();
        let mut params = CertificateParams::new(names).unwrap();
        params.extended_key_usages =
            vec![ExtendedKeyUsagePurpose::ServerAuth, ExtendedKeyUsagePurpose::ClientAuth];
        let now = OffsetDateTime::now_utc();
        (params.not_before, params.not_after) = (now - Duration::days(30), now + left);
        let key = KeyPair::generate().unwrap();
        let cert = params.signed_by(&key, &self.issuer).unwrap();
        for (file, text) in
            [("ca.pem", trusted.pem.clone()), ("cert.pem", cert.pem()), ("key.pem", key.serialize_pem())]
        {
            let mut options = std::fs::OpenOptions::new();
            let mut file = options.write(true).create_new(true).mode(0o600).open(dir.join(file)).unwrap();
            std::io::Write::write_all(&mut file, text.as_bytes()).unwrap();
        }
    }
}
