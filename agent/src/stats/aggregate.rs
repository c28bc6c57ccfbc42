//! The mesh's sum: tallies of every (host, epoch), each seen any number of times, in
//! any order, from any source.
//!
//! A tally only grows, so two sightings merge by the larger of each count, and the
//! merge is commutative, associative and idempotent: gossip that repeats, overtakes
//! or is lost can delay the sum but never falsify it.

use std::collections::BTreeMap;

use redmesh_api::ids::HostId;
use redmesh_api::run::{Counts, Tally};

/// Merges sightings by (host, epoch).
pub fn merge(tallies: impl IntoIterator<Item = Tally>) -> BTreeMap<(HostId, u32), Tally> {
    let mut merged: BTreeMap<(HostId, u32), Tally> = BTreeMap::new();
    for tally in tallies {
        merged
            .entry((tally.host, tally.epoch))
            .and_modify(|known| {
                known.counts = known.counts.max(tally.counts);
                known.closed |= tally.closed;
            })
            .or_insert(tally);
    }
    merged
}

/// The sum over merged tallies; `active_us` is the longest of any.
pub fn total<'a>(tallies: impl IntoIterator<Item = &'a Tally>) -> Counts {
    tallies.into_iter().fold(Counts::default(), |sum, tally| sum.plus(tally.counts))
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn tally() -> impl Strategy<Value = Tally> {
        (0u32..4, 0u32..3, any::<bool>(), 0u64..1000, 0u64..1000, 0u64..50).prop_map(
            |(host, epoch, closed, issued, acked, unknown)| Tally {
                host: HostId(host),
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

    #[test]
    fn total_adds_epochs_of_one_host() {
        let one = |epoch, acked| Tally {
            host: HostId(1),
            epoch,
            closed: true,
            counts: Counts { issued: acked, acked, active_us: acked, ..Counts::default() },
        };
        let merged = merge([one(0, 10), one(1, 5), one(0, 7)]);
        let sum = total(merged.values());
        assert_eq!((sum.issued, sum.acked, sum.active_us), (15, 15, 10));
    }
}
