//! What a running agent takes anew from its files when it is told to (SIGHUP): the
//! log's level and the certificates.
//!
//! A reload never stops the agent and never does half of a thing: what can't be used is
//! said and the old stays in force. What can't change while the agent runs is said by
//! name, with what it takes instead.

use std::sync::Arc;

use anyhow::Context;
use redmesh_api::tls::Identity;
use sd_notify::NotifyState;
use tokio::signal::unix::Signal;
use tokio_util::sync::CancellationToken;
use tracing::{error, info, warn};

use crate::config::{Config, ConfigError, LogConfig, MeshConfig, RedisConfig};
use crate::redis_tls::RedisTls;
use crate::transport::quic::QuicTransport;

/// Changes the log's level.
pub type SetLog = Box<dyn Fn(&LogConfig) -> anyhow::Result<()> + Send + Sync>;

/// How to be told, and how to read again.
pub struct Reloads {
    /// Each one asks for a reload.
    pub hangups: Signal,
    /// Reads the configuration as at the start: same file, environment and flags.
    pub load: Box<dyn Fn() -> Result<Config, ConfigError> + Send + Sync>,
    /// Makes a log level the one in force.
    pub set_log: SetLog,
}

impl std::fmt::Debug for Reloads {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Reloads").finish_non_exhaustive()
    }
}

/// Reloads whenever it is asked to, until cancelled. `config` is what the agent runs with.
pub async fn on_hangup(
    mut reloads: Reloads,
    mut config: Config,
    transport: Arc<QuicTransport>,
    redis: Option<RedisTls>,
    cancel: CancellationToken,
) {
    loop {
        tokio::select! {
            asked = reloads.hangups.recv() => if asked.is_none() { return },
            () = cancel.cancelled() => return,
        }
        let mut said = vec![NotifyState::Reloading];
        said.extend(NotifyState::monotonic_usec_now());
        let _ = sd_notify::notify(&said);
        reload(&reloads, &mut config, &transport, redis.as_ref());
        let _ = sd_notify::notify(&[NotifyState::Ready]);
    }
}

fn reload(reloads: &Reloads, config: &mut Config, transport: &QuicTransport, redis: Option<&RedisTls>) {
    let new = match (reloads.load)() {
        Ok(new) => new,
        Err(error) => {
            let error = crate::error_chain(&error);
            return error!(
                error,
                "asked to reload, but the configuration can't be used: nothing has changed"
            );
        }
    };
    if new.log.filter != config.log.filter {
        match (reloads.set_log)(&new.log) {
            Ok(()) => {
                info!(level = new.log.filter, "the log has another level");
                config.log.filter.clone_from(&new.log.filter);
            }
            Err(error) => error!("the log keeps its level: {error:#}"),
        }
    }
    // From where the agent was started with: another identity.dir takes a restart.
    let renewed = Identity::load(&config.identity_dir)
        .with_context(|| format!("identity.dir = {}", config.identity_dir.display()))
        .and_then(|identity| {
            if let Some(redis) = redis {
                redis.replace(&identity)?;
            }
            Ok(transport.replace_identity(&identity)?)
        });
    match renewed {
        Ok(()) => info!(
            valid_until_unix_s = transport.certificate_valid_until_unix_s(),
            "new connections present the certificate as it is on disk now"
        ),
        Err(error) => error!("the certificate in use stays: {error:#}"),
    }
    let fixed = fixed(config, &new);
    if !fixed.is_empty() {
        warn!(
            "changed in the configuration, and in force only after a restart of the agent (the servers stay): {}",
            fixed.join(", ")
        );
    }
    let directives = directives(config, &new);
    if !directives.is_empty() {
        warn!(
            "changed in redis.directives: {}; a restart of the agent makes servers that are started afterwards \
             have them, and CONFIG SET the running ones",
            directives.join(", ")
        );
    }
}

