//! When an open loop's operations are due: a fixed rate, reached by a linear ramp.
//!
//! Pure arithmetic. Due times never depend on how fast answers come, which is what keeps
//! the latencies measured from them honest: a server that stalls delays the begin of
//! operations, and the delay is in their latency.

use std::time::Duration;

/// Due times of one thread's operations, microseconds since its begin.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Schedule {
    per_us: f64,
    ramp_us: f64,
}

impl Schedule {
    /// `rate` operations a second (greater than 0), reached after `ramp`.
    pub fn new(rate: f64, ramp: Duration) -> Self {
        Self { per_us: rate / 1e6, ramp_us: ramp.as_micros() as f64 }
    }

    /// Operations due while the rate still grows.
    fn in_ramp(&self) -> f64 {
        self.per_us * self.ramp_us / 2.0
    }

    /// When operation `index` (from 0) is due.
    pub fn due_us(&self, index: u64) -> u64 {
        let index = index as f64;
        let us = if index < self.in_ramp() {
            // The rate at t is per_us·t/ramp, so per_us·t²/(2·ramp) are due until t.
            (2.0 * self.ramp_us * index / self.per_us).sqrt()
        } else {
            self.ramp_us + (index - self.in_ramp()) / self.per_us
        };
        us as u64
    }

    /// How many are due until `us`, that moment included.
    pub fn due(&self, us: u64) -> u64 {
        let us = us as f64;
        let before = if us < self.ramp_us {
            self.per_us * us * us / (2.0 * self.ramp_us)
        } else {
            self.in_ramp() + (us - self.ramp_us) * self.per_us
        };
        before as u64 + 1
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn a_steady_rate_is_due_evenly() {
        let schedule = Schedule::new(1000.0, Duration::ZERO);
        assert_eq!([0, 1, 2, 1000].map(|index| schedule.due_us(index)), [0, 1000, 2000, 1_000_000]);
        assert_eq!([0, 999, 1000, 10_000_000].map(|us| schedule.due(us)), [1, 1, 2, 10_001]);
    }

    #[test]
    fn a_ramp_brings_half_of_its_time() {
        let schedule = Schedule::new(1000.0, Duration::from_secs(10));
        assert_eq!(schedule.due(10_000_000), 5001);
        assert_eq!(schedule.due(5_000_000), 1251);
        assert_eq!(schedule.due(12_000_000), 7001);
    }

    proptest! {
        #[test]
        fn due_times_never_go_back_and_agree_with_due_counts(
            rate in 0.1f64..1e7, ramp_ms in 0u64..60_000, index in 0u64..100_000_000, more in 0u64..1000,
        ) {
            let schedule = Schedule::new(rate, Duration::from_millis(ramp_ms));
            let at = schedule.due_us(index);
            prop_assert!(schedule.due_us(index + more) >= at);
            // Within the rounding to whole microseconds and of the root.
            let slack = (rate / 1e6).ceil() as u64 + 1;
            let due = schedule.due(at + 1);
            prop_assert!(due + slack >= index && due <= index + 2 + 2 * slack, "{due} due at {at}, index {index}");
        }
    }
}
