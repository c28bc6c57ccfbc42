//! The agent's command line: configuration, logging, signals; then [`app::run`].

use std::path::{Path, PathBuf};
use std::process::ExitCode;
use std::time::Duration;

use anyhow::{Context, Result, bail};
use clap::{Args, CommandFactory, Parser, Subcommand};
use redmesh_agent::app;
use redmesh_agent::config::{Config, LogConfig, LogFormat, Overrides};
use redmesh_agent::enrol::{Joining, dial, renew};
use redmesh_agent::identity;
use redmesh_agent::nft;
use redmesh_agent::reload::{Reloads, SetLog};
use redmesh_agent::supervisor::{self, Ended};
use redmesh_agent::transport::quic::QuicTransport;
use sd_notify::NotifyState;
use tokio::signal::unix::{SignalKind, signal};
use tokio_util::sync::CancellationToken;
use tracing::info;
use tracing_subscriber::EnvFilter;

const EXAMPLES: &str = "\
Examples:
  redmesh-agent --config /etc/redmesh/agent.toml
  redmesh-agent --config agent.toml --set mesh.bootstrap_expect=3
  REDMESH_LOG__LEVEL=debug redmesh-agent --config agent.toml
  redmesh-agent check-config --config agent.toml
  redmesh-agent join --token-file join-token --peers 10.0.0.1
  redmesh-agent stop-servers

Settings come from the file, then from REDMESH_<SECTION>__<KEY> variables, then from
--set flags; later ones win. deploy/agent.example.toml explains every key; the package has it
as /usr/share/doc/redmesh-agent/examples/agent.toml.";

/// Between two rounds of asking to join the service manager is told to go on waiting for so
/// long, microseconds.
const JOIN_EXTENDS_BY_US: u32 = 300_000_000;

/// Exit code of an agent whose host was removed from the mesh: another start would end the
/// same way (`RestartPreventExitStatus` in the unit).
const EXIT_REMOVED: u8 = 4;

/// The agent of a redmesh: one per host.
#[derive(Debug, Parser)]
#[command(version, about, after_help = EXAMPLES)]
struct Cli {
    #[command(flatten)]
    settings: Settings,

    /// Stop when the process that started this one ends.
    #[arg(long)]
    exit_with_parent: bool,

    #[command(subcommand)]
    command: Option<Command>,
}

#[derive(Debug, Args)]
struct Settings {
    /// Configuration file.
    #[arg(long, value_name = "FILE", default_value = "/etc/redmesh/agent.toml", global = true)]
    config: PathBuf,

    /// Set one key, as section.key=value; may be repeated.
    #[arg(long = "set", value_name = "SECTION.KEY=VALUE", global = true)]
    set: Vec<String>,
}

#[derive(Debug, Subcommand)]
enum Command {
    /// Say whether the configuration can be used, and stop.
    #[command(after_help = "Examples:\n  redmesh-agent check-config --config agent.toml")]
    CheckConfig,
    /// Get this host's certificate by a join token, and stop; a start of the agent does the
    /// same by itself where join.token_file is set.
    #[command(after_help = "Examples:\n  redmesh-agent join --token-file join-token --peers 10.0.0.1")]
    Join {
        /// File with the token [default: join.token_file].
        #[arg(long, value_name = "FILE")]
        token_file: Option<PathBuf>,
        /// Agents to ask, as host or host:port [default: join.peers, or the hosts of mesh.seeds].
        #[arg(long, value_delimiter = ',', value_name = "HOST,…")]
        peers: Vec<String>,
        /// Name to ask for [default: join.name, or the machine's].
        #[arg(long, value_name = "NAME")]
        name: Option<String>,
    },
    /// Ask this host's redis-servers to end, and wait; refused while an agent runs here,
    /// which would start them again.
    #[command(after_help = "Examples:\n  redmesh-agent stop-servers --patience 300")]
    StopServers {
        /// Seconds to wait for them; those that still run are named, not killed.
        #[arg(long, value_name = "SECONDS", default_value_t = 90)]
        patience: u64,
    },
    /// Write man pages and completions into a directory, for a package.
    #[command(hide = true)]
    PackageFiles {
        /// Where to.
        dir: PathBuf,
    },
}

