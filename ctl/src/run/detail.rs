//! What a run's hosts kept beside its counts, put together: operations over time, start
//! skew, spreads, errors, findings. Pure; the report shows it.

use std::collections::{BTreeMap, HashMap};
use std::net::SocketAddr;

use redmesh_api::control::{RunDetail, RunView};
use redmesh_api::run::{Findings, RunResult, ShareDetail};
use serde::Serialize;

use super::report::text::at_servers;
use super::report::{AtServer, Noun};
use crate::units::{short, thousands};

/// Columns of the timeline's picture.
const PICTURE_COLUMNS: usize = 60;

/// Bars of the picture, lowest first.
const BARS: [char; 8] = ['▁', '▂', '▃', '▄', '▅', '▆', '▇', '█'];

/// Keys that a report of a read-back names.
const EXAMPLES_MAX: usize = 10;

/// Detail of a run, for JSON and text.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct DetailFigures {
    /// Between the first host's start and the last one's, by their own clocks.
    pub start_skew_ms: u64,
    /// Operations over time, all hosts together.
    pub timeline: Timeline,
    /// Operations acked to the slowest and the fastest worker.
    pub worker_writes: Option<Spread>,
    /// Executed operations of the least and the most loaded primary.
    pub instance_writes: Option<Spread>,
    /// Acked writes by the server that acked them.
    pub acked_by: Vec<AtServer>,
    /// Open loop: operations whose time had come and that were never begun.
    pub behind: Option<u64>,
    /// How much of the time load threads were busy, percent; `None` unless every host
    /// has told how many it had.
    pub client_busy_percent: Option<f64>,
    /// What a read-back has found.
    pub findings: Option<FindingsFigures>,
    /// Errors by kind, all hosts together.
    pub errors: Vec<ErrorFigures>,
    /// What could not be had, in words.
    pub missing: Vec<String>,
}

/// What was found of the keys that were read back, on all hosts.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize)]
pub struct FindingsFigures {
    /// Acked writes whose key holds what was written.
    pub right: u64,
    /// Acked writes whose key holds something else.
    pub wrong: u64,
    /// Acked writes whose key is not there.
    pub lost: u64,
    /// Writes of unknown fate that have arrived.
    pub arrived: u64,
    /// Writes of unknown fate that have not.
    pub not_arrived: u64,
    /// Lost ones by the server that should hold them.
    pub lost_at: Vec<AtServer>,
    /// A few keys that are lost or wrong.
    pub examples: Vec<String>,
}

impl FindingsFigures {
    /// All hosts' findings as one; `None` if nobody has any.
    fn merge(shares: &[ShareDetail]) -> Option<Self> {
        let findings: Vec<&Findings> = shares.iter().filter_map(|share| share.findings.as_ref()).collect();
        if findings.is_empty() {
            return None;
        }
        let sum = |of: fn(&Findings) -> u64| findings.iter().map(|found| of(found)).sum();
        let examples = findings.iter().flat_map(|found| found.examples.iter().cloned());
        Some(Self {
            right: sum(|found| found.right),
            wrong: sum(|found| found.wrong),
            lost: sum(|found| found.lost),
            arrived: sum(|found| found.arrived),
            not_arrived: sum(|found| found.not_arrived),
            lost_at: by_server(findings.iter().flat_map(|found| &found.lost_at)),
            examples: examples.take(EXAMPLES_MAX).collect(),
        })
    }

    fn lines(&self) -> Vec<(&'static str, String)> {
        let acked = self.right + self.wrong + self.lost;
        let [acked, right, wrong, lost] = [acked, self.right, self.wrong, self.lost].map(thousands);
        let mut lines =
            vec![("read back", format!("{acked} acked = {right} right + {wrong} wrong + {lost} lost"))];
        if self.arrived + self.not_arrived > 0 {
            let [arrived, not] = [self.arrived, self.not_arrived].map(thousands);
            lines.push(("", format!("of unknown fate: {arrived} have arrived, {not} have not")));
        }
        if !self.lost_at.is_empty() {
            lines.push(("", format!("lost at {}", at_servers(&self.lost_at))));
        }
        if !self.examples.is_empty() {
            lines.push(("", format!("lost or wrong, for example: {}", self.examples.join(", "))));
        }
        lines
    }
}

