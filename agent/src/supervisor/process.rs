//! Effects on processes: find the binary, find servers that are there already, start
//! one, signal it, learn how it ended.
//!
//! Signals and waits go through pidfds, so that a pid that was given to another
//! process in the meantime is never hit.

use std::collections::HashMap;
use std::ffi::OsStr;
use std::fs::File;
use std::io::{self, Read as _};
use std::os::fd::{AsFd, OwnedFd};
use std::os::unix::fs::OpenOptionsExt;
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::sync::Arc;
use std::time::{Duration, Instant};

use rustix::io::Errno;
use rustix::process::{
    Pid, PidfdFlags, Resource, Rlimit, Signal, WaitId, WaitIdOptions, getrlimit, pidfd_open,
    pidfd_send_signal, setrlimit, waitid,
};
use tokio::io::unix::AsyncFd;

use super::layout;
use crate::files;

/// Binaries looked for in PATH, in this order.
const SERVERS: [&str; 2] = ["redis-server", "valkey-server"];

/// Debian's packages make `redis-server` a link to this, so it is what runs.
const ALIASES: [&str; 2] = ["redis-check-rdb", "valkey-check-rdb"];

/// Descriptors that a server keeps for itself (`CONFIG_MIN_RESERVED_FDS` of Redis),
/// and a margin for its files and listening sockets.
pub const FDS_RESERVED: u64 = 32 + 32;

/// A server's `oom_score_adj` above the agent's own: as if it used 30 % of all memory
/// more (proc(5)). The unit gives the agent as much less, so that servers stand where
/// every process does.
const OOM_SCORE_ABOVE: i32 = 300;

/// The kernel's greatest `oom_score_adj` (proc(5)).
const OOM_SCORE_ADJ_MAX: i32 = 1000;

/// PATH where the agent has none.
const PATH_DEFAULT: &str = "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin";

/// The allocator's settings: of the system's jemalloc, and of the one that comes with
/// Redis' own source, which is built with a prefix.
const MALLOC_CONF_NAMES: [&str; 2] = ["MALLOC_CONF", "JE_MALLOC_CONF"];

/// Bytes of `--version` that are looked at.
const VERSION_BYTES_MAX: u64 = 1024;

/// How long `--version` may take: less than an agent that asks waits for the answer.
pub(super) const VERSION_WAIT: Duration = Duration::from_secs(5);

/// Between two looks at whether it has ended.
const VERSION_POLL: Duration = Duration::from_millis(5);

/// Why the server's binary can't be used.
#[derive(Debug, thiserror::Error)]
pub enum ProcessError {
    /// None found.
    #[error(
        "no redis-server or valkey-server in PATH ({path}); install one (apt-get install redis-server) or set redis.server to its path"
    )]
    NotFound {
        /// What was searched.
        path: String,
    },
    /// The one named isn't there or can't be executed.
    #[error(
        "redis.server is {server:?}, which is neither an executable file nor the name of one in PATH; install it (apt-get install redis-server) or set redis.server to the right path"
    )]
    NotExecutable {
        /// What was named.
        server: PathBuf,
    },
    /// `--version` failed.
    #[error("{server:?} --version failed")]
    Version {
        /// The binary.
        server: PathBuf,
        /// Why.
        #[source]
        source: io::Error,
    },
    /// It knows no TLS.
    #[error(
        "redis.tls is \"on\", but {server:?} was built without TLS (it says: {said}): install one that has it \
         (apt-get install redis-server), or set redis.tls = \"off\" on all hosts"
    )]
    NoTls {
        /// The binary.
        server: PathBuf,
        /// Its words.
        said: String,
    },
    /// The agent is shutting down.
    #[error("interrupted by the agent's end")]
    Interrupted,
}

/// The server's binary: the one named (by a path, or by a name in PATH), or the first of
/// `redis-server` and `valkey-server` in PATH.
pub fn find_server(server: Option<&Path>) -> Result<PathBuf, ProcessError> {
    let path = std::env::var_os("PATH").unwrap_or_else(|| PATH_DEFAULT.into());
    find_in(server, &path)
}

