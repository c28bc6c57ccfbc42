//! A run's report: the one place that turns a run into text and JSON, for `run show`,
//! `run watch` and the demo alike.

use std::collections::HashMap;
use std::fmt::Write as _;

use redmesh_api::control::{Members, RunView};
use redmesh_api::ids::HostId;
use redmesh_api::run::{Counts, LatencySummary, Ledger, Outcome, RunStage, RunUntil};
use serde::Serialize;

use super::detail::DetailFigures;
use crate::members::{table, table_text};
use crate::session::Session;
use crate::units::{micros, rate, seconds, thousands, thousands_signed};

/// What hosts are called.
#[derive(Debug, Default)]
pub struct Names(HashMap<HostId, String>);

impl Names {
    /// As the mesh knows them; without an answer their ids have to do.
    pub async fn ask(session: &mut Session) -> Self {
        match session.members().await {
            Ok(view) => Self::of_members(&view),
            Err(_) => Self::default(),
        }
    }

    /// As `view` has them.
    pub fn of_members(view: &Members) -> Self {
        Self(view.members.iter().map(|member| (member.id, member.name.clone())).collect())
    }

    /// The host's name, or its id.
    pub fn of(&self, host: HostId) -> String {
        self.0.get(&host).cloned().unwrap_or_else(|| host.to_string())
    }
}

/// A report. Its JSON is the answer of `run show` and `run watch`.
#[derive(Debug, Serialize)]
pub struct RunReport {
    /// The figures.
    pub run: RunFigures,
    /// Held against the servers' own account; `None` while it goes on.
    pub ledger: Option<LedgerFigures>,
    /// Each load host's part.
    pub hosts: Vec<HostFigures>,
    /// What the hosts kept beside their counts, where it was asked for.
    pub detail: Option<DetailFigures>,
    #[serde(skip)]
    workload: String,
    #[serde(skip)]
    until: RunUntil,
    #[serde(skip)]
    asked: u64,
    #[serde(skip)]
    waiting_for: Option<String>,
}

/// A run in figures.
#[derive(Debug, Clone, Serialize)]
pub struct RunFigures {
    /// Its whole id.
    pub id: String,
    /// running, stopping, completed, stopped or incomplete.
    pub state: &'static str,
    /// Why it is incomplete.
    pub reason: Option<String>,
    /// Closed loops over the whole mesh.
    pub workers: u32,
    /// Hosts that bear them.
    pub load_hosts: usize,
    /// Writes given to a worker.
    pub issued: u64,
    /// Answered `+OK`.
    pub acked: u64,
    /// Refused for good.
    pub failed: u64,
    /// Sent, fate not known.
    pub unknown: u64,
    /// MOVED redirections followed. Not writes.
    pub moved: u64,
    /// Sent again after an answer that proves that nothing was written. Not writes.
    pub retried: u64,
    /// From the first issue to the last answer.
    pub seconds: f64,
    /// Acked writes by those seconds.
    pub writes_per_s: f64,
    /// Service times, closed loop.
    pub latency_us: Option<LatencyFigures>,
    /// CPU time of the load threads.
    pub client_cpu_s: f64,
    /// CPU time of the servers meanwhile; `None` while it goes on.
    pub server_cpu_s: Option<f64>,
}

/// Service times in microseconds.
#[derive(Debug, Clone, Copy, Serialize)]
#[allow(missing_docs)]
pub struct LatencyFigures {
    pub p50: u64,
    pub p90: u64,
    pub p99: u64,
    pub p999: u64,
    pub max: u64,
}

/// The clients' account against the servers'.
#[derive(Debug, Clone, Serialize)]
pub struct LedgerFigures {
    /// By how much all primaries' `DBSIZE` grew.
    pub dbsize: i64,
    /// By how much their `cmdstat_set` calls grew.
    pub cmdstat_set_calls: i64,
    /// Acked writes that the servers don't hold.
    pub lost: u64,
    /// Closed, and nothing lost.
    pub ok: bool,
    /// What else has to be known.
    pub notes: Vec<String>,
}

