//! A closed run's ledger closes: every operation has one fate, and the account agrees
//! with what the servers have executed.
//!
//! Acked writes were executed; what was executed is acked or of unknown fate. A run that
//! is closed as incomplete, because a host never came back, may know less than was done,
//! never more. Servers that could not be asked leave the ledger open, and it must say so.

use std::collections::BTreeMap;
use std::time::Duration;

use redmesh_api::ids::RunId;
use redmesh_api::run::{Outcome, Run, RunUntil, Tally};

use super::Invariant;
use crate::sim::event::Event;

/// See the module.
#[derive(Debug, Default)]
pub struct LedgerCloses {
    /// Issued, executed and acked, by the engines.
    done: BTreeMap<RunId, (u64, u64, u64)>,
    closed: BTreeMap<RunId, Vec<Tally>>,
}

impl LedgerCloses {
    fn judge(&mut self, run: &Run) -> Result<(), String> {
        let Some(result) = &run.result else { return Ok(()) };
        match self.closed.get(&run.id) {
            Some(known) if *known == result.tallies => return Ok(()),
            Some(_) => return Err(format!("run {} was closed twice, with different accounts", run.id)),
            None => {}
        }
        let sum = |of: fn(&Tally) -> u64| result.tallies.iter().map(of).sum::<u64>();
        let (issued, acked) = (sum(|t| t.counts.issued), sum(|t| t.counts.acked));
        let (failed, unknown) = (sum(|t| t.counts.failed), sum(|t| t.counts.unknown));
        let (truly_issued, executed, truly_acked) = self.done.get(&run.id).copied().unwrap_or_default();
        let account = format!(
            "run {}: {issued} issued, {acked} acked, {failed} failed, {unknown} unknown; truly {truly_issued} issued, \
             {executed} executed, {truly_acked} acked",
            run.id
        );
        let all_asked = !result.ledger.notes.iter().any(|note| note.starts_with("not sampled"));
        let complete = !matches!(result.outcome, Outcome::Incomplete(_));
        let enough = |asked: u64| result.outcome != Outcome::Completed || issued >= asked;
        let asked = match run.spec.until {
            RunUntil::Writes(writes) => writes,
            RunUntil::Seconds(_) => 0,
        };
        let checks = [
            (issued > truly_issued, "more issued than there was"),
            (acked > truly_acked, "more acked than there was"),
            (complete && issued != acked + failed + unknown, "operations without a fate"),
            (complete && result.tallies.iter().any(|tally| !tally.closed), "an open account"),
            (complete && issued != truly_issued, "operations that nobody accounts for"),
            (complete && executed > acked + unknown, "executed writes that have failed"),
            (complete && !result.ledger.ok && all_asked, "the ledger says that it isn't closed"),
            (!enough(asked), "completed with fewer writes than asked"),
        ];
        self.closed.insert(run.id, result.tallies.clone());
        match checks.into_iter().find(|(broken, _)| *broken) {
            Some((_, what)) => Err(format!("{what}: {account}; notes {:?}", result.ledger.notes)),
            None => Ok(()),
        }
    }
}

impl Invariant for LedgerCloses {
    fn name(&self) -> &'static str {
        "ledger"
    }

    fn see(&mut self, _: Duration, event: &Event) -> Result<(), String> {
        match event {
            Event::Done { run, issued, executed, acked } => {
                self.done.insert(*run, (*issued, *executed, *acked));
                Ok(())
            }
            Event::Level { level, .. } => level.runs.iter().try_for_each(|run| self.judge(run)),
            _ => Ok(()),
        }
    }
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use redmesh_api::ids::HostId;
    use redmesh_api::level::Level;
    use redmesh_api::run::{Counts, LatencySummary, Ledger, RunResult, RunSpec, RunStage};
    use redmesh_api::workload::Workload;
    use uuid::Uuid;

    use super::*;

    const RUN: RunId = RunId(Uuid::nil());

    fn closed(outcome: Outcome, counts: Counts) -> Event {
        let result = RunResult {
            outcome,
            tallies: vec![Tally { host: HostId(1), share: 0, epoch: 0, closed: true, counts }],
            latency: LatencySummary::default(),
            intended: None,
            ledger: Ledger { ok: true, ..Ledger::default() },
            after: Vec::new(),
            server_cpu_us: 0,
            ended_unix_ms: 0,
        };
        let run = Run {
            id: RUN,
            spec: RunSpec::closed_loop(Workload::uuid_counter(), 1, RunUntil::Writes(10)),
            shares: Vec::new(),
            stage: RunStage::Done,
            created_unix_ms: 0,
            starts_unix_ms: 0,
            before: Vec::new(),
            result: Some(result),
        };
        Event::Level { host: 0, level: Arc::new(Level { runs: vec![run], ..Level::default() }) }
    }

    fn counts(issued: u64, acked: u64, unknown: u64) -> Counts {
        Counts { issued, acked, unknown, ..Counts::default() }
    }

    fn judge(outcome: Outcome, counts: Counts) -> Result<(), String> {
        let mut invariant = LedgerCloses::default();
        let done = Event::Done { run: RUN, issued: 10, executed: 10, acked: 8 };
        [done, closed(outcome, counts)].iter().try_for_each(|event| invariant.see(Duration::ZERO, event))
    }

    #[test]
    fn an_account_that_agrees_is_fine() {
        judge(Outcome::Completed, counts(10, 8, 2)).expect("every write has its fate");
        judge(Outcome::Incomplete("x".to_owned()), counts(5, 4, 0)).expect("may know less");
    }

    #[test]
    fn every_way_to_be_wrong_is_caught() {
        for (outcome, wrong, words) in [
            (Outcome::Completed, counts(11, 8, 3), "more issued"),
            (Outcome::Completed, counts(10, 9, 1), "more acked"),
            (Outcome::Completed, counts(10, 8, 1), "without a fate"),
            (Outcome::Stopped, counts(9, 8, 1), "nobody accounts for"),
            (Outcome::Incomplete("x".to_owned()), counts(5, 9, 0), "more acked"),
        ] {
            let error = judge(outcome, wrong).expect_err("caught");
            assert!(error.contains(words), "{words:?} is not in {error:?}");
        }
    }

    #[test]
    fn two_accounts_of_one_run_are_caught() {
        let mut invariant = LedgerCloses::default();
        let done = Event::Done { run: RUN, issued: 10, executed: 10, acked: 8 };
        let first = closed(Outcome::Completed, counts(10, 8, 2));
        let second = closed(Outcome::Completed, counts(10, 7, 3));
        for event in [&done, &first, &first] {
            invariant.see(Duration::ZERO, event).expect("one account, seen on two hosts");
        }
        assert!(invariant.see(Duration::ZERO, &second).expect_err("caught").contains("twice"));
    }
}
