//! A whole mesh: certificates, configs, agents, and the ctl to drive it.

mod asking;

use std::collections::BTreeMap;
use std::ffi::OsStr;
use std::io::Write;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Output, Stdio};
use std::sync::OnceLock;
use std::sync::atomic::{AtomicU8, Ordering};
use std::time::Duration;

use crate::net::Network;
use crate::process;
use crate::turn::Turn;
use crate::wait::until;

/// Time for a mesh of a few hosts to initialise, on a busy machine of two cores.
pub const READY: Duration = Duration::from_secs(60);

/// Room for all that a host of a trial keeps on a disk of its own.
const SMALL_DISK: &str = "size=24m";

/// Second byte of the next mesh's loopback addresses.
static SUBNET: AtomicU8 = AtomicU8::new(100);

/// What a mesh is to be like.
#[derive(Debug, Clone)]
pub struct MeshBuilder {
    hosts: usize,
    expect: Option<usize>,
    spare: usize,
    signers: usize,
    keep_servers: bool,
    redis_auth: bool,
    redis_tls: bool,
    extra: String,
    extra_of: BTreeMap<usize, String>,
    nofile_of: BTreeMap<usize, u32>,
    env_of: BTreeMap<usize, Vec<(String, String)>>,
    namespaces: bool,
    own_binary: bool,
}

/// A running mesh; everything ends when it is dropped.
#[derive(Debug)]
pub struct Mesh {
    dir: tempfile::TempDir,
    subnet: u8,
    agents: Vec<Option<Child>>,
    builder: MeshBuilder,
    password: OnceLock<String>,
    // After the processes in it: fields are dropped in this order.
    net: Option<Network>,
    mounts: Vec<PathBuf>,
    _turn: Turn,
}

/// Binaries stand beside the test's own.
pub(crate) fn binary(name: &str) -> PathBuf {
    let mut path = std::env::current_exe().expect("a test knows its own path");
    path.pop();
    if path.ends_with("deps") {
        path.pop();
    }
    path.push(name);
    assert!(path.exists(), "{} is missing: cargo build --workspace --bins (make test does)", path.display());
    path
}

impl MeshBuilder {
    /// `hosts` agents that expect each other.
    pub fn new(hosts: usize) -> Self {
        Self {
            hosts,
            expect: None,
            spare: 0,
            signers: 0,
            keep_servers: false,
            redis_auth: true,
            redis_tls: false,
            extra: String::new(),
            extra_of: BTreeMap::new(),
            nofile_of: BTreeMap::new(),
            env_of: BTreeMap::new(),
            namespaces: false,
            own_binary: false,
        }
    }

    /// Another `bootstrap_expect` than the number of hosts.
    pub fn expecting(mut self, hosts: usize) -> Self {
        self.expect = Some(hosts);
        self
    }

    /// So many of the hosts have what it takes to let others join.
    pub fn signers(mut self, hosts: usize) -> Self {
        self.signers = hosts;
        self
    }

    /// Further hosts that have no certificate, and are not started: each is to join by the
    /// token in [`Mesh::token_file`].
    pub fn spare(mut self, hosts: usize) -> Self {
        self.spare = hosts;
        self
    }

    /// redis-servers outlive their agents, as in production.
    pub fn servers_outlive_agents(mut self) -> Self {
        self.keep_servers = true;
        self
    }

    /// redis-servers without a password.
    pub fn without_redis_auth(mut self) -> Self {
        self.redis_auth = false;
        self
    }

    /// redis-servers that speak TLS, and nothing else.
    pub fn with_redis_tls(mut self) -> Self {
        self.redis_tls = true;
        self
    }

    /// More TOML for every agent's file.
    pub fn config(mut self, toml: &str) -> Self {
        self.extra.push_str(toml);
        self
    }

    /// More TOML for one agent's file.
    pub fn config_of(mut self, host: usize, toml: &str) -> Self {
        self.extra_of.entry(host).or_default().push_str(toml);
        self
    }

