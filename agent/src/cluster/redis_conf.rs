//! `redis.conf` of one instance: redmesh's defaults, overridden by the user's
//! directives, except for those by which redmesh finds and places its servers.
//!
//! Pure text. Every value is quoted as Redis reads it (`sdssplitargs`), so that no
//! directive can smuggle in another one.

pub mod live;

use std::collections::BTreeSet;
use std::fmt;
use std::fmt::Write as _;
use std::net::SocketAddr;
use std::path::{Path, PathBuf};

use redmesh_api::secret::{AGENT_USER, RedisSecret};

use crate::login::Access;

/// `tcp-backlog`: the burst when all peers connect at once.
pub const TCP_BACKLOG: u32 = 4096;

/// Connections of clients, load threads, replicas and people that an instance must
/// have room for besides its bus links.
pub const CLIENTS_BESIDES_BUS: u32 = 4096;

/// `cluster-node-timeout` of the instances of a seeded cluster until it is formed,
/// milliseconds. Servers that are held can't answer: with the plan's timeout those that run
/// already would drop and dial links again, and tell everybody of failures.
pub const FORMING_NODE_TIMEOUT_MS: u32 = 3_600_000;

/// Instances from which on a cluster is large enough to be formed with care: its servers
/// released a few at a time. Below, that costs more time than it spares
/// (300 on two cores: 12 s against 6 s) and memory is no matter.
pub const LARGE_FROM: usize = 400;

/// Files of an identity that a server with TLS uses, by directive. Servers present the
/// certificate to clients, and as clients to each other.
const TLS_FILES: [(&str, &str); 3] =
    [("tls-cert-file", "cert.pem"), ("tls-key-file", "key.pem"), ("tls-ca-cert-file", "ca.pem")];

/// Directives and their values that a user may give; a bound on the file.
pub const DIRECTIVES_MAX: usize = 1000;

/// Bytes of one value.
pub const VALUE_BYTES_MAX: usize = 4096;

/// `maxclients` that an instance of a cluster of `instances` needs: Redis counts its
/// bus links as clients, two for each peer.
pub fn clients_needed(instances: usize) -> u32 {
    let links = u32::try_from(instances.saturating_sub(1)).unwrap_or(u32::MAX).saturating_mul(2);
    links.saturating_add(CLIENTS_BESIDES_BUS)
}

/// What goes into one instance's `redis.conf`.
#[derive(Clone)]
pub struct RedisConf {
    /// Address that it binds and announces.
    pub addr: SocketAddr,
    /// `cluster-node-timeout`, milliseconds.
    pub node_timeout_ms: u32,
    /// `hz`, ticks a second.
    pub hz: u32,
    /// Whether the instance is one of a seeded cluster that is being formed.
    pub forming: bool,
    /// `maxclients`; see [`clients_needed`].
    pub clients_needed: u32,
    /// The instance's own directory.
    pub dir: PathBuf,
    /// The host's `net.core.somaxconn`, where known: a larger backlog is cut to it,
    /// and the file says so.
    pub somaxconn: Option<u32>,
    /// The user's directives, each with all its values (one line a value; several
    /// words in a value are several arguments). They replace a default of that name.
    pub directives: Vec<(String, Vec<String>)>,
    /// Whose passwords are good; `None` sets none but what the directives say.
    pub access: Option<Access>,
    /// Directory of the host's identity, whose certificate the server uses; `None` is a
    /// server without TLS, any other speaks nothing else.
    pub tls: Option<PathBuf>,
}

impl fmt::Debug for RedisConf {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        // The directives' values may be passwords.
        let names: Vec<_> = self.directives.iter().map(|(name, _)| name).collect();
        f.debug_struct("RedisConf")
            .field("addr", &self.addr)
            .field("dir", &self.dir)
            .field("directives", &names)
            .finish_non_exhaustive()
    }
}

