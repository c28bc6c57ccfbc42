//! What becomes of a host's wish for another certificate: judged and signed here.
//!
//! Whoever asks has proven by TLS to have the certificate that it presents. It gets another
//! one that says the same, for a key of its own making, and only instead of one that a
//! signer made and that is well into its life: what the CA's keeper issued for a certain
//! time ends when he has said so. So a host can go on being what it is and nothing else.

use std::net::IpAddr;
use std::path::PathBuf;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Instant;

use async_trait::async_trait;
use redmesh_api::join::JoinRefusal;
use redmesh_api::level::RemovedHost;
use redmesh_api::tls::{self, Identity, Role};
use ring::digest;
use rustls::RootCertStore;
use time::OffsetDateTime;
use tracing::info;

use super::pace::Pace;
use super::serve::cannot_sign;
use super::signer::{Request, Signer};
use crate::census::Census;
use crate::control::serve::SignAgain;
use crate::transport::Peer;
use crate::transport::quic::is_removed;

/// Signs for hosts that renew, with what is in the identity's directory.
#[derive(Debug)]
pub struct Again {
    census: Census,
    identity_dir: PathBuf,
    pace: Mutex<Pace>,
    signed: Arc<AtomicU64>,
}

impl Again {
    /// `signed` counts the certificates that were given.
    pub fn new(census: Census, identity_dir: PathBuf, signed: Arc<AtomicU64>) -> Self {
        Self { census, identity_dir, pace: Mutex::default(), signed }
    }
}

/// What a certificate says, and the next one is to say again.
#[derive(Debug, PartialEq, Eq)]
struct Entitled {
    name: String,
    ips: Vec<IpAddr>,
    until_unix_ms: u64,
}

/// Whether `peer` may have another certificate for the key with the hash `key`.
///
/// # Errors
/// What is to be answered instead.
fn judge(
    peer: &Peer,
    key: &[u8; 32],
    roots: &RootCertStore,
    removed: &[RemovedHost],
    now_unix_ms: u64,
) -> Result<Entitled, JoinRefusal> {
    let Peer::Agent { id, name, presented, .. } = peer else {
        return Err(JoinRefusal::invalid(
            "only a host's agent has its certificate renewed by another agent: an operator's is issued by \
             `redmeshctl pki issue --operator`",
        ));
    };
    let chain = presented.chain();
    match tls::peer_of(chain) {
        Ok((Role::Host, certified)) if certified == *name => {}
        _ => return Err(JoinRefusal::invalid("the certificate is not that of a host of this name")),
    }
    if is_removed(*id, name, chain, removed) {
        return Err(JoinRefusal::invalid(format!("host {name} was removed from the mesh")));
    }
    if !tls::by_signer(chain, roots) {
        return Err(JoinRefusal::invalid(format!(
            "the certificate of {name} was issued with the CA's key, and is renewed by it alone: `redmeshctl pki \
             issue --host {name} --ip … --renew`"
        )));
    }
    if key_of(chain) == Some(*key) {
        return Err(JoinRefusal::invalid("a certificate is renewed with a new key, and this is the old one"));
    }
    let (issued_ms, until_ms) = (tls::issued_unix_ms(chain), tls::valid_until_unix_ms(chain));
    let (life_ms, left_ms) = (until_ms.saturating_sub(issued_ms), until_ms.saturating_sub(now_unix_ms));
    if left_ms > life_ms / 2 {
        let days = left_ms / 86_400_000;
        return Err(JoinRefusal::invalid(format!(
            "more than half of the certificate's time is left ({days} days): compare both machines' clocks"
        )));
    }
    Ok(Entitled { name: name.clone(), ips: tls::ips_of(chain), until_unix_ms: until_ms })
}

