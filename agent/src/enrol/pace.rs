//! How many requests to join are looked at. Pure: the time is an argument.
//!
//! A look costs one check of a signature, and for a token that is good one entry of Raft.
//! Sources are told apart by address; that an address is its own is proven by then, since
//! the handshake is over.

use std::collections::HashMap;
use std::net::IpAddr;
use std::time::Instant;

use crate::credit::{Credit, Terms, source_of};

/// Requests of one source.
pub const PER_SOURCE: Terms = Terms { per_s: 2.0, burst: 20.0 };

/// Requests of all: after a rest those of a large mesh that boots together.
pub const OF_ALL: Terms = Terms { per_s: 20.0, burst: 200.0 };

/// Sources remembered; of those, the ones that have rested longest are forgotten first.
pub const SOURCES_MAX: usize = 1024;

/// See the module.
#[derive(Debug, Default)]
pub struct Pace {
    all: Option<Credit>,
    sources: HashMap<IpAddr, Credit>,
}

impl Pace {
    /// Whether one more request of `source` is looked at.
    pub fn allow(&mut self, source: IpAddr, now: Instant) -> bool {
        let source = source_of(source);
        let all = self.all.map_or(OF_ALL.burst, |credit| credit.now(OF_ALL, now));
        let own = |credit: &Credit| credit.now(PER_SOURCE, now);
        let its = self.sources.get(&source).map_or(PER_SOURCE.burst, own);
        if all < 1.0 || its < 1.0 {
            return false;
        }
        if self.sources.len() >= SOURCES_MAX && !self.sources.contains_key(&source) {
            self.sources.retain(|_, credit| own(credit) < PER_SOURCE.burst);
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
        assert_eq!(tried, PER_SOURCE.burst as usize);
        assert!(pace.allow(ip(2), start));
        let later = start + Duration::from_secs(5);
        let tried = (0..100).filter(|_| pace.allow(ip(1), later)).count();
        assert_eq!(tried, 10);
    }

    #[test]
    fn all_sources_together_are_bounded_and_so_is_the_memory() {
        let (mut pace, start) = (Pace::default(), Instant::now());
        let tried = (0..1000).filter(|n| pace.allow(ip(*n), start)).count();
        assert_eq!(tried, OF_ALL.burst as usize);
        let mut now = start;
        for n in 1000..4000 {
            now += Duration::from_millis(50);
            assert!(pace.allow(ip(n), now));
            assert!(pace.sources.len() <= SOURCES_MAX);
        }
    }
}
