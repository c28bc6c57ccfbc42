//! What the coordinator does next: a pure function of what is wanted and what is seen.

use std::collections::BTreeMap;
use std::time::Duration;

use redmesh_api::ids::{HostId, PlanId, RunId};
use redmesh_api::level::{ClusterPlan, Level, PlanStage};
use redmesh_api::run::{Outcome, Run, RunStage, RunUntil, Share, Tally};

use crate::facts::Observed;

/// How long a host may be dead before a run is closed without its share.
pub const SHARE_LOST_AFTER: Duration = Duration::from_secs(60);

/// What the coordinator sees of a host.
#[derive(Debug, Clone, Default, PartialEq)]
pub struct Seen {
    /// Its name.
    pub name: String,
    /// How long it has been dead; zero if it is alive.
    pub dead_for: Duration,
    /// How far it has reconciled.
    pub observed: Observed,
}

/// One thing to do. Each is safe to repeat: the state machine takes it once.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Step {
    /// Give the mesh its id.
    Found,
    /// Let all hosts go on to the plan's next stage.
    AdvancePlan {
        /// Which plan.
        plan: PlanId,
        /// To which stage.
        to: PlanStage,
    },
    /// Every share is spent or lost: settle the account.
    CloseRun {
        /// Which run.
        run: RunId,
        /// How it ended.
        outcome: Outcome,
    },
}

/// The steps that are due.
///
/// `tallies` are the counts of every run that isn't done; `now_unix_ms` is the
/// coordinator's clock.
pub fn steps(
    level: &Level,
    seen: &BTreeMap<HostId, Seen>,
    tallies: &BTreeMap<RunId, Vec<Tally>>,
    now_unix_ms: u64,
) -> Vec<Step> {
    if level.mesh.is_none() {
        return vec![Step::Found];
    }
    let mut steps = Vec::new();
    if let Some(plan) = &level.plan
        && let Some(to) = next_stage(plan, seen)
    {
        steps.push(Step::AdvancePlan { plan: plan.id, to });
    }
    for run in level.runs.iter().filter(|run| run.stage != RunStage::Done) {
        let tallies = tallies.get(&run.id).map_or(&[][..], Vec::as_slice);
        if let Some(outcome) = outcome(run, seen, tallies, now_unix_ms) {
            steps.push(Step::CloseRun { run: run.id, outcome });
        }
    }
    steps
}

/// The stage that all hosts of the plan are ready for, if it is the next one.
fn next_stage(plan: &ClusterPlan, seen: &BTreeMap<HostId, Seen>) -> Option<PlanStage> {
    let all = |ready: fn(&Observed) -> u32| {
        plan.hosts.iter().all(|host| {
            let planned = plan.instances_of(host.id).count();
            seen.get(&host.id).is_some_and(|seen| {
                // Figures of another stage say nothing about this one.
                seen.observed.plan == Some((plan.id, plan.stage)) && ready(&seen.observed) as usize == planned
            })
        })
    };
    match plan.stage {
        // An instance that runs already was released under this plan before.
        PlanStage::Prepare => all(|seen| seen.held + seen.up).then_some(PlanStage::Release),
        PlanStage::Release => all(|seen| seen.agreed.min(seen.up)).then_some(PlanStage::Formed),
        PlanStage::Formed => None,
    }
}

/// How a share stands.
#[derive(Debug, Clone, PartialEq, Eq)]
enum ShareState {
    Open,
    Spent,
    Lost(String),
}

fn outcome(run: &Run, seen: &BTreeMap<HostId, Seen>, tallies: &[Tally], now_unix_ms: u64) -> Option<Outcome> {
    let mut lost = Vec::new();
    for share in &run.shares {
        match share_state(run, share, seen, tallies, now_unix_ms) {
            ShareState::Open => return None,
            ShareState::Spent => {}
            ShareState::Lost(reason) => lost.push(reason),
        }
    }
    Some(match (lost.is_empty(), run.stage) {
        (false, _) => Outcome::Incomplete(lost.join("; ")),
        (true, RunStage::Stopping) => Outcome::Stopped,
        (true, _) => Outcome::Completed,
    })
}

fn share_state(
    run: &Run,
    share: &Share,
    seen: &BTreeMap<HostId, Seen>,
    tallies: &[Tally],
    now_unix_ms: u64,
) -> ShareState {
    let mine = || tallies.iter().filter(|tally| tally.host == share.host);
    let all_closed = mine().count() > 0 && mine().all(|tally| tally.closed);
    let issued: u64 = mine().map(|tally| tally.counts.issued).sum();
    let spent = match (run.stage, run.spec.until) {
        (RunStage::Stopping, _) => true,
        (_, RunUntil::Writes(_)) => issued >= share.writes.unwrap_or(0),
        (_, RunUntil::Seconds(seconds)) => now_unix_ms >= run.created_unix_ms + u64::from(seconds) * 1000,
    };
    if all_closed && spent {
        return ShareState::Spent;
    }
    match seen.get(&share.host) {
        Some(Seen { name, observed: Observed { share_lost: Some((lost, reason)), .. }, .. })
            if *lost == run.id =>
        {
            ShareState::Lost(format!("{name} can't bear its share: {reason}"))
        }
        Some(host) if host.dead_for < SHARE_LOST_AFTER => ShareState::Open,
        Some(host) => ShareState::Lost(format!(
            "{} has been silent for {} s; its last gossiped counts are taken",
            host.name,
            host.dead_for.as_secs()
        )),
        None => ShareState::Lost(format!("host {} is gone from the mesh", share.host)),
    }
}

#[cfg(test)]
mod tests;