/// SHA-256 of the public key that a chain's leaf is for.
fn key_of(chain: &[rustls::pki_types::CertificateDer<'_>]) -> Option<[u8; 32]> {
    let (_, leaf) = x509_parser::parse_x509_certificate(chain.first()?).ok()?;
    digest::digest(&digest::SHA256, leaf.public_key().raw).as_ref().try_into().ok()
}

#[async_trait]
impl SignAgain for Again {
    async fn sign_again(&self, peer: &Peer, csr: &[u8]) -> Result<String, JoinRefusal> {
        let (Peer::Agent { addr, .. } | Peer::Operator { addr, .. }) = peer;
        if !self.pace.lock().unwrap_or_else(PoisonError::into_inner).allow(addr.ip(), Instant::now()) {
            return Err(JoinRefusal::later("too many requests for certificates: try again in a few seconds"));
        }
        let request =
            Request::parse(csr).map_err(|error| JoinRefusal::invalid(crate::error_chain(&error)))?;
        let (dir, now) = (self.identity_dir.clone(), OffsetDateTime::now_utc());
        let read = tokio::task::spawn_blocking(move || (Identity::load(&dir), Signer::load(&dir, now))).await;
        let (identity, signer) = read.map_err(|error| JoinRefusal::later(error.to_string()))?;
        let identity = identity.map_err(|error| cannot_sign(&error))?;
        let signer = signer.map_err(|error| cannot_sign(&error))?;
        let (level, now_unix_ms) = (self.census.level(), self.census.clock.now_unix_ms());
        let entitled = judge(peer, &request.key(), identity.roots(), &level.removed, now_unix_ms)?;
        let until_unix_ms = u64::try_from(signer.signs_until(now).unix_timestamp()).unwrap_or(0) * 1000;
        if until_unix_ms <= entitled.until_unix_ms {
            return Err(JoinRefusal::later(
                "the signer here ends no later than the certificate that is to be renewed: `redmeshctl pki signer \
                 --host NAME --renew`",
            ));
        }
        let Entitled { name, ips, .. } = entitled;
        let chain = signer.sign(&request, &name, &ips, now).map_err(|error| cannot_sign(&error))?;
        self.signed.fetch_add(1, Ordering::Relaxed);
        info!(name, ?ips, until_unix_s = until_unix_ms / 1000, "renewed a host's certificate");
        Ok(chain)
    }
}

#[cfg(test)]
mod tests {
    use rcgen::{BasicConstraints, CertificateParams, IsCa, Issuer, KeyPair, PublicKeyData};
    use redmesh_api::ids::HostId;
    use redmesh_api::issue::{self, Validity};
    use redmesh_api::join::JoinRefusalKind;
    use rustls::pki_types::CertificateDer;
    use time::Duration;

    use super::*;
    use crate::transport::Presented;

    const IP: [u8; 4] = [10, 0, 0, 9];

    /// What an issuer below the mesh's CA, or the CA itself, makes for `days` before and after now.
    fn chain(role: Role, name: &str, days: (i64, i64), by_signer: bool) -> (KeyPair, Peer, RootCertStore) {
        let now = OffsetDateTime::now_utc();
        let validity = Validity { from: now - Duration::days(days.0), until: now + Duration::days(days.1) };
        let mut params = CertificateParams::default();
        params.is_ca = IsCa::Ca(BasicConstraints::Constrained(1));
        params.distinguished_name.push(rcgen::DnType::CommonName, "redmesh CA");
        let key = KeyPair::generate().unwrap();
        let root = params.self_signed(&key).unwrap();
        let ca = Issuer::new(params, key);
        let signer_key = KeyPair::generate().unwrap();
        let signer = issue::signer("a", &signer_key, &ca, validity).unwrap();
        let key = KeyPair::generate().unwrap();
        let names = issue::names(role, name, &[IP.into()]);
        let chain = match by_signer {
            true => {
                let issuer = Issuer::from_ca_cert_der(signer.der(), signer_key).unwrap();
                vec![
                    issue::leaf(&names, &key, &issuer, validity).unwrap().der().clone(),
                    signer.der().clone(),
                ]
            }
            // Others' certificates beside one's own make it nothing else.
            false => {
                let leaf = issue::leaf(&names, &key, &ca, validity).unwrap();
                vec![leaf.der().clone(), signer.der().clone(), root.der().clone()]
            }
        };
        let mut roots = RootCertStore::empty();
        roots.add(root.der().clone()).unwrap();
        (key, agent(name, chain), roots)
    }

    fn agent(name: &str, chain: Vec<CertificateDer<'static>>) -> Peer {
        let addr = (IP, 7379).into();
        Peer::Agent { id: HostId(9), name: name.to_owned(), addr, presented: Presented::new(chain) }
    }

    fn now_ms() -> u64 {
        OffsetDateTime::now_utc().unix_timestamp() as u64 * 1000
    }

    #[test]
    fn a_joined_host_is_renewed_as_what_it_is_late_in_its_certificates_life() {
        let (_, peer, roots) = chain(Role::Host, "db-9", (80, 20), true);
        let entitled = judge(&peer, &[1; 32], &roots, &[], now_ms()).unwrap();
        assert_eq!((entitled.name.as_str(), entitled.ips), ("db-9", vec![IpAddr::from(IP)]));
    }

    #[test]
    fn who_may_not_have_another_one_is_told_why() {
        let late = (80, 20);
        let (key, good, roots) = chain(Role::Host, "db-9", late, true);
        let removed = |id, certificates| RemovedHost {
            id,
            name: "db-9".to_owned(),
            certificates,
            at_unix_ms: now_ms(),
        };
        let refused = |peer: &Peer, key: [u8; 32], removed: &[RemovedHost], words: &str| {
            let refusal = judge(peer, &key, &roots, removed, now_ms()).expect_err(words);
            assert!(refusal.message.contains(words) && refusal.kind == JoinRefusalKind::Invalid, "{refusal}");
        };
        refused(&good, [1; 32], &[removed(Some(HostId(9)), false)], "was removed");
        refused(&good, [1; 32], &[removed(None, true)], "was removed");
        let mut own = [0; 32];
        let spki = key.subject_public_key_info();
        own.copy_from_slice(digest::digest(&digest::SHA256, &spki).as_ref());
        refused(&good, own, &[], "with a new key");
        refused(&chain(Role::Host, "db-9", (40, 60), true).1, [1; 32], &[], "more than half");
        refused(&chain(Role::Host, "db-9", late, false).1, [1; 32], &[], "with the CA's key");
        refused(&chain(Role::Operator, "db-9", late, true).1, [1; 32], &[], "not that of a host");
        let Peer::Agent { presented, .. } = &good else { panic!("an agent") };
        refused(&agent("db-8", presented.chain().to_vec()), [1; 32], &[], "of this name");
        refused(&agent("db-9", Vec::new()), [1; 32], &[], "not that of a host");
        let operator = Peer::Operator { name: "db-9".to_owned(), role: Role::Operator, addr: (IP, 1).into() };
        refused(&operator, [1; 32], &[], "only a host's agent");
    }
}
