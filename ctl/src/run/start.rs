//! `run start`: from a command line to what the mesh is asked to do.

use clap::{ArgGroup, Args};
use redmesh_api::control::RunRef;
use redmesh_api::limits::{OUTSTANDING_MAX, PIPELINE_MAX, THREADS_PER_HOST_MAX, WORKERS_MAX};
use redmesh_api::run::{Job, RunSpec, RunUntil};
use redmesh_api::workload::{Keys, UUID_COUNTER, Workload};

use super::report::{Names, RunReport};
use super::{exactly, print, started, watch, workload};
use crate::exit::{Exit, UsageError};
use crate::output::{Output, note};
use crate::session::Session;
use crate::units;

/// `run start …`
#[derive(Debug, Args)]
#[command(group(ArgGroup::new("until").required(true).args(["writes", "seconds"])))]
pub struct StartArgs {
    /// What the workers do: a built-in workload, as `run workloads` lists them, or a file
    /// (a path with a '/' in it or ending in .toml)
    #[arg(long, value_name = "NAME|FILE", default_value = UUID_COUNTER)]
    workload: String,
    /// Workers over the whole mesh
    #[arg(long, value_name = "N", default_value_t = 2000,
          value_parser = clap::value_parser!(u32).range(1..=i64::from(WORKERS_MAX)))]
    workers: u32,
    /// Operations that each worker has outstanding
    #[arg(long, value_name = "D", default_value_t = 1,
          value_parser = clap::value_parser!(u16).range(1..=i64::from(PIPELINE_MAX)))]
    pipeline: u16,
    /// Place the load on so many of the hosts; fewer make larger batches [default: all]
    #[arg(long, value_name = "K", value_parser = clap::value_parser!(u16).range(1..))]
    load_hosts: Option<u16>,
    /// Load threads on each host [default: as its agent is configured]
    #[arg(long, value_name = "N", value_parser = clap::value_parser!(u16).range(1..=i64::from(THREADS_PER_HOST_MAX)))]
    threads_per_host: Option<u16>,
    /// Open loop: begin so many operations a second over the whole mesh, by a schedule,
    /// whatever the answers (50000, 50k) [default: a closed loop, each worker begins one
    /// when one has ended]
    #[arg(long, value_name = "R", value_parser = units::parse_count)]
    rate: Option<u64>,
    /// Let the load grow to its whole over so many seconds
    #[arg(long, value_name = "S", default_value_t = 0)]
    ramp: u32,
    /// Keep what is answered in the first so many seconds out of rate and latencies
    #[arg(long, value_name = "S", default_value_t = 0)]
    warm_up: u32,
    /// Each worker's counter begins again after so many keys, so that keys are written
    /// again; for workloads whose keys are counters [default: what the workload says]
    #[arg(long, value_name = "N", value_parser = units::parse_count)]
    keyspace: Option<u64>,
    /// Issue exactly so many writes (1000000, 1_000_000, 1M); of workloads that also read,
    /// so many operations
    #[arg(long, value_name = "N", value_parser = units::parse_count)]
    writes: Option<u64>,
    /// Issue for so long
    #[arg(long, value_name = "S", value_parser = clap::value_parser!(u32).range(1..))]
    seconds: Option<u32>,
    /// Watch it and print its report (the default)
    #[arg(long, conflicts_with = "no_wait")]
    watch: bool,
    /// Return as soon as the run is committed
    #[arg(long)]
    no_wait: bool,
}

impl StartArgs {
    /// What the mesh is asked to do.
    fn spec(&self) -> Result<RunSpec, UsageError> {
        let until = until(self.writes, self.seconds)?;
        let mut workload = workload::resolve(&self.workload)?;
        if let Some(keyspace) = self.keyspace {
            bound_keys(&mut workload, keyspace)?;
        }
        let outstanding = u64::from(self.workers) * u64::from(self.pipeline);
        if outstanding > OUTSTANDING_MAX {
            return Err(UsageError(format!(
                "--workers {} with --pipeline {} have {} operations outstanding, at most {} are allowed: lower \
                 one of them",
                self.workers,
                self.pipeline,
                units::thousands(outstanding),
                units::thousands(OUTSTANDING_MAX)
            )));
        }
        if let RunUntil::Seconds(seconds) = until {
            for (option, s) in [("--ramp", self.ramp), ("--warm-up", self.warm_up)] {
                if s >= seconds {
                    return Err(UsageError(format!(
                        "{option} {s} takes the whole run of --seconds {seconds}: lower it or raise --seconds"
                    )));
                }
            }
        }
        Ok(RunSpec {
            job: Job::Load(workload),
            workers: self.workers,
            pipeline: self.pipeline,
            load_hosts: self.load_hosts,
            threads_per_host: self.threads_per_host,
            rate: self.rate,
            ramp_s: self.ramp,
            warm_up_s: self.warm_up,
            until,
        })
    }
}