fn main() -> ExitCode {
    nft::withhold();
    match run(Cli::parse()) {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            // Logging may not be set up yet, and this must be seen.
            let _ =
                std::io::Write::write_fmt(&mut std::io::stderr(), format_args!("redmesh-agent: {error:#}\n"));
            match error.is::<app::Removed>() {
                true => ExitCode::from(EXIT_REMOVED),
                false => ExitCode::FAILURE,
            }
        }
    }
}

fn run(cli: Cli) -> Result<()> {
    if let Some(Command::PackageFiles { dir }) = &cli.command {
        return redmesh_assets::write(Cli::command(), "8", dir).context("can't write the package's files");
    }
    let Settings { config: path, set } = cli.settings;
    let overrides = Overrides::from_process(set);
    let config = Config::load(&path, &overrides)?;
    match cli.command {
        Some(Command::CheckConfig) => return check(&path, &config),
        Some(Command::StopServers { patience }) => return stop_servers(&config, patience),
        Some(Command::Join { token_file, peers, name }) => {
            let mut config = config;
            config.join.token_file = token_file.or(config.join.token_file);
            config.join.name = name.or(config.join.name);
            if !peers.is_empty() {
                config.join.peers = peers;
            }
            return join(&config);
        }
        Some(Command::PackageFiles { .. }) | None => {}
    }
    if cli.exit_with_parent {
        exit_with_parent()?;
    }
    let set_log = start_logging(&config.log)?;
    let runtime = tokio::runtime::Builder::new_multi_thread()
        .enable_all()
        .thread_name("control")
        .build()
        .context("can't start the async runtime")?;
    runtime.block_on(async {
        let stop = CancellationToken::new();
        stop_on_signals(stop.clone())?;
        if dial::is_due(&config) && !join_first(&config, &stop).await? {
            return Ok(());
        }
        let hangups = signal(SignalKind::hangup()).context("can't listen for SIGHUP")?;
        let load = Box::new(move || Config::load(&path, &overrides));
        app::run(config, Reloads { hangups, load, set_log }, stop).await
    })
}

/// Gets this host's certificate; false if it was asked to stop meanwhile.
async fn join_first(config: &Config, stop: &CancellationToken) -> Result<bool> {
    let joining = Joining::of(config)?;
    info!("{}", joining.intent());
    let waiting = |words: &str| {
        let status = format!("waiting for {words}");
        let more = NotifyState::ExtendTimeoutUsec(JOIN_EXTENDS_BY_US);
        let _ = sd_notify::notify(&[NotifyState::Status(&status), more]);
    };
    tokio::select! {
        joined = joining.join(waiting) => joined.map(|_| true).context("can't join the mesh"),
        () = stop.cancelled() => Ok(false),
    }
}

fn join(config: &Config) -> Result<()> {
    let identity = config.identity_dir.display();
    if config.identity_dir.join("cert.pem").exists() {
        bail!("{identity} has a certificate already: take cert.pem and key.pem away to join anew");
    }
    let _set_log = start_logging(&config.log)?;
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
    let joining = Joining::of(config)?;
    let name = runtime.block_on(joining.join(|_| {})).context("can't join the mesh")?;
    let words = format!("joined as {name}: the certificate is in {identity}\n");
    std::io::Write::write_all(&mut std::io::stdout(), words.as_bytes()).context("can't write to stdout")
}

/// Everything that can be known of a configuration without running it.
fn check(path: &Path, config: &Config) -> Result<()> {
    // As a start of the agent does, which this may be the first half of.
    renew::finish(&config.identity_dir)
        .with_context(|| format!("identity.dir = {}", config.identity_dir.display()))?;
    redmesh_agent::cluster::redis_conf::check_directives(
        &config.redis.directives.clone().into_iter().collect::<Vec<_>>(),
    )?;
    if dial::is_due(config) {
        filter(&config.log)?;
        let words = format!("{} is valid: {}\n", path.display(), Joining::of(config)?.intent());
        return std::io::Write::write_all(&mut std::io::stdout(), words.as_bytes())
            .context("can't write to stdout");
    }
    let identity = redmesh_api::tls::Identity::load(&config.identity_dir)
        .with_context(|| format!("identity.dir = {}", config.identity_dir.display()))?;
    QuicTransport::check_identity(&identity, config.mesh.advertise)?;
    app::redis_secret(config)?;
    app::redis_tls(config, &identity)?;
    filter(&config.log)?;
    let words = format!(
        "{} is valid: host {} of mesh {:?} at {}, instances from {}:{}\n",
        path.display(),
        identity.name(),
        config.mesh.name,
        config.mesh.advertise,
        config.redis.ip,
        config.redis.base_port
    );
    std::io::Write::write_all(&mut std::io::stdout(), words.as_bytes()).context("can't write to stdout")
}

