//! A host's promise, kept on disk, to let one host and no other initialise the mesh.
//!
//! `initialize` must happen once in a mesh's life. The initializer needs the pledges of
//! `expect` hosts, its own among them, and `expect` is more than half of all hosts.
//!
//! Hosts that start one after another may pledge to different initializers, so that
//! none has enough. A pledge may therefore move, but only downwards, and only away from
//! a host that can't use it any more:
//!
//! - a candidate (pledged to itself, not initialised) may move to a lower id: by that it
//!   gives up for good, since it can't initialise without its own pledge and no pledge
//!   moves up again;
//! - a host pledged to another may follow that one to whom it gave up.
//!
//! So of two initializers' majorities the host that is in both has moved, and the one
//! that it moved from had given up before.

use redmesh_api::ids::HostId;
use serde::{Deserialize, Serialize};

/// The promise.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Pledge {
    /// Who may initialise.
    pub to: HostId,
    /// Its name, for people.
    pub to_name: String,
    /// Hosts that it waits for.
    pub expect: u16,
    /// Hosts whose pledges it holds already: the candidates among them have given up.
    /// Part of the request only.
    pub holds: Vec<HostId>,
}

/// The answer to a request for a pledge.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub enum PledgeReply {
    /// Given, now or before.
    Pledged,
    /// Refused: given to another.
    PledgedToAnother {
        /// To whom.
        to: HostId,
        /// Its name.
        to_name: String,
    },
    /// Refused: this host belongs to an initialised mesh.
    Initialized,
}

/// Answers `asked` on behalf of the uninitialised host `me`, which has given `given`.
/// [`PledgeReply::Pledged`] means that `asked` is to be kept in its place.
pub(super) fn answer(me: HostId, given: Option<&Pledge>, asked: &Pledge) -> PledgeReply {
    let Some(given) = given else { return PledgeReply::Pledged };
    let gave_up = given.to == me || asked.holds.contains(&given.to);
    if given.to == asked.to || (asked.to < given.to && gave_up) {
        PledgeReply::Pledged
    } else {
        PledgeReply::PledgedToAnother { to: given.to, to_name: given.to_name.clone() }
    }
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;

    use proptest::prelude::*;

    use super::*;

    fn pledge(to: u32, holds: &[u32]) -> Pledge {
        let holds = holds.iter().copied().map(HostId).collect();
        Pledge { to: HostId(to), to_name: format!("host-{to}"), expect: 3, holds }
    }

    fn given(me: u32, given: u32, asked: &Pledge) -> bool {
        answer(HostId(me), Some(&pledge(given, &[])), asked) == PledgeReply::Pledged
    }

    #[test]
    fn the_first_is_given_and_the_same_again_is_no_error() {
        assert_eq!(answer(HostId(9), None, &pledge(5, &[])), PledgeReply::Pledged);
        assert!(given(9, 5, &pledge(5, &[])));
        let refused = PledgeReply::PledgedToAnother { to: HostId(5), to_name: "host-5".to_owned() };
        assert_eq!(answer(HostId(9), Some(&pledge(5, &[])), &pledge(3, &[])), refused);
    }

    #[test]
    fn it_moves_down_only_and_only_from_one_that_gave_up() {
        assert!(given(5, 5, &pledge(3, &[])));
        assert!(!given(5, 5, &pledge(7, &[])));
        assert!(given(9, 5, &pledge(3, &[5])));
        assert!(!given(9, 5, &pledge(3, &[4])));
        assert!(!given(9, 5, &pledge(7, &[5])));
        // Having given up, it can't be a candidate again.
        assert!(!given(5, 3, &pledge(5, &[3])));
    }

    const HOSTS: u32 = 5;
    const EXPECT: usize = 3;

    proptest! {
        /// Candidates ask in any order, requests are served late, and whoever holds enough
        /// initialises: never two.
        #[test]
        fn two_never_initialize(
            steps in prop::collection::vec((0..HOSTS, 0..HOSTS, any::<bool>()), 0..200),
        ) {
            let mut pledges: Vec<Option<Pledge>> = vec![None; HOSTS as usize];
            let mut held: Vec<BTreeSet<u32>> = vec![BTreeSet::new(); HOSTS as usize];
            let mut late: Vec<(u32, Pledge)> = Vec::new();
            let mut initialized = BTreeSet::new();
            for (candidate, host, at_once) in steps {
                let holds: Vec<_> = held[candidate as usize].iter().copied().collect();
                late.push((host, pledge(candidate, &holds)));
                // A request overtakes those before it, or the oldest arrives.
                let (host, asked) = if at_once { late.pop().unwrap() } else { late.remove(0) };
                if initialized.contains(&host) {
                    continue;
                }
                let own = &mut pledges[host as usize];
                if answer(HostId(host), own.as_ref(), &asked) == PledgeReply::Pledged {
                    held[asked.to.0 as usize].insert(host);
                    *own = Some(asked.clone());
                }
                let candidate = asked.to.0;
                let own = pledges[candidate as usize].as_ref();
                if held[candidate as usize].len() >= EXPECT && own.is_some_and(|own| own.to.0 == candidate) {
                    initialized.insert(candidate);
                }
                prop_assert!(initialized.len() <= 1);
            }
        }
    }
}
