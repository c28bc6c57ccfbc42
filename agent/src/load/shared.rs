//! What a share's threads publish and everybody else may read at any time: counts,
//! spread, errors, histograms; and the one word by which the threads are told to stop.
//!
//! The threads store into atomics of their own once per loop turn; readers never make
//! them wait.

use std::collections::BTreeMap;
use std::sync::atomic::{AtomicBool, AtomicU8, AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use hdrhistogram::Histogram;
use mio::Waker;
use redmesh_api::run::{Counts, ErrorCount};

use crate::stats::{RecorderView, empty_histogram};

/// Kinds of errors kept apart; further kinds are counted together.
const ERROR_KINDS_MAX: usize = 8;

/// Bytes kept of the first message of each kind.
const ERROR_BYTES_MAX: usize = 160;

/// What threads are asked to do.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
#[repr(u8)]
pub(super) enum Command {
    /// Go on.
    Run = 0,
    /// Issue no more, wait for what is in flight.
    Stop = 1,
    /// Close the account at once; what is in flight is unknown.
    Abort = 2,
}

/// One thread's figures. Aligned so that two threads never share a cache line.
#[derive(Debug)]
#[repr(align(128))]
pub(super) struct Figures {
    counts: [AtomicU64; 9],
    spread: [AtomicU64; 2],
    closed: AtomicBool,
    recorder: RecorderView,
}

impl Figures {
    pub fn new(recorder: RecorderView) -> Self {
        Self {
            counts: Default::default(),
            spread: Default::default(),
            closed: AtomicBool::new(false),
            recorder,
        }
    }

    /// Stores all counts; `issued` first, so that no reader sees more answers than writes.
    pub fn publish(&self, c: &Counts) {
        let values =
            [c.issued, c.acked, c.failed, c.unknown, c.moved, c.asked, c.retried, c.cpu_us, c.active_us];
        for (cell, value) in self.counts.iter().zip(values) {
            cell.store(value, Ordering::Release);
        }
    }

    pub fn publish_spread(&self, min: u64, max: u64) {
        self.spread[0].store(min, Ordering::Relaxed);
        self.spread[1].store(max, Ordering::Relaxed);
    }

    pub fn close(&self) {
        self.closed.store(true, Ordering::Release);
    }

    fn counts(&self) -> Counts {
        // In the reverse order of publish.
        let mut values = [0; 9];
        for (value, cell) in values.iter_mut().zip(&self.counts).rev() {
            *value = cell.load(Ordering::Acquire);
        }
        let [issued, acked, failed, unknown, moved, asked, retried, cpu_us, active_us] = values;
        Counts { issued, acked, failed, unknown, moved, asked, retried, cpu_us, active_us }
    }

    /// Closes the account of a thread that died: what was published is at least what
    /// was sent, so all of it that is open has an unknown fate.
    pub fn abandon(&self) {
        let mut counts = self.counts();
        counts.unknown += counts.in_flight();
        self.publish(&counts);
        self.close();
    }
}

/// Shared by a share's threads and its views.
#[derive(Debug)]
pub(super) struct Shared {
    pub figures: Vec<Figures>,
    pub wakers: Vec<Waker>,
    command: AtomicU8,
    errors: Mutex<BTreeMap<String, (u64, String)>>,
}

impl Shared {
    pub fn new(figures: Vec<Figures>, wakers: Vec<Waker>) -> Self {
        Self { figures, wakers, command: AtomicU8::new(Command::Run as u8), errors: Mutex::default() }
    }

    /// What the threads are asked to do; it only ever gets stricter.
    pub fn command(&self) -> Command {
        match self.command.load(Ordering::Acquire) {
            0 => Command::Run,
            1 => Command::Stop,
            _ => Command::Abort,
        }
    }

    pub fn order(&self, command: Command) {
        self.command.fetch_max(command as u8, Ordering::AcqRel);
        for waker in &self.wakers {
            // A thread that can't be woken looks at the command at its next tick.
            let _ = waker.wake();
        }
    }

    /// Notes an error under `kind`; only the first message of each kind is kept.
    pub fn note(&self, kind: &str, message: impl FnOnce() -> String) {
        let mut errors = self.errors();
        let full = errors.len() >= ERROR_KINDS_MAX;
        let key = if full && !errors.contains_key(kind) { "other" } else { kind };
        if let Some((count, _)) = errors.get_mut(key) {
            *count += 1;
            return;
        }
        let mut text = message();
        let mut end = text.len().min(ERROR_BYTES_MAX);
        while !text.is_char_boundary(end) {
            end -= 1;
        }
        text.truncate(end);
        errors.insert(key.to_owned(), (1, text));
    }

    fn errors(&self) -> MutexGuard<'_, BTreeMap<String, (u64, String)>> {
        self.errors.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// A running or closed share as seen from outside. Cheap to clone.
#[derive(Debug, Clone)]
pub struct ShareView {
    pub(super) shared: Arc<Shared>,
}

impl ShareView {
    /// Sum over all threads, as of each one's last loop turn; exact once closed.
    pub fn counts(&self) -> Counts {
        self.shared.figures.iter().fold(Counts::default(), |sum, thread| sum.plus(thread.counts()))
    }

    /// Every write's fate is counted and no more will be issued.
    pub fn closed(&self) -> bool {
        self.shared.figures.iter().all(|thread| thread.closed.load(Ordering::Acquire))
    }

    /// Issue no more and wait for what is in flight (at most [`super::DRAIN_MAX`]).
    /// Returns at once; [`ShareView::closed`] tells when it is done.
    pub fn stop(&self) {
        self.shared.order(Command::Stop);
    }

    /// Close the account now: what was sent and not answered is unknown, what was not
    /// sent has failed. Returns at once.
    pub fn abort(&self) {
        self.shared.order(Command::Abort);
    }

    /// Service times of the acked writes in microseconds, as of some 100 ms ago; exact
    /// once closed.
    pub fn histogram(&self) -> Histogram<u64> {
        let mut sum = empty_histogram();
        self.shared.figures.iter().for_each(|thread| thread.recorder.add_to(&mut sum));
        sum
    }

    /// Fewest and most acked writes of any one worker, as of some 100 ms ago; exact
    /// once closed.
    pub fn worker_spread(&self) -> (u64, u64) {
        let each = |index: usize| {
            self.shared.figures.iter().map(move |thread| thread.spread[index].load(Ordering::Relaxed))
        };
        (each(0).min().unwrap_or(0), each(1).max().unwrap_or(0))
    }

    /// What went wrong so far, by kind.
    pub fn errors(&self) -> Vec<ErrorCount> {
        let errors = self.shared.errors();
        let entry = |(kind, (count, first)): (&String, &(u64, String))| ErrorCount {
            kind: kind.clone(),
            count: *count,
            first: first.clone(),
        };
        errors.iter().map(entry).collect()
    }

    /// The same in one line of words.
    pub fn error(&self) -> Option<String> {
        let errors = self.errors();
        let texts = errors.iter().map(|e| format!("{} × {} (first: {})", e.count, e.kind, e.first));
        (!errors.is_empty()).then(|| texts.collect::<Vec<_>>().join("; "))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::stats::recorder::Recorder;

    fn view(threads: usize) -> ShareView {
        let figures = (0..threads).map(|_| Figures::new(Recorder::new().1)).collect();
        ShareView { shared: Arc::new(Shared::new(figures, Vec::new())) }
    }

    #[test]
    fn a_dead_thread_leaves_a_closed_account() {
        let view = view(2);
        view.shared.figures[0].publish(&Counts { issued: 10, acked: 7, failed: 1, ..Counts::default() });
        view.shared.figures[1].publish(&Counts { issued: 5, acked: 5, ..Counts::default() });
        view.shared.figures[1].close();
        assert!(!view.closed());
        view.shared.figures[0].abandon();
        let counts = view.counts();
        assert!(view.closed());
        assert_eq!((counts.issued, counts.acked, counts.failed, counts.unknown), (15, 12, 1, 2));
    }

    #[test]
    fn errors_are_bounded_in_kinds_and_bytes() {
        let view = view(1);
        assert_eq!(view.error(), None);
        for i in 0..100 {
            view.shared.note(&format!("KIND{i}"), || "é".repeat(1000));
        }
        let text = view.error().expect("errors");
        assert!(text.len() < (ERROR_KINDS_MAX + 1) * (ERROR_BYTES_MAX + 60), "{}", text.len());
        assert!(text.contains("92 × other"), "{text}");
    }

    #[test]
    fn commands_only_get_stricter() {
        let view = view(1);
        view.abort();
        view.stop();
        assert_eq!(view.shared.command(), Command::Abort);
    }
}
