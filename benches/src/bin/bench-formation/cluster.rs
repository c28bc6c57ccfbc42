//! Where the instances of a formation are, and what is the same for both peers.

use std::net::{Ipv4Addr, SocketAddr};
use std::path::PathBuf;
use std::time::Duration;

/// First data port of each host.
pub const BASE_PORT: u16 = 6379;

/// Agents' port on each host.
pub const MESH_PORT: u16 = 7379;

/// What one formation is about.
#[derive(Debug, Clone)]
pub struct Setting {
    /// Agents, and loopback addresses.
    pub hosts: u16,
    /// redis-servers of each.
    pub per_host: u16,
    /// First host's address.
    pub first_ip: Ipv4Addr,
    /// The server's binary.
    pub server: PathBuf,
    /// redis-cli.
    pub cli: PathBuf,
    /// Directory of redmeshctl and redmesh-agent.
    pub bin: PathBuf,
    /// How long it may take.
    pub deadline: Duration,
    /// Least memory available.
    pub memory_floor_bytes: u64,
}

impl Setting {
    /// Instances in all.
    pub fn instances(&self) -> usize {
        usize::from(self.hosts) * usize::from(self.per_host)
    }

    /// Their data addresses, host by host.
    pub fn addresses(&self) -> Vec<SocketAddr> {
        let ip = |at: u16| Ipv4Addr::from(u32::from(self.first_ip) + u32::from(at));
        let ports = BASE_PORT..BASE_PORT + self.per_host;
        (0..self.hosts)
            .flat_map(|host| ports.clone().map(move |port| SocketAddr::from((ip(host), port))))
            .collect()
    }

    /// A directory that no other formation uses.
    pub fn dir(&self, peer: &str) -> PathBuf {
        std::env::temp_dir().join(format!("redmesh-bench-formation-{peer}-{}", std::process::id()))
    }
}

/// Seconds of one formation's phases. What is not known is NaN.
#[derive(Debug, Clone, Copy)]
pub struct Phases {
    /// Until all servers listen; counted for neither.
    pub start_s: f64,
    /// From there until every instance agrees.
    pub form_s: f64,
    /// From the begin until the tool itself says that it is done, servers' start not counted.
    pub told_s: f64,
}

/// A formation that came to its end.
#[derive(Debug, Clone, Copy)]
pub struct Formed {
    /// Times.
    pub phases: Phases,
    /// Most memory that the machine had less than before, bytes.
    pub peak_bytes: u64,
    /// Anonymous memory of all servers once formed, bytes.
    pub servers_bytes: u64,
    /// From a server's death until every instance agrees again, seconds.
    pub rejoin_s: f64,
}

/// What became of one.
#[derive(Debug, Clone)]
pub enum Outcome {
    /// Formed and checked.
    Formed(Formed),
    /// Not: why.
    Failed(String),
}
