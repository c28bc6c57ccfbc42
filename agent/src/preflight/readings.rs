//! What a host reads of itself for a preflight: limits, memory, ports, its network.
//!
//! Only reads. What can't be read is `None` and said so in the report; nothing here judges.

use std::net::{IpAddr, SocketAddr};
use std::path::{Path, PathBuf};
use std::sync::Arc;

use redmesh_api::ids::PlanId;
use redmesh_api::level::ClusterSpec;
use rustix::process::{Resource, getrlimit};
use serde::{Deserialize, Serialize};

use super::texts;
use crate::nft::{self, FirewallRead};
use crate::supervisor::{DirProblem, PortProblem, Supervise};

/// What one host found.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Readings {
    /// The kernel's boot id: equal on agents that share a machine.
    pub boot_id: String,
    /// Cores that the agent and its servers may use.
    pub cores: u32,
    /// Memory that can be had without swapping, bytes; a control group's limit counts where
    /// it is the lower.
    pub memory_available: Option<u64>,
    /// What the server's binary prints as its version, or why it can't be asked.
    pub server: Result<String, String>,
    /// Hard limit of open files; `None` is no limit.
    pub nofile_hard: Option<u64>,
    /// `fs.file-max`.
    pub file_max: Option<u64>,
    /// Files open on the machine.
    pub files_open: Option<u64>,
    /// Threads on the machine.
    pub threads: Option<u64>,
    /// The lower of `kernel.pid_max` and `kernel.threads-max`.
    pub threads_max: Option<u64>,
    /// Tasks that the agent's control group may still have (TasksMax= of its unit).
    pub tasks_left: Option<u64>,
    /// `net.core.somaxconn`.
    pub somaxconn: Option<u64>,
    /// Memory of all TCP buffers, bytes, from which on the kernel is sparing with it: the
    /// middle of `net.ipv4.tcp_mem`.
    pub tcp_pressure: Option<u64>,
    /// `vm.overcommit_memory`.
    pub overcommit: Option<u64>,
    /// Chosen of `transparent_hugepage/enabled`.
    pub huge_pages: Option<String>,
    /// `net.ipv4.ip_local_port_range`.
    pub ephemeral: Option<(u16, u16)>,
    /// `net.ipv4.ip_local_reserved_ports`.
    pub reserved: Vec<(u16, u16)>,
    /// Buffers that the agent's UDP socket was given: receiving and sending, bytes.
    pub udp_buffers: (u64, u64),
    /// The network that bears the instances' address.
    pub network: Network,
    /// Where the instances' directories lie.
    pub data_dir: String,
    /// The file system there and the bytes that are free on it.
    pub disk: Option<(u64, u64)>,
    /// Why directories there can't be used.
    pub dir_problem: Option<DirProblem>,
    /// Ports that can't be listened at.
    pub ports: Vec<PortProblem>,
    /// Further ones, not looked at more closely.
    pub ports_more: u32,
    /// Planned addresses at which nobody listens; `None` if all are, else the first and
    /// how many.
    pub silent: Option<(SocketAddr, u32)>,
    /// Instances of the plan that are here already.
    pub own: u32,
    /// The firewall's table, where the agent is to keep its members.
    pub firewall: Option<FirewallRead>,
}

/// The network that bears an address.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Network {
    /// The interface; `None` if it could not be made out.
    pub interface: Option<String>,
    /// Its speed, bits a second, where the driver knows one.
    pub bits_per_s: Option<u64>,
}

/// Reads this host.
#[derive(Debug, Clone)]
pub struct Reader {
    /// The agent's name.
    pub name: String,
    /// Address of its instances.
    pub redis_ip: IpAddr,
    /// Port of its first instance.
    pub base_port: u16,
    /// Buffers that the agent's UDP socket was given, bytes.
    pub udp_buffers: (u64, u64),
    /// Its servers.
    pub supervisor: Arc<dyn Supervise>,
    /// Where the instances' directories lie.
    pub data_dir: PathBuf,
    /// Whether it keeps the firewall's members.
    pub firewall_manage: bool,
}

