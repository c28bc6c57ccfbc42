//! Agents that are killed, stopped or replaced while their servers go on.

use std::ffi::OsString;
use std::fs::OpenOptions;
use std::io::Write as _;
use std::path::PathBuf;

use rustix::process::Signal;

use super::strangers::Stranger;
use super::writer::Writer;
use super::{
    HOSTS, Load, Need, OTHER_AGENT, Observed, Scenario, agent, await_coordinator, await_dead, await_served,
    coordinator_and_others, formed, server, timed, whole,
};
use crate::mesh::MeshBuilder;
use crate::process::send;

/// See [`super::all`].
pub const ALL: &[Scenario] = &[
    Scenario {
        name: "agent-killed",
        fault: "an agent is killed (SIGKILL), and started again once the others take it for dead",
        result: "its servers keep their pids",
        needs: &[],
        trial: agent_killed,
    },
    Scenario {
        name: "agent-stopped",
        fault: "an agent is stopped (SIGSTOP) until the others take it for dead, then goes on (SIGCONT)",
        result: "its servers keep their pids",
        needs: &[],
        trial: agent_stopped,
    },
    Scenario {
        name: "coordinator-killed",
        fault: "the coordinator's agent is killed; it is started again once there is another",
        result: "another host coordinates, and the run goes on",
        needs: &[],
        trial: || coordinator(Signal::KILL),
    },
    Scenario {
        name: "coordinator-stopped",
        fault: "the coordinator's agent is stopped (SIGSTOP); it goes on once there is another",
        result: "all name the new coordinator, also the one that slept",
        needs: &[],
        trial: || coordinator(Signal::STOP),
    },
    Scenario {
        name: "agent-upgraded",
        fault: "each agent in turn is ended (SIGTERM), its binary replaced by another file, and started again",
        result: "the servers keep their pids; not one of another client's writes fails",
        needs: &[],
        trial: || agent_upgraded(None),
    },
    Scenario {
        name: "agent-of-another-build",
        fault: "each agent in turn is ended (SIGTERM) and started again as another build (the one that `REDMESH_OTHER_AGENT=PATH` names), and then back as this one",
        result: "both work in one mesh, in either direction; the servers keep their pids; not one of another client's writes fails",
        needs: &[Need::OtherAgent],
        trial: || agent_upgraded(std::env::var_os(OTHER_AGENT)),
    },
    Scenario {
        name: "pid-reused",
        fault: "an agent and one of its servers are killed, and somebody else's redis-server gets the server's pid; then the same with an agent that is only stopped",
        result: "each time a server is started in the dead one's place; the strangers are neither adopted nor signalled",
        needs: &[Need::Pids],
        trial: pid_reused,
    },
];

fn agent_killed() -> Observed {
    let mut mesh = formed(MeshBuilder::new(HOSTS), "0");
    let [at, victim, _] = coordinator_and_others(&mesh);
    let (load, pids) = (Load::begin(&mesh, at), mesh.servers());
    mesh.kill_agent(victim);
    await_dead(&mesh, at, victim);
    load.goes_on(&mesh, at);
    mesh.start_agent(victim);
    let (time, ()) = timed(|| whole(&mesh, at));
    assert_eq!(mesh.servers(), pids);
    Observed { whole: Some(time), writes: Some(load.end_without_loss(&mesh, at)), served: None }
}

fn agent_stopped() -> Observed {
    let mesh = formed(MeshBuilder::new(HOSTS), "0");
    let [at, victim, _] = coordinator_and_others(&mesh);
    let (load, pids) = (Load::begin(&mesh, at), mesh.servers());
    let process = agent(&mesh, victim);
    send(&process, Signal::STOP);
    await_dead(&mesh, at, victim);
    load.goes_on(&mesh, at);
    send(&process, Signal::CONT);
    let (time, ()) = timed(|| whole(&mesh, at));
    assert_eq!(mesh.servers(), pids);
    Observed { whole: Some(time), writes: Some(load.end_without_loss(&mesh, at)), served: None }
}

