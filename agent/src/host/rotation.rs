//! Takes up a new secret of the redis-servers' passwords while everything runs.
//!
//! Hosts get the new file one after another, so for a while some know both secrets and
//! some the former alone. Nobody may be locked out meanwhile:
//!
//! - a server accepts both passwords as soon as its agent knows both, and so does every
//!   client of ours offer both (`login`);
//! - a replica has one password for its primary, so it goes on with the former until all
//!   hosts have said that their servers accept the newest;
//! - the former is dropped where the file doesn't hold it any more and all hosts have said
//!   that they replicate with the newest. Until then it is kept, whatever the file says.
//!
//! What hosts say are fingerprints. A server is told by `ACL SETUSER` and `CONFIG SET`;
//! whoever is connected stays so.

use std::collections::BTreeMap;
use std::net::SocketAddr;
use std::path::PathBuf;
use std::sync::Arc;

use futures_util::{StreamExt, stream};
use redmesh_api::control::SecretState;
use redmesh_api::level::{Level, Servers};
use redmesh_api::secret::{AGENT_USER, REDIS_SECRET_FILE, RedisSecret, RedisSecrets};
use tokio::sync::watch;
use tokio_util::sync::CancellationToken;
use tracing::{info, warn};

use super::instances::{self, LocalSettings};
use crate::census::{Census, Hosts};
use crate::cluster::admin::{ASKED_AT_ONCE_MAX, AdminError};
use crate::cluster::{AdminPool, RedisConf};
use crate::login::{Access, Logins};
use crate::renewal::{LOOK_INTERVAL, Look, Watch, mark};
use crate::supervisor::{InstanceStatus, Phase};

/// What this host says of it.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Rotating {
    /// What all of its running servers accept.
    pub state: Option<SecretState>,
    /// What keeps it from going on, and the remedy.
    pub problem: Option<String>,
}

/// What a change of the file comes to, or of what others say.
///
/// # Errors
/// In words, where more secrets would have to be good than servers are told.
fn next(now: &Access, file: &RedisSecrets, said: &[Option<SecretState>]) -> Result<Access, String> {
    let accepted = next_accepted(now, file, said)?;
    let newest = accepted.newest().clone();
    let takes = |state: &Option<SecretState>| {
        state.as_ref().is_some_and(|state| state.accepts.contains(&newest.fingerprint()))
    };
    let settled = accepted.former().is_none()
        || said.iter().all(takes)
        // Once all have said so it stays; whoever joins later has it from its file.
        || (now.settled && now.replicate == newest);
    let replicate = if settled { newest } else { now.replicate.clone() };
    Ok(Access { accepted, replicate, settled })
}

fn next_accepted(
    now: &Access,
    file: &RedisSecrets,
    said: &[Option<SecretState>],
) -> Result<RedisSecrets, String> {
    let current = now.accepted.newest().fingerprint();
    let through = |state: &Option<SecretState>| {
        state.as_ref().is_some_and(|state| state.replicates.as_ref() == Some(&current))
    };
    let spare = now.settled && said.iter().all(through);
    let droppable = |secret: &RedisSecret| spare && Some(secret) == now.accepted.former();
    let in_file = |secret: &RedisSecret| file.all().any(|it| it == secret);
    let kept = now.accepted.all().filter(|secret| !in_file(secret) && !droppable(secret));
    let mut former = file.former().into_iter().chain(kept);
    let (first, more) = (former.next(), former.next());
    match more {
        None => Ok(RedisSecrets::with(file.newest().clone(), first.cloned())),
        Some(_) => Err(format!(
            "{REDIS_SECRET_FILE} holds another secret ({}) before all hosts are through with the last change, so it is \
             not taken up: copy the file of before, and end that change first (`redmeshctl members` shows who is \
             behind)",
            file.newest().fingerprint()
        )),
    }
}

/// What the hosts that count have said: those of the plan, and all others that are alive.
/// `None` for one that has not.
fn said(level: &Level, hosts: &Hosts) -> Vec<Option<SecretState>> {
    let planned = level.plan.iter().flat_map(|plan| &plan.hosts).map(|host| host.id);
    let mut said = BTreeMap::new();
    for id in planned.filter(|id| !level.is_removed(*id)) {
        said.insert(id, hosts.get(&id).and_then(|host| host.observed.secrets.clone()));
    }
    for host in hosts.values().filter(|host| host.alive) {
        said.insert(host.id, host.observed.secrets.clone());
    }
    said.into_values().collect()
}

/// All that it works with.
#[derive(Debug)]
pub struct Rotation {
    /// Where the file is.
    pub identity_dir: PathBuf,
    /// What the mesh says.
    pub census: Census,
    /// The way to own servers.
    pub admin: AdminPool,
    /// Which of them run.
    pub statuses: watch::Receiver<Arc<Vec<InstanceStatus>>>,
    /// What goes into their `redis.conf`.
    pub local: LocalSettings,
    /// What this agent's own connections say.
    pub logins: Logins,
}

/// A server's life, and what it was told in it.
type Told = BTreeMap<SocketAddr, (u32, Access)>;

