//! A report in words.

use std::fmt::Write as _;

use redmesh_api::run::{Job, ReadBack, RunUntil};

use super::{AtServer, LatencyFigures, LedgerFigures, LimitBy, Noun, RunReport};
use crate::members::{table, table_text};
use crate::units::{micros, rate, seconds, thousands, thousands_signed};

impl RunReport {
    /// The report for people.
    pub fn text(&self) -> String {
        let mut text = String::new();
        // Writing into a String can't fail.
        let _ = self.write(&mut text);
        text
    }

    fn noun(&self) -> Noun {
        Noun::of(&self.spec.job)
    }

    fn write(&self, to: &mut String) -> std::fmt::Result {
        self.write_heading(to)?;
        self.write_counts(to)?;
        self.write_rate(to)?;
        self.write_latency(to)?;
        self.write_cpu(to)?;
        self.write_limit(to)?;
        self.write_takeovers(to)?;
        match &self.ledger {
            Some(ledger) => self.write_ledger(ledger, to)?,
            None => writeln!(to, "ledger      open until the run is done")?,
        }
        for (heading, line) in self.detail.iter().flat_map(|detail| detail.lines(self.noun())) {
            writeln!(to, "{heading:<12}{line}")?;
        }
        if matches!(self.spec.job, Job::ReadBack(_)) && self.ledger.is_some() {
            self.write_verdict(to)?;
        }
        if let Some(waiting) = &self.waiting_for {
            writeln!(to, "waiting for {waiting}")?;
        }
        writeln!(to)?;
        to.push_str(&self.host_table());
        Ok(())
    }

    fn write_heading(&self, to: &mut String) -> std::fmt::Result {
        let run = &self.run;
        write!(to, "run {}  ", run.id.get(..8).unwrap_or(&run.id))?;
        match &self.spec.job {
            Job::Load(workload) => write!(to, "{}", workload.name)?,
            Job::ReadBack(ReadBack { of, per_million: ReadBack::ALL.., .. }) => {
                write!(to, "verify of {of}, all keys")?;
            }
            Job::ReadBack(ReadBack { of, per_million, .. }) => {
                let sample = thousands(u64::from(*per_million));
                write!(to, "verify of {of}, about {sample} of each 1,000,000 keys")?;
            }
        }
        write!(to, ", {} workers", thousands(run.workers.into()))?;
        if run.pipeline > 1 {
            write!(to, " with {} outstanding each", run.pipeline)?;
        }
        write!(to, " on {} hosts, ", self.hosts.len())?;
        match run.schedule_per_s {
            Some(per_s) => write!(to, "open loop at {}/s", thousands(per_s))?,
            None => write!(to, "closed loop")?,
        }
        // A read-back ends with the keys.
        match (&self.spec.job, self.spec.until) {
            (Job::ReadBack(_), _) => {}
            (_, RunUntil::Writes(count)) => write!(to, ", {} {}", thousands(count), self.noun().many)?,
            (_, RunUntil::Seconds(s)) => write!(to, ", {s} s")?,
        }
        writeln!(to, ": {}", run.state)?;
        run.reason.iter().try_for_each(|reason| writeln!(to, "            {reason}"))
    }

    fn write_counts(&self, to: &mut String) -> std::fmt::Result {
        let run = &self.run;
        write!(
            to,
            "{:<12}{} issued = {} acked + {} failed + {} unknown",
            self.noun().many,
            thousands(run.issued),
            thousands(run.acked),
            thousands(run.failed),
            thousands(run.unknown)
        )?;
        let in_flight = run.issued.saturating_sub(run.acked + run.failed + run.unknown);
        if in_flight > 0 {
            write!(to, " + {} in flight", thousands(in_flight))?;
        }
        write!(
            to,
            "\n            besides {} moved, {} asked, {} retried (not {})",
            thousands(run.moved),
            thousands(run.asked),
            thousands(run.retried),
            self.noun().many
        )?;
        // What a read-back doesn't find is among its findings.
        if self.noun() == Noun::OPERATIONS {
            write!(to, "; {} reads found no key", thousands(run.missed))?;
        }
        writeln!(to)
    }

    fn write_rate(&self, to: &mut String) -> std::fmt::Result {
        let run = &self.run;
        let measured = seconds((run.seconds - run.warm_up_seconds).max(0.0));
        let many = self.noun().many;
        write!(to, "rate        {} {many}/s over {measured}", rate(run.writes_per_s))?;
        if run.warm_up_seconds > 0.0 {
            write!(to, " after {} of warm-up", seconds(run.warm_up_seconds))?;
        }
        if let Some(asked) = run.schedule_per_s {
            write!(to, "; asked {}/s", thousands(asked))?;
        }
        if let Some(held) = run.held_percent {
            write!(to, ", held {held:.2} %")?;
        }
        writeln!(to)?;
        match self.detail.as_ref().and_then(|detail| detail.behind) {
            Some(behind @ 1..) => {
                writeln!(
                    to,
                    "            {} {many} were never begun: their time had come and no worker was free",
                    thousands(behind)
                )
            }
            _ => Ok(()),
        }
    }

