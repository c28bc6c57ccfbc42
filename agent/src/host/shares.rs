//! This host's share of load runs: start, stop, recover, report.
//!
//! A share's account lives in ledger files, one per epoch (one life of the agent). An
//! agent that comes back in mid-run closes the epochs it finds, what was issued and not
//! accounted for becoming `unknown`, and issues the rest of its quota under a new one.
//! It first waits for a coordinator who knows no newer level than the one on this host's
//! disk: a run that was closed meanwhile must not be written into any more.

use std::collections::BTreeMap;
use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use redmesh_api::ids::{HostId, RunId};
use redmesh_api::level::{ClusterPlan, Level, PlannedRole};
use redmesh_api::run::{Counts, Run, RunStage, RunUntil, Share, ShareDetail, Tally};
use tokio::sync::{mpsc, watch};
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;
use tracing::{error, info, warn};

use super::detail::{self, Timeline};
use crate::census::Census;
use crate::clock::now_unix_ms;
use crate::cluster::AdminPool;
use crate::facts::{self, ShareCounts};
use crate::load::ledger;
use crate::load::routing::SlotMap;
use crate::load::{Engine, Password, ShareHandle, ShareSpec, ShareUntil};
use crate::mesh::Mesh;
use crate::peer::ShareReport;

/// Between two looks at the counters: as often as gossip can carry them.
const PUBLISH_INTERVAL: Duration = Duration::from_millis(200);

/// Between two looks at load threads that are to drain.
const DRAIN_POLL: Duration = Duration::from_millis(10);

/// Shortest time between two topology refreshes, however many redirections ask.
const REFRESH_INTERVAL_MIN: Duration = Duration::from_millis(100);

/// A share that begins so late still issues for the whole time that was asked; a later
/// one (its agent was away) for what is left of it.
const START_GRACE: Duration = Duration::from_secs(5);

/// Instances asked for the topology before a refresh gives up until it is asked again.
const REFRESH_TRIES_MAX: usize = 5;

/// What a share needs besides the level.
#[derive(Debug, Clone)]
pub struct ShareSettings {
    /// Whose shares.
    pub host: HostId,
    /// Ledger files lie in `<state_dir>/runs`.
    pub state_dir: PathBuf,
    /// Load threads.
    pub threads: usize,
    /// The servers' password, if they want one.
    pub password: Option<Password>,
}

/// Cloneable handle to this host's shares.
#[derive(Debug, Clone)]
pub struct Shares {
    settings: Arc<ShareSettings>,
    running: Arc<Mutex<BTreeMap<RunId, Arc<LocalShare>>>>,
    /// Held by whoever touches the files: no report may take a ledger that is being
    /// begun for one that an earlier life left.
    files: Arc<tokio::sync::Mutex<()>>,
    /// Topology refreshers.
    refreshers: TaskTracker,
}

/// One run's share on this host.
#[derive(Debug)]
struct LocalShare {
    /// Epochs of earlier lives, closed.
    earlier: Vec<(u32, Counts)>,
    /// This life's, unless nothing was left to issue.
    live: Option<(u32, ShareHandle)>,
    /// When this life's began.
    began: (Instant, u64),
    /// What is kept of this life's beside its counts.
    timeline: Mutex<Timeline>,
    /// Whether that has been put on file.
    saved: AtomicBool,
    /// Why it could not be started.
    problem: Option<String>,
    /// Ends the topology refresher.
    cancel: CancellationToken,
}

impl LocalShare {
    fn new(earlier: Vec<(u32, Counts)>, problem: Option<String>) -> Self {
        Self {
            earlier,
            live: None,
            began: (Instant::now(), now_unix_ms()),
            timeline: Mutex::default(),
            saved: AtomicBool::new(false),
            problem,
            cancel: CancellationToken::new(),
        }
    }

    fn timeline(&self) -> MutexGuard<'_, Timeline> {
        self.timeline.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// This life's detail as it stands.
    fn detail(&self, host: HostId) -> Option<ShareDetail> {
        let (epoch, handle) = self.live.as_ref()?;
        Some(detail::of(host, *epoch, self.began.1, &self.timeline(), handle))
    }