/// Counts of the same server together, in the order of addresses.
fn by_server<'a>(counts: impl Iterator<Item = &'a (SocketAddr, u64)>) -> Vec<AtServer> {
    let mut sums: BTreeMap<SocketAddr, u64> = BTreeMap::new();
    for (server, count) in counts {
        *sums.entry(*server).or_default() += count;
    }
    sums.iter().map(|(server, writes)| AtServer { server: *server, writes: *writes }).collect()
}

/// Acked operations per interval.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize)]
pub struct Timeline {
    /// Seconds that one entry stands for.
    pub resolution_s: u32,
    /// Acked operations in each interval.
    pub acked: Vec<u64>,
}

/// Least and most.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
pub struct Spread {
    /// Least.
    pub min: u64,
    /// Most.
    pub max: u64,
}

/// One kind of error.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct ErrorFigures {
    /// The server's error code, or what failed.
    pub kind: String,
    /// How often.
    pub count: u64,
    /// Its first message on some host.
    pub first: String,
}

impl Timeline {
    /// All shares' timelines on one axis that begins with the earliest start.
    pub fn merge(details: &[ShareDetail]) -> Self {
        let resolution_s = details.iter().map(|detail| detail.resolution_s.max(1)).max().unwrap_or(1);
        let start_ms = details.iter().map(|detail| detail.started_unix_ms).min().unwrap_or(0);
        let mut acked: Vec<u64> = Vec::new();
        for detail in details {
            let offset_s = (detail.started_unix_ms - start_ms) / 1000;
            for (at, writes) in (0_u64..).zip(&detail.acked) {
                let second = offset_s + at * u64::from(detail.resolution_s.max(1));
                let index = usize::try_from(second / u64::from(resolution_s)).unwrap_or(usize::MAX);
                // Clocks of different hosts may be days apart; a picture of that is no use.
                if index >= MERGED_POINTS_MAX {
                    continue;
                }
                if acked.len() <= index {
                    acked.resize(index + 1, 0);
                }
                acked[index] += writes;
            }
        }
        Self { resolution_s, acked }
    }

    /// Operations per second of each interval after warm-up but the first and the last,
    /// which are cut by the run's own begin and end.
    pub fn whole_rates(&self, warm_up_s: u32) -> Vec<f64> {
        let first = 1 + warm_up_s.div_ceil(self.resolution_s.max(1)) as usize;
        let inner = self.acked.get(first..self.acked.len().saturating_sub(1)).unwrap_or_default();
        inner.iter().map(|writes| *writes as f64 / f64::from(self.resolution_s)).collect()
    }

    fn picture(&self, noun: Noun) -> Option<String> {
        if self.acked.len() < 2 {
            return None;
        }
        let per_column = self.acked.len().div_ceil(PICTURE_COLUMNS);
        let columns: Vec<f64> = self
            .acked
            .chunks(per_column)
            .map(|chunk| chunk.iter().sum::<u64>() as f64 / chunk.len() as f64 / f64::from(self.resolution_s))
            .collect();
        let most = columns.iter().copied().fold(0.0, f64::max);
        let bars: String = columns
            .iter()
            .map(|rate| BARS[((rate / most.max(1.0)) * (BARS.len() - 1) as f64).round() as usize])
            .collect();
        let span_s = per_column as u64 * u64::from(self.resolution_s);
        Some(format!("{bars}  {span_s} s a column, at most {} {}/s", short(most), noun.many))
    }
}

/// Points of a merged timeline; twice of what one share keeps.
const MERGED_POINTS_MAX: usize = 14_400;

impl DetailFigures {
    /// All that the hosts kept, as one.
    pub fn of(detail: &RunDetail) -> Self {
        let shares = &detail.details;
        let starts = || first_starts(&detail.view, shares);
        let skew = starts().max().zip(starts().min()).map_or(0, |(last, first)| last - first);
        let spread = |min: Option<u64>, max: Option<u64>| Some(Spread { min: min?, max: max? });
        Self {
            start_skew_ms: skew,
            timeline: Timeline::merge(shares),
            worker_writes: spread(
                shares.iter().map(|share| share.worker_acked_min).min(),
                shares.iter().map(|share| share.worker_acked_max).max(),
            ),
            instance_writes: detail
                .view
                .run
                .result
                .as_ref()
                .and_then(|result| instance_spread(detail, result)),
            acked_by: by_server(shares.iter().flat_map(|share| &share.acked_by)),
            behind: detail.view.run.spec.rate.map(|_| shares.iter().map(|share| share.behind).sum()),
            client_busy_percent: busy_percent(&detail.view, shares),
            findings: FindingsFigures::merge(shares),
            errors: errors(shares),
            missing: detail.missing.clone(),
        }
    }

