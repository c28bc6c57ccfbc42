//! What a running agent takes anew from its files when it is told to (SIGHUP): the
//! log's level, the certificates and the directives of redis-servers.
//!
//! A reload never stops the agent and never does half of a thing: what can't be used is
//! said and the old stays in force. What can't change while the agent runs is said by
//! name, with what it takes instead.

use std::collections::BTreeSet;
use std::sync::Arc;

use anyhow::Context;
use redmesh_api::tls::Identity;
use sd_notify::NotifyState;
use tokio::signal::unix::Signal;
use tokio_util::sync::CancellationToken;
use tracing::{error, info, warn};

use crate::cluster::redis_conf::live::{self, Directives};
use crate::cluster::redis_conf::{check_access, check_directives};
use crate::config::{Config, ConfigError, LogConfig, MeshConfig, RedisAuth, RedisConfig};
use crate::host::directives::ChangeDirectives;
use crate::redis_tls::RedisTls;
use crate::renewal;
use crate::transport::quic::QuicTransport;

/// What agents log in with where `redis.auth` is off.
const LOGIN: &str = "requirepass";

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
    directives: ChangeDirectives,
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
        tokio::select! {
            () = reload(&reloads, &mut config, &transport, redis.as_ref(), &directives) => {}
            () = cancel.cancelled() => return,
        }
        let _ = sd_notify::notify(&[NotifyState::Ready]);
    }
}

async fn reload(
    reloads: &Reloads,
    config: &mut Config,
    transport: &QuicTransport,
    redis: Option<&RedisTls>,
    directives: &ChangeDirectives,
) {
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
        .and_then(|identity| renewal::take_up(transport, redis, &identity).map_err(anyhow::Error::msg));
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
    change(config, &new, directives).await;
}

/// Brings changed directives to the servers; those in force are what `config` then says.
async fn change(config: &mut Config, new: &Config, directives: &ChangeDirectives) {
    let listed = |config: &Config| -> Directives { config.redis.directives.clone().into_iter().collect() };
    let (old, mut wanted) = (listed(config), listed(new));
    if config.redis.auth == RedisAuth::Off && live::changed(&old, &wanted).contains(LOGIN) {
        // Agents log in with it: of all hosts, and from their start on.
        warn!(
            "changed in redis.directives: {LOGIN}; with redis.auth = \"off\" it takes a restart of all agents and servers"
        );
        wanted = live::without(&wanted, &old, &BTreeSet::from([LOGIN.to_owned()]));
    }
    if live::changed(&old, &wanted).is_empty() {
        return;
    }
    let checked = check_directives(&wanted).and_then(|()| match config.redis.auth {
        RedisAuth::On => check_access(&wanted),
        RedisAuth::Off => Ok(()),
    });
    if let Err(error) = checked {
        return error!(error = crate::error_chain(&error), "the servers' directives stay as they were");
    }
    if let Some(in_force) = directives.change(wanted).await {
        config.redis.directives = in_force.into_iter().collect();
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

    fn directives(lines: &str) -> Config {
        config(&format!("{BASE}[redis]\nauth = \"off\"\n[redis.directives]\n{lines}"))
    }

    /// What becomes of a change where all that reaches the servers is taken.
    async fn changed(old: &str, new: &str) -> (Config, Option<Directives>) {
        let (to, mut changes) = crate::host::directives::channel();
        let (mut config, new) = (directives(old), directives(new));
        let ((), taken) = tokio::join!(
            async {
                change(&mut config, &new, &to).await;
                drop(to);
            },
            changes.take()
        );
        (config, taken)
    }

    #[tokio::test]
    async fn changed_directives_go_to_the_servers_and_are_remembered() {
        assert!(fixed(&directives("a = \"1\"\n"), &directives("b = \"1\"\n")).is_empty());
        let (config, taken) = changed("a = \"1\"\nb = \"2\"\n", "b = \"3\"\nc = 4\n").await;
        let lines = |text: &str| vec![text.to_owned()];
        let expected = vec![("b".to_owned(), lines("3")), ("c".to_owned(), lines("4"))];
        assert_eq!(taken.as_ref(), Some(&expected));
        assert_eq!(config.redis.directives.into_iter().collect::<Vec<_>>(), expected);
        // The same, or one that can't be written: nothing reaches them.
        assert_eq!(changed("a = \"1\"\n", "a = \"1\"\n").await.1, None);
        assert_eq!(changed("a = \"1\"\n", "port = 7\n").await.1, None);
        // What agents log in with they learn at their start.
        let (config, taken) = changed("requirepass = \"a\"\n", "requirepass = \"b\"\nc = 4\n").await;
        assert!(taken.is_some_and(|taken| taken.contains(&("requirepass".to_owned(), lines("a")))));
        assert_eq!(config.redis.directives["requirepass"], lines("a"));
    }
}
