//! The names that openraft asks for: what a voter's id, address, entries and answers are.

use std::fmt;
use std::io::Cursor;
use std::net::{Ipv4Addr, SocketAddr};

use redmesh_api::ids::HostId;
use redmesh_api::level::Stamp;
use serde::{Deserialize, Serialize};

use super::command::{Applied, Command};

/// A [`HostId`] as openraft's node id.
///
/// A type of its own, because openraft's conformance suite makes ids from numbers and
/// a host id must not be made so.
#[derive(Clone, Copy, Default, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(transparent)]
pub struct VoterId(pub HostId);

impl fmt::Display for VoterId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(&self.0, f)
    }
}

impl fmt::Debug for VoterId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(&self.0, f)
    }
}

#[cfg(test)]
impl From<u64> for VoterId {
    fn from(id: u64) -> Self {
        Self(HostId(u32::try_from(id).expect("the suite uses small numbers")))
    }
}

/// What the membership records of a voter.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct VoterNode {
    /// Its mesh address when it became a voter; gossip may know a newer one.
    pub addr: SocketAddr,
    /// Its certificate's name.
    pub name: String,
}

impl Default for VoterNode {
    fn default() -> Self {
        Self { addr: SocketAddr::from((Ipv4Addr::UNSPECIFIED, 0)), name: String::new() }
    }
}

/// One log entry's payload: a command, and the coordinator that proposes it.
///
/// In openraft's single-term-leader mode a log id names the term alone, while a stamp
/// names the leader too. Only a leader appends, so the proposer is the term's leader.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Proposal {
    /// Who proposes.
    pub leader: HostId,
    /// What.
    pub command: Command,
}

/// What applying one entry comes to.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Response {
    /// What became of the command.
    pub applied: Applied,
    /// The level's stamp afterwards.
    pub stamp: Stamp,
}

openraft::declare_raft_types!(
    /// openraft's parameters.
    pub TypeConfig:
        D = Proposal,
        R = Response,
        NodeId = VoterId,
        Node = VoterNode,
        Entry = openraft::Entry<TypeConfig>,
        SnapshotData = Cursor<Vec<u8>>,
);

/// A running Raft node.
pub(super) type Raft = openraft::Raft<TypeConfig>;
/// The position of an entry.
pub(super) type LogId = openraft::LogId<VoterId>;
/// One log entry.
pub(super) type Entry = openraft::Entry<TypeConfig>;
/// Whom this node voted for, and in which term.
pub(super) type Vote = openraft::Vote<VoterId>;
/// A membership and where it stands in the log.
pub(super) type StoredMembership = openraft::StoredMembership<VoterId, VoterNode>;
/// What a snapshot holds.
pub(super) type SnapshotMeta = openraft::SnapshotMeta<VoterId, VoterNode>;
/// A snapshot.
pub(super) type Snapshot = openraft::Snapshot<TypeConfig>;
/// An error of the store as openraft knows it: fatal to the node.
pub(super) type StorageError = openraft::StorageError<VoterId>;
