//! The secret from which the passwords of a mesh's redis-servers come.
//!
//! `pki init` makes one, each host's identity directory holds a copy, operators get none.
//! Two passwords are derived from it (HMAC-SHA256): the agents' own, and the one that
//! clients get. Neither leads back to the secret or to the other, so whoever is given the
//! clients' can be locked out without the agents noticing. Never shown by `Debug`.
//!
//! While one secret takes another's place both are good, and the file holds both.

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

/// Digits of a fingerprint.
const FINGERPRINT_DIGITS: usize = 8;

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
        "{} does not hold a secret of {} hexadecimal digits, nor two, a line each: copy it again from where `redmeshctl pki init` wrote it",
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

    /// By which people tell one secret from another; it leads back to none.
    pub fn fingerprint(&self) -> String {
        let mut text = self.derived(b"redmesh redis secret's fingerprint");
        text.truncate(FINGERPRINT_DIGITS);
        text
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
        rule(&self.agent_password())
    }

    /// The clients' password as an ACL rule may hold it.
    pub fn client_password_rule(&self) -> String {
        rule(&self.client_password())
    }

    fn line(&self) -> String {
        format!("{}\n", hex(&self.0))
    }

    fn derived(&self, label: &[u8]) -> String {
        hex(hmac::sign(&hmac::Key::new(hmac::HMAC_SHA256, &self.0), label).as_ref())
    }
}

fn rule(password: &str) -> String {
    format!("#{}", hex(digest::digest(&digest::SHA256, password.as_bytes()).as_ref()))
}

/// The secrets that are good: one, or two while one takes the other's place.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct RedisSecrets {
    newest: RedisSecret,
    former: Option<RedisSecret>,
}

impl From<RedisSecret> for RedisSecrets {
    fn from(newest: RedisSecret) -> Self {
        Self { newest, former: None }
    }
}

impl RedisSecrets {
    /// `newest`, and `former` beside it where that is another one.
    pub fn with(newest: RedisSecret, former: Option<RedisSecret>) -> Self {
        let former = former.filter(|former| *former != newest);
        Self { newest, former }
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

    /// What the file holds: a line for each, the newest first.
    pub fn file_text(&self) -> String {
        self.all().map(RedisSecret::line).collect()
    }

    /// Reads [`RedisSecrets::file_text`] back.
    pub fn parse(text: &str) -> Option<Self> {
        let mut lines = text.trim_ascii_end().split('\n').map(|line| from_hex(line).map(RedisSecret));
        let newest = lines.next()??;
        let former = match lines.next() {
            None => None,
            Some(line) => Some(line?),
        };
        lines.next().is_none().then(|| Self::with(newest, former))
    }

    /// The one to be used.
    pub fn newest(&self) -> &RedisSecret {
        &self.newest
    }

    /// The one whose place it takes, while that is still good.
    pub fn former(&self) -> Option<&RedisSecret> {
        self.former.as_ref()
    }

    /// All that are good, the newest first.
    pub fn all(&self) -> impl Iterator<Item = &RedisSecret> {
        std::iter::once(&self.newest).chain(&self.former)
    }
}

#[cfg(test)]
mod tests {
    use std::fs;

    use super::*;

    #[test]
    fn a_secret_comes_back_from_its_file_and_shows_nowhere() {
        let dir = tempfile::tempdir().unwrap();
        let secret = RedisSecrets::from(RedisSecret::generate().unwrap());
        assert_ne!(secret.newest, RedisSecret::generate().unwrap());
        let path = dir.path().join(REDIS_SECRET_FILE);
        assert!(matches!(RedisSecrets::load(dir.path()), Err(SecretError::Read { .. })));
        fs::write(&path, secret.file_text()).unwrap();
        fs::set_permissions(&path, fs::Permissions::from_mode(0o640)).unwrap();
        let error = RedisSecrets::load(dir.path()).unwrap_err();
        assert!(error.to_string().contains("has mode 0640"), "{error}");
        fs::set_permissions(&path, fs::Permissions::from_mode(0o600)).unwrap();
        assert_eq!(RedisSecrets::load(dir.path()).unwrap(), secret);
        let text = secret.file_text();
        let three = format!("{text}{text}{text}");
        for wrong in ["", "ab", &text[1..], &three, &format!("{text}ab"), &"g".repeat(64), &"é".repeat(32)] {
            fs::write(&path, wrong).unwrap();
            let error = RedisSecrets::load(dir.path()).unwrap_err();
            assert!(matches!(error, SecretError::Malformed { .. }), "{wrong:?}: {error}");
        }
        let shown = format!("{secret:?}");
        assert!(!shown.contains(&text[..8]), "{shown}");
    }

    #[test]
    fn two_secrets_stand_in_the_file_the_newest_first() {
        let (one, two) = (RedisSecret([1; 32]), RedisSecret([2; 32]));
        let both = RedisSecrets::with(two.clone(), Some(one.clone()));
        let text = both.file_text();
        assert!(text.starts_with("0202") && text.lines().count() == 2, "{text}");
        assert_eq!(RedisSecrets::parse(&text), Some(both.clone()));
        assert_eq!(both.all().collect::<Vec<_>>(), [&two, &one]);
        assert_eq!(RedisSecrets::with(one.clone(), Some(one.clone())), one.clone().into());
        assert_eq!(RedisSecrets::parse(&format!("{}{}", one.line(), one.line())), Some(one.clone().into()));
        assert_ne!(one.fingerprint(), two.fingerprint());
        assert!(one.fingerprint().len() == 8 && !one.agent_password().starts_with(&one.fingerprint()));
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
