//! A connection's end in words for people.

use quinn::{ConnectionError, TransportErrorCode};
use rustls::AlertDescription;

use crate::frames::{CLOSE_BUSY, CLOSE_REFUSED, readable};

/// QUIC carries a TLS alert as 0x100 + its number (RFC 9001, section 4.8).
const CRYPTO_ERRORS: std::ops::Range<u64> = 0x100..0x200;

const RENEW: &str = "renew it with `redmeshctl pki issue … --renew`";

/// Which side refused.
#[derive(Clone, Copy)]
enum Refuser {
    Here,
    Peer,
}

/// Why a connection ended, in words, where there is more to say than that it did.
///
/// With TLS 1.3 a client's handshake is over before the server has looked at the
/// client's certificate, so that a refusal shows as the end of a connection that was
/// there: ask here whenever one ends, not only when one can't be made.
pub fn explain(error: &ConnectionError) -> Option<String> {
    match error {
        ConnectionError::VersionMismatch => {
            Some("the peer speaks another version of QUIC: that is no redmesh agent".into())
        }
        ConnectionError::TransportError(error) => alert(error.code.into(), &error.reason, Refuser::Here),
        ConnectionError::ConnectionClosed(close) if turned_away(error) => Some(format!(
            "the agent turns connections away: too many at once{}",
            in_brackets(&readable(&close.reason))
        )),
        ConnectionError::ConnectionClosed(close) => {
            alert(close.error_code.into(), &readable(&close.reason), Refuser::Peer)
        }
        ConnectionError::ApplicationClosed(close) if !close.reason.is_empty() => {
            Some(readable(&close.reason))
        }
        ConnectionError::Reset => Some("the peer was restarted".into()),
        ConnectionError::TimedOut => Some("no answer: nothing listens there, or UDP does not pass".into()),
        ConnectionError::ApplicationClosed(_)
        | ConnectionError::LocallyClosed
        | ConnectionError::CidsExhausted => None,
    }
}

/// Whether a connection ended because one side would not have the other.
pub fn is_refusal(error: &ConnectionError) -> bool {
    match error {
        ConnectionError::TransportError(error) => CRYPTO_ERRORS.contains(&error.code.into()),
        ConnectionError::ConnectionClosed(close) => CRYPTO_ERRORS.contains(&close.error_code.into()),
        ConnectionError::ApplicationClosed(close) => {
            close.error_code.into_inner() == u64::from(CLOSE_REFUSED)
        }
        ConnectionError::VersionMismatch => true,
        _ => false,
    }
}

/// Whether a connection was turned away before its handshake began: for want of room,
/// which passes, and not for what it is.
pub fn turned_away(error: &ConnectionError) -> bool {
    matches!(error, ConnectionError::ConnectionClosed(close)
        if close.error_code == TransportErrorCode::CONNECTION_REFUSED)
}

/// Whether a connection was ended because the agent has too many: in its words, which
/// [`explain`] gives. It passes.
pub fn is_busy(error: &ConnectionError) -> bool {
    matches!(error, ConnectionError::ApplicationClosed(close)
        if close.error_code.into_inner() == u64::from(CLOSE_BUSY))
}

fn alert(code: u64, detail: &str, refuser: Refuser) -> Option<String> {
    if !CRYPTO_ERRORS.contains(&code) {
        return None;
    }
    let (whose, says) = match refuser {
        Refuser::Here => ("the peer's certificate", ""),
        Refuser::Peer => ("our certificate", "the peer says: "),
    };
    // In range, so the difference is below 256.
    let words = match AlertDescription::from((code - CRYPTO_ERRORS.start) as u8) {
        AlertDescription::CertificateRequired => match refuser {
            Refuser::Here => "the peer presented no certificate".into(),
            Refuser::Peer => "we presented no certificate".into(),
        },
        AlertDescription::CertificateExpired if detail.contains("not valid yet") => {
            format!("{whose} is not yet valid: compare both machines' clocks{}", in_brackets(detail))
        }
        AlertDescription::CertificateExpired => {
            format!("{whose} has expired: {RENEW}{}", in_brackets(detail))
        }
        // Two CAs of the same subject differ only in the signature.
        AlertDescription::UnknownCA | AlertDescription::DecryptError => {
            format!("{whose} was signed by another CA: both sides need certificates of the same mesh's CA")
        }
        AlertDescription::BadCertificate if detail.contains("not valid for name") => format!(
            "{whose} is not for the address that was dialled: issue it with every --ip that the host is \
             reached at{}",
            in_brackets(detail)
        ),
        AlertDescription::BadCertificate
        | AlertDescription::UnsupportedCertificate
        | AlertDescription::CertificateUnknown
        | AlertDescription::CertificateRevoked
        | AlertDescription::AccessDenied => format!("{whose} was refused{}", in_brackets(detail)),
        AlertDescription::NoApplicationProtocol => {
            "the other side does not speak redmesh/1: that is no redmesh agent, or one of another version"
                .into()
        }
        AlertDescription::ProtocolVersion | AlertDescription::HandshakeFailure => {
            format!("no common TLS 1.3 parameters: that is no redmesh agent{}", in_brackets(detail))
        }
        other => format!("TLS alert {other:?}{}", in_brackets(detail)),
    };
    Some(format!("{says}{words}"))
}

fn in_brackets(detail: &str) -> String {
    let detail = detail.trim_start_matches("invalid peer certificate: ");
    if detail.is_empty() { String::new() } else { format!(" ({})", readable(detail.as_bytes())) }
}