impl Reader {
    /// All readings, for the cluster `spec`; `plan` is the plan that there is.
    ///
    /// # Errors
    /// In words, when the agent is ending.
    pub async fn read(&self, spec: &ClusterSpec, plan: Option<PlanId>) -> Result<Readings, String> {
        let ports = (0..spec.instances_on(&self.name)).map_while(|nth| self.base_port.checked_add(nth));
        let addrs: Vec<SocketAddr> = ports.map(|port| SocketAddr::new(self.redis_ip, port)).collect();
        let words = |error: crate::supervisor::ProcessError| crate::error_chain(&error);
        let survey = self.supervisor.survey(addrs, plan).await.map_err(words)?;
        let server = self.supervisor.server_version().await.map_err(words);
        let (ip, data_dir) = (self.redis_ip, self.data_dir.clone());
        let disk_dir = data_dir.clone();
        let host = tokio::task::spawn_blocking(move || read_host(ip, &disk_dir));
        let host = host.await.map_err(|_| "interrupted by the agent's end".to_owned())?;
        let firewall = match self.firewall_manage {
            true => Some(nft::read().await),
            false => None,
        };
        let count = |n: usize| u32::try_from(n).unwrap_or(u32::MAX);
        Ok(Readings {
            server,
            udp_buffers: self.udp_buffers,
            data_dir: data_dir.display().to_string(),
            dir_problem: survey.dir,
            ports: survey.ports,
            ports_more: count(survey.ports_more),
            silent: survey.silent.first().map(|first| (*first, count(survey.silent.len()))),
            own: count(survey.own),
            firewall,
            ..host
        })
    }
}

fn read_host(ip: IpAddr, data_dir: &Path) -> Readings {
    let sysctl = |name: &str| text(&format!("/proc/sys/{name}"));
    let own_groups = text("/proc/self/cgroup").unwrap_or_default();
    let lower = |a: Option<u64>, b: Option<u64>| a.into_iter().chain(b).min();
    let group_memory = texts::cgroup_files(&own_groups, ("memory", "memory.limit_in_bytes"), "memory.max");
    Readings {
        boot_id: sysctl("kernel/random/boot_id").unwrap_or_default().trim().to_owned(),
        cores: std::thread::available_parallelism()
            .map_or(1, |cores| u32::try_from(cores.get()).unwrap_or(u32::MAX)),
        memory_available: lower(
            memory_available(),
            group_memory.iter().filter_map(|file| file_number(file)).min(),
        ),
        nofile_hard: getrlimit(Resource::Nofile).maximum,
        file_max: sysctl("fs/file-max").as_deref().and_then(texts::number),
        files_open: sysctl("fs/file-nr").as_deref().and_then(texts::files_open),
        threads: text("/proc/loadavg").as_deref().and_then(texts::threads),
        threads_max: lower(
            sysctl("kernel/pid_max").as_deref().and_then(texts::number),
            sysctl("kernel/threads-max").as_deref().and_then(texts::number),
        ),
        tasks_left: tasks_left(&own_groups),
        somaxconn: sysctl("net/core/somaxconn").as_deref().and_then(texts::number),
        tcp_pressure: sysctl("net/ipv4/tcp_mem")
            .as_deref()
            .and_then(texts::tcp_pressure_pages)
            .map(|pages| pages.saturating_mul(rustix::param::page_size() as u64)),
        overcommit: sysctl("vm/overcommit_memory").as_deref().and_then(texts::number),
        huge_pages: text("/sys/kernel/mm/transparent_hugepage/enabled").as_deref().and_then(texts::chosen),
        ephemeral: sysctl("net/ipv4/ip_local_port_range").as_deref().and_then(texts::port_range),
        reserved: sysctl("net/ipv4/ip_local_reserved_ports")
            .as_deref()
            .map(texts::reserved_ports)
            .unwrap_or_default(),
        network: network(ip),
        disk: disk(data_dir),
        // Filled in by the caller, who asked the supervisor.
        server: Err(String::new()),
        udp_buffers: (0, 0),
        data_dir: String::new(),
        dir_problem: None,
        ports: Vec::new(),
        ports_more: 0,
        silent: None,
        own: 0,
        firewall: None,
    }
}

fn text(path: &str) -> Option<String> {
    std::fs::read_to_string(path).ok()
}

fn file_number(path: &Path) -> Option<u64> {
    std::fs::read_to_string(path).ok().as_deref().and_then(texts::number)
}

