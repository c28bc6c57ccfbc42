//! Consensus of a few hosts on what the whole mesh wants: openraft over [`Transport`],
//! kept in redb.
//!
//! Every host runs a node; until a mesh is initialised, or the host becomes a voter,
//! the node only waits. The leader is the coordinator. This module decides nothing by
//! itself: it neither initialises a mesh nor changes its voters unless told to, so that
//! both happen in one place; [`bootstrap`] and [`voters`] hold the pure decisions.

pub mod bootstrap;
mod command;
mod elections;
mod leadership;
pub mod machine;
mod network;
mod pledge;
mod store;
mod types;
pub mod voters;

use std::collections::{BTreeMap, BTreeSet};
use std::fmt;
use std::path::PathBuf;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use bytes::Bytes;
use openraft::error::{
    ChangeMembershipError, CheckIsLeaderError, ClientWriteError, InitializeError, RaftError,
};
use openraft::{ChangeMembers, Config, SnapshotPolicy};
use redmesh_api::codec::{self, CodecError};
use redmesh_api::ids::HostId;
use redmesh_api::level::{Level, Stamp};
use tokio::sync::{Mutex as AsyncMutex, watch};
use tokio::task::JoinHandle;
use tokio::time::{Instant, timeout, timeout_at};
use tokio_util::sync::CancellationToken;

use crate::disk::Disk;
use crate::transport::Transport;

pub use command::{Applied, Command};
pub use leadership::Leadership;
pub use machine::would_apply;
pub use network::Resolve;
pub use pledge::{Pledge, PledgeReply};
pub use store::{FILE_NAME, StoreError};
pub use types::VoterNode;

use network::{Links, RaftRequest, RaftRpc, RaftRpcReply};
use store::{LogStore, MachineStore, Store};
use types::{Proposal, Raft, VoterId};

/// Default pause between a leader's heartbeats.
pub const HEARTBEAT: Duration = Duration::from_millis(100);
/// Default shortest time by which a voter outwaits the lease before it stands for
/// election.
pub const ELECTION_MIN: Duration = Duration::from_millis(500);
/// Default longest such time, and openraft's leader lease: a voter that heard of the
/// leader within it votes for nobody else. Hence it is also how long a quorum's
/// acknowledgement lets the leader act.
pub const ELECTION_MAX: Duration = Duration::from_millis(1000);
/// A proposal, or a confirmation of leadership, is answered by then.
pub const PROPOSE_DEADLINE: Duration = Duration::from_secs(5);
/// A change of voters is answered by then: new ones have to catch up first.
pub const VOTERS_DEADLINE: Duration = Duration::from_secs(30);
/// A leader that hands over waits no longer for a successor.
pub const HAND_OVER_MAX: Duration = Duration::from_secs(10);
/// Stopping waits no longer than this for openraft's tasks.
const SHUTDOWN_DEADLINE: Duration = Duration::from_secs(5);
/// Applied entries after which the log is folded into a snapshot.
const SNAPSHOT_EVERY_ENTRIES: u64 = 256;
/// Entries kept behind a snapshot, so that a voter a little behind needs no snapshot.
const LOG_KEPT_ENTRIES: u64 = 64;
/// Entries of one append request; its bytes are bounded by the log store besides.
const APPEND_ENTRIES_MAX: u64 = 64;
/// Entries that a new voter may lack when its vote begins to count.
const VOTER_LAG_ENTRIES_MAX: u64 = 16;
/// Bytes of one snapshot request.
const SNAPSHOT_CHUNK_BYTES: u64 = 2 * 1024 * 1024;
/// One snapshot request is answered by then.
const SNAPSHOT_CHUNK_DEADLINE: Duration = Duration::from_secs(5);

