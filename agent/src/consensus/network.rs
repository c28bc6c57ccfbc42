//! Raft's requests over [`Transport`]: one bincode request and one reply each.
//!
//! Where a voter lives is asked of gossip first, because an address in the membership
//! is as old as the membership.

use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use openraft::error::{
    InstallSnapshotError, NetworkError, PayloadTooLarge, RPCError, RaftError, RemoteError, Unreachable,
};
use openraft::network::{Backoff, RPCOption, RaftNetwork, RaftNetworkFactory};
use openraft::raft::{
    AppendEntriesRequest, AppendEntriesResponse, InstallSnapshotRequest, InstallSnapshotResponse,
    VoteRequest, VoteResponse,
};
use redmesh_api::codec::{Channel, CodecError};
use redmesh_api::ids::HostId;
use serde::{Deserialize, Serialize};

use super::types::{TypeConfig, VoterId, VoterNode};
use crate::transport::{Transport, TransportError, call};

/// Pause before an unreachable voter is tried again.
const UNREACHABLE_BACKOFF: Duration = Duration::from_millis(200);

/// Where a host lives now, if anybody knows.
pub type Resolve = Arc<dyn Fn(HostId) -> Option<SocketAddr> + Send + Sync>;

/// A request and whom it is meant for: a host that lost its disk comes back at the same
/// address as another one, and must neither take its predecessor's entries nor vote in its
/// place.
#[derive(Debug, Serialize, Deserialize)]
pub(super) struct RaftRequest {
    pub(super) to: HostId,
    pub(super) rpc: RaftRpc,
}

/// What one voter asks of another.
#[derive(Debug, Serialize, Deserialize)]
pub(super) enum RaftRpc {
    Append(AppendEntriesRequest<TypeConfig>),
    Vote(VoteRequest<VoterId>),
    Snapshot(InstallSnapshotRequest<TypeConfig>),
}

/// Its answer, of the same variant if the request was meant for it.
#[derive(Debug, Serialize, Deserialize)]
pub(super) enum RaftRpcReply {
    /// Meant for another host, by this one's id.
    NotMe(HostId),
    Append(Result<AppendEntriesResponse<VoterId>, RaftError<VoterId>>),
    Vote(Result<VoteResponse<VoterId>, RaftError<VoterId>>),
    Snapshot(Result<InstallSnapshotResponse<VoterId>, RaftError<VoterId, InstallSnapshotError>>),
}

type RpcError<E> = RPCError<VoterId, VoterNode, E>;

/// Makes a [`Link`] to each voter.
#[derive(Clone)]
pub(super) struct Links {
    pub(super) transport: Arc<dyn Transport>,
    pub(super) resolve: Resolve,
}

impl RaftNetworkFactory<TypeConfig> for Links {
    type Network = Link;

    async fn new_client(&mut self, target: VoterId, node: &VoterNode) -> Link {
        Link { links: self.clone(), target, node: node.clone() }
    }
}

/// Requests to one voter.
pub(super) struct Link {
    links: Links,
    target: VoterId,
    node: VoterNode,
}

/// Another host lives at the voter's address now.
#[derive(Debug, thiserror::Error)]
#[error("{by} is host {id}, not {wanted}")]
struct AnotherHost {
    by: SocketAddr,
    id: HostId,
    wanted: HostId,
}

/// The voter answered another question than it was asked.
#[derive(Debug, thiserror::Error)]
#[error("{by} answered a request of another kind")]
struct WrongReply {
    by: SocketAddr,
}

impl Link {
    async fn call<E: std::error::Error>(
        &self,
        rpc: RaftRpc,
        option: &RPCOption,
    ) -> Result<(SocketAddr, RaftRpcReply), RpcError<E>> {
        let to = (self.links.resolve)(self.target.0).unwrap_or(self.node.addr);
        let entries = entries(&rpc);
        let request = RaftRequest { to: self.target.0, rpc };
        match call(&*self.links.transport, to, Channel::Raft, &request, option.hard_ttl()).await {
            Ok(RaftRpcReply::NotMe(id)) => {
                Err(Unreachable::new(&AnotherHost { by: to, id, wanted: self.target.0 }).into())
            }
            Ok(reply) => Ok((to, reply)),
            Err(TransportError::Codec { source: CodecError::TooLarge { .. }, .. }) if entries > 1 => {
                Err(PayloadTooLarge::new_entries_hint(entries / 2).into())
            }
            Err(error @ (TransportError::Unreachable { .. } | TransportError::Refused { .. })) => {
                Err(Unreachable::new(&error).into())
            }
            Err(error) => Err(NetworkError::new(&error).into()),
        }
    }

    #[expect(clippy::result_large_err, reason = "openraft's trait asks for this very type")]
    fn remote<T, E: std::error::Error>(&self, result: Result<T, E>) -> Result<T, RpcError<E>> {
        result.map_err(|error| RemoteError::new_with_node(self.target, self.node.clone(), error).into())
    }
}

fn entries(rpc: &RaftRpc) -> u64 {
    match rpc {
        RaftRpc::Append(append) => append.entries.len() as u64,
        RaftRpc::Vote(_) | RaftRpc::Snapshot(_) => 0,
    }
}

impl RaftNetwork<TypeConfig> for Link {
    async fn append_entries(
        &mut self,
        rpc: AppendEntriesRequest<TypeConfig>,
        option: RPCOption,
    ) -> Result<AppendEntriesResponse<VoterId>, RpcError<RaftError<VoterId>>> {
        match self.call(RaftRpc::Append(rpc), &option).await? {
            (_, RaftRpcReply::Append(result)) => self.remote(result),
            (by, _) => Err(NetworkError::new(&WrongReply { by }).into()),
        }
    }

    async fn install_snapshot(
        &mut self,
        rpc: InstallSnapshotRequest<TypeConfig>,
        option: RPCOption,
    ) -> Result<InstallSnapshotResponse<VoterId>, RpcError<RaftError<VoterId, InstallSnapshotError>>> {
        match self.call(RaftRpc::Snapshot(rpc), &option).await? {
            (_, RaftRpcReply::Snapshot(result)) => self.remote(result),
            (by, _) => Err(NetworkError::new(&WrongReply { by }).into()),
        }
    }

    async fn vote(
        &mut self,
        rpc: VoteRequest<VoterId>,
        option: RPCOption,
    ) -> Result<VoteResponse<VoterId>, RpcError<RaftError<VoterId>>> {
        match self.call(RaftRpc::Vote(rpc), &option).await? {
            (_, RaftRpcReply::Vote(result)) => self.remote(result),
            (by, _) => Err(NetworkError::new(&WrongReply { by }).into()),
        }
    }

    fn backoff(&self) -> Backoff {
        Backoff::new(std::iter::repeat(UNREACHABLE_BACKOFF))
    }
}
