//! redmesh beside `redis-benchmark --cluster` (and memtier_benchmark where it is
//! installed): in one run, on one cluster, taking turns, so that only ratios within a
//! run count and a noisy machine is noisy for all.
//!
//! It drives what users drive (`redmeshctl demo --keep`, `redmeshctl run start`) and
//! measures all contenders alike where it can: what servers executed and the CPU that
//! they used is always their own `INFO`. Whatever happens, nothing is left running.

mod cluster;
mod contender;
mod table;

use std::io::Write as _;
use std::net::Ipv4Addr;
use std::path::PathBuf;
use std::process::ExitCode;

use anyhow::Context as _;
use clap::Parser;
use redmesh_benches::children::{Children, until_interrupted};
use redmesh_benches::machine;

use self::cluster::{Cluster, Layout};
use self::contender::{Contender, Sample};
use self::table::Row;

/// Compare redmesh's load with other tools' on this machine.
#[derive(Debug, Clone, Parser)]
struct Options {
    /// redis-servers of each cluster, a multiple of 10
    #[arg(long, default_value_t = 30, value_parser = clap::value_parser!(u16).range(10..=100))]
    instances: u16,
    /// How long each contender writes, each time
    #[arg(long, default_value_t = 5, value_parser = clap::value_parser!(u32).range(1..=600))]
    seconds: u32,
    /// Turns of each contender; medians are reported
    #[arg(long, default_value_t = 3, value_parser = clap::value_parser!(u16).range(1..=100))]
    rounds: u16,
    /// Closed-loop workers of redmesh in all
    #[arg(long, default_value_t = 2000)]
    workers: u32,
    /// Directory with redmeshctl and redmesh-agent [default: this program's]
    #[arg(long)]
    bin: Option<PathBuf>,
    /// Address of the first host; the others follow
    #[arg(long, default_value = "127.63.0.1")]
    first_ip: Ipv4Addr,
}

/// Agents of the second cluster, as many as the article had hosts.
const AGENTS: u16 = 10;

fn main() -> anyhow::Result<ExitCode> {
    let options = Options::parse();
    anyhow::ensure!(
        options.instances.is_multiple_of(AGENTS),
        "--instances {}: must be a multiple of {AGENTS}, since the second cluster has {AGENTS} hosts",
        options.instances
    );
    let children = Children::default();
    let stop = children.clone();
    until_interrupted(stop, move || compare(&options, &children))?;
    Ok(ExitCode::SUCCESS)
}

fn compare(options: &Options, children: &Children) -> anyhow::Result<()> {
    let bin = match &options.bin {
        Some(dir) => dir.clone(),
        None => std::env::current_exe()?.parent().context("this program has no directory")?.to_owned(),
    };
    let mut out = std::io::stdout().lock();
    let one = Layout { hosts: 1, per_host: options.instances, first_ip: options.first_ip };
    let ten = Layout { hosts: AGENTS, per_host: options.instances / AGENTS, first_ip: options.first_ip };
    writeln!(out, "{}\n", machine::describe("redis-benchmark".as_ref())?)?;

    let redmesh = |load_hosts| Contender::Redmesh { workers: options.workers, load_hosts };
    let rival = |clients, pipeline| Contender::RedisBenchmark { clients, pipeline };
    let open = Contender::OpenLoop { workers: options.workers };
    let mut alone = vec![redmesh(None), open, rival(2000, 1), rival(200, 1), rival(120, 64)];
    alone.extend(Contender::memtier());
    let spread = vec![redmesh(None), redmesh(Some(1)), redmesh(Some(2)), rival(2000, 1)];
    for (layout, contenders) in [(one, alone), (ten, spread)] {
        let rows = {
            let cluster = Cluster::form(layout, &bin, children)?;
            take_turns(options, &cluster, contenders, children)?
        };
        writeln!(out, "{}", table::render(&layout.describe(), options.rounds, options.seconds, &rows))?;
        out.flush()?;
    }
    Ok(())
}

/// All contenders in turn, `rounds` times.
fn take_turns(
    options: &Options,
    cluster: &Cluster<'_>,
    contenders: Vec<Contender>,
    children: &Children,
) -> anyhow::Result<Vec<Row>> {
    let mut rows: Vec<Row> = contenders.into_iter().map(Row::new).collect();
    for round in 1..=options.rounds {
        for at in 0..rows.len() {
            cluster.flush()?;
            let peak = rows[0].rate();
            let row = &mut rows[at];
            let sample: Sample = row
                .contender
                .run(cluster, options.seconds, row.samples.last(), peak, children)
                .with_context(|| format!("{}, round {round}", row.contender))?;
            let line = format!("round {round}  {:<44} {:>9.0} writes/s", row.contender, sample.rate());
            writeln!(std::io::stderr(), "{line}")?;
            row.samples.push(sample);
        }
    }
    Ok(rows)
}
