//! One share on this host: its account over all lives of the agent, and what is kept of
//! it on file while it runs.

use std::path::Path;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use redmesh_api::ids::HostId;
use redmesh_api::run::{Counts, ShareDetail};
use tokio::time::Instant;
use tokio_util::sync::CancellationToken;
use tracing::warn;

use super::todo::Done;
use crate::facts::EpochCounts;
use crate::host::detail::{self, Timeline};
use crate::load::RunningShare;

/// Between two times that what a running share keeps is put on file: what a killed agent
/// loses of it at the most.
const KEEP_INTERVAL: Duration = Duration::from_secs(1);

/// Keeping takes at most one part in so many of the time, however large the files are
/// and slow the disk.
const KEEP_SHARE: u32 = 20;

/// One share on this host.
#[derive(Debug)]
pub struct LocalShare {
    /// Its index in the run.
    pub index: u16,
    /// Epochs of earlier lives, closed.
    pub earlier: Vec<(u32, Counts)>,
    /// This life's, unless nothing was left to issue.
    pub live: Option<(u32, Box<dyn RunningShare>)>,
    /// When this life's begins; the same in Unix milliseconds.
    pub began: (Instant, u64),
    /// Why it could not be started.
    pub problem: Option<String>,
    /// Whether this life's reads back what an earlier run wrote.
    pub reads_back: bool,
    /// Part of its work was not done and won't be, though its account may be closed: that
    /// must not be taken for an end.
    pub interrupted: AtomicBool,
    /// Ends the topology refresher.
    pub cancel: CancellationToken,
    /// What is kept of this life's beside its counts.
    timeline: Mutex<Timeline>,
    kept: Mutex<Kept>,
}

/// What has been put on file.
#[derive(Debug)]
struct Kept {
    /// The counts that it belongs to.
    counts: Counts,
    /// Whether the account was closed; then nothing follows.
    closed: bool,
    /// When the next is due.
    next: Instant,
    /// Why it could not be put there, last.
    problem: Option<String>,
}

impl LocalShare {
    /// Nothing is running.
    pub fn new(index: u16, earlier: Vec<(u32, Counts)>, problem: Option<String>, now_unix_ms: u64) -> Self {
        let now = Instant::now();
        Self {
            index,
            earlier,
            live: None,
            began: (now, now_unix_ms),
            problem,
            reads_back: false,
            interrupted: AtomicBool::new(false),
            cancel: CancellationToken::new(),
            timeline: Mutex::default(),
            kept: Mutex::new(Kept { counts: Counts::default(), closed: false, next: now, problem: None }),
        }
    }

    /// What earlier lives did.
    pub fn done(&self) -> Done {
        Done { lives: self.earlier.len(), issued: self.earlier.iter().map(|(_, counts)| counts.issued).sum() }
    }

    fn timeline(&self) -> MutexGuard<'_, Timeline> {
        self.timeline.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn kept(&self) -> MutexGuard<'_, Kept> {
        self.kept.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Whether this life's account is closed, or there is none.
    pub fn closed(&self) -> bool {
        self.live.as_ref().is_none_or(|(_, handle)| handle.closed())
    }

    /// Why the rest of it can't be had from this host.
    pub fn failure(&self) -> Option<String> {
        let ended_early = || self.live.as_ref().filter(|(_, handle)| handle.closed())?.1.failure();
        self.problem.clone().or_else(ended_early)
    }

    /// Issue no more.
    pub fn stop(&self) {
        self.live.iter().for_each(|(_, handle)| handle.stop());
    }

    /// This life's detail as it stands.
    pub fn detail(&self, host: HostId) -> Option<ShareDetail> {
        let (epoch, handle) = self.live.as_ref()?;
        Some(detail::of(host, *epoch, self.began.1, &self.timeline(), handle.figures()))
    }

    /// Counts of all lives.
    pub fn counts(&self) -> Vec<EpochCounts> {
        let share = self.index;
        let ended = !self.interrupted.load(Ordering::Relaxed);
        let earlier = self.earlier.iter().map(|&(epoch, counts)| (epoch, true, counts));
        let live = self.live.iter().map(|(epoch, handle)| {
            // `closed` first: counts read after it are final if it was true.
            let closed = handle.closed();
            (*epoch, closed, handle.counts())
        });
        let mut epochs: Vec<_> = earlier
            .chain(live)
            .map(|(epoch, closed, counts)| EpochCounts { share, epoch, closed: closed && ended, counts })
            .collect();
        if epochs.is_empty() && self.problem.is_none() {
            // Nothing to issue (fewer writes than workers, or stopped before it began) is
            // a closed account too, and the mesh waits for one.
            epochs.push(EpochCounts { share, closed: true, ..EpochCounts::default() });
        }
        epochs
    }

    /// Adds what was acked since the last time to the timeline; whether it is time for
    /// [`LocalShare::keep`]. Waits for nothing, and costs nothing once all is kept.
    pub fn observe(&self, now: Instant) -> bool {
        let Some((_, handle)) = &self.live else { return false };
        let kept = self.kept();
        if kept.closed {
            return false;
        }
        let closed = handle.closed();
        let counts = handle.counts();
        self.timeline().observe(now.saturating_duration_since(self.began.0), counts.acked);
        let news = closed || counts != kept.counts;
        // The end is kept at once, or it would be gone with the run.
        news && (now >= kept.next || (closed && kept.problem.is_none()))
    }

    /// Puts what a report needs beside the ledger on file. Waits for the disk.
    pub fn keep(&self, host: HostId, dir: &Path) {
        let Some((epoch, handle)) = &self.live else { return };
        let begin = Instant::now();
        let closed = handle.closed();
        let counts = handle.counts();
        let detail = self.detail(host).map_or(Ok(()), |it| detail::save(dir, &it));
        let saved = detail.and_then(|()| handle.written().map_or(Ok(()), |it| it.save(dir)));
        let took = begin.elapsed();

        let mut kept = self.kept();
        kept.next = begin + took + KEEP_INTERVAL.max(took * KEEP_SHARE);
        let problem = saved.err();
        if problem.is_none() {
            kept.counts = counts;
            kept.closed = closed;
        } else if kept.problem != problem {
            warn!(epoch, error = problem, "the share's detail will be lost with this agent, tried again");
        }
        kept.problem = problem;
    }

    /// Whether the last of this life has been put on file.
    pub fn is_kept(&self) -> bool {
        self.live.is_none() || self.kept().closed
    }
}

impl Drop for LocalShare {
    fn drop(&mut self) {
        self.cancel.cancel();
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_share_with_nothing_to_issue_is_closed() {
        let counts = LocalShare::new(3, Vec::new(), None, 0).counts();
        assert_eq!(counts, [EpochCounts { share: 3, closed: true, ..EpochCounts::default() }]);
        let stuck = LocalShare::new(3, Vec::new(), Some("disk full".to_owned()), 0).counts();
        assert_eq!(stuck, []);
    }

    #[test]
    fn what_was_interrupted_is_not_closed() {
        let counts = Counts { issued: 5, acked: 5, ..Counts::default() };
        let share = LocalShare::new(0, vec![(2, counts)], None, 0);
        assert_eq!(share.done(), Done { lives: 1, issued: 5 });
        assert_eq!(share.counts(), [EpochCounts { share: 0, epoch: 2, closed: true, counts }]);
        share.interrupted.store(true, Ordering::Relaxed);
        assert_eq!(share.counts(), [EpochCounts { share: 0, epoch: 2, closed: false, counts }]);
    }
}