fn find_in(server: Option<&Path>, path: &OsStr) -> Result<PathBuf, ProcessError> {
    let in_path = |name: &Path| {
        std::env::split_paths(path).map(|dir| dir.join(name)).find(|candidate| is_executable(candidate))
    };
    match server {
        None => SERVERS
            .iter()
            .find_map(|name| in_path(name.as_ref()))
            .ok_or_else(|| ProcessError::NotFound { path: path.to_string_lossy().into_owned() }),
        Some(server) => {
            let is_name = server.components().count() == 1 && server.is_relative();
            let found = if is_name { in_path(server) } else { Some(server.to_owned()) };
            found
                .filter(|found| is_executable(found))
                .ok_or_else(|| ProcessError::NotExecutable { server: server.to_owned() })
        }
    }
}

fn is_executable(path: &Path) -> bool {
    path.is_file() && rustix::fs::access(path, rustix::fs::Access::EXEC_OK).is_ok()
}

/// Makes a child the kernel's choice before this process when memory runs out: an agent
/// starts a lost server again, but no server starts an agent. Raising takes no privilege.
fn die_before_the_agent(pid: u32) {
    let own =
        std::fs::read_to_string("/proc/self/oom_score_adj").ok().and_then(|text| text.trim().parse().ok());
    let raised = oom_score_adj_of_servers(own.unwrap_or(0));
    if let Err(error) = std::fs::write(format!("/proc/{pid}/oom_score_adj"), raised.to_string()) {
        tracing::warn!(pid, %error, "can't raise a server's oom_score_adj to {raised}");
    }
}

fn oom_score_adj_of_servers(own: i32) -> i32 {
    own.saturating_add(OOM_SCORE_ABOVE).min(OOM_SCORE_ADJ_MAX)
}

/// The server's binary in an environment of nothing but what is said here: nothing that is
/// meant for the agent, such as a library that it is to load, gets into a server.
fn command(server: &Path) -> Command {
    let mut command = Command::new(server);
    command.env_clear().env("PATH", std::env::var_os("PATH").unwrap_or_else(|| PATH_DEFAULT.into()));
    if let Some(lang) = std::env::var_os("LANG") {
        command.env("LANG", lang);
    }
    command
}

/// What the binary's `--version` prints, at most after `wait`.
pub(super) fn server_version(server: Option<&Path>, wait: Duration) -> Result<String, ProcessError> {
    let server = find_server(server)?;
    let printed = first_words(command(&server).arg("--version"), wait);
    let printed = printed.map_err(|source| ProcessError::Version { server, source })?;
    Ok(String::from_utf8_lossy(&printed.stdout).trim().to_owned())
}

/// Refuses a server that was built without TLS. It is started with no port to listen at, so
/// that any ends at once: at a directive that it doesn't know, or for want of a port.
pub(super) fn check_tls(server: Option<&Path>, wait: Duration) -> Result<(), ProcessError> {
    let server = find_server(server)?;
    let mut command = command(&server);
    command.args(["--port", "0", "--tls-port", "0", "--save", ""]).current_dir("/");
    let printed = match first_words(&mut command, wait) {
        Ok(printed) => printed,
        Err(source) => return Err(ProcessError::Version { server, source }),
    };
    let text = String::from_utf8_lossy(&printed.stderr);
    match text.split_once("FATAL CONFIG FILE ERROR") {
        None => Ok(()),
        Some((_, said)) => {
            let said = said.lines().skip(1).map(str::trim).filter(|line| !line.is_empty());
            Err(ProcessError::NoTls { server, said: said.collect::<Vec<_>>().join(" | ") })
        }
    }
}

/// The first bytes of each kind that a program prints.
#[derive(Debug, Default)]
struct Printed {
    stdout: Vec<u8>,
    stderr: Vec<u8>,
}

/// What a program prints that soon ends; one that doesn't is killed, or this agent could
/// not end either.
fn first_words(command: &mut Command, wait: Duration) -> io::Result<Printed> {
    let mut child = command.stdin(Stdio::null()).stdout(Stdio::piped()).stderr(Stdio::piped()).spawn()?;
    let until = Instant::now() + wait;
    while child.try_wait()?.is_none() {
        if Instant::now() >= until {
            let _ = child.kill();
            let _ = child.wait();
            let words = format!("it doesn't end within {} s", wait.as_secs());
            return Err(io::Error::new(io::ErrorKind::TimedOut, words));
        }
        std::thread::sleep(VERSION_POLL);
    }
    let mut printed = Printed::default();
    if let Some(stdout) = child.stdout.take() {
        stdout.take(VERSION_BYTES_MAX).read_to_end(&mut printed.stdout)?;
    }
    if let Some(stderr) = child.stderr.take() {
        stderr.take(VERSION_BYTES_MAX).read_to_end(&mut printed.stderr)?;
    }
    Ok(printed)
}

