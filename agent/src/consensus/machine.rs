//! The state machine: how a command changes the level.
//!
//! Pure, and the same on every voter: no clock, no randomness, nothing of this host.
//! Stages only advance, the mesh and the plan are set once, and the level is bounded in
//! runs and in bytes, because it travels whole.

mod tokens;

use std::collections::BTreeSet;

use redmesh_api::codec;
use redmesh_api::ids::{HostId, NodeId, PlanId, RunId};
use redmesh_api::level::{
    ClusterPlan, Formation, Level, PlanStage, RemovedHost, RevokedOperator, StageReached, Stamp,
};
use redmesh_api::limits::{FRAME_BYTES_MAX, REMOVED_MAX, REVOKED_MAX, RUNS_KEPT_MAX, SHARES_MAX};
use redmesh_api::run::{Job, Run, RunResult, RunStage, Share};

use super::command::{Applied, Command};

/// Largest encoded level, bytes. Half a frame, so that it fits one with whatever is
/// sent beside it.
pub const LEVEL_BYTES_MAX: usize = FRAME_BYTES_MAX / 2;

/// Applies `command` as the entry `stamp`. Only [`Applied::Done`] changes the level, and
/// then the level's stamp is `stamp`.
pub fn apply(level: &mut Level, stamp: Stamp, command: &Command) -> Applied {
    if stamp <= level.stamp {
        return rejected(format!("entry {stamp} is not newer than the level, {}", level.stamp));
    }
    let mut next = level.clone();
    let applied = change(&mut next, command);
    if applied != Applied::Done {
        return applied;
    }
    next.stamp = stamp;
    if let Err(bytes) = trim(&mut next) {
        return rejected(format!(
            "the level would be {bytes} bytes, at most {LEVEL_BYTES_MAX} are allowed: use fewer instances"
        ));
    }
    *level = next;
    Applied::Done
}

/// What `command` would come to if it were the next entry; but for the level's size.
pub fn would_apply(level: &Level, command: &Command) -> Applied {
    change(&mut level.clone(), command)
}

fn change(level: &mut Level, command: &Command) -> Applied {
    match command {
        Command::Found { mesh } => match level.mesh {
            None => {
                level.mesh = Some(*mesh);
                Applied::Done
            }
            Some(known) if known == *mesh => Applied::Unchanged,
            Some(known) => rejected(format!("the mesh is {known} already, not {mesh}")),
        },
        Command::CreatePlan(plan) => create_plan(level, plan),
        Command::AdvancePlan { plan, to, at_unix_ms, convergence } => {
            the_plan(level, *plan).map_or_else(rejected, |known| {
                let applied = advance_plan(known, *to, *at_unix_ms);
                if applied == Applied::Done {
                    known.convergence.clone_from(convergence);
                }
                applied
            })
        }
        Command::NameNodes { plan, ids, at_unix_ms } => {
            the_plan(level, *plan).map_or_else(rejected, |known| name_nodes(known, ids, *at_unix_ms))
        }
        Command::RemoveHost(host) => remove_host(level, host),
        Command::ReplaceHost { plan, from, to, name, at_unix_ms } => {
            replace_host(level, *plan, *from, (*to, name), *at_unix_ms)
        }
        Command::RevokeOperator(operator) => revoke_operator(level, operator),
        Command::StartRun(run) => start_run(level, run),
        Command::AdvanceRun { run, to } => match the_run(level, *run) {
            Err(reason) => rejected(reason),
            Ok(known) if *to == RunStage::Done && known.stage != RunStage::Done => {
                rejected(format!("run {run} is done only when its account is closed"))
            }
            Ok(known) => advance(&mut known.stage, *to),
        },
        Command::AddShares { run, known, given_up, shares } => the_run(level, *run)
            .map_or_else(rejected, |run| {
                add_shares(run, usize::from(*known), given_up.map(usize::from), shares)
            }),
        Command::CloseRun { run, known, result } => {
            the_run(level, *run).map_or_else(rejected, |run| close_run(run, usize::from(*known), result))
        }
        Command::CreateToken(token) => tokens::create(&mut level.tokens, token),
        Command::RevokeToken(id) => tokens::revoke(&mut level.tokens, *id),
        Command::Enrol { token, host } => tokens::enrol(&mut level.tokens, *token, host),
    }
}

fn create_plan(level: &mut Level, plan: &ClusterPlan) -> Applied {
    match &level.plan {
        None => {
            level.plan = Some(plan.clone());
            Applied::Done
        }
        // The stage may have advanced since the first time.
        Some(known) if known.id == plan.id => Applied::Unchanged,
        Some(known) => rejected(format!("there is a plan already, {}", known.id)),
    }
}

fn remove_host(level: &mut Level, host: &RemovedHost) -> Applied {
    let same = |known: &RemovedHost| known == host || (host.id.is_some() && known.id == host.id);
    if level.removed.iter().any(same) {
        return Applied::Unchanged;
    }
    if level.removed.len() >= REMOVED_MAX {
        return rejected(format!(
            "{REMOVED_MAX} hosts have been removed, no more are remembered: make another CA instead, and issue all \
             certificates that are to be trusted by it"
        ));
    }
    level.removed.push(host.clone());
    if host.certificates {
        tokens::revoke_used_by(&mut level.tokens, &host.name);
    }
    Applied::Done
}