impl Rotation {
    /// Until `cancel`.
    pub async fn run(
        self,
        access: watch::Sender<Access>,
        rotating: watch::Sender<Rotating>,
        cancel: CancellationToken,
    ) {
        let mut file = access.borrow().accepted.clone();
        let mut watch = Watch::default();
        let mut unreadable = None;
        let mut told = Told::new();
        let mut looks = tokio::time::interval(LOOK_INTERVAL);
        loop {
            tokio::select! {
                _ = looks.tick() => {}
                () = cancel.cancelled() => return,
            }
            match self.look(&mut watch).await {
                Some(Ok(secrets)) => (file, unreadable) = (secrets, None),
                Some(Err(words)) => {
                    warn!(error = words, "the changed secret of the redis-servers can't be used");
                    unreadable = Some(words);
                }
                None => {}
            }
            let mut problem = unreadable.clone();
            let now = access.borrow().clone();
            match next(&now, &file, &said(&self.census.level(), &self.census.hosts())) {
                Ok(next) if next != now => {
                    self.logins.set(&next.accepted);
                    say(&now, &next);
                    access.send_replace(next);
                }
                Ok(_) => {}
                Err(words) => problem = problem.or(Some(words)),
            }
            let now = access.borrow().clone();
            let missed = tokio::select! {
                missed = self.tell(&now, &mut told) => missed,
                () = cancel.cancelled() => return,
            };
            rotating.send_if_modified(|known| {
                let mut new = Rotating { problem: problem.or(missed.clone()), ..known.clone() };
                if missed.is_none() {
                    new.state = Some(state(&now));
                }
                let changed = *known != new;
                *known = new;
                changed
            });
        }
    }

    /// The file's secrets, where it has changed and kept still since.
    async fn look(&self, watch: &mut Watch) -> Option<Result<RedisSecrets, String>> {
        let dir = self.identity_dir.clone();
        let marked = tokio::task::spawn_blocking(move || mark(&dir, &[REDIS_SECRET_FILE])).await.ok()?;
        if watch.look(marked) == Look::Nothing {
            return None;
        }
        let dir = self.identity_dir.clone();
        let read = tokio::task::spawn_blocking(move || RedisSecrets::load(&dir)).await.ok()?;
        Some(read.map_err(|error| format!("{}; what was good before stays", crate::error_chain(&error))))
    }

    /// Tells own servers that run; the first one that was missed.
    async fn tell(&self, now: &Access, told: &mut Told) -> Option<String> {
        let level = self.census.level();
        // Servers of another owner have the owner's passwords.
        let plan = level.plan.as_ref().filter(|plan| plan.spec.servers == Servers::Supervised)?;
        let statuses = self.statuses.borrow().clone();
        let running = |addr: SocketAddr| {
            let status = statuses.iter().find(|status| status.addr == addr)?;
            status.pid.filter(|_| status.phase == Phase::Running)
        };
        let mut due = Vec::new();
        for instance in plan.instances_of(self.local.host) {
            let conf = instances::conf(plan, instance, &self.local);
            let Some(pid) = running(conf.addr) else { continue };
            if told.get(&conf.addr).is_none_or(|(life, access)| (*life, access) != (pid, now)) {
                due.push((pid, conf));
            }
        }
        let count = due.len();
        let asked = due
            .into_iter()
            .map(|(pid, conf)| async move { (pid, conf.addr, tell_one(&self.admin, &conf, now).await) });
        let answers: Vec<_> = stream::iter(asked).buffer_unordered(ASKED_AT_ONCE_MAX).collect().await;
        let (mut missed, mut changed) = (None, 0);
        for (pid, addr, answer) in answers {
            match answer {
                Ok(new) => {
                    changed += usize::from(new);
                    told.insert(addr, (pid, now.clone()));
                }
                Err(error) => {
                    let error = crate::error_chain(&error);
                    warn!(%addr, error, "a redis-server does not take its passwords, tried again");
                    missed = missed.or_else(|| {
                        Some(format!("{addr} does not take the passwords of {REDIS_SECRET_FILE}: {error}"))
                    });
                }
            }
        }
        if changed > 0 {
            info!(servers = changed, of = count, "redis-servers have been told their passwords");
        }
        missed
    }
}

/// Tells one server; whether anything was new to it.
async fn tell_one(admin: &AdminPool, conf: &RedisConf, access: &Access) -> Result<bool, AdminError> {
    let rules = |rule: fn(&RedisSecret) -> String| {
        let mut rules: Vec<_> = access.accepted.all().map(rule).collect();
        rules.sort();
        rules
    };
    let wanted = rules(RedisSecret::agent_password_rule);
    let mut changed = false;
    if admin.password_rules(conf.addr, AGENT_USER).await? != wanted {
        changed = true;
        // The others first: whoever finds the agents' as it should be takes all for done.
        if !conf.owns_default_user() {
            admin.set_user(conf.addr, "default", &reset(rules(RedisSecret::client_password_rule))).await?;
        }
        admin.set_user(conf.addr, AGENT_USER, &reset(wanted)).await?;
    }
    // Not at each start of an agent: what a person has set by hand stays.
    let due = changed || access.accepted.former().is_some();
    if due && access.settled && !conf.owns_primary_login() {
        admin.config_set(conf.addr, &[("masterauth", access.replicate.agent_password())]).await?;
    }
    Ok(changed)
}

