//! Waiting for a condition with a deadline, and saying what was awaited.

use std::time::{Duration, Instant};

/// Between two tries.
const POLL: Duration = Duration::from_millis(50);

/// Tries `condition` until it returns `Some`, at most for `deadline`.
///
/// # Panics
/// With `what` when the deadline has passed: a test that waits in vain has failed.
pub fn until<T>(what: &str, deadline: Duration, mut condition: impl FnMut() -> Option<T>) -> T {
    let end = Instant::now() + deadline;
    loop {
        if let Some(value) = condition() {
            return value;
        }
        assert!(Instant::now() < end, "waited {} s in vain for {what}", deadline.as_secs());
        std::thread::sleep(POLL);
    }
}
