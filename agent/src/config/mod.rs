//! One validated configuration out of file, environment and flags.
//!
//! Later sources win: the TOML file, then `REDMESH_<SECTION>__<KEY>` variables, then
//! `--set section.key=value` flags. Unknown keys and impossible values are refused by
//! name. Nothing but this module reads a setting, and nothing here touches the network
//! or writes a file.

mod raw;
#[cfg(test)]
mod tests;

use std::collections::BTreeMap;
use std::fmt;
use std::net::{IpAddr, SocketAddr};
use std::path::{Path, PathBuf};
use std::time::Duration;

use redmesh_api::join::JOIN_PORT_DEFAULT;
use redmesh_api::level::BUS_PORT_OFFSET;
use redmesh_api::limits::THREADS_PER_HOST_MAX;
use redmesh_api::tls::valid_name;

pub use raw::Overrides;
use raw::{AUTO, AtOnce};

/// Shortest and longest gossip interval that make sense, milliseconds: below, the
/// gossip itself is the load; above, a dead host goes unnoticed for a minute.
const GOSSIP_INTERVAL_MS: std::ops::RangeInclusive<u64> = 20..=5_000;

/// `redis.malloc_conf` where it isn't set. A formation makes buffers by the thousand and
/// frees most at once; jemalloc keeps freed pages for ten seconds, and of 200 servers on one
/// machine that was a third of the memory.
pub const MALLOC_CONF_DEFAULT: &str = "dirty_decay_ms:1000,muzzy_decay_ms:0";

/// Bytes of `redis.malloc_conf`.
const MALLOC_CONF_BYTES_MAX: usize = 512;

/// Load threads of one host; a core each, so more than any host has is a slip.
const LOAD_THREADS_MAX: usize = THREADS_PER_HOST_MAX as usize;

/// Everything that an agent is told.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Config {
    /// The mesh and how to find it.
    pub mesh: MeshConfig,
    /// Directory with `ca.pem`, `cert.pem`, `key.pem`.
    pub identity_dir: PathBuf,
    /// Directory of the host's id, the Raft store and the run ledgers.
    pub state_dir: PathBuf,
    /// The redis-servers.
    pub redis: RedisConfig,
    /// Load threads of this host.
    pub load_threads: usize,
    /// Where `/metrics`, `/healthz`, `/readyz` are served; `None` for nowhere.
    pub http_listen: Option<SocketAddr>,
    /// Logging.
    pub log: LogConfig,
    /// Joining by token, and letting others join.
    pub join: JoinConfig,
    /// Whether the agent keeps the firewall's sets of members.
    pub firewall_manage: bool,
}

/// `[join]`.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct JoinConfig {
    /// A token, by which this host gets its certificate where it has none.
    pub token_file: Option<PathBuf>,
    /// The name that it asks for; `None` for the machine's.
    pub name: Option<String>,
    /// Agents to ask, `host` or `host:port`; none for the seeds.
    pub peers: Vec<String>,
    /// Where hosts that join are heard, if this one has a signer; `None` for nowhere.
    pub listen: Option<SocketAddr>,
}

/// `[mesh]`.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct MeshConfig {
    /// Agents of another name are refused.
    pub name: String,
    /// UDP address of QUIC.
    pub listen: SocketAddr,
    /// Address at which peers reach this host.
    pub advertise: SocketAddr,
    /// Any agents to join through, `host:port`.
    pub seeds: Vec<String>,
    /// Hosts that must see each other before the mesh initialises itself.
    pub bootstrap_expect: u16,
    /// Time between gossip rounds.
    pub gossip_interval: Duration,
}