    fn counts(&self) -> ShareCounts {
        let earlier = self.earlier.iter().map(|&(epoch, counts)| (epoch, true, counts));
        let live = self.live.iter().map(|(epoch, handle)| {
            // `closed` first: counts read after it are final if it was true.
            let closed = handle.closed();
            (*epoch, closed, handle.counts())
        });
        let mut epochs: Vec<_> = earlier.chain(live).collect();
        if epochs.is_empty() && self.problem.is_none() {
            // Nothing to issue (fewer writes than workers, or stopped before it began) is
            // a closed account too, and the mesh waits for one.
            epochs.push((0, true, Counts::default()));
        }
        ShareCounts { epochs }
    }
}

impl Drop for LocalShare {
    fn drop(&mut self) {
        self.cancel.cancel();
    }
}

impl Shares {
    /// Nothing is running yet.
    pub fn new(settings: ShareSettings) -> Self {
        Self {
            settings: Arc::new(settings),
            running: Arc::default(),
            files: Arc::default(),
            refreshers: TaskTracker::new(),
        }
    }

    /// Does what waits for files or threads on a blocking thread, one at a time; `None`
    /// if it failed, which is logged.
    async fn blocking<T: Send + 'static>(&self, work: impl FnOnce(&Self) -> T + Send + 'static) -> Option<T> {
        let files = self.files.clone().lock_owned().await;
        let shares = self.clone();
        let done = tokio::task::spawn_blocking(move || {
            let _files = files;
            work(&shares)
        });
        done.await.inspect_err(|error| error!(%error, "work on this host's shares failed")).ok()
    }

    /// Exact account of this host's share of `run`; empty if it has none.
    pub async fn report(&self, run: RunId) -> ShareReport {
        self.blocking(move |shares| shares.report_blocking(run)).await.unwrap_or_default()
    }

    fn report_blocking(&self, run: RunId) -> ShareReport {
        let Some(share) = self.get(run) else { return self.report_from_files(run) };
        let dir = self.ledger_dir(run);
        let earlier = share.earlier.iter().filter_map(|&(epoch, _)| detail::load(&dir, epoch));
        ShareReport {
            tallies: share.counts().tallies(self.settings.host).collect(),
            details: earlier.chain(share.detail(self.settings.host)).collect(),
        }
    }

    /// Adds what was acked since the last time to the timelines, and puts closed ones on
    /// file, once.
    fn record(&self) {
        let shares: Vec<_> = self.lock().iter().map(|(&run, share)| (run, share.clone())).collect();
        for (run, share) in shares {
            let Some((_, handle)) = &share.live else { continue };
            let closed = handle.closed();
            share.timeline().observe(share.began.0.elapsed(), handle.counts().acked);
            if closed && !share.saved.swap(true, Ordering::Relaxed) {
                let saved =
                    share.detail(self.settings.host).map(|it| detail::save(&self.ledger_dir(run), &it));
                if let Some(Err(error)) = saved {
                    warn!(%run, error, "the run's detail will be lost with this agent");
                }
            }
        }
    }

    /// Stops what is going on, waits (at most `patience`) until it is closed, and
    /// publishes the last counts; whether there are any.
    pub async fn drain(&self, mesh: &Mesh, patience: Duration) -> bool {
        let handles: Vec<_> = self.lock().values().cloned().collect();
        handles.iter().flat_map(|share| &share.live).for_each(|(_, handle)| handle.stop());
        let closed = async {
            while !handles.iter().flat_map(|share| &share.live).all(|(_, handle)| handle.closed()) {
                tokio::time::sleep(DRAIN_POLL).await;
            }
        };
        if tokio::time::timeout(patience, closed).await.is_err() {
            warn!("load threads have not drained in time; their account is recovered at the next start");
        }
        handles.iter().for_each(|share| share.cancel.cancel());
        self.refreshers.close();
        self.refreshers.wait().await;
        self.blocking(Self::record).await;
        self.publish(mesh);
        handles.iter().any(|share| share.live.is_some())
    }

    /// What load threads have met with.
    pub fn problem(&self) -> Option<String> {
        self.lock().values().find_map(|share| share.live.as_ref()?.1.error())
    }

    /// A run of which this host can't bear its share, and why.
    pub fn lost(&self) -> Option<(RunId, String)> {
        self.lock().iter().find_map(|(&run, share)| Some((run, share.problem.clone()?)))
    }

    fn report_from_files(&self, run: RunId) -> ShareReport {
        let recovered = self.recover(run).unwrap_or_else(|problem| {
            warn!(%run, problem, "can't read this host's ledgers");
            Vec::new()
        });
        let host = self.settings.host;
        let dir = self.ledger_dir(run);
        ShareReport {
            details: recovered.iter().filter_map(|&(epoch, _)| detail::load(&dir, epoch)).collect(),
            tallies: recovered
                .into_iter()
                .map(|(epoch, counts)| Tally { host, epoch, closed: true, counts })
                .collect(),
        }
    }

    fn get(&self, run: RunId) -> Option<Arc<LocalShare>> {
        self.lock().get(&run).cloned()
    }

    fn lock(&self) -> MutexGuard<'_, BTreeMap<RunId, Arc<LocalShare>>> {
        self.running.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn ledger_dir(&self, run: RunId) -> PathBuf {
        self.settings.state_dir.join("runs").join(run.0.to_string())
    }

    /// Accounts of earlier lives, by epoch.
    fn recover(&self, run: RunId) -> Result<Vec<(u32, Counts)>, String> {
        let dir = self.ledger_dir(run);
        let mut epochs = Vec::new();
        for path in ledger::list(&dir).map_err(|error| crate::error_chain(&error))? {
            let recovered = ledger::recover(&path).map_err(|error| crate::error_chain(&error))?;
            epochs.push((recovered.epoch, recovered.counts));
        }
        epochs.sort_by_key(|&(epoch, _)| epoch);
        Ok(epochs)
    }

    /// Brings the shares to the level: starts (if the level is `current`), stops and
    /// forgets.
    fn reconcile(&self, level: &Level, current: bool, admin: &AdminPool) {
        let mine = |run: &&Run| run.shares.iter().any(|share| share.host == self.settings.host);
        for run in level.runs.iter().filter(mine) {
            match run.stage {
                RunStage::Running => {
                    if current
                        && self.get(run.id).is_none()
                        && let Some(plan) = &level.plan
                    {
                        let share = self.start(run, plan, admin);
                        self.lock().insert(run.id, Arc::new(share));
                    }
                }
                RunStage::Stopping => match self.get(run.id) {
                    Some(share) => share.live.iter().for_each(|(_, handle)| handle.stop()),
                    // Came back after the stop: only the account is left to give.
                    None => {
                        let (earlier, problem) = split(self.recover(run.id));
                        let share = LocalShare::new(earlier, problem);
                        self.lock().insert(run.id, Arc::new(share));
                    }
                },
                RunStage::Done => {}
            }
        }
        let open = |id: &RunId| level.runs.iter().any(|run| run.id == *id && run.stage != RunStage::Done);
        let over: Vec<_> = self.lock().extract_if(.., |id, _| !open(id)).collect();
        // Outside of the lock: a share that is dropped joins its threads.
        drop(over);
    }

    fn start(&self, run: &Run, plan: &ClusterPlan, admin: &AdminPool) -> LocalShare {
        let (earlier, problem) = split(self.recover(run.id));
        let mut local = LocalShare::new(earlier, problem);
        let share = run.shares.iter().find(|share| share.host == self.settings.host);
        if let (Some(share), None) = (share, &local.problem)
            && let Some(until) = remaining(run, share, &local.earlier, now_unix_ms())
        {
            let epoch = local.earlier.last().map_or(0, |&(epoch, _)| epoch + 1);
            match self.start_epoch(run, share, epoch, until, plan, admin, &local.cancel) {
                Ok(handle) => local.live = Some((epoch, handle)),
                Err(words) => local.problem = Some(words),
            }
        }
        if let Some(problem) = &local.problem {
            error!(run = %run.id, problem, "can't start this host's share");
        }
        local
    }

    #[expect(clippy::too_many_arguments, reason = "one caller; each is a different thing")]
    fn start_epoch(
        &self,
        run: &Run,
        share: &Share,
        epoch: u32,
        until: ShareUntil,
        plan: &ClusterPlan,
        admin: &AdminPool,
        cancel: &CancellationToken,
    ) -> Result<ShareHandle, String> {
        let dir = self.ledger_dir(run.id);
        std::fs::create_dir_all(&dir).map_err(|error| {
            format!("can't create {}: {error}; check free space and permissions", dir.display())
        })?;
        let slots = watch::Sender::new(Arc::new(planned_slots(plan).map_err(|e| crate::error_chain(&e))?));
        let (refresh, asked) = mpsc::channel(1);
        let spec = ShareSpec {
            run: run.id,
            host: self.settings.host,
            epoch,
            first_worker: share.first_worker,
            workers: share.workers,
            until,
            threads: self.settings.threads,
            password: self.settings.password.clone(),
        };
        let path = dir.join(format!("{epoch}.ledger"));
        let handle =
            Engine::start(spec, slots.subscribe(), refresh, path).map_err(|e| crate::error_chain(&e))?;
        info!(run = %run.id, epoch, workers = share.workers, ?until, "share started");
        let refresher = refresh_slots(refresh_sources(plan, self.settings.host), admin.clone(), asked, slots);
        self.refreshers.spawn(cancel.clone().run_until_cancelled_owned(refresher));
        Ok(handle)
    }

    /// Publishes the counts of all shares that the mesh still waits for.
    fn publish(&self, mesh: &Mesh) {
        let counts: Vec<_> = self.lock().iter().map(|(&run, share)| (run, share.counts())).collect();
        for (run, counts) in counts {
            if let Err(error) = mesh.publish(&facts::run_key(run), &counts) {
                warn!(%run, error = %crate::error_chain(&error), "can't publish write counts");
            }
        }
    }

    /// Removes the ledgers of runs that the mesh has forgotten, and withdraws the counts
    /// of runs that are closed.
    fn tidy(&self, level: &Level, mesh: &Mesh) {
        for run in level.runs.iter().filter(|run| run.stage == RunStage::Done) {
            mesh.unpublish(&facts::run_key(run.id));
        }
        let Ok(dirs) = std::fs::read_dir(self.settings.state_dir.join("runs")) else { return };
        for dir in dirs.flatten() {
            let known = level.runs.iter().any(|run| *dir.file_name() == *run.id.0.to_string());
            if !known && level.mesh.is_some() {
                remove_forgotten(&dir.path());
            }
        }
    }
}

