//! Join tokens: how a host without a certificate proves that it was invited.
//!
//! A token is a text that an operator hands to new hosts: the mesh, the hash of its CA,
//! and a secret. The secret is the seed of an Ed25519 key (RFC 8032); the mesh stores the
//! public key alone, under an id that is made of it, so that nothing that is stored or
//! sent leads back to the secret. A proof is a signature over the request and over a
//! value that TLS exports from this one connection (RFC 5705), so it is worth nothing on
//! another. Nothing here does IO but [`JoinToken::load`]; the wire is `redmesh-join/1`.

use std::fmt;
use std::io::Read;
use std::net::IpAddr;
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::str::FromStr;

use ring::digest;
use ring::rand::SecureRandom;
use ring::signature::{ED25519, Ed25519KeyPair, KeyPair, UnparsedPublicKey};
use serde::{Deserialize, Serialize};
use uuid::Uuid;

use crate::hex::{from_hex, hex};
use crate::ids::MeshId;

/// Port of the join service: UDP, beside the agents' own.
pub const JOIN_PORT_DEFAULT: u16 = 7381;

/// What TLS is asked to export for a proof.
pub const EXPORTER_LABEL: &[u8] = b"EXPORTER-redmesh-join";

/// Bytes of it.
pub const EXPORTER_BYTES: usize = 32;

/// Longest life of a token, seconds: a week.
pub const TTL_S_MAX: u32 = 7 * 24 * 3600;

/// Shortest life, seconds.
pub const TTL_S_MIN: u32 = 1;

/// Hosts that one token may let in.
pub const USES_MAX: u16 = 256;

/// Tokens that a mesh remembers, those that are over included.
pub const TOKENS_MAX: usize = 32;

/// A file of more bytes holds no token.
const FILE_BYTES_MAX: u64 = 4096;

const KIND: &str = "redmesh-join-1";

/// Put before what is signed, so that no other signature passes for a proof.
const SIGNED_PREFIX: &[u8] = b"redmesh join 1\0";

/// Names a token: the first bytes of its public key's hash.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
pub struct TokenId([u8; 8]);

impl TokenId {
    /// The id of the token with this public key.
    pub fn of(key: &[u8; 32]) -> Self {
        let sum = digest::digest(&digest::SHA256, key);
        let mut id = [0; 8];
        id.copy_from_slice(&sum.as_ref()[..8]);
        Self(id)
    }
}

impl fmt::Display for TokenId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&hex(&self.0))
    }
}

impl fmt::Debug for TokenId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(self, f)
    }
}

impl FromStr for TokenId {
    type Err = TokenError;

    fn from_str(text: &str) -> Result<Self, TokenError> {
        from_hex(text).map(Self).ok_or(TokenError::Id)
    }
}

/// SHA-256 of a CA's certificate.
#[derive(Clone, Copy, PartialEq, Eq)]
pub struct CaPin([u8; 32]);

impl CaPin {
    /// Of a certificate, DER.
    pub fn of(certificate: &[u8]) -> Self {
        let mut pin = [0; 32];
        pin.copy_from_slice(digest::digest(&digest::SHA256, certificate).as_ref());
        Self(pin)
    }
}

impl fmt::Display for CaPin {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&hex(&self.0))
    }
}

impl fmt::Debug for CaPin {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(self, f)
    }
}

/// Texts and files that are no token.
#[derive(Debug, thiserror::Error)]
pub enum TokenError {
    /// The file can't be read.
    #[error("can't read the join token in {}: make one with `redmeshctl join-token create`", .path.display())]
    Read {
        /// Which.
        path: PathBuf,
        /// Why.
        #[source]
        source: std::io::Error,
    },
    /// Others than the owner may read it.
    #[error("{} has mode {mode:04o}, so others than its owner can read the join token: `chmod 600 {}`", .path.display(), .path.display())]
    Mode {
        /// The file.
        path: PathBuf,
        /// Its permission bits.
        mode: u32,
    },
    /// Not a token, or not a whole one. Never shows the text.
    #[error(
        "that is no join token, or only a part of one: copy it whole, as `redmeshctl join-token create` printed it"
    )]
    Malformed,
    /// Not an id.
    #[error("a token's id has 16 hex digits: `redmeshctl join-token list` shows them")]
    Id,
    /// The operating system gives no random bytes.
    #[error("the system gives no random bytes")]
    Random,
}

