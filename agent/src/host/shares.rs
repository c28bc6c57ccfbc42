//! This host's shares of load runs: start, stop, recover, report.
//!
//! A host has one share of a run at first, and more if it takes over a lost host's or is
//! given another. A share's account lives in ledger files, one per epoch (one life of the
//! agent; a host's epochs of one run differ over all its shares). An agent that comes
//! back in mid-run closes the epochs it finds, what was issued and not accounted for
//! becoming `unknown`, and issues the rest of its quota under a new one, unless the share
//! was given up meanwhile. It first waits for a coordinator who knows no newer level than
//! the one on this host's disk: a run that was closed, or a share that was given to
//! others, must not be written into any more.

mod local;
mod slots;
mod todo;

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::sync::atomic::Ordering;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use redmesh_api::ids::{HostId, RunId};
use redmesh_api::level::{ClusterPlan, Level};
use redmesh_api::run::{Job, ReadBack, Run, RunStage, Share, Tally};
use tokio::sync::{mpsc, watch};
use tokio::time::Instant;
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;
use tracing::{error, info, warn};

use super::detail;
use crate::census::Census;
use crate::clock::WallClock;
use crate::cluster::AdminPool;
use crate::disk::Disk;
use crate::facts::{self, EPOCHS_A_KEY, EpochCounts, RUN_KEYS_MAX, SHARES_LOST_MAX, ShareCounts, ShareLost};
use crate::load::ledger::{self, Recovered};
use crate::load::{self, EXCEPTIONS_MAX, LoadEngine, ReadBackTask, ShareSpec, ShareUntil, Task, Written};
use crate::login::Logins;
use crate::mesh::Mesh;
use crate::peer::ShareReport;
use crate::redis_tls::RedisTls;
use local::LocalShare;

/// Between two looks at the counters: as often as gossip can carry them.
const PUBLISH_INTERVAL: Duration = Duration::from_millis(200);

/// Between two looks at load threads that are to drain.
const DRAIN_POLL: Duration = Duration::from_millis(10);

/// What a share needs besides the level.
#[derive(Debug, Clone)]
pub struct ShareSettings {
    /// Whose shares.
    pub host: HostId,
    /// This life's number, from [`crate::identity::HostIdentity`].
    pub generation: u64,
    /// Ledger files lie in `<state_dir>/runs`.
    pub state_dir: PathBuf,
    /// Load threads, where the run doesn't say.
    pub threads: usize,
    /// What the servers want to be told first, if anything.
    pub logins: Logins,
    /// Set where the servers speak TLS.
    pub tls: Option<RedisTls>,
    /// Carries shares out.
    pub engine: Arc<dyn LoadEngine>,
    /// This host's.
    pub clock: WallClock,
    /// This host's.
    pub disk: Disk,
}

/// Low bits of an epoch that count the epochs of one life; above them is the life's generation.
/// A generation is used once, whatever files are lost, and so is the epoch, and with it the keys.
const EPOCHS_A_LIFE_BITS: u32 = 10;

/// Which run, and which of its shares.
type Key = (RunId, u16);

/// Cloneable handle to this host's shares.
#[derive(Debug, Clone)]
pub struct Shares {
    settings: Arc<ShareSettings>,
    running: Arc<Mutex<BTreeMap<Key, Arc<LocalShare>>>>,
    /// Held by whoever touches the files: no report may take a ledger that is being
    /// begun for one that an earlier life left.
    files: Arc<tokio::sync::Mutex<()>>,
    /// Topology refreshers.
    refreshers: TaskTracker,
    /// When this host last knew the coordinator's newest level, once it did.
    current_at: Arc<Mutex<Option<Instant>>>,
    /// Why counts don't reach the mesh.
    unpublished: Arc<Mutex<Option<String>>>,
}

impl Shares {
    /// Nothing is running yet.
    pub fn new(settings: ShareSettings) -> Self {
        Self {
            settings: Arc::new(settings),
            running: Arc::default(),
            files: Arc::default(),
            refreshers: TaskTracker::new(),
            current_at: Arc::default(),
            unpublished: Arc::default(),
        }
    }

