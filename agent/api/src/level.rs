//! Desired state: the *level* to which every host reconciles.
//!
//! The coordinator commits each change to Raft; the state machine's value is the
//! [`Level`]. It travels whole (a plan of 1000 instances is some 100 KB) and always
//! under its [`Stamp`], which is the fence: a host that has seen a newer stamp
//! refuses an older one, whoever brings it.

use std::collections::BTreeMap;
use std::fmt;
use std::net::{IpAddr, SocketAddr};
use std::ops::RangeInclusive;

use serde::{Deserialize, Serialize};

use crate::ids::{HostId, MeshId, NodeId, PlanId};
use crate::join::TokenRecord;
use crate::run::Run;

/// Number of hash slots of a Redis Cluster (Redis Cluster specification).
pub const SLOTS: u16 = 16384;

/// A Redis Cluster bus port is the data port plus this (Redis Cluster specification).
pub const BUS_PORT_OFFSET: u16 = 10000;

/// Where in the Raft log a level stands: the fence of everything done in its name.
/// Ordered by term first, so that nothing of a deposed coordinator is newer than
/// anything of its successor.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
pub struct Stamp {
    /// Raft term in which the last change was committed.
    pub term: u64,
    /// Raft log index of the last change.
    pub index: u64,
    /// The coordinator that committed it.
    pub leader: HostId,
}

impl fmt::Display for Stamp {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}.{}@{}", self.term, self.index, self.leader)
    }
}

/// All that the mesh wants, as of one stamp.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
pub struct Level {
    /// The fence.
    pub stamp: Stamp,
    /// Set by the first entry of a mesh's log and never changed.
    pub mesh: Option<MeshId>,
    /// The cluster to be, or that is; `None` before the first create.
    pub plan: Option<ClusterPlan>,
    /// Runs, oldest first; bounded by [`crate::limits::RUNS_KEPT_MAX`].
    pub runs: Vec<Run>,
    /// Join tokens, oldest first; at most [`crate::join::TOKENS_MAX`].
    pub tokens: Vec<TokenRecord>,
    /// Hosts that are refused for good, oldest first; at most [`crate::limits::REMOVED_MAX`].
    pub removed: Vec<RemovedHost>,
    /// Operators whose earlier certificates are refused for good, by name; at most
    /// [`crate::limits::REVOKED_MAX`].
    pub revoked: Vec<RevokedOperator>,
}

impl Level {
    /// Whether the host `id` has been removed.
    pub fn is_removed(&self, id: HostId) -> bool {
        self.removed.iter().any(|removed| removed.id == Some(id))
    }

    /// How many nodes an instance of `plan` should know: those of removed hosts may be
    /// forgotten or not.
    pub fn nodes_known(&self, plan: &ClusterPlan) -> RangeInclusive<usize> {
        let removed = plan.instances.iter().filter(|i| self.is_removed(plan.host_of(i).id)).count();
        plan.instances.len() - removed..=plan.instances.len()
    }
}

/// A host that an operator has removed from the mesh: nobody speaks with it any more.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct RemovedHost {
    /// Its id; `None` where the mesh knew no host of that name.
    pub id: Option<HostId>,
    /// Its certificate's name.
    pub name: String,
    /// Whether every certificate of that name which was issued until then is refused: not
    /// where another host bears the name.
    pub certificates: bool,
    /// When, Unix milliseconds by the coordinator's clock.
    pub at_unix_ms: u64,
}

/// An operator whose certificates an operator has taken back: those that were issued until
/// then, whether they let change things or only look. Later ones of the same name are good.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct RevokedOperator {
    /// The certificates' name.
    pub name: String,
    /// When, Unix milliseconds by the coordinator's clock; the latest time, where it was
    /// done more than once.
    pub at_unix_ms: u64,
}

