//! `cluster check`: every instance asked for its view now, held against each other; and
//! how shards and primaries stand on the hosts, held against the plan.

mod standing;

use std::collections::{BTreeMap, BTreeSet};

use redmesh_api::control::{ClusterCheck, InstanceView, Refusal, RefusalKind};
use redmesh_api::level::{ClusterPlan, Level, SLOTS};

use super::refuse;
use crate::census::Census;
use crate::peer::{self, PeerReply, PeerRequest};
use crate::transport::Transport;

/// Errors, and warnings, that a check lists one by one; the rest are counted.
const LISTED_MAX: usize = 50;

/// How a server without TLS is spoken with.
const REDIS_CLI: &str = "redis-cli";

/// The same with TLS, by the CA of the operator's identity.
const REDIS_CLI_TLS: &str = "redis-cli --tls --cacert ca.pem";

/// Asks all hosts of the plan for their instances' views and judges them.
pub async fn cluster_check(census: &Census, transport: &dyn Transport) -> Result<ClusterCheck, Refusal> {
    let level = census.level();
    let Some(plan) = &level.plan else {
        return refuse(
            RefusalKind::NotFound,
            "there is no cluster yet: redmeshctl cluster create --instances-per-host N",
        );
    };
    let hosts = census.hosts();
    let there = plan.hosts.iter().filter(|planned| !level.is_removed(planned.id));
    let asked = there.map(|planned| async {
        let to = hosts.get(&planned.id).map(|host| host.addr);
        match peer::ask_known(transport, to, &PeerRequest::CheckInstances, peer::INSTANCES_DEADLINE).await {
            Ok(PeerReply::Views(views)) => Ok(views),
            Ok(other) => Err(format!("{}: answered {other:?}", planned.name)),
            Err(reason) => Err(format!("{}: {reason}", planned.name)),
        }
    });
    let mut views = Vec::new();
    let mut errors = Vec::new();
    for answer in futures_util::future::join_all(asked).await {
        match answer {
            Ok(answered) => views.extend(answered),
            Err(reason) => errors.push(reason),
        }
    }
    let tls = hosts.values().any(|host| host.facts.as_ref().is_some_and(|facts| facts.redis_tls));
    let redis_cli = if tls { REDIS_CLI_TLS } else { REDIS_CLI };
    Ok(judge(&level, plan, views, errors, redis_cli))
}

/// What the views amount to, where `redis_cli` begins a command to a server; pure.
pub fn judge(
    level: &Level,
    plan: &ClusterPlan,
    mut views: Vec<InstanceView>,
    mut errors: Vec<String>,
    redis_cli: &str,
) -> ClusterCheck {
    views.sort_by_key(|view| view.addr);
    let mut warnings = Vec::new();
    let mut open_slots = BTreeSet::new();
    let mut covered = BTreeSet::new();
    let mut by_digest: BTreeMap<u64, Vec<&InstanceView>> = BTreeMap::new();
    for view in &views {
        if !view.up {
            let why = view.problem.as_deref().unwrap_or("no answer");
            errors.push(format!("{}: {why}", view.addr));
            continue;
        }
        by_digest.entry(view.view_digest).or_default().push(view);
        open_slots.extend(view.open_slots.iter().copied());
        if view.primary {
            covered.extend(view.slots.iter().flat_map(|range| range.first..=range.last));
        }
        if !view.state_ok {
            errors.push(format!("{}: cluster_state:fail", view.addr));
        }
        if !level.nodes_known(plan).contains(&(view.known_nodes as usize)) {
            errors.push(format!(
                "{}: knows {} of {} nodes",
                view.addr,
                view.known_nodes,
                plan.instances.len()
            ));
        }
        if let Some(problem) = &view.problem {
            warnings.push(format!("{}: {problem}", view.addr));
        }
    }
    if by_digest.len() > 1 {
        let majority = by_digest.values().map(Vec::len).max().unwrap_or(0);
        let others = by_digest.values().filter(|group| group.len() < majority).flatten();
        let names: Vec<_> = others.map(|view| view.addr.to_string()).take(LISTED_MAX).collect();
        errors.push(format!(
            "views differ ({} kinds); apart from the majority: {}",
            by_digest.len(),
            names.join(", ")
        ));
    }
    let slots_covered = u16::try_from(covered.len()).unwrap_or(SLOTS);
    if slots_covered < SLOTS {
        errors.push(format!("{} of {SLOTS} slots are covered by no primary", SLOTS - slots_covered));
    }
    if !open_slots.is_empty() {
        warnings.push(format!("{} slots are open (being migrated or imported)", open_slots.len()));
    }
    warnings.extend(standing::warnings(plan, &views, redis_cli));
    let agreed = by_digest.len() == 1 && views.iter().all(|view| view.up);
    bound(&mut errors);
    bound(&mut warnings);
    ClusterCheck {
        slots_covered,
        agreed,
        open_slots: open_slots.into_iter().collect(),
        errors,
        warnings,
        instances: views,
    }
}

/// Bounds a list, and says how much more there was.
fn bound(lines: &mut Vec<String>) {
    if lines.len() > LISTED_MAX {
        let more = lines.split_off(LISTED_MAX).len();
        lines.push(format!("… and {more} more"));
    }
}

#[cfg(test)]
mod tests;
