//! What a share's threads publish and everybody else may read at any time: counts,
//! spread, errors, histograms; and the one word by which the threads are told to stop.
//!
//! The threads store into atomics of their own once per loop turn; readers never make
//! them wait.

use std::collections::BTreeMap;
use std::sync::atomic::{AtomicBool, AtomicU8, AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, OnceLock, PoisonError};

use std::net::SocketAddr;

use hdrhistogram::Histogram;
use mio::Waker;
use redmesh_api::run::{Counts, ErrorCount, Findings};
use redmesh_api::workload::Keys;

use super::read_back;
use super::written::{EXCEPTIONS_MAX, Exception, Written};
use super::{ShareSpec, Task};
use crate::clock::now_unix_ms;
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
    counts: [AtomicU64; Counts::WORDS],
    survey: Mutex<Survey>,
    closed: AtomicBool,
    recorder: RecorderView,
    intended: Option<RecorderView>,
}

/// What a thread's lanes and connections stand at, taken now and then and at the end.
#[derive(Debug, Default)]
pub(super) struct Survey {
    /// Fewest and most acked operations of any one worker.
    pub worker_acked: (u64, u64),
    /// Operations that each lane has ended.
    pub ended: Vec<u64>,
    pub exceptions: Vec<Exception>,
    pub exceptions_cut: bool,
    pub acked_by: Vec<(SocketAddr, u64)>,
    pub behind: u64,
    pub findings: Option<Findings>,
    pub beyond: u64,
}

impl Figures {
    pub fn new(recorder: RecorderView, intended: Option<RecorderView>, lanes: usize) -> Self {
        Self {
            counts: Default::default(),
            survey: Mutex::new(Survey { ended: vec![0; lanes], ..Survey::default() }),
            closed: AtomicBool::new(false),
            recorder,
            intended,
        }
    }

    /// Stores all counts; `issued` first, so that no reader sees more answers than writes.
    pub fn publish(&self, c: &Counts) {
        for (cell, value) in self.counts.iter().zip(c.to_words()) {
            cell.store(value, Ordering::Release);
        }
    }

    /// Readers hold it for the time of a copy, so the thread waits that long at most.
    pub fn publish_survey(&self, survey: Survey) {
        *self.survey() = survey;
    }

    fn survey(&self) -> MutexGuard<'_, Survey> {
        self.survey.lock().unwrap_or_else(PoisonError::into_inner)
    }

    pub fn close(&self) {
        self.closed.store(true, Ordering::Release);
    }

    fn counts(&self) -> Counts {
        // In the reverse order of publish.
        let mut values = [0; Counts::WORDS];
        for (value, cell) in values.iter_mut().zip(&self.counts).rev() {
            *value = cell.load(Ordering::Acquire);
        }
        Counts::from_words(values)
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
    pub spec: ShareSpec,
    pub figures: Vec<Figures>,
    pub wakers: Vec<Waker>,
    command: AtomicU8,
    /// When the first thread began to issue, Unix milliseconds; the maximum before.
    began_unix_ms: AtomicU64,
    errors: Mutex<BTreeMap<String, (u64, String)>>,
    /// What ended a thread before its time.
    failure: OnceLock<String>,
}

impl Shared {
    pub fn new(spec: ShareSpec, figures: Vec<Figures>, wakers: Vec<Waker>) -> Self {
        Self {
            spec,
            figures,
            wakers,
            command: AtomicU8::new(Command::Run as u8),
            began_unix_ms: AtomicU64::new(u64::MAX),
            errors: Mutex::default(),
            failure: OnceLock::new(),
        }
    }

