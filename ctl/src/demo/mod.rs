//! `demo`: a whole mesh on this machine, formed, written into, counted and taken away.
//!
//! Hosts are loopback addresses (127.0.0.1, .2, …) with the same ports on each, and each
//! runs an ordinary agent with an ordinary configuration; the rest goes through the
//! control protocol like any user's commands. There is no demo mode in the agent, so
//! what the demo shows is what production does.
//!
//! Whatever happens (failure, Ctrl-C, SIGTERM, panic), no process and no directory is
//! left behind unless `--keep` was asked for and all went well.

mod agents;
mod config;
mod dir;
mod plan;
mod ports;
mod report;
mod sizing;
mod stop;
mod sweep;
mod tools;

use std::cell::Cell;
use std::net::Ipv4Addr;
use std::path::PathBuf;
use std::time::{Duration, Instant};

use clap::{ArgGroup, Args, Subcommand};
use redmesh_api::control::{MemberState, Members, RunRef};
use redmesh_api::level::ClusterSpec;
use redmesh_api::limits::WORKERS_MAX;
use redmesh_api::run::{RunSpec, RunUntil};
use redmesh_api::workload::Workload;
use tokio::signal::unix::{Signal, SignalKind, signal};

use self::agents::Agents;
use self::dir::DemoDir;
use self::plan::DemoPlan;
use self::report::{DemoReport, Formation};
use crate::cluster::{self, CreateOptions, REPLICAS_MAX};
use crate::exit::Exit;
use crate::output::{Output, note};
use crate::progress::Progress;
use crate::run::detail::DetailFigures;
use crate::run::report::{Names, RunReport};
use crate::session::Session;

/// How long agents may take to find each other and elect a coordinator.
const START_DEADLINE: Duration = Duration::from_secs(60);

/// How long a formation may take besides [`FORM_DEADLINE_PER_INSTANCE`].
const FORM_DEADLINE_BASE: Duration = Duration::from_secs(60);

/// What each instance adds to a formation's deadline.
const FORM_DEADLINE_PER_INSTANCE: Duration = Duration::from_millis(500);

/// How long a run may stand still before the demo gives up on it.
const RUN_STALL_MAX: Duration = Duration::from_secs(120);

/// Pause between two looks at the members.
const MEMBERS_EVERY: Duration = Duration::from_millis(100);

/// Timeout of one request while agents are starting: nobody may be listening yet.
const STARTING_TIMEOUT: Duration = Duration::from_secs(1);

/// Seconds of writing when neither `--seconds` nor `--writes` is given.
const SECONDS_DEFAULT: u32 = 10;

/// `demo …`
#[derive(Debug, Args)]
#[command(
    args_conflicts_with_subcommands = true,
    after_help = "\
Examples:
  redmeshctl demo
  redmeshctl demo --hosts 6 --per-host 4 --replicas 1 --writes 1M
  redmeshctl demo --keep            then: redmeshctl demo stop --dir redmesh-demo
  redmeshctl demo -o json

Default size: 15 instances per core and at most what a quarter of the available memory
holds, spread evenly over the hosts: at least 1 and at most 100 per host."
)]
pub struct DemoArgs {
    #[command(subcommand)]
    command: Option<DemoCommand>,
    #[command(flatten)]
    options: DemoOptions,
}

/// `demo stop`
#[derive(Debug, Subcommand)]
enum DemoCommand {
    /// Stop what `demo --keep` left running, and remove its directory
    #[command(after_help = "Examples:\n  redmeshctl demo stop --dir redmesh-demo")]
    Stop(stop::StopArgs),
}