/// How to start.
#[derive(Debug, Clone)]
pub struct ConsensusOptions {
    /// This host.
    pub id: HostId,
    /// Its certificate's name.
    pub name: String,
    /// Directory of the store's file; it must exist.
    pub state_dir: PathBuf,
    /// Whether this host is known to belong to a mesh, so that the file must be there.
    pub in_mesh: bool,
    /// The one under the directory.
    pub disk: Disk,
    /// See [`HEARTBEAT`].
    pub heartbeat: Duration,
    /// See [`ELECTION_MIN`]; must exceed the heartbeat.
    pub election_min: Duration,
    /// See [`ELECTION_MAX`]; must exceed `election_min`.
    pub election_max: Duration,
}

impl ConsensusOptions {
    /// Options with the default times.
    pub fn new(id: HostId, name: impl Into<String>, state_dir: impl Into<PathBuf>) -> Self {
        Self {
            id,
            name: name.into(),
            state_dir: state_dir.into(),
            in_mesh: false,
            disk: Disk::default(),
            heartbeat: HEARTBEAT,
            election_min: ELECTION_MIN,
            election_max: ELECTION_MAX,
        }
    }
}

/// Why consensus can't start or be initialised.
#[derive(Debug, thiserror::Error)]
pub enum ConsensusError {
    /// The times don't fit together.
    #[error("heartbeat and election times must grow in this order")]
    Times {
        /// Which don't.
        #[source]
        source: Box<openraft::ConfigError>,
    },
    /// The store.
    #[error("consensus store")]
    Store(#[from] StoreError),
    /// The node stopped, mostly because of its store.
    #[error("the consensus node has stopped: restart the agent")]
    Fatal {
        /// Why.
        #[source]
        source: Box<dyn std::error::Error + Send + Sync>,
    },
    /// [`Consensus::initialize`] on a host that has a log or has voted.
    #[error("this host belongs to an initialised mesh already")]
    AlreadyInitialized,
    /// [`Consensus::initialize`] on a host that has not pledged to itself.
    #[error("this host can't initialise the mesh: {}", .to.map_or_else(
        || "it has not pledged to itself".to_owned(), |to| format!("it has pledged to {to}")
    ))]
    NotPledged {
        /// To whom it has pledged.
        to: Option<HostId>,
    },
    /// [`Consensus::initialize`] with voters of which this host is none.
    #[error("host {me} can't initialise a mesh in which it doesn't vote")]
    NotAVoter {
        /// This host.
        me: HostId,
    },
}

/// Why a leader's operation did not come to its end.
#[derive(Debug, thiserror::Error)]
pub enum ProposeError {
    /// Only the leader can.
    #[error("this host is not the coordinator{}", .leader.map(|id| format!(", {id} is")).unwrap_or_default())]
    NotLeader {
        /// Who is, if known.
        leader: Option<HostId>,
    },
    /// This host leads, but no quorum of voters answers. Nothing was appended, or it may
    /// still be committed later.
    #[error("no majority of the voters answers: bring hosts back or mend the network")]
    NoQuorum,
    /// No answer in time; the command may still be committed later, so ask the level.
    #[error("not committed within {} ms", .after.as_millis())]
    Timeout {
        /// The deadline.
        after: Duration,
    },
    /// The change of voters can't begin.
    #[error("can't change the voters: {reason}")]
    Voters {
        /// Why.
        reason: String,
    },
    /// The node stopped, mostly because of its store.
    #[error("the consensus node has stopped: restart the agent")]
    Fatal {
        /// Why.
        #[source]
        source: Box<dyn std::error::Error + Send + Sync>,
    },
}

/// One host's part in the consensus. Cheap to clone.
#[derive(Clone)]
pub struct Consensus {
    inner: Arc<Inner>,
}

struct Inner {
    id: HostId,
    raft: Raft,
    store: Store,
    levels: watch::Receiver<Arc<Level>>,
    leadership: watch::Receiver<Leadership>,
    quorum_wait: Duration,
    /// Held while this host initialises or pledges: neither may overtake the other.
    bootstrap: AsyncMutex<()>,
    cancel: CancellationToken,
    /// What watches the node.
    watchers: Mutex<Vec<JoinHandle<()>>>,
}

