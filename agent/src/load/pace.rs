//! How long a load thread rests between two turns, so that batches grow.
//!
//! A write costs its thread about 0.15 µs and a share of some 10 µs that each hand-over
//! to the kernel costs, so small batches are dear; and a rest leaves the core to servers
//! that may share it. Where batches are large anyway a rest would only add latency, and
//! where workers are few there is nothing to gather. The decision is pure: it looks at
//! the means of the turns before.

/// Writes handed to the kernel at once that are enough: above, no rest.
const BATCH_ENOUGH: u64 = 24;

/// Up to this mean batch the rest is whole; from here it tapers off, so that it settles
/// instead of flapping. 2000 workers on 100 servers can reach 20 at the most.
const BATCH_SMALL: u64 = 16;

/// A rest is at most this part of the mean service time, so that nobody notices it.
const SERVICE_PART: u64 = 8;

/// Shortest rest, microseconds; shorter ones are not worth a system call.
const REST_MIN_US: u64 = 100;

/// Longest rest, microseconds.
const REST_MAX_US: u64 = 500;

/// Fewer workers than this never make the thread rest.
const WORKERS_MIN: usize = 64;

/// Hand-overs after which the means are taken anew.
const WINDOW_FLUSHES: u64 = 256;

/// What a window of turns has shown.
#[derive(Debug, Clone, Copy, Default)]
pub(super) struct Window {
    /// Hand-overs to the kernel.
    pub flushes: u64,
    /// Writes handed over.
    pub writes: u64,
    /// Acked writes.
    pub acked: u64,
    /// Sum of their service times, microseconds.
    pub service_us: u64,
}

/// The rest between two turns after what `window` has shown, microseconds.
fn rest_us(window: &Window, workers: usize) -> u64 {
    if workers < WORKERS_MIN || window.flushes == 0 || window.acked == 0 {
        return 0;
    }
    let whole_us = (window.service_us / window.acked / SERVICE_PART).min(REST_MAX_US);
    // Tenths, since whole numbers are coarse between the two bounds.
    let batch_tenths = window.writes * 10 / window.flushes;
    let to_enough = (BATCH_ENOUGH * 10).saturating_sub(batch_tenths);
    let span = (BATCH_ENOUGH - BATCH_SMALL) * 10;
    let tapered_us = whole_us * to_enough.min(span) / span;
    if tapered_us < REST_MIN_US { 0 } else { tapered_us }
}

/// A thread's rests.
#[derive(Debug)]
pub(super) struct Pace {
    workers: usize,
    window: Window,
    rest_us: u64,
}

impl Pace {
    pub fn new(workers: usize) -> Self {
        Self { workers, window: Window::default(), rest_us: 0 }
    }

    /// A connection's bytes were handed over, `writes` of them new.
    #[inline]
    pub fn flushed(&mut self, writes: u64) {
        self.window.flushes += 1;
        self.window.writes += writes;
    }

    /// A write was acked after so long.
    #[inline]
    pub fn acked(&mut self, service_us: u64) {
        self.window.acked += 1;
        self.window.service_us += service_us;
    }

    /// The rest that is due after a turn, microseconds; 0 is none.
    #[inline]
    pub fn rest(&mut self) -> u64 {
        if self.window.flushes >= WINDOW_FLUSHES {
            self.rest_us = rest_us(&self.window, self.workers);
            self.window = Window::default();
        }
        self.rest_us
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn window(batch: u64, service_us: u64) -> Window {
        Window { flushes: 100, writes: 100 * batch, acked: 1000, service_us: 1000 * service_us }
    }

    #[test]
    fn small_batches_rest_and_large_ones_never() {
        assert_eq!(rest_us(&window(3, 10_000), 200), 500);
        assert_eq!(rest_us(&window(16, 10_000), 200), 500);
        assert_eq!(rest_us(&window(20, 10_000), 200), 250);
        assert_eq!(rest_us(&window(23, 10_000), 200), 0);
        assert_eq!(rest_us(&window(24, 10_000), 200), 0);
        assert_eq!(rest_us(&window(66, 10_000), 200), 0);
    }

    #[test]
    fn fast_answers_and_few_workers_never_wait() {
        assert_eq!(rest_us(&window(1, 100), 2000), 0);
        assert_eq!(rest_us(&window(1, 799), 2000), 0);
        assert_eq!(rest_us(&window(1, 800), 2000), 100);
        assert_eq!(rest_us(&window(1, 10_000), WORKERS_MIN - 1), 0);
        assert_eq!(rest_us(&Window::default(), 2000), 0);
    }

    #[test]
    fn the_rest_follows_the_newest_window() {
        let mut pace = Pace::new(2000);
        assert_eq!(pace.rest(), 0);
        let mut turn = |batch: u64| {
            (0..WINDOW_FLUSHES).for_each(|_| pace.flushed(batch));
            (0..batch).for_each(|_| pace.acked(4000));
            pace.rest()
        };
        assert_eq!((turn(2), turn(40), turn(2)), (500, 0, 500));
    }

    proptest! {
        #[test]
        fn a_rest_is_bounded_and_shrinks_as_batches_grow(
            batch in 0u64..100, more in 0u64..100, service_us in 0u64..10_000_000, workers in 0usize..10_000,
        ) {
            let rest = rest_us(&window(batch, service_us), workers);
            prop_assert!(rest == 0 || (REST_MIN_US..=REST_MAX_US).contains(&rest));
            prop_assert!(rest <= service_us / SERVICE_PART);
            prop_assert!(rest_us(&window(batch + more, service_us), workers) <= rest);
            prop_assert!(batch < BATCH_ENOUGH || rest == 0);
        }
    }
}
