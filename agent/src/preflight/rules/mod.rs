//! All hosts' readings held against a wish. Pure: what is known comes in, findings go out.
//!
//! A check *fails* where the cluster can't work: servers would not start, or be killed, or
//! not hear each other. What only makes it slow or leaves it at risk is a *warning*. Hosts
//! of which the same is true share one finding.

mod limits;
mod machines;
mod mesh;

use std::collections::BTreeMap;

use redmesh_api::level::{ClusterSpec, Servers};
use redmesh_api::preflight::{Check, Finding, Report, Severity};

use super::readings::Readings;
use crate::cluster::{ServerVersion, bus};

/// What was learnt of one host that would bear instances.
#[derive(Debug, Clone)]
pub struct HostSeen {
    /// Its name.
    pub name: String,
    /// Its agent's version.
    pub version: String,
    /// Port of its first instance.
    pub base_port: u16,
    /// Whether it speaks TLS to redis-servers.
    pub redis_tls: bool,
    /// What it read, or why it did not answer.
    pub read: Result<Readings, String>,
    /// Its clock beside the asker's, where it could be had.
    pub clock: Option<ClockOffset>,
}

/// A host's clock beside the asker's.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct ClockOffset {
    /// How far it is ahead, milliseconds.
    pub offset_ms: i64,
    /// By how much that may be wrong: half of the round trip, milliseconds.
    pub error_ms: u64,
}

impl ClockOffset {
    /// Of a clock that said `said_ms` to a question asked at `asked_ms` and answered
    /// `round_trip_ms` later. The answer was made at some moment in between.
    pub fn of(asked_ms: u64, round_trip_ms: u64, said_ms: u64) -> Self {
        let half = round_trip_ms.div_ceil(2);
        let middle = asked_ms.saturating_add(half);
        Self { offset_ms: said_ms.wrapping_sub(middle) as i64, error_ms: half }
    }
}

/// A host that is known and not heard of.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Silent {
    /// Its name.
    pub name: String,
    /// Whether the plan that there is has instances on it.
    pub planned: bool,
}

/// Everything that findings are made of.
#[derive(Debug, Clone)]
pub struct Question<'a> {
    /// The cluster that is asked for.
    pub spec: &'a ClusterSpec,
    /// The node timeout of the plan, if it is the plan there is, milliseconds.
    pub planned_timeout_ms: Option<u32>,
    /// Hosts that `mesh.bootstrap_expect` names.
    pub bootstrap_expect: u16,
    /// The hosts that would bear it.
    pub hosts: Vec<HostSeen>,
    /// Hosts that are known and not there.
    pub silent: Vec<Silent>,
}

/// The report.
pub fn examine(question: &Question<'_>) -> Report {
    let case = Case::of(question);
    let mut findings = Findings::default();
    mesh::hosts(&case, &mut findings);
    mesh::agent_versions(&case, &mut findings);
    mesh::server_versions(&case, &mut findings);
    mesh::redis_tls(&case, &mut findings);
    mesh::clocks(&case, &mut findings);
    let node_timeout_ms = machines::node_timeout(&case, &mut findings);
    for (host, read) in case.answered() {
        let mut add = |check, verdict| findings.add(check, &[&host.name], verdict);
        add(Check::EphemeralPorts, limits::ephemeral_ports(&case, host, read));
        add(Check::Ports, limits::ports(&case, host, read));
        add(Check::OvercommitMemory, limits::overcommit(read));
        add(Check::TransparentHugePages, limits::huge_pages(read));
        add(Check::Somaxconn, limits::somaxconn(&case, read));
        add(Check::UdpBuffers, limits::udp_buffers(read));
        add(Check::Firewall, limits::firewall(read));
        if case.starts_servers() {
            add(Check::Server, limits::server(read));
            add(Check::DataDir, limits::data_dir(read));
            add(Check::FileDescriptors, limits::open_files(&case, read));
            if let Some(verdict) = limits::tasks(&case, host, read) {
                add(Check::Threads, verdict);
            }
        }
    }
    for machine in &case.machines {
        let names: Vec<&str> = machine.hosts.iter().map(|(host, _)| host.name.as_str()).collect();
        let mut add = |check, verdict| findings.add(check, &names, verdict);
        add(Check::Memory, machines::memory(&case, machine));
        add(Check::TcpMemory, machines::tcp_memory(&case, machine));
        add(Check::BusTraffic, machines::bus_traffic(&case, machine, node_timeout_ms));
        if case.starts_servers() {
            add(Check::FileDescriptors, machines::open_files(&case, machine));
            add(Check::Threads, machines::threads(machine));
        }
    }
    if case.starts_servers() {
        machines::disks(&case, &mut findings);
    }
    Report {
        spec: question.spec.clone(),
        instances: u32::try_from(case.instances).unwrap_or(u32::MAX),
        hosts: question.hosts.iter().map(|host| host.name.clone()).collect(),
        machines: u32::try_from(case.machines.len()).unwrap_or(u32::MAX),
        node_timeout_ms,
        hz: bus::hz(case.instances, &machines::for_bus(&case)),
        findings: findings.sorted(),
    }
}

