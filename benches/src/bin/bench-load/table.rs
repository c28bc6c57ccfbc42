//! Medians side by side.

use std::fmt::Write as _;

use super::contender::{Contender, Sample};
use super::machine::cores;

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

    fn rate(&self) -> f64 {
        self.median(Sample::rate)
    }
}

/// Of the middle two the mean.
fn median(mut values: Vec<f64>) -> f64 {
    values.sort_by(f64::total_cmp);
    match values.len() {
        0 => f64::NAN,
        odd if odd % 2 == 1 => values[odd / 2],
        even => (values[even / 2 - 1] + values[even / 2]) / 2.0,
    }
}

/// The table for people and for documents (it is Markdown).
pub fn render(title: &str, rounds: u16, seconds: u32, rows: &[Row]) -> String {
    // The rival that does what our workers do: 2000 clients, one outstanding write each.
    let base = rows
        .iter()
        .find(|row| matches!(row.contender, Contender::RedisBenchmark { clients: 2000, pipeline: 1 }))
        .map_or(f64::NAN, Row::rate);
    let mut text = format!("{title}; medians of {rounds} turns of about {seconds} s, taken alternately\n\n");
    text.push_str(
        "| contender | writes/s | lowest..highest | client µs/write | server µs/write | p50/p99 ms | cores busy | ratio |\n\
         |---|--:|--:|--:|--:|--:|--:|--:|\n",
    );
    for row in rows {
        let rates = || row.samples.iter().map(Sample::rate);
        let (low, high) = (rates().fold(f64::INFINITY, f64::min), rates().fold(0.0, f64::max));
        let latency = |of: fn((f64, f64)) -> f64| row.median(|s| s.latency_us.map_or(f64::NAN, of) / 1000.0);
        let busy = row.median(|s| (s.client_cpu_s + s.server_cpu_s) / s.seconds);
        // Writing into a String can't fail.
        let _ = writeln!(
            text,
            "| {} | {} | {}..{} | {:.2} | {:.2} | {:.1}/{:.1} | {busy:.1} of {} | {:.1} |",
            row.contender,
            thousand(row.rate()),
            thousand(low),
            thousand(high),
            row.median(Sample::client_us),
            row.median(Sample::server_us),
            latency(|l| l.0),
            latency(|l| l.1),
            cores(),
            row.rate() / base,
        );
    }
    text
}

fn thousand(rate: f64) -> String {
    format!("{:.0}k", rate / 1000.0)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn medians_are_of_the_middle() {
        assert_eq!(median(vec![3.0, 1.0, 2.0]), 2.0);
        assert_eq!(median(vec![4.0, 1.0, 2.0, 3.0]), 2.5);
        assert!(median(Vec::new()).is_nan());
    }

    #[test]
    fn ratios_are_to_two_thousand_closed_loops() {
        let row = |contender, writes| {
            let sample =
                Sample { writes, seconds: 2.0, client_cpu_s: 0.5, server_cpu_s: 1.5, latency_us: None };
            Row { contender, samples: vec![sample] }
        };
        let rows = [
            row(Contender::Redmesh { workers: 2000, load_hosts: None }, 1_000_000),
            row(Contender::RedisBenchmark { clients: 2000, pipeline: 1 }, 100_000),
        ];
        let text = render("30 instances", 1, 2, &rows);
        assert!(text.contains("| redmesh, 2000 workers | 500k | 500k..500k | 0.50 | 1.50 |"), "{text}");
        assert!(text.contains("| 10.0 |") && text.contains("| 1.0 |"), "{text}");
    }
}
