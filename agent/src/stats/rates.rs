//! Writes per second over a sliding window, from sightings of a grow-only counter.
//!
//! Pure: the caller brings the time. A sighting that is not newer than the last one,
//! or shows less than it (a late message), changes nothing.

use std::collections::VecDeque;
use std::time::Duration;

/// Sightings kept at most; a finer stream is thinned by overwriting the newest.
pub const SAMPLES_MAX: usize = 256;

/// The sliding window over one counter.
#[derive(Debug, Clone)]
pub struct RateWindow {
    span_us: u64,
    samples: VecDeque<(u64, u64)>,
}

impl RateWindow {
    /// A window of `span`.
    pub fn new(span: Duration) -> Self {
        let span_us = u64::try_from(span.as_micros()).unwrap_or(u64::MAX).max(1);
        Self { span_us, samples: VecDeque::new() }
    }

    /// The counter stood at `count` when `at` had passed since any fixed moment.
    pub fn record(&mut self, at: Duration, count: u64) {
        let at_us = u64::try_from(at.as_micros()).unwrap_or(u64::MAX);
        if let Some(&(last_us, last)) = self.samples.back()
            && (at_us <= last_us || count < last)
        {
            return;
        }
        // The oldest one kept is the last that lies at or before the window's begin,
        // so that the rate covers the whole window.
        let begin = at_us.saturating_sub(self.span_us);
        while self.samples.len() > 1 && self.samples[1].0 <= begin {
            self.samples.pop_front();
        }
        let finest_us = self.span_us / (SAMPLES_MAX as u64 - 2);
        if let [.., (before_us, _), newest] = self.samples.make_contiguous()
            && at_us - *before_us < finest_us
        {
            *newest = (at_us, count);
            return;
        }
        if self.samples.len() == SAMPLES_MAX {
            self.samples.pop_front();
        }
        self.samples.push_back((at_us, count));
    }

    /// Counts per second over the window; 0 until two sightings differ in time.
    pub fn per_second(&self) -> f64 {
        match (self.samples.front(), self.samples.back()) {
            (Some(&(from_us, from)), Some(&(to_us, to))) if to_us > from_us => {
                (to - from) as f64 * 1e6 / (to_us - from_us) as f64
            }
            _ => 0.0,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn rate_is_that_of_the_window_not_of_the_whole_run() {
        let mut window = RateWindow::new(Duration::from_secs(2));
        assert_eq!(window.per_second(), 0.0);
        for second in 0..=10u64 {
            let count = if second <= 5 { second * 100 } else { 500 + (second - 5) * 1000 };
            window.record(Duration::from_secs(second), count);
        }
        assert_eq!(window.per_second(), 1000.0);
    }

    #[test]
    fn late_and_repeated_sightings_change_nothing() {
        let mut window = RateWindow::new(Duration::from_secs(10));
        window.record(Duration::from_secs(1), 0);
        window.record(Duration::from_secs(2), 500);
        window.record(Duration::from_secs(2), 900);
        window.record(Duration::from_secs(1), 100);
        window.record(Duration::from_secs(3), 400);
        assert_eq!(window.per_second(), 500.0);
    }

    #[test]
    fn memory_is_bounded_for_any_stream() {
        let mut window = RateWindow::new(Duration::from_secs(1));
        for us in 1..20_000u64 {
            window.record(Duration::from_micros(us), us);
        }
        assert!(window.samples.len() <= SAMPLES_MAX);
        assert!((window.per_second() - 1e6).abs() < 1.0);
    }
}
