//! `redmeshctl`: a person's way into a redmesh.
//!
//! Every command but `pki`, `run workloads`, `demo` and some of `deploy` asks one agent over QUIC and prints its answer;
//! `demo` starts agents of its own on this machine and then does the same. ctl keeps no
//! state and holds no logic of the mesh: whatever has to go on when this process ends is
//! the agents' business.

mod cli;
mod client;
mod cluster;
mod demo;
mod deploy;
mod doctor;
mod exit;
mod join_token;
mod members;
mod operators;
mod output;
mod pki;
mod progress;
mod run;
mod session;
mod units;

use std::process::ExitCode;

use clap::{CommandFactory, Parser};

use crate::cli::{Cli, Command};
use crate::exit::Exit;
use crate::output::Output;
use crate::session::Session;

fn main() -> ExitCode {
    // clap itself exits with 2 on a command line that it can't accept.
    let cli = Cli::parse();
    // One thread is plenty, and the demo needs it: an agent that is told to stop with
    // its parent is bound by the kernel to the *thread* that started it.
    let runtime = match tokio::runtime::Builder::new_current_thread().enable_all().build() {
        Ok(runtime) => runtime,
        Err(error) => {
            output::note(&format!("error: can't start the async runtime: {error}"));
            return Exit::Failed.into();
        }
    };
    let exit = match runtime.block_on(dispatch(cli)) {
        Ok(exit) => exit,
        Err(error) => {
            output::note(&format!("error: {}", exit::whole_chain(&error)));
            exit::of_error(&error)
        }
    };
    // A blocking look-up that hangs must not hold the exit.
    runtime.shutdown_background();
    exit.into()
}

async fn dispatch(cli: Cli) -> anyhow::Result<Exit> {
    let Cli { globals, command } = cli;
    let output = Output::new(globals.output);
    let session = || Session::new(&globals.agent, globals.identity.as_deref(), globals.timeout);
    match command {
        Command::Pki(command) => {
            let said = pki::run(&command)?;
            output.answer(&serde_json::json!({ "message": said }), || format!("{}\n", said.trim_end()))?;
            Ok(Exit::Ok)
        }
        Command::Members(args) => {
            let mut session = session()?;
            let exit = members::run(args, &mut session, &output).await;
            session.close().await;
            exit
        }
        Command::Operators(command) => {
            let mut session = session()?;
            let exit = operators::run(command, &mut session, &output).await;
            session.close().await;
            exit
        }
        Command::Doctor(args) => {
            let mut session = session()?;
            let exit = doctor::run(args, &mut session, &output).await;
            session.close().await;
            exit
        }
        Command::Cluster(command) => {
            let mut session = session()?;
            let exit = cluster::run(command, &mut session, &output).await;
            session.close().await;
            exit
        }
        Command::Run(command) => run::run(command, session, &output).await,
        Command::JoinToken(command) => {
            let mut session = session()?;
            let exit = join_token::run(command, &mut session, &output).await;
            session.close().await;
            exit
        }
        Command::Deploy(command) => deploy::run(command, session, &output).await,
        Command::PackageFiles { dir } => {
            redmesh_assets::write(Cli::command(), "1", &dir)?;
            Ok(Exit::Ok)
        }
        Command::Demo(args) => demo::run(args, globals.timeout, &output).await,
    }
}