/// openraft logs every append that a dead voter does not answer, several a second for as
/// long as it is dead; gossip says once that it is.
const OPENRAFT: &str =
    "openraft=warn,openraft::replication=off,openraft::engine::handler::replication_handler=off";

/// A plain level is meant for the agent: openraft at the same level would drown it.
fn filter(log: &LogConfig) -> Result<EnvFilter> {
    let plain = log.filter.chars().all(char::is_alphabetic);
    let directives = if plain { format!("{},{OPENRAFT}", log.filter) } else { log.filter.clone() };
    EnvFilter::builder().parse(&directives).with_context(|| {
        format!(
            "log.level = {:?}: must be error, warn, info, debug or trace, or tracing directives",
            log.filter
        )
    })
}

fn start_logging(log: &LogConfig) -> Result<SetLog> {
    let base = tracing_subscriber::fmt().with_env_filter(filter(log)?).with_writer(std::io::stderr);
    let (started, set): (_, SetLog) = match log.format {
        LogFormat::Text => {
            let base =
                base.with_ansi(std::io::IsTerminal::is_terminal(&std::io::stderr())).with_filter_reloading();
            let handle = base.reload_handle();
            (base.try_init(), Box::new(move |log| Ok(handle.reload(filter(log)?)?)))
        }
        LogFormat::Json => {
            let base = base.json().with_filter_reloading();
            let handle = base.reload_handle();
            (base.try_init(), Box::new(move |log| Ok(handle.reload(filter(log)?)?)))
        }
    };
    started.map_err(|error| anyhow::anyhow!("can't start logging: {error}"))?;
    Ok(set)
}

/// Ends all servers of this host, in good order.
fn stop_servers(config: &Config, patience_s: u64) -> Result<()> {
    // Held meanwhile, so that no agent starts either. A host without state has no servers.
    let _lock = if config.state_dir.is_dir() {
        Some(
            identity::lock(&config.state_dir)
                .context("stop the agent first (systemctl stop redmesh-agent)")?,
        )
    } else {
        None
    };
    let patience = Duration::from_secs(patience_s);
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
    let ending = supervisor::end_all(&config.redis.data_dir, config.redis.server.as_deref(), patience);
    let Ended { ended, left } =
        runtime.block_on(ending).context("can't look for running servers in /proc")?;
    if !left.is_empty() {
        bail!(
            "{ended} servers have ended, and {left:?} (pids) still run after {patience_s} s: look at their redis.log"
        );
    }
    let words = format!("{ended} servers have ended\n");
    std::io::Write::write_all(&mut std::io::stdout(), words.as_bytes()).context("can't write to stdout")
}

/// SIGTERM and SIGINT stop the agent in good order.
fn stop_on_signals(stop: CancellationToken) -> Result<()> {
    let mut term = signal(SignalKind::terminate()).context("can't listen for SIGTERM")?;
    let mut int = signal(SignalKind::interrupt()).context("can't listen for SIGINT")?;
    tokio::spawn(async move {
        let name = tokio::select! {
            _ = term.recv() => "SIGTERM",
            _ = int.recv() => "SIGINT",
        };
        info!(signal = name, "asked to stop");
        stop.cancel();
    });
    Ok(())
}

/// Asks the kernel for a SIGTERM when the parent dies.
fn exit_with_parent() -> Result<()> {
    let parent = rustix::process::getppid();
    rustix::process::set_parent_process_death_signal(Some(rustix::process::Signal::TERM))
        .context("can't follow the parent process")?;
    // It may have died before the kernel was asked.
    if rustix::process::getppid() != parent {
        bail!("the process that started this one is gone");
    }
    Ok(())
}
