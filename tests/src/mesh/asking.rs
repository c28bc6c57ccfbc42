//! What is asked of a mesh: by `redmeshctl` of its agents, by `redis-cli` of its servers.

use std::io::Write;
use std::path::PathBuf;
use std::process::{Child, Command, Output, Stdio};

use serde_json::Value;

use super::{Mesh, READY, binary};
use crate::wait::until;

impl Mesh {
    /// `redmeshctl` with these arguments, as the operator, asking `host`.
    pub fn ctl_at(&self, host: usize, args: &[&str]) -> Output {
        let agent = self.agent_addr(host);
        let identity = self.dir().join("pki/tester");
        let identity = identity.to_str().expect("temp paths are UTF-8");
        let mut all = vec!["--agent", &agent, "--identity", identity];
        all.extend(args);
        self.ctl(&all)
    }

    /// `redmeshctl` with exactly these arguments.
    pub fn ctl(&self, args: &[&str]) -> Output {
        self.ctl_output(None, args)
    }

    /// `redmeshctl` on a host, as the operator, asking that host.
    pub fn ctl_on(&self, host: usize, args: &[&str]) -> Output {
        let identity = self.dir().join("pki/tester");
        let identity = identity.to_str().expect("temp paths are UTF-8");
        let agent = self.agent_addr(host);
        self.ctl_output(Some(host), &[&["--agent", &agent, "--identity", identity], args].concat())
    }

    fn ctl_output(&self, host: Option<usize>, args: &[&str]) -> Output {
        self.command(host, binary("redmeshctl"))
            .args(args)
            .current_dir(self.dir())
            .env_remove("REDMESH_AGENT")
            .env_remove("REDMESH_IDENTITY")
            .stdin(Stdio::null())
            .output()
            .expect("run redmeshctl")
    }

    /// A command in the background, asking `host`; its output is piped.
    pub fn ctl_spawn_at(&self, host: usize, args: &[&str]) -> Child {
        self.ctl_spawn_as("tester", host, args)
    }

    /// The same by the identity that `pki issue` made for `who`.
    pub fn ctl_spawn_as(&self, who: &str, host: usize, args: &[&str]) -> Child {
        self.command(None, binary("redmeshctl"))
            .args(["--agent", &self.agent_addr(host), "--identity"])
            .arg(self.dir().join("pki").join(who))
            .args(args)
            .current_dir(self.dir())
            .stdin(Stdio::null())
            .stdout(Stdio::piped())
            .stderr(Stdio::piped())
            .spawn()
            .expect("run redmeshctl")
    }

    pub(super) fn ctl_ok(&self, args: &[&str]) -> String {
        stdout_of(args, self.ctl(args))
    }

    /// `redmeshctl` as the operator, which must succeed; what it printed.
    pub fn ok_at(&self, host: usize, args: &[&str]) -> String {
        stdout_of(args, self.ctl_at(host, args))
    }

    /// The same with `-o json`, parsed.
    pub fn json_at(&self, host: usize, args: &[&str]) -> Value {
        let mut all = vec!["-o", "json"];
        all.extend(args);
        let text = self.ok_at(host, &all);
        serde_json::from_str(&text)
            .unwrap_or_else(|error| panic!("{args:?} printed no JSON: {error}\n{text}"))
    }

    /// The same, `None` where the command failed (while a mesh heals).
    pub fn try_json_at(&self, host: usize, args: &[&str]) -> Option<Value> {
        let mut all = vec!["-o", "json"];
        all.extend(args);
        let output = self.ctl_at(host, &all);
        output.status.success().then(|| serde_json::from_slice(&output.stdout).ok())?
    }

    /// Waits until the first host sees `count` live members and a coordinator.
    pub fn await_members(&self, count: usize) {
        until(&format!("{count} members and a coordinator"), READY, || {
            let members = self.try_json_at(0, &["members"])?;
            let alive = members["members"].as_array()?.iter().filter(|m| m["state"] == "alive").count();
            (alive == count && members["coordinator"].is_string()).then_some(())
        });
    }

