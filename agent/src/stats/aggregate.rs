//! The mesh's sum: tallies of every (host, share, epoch), each seen any number of times, in
//! any order, from any source.
//!
//! A tally only grows, so two sightings merge by the larger of each count, and the
//! merge is commutative, associative and idempotent: gossip that repeats, overtakes
//! or is lost can delay the sum but never falsify it.

use std::collections::BTreeMap;

use redmesh_api::ids::HostId;
use redmesh_api::run::{Counts, Tally};

/// Whose life a tally is of: host, share and epoch.
pub type Life = (HostId, u16, u32);

/// Merges sightings by (host, share, epoch).
pub fn merge(tallies: impl IntoIterator<Item = Tally>) -> BTreeMap<Life, Tally> {
    let mut merged: BTreeMap<Life, Tally> = BTreeMap::new();
    for tally in tallies {
        merged
            .entry((tally.host, tally.share, tally.epoch))
            .and_modify(|known| {
                known.counts = known.counts.max(tally.counts);
                known.closed |= tally.closed;
            })
            .or_insert(tally);
    }
    merged
}

/// The sum over merged tallies. A host's lives on one share came one after another, so
/// their times (`active_us`, `warm_us`) add up; shares are borne at once, so of theirs
/// the longest counts.
pub fn total<'a>(tallies: impl IntoIterator<Item = &'a Tally>) -> Counts {
    let mut shares: BTreeMap<(HostId, u16), Counts> = BTreeMap::new();
    for tally in tallies {
        let share = shares.entry((tally.host, tally.share)).or_default();
        let active_us = share.active_us.saturating_add(tally.counts.active_us);
        let warm_us = share.warm_us.saturating_add(tally.counts.warm_us);
        *share = Counts { active_us, warm_us, ..share.plus(tally.counts) };
    }
    shares.into_values().fold(Counts::default(), Counts::plus)
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn tally() -> impl Strategy<Value = Tally> {
        (0u32..4, 0u16..2, 0u32..3, any::<bool>(), 0u64..1000, 0u64..1000, 0u64..50).prop_map(
            |(host, share, epoch, closed, issued, acked, unknown)| Tally {
                host: HostId(host),
                share,
                epoch,
                closed,
                counts: Counts { issued, acked, unknown, active_us: issued * 3, ..Counts::default() },
            },
        )
    }

    proptest! {
        #[test]
        fn merge_is_idempotent(tallies in proptest::collection::vec(tally(), 0..20)) {
            let once = merge(tallies.clone());
            let twice = merge(tallies.iter().chain(&tallies).cloned());
            prop_assert_eq!(&once, &twice);
            prop_assert_eq!(&once, &merge(once.values().cloned()));
        }

        #[test]
        fn merge_is_commutative_and_associative(
            a in proptest::collection::vec(tally(), 0..10),
            b in proptest::collection::vec(tally(), 0..10),
        ) {
            let ab = merge(a.iter().chain(&b).cloned());
            let ba = merge(b.iter().chain(&a).cloned());
            prop_assert_eq!(&ab, &ba);
            let parts = merge(merge(a).into_values().chain(merge(b).into_values()));
            prop_assert_eq!(&ab, &parts);
        }
    }

    fn life(host: u32, share: u16, epoch: u32, acked: u64) -> Tally {
        let counts =
            Counts { issued: acked, acked, active_us: 10 * acked, warm_us: acked, ..Counts::default() };
        Tally { host: HostId(host), share, epoch, closed: true, counts }
    }

    #[test]
    fn lives_on_one_share_add_up_their_times_and_shares_overlap() {
        let merged = merge([life(1, 0, 0, 10), life(1, 0, 1, 5), life(1, 0, 0, 7), life(2, 1, 0, 12)]);
        let sum = total(merged.values());
        assert_eq!((sum.issued, sum.acked, sum.active_us, sum.warm_us), (27, 27, 150, 15));
        let longer = total(&[life(1, 0, 0, 10), life(1, 2, 1, 40)]);
        assert_eq!((longer.acked, longer.active_us), (50, 400), "a host's two shares are borne at once");
    }

    #[test]
    fn shares_of_one_host_are_told_apart() {
        let merged = merge([life(1, 0, 0, 3), life(1, 4, 0, 2)]);
        assert_eq!(merged.len(), 2);
        assert_eq!(total(merged.values()).acked, 5);
    }
}
