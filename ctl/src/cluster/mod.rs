//! `cluster …`: form a Redis Cluster, and look at it.
//!
//! The words are redis-cli's wherever it has them. The work is the agents': `create`
//! hands the wish over and watches; ending ctl does not end the formation.

mod check;
mod create;
mod info;
mod phases;

pub use create::{CreateOptions, create};

use std::collections::BTreeMap;
use std::time::Duration;

use clap::{Args, Subcommand, ValueEnum};
use redmesh_api::level::{ClusterSpec, Formation, Servers};
use redmesh_api::limits::INSTANCES_PER_HOST_MAX;
use redmesh_api::preflight::Check;

use crate::exit::{Exit, UsageError};
use crate::output::Output;
use crate::session::Session;
use crate::units;

/// Replicas of a primary that may be asked for.
pub const REPLICAS_MAX: i64 = 10;

/// `cluster …`
#[derive(Debug, Subcommand)]
pub enum ClusterCommand {
    /// Form a cluster over all hosts; run again, it continues or confirms the same one
    #[command(after_help = "\
Examples:
  redmeshctl cluster create --instances-per-host 100
  redmeshctl cluster create --instances-per-host 6 --replicas 1 --deadline 5m
  redmeshctl cluster create --instances-per-host 100 --force memory --force disk
  redmeshctl cluster create --instances-per-host 6 --existing
  redmeshctl cluster create --instances-per-host 6 --formation meet
  redmeshctl cluster create --instances-per-host 100 --instances host-3=40 --instances host-4=0

The hosts are examined first (`redmeshctl doctor` shows all of it): what can't work is
refused, what is only slow is said.

With replicas no host may bear more than the others can hold the copies of: of R replicas,
1/(R+1) of all instances. What is too much is refused with the number that fits.")]
    Create(CreateArgs),
    /// Show hosts, instances, slots and keys
    #[command(after_help = "Examples:\n  redmeshctl cluster info\n  redmeshctl cluster info -o json")]
    Info,
    /// Ask every instance for its view now; exit code 1 if the cluster isn't whole
    #[command(after_help = "Examples:\n  redmeshctl cluster check\n  redmeshctl cluster check -o json")]
    Check,
}

/// `cluster create …`
#[derive(Debug, Args)]
pub struct CreateArgs {
    /// redis-servers on each host
    #[arg(long, value_name = "N",
          value_parser = clap::value_parser!(u16).range(1..=i64::from(INSTANCES_PER_HOST_MAX)))]
    instances_per_host: u16,
    /// Another number of them on one host, 0 to leave it out; several times or with commas
    #[arg(long, value_name = "HOST=N", value_delimiter = ',', value_parser = parse_instances_on)]
    instances: Vec<(String, u16)>,
    /// Replicas of each primary, never on their primary's host
    #[arg(long, value_name = "R", default_value_t = 0, value_parser = clap::value_parser!(u8).range(0..=REPLICAS_MAX))]
    replicas: u8,
    /// cluster-node-timeout in milliseconds [default: what suits the size and the machines]
    #[arg(long, value_name = "MS", value_parser = clap::value_parser!(u32).range(100..=600_000))]
    node_timeout: Option<u32>,
    /// Join servers that run already, empty and in cluster mode, at each host's redis.ip
    /// from redis.base_port on; they stay their owner's to start and stop
    #[arg(long)]
    existing: bool,
    /// How the servers become a cluster: started with complete files, or introduced to each
    /// other while they run [default: seeded where the servers allow it]
    #[arg(long, value_name = "WAY")]
    formation: Option<Way>,
    /// How long to wait for it, in seconds or with a unit
    #[arg(long, value_name = "TIME", default_value = "3m", value_parser = units::parse_duration)]
    deadline: Duration,
    /// Go on although this check of the preflight fails; may be given several times
    #[arg(long, value_name = "CHECK")]
    force: Vec<Check>,
    /// Return as soon as the plan is committed
    #[arg(long)]
    no_wait: bool,
}

