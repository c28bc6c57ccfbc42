//! The load engine of a simulated host: writes by the clock instead of by threads, with
//! the real ledger file, and the same order of things: what is issued is on file before
//! it is sent.

use std::path::PathBuf;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use redmesh_agent::load::ledger::{Ledger, LedgerSlot};
use redmesh_agent::load::routing::SlotMap;
use redmesh_agent::load::{
    LoadEngine, LoadError, RunningShare, ShareFigures, ShareSpec, ShareUntil, Task, Written,
};
use redmesh_agent::stats;
use redmesh_api::run::{Counts, Findings};
use redmesh_api::workload::Keys;
use tokio::sync::{mpsc, watch};
use tokio::task::AbortHandle;
use tokio::time::{Instant, sleep, sleep_until};

use super::clock::HostClock;
use super::flaw::Flaw;
use super::world::World;

/// Writes a second of one worker.
const PER_WORKER_S: u64 = 25;

/// Between two batches; also how long each waits for its answers.
const TURN: Duration = Duration::from_millis(40);

/// See the module.
#[derive(Debug)]
pub struct SimLoad {
    /// Where the servers are.
    pub world: Arc<World>,
    /// This host's.
    pub clock: HostClock,
    /// What is wrong with it.
    pub flaw: Option<Flaw>,
}

#[derive(Debug)]
struct Shared {
    spec: ShareSpec,
    flaw: Option<Flaw>,
    counts: Mutex<Counts>,
    closed: AtomicBool,
    stop: AtomicBool,
}

impl Shared {
    fn counts(&self) -> Counts {
        *self.counts.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn publish(&self, counts: Counts) {
        *self.counts.lock().unwrap_or_else(PoisonError::into_inner) = counts;
    }
}

#[derive(Debug)]
struct SimShare {
    shared: Arc<Shared>,
    task: AbortHandle,
}

impl Drop for SimShare {
    fn drop(&mut self) {
        self.task.abort();
    }
}

impl LoadEngine for SimLoad {
    fn start(
        &self,
        spec: ShareSpec,
        _: watch::Receiver<Arc<SlotMap>>,
        _: mpsc::Sender<()>,
        ledger: PathBuf,
    ) -> Result<Box<dyn RunningShare>, LoadError> {
        let ledger = Ledger::create(&ledger, spec.run, spec.host, spec.share, spec.epoch, 1)
            .map_err(|source| LoadError::Ledger { run: spec.run, source })?;
        let slot = ledger.slots().next().expect("a ledger of one thread has a slot");
        let shared = Arc::new(Shared {
            spec,
            flaw: self.flaw,
            counts: Mutex::default(),
            closed: AtomicBool::new(false),
            stop: AtomicBool::new(false),
        });
        let task = tokio::spawn(issue(self.world.clone(), self.clock, shared.clone(), slot)).abort_handle();
        Ok(Box::new(SimShare { shared, task }))
    }
}

async fn issue(world: Arc<World>, clock: HostClock, shared: Arc<Shared>, mut slot: LedgerSlot) {
    let spec = &shared.spec;
    sleep_until(Instant::from_std(spec.begin)).await;
    let began = Instant::now();
    let per_turn = (u64::from(spec.workers) * PER_WORKER_S * TURN.as_millis() as u64).div_ceil(1000);
    let mut counts = Counts::default();
    loop {
        let left = match spec.until {
            ShareUntil::Writes(writes) => writes.saturating_sub(counts.issued),
            ShareUntil::Seconds(s) if began.elapsed() < Duration::from_secs(s.into()) => u64::MAX,
            ShareUntil::Seconds(_) | ShareUntil::Exhausted => 0,
        };
        if left == 0 || shared.stop.load(Ordering::Relaxed) {
            break;
        }
        let batch = per_turn.min(left);
        let twice = u64::from(shared.flaw == Some(Flaw::CountsTwice));
        counts.issued += batch + twice;
        slot.write(&counts, false).expect("the ledger can be written");
        shared.publish(counts);
        let uncounted = u64::from(shared.flaw == Some(Flaw::UncountedWrites));
        let executed = world.write(clock.now(), spec.run, batch + uncounted).saturating_sub(uncounted);
        // An agent that dies here doesn't know what became of the batch.
        sleep(TURN).await;
        world.ack(spec.run, executed);
        counts.acked += executed + twice;
        counts.failed += batch - executed;
        counts.active_us = u64::try_from(began.elapsed().as_micros()).unwrap_or(u64::MAX);
        shared.publish(counts);
    }
    slot.write(&counts, true).expect("the ledger can be written");
    shared.publish(counts);
    shared.closed.store(true, Ordering::Relaxed);
}

impl RunningShare for SimShare {
    fn failure(&self) -> Option<String> {
        None
    }

    fn counts(&self) -> Counts {
        self.shared.counts()
    }

    fn closed(&self) -> bool {
        self.shared.closed.load(Ordering::Relaxed)
    }

    fn stop(&self) {
        self.shared.stop.store(true, Ordering::Relaxed);
    }

    fn error(&self) -> Option<String> {
        None
    }

    fn written(&self) -> Option<Written> {
        let spec = &self.shared.spec;
        let Task::Load(workload) = &spec.task else { return None };
        let Keys::Counter { wrap } = workload.keys else { return None };
        let closed = self.closed();
        let counts = self.counts();
        let lanes = u64::from(spec.workers) * u64::from(spec.pipeline);
        let ended = (0..lanes).map(|lane| counts.acked / lanes + u64::from(lane < counts.acked % lanes));
        Some(Written {
            run: spec.run,
            host: spec.host,
            epoch: spec.epoch,
            first_worker: spec.first_worker,
            pipeline: spec.pipeline,
            wrap,
            ended: ended.collect(),
            exceptions: Vec::new(),
            exceptions_cut: false,
            closed,
        })
    }

    fn figures(&self) -> ShareFigures {
        let counts = self.counts();
        let mut histogram = stats::empty_histogram();
        histogram.saturating_record_n(TURN.as_micros() as u64, counts.acked);
        let each = counts.acked / u64::from(self.shared.spec.workers.max(1));
        ShareFigures {
            began_unix_ms: None,
            worker_acked: (each, each),
            errors: Vec::new(),
            histogram,
            intended: None,
            behind: 0,
            threads: 1,
            acked_by: Vec::new(),
            findings: matches!(self.shared.spec.task, Task::ReadBack(_)).then(Findings::default),
        }
    }
}
