//! Stops every process of a demo: first the agents in order, then whatever is left.
//!
//! What belongs to a demo is told by two things: its working directory lies in the
//! demo's, and its executable is an agent's or a server's, by its name. Signals go through pidfds,
//! so that none reaches a process that took over a number meanwhile.

use std::fmt;
use std::io;
use std::os::fd::OwnedFd;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use procfs::process::{Process, all_processes};
use rustix::process::{Pid, PidfdFlags, Signal, kill_process, pidfd_open, pidfd_send_signal};

use super::agents::Agents;

/// How long agents may take to stop their servers and themselves.
const AGENTS_STOP_MAX: Duration = Duration::from_secs(15);

/// How long servers may take to stop. A demo's data is not worth more.
const SERVERS_STOP_MAX: Duration = Duration::from_secs(5);

/// How long a killed process may take to be gone (a large one gives back its memory).
const KILLED_MAX: Duration = Duration::from_secs(10);

/// Pause between two looks.
const LOOK_EVERY: Duration = Duration::from_millis(20);

/// Looks for processes that were born while others were being killed.
const ROUNDS_MAX: usize = 3;

/// How the names of executables that are agents begin.
const AGENTS: [&str; 1] = ["redmesh-agent"];

/// How the names of executables that are servers begin; a version may follow
/// (`redis-server-8`). On Debian redis-server is a symbolic link to redis-check-rdb, and it is
/// the link's target that /proc tells.
const SERVERS: [&str; 4] = ["redis-server", "redis-check", "valkey-server", "valkey-check"];

/// Set by a person who won't wait.
#[derive(Debug, Clone, Default)]
pub struct Hurry(Arc<AtomicBool>);

impl Hurry {
    /// From now on everything is killed at once.
    pub fn now(&self) {
        self.0.store(true, Ordering::Relaxed);
    }

    fn is_set(&self) -> bool {
        self.0.load(Ordering::Relaxed)
    }
}

/// Why something may still be running.
#[derive(Debug, thiserror::Error)]
pub enum SweepError {
    /// The list of processes.
    #[error("can't list the processes in /proc")]
    Proc(#[source] io::Error),
    /// They were killed, and are there.
    #[error("still there after SIGKILL: {0}")]
    Left(String),
}

/// A process found.
#[derive(Debug)]
pub struct Found {
    pid: Pid,
    exe: String,
    pidfd: OwnedFd,
    process: Process,
}

impl fmt::Display for Found {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} (pid {})", self.exe, self.pid.as_raw_nonzero())
    }
}

impl Found {
    /// The process `pid`, if its name begins with one of `names` and it works in `dir`.
    fn of(pid: i32, dir: &Path, names: &[&str]) -> Option<Self> {
        let pid = Pid::from_raw(pid)?;
        // The pidfd first: if the number changes hands in between, what is looked at is
        // not what the pidfd names, and then that has ended and no signal reaches anybody.
        let pidfd = pidfd_open(pid, PidfdFlags::empty()).ok()?;
        let process = Process::new(pid.as_raw_nonzero().get()).ok()?;
        let cwd = process.cwd().ok()?;
        let exe = process.exe().ok()?;
        let exe = exe.file_name()?.to_str()?;
        // What was replaced or removed under a running process is marked so.
        let exe = exe.strip_suffix(" (deleted)").unwrap_or(exe).to_owned();
        let named = names.iter().any(|name| exe.starts_with(name));
        (cwd.starts_with(dir) && named).then_some(Self { pid, exe, pidfd, process })
    }

    fn is_running(&self) -> bool {
        // Nobody may be there to reap it: a zombie is gone as far as a demo is concerned.
        self.process.stat().is_ok_and(|stat| !matches!(stat.state, 'Z' | 'X' | 'x'))
    }

    fn signal(&self, signal: Signal) {
        // Fails if it has ended (that is the aim) or is somebody else's (found below).
        let _ = pidfd_send_signal(&self.pidfd, signal);
    }
}

/// A demo as this module sees it.
#[derive(Debug, Clone)]
pub struct Scope {
    /// Its directory: absolute, without symbolic links.
    pub dir: PathBuf,
    /// How the name of its servers' executable begins, where it is another one than [`SERVERS`].
    pub server: Option<String>,
}

impl Scope {
    fn servers(&self) -> Vec<&str> {
        SERVERS.into_iter().chain(self.server.as_deref()).collect()
    }

    /// The running processes of the demo. Other people's are not seen.
    pub fn find(&self) -> Result<Vec<Found>, SweepError> {
        find(&self.dir, &[&AGENTS[..], &self.servers()].concat())
    }
}

/// Those in `dir` by how their executables' names begin.
fn find(dir: &Path, names: &[&str]) -> Result<Vec<Found>, SweepError> {
    let all = all_processes().map_err(|error| SweepError::Proc(io::Error::other(error)))?;
    let found = all.filter_map(Result::ok).filter_map(|process| Found::of(process.pid(), dir, names));
    Ok(found.filter(Found::is_running).collect())
}

