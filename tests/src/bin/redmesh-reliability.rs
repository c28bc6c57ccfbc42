//! Tries faults and prints a row for each, as `docs/reliability.md` has them:
//! `redmesh-reliability [NAME|all] [TRIALS]`; without a name it lists them.
//!
//! A trial that fails says why on stderr and counts as one that failed; the exit code is
//! then 1. What can't be tried here is named with the reason, and is no failure.

use std::io::Write as _;
use std::panic::catch_unwind;
use std::process::ExitCode;
use std::time::{Duration, Instant};

use redmesh_tests::faults::{self, Observed, Scenario, Writes};

/// Trials at most, of one fault in one go.
const TRIALS_MAX: usize = 1000;

fn main() -> ExitCode {
    let mut arguments = std::env::args().skip(1);
    let Some(name) = arguments.next() else {
        faults::all().for_each(|scenario| say(&format!("{:<24} {}", scenario.name, scenario.fault)));
        return ExitCode::SUCCESS;
    };
    let trials = match arguments.next().as_deref().unwrap_or("1").parse() {
        Ok(trials @ 1..=TRIALS_MAX) => trials,
        _ => return refuse(&format!("the second argument is how many trials: 1 to {TRIALS_MAX}")),
    };
    let chosen: Vec<_> = faults::all().filter(|scenario| name == "all" || scenario.name == name).collect();
    if chosen.is_empty() {
        return refuse(&format!("no fault is called {name:?}: without arguments all are listed"));
    }
    say(
        "| fault | trials | result | served after | whole after | acked | unknown | failed | lost | command |",
    );
    say("|---|---|---|---|---|---|---|---|---|---|");
    let mut code = ExitCode::SUCCESS;
    for scenario in chosen {
        if let Some(reason) = scenario.skipped() {
            say(&format!("| {} | skipped, because {reason} |", scenario.fault));
            continue;
        }
        let seen: Vec<Observed> = (1..=trials).filter_map(|trial| tried(scenario, trial, trials)).collect();
        if seen.len() < trials {
            code = ExitCode::FAILURE;
        }
        say(&row(scenario, trials, &seen));
    }
    code
}

/// One trial; `None` if it failed. Says on stderr what came of it, for a row takes its time.
fn tried(scenario: &Scenario, trial: usize, of: usize) -> Option<Observed> {
    let began = Instant::now();
    let seen = catch_unwind(scenario.trial).ok();
    let how = if seen.is_some() { "held" } else { "FAILED" };
    let took_s = began.elapsed().as_secs_f64();
    let _ = writeln!(std::io::stderr(), "{}: trial {trial} of {of} {how}, {took_s:.1} s", scenario.name);
    seen
}

fn refuse(words: &str) -> ExitCode {
    let _ = writeln!(std::io::stderr(), "redmesh-reliability: {words}");
    ExitCode::from(2)
}

fn say(line: &str) {
    let _ = writeln!(std::io::stdout(), "{line}");
}

fn row(scenario: &Scenario, trials: usize, seen: &[Observed]) -> String {
    let held = if seen.len() == trials {
        scenario.result.to_owned()
    } else {
        format!("FAILED in {} of {trials} trials", trials - seen.len())
    };
    let writes = |of: fn(&Writes) -> u64| {
        let counts: Vec<u64> = seen.iter().filter_map(|seen| seen.writes.as_ref().map(of)).collect();
        if counts.is_empty() { "–".to_owned() } else { separated(counts.iter().sum()) }
    };
    format!(
        "| {} | {trials} | {held} | {} | {} | {} | {} | {} | {} | `make reliability FAULT={} TRIALS={trials}` |",
        scenario.fault,
        times(seen.iter().filter_map(|seen| seen.served).collect()),
        times(seen.iter().filter_map(|seen| seen.whole).collect()),
        writes(|writes| writes.acked),
        writes(|writes| writes.unknown),
        writes(|writes| writes.failed),
        writes(|writes| writes.lost),
        scenario.name,
    )
}

/// The least and the longest.
fn times(mut times: Vec<Duration>) -> String {
    times.sort();
    match (times.first(), times.last()) {
        (Some(least), Some(longest)) if times.len() > 1 => {
            format!("{:.1}–{:.1} s", least.as_secs_f64(), longest.as_secs_f64())
        }
        (Some(only), _) => format!("{:.1} s", only.as_secs_f64()),
        _ => "–".to_owned(),
    }
}

fn separated(number: u64) -> String {
    let digits = number.to_string();
    let head = digits.len() % 3;
    let mut parts: Vec<&str> = if head > 0 { vec![&digits[..head]] } else { Vec::new() };
    parts.extend(digits.as_bytes()[head..].chunks(3).filter_map(|three| std::str::from_utf8(three).ok()));
    parts.join(",")
}