/// Carries it out.
pub async fn start(args: StartArgs, session: &mut Session, output: &Output) -> anyhow::Result<Exit> {
    let run = session.run_start(args.spec()?).await?;
    let this = RunRef::Prefix(run.id.0.to_string());
    if args.no_wait {
        let view = started(session, this).await?;
        let id = run.id;
        output.answer(&RunReport::of(&view, &Names::default()), || {
            format!("run {id} has begun; `redmeshctl run watch {id}` shows it\n")
        })?;
        return Ok(Exit::Ok);
    }
    note(&format!("run {} has begun; Ctrl-C stops watching, not the run", run.id));
    let view = watch(session, this, None).await?;
    print(exactly(&view), session, output).await
}

/// When a run is over, by the two options of which one is given.
fn until(writes: Option<u64>, seconds: Option<u32>) -> Result<RunUntil, UsageError> {
    match (writes, seconds) {
        (Some(writes), None) => Ok(RunUntil::Writes(writes)),
        (None, Some(seconds)) => Ok(RunUntil::Seconds(seconds)),
        _ => Err(UsageError("give either --writes or --seconds".to_owned())),
    }
}

fn bound_keys(workload: &mut Workload, keyspace: u64) -> Result<(), UsageError> {
    match &mut workload.keys {
        Keys::Counter { wrap } => {
            *wrap = Some(keyspace);
            Ok(())
        }
        Keys::Pool { count, .. } => Err(UsageError(format!(
            "--keyspace {keyspace} is for workloads whose workers count their keys, and {} draws them from a \
             pool of {}: leave it out, or change keys.count in a workload file of your own",
            workload.name,
            units::thousands(*count)
        ))),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::run::RunCommand;
    use crate::run::tests::parse;

    fn spec(options: &str) -> Result<RunSpec, UsageError> {
        match parse(&format!("redmeshctl run start {options}")).expect(options) {
            RunCommand::Start(args) => args.spec(),
            other => panic!("{other:?}"),
        }
    }

    #[test]
    fn without_options_it_is_the_articles_load() {
        let expected = RunSpec::closed_loop(Workload::uuid_counter(), 2000, RunUntil::Writes(1_000_000));
        assert_eq!(spec("--writes 1_000_000").unwrap(), expected);
    }

    #[test]
    fn every_option_arrives() {
        let spec = spec(
            "--workload cache --workers 100 --pipeline 8 --load-hosts 3 --threads-per-host 2 --rate 50k --ramp 5 \
             --warm-up 10 --seconds 60",
        )
        .unwrap();
        assert_eq!(
            spec,
            RunSpec {
                job: Job::Load(workload::resolve("cache").unwrap()),
                workers: 100,
                pipeline: 8,
                load_hosts: Some(3),
                threads_per_host: Some(2),
                rate: Some(50_000),
                ramp_s: 5,
                warm_up_s: 10,
                until: RunUntil::Seconds(60),
            }
        );
    }

    #[test]
    fn a_keyspace_is_for_counters() {
        let Job::Load(workload) = spec("--writes 1M --keyspace 1k").unwrap().job else { panic!() };
        assert_eq!(workload.keys, Keys::Counter { wrap: Some(1000) });
        let error = spec("--writes 1M --keyspace 1k --workload cache").unwrap_err().to_string();
        assert!(error.starts_with("--keyspace 1000 ") && error.contains("pool of 1,000,000"), "{error}");
    }

    #[test]
    fn what_cant_be_is_a_usage_error() {
        let error = spec("--writes 1 --workers 2000 --pipeline 1000").unwrap_err().to_string();
        assert!(error.contains("2,000,000 operations outstanding, at most 1,000,000"), "{error}");
        assert!(spec("--writes 1 --workers 1000 --pipeline 1000").is_ok());
        let error = spec("--seconds 10 --warm-up 10").unwrap_err().to_string();
        assert!(error.starts_with("--warm-up 10 takes the whole run"), "{error}");
        assert!(spec("--seconds 10 --ramp 11").unwrap_err().to_string().starts_with("--ramp 11 "));
        assert!(spec("--writes 10 --ramp 11").is_ok());
        assert!(spec("--writes 10 --workload cash").is_err());
    }

    #[test]
    fn a_run_is_bounded_by_writes_or_by_seconds() {
        for line in [
            "",
            " --writes 1 --seconds 1",
            " --writes 1 --workers 0",
            " --writes 1 --watch --no-wait",
            " --writes 1 --load-hosts 0",
            " --writes 1 --pipeline 0",
            " --writes 1 --pipeline 1025",
            " --writes 1 --threads-per-host 257",
            " --writes 1 --rate 0",
            " --writes 1 --keyspace 0",
            " --writes 1 --warm-up -1",
        ] {
            assert!(parse(&format!("redmeshctl run start{line}")).is_err(), "{line}");
        }
    }
}
