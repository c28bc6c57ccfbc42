//! The plan, as this host's supervisor is to have it; and the observed state, as the
//! mesh is to know it. Pure translation, except for the task that connects the two.

use std::fmt;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use redmesh_api::ids::{HostId, NodeId};
use redmesh_api::level::{ClusterPlan, Formation, Level, PlanStage, PlannedInstance, Servers};
use tokio::sync::watch;
use tokio_util::sync::CancellationToken;
use tracing::{debug, warn};

use super::forgetting::Forgetting;
use super::joining::Joining;
use super::rotation::Rotating;
use super::shares::Shares;
use super::views::Views;
use crate::cluster::redis_conf::LARGE_FROM;
use crate::cluster::redis_conf::live::Directives;
use crate::cluster::{
    DirectiveError, NodesConfError, RedisConf, ServerVersion, VersionError, clients_needed, render_nodes_conf,
};
use crate::facts::{self, Observed, ShareLost};
use crate::level::LevelCell;
use crate::login::Access;
use crate::mesh::Mesh;
use crate::supervisor::{
    InstanceStatus, Phase, ProcessError, Run, Supervise, SupervisorError, WantedInstance, WantedLevel,
};

/// Time for the replicas of a failed primary to elect one of them.
const ELECTION_MAX: Duration = Duration::from_secs(2);

/// What this host adds to a plan before its instances can be written.
#[derive(Clone)]
pub struct LocalSettings {
    /// Whose instances.
    pub host: HostId,
    /// Parent of the instances' directories.
    pub data_dir: PathBuf,
    /// The user's directives, each with its lines.
    pub directives: watch::Receiver<Arc<Directives>>,
    /// `net.core.somaxconn`, where known.
    pub somaxconn: Option<u32>,
    /// Which passwords the servers accept, if they want any.
    pub access: Option<watch::Receiver<Access>>,
    /// Directory of this host's identity, where its servers are to use TLS.
    pub tls: Option<PathBuf>,
}

impl fmt::Debug for LocalSettings {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        // The directives' values may be passwords.
        f.debug_struct("LocalSettings")
            .field("host", &self.host)
            .field("data_dir", &self.data_dir)
            .finish_non_exhaustive()
    }
}