impl fmt::Debug for Consensus {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Consensus")
            .field("id", &self.inner.id)
            .field("leadership", &*self.inner.leadership.borrow())
            .finish_non_exhaustive()
    }
}

impl Consensus {
    /// Opens the store and starts the node, which goes on where it stopped. `resolve`
    /// gives a host's present address; without one the membership's is used.
    pub async fn start(
        options: ConsensusOptions,
        transport: Arc<dyn Transport>,
        resolve: Resolve,
    ) -> Result<Self, ConsensusError> {
        let id = options.id;
        let config = config(&options).map_err(|source| ConsensusError::Times { source })?;
        let store = Store::open(&options.state_dir, options.in_mesh, options.disk).await?;
        let machine = MachineStore::open(store.clone()).await?;
        let levels = machine.levels();
        let links = Links { transport, resolve };
        let raft = Raft::new(VoterId(id), Arc::new(config), links, LogStore::new(store.clone()), machine)
            .await
            .map_err(|source| ConsensusError::Fatal { source: Box::new(source) })?;
        let stamp = levels.borrow().stamp;
        tracing::info!(host = %id, name = options.name, level = %stamp, "consensus node started");
        let (sender, leadership) = watch::channel(Leadership::default());
        let cancel = CancellationToken::new();
        let follower = leadership::follow(raft.metrics(), sender, options.election_max, cancel.clone());
        let put_off = options.election_min..options.election_min + options.election_max;
        let elections = elections::stagger(raft.clone(), put_off, cancel.clone());
        let watchers = Mutex::new(vec![tokio::spawn(follower), tokio::spawn(elections)]);
        let quorum_wait = options.election_max;
        let inner = Inner {
            id,
            raft,
            store,
            levels,
            leadership,
            quorum_wait,
            bootstrap: AsyncMutex::new(()),
            cancel,
            watchers,
        };
        Ok(Self { inner: Arc::new(inner) })
    }

    /// The level that this host's own node has applied. Hosts that don't vote stay at
    /// `Level::default()`, or at what was applied when they last voted.
    pub fn level(&self) -> watch::Receiver<Arc<Level>> {
        self.inner.levels.clone()
    }

    /// Who leads, and whether this host may act.
    pub fn leadership(&self) -> watch::Receiver<Leadership> {
        self.inner.leadership.clone()
    }

    /// Commits `command` and applies it here. The stamp is the level's afterwards. A
    /// command whose answer was lost may be proposed again.
    pub async fn propose(&self, command: Command) -> Result<(Applied, Stamp), ProposeError> {
        let deadline = Instant::now() + PROPOSE_DEADLINE;
        self.await_quorum().await?;
        let proposal = Proposal { leader: self.inner.id, command };
        // An entry that no request can carry would block all that follow it.
        let bytes = codec::encode(&proposal).map_or(usize::MAX, |payload| payload.len());
        if bytes > machine::LEVEL_BYTES_MAX {
            let reason = format!(
                "a command of {bytes} bytes, at most {} are allowed: use fewer instances",
                machine::LEVEL_BYTES_MAX
            );
            return Ok((Applied::Rejected(reason), self.inner.levels.borrow().stamp));
        }
        match timeout_at(deadline, self.inner.raft.client_write(proposal)).await {
            Ok(Ok(response)) => Ok((response.data.applied, response.data.stamp)),
            Ok(Err(error)) => Err(write_error(error)),
            Err(_) => Err(self.late(PROPOSE_DEADLINE)),
        }
    }