/// One host's part.
#[derive(Debug, Clone, Serialize)]
#[allow(missing_docs)]
pub struct HostFigures {
    pub host: String,
    pub workers: u32,
    pub issued: u64,
    pub acked: u64,
    pub failed: u64,
    pub unknown: u64,
    pub writes_per_s: f64,
}

impl RunReport {
    /// The report of a run as it stands.
    pub fn of(view: &RunView, names: &Names) -> Self {
        let run = &view.run;
        let result = run.result.as_ref();
        // A closed account is the result's; gossip's view of it may lag behind.
        let tallies = result.map_or(&view.tallies, |result| &result.tallies);
        let sum = |of: &dyn Fn(HostId) -> bool| {
            tallies
                .iter()
                .filter(|tally| of(tally.host))
                .fold(Counts::default(), |sum, tally| sum.plus(tally.counts))
        };
        let total = sum(&|_| true);
        let over = |counts: &Counts| match counts.active_us {
            0 => 0.0,
            us => counts.acked as f64 * 1e6 / us as f64,
        };
        let hosts = run.shares.iter().enumerate().map(|(at, share)| {
            let counts = sum(&|host| host == share.host);
            let live = view.host_writes_per_s.get(at).copied().unwrap_or(0.0);
            HostFigures {
                host: names.of(share.host),
                workers: share.workers,
                issued: counts.issued,
                acked: counts.acked,
                failed: counts.failed,
                unknown: counts.unknown,
                writes_per_s: if result.is_some() { over(&counts) } else { live },
            }
        });
        let (state, reason) = match (run.stage, result.map(|result| &result.outcome)) {
            (_, Some(Outcome::Completed)) => ("completed", None),
            (_, Some(Outcome::Stopped)) => ("stopped", None),
            (_, Some(Outcome::Incomplete(reason))) => ("incomplete", Some(reason.clone())),
            (RunStage::Running, None) => ("running", None),
            (RunStage::Stopping | RunStage::Done, None) => ("stopping", None),
        };
        let latency =
            result.map(|result| result.latency).or(view.latency).filter(|latency| latency.count > 0);
        Self {
            run: RunFigures {
                id: run.id.0.to_string(),
                state,
                reason,
                workers: run.spec.workers,
                load_hosts: run.shares.len(),
                issued: total.issued,
                acked: total.acked,
                failed: total.failed,
                unknown: total.unknown,
                moved: total.moved,
                retried: total.retried,
                seconds: total.active_us as f64 / 1e6,
                writes_per_s: if result.is_some() { over(&total) } else { view.writes_per_s },
                latency_us: latency.map(LatencyFigures::from),
                client_cpu_s: total.cpu_us as f64 / 1e6,
                server_cpu_s: result.map(|result| result.server_cpu_us as f64 / 1e6),
            },
            ledger: result.map(|result| LedgerFigures::from(&result.ledger)),
            hosts: hosts.collect(),
            detail: None,
            workload: run.spec.workload.clone(),
            until: run.spec.until,
            asked: total.asked,
            waiting_for: view.waiting_for.clone(),
        }
    }

    /// The same with what the hosts kept.
    pub fn with_detail(self, detail: DetailFigures) -> Self {
        Self { detail: Some(detail), ..self }
    }

    /// Whether the account is closed and whole.
    pub fn is_ok(&self) -> bool {
        self.ledger.as_ref().is_some_and(|ledger| ledger.ok) && self.run.state != "incomplete"
    }

    /// The report for people.
    pub fn text(&self) -> String {
        let mut text = String::new();
        // Writing into a String can't fail.
        let _ = self.write(&mut text);
        text
    }

