//! Medians side by side.

use std::fmt::Write as _;

use redmesh_benches::figures::median;
use redmesh_benches::machine::cores;

use super::contender::{Contender, Latency, Sample};

/// A contender and its turns.
#[derive(Debug)]
pub struct Row {
    /// Who.
    pub contender: Contender,
    /// One a round.
    pub samples: Vec<Sample>,
}

impl Row {
    /// No turn yet.
    pub fn new(contender: Contender) -> Self {
        Self { contender, samples: Vec::new() }
    }

    fn median(&self, of: impl Fn(&Sample) -> f64) -> f64 {
        median(self.samples.iter().map(of).collect())
    }

    /// Writes a second; `None` before its first turn.
    pub fn rate(&self) -> Option<f64> {
        (!self.samples.is_empty()).then(|| self.median(Sample::rate))
    }
}

/// The table for people and for documents (it is Markdown).
pub fn render(title: &str, rounds: u16, seconds: u32, rows: &[Row]) -> String {
    // The rival that does what our workers do: 2000 clients, one outstanding write each.
    let base = rows
        .iter()
        .find(|row| matches!(row.contender, Contender::RedisBenchmark { clients: 2000, pipeline: 1 }))
        .and_then(Row::rate)
        .unwrap_or(f64::NAN);
    let mut text = format!("{title}; medians of {rounds} turns of about {seconds} s, taken alternately\n\n");
    text.push_str(
        "| contender | writes/s | lowest..highest | client µs/write | server µs/write | p50/p99/p99.9 ms | cores busy | ratio |\n\
         |---|--:|--:|--:|--:|--:|--:|--:|\n",
    );
    for row in rows {
        let rates = || row.samples.iter().map(Sample::rate);
        let (low, high) = (rates().fold(f64::INFINITY, f64::min), rates().fold(0.0, f64::max));
        let latency =
            |of: fn(&Latency) -> Option<f64>| match row.median(|s| of(&s.latency).unwrap_or(f64::NAN)) {
                us if us.is_nan() => "–".to_owned(),
                us => format!("{:.1}", us / 1000.0),
            };
        let rate = row.rate().unwrap_or(f64::NAN);
        let busy = row.median(|s| (s.client_cpu_s + s.server_cpu_s) / s.seconds);
        // Writing into a String can't fail.
        let _ = writeln!(
            text,
            "| {} | {} | {}..{} | {:.2} | {:.2} | {}/{}/{} | {busy:.1} of {} | {:.1} |",
            row.contender,
            thousand(rate),
            thousand(low),
            thousand(high),
            row.median(Sample::client_us),
            row.median(Sample::server_us),
            latency(|l| l.p50_us),
            latency(|l| l.p99_us),
            latency(|l| l.p999_us),
            cores(),
            rate / base,
        );
    }
    text.push('\n');
    for row in rows {
        let _ = match row.contender {
            Contender::Redmesh { load_hosts: None, .. } => writeln!(text, "{}", server_limit(row)),
            Contender::OpenLoop { .. } => writeln!(text, "{}", held(row)),
            _ => Ok(()),
        };
    }
    text
}

/// How close it is to what the servers alone could do, if the client cost nothing.
fn server_limit(row: &Row) -> String {
    let limit = cores() as f64 * 1e6 / row.median(Sample::server_us);
    let rate = row.rate().unwrap_or(f64::NAN);
    format!(
        "These servers could execute {} writes/s at most if the client cost nothing; redmesh reached {:.0} % of it.",
        thousand(limit),
        100.0 * rate / limit
    )
}

/// How well the schedule was kept.
fn held(row: &Row) -> String {
    let off = row.median(|s| s.asked.map_or(f64::NAN, |asked| 100.0 * (s.rate() - asked) / asked));
    let asked = row.median(|s| s.asked.unwrap_or(f64::NAN));
    format!(
        "By schedule {} writes/s were asked for and kept to within {off:+.2} %; its latencies count from the intended begin.",
        thousand(asked)
    )
}

fn thousand(rate: f64) -> String {
    format!("{:.0}k", rate / 1000.0)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ratios_are_to_two_thousand_closed_loops() {
        let row = |contender, writes| {
            let latency = Latency { p50_us: Some(1000.0), ..Latency::default() };
            let (client_cpu_s, server_cpu_s) = (0.5, 1.5);
            let asked = Some(510_000.0);
            let sample = Sample { writes, seconds: 2.0, client_cpu_s, server_cpu_s, latency, asked };
            Row { contender, samples: vec![sample] }
        };
        let rows = [
            row(Contender::Redmesh { workers: 2000, load_hosts: None }, 1_000_000),
            row(Contender::RedisBenchmark { clients: 2000, pipeline: 1 }, 100_000),
            row(Contender::OpenLoop { workers: 2000 }, 1_000_000),
        ];
        let text = render("30 instances", 1, 2, &rows);
        assert!(
            text.contains("| redmesh, 2000 workers | 500k | 500k..500k | 0.50 | 1.50 | 1.0/–/– |"),
            "{text}"
        );
        assert!(
            text.contains("By schedule 510k writes/s were asked for and kept to within -1.96 %"),
            "{text}"
        );
        assert!(text.contains("| 10.0 |") && text.contains("| 1.0 |"), "{text}");
    }
}
