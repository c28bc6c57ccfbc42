//! What is compared, and how each is run and read.

use std::fmt;
use std::process::Command;

use anyhow::{Context as _, ensure};
use serde_json::Value;

use redmesh_benches::children::Children;
use redmesh_benches::machine::children_cpu_s;

use super::cluster::Cluster;

/// Key of other tools: as long as ours are after some thousand writes of each worker.
/// redis-benchmark puts 12 digits and a hash tag of the node in turn into it.
const RIVAL_KEY: &str = "6ba7b810-9dad-11d1-80b4-0-__rand_int__{tag}";

/// Value of other tools, bytes.
const RIVAL_VALUE_BYTES: usize = 92;

/// Keys drawn by other tools: practically always new, as ours are.
const RIVAL_KEYSPACE: &str = "100000000000";

/// Writes per second and pipelined command that a first round is laid out for.
const FIRST_RATE: [(u16, f64); 2] = [(1, 40_000.0), (64, 400_000.0)];

/// Connections of memtier_benchmark.
const MEMTIER_CLIENTS: (u16, u16) = (2, 100);

/// Somebody who writes.
#[derive(Debug, Clone)]
pub enum Contender {
    /// This project: closed-loop workers, one outstanding write each.
    Redmesh { workers: u32, load_hosts: Option<u16> },
    /// This project by a schedule: an open loop at half of what the closed loop reached.
    OpenLoop { workers: u32 },
    /// redis-benchmark --cluster.
    RedisBenchmark { clients: u16, pipeline: u16 },
    /// memtier_benchmark --cluster-mode.
    Memtier,
}

/// One turn.
#[derive(Debug, Clone, Copy)]
pub struct Sample {
    /// Writes that servers have executed.
    pub writes: u64,
    /// In so many seconds.
    pub seconds: f64,
    /// CPU of the load's threads or process.
    pub client_cpu_s: f64,
    /// CPU of all servers.
    pub server_cpu_s: f64,
    /// From the send; of an open loop from the intended begin.
    pub latency: Latency,
    /// Of an open loop, operations a second that were asked for.
    pub asked: Option<f64>,
}

/// Percentiles in microseconds, as far as the tool tells them.
#[derive(Debug, Clone, Copy, Default, PartialEq)]
pub struct Latency {
    pub p50_us: Option<f64>,
    pub p99_us: Option<f64>,
    pub p999_us: Option<f64>,
}

impl Sample {
    /// Writes a second.
    pub fn rate(&self) -> f64 {
        self.writes as f64 / self.seconds
    }

    /// CPU of the client, microseconds a write.
    pub fn client_us(&self) -> f64 {
        self.client_cpu_s * 1e6 / self.writes as f64
    }

    /// CPU of the servers, microseconds a write.
    pub fn server_us(&self) -> f64 {
        self.server_cpu_s * 1e6 / self.writes as f64
    }
}

/// What a tool says of itself.
struct Told {
    writes: u64,
    seconds: f64,
    client_cpu_s: f64,
    latency: Latency,
}

impl Contender {
    /// memtier_benchmark, where it is installed.
    pub fn memtier() -> Option<Self> {
        Command::new("memtier_benchmark").arg("--version").output().ok().map(|_| Self::Memtier)
    }

    /// Takes one turn of about `seconds`; `last` is its turn before, `peak` the closed
    /// loop's rate so far.
    pub fn run(
        &self,
        cluster: &Cluster<'_>,
        seconds: u32,
        last: Option<&Sample>,
        peak: Option<f64>,
        children: &Children,
    ) -> anyhow::Result<Sample> {
        let before = cluster.servers()?;
        let mut asked = None;
        let told = match *self {
            Self::Redmesh { workers, load_hosts } => redmesh(cluster, seconds, workers, load_hosts, None)?,
            Self::OpenLoop { workers } => {
                let rate = (peak.context("an open loop follows a closed one")? / 2.0) as u64;
                asked = Some(rate as f64);
                redmesh(cluster, seconds, workers, None, Some(rate))?
            }
            Self::RedisBenchmark { clients, pipeline } => {
                let first = FIRST_RATE.iter().find(|(depth, _)| *depth >= pipeline);
                let rate = last.map(Sample::rate).or(first.map(|(_, rate)| *rate)).unwrap_or(1.0);
                let writes = (rate * f64::from(seconds)) as u64;
                redis_benchmark(cluster, writes, clients, pipeline, children)?
            }
            Self::Memtier => memtier(cluster, seconds, children)?,
        };
        let after = cluster.servers()?;
        let executed = after.set_calls - before.set_calls;
        // memtier is believed nothing but its time: the servers have counted.
        let writes = if told.writes == 0 { executed } else { told.writes };
        ensure!(executed == writes, "{writes} writes are claimed, servers have executed {executed}");
        Ok(Sample {
            writes,
            seconds: told.seconds,
            client_cpu_s: told.client_cpu_s,
            server_cpu_s: after.cpu_s - before.cpu_s,
            latency: told.latency,
            asked,
        })
    }
}

