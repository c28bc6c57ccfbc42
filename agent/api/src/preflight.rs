//! What a preflight finds: whether hosts can bear the cluster that is asked for.
//!
//! A [`Finding`] is one check's figure beside its threshold, for the hosts of which it is
//! true. Failing findings are what can't work; warnings are what works and is slow or at
//! risk. Each check has a name, by which `cluster create --force` overrides it.

use std::fmt;
use std::str::FromStr;

use serde::{Deserialize, Serialize};

use crate::level::ClusterSpec;

/// What is checked, in the order in which a report shows it.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Check {
    /// Hosts that are there, and that answer.
    Hosts,
    /// Agents of one version.
    AgentVersions,
    /// A redis-server that can be executed.
    Server,
    /// redis-servers of one version.
    ServerVersions,
    /// `redis.tls` alike on all hosts.
    RedisTls,
    /// Data and bus ports.
    Ports,
    /// The range of ports that outgoing connections take theirs from.
    EphemeralPorts,
    /// Directories that may be written and hold nobody else's files.
    DataDir,
    /// Room on the disk.
    Disk,
    /// Open files of a server, and of all on a machine.
    FileDescriptors,
    /// Threads of all servers of a machine.
    Threads,
    /// Memory that the servers' full mesh takes.
    Memory,
    /// `vm.overcommit_memory`.
    OvercommitMemory,
    /// Transparent huge pages.
    TransparentHugePages,
    /// `net.core.somaxconn`.
    Somaxconn,
    /// `net.ipv4.tcp_mem` beside what the instances send each other at once when released.
    TcpMemory,
    /// Buffers of the agents' UDP socket.
    UdpBuffers,
    /// Clocks of the hosts beside each other.
    ClockSkew,
    /// `cluster-node-timeout` beside what N and the machines ask for.
    NodeTimeout,
    /// Gossip of the instances beside what the network bears.
    BusTraffic,
    /// The firewall's sets of members, where agents are to keep them.
    Firewall,
}

impl Check {
    /// All of them, in order.
    pub const ALL: [Self; 21] = [
        Self::Hosts,
        Self::AgentVersions,
        Self::Server,
        Self::ServerVersions,
        Self::RedisTls,
        Self::Ports,
        Self::EphemeralPorts,
        Self::DataDir,
        Self::Disk,
        Self::FileDescriptors,
        Self::Threads,
        Self::Memory,
        Self::OvercommitMemory,
        Self::TransparentHugePages,
        Self::Somaxconn,
        Self::TcpMemory,
        Self::UdpBuffers,
        Self::ClockSkew,
        Self::NodeTimeout,
        Self::BusTraffic,
        Self::Firewall,
    ];

    /// Its name, as people write it.
    pub fn name(self) -> &'static str {
        match self {
            Self::Hosts => "hosts",
            Self::AgentVersions => "agent-versions",
            Self::Server => "server",
            Self::ServerVersions => "server-versions",
            Self::RedisTls => "redis-tls",
            Self::Ports => "ports",
            Self::EphemeralPorts => "ephemeral-ports",
            Self::DataDir => "data-dir",
            Self::Disk => "disk",
            Self::FileDescriptors => "file-descriptors",
            Self::Threads => "threads",
            Self::Memory => "memory",
            Self::OvercommitMemory => "overcommit-memory",
            Self::TransparentHugePages => "transparent-huge-pages",
            Self::Somaxconn => "somaxconn",
            Self::TcpMemory => "tcp-memory",
            Self::UdpBuffers => "udp-buffers",
            Self::ClockSkew => "clock-skew",
            Self::NodeTimeout => "node-timeout",
            Self::BusTraffic => "bus-traffic",
            Self::Firewall => "firewall",
        }
    }
}

impl fmt::Display for Check {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(self.name())
    }
}

/// A name that no check has.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{name:?} is no check; there are {}", Check::ALL.map(Check::name).join(", "))]
pub struct UnknownCheck {
    /// What was written.
    pub name: String,
}

impl FromStr for Check {
    type Err = UnknownCheck;

    fn from_str(name: &str) -> Result<Self, UnknownCheck> {
        let found = Self::ALL.into_iter().find(|check| check.name() == name);
        found.ok_or_else(|| UnknownCheck { name: name.chars().take(80).collect() })
    }
}

/// How bad a finding is.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Severity {
    /// As it should be.
    Ok,
    /// It works, and will be slow or is at risk.
    Warn,
    /// It can't work.
    Fail,
}

/// What one check found, for the hosts of which it is true alike.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Finding {
    /// Which check.
    pub check: Check,
    /// Names of the hosts; empty where it is about the mesh as a whole.
    pub hosts: Vec<String>,
    /// How bad it is.
    pub severity: Severity,
    /// What there is, with its unit.
    pub figure: String,
    /// What there should be, with its unit.
    pub threshold: String,
    /// What it means; empty where all is well and nothing has to be said.
    pub words: String,
    /// The command or the setting that mends it.
    pub remedy: Option<String>,
}

/// All that a preflight found.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Report {
    /// The cluster for which the hosts were examined.
    pub spec: ClusterSpec,
    /// Its instances.
    pub instances: u32,
    /// Names of the hosts that would bear it.
    pub hosts: Vec<String>,
    /// Machines that these hosts are: agents on one machine share its memory.
    pub machines: u32,
    /// The `cluster-node-timeout` that it would have, milliseconds.
    pub node_timeout_ms: u32,
    /// The `hz` that it would have, ticks a second.
    pub hz: u32,
    /// By check, in the order of [`Check::ALL`].
    pub findings: Vec<Finding>,
}

impl Report {
    /// Findings of one severity.
    pub fn of(&self, severity: Severity) -> impl Iterator<Item = &Finding> {
        self.findings.iter().filter(move |finding| finding.severity == severity)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_name_is_read_back_and_is_what_json_has() {
        for check in Check::ALL {
            assert_eq!(check.name().parse(), Ok(check));
            assert_eq!(serde_json::to_value(check).expect("JSON"), check.name());
        }
        let mut sorted = Check::ALL;
        sorted.sort();
        assert_eq!(sorted, Check::ALL, "in the order in which they are shown");
        let words = "swap".parse::<Check>().expect_err("no check").to_string();
        assert!(words.starts_with("\"swap\" is no check; there are hosts, ") && words.contains("memory"));
    }
}
