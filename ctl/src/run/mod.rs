//! `run …`: start, watch, stop and account for load runs.
//!
//! A run belongs to the mesh: ending ctl (Ctrl-C in `watch`) does not stop it.

mod compare;
pub mod detail;
mod export;
mod list;
pub mod report;
mod watch;

pub use watch::watch;

use std::path::PathBuf;
use std::time::Duration;

use clap::{ArgGroup, Args, Subcommand};
use redmesh_api::control::{RefusalKind, RunRef, RunView};
use redmesh_api::limits::WORKERS_MAX;
use redmesh_api::run::{RunSpec, RunStage, RunUntil, UUID_COUNTER};

use self::compare::Comparison;
use self::detail::DetailFigures;
use self::report::{Names, RunReport};
use crate::exit::{Exit, UsageError};
use crate::output::{Output, note};
use crate::session::{Session, SessionError};
use crate::units;

/// `run …`
#[derive(Debug, Subcommand)]
pub enum RunCommand {
    /// Begin a run, watch it and print its report
    #[command(after_help = "\
Examples:
  redmeshctl run start --workload uuid-counter --workers 2000 --writes 1000000000
  redmeshctl run start --seconds 60
  redmeshctl run start --seconds 60 --no-wait")]
    Start(StartArgs),
    /// Watch a run until it is done and print its report; Ctrl-C leaves it running
    #[command(after_help = "Examples:\n  redmeshctl run watch\n  redmeshctl run watch 3f2a9c1d")]
    Watch(Which),
    /// Stop a run: no more writes, and the account closed
    #[command(after_help = "Examples:\n  redmeshctl run stop\n  redmeshctl run stop 3f2a9c1d --no-wait")]
    Stop(StopArgs),
    /// Show the runs that the mesh remembers
    #[command(after_help = "Examples:\n  redmeshctl run list")]
    List,
    /// Show two runs side by side, and whether they differ by more than their noise
    #[command(after_help = "Examples:\n  redmeshctl run compare 3f2a9c1d 77e0b2d4")]
    Compare(CompareArgs),
    /// Write a run's service times to an HDR histogram log that other tools read
    #[command(
        after_help = "Examples:\n  redmeshctl run export --out run.hlog\n  redmeshctl run export 3f2a9c1d --out 3f2a.hlog"
    )]
    Export(ExportArgs),
    /// Show one run's report as it stands
    #[command(after_help = "Examples:\n  redmeshctl run show\n  redmeshctl run show 3f2a9c1d -o json")]
    Show(Which),
}

/// Names a run.
#[derive(Debug, Args)]
pub struct Which {
    /// The run's id or the beginning of it [default: the newest]
    #[arg(value_name = "RUN", value_parser = parse_prefix)]
    run: Option<String>,
}

impl Which {
    fn into_ref(self) -> RunRef {
        self.run.map_or(RunRef::Latest, RunRef::Prefix)
    }
}

/// `run start …`
#[derive(Debug, Args)]
#[command(group(ArgGroup::new("until").required(true).args(["writes", "seconds"])))]
pub struct StartArgs {
    /// What the workers do; uuid-counter sets unique keys, UUID-N, each to its key twice
    #[arg(long, value_name = "NAME", default_value = UUID_COUNTER)]
    workload: String,
    /// Closed-loop workers over the whole mesh, each with one outstanding write
    #[arg(long, value_name = "N", default_value_t = 2000,
          value_parser = clap::value_parser!(u32).range(1..=i64::from(WORKERS_MAX)))]
    workers: u32,
    /// Place the load on so many of the hosts; fewer make larger batches [default: all]
    #[arg(long, value_name = "K", value_parser = clap::value_parser!(u16).range(1..))]
    load_hosts: Option<u16>,
    /// Issue exactly so many writes (1000000, 1_000_000, 1M)
    #[arg(long, value_name = "N", value_parser = units::parse_count)]
    writes: Option<u64>,
    /// Issue writes for so long
    #[arg(long, value_name = "S", value_parser = clap::value_parser!(u32).range(1..))]
    seconds: Option<u32>,
    /// Watch it and print its report (the default)
    #[arg(long, conflicts_with = "no_wait")]
    watch: bool,
    /// Return as soon as the run is committed
    #[arg(long)]
    no_wait: bool,
}