    fn write_latency(&self, to: &mut String) -> std::fmt::Result {
        let run = &self.run;
        match (&run.latency_us, run.schedule_per_s) {
            (None, _) => writeln!(to, "latency     not known"),
            (Some(service), None) => {
                writeln!(to, "latency     {}  (service time, closed loop)", percentiles(service))
            }
            (Some(service), Some(_)) => {
                let mut heading = "latency     ";
                if let Some(intended) = &run.intended_us {
                    writeln!(to, "{heading}{}  (from the intended begin)", percentiles(intended))?;
                    heading = "            ";
                }
                writeln!(to, "{heading}{}  (service time)", percentiles(service))
            }
        }
    }

    fn write_cpu(&self, to: &mut String) -> std::fmt::Result {
        let run = &self.run;
        let noun = self.noun();
        let each = |cpu_s: f64| match run.acked {
            0 => "-".to_owned(),
            acked => format!("{:.2} µs", cpu_s * 1e6 / acked as f64),
        };
        let client = seconds(run.client_cpu_s);
        write!(to, "cpu         client {client} ({} {})", each(run.client_cpu_s), noun.a)?;
        match run.server_cpu_s {
            Some(s) => writeln!(to, ", servers {} ({} {})", seconds(s), each(s), noun.a),
            None => writeln!(to),
        }
    }

    fn write_limit(&self, to: &mut String) -> std::fmt::Result {
        let Some(limit) = &self.limit else { return Ok(()) };
        let busy = format!("load threads were busy {:.0} % of the time", limit.client_busy_percent);
        let remedy = "try --threads-per-host or more --load-hosts";
        match (limit.by, self.run.schedule_per_s) {
            (LimitBy::Client, _) => writeln!(to, "limit       the client: {busy}; {remedy}"),
            (LimitBy::Servers, None) => writeln!(to, "limit       the servers ({busy})"),
            // A schedule may also outrun what workers may have outstanding.
            (LimitBy::Servers, Some(_)) => {
                writeln!(to, "limit       the servers, or too few workers for the schedule ({busy})")
            }
            (LimitBy::Schedule, _) => writeln!(to, "limit       neither: the schedule ({busy})"),
        }
    }

    fn write_takeovers(&self, to: &mut String) -> std::fmt::Result {
        for takeover in &self.takeovers {
            write!(to, "taken over  {}'s rest, ", takeover.from)?;
            if let Some(writes) = takeover.writes {
                write!(to, "{} {}, ", thousands(writes), self.noun().many)?;
            }
            writeln!(to, "by {}", takeover.by.join(", "))?;
        }
        Ok(())
    }

    fn write_ledger(&self, ledger: &LedgerFigures, to: &mut String) -> std::fmt::Result {
        let verdict = if ledger.ok { "OK" } else { "NOT OK" };
        write!(to, "ledger      {verdict}: {} acked", thousands(self.run.acked))?;
        match &self.spec.job {
            // Keys tell of every write whether it is there.
            Job::Load(workload) if workload.counts_by_keys() => write!(
                to,
                ", DBSIZE {}, cmdstat_set {}, {} lost",
                thousands_signed(ledger.dbsize),
                thousands_signed(ledger.calls),
                thousands(ledger.lost)
            )?,
            _ => {
                write!(to, ", {} calls at the servers", thousands_signed(ledger.calls))?;
                if ledger.lost > 0 {
                    write!(to, ", {} lost", thousands(ledger.lost))?;
                }
            }
        }
        writeln!(to)?;
        if !ledger.lost_at.is_empty() {
            writeln!(to, "            lost with a server's memory: {}", at_servers(&ledger.lost_at))?;
        }
        ledger.notes.iter().try_for_each(|note| writeln!(to, "            {note}"))
    }

    fn write_verdict(&self, to: &mut String) -> std::fmt::Result {
        let run = &self.run;
        let findings = self.detail.as_ref().and_then(|detail| detail.findings.as_ref());
        write!(to, "verdict     ")?;
        match findings {
            _ if self.is_ok() => {
                writeln!(to, "OK: every acked write that was read back holds what was written")
            }
            None => writeln!(to, "NOT OK: no host kept what was found"),
            Some(findings) if findings.lost > 0 || findings.wrong > 0 => {
                writeln!(to, "NOT OK: {} lost, {} wrong", thousands(findings.lost), thousands(findings.wrong))
            }
            Some(_) if run.failed > 0 || run.unknown > 0 => {
                writeln!(
                    to,
                    "NOT OK: {} keys could not be read: try again",
                    thousands(run.failed + run.unknown)
                )
            }
            Some(_) => {
                writeln!(to, "NOT OK: not all hosts have told what they found; the lines above say why")
            }
        }
    }

    fn host_table(&self) -> String {
        let per_s = format!("{}/S", self.noun().many.to_uppercase());
        let mut rows = table(&["HOST", "WORKERS", "ISSUED", "ACKED", "FAILED", "UNKNOWN", &per_s]);
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

fn percentiles(l: &LatencyFigures) -> String {
    let [p50, p90, p99, p999, max] = [l.p50, l.p90, l.p99, l.p999, l.max].map(micros);
    format!("p50 {p50}  p90 {p90}  p99 {p99}  p99.9 {p999}  max {max}")
}

/// Writes by server, as one line.
pub fn at_servers(writes: &[AtServer]) -> String {
    let each = writes.iter().map(|at| format!("{} {}", at.server, thousands(at.writes)));
    each.collect::<Vec<_>>().join(", ")
}