/// The question, and what follows from it at once.
struct Case<'a> {
    question: &'a Question<'a>,
    /// Instances of the whole cluster.
    instances: usize,
    machines: Vec<MachineSeen<'a>>,
}

/// Hosts that share a kernel, and so its memory.
struct MachineSeen<'a> {
    hosts: Vec<(&'a HostSeen, &'a Readings)>,
    /// Planned on it.
    instances: usize,
    /// Of these, not there yet.
    missing: usize,
}

impl MachineSeen<'_> {
    fn readings(&self) -> impl Iterator<Item = &Readings> {
        self.hosts.iter().map(|(_, read)| *read)
    }

    /// As the arithmetic of the bus sees it.
    fn for_bus(&self) -> bus::Machine {
        // Agents in namespaces of their own have networks of their own.
        let mut networks: BTreeMap<_, Option<u64>> = BTreeMap::new();
        for read in self.readings() {
            networks.insert(&read.network.interface, read.network.bits_per_s);
        }
        bus::Machine {
            cores: self.readings().map(|read| read.cores).max().unwrap_or(1),
            instances: self.instances,
            network_bits_per_s: networks.into_values().sum(),
        }
    }
}

impl<'a> Case<'a> {
    fn of(question: &'a Question<'a>) -> Self {
        let on = |name: &str| usize::from(question.spec.instances_on(name));
        let mut machines: BTreeMap<&str, MachineSeen<'a>> = BTreeMap::new();
        for host in &question.hosts {
            let Ok(read) = &host.read else { continue };
            let empty = || MachineSeen { hosts: Vec::new(), instances: 0, missing: 0 };
            // A kernel that hides its boot id is taken for a machine of its own.
            let key = if read.boot_id.is_empty() { &host.name } else { &read.boot_id };
            let machine = machines.entry(key).or_insert_with(empty);
            machine.hosts.push((host, read));
            machine.instances += on(&host.name);
            machine.missing += on(&host.name).saturating_sub(read.own as usize);
        }
        let here = question.hosts.iter().map(|host| on(&host.name)).sum::<usize>();
        let silent = question.silent.iter().filter(|silent| silent.planned);
        let instances = here + silent.map(|silent| on(&silent.name)).sum::<usize>();
        Self { question, instances, machines: machines.into_values().collect() }
    }

    fn answered(&self) -> impl Iterator<Item = (&'a HostSeen, &'a Readings)> {
        self.question.hosts.iter().filter_map(|host| Some((host, host.read.as_ref().ok()?)))
    }

    fn on(&self, host: &HostSeen) -> usize {
        usize::from(self.question.spec.instances_on(&host.name))
    }

    /// Other nodes of each node.
    fn peers(&self) -> usize {
        self.instances.saturating_sub(1)
    }

    /// Whether agents are to start servers, or join those that run.
    fn starts_servers(&self) -> bool {
        self.question.spec.servers == Servers::Supervised
    }
}

fn version_of(read: &Readings) -> Option<ServerVersion> {
    ServerVersion::parse(read.server.as_ref().ok()?).ok()
}

/// What a check comes to, without its hosts.
#[derive(Debug, Clone, PartialEq, Eq)]
struct Verdict {
    severity: Severity,
    figure: String,
    threshold: String,
    words: String,
    remedy: Option<String>,
}

impl Verdict {
    fn ok(figure: impl Into<String>, threshold: impl Into<String>) -> Self {
        Self {
            severity: Severity::Ok,
            figure: figure.into(),
            threshold: threshold.into(),
            words: String::new(),
            remedy: None,
        }
    }

    /// Of a kernel that doesn't tell; nothing is known to be wrong.
    fn unknown(threshold: impl Into<String>) -> Self {
        Self::ok("not known", threshold)
    }

    /// The same, and what is wrong with it.
    fn but(self, severity: Severity, words: impl Into<String>, remedy: impl Into<String>) -> Self {
        Self { severity, words: words.into(), remedy: Some(remedy.into()), ..self }
    }
}

/// Findings, those that differ in nothing but their host made one.
#[derive(Debug, Default)]
struct Findings(Vec<Finding>);

impl Findings {
    /// `hosts` is empty for the mesh as a whole.
    fn add(&mut self, check: Check, hosts: &[&str], verdict: Verdict) {
        let Verdict { severity, figure, threshold, words, remedy } = verdict;
        let hosts: Vec<String> = hosts.iter().map(|&host| host.to_owned()).collect();
        let new = Finding { check, hosts, severity, figure, threshold, words, remedy };
        let alike = |old: &&mut Finding| {
            old.hosts.is_empty() == new.hosts.is_empty()
                && (old.check, old.severity, &old.figure, &old.threshold, &old.words, &old.remedy)
                    == (new.check, new.severity, &new.figure, &new.threshold, &new.words, &new.remedy)
        };
        match self.0.iter_mut().find(alike) {
            Some(old) => old.hosts.extend(new.hosts),
            None => self.0.push(new),
        }
    }

    fn sorted(mut self) -> Vec<Finding> {
        self.0.sort_by_key(|finding| finding.check);
        self.0
    }
}

#[cfg(test)]
mod tests;