/// A directive that can't be written.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum DirectiveError {
    /// One that redmesh owns.
    #[error("redis.directives: {name:?} can't be set here, {reason}")]
    Owned {
        /// Its name.
        name: String,
        /// Why, and what to set instead.
        reason: &'static str,
    },
    /// Not a directive's name.
    #[error("redis.directives: {name:?} is not a directive's name (letters, digits and dashes)")]
    Name {
        /// What was given.
        name: String,
    },
    /// The same name twice.
    #[error("redis.directives: {name:?} is given twice; give its values as an array")]
    Twice {
        /// Its name.
        name: String,
    },
    /// A control character, or too long.
    #[error("redis.directives: the value of {name:?} {problem}")]
    Value {
        /// The directive.
        name: String,
        /// What is wrong.
        problem: &'static str,
    },
    /// Unbalanced quotes.
    #[error("redis.directives: the value of {name:?} has unbalanced quotes")]
    Quotes {
        /// The directive; never its value, which may be a password.
        name: String,
    },
    /// One that can't be had together with the agents' own user.
    #[error(
        "redis.directives: {name:?} can't be set here, {reason}; or set redis.auth = \"off\" and requirepass"
    )]
    Access {
        /// Its name.
        name: String,
        /// Why.
        reason: &'static str,
    },
    /// Too many.
    #[error("redis.directives has {got} lines, more than {DIRECTIVES_MAX}")]
    TooMany {
        /// How many.
        got: usize,
    },
    /// A directory that can't be named in a file of lines.
    #[error("the directory {dir:?} is not plain text; set {key} to one that is")]
    Dir {
        /// The directory.
        dir: PathBuf,
        /// The key that names it.
        key: &'static str,
    },
}

/// Directives that are redmesh's own, with the reason.
const OWNED: &[(&str, &str)] = &[
    ("port", "ports follow from redis.base_port"),
    ("bind", "set redis.ip instead"),
    ("dir", "each instance has its own directory under redis.data_dir"),
    ("logfile", "the agent reads redis.log to say why a server ended"),
    ("pidfile", "the agent finds its servers by directory, not by file"),
    ("daemonize", "the agent must stay the servers' parent"),
    ("supervised", "the agent supervises the servers itself"),
    ("include", "an included file could override what the agent relies on"),
    ("cluster-enabled", "redmesh runs Redis Cluster only"),
    ("cluster-config-file", "the agent seeds nodes.conf"),
    ("cluster-node-timeout", "ask for it at cluster create: it must be the same everywhere"),
    ("cluster-port", "the bus port is always the data port + 10000"),
    ("cluster-announce-ip", "it is always the bound address"),
    ("cluster-announce-port", "it is always the data port"),
    ("cluster-announce-bus-port", "it is always the data port + 10000"),
    ("cluster-announce-tls-port", "it is always the data port"),
    ("tls-port", "set redis.tls = \"on\" instead"),
    ("tls-cluster", "set redis.tls = \"on\" instead"),
    ("tls-replication", "set redis.tls = \"on\" instead"),
    ("tls-cert-file", "with redis.tls = \"on\" it is the host's certificate"),
    ("tls-key-file", "with redis.tls = \"on\" it is the host's key"),
    ("tls-key-file-pass", "the host's key has none"),
    ("tls-client-cert-file", "with redis.tls = \"on\" it is the host's certificate"),
    ("tls-client-key-file", "with redis.tls = \"on\" it is the host's key"),
    ("tls-client-key-file-pass", "the host's key has none"),
    ("tls-ca-cert-file", "with redis.tls = \"on\" it is the mesh's CA"),
    ("tls-ca-cert-dir", "with redis.tls = \"on\" it is the mesh's CA alone"),
    ("bind-source-addr", "with it the bus links of a large cluster exhaust the ephemeral ports"),
    ("replicaof", "roles follow from the cluster's plan"),
    ("slaveof", "roles follow from the cluster's plan"),
    ("replica-announce-ip", "it is always the bound address"),
    ("replica-announce-port", "it is always the data port"),
    ("slave-announce-ip", "it is always the bound address"),
    ("slave-announce-port", "it is always the data port"),
    ("databases", "a cluster has one database"),
];

