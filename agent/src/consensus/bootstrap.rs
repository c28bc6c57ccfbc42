//! How hosts that know nothing but each other become one mesh, as a pure decision.
//!
//! `bootstrap_expect` hosts must see each other. The one with the lowest id collects a
//! pledge from each of as many hosts, its own first, and then initialises with the
//! lowest ids as voters. This decides the next step only; asking for pledges,
//! initialising and retrying are the caller's.

use std::collections::{BTreeMap, BTreeSet};

use redmesh_api::ids::{HostId, MeshId};

/// Most voters a mesh ever has: five stand two failures, and more only cost time.
pub const VOTERS_MAX: usize = 5;

/// A live host, by its own gossip.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct BootstrapHost {
    /// Its id.
    pub id: HostId,
    /// Its certificate's name.
    pub name: String,
    /// The mesh that it belongs to, once it does.
    pub mesh: Option<MeshId>,
    /// `bootstrap_expect` of its config.
    pub expect: u16,
}

/// What this host is to do next.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum BootstrapStep {
    /// Nothing: the words say for what it waits (to stand after "waiting for").
    Wait(String),
    /// This host is to initialise and lacks the pledges of these hosts (itself among
    /// them, first, if it hasn't pledged to itself).
    CollectPledges {
        /// Whom to ask.
        from: Vec<HostId>,
    },
    /// Another host is to initialise.
    NotMine {
        /// Who.
        initializer: HostId,
    },
    /// All pledges are there: initialise with these voters.
    Initialize {
        /// In the order of their ids.
        voters: Vec<HostId>,
    },
    /// The mesh is initialised: follow it.
    Done {
        /// Which mesh.
        mesh: MeshId,
    },
    /// Hosts of meshes that were initialised apart see each other: the words name them.
    Conflict(String),
}

/// Decides the next step of host `me`, which is one of `live`, as `pledges` are the
/// hosts known to have pledged to it.
pub fn decide(
    me: HostId,
    live: &BTreeMap<HostId, BootstrapHost>,
    pledges: &BTreeSet<HostId>,
) -> BootstrapStep {
    let mut meshes: BTreeMap<MeshId, Vec<&str>> = BTreeMap::new();
    for host in live.values() {
        if let Some(mesh) = host.mesh {
            meshes.entry(mesh).or_default().push(&host.name);
        }
    }
    if meshes.len() > 1 {
        let sides: Vec<_> =
            meshes.iter().map(|(mesh, names)| format!("{mesh} ({})", names.join(", "))).collect();
        return BootstrapStep::Conflict(format!(
            "meshes that were initialised apart don't merge: {}; wipe the state directories of one side",
            sides.join(" and ")
        ));
    }
    if let Some(mesh) = meshes.keys().next() {
        return BootstrapStep::Done { mesh: *mesh };
    }
    let Some(own) = live.get(&me) else {
        return BootstrapStep::Wait("this host to see itself in gossip".to_owned());
    };
    if live.values().any(|host| host.expect != own.expect) {
        let said: Vec<_> = live.values().map(|host| format!("{} says {}", host.name, host.expect)).collect();
        return BootstrapStep::Wait(format!(
            "hosts to agree on mesh.bootstrap_expect: {}; give all the same number",
            said.join(", ")
        ));
    }
    let expect = usize::from(own.expect.max(1));
    if live.len() < expect {
        let names: Vec<_> = live.values().map(|host| host.name.as_str()).collect();
        let missing = expect - live.len();
        let hosts = if missing == 1 { "host" } else { "hosts" };
        return BootstrapStep::Wait(format!(
            "{missing} more {hosts} (have {}; expect {expect})",
            names.join(", ")
        ));
    }
    // `live` is not empty: it holds `me`.
    let initializer = *live.keys().next().unwrap_or(&me);
    if initializer != me {
        return BootstrapStep::NotMine { initializer };
    }
    let pledged: Vec<HostId> = live.keys().copied().filter(|id| pledges.contains(id)).collect();
    if pledged.len() < expect || !pledged.contains(&me) {
        // `me` is the lowest, so it comes first.
        let from = live.keys().copied().filter(|id| !pledges.contains(id)).collect();
        return BootstrapStep::CollectPledges { from };
    }
    BootstrapStep::Initialize { voters: pledged.into_iter().take(voters_wanted(expect)).collect() }
}