fn redmesh(
    cluster: &Cluster<'_>,
    seconds: u32,
    workers: u32,
    load_hosts: Option<u16>,
    rate: Option<u64>,
) -> anyhow::Result<Told> {
    let (seconds, workers) = (seconds.to_string(), workers.to_string());
    let mut args = vec!["-o", "json", "run", "start", "--seconds", &seconds, "--workers", &workers];
    let bearers = load_hosts.map(|hosts| hosts.to_string());
    args.extend(bearers.iter().flat_map(|hosts| ["--load-hosts", hosts]));
    let schedule = rate.map(|rate| rate.to_string());
    args.extend(schedule.iter().flat_map(|rate| ["--rate", rate]));
    let text = cluster.ctl(&args)?;
    let answer: Value = serde_json::from_str(&text).with_context(|| format!("no JSON: {text}"))?;
    ensure!(answer["ledger"]["ok"] == true, "the ledger is not closed: {text}");
    let run = &answer["run"];
    let number = |of: &Value| of.as_f64().with_context(|| format!("a figure is missing in {text}"));
    Ok(Told {
        writes: run["acked"].as_u64().with_context(|| format!("no run.acked in {text}"))?,
        seconds: number(&run["seconds"])?,
        client_cpu_s: number(&run["client_cpu_s"])?,
        latency: {
            let of = &run[if rate.is_some() { "intended_us" } else { "latency_us" }];
            let at = |name: &str| number(&of[name]).map(Some);
            Latency { p50_us: at("p50")?, p99_us: at("p99")?, p999_us: at("p999")? }
        },
    })
}

fn redis_benchmark(
    cluster: &Cluster<'_>,
    writes: u64,
    clients: u16,
    pipeline: u16,
    children: &Children,
) -> anyhow::Result<Told> {
    let (host, port) = cluster.entry();
    let mut command = Command::new("redis-benchmark");
    command.args(["--cluster", "--csv", "-h", &host, "-p", &port, "-r", RIVAL_KEYSPACE]);
    command.args(["-c", &clients.to_string(), "-P", &pipeline.to_string(), "-n", &writes.to_string()]);
    command.args(["SET", RIVAL_KEY, &"v".repeat(RIVAL_VALUE_BYTES)]);
    let cpu_s = children_cpu_s()?;
    let text = children.run(&mut command)?;
    let client_cpu_s = children_cpu_s()? - cpu_s;
    let (rate, latency) = parse_csv(&text).with_context(|| format!("not understood: {text}"))?;
    Ok(Told { writes: 0, seconds: writes as f64 / rate, client_cpu_s, latency })
}

/// Requests per second, and p50 and p99 in microseconds where the version tells them:
/// `"test","rps","avg","min","p50","p95","p99","max"`, latencies in milliseconds.
fn parse_csv(text: &str) -> Option<(f64, Latency)> {
    let line = text.lines().rev().find(|line| line.starts_with('"'))?;
    let fields: Vec<&str> = line.trim().trim_matches('"').split("\",\"").collect();
    let us = |at: usize| Some(fields.get(at)?.parse::<f64>().ok()? * 1000.0);
    let latency = Latency { p50_us: us(4), p99_us: us(6), p999_us: None };
    Some((fields.get(1)?.parse().ok()?, latency))
}

fn memtier(cluster: &Cluster<'_>, seconds: u32, children: &Children) -> anyhow::Result<Told> {
    let (host, port) = cluster.entry();
    let (threads, clients) = MEMTIER_CLIENTS;
    let mut command = Command::new("memtier_benchmark");
    command.args(["--cluster-mode", "--hide-histogram", "--ratio=1:0", "-s", &host, "-p", &port]);
    command.args(["-t", &threads.to_string(), "-c", &clients.to_string()]);
    command.args(["--key-pattern=R:R", "--key-maximum=100000000000"]);
    command.args(["--key-prefix=6ba7b810-9dad-11d1-80b4-00c04fd-"]);
    command.args(["-d", &RIVAL_VALUE_BYTES.to_string(), "--test-time", &seconds.to_string()]);
    let cpu_s = children_cpu_s()?;
    children.run(&mut command)?;
    let client_cpu_s = children_cpu_s()? - cpu_s;
    Ok(Told { writes: 0, seconds: f64::from(seconds), client_cpu_s, latency: Latency::default() })
}

impl fmt::Display for Contender {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let text = match self {
            Self::Redmesh { workers, load_hosts: None } => format!("redmesh, {workers} workers"),
            Self::Redmesh { workers, load_hosts: Some(hosts) } => {
                format!("redmesh, {workers} workers, --load-hosts {hosts}")
            }
            Self::OpenLoop { workers } => format!("redmesh, {workers} workers, --rate half of the first"),
            Self::RedisBenchmark { clients, pipeline } => {
                format!("redis-benchmark --cluster -c {clients} -P {pipeline}")
            }
            Self::Memtier => {
                format!("memtier_benchmark -t {} -c {}", MEMTIER_CLIENTS.0, MEMTIER_CLIENTS.1)
            }
        };
        f.pad(&text)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn csv_is_read_with_and_without_latencies() {
        let new = "\"test\",\"rps\",\"avg_latency_ms\",\"min\",\"p50\",\"p95\",\"p99\",\"max\"\n\
                   \"SET k{tag} v\",\"40816.32\",\"1.0\",\"0.2\",\"0.9\",\"2.0\",\"3.5\",\"9.0\"\n";
        let (rate, latency) = parse_csv(new).expect("is read");
        let told = Latency { p50_us: Some(900.0), p99_us: Some(3500.0), p999_us: None };
        assert_eq!((rate, latency), (40816.32, told));
        assert_eq!(parse_csv("\"SET\",\"100.5\"\n"), Some((100.5, Latency::default())));
        assert_eq!(parse_csv("WARNING: x\n"), None);
    }
}
