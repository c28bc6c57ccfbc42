//! Real faults for real processes: each a scenario that can be tried any number of times,
//! by `make reliability` for the table in `docs/reliability.md` and by the tests for good.
//!
//! A trial forms a mesh of its own, injects one fault while writes go on, waits until all is
//! as before, and panics where it isn't. What it measures it only reports: times are those
//! of the machine and of whatever else runs there, so nothing is asserted about them.

mod disk;
mod load;
mod network;
mod processes;
mod servers;
mod state;
mod strangers;
mod time;
mod writer;

use std::time::{Duration, Instant};

pub use load::{Load, Writes};

use crate::mesh::{Mesh, MeshBuilder};
use crate::process::{self, ServerProcess};
use crate::wait::until;

/// For whatever has to come about, on a busy machine of two cores.
const SOON: Duration = Duration::from_secs(90);

/// The environment variable that names another build of the agent.
pub const OTHER_AGENT: &str = "REDMESH_OTHER_AGENT";

/// Hosts of most trials; their instances are in [`PER_HOST`].
const HOSTS: usize = 3;
/// Instances on each host.
const PER_HOST: u16 = 2;

/// What one trial has shown.
#[derive(Debug, Default, Clone)]
pub struct Observed {
    /// From the fault until the others did the work again, while the fault lasted; `None`
    /// where that isn't the question.
    pub served: Option<Duration>,
    /// From the end of the fault (what was killed is started again, what was cut is joined)
    /// until the mesh and its cluster were whole.
    pub whole: Option<Duration>,
    /// The account of the run in which it happened.
    pub writes: Option<Writes>,
}

/// What a trial needs of the machine.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Need {
    /// To be root.
    Root,
    /// Network namespaces and nftables.
    Namespaces,
    /// A cgroup that limits memory.
    MemoryCgroup,
    /// That a pid can be given a second time.
    Pids,
    /// A tracer of system calls.
    Strace,
    /// A library that gives a process another clock.
    FakeTime,
    /// Another build of the agent, named by [`OTHER_AGENT`].
    OtherAgent,
}

/// A fault and its trial.
#[derive(Debug, Clone, Copy)]
pub struct Scenario {
    /// What it is called on the command line.
    pub name: &'static str,
    /// What fails, and how it is made to.
    pub fault: &'static str,
    /// What is shown to hold, beside the times.
    pub result: &'static str,
    /// What it can't do without.
    pub needs: &'static [Need],
    /// One trial.
    pub trial: fn() -> Observed,
}

/// All of them, in the table's order.
pub fn all() -> impl Iterator<Item = &'static Scenario> {
    [processes::ALL, servers::ALL, network::ALL, disk::ALL, state::ALL, time::ALL].into_iter().flatten()
}

/// The one of that name.
pub fn find(name: &str) -> Option<&'static Scenario> {
    all().find(|scenario| scenario.name == name)
}

impl Scenario {
    /// Why it can't be tried here.
    pub fn skipped(&self) -> Option<&'static str> {
        self.needs.iter().find_map(|need| match need {
            Need::Root => (!rustix::process::geteuid().is_root()).then_some("it needs root"),
            Need::Namespaces => crate::net::missing(),
            Need::MemoryCgroup => crate::cgroup::missing(),
            Need::Pids => strangers::missing(),
            Need::Strace => crate::tracer::missing(),
            Need::FakeTime => time::missing(),
            Need::OtherAgent => std::env::var_os(OTHER_AGENT).is_none().then_some(
                "REDMESH_OTHER_AGENT doesn't name an agent of another build that speaks the same protocol",
            ),
        })
    }
}