/// The one that is gone may come back with its state: it must not start the same servers.
fn replace_host(
    level: &mut Level,
    plan: PlanId,
    from: HostId,
    (to, name): (HostId, &str),
    at_unix_ms: u64,
) -> Applied {
    let removed = [from, to].into_iter().find(|id| level.is_removed(*id));
    let known = match the_plan(level, plan) {
        Ok(plan) => plan,
        Err(reason) => return rejected(reason),
    };
    let bears = |id: HostId| known.hosts.iter().position(|host| host.id == id);
    let old_name = match (bears(from), bears(to)) {
        (None, Some(_)) => return Applied::Unchanged,
        (None, None) => return rejected(format!("host {from} bears no instance of plan {plan}")),
        (Some(_), Some(_)) => return rejected(format!("host {to} bears instances of plan {plan} already")),
        (Some(at), None) => {
            if let Some(removed) = removed {
                return rejected(format!("host {removed} was removed"));
            }
            let host = &mut known.hosts[at];
            host.id = to;
            std::mem::replace(&mut host.name, name.to_owned())
        }
    };
    remove_host(level, &RemovedHost { id: Some(from), name: old_name, certificates: false, at_unix_ms })
}

/// Each name counts once, with its latest time: a name may be revoked again after another
/// certificate was issued to it.
fn revoke_operator(level: &mut Level, operator: &RevokedOperator) -> Applied {
    if let Some(known) = level.revoked.iter_mut().find(|known| known.name == operator.name) {
        if known.at_unix_ms >= operator.at_unix_ms {
            return Applied::Unchanged;
        }
        known.at_unix_ms = operator.at_unix_ms;
        return Applied::Done;
    }
    if level.revoked.len() >= REVOKED_MAX {
        return rejected(format!(
            "the certificates of {REVOKED_MAX} operators have been revoked, no more names are remembered: make \
             another CA instead, and issue all certificates that are to be trusted by it"
        ));
    }
    level.revoked.push(operator.clone());
    level.revoked.sort_by(|a, b| a.name.cmp(&b.name));
    Applied::Done
}

/// The plan, if it is the one that is meant.
fn the_plan(level: &mut Level, id: PlanId) -> Result<&mut ClusterPlan, String> {
    match level.plan.as_mut() {
        Some(known) if known.id == id => Ok(known),
        Some(known) => Err(format!("plan {id} is not the mesh's plan, which is {}", known.id)),
        None => Err(format!("plan {id} is unknown, there is no plan yet")),
    }
}

/// The run that is meant, if it is remembered.
fn the_run(level: &mut Level, id: RunId) -> Result<&mut Run, String> {
    level.runs.iter_mut().find(|run| run.id == id).ok_or_else(|| format!("run {id} is unknown"))
}

fn advance_plan(plan: &mut ClusterPlan, to: PlanStage, at_unix_ms: u64) -> Applied {
    let nameless = plan.formation == Formation::Meet && plan.stage == PlanStage::Prepare;
    if nameless && to > PlanStage::Prepare {
        return rejected(format!("plan {} has no node ids yet: it can't go on to {to:?}", plan.id));
    }
    let applied = advance(&mut plan.stage, to);
    if applied == Applied::Done {
        plan.reached.push(StageReached { stage: to, at_unix_ms });
    }
    applied
}

fn name_nodes(plan: &mut ClusterPlan, ids: &[NodeId], at_unix_ms: u64) -> Applied {
    if plan.formation != Formation::Meet {
        return rejected(format!("plan {} is seeded: it has had its node ids from the beginning", plan.id));
    }
    if plan.stage > PlanStage::Prepare {
        let same = plan.instances.iter().map(|instance| &instance.node_id).eq(ids);
        return match same {
            true => Applied::Unchanged,
            false => rejected(format!("plan {} has other node ids already", plan.id)),
        };
    }
    let distinct: BTreeSet<_> = ids.iter().filter(|id| **id != NodeId::UNKNOWN).collect();
    if ids.len() != plan.instances.len() || distinct.len() != ids.len() {
        return rejected(format!(
            "{} node ids, {} of them distinct, don't name the {} instances of plan {}",
            ids.len(),
            distinct.len(),
            plan.instances.len(),
            plan.id
        ));
    }
    for (instance, id) in plan.instances.iter_mut().zip(ids) {
        instance.node_id = *id;
    }
    plan.stage = PlanStage::Release;
    plan.reached.push(StageReached { stage: PlanStage::Release, at_unix_ms });
    Applied::Done
}