    /// Lines of the report, each under its heading.
    pub fn lines(&self, noun: Noun) -> Vec<(&'static str, String)> {
        let mut lines = self.findings.as_ref().map(FindingsFigures::lines).unwrap_or_default();
        if let Some(picture) = self.timeline.picture(noun) {
            lines.push(("timeline", picture));
        }
        let spread =
            |spread: &Spread| format!("{} to {} {}", thousands(spread.min), thousands(spread.max), noun.many);
        let mut spreads = Vec::new();
        if let Some(workers) = &self.worker_writes {
            spreads.push(format!("workers {}", spread(workers)));
        }
        if let Some(instances) = &self.instance_writes {
            spreads.push(format!("primaries {}", spread(instances)));
        }
        spreads.push(format!("hosts began within {} ms", self.start_skew_ms));
        lines.push(("spread", spreads.join(", ")));
        for error in &self.errors {
            let text = format!("{} × {} (first: {})", thousands(error.count), error.kind, error.first);
            lines.push(("errors", text));
        }
        lines.extend(self.missing.iter().map(|words| ("missing", words.clone())));
        lines
    }
}

/// When hosts with a part in it from the beginning began, Unix milliseconds by their own
/// clocks. Rests and shares given later began when they did.
fn first_starts<'a>(view: &RunView, shares: &'a [ShareDetail]) -> impl Iterator<Item = u64> + 'a {
    let mut workers = 0_u32;
    let from_the_beginning = view.run.shares.iter().take_while(|share| {
        let begins = workers < view.run.spec.workers && share.rest_of.is_none();
        workers = workers.saturating_add(share.workers);
        begins
    });
    let hosts: std::collections::HashSet<_> = from_the_beginning.map(|share| share.host).collect();
    let first = move |share: &&ShareDetail| share.epoch == 0 && hosts.contains(&share.host);
    shares.iter().filter(first).map(|share| share.started_unix_ms)
}

/// CPU time of load threads against the time that they had.
fn busy_percent(view: &RunView, shares: &[ShareDetail]) -> Option<f64> {
    let threads: HashMap<_, _> =
        shares.iter().map(|share| ((share.host, share.epoch), share.threads)).collect();
    let tallies = view.run.result.as_ref().map_or(&view.tallies, |result| &result.tallies);
    let (mut cpu_us, mut had_us) = (0.0, 0.0);
    for tally in tallies.iter().filter(|tally| tally.counts.active_us > 0) {
        let threads = threads.get(&(tally.host, tally.epoch)).filter(|threads| **threads > 0)?;
        cpu_us += tally.counts.cpu_us as f64;
        had_us += tally.counts.active_us as f64 * f64::from(*threads);
    }
    (had_us > 0.0).then(|| (cpu_us / had_us * 100.0).min(100.0))
}

fn errors(shares: &[ShareDetail]) -> Vec<ErrorFigures> {
    let mut merged: Vec<ErrorFigures> = Vec::new();
    for error in shares.iter().flat_map(|share| &share.errors) {
        match merged.iter_mut().find(|known| known.kind == error.kind) {
            Some(known) => known.count += error.count,
            None => merged.push(ErrorFigures {
                kind: error.kind.clone(),
                count: error.count,
                first: error.first.clone(),
            }),
        }
    }
    merged
}

/// How unevenly the primaries were loaded, by their own calls of load commands.
fn instance_spread(detail: &RunDetail, result: &RunResult) -> Option<Spread> {
    let before = &detail.view.run.before;
    let grown = || {
        result.after.iter().filter(|after| after.primary).map(|after| {
            let earlier = before.iter().find(|before| {
                (before.host, before.port) == (after.host, after.port) && before.run_id == after.run_id
            });
            after.calls - earlier.map_or(0, |before| before.calls).min(after.calls)
        })
    };
    Some(Spread { min: grown().min()?, max: grown().max()? })
}

#[cfg(test)]
pub mod tests {
    use redmesh_api::ids::HostId;
    use redmesh_api::run::{ErrorCount, Share};

    use super::*;
    use crate::run::report::tests::done;

