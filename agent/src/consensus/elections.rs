//! Keeps voters from standing against each other for ever.
//!
//! openraft draws its election timeout once in a node's life and looks at it in steps of
//! one and a half heartbeats. Voters whose timeouts end in the same step all stand at once,
//! each votes for itself, nobody is elected, and all their timers begin anew together. Raft
//! wants the timeout drawn anew for each election (Ongaro and Ousterhout 2014, section
//! 5.2). So here, whenever a vote was given and nobody leads by it yet, this node's next
//! candidacy is put off by a time that is drawn then.

use std::ops::Range;
use std::time::Duration;

use rand::Rng;
use tokio::time::{Instant, sleep_until};
use tokio_util::sync::CancellationToken;

use super::types::Raft;

/// Puts candidacies off, each by a time out of `put_off`, until `cancel` or the node's end.
pub(super) async fn stagger(raft: Raft, put_off: Range<Duration>, cancel: CancellationToken) {
    let mut metrics = raft.metrics();
    let mut known = metrics.borrow_and_update().vote;
    let mut stands_at: Option<Instant> = None;
    loop {
        let patience = async {
            match stands_at {
                Some(at) => sleep_until(at).await,
                None => std::future::pending().await,
            }
        };
        tokio::select! {
            () = cancel.cancelled() => return,
            () = patience => stands_at = None,
            changed = metrics.changed() => {
                if changed.is_err() {
                    return;
                }
                let vote = metrics.borrow_and_update().vote;
                if vote == known {
                    continue;
                }
                known = vote;
                let waits = (!vote.is_committed()).then(|| rand::rng().random_range(put_off.clone()));
                stands_at = waits.map(|waits| Instant::now() + waits);
            }
        }
        raft.runtime_config().elect(stands_at.is_none());
    }
}