/// A formed mesh of [`HOSTS`] hosts whose servers outlive their agents.
fn formed(builder: MeshBuilder, replicas: &str) -> Mesh {
    let mesh = builder.servers_outlive_agents().ready();
    let per_host = PER_HOST.to_string();
    let create = ["cluster", "create", "--instances-per-host", &per_host, "--replicas", replicas];
    // With replicas a failover should not have to wait for long.
    let timeout: &[&str] = if replicas == "0" { &[] } else { &["--node-timeout", "2000"] };
    mesh.ok_at(0, &[&create[..], timeout].concat());
    let instances = mesh.hosts() as u64 * u64::from(PER_HOST);
    mesh.await_whole(0, instances);
    if replicas != "0" {
        until("every replica to be in sync", SOON, || {
            let all = (0..mesh.hosts()).flat_map(|host| (0..PER_HOST).map(move |nth| (host, 6379 + nth)));
            all.into_iter().all(|(host, port)| synced(&mesh, host, port)).then_some(())
        });
    }
    mesh
}

fn synced(mesh: &Mesh, host: usize, port: u16) -> bool {
    let info = mesh.redis_cli(host, port, &["INFO", "replication"]);
    info.contains("role:master") || info.contains("master_link_status:up")
}

fn whole(mesh: &Mesh, at: usize) {
    mesh.await_whole(at, mesh.hosts() as u64 * u64::from(PER_HOST));
}

/// The coordinator, and the two hosts after it.
fn coordinator_and_others(mesh: &Mesh) -> [usize; 3] {
    let coordinator = until("a coordinator", SOON, || mesh.coordinator_at(0));
    [coordinator, (coordinator + 1) % mesh.hosts(), (coordinator + 2) % mesh.hosts()]
}

fn agent(mesh: &Mesh, host: usize) -> ServerProcess {
    let agents = process::below(&mesh.host_dir(host)).into_iter().find(|p| p.name == "redmesh-agent");
    agents.expect("the agent runs")
}

fn server(mesh: &Mesh, host: usize, port: u16) -> Option<ServerProcess> {
    mesh.servers_of(host).into_iter().find(|server| server.dir.ends_with(port.to_string()))
}

/// The port of a primary on `host`.
fn primary_on(mesh: &Mesh, host: usize) -> u16 {
    until("a primary on the host", SOON, || {
        (6379..6379 + PER_HOST).find(|&port| mesh.redis_cli(host, port, &["ROLE"]).starts_with("master"))
    })
}

fn await_coordinator(mesh: &Mesh, at: usize, wanted: impl Fn(usize) -> bool) -> usize {
    until("another coordinator", SOON, || mesh.coordinator_at(at).filter(|&host| wanted(host)))
}

fn await_dead(mesh: &Mesh, at: usize, host: usize) {
    let name = format!("host-{}", host + 1);
    until(&format!("{name} to be taken for dead"), SOON, || {
        let members = mesh.try_json_at(at, &["members"])?;
        let mut members = members["members"].as_array()?.iter();
        members.any(|member| member["name"] == name && member["state"] == "dead").then_some(())
    });
}

/// Waits until `host` says `words` of itself in what `at` shows of members and instances.
fn await_problem(mesh: &Mesh, at: usize, host: usize, words: &[&str]) -> String {
    let name = format!("host-{}", host + 1);
    until(&format!("{name} to speak of {words:?}"), SOON, || {
        let members = mesh.try_json_at(at, &["members"])?;
        let member = members["members"].as_array()?.iter().find(|member| member["name"] == name)?;
        let problem = member["problem"].as_str()?;
        words.iter().any(|words| problem.contains(words)).then(|| problem.to_owned())
    })
}

/// Keys of which each primary of a small cluster has some.
const KEYS: usize = 64;

/// Waits until every slot is served, asked of the servers at 6379 of `hosts`.
fn await_served(mesh: &Mesh, hosts: &[usize]) {
    // Nothing that a run's account would notice.
    let ask: String = (0..KEYS).map(|key| format!("EXISTS nobody-writes-{key}\n")).collect();
    until("all keys to be served", SOON, || {
        let served = |&host: &usize| {
            let said = mesh.redis_cli_fed(host, 6379, &ask);
            said.lines().filter(|line| line.trim() == "0").count() == KEYS
        };
        hosts.iter().all(served).then_some(())
    });
}

/// How long `wait` takes.
fn timed<T>(wait: impl FnOnce() -> T) -> (Duration, T) {
    let began = Instant::now();
    let value = wait();
    (began.elapsed(), value)
}
