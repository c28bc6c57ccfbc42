//! The rival: servers started here with the configuration that redmesh would write, or with
//! Redis' own where redmesh chooses, joined by `redis-cli --cluster create`.

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
use redmesh_benches::children::Children;

use super::cluster::{Phases, Setting};
use super::watch::{Limits, all_agree, all_answer};

/// How long the servers may take to answer PING after their start.
const START_MAX: Duration = Duration::from_secs(30);

/// With what the rival's servers run.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Settings {
    /// `hz`, node timeout and allocator as redmesh chooses them for the same cluster.
    AsRedmesh,
    /// What Redis does by itself, as its users have it.
    Stock,
}

/// `hz` of a server that nobody told any.
const HZ_STOCK: u32 = 10;

/// `cluster-node-timeout` of a server that nobody told any, milliseconds.
const NODE_TIMEOUT_STOCK_MS: u32 = 15_000;

/// Servers of this process; killed when dropped, and their files removed.
#[derive(Debug)]
pub struct Servers {
    dir: PathBuf,
    addresses: Vec<SocketAddr>,
    server: PathBuf,
    settings: Settings,
    children: Vec<Child>,
}

impl Servers {
    /// Starts all, one after another, until each answers.
    fn start(settings: Settings, setting: &Setting, limits: &Limits) -> anyhow::Result<Self> {
        let dir = setting.dir("redis-cli");
        std::fs::create_dir(&dir).with_context(|| format!("can't create {}", dir.display()))?;
        let addresses = setting.addresses();
        let mut servers =
            Self { dir, addresses, server: setting.server.clone(), settings, children: Vec::new() };
        let somaxconn = std::fs::read_to_string("/proc/sys/net/core/somaxconn");
        let instances = servers.addresses.len();
        // What redmesh chooses for the same cluster on this machine.
        let cores = std::thread::available_parallelism().map_or(1, |cores| cores.get());
        let cores = u32::try_from(cores).unwrap_or(u32::MAX);
        let machine = [Machine { cores, instances, network_bits_per_s: None }];
        let (node_timeout_ms, hz) = match settings {
            Settings::AsRedmesh => (bus::node_timeout_ms(instances, &machine), bus::hz(instances, &machine)),
            Settings::Stock => (NODE_TIMEOUT_STOCK_MS, HZ_STOCK),
        };
        for at in 0..instances {
            limits.check()?;
            let dir = servers.dir.join(at.to_string());
            std::fs::create_dir(&dir)?;
            let conf = RedisConf {
                addr: servers.addresses[at],
                node_timeout_ms,
                hz,
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
        all_answer(&servers.addresses, START_MAX, limits)?;
        Ok(servers)
    }

    fn spawn(&self, dir: &Path) -> anyhow::Result<Child> {
        let mut command = Command::new(&self.server);
        command.arg("redis.conf").current_dir(dir).stdin(Stdio::null()).stdout(Stdio::null());
        // A group of its own: Ctrl-C reaches this program alone.
        command.stderr(File::create(dir.join("redis.err"))?).process_group(0);
        if self.settings == Settings::AsRedmesh {
            command.env("MALLOC_CONF", MALLOC_CONF_DEFAULT);
        }
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

/// Forms one cluster. The servers live as long as what is returned.
pub fn form(
    settings: Settings,
    setting: &Setting,
    limits: &Limits,
    children: &Children,
) -> anyhow::Result<(Servers, Phases)> {
    let began = Instant::now();
    let servers = Servers::start(settings, setting, limits)?;
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