/// Voters that `hosts` hosts should have: odd, because an even number stands no more
/// failures than the odd one below it, and at most [`VOTERS_MAX`].
pub fn voters_wanted(hosts: usize) -> usize {
    match hosts.min(VOTERS_MAX) {
        0 => 0,
        few if few % 2 == 0 => few - 1,
        odd => odd,
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;
    use uuid::Uuid;

    use super::*;

    fn hosts(ids: &[u32], expect: u16) -> BTreeMap<HostId, BootstrapHost> {
        let host = |id| BootstrapHost { id: HostId(id), name: format!("host-{id}"), mesh: None, expect };
        ids.iter().map(|id| (HostId(*id), host(*id))).collect()
    }

    fn ids(ids: &[u32]) -> Vec<HostId> {
        ids.iter().copied().map(HostId).collect()
    }

    #[test]
    fn too_few_hosts_wait_in_words() {
        let step = decide(HostId(1), &hosts(&[1, 2], 4), &BTreeSet::new());
        assert_eq!(
            step,
            BootstrapStep::Wait("2 more hosts (have host-1, host-2; expect 4)".to_owned())
        );
        let step = decide(HostId(1), &hosts(&[1, 2, 3], 4), &BTreeSet::new());
        assert!(matches!(step, BootstrapStep::Wait(words) if words.starts_with("1 more host (")));
    }

    #[test]
    fn disagreement_names_who_says_what() {
        let mut live = hosts(&[1, 2], 2);
        live.get_mut(&HostId(2)).unwrap().expect = 3;
        let BootstrapStep::Wait(words) = decide(HostId(1), &live, &BTreeSet::new()) else { panic!() };
        assert!(words.contains("host-1 says 2, host-2 says 3"), "{words}");
    }

    #[test]
    fn the_lowest_collects_then_initializes() {
        let live = hosts(&[3, 5, 7, 9], 3);
        assert_eq!(
            decide(HostId(5), &live, &BTreeSet::new()),
            BootstrapStep::NotMine { initializer: HostId(3) }
        );
        assert_eq!(
            decide(HostId(3), &live, &BTreeSet::new()),
            BootstrapStep::CollectPledges { from: ids(&[3, 5, 7, 9]) }
        );
        let some = BTreeSet::from([HostId(3), HostId(9)]);
        assert_eq!(decide(HostId(3), &live, &some), BootstrapStep::CollectPledges { from: ids(&[5, 7]) });
        let enough = BTreeSet::from([HostId(3), HostId(7), HostId(9)]);
        assert_eq!(decide(HostId(3), &live, &enough), BootstrapStep::Initialize { voters: ids(&[3, 7, 9]) });
        // Enough others are not enough without its own, and the dead don't count.
        let others = BTreeSet::from([HostId(5), HostId(7), HostId(9), HostId(11)]);
        assert_eq!(decide(HostId(3), &live, &others), BootstrapStep::CollectPledges { from: ids(&[3]) });
    }

    #[test]
    fn a_mesh_in_sight_is_followed_and_two_conflict() {
        let mut live = hosts(&[1, 2, 3], 3);
        let mesh = MeshId(Uuid::from_u128(7));
        live.get_mut(&HostId(3)).unwrap().mesh = Some(mesh);
        assert_eq!(decide(HostId(1), &live, &BTreeSet::new()), BootstrapStep::Done { mesh });
        live.get_mut(&HostId(2)).unwrap().mesh = Some(MeshId(Uuid::from_u128(8)));
        let BootstrapStep::Conflict(words) = decide(HostId(1), &live, &BTreeSet::new()) else { panic!() };
        assert!(words.contains("host-2") && words.contains("host-3"), "{words}");
    }

    #[test]
    fn voters_are_odd_and_at_most_five() {
        let wanted: Vec<_> = (0..=8).map(voters_wanted).collect();
        assert_eq!(wanted, [0, 1, 1, 3, 3, 5, 5, 5, 5]);
    }

    proptest! {
        /// Whatever each host sees, two never initialise if pledges are given once and
        /// `expect` is more than half.
        #[test]
        fn two_never_initialize(
            views in prop::collection::vec(prop::collection::btree_set(0u32..7, 0..7), 7),
            given in prop::collection::vec(0u32..7, 7),
        ) {
            let initializers = (0u32..7).filter(|me| {
                let mut seen = views[*me as usize].clone();
                seen.insert(*me);
                let live = hosts(&seen.into_iter().collect::<Vec<_>>(), 4);
                let pledges = (0u32..7).filter(|host| given[*host as usize] == *me).map(HostId).collect();
                matches!(decide(HostId(*me), &live, &pledges), BootstrapStep::Initialize { .. })
            });
            prop_assert!(initializers.count() <= 1);
        }
    }
}
