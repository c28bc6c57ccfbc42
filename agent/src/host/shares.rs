//! This host's share of load runs: start, stop, recover, report.
//!
//! A share's account lives in ledger files, one per epoch (one life of the agent). An
//! agent that comes back in mid-run closes the epochs it finds, what was issued and not
//! accounted for becoming `unknown`, and issues the rest of its quota under a new one.

use std::collections::BTreeMap;
use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex};
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use hdrhistogram::Histogram;
use redmesh_api::ids::{HostId, RunId};
use redmesh_api::level::{ClusterPlan, Level, PlannedRole};
use redmesh_api::run::{Counts, Run, RunStage, RunUntil, Share, Tally};
use tokio::sync::{mpsc, watch};
use tokio_util::sync::CancellationToken;
use tracing::{error, info, warn};

use crate::cluster::AdminPool;
use crate::facts::{self, ShareCounts};
use crate::load::ledger;
use crate::load::routing::SlotMap;
use crate::load::{Engine, Password, ShareHandle, ShareSpec, ShareUntil};
use crate::mesh::Mesh;
use crate::peer::ShareReport;
use crate::stats;

/// Between two looks at the counters: as often as gossip can carry them.
const PUBLISH_INTERVAL: Duration = Duration::from_millis(200);

/// Between two looks at load threads that are to drain.
const DRAIN_POLL: Duration = Duration::from_millis(10);

/// Shortest time between two topology refreshes, however many redirections ask.
const REFRESH_INTERVAL_MIN: Duration = Duration::from_millis(100);

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
}

/// One run's share on this host.
#[derive(Debug)]
struct LocalShare {
    /// Epochs of earlier lives, closed.
    earlier: Vec<(u32, Counts)>,
    /// This life's, unless nothing was left to issue.
    live: Option<(u32, ShareHandle)>,
    /// Why it could not be started.
    problem: Option<String>,
    /// Ends the topology refresher.
    cancel: CancellationToken,
}

impl LocalShare {
    fn counts(&self) -> ShareCounts {
        let earlier = self.earlier.iter().map(|&(epoch, counts)| (epoch, true, counts));
        let live = self.live.iter().map(|(epoch, handle)| {
            // `closed` first: counts read after it are final if it was true.
            let closed = handle.closed();
            (*epoch, closed, handle.counts())
        });
        ShareCounts { epochs: earlier.chain(live).collect() }
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
        Self { settings: Arc::new(settings), running: Arc::default() }
    }

    /// Exact account of this host's share of `run`; empty if it has none.
    pub fn report(&self, run: RunId) -> ShareReport {
        let Some(share) = self.get(run) else { return self.report_from_ledgers(run) };
        let histogram = share.live.as_ref().map(|(_, handle)| encoded(&handle.histogram()));
        ShareReport {
            tallies: share.counts().tallies(self.settings.host).collect(),
            histogram: histogram.unwrap_or_default(),
        }
    }

    /// Stops what is going on, waits (at most `patience`) until it is closed, and
    /// publishes the last counts.
    pub async fn drain(&self, mesh: &Mesh, patience: Duration) {
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
        self.publish(mesh);
    }

    /// What load threads have met with.
    pub fn problem(&self) -> Option<String> {
        self.lock().values().find_map(|share| share.live.as_ref()?.1.error())
    }

    /// A run of which this host can't bear its share, and why.
    pub fn lost(&self) -> Option<(RunId, String)> {
        self.lock().iter().find_map(|(&run, share)| Some((run, share.problem.clone()?)))
    }

    fn report_from_ledgers(&self, run: RunId) -> ShareReport {
        let recovered = self.recover(run).unwrap_or_else(|problem| {
            warn!(%run, problem, "can't read this host's ledgers");
            Vec::new()
        });
        let host = self.settings.host;
        let tallies = recovered
            .into_iter()
            .map(|(epoch, counts)| Tally { host, epoch, closed: true, counts })
            .collect();
        ShareReport { tallies, histogram: Vec::new() }
    }

