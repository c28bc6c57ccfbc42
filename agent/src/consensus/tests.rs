use std::net::Ipv4Addr;

use async_trait::async_trait;
use redmesh_api::codec::Channel;
use redmesh_api::ids::MeshId;
use tempfile::TempDir;
use uuid::Uuid;

use super::*;
use crate::transport::memory::{MemoryNetwork, MemoryTransport};
use crate::transport::{Handler, Peer};

/// Anything that should come about does within this.
const PATIENCE: Duration = Duration::from_secs(30);

struct Serve(Consensus);

#[async_trait]
impl Handler for Serve {
    async fn handle(&self, _peer: &Peer, channel: Channel, payload: Bytes) -> Result<Vec<u8>, CodecError> {
        assert_eq!(channel, Channel::Raft);
        self.0.handle(payload).await
    }
}

struct Host {
    id: HostId,
    dir: TempDir,
    consensus: Consensus,
    transport: Arc<MemoryTransport>,
}

fn addr(id: u32) -> std::net::SocketAddr {
    (Ipv4Addr::LOCALHOST, u16::try_from(id).unwrap()).into()
}

fn nodes(ids: impl IntoIterator<Item = u32>) -> BTreeMap<HostId, VoterNode> {
    ids.into_iter().map(|id| (HostId(id), VoterNode { addr: addr(id), name: format!("host-{id}") })).collect()
}

fn set(ids: impl IntoIterator<Item = u32>) -> BTreeSet<HostId> {
    ids.into_iter().map(HostId).collect()
}

fn pledge(to: u32) -> Pledge {
    Pledge { to: HostId(to), to_name: format!("host-{to}"), expect: 1, holds: Vec::new() }
}

async fn until<T>(what: &str, watched: &mut watch::Receiver<T>, condition: impl FnMut(&T) -> bool) {
    let seen = timeout(PATIENCE, watched.wait_for(condition)).await;
    drop(seen.unwrap_or_else(|_| panic!("{what}: not within {PATIENCE:?}")).expect("the node is running"));
}

async fn start(network: &MemoryNetwork, id: u32, dir: TempDir) -> Host {
    let transport = network.join(addr(id), HostId(id), format!("host-{id}"));
    let options = ConsensusOptions::new(HostId(id), format!("host-{id}"), dir.path());
    let consensus = Consensus::start(options, transport.clone(), Arc::new(|_| None)).await.unwrap();
    transport.serve(Arc::new(Serve(consensus.clone())));
    Host { id: HostId(id), dir, consensus, transport }
}

struct Cluster {
    network: MemoryNetwork,
    hosts: BTreeMap<HostId, Host>,
}

impl Cluster {
    /// `count` hosts, of which the first `voters` vote.
    async fn new(count: u32, voters: u32) -> Self {
        let mut cluster = Self { network: MemoryNetwork::new(), hosts: BTreeMap::new() };
        for id in 1..=count {
            cluster.add(id, TempDir::new().unwrap()).await;
        }
        assert_eq!(cluster.consensus(1).pledge(&pledge(1)).await.unwrap(), PledgeReply::Pledged);
        cluster.consensus(1).initialize(nodes(1..=voters)).await.unwrap();
        cluster
    }

    async fn add(&mut self, id: u32, dir: TempDir) {
        self.hosts.insert(HostId(id), start(&self.network, id, dir).await);
    }

    fn consensus(&self, id: u32) -> &Consensus {
        &self.hosts[&HostId(id)].consensus
    }

    /// Stops a host; its directory.
    async fn stop(&mut self, id: HostId) -> TempDir {
        let host = self.hosts.remove(&id).unwrap();
        host.transport.close().await;
        host.consensus.shutdown().await;
        host.dir
    }