/// What a person asks of `cluster create`.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct ClusterSpec {
    /// redis-servers on each host.
    pub instances_per_host: u16,
    /// Hosts that bear another number of them, by name; 0 leaves a host out.
    pub instances_of: BTreeMap<String, u16>,
    /// Replicas of each primary.
    pub replicas: u8,
    /// `cluster-node-timeout` in milliseconds; `None` lets the plan derive it from
    /// the cluster's size.
    pub node_timeout_ms: Option<u32>,
    /// Whose the servers are.
    pub servers: Servers,
    /// How the cluster is to be formed; `None` leaves it to what the servers allow.
    pub formation: Option<Formation>,
}

impl ClusterSpec {
    /// redis-servers that the host `name` is to bear.
    pub fn instances_on(&self, name: &str) -> u16 {
        self.instances_of.get(name).copied().unwrap_or(self.instances_per_host)
    }
}

/// Who starts and watches the redis-servers of a cluster.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Servers {
    /// The agents, in directories of their own.
    #[default]
    Supervised,
    /// Somebody else: they run already, empty and in cluster mode, at the planned ports.
    /// Agents join and watch them, and neither start nor stop any.
    Existing,
}

/// How servers become a cluster.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Formation {
    /// Each server starts with a complete `nodes.conf`, and all are released together.
    #[default]
    Seeded,
    /// Running servers are given their slots and epochs, and introduced to each other by
    /// `CLUSTER MEET`.
    Meet,
}

/// How far a plan has been carried out. Stages only advance.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum PlanStage {
    /// Seeded: hosts write their instances' directories, start the servers and hold each
    /// one (SIGSTOP) as soon as its bus port listens. Meet: all servers run; hosts give
    /// each its slots and its epoch while it knows nobody (later it would refuse the
    /// epoch). The plan has no node ids yet.
    Prepare,
    /// Seeded: all hosts held all of theirs; they release them (SIGCONT) and watch their
    /// instances' views converge. Meet: the servers' own node ids are in the plan; hosts
    /// introduce their instances to the others until each knows all.
    Release,
    /// Meet alone, and only where there are replicas: every instance knows every other;
    /// replicas are told whom to follow.
    Replicate,
    /// Every instance has agreed once. From here on instances are kept running.
    Formed,
}

impl PlanStage {
    /// Its name as it is written in JSON and metrics.
    pub fn name(self) -> &'static str {
        match self {
            Self::Prepare => "prepare",
            Self::Release => "release",
            Self::Replicate => "replicate",
            Self::Formed => "formed",
        }
    }
}

/// A derived layout: every instance's place, id, slots and role.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct ClusterPlan {
    /// Identity of the plan.
    pub id: PlanId,
    /// What was asked for.
    pub spec: ClusterSpec,
    /// `cluster-node-timeout` of all instances, in milliseconds.
    pub node_timeout_ms: u32,
    /// `hz` of all instances that redmesh starts, where the directives name none: ticks a second.
    pub hz: u32,
    /// How it is carried out.
    pub formation: Formation,
    /// How far it has got.
    pub stage: PlanStage,
    /// Hosts that bear instances, in the order in which [`PlannedInstance::host`]
    /// indexes them.
    pub hosts: Vec<PlannedHost>,
    /// All instances; those of one host are neighbours, by port.
    pub instances: Vec<PlannedInstance>,
    /// When the plan was committed, Unix milliseconds by the coordinator's clock.
    pub created_unix_ms: u64,
    /// The further stages, in the order in which they were reached.
    pub reached: Vec<StageReached>,
    /// How the instances' views became one; known when it is formed.
    pub convergence: Option<Convergence>,
}

/// When a plan reached a stage.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct StageReached {
    /// Which.
    pub stage: PlanStage,
    /// Unix milliseconds by the clock of the coordinator of then.
    pub at_unix_ms: u64,
}

/// How the instances' views became one.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Convergence {
    /// Instances that had agreed by the end of the first, second, … second since
    /// [`PlanStage::Release`]; at most [`crate::limits::CONVERGENCE_S_MAX`] seconds.
    pub agreed_by_s: Vec<u32>,
    /// Instances whose time of agreeing nobody knows: their agent was restarted meanwhile.
    pub unknown: u32,
}

