//! One warning a second per address that keeps being refused, so that a stranger
//! can't fill the log.

use std::collections::HashMap;
use std::net::{IpAddr, SocketAddr};
use std::sync::Mutex;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use tokio::time::Instant;

use crate::credit::source_of;

/// At most one line per source in this time.
pub const INTERVAL: Duration = Duration::from_secs(1);

/// Sources remembered; while so many are fresh, further ones go unlogged.
pub const SOURCES_MAX: usize = 1024;

#[derive(Debug, Default)]
struct Limiter {
    last: HashMap<IpAddr, Instant>,
}

impl Limiter {
    fn allow(&mut self, source: IpAddr, now: Instant) -> bool {
        let fresh = |at: &Instant| now.saturating_duration_since(*at) < INTERVAL;
        if self.last.get(&source).is_some_and(fresh) {
            return false;
        }
        if self.last.len() >= SOURCES_MAX {
            self.last.retain(|_, at| fresh(at));
        }
        if self.last.len() >= SOURCES_MAX {
            return false;
        }
        self.last.insert(source, now);
        true
    }
}

/// Counts and logs who was refused.
#[derive(Debug, Default)]
pub struct Refusals {
    limiter: Mutex<Limiter>,
    total: AtomicU64,
}

impl Refusals {
    /// Counts one, and logs it unless its source was logged just before.
    pub fn note(&self, from: SocketAddr, reason: &str) {
        self.total.fetch_add(1, Ordering::Relaxed);
        let mut limiter = self.limiter.lock().unwrap_or_else(std::sync::PoisonError::into_inner);
        if limiter.allow(source_of(from.ip()), Instant::now()) {
            tracing::warn!(%from, reason, "refused a connection");
        }
    }

    /// How many there were.
    pub fn total(&self) -> u64 {
        self.total.load(Ordering::Relaxed)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_source_is_logged_once_a_second_and_the_memory_is_bounded() {
        let mut limiter = Limiter::default();
        let start = Instant::now();
        let ip = |n: u32| IpAddr::from(n.to_be_bytes());
        assert!(limiter.allow(ip(1), start));
        assert!(!limiter.allow(ip(1), start + INTERVAL / 2));
        assert!(limiter.allow(ip(1), start + INTERVAL));
        let allowed = (2..5000).filter(|n| limiter.allow(ip(*n), start + INTERVAL)).count();
        assert_eq!(allowed, SOURCES_MAX - 1);
        assert!(limiter.allow(ip(9999), start + INTERVAL * 3));
        assert_eq!(limiter.last.len(), 1);
    }
}
