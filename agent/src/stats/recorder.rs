//! A load thread's service times. The thread records into a histogram of its own and
//! adds it to a shared one now and then, only if nobody reads that at the moment, so
//! that a reader never makes the hot loop wait.

use std::sync::{Arc, Mutex, MutexGuard, PoisonError, TryLockError};

use hdrhistogram::Histogram;
use redmesh_api::histogram::empty_histogram;

/// The recording side, owned by one thread. Publishes the rest when dropped.
#[derive(Debug)]
pub struct Recorder {
    local: Histogram<u64>,
    shared: Arc<Mutex<Histogram<u64>>>,
}

/// The reading side; cheap to clone.
#[derive(Debug, Clone)]
pub struct RecorderView {
    shared: Arc<Mutex<Histogram<u64>>>,
}

impl Recorder {
    /// A recorder and its reader.
    pub fn new() -> (Self, RecorderView) {
        let shared = Arc::new(Mutex::new(empty_histogram()));
        (Self { local: empty_histogram(), shared: shared.clone() }, RecorderView { shared })
    }

    /// Records one service time, microseconds.
    #[inline]
    pub fn record(&mut self, us: u64) {
        self.local.saturating_record(us.max(1));
    }

    /// Hands over what was recorded since the last time, unless a reader is at it.
    pub fn publish(&mut self) {
        if self.local.is_empty() {
            return;
        }
        let mut shared = match self.shared.try_lock() {
            Ok(shared) => shared,
            Err(TryLockError::Poisoned(poisoned)) => poisoned.into_inner(),
            Err(TryLockError::WouldBlock) => return,
        };
        add(&mut shared, &self.local);
        self.local.reset();
    }

    /// Hands over the rest, waiting for a reader if need be.
    pub fn finish(&mut self) {
        add(&mut lock(&self.shared), &self.local);
        self.local.reset();
    }
}

impl Drop for Recorder {
    fn drop(&mut self) {
        self.finish();
    }
}

impl RecorderView {
    /// Adds what was published so far to `into`.
    pub fn add_to(&self, into: &mut Histogram<u64>) {
        // Copied out first: the lock is held for a copy, not for an addition.
        let copy = lock(&self.shared).clone();
        add(into, &copy);
    }

    /// What was published so far.
    pub fn snapshot(&self) -> Histogram<u64> {
        lock(&self.shared).clone()
    }
}

fn add(into: &mut Histogram<u64>, from: &Histogram<u64>) {
    into.add(from).expect("both have the one shape of this module");
}

fn lock(shared: &Mutex<Histogram<u64>>) -> MutexGuard<'_, Histogram<u64>> {
    // A histogram is valid after any panic of its holder: at worst one addition short.
    shared.lock().unwrap_or_else(PoisonError::into_inner)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn everything_recorded_is_read_exactly_once() {
        let (mut recorder, view) = Recorder::new();
        (1..=1000).for_each(|us| recorder.record(us));
        assert_eq!(view.snapshot().len(), 0);
        recorder.publish();
        recorder.publish();
        assert_eq!(view.snapshot().len(), 1000);
        recorder.record(u64::MAX);
        recorder.record(0);
        drop(recorder);
        let mut sum = empty_histogram();
        view.add_to(&mut sum);
        assert_eq!(sum.len(), 1002);
        assert_eq!(sum.min(), 1);
        assert!(sum.max() >= redmesh_api::histogram::SERVICE_US_MAX);
    }

    #[test]
    fn a_reader_never_makes_publish_wait() {
        let (mut recorder, view) = Recorder::new();
        recorder.record(5);
        let guard = lock(&view.shared);
        recorder.publish();
        drop(guard);
        assert_eq!(view.snapshot().len(), 0);
        recorder.publish();
        assert_eq!(view.snapshot().len(), 1);
    }
}
