//! Changed directives, brought to the servers that run and to what later starts read.
//!
//! One server is told first, by `CONFIG SET`: what it says of a directive, the others would
//! say too. A value that it can't use is nobody's: it stays as it was, also for later starts,
//! which would fail with it. What can't be changed while a server runs goes into the files
//! alone. Then the files' source is changed, then the other servers are told; one that does
//! not answer is told when it does. No value is ever logged: one may be a password.

use std::collections::{BTreeMap, BTreeSet};
use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use futures_util::{StreamExt, stream};
use redmesh_api::level::{ClusterPlan, Formation, Level, PlanStage, Servers};
use tokio::sync::{mpsc, oneshot, watch};
use tokio_util::sync::CancellationToken;
use tracing::{error, info, warn};

use super::instances::{self, LocalSettings};
use crate::cluster::admin::ASKED_AT_ONCE_MAX;
use crate::cluster::redis_conf::live::{self, Directives, Refusal};
use crate::cluster::{AdminError, AdminPool, RedisConf};

/// Changes that may wait; a reload waits for its own.
const CHANGES_MAX: usize = 4;

/// Between two tries to tell those that did not answer.
const RETRY_INTERVAL: Duration = Duration::from_secs(2);

/// Servers that are tried as the first one; each that does not answer costs seconds.
const FIRST_TRIED_MAX: usize = 3;

/// What has to be told to servers, and who asked.
#[derive(Debug)]
struct Change {
    new: Directives,
    done: oneshot::Sender<Directives>,
}

/// Where changes go to. Cheap to clone.
#[derive(Debug, Clone)]
pub struct ChangeDirectives(mpsc::Sender<Change>);

impl ChangeDirectives {
    /// Brings `new` to the servers; what is in force for later starts afterwards. The journal
    /// says what became of each.
    pub async fn change(&self, new: Directives) -> Option<Directives> {
        let (done, answer) = oneshot::channel();
        self.0.send(Change { new, done }).await.ok()?;
        answer.await.ok()
    }
}

/// Changes on their way to the task that carries them out.
#[derive(Debug)]
pub struct Changes(mpsc::Receiver<Change>);

#[cfg(test)]
impl Changes {
    /// For tests: takes one as it is, in place of the servers.
    pub async fn take(&mut self) -> Option<Directives> {
        let Change { new, done } = self.0.recv().await?;
        done.send(new.clone()).ok()?;
        Some(new)
    }
}

/// Both ends.
pub fn channel() -> (ChangeDirectives, Changes) {
    let (sender, receiver) = mpsc::channel(CHANGES_MAX);
    (ChangeDirectives(sender), Changes(receiver))
}

/// What servers have not been told yet: names by server.
type Untold = BTreeMap<SocketAddr, BTreeSet<String>>;

/// What one server said.
#[derive(Debug, Default)]
struct Said {
    /// Directives that it has taken.
    taken: BTreeSet<String>,
    /// Directives that only a start can change.
    fixed: BTreeSet<String>,
    /// Directives whose value it can't use, with its words.
    refused: BTreeMap<String, String>,
}

/// Everything that changes are carried out with.
#[derive(Debug)]
pub struct Applying {
    /// What later starts read.
    pub in_force: watch::Sender<Arc<Directives>>,
    /// The newest level.
    pub levels: watch::Receiver<Arc<Level>>,
    /// Tells own instances.
    pub admin: AdminPool,
    /// What is known of this host.
    pub local: LocalSettings,
}

impl Applying {
    /// Carries changes out, until cancelled.
    pub async fn run(self, mut changes: Changes, cancel: CancellationToken) {
        let mut untold = Untold::new();
        loop {
            let pause = if untold.is_empty() { Duration::MAX } else { RETRY_INTERVAL };
            let change = tokio::select! {
                change = changes.0.recv() => match change {
                    Some(change) => Some(change),
                    None => return cancel.cancelled().await,
                },
                () = tokio::time::sleep(pause) => None,
                () = cancel.cancelled() => return,
            };
            let work = async {
                match change {
                    Some(Change { new, done }) => {
                        // Whoever asked may be gone; it stands all the same.
                        let _ = done.send(self.change(new, &mut untold).await);
                    }
                    None => self.tell(&mut untold, 0).await,
                }
            };
            tokio::select! {
                () = work => {}
                () = cancel.cancelled() => return,
            }
        }
    }

    /// This host's instances under `directives`, if they are ours to tell; and whether they can
    /// be told now: while a cluster is being formed they are held, and answer nobody.
    fn servers(&self, directives: &Directives) -> (Vec<RedisConf>, bool) {
        let level = self.levels.borrow().clone();
        let ours = |plan: &&ClusterPlan| plan.spec.servers == Servers::Supervised;
        let Some(plan) = level.plan.as_ref().filter(ours) else { return (Vec::new(), true) };
        let conf = |instance| instances::conf_with(plan, instance, &self.local, directives.clone());
        let answer = plan.formation == Formation::Meet || plan.stage == PlanStage::Formed;
        (plan.instances_of(self.local.host).map(conf).collect(), answer)
    }