/// `run compare …`
#[derive(Debug, Args)]
pub struct CompareArgs {
    /// The run to compare with
    #[arg(value_name = "A", value_parser = parse_prefix)]
    a: String,
    /// The run to compare
    #[arg(value_name = "B", value_parser = parse_prefix)]
    b: String,
}

/// `run export …`
#[derive(Debug, Args)]
pub struct ExportArgs {
    #[command(flatten)]
    which: Which,
    /// File to write; it must not exist
    #[arg(long, value_name = "FILE")]
    out: PathBuf,
}

/// `run stop …`
#[derive(Debug, Args)]
pub struct StopArgs {
    #[command(flatten)]
    which: Which,
    /// Return without waiting until the account is closed
    #[arg(long)]
    no_wait: bool,
}

/// Carries out one of them.
pub async fn run(command: RunCommand, session: &mut Session, output: &Output) -> anyhow::Result<Exit> {
    match command {
        RunCommand::Start(args) => start(args, session, output).await,
        RunCommand::Watch(which) => {
            let view = watch(session, which.into_ref(), None).await?;
            print(exactly(&view), session, output).await
        }
        RunCommand::Stop(args) => stop(args, session, output).await,
        RunCommand::Compare(args) => compare(args, session, output).await,
        RunCommand::Export(args) => export(args, session, output).await,
        RunCommand::List => list::run(session, output).await,
        RunCommand::Show(which) => print(which.into_ref(), session, output).await,
    }
}

async fn start(args: StartArgs, session: &mut Session, output: &Output) -> anyhow::Result<Exit> {
    let until = until(args.writes, args.seconds)?;
    let spec = RunSpec { workload: args.workload, workers: args.workers, load_hosts: args.load_hosts, until };
    let run = session.run_start(spec).await?;
    let this = RunRef::Prefix(run.id.0.to_string());
    if args.no_wait {
        let view = started(session, this).await?;
        let id = run.id;
        output.answer(&RunReport::of(&view, &Names::default()), || {
            format!("run {id} has begun; `redmeshctl run watch {id}` shows it\n")
        })?;
        return Ok(Exit::Ok);
    }
    note(&format!("run {} has begun; Ctrl-C stops watching, not the run", run.id));
    let view = watch(session, this, None).await?;
    print(exactly(&view), session, output).await
}

/// The run just begun; the agent asked may be a moment behind the coordinator.
async fn started(session: &mut Session, run: RunRef) -> Result<RunView, SessionError> {
    const TRIES: u32 = 20;
    const PAUSE: Duration = Duration::from_millis(100);
    for _ in 1..TRIES {
        match session.run_show(run.clone(), false).await {
            Err(SessionError::Refused(refusal)) if refusal.kind == RefusalKind::NotFound => {
                tokio::time::sleep(PAUSE).await;
            }
            other => return other,
        }
    }
    session.run_show(run, false).await
}

async fn stop(args: StopArgs, session: &mut Session, output: &Output) -> anyhow::Result<Exit> {
    let view = session.run_stop(args.which.into_ref()).await?;
    if args.no_wait {
        let id = view.run.id;
        output.answer(&RunReport::of(&view, &Names::default()), || format!("run {id} is being stopped\n"))?;
        return Ok(Exit::Ok);
    }
    let view = watch(session, exactly(&view), None).await?;
    print(exactly(&view), session, output).await
}

fn exactly(view: &RunView) -> RunRef {
    RunRef::Prefix(view.run.id.0.to_string())
}

