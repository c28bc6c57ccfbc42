//! Checks of one host by itself: what its kernel allows, and what is in the way.

use redmesh_api::level::BUS_PORT_OFFSET;
use redmesh_api::preflight::Severity;

use super::{Case, HostSeen, Verdict};
use crate::cluster::redis_conf::TCP_BACKLOG;
use crate::cluster::{ServerVersion, clients_needed};
use crate::nft;
use crate::preflight::readings::Readings;
use crate::preflight::words::{bytes, count, ranges};
use crate::supervisor::FDS_RESERVED;
use crate::transport::quic::SOCKET_BUFFER_BYTES;

/// Threads of one redis-server: its own, three for background work, one of the allocator,
/// and one to spare.
pub(super) const THREADS_PER_SERVER: u64 = 6;

/// The sets of members, where the agent is to keep them.
pub(super) fn firewall(read: &Readings) -> Verdict {
    let threshold = "CAP_NET_ADMIN, both sets, and rules";
    let Some(firewall) = &read.firewall else {
        return Verdict::ok("not managed", "anything, where firewall.manage = false");
    };
    if !firewall.capability {
        return Verdict::ok("no CAP_NET_ADMIN", threshold).but(
            Severity::Warn,
            "firewall.manage = true, and the agent may not change the firewall: its members are not kept",
            nft::CAPABILITY_REMEDY,
        );
    }
    let rules = "redmeshctl deploy nftables --clients … --operators … >redmesh.nft, and on the host nft -f redmesh.nft";
    match &firewall.table {
        Err(reason) => Verdict::ok("can't be read", threshold).but(
            Severity::Warn,
            format!("firewall.manage = true: {reason}"),
            "apt-get install nftables (or set firewall.manage = false)",
        ),
        Ok(table) if table.sets < 2 => Verdict::ok(format!("{} of 2 sets", table.sets), threshold).but(
            Severity::Warn,
            "the sets of members are not in the table inet redmesh, though the agent writes them every 15 s",
            "journalctl -u redmesh-agent | grep firewall (what nft refused), then nft list table inet redmesh",
        ),
        Ok(table) if !table.input => Verdict::ok("2 sets, no rules", threshold).but(
            Severity::Warn,
            "the sets of members are kept, and no chain of the table inet redmesh uses them: nothing is shut out",
            rules,
        ),
        Ok(_) => Verdict::ok("2 sets, rules", threshold),
    }
}

pub(super) fn server(read: &Readings) -> Verdict {
    let threshold = "redis-server or valkey-server";
    let install = "apt-get install redis-server (or set redis.server to its path)";
    match &read.server {
        Err(reason) => Verdict::ok("none", threshold).but(Severity::Fail, reason, install),
        Ok(text) => match ServerVersion::parse(text) {
            Ok(version) => Verdict::ok(version.to_string(), threshold),
            Err(error) => Verdict::ok("unknown", threshold).but(Severity::Fail, error.to_string(), install),
        },
    }
}

pub(super) fn ports(case: &Case<'_>, host: &HostSeen, read: &Readings) -> Verdict {
    let planned = case.on(host);
    if !case.starts_servers() {
        let threshold = format!("{planned} data ports in use");
        return match read.silent {
            None => Verdict::ok("all in use", threshold),
            Some((first, more)) => Verdict::ok(format!("{more} silent"), threshold).but(
                Severity::Fail,
                format!("nobody listens at {first}: existing servers are to be joined, and must run"),
                format!("redis-server --port {} --cluster-enabled yes --bind {}", first.port(), first.ip()),
            ),
        };
    }
    let threshold = "all free";
    let Some(first) = read.ports.first() else {
        return match read.own {
            0 => Verdict::ok(format!("{planned} data, {planned} bus free"), threshold),
            own => Verdict::ok(format!("{own} of {planned} are our own instances'"), threshold),
        };
    };
    let taken = read.ports.len() + read.ports_more as usize;
    let mut words: Vec<&str> = read.ports.iter().map(|problem| problem.words.as_str()).collect();
    let more = format!("{} more are taken", read.ports_more);
    if read.ports_more > 0 {
        words.push(&more);
    }
    Verdict::ok(format!("{taken} not free"), threshold).but(Severity::Fail, words.join("; "), &first.remedy)
}

/// An outgoing connection may have taken an instance's port when the instance wants it.
pub(super) fn ephemeral_ports(case: &Case<'_>, host: &HostSeen, read: &Readings) -> Verdict {
    let last = u16::try_from(case.on(host).saturating_sub(1)).unwrap_or(u16::MAX);
    let data = (host.base_port, host.base_port.saturating_add(last));
    let bus = (data.0.saturating_add(BUS_PORT_OFFSET), data.1.saturating_add(BUS_PORT_OFFSET));
    let threshold = format!("apart from {}", ranges(&[data, bus]));
    let Some(range) = read.ephemeral else { return Verdict::unknown(threshold) };
    let inside = |reserved: &(u16, u16), ports: (u16, u16)| reserved.0 <= ports.0 && ports.1 <= reserved.1;
    let exposed: Vec<(u16, u16)> = [data, bus]
        .into_iter()
        .filter(|ports| ports.0 <= range.1 && range.0 <= ports.1)
        .filter(|ports| !read.reserved.iter().any(|reserved| inside(reserved, *ports)))
        .collect();
    let verdict = Verdict::ok(ranges(&[range]), threshold);
    if exposed.is_empty() {
        return verdict;
    }
    let reserve: Vec<_> = read.reserved.iter().copied().chain(exposed.iter().copied()).collect();
    verdict.but(
        Severity::Warn,
        format!(
            "an outgoing connection may take one of the ports {} before its instance does",
            ranges(&exposed)
        ),
        format!("sysctl -w net.ipv4.ip_local_reserved_ports={}", ranges(&reserve)),
    )
}

