//! Which keys an epoch has written, so that they can be read back: how far each lane's
//! counter went, and which of its operations did not end as acked.
//!
//! A lane is one outstanding operation of one worker: with a pipeline of D, worker w has
//! the lanes w·D to w·D + D - 1, and the lane with remainder r issues the numbers
//! r, r + D, r + 2·D, …, one after the other.

use std::path::{Path, PathBuf};

use redmesh_api::codec;
use redmesh_api::ids::{HostId, RunId};
use serde::{Deserialize, Serialize};

/// Exceptions that are kept of one epoch.
pub const EXCEPTIONS_MAX: usize = 100_000;

/// An operation that did not end as acked.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct Exception {
    /// Which lane of the share.
    pub lane: u32,
    /// Which of its operations, from 0.
    pub index: u64,
    /// Whether it may have been executed; else it surely was not.
    pub unknown: bool,
}

/// What one epoch has written.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Written {
    /// Of which run.
    pub run: RunId,
    /// Whose share.
    pub host: HostId,
    /// Which life of the host's agent.
    pub epoch: u32,
    /// Index of the first worker among all workers of the run.
    pub first_worker: u32,
    /// Lanes of one worker.
    pub pipeline: u16,
    /// The counter begins again after so many keys of one worker.
    pub wrap: Option<u64>,
    /// Operations that each lane has ended, in the lanes' order.
    pub ended: Vec<u64>,
    /// Those that did not end as acked.
    pub exceptions: Vec<Exception>,
    /// Whether there were more than are kept.
    pub exceptions_cut: bool,
    /// Whether the account was closed; else each lane may have gone further.
    pub closed: bool,
}

/// Its file beside the epoch's ledger.
pub fn path(dir: &Path, epoch: u32) -> PathBuf {
    dir.join(format!("{epoch}.written"))
}

impl Written {
    /// Operations that ended as acked, as far as it knows.
    pub fn acked(&self) -> u64 {
        self.ended.iter().sum::<u64>().saturating_sub(self.exceptions.len() as u64)
    }

    /// Keeps it.
    ///
    /// # Errors
    /// In words: what could not be written, and where.
    pub fn save(&self, dir: &Path) -> Result<(), String> {
        crate::files::keep(&path(dir, self.epoch), self)
    }

    /// What is kept of an epoch.
    ///
    /// # Errors
    /// In words: what could not be read, and where.
    pub fn load(dir: &Path, epoch: u32) -> Result<Self, String> {
        let path = path(dir, epoch);
        let bytes =
            std::fs::read(&path).map_err(|error| format!("can't read {}: {error}", path.display()))?;
        codec::decode(&bytes).map_err(|error| format!("{}: {}", path.display(), crate::error_chain(&error)))
    }
}