    /// A thread begins to issue.
    pub fn begin(&self) {
        self.began_unix_ms.fetch_min(now_unix_ms(), Ordering::Relaxed);
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

    /// Notes what ends a thread before its time.
    pub fn note_failure(&self, kind: &str, message: String) {
        self.note(kind, || message.clone());
        // The first stays.
        let _ = self.failure.set(message);
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
        text.truncate(text.floor_char_boundary(ERROR_BYTES_MAX));
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

    /// Fewest and most acked operations of any one worker, as of half a second ago; exact
    /// once closed, like all that follows.
    pub fn worker_spread(&self) -> (u64, u64) {
        let each = || self.shared.figures.iter().map(|thread| thread.survey().worker_acked);
        (each().map(|(min, _)| min).min().unwrap_or(0), each().map(|(_, max)| max).max().unwrap_or(0))
    }

    /// Open loop: times from the intended begin in microseconds; `None` in a closed loop.
    pub fn intended(&self) -> Option<Histogram<u64>> {
        let mut sum = empty_histogram();
        self.shared.figures.iter().try_for_each(|thread| {
            thread.intended.as_ref()?.add_to(&mut sum);
            Some(())
        })?;
        Some(sum)
    }

    /// Open loop: operations whose time has come and that have not begun.
    pub fn behind(&self) -> u64 {
        self.shared.figures.iter().map(|thread| thread.survey().behind).sum()
    }

    /// Acked operations by server.
    pub fn acked_by(&self) -> Vec<(SocketAddr, u64)> {
        let mut sum = BTreeMap::new();
        for thread in &self.shared.figures {
            for (addr, acked) in &thread.survey().acked_by {
                *sum.entry(*addr).or_default() += acked;
            }
        }
        sum.into_iter().collect()
    }

    /// Which keys were written; `None` of a task whose keys are not counted.
    pub fn written(&self) -> Option<Written> {
        let spec = &self.shared.spec;
        let Task::Load(workload) = &spec.task else { return None };
        let Keys::Counter { wrap } = workload.keys else { return None };
        let mut written = Written {
            run: spec.run,
            host: spec.host,
            epoch: spec.epoch,
            first_worker: spec.first_worker,
            pipeline: spec.pipeline,
            wrap,
            ended: Vec::new(),
            exceptions: Vec::new(),
            exceptions_cut: false,
            // Before the threads are looked at: what they show then is final.
            closed: self.closed(),
        };
        for thread in &self.shared.figures {
            let survey = thread.survey();
            let first = written.ended.len() as u32;
            written.ended.extend(&survey.ended);
            let exceptions = survey.exceptions.iter();
            written.exceptions.extend(exceptions.map(|e| Exception { lane: first + e.lane, ..*e }));
            written.exceptions_cut |= survey.exceptions_cut;
        }
        written.exceptions_cut |= written.exceptions.len() > EXCEPTIONS_MAX;
        written.exceptions.truncate(EXCEPTIONS_MAX);
        Some(written)
    }

    /// What a read-back has found so far; `None` of any other task.
    pub fn findings(&self) -> Option<Findings> {
        let Task::ReadBack(task) = &self.shared.spec.task else { return None };
        let surveys = self.shared.figures.iter().map(Figures::survey);
        Some(read_back::sum(task, surveys.filter_map(|s| Some((s.findings.clone()?, s.beyond)))))
    }

    /// When the first operation was issued, Unix milliseconds; `None` before.
    pub fn began_unix_ms(&self) -> Option<u64> {
        Some(self.shared.began_unix_ms.load(Ordering::Relaxed)).filter(|ms| *ms != u64::MAX)
    }

    /// Load threads.
    pub fn threads(&self) -> u16 {
        u16::try_from(self.shared.figures.len()).unwrap_or(u16::MAX)
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

    /// What ended a thread before its time, if anything did.
    pub fn failure(&self) -> Option<String> {
        self.shared.failure.get().cloned()
    }

    /// All errors in one line of words.
    pub fn error(&self) -> Option<String> {
        let errors = self.errors();
        let texts = errors.iter().map(|e| format!("{} × {} (first: {})", e.count, e.kind, e.first));
        (!errors.is_empty()).then(|| texts.collect::<Vec<_>>().join("; "))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::load::ShareUntil;
    use crate::load::tests::spec;
    use crate::stats::recorder::Recorder;

    fn view(threads: usize) -> ShareView {
        let figures = (0..threads).map(|_| Figures::new(Recorder::new().1, None, 1)).collect();
        ShareView { shared: Arc::new(Shared::new(spec(1, ShareUntil::Exhausted), figures, Vec::new())) }
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