    fn current_at(&self) -> MutexGuard<'_, Option<Instant>> {
        self.current_at.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// See [`todo::plausible_now`].
    fn now_unix_ms_of(&self, run: &Run) -> u64 {
        let ignorant_for = self.current_at().map(|at| at.elapsed());
        todo::plausible_now(run, self.settings.clock.now_unix_ms(), ignorant_for)
    }

    /// Does what waits for files or threads on a blocking thread, one at a time; `None`
    /// if it failed, which is logged.
    async fn blocking<T: Send + 'static>(&self, work: impl FnOnce(&Self) -> T + Send + 'static) -> Option<T> {
        let files = self.files.clone().lock_owned().await;
        let shares = self.clone();
        let done = self.settings.disk.access(move || {
            let _files = files;
            work(&shares)
        });
        done.await.inspect_err(|error| error!(%error, "work on this host's shares failed")).ok()
    }

    /// Exact account of this host's shares of `run`; empty if it has none.
    pub async fn report(&self, run: RunId) -> ShareReport {
        self.blocking(move |shares| shares.report_blocking(run)).await.unwrap_or_default()
    }

    fn report_blocking(&self, run: RunId) -> ShareReport {
        let host = self.settings.host;
        let dir = self.ledger_dir(run);
        let mut report = ShareReport::default();
        let running = self.of_run(run);
        for share in &running {
            report.tallies.extend(ShareCounts { epochs: share.counts() }.tallies(host));
            report.details.extend(share.earlier.iter().filter_map(|&(epoch, _)| detail::load(&dir, epoch)));
            report.details.extend(share.detail(host));
        }
        // Of a run that is closed, or whose shares have not been looked at in this life.
        let recovered = self.recover(run).unwrap_or_else(|problem| {
            warn!(%run, problem, "can't read this host's ledgers");
            Vec::new()
        });
        for Recovered { share, epoch, counts, .. } in recovered {
            if running.iter().all(|known| known.index != share) {
                report.tallies.push(Tally { host, share, epoch, closed: true, counts });
                report.details.extend(detail::load(&dir, epoch));
            }
        }
        report
    }

    /// Looks at what the shares have done since the last time; whether something is to be
    /// put on file.
    fn observe(&self) -> bool {
        let now = Instant::now();
        // Each of them, also where one is due already.
        self.lock().values().filter(|share| share.observe(now)).count() > 0
    }

    /// Puts on file what is due.
    fn keep(&self) {
        let now = Instant::now();
        let shares: Vec<_> = self.lock().iter().map(|(&(run, _), share)| (run, share.clone())).collect();
        for (run, share) in shares {
            if share.observe(now) {
                share.keep(self.settings.host, &self.ledger_dir(run));
            }
        }
    }

    /// Stops what is going on, waits (at most `patience`) until it is closed, and
    /// publishes the last counts; whether there are any.
    pub async fn drain(&self, mesh: &Mesh, patience: Duration) -> bool {
        let shares: Vec<_> = self.lock().iter().map(|(&(run, _), share)| (run, share.clone())).collect();
        for (_, share) in &shares {
            if share.reads_back && !share.closed() {
                share.interrupted.store(true, Ordering::Relaxed);
            }
            share.stop();
        }
        let closed = async {
            while !shares.iter().all(|(_, share)| share.closed()) {
                tokio::time::sleep(DRAIN_POLL).await;
            }
        };
        if tokio::time::timeout(patience, closed).await.is_err() {
            warn!("load threads have not drained in time; their account is recovered at the next start");
        }
        shares.iter().for_each(|(_, share)| share.cancel.cancel());
        self.refreshers.close();
        self.refreshers.wait().await;
        let any = shares.iter().any(|(_, share)| share.live.is_some());
        if any {
            self.blocking(move |own| own.keep_last(&shares)).await;
        }
        self.publish(mesh);
        any
    }

    /// Puts on file what is left to be.
    fn keep_last(&self, shares: &[(RunId, Arc<LocalShare>)]) {
        for (run, share) in shares.iter().filter(|(_, share)| !share.is_kept()) {
            share.observe(Instant::now());
            share.keep(self.settings.host, &self.ledger_dir(*run));
        }
    }

    /// What load threads have met with, or why their counts don't reach the mesh.
    pub fn problem(&self) -> Option<String> {
        let unpublished = self.unpublished.lock().unwrap_or_else(PoisonError::into_inner).clone();
        unpublished.or_else(|| self.lock().values().find_map(|share| share.live.as_ref()?.1.error()))
    }

    /// Shares (of one run) that this host can't bear, or has ended before their time, and why.
    pub fn lost(&self) -> Option<ShareLost> {
        let running = self.lock();
        let mut lost = running.iter().filter_map(|(key, share)| Some((*key, share.failure()?)));
        let ((run, first), reason) = lost.next()?;
        let others = lost.filter(|((other, _), _)| *other == run).map(|((_, share), _)| share);
        let shares = std::iter::once(first).chain(others).take(SHARES_LOST_MAX).collect();
        Some(ShareLost { run, shares, reason: facts::cut(reason) })
    }

    fn get(&self, key: Key) -> Option<Arc<LocalShare>> {
        self.lock().get(&key).cloned()
    }

    fn of_run(&self, run: RunId) -> Vec<Arc<LocalShare>> {
        self.lock().range((run, 0)..=(run, u16::MAX)).map(|(_, share)| share.clone()).collect()
    }

    fn lock(&self) -> MutexGuard<'_, BTreeMap<Key, Arc<LocalShare>>> {
        self.running.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn ledger_dir(&self, run: RunId) -> PathBuf {
        self.settings.state_dir.join("runs").join(run.0.to_string())
    }

    /// Accounts that earlier lives have left of all this host's shares of `run`, by epoch.
    fn recover(&self, run: RunId) -> Result<Vec<Recovered>, String> {
        // This life's are being written.
        let live: Vec<_> = self
            .of_run(run)
            .iter()
            .filter_map(|share| Some(load::ledger_path(&self.ledger_dir(run), share.live.as_ref()?.0)))
            .collect();
        let mut epochs = Vec::new();
        for path in ledger::list(&self.ledger_dir(run)).map_err(|error| crate::error_chain(&error))? {
            if !live.contains(&path) {
                epochs.push(ledger::recover(&path).map_err(|error| crate::error_chain(&error))?);
            }
        }
        epochs.sort_by_key(|recovered| recovered.epoch);
        Ok(epochs)
    }

    /// Brings the shares to the level: starts (if the level is `current`), stops and
    /// forgets.
    fn reconcile(&self, level: &Level, current: bool, admin: &AdminPool) {
        let mine = |(_, share): &(u16, &Share)| share.host == self.settings.host;
        for run in level.runs.iter().filter(|run| run.stage != RunStage::Done) {
            for (index, share) in (0..).zip(&run.shares).filter(mine) {
                let key = (run.id, index);
                let over = share.given_up || run.stage == RunStage::Stopping;
                let local = match (self.get(key), &level.plan) {
                    (Some(known), _) => {
                        if over {
                            known.stop();
                        }
                        continue;
                    }
                    // Came back too late: only the account is left to give.
                    (None, _) if over => self.recovered(run, index),
                    (None, Some(plan)) if current => self.start(run, index, share, plan, admin),
                    (None, _) => continue,
                };
                self.lock().insert(key, Arc::new(local));
            }
        }
        let open = |id: &RunId| level.runs.iter().any(|run| run.id == *id && run.stage != RunStage::Done);
        let over: Vec<_> = self.lock().extract_if(.., |(run, _), _| !open(run)).collect();
        let over: Vec<_> = over.into_iter().map(|((run, _), share)| (run, share)).collect();
        self.keep_last(&over);
        // Outside of the lock: a share that is dropped joins its threads.
        drop(over);
    }

    /// Stops what a level ends that this host could not keep: it goes by an older one, and
    /// would write into a run that all others have stopped until its disk has space again.
    fn stop_what_ends(&self, unkept: &Level) {
        for (&(id, index), local) in self.lock().iter() {
            let run = unkept.runs.iter().find(|run| run.id == id);
            let share = run.and_then(|run| run.shares.get(usize::from(index)));
            let goes_on = run.is_some_and(|run| run.stage == RunStage::Running)
                && share.is_some_and(|share| !share.given_up);
            if !goes_on {
                local.stop();
            }
        }
    }

    /// A share of which nothing is issued any more.
    fn recovered(&self, run: &Run, index: u16) -> LocalShare {
        let (earlier, problem) = match self.recover(run.id) {
            Ok(epochs) => {
                let mine = epochs.into_iter().filter(|recovered| recovered.share == index);
                (mine.map(|recovered| (recovered.epoch, recovered.counts)).collect(), None)
            }
            Err(problem) => (Vec::new(), Some(problem)),
        };
        LocalShare::new(index, earlier, problem, self.settings.clock.now_unix_ms())
    }

    fn start(
        &self,
        run: &Run,
        index: u16,
        share: &Share,
        plan: &ClusterPlan,
        admin: &AdminPool,
    ) -> LocalShare {
        let mut local = self.recovered(run, index);
        if local.problem.is_none() {
            match todo::remaining(run, share, local.done(), self.now_unix_ms_of(run)) {
                Some(until) => {
                    if let Err(words) = self.start_epoch(run, share, &mut local, until, plan, admin) {
                        // Threads that ran already may have written: their account counts.
                        local = self.recovered(run, index);
                        local.problem = Some(words);
                    }
                }
                None if local.done().lives > 0 && matches!(run.spec.job, Job::ReadBack(_)) => {
                    local.interrupted.store(true, Ordering::Relaxed);
                    local.problem =
                        Some("the agent was restarted while it read back: verify again".to_owned());
                }
                None => {}
            }
        }
        if let Some(problem) = &local.problem {
            error!(run = %run.id, share = index, problem, "can't start this host's share");
        }
        local
    }

    fn start_epoch(
        &self,
        run: &Run,
        share: &Share,
        local: &mut LocalShare,
        until: ShareUntil,
        plan: &ClusterPlan,
        admin: &AdminPool,
    ) -> Result<(), String> {
        let dir = self.ledger_dir(run.id);
        std::fs::create_dir_all(&dir).map_err(|error| {
            format!("can't create {}: {error}; check free space and permissions", dir.display())
        })?;
        let task = self.task(run)?;
        let epoch = self.next_epoch(run.id)?;
        let planned = slots::planned_slots(plan).map_err(|e| crate::error_chain(&e))?;
        let slots = watch::Sender::new(Arc::new(planned));
        let (refresh, asked) = mpsc::channel(1);
        let now_ms = self.now_unix_ms_of(run);
        let done = local.done();
        let wait = todo::begins_in(run, share, done, now_ms);
        let begin = Instant::now() + wait;
        let threads = run.spec.threads_per_host.map_or(self.settings.threads, usize::from);
        let spec = ShareSpec {
            run: run.id,
            host: self.settings.host,
            share: local.index,
            epoch,
            first_worker: share.first_worker,
            workers: share.workers,
            pipeline: run.spec.pipeline,
            task,
            rate: todo::rate(run, share),
            ramp: todo::left_of(run.spec.ramp_s, run, share, done, now_ms),
            warm_up: todo::left_of(run.spec.warm_up_s, run, share, done, now_ms),
            begin: begin.into_std(),
            until,
            threads,
            logins: self.settings.logins.clone(),
            tls: self.settings.tls.clone(),
        };
        let path = load::ledger_path(&dir, epoch);
        let started = self.settings.engine.start(spec, slots.subscribe(), refresh, path);
        let handle = started.map_err(|e| crate::error_chain(&e))?;
        // At once, or which keys a life of less than a second wrote would not be known.
        if let Some(Err(problem)) = handle.written().map(|written| written.save(&dir)) {
            return Err(problem);
        }
        info!(run = %run.id, share = local.index, epoch, workers = share.workers, ?until, "share started");
        let sources = slots::refresh_sources(plan, self.settings.host);
        let refresher = slots::refresh_slots(sources, admin.clone(), asked, slots);
        self.refreshers.spawn(local.cancel.clone().run_until_cancelled_owned(refresher));
        local.reads_back = matches!(run.spec.job, Job::ReadBack(_));
        local.began = (begin, now_ms + u64::try_from(wait.as_millis()).unwrap_or(0));
        local.live = Some((epoch, handle));
        Ok(())
    }

    /// An epoch that no share of `run` on this host has had.
    fn next_epoch(&self, run: RunId) -> Result<u32, String> {
        let earlier = self.recover(run)?.into_iter().map(|recovered| recovered.epoch);
        let live = self.of_run(run);
        let live = live.iter().filter_map(|share| Some(share.live.as_ref()?.0));
        let generation = self.settings.generation;
        let least =
            generation.checked_mul(1 << EPOCHS_A_LIFE_BITS).and_then(|least| u32::try_from(least).ok());
        let least = least.ok_or_else(|| {
            format!(
                "this host's agent was started {generation} times, too often to number what it writes: move its \
                 state directory away to join as a new host"
            )
        })?;
        Ok(earlier.chain(live).max().map_or(least, |last| least.max(last + 1)))
    }

    fn task(&self, run: &Run) -> Result<Task, String> {
        match &run.spec.job {
            Job::Load(workload) => Ok(Task::Load(Arc::new(workload.clone()))),
            Job::ReadBack(read) => Ok(Task::ReadBack(Arc::new(self.read_back(read)?))),
        }
    }

    /// What this host has written in the run that is read back.
    fn read_back(&self, read: &ReadBack) -> Result<ReadBackTask, String> {
        let dir = self.ledger_dir(read.of);
        let mut written = Vec::new();
        let mut acked_beyond = 0;
        for Recovered { epoch, counts, .. } in self.recover(read.of)? {
            if counts.issued > 0 {
                let of_epoch = Written::load(&dir, epoch).map_err(|problem| {
                    format!("which keys this host wrote in its agent's life {epoch} is not known: {problem}")
                })?;
                if of_epoch.exceptions_cut {
                    return Err(format!(
                        "more writes of the agent's life {epoch} failed or are unknown than are kept \
                         ({EXCEPTIONS_MAX}), so acked ones can't be told from them"
                    ));
                }
                acked_beyond += counts.acked.saturating_sub(of_epoch.acked());
                written.push(of_epoch);
            }
        }
        if written.is_empty() {
            return Err(format!(
                "{} has no account of anything written: nothing to read back",
                dir.display()
            ));
        }
        Ok(ReadBackTask::new(written, read.per_million, acked_beyond))
    }

    /// Publishes the counts of all shares that the mesh still waits for.
    fn publish(&self, mesh: &Mesh) {
        let mut runs: BTreeMap<RunId, Vec<EpochCounts>> = BTreeMap::new();
        for (&(run, _), share) in self.lock().iter() {
            runs.entry(run).or_default().extend(share.counts());
        }
        let mut problem = None;
        for (run, epochs) in runs {
            if epochs.len() > EPOCHS_A_KEY * RUN_KEYS_MAX {
                problem = Some(format!(
                    "run {run}: {} counts of shares and restarts, {} are as many as can be gossiped; the run can't \
                     be closed before it is stopped and this host's agent has been away for a minute",
                    epochs.len(),
                    EPOCHS_A_KEY * RUN_KEYS_MAX
                ));
            }
            for (key, epochs) in facts::run_keys(run).zip(epochs.chunks(EPOCHS_A_KEY)) {
                if let Err(error) = mesh.publish(&key, &ShareCounts { epochs: epochs.to_vec() }) {
                    problem = Some(format!("run {run}: {}", crate::error_chain(&error)));
                }
            }
        }
        let mut unpublished = self.unpublished.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(problem) = problem.as_ref().filter(|problem| unpublished.as_ref() != Some(problem)) {
            warn!(problem, "can't publish write counts");
        }
        *unpublished = problem;
    }

    /// Removes the ledgers of runs that the mesh has forgotten, and withdraws the counts
    /// of runs that are closed.
    fn tidy(&self, level: &Level, mesh: &Mesh) {
        for run in level.runs.iter().filter(|run| run.stage == RunStage::Done) {
            facts::run_keys(run.id).for_each(|key| mesh.unpublish(&key));
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
                if let Some(unkept) = census.levels.unkept() {
                    shares.stop_what_ends(&unkept);
                }
                if shares.observe() {
                    shares.blocking(Shares::keep).await;
                }
                shares.publish(&mesh);
                if is_current(&census) {
                    if !current {
                        current = true;
                        levels.mark_changed();
                    } else if !levels.has_changed().unwrap_or(true) {
                        // What comes from now on is news, not something that it slept through.
                        *shares.current_at() = Some(Instant::now());
                    }
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
mod tests;