/// Checks the user's directives without rendering anything: what a configuration's
/// loader calls, so that a bad one is refused before any instance is planned.
pub fn check_directives(directives: &[(String, Vec<String>)]) -> Result<(), DirectiveError> {
    let lines = directives.iter().map(|(_, values)| values.len()).sum();
    if lines > DIRECTIVES_MAX {
        return Err(DirectiveError::TooMany { got: lines });
    }
    let mut seen = BTreeSet::new();
    for (name, values) in directives {
        let shown = || name.chars().take(80).collect::<String>();
        let plain = |b: u8| b.is_ascii_alphanumeric() || b == b'-';
        if name.is_empty() || name.len() > 80 || !name.bytes().all(plain) {
            return Err(DirectiveError::Name { name: shown() });
        }
        let lower = name.to_ascii_lowercase();
        if let Some((_, reason)) = OWNED.iter().find(|(owned, _)| *owned == lower) {
            return Err(DirectiveError::Owned { name: shown(), reason });
        }
        if !seen.insert(lower) {
            return Err(DirectiveError::Twice { name: shown() });
        }
        for value in values {
            if value.len() > VALUE_BYTES_MAX {
                return Err(DirectiveError::Value { name: shown(), problem: "is longer than 4096 bytes" });
            }
            split_words(name, value)?;
        }
    }
    Ok(())
}

/// The password that these directives make clients give (`requirepass`), unquoted.
pub fn password(directives: &[(String, Vec<String>)]) -> Option<String> {
    let (name, values) = directives.iter().find(|(name, _)| name.eq_ignore_ascii_case("requirepass"))?;
    split_words(name, values.last()?).ok()?.into_iter().next().filter(|word| !word.is_empty())
}

/// Checks what [`check_directives`] can't know: that nothing contradicts the users which
/// `redis.auth = "on"` makes.
pub fn check_access(directives: &[(String, Vec<String>)]) -> Result<(), DirectiveError> {
    for (name, values) in directives {
        let refuse = |reason| Err(DirectiveError::Access { name: name.clone(), reason });
        if name.eq_ignore_ascii_case("aclfile") {
            return refuse("the agents' own user stands in redis.conf, and Redis takes one of the two only");
        }
        for value in values.iter().filter(|_| name.eq_ignore_ascii_case("user")) {
            if split_words(name, value)?.first().is_some_and(|user| user == AGENT_USER) {
                return refuse("the user \"redmesh\" is the agents' own");
            }
        }
    }
    Ok(())
}

impl RedisConf {
    /// The complete file.
    pub fn render(&self) -> Result<String, DirectiveError> {
        check_directives(&self.directives)?;
        let dir = plain(&self.dir, "redis.data_dir")?;
        let ip = self.addr.ip().to_string();
        let backlog = self.backlog();

        let mut text = String::from("# Written by redmesh-agent before each start; edits are lost.\n");
        if backlog < TCP_BACKLOG {
            let _ = writeln!(
                text,
                "# tcp-backlog is cut to net.core.somaxconn; {TCP_BACKLOG} suits large clusters better."
            );
        }
        self.push_port(&mut text)?;
        for (name, value) in [
            ("bind", ip.clone()),
            ("cluster-announce-ip", ip),
            ("cluster-enabled", "yes".into()),
            ("cluster-config-file", "nodes.conf".into()),
            ("cluster-node-timeout", self.node_timeout_now_ms().to_string()),
            ("daemonize", "no".into()),
            ("supervised", "no".into()),
            ("dir", dir.into()),
            ("logfile", "redis.log".into()),
        ] {
            push_line(&mut text, name, &[value]);
        }
        for (name, value) in self.defaults() {
            if !self.is_given(name) {
                push_line(&mut text, name, &[value]);
            }
        }
        for (name, values) in &self.directives {
            for value in values {
                push_line(&mut text, &name.to_ascii_lowercase(), &split_words(name, value)?);
            }
        }
        self.push_access(&mut text)?;
        Ok(text)
    }

