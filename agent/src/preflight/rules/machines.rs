//! Checks of what agents on one machine share: memory, files, threads, disk, network; and
//! the node timeout, which follows from all machines.
//!
//! The figures of memory were measured with full meshes on one machine (Redis 7.0.15,
//! Valkey 8.0.1): 300 instances took 3 GB, 500 some 8.

use std::collections::BTreeMap;

use redmesh_api::preflight::{Check, Severity};

use super::limits::THREADS_PER_SERVER;
use super::{Case, Findings, MachineSeen, Verdict, version_of};
use crate::cluster::redis_conf::LARGE_FROM;
use crate::cluster::{NodesConfFormat, ServerVersion, bus};
use crate::preflight::words::{bits, bytes, count};
use crate::supervisor::FDS_RESERVED;

/// Memory of one server by itself, bytes.
const SERVER_BYTES: u64 = 2_500_000;

/// What a server keeps of each peer, bytes: Redis 7.2 and later, Valkey.
const PEER_BYTES: u64 = 8_000;

/// The same of older servers, and of those whose version is not known.
const PEER_BYTES_OLD: u64 = 19_000;

/// What TLS adds for each peer, bytes: two sessions of OpenSSL's (60 servers of Redis 7.0.15 beside 20).
const PEER_TLS_BYTES: u64 = 87_000;

/// Kernel memory of one connected socket, bytes; a server has two for each peer.
const SOCKET_BYTES: u64 = 3_900;

/// Part of the available memory beyond which links that open all at once may be too much,
/// percent: their peak was a fifth above what stayed.
const MEMORY_CALM_PERCENT: u64 = 75;

/// Disk of one server, bytes: its configuration, and a log of ordinary length.
const DISK_SERVER_BYTES: u64 = 1 << 20;

/// Disk for each line of a `nodes.conf`, bytes; it is written anew beside the old one.
const DISK_PEER_BYTES: u64 = 2 * 200;

/// So many times what is needed should be free: logs grow.
const DISK_ROOM: u64 = 10;

/// Memory of `servers` in a cluster of `n`, bytes.
fn memory_of(servers: usize, n: usize, peer_bytes: u64) -> u64 {
    let peers = n.saturating_sub(1) as u64;
    servers as u64 * (SERVER_BYTES + peers * (peer_bytes + 2 * SOCKET_BYTES))
}

/// Kernel memory of a message that waits to be read, for each byte of it.
const BUFFER_PER_BYTE: u64 = 1;

/// Of the messages of a release at once, the part that waits when it is paced.
const PACED_PART: u64 = 3;

/// What instances send their peers when they are released, before these read.
pub(super) fn tcp_memory(case: &Case<'_>, machine: &MachineSeen<'_>) -> Verdict {
    let messages = machine.missing as u64 * case.peers() as u64;
    let at_once = messages * bus::message_bytes(case.instances) * BUFFER_PER_BYTE;
    let need = if case.instances < LARGE_FROM { at_once } else { at_once / PACED_PART };
    let Some(pressure) = machine.readings().filter_map(|read| read.tcp_pressure).min() else {
        return Verdict::ok(bytes(need), "not known");
    };
    let verdict = Verdict::ok(bytes(need), format!("at most {}", bytes(pressure)));
    if need <= pressure {
        return verdict;
    }
    let pages = need / rustix::param::page_size() as u64;
    verdict.but(
        Severity::Warn,
        "the kernel then cuts windows and drops what it has received: forming takes several times as long",
        format!("sysctl -w net.ipv4.tcp_mem=\"{} {} {}\"", pages, pages * 2, pages * 3),
    )
}