fn reset(passwords: Vec<String>) -> Vec<String> {
    std::iter::once("resetpass".to_owned()).chain(passwords).collect()
}

fn state(now: &Access) -> SecretState {
    SecretState {
        accepts: now.accepted.all().map(RedisSecret::fingerprint).collect(),
        replicates: now.settled.then(|| now.replicate.fingerprint()),
    }
}

fn say(old: &Access, new: &Access) {
    let newest = new.accepted.newest().fingerprint();
    let former = new.accepted.former().map(RedisSecret::fingerprint);
    if old.accepted != new.accepted {
        info!(newest, former, "the secret of the redis-servers has changed");
    } else {
        info!(newest, "all hosts accept the newest secret of the redis-servers: replicas use it from now on");
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn secret(n: u8) -> RedisSecret {
        let digit = char::from_digit(u32::from(n), 16).expect("a digit");
        let text: String = std::iter::repeat_n(digit, 64).collect();
        RedisSecrets::parse(&text).expect("a secret").newest().clone()
    }

    fn secrets(all: &[u8]) -> RedisSecrets {
        RedisSecrets::with(secret(all[0]), all.get(1).map(|n| secret(*n)))
    }

    fn access(all: &[u8], replicate: u8, settled: bool) -> Access {
        Access { accepted: secrets(all), replicate: secret(replicate), settled }
    }

    fn says(accepts: &[u8], replicates: Option<u8>) -> Option<SecretState> {
        let accepts = accepts.iter().map(|n| secret(*n).fingerprint()).collect();
        Some(SecretState { accepts, replicates: replicates.map(|n| secret(n).fingerprint()) })
    }

    #[test]
    fn a_host_goes_on_only_as_the_others_do() {
        let (old, new) = (says(&[1], Some(1)), says(&[2, 1], None));
        // Its own file came; nobody else's.
        let first = next(&access(&[1], 1, true), &secrets(&[2, 1]), &[old.clone(), old.clone()]);
        assert_eq!(first, Ok(access(&[2, 1], 1, false)));
        let waits = next(&access(&[2, 1], 1, false), &secrets(&[2, 1]), &[new.clone(), old.clone()]);
        assert_eq!(waits, Ok(access(&[2, 1], 1, false)), "one host's servers know the former alone");
        let silent = next(&access(&[2, 1], 1, false), &secrets(&[2, 1]), &[new.clone(), None]);
        assert_eq!(silent, Ok(access(&[2, 1], 1, false)), "one host of the plan says nothing");
        let all = next(&access(&[2, 1], 1, false), &secrets(&[2, 1]), &[new.clone(), new.clone()]);
        assert_eq!(all, Ok(access(&[2, 1], 2, true)));
        // The file that ends it came, too early and then in time.
        let early = [says(&[2, 1], Some(2)), new];
        let kept = next(&access(&[2, 1], 2, true), &secrets(&[2]), &early);
        assert_eq!(kept, Ok(access(&[2, 1], 2, true)));
        let through = [says(&[2, 1], Some(2)), says(&[2], Some(2))];
        assert_eq!(next(&access(&[2, 1], 2, true), &secrets(&[2]), &through), Ok(access(&[2], 2, true)));
        // It stays while the file still has both.
        let held = next(&access(&[2, 1], 2, true), &secrets(&[2, 1]), &through);
        assert_eq!(held, Ok(access(&[2, 1], 2, true)));
    }

    #[test]
    fn a_file_without_the_former_secret_locks_nobody_out() {
        let old = [says(&[1], Some(1)), says(&[1], Some(1))];
        assert_eq!(next(&access(&[1], 1, true), &secrets(&[2]), &old), Ok(access(&[2, 1], 1, false)));
    }

    #[test]
    fn a_third_secret_waits_until_the_first_is_spare_and_the_way_back_is_open() {
        let words = next(&access(&[2, 1], 1, false), &secrets(&[3, 2]), &[says(&[2, 1], None)]).unwrap_err();
        assert!(words.contains(&secret(3).fingerprint()) && words.contains("members"), "{words}");
        assert!(!words.contains("3333"), "{words}");
        let through = [says(&[2, 1], Some(2))];
        let third = next(&access(&[2, 1], 2, true), &secrets(&[3, 2]), &through);
        assert_eq!(third, Ok(access(&[3, 2], 2, false)));
        let back =
            next(&access(&[2, 1], 1, false), &secrets(&[1]), &[says(&[2, 1], None), says(&[1], Some(1))]);
        assert_eq!(back, Ok(access(&[1, 2], 1, true)), "all accept the first, as they always did");
    }

    #[test]
    fn an_agent_that_starts_amid_it_replicates_as_before() {
        assert_eq!(Access::from(secrets(&[2, 1])), access(&[2, 1], 1, false));
        assert_eq!(Access::from(secrets(&[2])), access(&[2], 2, true));
    }
}
