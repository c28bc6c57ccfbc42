//! The secret from which the passwords of a mesh's redis-servers come.
//!
//! `pki init` makes one, each host's identity directory holds a copy, operators get none.
//! Two passwords are derived from it (HMAC-SHA256): the agents' own, and the one that
//! clients get. Neither leads back to the secret or to the other, so whoever is given the
//! clients' can be locked out without the agents noticing. Never shown by `Debug`.

use std::fmt;
use std::io::Read;
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};

use ring::rand::SecureRandom;
use ring::{digest, hmac};

use crate::hex::{from_hex, hex};

/// Its file, in a CA's and in a host's directory; mode 0600.
pub const REDIS_SECRET_FILE: &str = "redis.secret";

/// The ACL user that agents log in as.
pub const AGENT_USER: &str = "redmesh";

const SECRET_BYTES: usize = 32;

/// A file of more bytes is none of ours.
const FILE_BYTES_MAX: u64 = 1024;

/// Why there is no secret.
#[derive(Debug, thiserror::Error)]
pub enum SecretError {
    /// The file can't be read.
    #[error(
        "can't read {}: copy it from where `redmeshctl pki issue` wrote it (it is the same for every host), or set \
         redis.auth = \"off\" to run the redis-servers without a password", .path.display()
    )]
    Read {
        /// Which.
        path: PathBuf,
        /// Why.
        #[source]
        source: std::io::Error,
    },
    /// Others than the owner may read it.
    #[error("{} has mode {mode:04o}, so others than its owner can read it: `chmod 600 {}`", .path.display(), .path.display())]
    Mode {
        /// The file.
        path: PathBuf,
        /// Its permission bits.
        mode: u32,
    },
    /// Not what `pki init` writes.
    #[error(
        "{} does not hold {} hexadecimal digits: copy it again from where `redmeshctl pki init` wrote it",
        .path.display(), SECRET_BYTES * 2
    )]
    Malformed {
        /// The file; never what is in it.
        path: PathBuf,
    },
    /// The operating system gives no random bytes.
    #[error("the system gives no random bytes")]
    Random,
}

/// See the module.
#[derive(Clone, PartialEq, Eq)]
pub struct RedisSecret([u8; SECRET_BYTES]);

impl fmt::Debug for RedisSecret {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("RedisSecret(…)")
    }
}

impl RedisSecret {
    /// A new one.
    pub fn generate() -> Result<Self, SecretError> {
        let mut bytes = [0; SECRET_BYTES];
        ring::rand::SystemRandom::new().fill(&mut bytes).map_err(|_| SecretError::Random)?;
        Ok(Self(bytes))
    }

    /// Reads [`REDIS_SECRET_FILE`] in `dir`; it must be its owner's alone.
    pub fn load(dir: &Path) -> Result<Self, SecretError> {
        let path = dir.join(REDIS_SECRET_FILE);
        let failed = |source| SecretError::Read { path: path.clone(), source };
        let file = std::fs::File::open(&path).map_err(failed)?;
        let mode = file.metadata().map_err(failed)?.permissions().mode() & 0o7777;
        if mode & 0o077 != 0 {
            return Err(SecretError::Mode { path, mode });
        }
        let mut text = String::new();
        // The rest of a longer one is not looked at: it is refused by its length.
        file.take(FILE_BYTES_MAX).read_to_string(&mut text).map_err(failed)?;
        Self::parse(&text).ok_or(SecretError::Malformed { path })
    }

    /// What the file holds.
    pub fn file_text(&self) -> String {
        format!("{}\n", hex(&self.0))
    }

    /// Reads [`RedisSecret::file_text`] back.
    pub fn parse(text: &str) -> Option<Self> {
        from_hex(text.trim_ascii_end()).map(Self)
    }

    /// Password of the user [`AGENT_USER`].
    pub fn agent_password(&self) -> String {
        self.derived(b"redmesh redis password of the agents")
    }

    /// Password of the default user: what clients say with a bare `AUTH`.
    pub fn client_password(&self) -> String {
        self.derived(b"redmesh redis password of clients")
    }

    /// The agents' password as an ACL rule may hold it: `#` and its SHA-256.
    pub fn agent_password_rule(&self) -> String {
        let sum = digest::digest(&digest::SHA256, self.agent_password().as_bytes());
        format!("#{}", hex(sum.as_ref()))
    }

    fn derived(&self, label: &[u8]) -> String {
        hex(hmac::sign(&hmac::Key::new(hmac::HMAC_SHA256, &self.0), label).as_ref())
    }
}

#[cfg(test)]
mod tests {
    use std::fs;

    use super::*;

    #[test]
    fn a_secret_comes_back_from_its_file_and_shows_nowhere() {
        let dir = tempfile::tempdir().unwrap();
        let secret = RedisSecret::generate().unwrap();
        assert_ne!(secret, RedisSecret::generate().unwrap());
        let path = dir.path().join(REDIS_SECRET_FILE);
        assert!(matches!(RedisSecret::load(dir.path()), Err(SecretError::Read { .. })));
        fs::write(&path, secret.file_text()).unwrap();
        fs::set_permissions(&path, fs::Permissions::from_mode(0o640)).unwrap();
        let error = RedisSecret::load(dir.path()).unwrap_err();
        assert!(error.to_string().contains("has mode 0640"), "{error}");
        fs::set_permissions(&path, fs::Permissions::from_mode(0o600)).unwrap();
        assert_eq!(RedisSecret::load(dir.path()).unwrap(), secret);
        let text = secret.file_text();
        for wrong in ["", "ab", &text[1..], &format!("{text}{text}"), &"g".repeat(64), &"é".repeat(32)] {
            fs::write(&path, wrong).unwrap();
            let error = RedisSecret::load(dir.path()).unwrap_err();
            assert!(matches!(error, SecretError::Malformed { .. }), "{wrong:?}: {error}");
        }
        let shown = format!("{secret:?}");
        assert!(!shown.contains(&text[..8]), "{shown}");
    }

    #[test]
    fn the_passwords_differ_and_depend_on_the_secret_alone() {
        let (one, two) = (RedisSecret([1; 32]), RedisSecret([2; 32]));
        assert_eq!(one.agent_password(), RedisSecret([1; 32]).agent_password());
        let all = [one.agent_password(), one.client_password(), two.agent_password(), two.client_password()];
        let distinct: std::collections::BTreeSet<_> = all.iter().collect();
        assert_eq!(distinct.len(), all.len());
        assert!(all.iter().all(|password| password.len() == 64));
        assert_eq!(one.agent_password_rule().len(), 65);
    }
}
