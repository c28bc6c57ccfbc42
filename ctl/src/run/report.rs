//! A run's report: the one place that turns a run into figures (and JSON, which is
//! those), for `run show`, `run watch` and the demo alike; `text` puts them into words.

mod account;
pub mod text;

use std::collections::HashMap;
use std::net::SocketAddr;

use redmesh_api::control::{Members, RunView};
use redmesh_api::ids::HostId;
use redmesh_api::run::{Job, LatencySummary, Ledger, Outcome, RunSpec, RunStage};
use serde::Serialize;

pub use self::account::{Account, Noun};
use super::detail::DetailFigures;
use crate::session::Session;

/// An open loop whose rate is at least this much of its schedule's has held it, percent.
const HELD_PERCENT_MIN: f64 = 99.0;

/// Load threads that are busy for at least so much of the time can't do more, percent.
const BUSY_PERCENT_MIN: f64 = 90.0;

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
    /// What was asked.
    pub spec: RunSpec,
    /// The figures.
    pub run: RunFigures,
    /// Held against the servers' own account; `None` while it goes on.
    pub ledger: Option<LedgerFigures>,
    /// Each load host's part.
    pub hosts: Vec<HostFigures>,
    /// Shares of lost hosts that others have taken over.
    pub takeovers: Vec<Takeover>,
    /// What kept it from being faster, where that was measured.
    pub limit: Option<Limit>,
    /// What the hosts kept beside their counts, where it was asked for.
    pub detail: Option<DetailFigures>,
    #[serde(skip)]
    waiting_for: Option<String>,
}

/// A run in figures. What is counted are operations, whatever the workload.
#[derive(Debug, Clone, Serialize)]
pub struct RunFigures {
    /// Its whole id.
    pub id: String,
    /// What the workload is called, or "verify".
    pub workload: String,
    /// running, stopping, completed, stopped or incomplete.
    pub state: &'static str,
    /// Why it is incomplete.
    pub reason: Option<String>,
    /// Workers over the whole mesh.
    pub workers: u32,
    /// Operations that each has outstanding.
    pub pipeline: u16,
    /// Hosts that bear them.
    pub load_hosts: usize,
    /// Given to a worker.
    pub issued: u64,
    /// Answered as they should be.
    pub acked: u64,
    /// Refused for good.
    pub failed: u64,
    /// Sent, fate not known.
    pub unknown: u64,
    /// Of `acked`, reads that found no key.
    pub missed: u64,
    /// MOVED redirections followed. Not operations.
    pub moved: u64,
    /// ASK redirections followed. Not operations.
    pub asked: u64,
    /// Sent again after an answer that proves that nothing was done. Not operations.
    pub retried: u64,
    /// From the first issue to the last answer.
    pub seconds: f64,
    /// Of those, what was warm-up: kept out of rate and latencies.
    pub warm_up_seconds: f64,
    /// Acked after warm-up by those seconds; while it goes on, lately.
    pub writes_per_s: f64,
    /// Open loop: what the schedule asks for.
    pub schedule_per_s: Option<u64>,
    /// Open loop: how much of that was reached after warm-up.
    pub held_percent: Option<f64>,
    /// Service times.
    pub latency_us: Option<LatencyFigures>,
    /// Open loop: times from the intended begin.
    pub intended_us: Option<LatencyFigures>,
    /// CPU time of the load threads.
    pub client_cpu_s: f64,
    /// CPU time of the servers meanwhile; `None` while it goes on.
    pub server_cpu_s: Option<f64>,
}

/// Times until the answer in microseconds.
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
    /// By how much their calls of the commands that load consists of grew.
    pub calls: i64,
    /// Acked writes that the servers don't hold.
    pub lost: u64,
    /// Servers that restarted with less than they had acked.
    pub lost_at: Vec<AtServer>,
    /// Closed, and nothing lost.
    pub ok: bool,
    /// What else has to be known.
    pub notes: Vec<String>,
}

/// Writes at one server.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct AtServer {
    /// Its address.
    pub server: SocketAddr,
    /// How many.
    pub writes: u64,
}

impl From<&(SocketAddr, u64)> for AtServer {
    fn from((server, writes): &(SocketAddr, u64)) -> Self {
        Self { server: *server, writes: *writes }
    }
}

/// One host's part, over all its shares.
#[derive(Debug, Clone, Serialize)]
#[allow(missing_docs)]
pub struct HostFigures {
    pub host: String,
    pub workers: u32,
    pub issued: u64,
    pub acked: u64,
    pub failed: u64,
    pub unknown: u64,
    pub missed: u64,
    pub writes_per_s: f64,
}

/// The rest of a lost host's share.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Takeover {
    /// Whose.
    pub from: String,
    /// Operations that were left of it, where the run is bounded by them.
    pub writes: Option<u64>,
    /// Who took it over.
    pub by: Vec<String>,
}

