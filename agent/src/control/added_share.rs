//! A share for a host that joins a run which is going on: what it is, or why it can't be.

use redmesh_api::control::{Refusal, RefusalKind, ShareRequest};
use redmesh_api::ids::HostId;
use redmesh_api::limits::{OUTSTANDING_MAX, SHARES_MAX, WORKERS_MAX};
use redmesh_api::run::{Job, Run, RunStage, RunUntil, Share};

use super::refuse;

/// The share that `request` adds to `run` for `host`.
pub fn of(run: &Run, request: &ShareRequest, host: HostId, now_unix_ms: u64) -> Result<Share, Refusal> {
    let conflict = |reason: String| refuse(RefusalKind::Conflict, reason);
    let invalid = |reason: String| refuse(RefusalKind::Invalid, reason);
    if run.stage != RunStage::Running {
        return conflict(format!("run {} is not going on any more: a share can't join it", run.id));
    }
    if matches!(run.spec.job, Job::ReadBack(_)) {
        return conflict(format!(
            "run {} reads back what each host wrote itself: nobody can join it",
            run.id
        ));
    }
    if let Some(rate) = run.spec.rate {
        return conflict(format!(
            "run {} holds {rate} operations a second, divided among its shares: another would add to that; \
             start a new run with all hosts",
            run.id
        ));
    }
    let there: u64 =
        run.shares.iter().filter(|share| !share.given_up).map(|share| u64::from(share.workers)).sum();
    let outstanding_most = OUTSTANDING_MAX / u64::from(run.spec.pipeline.max(1));
    let most = outstanding_most.min(u64::from(WORKERS_MAX)).saturating_sub(there);
    if request.workers == 0 || u64::from(request.workers) > most {
        return invalid(format!(
            "workers = {}: must be 1 to {most}, what run {} can have besides its {there}",
            request.workers, run.id
        ));
    }
    match (run.spec.until, request.writes) {
        (RunUntil::Writes(_), None | Some(0)) => {
            return invalid(format!(
                "run {} ends after a number of writes: say how many this share adds (--writes, at least 1)",
                run.id
            ));
        }
        (RunUntil::Seconds(_), Some(writes)) => {
            return invalid(format!(
                "writes = {writes}: run {} ends after a time, and so does this share: leave --writes out",
                run.id
            ));
        }
        (RunUntil::Seconds(seconds), None)
            if now_unix_ms >= run.starts_unix_ms + u64::from(seconds) * 1000 =>
        {
            return conflict(format!("the {seconds} s of run {} are over", run.id));
        }
        _ => {}
    }
    if run.shares.len() >= SHARES_MAX {
        return conflict(format!("run {} has {SHARES_MAX} shares, no more are possible", run.id));
    }
    // Workers' numbers of a run differ; those from the spec's on belong to added shares.
    let next = run.shares.iter().map(|share| u64::from(share.first_worker) + u64::from(share.workers));
    let first_worker = next.max().unwrap_or(0).max(u64::from(run.spec.workers));
    let Ok(first_worker) = u32::try_from(first_worker) else {
        return conflict(format!("run {} has had too many workers for another share", run.id));
    };
    Ok(Share {
        host,
        workers: request.workers,
        first_worker,
        writes: request.writes,
        given_up: false,
        rest_of: None,
    })
}

#[cfg(test)]
mod tests {
    use redmesh_api::control::RunRef;
    use redmesh_api::ids::RunId;
    use redmesh_api::run::{ReadBack, RunSpec};
    use redmesh_api::workload::Workload;
    use uuid::Uuid;

    use super::*;
    use crate::coordinator::account;

    fn run(until: RunUntil) -> Run {
        Run {
            id: RunId(Uuid::from_u128(1)),
            spec: RunSpec::closed_loop(Workload::uuid_counter(), 10, until),
            shares: account::shares(&[HostId(1), HostId(2)], 10, None),
            stage: RunStage::Running,
            created_unix_ms: 1_000,
            starts_unix_ms: 1_000,
            before: Vec::new(),
            result: None,
        }
    }

    fn ask(workers: u32, writes: Option<u64>) -> ShareRequest {
        ShareRequest { run: RunRef::Latest, host: "host-3".to_owned(), workers, writes }
    }

    fn why(run: &Run, request: &ShareRequest, now: u64) -> Refusal {
        of(run, request, HostId(3), now).expect_err("is refused")
    }

    #[test]
    fn an_added_share_has_workers_of_its_own() {
        let mut run = run(RunUntil::Seconds(60));
        for first_worker in [10, 14] {
            let share = of(&run, &ask(4, None), HostId(3), 5_000).expect("joins");
            assert_eq!((share.host, share.workers, share.first_worker), (HostId(3), 4, first_worker));
            assert_eq!((share.writes, share.given_up, share.rest_of), (None, false, None));
            run.shares.push(share);
        }
    }

    #[test]
    fn what_does_not_fit_the_run_is_refused_in_words() {
        use RefusalKind::{Conflict, Invalid};
        let (timed, counted) = (run(RunUntil::Seconds(60)), run(RunUntil::Writes(100)));
        assert!(of(&counted, &ask(1, Some(7)), HostId(3), 0).is_ok());
        let words = |run: &Run, request, now, kind, text: &str| {
            let refusal = why(run, &request, now);
            assert_eq!(refusal.kind, kind, "{refusal}");
            assert!(refusal.message.contains(text), "{refusal}");
        };
        words(&counted, ask(1, None), 0, Invalid, "--writes");
        words(&counted, ask(1, Some(0)), 0, Invalid, "at least 1");
        words(&timed, ask(1, Some(5)), 0, Invalid, "writes = 5");
        words(&timed, ask(0, None), 0, Invalid, "workers = 0");
        words(&timed, ask(WORKERS_MAX, None), 0, Invalid, "1 to 999990");
        words(&timed, ask(1, None), 61_000, Conflict, "are over");
        words(&Run { stage: RunStage::Stopping, ..timed.clone() }, ask(1, None), 0, Conflict, "not going on");
        let mut open = timed.clone();
        open.spec.rate = Some(500);
        words(&open, ask(1, None), 0, Conflict, "500 operations a second");
        let mut reads = timed;
        reads.spec.job = Job::ReadBack(ReadBack { of: reads.id, wrap: None, pipeline: 1, per_million: 1 });
        words(&reads, ask(1, None), 0, Conflict, "reads back");
    }
}
