//! The command line: what can be asked and how it is spelled. Nothing is done here.

use std::path::PathBuf;
use std::time::Duration;

use clap::{Args, Parser, Subcommand};

use crate::cluster::ClusterCommand;
use crate::demo::DemoArgs;
use crate::deploy::DeployCommand;
use crate::doctor::DoctorArgs;
use crate::join_token::JoinTokenCommand;
use crate::members::{self, MembersArgs};
use crate::operators::OperatorsCommand;
use crate::output::Format;
use crate::pki::PkiCommand;
use crate::run::RunCommand;
use crate::{exit, units};

const EXAMPLES: &str = "\
Examples:
  redmeshctl demo                                      a whole mesh on this machine, once
  redmeshctl members
  redmeshctl doctor --instances-per-host 100
  redmeshctl cluster create --instances-per-host 100
  redmeshctl run start --workers 2000 --writes 1000000000
  redmeshctl --agent 10.0.0.7:7379 run watch";

const PKI_EXAMPLES: &str = "\
Examples:
  redmeshctl pki init --dir pki --mesh prod
  redmeshctl pki issue --dir pki --host db-1 --ip 10.0.0.1
  redmeshctl pki issue --dir pki --operator alice --out ~/.config/redmesh
  redmeshctl pki signer --dir pki --host db-1
  redmeshctl pki show pki/db-1";

/// Drives a redmesh: a Redis Cluster over many hosts, formed and loaded by their agents.
#[derive(Debug, Parser)]
#[command(name = "redmeshctl", version, after_help = format!("{EXAMPLES}\n\n{}", exit::HELP))]
pub struct Cli {
    /// What every command understands.
    #[command(flatten)]
    pub globals: Globals,
    /// What to do.
    #[command(subcommand)]
    pub command: Command,
}

/// Options of every command.
#[derive(Debug, Args)]
pub struct Globals {
    /// Agent to ask; any agent of the mesh will do
    #[arg(long, global = true, env = "REDMESH_AGENT", default_value = "127.0.0.1:7379", value_name = "ADDR")]
    pub agent: String,
    /// Operator's identity: a directory with ca.pem, cert.pem and key.pem [default: the
    /// first there is of ~/.config/redmesh and /etc/redmesh/operator]
    #[arg(long, global = true, env = "REDMESH_IDENTITY", value_name = "DIR")]
    pub identity: Option<PathBuf>,
    /// How to print the answer; json prints one object on stdout and nothing else there
    #[arg(short, long, global = true, value_enum, default_value_t, value_name = "FORMAT")]
    pub output: Format,
    /// How long one request may take, in seconds or with a unit
    #[arg(long, global = true, default_value = "45s", value_parser = units::parse_duration, value_name = "TIME")]
    pub timeout: Duration,
}

/// The commands.
#[derive(Debug, Subcommand)]
pub enum Command {
    /// Make a mesh's certificate authority and issue certificates
    #[command(subcommand, after_help = PKI_EXAMPLES)]
    Pki(PkiCommand),
    /// Show the hosts of the mesh, or remove one for good
    #[command(after_help = members::EXAMPLES)]
    Members(MembersArgs),
    /// Take operators' certificates back
    #[command(subcommand)]
    Operators(OperatorsCommand),
    /// Find what would keep a cluster from working on these hosts, and what mends it
    Doctor(DoctorArgs),
    /// Form a Redis Cluster and look at it
    #[command(subcommand)]
    Cluster(ClusterCommand),
    /// Write into the cluster and count exactly
    #[command(subcommand)]
    Run(RunCommand),
    /// Let hosts without a certificate join, for a while
    #[command(subcommand)]
    JoinToken(JoinTokenCommand),
    /// Render what hosts are set up with: cloud-init, firewall, Prometheus
    #[command(subcommand)]
    Deploy(DeployCommand),
    /// Write man pages and completions into a directory, for a package
    #[command(hide = true)]
    PackageFiles {
        /// Where to
        dir: PathBuf,
    },
    /// A whole mesh on this machine: form, write, report, and leave nothing behind
    Demo(DemoArgs),
}

#[cfg(test)]
mod tests {
    use clap::CommandFactory;

    use super::*;

    #[test]
    fn the_command_line_is_consistent() {
        Cli::command().debug_assert();
    }

    #[test]
    fn globals_may_stand_before_and_after_the_command() {
        for line in [
            "redmeshctl -o json --agent 10.0.0.1:1 --timeout 3 members",
            "redmeshctl members --agent 10.0.0.1:1 -o json --timeout 3s",
        ] {
            let cli = Cli::try_parse_from(line.split(' ')).expect(line);
            assert_eq!(cli.globals.output, Format::Json);
            assert_eq!(cli.globals.agent, "10.0.0.1:1");
            assert_eq!(cli.globals.timeout, Duration::from_secs(3));
        }
    }

    #[test]
    fn every_command_shows_examples() {
        fn walk(command: &clap::Command, path: &str) {
            let path = format!("{path} {}", command.get_name());
            if command.get_name() == "help" || command.is_hide_set() {
                return;
            }
            let leaf = command.get_subcommands().next().is_none();
            let help = command.get_after_help().map(ToString::to_string).unwrap_or_default();
            assert!(!leaf || help.contains("Examples"), "{path} has no examples");
            command.get_subcommands().for_each(|sub| walk(sub, &path));
        }
        walk(&Cli::command(), "");
    }
}
