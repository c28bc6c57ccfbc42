//! Who is where in a demo: addresses and ports, checked before anything is made.

use std::net::{IpAddr, Ipv4Addr, SocketAddr};

use redmesh_api::level::BUS_PORT_OFFSET;

use super::DemoOptions;
use super::sizing::{self, Machine};
use crate::exit::UsageError;
use crate::units;

/// Hosts of a demo, at most.
pub const HOSTS_MAX: u16 = 250;

/// Instances per host, at most: the article's figure.
pub const PER_HOST_MAX: u16 = 100;

/// A demo's layout.
#[derive(Debug, Clone)]
pub struct DemoPlan {
    /// Each host's address.
    pub ips: Vec<Ipv4Addr>,
    /// Instances on each host.
    pub per_host: u16,
    /// First data port of each host.
    pub base_port: u16,
    /// Agents' UDP port; HTTP is the next port, TCP.
    pub mesh_port: u16,
    /// How `per_host` came about, for people.
    why: String,
}

impl DemoPlan {
    /// The plan for `options` on `machine`.
    pub fn of(options: &DemoOptions, machine: Machine) -> Result<Self, UsageError> {
        let per_host = options
            .per_host
            .unwrap_or_else(|| sizing::per_host(machine, options.hosts, options.replicas, PER_HOST_MAX));
        let why = match options.per_host {
            Some(_) => "as --per-host asks".to_owned(),
            None => format!(
                "fitted to {} cores and {} of available memory; --per-host changes it",
                machine.cores,
                units::bytes(machine.memory_available)
            ),
        };
        let first = u32::from(options.first_ip);
        let ips: Vec<Ipv4Addr> = (0..u32::from(options.hosts)).map(|at| Ipv4Addr::from(first + at)).collect();
        let plan = Self { ips, per_host, base_port: options.base_port, mesh_port: options.mesh_port, why };
        plan.validate(options.replicas, options.load_hosts)?;
        Ok(plan)
    }

    fn validate(&self, replicas: u8, load_hosts: Option<u16>) -> Result<(), UsageError> {
        let refuse = |why: String| Err(UsageError(why));
        if let Some(bearers) = load_hosts.filter(|bearers| *bearers > self.hosts()) {
            return refuse(format!("--load-hosts {bearers}: there are --hosts {}", self.hosts()));
        }
        if let Some(ip) = self.ips.iter().find(|ip| !ip.is_loopback()) {
            return refuse(format!("--first-ip: host address {ip} is outside of 127.0.0.0/8"));
        }
        let hosts = self.ips.len();
        if usize::from(replicas) >= hosts {
            return refuse(format!(
                "--replicas {replicas} needs more than {hosts} hosts: no replica on its primary's host"
            ));
        }
        let primaries = u64::from(self.instances()) / (1 + u64::from(replicas));
        if primaries < sizing::PRIMARIES_MIN {
            return refuse(format!(
                "{} instances with {replicas} replicas make {primaries} primaries, a Redis Cluster needs {}: \
                 raise --hosts or --per-host",
                self.instances(),
                sizing::PRIMARIES_MIN
            ));
        }
        let per_host = u32::from(self.per_host);
        let data = (u32::from(self.base_port), u32::from(self.base_port) + per_host - 1);
        let bus = (data.0 + u32::from(BUS_PORT_OFFSET), data.1 + u32::from(BUS_PORT_OFFSET));
        let mesh = (u32::from(self.mesh_port), u32::from(self.mesh_port) + 1);
        for (option, range) in [("--base-port", bus), ("--mesh-port", mesh)] {
            if range.1 > u32::from(u16::MAX) {
                return refuse(format!("{option}: ports up to {} are needed, there are 65535", range.1));
            }
        }
        for (what, range) in [("data", data), ("bus", bus)] {
            if mesh.0 <= range.1 && range.0 <= mesh.1 {
                return refuse(format!(
                    "--mesh-port: {} and {} lie among the {what} ports {}-{}",
                    mesh.0, mesh.1, range.0, range.1
                ));
            }
        }
        Ok(())
    }