/// What a new host is handed. Shown by nothing but [`JoinToken::text`].
#[derive(Clone, PartialEq, Eq)]
pub struct JoinToken {
    /// The mesh that it is for.
    pub mesh: MeshId,
    /// The CA under which that mesh's agents are.
    pub ca: CaPin,
    seed: [u8; 32],
    key: [u8; 32],
}

impl fmt::Debug for JoinToken {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("JoinToken").field("id", &self.id()).finish_non_exhaustive()
    }
}

impl JoinToken {
    /// A new one.
    ///
    /// # Errors
    /// [`TokenError::Random`].
    pub fn generate(mesh: MeshId, ca: CaPin) -> Result<Self, TokenError> {
        let mut seed = [0; 32];
        ring::rand::SystemRandom::new().fill(&mut seed).map_err(|_| TokenError::Random)?;
        Self::new(mesh, ca, seed)
    }

    fn new(mesh: MeshId, ca: CaPin, seed: [u8; 32]) -> Result<Self, TokenError> {
        let pair = Ed25519KeyPair::from_seed_unchecked(&seed).map_err(|_| TokenError::Malformed)?;
        let mut key = [0; 32];
        key.copy_from_slice(pair.public_key().as_ref());
        Ok(Self { mesh, ca, seed, key })
    }

    /// Its id.
    pub fn id(&self) -> TokenId {
        TokenId::of(&self.key)
    }

    /// What the mesh stores of it.
    pub fn public_key(&self) -> [u8; 32] {
        self.key
    }

    /// The text that is handed over; it is the secret.
    pub fn text(&self) -> String {
        let body = format!("{KIND}.{}.{}.{}.{}", self.id(), self.mesh.0.simple(), self.ca, hex(&self.seed));
        let sum = check(&body);
        format!("{body}.{sum}")
    }

    /// Reads [`JoinToken::text`] back.
    ///
    /// # Errors
    /// [`TokenError::Malformed`].
    pub fn parse(text: &str) -> Result<Self, TokenError> {
        let text = text.trim();
        let (body, sum) = text.rsplit_once('.').ok_or(TokenError::Malformed)?;
        if check(body) != sum {
            return Err(TokenError::Malformed);
        }
        let parts: Vec<&str> = body.split('.').collect();
        let [KIND, id, mesh, ca, seed] = parts[..] else { return Err(TokenError::Malformed) };
        let mesh = MeshId(Uuid::try_parse(mesh).map_err(|_| TokenError::Malformed)?);
        let ca = CaPin(from_hex(ca).ok_or(TokenError::Malformed)?);
        let token = Self::new(mesh, ca, from_hex(seed).ok_or(TokenError::Malformed)?)?;
        if token.id().to_string() == id { Ok(token) } else { Err(TokenError::Malformed) }
    }

    /// Reads a file that is its owner's alone.
    ///
    /// # Errors
    /// Any [`TokenError`] but the last two.
    pub fn load(path: &Path) -> Result<Self, TokenError> {
        let failed = |source| TokenError::Read { path: path.to_owned(), source };
        let file = std::fs::File::open(path).map_err(failed)?;
        let mode = file.metadata().map_err(failed)?.permissions().mode() & 0o7777;
        if mode & 0o077 != 0 {
            return Err(TokenError::Mode { path: path.to_owned(), mode });
        }
        let mut text = String::new();
        file.take(FILE_BYTES_MAX).read_to_string(&mut text).map_err(failed)?;
        Self::parse(&text)
    }

    /// Proves to have the secret, for `ask` on the connection that exported `binding`.
    ///
    /// # Errors
    /// [`TokenError::Malformed`] where the seed makes no key, which can't be.
    pub fn prove(&self, ask: &[u8], binding: &[u8; EXPORTER_BYTES]) -> Result<Vec<u8>, TokenError> {
        let pair = Ed25519KeyPair::from_seed_unchecked(&self.seed).map_err(|_| TokenError::Malformed)?;
        Ok(pair.sign(&signed(ask, binding)).as_ref().to_vec())
    }
}

