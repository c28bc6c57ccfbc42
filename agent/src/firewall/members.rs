//! Who is in the sets, and how they are written. Pure: the time is an argument.

use std::collections::{BTreeMap, BTreeSet};
use std::fmt::Write as _;
use std::net::IpAddr;

use crate::nft::TABLE;

/// An address that nobody names any more stays for so long, milliseconds: a day. A host that
/// was away must find the way back.
pub const KEPT_MS: u64 = 24 * 3600 * 1000;

/// Addresses in the sets; those that were named last stay.
pub const MEMBERS_MAX: usize = 2048;

/// Who was named, and when last.
#[derive(Debug, Default)]
pub struct Members {
    named_ms: BTreeMap<IpAddr, u64>,
}

impl Members {
    /// The members, given whom the mesh knows now.
    pub fn update(&mut self, known: impl Iterator<Item = IpAddr>, now_ms: u64) -> BTreeSet<IpAddr> {
        for ip in known.map(|ip| ip.to_canonical()).filter(|ip| !ip.is_unspecified()) {
            self.named_ms.insert(ip, now_ms);
        }
        self.named_ms.retain(|_, named_ms| named_ms.saturating_add(KEPT_MS) > now_ms);
        while self.named_ms.len() > MEMBERS_MAX {
            let oldest = self.named_ms.iter().min_by_key(|(_, named_ms)| **named_ms).map(|(ip, _)| *ip);
            let Some(oldest) = oldest else { break };
            self.named_ms.remove(&oldest);
        }
        self.named_ms.keys().copied().collect()
    }
}

/// One transaction that makes the sets hold these and nothing else. The table and the sets
/// are made where they aren't there, as `redmeshctl deploy nftables` makes them.
pub fn script(members: &BTreeSet<IpAddr>) -> String {
    let mut text = format!("add table inet {TABLE}\n");
    for (set, kind, v4) in [("members4", "ipv4_addr", true), ("members6", "ipv6_addr", false)] {
        let of_kind: Vec<_> =
            members.iter().filter(|ip| ip.is_ipv4() == v4).map(ToString::to_string).collect();
        let _ = writeln!(text, "add set inet {TABLE} {set} {{ type {kind}; flags interval; auto-merge; }}");
        let _ = writeln!(text, "flush set inet {TABLE} {set}");
        if !of_kind.is_empty() {
            let _ = writeln!(text, "add element inet {TABLE} {set} {{ {} }}", of_kind.join(", "));
        }
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;

    fn ip(n: u32) -> IpAddr {
        IpAddr::from((0x0a00_0000 + n).to_be_bytes())
    }

    #[test]
    fn an_address_stays_for_a_day_after_it_was_named_last() {
        let mut members = Members::default();
        let both = BTreeSet::from([ip(1), ip(2)]);
        assert_eq!(members.update([ip(1), ip(2)].into_iter(), 1000), both);
        assert_eq!(members.update([ip(1)].into_iter(), 1000 + KEPT_MS - 1), both);
        assert_eq!(members.update([ip(1)].into_iter(), 1000 + KEPT_MS), BTreeSet::from([ip(1)]));
        let nobody = ["0.0.0.0", "::", "::ffff:10.0.0.1"].map(|ip| ip.parse().unwrap());
        assert_eq!(
            members.update(nobody.into_iter(), 1000 + KEPT_MS).len(),
            1,
            "one of them, in another form"
        );
    }

    #[test]
    fn the_number_of_addresses_is_bounded() {
        let mut members = Members::default();
        members.update([ip(0)].into_iter(), 1);
        let all = members.update((1..=MEMBERS_MAX as u32).map(ip), 2);
        assert!(all.len() == MEMBERS_MAX && !all.contains(&ip(0)));
    }

    #[test]
    fn the_script_names_two_sets_of_one_table_and_nothing_else() {
        let members = BTreeSet::from([ip(1), ip(2), "fd00::1".parse().unwrap()]);
        assert_eq!(
            script(&members),
            "add table inet redmesh\n\
             add set inet redmesh members4 { type ipv4_addr; flags interval; auto-merge; }\n\
             flush set inet redmesh members4\n\
             add element inet redmesh members4 { 10.0.0.1, 10.0.0.2 }\n\
             add set inet redmesh members6 { type ipv6_addr; flags interval; auto-merge; }\n\
             flush set inet redmesh members6\n\
             add element inet redmesh members6 { fd00::1 }\n"
        );
        assert!(!script(&BTreeSet::new()).contains("element"));
    }
}