/// Options of `demo`.
#[derive(Debug, Args)]
#[command(group(ArgGroup::new("demo_until").args(["writes", "seconds"])))]
pub struct DemoOptions {
    /// Hosts, each a loopback address with an agent of its own
    #[arg(long, value_name = "N", default_value_t = 10,
          value_parser = clap::value_parser!(u16).range(1..=i64::from(plan::HOSTS_MAX)))]
    hosts: u16,
    /// redis-servers on each host [default: fitted to this machine]
    #[arg(long, value_name = "K", value_parser = clap::value_parser!(u16).range(1..=i64::from(plan::PER_HOST_MAX)))]
    per_host: Option<u16>,
    /// Closed-loop workers over all hosts
    #[arg(long, value_name = "N", default_value_t = 2000,
          value_parser = clap::value_parser!(u32).range(1..=i64::from(WORKERS_MAX)))]
    workers: u32,
    /// Place the load on so many of the hosts; fewer make larger batches [default: all]
    #[arg(long, value_name = "K", value_parser = clap::value_parser!(u16).range(1..))]
    load_hosts: Option<u16>,
    /// Write for so long [default: 10]
    #[arg(long, value_name = "S", value_parser = clap::value_parser!(u32).range(1..))]
    seconds: Option<u32>,
    /// Issue exactly so many writes instead (1000000, 1_000_000, 1M)
    #[arg(long, value_name = "N", value_parser = crate::units::parse_count)]
    writes: Option<u64>,
    /// Replicas of each primary
    #[arg(long, value_name = "R", default_value_t = 0, value_parser = clap::value_parser!(u8).range(0..=REPLICAS_MAX))]
    replicas: u8,
    /// How the servers become a cluster, as of `cluster create` [default: seeded]
    #[arg(long, value_name = "WAY", hide_short_help = true)]
    formation: Option<cluster::Way>,
    /// Run the redis-servers without a password
    #[arg(long)]
    no_auth: bool,
    /// Let the redis-servers speak TLS, and nothing else
    #[arg(long)]
    redis_tls: bool,
    /// Leave everything running, and print how to reach and how to stop it
    #[arg(long)]
    keep: bool,
    /// Where to put files [default: a directory of its own in the system's temporary
    /// one; ./redmesh-demo with --keep]
    #[arg(long, value_name = "DIR")]
    dir: Option<PathBuf>,
    /// First data port of each host; the bus ports are 10000 above
    #[arg(long, value_name = "PORT", default_value_t = 6379, value_parser = clap::value_parser!(u16).range(1..))]
    base_port: u16,
    /// Agents' port (UDP) on each host; /metrics is served on the next one (TCP)
    #[arg(long, value_name = "PORT", default_value_t = 7379, value_parser = clap::value_parser!(u16).range(1..))]
    mesh_port: u16,
    /// First host's address; the others follow
    #[arg(long, value_name = "IP", default_value = "127.0.0.1", hide_short_help = true)]
    first_ip: Ipv4Addr,
    /// The agent's binary [default: beside redmeshctl, else in PATH]
    #[arg(long, value_name = "FILE", hide_short_help = true)]
    agent_bin: Option<PathBuf>,
    /// The server's binary, a name in PATH or a file [default: redis-server, else valkey-server]
    #[arg(long, value_name = "FILE", hide_short_help = true)]
    server: Option<PathBuf>,
}

/// Carries it out.
pub async fn run(args: DemoArgs, timeout: Duration, output: &Output) -> anyhow::Result<Exit> {
    match args.command {
        Some(DemoCommand::Stop(args)) => stop::run(args).await,
        None => start(args.options, timeout, output).await,
    }
}

