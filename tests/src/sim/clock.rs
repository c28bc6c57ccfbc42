//! Virtual time, as one life of a simulated host knows it.

use std::sync::Arc;
use std::sync::atomic::{AtomicI64, Ordering};
use std::time::Duration;

use redmesh_agent::clock::WallClock;
use tokio::time::Instant;

/// What the wall clock shows when a simulation begins, Unix milliseconds: any round number.
pub const EPOCH_UNIX_MS: u64 = 1_800_000_000_000;

/// Tells how long the simulation has been going on, also on blocking threads, where
/// turmoil knows nothing.
#[derive(Debug, Clone, Copy)]
pub struct HostClock {
    began: Instant,
    began_at: Duration,
}

impl HostClock {
    /// To be called on a simulated host.
    pub fn start() -> Self {
        Self { began: Instant::now(), began_at: turmoil::sim_elapsed().unwrap_or_default() }
    }

    /// Since the simulation began.
    pub fn now(&self) -> Duration {
        self.began_at + self.began.elapsed()
    }

    /// The wall clock of a host that is off by `skew_ms`, now and as it changes.
    pub fn wall(self, skew_ms: Arc<AtomicI64>) -> WallClock {
        WallClock::new(move || {
            let now_ms = u64::try_from(self.now().as_millis()).unwrap_or(u64::MAX);
            (EPOCH_UNIX_MS + now_ms).saturating_add_signed(skew_ms.load(Ordering::Relaxed))
        })
    }
}