    /// Number of hosts.
    pub fn hosts(&self) -> u16 {
        u16::try_from(self.ips.len()).expect("at most HOSTS_MAX")
    }

    /// Number of instances.
    pub fn instances(&self) -> u32 {
        u32::from(self.hosts()) * u32::from(self.per_host)
    }

    /// Name of host `at`, which is also its directory's.
    pub fn name(&self, at: usize) -> String {
        format!("host-{}", at + 1)
    }

    /// Mesh address of host `at`.
    pub fn agent(&self, at: usize) -> SocketAddr {
        SocketAddr::new(IpAddr::V4(self.ips[at]), self.mesh_port)
    }

    /// HTTP address of host `at`.
    pub fn http(&self, at: usize) -> SocketAddr {
        SocketAddr::new(IpAddr::V4(self.ips[at]), self.mesh_port + 1)
    }

    /// Data ports of each host.
    pub fn data_ports(&self) -> std::ops::Range<u16> {
        self.base_port..self.base_port + self.per_host
    }

    /// First and last address.
    pub fn addresses(&self) -> String {
        match (self.ips.first(), self.ips.last()) {
            (Some(first), Some(last)) if first != last => format!("{first} to {last}"),
            (Some(only), _) => only.to_string(),
            (None, _) => String::new(),
        }
    }

    /// The plan in a line.
    pub fn summary(&self) -> String {
        format!(
            "{} redis-servers, {} on each of {} hosts ({}); {}",
            self.instances(),
            self.per_host,
            self.hosts(),
            self.addresses(),
            self.why
        )
    }
}

#[cfg(test)]
pub mod tests {
    use clap::Parser;

    use super::*;

    #[derive(Debug, Parser)]
    struct Line {
        #[command(flatten)]
        options: DemoOptions,
    }

    pub fn options(line: &str) -> DemoOptions {
        Line::parse_from(std::iter::once("demo").chain(line.split_whitespace())).options
    }

    pub fn plan(line: &str) -> Result<DemoPlan, UsageError> {
        DemoPlan::of(&options(line), Machine { cores: 2, memory_available: 20 << 30 })
    }

    #[test]
    fn the_default_is_ten_hosts_of_three() {
        let plan = plan("").unwrap();
        assert_eq!((plan.hosts(), plan.per_host, plan.instances()), (10, 3, 30));
        assert_eq!(plan.agent(9).to_string(), "127.0.0.10:7379");
        assert_eq!(plan.http(0).to_string(), "127.0.0.1:7380");
        assert_eq!(
            plan.summary(),
            "30 redis-servers, 3 on each of 10 hosts (127.0.0.1 to 127.0.0.10); \
             fitted to 2 cores and 20.0 GiB of available memory; --per-host changes it"
        );
    }

    #[test]
    fn impossible_layouts_are_refused_by_name() {
        for (line, words) in [
            ("--first-ip 10.0.0.1", "127.0.0.0/8"),
            ("--first-ip 127.255.255.250", "127.0.0.0/8"),
            ("--hosts 2 --replicas 2", "--replicas 2"),
            ("--hosts 3 --load-hosts 4", "--load-hosts 4"),
            ("--hosts 1 --per-host 2", "primaries"),
            ("--hosts 3 --per-host 1 --replicas 1", "primaries"),
            ("--base-port 55536", "--base-port"),
            ("--mesh-port 65535", "--mesh-port"),
            ("--mesh-port 6378", "data ports"),
            ("--mesh-port 16380", "bus ports"),
        ] {
            let error = plan(line).expect_err(line).to_string();
            assert!(error.contains(words), "{line}: {error}");
        }
        for line in ["--hosts 1 --per-host 3", "--base-port 55533 --per-host 3", "--mesh-port 65534"] {
            plan(line).expect(line);
        }
    }
}
