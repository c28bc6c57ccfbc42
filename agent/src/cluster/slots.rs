//! Arithmetic of the 16384 hash slots: even division, and ranges as sets.
//!
//! Pure; knows of no host and no instance.

use redmesh_api::level::{SLOTS, SlotRange};

/// Divides all slots into `parts` contiguous ranges whose sizes differ by at most
/// one, in ascending order.
///
/// Empty when `parts` is 0 or more than there are slots: no range may be empty.
pub fn divide(parts: usize) -> Vec<SlotRange> {
    let slots = usize::from(SLOTS);
    if parts == 0 || parts > slots {
        return Vec::new();
    }
    let start = |part: usize| u16::try_from(part * slots / parts).expect("at most SLOTS, which is a u16");
    (0..parts).map(|part| SlotRange { first: start(part), last: start(part + 1) - 1 }).collect()
}

/// Sorts ranges and joins those that touch or overlap: equal sets become equal lists.
pub fn normalise(mut ranges: Vec<SlotRange>) -> Vec<SlotRange> {
    ranges.sort_unstable();
    let mut joined: Vec<SlotRange> = Vec::with_capacity(ranges.len());
    for range in ranges {
        match joined.last_mut() {
            Some(last) if u32::from(range.first) <= u32::from(last.last) + 1 => {
                last.last = last.last.max(range.last);
            }
            _ => joined.push(range),
        }
    }
    joined
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_slot_once_and_sizes_differ_by_one() {
        for parts in [1, 2, 3, 7, 16, 100, 1000, 9999, 16384] {
            let ranges = divide(parts);
            assert_eq!(ranges.len(), parts);
            assert_eq!((ranges[0].first, ranges[parts - 1].last), (0, SLOTS - 1));
            assert!(ranges.windows(2).all(|w| w[0].last + 1 == w[1].first));
            let sizes: Vec<_> = ranges.iter().map(|r| r.len()).collect();
            assert!(sizes.iter().max().unwrap() - sizes.iter().min().unwrap() <= 1);
        }
        assert!(divide(0).is_empty());
        assert!(divide(16385).is_empty());
    }

    #[test]
    fn touching_ranges_join() {
        let range = |first, last| SlotRange { first, last };
        let joined = normalise(vec![range(5, 9), range(0, 4), range(11, 11), range(8, 9)]);
        assert_eq!(joined, vec![range(0, 9), range(11, 11)]);
    }
}