/// Whether `proof` was made by the token with the public key `key`, for `ask`, on the
/// connection that exported `binding`.
pub fn proves(key: &[u8; 32], ask: &[u8], binding: &[u8; EXPORTER_BYTES], proof: &[u8]) -> bool {
    UnparsedPublicKey::new(&ED25519, key).verify(&signed(ask, binding), proof).is_ok()
}

fn signed(ask: &[u8], binding: &[u8; EXPORTER_BYTES]) -> Vec<u8> {
    [SIGNED_PREFIX, binding, ask].concat()
}

/// Against a text that was cut or mistyped; not against anybody.
fn check(body: &str) -> String {
    hex(&digest::digest(&digest::SHA256, body.as_bytes()).as_ref()[..4])
}

/// A token as the mesh remembers it.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct TokenRecord {
    /// Made of the key.
    pub id: TokenId,
    /// Whose private half is the secret.
    pub key: [u8; 32],
    /// By the coordinator's clock, Unix milliseconds.
    pub created_unix_ms: u64,
    /// From then on it lets nobody in, by the coordinator's clock.
    pub expires_unix_ms: u64,
    /// Hosts that it may let in.
    pub uses: u16,
    /// Whether an operator took it back.
    pub revoked: bool,
    /// Hosts that it has let in; at most `uses`.
    pub enrolled: Vec<Enrolled>,
}

impl TokenRecord {
    /// Whether it lets no further host in.
    pub fn is_over(&self, now_unix_ms: u64) -> bool {
        self.revoked || self.expires_unix_ms <= now_unix_ms || self.enrolled.len() >= usize::from(self.uses)
    }
}

/// A host that a token has let in.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Enrolled {
    /// Its certificate's name.
    pub name: String,
    /// Its certificate's address.
    pub ip: IpAddr,
    /// SHA-256 of its public key.
    pub key: [u8; 32],
    /// By the coordinator's clock, Unix milliseconds.
    pub at_unix_ms: u64,
}

/// The one request of the join service.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct JoinRequest {
    /// By which token.
    pub token: TokenId,
    /// A [`JoinAsk`], encoded: it is what the proof is about.
    pub ask: Vec<u8>,
    /// See [`JoinToken::prove`].
    pub proof: Vec<u8>,
}

/// What a new host asks for; read only once its proof holds.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct JoinAsk {
    /// The mesh that its token names.
    pub mesh: MeshId,
    /// The name that it is to have.
    pub name: String,
    /// The address that it is reached at: the one that it dials from.
    pub ip: IpAddr,
    /// A certificate signing request (PKCS #10, DER); of it the key alone counts.
    pub csr: Vec<u8>,
    /// Its clock, Unix milliseconds.
    pub unix_ms: u64,
}

/// The answer.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub enum JoinReply {
    /// A certificate.
    Joined(JoinedIdentity),
    /// None, and why.
    Refused(JoinRefusal),
}

/// What goes into the identity's directory, beside the key that never left it.
#[derive(Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct JoinedIdentity {
    /// The CAs of the mesh, PEM.
    pub ca: String,
    /// The host's certificate and the signer's, PEM.
    pub chain: String,
    /// What `redis.secret` holds, where the signing host has one.
    pub redis_secret: Option<String>,
}

impl fmt::Debug for JoinedIdentity {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        // Never the secret.
        f.debug_struct("JoinedIdentity").field("chain", &self.chain).finish_non_exhaustive()
    }
}

/// Why a host was not let in.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, thiserror::Error)]
#[error("{message}")]
pub struct JoinRefusal {
    /// For programs.
    pub kind: JoinRefusalKind,
    /// For people, with the remedy.
    pub message: String,
}

