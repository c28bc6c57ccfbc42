//! How many redis-servers this machine takes: a formula over cores and memory.

use anyhow::Context as _;
use procfs::{Current as _, Meminfo};

/// Instances per core. On 2 cores, 30 instances form in about 4 seconds and leave the
/// load threads half of the machine.
const PER_CORE: u64 = 15;

/// Memory of one server by itself, bytes (measured, Redis 7.0).
const SERVER_BYTES: u64 = 2_500_000;

/// Memory of one ordered pair of servers: both ends of its bus links, in the processes
/// and in the kernel, bytes (measured, Redis 7.0; newer ones take less).
const PAIR_BYTES: u64 = 27_000;

/// Part of the available memory that empty servers may take; the rest is for what is
/// written into them, and for everybody else.
const MEMORY_PART: u64 = 4;

/// What the formula looks at.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Machine {
    /// Cores that this process may use.
    pub cores: u64,
    /// Memory that can be had without swapping, bytes.
    pub memory_available: u64,
}

impl Machine {
    /// This one, as of now. A control group's limit counts where it is the lower.
    pub fn this() -> anyhow::Result<Self> {
        let cores = std::thread::available_parallelism().map_or(1, |cores| cores.get() as u64);
        let meminfo = Meminfo::current().context("/proc/meminfo")?;
        let memory = meminfo.mem_available.unwrap_or(meminfo.mem_free);
        let limit = ["/sys/fs/cgroup/memory.max", "/sys/fs/cgroup/memory/memory.limit_in_bytes"]
            .iter()
            .filter_map(|file| std::fs::read_to_string(file).ok()?.trim().parse::<u64>().ok())
            .min();
        Ok(Self { cores, memory_available: memory.min(limit.unwrap_or(u64::MAX)) })
    }
}

/// Memory that `instances` empty servers in full mesh take, bytes.
pub fn memory_of(instances: u64) -> u64 {
    instances
        .saturating_mul(SERVER_BYTES)
        .saturating_add(instances.saturating_mul(instances).saturating_mul(PAIR_BYTES))
}

/// Instances per host: [`PER_CORE`] for each core, no more in all than a quarter of the
/// memory holds, spread evenly; at least 1, at least what 3 primaries need, and at most
/// `per_host_max`.
pub fn per_host(machine: Machine, hosts: u16, replicas: u8, per_host_max: u16) -> u16 {
    let hosts = u64::from(hosts.max(1));
    let most = hosts * u64::from(per_host_max);
    let mut total = (machine.cores * PER_CORE).min(most);
    while total > 1 && memory_of(total) > machine.memory_available / MEMORY_PART {
        total -= 1;
    }
    let least = (PRIMARIES_MIN * (1 + u64::from(replicas))).div_ceil(hosts);
    let per_host = (total / hosts).max(least).max(1).min(u64::from(per_host_max));
    u16::try_from(per_host).expect("at most per_host_max, a u16")
}

/// Primaries that a Redis Cluster needs to outvote a failed one.
pub const PRIMARIES_MIN: u64 = 3;

#[cfg(test)]
mod tests {
    use super::*;

    const GIB: u64 = 1 << 30;

    fn machine(cores: u64, gib: u64) -> Machine {
        Machine { cores, memory_available: gib * GIB }
    }

    #[test]
    fn two_cores_take_thirty_instances() {
        assert_eq!(per_host(machine(2, 20), 10, 0, 100), 3);
        assert_eq!(per_host(machine(2, 20), 3, 0, 100), 10);
    }

    #[test]
    fn cores_memory_and_the_article_bound_it() {
        assert_eq!(per_host(machine(8, 64), 10, 0, 100), 12);
        assert_eq!(per_host(machine(208, 1600), 10, 0, 100), 100);
        // 64 cores would take 960, a quarter of 16 GiB holds some 350.
        assert_eq!(per_host(machine(64, 16), 10, 0, 100), 35);
    }

    #[test]
    fn the_smallest_machine_still_gets_a_cluster() {
        let poor = Machine { cores: 1, memory_available: 0 };
        assert_eq!(per_host(poor, 10, 0, 100), 1);
        assert_eq!(per_host(poor, 1, 0, 100), 3);
        assert_eq!(per_host(poor, 2, 1, 100), 3);
    }

    #[test]
    fn memory_is_what_was_measured() {
        // 300 servers took about 3 GB, 500 about 8.
        assert_eq!(memory_of(300) / 100_000_000, 31);
        assert_eq!(memory_of(500) / 100_000_000, 80);
        assert_eq!(memory_of(u64::MAX), u64::MAX);
    }

    #[test]
    fn this_machine_has_cores_and_memory() {
        let this = Machine::this().unwrap();
        assert!(this.cores > 0 && this.memory_available > 0);
    }
}
