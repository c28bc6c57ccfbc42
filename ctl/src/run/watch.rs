//! Watching a run: polls one agent until the account is closed.

use std::time::{Duration, Instant};

use redmesh_api::control::{RefusalKind, RunRef, RunView};
use redmesh_api::run::{Counts, Job, LatencySummary, RunStage, RunUntil};

use super::report::{Account, Names, Noun};
use crate::progress::Progress;
use crate::session::{Patience, Session, SessionError};
use crate::units::{micros, rate, seconds, short, thousands};

/// Pause between two looks at a run.
const POLL_EVERY: Duration = Duration::from_millis(250);

/// Every so many looks the hosts' histograms are pulled too.
const LATENCY_EVERY: u32 = 4;

/// How long the agent asked may not know of a run that was just begun elsewhere.
const UNHEARD_OF_MAX: Duration = Duration::from_secs(5);

/// Hosts whose own rate a progress line names.
const HOSTS_SHOWN_MAX: usize = 12;

/// Shows a run's progress on stderr until it is done. With `stall_max` a run that stands
/// still for so long is an error; without, it is watched for as long as it takes.
pub async fn watch(
    session: &mut Session,
    run: RunRef,
    stall_max: Option<Duration>,
) -> anyhow::Result<RunView> {
    let began = Instant::now();
    let names = Names::ask(session).await;
    let mut progress: Option<Progress> = None;
    let mut patience = Patience::default();
    let mut run = run;
    let mut latency = None;
    let mut moved = (Counts::default(), Instant::now());
    for look in 0u32.. {
        let answer = session.run_show(run.clone(), look % LATENCY_EVERY == 0).await;
        let unheard_of = matches!(&answer, Err(SessionError::Refused(r)) if r.kind == RefusalKind::NotFound);
        if !(unheard_of && began.elapsed() < UNHEARD_OF_MAX)
            && let Some(view) = patience.bear(answer)?
        {
            if view.run.stage == RunStage::Done && view.run.result.is_some() {
                return Ok(view);
            }
            // "The newest" must not become another one in mid-watch.
            run = RunRef::Prefix(view.run.id.0.to_string());
            let counts = Account::of(&view).total();
            if counts != moved.0 {
                moved = (counts, Instant::now());
            }
            // Of an open loop, what those feel who don't wait for each other.
            latency = view.intended.or(view.latency).or(latency);
            let (done, total) = position(&view);
            let progress = progress.get_or_insert_with(|| Progress::new(Noun::of(&view.run.spec.job).doing));
            progress.update(done, total, &line(&view, latency, &names));
        }
        if let Some(max) = stall_max.filter(|max| moved.1.elapsed() >= *max) {
            anyhow::bail!(
                "the run has stood still for {} s at {} answers",
                max.as_secs(),
                thousands(moved.0.acked)
            );
        }
        tokio::time::sleep(POLL_EVERY).await;
    }
    unreachable!("a run is watched for less than 2^32 looks")
}

fn position(view: &RunView) -> (u64, u64) {
    let counts = Account::of(view).total();
    let ended = counts.issued.saturating_sub(counts.in_flight());
    match (&view.run.spec.job, view.run.spec.until) {
        (_, RunUntil::Writes(goal)) => (ended, goal),
        // A read-back ends with the keys, of which nobody knows the number beforehand.
        (Job::ReadBack(_), RunUntil::Seconds(_)) => (0, 0),
        (Job::Load(_), RunUntil::Seconds(s)) => (counts.active_us / 1000, u64::from(s) * 1000),
    }
}

