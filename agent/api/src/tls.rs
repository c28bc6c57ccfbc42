//! TLS as both ends of a redmesh agree upon it: who may speak, under which name.
//!
//! One CA per mesh. Every leaf certificate bears its role in its one DNS name (subject
//! alternative name): `<name>.host.redmesh` (with the host's IP addresses beside it),
//! `<name>.operator.redmesh` or, read-only, `<name>.reader.redmesh`; a host is dialled by
//! its IP address. Both sides always present a certificate (RFC 8446, section 4.3.2), TLS 1.3 only, and sessions are never
//! resumed, so that a certificate that has expired stays outside.
//!
//! Nothing here opens a socket. What a refused peer reads is in [`explain`].

mod explain;
mod identity;
mod join;
mod quic;

#[cfg(test)]
mod tests;

use std::fmt;
use std::net::IpAddr;
use std::path::PathBuf;

use rustls::RootCertStore;
use rustls::pki_types::{CertificateDer, ServerName};
use serde::{Deserialize, Serialize};
use webpki::EndEntityCert;
use x509_parser::extensions::GeneralName;

pub use explain::{explain, is_busy, is_refusal, turned_away};
pub use identity::Identity;
pub use join::{JOIN_ALPN, join_client_config, join_server_config};
pub use quic::{
    ALPN, IDLE_TIMEOUT, INITIAL_RTT, KEEP_ALIVE, STRANGER_STREAMS_MAX, STREAMS_MAX, client_config,
    quic_client_config, quic_server_config, redis_client_config, server_config, trust_agent,
};

/// A certificate is valid from so long before it was issued: clocks differ.
pub const BACKDATED: std::time::Duration = std::time::Duration::from_secs(3600);

/// Ends the DNS name in every host's certificate.
pub const HOST_SUFFIX: &str = ".host.redmesh";

/// Ends the DNS name in every operator's certificate.
pub const OPERATOR_SUFFIX: &str = ".operator.redmesh";

/// Ends the DNS name in every read-only operator's certificate.
pub const READER_SUFFIX: &str = ".reader.redmesh";

/// What a certificate entitles to.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Role {
    /// An agent.
    Host,
    /// A person's client: may only send control requests.
    Operator,
    /// A person's client that may ask, and change nothing.
    Reader,
}

impl Role {
    /// All there are.
    pub const ALL: [Self; 3] = [Self::Host, Self::Operator, Self::Reader];

    /// Ends the DNS name of this role's certificates.
    pub fn suffix(self) -> &'static str {
        match self {
            Self::Host => HOST_SUFFIX,
            Self::Operator => OPERATOR_SUFFIX,
            Self::Reader => READER_SUFFIX,
        }
    }
}

impl fmt::Display for Role {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Host => "host",
            Self::Operator => "operator",
            Self::Reader => "read-only operator",
        })
    }
}

/// Files or certificates that can't serve as an identity.
#[derive(Debug, thiserror::Error)]
pub enum TlsError {
    /// A file of the identity directory can't be read.
    #[error(
        "can't read {}: make the files with `redmeshctl pki issue` and name their directory", .path.display()
    )]
    Read {
        /// Which.
        path: PathBuf,
        /// Why.
        #[source]
        source: std::io::Error,
    },
    /// Others than the owner may read the key.
    #[error(
        "{} has mode {mode:04o}, so others than its owner can read the private key: `chmod 600 {}`",
        .path.display(), .path.display()
    )]
    KeyMode {
        /// The key.
        path: PathBuf,
        /// Its permission bits.
        mode: u32,
    },
    /// A file is not the PEM that it should be.
    #[error("{} holds no usable {what}: copy it again from where `redmeshctl pki issue` wrote it", .path.display())]
    Pem {
        /// Which.
        path: PathBuf,
        /// What it should hold.
        what: &'static str,
        /// Why not.
        #[source]
        source: Option<rustls::pki_types::pem::Error>,
    },
    /// A CA certificate that can't anchor anything, or a key of an unknown kind.
    #[error("{} can't be used: {reason}", .path.display())]
    Unusable {
        /// Which file.
        path: PathBuf,
        /// Why.
        reason: String,
    },
    /// Certificate and key belong to different issues.
    #[error("{} is not the key of {}: copy both from the same `redmeshctl pki issue`", .key.display(), .cert.display())]
    KeyMismatch {
        /// The certificate.
        cert: PathBuf,
        /// The key.
        key: PathBuf,
    },
    /// A peer without a certificate.
    #[error("no certificate was presented")]
    NoCertificate,
    /// A certificate that can't be parsed.
    #[error("certificate can't be parsed: {reason}")]
    BadCertificate {
        /// Why.
        reason: String,
    },
    /// A certificate without exactly one name of a redmesh.
    #[error(
        "certificate is for {names:?}, not for one `<name>{HOST_SUFFIX}`, `<name>{OPERATOR_SUFFIX}` or \
         `<name>{READER_SUFFIX}`: \
         issue it with `redmeshctl pki issue`"
    )]
    NoRole {
        /// DNS names that it bears, the first few.
        names: Vec<String>,
    },
    /// rustls refuses the configuration.
    #[error("TLS can't be set up")]
    Config(#[source] rustls::Error),
}

