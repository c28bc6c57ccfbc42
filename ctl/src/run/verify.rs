//! `run verify`: reads back what a run has written, and whether all of it is there.

use clap::Args;
use redmesh_api::control::{RunRef, VerifyRequest};
use redmesh_api::limits::WORKERS_MAX;

use super::{Which, exactly, print, watch};
use crate::exit::Exit;
use crate::output::{Output, note};
use crate::session::Session;
use crate::units;

/// Keys that are read back if neither `--sample` nor `--all` is given.
const SAMPLE_DEFAULT: u64 = 100_000;

/// `run verify …`
#[derive(Debug, Args)]
pub struct VerifyArgs {
    #[command(flatten)]
    which: Which,
    /// Read back about so many of its keys, evenly strewn [default: 100000]
    #[arg(long, value_name = "N", value_parser = units::parse_count, conflicts_with = "all")]
    sample: Option<u64>,
    /// Read back every key
    #[arg(long)]
    all: bool,
    /// Workers over the whole mesh
    #[arg(long, value_name = "N", default_value_t = 2000,
          value_parser = clap::value_parser!(u32).range(1..=i64::from(WORKERS_MAX)))]
    workers: u32,
}

impl VerifyArgs {
    fn into_request(self) -> VerifyRequest {
        let sample = (!self.all).then(|| self.sample.unwrap_or(SAMPLE_DEFAULT));
        VerifyRequest { run: self.which.into_ref(), sample, workers: self.workers }
    }
}

/// Carries it out. A key that is lost or wrong is exit code 1.
pub async fn verify(args: VerifyArgs, session: &mut Session, output: &Output) -> anyhow::Result<Exit> {
    let run = session.run_verify(args.into_request()).await?;
    note(&format!("verify {} has begun; Ctrl-C stops watching, not the run", run.id));
    let view = watch(session, RunRef::Prefix(run.id.0.to_string()), None).await?;
    print(exactly(&view), session, output).await
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::run::RunCommand;
    use crate::run::tests::parse;

    fn request(options: &str) -> VerifyRequest {
        match parse(&format!("redmeshctl run verify{options}")).expect(options) {
            RunCommand::Verify(args) => args.into_request(),
            other => panic!("{other:?}"),
        }
    }

    #[test]
    fn a_sample_or_all_of_a_run_is_read_back() {
        let latest = VerifyRequest { run: RunRef::Latest, sample: Some(100_000), workers: 2000 };
        assert_eq!(request(""), latest);
        assert_eq!(request(" --all"), VerifyRequest { sample: None, ..latest.clone() });
        let named = RunRef::Prefix("3f2a".to_owned());
        assert_eq!(
            request(" 3f2a --sample 1M --workers 5"),
            VerifyRequest { run: named, sample: Some(1_000_000), workers: 5 }
        );
        for line in [" --sample 0", " --all --sample 5", " --workers 0", " latest"] {
            assert!(parse(&format!("redmeshctl run verify{line}")).is_err(), "{line}");
        }
    }
}
