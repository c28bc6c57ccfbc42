//! The layout of a new cluster: which instance of which host serves which slots, and
//! who follows whom.
//!
//! Pure: randomness is passed in, nothing is looked up. A plan keeps three promises:
//! every slot has one primary and sizes differ by at most one; primaries are spread
//! over the hosts as evenly as their number allows; a replica never shares a host with
//! its primary or with another replica of it (except left-over instances where there
//! is no other host).

use std::collections::{BTreeSet, VecDeque};
use std::net::IpAddr;

use rand::Rng;
use rand::seq::SliceRandom;
use redmesh_api::ids::{HostId, NodeId, PlanId};
use redmesh_api::level::{
    BUS_PORT_OFFSET, ClusterPlan, ClusterSpec, Formation, PlanStage, PlannedHost, PlannedInstance,
    PlannedRole, SLOTS,
};
use redmesh_api::limits::INSTANCES_PER_HOST_MAX;

use super::slots;

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
    /// How it is to be carried out. A plan for MEET has no node ids: the servers draw
    /// their own.
    pub formation: Formation,
}

/// Why no plan can be made of a request. The texts are for the person who asked.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum PlanError {
    /// No hosts.
    #[error("there is no host to bear instances: start at least one agent")]
    NoHosts,
    /// The same host twice.
    #[error("host {name:?} ({id}) is listed twice")]
    DuplicateHost {
        /// Its id.
        id: HostId,
        /// Its name.
        name: String,
    },
    /// `instances_per_host` is out of bounds.
    #[error("{got} instances per host is out of bounds: ask for 1 to {max}")]
    InstancesPerHost {
        /// What was asked for.
        got: u16,
        /// The most.
        max: u16,
    },
    /// More instances than slots.
    #[error("{got} instances are more than the {max} slots that there are: lower the instances per host")]
    TooManyInstances {
        /// Hosts times instances per host.
        got: usize,
        /// The most.
        max: usize,
    },
    /// Fewer than three primaries.
    #[error(
        "{instances} instances on {hosts} hosts with {replicas} replicas each make {primaries} primaries, \
         and Redis Cluster needs at least 3: ask for at least {enough} instances per host, or add hosts"
    )]
    TooFewPrimaries {
        /// Instances in all.
        instances: usize,
        /// Hosts.
        hosts: usize,
        /// Replicas of each primary.
        replicas: u8,
        /// What that makes.
        primaries: usize,
        /// Instances per host that would do.
        enough: usize,
    },
    /// Replicas that would share a host.
    #[error(
        "{replicas} replicas of each primary need at least {needed} hosts, so that no two copies share \
         one; there are {hosts}: add hosts or ask for at most {most} replicas"
    )]
    TooFewHosts {
        /// Replicas of each primary.
        replicas: u8,
        /// Hosts needed.
        needed: usize,
        /// Hosts there are.
        hosts: usize,
        /// Replicas that these hosts allow.
        most: usize,
    },
    /// A host's ports don't fit.
    #[error(
        "ports {first}-{last} of host {name:?} don't fit: a data port must be between 1 and 55535, for \
         its bus port is 10000 above; set another redis.base_port or fewer instances per host"
    )]
    Ports {
        /// The host.
        name: String,
        /// First data port.
        first: u32,
        /// Last data port.
        last: u32,
    },
    /// Two hosts on one address want the same port.
    #[error(
        "hosts {a:?} and {b:?} share the address {ip} and their data or bus ports overlap: set \
         redis.base_port of one of them at least {apart} higher, or give it another address"
    )]
    PortsOverlap {
        /// One host.
        a: String,
        /// The other.
        b: String,
        /// Their address.
        ip: IpAddr,
        /// Instances per host.
        apart: u16,
    },
    /// An address that nobody can be reached at.
    #[error(
        "host {name:?} would announce {ip}, at which nobody can reach it: set redis.ip to its own address"
    )]
    Address {
        /// The host.
        name: String,
        /// The address.
        ip: IpAddr,
    },
    /// `cluster-node-timeout` is out of bounds.
    #[error(
        "a node timeout of {got} ms is out of bounds: ask for {NODE_TIMEOUT_MS_MIN} to {NODE_TIMEOUT_MS_MAX} ms"
    )]
    NodeTimeout {
        /// What was asked for.
        got: u32,
    },
}

