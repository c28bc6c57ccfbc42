//! What a share keeps beside its counts: writes per second over time, the workers'
//! spread, errors, latencies. Collected while the share runs, and put in a file beside its
//! ledger again and again, so that a report outlives the agent.

use std::path::{Path, PathBuf};
use std::time::Duration;

use redmesh_api::codec;
use redmesh_api::ids::HostId;
use redmesh_api::run::ShareDetail;

use crate::load::ShareFigures;
use crate::stats;

/// Points of a timeline; with one more the resolution is halved. Two hours at 1 s.
const POINTS_MAX: usize = 7200;

/// Writes acked per interval since the start. Pure: the caller brings the time.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Timeline {
    resolution_s: u32,
    points: Vec<u64>,
    acked: u64,
}

impl Default for Timeline {
    fn default() -> Self {
        Self { resolution_s: 1, points: Vec::new(), acked: 0 }
    }
}

impl Timeline {
    /// `acked` writes in all, `since_start` after the first one was issued. A count that
    /// is not larger than the last one adds nothing.
    pub fn observe(&mut self, since_start: Duration, acked: u64) {
        let mut index = self.index(since_start);
        while index >= POINTS_MAX {
            self.points = self.points.chunks(2).map(|pair| pair.iter().sum()).collect();
            self.resolution_s *= 2;
            index = self.index(since_start);
        }
        if self.points.len() <= index {
            self.points.resize(index + 1, 0);
        }
        self.points[index] += acked.saturating_sub(self.acked);
        self.acked = self.acked.max(acked);
    }

    fn index(&self, since_start: Duration) -> usize {
        usize::try_from(since_start.as_secs() / u64::from(self.resolution_s)).unwrap_or(usize::MAX)
    }
}

/// The detail of one epoch as it stands.
pub fn of(
    host: HostId,
    epoch: u32,
    started_unix_ms: u64,
    timeline: &Timeline,
    share: ShareFigures,
) -> ShareDetail {
    let (worker_acked_min, worker_acked_max) = share.worker_acked;
    let encode = |histogram| {
        stats::encode(&histogram).unwrap_or_else(|error| {
            tracing::warn!(error = %crate::error_chain(&error), "can't encode latencies");
            Vec::new()
        })
    };
    ShareDetail {
        host,
        epoch,
        started_unix_ms: share.began_unix_ms.unwrap_or(started_unix_ms),
        resolution_s: timeline.resolution_s,
        acked: timeline.points.clone(),
        worker_acked_min,
        worker_acked_max,
        errors: share.errors,
        histogram: encode(share.histogram),
        intended: share.intended.map(encode).unwrap_or_default(),
        behind: share.behind,
        threads: share.threads,
        acked_by: share.acked_by,
        findings: share.findings,
    }
}

/// A detail's file beside the epoch's ledger.
pub fn path(dir: &Path, epoch: u32) -> PathBuf {
    dir.join(format!("{epoch}.detail"))
}

/// Keeps an epoch's detail.
///
/// # Errors
/// In words: what could not be written, and where.
pub fn save(dir: &Path, detail: &ShareDetail) -> Result<(), String> {
    crate::files::keep(&path(dir, detail.epoch), detail)
}

/// A kept detail, the last before its agent ended; `None` if there is none or it is
/// damaged.
pub fn load(dir: &Path, epoch: u32) -> Option<ShareDetail> {
    let path = path(dir, epoch);
    let bytes = std::fs::read(&path).ok()?;
    let decoded = codec::decode(&bytes);
    decoded
        .inspect_err(|error| {
            let error = crate::error_chain(error);
            tracing::warn!(file = %path.display(), error, "passing over a damaged file");
        })
        .ok()
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn writes_stand_at_their_second() {
        let mut timeline = Timeline::default();
        for (ms, acked) in [(100, 5), (900, 7), (1100, 10), (3500, 11), (3600, 11)] {
            timeline.observe(Duration::from_millis(ms), acked);
        }
        assert_eq!(timeline.points, [7, 3, 0, 1]);
    }

    proptest! {
        #[test]
        fn a_timeline_is_bounded_and_loses_nothing(
            steps in proptest::collection::vec((0_u64..2000, 0_u64..1000), 1..200),
        ) {
            let mut timeline = Timeline::default();
            let (mut at, mut acked) = (0, 0);
            for (seconds, more) in steps {
                at += seconds;
                acked += more;
                timeline.observe(Duration::from_secs(at), acked);
                prop_assert!(timeline.points.len() <= POINTS_MAX);
                prop_assert_eq!(timeline.points.iter().sum::<u64>(), acked);
            }
        }
    }

    #[test]
    fn a_damaged_file_is_passed_over() {
        let dir = tempfile::tempdir().expect("temp dir");
        assert_eq!(load(dir.path(), 3), None);
        std::fs::write(path(dir.path(), 3), b"\xff\xff").expect("write");
        assert_eq!(load(dir.path(), 3), None);
    }
}
