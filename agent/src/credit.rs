//! How often a source may do something: credit that is spent by one and earned with time.
//! Pure: the time is an argument.

use std::net::{IpAddr, Ipv6Addr};
use std::time::Instant;

/// How fast credit is earned, and how much there is at the most.
#[derive(Debug, Clone, Copy)]
pub struct Terms {
    /// In a second, for long.
    pub per_s: f64,
    /// At once after a rest.
    pub burst: f64,
}

/// What was left at a time.
#[derive(Debug, Clone, Copy)]
pub struct Credit {
    /// Of the burst.
    pub left: f64,
    /// When.
    pub at: Instant,
}

impl Credit {
    /// What there is by now.
    pub fn now(&self, terms: Terms, now: Instant) -> f64 {
        let earned = now.saturating_duration_since(self.at).as_secs_f64() * terms.per_s;
        (self.left + earned).min(terms.burst)
    }
}

/// What counts as one source: an IPv4 address, or an IPv6 network of 64 bits, since
/// whoever has one address of it has them all.
pub fn source_of(ip: IpAddr) -> IpAddr {
    match ip.to_canonical() {
        IpAddr::V4(ip) => IpAddr::V4(ip),
        IpAddr::V6(ip) => IpAddr::V6(Ipv6Addr::from_bits(ip.to_bits() & (u128::MAX << 64))),
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;

    #[test]
    fn credit_is_earned_up_to_the_burst_and_a_clock_that_goes_back_earns_none() {
        let terms = Terms { per_s: 2.0, burst: 10.0 };
        let start = Instant::now();
        let credit = Credit { left: 1.0, at: start + Duration::from_secs(1) };
        assert_eq!(credit.now(terms, start), 1.0);
        assert_eq!(credit.now(terms, start + Duration::from_secs(3)), 5.0);
        assert_eq!(credit.now(terms, start + Duration::from_secs(60)), 10.0);
    }

    #[test]
    fn an_ipv6_network_is_one_source_and_a_mapped_address_is_its_ipv4_self() {
        let of = |ip: &str| source_of(ip.parse().expect("an address"));
        assert_eq!(of("2001:db8::1"), of("2001:db8::ffff:1"));
        assert_ne!(of("2001:db8::1"), of("2001:db8:0:1::1"));
        assert_eq!(of("::ffff:10.0.0.1"), of("10.0.0.1"));
        assert_ne!(of("10.0.0.1"), of("10.0.0.2"));
    }
}