    /// What stands in the file unless the user says otherwise.
    fn defaults(&self) -> [(&'static str, String); 7] {
        [
            ("appendonly", "no".to_owned()),
            ("save", String::new()),
            ("protected-mode", "no".into()),
            // A replica that has not synced yet can't take over: don't wait for company.
            ("repl-diskless-sync-delay", "0".into()),
            ("tcp-backlog", self.backlog().to_string()),
            ("maxclients", self.clients_needed.to_string()),
            ("hz", self.hz.to_string()),
        ]
    }

    fn backlog(&self) -> u32 {
        self.somaxconn.map_or(TCP_BACKLOG, |max| max.min(TCP_BACKLOG))
    }

    /// What stands in the file of passwords, but the users with more than one.
    fn access(&self) -> Vec<(&'static str, String)> {
        let mut lines = Vec::new();
        match &self.access {
            None => {
                let password = password(&self.directives).filter(|_| !self.is_given("masterauth"));
                lines.extend(password.map(|password| ("masterauth", password)));
            }
            Some(access) => {
                if !self.owns_default_user() {
                    lines.push(("requirepass", access.accepted.newest().client_password()));
                }
                if !self.owns_primary_login() {
                    lines.push(("masteruser", AGENT_USER.to_owned()));
                    lines.push(("masterauth", access.replicate.agent_password()));
                }
            }
        }
        lines
    }

    /// The one port, plain or TLS.
    fn push_port(&self, text: &mut String) -> Result<(), DirectiveError> {
        let Some(identity) = &self.tls else {
            push_line(text, "port", &[self.addr.port().to_string()]);
            return Ok(());
        };
        for (name, value) in [
            ("port", "0".to_owned()),
            ("tls-port", self.addr.port().to_string()),
            ("tls-cluster", "yes".into()),
            ("tls-replication", "yes".into()),
        ] {
            push_line(text, name, &[value]);
        }
        for (name, file) in TLS_FILES {
            push_line(text, name, &[plain(&identity.join(file), "identity.dir")?.to_owned()]);
        }
        // Clients have a password instead of a certificate; one that is presented must be
        // the mesh's. On the bus Redis always asks for one.
        if !self.is_given("tls-auth-clients") {
            push_line(text, "tls-auth-clients", &["optional".to_owned()]);
        }
        Ok(())
    }

    /// What makes a running server read its certificate, key and CA again: any of the files,
    /// named as it is already.
    pub fn setting_to_read_certificates(&self) -> Option<(&'static str, String)> {
        let (name, file) = TLS_FILES[0];
        Some((name, self.tls.as_ref()?.join(file).to_str()?.to_owned()))
    }

    /// Who may log in, and as whom replicas do so at primaries of the same mesh.
    fn push_access(&self, text: &mut String) -> Result<(), DirectiveError> {
        // One directive takes one password.
        let mut two_passwords = false;
        if let Some(access) = &self.access {
            check_access(&self.directives)?;
            push_line(text, &format!("user {AGENT_USER}"), &full(access, RedisSecret::agent_password_rule));
            two_passwords = access.accepted.former().is_some() && !self.owns_default_user();
            if two_passwords {
                push_line(text, "user default", &full(access, RedisSecret::client_password_rule));
            }
        }
        for (name, value) in self.access() {
            if name != "requirepass" || !two_passwords {
                push_line(text, name, &[value]);
            }
        }
        Ok(())
    }

    /// Whether the directives say what password clients give, so that it isn't the mesh's.
    pub fn owns_default_user(&self) -> bool {
        let user = |(name, values): &(String, Vec<String>)| {
            name.eq_ignore_ascii_case("user")
                && values.iter().any(|value| first_word(value) == Some("default"))
        };
        self.is_given("requirepass") || self.directives.iter().any(user)
    }

    /// Whether the directives say as whom replicas log in.
    pub fn owns_primary_login(&self) -> bool {
        self.is_given("masterauth") || self.is_given("masteruser")
    }

    /// What a running instance has to be told once its cluster is formed; what it reads at
    /// its next start says the same.
    pub fn settings_once_formed(&self) -> Vec<(&'static str, String)> {
        vec![("cluster-node-timeout", self.node_timeout_ms.to_string())]
    }

    fn node_timeout_now_ms(&self) -> u32 {
        if self.forming { self.node_timeout_ms.max(FORMING_NODE_TIMEOUT_MS) } else { self.node_timeout_ms }
    }

    /// Whether the user's directives say it.
    fn is_given(&self, name: &str) -> bool {
        self.directives.iter().any(|(user, _)| user.eq_ignore_ascii_case(name))
    }
}

/// The rules of a user that may do everything, by either secret's password.
fn full(access: &Access, rule: fn(&RedisSecret) -> String) -> Vec<String> {
    let passwords = access.accepted.all().map(rule);
    let everything = ["~*", "&*", "+@all"].map(str::to_owned);
    std::iter::once("on".to_owned()).chain(passwords).chain(everything).collect()
}

/// A value's first word, without quotes around it.
fn first_word(value: &str) -> Option<&str> {
    value.split_ascii_whitespace().next().map(|word| word.trim_matches(['"', '\'']))
}

/// A path as text.
fn plain<'a>(dir: &'a Path, key: &'static str) -> Result<&'a str, DirectiveError> {
    let text = dir.to_str().filter(|dir| !dir.chars().any(char::is_control));
    text.ok_or_else(|| DirectiveError::Dir { dir: dir.to_owned(), key })
}

fn push_line(text: &mut String, name: &str, words: &[String]) {
    text.push_str(name);
    for word in words {
        text.push(' ');
        push_word(text, word);
    }
    text.push('\n');
}

/// One argument, quoted where it has to be.
fn push_word(text: &mut String, word: &str) {
    let bare = |b: u8| b.is_ascii_alphanumeric() || b"._:/@%+,=*-~^|<>&!$()[]{};?".contains(&b);
    if !word.is_empty() && word.bytes().all(bare) {
        return text.push_str(word);
    }
    text.push('"');
    for c in word.chars() {
        if matches!(c, '"' | '\\') {
            text.push('\\');
        }
        text.push(c);
    }
    text.push('"');
}

/// A value's words: separated by spaces, kept together by single or double quotes,
/// with a backslash before a quote or a backslash inside double quotes. An empty value
/// is one empty word, as in `save ""`.
fn split_words(name: &str, value: &str) -> Result<Vec<String>, DirectiveError> {
    let unbalanced = || DirectiveError::Quotes { name: name.chars().take(80).collect() };
    if value.chars().any(|c| c.is_control() && c != '\t') {
        let name = name.chars().take(80).collect();
        return Err(DirectiveError::Value { name, problem: "has a line break or another control character" });
    }
    let mut words = Vec::new();
    let mut chars = value.chars().peekable();
    loop {
        while chars.next_if(|c| matches!(c, ' ' | '\t')).is_some() {}
        let Some(&first) = chars.peek() else { break };
        let mut word = String::new();
        if matches!(first, '"' | '\'') {
            chars.next();
            loop {
                match chars.next().ok_or_else(unbalanced)? {
                    c if c == first => break,
                    '\\' if chars.peek().is_some_and(|&c| c == first || (c == '\\' && first == '"')) => {
                        word.extend(chars.next());
                    }
                    c => word.push(c),
                }
            }
            if chars.peek().is_some_and(|c| !matches!(c, ' ' | '\t')) {
                return Err(unbalanced());
            }
        } else {
            while let Some(c) = chars.next_if(|c| !matches!(c, ' ' | '\t')) {
                if matches!(c, '"' | '\'') {
                    return Err(unbalanced());
                }
                word.push(c);
            }
        }
        words.push(word);
    }
    if words.is_empty() {
        words.push(String::new());
    }
    Ok(words)
}

#[cfg(test)]
mod tests;
