//! The rival: servers started here with the configuration that redmesh would write,
//! joined by `redis-cli --cluster create`.

use std::fs::File;
use std::io::Write as _;
use std::net::SocketAddr;
use std::os::unix::process::CommandExt as _;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::sync::atomic::Ordering;
use std::time::{Duration, Instant, SystemTime};

use anyhow::{Context as _, bail};
use redmesh_agent::cluster::bus::{self, Machine};
use redmesh_agent::cluster::{RedisConf, clients_needed};
use redmesh_agent::config::MALLOC_CONF_DEFAULT;
use redmesh_benches::ask::ask;
use redmesh_benches::children::Children;

use super::cluster::{Phases, Setting};
use super::watch::{Limits, all_agree};

/// How long a server may take to answer PING after its start.
const START_MAX: Duration = Duration::from_secs(30);

/// Between two tries.
const START_EVERY: Duration = Duration::from_millis(5);

/// Servers of this process; killed when dropped, and their files removed.
#[derive(Debug)]
pub struct Servers {
    dir: PathBuf,
    addresses: Vec<SocketAddr>,
    server: PathBuf,
    children: Vec<Child>,
}

impl Servers {
    /// Starts all, one after another, until each answers.
    fn start(setting: &Setting, limits: &Limits) -> anyhow::Result<Self> {
        let dir = setting.dir("redis-cli");
        std::fs::create_dir(&dir).with_context(|| format!("can't create {}", dir.display()))?;
        let addresses = setting.addresses();
        let mut servers = Self { dir, addresses, server: setting.server.clone(), children: Vec::new() };
        let somaxconn = std::fs::read_to_string("/proc/sys/net/core/somaxconn");
        let instances = servers.addresses.len();
        // What redmesh chooses for the same cluster on this machine.
        let cores = std::thread::available_parallelism().map_or(1, |cores| cores.get());
        let cores = u32::try_from(cores).unwrap_or(u32::MAX);
        let machine = [Machine { cores, instances, network_bits_per_s: None }];
        for at in 0..instances {
            limits.check()?;
            let dir = servers.dir.join(at.to_string());
            std::fs::create_dir(&dir)?;
            let conf = RedisConf {
                addr: servers.addresses[at],
                node_timeout_ms: bus::node_timeout_ms(instances, &machine),
                hz: bus::hz(instances, &machine),
                forming: false,
                clients_needed: clients_needed(instances),
                dir: dir.clone(),
                somaxconn: somaxconn.as_ref().ok().and_then(|text| text.trim().parse().ok()),
                directives: Vec::new(),
                access: None,
                tls: None,
            };
            std::fs::write(dir.join("redis.conf"), conf.render()?)?;
            let child = servers.spawn(&dir)?;
            servers.children.push(child);
        }
        servers.addresses.iter().try_for_each(|addr| await_answer(*addr, limits))?;
        Ok(servers)
    }

    fn spawn(&self, dir: &Path) -> anyhow::Result<Child> {
        let mut command = Command::new(&self.server);
        command.arg("redis.conf").current_dir(dir).stdin(Stdio::null()).stdout(Stdio::null());
        // A group of its own: Ctrl-C reaches this program alone.
        command.stderr(File::create(dir.join("redis.err"))?).process_group(0);
        // As redmesh's agents do by default.
        command.env("MALLOC_CONF", MALLOC_CONF_DEFAULT);
        command.spawn().with_context(|| format!("can't start {}", self.server.display()))
    }

    /// What an agent would do: reap a server that was killed, and start it again.
    pub fn restart(&mut self, at: usize) -> anyhow::Result<()> {
        self.children[at].wait()?;
        self.children[at] = self.spawn(&self.dir.join(at.to_string()))?;
        Ok(())
    }
}

impl Drop for Servers {
    fn drop(&mut self) {
        for child in &mut self.children {
            // An error means that it has ended.
            let _ = child.kill();
        }
        for child in &mut self.children {
            let _ = child.wait();
        }
        if let Err(error) = std::fs::remove_dir_all(&self.dir) {
            let _ = writeln!(std::io::stderr(), "{} is left behind: {error}", self.dir.display());
        }
    }
}

fn await_answer(addr: SocketAddr, limits: &Limits) -> anyhow::Result<()> {
    let began = Instant::now();
    while let Err(error) = ask(addr, "PING", START_MAX) {
        limits.check()?;
        if began.elapsed() > START_MAX {
            return Err(error.context("a server does not start"));
        }
        std::thread::sleep(START_EVERY);
    }
    Ok(())
}

/// Forms one cluster. The servers live as long as what is returned.
pub fn form(setting: &Setting, limits: &Limits, children: &Children) -> anyhow::Result<(Servers, Phases)> {
    let began = Instant::now();
    let servers = Servers::start(setting, limits)?;
    let start_s = began.elapsed().as_secs_f64();

    let mut create = Command::new(&setting.cli);
    create.args(["--cluster", "create"]).args(servers.addresses.iter().map(SocketAddr::to_string));
    create.args(["--cluster-yes", "--cluster-replicas", "0"]);
    let began = (Instant::now(), SystemTime::now());
    let (told, agreed) = std::thread::scope(|scope| {
        let told = scope.spawn(|| {
            let left = limits.until.saturating_duration_since(Instant::now());
            let ended = children.run_within(&mut create, left);
            // It hangs or has failed: nothing will come any more.
            if !matches!(ended, Ok(Some(_))) {
                limits.given_up.store(true, Ordering::SeqCst);
            }
            ended.map(|out| out.map(|_| began.0.elapsed().as_secs_f64()))
        });
        let agreed = all_agree(&servers.addresses, limits);
        if agreed.is_err() {
            limits.given_up.store(true, Ordering::SeqCst);
        }
        (told.join(), agreed)
    });
    let told = match told {
        Ok(told) => told.context("redis-cli --cluster create")?,
        Err(_) => bail!("the thread that ran redis-cli has panicked"),
    };
    let Some(told_s) = told else {
        bail!("redis-cli --cluster create: not within {} s", setting.deadline.as_secs());
    };
    let form_s = agreed?.duration_since(began.1).context("the clock was set back")?.as_secs_f64();
    Ok((servers, Phases { start_s, form_s, told_s }))
}