    /// Makes sure, by asking a quorum now, that this host leads and has applied all that
    /// was committed before: to be called before what can't be undone. Returns the
    /// level's stamp.
    pub async fn confirm_leadership(&self) -> Result<Stamp, ProposeError> {
        let deadline = Instant::now() + PROPOSE_DEADLINE;
        self.await_quorum().await?;
        match timeout_at(deadline, self.inner.raft.ensure_linearizable()).await {
            Ok(Ok(_)) => Ok(self.inner.levels.borrow().stamp),
            Ok(Err(RaftError::APIError(CheckIsLeaderError::ForwardToLeader(forward)))) => {
                Err(ProposeError::NotLeader { leader: forward.leader_id.map(|leader| leader.0) })
            }
            Ok(Err(RaftError::APIError(CheckIsLeaderError::QuorumNotEnough(_)))) => {
                Err(ProposeError::NoQuorum)
            }
            Ok(Err(RaftError::Fatal(source))) => Err(ProposeError::Fatal { source: Box::new(source) }),
            Err(_) => Err(self.late(PROPOSE_DEADLINE)),
        }
    }

    /// Begins a mesh with these voters, of which this host must be one. Once in a mesh's
    /// life, on one host: the caller has collected enough pledges to make sure of it,
    /// the first of them this host's own, which is checked.
    pub async fn initialize(&self, voters: BTreeMap<HostId, VoterNode>) -> Result<(), ConsensusError> {
        let _bootstrapping = self.inner.bootstrap.lock().await;
        let to = self.inner.store.pledged().await?.map(|pledge| pledge.to);
        if to != Some(self.inner.id) && !self.is_initialized().await? {
            return Err(ConsensusError::NotPledged { to });
        }
        match self.inner.raft.initialize(raft_nodes(voters)).await {
            Ok(()) => Ok(()),
            Err(RaftError::APIError(InitializeError::NotAllowed(_))) => {
                Err(ConsensusError::AlreadyInitialized)
            }
            Err(RaftError::APIError(InitializeError::NotInMembers(_))) => {
                Err(ConsensusError::NotAVoter { me: self.inner.id })
            }
            Err(RaftError::Fatal(source)) => Err(ConsensusError::Fatal { source: Box::new(source) }),
        }
    }

    /// Whether this host has a log or has voted, that is, belongs to a mesh.
    pub async fn is_initialized(&self) -> Result<bool, ConsensusError> {
        let initialized = self.inner.raft.is_initialized().await;
        initialized.map_err(|source| ConsensusError::Fatal { source: Box::new(source) })
    }

    /// Makes `voters` the voters: new ones catch up first, then the whole set changes at
    /// once, then whoever is no longer among them is dropped. Within
    /// [`VOTERS_DEADLINE`]; after an error it may be repeated.
    pub async fn set_voters(&self, voters: BTreeMap<HostId, VoterNode>) -> Result<(), ProposeError> {
        let deadline = Instant::now() + VOTERS_DEADLINE;
        self.await_quorum().await?;
        match timeout_at(deadline, self.change_voters(voters)).await {
            Ok(result) => result,
            Err(_) => Err(self.late(VOTERS_DEADLINE)),
        }
    }

    async fn change_voters(&self, voters: BTreeMap<HostId, VoterNode>) -> Result<(), ProposeError> {
        let raft = &self.inner.raft;
        let members: BTreeSet<VoterId> = membership(raft).nodes().map(|(id, _)| *id).collect();
        let goal: BTreeSet<VoterId> = voters.keys().map(|id| VoterId(*id)).collect();
        for (id, node) in raft_nodes(voters) {
            // One that is a member already may still be catching up from an earlier try.
            if !members.contains(&id) || !membership(raft).voter_ids().any(|voter| voter == id) {
                raft.add_learner(id, node, true).await.map_err(write_error)?;
            }
        }
        raft.change_membership(ChangeMembers::ReplaceAllVoters(goal.clone()), false)
            .await
            .map_err(write_error)?;
        // Learners that an earlier, failed change left behind.
        let left: BTreeSet<VoterId> =
            membership(raft).nodes().map(|(id, _)| *id).filter(|id| !goal.contains(id)).collect();
        if !left.is_empty() {
            raft.change_membership(ChangeMembers::RemoveNodes(left), false).await.map_err(write_error)?;
        }
        Ok(())
    }