/// Raises this process's soft limit of open files to the hard one. Servers inherit it,
/// and a low one silently lowers their `maxclients`.
pub(super) fn raise_nofile() {
    let limit = getrlimit(Resource::Nofile);
    if limit.current == limit.maximum {
        return;
    }
    let raised = Rlimit { current: limit.maximum, maximum: limit.maximum };
    if let Err(error) = setrlimit(Resource::Nofile, raised) {
        tracing::warn!(%error, "can't raise the soft limit of open files to the hard one");
    }
}

/// Says in words with a remedy when the limit of open files can't hold a server's
/// clients.
pub(super) fn check_nofile(clients_needed: u32) -> Result<(), String> {
    nofile_words(getrlimit(Resource::Nofile).maximum, clients_needed)
}

/// `None` is no limit.
fn nofile_words(hard: Option<u64>, clients_needed: u32) -> Result<(), String> {
    let needed = u64::from(clients_needed) + FDS_RESERVED;
    match hard {
        Some(hard) if hard < needed => Err(format!(
            "a server needs {needed} open files ({clients_needed} clients and bus links, {FDS_RESERVED} of its own), \
             but the hard limit is {hard}; raise it (LimitNOFILE={needed} in the agent's unit, or ulimit -Hn) or \
             form a smaller cluster"
        )),
        _ => Ok(()),
    }
}

/// A server that was found running in an instance's directory.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Found {
    pub(super) pid: u32,
    pub(super) parent: u32,
    pub(super) stopped: bool,
}

/// All servers whose working directory is right below `data_dir`, by that directory.
///
/// Ours are told by working directory and executable: also one whose binary was
/// replaced by a package's upgrade. A child that saves a snapshot looks the same and is
/// told by its parent or its title.
///
/// # Errors
/// Also when this process may open no further file: a server that can't be looked at for
/// want of descriptors must not pass for one that isn't there.
pub(super) fn find_running(data_dir: &Path, server: Option<&Path>) -> io::Result<HashMap<PathBuf, Found>> {
    let mut found = Vec::new();
    for process in procfs::process::all_processes().map_err(io::Error::other)? {
        let Some(process) = there(process)? else { continue };
        found.extend(look_at(&process, data_dir, server)?);
    }
    let pids: Vec<u32> = found.iter().map(|(_, found)| found.pid).collect();
    Ok(found.into_iter().filter(|(_, found)| !pids.contains(&found.parent)).collect())
}

/// The same of one process.
pub(super) fn find_one(
    pid: u32,
    data_dir: &Path,
    server: Option<&Path>,
) -> io::Result<Option<(PathBuf, Found)>> {
    let Ok(pid) = i32::try_from(pid) else { return Ok(None) };
    match there(procfs::process::Process::new(pid))? {
        Some(process) => look_at(&process, data_dir, server),
        None => Ok(None),
    }
}

/// `None` where a process has ended, or is another user's and so not ours; an error where
/// this process lacks the descriptors to tell.
fn there<T>(read: procfs::ProcResult<T>) -> io::Result<Option<T>> {
    match read {
        Ok(value) => Ok(Some(value)),
        Err(procfs::ProcError::Io(error, _)) if out_of_descriptors(&error) => Err(error),
        Err(_) => Ok(None),
    }
}

/// Whether this process, or the whole machine, may open no further file.
pub(super) fn out_of_descriptors(error: &io::Error) -> bool {
    matches!(Errno::from_io_error(error), Some(Errno::MFILE | Errno::NFILE))
}

fn look_at(
    process: &procfs::process::Process,
    data_dir: &Path,
    server: Option<&Path>,
) -> io::Result<Option<(PathBuf, Found)>> {
    let Some(cwd) = there(process.cwd())? else { return Ok(None) };
    let Some(exe) = there(process.exe())? else { return Ok(None) };
    if cwd.parent() != Some(data_dir) || !is_server(&exe, server) {
        return Ok(None);
    }
    let Some(stat) = there(process.stat())? else { return Ok(None) };
    let title = there(process.cmdline())?.unwrap_or_default().join(" ");
    let child =
        ["redis-rdb-", "redis-aof-", "valkey-rdb-", "valkey-aof-"].iter().any(|p| title.starts_with(p));
    // Z has ended, X is being torn down.
    if child || matches!(stat.state, 'Z' | 'X') {
        return Ok(None);
    }
    let Ok(pid) = u32::try_from(process.pid) else { return Ok(None) };
    let parent = u32::try_from(stat.ppid).unwrap_or(0);
    Ok(Some((cwd, Found { pid, parent, stopped: matches!(stat.state, 'T' | 't') })))
}