/// `[redis]`.
#[derive(Clone, PartialEq, Eq)]
pub struct RedisConfig {
    /// Server's executable, a name in `PATH` or a path; `None` looks for
    /// `redis-server`, then `valkey-server`.
    pub server: Option<PathBuf>,
    /// One directory per instance lies under it, named by its port.
    pub data_dir: PathBuf,
    /// Address that instances bind and announce.
    pub ip: IpAddr,
    /// Data port of the first instance.
    pub base_port: u16,
    /// Held instances that are released at a time; `None` is one for each core.
    pub release_at_once: Option<usize>,
    /// `MALLOC_CONF` of the servers' jemalloc; `None` leaves it its own defaults.
    pub malloc_conf: Option<String>,
    /// Whether instances outlive the agent.
    pub on_agent_exit: OnAgentExit,
    /// Whether servers want a password.
    pub auth: RedisAuth,
    /// Whether servers speak TLS, and nothing else.
    pub tls: RedisTlsMode,
    /// Directives for every instance's `redis.conf`, with their arguments.
    pub directives: BTreeMap<String, Vec<String>>,
}

impl fmt::Debug for RedisConfig {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        // The directives' values may be passwords.
        f.debug_struct("RedisConfig")
            .field("server", &self.server)
            .field("data_dir", &self.data_dir)
            .field("ip", &self.ip)
            .field("base_port", &self.base_port)
            .field("release_at_once", &self.release_at_once)
            .field("malloc_conf", &self.malloc_conf)
            .field("on_agent_exit", &self.on_agent_exit)
            .field("auth", &self.auth)
            .field("tls", &self.tls)
            .field("directives", &self.directives.keys())
            .finish()
    }
}

/// What happens to running instances when the agent stops.
#[derive(Debug, Clone, Copy, PartialEq, Eq, serde::Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum OnAgentExit {
    /// They go on and are adopted by the next agent.
    Leave,
    /// They are stopped with it.
    Stop,
}

/// Whether instances have the users and passwords that come from the mesh's secret.
#[derive(Debug, Clone, Copy, PartialEq, Eq, serde::Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum RedisAuth {
    /// They have: `identity.dir` holds the secret.
    On,
    /// They have none but what the directives set.
    Off,
}

/// Whether instances, and all that talk to them, speak TLS.
#[derive(Debug, Clone, Copy, PartialEq, Eq, serde::Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum RedisTlsMode {
    /// They speak nothing else, with the host's certificate.
    On,
    /// Plain TCP.
    Off,
}

/// `[log]`.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct LogConfig {
    /// A level, or `tracing` directives such as `info,redmesh_agent::mesh=debug`.
    pub filter: String,
    /// How lines look.
    pub format: LogFormat,
}

/// How log lines look.
#[derive(Debug, Clone, Copy, PartialEq, Eq, serde::Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum LogFormat {
    /// For people and journald.
    Text,
    /// One object a line.
    Json,
}

/// A configuration that can't be used.
#[derive(Debug, thiserror::Error)]
pub enum ConfigError {
    /// The file can't be read.
    #[error("can't read {}: give an existing file with --config", .path.display())]
    Read {
        /// Which.
        path: PathBuf,
        /// Why.
        #[source]
        source: std::io::Error,
    },
    /// The file isn't TOML, or a key in it is unknown or of the wrong type. Says no value: it
    /// may be a password.
    #[error("in {}{}: {reason}", .path.display(), .at.as_deref().unwrap_or_default())]
    Parse {
        /// Which.
        path: PathBuf,
        /// In which line, and what that begins with.
        at: Option<String>,
        /// What is wrong.
        reason: String,
    },
    /// A variable or flag names no key, or its value is of the wrong type.
    #[error("{origin}: {reason}")]
    Override {
        /// The variable or flag.
        origin: String,
        /// What is wrong.
        reason: String,
    },
    /// A key that has no default is nowhere.
    #[error("{key} is not set: {remedy}")]
    Missing {
        /// `section.key`.
        key: &'static str,
        /// What to write.
        remedy: &'static str,
    },
    /// A value that can't work.
    #[error("{key} = {value}: {reason}")]
    Invalid {
        /// `section.key`.
        key: &'static str,
        /// The value.
        value: String,
        /// Why, and what would do.
        reason: String,
    },
}

fn invalid(key: &'static str, value: impl fmt::Debug, reason: impl Into<String>) -> ConfigError {
    ConfigError::Invalid { key, value: format!("{value:?}"), reason: reason.into() }
}

