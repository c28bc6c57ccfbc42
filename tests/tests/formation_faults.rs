//! Somebody is killed (or stopped) at every moment of a formation, and it completes: by
//! itself, and told by the same command again. No server is started twice, every node is
//! who it was planned to be, and nothing of a deposed coordinator counts.

use std::collections::BTreeSet;
use std::net::TcpListener;
use std::time::Duration;

use redmesh_tests::process::{self, ServerProcess, send};
use redmesh_tests::{Mesh, MeshBuilder, until};
use rustix::process::Signal;
use serde_json::Value;

const HOSTS: usize = 3;
const PER_HOST: u16 = 2;
const CREATE: &[&str] = &["cluster", "create", "--instances-per-host", "2"];
const SOON: Duration = Duration::from_secs(40);

/// When the blow falls.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Moment {
    /// The plan is committed; one agent is stopped as soon as that is told.
    Ordered,
    /// Servers are held, one host can't start its own yet.
    Held,
    /// Servers are released, one of them doesn't answer.
    Released,
    /// All agree.
    Formed,
}

/// Whom it hits.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Victim {
    Coordinator,
    Agent,
    Server,
}

/// What keeps a formation from getting past its moment, until it is lifted.
enum Obstacle {
    Stopped(ServerProcess),
    Port(TcpListener),
    None,
}

impl Obstacle {
    fn lift(self) {
        match self {
            Self::Stopped(process) => send(&process, Signal::CONT),
            Self::Port(listener) => drop(listener),
            Self::None => {}
        }
    }
}

fn agent_of(mesh: &Mesh, host: usize) -> ServerProcess {
    let agents = process::below(&mesh.host_dir(host)).into_iter().filter(|p| p.name == "redmesh-agent");
    agents.into_iter().next().expect("the agent runs")
}

fn status(mesh: &Mesh, host: usize) -> Option<Value> {
    mesh.try_json_at(host, &["cluster", "info"])
}

fn await_stage(mesh: &Mesh, host: usize, stage: &str) {
    until(&format!("stage {stage}"), SOON, || {
        (status(mesh, host)?["status"]["plan"]["stage"] == stage).then_some(())
    });
}

/// Begins a formation and brings it to `moment`. `blocked` is the host that is in the way.
fn bring_to(mesh: &Mesh, moment: Moment, blocked: usize) -> Obstacle {
    let asked = (blocked + 1) % HOSTS;
    let begin = |more: &[&str]| mesh.ok_at(asked, &[CREATE, &["--no-wait"], more].concat());
    match moment {
        Moment::Ordered => {
            let agent = agent_of(mesh, blocked);
            // The preflight wants its answer first.
            begin(&[]);
            send(&agent, Signal::STOP);
            Obstacle::Stopped(agent)
        }
        Moment::Held => {
            let listener = TcpListener::bind((mesh.ip(blocked).as_str(), 6379)).expect("take a port");
            begin(&["--force", "ports"]);
            until("the other servers to be there", SOON, || (mesh.servers().len() >= 5).then_some(()));
            Obstacle::Port(listener)
        }
        Moment::Released => {
            begin(&[]);
            await_stage(mesh, asked, "release");
            let server = mesh.servers_of(blocked).pop().expect("a server");
            send(&server, Signal::STOP);
            Obstacle::Stopped(server)
        }
        Moment::Formed => {
            begin(&[]);
            await_stage(mesh, asked, "formed");
            Obstacle::None
        }
    }
}

/// The cluster is whole, by its own account, by redis-cli's, and by what it keeps.
fn assert_sound(mesh: &Mesh, plan: &Value) {
    let dirs: Vec<_> = mesh.servers().into_iter().map(|server| server.dir).collect();
    let distinct: BTreeSet<_> = dirs.iter().collect();
    assert_eq!((dirs.len(), distinct.len()), (6, 6), "one server for each directory: {dirs:?}");
    let instances = plan["instances"].as_array().expect("instances");
    for instance in instances {
        let host = instance["host"].as_u64().expect("a host") as usize;
        let port = instance["port"].as_u64().expect("a port") as u16;
        assert_eq!(mesh.redis_cli(host, port, &["CLUSTER", "MYID"]), instance["node_id"], "as planned");
    }
    until("redis-cli to find it whole", SOON, || {
        let text = mesh.redis_cli(0, 6379, &["--cluster", "check", &format!("{}:6379", mesh.ip(0))]);
        let whole = text.contains("[OK] All nodes agree") && text.contains("[OK] All 16384 slots covered");
        whole.then_some(())
    });
    // Enough keys that each primary has some.
    let write: String = (0..120).map(|key| format!("SET key-{key} value-{key}\n")).collect();
    let written = mesh.redis_cli_fed(0, 6379, &write);
    assert_eq!(written.lines().filter(|line| line.trim() == "OK").count(), 120, "{written}");
    let read: String = (0..120).map(|key| format!("GET key-{key}\n")).collect();
    let read = mesh.redis_cli_fed(1, 6379, &read);
    assert_eq!(read.lines().filter(|line| line.trim().starts_with("value-")).count(), 120, "{read}");
    for (host, port) in (0..HOSTS).flat_map(|host| (0..PER_HOST).map(move |nth| (host, 6379 + nth))) {
        let keys: u64 = mesh.redis_cli(host, port, &["DBSIZE"]).parse().expect("a number");
        assert!(keys > 0, "127.x.0.{}:{port} serves no key", host + 1);
    }
}