/// Whether an executable's path, as `/proc/<pid>/exe` shows it, is a server's.
fn is_server(exe: &Path, server: Option<&Path>) -> bool {
    let name = |path: &Path| path.file_name().map(|name| name.to_string_lossy().into_owned());
    let Some(exe) = name(exe) else { return false };
    let exe = exe.strip_suffix(" (deleted)").unwrap_or(&exe);
    let known = SERVERS.iter().chain(&ALIASES).any(|known| *known == exe);
    // The binary named in the configuration, by its own name and by what it links to.
    let named = || {
        let server = server?;
        let target = std::fs::canonicalize(server).ok();
        Some(name(server).as_deref() == Some(exe) || target.and_then(|t| name(&t)).as_deref() == Some(exe))
    };
    known || named().unwrap_or(false)
}

/// A process, held by pidfd.
#[derive(Debug, Clone)]
pub(super) struct Process {
    pid: u32,
    fd: Arc<OwnedFd>,
}

impl Process {
    /// Takes hold of a process.
    pub(super) fn open(pid: u32) -> io::Result<Self> {
        let raw = i32::try_from(pid).ok().and_then(Pid::from_raw);
        let raw = raw.ok_or_else(|| io::Error::from(io::ErrorKind::InvalidInput))?;
        Ok(Self { pid, fd: Arc::new(pidfd_open(raw, PidfdFlags::NONBLOCK)?) })
    }

    /// Starts a server in its directory.
    pub(super) fn spawn(server: &Path, dir: &Path, malloc_conf: Option<&str>) -> io::Result<Self> {
        // A server quotes a directive that it can't use, which may hold a password.
        let mut stderr = File::options();
        stderr.write(true).create(true).truncate(true).mode(files::PRIVATE);
        let stderr = stderr.open(dir.join(layout::STDERR))?;
        let mut command = command(server);
        command
            .arg(layout::CONFIG)
            .current_dir(dir)
            .stdin(Stdio::null())
            .stdout(stderr.try_clone()?)
            .stderr(stderr)
            // Ctrl-C at a terminal is the agent's affair, not its servers'.
            .process_group(0);
        for name in MALLOC_CONF_NAMES {
            command.envs(malloc_conf.map(|conf| (name, conf)));
        }
        let mut child = command.spawn()?;
        die_before_the_agent(child.id());
        // Nobody else waits for it, so the pid can't have been given away.
        Self::open(child.id()).inspect_err(|_| {
            let _ = child.kill();
            let _ = child.wait();
        })
    }

    pub(super) fn pid(&self) -> u32 {
        self.pid
    }

    /// Sends a signal; a process that has ended is no error, for its end is reported.
    pub(super) fn signal(&self, signal: Signal) {
        match pidfd_send_signal(self.fd.as_fd(), signal) {
            Ok(()) | Err(Errno::SRCH) => {}
            Err(error) => tracing::warn!(pid = self.pid, ?signal, %error, "can't signal a server"),
        }
    }

    /// Waits for its end, reaps it if it is a child, and says how it ended.
    pub(super) async fn ended(&self) -> String {
        // The descriptor stays readable once the process has ended.
        #[expect(deprecated, reason = "its replacement is an unsafe fn; an OwnedFd keeps that one's promise")]
        let watch = self.fd.try_clone().and_then(AsyncFd::new);
        match watch {
            Ok(watch) => {
                if let Err(error) = watch.readable().await {
                    return format!("an end that can't be watched ({error})");
                }
            }
            Err(error) => return format!("an end that can't be watched ({error})"),
        }
        match waitid(WaitId::PidFd(self.fd.as_fd()), WaitIdOptions::EXITED | WaitIdOptions::NOHANG) {
            Ok(Some(status)) => match (status.exit_status(), status.terminating_signal()) {
                (Some(code), _) => format!("exit status {code}"),
                (None, Some(signal)) => format!("signal {signal}"),
                (None, None) => "an unknown status".into(),
            },
            // An adopted server is not the agent's child.
            _ => "a status known only to its parent".into(),
        }
    }
}

#[cfg(test)]
mod tests;
