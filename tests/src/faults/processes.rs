//! Agents that are killed, stopped or replaced while their servers go on.

use std::fs::OpenOptions;
use std::io::Write as _;

use rustix::process::Signal;

use super::writer::Writer;
use super::{
    HOSTS, Load, Observed, Scenario, agent, await_coordinator, await_dead, coordinator_and_others, formed,
    timed, whole,
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
        trial: agent_upgraded,
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

/// Another build of the agent, or the same one as another file: REDMESH_OTHER_AGENT names one.
fn agent_upgraded() -> Observed {
    let mut mesh = formed(MeshBuilder::new(HOSTS).own_binary(), "0");
    let writer = Writer::begin(&mesh, 0);
    let (load, pids) = (Load::begin(&mesh, 0), mesh.servers());
    let (binary, new) = (mesh.agent_binary(), mesh.dir().join("redmesh-agent.new"));
    match std::env::var_os("REDMESH_OTHER_AGENT") {
        Some(other) => {
            std::fs::copy(other, &new).expect("copy the other agent");
        }
        None => {
            std::fs::copy(&binary, &new).expect("copy the agent");
            // What stands after an ELF file's end is nobody's.
            let mut file = OpenOptions::new().append(true).open(&new).expect("open the copy");
            file.write_all(b"another file").expect("make it another");
        }
    }
    std::fs::rename(&new, &binary).expect("replace the agent's binary");
    let (time, ()) = timed(|| {
        for host in 0..HOSTS {
            mesh.end_agent(host);
            mesh.start_agent(host);
            whole(&mesh, (host + 1) % HOSTS);
            writer.await_more();
        }
    });
    assert_eq!(mesh.servers(), pids);
    writer.end_without_failure();
    load.goes_on(&mesh, 0);
    let writes = load.end_without_loss(&mesh, 0);
    assert_eq!((writes.failed, writes.unknown), (0, 0), "{writes:?}");
    Observed { whole: Some(time), writes: Some(writes), served: None }
}