fn line(view: &RunView, latency: Option<LatencySummary>, names: &Names) -> String {
    let account = Account::of(view);
    let counts = account.total();
    let elapsed = seconds(counts.active_us as f64 / 1e6);
    let (acked, many) = (thousands(counts.acked), Noun::of(&view.run.spec.job).many);
    let mut text = match (&view.run.spec.job, view.run.spec.until) {
        (Job::ReadBack(_), _) => format!("{acked} {many} in {elapsed}"),
        (Job::Load(_), RunUntil::Writes(goal)) => {
            format!("{acked} of {} {many} in {elapsed}", thousands(goal))
        }
        (Job::Load(_), RunUntil::Seconds(s)) => format!("{acked} {many} in {elapsed} of {s} s"),
    };
    text.push_str(&format!(", {}/s", rate(view.writes_per_s)));
    if let Some(asked) = view.run.spec.rate {
        text.push_str(&format!(" of {}/s asked", thousands(asked)));
    }
    if let Some(l) = latency.filter(|latency| latency.count > 0) {
        text.push_str(&format!(", p50 {} p99 {}", micros(l.p50_us), micros(l.p99_us)));
    }
    for (what, count) in [("failed", counts.failed), ("unknown", counts.unknown)] {
        if count > 0 {
            text.push_str(&format!(", {} {what}", thousands(count)));
        }
    }
    if view.run.stage != RunStage::Running {
        text.push_str(", closing the account");
    }
    if let Some(waiting) = &view.waiting_for {
        text.push_str(&format!(", waiting for {waiting}"));
    }
    let hosts = account.hosts();
    let rates: Vec<String> = hosts
        .iter()
        .take(HOSTS_SHOWN_MAX)
        .map(|host| format!("{} {}", names.of(*host), short(account.lately(*host))))
        .collect();
    if !rates.is_empty() {
        let more = if hosts.len() > HOSTS_SHOWN_MAX { " ..." } else { "" };
        text.push_str(&format!(" | {}{more}", rates.join(" ")));
    }
    text
}

#[cfg(test)]
mod tests {
    use redmesh_api::run::ReadBack;

    use super::*;
    use crate::run::report::tests::{open_loop, running};

    #[test]
    fn the_line_says_how_far_how_fast_and_where() {
        let view = running();
        assert_eq!(position(&view), (1_000, 1_000_000));
        assert_eq!(
            line(&view, None, &Names::default()),
            "1,000 of 1,000,000 writes in 2.0 s, 1,235/s, waiting for host-2, silent for 5 s \
             | 00000001 1k 00000002 0"
        );
        let latency = LatencySummary { count: 1, p50_us: 3_100, p99_us: 14_400, ..Default::default() };
        assert!(line(&view, Some(latency), &Names::default()).contains(", p50 3.1 ms p99 14.4 ms,"));
    }

    #[test]
    fn a_run_by_seconds_is_measured_by_time() {
        let mut view = running();
        view.run.spec.until = RunUntil::Seconds(10);
        assert_eq!(position(&view), (2_000, 10_000));
        assert!(line(&view, None, &Names::default()).starts_with("1,000 writes in 2.0 s of 10 s, "));
    }

    #[test]
    fn an_open_loop_is_held_against_its_schedule_and_a_read_back_counts_reads() {
        let mut view = open_loop();
        view.share_writes_per_s = vec![6_000.0, 3_000.0];
        view.writes_per_s = 9_000.0;
        let words = line(&view, None, &Names::default());
        assert!(
            words.starts_with("200,000 operations in 20.0 s of 20 s, 9,000/s of 10,000/s asked, "),
            "{words}"
        );
        assert!(words.ends_with(" | 00000001 6k 00000002 3k"), "{words}");
        view.run.spec.rate = None;
        let of = view.run.id;
        view.run.spec.job = Job::ReadBack(ReadBack { of, wrap: None, pipeline: 1, per_million: 1 });
        assert_eq!(position(&view), (0, 0));
        assert!(line(&view, None, &Names::default()).starts_with("200,000 reads in 20.0 s, 9,000/s, "));
    }

    #[test]
    fn a_host_with_several_shares_is_named_once() {
        let mut view = running();
        view.run.shares[1].host = view.run.shares[0].host;
        view.share_writes_per_s = vec![1_000.0, 2_000.0];
        assert!(line(&view, None, &Names::default()).ends_with(" | 00000001 3k"));
    }
}
