//! The instances' gossip by arithmetic: how much of it there is, and how slow it must be.
//!
//! Pure. Every node pings every other at least once in half the node timeout, and each ping
//! is answered by a pong of the same size (Redis Cluster specification, `clusterCron`); a
//! message tells of a tenth of the cluster. So traffic grows with the cube of the size
//! and shrinks with the timeout. It is an upper bound: about 0.43 of it was seen.

use super::plan::INSTANCES_MAX;

/// Header of a bus message, slots included, bytes (`clusterMsg` of Redis 7).
const HEADER_BYTES: u64 = 2256;

/// What a bus message tells of one other node, bytes (`clusterMsgDataGossip`).
const ENTRY_BYTES: u64 = 104;

/// Part of the nodes that a message tells of: one in so many.
const ENTRY_PER_NODES: u64 = 10;

/// Part of the upper bound that was seen, percent.
pub const SEEN_PERCENT: u64 = 43;

/// The shortest node timeout that is recommended, milliseconds: the article's, and calm
/// wherever there is room.
const SHORT_MS: u64 = 5_000;

/// From here on a failure stays unnoticed for so long that it is worth a warning, milliseconds.
pub const NOTICED_LATE_MS: u32 = 60_000;

/// The longest, milliseconds: a cluster that does nothing but gossip is worse than one that
/// notices a failure late.
const LONG_MS: u64 = 300_000;

/// Bytes of messages that one core sends each second besides serving: 300 instances on 2 cores
/// were calm at 15 s, where this is the upper bound. Bytes, for each entry of a message is
/// looked up by who reads it.
const BYTES_PER_CORE_S: u64 = 12_000 * 5376;

/// Redis' own `hz`.
const HZ_USUAL: u32 = 10;

/// How long a server looks at one other node in each of its ticks (`clusterCron`), nanoseconds:
/// 500 idle instances took 1.6 cores at 10 ticks a second and 0.25 at one, 300 took 0.76 and 0.12.
const LOOK_NS: u64 = 600;

/// Part of a machine's cores that the ticks may take: one in so many.
const TICKS_PART: u64 = 8;

/// Part of a network's speed that the upper bound may take: one in so many. The rest is
/// for clients.
pub const NETWORK_PART: u64 = 2;

/// Timeouts are rounded up to whole multiples of this, milliseconds.
const STEP_MS: u64 = 500;

/// One machine of a cluster to be. Agents that run on one machine are one of these.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Machine {
    /// Cores that its instances may use.
    pub cores: u32,
    /// Instances on it, over all of its agents.
    pub instances: usize,
    /// Speed of its network, bits a second, where known.
    pub network_bits_per_s: Option<u64>,
}

/// Size of a ping or pong in a cluster of `n`, bytes.
pub fn message_bytes(n: usize) -> u64 {
    HEADER_BYTES + ENTRY_BYTES * n as u64 / ENTRY_PER_NODES
}

/// Messages that `instances` send to `peers` each, in all of the time of one node timeout:
/// two rounds of pings, and the pongs for as many.
fn messages_per_timeout(instances: usize, peers: usize) -> u64 {
    4 * instances as u64 * peers as u64
}

/// Upper bound of what `instances` of a cluster of `n` send to `peers` other nodes each,
/// bits a second; they receive as much.
pub fn bits_per_s(n: usize, instances: usize, peers: usize, node_timeout_ms: u32) -> u64 {
    let bits = messages_per_timeout(instances, peers) * message_bytes(n) * 8;
    bits.saturating_mul(1000) / u64::from(node_timeout_ms.max(1))
}

/// The `cluster-node-timeout` that suits a cluster of `n` on these machines, milliseconds.
///
/// At least 5 s. Longer where a machine's cores would have to send more than 64 MB of
/// messages a second each (12,000 in a cluster of 300), or where the gossip with other machines
/// could take more than half of the network. Where a network's speed is not known, N alone
/// decides for it: 5 s up to 100 instances, 15 s for 300 to 1000 (then 2.7 Gbit/s at most for
/// each 100 instances), above with the square. Never more than 300 s.
pub fn node_timeout_ms(n: usize, machines: &[Machine]) -> u32 {
    let n = n.min(INSTANCES_MAX);
    let longest = machines.iter().map(|machine| needed_ms(n, machine)).max().unwrap_or_else(|| by_size_ms(n));
    let ms = longest.clamp(SHORT_MS, LONG_MS).next_multiple_of(STEP_MS);
    u32::try_from(ms).expect("at most LONG_MS and a step")
}

fn needed_ms(n: usize, machine: &Machine) -> u64 {
    let here = machine.instances.min(n);
    let bytes = messages_per_timeout(here, n.saturating_sub(1)) * message_bytes(n);
    let by_cores = bytes.saturating_mul(1000) / (u64::from(machine.cores.max(1)) * BYTES_PER_CORE_S);
    let elsewhere = n - here;
    let by_network = match machine.network_bits_per_s {
        _ if elsewhere == 0 => 0,
        Some(speed) => {
            bits_per_s(n, here, elsewhere, 1000).saturating_mul(1000) / (speed / NETWORK_PART).max(1)
        }
        None => by_size_ms(n),
    };
    by_cores.max(by_network)
}

