//! Disks that are full, descriptors that are used up, files that are damaged.

use std::fs;
use std::io::Write as _;
use std::path::{Path, PathBuf};

use rustix::process::{Pid, Resource, Rlimit, Signal, prlimit};

use super::{
    HOSTS, Load, Need, Observed, PER_HOST, Scenario, agent, await_problem, await_served,
    coordinator_and_others, formed, server, timed, whole,
};
use crate::mesh::{Mesh, MeshBuilder};
use crate::process::send;

/// See [`super::all`].
pub const ALL: &[Scenario] = &[
    Scenario {
        name: "data-disk-full",
        fault: "the file system of a host's data directory (a tmpfs) has no byte left, and one of its servers is killed",
        result: "the agent says that no space is left, and starts the server once there is some",
        needs: &[Need::Root],
        trial: data_disk_full,
    },
    Scenario {
        name: "no-descriptors",
        fault: "an agent may open no further file (prlimit), and one of its servers is killed",
        result: "the agent lives on and says why it can't start the server; with descriptors again it does",
        needs: &[Need::Root],
        trial: no_descriptors,
    },
    Scenario {
        name: "host-toml-damaged",
        fault: "an agent is killed and its `host.toml` truncated; then that is restored",
        result: "it doesn't start and names the file; restored, it does",
        needs: &[],
        trial: || file_damaged("host.toml", true),
    },
    Scenario {
        name: "level-damaged",
        fault: "an agent is killed and its `level.bin` truncated; then that is moved away",
        result: "it doesn't start and names the file; without it, it asks the others for the level",
        needs: &[],
        trial: || file_damaged("level.bin", false),
    },
    Scenario {
        name: "nodes-conf-damaged",
        fault: "a server's `nodes.conf` is overwritten and the server killed; then the file is moved away",
        result: "the agent quotes the server's words; without the file it is seeded anew under its node id",
        needs: &[],
        trial: nodes_conf_damaged,
    },
];

/// A small file system of its own below a mesh, and gone with that.
pub(super) struct SmallDisk(PathBuf);

impl SmallDisk {
    pub(super) fn mount(mesh: &mut Mesh, dir: &Path) -> Self {
        mesh.mount_small_disk(dir);
        Self(dir.to_owned())
    }

    fn ballast(&self) -> PathBuf {
        self.0.join("ballast")
    }

    /// Takes all bytes that are left.
    pub(super) fn fill(&self) {
        let mut file = fs::File::create(self.ballast()).expect("make the ballast");
        for size in [65_536, 4096, 1] {
            while file.write_all(&vec![1; size]).is_ok() {}
        }
    }

    pub(super) fn relieve(&self) {
        fs::remove_file(self.ballast()).expect("remove the ballast");
    }
}

fn create(mesh: &Mesh) {
    mesh.ok_at(0, &["cluster", "create", "--instances-per-host", &PER_HOST.to_string(), "--force", "disk"]);
    whole(mesh, 0);
}

fn data_disk_full() -> Observed {
    let mut mesh = MeshBuilder::new(HOSTS).servers_outlive_agents().ready();
    let [at, host, _] = coordinator_and_others(&mesh);
    let data = mesh.host_dir(host).join("redis_cluster");
    let disk = SmallDisk::mount(&mut mesh, &data);
    create(&mesh);
    let load = Load::begin(&mesh, at);
    let victim = server(&mesh, host, 6379).expect("it runs");
    disk.fill();
    send(&victim, Signal::KILL);
    await_problem(&mesh, at, host, &["no space left", "bytes free"]);
    disk.relieve();
    let (time, ()) = timed(|| {
        await_served(&mesh, &[0, 1, 2]);
        whole(&mesh, at);
    });
    load.goes_on(&mesh, at);
    let writes = load.end(&mesh, at);
    Observed { whole: Some(time), writes: Some(writes), served: None }
}

fn no_descriptors() -> Observed {
    let mesh = formed(MeshBuilder::new(HOSTS), "0");
    let [at, host, _] = coordinator_and_others(&mesh);
    let load = Load::begin(&mesh, at);
    let victim = server(&mesh, host, 6379).expect("it runs");
    let pid = Pid::from_raw(mesh.agent_pid(host));
    // None beyond those that are open: the kernel gives the lowest number that is free.
    let none = |old: Rlimit| Rlimit { current: Some(1), maximum: old.maximum };
    let old = prlimit(pid, Resource::Nofile, none(rustix::process::getrlimit(Resource::Nofile)))
        .expect("limit the agent");
    send(&victim, Signal::KILL);
    await_problem(&mesh, at, host, &["open files", "os error 24", "could not be started"]);
    assert_eq!(agent(&mesh, host).pid, mesh.agent_pid(host));
    prlimit(pid, Resource::Nofile, old).expect("lift the limit");
    let (time, ()) = timed(|| {
        await_served(&mesh, &[0, 1, 2]);
        whole(&mesh, at);
    });
    load.goes_on(&mesh, at);
    Observed { whole: Some(time), writes: Some(load.end(&mesh, at)), served: None }
}

/// Starts an agent that must refuse, and say so by naming `file`.
pub(super) fn refuses(mesh: &mut Mesh, host: usize, file: &str) {
    let before = mesh.log(host).len();
    mesh.start_agent(host);
    mesh.await_agent_end(host);
    let log = mesh.log(host);
    let said = &log[before..];
    assert!(said.contains(&format!("{file} is damaged")) && said.contains("move"), "{said}");
}

fn file_damaged(name: &str, restored: bool) -> Observed {
    let mut mesh = formed(MeshBuilder::new(HOSTS), "0");
    let [at, host, _] = coordinator_and_others(&mesh);
    let (load, pids) = (Load::begin(&mesh, at), mesh.servers());
    mesh.kill_agent(host);
    let file = mesh.host_dir(host).join("state").join(name);
    let whole_file = fs::read(&file).expect("the file is there");
    fs::write(&file, &whole_file[..whole_file.len() / 3]).expect("damage the file");
    refuses(&mut mesh, host, name);
    if restored {
        fs::write(&file, &whole_file).expect("restore the file");
    } else {
        fs::remove_file(&file).expect("move the file away");
    }
    mesh.start_agent(host);
    let (time, ()) = timed(|| whole(&mesh, at));
    load.goes_on(&mesh, at);
    assert_eq!(mesh.servers(), pids);
    Observed { whole: Some(time), writes: Some(load.end_without_loss(&mesh, at)), served: None }
}

fn nodes_conf_damaged() -> Observed {
    let mesh = formed(MeshBuilder::new(HOSTS), "0");
    let [at, host, _] = coordinator_and_others(&mesh);
    let load = Load::begin(&mesh, at);
    let id = mesh.redis_cli(host, 6379, &["CLUSTER", "MYID"]);
    let victim = server(&mesh, host, 6379).expect("it runs");
    let file = victim.dir.join("nodes.conf");
    fs::write(&file, "nothing that a server could read\n").expect("damage the file");
    send(&victim, Signal::KILL);
    await_problem(&mesh, at, host, &["nodes.conf", "cluster config"]);
    fs::remove_file(&file).expect("move the file away");
    let (time, ()) = timed(|| {
        await_served(&mesh, &[0, 1, 2]);
        whole(&mesh, at);
    });
    assert_eq!(mesh.redis_cli(host, 6379, &["CLUSTER", "MYID"]), id);
    load.goes_on(&mesh, at);
    Observed { whole: Some(time), writes: Some(load.end(&mesh, at)), served: None }
}
