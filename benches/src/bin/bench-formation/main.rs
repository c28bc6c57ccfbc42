//! Forming a cluster: redmesh beside `redis-cli --cluster create`, on one machine, with the
//! same servers, taking turns; redis-cli with the directives that redmesh chooses, and with
//! Redis' own.
//!
//! Both are measured from outside and alike: every instance is asked `CLUSTER INFO` until it
//! knows all nodes and all slots, says `ok` and has had as many PONGs as it has peers. After every formation `redis-cli --cluster
//! check` must agree, each primary must take a write and give it back, and a killed server
//! must rejoin. Whatever happens, nothing is left running.

mod after;
mod campaign;
mod cluster;
mod redis_cli;
mod redmesh;
mod report;
mod watch;

use std::io::Write as _;
use std::net::Ipv4Addr;
use std::path::PathBuf;
use std::process::ExitCode;

use clap::Parser;
use redmesh_benches::children::{Children, until_interrupted};

use self::report::Peer;

/// Compare forming a cluster with redis-cli on this machine.
#[derive(Debug, Clone, Parser)]
struct Options {
    /// Instances of each cluster, one size after another; multiples of the hosts
    #[arg(long, value_delimiter = ',', default_value = "100,200,300")]
    instances: Vec<u16>,
    /// One more size, formed by redmesh alone: the largest that fits
    #[arg(long, value_name = "N")]
    largest: Option<u16>,
    /// Turns of each at each size; medians are reported
    #[arg(long, default_value_t = 3, value_parser = clap::value_parser!(u16).range(1..=100))]
    rounds: u16,
    /// Who forms, in turns
    #[arg(long, value_enum, value_delimiter = ',', default_value = "redmesh,redis-cli,redis-cli-stock")]
    by: Vec<Peer>,
    /// Instead of the comparison: so many formations in a row by redmesh, all of which must converge
    #[arg(long, value_name = "TIMES", value_parser = clap::value_parser!(u16).range(1..=1000))]
    repeat: Option<u16>,
    /// Hosts (agents), each a loopback address
    #[arg(long, default_value_t = 10, value_parser = clap::value_parser!(u16).range(1..=100))]
    hosts: u16,
    /// The server: a name in PATH or a file [default: redis-server, else valkey-server]
    #[arg(long)]
    server: Option<PathBuf>,
    /// redis-cli or valkey-cli: a name in PATH or a file
    #[arg(long, default_value = "redis-cli")]
    cli: PathBuf,
    /// Seconds that one formation may take; what takes longer is ended and counts as not formed
    #[arg(long, default_value_t = 300, value_parser = clap::value_parser!(u32).range(10..=3600))]
    deadline: u32,
    /// A formation is ended when the machine has less memory available, MiB
    #[arg(long, default_value_t = 3000)]
    memory_floor: u64,
    /// Directory with redmeshctl and redmesh-agent [default: this program's]
    #[arg(long)]
    bin: Option<PathBuf>,
    /// Address of the first host; the others follow
    #[arg(long, default_value = "127.64.0.1")]
    first_ip: Ipv4Addr,
    /// Print one JSON object a formation on stdout instead of tables
    #[arg(long)]
    json: bool,
}

/// What the kernel kills first.
const OOM_SCORE_FIRST: &str = "1000";

fn main() -> anyhow::Result<ExitCode> {
    let options = Options::parse();
    for size in options.instances.iter().chain(&options.largest) {
        anyhow::ensure!(
            *size >= 3 && size.is_multiple_of(options.hosts),
            "{size} instances: must be a multiple of --hosts {}, and at least 3",
            options.hosts
        );
    }
    // If the memory runs out all the same, this program and its servers are to end before
    // anything else on the machine. Where it can't be set the floor has to do.
    let _ = std::fs::write("/proc/self/oom_score_adj", OOM_SCORE_FIRST);
    let children = Children::default();
    let stop = children.clone();
    let whole = until_interrupted(stop, move || {
        let mut out = std::io::stdout().lock();
        let whole = campaign::run(&options, &children, &mut out)?;
        out.flush()?;
        Ok(whole)
    })?;
    Ok(if whole { ExitCode::SUCCESS } else { ExitCode::FAILURE })
}