impl Config {
    /// Reads `path`, lays the overrides over it and validates the whole.
    ///
    /// # Errors
    /// Any [`ConfigError`]; the first problem found.
    pub fn load(path: &Path, overrides: &Overrides) -> Result<Self, ConfigError> {
        Self::validate(raw::read(path, overrides)?)
    }

    fn validate(raw: raw::File) -> Result<Self, ConfigError> {
        let mesh = validate_mesh(raw.mesh)?;
        let redis = validate_redis(raw.redis, mesh.advertise.ip())?;
        let join = validate_join(raw.join, mesh.listen.ip())?;
        let load_threads = raw.load.threads;
        if !(1..=LOAD_THREADS_MAX).contains(&load_threads) {
            return Err(invalid(
                "load.threads",
                load_threads,
                format!("must be 1 to {LOAD_THREADS_MAX}; one is right until its core is full"),
            ));
        }
        Ok(Self {
            mesh,
            identity_dir: absolute("identity.dir", raw.identity.dir)?,
            state_dir: absolute("state.dir", raw.state.dir)?,
            redis,
            load_threads,
            http_listen: validate_http(&raw.http.listen)?,
            log: LogConfig { filter: raw.log.level, format: raw.log.format },
            join,
            firewall_manage: raw.firewall.manage,
        })
    }
}

fn validate_mesh(raw: raw::Mesh) -> Result<MeshConfig, ConfigError> {
    let name_ok = !raw.name.is_empty()
        && raw.name.len() <= 63
        && raw.name.bytes().all(|b| b.is_ascii_alphanumeric() || b == b'-');
    if !name_ok {
        return Err(invalid("mesh.name", raw.name, "must be 1 to 63 letters, digits or dashes"));
    }
    let advertise = raw.advertise.unwrap_or(raw.listen);
    if advertise.ip().is_unspecified() {
        return Err(invalid(
            "mesh.advertise",
            advertise,
            "peers can't reach an unspecified address: set mesh.advertise to this host's own, \
             for example \"192.0.2.11:7379\"",
        ));
    }
    if advertise.port() == 0 || raw.listen.port() == 0 {
        return Err(invalid("mesh.listen", raw.listen, "port 0 can't be found by peers: 7379 is usual"));
    }
    for seed in &raw.seeds {
        let port = seed.rsplit_once(':').map(|(host, port)| (host.is_empty(), port.parse::<u16>()));
        if !matches!(port, Some((false, Ok(1..)))) {
            return Err(invalid("mesh.seeds", seed, "must be host:port, for example \"192.0.2.11:7379\""));
        }
    }
    if raw.bootstrap_expect == 0 {
        return Err(invalid(
            "mesh.bootstrap_expect",
            0,
            "must be the number of hosts that are to be there before the mesh initialises, \
             more than half of all",
        ));
    }
    if !GOSSIP_INTERVAL_MS.contains(&raw.gossip_interval_ms) {
        return Err(invalid(
            "mesh.gossip_interval_ms",
            raw.gossip_interval_ms,
            format!("must be {} to {}", GOSSIP_INTERVAL_MS.start(), GOSSIP_INTERVAL_MS.end()),
        ));
    }
    Ok(MeshConfig {
        name: raw.name,
        listen: raw.listen,
        advertise,
        seeds: raw.seeds,
        bootstrap_expect: raw.bootstrap_expect,
        gossip_interval: Duration::from_millis(raw.gossip_interval_ms),
    })
}