    pub fn share(host: u32, started_unix_ms: u64, acked: &[u64]) -> ShareDetail {
        ShareDetail {
            host: HostId(host),
            epoch: 0,
            started_unix_ms,
            resolution_s: 1,
            acked: acked.to_vec(),
            worker_acked_min: u64::from(host),
            worker_acked_max: 10 * u64::from(host),
            errors: vec![ErrorCount { kind: "OOM".to_owned(), count: 2, first: "OOM command".to_owned() }],
            histogram: Vec::new(),
            intended: Vec::new(),
            behind: 5,
            threads: 2,
            acked_by: Vec::new(),
            findings: None,
        }
    }

    #[test]
    fn timelines_stand_on_one_axis() {
        let late = share(2, 2_500, &[1, 2]);
        let merged = Timeline::merge(&[share(1, 1_000, &[10, 20, 30]), late.clone()]);
        assert_eq!(merged, Timeline { resolution_s: 1, acked: vec![10, 21, 32] });
        let coarse = ShareDetail { resolution_s: 2, ..late };
        let merged = Timeline::merge(&[share(1, 1_000, &[10, 20, 30]), coarse]);
        assert_eq!(merged, Timeline { resolution_s: 2, acked: vec![31, 32] });
        let far = share(3, u64::MAX, &[5]);
        assert_eq!(Timeline::merge(&[share(1, 0, &[1]), far]).acked, [1]);
    }

    #[test]
    fn shares_become_one_detail() {
        let view = done();
        let details = vec![share(1, 1_000, &[5, 6, 7, 8]), share(2, 1_040, &[1])];
        let figures = DetailFigures::of(&RunDetail { view, details, missing: vec!["host-3".to_owned()] });
        assert_eq!(figures.start_skew_ms, 40);
        assert_eq!(figures.worker_writes, Some(Spread { min: 1, max: 20 }));
        assert_eq!((figures.errors.len(), figures.errors[0].count), (1, 4));
        assert_eq!(figures.timeline.whole_rates(0), [6.0, 7.0]);
        assert_eq!(figures.timeline.whole_rates(1), [7.0]);
        assert!(figures.timeline.whole_rates(100).is_empty());
        let lines = figures.lines(Noun::WRITES);
        let words: Vec<_> = lines.iter().map(|(heading, text)| format!("{heading}: {text}")).collect();
        assert_eq!(
            words,
            [
                "timeline: ▆▆▇█  1 s a column, at most 8 writes/s",
                "spread: workers 1 to 20 writes, hosts began within 40 ms",
                "errors: 4 × OOM (first: OOM command)",
                "missing: host-3"
            ]
        );
    }

    #[test]
    fn what_begins_later_is_no_skew() {
        let mut view = done();
        let rest = Share { host: HostId(3), rest_of: Some(1), ..view.run.shares[0].clone() };
        let added = Share { host: HostId(4), ..view.run.shares[0].clone() };
        view.run.shares.extend([added, rest]);
        let again = ShareDetail { epoch: 1, ..share(1, 40_000, &[1]) };
        let starts = [share(1, 1_000, &[1]), again, share(2, 1_007, &[1]), share(3, 9_000, &[1])];
        let details = starts.into_iter().chain([share(4, 20_000, &[1])]).collect();
        let figures = DetailFigures::of(&RunDetail { view, details, missing: Vec::new() });
        assert_eq!(figures.start_skew_ms, 7);
    }

    #[test]
    fn servers_and_threads_are_counted_over_all_hosts() {
        let addr = |port| SocketAddr::from(([127, 0, 0, 1], port));
        let mut details = vec![share(1, 0, &[1]), share(2, 0, &[1])];
        details[0].acked_by = vec![(addr(7002), 5), (addr(7001), 6)];
        details[1].acked_by = vec![(addr(7002), 10)];
        let mut detail = RunDetail { view: done(), details, missing: Vec::new() };
        let figures = DetailFigures::of(&detail);
        let at = |port, writes| AtServer { server: addr(port), writes };
        assert_eq!(figures.acked_by, [at(7001, 6), at(7002, 15)]);
        // 0.16 s of CPU time in 2 s of 2 threads each.
        assert_eq!(figures.client_busy_percent, Some(4.0));
        assert_eq!((figures.behind, figures.findings), (None, None));
        detail.view.run.spec.rate = Some(1);
        assert_eq!(DetailFigures::of(&detail).behind, Some(10));
        detail.details.pop();
        assert_eq!(DetailFigures::of(&detail).client_busy_percent, None);
    }
}