/// Stops the agents that were started here, then whatever else of the demo is there, and
/// sees that nothing is left. Blocks.
pub fn stop_all(agents: &mut Agents, demo: &Scope, hurry: &Hurry) -> Result<(), SweepError> {
    stop_children(agents, hurry);
    stop_found(demo, hurry)
}

/// As [`stop_all`] for a demo that another process started.
pub fn stop_found(demo: &Scope, hurry: &Hurry) -> Result<(), SweepError> {
    // Agents first: they would start a stopped server again.
    stop_named(&demo.dir, &AGENTS, AGENTS_STOP_MAX, hurry)?;
    stop_named(&demo.dir, &demo.servers(), SERVERS_STOP_MAX, hurry)
}

fn stop_children(agents: &mut Agents, hurry: &Hurry) {
    let signal_all = |agents: &mut Agents, signal| {
        for agent in agents.iter_mut() {
            if let Some(pid) = agent.pid() {
                // An unreaped child keeps its number.
                let _ = kill_process(pid, signal);
            }
        }
    };
    let gone = |agents: &mut Agents| agents.iter_mut().all(|agent| agent.ended().is_some());
    signal_all(agents, Signal::TERM);
    signal_all(agents, Signal::CONT);
    if wait(AGENTS_STOP_MAX, hurry, || gone(agents)) {
        return;
    }
    signal_all(agents, Signal::KILL);
    wait(KILLED_MAX, &Hurry::default(), || gone(agents));
}

fn stop_named(dir: &Path, names: &[&str], patience: Duration, hurry: &Hurry) -> Result<(), SweepError> {
    let mut left = Vec::new();
    for _ in 0..ROUNDS_MAX {
        left = find(dir, names)?;
        if left.is_empty() {
            return Ok(());
        }
        let gone = || left.iter().all(|found| !found.is_running());
        for found in &left {
            found.signal(Signal::TERM);
            // A server that is held (SIGSTOP) gets no further without it.
            found.signal(Signal::CONT);
        }
        if !wait(patience, hurry, gone) {
            left.iter().for_each(|found| found.signal(Signal::KILL));
            wait(KILLED_MAX, &Hurry::default(), gone);
        }
    }
    left.retain(Found::is_running);
    if left.is_empty() && find(dir, names)?.is_empty() {
        return Ok(());
    }
    Err(SweepError::Left(left.iter().map(ToString::to_string).collect::<Vec<_>>().join(", ")))
}

/// Waits until `done` (true), for at most `patience` or until there is a hurry (false).
fn wait(patience: Duration, hurry: &Hurry, mut done: impl FnMut() -> bool) -> bool {
    let until = Instant::now() + patience;
    loop {
        if done() {
            return true;
        }
        if hurry.is_set() || Instant::now() >= until {
            return false;
        }
        std::thread::sleep(LOOK_EVERY);
    }
}

#[cfg(test)]
mod tests {
    use std::process::{Child, Command};

    use super::*;

    /// Ends what a failed test leaves.
    struct Reaped(Child);

    impl Drop for Reaped {
        fn drop(&mut self) {
            let _ = self.0.kill();
            let _ = self.0.wait();
        }
    }

    fn sleep_in(dir: &Path) -> Reaped {
        Reaped(Command::new("sleep").arg("600").current_dir(dir).spawn().unwrap())
    }

    #[test]
    fn only_named_processes_inside_the_directory_are_stopped_even_if_held() {
        let root = tempfile::tempdir().unwrap();
        let root = root.path().canonicalize().unwrap();
        let (inside, outside) = (root.join("demo/host-1"), root.join("demo-other"));
        std::fs::create_dir_all(&inside).unwrap();
        std::fs::create_dir_all(&outside).unwrap();
        let mut held = sleep_in(&inside);
        let mut other = sleep_in(&outside);
        let demo = root.join("demo");
        let pid = Pid::from_child(&held.0);
        kill_process(pid, Signal::STOP).unwrap();

        let scope = |server| Scope { dir: demo.clone(), server };
        assert!(scope(None).find().unwrap().is_empty(), "a sleep is no server");
        // exec may not have happened yet.
        assert!(
            wait(Duration::from_secs(10), &Hurry::default(), || find(&demo, &["sleep"]).unwrap().len() == 1)
        );
        stop_found(&scope(Some("sleep".to_owned())), &Hurry::default()).unwrap();
        assert!(find(&demo, &["sleep"]).unwrap().is_empty());
        assert!(held.0.try_wait().unwrap().is_some());
        assert!(other.0.try_wait().unwrap().is_none());
    }

    #[test]
    fn whoever_is_in_a_hurry_does_not_wait() {
        let hurry = Hurry::default();
        hurry.now();
        assert!(!wait(Duration::from_secs(600), &hurry, || false));
    }
}
