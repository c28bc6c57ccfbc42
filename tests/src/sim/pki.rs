//! Certificates for simulated hosts: one CA a process, one certificate for each address.

use std::fs;
use std::io::Write;
use std::net::IpAddr;
use std::os::unix::fs::OpenOptionsExt;
use std::path::Path;
use std::sync::OnceLock;

use rcgen::{
    BasicConstraints, CertificateParams, DnType, ExtendedKeyUsagePurpose, IsCa, Issuer, KeyPair,
    KeyUsagePurpose,
};
use redmesh_api::tls::Role;
use time::{Duration, OffsetDateTime};

struct Ca {
    pem: String,
    issuer: Issuer<'static, KeyPair>,
}

static CA: OnceLock<Ca> = OnceLock::new();

impl Ca {
    fn new() -> Self {
        let key = KeyPair::generate().expect("a key");
        let mut params = CertificateParams::default();
        params.is_ca = IsCa::Ca(BasicConstraints::Constrained(0));
        params.key_usages = vec![KeyUsagePurpose::KeyCertSign];
        params.distinguished_name.push(DnType::CommonName, "simulation CA");
        let pem = params.self_signed(&key).expect("a CA").pem();
        Self { pem, issuer: Issuer::new(params, key) }
    }
}

/// Writes the identity directory of the host `name` at `ip`.
pub fn write_identity(dir: &Path, name: &str, ip: IpAddr) {
    let ca = CA.get_or_init(Ca::new);
    let names = vec![format!("{name}{}", Role::Host.suffix()), ip.to_string()];
    let mut params = CertificateParams::new(names).expect("names");
    params.extended_key_usages =
        vec![ExtendedKeyUsagePurpose::ServerAuth, ExtendedKeyUsagePurpose::ClientAuth];
    let now = OffsetDateTime::now_utc();
    (params.not_before, params.not_after) = (now - Duration::days(1), now + Duration::days(1));
    let key = KeyPair::generate().expect("a key");
    let cert = params.signed_by(&key, &ca.issuer).expect("a certificate");
    fs::create_dir_all(dir).expect("a directory");
    for (file, text) in
        [("ca.pem", ca.pem.clone()), ("cert.pem", cert.pem()), ("key.pem", key.serialize_pem())]
    {
        let mut options = fs::OpenOptions::new();
        let path = dir.join(file);
        let mut file = options.write(true).create_new(true).mode(0o600).open(path).expect("a new file");
        file.write_all(text.as_bytes()).expect("writes");
    }
}