/// Longest name of a host or an operator, bytes (RFC 1035, section 2.3.4).
pub const NAME_BYTES_MAX: usize = 63;

/// Whether `name` may be a host's or an operator's: one DNS label in lower case.
pub fn valid_name(name: &str) -> bool {
    let inner = |b: u8| b.is_ascii_lowercase() || b.is_ascii_digit() || b == b'-';
    (1..=NAME_BYTES_MAX).contains(&name.len())
        && name.bytes().all(inner)
        && !name.starts_with('-')
        && !name.ends_with('-')
}

fn leaf<'a>(chain: &'a [CertificateDer<'_>]) -> Result<EndEntityCert<'a>, TlsError> {
    let first = chain.first().ok_or(TlsError::NoCertificate)?;
    EndEntityCert::try_from(first).map_err(|error| TlsError::BadCertificate { reason: error.to_string() })
}

/// Role and name that a chain's leaf bears. It says nothing of whether the chain is
/// trusted: that is what the handshake is for.
pub fn peer_of(chain: &[CertificateDer<'_>]) -> Result<(Role, String), TlsError> {
    let leaf = leaf(chain)?;
    let mut found = None;
    let mut names = 0;
    for dns in leaf.valid_dns_names() {
        names += 1;
        for role in Role::ALL {
            if let Some(name) = dns.strip_suffix(role.suffix()).filter(|name| valid_name(name)) {
                found = Some((role, name.to_owned()));
            }
        }
    }
    match (found, names) {
        // A second name could be of another role: which one counts must not be a guess.
        (Some(found), 1) => Ok(found),
        _ => Err(TlsError::NoRole {
            names: leaf.valid_dns_names().take(4).map(|n| n.chars().take(80).collect()).collect(),
        }),
    }
}

/// Whether a chain's leaf is valid for `ip`.
pub fn names_ip(chain: &[CertificateDer<'_>], ip: IpAddr) -> bool {
    leaf(chain)
        .is_ok_and(|leaf| leaf.verify_is_valid_for_subject_name(&ServerName::IpAddress(ip.into())).is_ok())
}

/// The IP addresses that a chain's leaf is valid for; none where that can't be read.
pub fn ips_of(chain: &[CertificateDer<'_>]) -> Vec<IpAddr> {
    let parsed = chain.first().and_then(|leaf| x509_parser::parse_x509_certificate(leaf).ok());
    let names = parsed.as_ref().and_then(|(_, leaf)| leaf.subject_alternative_name().ok().flatten());
    let ip = |name: &GeneralName<'_>| match name {
        GeneralName::IPAddress([a, b, c, d]) => Some(IpAddr::from([*a, *b, *c, *d])),
        GeneralName::IPAddress(bytes) => <[u8; 16]>::try_from(*bytes).ok().map(IpAddr::from),
        _ => None,
    };
    names.map(|names| names.value.general_names.iter().filter_map(ip).collect()).unwrap_or_default()
}

/// Whether a chain's leaf was made by a signer of the mesh and not by one of the CAs themselves:
/// a host that joined by token. Like [`peer_of`] it presumes a chain that leads to `roots`. Only
/// the leaf's issuer counts: whatever else stands in a chain its owner may have put there.
pub fn by_signer(chain: &[CertificateDer<'_>], roots: &RootCertStore) -> bool {
    let parsed = chain.first().and_then(|leaf| x509_parser::parse_x509_certificate(leaf).ok());
    let subjects = roots.subjects();
    parsed.is_some_and(|(_, leaf)| subjects.iter().all(|ca| ca.as_ref() != leaf.issuer().as_raw()))
}

/// When a chain's leaf has expired, milliseconds since 1970; 0 where that can't be read.
/// The last second belongs to its validity (RFC 5280, section 4.1.2.5).
pub fn valid_until_unix_ms(chain: &[CertificateDer<'_>]) -> u64 {
    let until_s = chain
        .first()
        .and_then(|leaf| x509_parser::parse_x509_certificate(leaf).ok())
        .map_or(0, |(_, cert)| cert.validity().not_after.timestamp().saturating_add(1));
    u64::try_from(until_s).unwrap_or(0).saturating_mul(1000)
}

/// When a chain's leaf was issued, milliseconds since 1970, as far as its validity tells:
/// it begins [`BACKDATED`] before. 0 where that can't be read.
pub fn issued_unix_ms(chain: &[CertificateDer<'_>]) -> u64 {
    let from_s = chain
        .first()
        .and_then(|leaf| x509_parser::parse_x509_certificate(leaf).ok())
        .map_or(0, |(_, cert)| cert.validity().not_before.timestamp());
    match u64::try_from(from_s) {
        Ok(from_s) if from_s > 0 => (from_s + BACKDATED.as_secs()).saturating_mul(1000),
        _ => 0,
    }
}

/// The certificates that a connection's peer presented, leaf first.
pub fn chain_of(connection: &quinn::Connection) -> Result<Vec<CertificateDer<'static>>, TlsError> {
    connection
        .peer_identity()
        .and_then(|identity| identity.downcast::<Vec<CertificateDer<'static>>>().ok())
        .map(|chain| *chain)
        .ok_or(TlsError::NoCertificate)
}
