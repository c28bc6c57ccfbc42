//! What a run's hosts kept beside its counts, put together: writes over time, start
//! skew, spreads, errors. Pure; the report shows it.

use redmesh_api::control::RunDetail;
use redmesh_api::run::{RunResult, ShareDetail};
use serde::Serialize;

use crate::units::{short, thousands};

/// Columns of the timeline's picture.
const PICTURE_COLUMNS: usize = 60;

/// Bars of the picture, lowest first.
const BARS: [char; 8] = ['▁', '▂', '▃', '▄', '▅', '▆', '▇', '█'];

/// Detail of a run, for JSON and text.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct DetailFigures {
    /// Between the first host's start and the last one's, by their own clocks.
    pub start_skew_ms: u64,
    /// Writes over time, all hosts together.
    pub timeline: Timeline,
    /// Writes acked by the slowest and the fastest worker.
    pub worker_writes: Option<Spread>,
    /// Executed SETs of the least and the most loaded primary.
    pub instance_writes: Option<Spread>,
    /// Errors by kind, all hosts together.
    pub errors: Vec<ErrorFigures>,
    /// What could not be had, in words.
    pub missing: Vec<String>,
}

/// Acked writes per interval.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize)]
pub struct Timeline {
    /// Seconds that one entry stands for.
    pub resolution_s: u32,
    /// Acked writes in each interval.
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

    /// Writes per second of each interval but the first and the last, which are cut by
    /// the run's own begin and end.
    pub fn whole_rates(&self) -> Vec<f64> {
        let inner = self.acked.get(1..self.acked.len().saturating_sub(1)).unwrap_or_default();
        inner.iter().map(|writes| *writes as f64 / f64::from(self.resolution_s)).collect()
    }

    fn picture(&self) -> Option<String> {
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
        Some(format!("{bars}  {span_s} s a column, at most {} writes/s", short(most)))
    }
}

/// Points of a merged timeline; twice of what one share keeps.
const MERGED_POINTS_MAX: usize = 14_400;

impl DetailFigures {
    /// All that the hosts kept, as one.
    pub fn of(detail: &RunDetail) -> Self {
        let shares = &detail.details;
        let starts = || shares.iter().filter(|share| share.epoch == 0).map(|share| share.started_unix_ms);
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
            errors: errors(shares),
            missing: detail.missing.clone(),
        }
    }

    /// Lines of the report, each under its heading.
    pub fn lines(&self) -> Vec<(&'static str, String)> {
        let mut lines = Vec::new();
        if let Some(picture) = self.timeline.picture() {
            lines.push(("timeline", picture));
        }
        let spread =
            |spread: &Spread| format!("{} to {} writes", thousands(spread.min), thousands(spread.max));
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

/// How unevenly the primaries were loaded, by their own `cmdstat_set`.
fn instance_spread(detail: &RunDetail, result: &RunResult) -> Option<Spread> {
    let before = &detail.view.run.before;
    let grown = || {
        result.after.iter().filter(|after| after.primary).map(|after| {
            let earlier = before.iter().find(|before| {
                (before.host, before.port) == (after.host, after.port) && before.run_id == after.run_id
            });
            after.set_calls - earlier.map_or(0, |before| before.set_calls).min(after.set_calls)
        })
    };
    Some(Spread { min: grown().min()?, max: grown().max()? })
}

#[cfg(test)]
pub mod tests {
    use redmesh_api::ids::HostId;
    use redmesh_api::run::ErrorCount;

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
        assert_eq!(figures.timeline.whole_rates(), [6.0, 7.0]);
        let lines = figures.lines();
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
}
