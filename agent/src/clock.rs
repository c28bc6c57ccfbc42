//! The one reading of the wall clock.
//!
//! Whoever compares it with what other hosts say reads it through a [`WallClock`] that
//! was handed in, so that a simulation can bring its own time, and hosts that disagree.

use std::fmt;
use std::sync::Arc;
use std::time::{SystemTime, UNIX_EPOCH};

/// Milliseconds since the Unix epoch by this machine's clock.
pub fn now_unix_ms() -> u64 {
    let since = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
    u64::try_from(since.as_millis()).unwrap_or(u64::MAX)
}

/// A host's wall clock. Cheap to clone.
#[derive(Clone)]
pub struct WallClock(Arc<dyn Fn() -> u64 + Send + Sync>);

impl WallClock {
    /// A clock that shows what `now_unix_ms` returns.
    pub fn new(now_unix_ms: impl Fn() -> u64 + Send + Sync + 'static) -> Self {
        Self(Arc::new(now_unix_ms))
    }

    /// Milliseconds since the Unix epoch by this host's clock.
    pub fn now_unix_ms(&self) -> u64 {
        (self.0)()
    }
}

impl Default for WallClock {
    /// This machine's.
    fn default() -> Self {
        Self::new(now_unix_ms)
    }
}

impl fmt::Debug for WallClock {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_tuple("WallClock").field(&self.now_unix_ms()).finish()
    }
}
