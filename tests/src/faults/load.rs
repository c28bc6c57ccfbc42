//! The run in which a fault happens, and its account.

use std::time::Duration;

use serde_json::Value;

use super::SOON;
use crate::mesh::Mesh;
use crate::run::{assert_accounted, count};
use crate::wait::until;

/// Closed loops over all hosts: enough to be hit by everything, too few to starve the rest.
const WORKERS: &str = "12";

/// Writes after which a run is under way, or goes on.
const STEP: u64 = 1000;

/// An account: `issued = acked + failed + unknown` has been checked.
#[derive(Debug, Clone, Default)]
pub struct Writes {
    /// Answered with OK.
    pub acked: u64,
    /// Refused, or given up before they were sent.
    pub failed: u64,
    /// Sent, and no answer came.
    pub unknown: u64,
    /// Acked, and not there at the end.
    pub lost: u64,
    /// By what `DBSIZE` grew over all primaries.
    pub stored: i64,
    /// Where they were lost.
    pub lost_at: Vec<String>,
}

/// A run that goes on until it is ended.
#[derive(Debug)]
pub struct Load;

impl Writes {
    /// Of two runs.
    pub fn plus(&self, other: &Self) -> Self {
        Self {
            acked: self.acked + other.acked,
            failed: self.failed + other.failed,
            unknown: self.unknown + other.unknown,
            lost: self.lost + other.lost,
            stored: self.stored + other.stored,
            lost_at: [&self.lost_at[..], &other.lost_at[..]].concat(),
        }
    }
}

impl Load {
    /// Starts a run, asking `at`, and waits until it writes.
    pub fn begin(mesh: &Mesh, at: usize) -> Self {
        mesh.ok_at(at, &["run", "start", "--workers", WORKERS, "--seconds", "3600", "--no-wait"]);
        Self::await_more(mesh, at, STEP, SOON);
        Self
    }

    /// Waits until so many more writes are acked than now, at most for `deadline`.
    fn await_more(mesh: &Mesh, at: usize, more: u64, deadline: Duration) {
        let acked = || show(mesh, at)?["run"]["acked"].as_u64();
        let now = until("a count", SOON, acked);
        until(&format!("{more} more writes"), deadline, || (acked()? >= now + more).then_some(()));
    }

    /// The run goes on: some more writes are acked.
    pub fn goes_on(&self, mesh: &Mesh, at: usize) {
        self.goes_on_within(mesh, at, SOON);
    }

    /// The same where that takes its time.
    pub fn goes_on_within(&self, mesh: &Mesh, at: usize, deadline: Duration) {
        Self::await_more(mesh, at, STEP, deadline);
    }

    /// Stops it and waits for its account, which must be closed and add up.
    pub fn end(self, mesh: &Mesh, at: usize) -> Writes {
        let (run, writes) = self.account(mesh, at);
        assert_eq!(run["run"]["state"], "stopped", "{run}");
        writes
    }

    /// The same of a run that a host's account is missing of, which it must say by its name.
    pub fn end_without_account_of(self, mesh: &Mesh, at: usize, host: usize) -> Writes {
        let (run, writes) = self.account(mesh, at);
        assert_eq!(run["run"]["state"], "incomplete", "{run}");
        let notes = run["ledger"]["notes"].to_string();
        assert!(notes.contains(&format!("host-{} never closed its account", host + 1)), "{run}");
        writes
    }

    fn account(self, mesh: &Mesh, at: usize) -> (Value, Writes) {
        let run = until("the run's account", SOON, || {
            // It waits for the account; its exit code tells of that, and of a coordinator
            // that isn't there at the moment.
            mesh.ctl_at(at, &["run", "stop"]);
            show(mesh, at).filter(|run| run["ledger"].is_object())
        });
        assert_accounted(&run);
        let (figures, ledger) = (&run["run"], &run["ledger"]);
        let at = |entry: &Value| entry["server"].as_str().expect("a server").to_owned();
        let writes = Writes {
            acked: count(&figures["acked"]),
            failed: count(&figures["failed"]),
            unknown: count(&figures["unknown"]),
            lost: count(&ledger["lost"]),
            stored: ledger["dbsize"].as_i64().expect("a number"),
            lost_at: ledger["lost_at"].as_array().expect("a list").iter().map(at).collect(),
        };
        // More than was sent would be keys out of nothing.
        assert!(writes.stored <= (writes.acked + writes.unknown).cast_signed(), "{run}");
        (run, writes)
    }

    /// The same where nothing may be lost.
    pub fn end_without_loss(self, mesh: &Mesh, at: usize) -> Writes {
        let writes = self.end(mesh, at);
        assert_eq!(writes.lost, 0, "{writes:?}");
        assert!(writes.stored >= writes.acked.cast_signed(), "{writes:?}");
        writes
    }
}

/// `run show`, whose exit code tells of the ledger.
fn show(mesh: &Mesh, at: usize) -> Option<Value> {
    serde_json::from_slice(&mesh.ctl_at(at, &["-o", "json", "run", "show"]).stdout).ok()
}
