//! The layout of a new cluster: which instance of which host serves which slots, and
//! who follows whom.
//!
//! Pure: randomness is passed in, nothing is looked up. Hosts may bear different numbers
//! of instances. A plan keeps three promises: every slot has one primary, and sizes differ
//! by at most one; every host has its share of the primaries, in proportion to its
//! instances, rounded down or up; no two copies of a shard are on one host, nor on one
//! address where its hosts allow that. What can't be planned so is refused.

mod error;
mod placement;
mod primaries;
mod validate;

use std::collections::BTreeSet;
use std::net::IpAddr;

use rand::Rng;
use redmesh_api::ids::{NodeId, PlanId};
use redmesh_api::level::{
    ClusterPlan, ClusterSpec, Formation, PlanStage, PlannedHost, PlannedInstance, PlannedRole, SLOTS,
};

use self::placement::{Ground, place};
use self::validate::validate;
use super::slots;

pub use self::error::PlanError;

/// Redis Cluster needs a majority of primaries to agree on a failure, so it wants at
/// least this many (Redis Cluster specification; redis-cli refuses fewer as well).
pub const PRIMARIES_MIN: usize = 3;

/// Instances of one cluster: no primary without a slot of its own.
pub const INSTANCES_MAX: usize = SLOTS as usize;

/// Bounds of `cluster-node-timeout`, milliseconds. Below, a garbage-collecting
/// hypervisor looks like a dead host; above, a failure goes unnoticed for minutes.
pub const NODE_TIMEOUT_MS_MIN: u32 = 100;
/// See [`NODE_TIMEOUT_MS_MIN`].
pub const NODE_TIMEOUT_MS_MAX: u32 = 600_000;

/// What a plan is made of.
#[derive(Debug, Clone)]
pub struct PlanInput {
    /// Identity of the plan to be.
    pub id: PlanId,
    /// What was asked for.
    pub spec: ClusterSpec,
    /// Hosts that are to bear instances.
    pub hosts: Vec<PlannedHost>,
    /// The coordinator's clock, Unix milliseconds.
    pub created_unix_ms: u64,
    /// `cluster-node-timeout` where the spec names none, milliseconds; see
    /// [`super::bus::node_timeout_ms`].
    pub node_timeout_ms: u32,
    /// `hz`, ticks a second; see [`super::bus::hz`].
    pub hz: u32,
    /// How it is to be carried out. A plan for MEET has no node ids: the servers draw
    /// their own.
    pub formation: Formation,
}

/// Lays out a new cluster.
///
/// With R replicas the instances are cut into as many shards of R+1 as they make, each
/// shard on as many hosts; the up to R instances that are left over become further
/// replicas, also on hosts of their own. A host that is too large for that is refused,
/// with the number that fits: a replica beside another copy would guard against nothing.
pub fn plan(mut input: PlanInput, rng: &mut impl Rng) -> Result<ClusterPlan, PlanError> {
    let node_timeout_ms = input.spec.node_timeout_ms.unwrap_or(input.node_timeout_ms);
    validate(&input, node_timeout_ms)?;
    input.hosts.retain(|host| input.spec.instances_on(&host.name) > 0);
    let sizes: Vec<usize> =
        input.hosts.iter().map(|host| usize::from(input.spec.instances_on(&host.name))).collect();
    let addresses: Vec<IpAddr> = input.hosts.iter().map(|host| host.ip).collect();
    let count = instances(&input.spec, &input.hosts) / (usize::from(input.spec.replicas) + 1);
    let ground = Ground::new(sizes, &addresses, count);
    let shards = place(&ground, count, rng);

    let mut ids = BTreeSet::new();
    let mut fresh_id = |rng: &mut _| loop {
        let id = random_id(rng);
        if ids.insert(id) {
            return id;
        }
    };
    let ports: Vec<u16> = input
        .hosts
        .iter()
        .flat_map(|host| (0..input.spec.instances_on(&host.name)).map(|nth| host.base_port + nth))
        .collect();
    let mut placed: Vec<Option<PlannedInstance>> = vec![None; ports.len()];
    let ranges = slots::divide(shards.len());
    for (number, (shard, slots)) in shards.iter().zip(ranges).enumerate() {
        let shard_id = fresh_id(rng);
        for (member, &place) in shard.iter().enumerate() {
            let role = if member == 0 {
                PlannedRole::Primary { slots, config_epoch: number as u64 + 1 }
            } else {
                PlannedRole::Replica { primary: u32::try_from(shard[0]).expect("at most INSTANCES_MAX") }
            };
            placed[place] = Some(PlannedInstance {
                host: u16::try_from(ground.host_of[place]).expect("at most INSTANCES_MAX hosts"),
                port: ports[place],
                node_id: match input.formation {
                    Formation::Seeded => fresh_id(rng),
                    Formation::Meet => NodeId::UNKNOWN,
                },
                shard_id,
                role,
            });
        }
    }
    Ok(ClusterPlan {
        id: input.id,
        spec: input.spec,
        node_timeout_ms,
        hz: input.hz,
        stage: PlanStage::Prepare,
        hosts: input.hosts,
        instances: placed.into_iter().flatten().collect(),
        created_unix_ms: input.created_unix_ms,
        formation: input.formation,
        reached: Vec::new(),
        convergence: None,
    })
}

/// Instances that `hosts` are to bear in all.
pub fn instances(spec: &ClusterSpec, hosts: &[PlannedHost]) -> usize {
    hosts.iter().map(|host| usize::from(spec.instances_on(&host.name))).sum()
}

fn random_id(rng: &mut impl Rng) -> NodeId {
    let mut id = [0; 20];
    rng.fill(&mut id);
    NodeId(id)
}

#[cfg(test)]
mod tests;