fn start_run(level: &mut Level, run: &Run) -> Applied {
    if let Some(known) = level.runs.iter().find(|known| known.id == run.id) {
        // Shares may have been added since the first time.
        let begun_with = known.shares.get(..run.shares.len());
        let same = known.spec == run.spec && begun_with.is_some_and(|known| same_shares(known, &run.shares));
        return if same {
            Applied::Unchanged
        } else {
            rejected(format!("run {} exists with another spec", run.id))
        };
    }
    if let Some(open) = level.runs.iter().find(|known| known.stage != RunStage::Done) {
        return rejected(format!("run {} is not done yet: stop it or wait for it", open.id));
    }
    match &level.plan {
        Some(plan) if plan.stage == PlanStage::Formed => {}
        Some(_) => return rejected("the cluster is still being formed: wait for it".to_owned()),
        None => return rejected("there is no cluster yet: create one".to_owned()),
    }
    if run.stage == RunStage::Done || run.result.is_some() {
        return rejected(format!("run {} can't begin as done", run.id));
    }
    level.runs.push(run.clone());
    Applied::Done
}

/// Whether these shares were proposed as those; each may have been given up since.
fn same_shares(known: &[Share], proposed: &[Share]) -> bool {
    let same = |(known, share): (&Share, &Share)| Share { given_up: false, ..known.clone() } == *share;
    known.len() == proposed.len() && known.iter().zip(proposed).all(same)
}

fn add_shares(run: &mut Run, known: usize, given_up: Option<usize>, shares: &[Share]) -> Applied {
    let is_given_up = |index: usize| run.shares.get(index).is_some_and(|share| share.given_up);
    let there = run.shares.get(known..known + shares.len());
    if !shares.is_empty()
        && there.is_some_and(|there| same_shares(there, shares))
        && given_up.is_none_or(is_given_up)
    {
        return Applied::Unchanged;
    }
    if run.shares.len() != known {
        return rejected(format!("run {} has {} shares by now, not {known}", run.id, run.shares.len()));
    }
    if run.stage != RunStage::Running {
        return rejected(format!("run {} is not going on any more", run.id));
    }
    if matches!(run.spec.job, Job::ReadBack(_)) {
        return rejected(format!("run {} reads back: each host has the share that it wrote", run.id));
    }
    if shares.is_empty() || known + shares.len() > SHARES_MAX {
        return rejected(format!(
            "{} shares can't be added to the {known} of run {}: at least 1, and {SHARES_MAX} in all",
            shares.len(),
            run.id
        ));
    }
    let fits = |share: &Share| !share.given_up && share.rest_of.map(usize::from) == given_up;
    if !shares.iter().all(fits) {
        return rejected(format!("shares added to run {} must be the rest of the one given up", run.id));
    }
    match given_up.map(|index| run.shares.get_mut(index)) {
        None => {}
        Some(Some(share)) if !share.given_up => share.given_up = true,
        Some(Some(_)) => return rejected(format!("that share of run {} was given up before", run.id)),
        Some(None) => return rejected(format!("run {} has no such share to give up", run.id)),
    }
    run.shares.extend_from_slice(shares);
    Applied::Done
}

fn close_run(run: &mut Run, known: usize, result: &RunResult) -> Applied {
    match &run.result {
        None if run.shares.len() != known => rejected(format!(
            "run {} has {} shares, its account was closed with {known} in view",
            run.id,
            run.shares.len()
        )),
        None => {
            run.result = Some(result.clone());
            run.stage = RunStage::Done;
            Applied::Done
        }
        Some(known) if known == result => Applied::Unchanged,
        Some(_) => rejected(format!("run {} is closed already with another account", run.id)),
    }
}

fn advance<S: Ord + Copy + std::fmt::Debug>(stage: &mut S, to: S) -> Applied {
    match to.cmp(stage) {
        std::cmp::Ordering::Less => rejected(format!("stages only advance: it is {stage:?}, past {to:?}")),
        std::cmp::Ordering::Equal => Applied::Unchanged,
        std::cmp::Ordering::Greater => {
            *stage = to;
            Applied::Done
        }
    }
}

/// Drops the oldest closed runs until the level is within its bounds; the size when it
/// can't be.
fn trim(level: &mut Level) -> Result<(), usize> {
    loop {
        let bytes = codec::encode(level).map_or(usize::MAX, |payload| payload.len());
        if level.runs.len() <= RUNS_KEPT_MAX && bytes <= LEVEL_BYTES_MAX {
            return Ok(());
        }
        // The newest stays: whoever closed it wants to read it.
        let older = level.runs.len().saturating_sub(1);
        let read = level.runs.iter().find_map(|run| match &run.spec.job {
            // Whoever reads back needs what the hosts have kept of that run.
            Job::ReadBack(read) if run.stage != RunStage::Done => Some(read.of),
            _ => None,
        });
        let spare = |run: &Run| run.stage == RunStage::Done && Some(run.id) != read;
        match level.runs[..older].iter().position(spare) {
            Some(oldest) => drop(level.runs.remove(oldest)),
            None => return Err(bytes),
        }
    }
}

fn rejected(reason: String) -> Applied {
    Applied::Rejected(reason)
}

#[cfg(test)]
mod tests;
