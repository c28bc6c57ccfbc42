//! What the agent says to its redis-servers before anything else, if they want it.
//!
//! One value for all that talk to servers: load threads, admin connections, probes. Never
//! shown, and never put where others could read it: not into a log, an error or a command
//! line.

use std::fmt;
use std::sync::{Arc, PoisonError, RwLock};

use redmesh_api::secret::{AGENT_USER, RedisSecret, RedisSecrets};

/// A user's name and password.
#[derive(Clone, PartialEq, Eq)]
pub struct Login {
    user: Option<String>,
    password: String,
}

impl Login {
    /// As the agents' own user, whose password comes from the mesh's secret.
    pub fn agent(secret: &RedisSecret) -> Self {
        Self { user: Some(AGENT_USER.to_owned()), password: secret.agent_password() }
    }

    /// As the default user: what `requirepass` sets.
    pub fn default_user(password: impl Into<String>) -> Self {
        Self { user: None, password: password.into() }
    }

    /// The user, where it isn't the default one.
    pub fn user(&self) -> Option<&str> {
        self.user.as_deref()
    }

    /// The password.
    pub fn password(&self) -> &str {
        &self.password
    }

    /// The command, word by word.
    pub fn words(&self) -> Vec<&str> {
        ["AUTH"].into_iter().chain(self.user()).chain([self.password()]).collect()
    }

    /// The command as it goes over the wire.
    pub fn command(&self) -> Box<[u8]> {
        let words = self.words();
        let mut command = format!("*{}\r\n", words.len());
        for word in words {
            command.push_str(&format!("${}\r\n{word}\r\n", word.len()));
        }
        command.into_bytes().into()
    }
}

impl fmt::Debug for Login {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Login").field("user", &self.user).finish_non_exhaustive()
    }
}

/// What to say at the moment: nothing, one login, or several of which a server takes at least
/// one, the likeliest first. Clones share it, so that all who connect take up another password.
#[derive(Debug, Clone, Default)]
pub struct Logins(Arc<RwLock<Arc<[Login]>>>);

impl From<Login> for Logins {
    fn from(login: Login) -> Self {
        Self::new([login])
    }
}

impl Logins {
    /// These.
    pub fn new(logins: impl IntoIterator<Item = Login>) -> Self {
        Self(Arc::new(RwLock::new(logins.into_iter().collect())))
    }

    /// As the agents' own user, by whichever secret.
    pub fn agent(secrets: &RedisSecrets) -> Self {
        Self::new(secrets.all().map(Login::agent))
    }

    /// As they are now.
    pub fn get(&self) -> Arc<[Login]> {
        self.0.read().unwrap_or_else(PoisonError::into_inner).clone()
    }

    /// From now on by these secrets.
    pub fn set(&self, secrets: &RedisSecrets) {
        let logins = secrets.all().map(Login::agent).collect();
        *self.0.write().unwrap_or_else(PoisonError::into_inner) = logins;
    }
}

/// Whom this host's servers let in, and as whom its replicas log in at others' primaries.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Access {
    /// Either of these.
    pub accepted: RedisSecrets,
    /// A replica has one password alone.
    pub replicate: RedisSecret,
    /// Whether that is known to be taken everywhere; else running servers keep theirs.
    pub settled: bool,
}

impl From<RedisSecrets> for Access {
    /// As at an agent's start: of two secrets the former one is known to be taken.
    fn from(accepted: RedisSecrets) -> Self {
        let settled = accepted.former().is_none();
        let replicate = accepted.former().unwrap_or(accepted.newest()).clone();
        Self { accepted, replicate, settled }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_command_names_the_user_where_there_is_one_and_nothing_shows_the_password() {
        let plain = Login::default_user("p w");
        assert_eq!(&*plain.command(), b"*2\r\n$4\r\nAUTH\r\n$3\r\np w\r\n");
        let secret = RedisSecret::generate().unwrap();
        let agent = Login::agent(&secret);
        assert_eq!(agent.words(), ["AUTH", "redmesh", &secret.agent_password()]);
        for login in [&plain, &agent] {
            assert!(!format!("{login:?}").contains(login.password()));
        }
    }
}