    fn write(&self, to: &mut String) -> std::fmt::Result {
        let run = &self.run;
        let until = match self.until {
            RunUntil::Writes(writes) => format!("{} writes", thousands(writes)),
            RunUntil::Seconds(s) => format!("{s} s"),
        };
        writeln!(
            to,
            "run {}  {}, {} workers on {} hosts, {until}: {}",
            &run.id.get(..8).unwrap_or(&run.id),
            self.workload,
            thousands(run.workers.into()),
            self.hosts.len(),
            run.state,
        )?;
        if let Some(reason) = &run.reason {
            writeln!(to, "            {reason}")?;
        }
        let in_flight = run.issued.saturating_sub(run.acked + run.failed + run.unknown);
        write!(
            to,
            "writes      {} issued = {} acked + {} failed + {} unknown",
            thousands(run.issued),
            thousands(run.acked),
            thousands(run.failed),
            thousands(run.unknown)
        )?;
        if in_flight > 0 {
            write!(to, " + {} in flight", thousands(in_flight))?;
        }
        writeln!(
            to,
            "\n            besides {} moved, {} asked, {} retried (not writes)",
            thousands(run.moved),
            thousands(self.asked),
            thousands(run.retried)
        )?;
        writeln!(to, "rate        {} writes/s over {}", rate(run.writes_per_s), seconds(run.seconds))?;
        match &run.latency_us {
            Some(l) => writeln!(
                to,
                "latency     p50 {}  p90 {}  p99 {}  p99.9 {}  max {}  (service time, closed loop)",
                micros(l.p50),
                micros(l.p90),
                micros(l.p99),
                micros(l.p999),
                micros(l.max)
            )?,
            None => writeln!(to, "latency     not known")?,
        }
        let per_write = |cpu_s: f64| match run.acked {
            0 => "-".to_owned(),
            acked => format!("{:.2} µs", cpu_s * 1e6 / acked as f64),
        };
        write!(
            to,
            "cpu         client {} ({} a write)",
            seconds(run.client_cpu_s),
            per_write(run.client_cpu_s)
        )?;
        match run.server_cpu_s {
            Some(s) => writeln!(to, ", servers {} ({} a write)", seconds(s), per_write(s))?,
            None => writeln!(to)?,
        }
        match &self.ledger {
            Some(ledger) => {
                let verdict = if ledger.ok { "OK" } else { "NOT OK" };
                writeln!(
                    to,
                    "ledger      {verdict}: {} acked, DBSIZE {}, cmdstat_set {}, {} lost",
                    thousands(run.acked),
                    thousands_signed(ledger.dbsize),
                    thousands_signed(ledger.cmdstat_set_calls),
                    thousands(ledger.lost)
                )?;
                ledger.notes.iter().try_for_each(|note| writeln!(to, "            {note}"))?;
            }
            None => writeln!(to, "ledger      open until the run is done")?,
        }
        for (heading, line) in self.detail.iter().flat_map(DetailFigures::lines) {
            writeln!(to, "{heading:<12}{line}")?;
        }
        if let Some(waiting) = &self.waiting_for {
            writeln!(to, "waiting for {waiting}")?;
        }
        writeln!(to)?;
        to.push_str(&self.host_table());
        Ok(())
    }

    fn host_table(&self) -> String {
        let mut rows = table(&["HOST", "WORKERS", "ISSUED", "ACKED", "FAILED", "UNKNOWN", "WRITES/S"]);
        for host in &self.hosts {
            rows.add_row([
                host.host.clone(),
                thousands(host.workers.into()),
                thousands(host.issued),
                thousands(host.acked),
                thousands(host.failed),
                thousands(host.unknown),
                rate(host.writes_per_s),
            ]);
        }
        for column in rows.column_iter_mut().skip(1) {
            column.set_cell_alignment(comfy_table::CellAlignment::Right);
        }
        table_text(&rows)
    }
}

impl From<LatencySummary> for LatencyFigures {
    fn from(l: LatencySummary) -> Self {
        Self { p50: l.p50_us, p90: l.p90_us, p99: l.p99_us, p999: l.p999_us, max: l.max_us }
    }
}

impl From<&Ledger> for LedgerFigures {
    fn from(ledger: &Ledger) -> Self {
        Self {
            dbsize: ledger.dbsize,
            cmdstat_set_calls: ledger.cmdstat_set_calls,
            lost: ledger.lost,
            ok: ledger.ok,
            notes: ledger.notes.clone(),
        }
    }
}

#[cfg(test)]
pub mod tests;