pub(super) fn data_dir(read: &Readings) -> Verdict {
    let threshold = "writable, no other cluster's";
    match &read.dir_problem {
        None => Verdict::ok("usable", threshold),
        Some(problem) => {
            Verdict::ok("not usable", threshold).but(Severity::Fail, &problem.words, &problem.remedy)
        }
    }
}

/// Open files of one server: 2·(N−1) bus links, clients, and its own.
pub(super) fn open_files(case: &Case<'_>, read: &Readings) -> Verdict {
    let need = u64::from(clients_needed(case.instances)) + FDS_RESERVED;
    let threshold = format!("at least {} a server", count(need));
    let Some(hard) = read.nofile_hard else { return Verdict::ok("no hard limit", threshold) };
    let verdict = Verdict::ok(format!("hard limit {}", count(hard)), threshold);
    if hard >= need {
        return verdict;
    }
    verdict.but(
        Severity::Fail,
        format!(
            "a server needs {} bus links, {} other clients and {FDS_RESERVED} files of its own",
            count(2 * case.peers() as u64),
            count(u64::from(clients_needed(0)))
        ),
        drop_in(&format!("LimitNOFILE={need}")),
    )
}

/// Tasks that the unit's control group allows; `None` where it sets no limit.
pub(super) fn tasks(case: &Case<'_>, host: &HostSeen, read: &Readings) -> Option<Verdict> {
    let left = read.tasks_left?;
    let missing = case.on(host).saturating_sub(read.own as usize) as u64;
    let need = missing * THREADS_PER_SERVER;
    let verdict = Verdict::ok(
        format!("{} left in the unit", count(left)),
        format!("at least {} for {missing} servers", count(need)),
    );
    Some(match need > left {
        false => verdict,
        true => verdict.but(
            Severity::Fail,
            "servers could not be started: the control group's limit of tasks is too low",
            "systemctl set-property redmesh-agent.service TasksMax=infinity",
        ),
    })
}

pub(super) fn overcommit(read: &Readings) -> Verdict {
    let threshold = "1";
    match read.overcommit {
        None => Verdict::unknown(threshold),
        Some(1) => Verdict::ok("1", threshold),
        Some(mode) => Verdict::ok(mode.to_string(), threshold).but(
            Severity::Warn,
            "a server may fail to fork when memory is low, so that replicas can't sync and nothing can be saved",
            "sysctl -w vm.overcommit_memory=1",
        ),
    }
}

/// Servers switch them off for themselves where they can; `always` slows down the others.
pub(super) fn huge_pages(read: &Readings) -> Verdict {
    let threshold = "madvise or never";
    match read.huge_pages.as_deref() {
        None => Verdict::ok("none in this kernel", threshold),
        Some("always") => Verdict::ok("always", threshold).but(
            Severity::Warn,
            "latency and memory grow when a server forks",
            "echo madvise > /sys/kernel/mm/transparent_hugepage/enabled",
        ),
        Some(other) => Verdict::ok(other, threshold),
    }
}

/// All peers connect at once when a cluster is released.
pub(super) fn somaxconn(case: &Case<'_>, read: &Readings) -> Verdict {
    let need = u64::from(TCP_BACKLOG).min(case.peers() as u64);
    let threshold = format!("at least {}", count(need));
    let Some(max) = read.somaxconn else { return Verdict::unknown(threshold) };
    let verdict = Verdict::ok(count(max), threshold);
    if max >= need {
        return verdict;
    }
    verdict.but(
        Severity::Warn,
        format!(
            "{} peers connect to each server at once; those beyond wait for a second or more",
            case.peers()
        ),
        format!("sysctl -w net.core.somaxconn={TCP_BACKLOG}"),
    )
}

pub(super) fn udp_buffers(read: &Readings) -> Verdict {
    let want = SOCKET_BUFFER_BYTES as u64;
    let (receive, send) = read.udp_buffers;
    let verdict = Verdict::ok(
        format!("{} in, {} out", bytes(receive), bytes(send)),
        format!("at least {}", bytes(want)),
    );
    if receive.min(send) >= want {
        return verdict;
    }
    verdict.but(
        Severity::Warn,
        "all of the agent's connections share these buffers; bursts beyond are lost and sent again",
        format!(
            "sysctl -w net.core.rmem_max={want} net.core.wmem_max={want} && systemctl restart redmesh-agent"
        ),
    )
}

/// A setting of the unit, put beside it.
fn drop_in(setting: &str) -> String {
    let dir = "/etc/systemd/system/redmesh-agent.service.d";
    format!(
        "mkdir -p {dir} && printf '[Service]\\n{setting}\\n' > {dir}/limits.conf && systemctl daemon-reload && \
         systemctl restart redmesh-agent"
    )
}
