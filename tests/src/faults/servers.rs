//! redis-servers that are killed, stopped, or lost with their host.

use rustix::process::Signal;

use super::{
    HOSTS, Load, Need, Observed, SOON, Scenario, await_coordinator, await_served, coordinator_and_others,
    formed, primary_on, server, timed, whole,
};
use crate::cgroup::MemoryGroup;
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
        name: "server-out-of-memory",
        fault: "a redis-server without a replica may use 4 MiB more (a memory cgroup), and the kernel kills it once it does",
        result: "the agent says that it was want of memory, and starts it again",
        needs: &[Need::MemoryCgroup],
        trial: server_out_of_memory,
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
];

fn node_id(mesh: &Mesh, host: usize, port: u16) -> String {
    mesh.redis_cli(host, port, &["CLUSTER", "MYID"])
}

/// Awaits another server in the place of `host`'s first one, which had this id and pid, and
/// closes the account: what is lost is charged to it alone.
fn back_and_charged(mesh: &Mesh, [at, host]: [usize; 2], (id, pid): (&str, i32), load: Load) -> Observed {
    let (time, ()) = timed(|| await_served(mesh, &[0, 1, 2]));
    assert_ne!(server(mesh, host, 6379).expect("it runs again").pid, pid);
    assert_eq!(node_id(mesh, host, 6379), id);
    whole(mesh, at);
    load.goes_on(mesh, at);
    let writes = load.end(mesh, at);
    let charged = format!("{}:6379", mesh.ip(host));
    assert!(writes.lost_at.iter().all(|server| *server == charged), "{writes:?}");
    Observed { whole: Some(time), writes: Some(writes), served: None }
}

fn server_killed() -> Observed {
    let mesh = formed(MeshBuilder::new(HOSTS), "0");
    let [at, host, _] = coordinator_and_others(&mesh);
    let load = Load::begin(&mesh, at);
    let (id, victim) = (node_id(&mesh, host, 6379), server(&mesh, host, 6379).expect("it runs"));
    send(&victim, Signal::KILL);
    back_and_charged(&mesh, [at, host], (&id, victim.pid), load)
}

/// What a server may use beyond what it has: soon filled by a run.
const MEMORY_BYTES: u64 = 4 << 20;

fn server_out_of_memory() -> Observed {
    let mesh = formed(MeshBuilder::new(HOSTS), "0");
    let [at, host, _] = coordinator_and_others(&mesh);
    let (id, victim) = (node_id(&mesh, host, 6379), server(&mesh, host, 6379).expect("it runs"));
    let group = MemoryGroup::new("server", MEMORY_BYTES).expect("make a cgroup");
    group.take(victim.pid).expect("move the server");
    let load = Load::begin(&mesh, at);
    let told = || mesh.log(host).contains("for want of memory: probably this one");
    until("the agent to speak of memory", SOON, || told().then_some(()));
    back_and_charged(&mesh, [at, host], (&id, victim.pid), load)
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
