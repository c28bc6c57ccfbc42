//! Hosts with a network of their own: a namespace each, joined by a bridge in one more,
//! where the tests' own commands run.
//!
//! The namespaces have no names: each lives as long as a process that sleeps in it, which
//! dies with the thread that made it. So nothing is left behind, however a test ends.
//! Needs root, `ip`, `nsenter` and `nft`; [`missing`] says which of it isn't there.

use std::path::Path;
use std::process::{Child, Command, Stdio};
use std::time::Duration;

use crate::wait::until;

/// For a namespace to appear.
const SOON: Duration = Duration::from_secs(10);

/// What a trial with namespaces lacks here; `None` if nothing.
pub fn missing() -> Option<&'static str> {
    let there = |name: &str| {
        ["/usr/bin", "/usr/sbin", "/bin", "/sbin"].iter().any(|dir| Path::new(dir).join(name).exists())
    };
    if !rustix::process::geteuid().is_root() {
        return Some("network namespaces need root");
    }
    if !["ip", "nsenter", "unshare", "setpriv", "nft"].into_iter().all(there) {
        return Some("ip, nsenter, unshare, setpriv and nft are needed (apt-get install iproute2 nftables)");
    }
    // Root of a container may not be allowed to.
    let tried = Command::new("unshare").args(["--net", "true"]).stderr(Stdio::null()).status();
    (!tried.is_ok_and(|status| status.success())).then_some("network namespaces can't be made here")
}

/// Namespaces of some hosts.
#[derive(Debug)]
pub struct Network {
    hub: Child,
    hosts: Vec<Child>,
    subnet: u8,
}

fn run(command: &mut Command) {
    let output = command.stdin(Stdio::null()).output().unwrap_or_else(|error| panic!("{command:?}: {error}"));
    assert!(output.status.success(), "{command:?}: {}", String::from_utf8_lossy(&output.stderr));
}

/// A process that keeps a new namespace alive.
fn namespace() -> Child {
    let child = Command::new("setpriv")
        .args(["--pdeathsig", "KILL", "unshare", "--net", "sleep", "infinity"])
        .stdin(Stdio::null())
        .spawn()
        .expect("make a network namespace");
    let of = |pid: &str| std::fs::read_link(format!("/proc/{pid}/ns/net")).ok();
    until("a network namespace", SOON, || (of(&child.id().to_string())? != of("self")?).then_some(()));
    child
}

fn inside(holder: &Child, program: &str) -> Command {
    let mut command = Command::new("nsenter");
    command.arg(format!("--net=/proc/{}/ns/net", holder.id())).args(["--", program]);
    command
}

impl Network {
    /// A network of `hosts` hosts at 10.`subnet`.0.1 and up.
    pub fn new(hosts: usize, subnet: u8) -> Self {
        let hub = namespace();
        let ip = |holder: &Child, words: &str| run(inside(holder, "ip").args(words.split(' ')));
        ip(&hub, "link set lo up");
        ip(&hub, "link add br0 type bridge");
        ip(&hub, &format!("addr add 10.{subnet}.0.254/24 dev br0"));
        ip(&hub, "link set br0 up");
        let hosts = (0..hosts)
            .map(|host| {
                let inner = namespace();
                ip(&hub, &format!("link add h{host} type veth peer name eth0 netns {}", inner.id()));
                ip(&hub, &format!("link set h{host} master br0 up"));
                ip(&inner, "link set lo up");
                ip(&inner, &format!("addr add 10.{subnet}.0.{}/24 dev eth0", host + 1));
                ip(&inner, "link set eth0 up");
                inner
            })
            .collect();
        Self { hub, hosts, subnet }
    }

    /// A host's address.
    pub fn ip(&self, host: usize) -> String {
        format!("10.{}.0.{}", self.subnet, host + 1)
    }

    /// A program on a host, or where all hosts can be reached from.
    pub fn command(&self, host: Option<usize>, program: &str) -> Command {
        inside(host.map_or(&self.hub, |host| &self.hosts[host]), program)
    }

    /// Pulls a host's cable, or puts it back.
    pub fn link(&self, host: usize, up: bool) {
        run(self.command(Some(host), "ip").args(["link", "set", "eth0", if up { "up" } else { "down" }]));
    }

    fn rule(&self, host: usize, rule: &str) {
        let hook = |chain: &str| {
            format!("add chain inet fault {chain} {{ type filter hook {chain} priority 0; }}; ")
        };
        let table = format!("add table inet fault; {}{}", hook("input"), hook("output"));
        run(self.command(Some(host), "nft").arg(format!("{table}add rule inet fault {rule}")));
    }

    /// Drops all packets between two sets of hosts, at `those`.
    pub fn cut(&self, those: &[usize], from: &[usize]) {
        for (&host, &other) in those.iter().flat_map(|host| from.iter().map(move |other| (host, other))) {
            self.rule(host, &format!("input ip saddr {} drop", self.ip(other)));
            self.rule(host, &format!("output ip daddr {} drop", self.ip(other)));
        }
    }

    /// Drops so many of 100 packets that arrive at a host.
    pub fn lose(&self, host: usize, percent: u8) {
        self.rule(host, &format!("input iifname eth0 numgen random mod 100 < {percent} drop"));
    }

    /// Takes back [`Network::cut`] and [`Network::lose`] at a host.
    pub fn mend(&self, host: usize) {
        run(self.command(Some(host), "nft").args(["delete", "table", "inet", "fault"]));
    }
}

impl Drop for Network {
    fn drop(&mut self) {
        for holder in self.hosts.iter_mut().chain([&mut self.hub]) {
            let _ = holder.kill();
            let _ = holder.wait();
        }
    }
}
