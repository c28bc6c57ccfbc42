//! Why no plan can be made of a request: each with the host or figure, and the remedy.

use std::net::IpAddr;

use redmesh_api::ids::HostId;

use super::{NODE_TIMEOUT_MS_MAX, NODE_TIMEOUT_MS_MIN, PRIMARIES_MIN};

/// Why no plan can be made of a request. The texts are for the person who asked.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum PlanError {
    /// No hosts.
    #[error("there is no host to bear instances: start at least one agent")]
    NoHosts,
    /// `instances_of` leaves out every host.
    #[error("every host is left out, each has 0 instances: leave at least one of them its instances")]
    AllLeftOut,
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
    /// A host's own number of instances is out of bounds.
    #[error("{got} instances on host {name:?} are out of bounds: ask for 0 to {max} (0 leaves it out)")]
    InstancesOfHost {
        /// The host.
        name: String,
        /// What was asked for.
        got: u16,
        /// The most.
        max: u16,
    },
    /// More instances than slots.
    #[error("{got} instances are more than the {max} slots that there are: lower the instances per host")]
    TooManyInstances {
        /// Instances of all hosts.
        got: usize,
        /// The most.
        max: usize,
    },
    /// Fewer than three primaries.
    #[error(
        "{instances} instances on {hosts} hosts with {replicas} replicas each make {primaries} primaries, \
         and Redis Cluster needs at least {PRIMARIES_MIN}: ask for at least {enough} instances per host, or \
         add hosts"
    )]
    TooFewPrimaries {
        /// Instances in all.
        instances: usize,
        /// Hosts that bear some.
        hosts: usize,
        /// Replicas of each primary.
        replicas: u8,
        /// What that makes.
        primaries: usize,
        /// Instances that would do, if every host bore at least so many.
        enough: usize,
    },
    /// Replicas that would share a host.
    #[error(
        "{replicas} replicas of each primary need at least {needed} hosts, so that no two copies share \
         one; {hosts} bear instances: add hosts or ask for at most {most} replicas"
    )]
    TooFewHosts {
        /// Replicas of each primary.
        replicas: u8,
        /// Hosts needed.
        needed: usize,
        /// Hosts that bear instances.
        hosts: usize,
        /// Replicas that these hosts allow.
        most: usize,
    },
    /// Hosts so large that others can't hold the copies of all their instances.
    #[error(
        "{large}: with {replicas} replicas of each primary every instance needs copies of its shard on \
         {replicas} other hosts, and those have room for the copies of {fit}: ask for at most {fit} there \
         (--instances {name}={fit}), give the other hosts more, or ask for fewer replicas"
    )]
    HostsTooLarge {
        /// The hosts, each with its instances, in words.
        large: String,
        /// The largest of them.
        name: String,
        /// Replicas of each primary.
        replicas: u8,
        /// Instances that each of them could bear beside the others as they are.
        fit: usize,
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
        /// Instances of the larger one.
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
