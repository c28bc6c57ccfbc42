//! A demo's cluster, kept while it is compared on, and its servers' own figures.

use std::io::Write as _;
use std::net::{Ipv4Addr, SocketAddr};
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::Duration;

use anyhow::{Context as _, bail};

use redmesh_benches::ask::ask;
use redmesh_benches::children::Children;

/// First data port of each host.
const BASE_PORT: u16 = 6379;

/// Agents' port on each host.
const MESH_PORT: u16 = 7379;

/// A server that says nothing for so long is given up; a flush of millions takes a while.
const ANSWER_MAX: Duration = Duration::from_secs(60);

/// Hosts and instances.
#[derive(Debug, Clone, Copy)]
pub struct Layout {
    /// Agents.
    pub hosts: u16,
    /// redis-servers of each.
    pub per_host: u16,
    /// First host's address.
    pub first_ip: Ipv4Addr,
}

impl Layout {
    /// In words.
    pub fn describe(&self) -> String {
        let agents = if self.hosts == 1 { "agent" } else { "agents" };
        format!("{} instances, {} {agents}", self.hosts * self.per_host, self.hosts)
    }

    fn instances(&self) -> Vec<SocketAddr> {
        let ip = |at: u16| Ipv4Addr::from(u32::from(self.first_ip) + u32::from(at));
        let ports = BASE_PORT..BASE_PORT + self.per_host;
        (0..self.hosts)
            .flat_map(|host| ports.clone().map(move |port| SocketAddr::from((ip(host), port))))
            .collect()
    }
}

/// What all servers say of themselves, added up.
#[derive(Debug, Clone, Copy, Default)]
pub struct Servers {
    /// SETs executed.
    pub set_calls: u64,
    /// CPU used, seconds.
    pub cpu_s: f64,
}

/// A cluster that runs; taken down when dropped.
#[derive(Debug)]
pub struct Cluster<'a> {
    ctl: PathBuf,
    dir: PathBuf,
    layout: Layout,
    instances: Vec<SocketAddr>,
    children: &'a Children,
}

impl<'a> Cluster<'a> {
    /// Brings it up.
    pub fn form(layout: Layout, bin: &Path, children: &'a Children) -> anyhow::Result<Self> {
        let dir = std::env::temp_dir().join(format!("redmesh-bench-load-{}", std::process::id()));
        // From here on whatever there is of it is taken down.
        let cluster =
            Self { ctl: bin.join("redmeshctl"), dir, layout, instances: layout.instances(), children };
        let mut demo = Command::new(&cluster.ctl);
        // The others would take a password on their command lines, where everybody can read it.
        demo.args(["demo", "--keep", "--no-auth", "--writes", "1000", "--workers", "10", "--dir"])
            .arg(&cluster.dir);
        for (option, value) in [
            ("--hosts", layout.hosts.to_string()),
            ("--per-host", layout.per_host.to_string()),
            ("--first-ip", layout.first_ip.to_string()),
            ("--base-port", BASE_PORT.to_string()),
            ("--mesh-port", MESH_PORT.to_string()),
        ] {
            demo.args([option, &value]);
        }
        children.run(&mut demo).context("can't form the cluster")?;
        Ok(cluster)
    }

    /// Any instance's address, for other tools.
    pub fn entry(&self) -> (String, String) {
        (self.layout.first_ip.to_string(), BASE_PORT.to_string())
    }

    /// A command of redmeshctl's, asked of the first agent.
    pub fn ctl(&self, args: &[&str]) -> anyhow::Result<String> {
        let mut command = Command::new(&self.ctl);
        command.arg("--agent").arg(format!("{}:{MESH_PORT}", self.layout.first_ip));
        command.arg("--identity").arg(self.dir.join("pki/operator")).args(args);
        self.children.run(&mut command)
    }

    /// Removes all keys, so that no contender pays for another's.
    pub fn flush(&self) -> anyhow::Result<()> {
        self.instances.iter().try_for_each(|addr| ask(*addr, "FLUSHALL", ANSWER_MAX).map(drop))
    }

    /// All servers' own figures.
    pub fn servers(&self) -> anyhow::Result<Servers> {
        let mut sum = Servers::default();
        for addr in &self.instances {
            let info = ask(*addr, "INFO all", ANSWER_MAX)?;
            let field = |name: &str| info.lines().find_map(|line| line.strip_prefix(name));
            let cpu = |name| field(name).and_then(|text| text.trim().parse::<f64>().ok());
            let (Some(user), Some(sys)) = (cpu("used_cpu_user:"), cpu("used_cpu_sys:")) else {
                bail!("{addr}: INFO has no used_cpu_user and used_cpu_sys");
            };
            sum.cpu_s += user + sys;
            let calls = field("cmdstat_set:calls=").and_then(|text| text.split(',').next()?.parse().ok());
            sum.set_calls += calls.unwrap_or(0u64);
        }
        Ok(sum)
    }
}

impl Drop for Cluster<'_> {
    fn drop(&mut self) {
        if !self.dir.exists() {
            return;
        }
        let mut stop = Command::new(&self.ctl);
        stop.args(["demo", "stop", "--dir"]).arg(&self.dir);
        if let Err(error) = Children::run_to_clean_up(&mut stop) {
            let _ = writeln!(std::io::stderr(), "{} is left behind: {error:#}", self.dir.display());
        }
    }
}