/// A host as the plan knows it.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct PlannedHost {
    /// The agent.
    pub id: HostId,
    /// Its certificate's name.
    pub name: String,
    /// Address that its instances bind and announce.
    pub ip: IpAddr,
    /// Port of its first instance; the others follow.
    pub base_port: u16,
}

/// One redis-server of a plan.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct PlannedInstance {
    /// Index into [`ClusterPlan::hosts`].
    pub host: u16,
    /// Data port; the bus port is [`BUS_PORT_OFFSET`] above.
    pub port: u16,
    /// Cluster node id; [`NodeId::UNKNOWN`] while a plan for MEET is prepared.
    pub node_id: NodeId,
    /// Shard id (Redis ≥ 7.2, Valkey): equal for a primary and its replicas.
    pub shard_id: NodeId,
    /// What it is at the start. Failovers change roles later; the plan stays.
    pub role: PlannedRole,
}

/// Role of a planned instance.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum PlannedRole {
    /// Serves slots.
    Primary {
        /// Its slots: one range in a fresh plan.
        slots: SlotRange,
        /// Unique config epoch, so that no collision has to be resolved later.
        config_epoch: u64,
    },
    /// Follows a primary.
    Replica {
        /// Index of the primary in [`ClusterPlan::instances`].
        primary: u32,
    },
}

/// Slots `first..=last`.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
pub struct SlotRange {
    /// First slot.
    pub first: u16,
    /// Last slot, included.
    pub last: u16,
}

impl SlotRange {
    /// Number of slots in the range.
    pub fn len(self) -> usize {
        usize::from(self.last.saturating_sub(self.first)) + 1
    }

    /// A range always holds at least one slot.
    pub fn is_empty(self) -> bool {
        false
    }
}

impl fmt::Display for SlotRange {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if self.first == self.last {
            write!(f, "{}", self.first)
        } else {
            write!(f, "{}-{}", self.first, self.last)
        }
    }
}

impl ClusterPlan {
    /// The host that bears `instance`.
    pub fn host_of(&self, instance: &PlannedInstance) -> &PlannedHost {
        &self.hosts[usize::from(instance.host)]
    }

    /// Data address of `instance`.
    pub fn addr_of(&self, instance: &PlannedInstance) -> SocketAddr {
        SocketAddr::new(self.host_of(instance).ip, instance.port)
    }

    /// The instances that `host` is to run.
    pub fn instances_of(&self, host: HostId) -> impl Iterator<Item = &PlannedInstance> {
        self.instances.iter().filter(move |i| self.host_of(i).id == host)
    }

    /// When the plan reached `stage`, Unix milliseconds; [`PlanStage::Prepare`] at its creation.
    pub fn reached_unix_ms(&self, stage: PlanStage) -> Option<u64> {
        if stage == PlanStage::Prepare {
            return Some(self.created_unix_ms);
        }
        self.reached.iter().find(|reached| reached.stage == stage).map(|reached| reached.at_unix_ms)
    }

    /// The phases that are over, each with its milliseconds by the coordinators' clocks:
    /// from one stage to the next.
    pub fn phases_ms(&self) -> Vec<(PlanStage, u64)> {
        let mut phase = (PlanStage::Prepare, self.created_unix_ms);
        let ended = self.reached.iter().map(|next| {
            let (stage, since) = std::mem::replace(&mut phase, (next.stage, next.at_unix_ms));
            (stage, next.at_unix_ms.saturating_sub(since))
        });
        ended.collect()
    }

    /// Whether any instance is to follow another.
    pub fn has_replicas(&self) -> bool {
        self.instances.iter().any(|i| matches!(i.role, PlannedRole::Replica { .. }))
    }

    /// Number of primaries.
    pub fn primaries(&self) -> usize {
        self.instances.iter().filter(|i| matches!(i.role, PlannedRole::Primary { .. })).count()
    }
}
