//! What an agent must not forget, its votes and its counts, on a disk that is full, slow,
//! broken or damaged.

use std::fs;
use std::process::Command;
use std::time::Duration;

use serde_json::Value;

use super::disk::{SmallDisk, refuses};
use super::{
    HOSTS, Load, Need, Observed, SOON, Scenario, await_coordinator, await_problem, await_served,
    coordinator_and_others, formed, timed, whole,
};
use crate::mesh::{Mesh, MeshBuilder};
use crate::tracer::Tracer;
use crate::wait::until;

/// See [`super::all`].
pub const ALL: &[Scenario] = &[
    Scenario {
        name: "state-disk-full",
        fault: "the file system of a host's state directory (a tmpfs) has no byte left; a run ends and another begins, and the agent is killed",
        result: "it says that no space is left, before and at its start, and what to do; with space it knows its votes and its counts, and goes on",
        needs: &[Need::Root],
        trial: state_disk_full,
    },
    Scenario {
        name: "state-disk-slow",
        fault: "each sync of a file takes every agent 100 ms longer (`strace` delays the calls), and the coordinator's is killed",
        result: "runs begin, another host coordinates; the servers keep their pids",
        needs: &[Need::Strace],
        trial: state_disk_slow,
    },
    Scenario {
        name: "state-disk-fails",
        fault: "each sync of a file fails for the coordinator's agent (`strace` makes the calls return EIO)",
        result: "it ends and names the directory, another host coordinates; started again on a disk that works, it goes on",
        needs: &[Need::Strace],
        trial: state_disk_fails,
    },
    Scenario {
        name: "raft-store-damaged",
        fault: "an agent is killed in mid-run and its `raft.redb` overwritten; then its state directory is moved away, and with it its account of the run",
        result: "it doesn't start and names the file; without its state it joins as another host; its servers serve, but are nobody's; the run says whose account is lost, and adds up",
        needs: &[],
        trial: raft_store_damaged,
    },
];

/// A sync on a disk that has too much to do. A vote takes two of them, and has to be kept
/// within an election's shortest timeout, 500 ms: with syncs that take so long nobody is
/// elected.
const SLOW_SYNC: Duration = Duration::from_millis(100);

fn state_on_a_small_disk(mesh: &mut Mesh, host: usize) -> SmallDisk {
    mesh.end_agent(host);
    let state = mesh.host_dir(host).join("state");
    let aside = mesh.host_dir(host).join("state-aside");
    fs::rename(&state, &aside).expect("move the state aside");
    let disk = SmallDisk::mount(mesh, &state);
    let copied = Command::new("cp").arg("--archive").arg(aside.join(".")).arg(&state).status();
    assert!(copied.expect("run cp").success(), "copy the state");
    mesh.start_agent(host);
    disk
}

fn state_disk_full() -> Observed {
    let mut mesh = formed(MeshBuilder::new(HOSTS), "0");
    let [at, host, _] = coordinator_and_others(&mesh);
    let disk = state_on_a_small_disk(&mut mesh, host);
    whole(&mesh, at);
    let (load, pids) = (Load::begin(&mesh, at), mesh.servers());
    disk.fill();
    let first = load.end_without_loss(&mesh, at);
    let load = Load::begin(&mesh, at);
    await_problem(&mesh, at, host, &["free space"]);
    mesh.kill_agent(host);
    let before = mesh.log(host).len();
    mesh.start_agent(host);
    mesh.await_agent_end(host);
    let log = mesh.log(host);
    assert!(log[before..].contains("no space left to write") && log[before..].contains("free some"), "{log}");
    disk.relieve();
    mesh.start_agent(host);
    let (time, ()) = timed(|| whole(&mesh, at));
    load.goes_on(&mesh, at);
    assert_eq!(mesh.servers(), pids);
    let second = load.end_without_loss(&mesh, at);
    Observed { whole: Some(time), writes: Some(first.plus(&second)), served: None }
}

