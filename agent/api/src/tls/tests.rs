use std::fs;
use std::os::unix::fs::PermissionsExt;
use std::path::Path;

use bytes::Bytes;
use quinn::{ApplicationClose, ConnectionClose, ConnectionError, TransportErrorCode, VarInt};
use rcgen::{CertificateParams, KeyPair};
use rustls::AlertDescription;

use super::*;
use crate::frames::{CLOSE_BUSY, CLOSE_DONE, CLOSE_REFUSED};

/// Self-signed: nothing here verifies a chain.
fn certificate(names: &[&str]) -> (String, CertificateDer<'static>, KeyPair) {
    let names: Vec<String> = names.iter().map(|name| (*name).to_owned()).collect();
    let key = KeyPair::generate().unwrap();
    let cert = CertificateParams::new(names).unwrap().self_signed(&key).unwrap();
    (cert.pem(), cert.der().clone(), key)
}

fn write(dir: &Path, file: &str, text: &str, mode: u32) {
    let path = dir.join(file);
    fs::write(&path, text).unwrap();
    fs::set_permissions(&path, fs::Permissions::from_mode(mode)).unwrap();
}

fn identity_dir(names: &[&str]) -> tempfile::TempDir {
    let dir = tempfile::tempdir().unwrap();
    let (pem, _, key) = certificate(names);
    write(dir.path(), "ca.pem", &pem, 0o644);
    write(dir.path(), "cert.pem", &pem, 0o644);
    write(dir.path(), "key.pem", &key.serialize_pem(), 0o600);
    dir
}

#[test]
fn an_identity_has_its_certificates_role_name_and_addresses() {
    let dir = identity_dir(&["h-1.host.redmesh", "10.0.0.1"]);
    let identity = Identity::load(dir.path()).unwrap();
    assert_eq!((identity.role(), identity.name()), (Role::Host, "h-1"));
    assert!(identity.names_ip([10, 0, 0, 1].into()) && !identity.names_ip([10, 0, 0, 2].into()));
    let text = format!("{identity:?}");
    assert!(text.contains("h-1") && !text.contains("key"), "{text}");
    server_config(&identity).unwrap();
    client_config(&identity).unwrap();
}

#[test]
fn a_key_that_others_may_read_is_refused() {
    let dir = identity_dir(&["h.host.redmesh"]);
    for mode in [0o640, 0o604, 0o660, 0o644] {
        fs::set_permissions(dir.path().join("key.pem"), fs::Permissions::from_mode(mode)).unwrap();
        let error = Identity::load(dir.path()).unwrap_err().to_string();
        let path = dir.path().join("key.pem");
        assert!(error.starts_with(&format!("{} has mode {mode:04o}", path.display())), "{error}");
        assert!(error.contains(&format!("`chmod 600 {}`", path.display())), "{error}");
    }
}

#[test]
fn what_is_wrong_with_a_directory_is_named() {
    let dir = identity_dir(&["h.host.redmesh"]);
    let (_, _, other) = certificate(&["h.host.redmesh"]);
    write(dir.path(), "key.pem", &other.serialize_pem(), 0o600);
    let error = Identity::load(dir.path()).unwrap_err();
    assert!(matches!(error, TlsError::KeyMismatch { .. }), "{error}");
    write(dir.path(), "key.pem", "none", 0o600);
    assert!(Identity::load(dir.path()).unwrap_err().to_string().contains("holds no usable private key"));
    write(dir.path(), "cert.pem", "none", 0o644);
    assert!(
        Identity::load(dir.path()).unwrap_err().to_string().contains("cert.pem holds no usable certificate")
    );
    fs::remove_file(dir.path().join("ca.pem")).unwrap();
    let error = Identity::load(dir.path()).unwrap_err().to_string();
    assert!(error.contains("ca.pem") && error.contains("redmeshctl pki issue"), "{error}");
}