fn remove_forgotten(dir: &Path) {
    if let Err(error) = std::fs::remove_dir_all(dir) {
        warn!(dir = %dir.display(), %error, "can't remove the ledgers of a forgotten run");
    }
}

fn split(recovered: Result<Vec<(u32, Counts)>, String>) -> (Vec<(u32, Counts)>, Option<String>) {
    match recovered {
        Ok(epochs) => (epochs, None),
        Err(problem) => (Vec::new(), Some(problem)),
    }
}

/// What a share has left to issue; `None` for nothing.
fn remaining(run: &Run, share: &Share, earlier: &[(u32, Counts)], now_unix_ms: u64) -> Option<ShareUntil> {
    match run.spec.until {
        RunUntil::Writes(_) => {
            let issued: u64 = earlier.iter().map(|(_, counts)| counts.issued).sum();
            let left = share.writes.unwrap_or(0).saturating_sub(issued);
            (left > 0).then_some(ShareUntil::Writes(left))
        }
        RunUntil::Seconds(seconds) => {
            let gone = now_unix_ms.saturating_sub(run.created_unix_ms) / 1000;
            let end = u64::from(seconds) + START_GRACE.as_secs();
            let left = u32::try_from(end.saturating_sub(gone)).unwrap_or(u32::MAX).min(seconds);
            (left > 0).then_some(ShareUntil::Seconds(left))
        }
    }
}