fn state_disk_slow() -> Observed {
    let mut mesh = formed(MeshBuilder::new(HOSTS), "0");
    let [old, at, _] = coordinator_and_others(&mesh);
    let pids = mesh.servers();
    let slow: Vec<_> = (0..HOSTS).map(|host| Tracer::slow_syncs(mesh.agent_pid(host), SLOW_SYNC)).collect();
    let load = Load::begin(&mesh, at);
    mesh.kill_agent(old);
    let (served, _) = timed(|| await_coordinator(&mesh, at, |new| new != old));
    load.goes_on(&mesh, at);
    mesh.start_agent(old);
    drop(slow);
    let (time, ()) = timed(|| whole(&mesh, at));
    load.goes_on(&mesh, at);
    assert_eq!(mesh.servers(), pids);
    Observed { served: Some(served), whole: Some(time), writes: Some(load.end_without_loss(&mesh, at)) }
}

fn state_disk_fails() -> Observed {
    let mut mesh = formed(MeshBuilder::new(HOSTS).signers(HOSTS), "0");
    let [old, at, _] = coordinator_and_others(&mesh);
    let (load, pids) = (Load::begin(&mesh, at), mesh.servers());
    let before = mesh.log(old).len();
    let failing = Tracer::failing_syncs(mesh.agent_pid(old));
    // Something that is to be kept; whoever asks for it is refused or waits in vain.
    let token = mesh.dir().join("token");
    let token = token.to_str().expect("temp paths are UTF-8");
    let mut asking = mesh.ctl_spawn_at(at, &["join-token", "create", "--uses", "1", "--out", token]);
    let (served, _) = timed(|| await_coordinator(&mesh, at, |new| new != old));
    let _ = asking.kill();
    asking.wait().expect("reap redmeshctl");
    mesh.await_agent_end(old);
    drop(failing);
    let log = mesh.log(old);
    assert!(log[before..].contains("the Raft store failed"), "{log}");
    load.goes_on(&mesh, at);
    mesh.start_agent(old);
    let (time, ()) = timed(|| whole(&mesh, at));
    load.goes_on(&mesh, at);
    assert_eq!(mesh.servers(), pids);
    Observed { served: Some(served), whole: Some(time), writes: Some(load.end_without_loss(&mesh, at)) }
}

/// The id of the host of that name that is alive.
fn id_of(mesh: &Mesh, at: usize, host: usize) -> Option<String> {
    let members = mesh.try_json_at(at, &["members"])?;
    let name = format!("host-{}", host + 1);
    let alive = |member: &&Value| member["name"] == name && member["state"] == "alive";
    members["members"].as_array()?.iter().find(alive)?["id"].as_str().map(str::to_owned)
}

fn raft_store_damaged() -> Observed {
    let mut mesh = formed(MeshBuilder::new(HOSTS), "0");
    let [at, host, _] = coordinator_and_others(&mesh);
    let (load, pids) = (Load::begin(&mesh, at), mesh.servers());
    let state = mesh.host_dir(host).join("state");
    let id = id_of(&mesh, at, host).expect("the host is a member");
    mesh.kill_agent(host);
    let file = state.join("raft.redb");
    let length = fs::metadata(&file).expect("the file is there").len();
    fs::write(&file, vec![0x5a; usize::try_from(length).expect("it is small")]).expect("damage the file");
    refuses(&mut mesh, host, "raft.redb");
    fs::rename(&state, mesh.host_dir(host).join("state-damaged")).expect("move the state away");
    mesh.start_agent(host);
    let (time, _) = timed(|| {
        until("the host to be another one", SOON, || id_of(&mesh, at, host).filter(|new| *new != id))
    });
    load.goes_on(&mesh, at);
    // Nobody supervises the servers of the host that it was, but they serve.
    await_served(&mesh, &[0, 1, 2]);
    assert_eq!(mesh.servers(), pids);
    let writes = load.end_without_account_of(&mesh, at, host);
    Observed { whole: Some(time), writes: Some(writes), served: None }
}
