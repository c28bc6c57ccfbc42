//! The configuration as written: TOML sections, and what is laid over them.

use std::collections::BTreeMap;
use std::net::{IpAddr, Ipv4Addr, SocketAddr};
use std::path::{Path, PathBuf};

use serde::Deserialize;
use toml::{Table, Value};

use super::{ConfigError, LogFormat, MALLOC_CONF_DEFAULT, OnAgentExit, RedisAuth, RedisTlsMode};

/// Prefix of the environment's overrides; `__` stands between section and key.
const ENV_PREFIX: &str = "REDMESH_";

/// Variables with the prefix that belong to ctl, not to an agent's configuration.
const ENV_OF_CTL: &[&str] = &["REDMESH_AGENT", "REDMESH_IDENTITY"];

/// Settings from outside the file, in rising order of precedence.
#[derive(Debug, Clone, Default)]
pub struct Overrides {
    /// `REDMESH_<SECTION>__<KEY>` variables.
    pub env: Vec<(String, String)>,
    /// `section.key=value` flags.
    pub flags: Vec<String>,
}

impl Overrides {
    /// The process's environment, and `flags` as given to `--set`.
    pub fn from_process(flags: Vec<String>) -> Self {
        let env = std::env::vars()
            .filter(|(name, _)| name.starts_with(ENV_PREFIX) && !ENV_OF_CTL.contains(&name.as_str()))
            .collect();
        Self { env, flags }
    }
}

#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct File {
    pub mesh: Mesh,
    #[serde(default)]
    pub identity: Identity,
    #[serde(default)]
    pub state: State,
    #[serde(default)]
    pub redis: Redis,
    #[serde(default)]
    pub load: Load,
    #[serde(default)]
    pub http: Http,
    #[serde(default)]
    pub log: Log,
    #[serde(default)]
    pub join: Join,
    #[serde(default)]
    pub firewall: Firewall,
}

#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct Mesh {
    #[serde(default = "default_mesh_name")]
    pub name: String,
    pub listen: SocketAddr,
    pub advertise: Option<SocketAddr>,
    #[serde(default)]
    pub seeds: Vec<String>,
    pub bootstrap_expect: u16,
    #[serde(default = "default_gossip_interval_ms")]
    pub gossip_interval_ms: u64,
}

fn default_mesh_name() -> String {
    "redmesh".to_owned()
}

fn default_gossip_interval_ms() -> u64 {
    200
}

#[derive(Debug, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub(super) struct Identity {
    pub dir: PathBuf,
}

impl Default for Identity {
    fn default() -> Self {
        Self { dir: "/etc/redmesh/identity".into() }
    }
}

#[derive(Debug, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub(super) struct State {
    pub dir: PathBuf,
}

impl Default for State {
    fn default() -> Self {
        Self { dir: "/var/lib/redmesh".into() }
    }
}

#[derive(Debug, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub(super) struct Redis {
    pub server: Option<PathBuf>,
    pub data_dir: PathBuf,
    pub ip: Option<IpAddr>,
    pub base_port: u16,
    pub release_at_once: AtOnce,
    pub malloc_conf: String,
    pub on_agent_exit: OnAgentExit,
    pub auth: RedisAuth,
    pub tls: RedisTlsMode,
    pub directives: BTreeMap<String, Directive>,
}

impl Default for Redis {
    fn default() -> Self {
        Self {
            server: None,
            data_dir: "/var/lib/redmesh/redis_cluster".into(),
            ip: None,
            base_port: 6379,
            release_at_once: AtOnce::Word(AUTO.to_owned()),
            malloc_conf: MALLOC_CONF_DEFAULT.to_owned(),
            on_agent_exit: OnAgentExit::Leave,
            auth: RedisAuth::On,
            tls: RedisTlsMode::Off,
            directives: BTreeMap::new(),
        }
    }
}

/// What [`AtOnce`] says where the machine is to decide.
pub(super) const AUTO: &str = "auto";

/// A number, or [`AUTO`].
#[derive(Debug, Deserialize)]
#[serde(untagged)]
pub(super) enum AtOnce {
    Number(u16),
    Word(String),
}

/// A directive's value: one line of `redis.conf`, or several of the same name.
#[derive(Debug, Deserialize)]
#[serde(untagged)]
pub(super) enum Directive {
    Text(String),
    Number(i64),
    Lines(Vec<String>),
}

impl Directive {
    /// What follows the directive's name, a string for each line.
    pub fn arguments(self) -> Result<Vec<String>, String> {
        let lines = match self {
            Self::Text(line) => vec![line],
            Self::Number(number) => vec![number.to_string()],
            Self::Lines(lines) => lines,
        };
        match lines.iter().find(|line| line.contains(char::is_control)) {
            // Not the line itself: it may be a password.
            Some(_) => Err("its value holds a control character".to_owned()),
            None => Ok(lines),
        }
    }
}

#[derive(Debug, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub(super) struct Load {
    pub threads: usize,
}

impl Default for Load {
    fn default() -> Self {
        Self { threads: 1 }
    }
}

#[derive(Debug, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub(super) struct Http {
    pub listen: String,
}

impl Default for Http {
    fn default() -> Self {
        Self { listen: SocketAddr::from((Ipv4Addr::LOCALHOST, 7380)).to_string() }
    }
}