fn coordinator(signal: Signal) -> Observed {
    let mut mesh = formed(MeshBuilder::new(HOSTS), "0");
    let [old, at, other] = coordinator_and_others(&mesh);
    let (load, pids) = (Load::begin(&mesh, at), mesh.servers());
    let process = agent(&mesh, old);
    if signal == Signal::KILL {
        mesh.kill_agent(old);
    } else {
        send(&process, signal);
    }
    let (served, new) = timed(|| await_coordinator(&mesh, at, |new| new != old));
    load.goes_on(&mesh, at);
    if signal == Signal::KILL {
        mesh.start_agent(old);
    } else {
        send(&process, Signal::CONT);
    }
    let (time, ()) = timed(|| {
        for host in [old, at, other] {
            await_coordinator(&mesh, host, |named| named == new);
        }
        whole(&mesh, at);
    });
    assert_eq!(mesh.servers(), pids);
    Observed { served: Some(served), whole: Some(time), writes: Some(load.end_without_loss(&mesh, at)) }
}

/// Another build and back, or the same build as another file.
fn agent_upgraded(other: Option<OsString>) -> Observed {
    let mut mesh = formed(MeshBuilder::new(HOSTS).own_binary(), "0");
    let writer = Writer::begin(&mesh, 0);
    let (load, pids) = (Load::begin(&mesh, 0), mesh.servers());
    let (binary, new, own) =
        (mesh.agent_binary(), mesh.dir().join("redmesh-agent.new"), mesh.dir().join("redmesh-agent.own"));
    std::fs::copy(&binary, &own).expect("copy the agent");
    let ways = match other {
        Some(other) => vec![PathBuf::from(other), own],
        None => {
            // What stands after an ELF file's end is nobody's.
            let mut file = OpenOptions::new().append(true).open(&own).expect("open the copy");
            file.write_all(b"another file").expect("make it another");
            vec![own]
        }
    };
    let (time, ()) = timed(|| {
        for to in &ways {
            std::fs::copy(to, &new).expect("copy an agent");
            std::fs::rename(&new, &binary).expect("replace the agent's binary");
            for host in 0..HOSTS {
                mesh.end_agent(host);
                mesh.start_agent(host);
                whole(&mesh, (host + 1) % HOSTS);
                writer.await_more();
            }
        }
    });
    assert_eq!(mesh.servers(), pids);
    writer.end_without_failure();
    load.goes_on(&mesh, 0);
    let writes = load.end_without_loss(&mesh, 0);
    assert_eq!((writes.failed, writes.unknown), (0, 0), "{writes:?}");
    Observed { whole: Some(time), writes: Some(writes), served: None }
}

fn pid_reused() -> Observed {
    let mut mesh = formed(MeshBuilder::new(HOSTS), "0");
    let [at, host, _] = coordinator_and_others(&mesh);
    let load = Load::begin(&mesh, at);
    let [first, second] = [6379, 6380].map(|port| server(&mesh, host, port).expect("it runs"));

    mesh.kill_agent(host);
    send(&first, Signal::KILL);
    let mut strangers = vec![Stranger::under(first.pid)];
    mesh.start_agent(host);
    let (time, ()) = timed(|| {
        await_served(&mesh, &[0, 1, 2]);
        whole(&mesh, at);
    });

    // The agent has adopted this one: it isn't its child, so that its pid is free at once.
    let process = agent(&mesh, host);
    send(&process, Signal::STOP);
    send(&second, Signal::KILL);
    strangers.push(Stranger::under(second.pid));
    send(&process, Signal::CONT);
    await_served(&mesh, &[0, 1, 2]);
    whole(&mesh, at);

    load.goes_on(&mesh, at);
    let writes = load.end(&mesh, at);
    for (port, old) in [(6379, &first), (6380, &second)] {
        assert_ne!(server(&mesh, host, port).expect("it runs again").pid, old.pid);
    }
    strangers.iter_mut().for_each(Stranger::assert_untouched);
    Observed { whole: Some(time), writes: Some(writes), served: None }
}
