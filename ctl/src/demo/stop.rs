//! `demo stop`: ends what `demo --keep` left running.

use std::path::PathBuf;

use clap::Args;

use super::Signals;
use super::dir::DemoDir;
use super::sweep;
use crate::exit::Exit;
use crate::output::note;

/// `demo stop …`
#[derive(Debug, Args)]
pub struct StopArgs {
    /// The demo's directory
    #[arg(long, value_name = "DIR")]
    dir: PathBuf,
    /// Stop the processes and leave the files
    #[arg(long)]
    keep_files: bool,
}

/// The command.
pub async fn run(args: StopArgs) -> anyhow::Result<Exit> {
    let dir = DemoDir::open(&args.dir)?;
    let mut signals = Signals::new()?;
    let running = dir.scope().find()?.len();
    note(&format!("demo: stopping {running} processes in {}", dir.path().display()));
    let hurry = sweep::Hurry::default();
    let mut work = {
        let (scope, hurry) = (dir.scope(), hurry.clone());
        tokio::task::spawn_blocking(move || sweep::stop_found(&scope, &hurry))
    };
    loop {
        tokio::select! {
            swept = &mut work => break swept??,
            _ = signals.next() => hurry.now(),
        }
    }
    if !args.keep_files {
        dir.remove()?;
    }
    Ok(Exit::Ok)
}