/// Prints a run's report with all that its hosts kept. A closed account that isn't whole
/// is exit code 1.
async fn print(run: RunRef, session: &mut Session, output: &Output) -> anyhow::Result<Exit> {
    let names = Names::ask(session).await;
    let detail = session.run_detail(run).await?;
    let report = RunReport::of(&detail.view, &names).with_detail(DetailFigures::of(&detail));
    output.answer(&report, || report.text())?;
    Ok(Exit::ok_if(detail.view.run.stage != RunStage::Done || report.is_ok()))
}

async fn compare(args: CompareArgs, session: &mut Session, output: &Output) -> anyhow::Result<Exit> {
    let a = session.run_detail(RunRef::Prefix(args.a)).await?;
    let b = session.run_detail(RunRef::Prefix(args.b)).await?;
    let comparison = Comparison::of(&a, &b);
    output.answer(&comparison, || comparison.text())?;
    Ok(Exit::Ok)
}

async fn export(args: ExportArgs, session: &mut Session, output: &Output) -> anyhow::Result<Exit> {
    let names = Names::ask(session).await;
    let detail = session.run_detail(args.which.into_ref()).await?;
    let lines = export::write(&detail, &names, &args.out)?;
    detail.missing.iter().for_each(|words| note(&format!("not exported: {words}")));
    let file = args.out.display().to_string();
    output.answer(&serde_json::json!({ "file": file, "histograms": lines }), || {
        format!("{lines} histograms of run {} in {file}\n", detail.view.run.id)
    })?;
    Ok(Exit::ok_if(detail.missing.is_empty()))
}

/// When a run is over, by the two options of which one is given.
pub fn until(writes: Option<u64>, seconds: Option<u32>) -> Result<RunUntil, UsageError> {
    match (writes, seconds) {
        (Some(writes), None) => Ok(RunUntil::Writes(writes)),
        (None, Some(seconds)) => Ok(RunUntil::Seconds(seconds)),
        _ => Err(UsageError("give either --writes or --seconds".to_owned())),
    }
}

fn parse_prefix(text: &str) -> Result<String, String> {
    let ok = (1..=36).contains(&text.len()) && text.bytes().all(|b| b.is_ascii_hexdigit() || b == b'-');
    if ok {
        Ok(text.to_ascii_lowercase())
    } else {
        Err("a run's id is hex digits, as `run list` shows it".to_owned())
    }
}

#[cfg(test)]
mod tests {
    use clap::Parser;

    use super::*;
    use crate::cli::{Cli, Command};

    fn parse(line: &str) -> Result<RunCommand, clap::Error> {
        match Cli::try_parse_from(line.split(' '))?.command {
            Command::Run(command) => Ok(command),
            other => panic!("{other:?}"),
        }
    }

    #[test]
    fn a_run_is_bounded_by_writes_or_by_seconds() {
        let RunCommand::Start(args) = parse("redmeshctl run start --writes 1_000_000").unwrap() else {
            panic!()
        };
        assert_eq!(until(args.writes, args.seconds).unwrap(), RunUntil::Writes(1_000_000));
        assert_eq!((args.workers, args.workload.as_str()), (2000, "uuid-counter"));
        assert!(parse("redmeshctl run start").is_err());
        assert!(parse("redmeshctl run start --writes 1 --seconds 1").is_err());
        assert!(parse("redmeshctl run start --writes 1 --workers 0").is_err());
        assert!(parse("redmeshctl run start --writes 1 --watch --no-wait").is_err());
        assert!(parse("redmeshctl run start --writes 1 --load-hosts 0").is_err());
    }

    #[test]
    fn runs_are_named_by_a_prefix_or_are_the_newest() {
        let RunCommand::Show(which) = parse("redmeshctl run show 3F2a").unwrap() else { panic!() };
        assert_eq!(which.into_ref(), RunRef::Prefix("3f2a".to_owned()));
        let RunCommand::Watch(which) = parse("redmeshctl run watch").unwrap() else { panic!() };
        assert_eq!(which.into_ref(), RunRef::Latest);
        assert!(parse("redmeshctl run show latest").is_err());
    }
}