/// Why a plan can't be put before the supervisor.
#[derive(Debug, thiserror::Error)]
pub enum WantedError {
    /// A directive is not the user's to set, or can't be written.
    #[error("can't render redis.conf")]
    Config(#[source] DirectiveError),
    /// The plan can't be written as `nodes.conf`.
    #[error("can't render nodes.conf")]
    Nodes(#[source] NodesConfError),
    /// Nobody knows how the server reads `nodes.conf`.
    #[error(
        "the format of nodes.conf of {version} is not known, so it can't be seeded: set redis.server to Redis 6.2 \
         to 8.0 or Valkey 7.2 to 8.1"
    )]
    Format {
        /// The server's version.
        version: ServerVersion,
    },
    /// The work on the files was cut short.
    #[error("the files of the plan's instances could not be made")]
    Render(#[source] tokio::task::JoinError),
    /// There is no server whose version could be asked.
    #[error("can't ask the redis-server for its version")]
    Binary(#[source] ProcessError),
    /// The server's version is not to be made out.
    #[error("can't read the redis-server's version")]
    Version(#[source] VersionError),
    /// The supervisor refuses it.
    #[error("the supervisor can't take the plan")]
    Supervisor(#[source] SupervisorError),
}

/// This host's part of `plan`.
///
/// # Errors
/// [`WantedError`], which names the directive.
pub fn wanted(
    plan: &ClusterPlan,
    version: ServerVersion,
    local: &LocalSettings,
) -> Result<WantedLevel, WantedError> {
    // What is to be joined by MEET has to answer from the beginning.
    let run = match (plan.formation, plan.stage) {
        (Formation::Seeded, PlanStage::Prepare) => Run::Held,
        _ => Run::Running,
    };
    let mut instances = Vec::new();
    let clients_needed = clients_needed(plan.instances.len());
    for instance in plan.instances_of(local.host) {
        let conf = conf(plan, instance, local);
        instances.push(WantedInstance {
            addr: plan.addr_of(instance),
            config: conf.render().map_err(WantedError::Config)?,
            nodes_conf: nodes_conf(plan, instance, version)?,
            run,
            clients_needed,
            restart_pause: restart_pause(plan, instance),
        });
    }
    Ok(WantedLevel { plan: plan.id, paced: plan.instances.len() >= LARGE_FROM, instances })
}

/// What goes into the `redis.conf` of one of this host's instances.
pub fn conf(plan: &ClusterPlan, instance: &PlannedInstance, local: &LocalSettings) -> RedisConf {
    let directives = Directives::clone(&local.directives.borrow());
    conf_with(plan, instance, local, directives)
}

/// The same with other directives of the user.
pub fn conf_with(
    plan: &ClusterPlan,
    instance: &PlannedInstance,
    local: &LocalSettings,
    directives: Directives,
) -> RedisConf {
    let instances = plan.instances.len();
    RedisConf {
        addr: plan.addr_of(instance),
        node_timeout_ms: plan.node_timeout_ms,
        hz: plan.hz,
        forming: plan.formation == Formation::Seeded && plan.stage < PlanStage::Formed,
        clients_needed: clients_needed(instances),
        dir: local.data_dir.join(instance.port.to_string()),
        somaxconn: local.somaxconn,
        directives,
        access: local.access.as_ref().map(|access| access.borrow().clone()),
        tls: local.tls.clone(),
    }
}

/// The file with which an instance starts if it has none. By MEET, that is its first start,
/// when there is no id to be written yet; or it has lost the file, and comes back as who it
/// was, where the format is known.
fn nodes_conf(
    plan: &ClusterPlan,
    instance: &PlannedInstance,
    version: ServerVersion,
) -> Result<Option<String>, WantedError> {
    let render = |format| render_nodes_conf(plan, instance.node_id, format).map_err(WantedError::Nodes);
    match (plan.formation, version.nodes_conf_format()) {
        (Formation::Seeded, None) => Err(WantedError::Format { version }),
        (Formation::Meet, None) => Ok(None),
        (Formation::Meet, Some(_)) if instance.node_id == NodeId::UNKNOWN => Ok(None),
        (_, Some(format)) => render(format).map(Some),
    }
}

/// How long an instance stays away after it has ended, at least.
///
/// A primary without persistence comes back empty. Within the node timeout nobody has
/// missed it, and its replica would copy the emptiness; after a failover it comes back as
/// the new primary's replica. Which of a shard's instances is primary now is not in the
/// plan, so all wait. Redis promotes a replica after the node timeout, up to half of it
/// more until the ping that goes unanswered, and a second or two of election.
fn restart_pause(plan: &ClusterPlan, instance: &PlannedInstance) -> Duration {
    let shard = plan.instances.iter().filter(|other| other.shard_id == instance.shard_id);
    let replicated = shard.count() > 1;
    match plan.stage {
        PlanStage::Formed if replicated => {
            Duration::from_millis(u64::from(plan.node_timeout_ms) * 2) + ELECTION_MAX
        }
        _ => Duration::ZERO,
    }
}

/// Figures for the mesh out of the supervisor's statuses, the instances' views and how far
/// they have joined.
pub fn observe(
    level: &Level,
    host: HostId,
    statuses: &[InstanceStatus],
    views: &Views,
    joining: &Joining,
) -> Observed {
    let mut observed = Observed::default();
    let Some(plan) = &level.plan else { return observed };
    observed.plan = Some((plan.id, plan.stage));
    for instance in plan.instances_of(host) {
        let addr = plan.addr_of(instance);
        observed.planned += 1;
        let status = statuses.iter().find(|status| status.addr == addr);
        let runs = match plan.spec.servers {
            Servers::Supervised => status.is_some_and(|status| status.phase == Phase::Running),
            Servers::Existing => views.answers(addr),
        };
        let by_meet = plan.formation == Formation::Meet && plan.stage != PlanStage::Formed;
        let joins = if by_meet { joining.waits_for(plan, addr) } else { None };
        if status.is_some_and(|status| status.phase == Phase::Held) {
            observed.held += 1;
        } else if runs && (plan.stage != PlanStage::Prepare || joins.is_none()) {
            observed.up += 1;
        }
        if let Some(problem) = status.and_then(|status| status.problem.as_deref()) {
            observed.add_problem(format!("{addr}: {problem}"));
        }
        if let Some(words) = joins {
            // What has not begun to run is the supervisor's affair.
            if runs || plan.spec.servers == Servers::Existing {
                observed.add_problem(format!("{addr}: {words}"));
            }
            continue;
        }
        match views.disagreement(addr) {
            None => observed.agreed += 1,
            Some(reason) if plan.stage > PlanStage::Prepare => {
                observed.add_problem(format!("{addr}: {reason}"));
            }
            Some(_) => {}
        }
    }
    observed
}

/// Between two tries to put a plan before the supervisor that it could not take.
const RETRY_INTERVAL: Duration = Duration::from_secs(3);

/// Hands each new level's plan to the supervisor until cancelled; `refused` says why one
/// could not be taken, which is tried again (a missing redis-server can be installed).
pub async fn reconcile(
    mut levels: watch::Receiver<Arc<Level>>,
    supervisor: Arc<dyn Supervise>,
    mut local: LocalSettings,
    refused: watch::Sender<Option<String>>,
    cancel: CancellationToken,
) {
    let mut done = None;
    let mut directives = local.directives.clone();
    let host = local.host;
    // A host can be given another one's instances.
    let part = |plan: &ClusterPlan, access: &Option<Access>| {
        let place = plan.hosts.iter().position(|planned| planned.id == host);
        (plan.id, plan.stage, place, access.clone())
    };
    loop {
        let level = levels.borrow_and_update().clone();
        if directives.has_changed().unwrap_or(false) {
            directives.mark_unchanged();
            done = None;
        }
        let access = local.access.as_mut().map(|access| access.borrow_and_update().clone());
        let accessed = local.access.clone();
        let words = match &level.plan {
            // Servers that are somebody else's are neither started nor stopped.
            Some(plan) if plan.spec.servers == Servers::Existing => None,
            // A level that only brings other runs: a plan of a thousand instances is
            // megabytes of files, and nothing about them has changed.
            Some(plan) if done.as_ref() != Some(&part(plan, &access)) => {
                match put(plan, &*supervisor, &local).await {
                    Ok(()) => {
                        done = Some(part(plan, &access));
                        None
                    }
                    Err(error) => {
                        let words = crate::error_chain(&error);
                        warn!(error = words, "the plan can't be carried out on this host");
                        Some(words)
                    }
                }
            }
            _ => None,
        };
        let pause = if words.is_some() { RETRY_INTERVAL } else { Duration::MAX };
        refused.send_replace(words);
        tokio::select! {
            changed = levels.changed() => if changed.is_err() { return },
            // For the files of later starts.
            Ok(()) = directives.changed() => done = None,
            () = changed(accessed) => {}
            () = tokio::time::sleep(pause) => {}
            () = cancel.cancelled() => return,
        }
    }
}

/// Returns when the passwords have changed.
async fn changed(access: Option<watch::Receiver<Access>>) {
    let Some(mut access) = access else { return std::future::pending().await };
    if access.changed().await.is_err() {
        std::future::pending().await
    }
}

async fn put(
    plan: &ClusterPlan,
    supervisor: &dyn Supervise,
    local: &LocalSettings,
) -> Result<(), WantedError> {
    let text = supervisor.server_version().await.map_err(WantedError::Binary)?;
    let version = ServerVersion::parse(&text).map_err(WantedError::Version)?;
    let (plan, local) = (plan.clone(), local.clone());
    let rendered = tokio::task::spawn_blocking(move || wanted(&plan, version, &local));
    let wanted = rendered.await.map_err(WantedError::Render)??;
    debug!(plan = %wanted.plan, instances = wanted.instances.len(), "reconciling to the plan");
    supervisor.set_wanted(wanted).await.map_err(WantedError::Supervisor)
}

/// What [`publish`] is made of.
#[derive(Debug, Clone)]
pub struct Sources {
    /// The newest level.
    pub levels: LevelCell,
    /// The supervisor's statuses.
    pub statuses: watch::Receiver<Arc<Vec<InstanceStatus>>>,
    /// The instances' views.
    pub views: watch::Receiver<Arc<Views>>,
    /// How far they have joined.
    pub joining: watch::Receiver<Joining>,
    /// Why the plan can't be carried out at all.
    pub refused: watch::Receiver<Option<String>>,
    /// Why an instance still has the settings of a cluster that is being formed.
    pub unsettled: watch::Receiver<Option<String>>,
    /// How far a new secret is taken up.
    pub rotating: watch::Receiver<Rotating>,
    /// How far removed hosts are forgotten.
    pub forgetting: watch::Receiver<Forgetting>,
    /// Why an instance may show an old certificate.
    pub outdated: watch::Receiver<Option<String>>,
    /// What is wrong with this host's share of a run.
    pub shares: Shares,
}

/// Publishes what this host observes, whenever it changes, until cancelled.
pub async fn publish(host: HostId, mut sources: Sources, mesh: Mesh, cancel: CancellationToken) {
    let mut levels = sources.levels.subscribe();
    loop {
        let level = levels.borrow_and_update().clone();
        let statuses = sources.statuses.borrow_and_update().clone();
        let views = sources.views.borrow_and_update().clone();
        let joining = sources.joining.borrow_and_update().clone();
        let mut observed = observe(&level, host, &statuses, &views, &joining);
        let refused = sources.refused.borrow_and_update().clone();
        observed.level_lost = sources.levels.problem().map(facts::cut);
        let unsettled = sources.unsettled.borrow_and_update().clone();
        let Forgetting { forgotten, withheld } = sources.forgetting.borrow_and_update().clone();
        observed.forgotten = forgotten;
        observed.withheld = withheld.map(facts::cut);
        let lost = observed.level_lost.clone().into_iter().chain(observed.withheld.clone());
        let Rotating { state, problem } = sources.rotating.borrow_and_update().clone();
        observed.secrets = state;
        let outdated = sources.outdated.borrow_and_update().clone();
        let own = problem.into_iter().chain(refused).chain(unsettled).chain(outdated);
        for problem in lost.chain(own).chain(sources.shares.problem()) {
            observed.add_problem(problem);
        }
        observed.share_lost = sources.shares.lost();
        if let Some(ShareLost { run, reason, .. }) = observed.share_lost.clone() {
            observed.add_problem(format!("run {run}: {reason}"));
        }
        if let Err(error) = mesh.publish(facts::OBSERVED, &observed) {
            warn!(error = %crate::error_chain(&error), "can't publish what this host observes");
        }
        tokio::select! {
            () = sources.changed(&mut levels) => {}
            () = cancel.cancelled() => return,
        }
    }
}

impl Sources {
    /// Returns when one of them has changed, or after [`PUBLISH_INTERVAL`]. One whose sender
    /// has ended, for there is nothing for it to do on this host, does not change any more.
    async fn changed(&mut self, levels: &mut watch::Receiver<Arc<Level>>) {
        tokio::select! {
            Ok(()) = levels.changed() => {}
            Ok(()) = self.statuses.changed() => {}
            Ok(()) = self.views.changed() => {}
            Ok(()) = self.joining.changed() => {}
            Ok(()) = self.refused.changed() => {}
            Ok(()) = self.unsettled.changed() => {}
            Ok(()) = self.forgetting.changed() => {}
            Ok(()) = self.rotating.changed() => {}
            Ok(()) = self.outdated.changed() => {}
            () = tokio::time::sleep(PUBLISH_INTERVAL) => {}
        }
    }
}

/// Longest time between two looks at what changes without telling.
const PUBLISH_INTERVAL: Duration = Duration::from_secs(1);

#[cfg(test)]
mod tests {
    use std::future::poll_fn;
    use std::net::IpAddr;
    use std::pin::pin;
    use std::task::Poll;

    use rand::SeedableRng;
    use rand::rngs::StdRng;
    use redmesh_api::ids::PlanId;
    use redmesh_api::level::{ClusterSpec, PlannedHost};
    use uuid::Uuid;

    use super::*;
    use crate::cluster::plan::{PlanInput, plan};

    #[test]
    fn only_what_replicas_could_save_waits_before_it_is_started_again() {
        let planned = |replicas, stage| {
            let host = |n: u8| PlannedHost {
                id: HostId(n.into()),
                name: format!("host-{n}"),
                ip: IpAddr::from([10, 0, 0, n]),
                base_port: 6379,
            };
            let input = PlanInput {
                id: PlanId(Uuid::from_u128(7)),
                spec: ClusterSpec {
                    instances_per_host: 2,
                    replicas,
                    node_timeout_ms: None,
                    ..Default::default()
                },
                hosts: (1..=3).map(host).collect(),
                created_unix_ms: 1,
                node_timeout_ms: 5000,
                hz: 10,
                formation: Formation::Seeded,
            };
            let plan = plan(input, &mut StdRng::seed_from_u64(1)).expect("a plan");
            ClusterPlan { stage, ..plan }
        };
        let pauses = |plan: &ClusterPlan| -> Vec<u64> {
            plan.instances.iter().map(|instance| restart_pause(plan, instance).as_secs()).collect()
        };
        assert_eq!(pauses(&planned(1, PlanStage::Formed)), [12; 6]);
        assert_eq!(pauses(&planned(1, PlanStage::Release)), [0; 6], "there are no keys yet");
        assert_eq!(pauses(&planned(0, PlanStage::Formed)), [0; 6], "there is nobody to wait for");
    }

    fn ended<T: Default>() -> watch::Receiver<T> {
        watch::channel(T::default()).1
    }

    #[tokio::test]
    async fn sources_that_have_ended_are_waited_for_no_more_and_the_others_are() {
        let dir = tempfile::tempdir().expect("temp dir");
        let disk = crate::disk::Disk::default();
        let shares = Shares::new(crate::host::shares::ShareSettings {
            host: HostId(1),
            generation: 1,
            state_dir: dir.path().to_owned(),
            threads: 1,
            logins: Default::default(),
            tls: None,
            engine: Arc::new(crate::load::Engine),
            clock: Default::default(),
            disk: disk.clone(),
        });
        let (refuse, refused) = watch::channel(None);
        let mut sources = Sources {
            levels: LevelCell::open(dir.path(), disk).expect("an empty level"),
            statuses: ended(),
            views: ended(),
            joining: ended(),
            refused,
            unsettled: ended(),
            rotating: ended(),
            forgetting: ended(),
            outdated: ended(),
            shares,
        };
        let mut levels = sources.levels.subscribe();
        {
            let mut changed = pin!(sources.changed(&mut levels));
            let waits = poll_fn(|context| Poll::Ready(changed.as_mut().poll(context).is_pending())).await;
            assert!(waits, "what has ended does not change");
        }
        refuse.send_replace(Some("no server".to_owned()));
        sources.changed(&mut levels).await;
        assert_eq!(sources.refused.borrow_and_update().as_deref(), Some("no server"));
    }
}