pub(super) fn memory(case: &Case<'_>, machine: &MachineSeen<'_>) -> Verdict {
    // Those that write plain files are those that keep more for each peer.
    let is_old = |version: ServerVersion| version.nodes_conf_format() == Some(NodesConfFormat::Plain);
    let old = machine.readings().any(|read| version_of(read).is_none_or(is_old));
    let tls = machine.hosts.iter().any(|(host, _)| host.redis_tls);
    let by_tls = if tls { PEER_TLS_BYTES } else { 0 };
    let peer_bytes = by_tls + if old { PEER_BYTES_OLD } else { PEER_BYTES };
    let need = memory_of(machine.missing, case.instances, peer_bytes);
    let figure = format!("{} for {} servers", bytes(need), count(machine.missing as u64));
    let Some(available) = machine.readings().filter_map(|read| read.memory_available).min() else {
        return Verdict::ok(figure, "not known");
    };
    let calm = available / 100 * MEMORY_CALM_PERCENT;
    let verdict = Verdict::ok(figure, format!("at most {} of {}", bytes(calm), bytes(available)));
    let whom = format!("{} instances in full mesh", count(case.instances as u64));
    let mut less = String::new();
    let newer = memory_of(machine.missing, case.instances, by_tls + PEER_BYTES);
    if old && newer < need {
        let newer = bytes(newer);
        less = format!("; Redis 7.2 and later, or Valkey, would take {newer}");
    }
    let spec = &case.question.spec;
    let fits = (1..spec.instances_per_host).rev().find(|&per_host| {
        let (here, all) = (machine.hosts.len(), case.question.hosts.len());
        let per_host = usize::from(per_host);
        memory_of(here * per_host, all * per_host, peer_bytes) <= calm
    });
    let remedy = match fits {
        Some(per_host) if spec.instances_of.is_empty() => {
            format!("redmeshctl cluster create --instances-per-host {per_host}")
        }
        _ => "ask for fewer instances, or add hosts".to_owned(),
    };
    match need {
        need if need > available => {
            verdict.but(Severity::Fail, format!("{whom}: the kernel would kill some of them{less}"), remedy)
        }
        need if need > calm => verdict.but(
            Severity::Warn,
            format!("{whom}, which peaks higher while all links open{less}"),
            remedy,
        ),
        _ => verdict,
    }
}

/// Bus links and own files of all servers of a machine; clients come and go.
pub(super) fn open_files(case: &Case<'_>, machine: &MachineSeen<'_>) -> Verdict {
    let each = 2 * case.peers() as u64 + FDS_RESERVED;
    let need = machine.missing as u64 * each;
    let max = machine.readings().filter_map(|read| read.file_max).min();
    let open = machine.readings().filter_map(|read| read.files_open).max().unwrap_or(0);
    let figure = format!("{} for {} servers", count(need), count(machine.missing as u64));
    let Some(max) = max else { return Verdict::ok(figure, "not known") };
    let verdict = Verdict::ok(figure, format!("at most fs.file-max {}", count(max)));
    if open.saturating_add(need) <= max {
        return verdict;
    }
    verdict.but(
        Severity::Fail,
        format!("{} are open already; what is more than fs.file-max is refused", count(open)),
        format!("sysctl -w fs.file-max={}", open.saturating_add(need).saturating_mul(2)),
    )
}

pub(super) fn threads(machine: &MachineSeen<'_>) -> Verdict {
    let need = machine.missing as u64 * THREADS_PER_SERVER;
    let now = machine.readings().filter_map(|read| read.threads).max().unwrap_or(0);
    let figure = format!("{} for {} servers", count(need), count(machine.missing as u64));
    let Some(max) = machine.readings().filter_map(|read| read.threads_max).min() else {
        return Verdict::ok(figure, "not known");
    };
    let verdict = Verdict::ok(figure, format!("at most {} (kernel.pid_max, threads-max)", count(max)));
    if now.saturating_add(need) <= max {
        return verdict;
    }
    let enough = now.saturating_add(need).saturating_mul(2);
    verdict.but(
        Severity::Fail,
        format!("{} run already, so that servers could not be started", count(now)),
        format!("sysctl -w kernel.pid_max={enough} kernel.threads-max={enough}"),
    )
}