/// Classes of [`JoinRefusal`].
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub enum JoinRefusalKind {
    /// No such token, or no proof of its secret: which of them is not told.
    Unproven,
    /// The token lets nobody in (any more).
    Token,
    /// What was asked for can't be had.
    Invalid,
    /// Not now: nothing was done, try again.
    Later,
}

impl JoinRefusal {
    /// One that passes.
    pub fn later(message: impl Into<String>) -> Self {
        Self { kind: JoinRefusalKind::Later, message: message.into() }
    }

    /// One about what was asked for.
    pub fn invalid(message: impl Into<String>) -> Self {
        Self { kind: JoinRefusalKind::Invalid, message: message.into() }
    }

    /// One about the token.
    pub fn token(message: impl Into<String>) -> Self {
        Self { kind: JoinRefusalKind::Token, message: message.into() }
    }

    /// The one answer to whoever proves nothing.
    pub fn unproven() -> Self {
        Self {
            kind: JoinRefusalKind::Unproven,
            message: "this mesh has no such join token, or its secret is another: was it made for this mesh, and is \
                      it not older than a week?"
                .to_owned(),
        }
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn token() -> JoinToken {
        JoinToken::generate(MeshId(Uuid::from_u128(7)), CaPin::of(b"a CA")).expect("a token")
    }

    #[test]
    fn a_token_comes_back_from_its_text_and_shows_nowhere_else() {
        let token = token();
        let text = token.text();
        assert_eq!(JoinToken::parse(&format!(" {text}\n")).expect("parses"), token);
        assert!(!format!("{token:?}").contains(&hex(&token.seed)[..8]));
        assert_eq!(token.id().to_string().parse::<TokenId>().expect("an id"), token.id());
        assert_ne!(token, self::token());
        for cut in 0..text.len() {
            assert!(JoinToken::parse(&text[..cut]).is_err(), "cut at {cut}");
        }
        // Any one digit that is another one.
        for (at, byte) in text.bytes().enumerate() {
            let mut other = text.clone().into_bytes();
            other[at] = if byte == b'0' { b'1' } else { b'0' };
            assert!(JoinToken::parse(&String::from_utf8(other).expect("ASCII")).is_err(), "digit {at}");
        }
    }

    proptest! {
        #[test]
        fn hostile_texts_never_panic(text: String) {
            let checked = format!("{text}.{}", check(&text));
            prop_assert!(JoinToken::parse(&text).is_err());
            prop_assert!(JoinToken::parse(&checked).is_err());
        }
    }

    #[test]
    fn a_proof_is_worth_nothing_elsewhere() {
        let (token, other) = (token(), token());
        let binding = [1; EXPORTER_BYTES];
        let proof = token.prove(b"ask", &binding).expect("a proof");
        assert!(proves(&token.public_key(), b"ask", &binding, &proof));
        assert!(!proves(&token.public_key(), b"ask", &[2; EXPORTER_BYTES], &proof), "another connection");
        assert!(!proves(&token.public_key(), b"another", &binding, &proof));
        assert!(!proves(&other.public_key(), b"ask", &binding, &proof), "another token");
        assert!(!proves(&token.public_key(), b"ask", &binding, &proof[..63]));
        assert!(!proves(&[0; 32], b"ask", &binding, &proof), "no key at all");
    }

    #[test]
    fn a_token_file_must_be_its_owners_alone() {
        let dir = tempfile::tempdir().expect("a directory");
        let path = dir.path().join("token");
        assert!(matches!(JoinToken::load(&path), Err(TokenError::Read { .. })));
        let token = token();
        std::fs::write(&path, token.text()).expect("write");
        std::fs::set_permissions(&path, std::fs::Permissions::from_mode(0o644)).expect("chmod");
        assert!(JoinToken::load(&path).expect_err("too open").to_string().contains("chmod 600"));
        std::fs::set_permissions(&path, std::fs::Permissions::from_mode(0o600)).expect("chmod");
        assert_eq!(JoinToken::load(&path).expect("loads"), token);
        std::fs::write(&path, "nothing").expect("write");
        let words = JoinToken::load(&path).expect_err("no token").to_string();
        assert!(words.contains("copy it whole") && !words.contains("nothing"), "{words}");
    }
}