    /// The host that acts, other than `but`.
    async fn acting(&self, but: Option<HostId>) -> HostId {
        let watching = self.hosts.values().filter(|host| Some(host.id) != but).map(|host| {
            let mut leadership = host.consensus.leadership();
            Box::pin(async move {
                match leadership.wait_for(|now| now.acting).await {
                    Ok(_) => host.id,
                    Err(_) => std::future::pending().await,
                }
            })
        });
        timeout(PATIENCE, futures_util::future::select_all(watching)).await.expect("somebody acts").0
    }

    async fn all_have(&self, stamp: Stamp, ids: impl IntoIterator<Item = HostId>) {
        for id in ids {
            until("the level spreads", &mut self.hosts[&id].consensus.level(), |level| level.stamp >= stamp)
                .await;
        }
    }

    async fn shutdown(mut self) {
        for id in self.hosts.keys().copied().collect::<Vec<_>>() {
            self.stop(id).await;
        }
    }
}

fn found(id: u128) -> Command {
    Command::Found { mesh: MeshId(Uuid::from_u128(id)) }
}

#[tokio::test(flavor = "multi_thread")]
async fn three_hosts_elect_commit_and_name_their_leader() {
    let cluster = Cluster::new(3, 3).await;
    let leader = cluster.acting(None).await;
    let (applied, stamp) = cluster.hosts[&leader].consensus.propose(found(7)).await.unwrap();
    assert_eq!(applied, Applied::Done);
    assert_eq!(stamp.leader, leader);
    cluster.all_have(stamp, cluster.hosts.keys().copied()).await;
    for host in cluster.hosts.values() {
        assert_eq!(host.consensus.level().borrow().mesh, Some(MeshId(Uuid::from_u128(7))));
        assert!(host.consensus.is_initialized().await.unwrap());
        let leadership = host.consensus.leadership().borrow().clone();
        assert_eq!(leadership.voters, set(1..=3));
        assert!(leadership.initialized);
        if host.id != leader {
            let error = host.consensus.propose(found(7)).await.unwrap_err();
            assert!(
                matches!(error, ProposeError::NotLeader { leader: Some(named) } if named == leader),
                "{error}"
            );
            let error = host.consensus.confirm_leadership().await.unwrap_err();
            assert!(
                matches!(error, ProposeError::NotLeader { leader: Some(named) } if named == leader),
                "{error}"
            );
        }
    }
    let again = cluster.hosts[&leader].consensus.propose(found(7)).await.unwrap();
    assert_eq!(again, (Applied::Unchanged, stamp));
    assert_eq!(cluster.hosts[&leader].consensus.confirm_leadership().await.unwrap(), stamp);
    cluster.shutdown().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_leader_hands_over_and_nothing_committed_is_lost() {
    for voters in [2, 3] {
        let cluster = Cluster::new(voters, voters).await;
        let first = cluster.acting(None).await;
        let leader = &cluster.hosts[&first].consensus;
        let (applied, stamp) = leader.propose(found(7)).await.unwrap();
        assert_eq!(applied, Applied::Done);
        leader.hand_over().await.unwrap();
        let next = cluster.acting(Some(first)).await;
        assert_ne!(next, first);
        cluster.all_have(stamp, cluster.hosts.keys().copied()).await;
        let again = cluster.hosts[&first].consensus.hand_over().await.unwrap_err();
        assert!(matches!(again, ProposeError::NotLeader { .. }), "{again}");
        // It takes part as ever, and may come to lead again.
        cluster.hosts[&next].consensus.hand_over().await.unwrap();
        cluster.acting(Some(next)).await;
        cluster.shutdown().await;
    }
    let alone = Cluster::new(1, 1).await;
    alone.acting(None).await;
    let error = alone.consensus(1).hand_over().await.unwrap_err();
    assert!(error.to_string().contains("no other host votes"), "{error}");
    alone.shutdown().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_lone_voter_acts() {
    let cluster = Cluster::new(1, 1).await;
    let consensus = cluster.consensus(1);
    assert_eq!(cluster.acting(None).await, HostId(1));
    consensus.propose(found(1)).await.unwrap();
    let error = consensus.initialize(nodes([1])).await.unwrap_err();
    assert!(matches!(error, ConsensusError::AlreadyInitialized), "{error}");
    cluster.shutdown().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn only_a_voter_initializes() {
    let network = MemoryNetwork::new();
    let host = start(&network, 1, TempDir::new().unwrap()).await;
    host.consensus.pledge(&pledge(1)).await.unwrap();
    let error = host.consensus.initialize(nodes([2, 3])).await.unwrap_err();
    assert!(matches!(error, ConsensusError::NotAVoter { me: HostId(1) }), "{error}");
    assert!(!host.consensus.is_initialized().await.unwrap());
    assert_eq!(*host.consensus.leadership().borrow(), Leadership::default());
    let error = host.consensus.propose(found(1)).await.unwrap_err();
    assert!(matches!(error, ProposeError::NotLeader { leader: None }), "{error}");
    host.consensus.shutdown().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn an_isolated_leader_stops_acting_and_another_takes_over() {
    let cluster = Cluster::new(5, 5).await;
    let old = cluster.acting(None).await;
    let old_host = &cluster.hosts[&old];
    let (_, first) = old_host.consensus.propose(found(1)).await.unwrap();
    cluster.network.isolate(addr(old.0));
    until("the isolated leader stops", &mut old_host.consensus.leadership(), |now| !now.acting).await;
    // Refused well before the deadline of a commit, and appended nowhere.
    let error = old_host.consensus.propose(found(2)).await.unwrap_err();
    assert!(matches!(error, ProposeError::NoQuorum | ProposeError::NotLeader { .. }), "{error}");
    let error = old_host.consensus.confirm_leadership().await.unwrap_err();
    assert!(matches!(error, ProposeError::NoQuorum | ProposeError::NotLeader { .. }), "{error}");

    let new = cluster.acting(Some(old)).await;
    assert_ne!(new, old);
    let confirmed = cluster.hosts[&new].consensus.confirm_leadership().await.unwrap();
    assert_eq!(confirmed, first);
    let plan = Command::AdvanceRun {
        run: redmesh_api::ids::RunId(Uuid::from_u128(1)),
        to: redmesh_api::run::RunStage::Stopping,
    };
    let (applied, stamp) = cluster.hosts[&new].consensus.propose(plan).await.unwrap();
    assert!(matches!(applied, Applied::Rejected(_)));
    assert_eq!(stamp, first);

    cluster.network.heal();
    until("the old leader follows", &mut old_host.consensus.leadership(), |now| {
        now.leader.is_some_and(|leader| leader != old) && !now.acting
    })
    .await;
    cluster.shutdown().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_restarted_host_keeps_log_and_vote() {
    let mut cluster = Cluster::new(3, 3).await;
    let leader = cluster.acting(None).await;
    let (_, stamp) = cluster.hosts[&leader].consensus.propose(found(9)).await.unwrap();
    cluster.all_have(stamp, cluster.hosts.keys().copied().collect::<Vec<_>>()).await;
    let term = cluster.hosts[&leader].consensus.leadership().borrow().term;
    // All at once, so that what comes back can only come from disk.
    let mut dirs = BTreeMap::new();
    for id in cluster.hosts.keys().copied().collect::<Vec<_>>() {
        dirs.insert(id, cluster.stop(id).await);
    }
    for (id, dir) in dirs {
        cluster.add(id.0, dir).await;
        let host = &cluster.hosts[&id];
        assert_eq!(host.consensus.level().borrow().stamp, stamp);
        assert!(host.consensus.is_initialized().await.unwrap());
    }
    let leader = cluster.acting(None).await;
    let consensus = &cluster.hosts[&leader].consensus;
    assert!(consensus.leadership().borrow().term >= term);
    assert_eq!(consensus.propose(found(9)).await.unwrap(), (Applied::Unchanged, stamp));
    cluster.shutdown().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_dead_voter_is_replaced_and_its_return_disturbs_nobody() {
    let mut cluster = Cluster::new(4, 3).await;
    let leader = cluster.acting(None).await;
    let (_, stamp) = cluster.hosts[&leader].consensus.propose(found(3)).await.unwrap();
    let dead = *set(1..=3).iter().find(|id| **id != leader).unwrap();
    let dir = cluster.stop(dead).await;
    let leader = cluster.acting(None).await;
    let goal = set(1..=4).into_iter().filter(|id| *id != dead).collect::<BTreeSet<_>>();
    cluster.hosts[&leader].consensus.set_voters(nodes(goal.iter().map(|id| id.0))).await.unwrap();
    cluster.all_have(stamp, [HostId(4)]).await;
    for id in &goal {
        let mut leadership = cluster.hosts[id].consensus.leadership();
        until("the new voters are known", &mut leadership, |now| now.voters == goal).await;
    }

    let leader = cluster.acting(None).await;
    let term = cluster.hosts[&leader].consensus.leadership().borrow().term;
    cluster.add(dead.0, dir).await;
    // It stands for election in vain, which raises its own term alone.
    let returned = cluster.consensus(dead.0).leadership();
    until("the returned host stands", &mut returned.clone(), |now| now.term > term).await;
    let consensus = &cluster.hosts[&leader].consensus;
    assert_eq!(consensus.confirm_leadership().await.unwrap(), stamp);
    assert_eq!(consensus.leadership().borrow().term, term);
    cluster.shutdown().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_host_that_lost_its_disk_is_not_taken_for_the_voter_that_it_was() {
    let mut cluster = Cluster::new(3, 3).await;
    let leader = cluster.acting(None).await;
    let (_, stamp) = cluster.consensus(leader.0).propose(found(1)).await.unwrap();
    cluster.all_have(stamp, [1, 2, 3].map(HostId)).await;
    let lost = if leader == HostId(3) { HostId(2) } else { HostId(3) };
    drop(cluster.stop(lost).await);
    // The same address, another id, and nothing on its disk.
    let dir = TempDir::new().unwrap();
    let transport = cluster.network.join(addr(lost.0), HostId(9), "host-9");
    let options = ConsensusOptions::new(HostId(9), "host-9", dir.path());
    let stranger = Consensus::start(options, transport.clone(), Arc::new(|_| None)).await.unwrap();
    transport.serve(Arc::new(Serve(stranger.clone())));
    // The leader goes on, though it takes the stranger's address for its voter's.
    for _ in 0..3 {
        cluster.consensus(leader.0).confirm_leadership().await.unwrap();
        tokio::time::sleep(HEARTBEAT * 3).await;
    }
    assert!(!stranger.is_initialized().await.unwrap(), "it has taken what was meant for another");
    transport.close().await;
    stranger.shutdown().await;
    cluster.shutdown().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_voter_far_behind_catches_up_by_snapshot() {
    let cluster = Cluster::new(4, 3).await;
    let leader = cluster.acting(None).await;
    let consensus = &cluster.hosts[&leader].consensus;
    consensus.propose(found(5)).await.unwrap();
    consensus.inner.raft.trigger().snapshot().await.unwrap();
    let last = consensus.inner.raft.metrics().borrow().last_log_index;
    let mut metrics = consensus.inner.raft.metrics();
    until("the snapshot is made", &mut metrics, |now| now.snapshot.map(|at| at.index) >= last).await;
    consensus.inner.raft.trigger().purge_log(last.unwrap()).await.unwrap();
    until("the log is purged", &mut metrics, |now| now.purged.map(|at| at.index) >= last).await;
    consensus.set_voters(nodes(1..=4)).await.unwrap();
    let level = cluster.consensus(4).level().borrow().clone();
    assert_eq!(level.mesh, Some(MeshId(Uuid::from_u128(5))));
    assert!(cluster.consensus(4).inner.raft.metrics().borrow().snapshot.is_some());
    cluster.shutdown().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn pledges_end_with_the_bootstrap() {
    let network = MemoryNetwork::new();
    let host = start(&network, 1, TempDir::new().unwrap()).await;
    let error = host.consensus.initialize(nodes([1])).await.unwrap_err();
    assert!(matches!(error, ConsensusError::NotPledged { to: None }), "{error}");
    assert_eq!(host.consensus.pledge(&pledge(1)).await.unwrap(), PledgeReply::Pledged);
    assert_eq!(host.consensus.pledge(&pledge(1)).await.unwrap(), PledgeReply::Pledged);
    let refused = PledgeReply::PledgedToAnother { to: HostId(1), to_name: "host-1".to_owned() };
    assert_eq!(host.consensus.pledge(&pledge(2)).await.unwrap(), refused);
    host.consensus.initialize(nodes([1])).await.unwrap();
    assert_eq!(host.consensus.pledge(&pledge(1)).await.unwrap(), PledgeReply::Initialized);
    assert_eq!(host.consensus.pledged().await.unwrap(), Some(pledge(1)));
    host.consensus.shutdown().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_candidate_that_gave_up_cannot_initialize() {
    let network = MemoryNetwork::new();
    let host = start(&network, 5, TempDir::new().unwrap()).await;
    assert_eq!(host.consensus.pledge(&pledge(5)).await.unwrap(), PledgeReply::Pledged);
    assert_eq!(host.consensus.pledge(&pledge(3)).await.unwrap(), PledgeReply::Pledged);
    let refused = PledgeReply::PledgedToAnother { to: HostId(3), to_name: "host-3".to_owned() };
    assert_eq!(host.consensus.pledge(&pledge(5)).await.unwrap(), refused);
    let error = host.consensus.initialize(nodes([5])).await.unwrap_err();
    assert!(matches!(error, ConsensusError::NotPledged { to: Some(HostId(3)) }), "{error}");
    host.consensus.shutdown().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_command_that_no_request_can_carry_is_rejected() {
    let cluster = Cluster::new(1, 1).await;
    let leader = cluster.acting(None).await;
    let consensus = &cluster.hosts[&leader].consensus;
    let plan = redmesh_api::level::ClusterPlan {
        id: redmesh_api::ids::PlanId(Uuid::from_u128(1)),
        spec: redmesh_api::level::ClusterSpec {
            instances_per_host: 1,
            replicas: 0,
            node_timeout_ms: None,
            ..Default::default()
        },
        node_timeout_ms: 5000,
        hz: 10,
        stage: redmesh_api::level::PlanStage::Prepare,
        hosts: vec![redmesh_api::level::PlannedHost {
            id: leader,
            name: "x".repeat(machine::LEVEL_BYTES_MAX),
            ip: Ipv4Addr::LOCALHOST.into(),
            base_port: 6379,
        }],
        instances: Vec::new(),
        created_unix_ms: 1,
        formation: redmesh_api::level::Formation::Seeded,
        reached: Vec::new(),
        convergence: None,
    };
    let (applied, _) = consensus.propose(Command::CreatePlan(Box::new(plan))).await.unwrap();
    assert!(matches!(applied, Applied::Rejected(_)));
    assert_eq!(consensus.propose(found(1)).await.unwrap().0, Applied::Done);
    cluster.shutdown().await;
}

#[tokio::test]
async fn impossible_times_are_refused() {
    let dir = TempDir::new().unwrap();
    let transport = MemoryNetwork::new().join(addr(1), HostId(1), "host-1");
    let times =
        ConsensusOptions { election_min: HEARTBEAT, ..ConsensusOptions::new(HostId(1), "", dir.path()) };
    let error = Consensus::start(times, transport, Arc::new(|_| None)).await.unwrap_err();
    assert!(matches!(error, ConsensusError::Times { .. }), "{error}");
}

#[tokio::test]
async fn rubbish_from_a_peer_is_refused() {
    let network = MemoryNetwork::new();
    let host = start(&network, 1, TempDir::new().unwrap()).await;
    assert!(host.consensus.handle(Bytes::from_static(&[0xFF; 40])).await.is_err());
    assert!(host.consensus.handle(Bytes::new()).await.is_err());
    host.consensus.shutdown().await;
}
