//! Whole meshes in virtual time, under faults: see `redmesh_tests::sim`.

use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, Instant};

use redmesh_tests::sim::driver::{Failure, Report, Scenario, simulate};
use redmesh_tests::sim::log;

/// Seeds of `many_seeds`, unless `REDMESH_SIM_SEEDS` says how many.
const SEEDS: u64 = 100;

/// Simulations at a time.
const THREADS: usize = 2;

/// A seed that fails is tried so often in all: it fixes the faults, not every interleaving.
const TRIES: usize = 3;

fn number(variable: &str) -> Option<u64> {
    let text = std::env::var(variable).ok()?;
    Some(text.parse().unwrap_or_else(|_| panic!("{variable}={text:?} is no number")))
}

fn run(seed: u64) -> Result<Report, String> {
    let scenario = Scenario::random(seed);
    let told = |failure: Failure| format!("{failure}\nscenario: {scenario:#?}");
    simulate(&scenario).map_err(told)
}

/// Repeats a failing seed and says how to do so.
fn tell(seed: u64, first: &str) -> String {
    let again = (1..TRIES).filter(|_| run(seed).is_err()).count();
    format!(
        "seed {seed} failed {} of {TRIES} times; again:\n    REDMESH_SIM_SEED={seed} cargo test -p redmesh-tests \
         --test simulation -- one_seed\n{first}",
        again + 1
    )
}

/// The seed that `REDMESH_SIM_SEED` names.
#[test]
fn one_seed() {
    log::start();
    let seed = number("REDMESH_SIM_SEED").unwrap_or(0);
    if let Err(first) = run(seed) {
        panic!("{}", tell(seed, &first));
    }
}

#[test]
fn many_seeds() {
    log::start();
    let first = number("REDMESH_SIM_FIRST").unwrap_or(1);
    let count = number("REDMESH_SIM_SEEDS").unwrap_or(SEEDS);
    let next = AtomicU64::new(first);
    let began = Instant::now();
    let work = || {
        let (mut reports, mut failures) = (Vec::new(), Vec::new());
        loop {
            let seed = next.fetch_add(1, Ordering::Relaxed);
            if seed >= first + count {
                return (reports, failures);
            }
            match run(seed) {
                Ok(report) => reports.push(report),
                Err(words) => failures.push(tell(seed, &words)),
            }
        }
    };
    let done = std::thread::scope(|scope| {
        let threads: Vec<_> = (0..THREADS).map(|_| scope.spawn(work)).collect();
        threads.into_iter().map(|thread| thread.join().expect("no simulation panics")).collect::<Vec<_>>()
    });
    let (reports, failures): (Vec<_>, Vec<_>) = done.into_iter().unzip();
    let (reports, failures) = (reports.concat(), failures.concat());
    let virtual_s: u64 = reports.iter().map(|report| report.took.as_secs()).sum();
    let mut healed: Vec<Duration> = reports.iter().map(|report| report.healed_in).collect();
    healed.sort_unstable();
    let at = |part: f64| healed.get((healed.len() as f64 * part) as usize).copied().unwrap_or_default();
    log::say(&format!(
        "{count} seeds from {first}: {virtual_s} virtual seconds in {:.0} s, {} terms; healed in {:?} (half of \
         them), {:?} (99 %), {:?} (all)",
        began.elapsed().as_secs_f64(),
        reports.iter().map(|report| report.terms).sum::<usize>(),
        at(0.5),
        at(0.99),
        healed.last().copied().unwrap_or_default(),
    ));
    assert!(failures.is_empty(), "{} of {count} seeds failed\n{}", failures.len(), failures.join("\n\n"));
}