fn strike(moment: Moment, victim: Victim) {
    let mut mesh = MeshBuilder::new(HOSTS).servers_outlive_agents().ready();
    let coordinator = mesh.coordinator_at(0).expect("a coordinator");
    let (other, blocked) = ((coordinator + 1) % HOSTS, (coordinator + 2) % HOSTS);
    let obstacle = bring_to(&mesh, moment, blocked);
    match victim {
        Victim::Server => {
            // A host that has begun may have none yet.
            let server = until("a server to kill", SOON, || mesh.servers_of(other).pop());
            send(&server, Signal::KILL);
        }
        Victim::Agent => mesh.kill_agent(other),
        Victim::Coordinator => mesh.kill_agent(coordinator),
    }
    // Where an agent is stopped as well, two of three voters are away until it goes on.
    if victim == Victim::Coordinator && moment != Moment::Ordered {
        until("another coordinator", SOON, || mesh.coordinator_at(other).filter(|&new| new != coordinator));
    }
    obstacle.lift();
    match victim {
        Victim::Server => {}
        Victim::Agent => mesh.start_agent(other),
        Victim::Coordinator => mesh.start_agent(coordinator),
    }
    until("a coordinator", SOON, || mesh.coordinator_at(blocked));
    let created = mesh.json_at(blocked, CREATE);
    assert_eq!((&created["formed"], &created["fresh"]), (&Value::Bool(true), &Value::Bool(false)));
    assert_sound(&mesh, &created["plan"]);
}

macro_rules! strikes {
    ($($name:ident: $moment:ident, $victim:ident;)+) => {
        $(#[test]
        fn $name() {
            strike(Moment::$moment, Victim::$victim);
        })+
    };
}

strikes! {
    the_coordinator_dies_when_the_plan_is_committed: Ordered, Coordinator;
    an_agent_dies_when_the_plan_is_committed: Ordered, Agent;
    a_server_dies_when_the_plan_is_committed: Ordered, Server;
    the_coordinator_dies_while_servers_are_held: Held, Coordinator;
    an_agent_dies_while_servers_are_held: Held, Agent;
    a_server_dies_while_it_is_held: Held, Server;
    the_coordinator_dies_after_the_release: Released, Coordinator;
    an_agent_dies_after_the_release: Released, Agent;
    a_server_dies_after_the_release: Released, Server;
    the_coordinator_dies_when_all_is_formed: Formed, Coordinator;
    an_agent_dies_when_all_is_formed: Formed, Agent;
    a_server_dies_when_all_is_formed: Formed, Server;
}

#[test]
fn a_stopped_coordinator_that_wakes_up_changes_nothing() {
    let mesh = MeshBuilder::new(HOSTS).servers_outlive_agents().ready();
    let old = mesh.coordinator_at(0).expect("a coordinator");
    let other = (old + 1) % HOSTS;
    let obstacle = bring_to(&mesh, Moment::Held, other);
    let plan = status(&mesh, other).expect("a plan")["status"]["plan"]["id"].clone();
    let pids = mesh.servers_of(old);
    let agent = agent_of(&mesh, old);
    send(&agent, Signal::STOP);
    let new = until("another coordinator", SOON, || mesh.coordinator_at(other).filter(|&new| new != old));
    obstacle.lift();
    // The new one goes on as far as it can without the host that sleeps.
    await_stage(&mesh, other, "release");
    send(&agent, Signal::CONT);
    let created = mesh.json_at(other, CREATE);
    assert_eq!((&created["formed"], &created["fresh"]), (&Value::Bool(true), &Value::Bool(false)));
    assert_eq!(created["plan"]["id"], plan);
    assert_eq!(mesh.servers_of(old), pids, "its servers were left alone");
    for host in 0..HOSTS {
        until("all to name the new coordinator", SOON, || (mesh.coordinator_at(host)? == new).then_some(()));
    }
    assert_sound(&mesh, &created["plan"]);
}