    async fn change(&self, new: Directives, untold: &mut Untold) -> Directives {
        let old = Directives::clone(&self.in_force.borrow());
        let names = RedisConf::told_with(&live::changed(&old, &new));
        let (servers, answer) = self.servers(&new);
        let mut first = None;
        let tried = if answer { servers.len().min(FIRST_TRIED_MAX) } else { 0 };
        for conf in &servers[..tried] {
            if let Ok(said) = tell(&self.admin, conf, &names).await {
                first = Some((conf.addr, said));
                break;
            }
        }
        let (asked, said) = first.unzip();
        let said = said.unwrap_or_default();
        let kept: BTreeSet<String> = said.refused.keys().cloned().collect();
        let in_force = live::without(&new, &old, &kept);
        self.in_force.send_replace(Arc::new(in_force.clone()));
        for (name, words) in &said.refused {
            error!(directive = name, words, "the servers can't use its new value: it stays as it was");
        }
        if !said.fixed.is_empty() {
            warn!(
                directives = listed(&said.fixed),
                "can't be changed while a server runs: in force for each server once it is started again \
                 (systemctl stop redmesh-servers, then systemctl start redmesh-agent)"
            );
        }
        let rest = match asked {
            Some(_) => said.taken,
            None => names,
        };
        let others = servers.iter().map(|conf| conf.addr).filter(|addr| Some(*addr) != asked);
        for addr in others.filter(|_| !rest.is_empty()) {
            untold.entry(addr).or_default().extend(rest.iter().cloned());
        }
        if servers.is_empty() {
            info!(directives = listed(&rest), "servers that are started from now on have changed directives");
        } else if asked.is_some() && untold.is_empty() && !rest.is_empty() {
            info!(servers = 1, directives = listed(&rest), "the running servers have changed directives");
        }
        self.tell(untold, usize::from(asked.is_some())).await;
        if !untold.is_empty() {
            warn!(servers = untold.len(), "don't answer: they are told of changed directives once they do");
        }
        in_force
    }

    /// Tells whoever has not been told, all at once; `before` have taken the same already.
    async fn tell(&self, untold: &mut Untold, before: usize) {
        let (servers, answer) = self.servers(&self.in_force.borrow().clone());
        untold.retain(|addr, _| servers.iter().any(|conf| conf.addr == *addr));
        if !answer || untold.is_empty() {
            return;
        }
        let due = |conf: RedisConf| Some((untold.get(&conf.addr)?.clone(), conf));
        let due: Vec<_> = servers.into_iter().filter_map(due).collect();
        let asked = due.into_iter().map(|(names, conf)| {
            let admin = self.admin.clone();
            async move { (conf.addr, tell(&admin, &conf, &names).await) }
        });
        let answers: Vec<_> = stream::iter(asked).buffer_unordered(ASKED_AT_ONCE_MAX).collect().await;
        let (mut taken, mut servers) = (BTreeSet::new(), before);
        for (addr, said) in answers {
            let Ok(Said { taken: its, fixed, refused }) = said else { continue };
            untold.remove(&addr);
            servers += 1;
            taken.extend(its);
            for (name, words) in refused {
                error!(%addr, directive = name, words, "a server can't use its new value, and may not start with it");
            }
            if !fixed.is_empty() {
                warn!(%addr, directives = listed(&fixed), "in force for this server once it is started again");
            }
        }
        if !taken.is_empty() {
            info!(servers, directives = listed(&taken), "the running servers have changed directives");
        }
    }
}

/// Tells one server of these directives, whatever it says of each.
///
/// # Errors
/// It does not answer.
async fn tell(admin: &AdminPool, conf: &RedisConf, names: &BTreeSet<String>) -> Result<Said, AdminError> {
    let mut said = Said::default();
    for name in names {
        let value = match conf.live_value(name) {
            Ok(Some(value)) => value,
            // What it would start with without the line only it knows.
            Ok(None) => {
                said.fixed.insert(name.clone());
                continue;
            }
            Err(error) => {
                said.refused.insert(name.clone(), crate::error_chain(&error));
                continue;
            }
        };
        match admin.config_set(conf.addr, &[(name.as_str(), value.clone())]).await {
            Ok(()) => drop(said.taken.insert(name.clone())),
            Err(AdminError::Command { source, .. }) if source.code() == Some("ERR") => {
                let words = source.detail().unwrap_or_default();
                match Refusal::of(words) {
                    Refusal::Fixed => drop(said.fixed.insert(name.clone())),
                    Refusal::Value => drop(said.refused.insert(name.clone(), without_value(words, &value))),
                }
            }
            Err(error) => return Err(error),
        }
    }
    Ok(said)
}

/// A server's words, but for a value that it repeats.
fn without_value(words: &str, value: &str) -> String {
    match value.is_empty() {
        true => words.to_owned(),
        false => words.replace(value, "…"),
    }
}

fn listed(names: &BTreeSet<String>) -> String {
    names.iter().map(String::as_str).collect::<Vec<_>>().join(", ")
}
