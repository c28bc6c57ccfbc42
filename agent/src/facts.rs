//! What a host says of itself by gossip: typed values under fixed keys.
//!
//! Values are small JSON texts (the mesh bounds them); whatever is large travels by
//! request instead.

use std::collections::BTreeSet;
use std::net::{IpAddr, SocketAddr};

use redmesh_api::control::SecretState;
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
/// Prefix of the keys of [`ShareCounts`]; the run's UUID follows, and a number from the second on.
pub const RUN_PREFIX: &str = "run/";

/// Entries under one of a run's keys: what a gossiped value has room for, whatever their counts.
pub const EPOCHS_A_KEY: usize = 32;

/// Keys of one run, so entries of one host: shares by lives of its agent.
pub const RUN_KEYS_MAX: usize = 16;

/// Problems that one host gossips at the most; its own status has them all.
pub const PROBLEMS_MAX: usize = 4;

/// Shares of one run that one host gossips as lost at the most.
pub const SHARES_LOST_MAX: usize = 100;

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
    /// Whether it can sign for others.
    #[serde(default)]
    pub signs: bool,
    /// Whether its instances speak TLS, and it to all.
    #[serde(default)]
    pub redis_tls: bool,
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
    /// Shares of a run that this host can't bear, and why.
    pub share_lost: Option<ShareLost>,
    /// Why it can't take a level that it was given.
    pub level_lost: Option<String>,
    /// Removed hosts whose nodes none of its instances knows any more.
    pub forgotten: Vec<HostId>,
    /// Why it does not have such a node forgotten.
    pub withheld: Option<String>,
    /// Which secrets of the redis-servers' passwords are good here; `None` where they have none.
    pub secrets: Option<SecretState>,
}

/// Shares that their host can't bear.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct ShareLost {
    /// Of which run.
    pub run: RunId,
    /// Which, by index; the first [`SHARES_LOST_MAX`].
    pub shares: Vec<u16>,
    /// Why the first can't be borne.
    pub reason: String,
}

impl ShareLost {
    /// Whether `share` of `run` is among them.
    pub fn has(&self, run: RunId, share: u16) -> bool {
        self.run == run && self.shares.contains(&share)
    }
}

/// `text` cut to [`PROBLEM_BYTES_MAX`].
pub fn cut(mut text: String) -> String {
    if text.len() > PROBLEM_BYTES_MAX {
        text.truncate(text.floor_char_boundary(PROBLEM_BYTES_MAX));
        text.push('…');
    }
    text
}

impl Observed {
    /// Adds a problem if there is room, cut to its bound.
    pub fn add_problem(&mut self, text: impl Into<String>) {
        if self.problems.len() < PROBLEMS_MAX {
            self.problems.push(cut(text.into()));
        }
    }
}

/// Counts of this host's shares of one run: an entry per share and epoch, at most
/// [`EPOCHS_A_KEY`].
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct ShareCounts {
    /// In the order of shares, and of epochs within each.
    pub epochs: Vec<EpochCounts>,
}

/// Counts of one epoch of one share.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(from = "PackedCounts", into = "PackedCounts")]
pub struct EpochCounts {
    /// Index of the share in the run.
    pub share: u16,
    /// Which life of the agent.
    pub epoch: u32,
    /// See [`Tally::closed`].
    pub closed: bool,
    /// The counts.
    pub counts: Counts,
}

/// The same in few bytes: counts as numbers in a fixed order, zeros at the end left out.
/// They are gossiped several times a second, one entry for every life of the agent.
#[derive(Serialize, Deserialize)]
struct PackedCounts(u16, u32, bool, Vec<u64>);

impl From<EpochCounts> for PackedCounts {
    fn from(EpochCounts { share, epoch, closed, counts }: EpochCounts) -> Self {
        let mut words = counts.to_words().to_vec();
        let used = words.iter().rposition(|word| *word > 0).map_or(0, |last| last + 1);
        words.truncate(used);
        Self(share, epoch, closed, words)
    }
}

impl From<PackedCounts> for EpochCounts {
    fn from(PackedCounts(share, epoch, closed, words): PackedCounts) -> Self {
        let word = |at: usize| words.get(at).copied().unwrap_or(0);
        let counts = Counts::from_words(std::array::from_fn(word));
        Self { share, epoch, closed, counts }
    }
}

impl ShareCounts {
    /// The same as tallies of `host`.
    pub fn tallies(self, host: HostId) -> impl Iterator<Item = Tally> {
        self.epochs.into_iter().map(move |EpochCounts { share, epoch, closed, counts }| Tally {
            host,
            share,
            epoch,
            closed,
            counts,
        })
    }
}

/// Gossip keys of a run's counts, in the order in which they are filled.
pub fn run_keys(run: RunId) -> impl Iterator<Item = String> {
    (0..RUN_KEYS_MAX).map(move |n| match n {
        0 => format!("{RUN_PREFIX}{}", run.0),
        n => format!("{RUN_PREFIX}{}/{n}", run.0),
    })
}

/// All sightings of `member`'s counts of `run`, those of its earlier lives included;
/// to be merged by [`crate::stats::aggregate`].
pub fn tallies_of(member: &MeshMember, run: RunId) -> Vec<Tally> {
    let counts = run_keys(run).flat_map(|key| member.get_all::<ShareCounts>(&key));
    counts.flat_map(|counts| counts.tallies(member.id)).collect()
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    proptest! {
        #[test]
        fn packed_counts_come_back(share: u16, epoch: u32, closed: bool, words: [u64; 12]) {
            let counts = Counts {
                issued: words[0],
                acked: words[1],
                failed: words[2],
                unknown: words[3],
                moved: words[4],
                asked: words[5] % 2,
                retried: words[6],
                cpu_us: words[7],
                active_us: words[8],
                missed: words[9],
                warm_acked: words[10] % 2,
                warm_us: words[11] % 2,
            };
            let said = ShareCounts { epochs: vec![EpochCounts { share, epoch, closed, counts }] };
            let json = serde_json::to_string(&said).expect("JSON");
            prop_assert_eq!(serde_json::from_str::<ShareCounts>(&json).expect("the same"), said);
        }
    }

    #[test]
    fn a_plain_epoch_takes_few_bytes() {
        let counts = Counts { issued: 1_000_000, acked: 999_000, active_us: 5_000_000, ..Counts::default() };
        let said = ShareCounts { epochs: vec![EpochCounts { share: 3, epoch: 1, closed: false, counts }] };
        let json = serde_json::to_string(&said).expect("JSON");
        assert_eq!(json, r#"{"epochs":[[3,1,false,[1000000,999000,5000000]]]}"#);
    }
}