    /// One agent's limit of open files, hard and soft.
    pub fn nofile_of(mut self, host: usize, limit: u32) -> Self {
        self.nofile_of.insert(host, limit);
        self
    }

    /// An environment variable of one agent.
    pub fn env_of(mut self, host: usize, name: &str, value: &str) -> Self {
        self.env_of.entry(host).or_default().push((name.to_owned(), value.to_owned()));
        self
    }

    /// Each host in a network namespace of its own; see [`crate::net`].
    pub fn in_namespaces(mut self) -> Self {
        self.namespaces = true;
        self
    }

    /// Agents run from a copy of the binary, which may be replaced: [`Mesh::agent_binary`].
    pub fn own_binary(mut self) -> Self {
        self.own_binary = true;
        self
    }

    /// Writes everything and starts the agents, without waiting for them.
    pub fn start(self) -> Mesh {
        let turn = Turn::take();
        let dir = tempfile::Builder::new().prefix("redmesh-test-").tempdir().expect("temp dir");
        let subnet = SUBNET.fetch_add(1, Ordering::Relaxed);
        let (hosts, all) = (self.hosts, self.hosts + self.spare);
        let agents = (0..all).map(|_| None).collect();
        let net = self.namespaces.then(|| Network::new(all, subnet));
        let mut mesh = Mesh {
            dir,
            subnet,
            agents,
            builder: self,
            password: OnceLock::new(),
            net,
            mounts: Vec::new(),
            _turn: turn,
        };
        mesh.prepare();
        (0..hosts).for_each(|host| mesh.start_agent(host));
        mesh
    }

    /// Starts the agents and waits until a coordinator acts and all are members.
    pub fn ready(self) -> Mesh {
        let mesh = self.start();
        mesh.await_members(mesh.builder.hosts);
        mesh
    }
}

impl Mesh {
    /// Address of a host's redis-servers and of its agent.
    pub fn ip(&self, host: usize) -> String {
        match &self.net {
            Some(net) => net.ip(host),
            None => format!("127.{}.0.{}", self.subnet, host + 1),
        }
    }

    /// A file system of its own (a tmpfs, so as root) of a few MB at `dir`.
    pub fn mount_small_disk(&mut self, dir: &Path) {
        std::fs::create_dir_all(dir).expect("make the mount point");
        let status = Command::new("mount").args(["-t", "tmpfs", "-o", SMALL_DISK, "tmpfs"]).arg(dir).status();
        assert!(status.expect("run mount").success(), "mount a tmpfs at {}", dir.display());
        self.mounts.push(dir.to_owned());
    }

    /// The hosts' network, where they have one of their own.
    pub fn net(&self) -> &Network {
        self.net.as_ref().expect("the mesh is in_namespaces")
    }

    /// A program on a host, or where the tests' own commands run.
    fn command(&self, host: Option<usize>, program: impl AsRef<OsStr>) -> Command {
        match &self.net {
            Some(net) => net.command(host, program.as_ref().to_str().expect("paths here are UTF-8")),
            None => Command::new(program),
        }
    }

    /// Where the agents' binary is.
    pub fn agent_binary(&self) -> PathBuf {
        if self.builder.own_binary { self.dir().join("redmesh-agent") } else { binary("redmesh-agent") }
    }

    /// How many hosts there are.
    pub fn hosts(&self) -> usize {
        self.agents.len()
    }

    /// Mesh address of a host.
    pub fn agent_addr(&self, host: usize) -> String {
        format!("{}:7379", self.ip(host))
    }

    /// Everything lies below it.
    pub fn dir(&self) -> &Path {
        self.dir.path()
    }

    /// A host's own directory.
    pub fn host_dir(&self, host: usize) -> PathBuf {
        self.dir().join(format!("host-{}", host + 1))
    }

