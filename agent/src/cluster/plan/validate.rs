//! Whether a request can be planned at all, and of how many shards.
//!
//! All of it is known before anything is placed: whatever passes here gets a plan that
//! keeps every promise.

use std::collections::BTreeSet;

use redmesh_api::level::{BUS_PORT_OFFSET, PlannedHost};
use redmesh_api::limits::INSTANCES_PER_HOST_MAX;

use super::error::PlanError;
use super::placement::shards_that_fit;
use super::{INSTANCES_MAX, NODE_TIMEOUT_MS_MAX, NODE_TIMEOUT_MS_MIN, PRIMARIES_MIN, PlanInput};

/// Large hosts that an error names.
const NAMED_MAX: usize = 5;

/// Checks `input`.
///
/// # Errors
/// [`PlanError`], with the remedy.
pub fn validate(input: &PlanInput, node_timeout_ms: u32) -> Result<(), PlanError> {
    let spec = &input.spec;
    if input.hosts.is_empty() {
        return Err(PlanError::NoHosts);
    }
    let per_host = spec.instances_per_host;
    if per_host == 0 || per_host > INSTANCES_PER_HOST_MAX {
        return Err(PlanError::InstancesPerHost { got: per_host, max: INSTANCES_PER_HOST_MAX });
    }
    let mut seen = BTreeSet::new();
    let mut bearing = Vec::new();
    for host in &input.hosts {
        if !seen.insert(host.id) {
            return Err(PlanError::DuplicateHost { id: host.id, name: host.name.clone() });
        }
        let instances = spec.instances_on(&host.name);
        if instances > INSTANCES_PER_HOST_MAX {
            let name = host.name.clone();
            return Err(PlanError::InstancesOfHost { name, got: instances, max: INSTANCES_PER_HOST_MAX });
        }
        if instances == 0 {
            continue;
        }
        if host.ip.is_unspecified() || host.ip.is_multicast() {
            return Err(PlanError::Address { name: host.name.clone(), ip: host.ip });
        }
        bearing.push((host, instances));
    }
    if bearing.is_empty() {
        return Err(PlanError::AllLeftOut);
    }
    shards(&bearing, spec.replicas)?;
    ports(&bearing)?;
    if !(NODE_TIMEOUT_MS_MIN..=NODE_TIMEOUT_MS_MAX).contains(&node_timeout_ms) {
        return Err(PlanError::NodeTimeout { got: node_timeout_ms });
    }
    Ok(())
}

/// Whether the hosts' instances can all be placed so that no two copies share a host.
fn shards(bearing: &[(&PlannedHost, u16)], replicas: u8) -> Result<(), PlanError> {
    let (hosts, copies) = (bearing.len(), usize::from(replicas) + 1);
    let sizes: Vec<usize> = bearing.iter().map(|&(_, instances)| usize::from(instances)).collect();
    let instances = sizes.iter().sum();
    if instances > INSTANCES_MAX {
        return Err(PlanError::TooManyInstances { got: instances, max: INSTANCES_MAX });
    }
    if copies > hosts {
        return Err(PlanError::TooFewHosts { replicas, needed: copies, hosts, most: hosts - 1 });
    }
    let fit = shards_that_fit(&sizes, copies);
    if fit < PRIMARIES_MIN {
        return Err(PlanError::TooFewPrimaries {
            instances,
            hosts,
            replicas,
            primaries: fit,
            enough: (PRIMARIES_MIN * copies).div_ceil(hosts),
        });
    }
    let mut large: Vec<_> = bearing.iter().filter(|&&(_, size)| usize::from(size) > fit).collect();
    large.sort_by_key(|&&(_, size)| std::cmp::Reverse(size));
    let Some((largest, _)) = large.first() else { return Ok(()) };
    let named = large.iter().take(NAMED_MAX);
    let mut words: Vec<_> = named
        .map(|(host, size)| format!("host {:?} bears {size} of {instances} instances", host.name))
        .collect();
    if large.len() > NAMED_MAX {
        words.push(format!("{} more hosts", large.len() - NAMED_MAX));
    }
    Err(PlanError::HostsTooLarge { large: words.join(", "), name: largest.name.clone(), replicas, fit })
}

fn ports(bearing: &[(&PlannedHost, u16)]) -> Result<(), PlanError> {
    const DATA_PORT_MAX: u32 = (u16::MAX - BUS_PORT_OFFSET) as u32;
    for (host, instances) in bearing {
        let first = u32::from(host.base_port);
        let last = first + u32::from(*instances) - 1;
        if first == 0 || last > DATA_PORT_MAX {
            return Err(PlanError::Ports { name: host.name.clone(), first, last });
        }
    }
    // Sorted by address, only neighbours on one address have to be compared.
    let mut sorted = bearing.to_vec();
    sorted.sort_by_key(|(host, _)| (host.ip, host.base_port));
    for (i, (a, of_a)) in sorted.iter().enumerate() {
        for (b, of_b) in sorted[i + 1..].iter().take_while(|(b, _)| b.ip == a.ip) {
            let gap = b.base_port - a.base_port;
            // b's data ports against a's data ports, then against a's bus ports.
            if gap < *of_a || (gap < BUS_PORT_OFFSET + of_a && BUS_PORT_OFFSET < gap + of_b) {
                return Err(PlanError::PortsOverlap {
                    a: a.name.clone(),
                    b: b.name.clone(),
                    ip: a.ip,
                    apart: *of_a.max(of_b),
                });
            }
        }
    }
    Ok(())
}