fn memory_available() -> Option<u64> {
    use procfs::Current as _;
    let memory = procfs::Meminfo::current().ok()?;
    Some(memory.mem_available.unwrap_or(memory.mem_free))
}

/// The tightest of the limits from the agent's own group up; a group without one (`max`)
/// doesn't count.
fn tasks_left(own_groups: &str) -> Option<u64> {
    let limits: Vec<PathBuf> = texts::cgroup_files(own_groups, ("pids", "pids.max"), "pids.max");
    let left = |limit: &PathBuf| {
        let now = file_number(&limit.with_file_name("pids.current")).unwrap_or(0);
        file_number(limit).map(|max| max.saturating_sub(now))
    };
    limits.iter().filter_map(left).min()
}

/// Device and free bytes; those that are kept for root don't count.
fn disk(dir: &Path) -> Option<(u64, u64)> {
    use std::os::unix::fs::MetadataExt as _;
    let device = std::fs::metadata(dir).ok()?.dev();
    let stat = rustix::fs::statvfs(dir).ok()?;
    Some((device, stat.f_bavail.saturating_mul(stat.f_frsize)))
}

fn network(ip: IpAddr) -> Network {
    let interface = match ip.to_canonical() {
        ip if texts::is_loopback(ip) => Some("lo".to_owned()),
        IpAddr::V4(ip) => text("/proc/net/route").and_then(|table| texts::interface_v4(&table, ip)),
        IpAddr::V6(ip) => text("/proc/net/if_inet6").and_then(|table| texts::interface_v6(&table, ip)),
    };
    // Virtual drivers say -1, or give no answer at all.
    let mbits = interface
        .as_ref()
        .and_then(|name| file_number(&Path::new("/sys/class/net").join(name).join("speed")));
    let bits_per_s = mbits.filter(|speed| *speed > 0).map(|speed| speed.saturating_mul(1_000_000));
    Network { interface, bits_per_s }
}

#[cfg(test)]
/// For tests: a host with room for everything: a bare-metal host of the article.
pub fn roomy(machine: &str) -> Readings {
    const GIB: u64 = 1 << 30;
    Readings {
        boot_id: machine.to_owned(),
        cores: 104,
        memory_available: Some(700 * GIB),
        server: Ok("Redis server v=7.0.15 sha=00000000:0 malloc=jemalloc-5.3.0 bits=64".to_owned()),
        nofile_hard: Some(1_048_576),
        file_max: Some(9_000_000_000),
        files_open: Some(2_000),
        threads: Some(900),
        threads_max: Some(4_194_304),
        tasks_left: None,
        somaxconn: Some(4096),
        tcp_pressure: Some(64 * GIB),
        overcommit: Some(1),
        huge_pages: Some("madvise".to_owned()),
        ephemeral: Some((32_768, 60_999)),
        reserved: Vec::new(),
        udp_buffers: (4 << 20, 4 << 20),
        network: Network { interface: Some("ens3".to_owned()), bits_per_s: Some(25_000_000_000) },
        data_dir: "/var/lib/redmesh/redis_cluster".to_owned(),
        disk: Some((1, 800 * GIB)),
        dir_problem: None,
        ports: Vec::new(),
        ports_more: 0,
        silent: None,
        own: 0,
        firewall: None,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn this_machine_can_be_read() {
        let dir = tempfile::tempdir().expect("temp dir");
        let read = read_host([127, 0, 0, 1].into(), dir.path());
        assert_eq!(read.boot_id.len(), 36, "{read:?}");
        assert!(read.cores > 0);
        assert!(read.memory_available.is_some_and(|bytes| bytes > 1 << 20));
        assert!(read.nofile_hard.is_none_or(|limit| limit > 0));
        assert!(read.file_max > read.files_open && read.files_open > Some(0));
        assert!(read.threads_max > read.threads && read.threads > Some(0));
        assert!(read.somaxconn > Some(0));
        assert!(read.overcommit.is_some_and(|mode| mode <= 2));
        assert!(read.ephemeral.is_some_and(|(first, last)| first < last));
        assert!(read.disk.is_some());
        assert_eq!(read.network, Network { interface: Some("lo".to_owned()), bits_per_s: None });
        assert_eq!(disk(Path::new("/nowhere/at/all")), None);
    }
}