    /// Waits until `host` sees all alive, `instances` up and the cluster without an error.
    pub fn await_whole(&self, host: usize, instances: u64) {
        until("the mesh and its cluster to be whole", READY, || {
            let members = self.try_json_at(host, &["members"])?;
            let members = members["members"].as_array()?;
            let alive = members.iter().filter(|member| member["state"] == "alive");
            let (hosts, up) = alive.fold((0, 0), |(hosts, up), member| {
                (hosts + 1, up + member["instances_up"].as_u64().unwrap_or(0))
            });
            let check = self.try_json_at(host, &["cluster", "check"])?;
            (hosts == self.hosts() && up == instances && check["errors"].as_array()?.is_empty()).then_some(())
        });
    }

    /// Index of the host that coordinates, asked of `host`.
    pub fn coordinator_at(&self, host: usize) -> Option<usize> {
        let members = self.try_json_at(host, &["members"])?;
        let coordinator = members["members"].as_array()?.iter().find(|m| m["coordinator"] == true)?;
        let number = coordinator["name"].as_str()?.strip_prefix("host-")?.parse::<usize>().ok()?;
        Some(number - 1)
    }

    /// What clients of the mesh's redis-servers give.
    pub fn redis_password(&self) -> String {
        let pki = self.dir().join("pki");
        let pki = pki.to_str().expect("temp paths are UTF-8");
        self.ctl_ok(&["pki", "redis-password", "--dir", pki]).trim().to_owned()
    }

    /// `redis-cli`, which gives the password where the servers want it, and speaks TLS to
    /// servers that do.
    pub fn redis_cli_command(&self) -> Command {
        let mut command = self.command(None, "redis-cli");
        command.args(self.tls_args());
        self.log_in(&mut command);
        command
    }

    fn tls_args(&self) -> Vec<PathBuf> {
        match self.builder.redis_tls {
            true => vec!["--tls".into(), "--cacert".into(), self.dir().join("pki/ca.pem")],
            false => Vec::new(),
        }
    }

    fn log_in(&self, command: &mut Command) {
        if self.builder.redis_auth {
            command.env("REDISCLI_AUTH", self.password.get_or_init(|| self.redis_password()));
        }
    }

    /// `redis-cli` against one of the cluster's instances.
    pub fn redis_cli(&self, host: usize, port: u16, args: &[&str]) -> String {
        let output = self
            .redis_cli_command()
            .args(["-h", &self.ip(host), "-p", &port.to_string()])
            .args(args)
            .output()
            .expect("run redis-cli");
        String::from_utf8_lossy(&output.stdout).trim().to_owned()
    }

    /// `redis-cli -c` with `commands`, one a line, on its standard input; what it printed.
    pub fn redis_cli_fed(&self, host: usize, port: u16, commands: &str) -> String {
        // A server on a host that is cut off would be dialled for minutes.
        let mut command = self.command(None, "timeout");
        command.args(["10", "redis-cli"]).args(self.tls_args());
        self.log_in(&mut command);
        let mut child = command
            .args(["-c", "-h", &self.ip(host), "-p", &port.to_string()])
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            // Of a server that is being waited for it has nothing new to say.
            .stderr(Stdio::null())
            .spawn()
            .expect("run redis-cli");
        let mut stdin = child.stdin.take().expect("it is piped");
        // A few hundred lines fit the pipes both ways. What it ended without shows in its answers.
        let _ = stdin.write_all(commands.as_bytes());
        drop(stdin);
        let output = child.wait_with_output().expect("wait for redis-cli");
        String::from_utf8_lossy(&output.stdout).into_owned()
    }
}

fn stdout_of(args: &[&str], output: Output) -> String {
    assert!(
        output.status.success(),
        "redmeshctl {args:?} ended with {}\n{}{}",
        output.status,
        String::from_utf8_lossy(&output.stdout),
        String::from_utf8_lossy(&output.stderr)
    );
    String::from_utf8_lossy(&output.stdout).into_owned()
}