fn validate_redis(raw: raw::Redis, mesh_ip: IpAddr) -> Result<RedisConfig, ConfigError> {
    let ip = raw.ip.unwrap_or(mesh_ip);
    if ip.is_unspecified() || ip.is_multicast() {
        return Err(invalid(
            "redis.ip",
            ip,
            "instances announce it to each other: it must be this host's own",
        ));
    }
    if raw.base_port < 1024 || raw.base_port > u16::MAX - BUS_PORT_OFFSET {
        return Err(invalid(
            "redis.base_port",
            raw.base_port,
            format!(
                "must be 1024 to {}: every bus port is {BUS_PORT_OFFSET} above its data port",
                u16::MAX - BUS_PORT_OFFSET
            ),
        ));
    }
    let release_at_once = match raw.release_at_once {
        AtOnce::Number(number @ 1..) => Some(usize::from(number)),
        AtOnce::Word(word) if word == AUTO => None,
        AtOnce::Number(_) => {
            return Err(invalid("redis.release_at_once", 0, "must be at least 1, or \"auto\""));
        }
        AtOnce::Word(word) => {
            return Err(invalid("redis.release_at_once", word, "must be a number, or \"auto\""));
        }
    };
    let mut directives = BTreeMap::new();
    for (name, value) in raw.directives {
        let arguments = value.arguments().map_err(|reason| ConfigError::Invalid {
            key: "redis.directives",
            value: name.clone(),
            reason,
        })?;
        directives.insert(name, arguments);
    }
    let malloc_ok = |b: u8| b.is_ascii_alphanumeric() || b"_:,.-".contains(&b);
    if raw.malloc_conf.len() > MALLOC_CONF_BYTES_MAX || !raw.malloc_conf.bytes().all(malloc_ok) {
        return Err(invalid(
            "redis.malloc_conf",
            raw.malloc_conf,
            "must be jemalloc's options such as \"dirty_decay_ms:1000\", separated by commas, or \"\" for none",
        ));
    }
    // A name is looked for in PATH; a path must not depend on whose directory it is read in.
    let is_path = |server: &Path| server.is_absolute() || server.components().count() > 1;
    let server = match raw.server {
        Some(server) if is_path(&server) => Some(absolute("redis.server", server)?),
        name_or_none => name_or_none,
    };
    Ok(RedisConfig {
        server,
        data_dir: absolute("redis.data_dir", raw.data_dir)?,
        ip,
        base_port: raw.base_port,
        release_at_once,
        malloc_conf: Some(raw.malloc_conf).filter(|conf| !conf.is_empty()),
        on_agent_exit: raw.on_agent_exit,
        auth: raw.auth,
        tls: raw.tls,
        directives,
    })
}

fn validate_http(listen: &str) -> Result<Option<SocketAddr>, ConfigError> {
    if listen == "off" {
        return Ok(None);
    }
    listen.parse().map(Some).map_err(|_| {
        invalid("http.listen", listen, "must be an address such as \"127.0.0.1:7380\", or \"off\"")
    })
}

fn validate_join(raw: raw::Join, mesh_ip: IpAddr) -> Result<JoinConfig, ConfigError> {
    let listen = match raw.listen.as_str() {
        "off" => None,
        AUTO => Some(SocketAddr::new(mesh_ip, JOIN_PORT_DEFAULT)),
        addr => Some(addr.parse().map_err(|_| {
            invalid("join.listen", addr, "must be an address such as \"10.0.0.1:7381\", \"auto\" or \"off\"")
        })?),
    };
    if let Some(name) = Some(&raw.name).filter(|name| !name.is_empty() && !valid_name(name)) {
        return Err(invalid("join.name", name, "must be 1 to 63 of a-z, 0-9 and -, with no - at either end"));
    }
    if let Some(peer) = raw.peers.iter().find(|peer| peer.is_empty() || peer.starts_with(':')) {
        return Err(invalid("join.peers", peer, "must be host or host:port, for example \"10.0.0.1\""));
    }
    let token_file = match raw.token_file.as_os_str().is_empty() {
        true => None,
        false => Some(absolute("join.token_file", raw.token_file)?),
    };
    Ok(JoinConfig {
        token_file,
        name: Some(raw.name).filter(|name| !name.is_empty()),
        peers: raw.peers,
        listen,
    })
}

/// Paths are made absolute once, here: servers run in directories of their own.
fn absolute(key: &'static str, path: PathBuf) -> Result<PathBuf, ConfigError> {
    if path.as_os_str().is_empty() {
        return Err(invalid(key, path, "must name a directory"));
    }
    std::path::absolute(&path).map_err(|error| invalid(key, path, error.to_string()))
}
