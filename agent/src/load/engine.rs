//! Starts a share's threads and hands out what is needed to watch and end them.

use std::io;
use std::ops::Deref;
use std::os::fd::{AsRawFd, OwnedFd};
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::path::PathBuf;
use std::sync::Arc;
use std::thread::{Builder, JoinHandle};
use std::time::Instant;

use mio::unix::SourceFd;
use mio::{Interest, Poll, Waker};
use redmesh_api::limits::{PIPELINE_MAX, THREADS_PER_HOST_MAX, WORKERS_MAX};
use rustix::time::{TimerfdClockId, TimerfdFlags, timerfd_create};
use tokio::sync::{mpsc, watch};

use super::ledger::Ledger;
use super::routing::SlotMap;
use super::shared::{Command, Figures, ShareView, Shared};
use super::thread::{DUE, LoadThread, Setup, WAKE};
use super::{Limits, LoadError, ShareSpec, ShareUntil, quota};
use crate::stats::recorder::Recorder;

/// Starts shares.
#[derive(Debug)]
pub struct Engine;

impl Engine {
    /// Starts a share on threads of its own; returns once they run.
    ///
    /// `slots` says where keys go: nothing is issued before it names a server, and
    /// each newer value is followed. `refresh` is poked (never waited for) when servers
    /// contradict the map; whoever reads it answers by publishing a newer map. `ledger`
    /// must not exist yet, its directory must.
    pub fn start(
        spec: ShareSpec,
        slots: watch::Receiver<Arc<SlotMap>>,
        refresh: mpsc::Sender<()>,
        ledger: PathBuf,
    ) -> Result<ShareHandle, LoadError> {
        Self::start_with(spec, slots, refresh, ledger, Limits::default())
    }

    pub(crate) fn start_with(
        spec: ShareSpec,
        slots: watch::Receiver<Arc<SlotMap>>,
        refresh: mpsc::Sender<()>,
        ledger: PathBuf,
        limits: Limits,
    ) -> Result<ShareHandle, LoadError> {
        check(&spec)?;
        let writes = match spec.until {
            ShareUntil::Writes(writes) => writes,
            ShareUntil::Seconds(_) | ShareUntil::Exhausted => 0,
        };
        let parts = quota::split(spec.workers, writes, spec.threads);
        let thread_error = |what| move |source| LoadError::Thread { what, source };

        let mut polls = Vec::with_capacity(parts.len());
        let mut wakers = Vec::with_capacity(parts.len());
        for _ in &parts {
            let poll = Poll::new().map_err(thread_error("epoll_create"))?;
            wakers.push(Waker::new(poll.registry(), WAKE).map_err(thread_error("eventfd"))?);
            let timer = spec.rate.map(|_| due_timer(&poll)).transpose();
            polls.push((poll, timer.map_err(thread_error("timerfd"))?));
        }
        let mut recorders = Vec::with_capacity(parts.len());
        let mut figures = Vec::with_capacity(parts.len());
        for part in &parts {
            let (recorder, view) = Recorder::new();
            let (intended, intended_view) = spec.rate.map(|_| Recorder::new()).unzip();
            recorders.push((recorder, intended));
            let lanes = part.workers as usize * usize::from(spec.pipeline);
            figures.push(Figures::new(view, intended_view, lanes));
        }
        let shared = Arc::new(Shared::new(spec.clone(), figures, wakers));
        // Last of what can fail before threads run: a file without a share would be
        // recovered as one.
        let ledger = Ledger::create(&ledger, spec.run, spec.host, spec.share, spec.epoch, parts.len())
            .map_err(|source| LoadError::Ledger { run: spec.run, source })?;

        let base = Instant::now();
        let mut handle = ShareHandle {
            view: ShareView { shared: shared.clone() },
            threads: Vec::with_capacity(parts.len()),
        };
        let resources = polls.into_iter().zip(recorders).zip(ledger.slots());
        for (index, (part, (((poll, timer), (recorder, intended)), ledger))) in
            parts.into_iter().zip(resources).enumerate()
        {
            let setup = Setup {
                spec: spec.clone(),
                part,
                index,
                poll,
                timer,
                recorder,
                intended,
                ledger,
                slots: slots.clone(),
                refresh: refresh.clone(),
                shared: shared.clone(),
                limits,
                base,
            };
            let guard = shared.clone();
            let body = move || {
                if catch_unwind(AssertUnwindSafe(|| LoadThread::new(setup).run())).is_err() {
                    guard.note_failure(
                        "panic",
                        format!("load thread {index} panicked; its account was closed"),
                    );
                    guard.figures[index].abandon();
                }
            };
            // On failure the handle is dropped, which ends the threads that run already.
            let thread =
                Builder::new().name(format!("load-{index}")).spawn(body).map_err(thread_error("spawn"))?;
            handle.threads.push(thread);
        }
        Ok(handle)
    }
}

/// A timer that ends a poll of `poll`.
fn due_timer(poll: &Poll) -> io::Result<OwnedFd> {
    let timer = timerfd_create(TimerfdClockId::Monotonic, TimerfdFlags::NONBLOCK | TimerfdFlags::CLOEXEC)?;
    poll.registry().register(&mut SourceFd(&timer.as_raw_fd()), DUE, Interest::READABLE)?;
    Ok(timer)
}

fn check(spec: &ShareSpec) -> Result<(), LoadError> {
    let bounded = |what, got: u64, min, max| {
        if (min..=max).contains(&got) { Ok(()) } else { Err(LoadError::OutOfBounds { what, got, min, max }) }
    };
    bounded("threads of a share", spec.threads as u64, 1, THREADS_PER_HOST_MAX.into())?;
    bounded("workers of a share", u64::from(spec.workers), 0, u64::from(WORKERS_MAX))?;
    bounded("outstanding operations of a worker", spec.pipeline.into(), 1, PIPELINE_MAX.into())?;
    let last = u64::from(spec.first_worker) + u64::from(spec.workers);
    bounded("last worker of a share", last, 0, u64::from(u32::MAX))?;
    match spec.until {
        ShareUntil::Writes(writes) if spec.workers == 0 && writes > 0 => {
            Err(LoadError::NoWorkers { run: spec.run, writes })
        }
        _ => Ok(()),
    }
}

/// Owns a share's threads; everything of [`ShareView`] can be asked of it. Dropping it
/// aborts the share and joins the threads, which takes milliseconds.
#[derive(Debug)]
pub struct ShareHandle {
    view: ShareView,
    threads: Vec<JoinHandle<()>>,
}

impl ShareHandle {
    /// For whoever watches without owning.
    pub fn view(&self) -> ShareView {
        self.view.clone()
    }

    /// Waits until the share is over by itself or was told to stop. Blocks the calling
    /// thread: from a task, poll [`ShareView::closed`] instead and drop the handle.
    pub fn join(mut self) -> ShareView {
        self.join_threads();
        self.view.clone()
    }

    fn join_threads(&mut self) {
        for thread in self.threads.drain(..) {
            // Panics are caught and noted within the thread.
            let _ = thread.join();
        }
    }
}

impl Deref for ShareHandle {
    type Target = ShareView;

    fn deref(&self) -> &ShareView {
        &self.view
    }
}

impl Drop for ShareHandle {
    fn drop(&mut self) {
        if !self.threads.is_empty() {
            self.view.shared.order(Command::Abort);
            self.join_threads();
        }
    }
}
