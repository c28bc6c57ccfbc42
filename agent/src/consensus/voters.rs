//! Which hosts should vote, as a pure decision.
//!
//! The caller (the coordinator) carries it out one change at a time and asks again.

use std::collections::{BTreeMap, BTreeSet};
use std::time::{Duration, Instant};

use redmesh_api::ids::HostId;

use super::bootstrap::voters_wanted;

/// Default time for which a voter must have been dead before another takes its place,
/// and a host alive before it adds to the voters.
pub const STABILISATION: Duration = Duration::from_secs(30);

/// What the failure detector says of a host.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct HostState {
    /// Whether it is alive.
    pub alive: bool,
    /// Since when it has been so (or has been watched, if that is shorter).
    pub since: Instant,
}

/// The voters once the host `gone` is none any more: another live host takes its place, if
/// there is one.
///
/// # Errors
/// In words, where no majority of them would be alive.
pub fn voters_without(
    voters: &BTreeSet<HostId>,
    gone: HostId,
    alive: &BTreeSet<HostId>,
) -> Result<BTreeSet<HostId>, String> {
    let mut next: BTreeSet<_> = voters.iter().copied().filter(|id| *id != gone).collect();
    let substitute = alive.iter().find(|id| **id != gone && !voters.contains(id));
    next.extend(substitute.filter(|_| next.len() < voters.len()));
    let live = next.iter().filter(|id| alive.contains(id)).count();
    if live * 2 <= next.len() {
        return Err(format!("{live} of the {} hosts that would then vote are alive", next.len()));
    }
    Ok(next)
}

