//! The few numbers of a histogram that people read.

use hdrhistogram::Histogram;
use redmesh_api::run::LatencySummary;

/// Percentiles of `histogram` (values in microseconds); all zero when it is empty.
pub fn summary(histogram: &Histogram<u64>) -> LatencySummary {
    if histogram.is_empty() {
        return LatencySummary::default();
    }
    // A percentile is the upper end of its bucket, which may lie above the largest value.
    let max_us = histogram.max();
    let at = |quantile| histogram.value_at_quantile(quantile).min(max_us);
    LatencySummary {
        count: histogram.len(),
        p50_us: at(0.5),
        p90_us: at(0.9),
        p99_us: at(0.99),
        p999_us: at(0.999),
        max_us,
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::stats::empty_histogram;

    #[test]
    fn percentiles_of_a_known_distribution() {
        let mut histogram = empty_histogram();
        assert_eq!(summary(&histogram), LatencySummary::default());
        (1..=1000).for_each(|us| histogram.record(us).expect("in bounds"));
        let summary = summary(&histogram);
        assert_eq!(
            (summary.count, summary.p50_us, summary.p90_us, summary.p99_us, summary.p999_us, summary.max_us),
            (1000, 500, 900, 990, 999, 1000)
        );
    }
}
