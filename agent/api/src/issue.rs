//! How a mesh's certificates are made: by redmeshctl with the CA's key, and for hosts that
//! join by token by an agent that has a signer's.
//!
//! A signer is an intermediate CA that stands below the mesh's: by a name constraint (RFC
//! 5280, section 4.2.1.10), which every agent's TLS upholds, it can make hosts and nobody
//! else. Nothing here reads a clock or a file.

use std::net::IpAddr;

use rcgen::{
    BasicConstraints, Certificate, CertificateParams, DnType, Error, ExtendedKeyUsagePurpose, GeneralSubtree,
    IsCa, Issuer, KeyPair, KeyUsagePurpose, NameConstraints, PublicKeyData, SigningKey,
};
use time::OffsetDateTime;

use crate::tls::{HOST_SUFFIX, Role};

/// A signer's certificate, in a host's identity directory.
pub const SIGNER_CERT_FILE: &str = "signer.pem";

/// A signer's key beside it; mode 0600.
pub const SIGNER_KEY_FILE: &str = "signer.key";

/// From when until when.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Validity {
    /// The first moment.
    pub from: OffsetDateTime,
    /// The last.
    pub until: OffsetDateTime,
}

/// The names in a leaf certificate of `role`, the role's own first.
pub fn names(role: Role, name: &str, ips: &[IpAddr]) -> Vec<String> {
    std::iter::once(format!("{name}{}", role.suffix())).chain(ips.iter().map(ToString::to_string)).collect()
}

/// A leaf certificate for the key's owner, with [`names`].
///
/// # Errors
/// rcgen's.
pub fn leaf(
    names: &[String],
    key: &impl PublicKeyData,
    issuer: &Issuer<'_, impl SigningKey>,
    validity: Validity,
) -> Result<Certificate, Error> {
    let mut params = CertificateParams::new(names)?;
    if let Some(first) = names.first() {
        params.distinguished_name.push(DnType::CommonName, first.as_str());
    }
    params.key_usages = vec![KeyUsagePurpose::DigitalSignature];
    // Every agent both dials and is dialled.
    params.extended_key_usages =
        vec![ExtendedKeyUsagePurpose::ServerAuth, ExtendedKeyUsagePurpose::ClientAuth];
    params.use_authority_key_identifier_extension = true;
    (params.not_before, params.not_after) = (validity.from, validity.until);
    params.signed_by(key, issuer)
}

/// The certificate of a signer on `host`.
///
/// # Errors
/// rcgen's.
pub fn signer(
    host: &str,
    key: &KeyPair,
    issuer: &Issuer<'_, impl SigningKey>,
    validity: Validity,
) -> Result<Certificate, Error> {
    let mut params = CertificateParams::default();
    params.is_ca = IsCa::Ca(BasicConstraints::Constrained(0));
    params.key_usages = vec![KeyUsagePurpose::KeyCertSign];
    params.distinguished_name.push(DnType::CommonName, format!("redmesh signer of {host}"));
    params.name_constraints = Some(NameConstraints {
        permitted_subtrees: vec![GeneralSubtree::DnsName(HOST_SUFFIX.trim_start_matches('.').to_owned())],
        excluded_subtrees: Vec::new(),
    });
    params.use_authority_key_identifier_extension = true;
    (params.not_before, params.not_after) = (validity.from, validity.until);
    params.signed_by(key, issuer)
}