#[test]
fn a_certificate_has_one_name_of_a_redmesh_and_no_other() {
    let of = |names: &[&str]| peer_of(&[certificate(names).1]);
    for role in Role::ALL {
        assert_eq!(of(&[&format!("a{}", role.suffix())]).unwrap(), (role, "a".into()));
    }
    for names in [
        &["a.example.org"][..],
        &["a.host.redmesh", "a.operator.redmesh"],
        &["a.host.redmesh", "example.org"],
        &["a.reader.redmesh", "a.operator.redmesh"],
        &["a.reader.redmesh.operator.redmesh"],
        &["a.b.host.redmesh"],
        &["host.redmesh"],
        &["10.0.0.1"],
    ] {
        assert!(matches!(of(names), Err(TlsError::NoRole { .. })), "{names:?}");
    }
    assert!(matches!(peer_of(&[]), Err(TlsError::NoCertificate)));
    assert!(matches!(peer_of(&[CertificateDer::from(vec![1, 2, 3])]), Err(TlsError::BadCertificate { .. })));
}

fn closed(alert: AlertDescription, reason: &'static str) -> ConnectionError {
    ConnectionError::ConnectionClosed(ConnectionClose {
        error_code: TransportErrorCode::crypto(alert.into()),
        frame_type: None,
        reason: Bytes::from_static(reason.as_bytes()),
    })
}

#[test]
fn refusals_are_told_in_words() {
    let cases = [
        (closed(AlertDescription::CertificateRequired, ""), "we presented no certificate"),
        (
            closed(AlertDescription::CertificateExpired, "certificate not valid yet: x"),
            "compare both machines' clocks",
        ),
        (closed(AlertDescription::CertificateExpired, "certificate expired: x"), "has expired: renew"),
        (closed(AlertDescription::UnknownCA, ""), "signed by another CA"),
        (closed(AlertDescription::DecryptError, "BadSignature"), "signed by another CA"),
        (
            closed(AlertDescription::BadCertificate, "certificate not valid for name \"::1\""),
            "address that was dialled",
        ),
        (closed(AlertDescription::NoApplicationProtocol, ""), "does not speak redmesh/1"),
        (closed(AlertDescription::InternalError, "x"), "InternalError (x)"),
        (ConnectionError::VersionMismatch, "no redmesh agent"),
    ];
    for (error, expected) in cases {
        let words = explain(&error).unwrap();
        assert!(words.contains(expected), "{expected:?} is not in {words:?}");
        assert!(is_refusal(&error), "{words}");
    }
}

#[test]
fn a_goodbye_is_no_refusal_and_a_peers_words_are_cleaned() {
    let close = |code, reason: &'static [u8]| {
        ConnectionError::ApplicationClosed(ApplicationClose {
            error_code: VarInt::from_u32(code),
            reason: Bytes::from_static(reason),
        })
    };
    assert!(!is_refusal(&close(CLOSE_DONE, b"agent is stopping")));
    assert!(is_refusal(&close(CLOSE_REFUSED, b"no")));
    let busy = close(CLOSE_BUSY, b"busy: 3");
    assert!(is_busy(&busy) && !is_refusal(&busy) && !is_busy(&close(CLOSE_REFUSED, b"no")));
    assert_eq!(explain(&busy).unwrap(), "busy: 3");
    assert_eq!(explain(&close(CLOSE_REFUSED, b"a\nb\x1b")).unwrap(), "a b ");
    assert_eq!(explain(&close(CLOSE_DONE, b"")), None);
    for error in [ConnectionError::TimedOut, ConnectionError::Reset, ConnectionError::LocallyClosed] {
        assert!(!is_refusal(&error));
    }
}

#[test]
fn names_are_dns_labels() {
    let long = "a".repeat(NAME_BYTES_MAX);
    for good in ["a", "host-1", "0", long.as_str()] {
        assert!(valid_name(good), "{good}");
    }
    let longer = "a".repeat(NAME_BYTES_MAX + 1);
    for bad in ["", "A", "a_b", "a.b", "-", "a-", "ä", longer.as_str()] {
        assert!(!valid_name(bad), "{bad}");
    }
}