    /// What a host's agent has logged.
    pub fn log(&self, host: usize) -> String {
        std::fs::read_to_string(self.host_dir(host).join("agent.log")).unwrap_or_default()
    }

    fn prepare(&mut self) {
        if self.builder.own_binary {
            std::fs::copy(binary("redmesh-agent"), self.agent_binary()).expect("copy the agent");
        }
        let pki = self.dir().join("pki");
        let pki = pki.to_str().expect("temp paths are UTF-8");
        self.ctl_ok(&["pki", "init", "--dir", pki]);
        self.ctl_ok(&["pki", "issue", "--dir", pki, "--operator", "tester"]);
        for host in 0..self.agents.len() {
            let name = format!("host-{}", host + 1);
            if host < self.builder.hosts {
                self.ctl_ok(&["pki", "issue", "--dir", pki, "--host", &name, "--ip", &self.ip(host)]);
            }
            if host < self.builder.signers {
                self.ctl_ok(&["pki", "signer", "--dir", pki, "--host", &name]);
            }
            let dir = self.host_dir(host);
            std::fs::create_dir_all(&dir).expect("make a host's directory");
            std::fs::write(dir.join("agent.toml"), self.config_of(host)).expect("write a config");
        }
    }

    /// Where a spare host looks for its token.
    pub fn token_file(&self) -> PathBuf {
        self.dir().join("join-token")
    }

    /// A host's certificate and key.
    pub fn identity_dir(&self, host: usize) -> PathBuf {
        match host < self.builder.hosts {
            true => self.dir().join(format!("pki/host-{}", host + 1)),
            false => self.host_dir(host).join("identity"),
        }
    }

    fn join_of(&self, host: usize) -> String {
        if host < self.builder.hosts {
            return String::new();
        }
        let token = self.token_file();
        format!("[join]\ntoken_file = \"{}\"\nname = \"host-{}\"\n", token.display(), host + 1)
    }

    fn config_of(&self, host: usize) -> String {
        let dir = self.host_dir(host);
        let ip = self.ip(host);
        format!(
            "[mesh]\nname = \"test\"\nlisten = \"{ip}:7379\"\nseeds = [\"{seed}\"]\nbootstrap_expect = {expect}\n\
             gossip_interval_ms = 100\n{join}[identity]\ndir = \"{pki}\"\n[state]\ndir = \"{state}\"\n\
             [http]\nlisten = \"{ip}:7380\"\n[redis]\ndata_dir = \"{data}\"\non_agent_exit = \"{exit}\"\n{auth}{tls}{extra}{extra_of}",
            seed = self.agent_addr(0),
            expect = self.builder.expect.unwrap_or(self.builder.hosts),
            join = self.join_of(host),
            pki = self.identity_dir(host).display(),
            state = dir.join("state").display(),
            data = dir.join("redis_cluster").display(),
            exit = if self.builder.keep_servers { "leave" } else { "stop" },
            // The default is part of what is tested.
            auth = if self.builder.redis_auth { "" } else { "auth = \"off\"\n" },
            tls = if self.builder.redis_tls { "tls = \"on\"\n" } else { "" },
            extra = self.builder.extra,
            extra_of = self.builder.extra_of.get(&host).map_or("", String::as_str),
        )
    }

    /// Starts a host's agent (again).
    pub fn start_agent(&mut self, host: usize) {
        self.start_agent_by(host, &[]);
    }

