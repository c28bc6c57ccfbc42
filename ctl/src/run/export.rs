//! `run export`: a run's service times as an HDR histogram log (`.hlog`, version 1.3),
//! which HdrHistogram's own tools read. One line per host and life of its agent, tagged
//! `HOST/LIFE`; of an open loop another one, tagged `HOST/LIFE/intended`, with the times
//! from the intended begin. Values are microseconds.

use std::path::Path;
use std::time::{Duration, SystemTime};

use anyhow::{Context, bail};
use hdrhistogram::serialization::V2DeflateSerializer;
use hdrhistogram::serialization::interval_log::{IntervalLogWriterBuilder, Tag};
use redmesh_api::control::RunDetail;
use redmesh_api::histogram;

use super::report::Names;

/// HdrHistogram's tools show the largest value divided by this: milliseconds.
const MAX_VALUE_DIVISOR: f64 = 1000.0;

/// Writes the log of `detail` to `path`, which must not exist, and returns its lines.
pub fn write(detail: &RunDetail, names: &Names, path: &Path) -> anyhow::Result<usize> {
    let (log, lines) = render(detail, names)?;
    if lines == 0 {
        bail!("no host kept latencies of run {}: nothing to export", detail.view.run.id);
    }
    let mut file = std::fs::File::create_new(path)
        .with_context(|| format!("can't create {}: give another --out", path.display()))?;
    std::io::Write::write_all(&mut file, &log).with_context(|| format!("can't write {}", path.display()))?;
    Ok(lines)
}

fn render(detail: &RunDetail, names: &Names) -> anyhow::Result<(Vec<u8>, usize)> {
    let start_ms = detail.details.iter().map(|share| share.started_unix_ms).min().unwrap_or(0);
    let mut log = Vec::new();
    let mut lines = 0;
    let mut serializer = V2DeflateSerializer::new();
    let mut writer = IntervalLogWriterBuilder::new()
        .add_comment(&format!("redmesh run {}; times in microseconds", detail.view.run.id.0))
        .with_start_time(SystemTime::UNIX_EPOCH + Duration::from_millis(start_ms))
        .with_base_time(SystemTime::UNIX_EPOCH + Duration::from_millis(start_ms))
        .with_max_value_divisor(MAX_VALUE_DIVISOR)
        .begin_log_with(&mut log, &mut serializer)
        .context("can't begin the log")?;
    for share in &detail.details {
        let name = names.of(share.host);
        for (bytes, which) in [(&share.histogram, ""), (&share.intended, "/intended")] {
            if bytes.is_empty() {
                continue;
            }
            let values = histogram::decode(bytes).with_context(|| format!("latencies of {name}"))?;
            let tag = format!("{name}/{}{which}", share.epoch);
            let tag = Tag::new(&tag).with_context(|| format!("host name {name:?} can't be a tag"))?;
            let began = Duration::from_millis(share.started_unix_ms - start_ms);
            let lasted = Duration::from_secs(share.acked.len() as u64 * u64::from(share.resolution_s));
            writer
                .write_histogram(&values, began, lasted, Some(tag))
                .map_err(|error| anyhow::anyhow!("can't write the latencies of {name}: {error:?}"))?;
            lines += 1;
        }
    }
    Ok((log, lines))
}

#[cfg(test)]
mod tests {
    use redmesh_api::run::ShareDetail;

    use super::*;
    use crate::run::detail::tests::share;
    use crate::run::report::tests::done;

    #[test]
    fn the_log_reads_back() {
        use hdrhistogram::serialization::interval_log::{IntervalLogIterator, LogEntry};
        let mut values = histogram::empty_histogram();
        values.record_n(1234, 7).unwrap();
        let mut one = share(1, 1_000, &[1, 2, 3]);
        one.histogram = histogram::encode(&values).unwrap();
        let open = ShareDetail { intended: one.histogram.clone(), ..one.clone() };
        let closed = share(2, 1_000, &[1]);
        let detail = RunDetail { view: done(), details: vec![open, closed], missing: Vec::new() };
        let (log, lines) = render(&detail, &Names::default()).unwrap();
        assert_eq!(lines, 2);
        let entries: Vec<_> = IntervalLogIterator::new(&log).map(Result::unwrap).collect();
        let intervals = entries.iter().filter_map(|entry| match entry {
            LogEntry::Interval(interval) => Some(interval),
            _ => None,
        });
        let intervals: Vec<_> = intervals.collect();
        let tags: Vec<_> =
            intervals.iter().filter_map(|interval| interval.tag().map(|tag| tag.as_str())).collect();
        assert_eq!(tags, ["00000001/0", "00000001/0/intended"]);
        let interval = intervals[0];
        assert_eq!(interval.duration(), Duration::from_secs(3));
    }
}