#[derive(Debug, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub(super) struct Log {
    pub level: String,
    pub format: LogFormat,
}

impl Default for Log {
    fn default() -> Self {
        Self { level: "info".to_owned(), format: LogFormat::Text }
    }
}

#[derive(Debug, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub(super) struct Join {
    pub token_file: PathBuf,
    pub name: String,
    pub peers: Vec<String>,
    pub listen: String,
}

impl Default for Join {
    fn default() -> Self {
        Self { token_file: PathBuf::new(), name: String::new(), peers: Vec::new(), listen: AUTO.to_owned() }
    }
}

#[derive(Debug, Default, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub(super) struct Firewall {
    pub manage: bool,
}

/// Reads the file and lays environment and flags over it.
pub(super) fn read(path: &Path, overrides: &Overrides) -> Result<File, ConfigError> {
    let text = std::fs::read_to_string(path)
        .map_err(|source| ConfigError::Read { path: path.to_owned(), source })?;
    let parse = |error: toml::de::Error| ConfigError::Parse {
        path: path.to_owned(),
        at: error.span().and_then(|span| place(&text, span.start)),
        reason: error.message().to_owned(),
    };
    let mut table: Table = toml::from_str(&text).map_err(parse)?;
    if overrides.env.is_empty() && overrides.flags.is_empty() {
        // Straight from the text, so that an error shows its line.
        return require_keys(&table).and_then(|()| toml::from_str(&text).map_err(parse));
    }
    for (name, value) in &overrides.env {
        let origin = || format!("environment variable {name}");
        let key = name.trim_start_matches(ENV_PREFIX).to_lowercase();
        let (section, key) = key.split_once("__").ok_or_else(|| ConfigError::Override {
            origin: origin(),
            reason: "must be REDMESH_<SECTION>__<KEY>, for example REDMESH_MESH__LISTEN".to_owned(),
        })?;
        overlay(&mut table, section, key, value, origin)?;
    }
    for flag in &overrides.flags {
        let origin = || format!("--set {flag}");
        let parts = flag.split_once('=').and_then(|(path, value)| Some((path.split_once('.')?, value)));
        let ((section, key), value) = parts.ok_or_else(|| ConfigError::Override {
            origin: origin(),
            reason: "must be section.key=value, for example --set mesh.bootstrap_expect=3".to_owned(),
        })?;
        overlay(&mut table, section, key, value, origin)?;
    }
    require_keys(&table)?;
    Value::Table(table).try_into().map_err(parse)
}

/// Where byte `at` of `text` is, for people, without what may be a value.
fn place(text: &str, at: usize) -> Option<String> {
    let before = text.get(..at)?;
    let line = before.matches('\n').count();
    let words = text.lines().nth(line).unwrap_or_default();
    let key = words.split_once('=').map_or(String::new(), |(key, _)| format!(" ({} = …)", key.trim()));
    Some(format!(", line {}{key}", line + 1))
}

/// Puts one value in its place. A text that reads as a TOML value is one (`3`,
/// `["a:1"]`, `true`); any other is a string. `redis.directives.maxmemory` has a
/// section of two names.
fn overlay(
    table: &mut Table,
    section: &str,
    key: &str,
    text: &str,
    origin: impl Fn() -> String,
) -> Result<(), ConfigError> {
    let value = toml::from_str::<Table>(&format!("v = {text}"))
        .ok()
        .and_then(|mut parsed| parsed.remove("v"))
        .unwrap_or_else(|| Value::String(text.to_owned()));
    let wrong = |reason: String| ConfigError::Override { origin: origin(), reason };
    let section_table = |table: &mut Table, name: &str| -> Option<()> {
        table.entry(name).or_insert_with(|| Value::Table(Table::new())).is_table().then_some(())
    };
    section_table(table, section).ok_or_else(|| wrong(format!("{section} is not a section")))?;
    let place = table[section].as_table_mut().expect("made or checked to be a table above");
    match key.split_once('.').or_else(|| key.split_once("__")) {
        None => place.insert(key.to_owned(), value),
        Some((inner, key)) => {
            section_table(place, inner)
                .ok_or_else(|| wrong(format!("{section}.{inner} is not a section")))?;
            let place = place[inner].as_table_mut().expect("made or checked to be a table above");
            place.insert(key.to_owned(), value)
        }
    };
    // The one key is tried at once, so that its error names this origin.
    let complete = table.clone();
    if require_keys(&complete).is_ok() {
        File::deserialize(Value::Table(complete)).map_err(|error| wrong(error.to_string()))?;
    }
    Ok(())
}

/// The keys without a default, by name and with a remedy, before serde's own words.
fn require_keys(table: &Table) -> Result<(), ConfigError> {
    let mesh = table.get("mesh").and_then(Value::as_table);
    let has = |key: &str| mesh.is_some_and(|mesh| mesh.contains_key(key));
    if !has("listen") {
        return Err(ConfigError::Missing {
            key: "mesh.listen",
            remedy: "write this host's address, for example listen = \"192.0.2.11:7379\"",
        });
    }
    if !has("bootstrap_expect") {
        return Err(ConfigError::Missing {
            key: "mesh.bootstrap_expect",
            remedy: "write how many hosts are to be there before the mesh initialises itself",
        });
    }
    Ok(())
}
