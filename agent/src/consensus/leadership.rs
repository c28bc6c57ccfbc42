//! Who leads, and whether the leader may act.
//!
//! A leader that has lost its quorum goes on believing that it leads. It may act only
//! while a quorum's acknowledgement is younger than the leader lease, within which the
//! voters that gave it elect nobody else. A voter that restarts forgets its lease, so
//! this is a guard and no proof: before what can't be undone the leader asks a quorum
//! (`Consensus::confirm_leadership`).

use std::collections::BTreeSet;
use std::time::Duration;

use openraft::RaftMetrics;
use redmesh_api::ids::HostId;
use tokio::sync::watch;
use tokio::time::{Instant, sleep_until};
use tokio_util::sync::CancellationToken;

use super::types::{Vote, VoterId, VoterNode};

/// What this host knows of the mesh's leader.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Leadership {
    /// The newest term seen.
    pub term: u64,
    /// The leader, as far as this host knows. Always unknown to hosts that don't vote.
    pub leader: Option<HostId>,
    /// This host leads, and a quorum acknowledged it within the leader lease
    /// (`ConsensusOptions::election_max`).
    pub acting: bool,
    /// The voters, as of the newest membership in this host's log.
    pub voters: BTreeSet<HostId>,
    /// This host has a log or has voted: it belongs to a mesh.
    pub initialized: bool,
}

pub(super) type Metrics = RaftMetrics<VoterId, VoterNode>;

/// What `metrics` say at `now`, the last quorum acknowledgement being of `acked_at`.
pub(super) fn judge(
    metrics: &Metrics,
    acked_at: Option<Instant>,
    now: Instant,
    fresh_for: Duration,
) -> Leadership {
    let me = metrics.id;
    let voters: BTreeSet<_> = metrics.membership_config.voter_ids().map(|voter| voter.0).collect();
    let leads = metrics.state.is_leader() && metrics.running_state.is_ok();
    // A lone voter is its own quorum, and its metrics fall silent when nothing happens.
    let alone = voters.len() == 1 && voters.contains(&me.0);
    let fresh = acked_at.is_some_and(|at| now.saturating_duration_since(at) < fresh_for);
    Leadership {
        term: metrics.current_term,
        leader: metrics.current_leader.map(|leader| leader.0),
        acting: leads && (alone || fresh),
        voters,
        initialized: metrics.last_log_index.is_some() || metrics.vote != Vote::default(),
    }
}

/// Keeps `out` up to date until `cancel` or the node's end.
pub(super) async fn follow(
    mut metrics: watch::Receiver<Metrics>,
    out: watch::Sender<Leadership>,
    fresh_for: Duration,
    cancel: CancellationToken,
) {
    let mut acked_at = ack_time(&metrics.borrow_and_update(), Instant::now());
    loop {
        let leadership = judge(&metrics.borrow(), acked_at, Instant::now(), fresh_for);
        let acting = leadership.acting;
        publish(&out, leadership);
        // The metrics of a leader in trouble may fall silent: then time alone ends it.
        let stale = async {
            match acked_at.map(|at| at + fresh_for).filter(|at| acting && *at > Instant::now()) {
                Some(at) => sleep_until(at).await,
                None => std::future::pending().await,
            }
        };
        tokio::select! {
            () = cancel.cancelled() => break,
            () = stale => {}
            changed = metrics.changed() => match changed {
                Ok(()) => acked_at = ack_time(&metrics.borrow_and_update(), Instant::now()),
                Err(_) => break,
            },
        }
    }
    let last = out.borrow().clone();
    publish(&out, Leadership { acting: false, ..last });
}

/// When the quorum's last acknowledgement was, by metrics sent at `now`.
fn ack_time(metrics: &Metrics, now: Instant) -> Option<Instant> {
    now.checked_sub(Duration::from_millis(metrics.millis_since_quorum_ack?))
}

fn publish(out: &watch::Sender<Leadership>, next: Leadership) {
    out.send_if_modified(|current| {
        let changed = *current != next;
        *current = next;
        changed
    });
}