    /// Starts a host's agent as the last argument of `by`, a program that becomes it.
    pub fn start_agent_by(&mut self, host: usize, by: &[&str]) {
        assert!(self.agents[host].is_none(), "host {host} runs already");
        let dir = self.host_dir(host);
        let log = std::fs::OpenOptions::new()
            .create(true)
            .append(true)
            .open(dir.join("agent.log"))
            .expect("open the agent's log");
        let mut command = match self.builder.nofile_of.get(&host) {
            None => match by {
                [] => self.command(Some(host), self.agent_binary()),
                [program, args @ ..] => {
                    let mut command = self.command(Some(host), program);
                    command.args(args).arg(self.agent_binary());
                    command
                }
            },
            Some(limit) => {
                let mut shell = self.command(Some(host), "sh");
                shell.args(["-c", &format!("ulimit -n {limit} && exec \"$@\""), "sh"]);
                shell.arg(self.agent_binary());
                shell
            }
        };
        let child = command
            .arg("--config")
            .arg(dir.join("agent.toml"))
            .current_dir(&dir)
            // Not the agent's: it refuses variables that it doesn't know.
            .env_remove(crate::faults::OTHER_AGENT)
            .envs(self.builder.env_of.get(&host).into_iter().flatten().map(|(name, value)| (name, value)))
            .stdin(Stdio::null())
            .stdout(Stdio::null())
            .stderr(log)
            .spawn()
            .expect("start an agent");
        self.agents[host] = Some(child);
    }

    /// SIGKILL for a host's agent.
    pub fn kill_agent(&mut self, host: usize) {
        let mut child = self.agents[host].take().expect("the agent runs");
        child.kill().expect("kill an agent");
        child.wait().expect("reap an agent");
    }

    /// SIGTERM for a host's agent, until it has ended in good order.
    pub fn end_agent(&mut self, host: usize) {
        let mut child = self.agents[host].take().expect("the agent runs");
        let pid = rustix::process::Pid::from_child(&child);
        rustix::process::kill_process(pid, rustix::process::Signal::TERM).expect("signal an agent");
        let status = child.wait().expect("reap an agent");
        assert!(status.success(), "the agent of host {host} ended with {status}");
    }

    /// Pid of a host's agent.
    pub fn agent_pid(&self, host: usize) -> i32 {
        self.agents[host].as_ref().expect("the agent runs").id().cast_signed()
    }

    /// `redmesh-agent` with a host's configuration and these arguments.
    pub fn agent_command(&self, host: usize, args: &[&str]) -> Output {
        Command::new(binary("redmesh-agent"))
            .arg("--config")
            .arg(self.host_dir(host).join("agent.toml"))
            .args(args)
            .output()
            .expect("run redmesh-agent")
    }

    /// Whether a host's agent runs.
    pub fn agent_runs(&mut self, host: usize) -> bool {
        self.agents[host].as_mut().is_some_and(|child| child.try_wait().expect("ask for a child").is_none())
    }

    /// Waits until a host's agent has ended by itself; its exit code.
    pub fn await_agent_end(&mut self, host: usize) -> Option<i32> {
        let child = self.agents[host].as_mut().expect("the agent runs");
        let status =
            until("the agent to end by itself", READY, || child.try_wait().expect("ask for a child"));
        self.agents[host] = None;
        status.code()
    }

    /// All redis-servers of the mesh, by pid.
    pub fn servers(&self) -> Vec<process::ServerProcess> {
        process::servers_below(self.dir())
    }

    /// The redis-servers of one host.
    pub fn servers_of(&self, host: usize) -> Vec<process::ServerProcess> {
        process::servers_below(&self.host_dir(host))
    }
}

impl Drop for Mesh {
    fn drop(&mut self) {
        for child in self.agents.iter_mut().flatten() {
            let _ = child.kill();
            let _ = child.wait();
        }
        process::kill_below(self.dir());
        // Not earlier: below a mount that is gone no process of ours would be found.
        for dir in &self.mounts {
            let _ = Command::new("umount").arg("--lazy").arg(dir).status();
        }
        if std::thread::panicking() {
            for host in 0..self.agents.len() {
                let log = self.log(host);
                let lines: Vec<_> = log.lines().collect();
                let tail = lines[lines.len().saturating_sub(40)..].join("\n");
                let words = format!("--- host-{} agent.log, last lines\n{tail}\n", host + 1);
                let _ = Write::write_all(&mut std::io::stderr(), words.as_bytes());
            }
        }
    }
}
