//! redis-servers that are killed, stopped, out of memory, or lost with their host.

use std::path::{Path, PathBuf};

use rustix::process::Signal;

use super::{
    HOSTS, Load, Need, Observed, PER_HOST, SOON, Scenario, await_coordinator, await_served,
    coordinator_and_others, formed, primary_on, server, timed, whole,
};
use crate::mesh::{Mesh, MeshBuilder};
use crate::process::send;
use crate::wait::until;

/// See [`super::all`].
pub const ALL: &[Scenario] = &[
    Scenario {
        name: "server-killed",
        fault: "a redis-server without a replica is killed",
        result: "it is back under its node id; what it held in memory is lost, and charged to it alone",
        needs: &[],
        trial: server_killed,
    },
    Scenario {
        name: "server-stopped",
        fault: "a redis-server without a replica is stopped (SIGSTOP) until its peers call it failed, then goes on",
        result: "the same process serves again",
        needs: &[],
        trial: server_stopped,
    },
    Scenario {
        name: "primary-killed",
        fault: "a primary with a replica is killed (`--replicas 1`, node timeout 2 s)",
        result: "its replica leads; it comes back empty as the replica of that one, which keeps its keys",
        needs: &[],
        trial: primary_killed,
    },
    Scenario {
        name: "host-killed",
        fault: "the coordinator's agent and all servers of its host are killed at once (`--replicas 1`, node timeout 2 s)",
        result: "another host coordinates, replicas lead, the run goes on; the host comes back as replicas",
        needs: &[],
        trial: host_killed,
    },
    Scenario {
        name: "server-out-of-memory",
        fault: "the kernel kills a redis-server at its memory group's limit",
        result: "the agent says that the kernel killed for want of memory, and starts it again",
        needs: &[Need::Root, Need::MemoryGroup],
        trial: out_of_memory,
    },
    Scenario {
        name: "pid-reused",
        fault: "a server dies while its agent is away, and its pid is given to a redis-server of somebody else",
        result: "the agent starts its own and leaves the other one alone",
        needs: &[Need::Root],
        trial: pid_reused,
    },
];

fn node_id(mesh: &Mesh, host: usize, port: u16) -> String {
    mesh.redis_cli(host, port, &["CLUSTER", "MYID"])
}

fn server_killed() -> Observed {
    let mesh = formed(MeshBuilder::new(HOSTS), "0");
    let [at, host, _] = coordinator_and_others(&mesh);
    let load = Load::begin(&mesh, at);
    let (id, victim) = (node_id(&mesh, host, 6379), server(&mesh, host, 6379).expect("it runs"));
    send(&victim, Signal::KILL);
    let (time, ()) = timed(|| await_served(&mesh, &[0, 1, 2]));
    assert_ne!(server(&mesh, host, 6379).expect("it runs again").pid, victim.pid);
    assert_eq!(node_id(&mesh, host, 6379), id);
    whole(&mesh, at);
    load.goes_on(&mesh, at);
    let writes = load.end(&mesh, at);
    let charged = format!("{}:6379", mesh.ip(host));
    assert!(writes.lost_at.iter().all(|server| *server == charged), "{writes:?}");
    Observed { whole: Some(time), writes: Some(writes), served: None }
}

fn server_stopped() -> Observed {
    let mesh = formed(MeshBuilder::new(HOSTS), "0");
    let [at, host, _] = coordinator_and_others(&mesh);
    let load = Load::begin(&mesh, at);
    let (id, pids) = (node_id(&mesh, host, 6379), mesh.servers());
    let victim = server(&mesh, host, 6379).expect("it runs");
    send(&victim, Signal::STOP);
    until("its peers to call it failed", SOON, || {
        let nodes = mesh.redis_cli(at, 6379, &["CLUSTER", "NODES"]);
        nodes.lines().any(|line| line.starts_with(&id) && line.contains("fail ")).then_some(())
    });
    send(&victim, Signal::CONT);
    let (time, ()) = timed(|| await_served(&mesh, &[0, 1, 2]));
    whole(&mesh, at);
    load.goes_on(&mesh, at);
    assert_eq!(mesh.servers(), pids);
    Observed { whole: Some(time), writes: Some(load.end_without_loss(&mesh, at)), served: None }
}

fn primary_killed() -> Observed {
    let mesh = formed(MeshBuilder::new(HOSTS), "1");
    let [at, host, _] = coordinator_and_others(&mesh);
    let load = Load::begin(&mesh, at);
    let port = primary_on(&mesh, host);
    send(&server(&mesh, host, port).expect("it runs"), Signal::KILL);
    let (served, ()) = timed(|| await_served(&mesh, &[at]));
    let (back, ()) = timed(|| {
        until("it to be back as a replica", SOON, || {
            mesh.redis_cli(host, port, &["ROLE"]).starts_with("slave").then_some(())
        });
        whole(&mesh, at);
    });
    load.goes_on(&mesh, at);
    Observed { served: Some(served), whole: Some(served + back), writes: Some(load.end(&mesh, at)) }
}

