//! Whose handshake is begun, whose address must be proven first, and who is turned away.
//!
//! What a stranger costs before its certificate is known: a handshake's memory and one
//! signature. Both are bounded here, over all and by source, so that a flood from one
//! address leaves room for every other. An address that was not proven by a retry token
//! (RFC 9000, section 8.1.2) may be anybody's: it is never refused on account of what
//! came in its name, only asked for the proof, which costs us no memory. Pure: the time
//! is an argument.

use std::collections::HashMap;
use std::net::IpAddr;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Instant;

use crate::credit::{Credit, Terms, source_of};

/// Connections whose peers are not known yet; further ones are turned away.
pub const PENDING_HANDSHAKES_MAX: usize = 128;

/// From here on every source must first prove that its address is its own.
pub const PENDING_BEFORE_RETRY: usize = PENDING_HANDSHAKES_MAX / 4;

/// Of those, the ones of a single source.
pub const PENDING_PER_SOURCE_MAX: usize = 32;

/// From here on a single source must first prove its address.
pub const PENDING_PER_SOURCE_BEFORE_RETRY: usize = PENDING_PER_SOURCE_MAX / 4;

/// Handshakes that one source may begin.
pub const PER_SOURCE: Terms = Terms { per_s: 100.0, burst: 400.0 };

/// Sources remembered; beyond, those without a pending handshake are forgotten.
pub const SOURCES_MAX: usize = 1024;

/// What is to become of an attempt.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Verdict {
    /// Its handshake begins.
    Admit,
    /// It must prove its address first.
    Retry,
    /// It is turned away, and why.
    Refuse(&'static str),
}

#[derive(Debug)]
struct Source {
    pending: usize,
    /// Handshakes that it may still begin.
    credit: Credit,
}

/// See the module.
#[derive(Debug, Default)]
pub struct Intake {
    pending: usize,
    sources: HashMap<IpAddr, Source>,
}

impl Intake {
    /// Judges an attempt from `ip`, whose address is `proven` or not. What is admitted
    /// counts until [`Intake::done`].
    pub fn judge(&mut self, ip: IpAddr, proven: bool, now: Instant) -> Verdict {
        let key = source_of(ip);
        let (pending, credit) = self
            .sources
            .get(&key)
            .map_or((0, PER_SOURCE.burst), |source| (source.pending, source.credit.now(PER_SOURCE, now)));
        let crowded = self.pending >= PENDING_BEFORE_RETRY
            || pending >= PENDING_PER_SOURCE_BEFORE_RETRY
            || credit < PER_SOURCE.burst / 2.0;
        if crowded && !proven {
            return Verdict::Retry;
        }
        if self.pending >= PENDING_HANDSHAKES_MAX {
            return Verdict::Refuse("too many handshakes at once");
        }
        if pending >= PENDING_PER_SOURCE_MAX {
            return Verdict::Refuse("too many handshakes at once from this address");
        }
        if credit < 1.0 {
            return Verdict::Refuse("handshakes from this address come too fast");
        }
        self.make_room(now);
        self.pending += 1;
        self.sources
            .insert(key, Source { pending: pending + 1, credit: Credit { left: credit - 1.0, at: now } });
        Verdict::Admit
    }

    /// An admitted handshake has ended, in either way.
    pub fn done(&mut self, ip: IpAddr) {
        self.pending = self.pending.saturating_sub(1);
        if let Some(source) = self.sources.get_mut(&source_of(ip)) {
            source.pending = source.pending.saturating_sub(1);
        }
    }

    fn make_room(&mut self, now: Instant) {
        if self.sources.len() < SOURCES_MAX {
            return;
        }
        self.sources.retain(|_, source| {
            source.pending > 0 || source.credit.now(PER_SOURCE, now) < PER_SOURCE.burst - 1.0
        });
        if self.sources.len() >= SOURCES_MAX {
            // So many addresses, each of them proven or within the first few: that they
            // begin anew with a full credit is the lesser evil.
            self.sources.retain(|_, source| source.pending > 0);
        }
    }
}

/// A handshake that counts as pending until it is dropped.
#[derive(Debug)]
pub struct Pending {
    intake: Arc<Mutex<Intake>>,
    ip: IpAddr,
}

impl Pending {
    /// [`Intake::judge`] of what several tasks share.
    pub fn judge(
        intake: &Arc<Mutex<Intake>>,
        ip: IpAddr,
        proven: bool,
        now: Instant,
    ) -> Result<Self, Verdict> {
        match intake.lock().unwrap_or_else(PoisonError::into_inner).judge(ip, proven, now) {
            Verdict::Admit => Ok(Self { intake: intake.clone(), ip }),
            other => Err(other),
        }
    }
}

impl Drop for Pending {
    fn drop(&mut self) {
        self.intake.lock().unwrap_or_else(PoisonError::into_inner).done(self.ip);
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
    fn one_source_leaves_room_for_every_other() {
        let (mut intake, now) = (Intake::default(), Instant::now());
        let verdicts: Vec<_> = (0..1000).map(|_| intake.judge(ip(1), true, now)).collect();
        let admitted = verdicts.iter().filter(|verdict| **verdict == Verdict::Admit).count();
        assert_eq!(admitted, PENDING_PER_SOURCE_MAX);
        assert_eq!(intake.judge(ip(2), true, now), Verdict::Admit);
        intake.done(ip(1));
        assert_eq!(intake.judge(ip(1), true, now), Verdict::Admit);
    }

    #[test]
    fn what_comes_in_a_strangers_name_never_locks_it_out() {
        let (mut intake, now) = (Intake::default(), Instant::now());
        for n in 0..100_000 {
            let verdict = intake.judge(ip(n % 50), false, now);
            assert!(!matches!(verdict, Verdict::Refuse(_)), "{verdict:?}");
        }
        assert_eq!(intake.pending, PENDING_BEFORE_RETRY);
        for n in 0..50 {
            assert_eq!(intake.judge(ip(n), true, now), Verdict::Admit);
        }
    }

    #[test]
    fn a_source_that_begins_again_and_again_is_held_to_a_rate() {
        let (mut intake, start) = (Intake::default(), Instant::now());
        let mut admitted = 0;
        for ms in 0..10_000 {
            if intake.judge(ip(1), true, start + Duration::from_millis(ms)) == Verdict::Admit {
                admitted += 1;
                intake.done(ip(1));
            }
        }
        let most = PER_SOURCE.burst + 10.0 * PER_SOURCE.per_s;
        assert!(f64::from(admitted) <= most && f64::from(admitted) > most - 10.0, "{admitted}");
        assert_eq!(intake.judge(ip(2), true, start), Verdict::Admit);
    }

    #[test]
    fn memory_is_bounded_whatever_the_number_of_sources() {
        let (mut intake, now) = (Intake::default(), Instant::now());
        for n in 0..100_000 {
            if intake.judge(ip(n), true, now) == Verdict::Admit {
                intake.done(ip(n));
            }
            assert!(intake.sources.len() <= SOURCES_MAX);
        }
        let all: Vec<_> = (0..200_000).map(|n| intake.judge(ip(n), true, now)).collect();
        assert_eq!(all.iter().filter(|v| **v == Verdict::Admit).count(), PENDING_HANDSHAKES_MAX);
        assert_eq!(intake.judge(ip(300_000), false, now), Verdict::Retry);
    }
}