/// What kept a run from being faster.
#[derive(Debug, Clone, Copy, PartialEq, Serialize)]
pub struct Limit {
    /// Which it was.
    pub by: LimitBy,
    /// How much of the time load threads were busy, percent.
    pub client_busy_percent: f64,
}

/// Who sets the limit.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum LimitBy {
    /// The load threads.
    Client,
    /// Answers don't come faster.
    Servers,
    /// An open loop was asked for no more.
    Schedule,
}

impl RunReport {
    /// The report of a run as it stands.
    pub fn of(view: &RunView, names: &Names) -> Self {
        let run = &view.run;
        let result = run.result.as_ref();
        let account = Account::of(view);
        let total = account.total();
        let hosts = account.hosts();
        let host_figures = |host: HostId| {
            let counts = account.of_host(host);
            HostFigures {
                host: names.of(host),
                workers: account.workers_of(host),
                issued: counts.issued,
                acked: counts.acked,
                failed: counts.failed,
                unknown: counts.unknown,
                missed: counts.missed,
                writes_per_s: if result.is_some() { counts.per_second() } else { account.lately(host) },
            }
        };
        let (state, reason) = match (run.stage, result.map(|result| &result.outcome)) {
            (_, Some(Outcome::Completed)) => ("completed", None),
            (_, Some(Outcome::Stopped)) => ("stopped", None),
            (_, Some(Outcome::Incomplete(reason))) => ("incomplete", Some(reason.clone())),
            (RunStage::Running, None) => ("running", None),
            (RunStage::Stopping | RunStage::Done, None) => ("stopping", None),
        };
        let known = |latency: Option<LatencySummary>| {
            latency.filter(|latency| latency.count > 0).map(LatencyFigures::from)
        };
        let takeovers = account.rests().into_iter().map(|(lost, takers)| Takeover {
            from: names.of(lost.host),
            writes: takers.iter().map(|share| share.writes).sum(),
            by: takers.iter().map(|share| names.of(share.host)).collect(),
        });
        Self {
            run: RunFigures {
                id: run.id.0.to_string(),
                workload: run.spec.job.name().to_owned(),
                state,
                reason,
                workers: account.workers(),
                pipeline: run.spec.pipeline,
                load_hosts: hosts.len(),
                issued: total.issued,
                acked: total.acked,
                failed: total.failed,
                unknown: total.unknown,
                missed: total.missed,
                moved: total.moved,
                asked: total.asked,
                retried: total.retried,
                seconds: total.active_us as f64 / 1e6,
                warm_up_seconds: total.warm_us as f64 / 1e6,
                writes_per_s: if result.is_some() { total.per_second() } else { view.writes_per_s },
                schedule_per_s: run.spec.rate,
                held_percent: account::held_percent(&run.spec, &total),
                latency_us: known(result.map(|result| result.latency).or(view.latency)),
                intended_us: known(result.map_or(view.intended, |result| result.intended)),
                client_cpu_s: total.cpu_us as f64 / 1e6,
                server_cpu_s: result.map(|result| result.server_cpu_us as f64 / 1e6),
            },
            ledger: result.map(|result| LedgerFigures::from(&result.ledger)),
            hosts: hosts.into_iter().map(host_figures).collect(),
            takeovers: takeovers.collect(),
            limit: None,
            detail: None,
            spec: run.spec.clone(),
            waiting_for: view.waiting_for.clone(),
        }
    }

    /// The same with what the hosts kept.
    pub fn with_detail(self, detail: DetailFigures) -> Self {
        let limit = detail.client_busy_percent.map(|client_busy_percent| Limit {
            by: match self.run.held_percent {
                Some(held) if held >= HELD_PERCENT_MIN => LimitBy::Schedule,
                _ if client_busy_percent >= BUSY_PERCENT_MIN => LimitBy::Client,
                _ => LimitBy::Servers,
            },
            client_busy_percent,
        });
        Self { limit, detail: Some(detail), ..self }
    }

    /// Whether the account is closed and whole; of a read-back also whether every key was
    /// read and held what was written, which only its detail tells.
    pub fn is_ok(&self) -> bool {
        let whole = self.ledger.as_ref().is_some_and(|ledger| ledger.ok) && self.run.state != "incomplete";
        match self.spec.job {
            Job::Load(_) => whole,
            Job::ReadBack(_) => whole && self.is_all_there(),
        }
    }

    /// Whether what was read back could be read and is right.
    fn is_all_there(&self) -> bool {
        let read = self.run.failed == 0 && self.run.unknown == 0;
        let found = self.detail.as_ref().filter(|detail| detail.missing.is_empty());
        let findings = found.and_then(|detail| detail.findings.as_ref());
        read && findings.is_some_and(|findings| findings.lost == 0 && findings.wrong == 0)
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
            calls: ledger.calls,
            lost: ledger.lost,
            lost_at: ledger.lost_at.iter().map(AtServer::from).collect(),
            ok: ledger.ok,
            notes: ledger.notes.clone(),
        }
    }
}

#[cfg(test)]
pub mod tests;