/// Slots as the plan laid them: right until the first failover or migration, after
/// which MOVED tells better.
fn planned_slots(plan: &ClusterPlan) -> Result<SlotMap, crate::load::routing::SlotMapError> {
    SlotMap::new(plan.instances.iter().filter_map(|instance| match &instance.role {
        PlannedRole::Primary { slots, .. } => Some((*slots, plan.addr_of(instance))),
        PlannedRole::Replica { .. } => None,
    }))
}

/// Whom to ask for the topology: own instances first.
fn refresh_sources(plan: &ClusterPlan, host: HostId) -> Vec<SocketAddr> {
    let (mut own, others): (Vec<_>, Vec<_>) =
        plan.instances.iter().partition(|instance| plan.host_of(instance).id == host);
    own.extend(others);
    own.into_iter().map(|instance| plan.addr_of(instance)).collect()
}

/// One refresher a share: any number of redirections make one question.
async fn refresh_slots(
    sources: Vec<SocketAddr>,
    admin: AdminPool,
    mut asked: mpsc::Receiver<()>,
    slots: watch::Sender<Arc<SlotMap>>,
) {
    let mut first = 0;
    while asked.recv().await.is_some() {
        for try_number in 0..REFRESH_TRIES_MAX.min(sources.len()) {
            let source = (first + try_number) % sources.len();
            match admin.slot_map(sources[source]).await.map(SlotMap::new) {
                Ok(Ok(map)) => {
                    slots.send_replace(Arc::new(map));
                    first = source;
                    break;
                }
                Ok(Err(error)) => {
                    warn!(from = %sources[source], error = %crate::error_chain(&error), "unusable topology")
                }
                Err(error) => {
                    warn!(from = %sources[source], error = %crate::error_chain(&error), "can't refresh the topology")
                }
            }
        }
        tokio::time::sleep(REFRESH_INTERVAL_MIN).await;
    }
}