/// The `hz` that suits a cluster of `n` on these machines, ticks a second: Redis' own 10, less
/// where looking at all others would take more than an eighth of a machine's cores. Below it a
/// server still looks for failures once a second; keys expire later, and so do idle clients.
pub fn hz(n: usize, machines: &[Machine]) -> u32 {
    let n = n.min(INSTANCES_MAX) as u64;
    let afforded = |machine: &Machine| {
        let look_ns = n * (machine.instances as u64).min(n) * LOOK_NS;
        u64::from(machine.cores.max(1)) * 1_000_000_000 / TICKS_PART / look_ns.max(1)
    };
    let least = machines.iter().map(afforded).min().unwrap_or(u64::MAX);
    u32::try_from(least).unwrap_or(u32::MAX).clamp(1, HZ_USUAL)
}

/// What N alone asks for, of a network that nobody knows.
fn by_size_ms(n: usize) -> u64 {
    const SMALL: (u64, u64) = (100, SHORT_MS);
    const LARGE: (u64, u64) = (300, 15_000);
    const SQUARE_FROM: u64 = 1000;
    let n = n as u64;
    if n <= SMALL.0 {
        SMALL.1
    } else if n <= LARGE.0 {
        SMALL.1 + (LARGE.1 - SMALL.1) * (n - SMALL.0) / (LARGE.0 - SMALL.0)
    } else if n <= SQUARE_FROM {
        LARGE.1
    } else {
        LARGE.1 * n * n / (SQUARE_FROM * SQUARE_FROM)
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn machine(cores: u32, instances: usize, gbit: Option<u64>) -> Machine {
        Machine { cores, instances, network_bits_per_s: gbit.map(|gbit| gbit * 1_000_000_000) }
    }

    #[test]
    fn traffic_is_what_the_articles_cluster_could_have_at_the_most() {
        assert_eq!(message_bytes(1000), 12_656);
        let gbit = |timeout| bits_per_s(1000, 100, 999, timeout) / 10_000_000;
        assert_eq!((gbit(5_000), gbit(15_000)), (809, 269), "8.1 and 2.7 Gbit/s a host");
        assert_eq!(bits_per_s(1, 1, 0, 5000), 0);
        assert!(bits_per_s(16_384, 16_384, 16_384, 0) > 0, "nothing overflows");
    }

    #[test]
    fn timeouts_follow_from_cores() {
        let alone = |n, cores| node_timeout_ms(n, &[machine(cores, n, None)]);
        assert_eq!(
            [30, 100, 173, 200, 300, 500, 1000].map(|n| alone(n, 2)),
            [5_000, 5_000, 5_000, 5_500, 15_000, 58_000, 300_000]
        );
        assert_eq!(alone(300, 8), 5_000);
        assert_eq!(alone(1000, 0), 300_000);
    }

    #[test]
    fn ticks_follow_from_cores() {
        let alone = |n, cores| hz(n, &[machine(cores, n, None)]);
        assert_eq!([100, 200, 300, 500, 1000].map(|n| alone(n, 2)), [10, 10, 4, 1, 1]);
        assert_eq!([1, 8, 104].map(|cores| hz(1000, &[machine(cores, 100, None)])), [2, 10, 10]);
        assert_eq!(hz(300, &[machine(2, 300, None), machine(2, 10, None)]), 4, "the weakest decides");
        assert_eq!((hz(1000, &[]), alone(0, 0), alone(usize::MAX, u32::MAX)), (10, 10, 10));
    }

    #[test]
    fn timeouts_follow_from_the_network() {
        let ten = |gbit| node_timeout_ms(1000, &[machine(104, 100, gbit); 10]);
        assert_eq!([Some(25), Some(10), Some(1), None].map(ten), [5_000, 7_500, 73_000, 15_000]);
        let mixed = [machine(104, 100, Some(25)), machine(2, 100, Some(25))];
        assert_eq!(node_timeout_ms(1000, &mixed), 39_500, "the weakest decides");
        let small = |n| node_timeout_ms(n, &[machine(64, n / 10, None)]);
        assert_eq!(
            [10, 100, 200, 300, 2000, 16_384].map(small),
            [5_000, 5_000, 10_000, 15_000, 60_000, 300_000]
        );
        assert_eq!(node_timeout_ms(200, &[]), 10_000, "of machines that nobody knows");
    }

    proptest! {
        #[test]
        fn timeouts_are_bounded_and_grow(n in 1usize..20_000, cores: u32, here in 0usize..20_000, gbit: Option<u64>) {
            let machine = Machine { cores, instances: here, network_bits_per_s: gbit };
            let ms = node_timeout_ms(n, &[machine]);
            prop_assert!((5_000..=300_000).contains(&ms));
            let better = Machine { cores: cores.saturating_add(1), ..machine };
            prop_assert!(node_timeout_ms(n, &[better]) <= ms);
        }
    }
}