/// The set that `voters` should be replaced by, if by any, as of `now`.
///
/// First, the lowest voter dead for `stabilisation` gives way to the lowest live host
/// that doesn't vote. Else the voters grow to [`voters_wanted`] of the live hosts. A
/// voter that `hosts` doesn't know was dead for so long that gossip forgot it. Never
/// shrinks, and never proposes a set of which no majority is alive.
pub fn replace_voters(
    voters: &BTreeSet<HostId>,
    hosts: &BTreeMap<HostId, HostState>,
    now: Instant,
    stabilisation: Duration,
) -> Option<BTreeSet<HostId>> {
    let alive = |id: &HostId| hosts.get(id).is_some_and(|host| host.alive);
    let settled = |host: &HostState| now.saturating_duration_since(host.since) >= stabilisation;
    let majority = |set: &BTreeSet<HostId>| set.iter().filter(|id| alive(id)).count() * 2 > set.len();
    // Without a majority of the present ones no change can be committed.
    if !majority(voters) {
        return None;
    }
    let gone = voters.iter().find(|id| hosts.get(id).is_none_or(|host| !host.alive && settled(host)));
    let substitute = hosts.iter().find(|(id, host)| host.alive && !voters.contains(id));
    if let (Some(gone), Some((substitute, _))) = (gone, substitute) {
        let mut next = voters.clone();
        next.remove(gone);
        next.insert(*substitute);
        return Some(next);
    }
    let wanted = voters_wanted(hosts.values().filter(|host| host.alive).count());
    let mut next = voters.clone();
    let candidates = hosts.iter().filter(|(id, host)| host.alive && settled(host) && !voters.contains(id));
    next.extend(candidates.map(|(id, _)| *id).take(wanted.saturating_sub(voters.len())));
    (next.len() == wanted && next.len() > voters.len() && majority(&next)).then_some(next)
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    const LONG: Duration = Duration::from_secs(60);

    struct World {
        now: Instant,
        hosts: BTreeMap<HostId, HostState>,
    }

    impl World {
        fn new(alive: &[u32], dead: &[u32]) -> Self {
            let since = Instant::now();
            let state = |alive| HostState { alive, since };
            let alive = alive.iter().map(|id| (HostId(*id), state(true)));
            let dead = dead.iter().map(|id| (HostId(*id), state(false)));
            Self { now: since + LONG, hosts: alive.chain(dead).collect() }
        }

        fn decide(&self, voters: &[u32]) -> Option<Vec<u32>> {
            let next = replace_voters(&set(voters), &self.hosts, self.now, STABILISATION)?;
            Some(next.into_iter().map(|id| id.0).collect())
        }
    }

    fn set(ids: &[u32]) -> BTreeSet<HostId> {
        ids.iter().copied().map(HostId).collect()
    }

    #[test]
    fn a_removed_voter_gives_way_unless_that_leaves_no_majority() {
        let without = |voters: &[u32], gone, alive: &[u32]| {
            voters_without(&set(voters), HostId(gone), &set(alive))
                .map(|next| next.into_iter().map(|id| id.0).collect::<Vec<_>>())
        };
        assert_eq!(without(&[1, 2, 3], 2, &[1, 2, 3, 4]), Ok(vec![1, 3, 4]));
        assert_eq!(without(&[1, 2, 3], 2, &[1, 3]), Ok(vec![1, 3]), "nobody else is there");
        assert_eq!(without(&[1, 2, 3], 4, &[1, 2, 3, 4, 5]), Ok(vec![1, 2, 3]), "it doesn't vote");
        let words = without(&[1, 2, 3], 2, &[1, 2]).unwrap_err();
        assert!(words.contains("1 of the 2 hosts"), "{words}");
        assert!(without(&[1], 1, &[1]).is_err());
    }

    #[test]
    fn a_healthy_set_stays() {
        assert_eq!(World::new(&[1, 2, 3, 4], &[]).decide(&[1, 2, 3]), None);
    }

    #[test]
    fn a_dead_voter_is_replaced_after_a_while() {
        let mut world = World::new(&[1, 3, 4, 5], &[2]);
        assert_eq!(world.decide(&[1, 2, 3]), Some(vec![1, 3, 4]));
        world.now -= LONG / 2 + Duration::from_secs(1);
        assert_eq!(world.decide(&[1, 2, 3]), None);
    }

    #[test]
    fn one_at_a_time() {
        assert_eq!(World::new(&[1, 2, 3, 6, 7], &[4, 5]).decide(&[1, 2, 3, 4, 5]), Some(vec![1, 2, 3, 5, 6]));
    }

    #[test]
    fn a_forgotten_voter_is_replaced() {
        assert_eq!(World::new(&[1, 3, 4], &[]).decide(&[1, 2, 3]), Some(vec![1, 3, 4]));
    }

    #[test]
    fn grows_with_the_hosts() {
        assert_eq!(World::new(&[1, 2, 3, 4, 5], &[]).decide(&[2, 3, 4]), Some(vec![1, 2, 3, 4, 5]));
        assert_eq!(World::new(&[1, 2], &[]).decide(&[1]), None);
    }

    #[test]
    fn nothing_without_a_majority_or_a_substitute() {
        assert_eq!(World::new(&[1, 4, 5], &[2, 3]).decide(&[1, 2, 3]), None);
        assert_eq!(World::new(&[1, 3], &[2]).decide(&[1, 2, 3]), None);
    }

    proptest! {
        #[test]
        fn keeps_a_live_majority_and_never_shrinks(
            voters in prop::collection::btree_set(0u32..9, 1..6),
            alive in prop::collection::btree_set(0u32..9, 0..9),
        ) {
            let dead: Vec<_> = (0..9).filter(|id| !alive.contains(id)).collect();
            let alive: Vec<_> = alive.into_iter().collect();
            let voters: Vec<_> = voters.into_iter().collect();
            if let Some(next) = World::new(&alive, &dead).decide(&voters) {
                prop_assert!(next.len() >= voters.len());
                prop_assert!(next.iter().filter(|id| alive.contains(id)).count() * 2 > next.len());
                // A quorum of the old meets a quorum of the new: openraft's joint change needs none of it,
                // yet one replaced voter at a time keeps every step small.
                prop_assert!(voters.iter().filter(|id| !next.contains(id)).count() <= 1);
            }
        }
    }
}
