//! TLS of the join service: one side has no certificate yet and knows the other's CA by
//! its hash alone.
//!
//! It stands on an endpoint of its own, because TLS asks a client for its certificate
//! before it can know what the client wants: on the agents' own port strangers still end
//! in the handshake. The agent presents its CA's certificate with its own; the joining
//! side takes the one that the pin names, and no other, as its root.

use std::sync::Arc;

use quinn::crypto::rustls::{QuicClientConfig, QuicServerConfig};
use quinn::{ClientConfig, ServerConfig, VarInt};
use rustls::client::danger::{HandshakeSignatureValid, ServerCertVerified, ServerCertVerifier};
use rustls::client::{Resumption, WebPkiServerVerifier};
use rustls::crypto::verify_tls13_signature;
use rustls::pki_types::{CertificateDer, ServerName, UnixTime};
use rustls::server::NoServerSessionStorage;
use rustls::{CertificateError, DigitallySignedStruct, Error, RootCertStore, SignatureScheme};

use super::identity::provider;
use super::quic::common;
use super::{Identity, Role, TlsError, peer_of};
use crate::join::CaPin;

/// The application protocol of the join service.
pub const JOIN_ALPN: &[u8] = b"redmesh-join/1";

/// Bytes that arrive on one connection and are not read yet: the request, and some room.
const WINDOW_BYTES: u32 = 32 * 1024;

/// For a quinn endpoint that lets anybody ask to join.
///
/// # Errors
/// [`TlsError::Config`].
pub fn join_server_config(identity: &Identity) -> Result<ServerConfig, TlsError> {
    // Whoever joins learns the CA from here, and holds it against its pin.
    let chain = identity.chain().iter().chain(identity.cas()).cloned().collect();
    let mut config = rustls::ServerConfig::builder_with_provider(provider())
        .with_protocol_versions(&[&rustls::version::TLS13])
        .map_err(TlsError::Config)?
        .with_no_client_auth()
        .with_single_cert(chain, identity.key())
        .map_err(TlsError::Config)?;
    config.alpn_protocols = vec![JOIN_ALPN.to_vec()];
    config.session_storage = Arc::new(NoServerSessionStorage {});
    config.send_tls13_tickets = 0;
    let crypto = QuicServerConfig::try_from(config)
        .map_err(|error| TlsError::Config(Error::General(error.to_string())))?;
    let mut config = ServerConfig::with_crypto(Arc::new(crypto));
    let mut transport = common();
    transport
        .max_concurrent_bidi_streams(VarInt::from_u32(1))
        .max_concurrent_uni_streams(VarInt::from_u32(0))
        .stream_receive_window(VarInt::from_u32(WINDOW_BYTES))
        .receive_window(VarInt::from_u32(WINDOW_BYTES));
    config.transport_config(Arc::new(transport)).migration(false);
    super::quic::bound_incoming(&mut config);
    Ok(config)
}

/// For a side that knows of the mesh its CA's hash alone.
///
/// # Errors
/// [`TlsError::Config`].
pub fn join_client_config(pin: CaPin) -> Result<ClientConfig, TlsError> {
    let mut config = rustls::ClientConfig::builder_with_provider(provider())
        .with_protocol_versions(&[&rustls::version::TLS13])
        .map_err(TlsError::Config)?
        .dangerous()
        .with_custom_certificate_verifier(Arc::new(Pinned { pin }))
        .with_no_client_auth();
    config.alpn_protocols = vec![JOIN_ALPN.to_vec()];
    config.resumption = Resumption::disabled();
    let crypto = QuicClientConfig::try_from(config)
        .map_err(|error| TlsError::Config(Error::General(error.to_string())))?;
    let mut config = ClientConfig::new(Arc::new(crypto));
    let mut transport = common();
    transport
        .max_concurrent_bidi_streams(VarInt::from_u32(0))
        .max_concurrent_uni_streams(VarInt::from_u32(0));
    config.transport_config(Arc::new(transport));
    Ok(config)
}

/// Takes a host's certificate that leads to the one CA that is known by its hash.
#[derive(Debug)]
struct Pinned {
    pin: CaPin,
}

impl ServerCertVerifier for Pinned {
    fn verify_server_cert(
        &self,
        end_entity: &CertificateDer<'_>,
        intermediates: &[CertificateDer<'_>],
        server_name: &ServerName<'_>,
        ocsp_response: &[u8],
        now: UnixTime,
    ) -> Result<ServerCertVerified, Error> {
        let unknown = || Error::InvalidCertificate(CertificateError::UnknownIssuer);
        let ca = intermediates.iter().find(|cert| CaPin::of(cert) == self.pin).ok_or_else(unknown)?;
        let mut roots = RootCertStore::empty();
        roots.add(ca.clone().into_owned())?;
        let verifier = WebPkiServerVerifier::builder_with_provider(Arc::new(roots), provider())
            .build()
            .map_err(|error| Error::General(error.to_string()))?;
        let verified =
            verifier.verify_server_cert(end_entity, intermediates, server_name, ocsp_response, now)?;
        match peer_of(std::slice::from_ref(end_entity)) {
            Ok((Role::Host, _)) => Ok(verified),
            _ => Err(Error::InvalidCertificate(CertificateError::ApplicationVerificationFailure)),
        }
    }

    fn verify_tls12_signature(
        &self,
        _message: &[u8],
        _cert: &CertificateDer<'_>,
        _dss: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, Error> {
        Err(Error::General("TLS 1.3 only".to_owned()))
    }

    fn verify_tls13_signature(
        &self,
        message: &[u8],
        cert: &CertificateDer<'_>,
        dss: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, Error> {
        verify_tls13_signature(message, cert, dss, &provider().signature_verification_algorithms)
    }

    fn supported_verify_schemes(&self) -> Vec<SignatureScheme> {
        provider().signature_verification_algorithms.supported_schemes()
    }
}