    fn get(&self, run: RunId) -> Option<Arc<LocalShare>> {
        self.lock().get(&run).cloned()
    }

    fn lock(&self) -> std::sync::MutexGuard<'_, BTreeMap<RunId, Arc<LocalShare>>> {
        self.running.lock().unwrap_or_else(|poisoned| poisoned.into_inner())
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

    /// Brings the shares to the level: starts, stops and forgets.
    fn reconcile(&self, level: &Level, admin: &AdminPool) {
        let mine = |run: &&Run| run.shares.iter().any(|share| share.host == self.settings.host);
        for run in level.runs.iter().filter(mine) {
            match run.stage {
                RunStage::Running => {
                    if self.get(run.id).is_none()
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
                        let share =
                            LocalShare { earlier, live: None, problem, cancel: CancellationToken::new() };
                        self.lock().insert(run.id, Arc::new(share));
                    }
                },
                RunStage::Done => {
                    self.lock().remove(&run.id);
                }
            }
        }
        self.lock().retain(|id, _| level.runs.iter().any(|run| run.id == *id));
    }

    fn start(&self, run: &Run, plan: &ClusterPlan, admin: &AdminPool) -> LocalShare {
        let cancel = CancellationToken::new();
        let (earlier, mut problem) = split(self.recover(run.id));
        let mut live = None;
        let share = run.shares.iter().find(|share| share.host == self.settings.host);
        if let (Some(share), None) = (share, &problem)
            && let Some(until) = remaining(run, share, &earlier, now_unix_ms())
        {
            let epoch = earlier.last().map_or(0, |&(epoch, _)| epoch + 1);
            match self.start_epoch(run, share, epoch, until, plan, admin, &cancel) {
                Ok(handle) => live = Some((epoch, handle)),
                Err(words) => problem = Some(words),
            }
        }
        if let Some(problem) = &problem {
            error!(run = %run.id, problem, "can't start this host's share");
        }
        LocalShare { earlier, live, problem, cancel }
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
        let sources = refresh_sources(plan, self.settings.host);
        tokio::spawn(refresh_slots(sources, admin.clone(), asked, slots, cancel.clone()));
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

/// For the wire; empty if it can't be, which the log explains.
fn encoded(histogram: &Histogram<u64>) -> Vec<u8> {
    stats::encode(histogram).unwrap_or_else(|error| {
        warn!(error = %crate::error_chain(&error), "can't encode latencies");
        Vec::new()
    })
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
        RunUntil::Seconds(seconds) if earlier.is_empty() => Some(ShareUntil::Seconds(seconds)),
        RunUntil::Seconds(seconds) => {
            let gone = now_unix_ms.saturating_sub(run.created_unix_ms) / 1000;
            let left = seconds.saturating_sub(u32::try_from(gone).unwrap_or(u32::MAX));
            (left > 0).then_some(ShareUntil::Seconds(left))
        }
    }
}

fn now_unix_ms() -> u64 {
    let since = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
    u64::try_from(since.as_millis()).unwrap_or(u64::MAX)
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
    cancel: CancellationToken,
) {
    let mut first = 0;
    loop {
        tokio::select! {
            asked = asked.recv() => if asked.is_none() { return },
            () = cancel.cancelled() => return,
        }
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
pub async fn drive(
    shares: Shares,
    mut levels: watch::Receiver<Arc<Level>>,
    admin: AdminPool,
    mesh: Mesh,
    cancel: CancellationToken,
) {
    // The level that is here already counts as news.
    levels.mark_changed();
    let mut ticks = tokio::time::interval(PUBLISH_INTERVAL);
    ticks.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Delay);
    loop {
        tokio::select! {
            _ = ticks.tick() => shares.publish(&mesh),
            changed = levels.changed() => {
                if changed.is_err() {
                    return;
                }
                let level = levels.borrow_and_update().clone();
                shares.reconcile(&level, &admin);
                shares.tidy(&level, &mesh);
                shares.publish(&mesh);
            }
            () = cancel.cancelled() => return,
        }
    }
}