/// `--formation …`
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub enum Way {
    /// With a complete nodes.conf from the first start
    Seeded,
    /// By CLUSTER MEET
    Meet,
}

impl From<Way> for Formation {
    fn from(way: Way) -> Self {
        match way {
            Way::Seeded => Self::Seeded,
            Way::Meet => Self::Meet,
        }
    }
}

impl CreateArgs {
    fn into_options(self) -> Result<CreateOptions, UsageError> {
        let mut instances_of = BTreeMap::new();
        for (host, instances) in self.instances {
            if let Some(before) = instances_of.insert(host.clone(), instances) {
                return Err(UsageError(format!(
                    "--instances names {host} twice, with {before} and {instances}: name it once"
                )));
            }
        }
        Ok(CreateOptions {
            spec: ClusterSpec {
                instances_per_host: self.instances_per_host,
                instances_of,
                replicas: self.replicas,
                node_timeout_ms: self.node_timeout,
                servers: if self.existing { Servers::Existing } else { Servers::Supervised },
                formation: self.formation.map(Formation::from),
            },
            force: self.force,
            deadline: self.deadline,
            wait: !self.no_wait,
        })
    }
}

/// clap's parser of `host-3=40`.
fn parse_instances_on(text: &str) -> Result<(String, u16), String> {
    let (host, number) = text
        .split_once('=')
        .filter(|(host, _)| !host.is_empty())
        .ok_or("write a host's name and a number: host-3=40")?;
    match number.parse() {
        Ok(instances) if instances <= INSTANCES_PER_HOST_MAX => Ok((host.to_owned(), instances)),
        _ => Err(format!("{number:?} instances on {host}: must be 0 to {INSTANCES_PER_HOST_MAX}")),
    }
}

/// Carries out one of them.
pub async fn run(command: ClusterCommand, session: &mut Session, output: &Output) -> anyhow::Result<Exit> {
    match command {
        ClusterCommand::Create(args) => create::run(args.into_options()?, session, output).await,
        ClusterCommand::Info => info::run(session, output).await,
        ClusterCommand::Check => check::run(session, output).await,
    }
}

#[cfg(test)]
mod tests {
    use clap::Parser;

    use super::*;

    #[derive(Debug, Parser)]
    struct Line {
        #[command(flatten)]
        create: CreateArgs,
    }

    fn spec(args: &[&str]) -> Result<ClusterSpec, String> {
        let line = Line::try_parse_from([&["create", "--instances-per-host", "9"], args].concat());
        let options = line.map_err(|error| error.to_string())?.create.into_options();
        options.map(|options| options.spec).map_err(|error| error.to_string())
    }

    #[test]
    fn hosts_may_have_numbers_of_their_own() {
        let of = |args: &[&str]| spec(args).map(|spec| spec.instances_of.into_iter().collect::<Vec<_>>());
        let both = vec![("db-1".to_owned(), 40), ("db-2".to_owned(), 0)];
        assert_eq!(of(&["--instances", "db-2=0", "--instances", "db-1=40"]), Ok(both.clone()));
        assert_eq!(of(&["--instances", "db-1=40,db-2=0"]), Ok(both));
        assert_eq!(of(&[]), Ok(Vec::new()));
    }

    #[test]
    fn numbers_that_make_no_sense_are_refused() {
        for (arg, words) in [
            ("db-1", "host-3=40"),
            ("=4", "host-3=40"),
            ("db-1=many", "\"many\" instances on db-1"),
            ("db-1=1001", "must be 0 to 1000"),
            ("db-1=4,db-1=5", "names db-1 twice, with 4 and 5"),
        ] {
            let said = spec(&["--instances", arg]).expect_err(arg);
            assert!(said.contains(words), "{arg}: {said}");
        }
    }
}