/// File systems, of which hosts on one machine may share one.
pub(super) fn disks(case: &Case<'_>, findings: &mut Findings) {
    for machine in &case.machines {
        let mut by_device: BTreeMap<u64, (u64, u64, Vec<&str>, &str)> = BTreeMap::new();
        for (host, read) in &machine.hosts {
            let Some((device, free)) = read.disk else { continue };
            let servers = case.on(host).saturating_sub(read.own as usize) as u64;
            let need = servers * (DISK_SERVER_BYTES + case.instances as u64 * DISK_PEER_BYTES);
            let entry = by_device.entry(device).or_insert((free, 0, Vec::new(), &read.data_dir));
            entry.0 = entry.0.min(free);
            entry.1 += need;
            entry.2.push(&host.name);
        }
        for (free, need, hosts, dir) in by_device.into_values() {
            let figure = format!("{} free", bytes(free));
            let verdict = Verdict::ok(figure, format!("at least {}", bytes(need)));
            let remedy =
                format!("du -xh {dir} | sort -h | tail (and free some, or set redis.data_dir elsewhere)");
            let verdict = match free {
                free if free < need => {
                    verdict.but(Severity::Fail, "directories of the instances would not fit", remedy)
                }
                free if free < need.saturating_mul(DISK_ROOM) => {
                    verdict.but(Severity::Warn, "logs that grow may fill it", remedy)
                }
                _ => verdict,
            };
            findings.add(Check::Disk, &hosts, verdict);
        }
    }
}

/// The machines, as the bus' arithmetic takes them.
pub(super) fn for_bus(case: &Case<'_>) -> Vec<bus::Machine> {
    case.machines.iter().map(MachineSeen::for_bus).collect()
}

/// Holds what is asked for against what suits; says what the cluster will have.
pub(super) fn node_timeout(case: &Case<'_>, findings: &mut Findings) -> u32 {
    let suits = bus::node_timeout_ms(case.instances, &for_bus(case));
    let asked = case.question.spec.node_timeout_ms.or(case.question.planned_timeout_ms);
    let ms = asked.unwrap_or(suits);
    let verdict =
        Verdict::ok(format!("{} ms", count(ms.into())), format!("at least {} ms", count(suits.into())));
    let verdict = match ms < suits {
        false if ms > bus::NOTICED_LATE_MS => verdict.but(
            Severity::Warn,
            format!("a server that died is noticed only after {} s", ms / 1000),
            "fewer instances a machine, more cores, or a network that is faster or whose speed is known",
        ),
        false => verdict,
        true => verdict.but(
            Severity::Warn,
            format!(
                "{} instances on these machines may gossip so much that a busy one is taken for a dead one",
                count(case.instances as u64)
            ),
            format!("redmeshctl cluster create --node-timeout {suits} (or leave the option out)"),
        ),
    };
    findings.add(Check::NodeTimeout, &[], verdict);
    ms
}

pub(super) fn bus_traffic(case: &Case<'_>, machine: &MachineSeen<'_>, node_timeout_ms: u32) -> Verdict {
    let seen = machine.for_bus();
    let elsewhere = case.instances.saturating_sub(machine.instances);
    let most = bus::bits_per_s(case.instances, machine.instances, elsewhere, node_timeout_ms);
    if elsewhere == 0 {
        return Verdict::ok("none leaves the machine", "any");
    }
    let figure = format!("at most {} each way", bits(most));
    let names: Vec<&str> = machine.readings().filter_map(|read| read.network.interface.as_deref()).collect();
    let name = names.first().copied().unwrap_or("the network");
    let Some(speed) = seen.network_bits_per_s else {
        return Verdict::ok(figure, format!("{name}'s speed is not known"));
    };
    let half = speed / bus::NETWORK_PART;
    let verdict = Verdict::ok(figure, format!("at most half of {name}'s {}", bits(speed)));
    // Traffic shrinks as the timeout grows.
    let calm_ms = (u128::from(most) * u128::from(node_timeout_ms)).div_ceil(u128::from(half.max(1)));
    let remedy = format!("redmeshctl cluster create --node-timeout {calm_ms} (or fewer instances)");
    let likely = most / 100 * bus::SEEN_PERCENT;
    match most {
        _ if likely > speed => verdict.but(
            Severity::Fail,
            format!(
                "about {} is likely, more than the network bears: nodes would be taken for dead",
                bits(likely)
            ),
            remedy,
        ),
        most if most > half => verdict.but(
            Severity::Warn,
            format!("about {} is likely, and clients share what is left", bits(likely)),
            remedy,
        ),
        _ => verdict,
    }
}