    /// Gives leadership up: returns once another voter leads. This host falls silent until
    /// then, which to the others is a network that fails: whoever of them has all that was
    /// committed is elected, as ever. (openraft 0.9 has no transfer of leadership, and a voter
    /// that was asked to stand at once would be refused by all whose lease still runs.)
    ///
    /// # Errors
    /// [`ProposeError`] where this host does not lead, nobody else votes, or nobody was
    /// elected within [`HAND_OVER_MAX`]; it then leads as before, if it still can.
    pub async fn hand_over(&self) -> Result<(), ProposeError> {
        let me = self.inner.id;
        let mut leadership = self.inner.leadership.clone();
        let now = leadership.borrow().clone();
        if now.leader != Some(me) {
            return Err(ProposeError::NotLeader { leader: now.leader });
        }
        if !now.voters.iter().any(|voter| *voter != me) {
            return Err(ProposeError::Voters { reason: "no other host votes".to_owned() });
        }
        tracing::info!("handing leadership over");
        let _silent = Silence::begin(&self.inner.raft);
        let succeeded = leadership.wait_for(|now| now.leader.is_some_and(|leader| leader != me));
        match timeout(HAND_OVER_MAX, succeeded).await {
            Ok(Ok(_)) => Ok(()),
            Ok(Err(_)) => Err(ProposeError::Fatal { source: "it was shut down".into() }),
            Err(_) => Err(ProposeError::Timeout { after: HAND_OVER_MAX }),
        }
    }

    /// Serves one request on [`codec::Channel::Raft`]; the caller has made sure that it
    /// comes from an agent.
    pub async fn handle(&self, payload: Bytes) -> Result<Vec<u8>, CodecError> {
        let raft = &self.inner.raft;
        let RaftRequest { to, rpc } = codec::decode(&payload)?;
        let reply = match rpc {
            _ if to != self.inner.id => RaftRpcReply::NotMe(self.inner.id),
            RaftRpc::Append(rpc) => RaftRpcReply::Append(raft.append_entries(rpc).await),
            RaftRpc::Vote(rpc) => RaftRpcReply::Vote(raft.vote(rpc).await),
            RaftRpc::Snapshot(rpc) => RaftRpcReply::Snapshot(raft.install_snapshot(rpc).await),
        };
        codec::encode(&reply)
    }

    /// Promises to let `pledge.to`, and nobody else, initialise the mesh; on disk when
    /// this returns. The same promise again is no error, and it may move to a
    /// lower id from a host that gave up its own candidacy ([`Pledge::holds`]).
    pub async fn pledge(&self, pledge: &Pledge) -> Result<PledgeReply, ConsensusError> {
        let _bootstrapping = self.inner.bootstrap.lock().await;
        if self.is_initialized().await? {
            return Ok(PledgeReply::Initialized);
        }
        Ok(self.inner.store.pledge(self.inner.id, pledge.clone()).await?)
    }

    /// The promise given, if any.
    pub async fn pledged(&self) -> Result<Option<Pledge>, ConsensusError> {
        Ok(self.inner.store.pledged().await?)
    }

    /// Waits until the node has stopped by itself, mostly because its store can't be
    /// written; says why.
    pub async fn stopped(&self) -> String {
        let mut metrics = self.inner.raft.metrics();
        match metrics.wait_for(|metrics| metrics.running_state.is_err()).await {
            Ok(metrics) => match &metrics.running_state {
                Err(fatal) => crate::error_chain(fatal),
                Ok(()) => "unknown".to_owned(),
            },
            Err(_) => "its task is gone".to_owned(),
        }
    }

    /// Stops the node and lets go of the store. All clones are of no use afterwards.
    pub async fn shutdown(&self) {
        let inner = &self.inner;
        inner.cancel.cancel();
        match timeout(SHUTDOWN_DEADLINE, inner.raft.shutdown()).await {
            Ok(Ok(())) => {}
            Ok(Err(error)) => tracing::warn!(%error, "the consensus node ended badly"),
            Err(_) => tracing::warn!("the consensus node does not stop"),
        }
        let watchers = std::mem::take(&mut *inner.watchers.lock().unwrap_or_else(PoisonError::into_inner));
        for watcher in watchers {
            if let Err(error) = watcher.await {
                tracing::warn!(%error, "a task that watched the consensus node ended badly");
            }
        }
        inner.store.close().await;
    }

