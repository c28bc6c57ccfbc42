//! `run share`: gives a host a part in a run that is going on.

use clap::Args;
use redmesh_api::control::ShareRequest;
use redmesh_api::limits::WORKERS_MAX;

use super::Which;
use super::report::{Names, RunReport};
use crate::exit::Exit;
use crate::output::Output;
use crate::session::Session;
use crate::units;

/// `run share …`
#[derive(Debug, Args)]
pub struct ShareArgs {
    #[command(flatten)]
    which: Which,
    /// The host, as `members` names it
    #[arg(long, value_name = "NAME")]
    host: String,
    /// Workers that it adds
    #[arg(long, value_name = "N", value_parser = clap::value_parser!(u32).range(1..=i64::from(WORKERS_MAX)))]
    workers: u32,
    /// Writes (operations, of workloads that also read) that it adds; needed where the
    /// run was begun with --writes
    #[arg(long, value_name = "N", value_parser = units::parse_count)]
    writes: Option<u64>,
}

impl ShareArgs {
    fn into_request(self) -> ShareRequest {
        let Self { which, host, workers, writes } = self;
        ShareRequest { run: which.into_ref(), host, workers, writes }
    }
}

/// Carries it out.
pub async fn share(args: ShareArgs, session: &mut Session, output: &Output) -> anyhow::Result<Exit> {
    let names = Names::ask(session).await;
    let request = args.into_request();
    let said =
        format!("{} has a share of {} workers", request.host, units::thousands(request.workers.into()));
    let view = session.run_share(request).await?;
    output.answer(&RunReport::of(&view, &names), || format!("run {}: {said}\n", view.run.id))?;
    Ok(Exit::Ok)
}

#[cfg(test)]
mod tests {
    use redmesh_api::control::RunRef;

    use super::*;
    use crate::run::RunCommand;
    use crate::run::tests::parse;

    #[test]
    fn a_share_names_run_host_and_workers() {
        let line = "redmeshctl run share 3F2a --host host-4 --workers 200 --writes 1M";
        let RunCommand::Share(args) = parse(line).unwrap() else { panic!() };
        let run = RunRef::Prefix("3f2a".to_owned());
        let expected = ShareRequest { run, host: "host-4".to_owned(), workers: 200, writes: Some(1_000_000) };
        assert_eq!(args.into_request(), expected);
        let RunCommand::Share(args) = parse("redmeshctl run share --host a --workers 1").unwrap() else {
            panic!()
        };
        assert_eq!(args.into_request().run, RunRef::Latest);
        for line in ["3f2a --workers 1", "3f2a --host a", "3f2a --host a --workers 0"] {
            assert!(parse(&format!("redmeshctl run share {line}")).is_err(), "{line}");
        }
    }
}
