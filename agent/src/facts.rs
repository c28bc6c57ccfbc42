//! What a host says of itself by gossip: typed values under fixed keys.
//!
//! Values are small JSON texts (the mesh bounds them); whatever is large travels by
//! request instead.

use std::collections::BTreeSet;
use std::net::{IpAddr, SocketAddr};

use redmesh_api::ids::{HostId, MeshId, PlanId, RunId};
use redmesh_api::level::{PlanStage, Stamp};
use redmesh_api::run::{Counts, Tally};
use serde::{Deserialize, Serialize};

use crate::mesh::MeshMember;

/// Key of [`HostFacts`].
pub const HOST: &str = "host";
/// Key of [`LeadFacts`].
pub const LEAD: &str = "lead";
/// Key of [`Observed`].
pub const OBSERVED: &str = "observed";
/// Prefix of the keys of [`ShareCounts`]; the run's UUID follows.
pub const RUN_PREFIX: &str = "run/";

/// Problems that one host gossips at the most; its own status has them all.
pub const PROBLEMS_MAX: usize = 4;

/// Longest text of one gossiped problem, bytes.
pub const PROBLEM_BYTES_MAX: usize = 600;

/// What does not change while an agent lives.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct HostFacts {
    /// The certificate's name.
    pub name: String,
    /// The agent's version.
    pub version: String,
    /// Where it serves `/metrics`.
    pub http: Option<SocketAddr>,
    /// Address of its instances.
    pub redis_ip: IpAddr,
    /// Port of its first instance.
    pub base_port: u16,
    /// Its `mesh.bootstrap_expect`.
    pub bootstrap_expect: u16,
}

/// Who leads, as one host knows it; the newest term counts.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct LeadFacts {
    /// The mesh that it belongs to.
    pub mesh: Option<MeshId>,
    /// Raft term.
    pub term: u64,
    /// The coordinator, while this very host is it and its quorum is fresh.
    pub acting: bool,
    /// Voters of the term, said by the coordinator alone.
    pub voters: BTreeSet<HostId>,
    /// Newest level seen.
    pub stamp: Stamp,
}

/// How far this host has reconciled.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Observed {
    /// The plan and its stage that the figures below belong to.
    pub plan: Option<(PlanId, PlanStage)>,
    /// Instances planned here.
    pub planned: u32,
    /// Held (bus port listening), in stage Prepare.
    pub held: u32,
    /// Running and answering.
    pub up: u32,
    /// Whose view is whole.
    pub agreed: u32,
    /// First few instances that aren't where they should be: why, and the remedy.
    pub problems: Vec<String>,
    /// A run of which this host can't bear its share, and why.
    pub share_lost: Option<(RunId, String)>,
}

impl Observed {
    /// Adds a problem if there is room, cut to its bound.
    pub fn add_problem(&mut self, text: impl Into<String>) {
        if self.problems.len() < PROBLEMS_MAX {
            let mut text: String = text.into();
            if text.len() > PROBLEM_BYTES_MAX {
                text.truncate(text.floor_char_boundary(PROBLEM_BYTES_MAX));
                text.push('…');
            }
            self.problems.push(text);
        }
    }
}

/// Counts of this host's share of one run: an entry per epoch, in order.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct ShareCounts {
    /// `(epoch, closed, counts)`.
    pub epochs: Vec<(u32, bool, Counts)>,
}

impl ShareCounts {
    /// The same as tallies of `host`.
    pub fn tallies(self, host: HostId) -> impl Iterator<Item = Tally> {
        self.epochs.into_iter().map(move |(epoch, closed, counts)| Tally { host, epoch, closed, counts })
    }
}

/// Gossip key of a run's counts.
pub fn run_key(run: RunId) -> String {
    format!("{RUN_PREFIX}{}", run.0)
}

/// All sightings of `member`'s counts of `run`, those of its earlier lives included;
/// to be merged by [`crate::stats::aggregate`].
pub fn tallies_of(member: &MeshMember, run: RunId) -> Vec<Tally> {
    let counts = member.get_all::<ShareCounts>(&run_key(run)).into_iter();
    counts.flat_map(|counts| counts.tallies(member.id)).collect()
}
