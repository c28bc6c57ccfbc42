//! What the coordinator does next: a pure function of what is wanted and what is seen.

use std::collections::BTreeMap;
use std::time::Duration;

use redmesh_api::ids::{HostId, PlanId, RunId};
use redmesh_api::level::{ClusterPlan, Formation, Level, PlanStage};
use redmesh_api::run::{Outcome, RunStage, Share, Tally};

use super::shares;
use crate::facts::Observed;

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
    /// All servers that are to be joined by MEET are ready: ask for their node ids and
    /// write them into the plan, which takes it to the next stage.
    NameNodes {
        /// Which plan.
        plan: PlanId,
    },
    /// A host was lost in mid-run: others take over the rest of its share.
    TakeOver {
        /// Which run.
        run: RunId,
        /// Shares that it has.
        known: u16,
        /// Index of the lost host's share.
        given_up: u16,
        /// The shares that take its place.
        shares: Vec<Share>,
    },
    /// Every share is spent or lost: settle the account.
    CloseRun {
        /// Which run.
        run: RunId,
        /// Shares that it has.
        known: u16,
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
        steps.push(match (plan.formation, plan.stage) {
            (Formation::Meet, PlanStage::Prepare) => Step::NameNodes { plan: plan.id },
            _ => Step::AdvancePlan { plan: plan.id, to },
        });
    }
    for run in level.runs.iter().filter(|run| run.stage != RunStage::Done) {
        let tallies = tallies.get(&run.id).map_or(&[][..], Vec::as_slice);
        let look = shares::Look { run, seen, tallies, now_unix_ms };
        if let Some(takeover) = look.takeover(level.plan.as_ref()) {
            steps.push(takeover);
        } else if let Some(outcome) = look.outcome()
            && let Ok(known) = u16::try_from(run.shares.len())
        {
            steps.push(Step::CloseRun { run: run.id, known, outcome });
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
        PlanStage::Release | PlanStage::Replicate => {
            let replicate =
                plan.formation == Formation::Meet && plan.stage == PlanStage::Release && plan.has_replicas();
            let to = if replicate { PlanStage::Replicate } else { PlanStage::Formed };
            all(|seen| seen.agreed.min(seen.up)).then_some(to)
        }
        PlanStage::Formed => None,
    }
}

#[cfg(test)]
mod tests;
