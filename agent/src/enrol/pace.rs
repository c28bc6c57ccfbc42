//! How many requests to join are looked at. Pure: the time is an argument.
//!
//! A look costs one check of a signature, and for a token that is good one entry of Raft.
//! Sources are told apart by address; that an address is its own is proven by then, since
//! the handshake is over.

use std::collections::HashMap;
use std::net::IpAddr;
use std::time::Instant;

/// Requests of one source in a second, for long.
pub const PER_SOURCE_PER_S_MAX: f64 = 2.0;

/// Requests of one source at once after a rest.
pub const PER_SOURCE_BURST_MAX: f64 = 20.0;

/// Requests in a second, for long.
pub const PER_S_MAX: f64 = 20.0;

/// Requests at once after a rest: a large mesh that boots together.
pub const BURST_MAX: f64 = 200.0;

/// Sources remembered; of those, the ones that have rested longest are forgotten first.
pub const SOURCES_MAX: usize = 1024;

#[derive(Debug, Clone, Copy)]
struct Credit {
    left: f64,
    at: Instant,
}

impl Credit {
    fn now(self, per_s: f64, burst: f64, now: Instant) -> f64 {
        let earned = now.saturating_duration_since(self.at).as_secs_f64() * per_s;
        (self.left + earned).min(burst)
    }
}

/// See the module.
#[derive(Debug, Default)]
pub struct Pace {
    all: Option<Credit>,
    sources: HashMap<IpAddr, Credit>,
}

impl Pace {
    /// Whether one more request of `source` is looked at.
    pub fn allow(&mut self, source: IpAddr, now: Instant) -> bool {
        let all = self.all.map_or(BURST_MAX, |credit| credit.now(PER_S_MAX, BURST_MAX, now));
        let own = |credit: &Credit| credit.now(PER_SOURCE_PER_S_MAX, PER_SOURCE_BURST_MAX, now);
        let its = self.sources.get(&source).map_or(PER_SOURCE_BURST_MAX, own);
        if all < 1.0 || its < 1.0 {
            return false;
        }
        if self.sources.len() >= SOURCES_MAX && !self.sources.contains_key(&source) {
            self.sources.retain(|_, credit| own(credit) < PER_SOURCE_BURST_MAX);
            let oldest = self.sources.iter().min_by_key(|(_, credit)| credit.at).map(|(ip, _)| *ip);
            if let Some(oldest) = oldest.filter(|_| self.sources.len() >= SOURCES_MAX) {
                self.sources.remove(&oldest);
            }
        }
        self.all = Some(Credit { left: all - 1.0, at: now });
        self.sources.insert(source, Credit { left: its - 1.0, at: now });
        true
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;

    fn ip(n: u32) -> IpAddr {
        IpAddr::from(n.to_be_bytes())
    }

    #[test]
    fn one_source_is_held_back_and_others_are_not() {
        let (mut pace, start) = (Pace::default(), Instant::now());
        let tried = (0..100).filter(|_| pace.allow(ip(1), start)).count();
        assert_eq!(tried, PER_SOURCE_BURST_MAX as usize);
        assert!(pace.allow(ip(2), start));
        let later = start + Duration::from_secs(5);
        let tried = (0..100).filter(|_| pace.allow(ip(1), later)).count();
        assert_eq!(tried, 10);
    }

    #[test]
    fn all_sources_together_are_bounded_and_so_is_the_memory() {
        let (mut pace, start) = (Pace::default(), Instant::now());
        let tried = (0..1000).filter(|n| pace.allow(ip(*n), start)).count();
        assert_eq!(tried, BURST_MAX as usize);
        let mut now = start;
        for n in 1000..4000 {
            now += Duration::from_millis(50);
            assert!(pace.allow(ip(n), now));
            assert!(pace.sources.len() <= SOURCES_MAX);
        }
    }
}
