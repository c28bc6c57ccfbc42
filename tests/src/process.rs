//! Processes of a mesh under test: found by their working directory, ended by pidfd.

use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use rustix::process::{Pid, PidfdFlags, Signal, pidfd_open, pidfd_send_signal};

/// Names of executables that a mesh may leave behind.
const OURS: &[&str] = &["redis-server", "valkey-server", "redmesh-agent", "redmeshctl"];

/// A process whose working directory lies in a mesh's directory.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
pub struct ServerProcess {
    /// Its pid.
    pub pid: i32,
    /// Where it works: for a redis-server `<data>/<port>`.
    pub dir: PathBuf,
    /// Name of its executable.
    pub name: String,
}

/// All processes of ours that work below `root`, by pid.
pub fn below(root: &Path) -> Vec<ServerProcess> {
    let Ok(processes) = procfs::process::all_processes() else { return Vec::new() };
    let mut found: Vec<_> = processes
        .flatten()
        .filter_map(|process| {
            let dir = process.cwd().ok().filter(|dir| dir.starts_with(root))?;
            let stat = process.stat().ok().filter(|stat| stat.state != 'Z')?;
            let name = stat.comm;
            OURS.contains(&name.as_str()).then_some(ServerProcess { pid: process.pid, dir, name })
        })
        .collect();
    found.sort();
    found
}

/// The redis-servers below `root`.
pub fn servers_below(root: &Path) -> Vec<ServerProcess> {
    below(root).into_iter().filter(|process| process.name.ends_with("-server")).collect()
}

/// Sends `signal` to `process` if it still is the one that was found.
pub fn send(process: &ServerProcess, signal: Signal) {
    let Some(pid) = Pid::from_raw(process.pid) else { return };
    let Ok(fd) = pidfd_open(pid, PidfdFlags::empty()) else { return };
    // The descriptor is of whoever bears the pid now: make sure that it is the same.
    let same = procfs::process::Process::new(process.pid)
        .and_then(|now| now.cwd())
        .is_ok_and(|dir| dir == process.dir);
    if same {
        let _ = pidfd_send_signal(&fd, signal);
    }
}

/// Kills everything below `root` until nothing is left, at most for ten seconds.
pub fn kill_below(root: &Path) {
    let end = Instant::now() + Duration::from_secs(10);
    loop {
        let left = below(root);
        if left.is_empty() || Instant::now() > end {
            return;
        }
        left.iter().for_each(|process| send(process, Signal::KILL));
        std::thread::sleep(Duration::from_millis(20));
    }
}