fn host_killed() -> Observed {
    let mut mesh = formed(MeshBuilder::new(HOSTS), "1");
    let [victim, at, other] = coordinator_and_others(&mesh);
    let load = Load::begin(&mesh, at);
    mesh.kill_agent(victim);
    mesh.servers_of(victim).iter().for_each(|server| send(server, Signal::KILL));
    let (served, ()) = timed(|| {
        await_coordinator(&mesh, at, |new| new != victim);
        await_served(&mesh, &[at, other]);
    });
    load.goes_on(&mesh, at);
    mesh.start_agent(victim);
    let (time, ()) = timed(|| whole(&mesh, at));
    load.goes_on(&mesh, at);
    Observed { served: Some(served), whole: Some(time), writes: Some(load.end(&mesh, at)) }
}

/// Where the memory controller of cgroup v1 is.
const MEMORY: &str = "/sys/fs/cgroup/memory";

/// Whether groups of memory can be made.
pub fn memory_groups() -> bool {
    let probe = Path::new(MEMORY).join(format!("redmesh-probe-{}", std::process::id()));
    let made = std::fs::create_dir(&probe).is_ok() && probe.join("memory.limit_in_bytes").exists();
    let _ = std::fs::remove_dir(&probe);
    made
}

/// A group of one process, gone with this.
struct MemoryGroup(PathBuf);

impl MemoryGroup {
    fn with(pid: i32) -> Self {
        let group = Self(Path::new(MEMORY).join(format!("redmesh-{}-{pid}", std::process::id())));
        std::fs::create_dir(&group.0).expect("make a memory group");
        group.write("cgroup.procs", &pid.to_string());
        group
    }

    fn write(&self, file: &str, value: &str) {
        let path = self.0.join(file);
        std::fs::write(&path, value).unwrap_or_else(|error| panic!("{}: {error}", path.display()));
    }
}

impl Drop for MemoryGroup {
    fn drop(&mut self) {
        let _ = std::fs::remove_dir(&self.0);
    }
}

/// What a killed server's group lets it take beyond what it had, bytes.
const MORE_MEMORY: &str = "8388608";

fn out_of_memory() -> Observed {
    let mesh = formed(MeshBuilder::new(HOSTS), "0");
    let [at, host, _] = coordinator_and_others(&mesh);
    let victim = server(&mesh, host, 6379).expect("it runs");
    let group = MemoryGroup::with(victim.pid);
    // What it had before is another group's: only what it takes from now on counts here.
    group.write("memory.limit_in_bytes", MORE_MEMORY);
    let load = Load::begin(&mesh, at);
    until("the kernel to kill it", SOON, || {
        server(&mesh, host, 6379).is_none_or(|now| now.pid != victim.pid).then_some(())
    });
    let (time, ()) = timed(|| await_served(&mesh, &[0, 1, 2]));
    let words = "for want of memory: probably this one";
    until("the agent to say why", SOON, || mesh.log(host).contains(words).then_some(()));
    whole(&mesh, at);
    let writes = load.end(&mesh, at);
    drop(group);
    Observed { whole: Some(time), writes: Some(writes), served: None }
}

/// Tries to get one certain pid: others take some meanwhile.
const PID_TRIES_MAX: usize = 200;

fn pid_reused() -> Observed {
    let mut mesh = formed(MeshBuilder::new(HOSTS), "0");
    let [at, host, _] = coordinator_and_others(&mesh);
    let victim = server(&mesh, host, 6379).expect("it runs");
    mesh.kill_agent(host);
    send(&victim, Signal::KILL);
    until("it to be gone", SOON, || server(&mesh, host, 6379).is_none().then_some(()));
    let elsewhere = mesh.dir().join("somebody-elses");
    std::fs::create_dir(&elsewhere).expect("make a directory");
    let taken = (0..PID_TRIES_MAX).find_map(|_| {
        std::fs::write("/proc/sys/kernel/ns_last_pid", (victim.pid - 1).to_string()).expect("be root");
        let mut child = std::process::Command::new("redis-server")
            .args(["--port", "6379", "--bind", &format!("127.{}.9.9", 90), "--save", ""])
            .current_dir(&elsewhere)
            .stdout(std::process::Stdio::null())
            .spawn()
            .expect("start a redis-server");
        if child.id().cast_signed() == victim.pid {
            return Some(child);
        }
        let _ = child.kill();
        let _ = child.wait();
        None
    });
    let mut other = taken.expect("the pid to be free");
    mesh.start_agent(host);
    let (time, ()) = timed(|| await_served(&mesh, &[0, 1, 2]));
    whole(&mesh, at);
    let own = server(&mesh, host, 6379).expect("its own");
    assert_ne!(own.pid, victim.pid);
    assert!(other.try_wait().expect("ask for a child").is_none(), "the other one was left alone");
    assert_eq!(mesh.servers_of(host).len(), usize::from(PER_HOST));
    let _ = other.kill();
    let _ = other.wait();
    Observed { whole: Some(time), ..Observed::default() }
}
