//! `deploy`: what hosts of one's own are set up with, rendered as text: user data for
//! cloud-init, firewall rules, Prometheus' scrape configuration.
//!
//! Nothing here touches a host. Rendering is pure, and what is rendered twice from the same
//! input is the same text; files that hold a key are their owner's alone.

mod cloud_init;
mod hosts;
mod nftables;
mod prometheus;

use clap::Subcommand;

use crate::exit::Exit;
use crate::output::Output;
use crate::session::Session;

/// `redmeshctl deploy …`
#[derive(Debug, Subcommand)]
pub enum DeployCommand {
    /// Write cloud-init user data, a file per host, with its certificate and configuration
    #[command(after_help = cloud_init::EXAMPLES)]
    CloudInit(cloud_init::CloudInitArgs),
    /// Print firewall rules for a host of the mesh, for nft -f
    #[command(after_help = nftables::EXAMPLES)]
    Nftables(nftables::NftablesArgs),
    /// Print Prometheus' scrape configuration for the mesh
    #[command(after_help = prometheus::EXAMPLES)]
    Prometheus(prometheus::PrometheusArgs),
}

/// Carries a command out; `session` is called only where the mesh has to be asked.
pub async fn run(
    command: DeployCommand,
    session: impl FnOnce() -> anyhow::Result<Session>,
    output: &Output,
) -> anyhow::Result<Exit> {
    match command {
        DeployCommand::CloudInit(args) => cloud_init::run(&args, output),
        DeployCommand::Nftables(args) => nftables::run(&args, session, output).await,
        DeployCommand::Prometheus(args) => prometheus::run(&args, session, output).await,
    }
}