    /// Refuses at once, without appending anything, where no quorum can answer.
    async fn await_quorum(&self) -> Result<(), ProposeError> {
        let me = self.inner.id;
        let mut leadership = self.inner.leadership.clone();
        // A leader just elected acts as soon as the first acknowledgement is in.
        let settled = leadership.wait_for(|now| now.leader != Some(me) || now.acting);
        match timeout(self.inner.quorum_wait, settled).await {
            Ok(Ok(_)) => Ok(()),
            Ok(Err(_)) => Err(ProposeError::Fatal { source: "it was shut down".into() }),
            Err(_) => Err(ProposeError::NoQuorum),
        }
    }

    fn late(&self, after: Duration) -> ProposeError {
        let leadership = self.inner.leadership.borrow();
        if leadership.leader == Some(self.inner.id) && !leadership.acting {
            ProposeError::NoQuorum
        } else {
            ProposeError::Timeout { after }
        }
    }
}

/// While it lasts, a leader sends no heartbeats and does not stand for election.
struct Silence<'a>(&'a Raft);

impl<'a> Silence<'a> {
    fn begin(raft: &'a Raft) -> Self {
        raft.runtime_config().heartbeat(false);
        raft.runtime_config().elect(false);
        Self(raft)
    }
}

impl Drop for Silence<'_> {
    fn drop(&mut self) {
        self.0.runtime_config().heartbeat(true);
        self.0.runtime_config().elect(true);
    }
}

fn config(options: &ConsensusOptions) -> Result<Config, Box<openraft::ConfigError>> {
    let millis = |duration: Duration| u64::try_from(duration.as_millis()).unwrap_or(u64::MAX);
    Config {
        cluster_name: "redmesh".to_owned(),
        heartbeat_interval: millis(options.heartbeat),
        election_timeout_min: millis(options.election_min),
        election_timeout_max: millis(options.election_max),
        install_snapshot_timeout: millis(SNAPSHOT_CHUNK_DEADLINE),
        snapshot_policy: SnapshotPolicy::LogsSinceLast(SNAPSHOT_EVERY_ENTRIES),
        max_in_snapshot_log_to_keep: LOG_KEPT_ENTRIES,
        max_payload_entries: APPEND_ENTRIES_MAX,
        replication_lag_threshold: VOTER_LAG_ENTRIES_MAX,
        snapshot_max_chunk_size: SNAPSHOT_CHUNK_BYTES,
        ..Config::default()
    }
    .validate()
    .map_err(Box::new)
}

fn raft_nodes(voters: BTreeMap<HostId, VoterNode>) -> BTreeMap<VoterId, VoterNode> {
    voters.into_iter().map(|(id, node)| (VoterId(id), node)).collect()
}

fn membership(raft: &Raft) -> Arc<types::StoredMembership> {
    Arc::clone(&raft.metrics().borrow().membership_config)
}

fn write_error(error: RaftError<VoterId, ClientWriteError<VoterId, VoterNode>>) -> ProposeError {
    match error {
        RaftError::APIError(ClientWriteError::ForwardToLeader(forward)) => {
            ProposeError::NotLeader { leader: forward.leader_id.map(|leader| leader.0) }
        }
        RaftError::APIError(ClientWriteError::ChangeMembershipError(error)) => {
            let reason = match error {
                ChangeMembershipError::InProgress(_) => "another change is under way: wait for it".to_owned(),
                other => other.to_string(),
            };
            ProposeError::Voters { reason }
        }
        RaftError::Fatal(source) => ProposeError::Fatal { source: Box::new(source) },
    }
}

#[cfg(test)]
mod tests;