/// Reconciles shares to the level and publishes their counts until cancelled.
pub async fn drive(shares: Shares, census: Census, admin: AdminPool, mesh: Mesh, cancel: CancellationToken) {
    tokio::select! {
        () = follow(shares, census, admin, mesh) => {}
        () = cancel.cancelled() => {}
    }
}

async fn follow(shares: Shares, census: Census, admin: AdminPool, mesh: Mesh) {
    let mut levels = census.levels.subscribe();
    // The level that is here already counts as news.
    levels.mark_changed();
    let mut current = false;
    let mut ticks = tokio::time::interval(PUBLISH_INTERVAL);
    ticks.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Delay);
    loop {
        tokio::select! {
            _ = ticks.tick() => {
                shares.blocking(Shares::record).await;
                shares.publish(&mesh);
                if !current && is_current(&census) {
                    current = true;
                    levels.mark_changed();
                }
            }
            changed = levels.changed() => {
                if changed.is_err() {
                    return;
                }
                current |= is_current(&census);
                let level = levels.borrow_and_update().clone();
                let (admin, its_mesh) = (admin.clone(), mesh.clone());
                let reconciled = shares.blocking(move |shares| {
                    shares.reconcile(&level, current, &admin);
                    shares.tidy(&level, &its_mesh);
                });
                reconciled.await;
                shares.publish(&mesh);
            }
        }
    }
}

/// Whether the coordinator knows no newer level than this host.
fn is_current(census: &Census) -> bool {
    let own = census.level().stamp;
    census.coordinator().is_some_and(|host| host.id == census.host || host.lead.stamp <= own)
}

#[cfg(test)]
mod tests {
    use redmesh_api::run::{RunSpec, UUID_COUNTER};
    use uuid::Uuid;

    use super::*;

    fn run(until: RunUntil) -> Run {
        Run {
            id: RunId(Uuid::from_u128(1)),
            spec: RunSpec { workload: UUID_COUNTER.to_owned(), workers: 1, until },
            shares: Vec::new(),
            stage: RunStage::Running,
            created_unix_ms: 1_000_000,
            before: Vec::new(),
            result: None,
        }
    }

    fn share(writes: Option<u64>) -> Share {
        Share { host: HostId(1), workers: 1, first_worker: 0, writes }
    }

    fn issued(issued: u64) -> Counts {
        Counts { issued, ..Counts::default() }
    }

    #[test]
    fn a_restarted_agent_issues_what_its_earlier_lives_left() {
        let left = |earlier: &[(u32, Counts)]| {
            remaining(&run(RunUntil::Writes(100)), &share(Some(40)), earlier, 1_000_000)
        };
        assert_eq!(left(&[]), Some(ShareUntil::Writes(40)));
        assert_eq!(left(&[(0, issued(15)), (1, issued(5))]), Some(ShareUntil::Writes(20)));
        assert_eq!(left(&[(0, issued(40))]), None);
    }

    #[test]
    fn time_goes_on_while_an_agent_is_away() {
        let left =
            |gone_ms: u64| remaining(&run(RunUntil::Seconds(60)), &share(None), &[], 1_000_000 + gone_ms);
        assert_eq!(left(0), Some(ShareUntil::Seconds(60)));
        assert_eq!(left(4_000), Some(ShareUntil::Seconds(60)));
        assert_eq!(left(35_000), Some(ShareUntil::Seconds(30)));
        assert_eq!(left(65_000), None);
    }

    #[test]
    fn a_share_with_nothing_to_issue_is_closed() {
        let counts = LocalShare::new(Vec::new(), None).counts();
        assert_eq!(counts.epochs, [(0, true, Counts::default())]);
        let stuck = LocalShare::new(Vec::new(), Some("disk full".to_owned())).counts();
        assert_eq!(stuck.epochs, []);
    }
}