/// Lays out a new cluster.
///
/// With R replicas the instances are cut into shards of R+1, each on as many hosts;
/// instances that are left over become extra replicas, as redis-cli does it.
pub fn plan(input: PlanInput, rng: &mut impl Rng) -> Result<ClusterPlan, PlanError> {
    let node_timeout_ms = input.spec.node_timeout_ms.unwrap_or(input.node_timeout_ms);
    validate(&input, node_timeout_ms)?;
    let (hosts, per_host) = (input.hosts.len(), usize::from(input.spec.instances_per_host));
    let shards = shards(hosts, per_host, usize::from(input.spec.replicas), rng);

    let mut ids = BTreeSet::new();
    let mut fresh_id = |rng: &mut _| loop {
        let id = random_id(rng);
        if ids.insert(id) {
            return id;
        }
    };
    let mut placed: Vec<Option<PlannedInstance>> = vec![None; hosts * per_host];
    let ranges = slots::divide(shards.len());
    for (number, (shard, slots)) in shards.iter().zip(ranges).enumerate() {
        let shard_id = fresh_id(rng);
        for (member, &place) in shard.iter().enumerate() {
            let role = if member == 0 {
                PlannedRole::Primary { slots, config_epoch: number as u64 + 1 }
            } else {
                PlannedRole::Replica { primary: u32::try_from(shard[0]).expect("at most INSTANCES_MAX") }
            };
            let host = place / per_host;
            let nth = u16::try_from(place % per_host).expect("below instances_per_host, a u16");
            placed[place] = Some(PlannedInstance {
                host: u16::try_from(host).expect("at most INSTANCES_MAX hosts"),
                port: input.hosts[host].base_port + nth,
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
        stage: PlanStage::Prepare,
        hosts: input.hosts,
        instances: placed.into_iter().flatten().collect(),
        created_unix_ms: input.created_unix_ms,
        formation: input.formation,
        reached: Vec::new(),
        convergence: None,
    })
}

fn random_id(rng: &mut impl Rng) -> NodeId {
    let mut id = [0; 20];
    rng.fill(&mut id);
    NodeId(id)
}

fn validate(input: &PlanInput, node_timeout_ms: u32) -> Result<(), PlanError> {
    let (hosts, spec) = (&input.hosts, &input.spec);
    if hosts.is_empty() {
        return Err(PlanError::NoHosts);
    }
    let mut seen = BTreeSet::new();
    for host in hosts {
        if !seen.insert(host.id) {
            return Err(PlanError::DuplicateHost { id: host.id, name: host.name.clone() });
        }
        if host.ip.is_unspecified() || host.ip.is_multicast() {
            return Err(PlanError::Address { name: host.name.clone(), ip: host.ip });
        }
    }
    let per_host = spec.instances_per_host;
    if per_host == 0 || per_host > INSTANCES_PER_HOST_MAX {
        return Err(PlanError::InstancesPerHost { got: per_host, max: INSTANCES_PER_HOST_MAX });
    }
    let instances = hosts.len() * usize::from(per_host);
    if instances > INSTANCES_MAX {
        return Err(PlanError::TooManyInstances { got: instances, max: INSTANCES_MAX });
    }
    let copies = usize::from(spec.replicas) + 1;
    if copies > hosts.len() {
        return Err(PlanError::TooFewHosts {
            replicas: spec.replicas,
            needed: copies,
            hosts: hosts.len(),
            most: hosts.len() - 1,
        });
    }
    if instances / copies < PRIMARIES_MIN {
        return Err(PlanError::TooFewPrimaries {
            instances,
            hosts: hosts.len(),
            replicas: spec.replicas,
            primaries: instances / copies,
            enough: (PRIMARIES_MIN * copies).div_ceil(hosts.len()),
        });
    }
    validate_ports(hosts, per_host)?;
    if !(NODE_TIMEOUT_MS_MIN..=NODE_TIMEOUT_MS_MAX).contains(&node_timeout_ms) {
        return Err(PlanError::NodeTimeout { got: node_timeout_ms });
    }
    Ok(())
}

fn validate_ports(hosts: &[PlannedHost], per_host: u16) -> Result<(), PlanError> {
    const DATA_PORT_MAX: u32 = (u16::MAX - BUS_PORT_OFFSET) as u32;
    for host in hosts {
        let first = u32::from(host.base_port);
        let last = first + u32::from(per_host) - 1;
        if first == 0 || last > DATA_PORT_MAX {
            return Err(PlanError::Ports { name: host.name.clone(), first, last });
        }
    }
    // Sorted by address, only neighbours on one address have to be compared.
    let mut sorted: Vec<&PlannedHost> = hosts.iter().collect();
    sorted.sort_by_key(|h| (h.ip, h.base_port));
    for (i, a) in sorted.iter().enumerate() {
        for b in sorted[i + 1..].iter().take_while(|b| b.ip == a.ip) {
            let gap = b.base_port - a.base_port;
            // b's data ports against a's data ports, then against a's bus ports.
            if gap < per_host || gap.abs_diff(BUS_PORT_OFFSET) < per_host {
                return Err(PlanError::PortsOverlap {
                    a: a.name.clone(),
                    b: b.name.clone(),
                    ip: a.ip,
                    apart: per_host,
                });
            }
        }
    }
    Ok(())
}

/// Shards as lists of places (`host * per_host + nth`), the primary first.
fn shards(hosts: usize, per_host: usize, replicas: usize, rng: &mut impl Rng) -> Vec<Vec<usize>> {
    let copies = replicas + 1;
    // Any `copies` consecutive places of a row-by-row walk lie on different hosts, as
    // long as the order of hosts is the same wherever a shard crosses from one row to
    // the next. Between blocks of rows that no shard crosses the order may change,
    // which spreads the replicas of one host's primaries over all others.
    let block_rows = copies / gcd(copies, hosts);
    let mut order: Vec<usize> = (0..hosts).collect();
    let mut walk = Vec::with_capacity(hosts * per_host);
    for row in 0..per_host {
        if replicas > 0 && row % block_rows == 0 {
            order.shuffle(rng);
        }
        walk.extend(order.iter().map(|host| host * per_host + row));
    }

    let mut loads = vec![0usize; hosts];
    let host_of = |place: usize| place / per_host;
    let chunks = walk.chunks_exact(copies);
    let extra = chunks.remainder().to_vec();
    let mut shards: Vec<Vec<usize>> = chunks.map(<[usize]>::to_vec).collect();
    for shard in &mut shards {
        let (least, _) =
            shard.iter().enumerate().min_by_key(|&(_, &p)| loads[host_of(p)]).expect("a shard has members");
        shard.swap(0, least);
        loads[host_of(shard[0])] += 1;
    }
    balance(&mut shards, &mut loads, host_of);
    for place in extra {
        let best = (0..shards.len())
            .min_by_key(|&i| {
                let beside = shards[i].iter().filter(|&&p| host_of(p) == host_of(place)).count();
                let beside_primary = host_of(shards[i][0]) == host_of(place);
                (beside_primary, beside, shards[i].len())
            })
            .expect("there are at least PRIMARIES_MIN shards");
        shards[best].push(place);
    }
    shards
}

/// Moves the primary's role within shards until no host has two primaries more than
/// another: along a chain of shards from the fullest host to the emptiest. Each pass
/// makes the loads' sum of squares smaller, so it ends.
fn balance(shards: &mut [Vec<usize>], loads: &mut [usize], host_of: impl Fn(usize) -> usize) {
    loop {
        let (most, least) = (*loads.iter().max().unwrap_or(&0), *loads.iter().min().unwrap_or(&0));
        if most - least < 2 {
            return;
        }
        let chain = (0..loads.len())
            .filter(|&host| loads[host] == most)
            .find_map(|from| chain_to_emptier(shards, loads, from, &host_of));
        let Some(chain) = chain else { return };
        for (shard, member) in chain {
            loads[host_of(shards[shard][0])] -= 1;
            shards[shard].swap(0, member);
            loads[host_of(shards[shard][0])] += 1;
        }
    }
}

/// Breadth first: (shard, member) swaps that take one primary from `from` to a host
/// with at least two fewer.
fn chain_to_emptier(
    shards: &[Vec<usize>],
    loads: &[usize],
    from: usize,
    host_of: &impl Fn(usize) -> usize,
) -> Option<Vec<(usize, usize)>> {
    let mut came_by: Vec<Option<(usize, usize)>> = vec![None; loads.len()];
    let mut queue = VecDeque::from([from]);
    while let Some(host) = queue.pop_front() {
        for (index, shard) in shards.iter().enumerate().filter(|(_, s)| host_of(s[0]) == host) {
            for (member, &place) in shard.iter().enumerate().skip(1) {
                let next = host_of(place);
                if next == from || came_by[next].is_some() {
                    continue;
                }
                came_by[next] = Some((index, member));
                if loads[next] + 2 <= loads[from] {
                    let mut chain = Vec::new();
                    let mut at = next;
                    while at != from {
                        let step = came_by[at]?;
                        chain.push(step);
                        at = host_of(shards[step.0][0]);
                    }
                    return Some(chain);
                }
                queue.push_back(next);
            }
        }
    }
    None
}

fn gcd(a: usize, b: usize) -> usize {
    if b == 0 { a } else { gcd(b, a % b) }
}

#[cfg(test)]
mod tests;