/// Keys whose values differ and can't change while the agent runs, but directives.
fn fixed(old: &Config, new: &Config) -> Vec<&'static str> {
    // Taken apart by name, so that a key that is added has to be decided upon here.
    let Config {
        mesh,
        identity_dir,
        state_dir,
        redis,
        load_threads,
        http_listen,
        log,
        join,
        firewall_manage,
    } = old;
    let MeshConfig { name, listen, advertise, seeds, bootstrap_expect, gossip_interval } = mesh;
    let RedisConfig {
        server,
        data_dir,
        ip,
        base_port,
        release_at_once,
        malloc_conf,
        on_agent_exit,
        auth,
        tls,
        directives: _,
    } = redis;
    [
        ("mesh.name", *name != new.mesh.name),
        ("mesh.listen", *listen != new.mesh.listen),
        ("mesh.advertise", *advertise != new.mesh.advertise),
        ("mesh.seeds", *seeds != new.mesh.seeds),
        ("mesh.bootstrap_expect", *bootstrap_expect != new.mesh.bootstrap_expect),
        ("mesh.gossip_interval_ms", *gossip_interval != new.mesh.gossip_interval),
        ("identity.dir", *identity_dir != new.identity_dir),
        ("state.dir", *state_dir != new.state_dir),
        ("redis.server", *server != new.redis.server),
        ("redis.data_dir", *data_dir != new.redis.data_dir),
        ("redis.ip", *ip != new.redis.ip),
        ("redis.base_port", *base_port != new.redis.base_port),
        ("redis.release_at_once", *release_at_once != new.redis.release_at_once),
        ("redis.malloc_conf", *malloc_conf != new.redis.malloc_conf),
        ("redis.auth", *auth != new.redis.auth),
        ("redis.tls", *tls != new.redis.tls),
        ("redis.on_agent_exit", *on_agent_exit != new.redis.on_agent_exit),
        ("load.threads", *load_threads != new.load_threads),
        ("http.listen", *http_listen != new.http_listen),
        ("log.format", log.format != new.log.format),
        ("join.listen", join.listen != new.join.listen),
        ("firewall.manage", *firewall_manage != new.firewall_manage),
    ]
    .into_iter()
    .filter_map(|(key, changed)| changed.then_some(key))
    .collect()
}

/// Names of directives that were added, changed or taken away; not values, for one may be
/// a password.
fn directives<'a>(old: &'a Config, new: &'a Config) -> Vec<&'a str> {
    let (old, new) = (&old.redis.directives, &new.redis.directives);
    let mut names: Vec<_> = old.keys().chain(new.keys()).map(String::as_str).collect();
    names.sort_unstable();
    names.dedup();
    names.retain(|name| old.get(*name) != new.get(*name));
    names
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::config::Overrides;

    fn config(toml: &str) -> Config {
        let dir = tempfile::tempdir().expect("a directory");
        let path = dir.path().join("agent.toml");
        std::fs::write(&path, toml).expect("write a config");
        Config::load(&path, &Overrides::default()).expect("a config")
    }

    const BASE: &str = "[mesh]\nlisten = \"127.0.0.1:1\"\nbootstrap_expect = 1\n";

    #[test]
    fn what_cannot_change_is_named_and_what_can_is_not() {
        let old = config(BASE);
        let log = config(&format!("{BASE}[log]\nlevel = \"debug\"\n"));
        assert!(fixed(&old, &log).is_empty());
        let others = config(
            "[mesh]\nlisten = \"127.0.0.1:2\"\nbootstrap_expect = 1\n[http]\nlisten = \"off\"\n[log]\n\
             format = \"json\"\n",
        );
        let named = fixed(&old, &others);
        assert_eq!(named, ["mesh.listen", "mesh.advertise", "http.listen", "log.format"]);
    }

    #[test]
    fn directives_are_named_without_their_values() {
        let old = config(&format!("{BASE}[redis.directives]\na = \"1\"\nb = \"2\"\nc = \"3\"\n"));
        let new = config(&format!("{BASE}[redis.directives]\na = \"1\"\nb = \"4\"\nd = \"5\"\n"));
        assert_eq!(directives(&old, &new), ["b", "c", "d"]);
        assert!(fixed(&old, &new).is_empty());
    }
}