async fn start(options: DemoOptions, timeout: Duration, output: &Output) -> anyhow::Result<Exit> {
    // From here on a signal ends the demo by way of its teardown.
    let mut signals = Signals::new()?;
    let plan = DemoPlan::of(&options, sizing::Machine::this()?)?;
    let agent_bin = tools::agent(options.agent_bin.as_deref())?;
    let server = tools::server(options.server.as_deref())?;
    note(&format!("demo: {}", plan.summary()));
    ports::check(&plan)?;
    let dir = DemoDir::create(options.dir.clone(), options.keep, &plan, &server)?;
    note(&match options.keep {
        true => format!("demo: everything is in {}", dir.path().display()),
        false => format!("demo: files in {}, removed at the end", dir.path().display()),
    });

    let mut demo = Demo { agents: Agents::default(), dir, armed: true };
    let formed = Cell::new(false);
    let result = {
        let began = Instant::now();
        let started = config::write(&plan, &demo.dir, &server, &options)
            .and_then(|()| demo.agents.start(&plan, &demo.dir, &agent_bin, !options.keep));
        let operator = demo.dir.operator();
        match started {
            Err(error) => Err(error),
            Ok(()) => tokio::select! {
                result = steps(&plan, &options, began, &operator, timeout, &formed) => result,
                death = demo.agents.death(&formed) => Err(death),
                name = signals.next() => Err(anyhow::anyhow!("interrupted by {name}")),
            },
        }
    };
    let whole = result.as_ref().is_ok_and(|report| report.is_ok());
    if let Ok(report) = &result {
        output.answer(report, || report.text())?;
    }
    if options.keep && result.is_ok() {
        demo.armed = false;
        note(&demo.dir.how_to_reach(&plan, !options.no_auth, options.redis_tls));
        return Ok(Exit::ok_if(whole));
    }
    let torn_down = demo.tear_down(&mut signals, options.keep).await;
    if result.is_err() && torn_down.is_ok() {
        note(&match options.keep {
            true => {
                format!("demo: nothing runs any more; files and logs are in {}", demo.dir.path().display())
            }
            false => "demo: nothing is left of it; with --keep the logs stay".to_owned(),
        });
    }
    let report = result?;
    torn_down?;
    Ok(Exit::ok_if(report.is_ok()))
}

/// All that a user would do, through the control protocol.
async fn steps(
    plan: &DemoPlan,
    options: &DemoOptions,
    began: Instant,
    operator: &std::path::Path,
    timeout: Duration,
    formed: &Cell<bool>,
) -> anyhow::Result<DemoReport> {
    let agent = plan.agent(0).to_string();
    let mut starting = Session::new(&agent, Some(operator), STARTING_TIMEOUT)?;
    wait_for_members(&mut starting, plan, began + START_DEADLINE).await?;
    let start_s = began.elapsed().as_secs_f64();

    let mut session = Session::new(&agent, Some(operator), timeout)?;
    let form_began = Instant::now();
    let create = CreateOptions {
        spec: ClusterSpec {
            instances_per_host: plan.per_host,
            replicas: options.replicas,
            formation: options.formation.map(From::from),
            ..ClusterSpec::default()
        },
        force: Vec::new(),
        deadline: FORM_DEADLINE_BASE + FORM_DEADLINE_PER_INSTANCE * plan.instances(),
        wait: true,
    };
    let created = cluster::create(create, &mut session, &Output::aside()).await?;
    anyhow::ensure!(created.formed, "the cluster has not formed: {}", created.awaited.join("; "));
    anyhow::ensure!(created.is_whole(), "the cluster has formed and its check finds errors");
    let formation = Formation {
        start_s,
        form_s: form_began.elapsed().as_secs_f64(),
        total_s: began.elapsed().as_secs_f64(),
    };
    formed.set(true);

    let until = match options.writes {
        Some(writes) => RunUntil::Writes(writes),
        None => RunUntil::Seconds(options.seconds.unwrap_or(SECONDS_DEFAULT)),
    };
    let spec = RunSpec {
        load_hosts: options.load_hosts,
        ..RunSpec::closed_loop(Workload::uuid_counter(), options.workers, until)
    };
    let run = session.run_start(spec).await?;
    let this = RunRef::Prefix(run.id.0.to_string());
    crate::run::watch(&mut session, this.clone(), Some(RUN_STALL_MAX)).await?;
    let detail = session.run_detail(this).await?;

    let members = session.members().await?;
    let names = Names::of_members(&members);
    Ok(DemoReport {
        hosts: plan.hosts(),
        instances: plan.instances(),
        coordinator: members.coordinator.map(|host| names.of(host)),
        formation,
        report: RunReport::of(&detail.view, &names).with_detail(DetailFigures::of(&detail)),
        addresses: plan.addresses(),
    })
}

