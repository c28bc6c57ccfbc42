//! `run …`: start, watch, stop, account for and verify load runs.
//!
//! A run belongs to the mesh: ending ctl (Ctrl-C in `watch`) does not stop it.

mod compare;
pub mod detail;
mod export;
mod list;
pub mod report;
mod share;
mod start;
mod verify;
mod watch;
pub mod workload;

pub use watch::watch;

use std::path::PathBuf;
use std::time::Duration;

use clap::{Args, Subcommand};
use redmesh_api::control::{RefusalKind, RunRef, RunView};
use redmesh_api::run::RunStage;

use self::compare::Comparison;
use self::detail::DetailFigures;
use self::report::{Names, RunReport};
use self::share::ShareArgs;
use self::start::StartArgs;
use self::verify::VerifyArgs;
use self::workload::WorkloadsArgs;
use crate::exit::Exit;
use crate::output::{Output, note};
use crate::session::{Session, SessionError};

/// `run …`
#[derive(Debug, Subcommand)]
pub enum RunCommand {
    /// Begin a run, watch it and print its report
    #[command(after_help = "\
Examples:
  redmeshctl run start --workload uuid-counter --workers 2000 --writes 1000000000
  redmeshctl run start --seconds 60 --no-wait
  redmeshctl run start --workload cache --rate 50k --ramp 5 --warm-up 10 --seconds 60
  redmeshctl run start --workload ./mine.toml --workers 200 --pipeline 16 --writes 10M
  redmeshctl run start --seconds 60 --keyspace 1000 --load-hosts 2 --threads-per-host 2")]
    Start(StartArgs),
    /// Show the built-in workloads, or the file of one, a template for your own
    #[command(
        after_help = "Examples:\n  redmeshctl run workloads\n  redmeshctl run workloads cache > mine.toml"
    )]
    Workloads(WorkloadsArgs),
    /// Read back what a run has written and compare; for runs whose workers count their keys
    #[command(after_help = "\
Examples:
  redmeshctl run verify
  redmeshctl run verify 3f2a9c1d --sample 1M
  redmeshctl run verify 3f2a9c1d --all")]
    Verify(VerifyArgs),
    /// Give a host a share in a run that is going on
    #[command(after_help = "\
Examples:
  redmeshctl run share --host host-11 --workers 200
  redmeshctl run share 3f2a9c1d --host host-11 --workers 200 --writes 1M")]
    Share(ShareArgs),
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
pub async fn run(
    command: RunCommand,
    session: impl FnOnce() -> anyhow::Result<Session>,
    output: &Output,
) -> anyhow::Result<Exit> {
    if let RunCommand::Workloads(args) = &command {
        return workload::show(args, output);
    }
    let mut session = session()?;
    let exit = ask(command, &mut session, output).await;
    session.close().await;
    exit
}

async fn ask(command: RunCommand, session: &mut Session, output: &Output) -> anyhow::Result<Exit> {
    match command {
        RunCommand::Start(args) => start::start(args, session, output).await,
        RunCommand::Workloads(args) => workload::show(&args, output),
        RunCommand::Verify(args) => verify::verify(args, session, output).await,
        RunCommand::Share(args) => share::share(args, session, output).await,
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

fn parse_prefix(text: &str) -> Result<String, String> {
    let ok = (1..=36).contains(&text.len()) && text.bytes().all(|b| b.is_ascii_hexdigit() || b == b'-');
    if ok {
        Ok(text.to_ascii_lowercase())
    } else {
        Err("a run's id is hex digits, as `run list` shows it".to_owned())
    }
}

#[cfg(test)]
pub mod tests {
    use clap::Parser;

    use super::*;
    use crate::cli::{Cli, Command};

    /// A `run …` command line.
    pub fn parse(line: &str) -> Result<RunCommand, clap::Error> {
        match Cli::try_parse_from(line.split(' '))?.command {
            Command::Run(command) => Ok(command),
            other => panic!("{other:?}"),
        }
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