async fn wait_for_members(session: &mut Session, plan: &DemoPlan, until: Instant) -> anyhow::Result<()> {
    let mut progress = Progress::new("starting");
    let hosts = plan.hosts();
    loop {
        let answer = session.members().await;
        let state = match &answer {
            Ok(view) => {
                let alive = alive(view);
                if alive == usize::from(hosts) && view.coordinator.is_some() {
                    return Ok(());
                }
                progress.update(alive as u64, hosts.into(), &starting_text(view, hosts));
                starting_text(view, hosts)
            }
            Err(error) if error.passes() => {
                progress.update(0, hosts.into(), &format!("waiting for the agent at {}", session.agent()));
                error.to_string()
            }
            Err(_) => return Err(answer.map(|_| ()).unwrap_err().into()),
        };
        anyhow::ensure!(
            Instant::now() < until,
            "the mesh has not come together within {} s: {state}",
            START_DEADLINE.as_secs()
        );
        tokio::time::sleep(MEMBERS_EVERY).await;
    }
}

fn alive(view: &Members) -> usize {
    view.members.iter().filter(|member| member.state == MemberState::Alive).count()
}

fn starting_text(view: &Members, hosts: u16) -> String {
    let mut text = format!("{}/{hosts} agents see each other", alive(view));
    if view.coordinator.is_none() {
        text.push_str(", no coordinator yet");
    }
    if let Some(waiting) = &view.waiting_for {
        text.push_str(&format!(", waiting for {waiting}"));
    }
    text
}

/// What has to be taken away again.
#[derive(Debug)]
struct Demo {
    agents: Agents,
    dir: DemoDir,
    /// Whether there still is something to take away.
    armed: bool,
}

impl Demo {
    /// Stops everything and removes the directory unless it is to be kept. A second
    /// signal kills at once instead of waiting.
    async fn tear_down(&mut self, signals: &mut Signals, keep_files: bool) -> anyhow::Result<()> {
        note("demo: stopping");
        self.armed = false;
        let hurry = sweep::Hurry::default();
        let mut agents = std::mem::take(&mut self.agents);
        let mut work = {
            let (scope, hurry) = (self.dir.scope(), hurry.clone());
            tokio::task::spawn_blocking(move || sweep::stop_all(&mut agents, &scope, &hurry))
        };
        let swept = loop {
            tokio::select! {
                swept = &mut work => break swept,
                _ = signals.next() => hurry.now(),
            }
        };
        swept??;
        if !keep_files {
            self.dir.remove()?;
        }
        Ok(())
    }
}

impl Drop for Demo {
    /// A panic comes this way.
    fn drop(&mut self) {
        if self.armed {
            let swept = sweep::stop_all(&mut self.agents, &self.dir.scope(), &sweep::Hurry::default());
            if let Err(error) = swept.map_err(anyhow::Error::from).and_then(|()| self.dir.remove()) {
                note(&format!("demo: {}", crate::exit::whole_chain(&error)));
            }
        }
    }
}

/// The signals that end a demo.
#[derive(Debug)]
struct Signals {
    interrupt: Signal,
    terminate: Signal,
    hangup: Signal,
}

impl Signals {
    fn new() -> std::io::Result<Self> {
        Ok(Self {
            interrupt: signal(SignalKind::interrupt())?,
            terminate: signal(SignalKind::terminate())?,
            hangup: signal(SignalKind::hangup())?,
        })
    }

    /// The next one's name.
    async fn next(&mut self) -> &'static str {
        tokio::select! {
            _ = self.interrupt.recv() => "SIGINT",
            _ = self.terminate.recv() => "SIGTERM",
            _ = self.hangup.recv() => "SIGHUP",
        }
    }
}
