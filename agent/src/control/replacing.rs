//! Giving the servers of a host that is gone to the host that took its place: the same name
//! or another, the same addresses, a new id.
//!
//! A host that lost its state directory comes back under a new id, of which the plan knows
//! nothing: its servers may still run, and nobody supervises them. Addresses stay as they
//! are, because every server knows its peers by them.

use redmesh_api::control::{ControlReply, HostReplace, Refusal, RefusalKind, Replaced};
use redmesh_api::ids::HostId;
use redmesh_api::level::{ClusterPlan, Level, PlannedHost};

use super::removing::removed_as;
use super::{Answer, Control, refuse};
use crate::census::{CensusHost, Hosts};
use crate::consensus::Command;

/// Who is to have whose instances.
#[derive(Debug, PartialEq, Eq)]
enum Change {
    /// `to` takes the place of `from`.
    Due { from: HostId, to: PlannedHost },
    /// It did so before.
    Past { from: HostId, to: PlannedHost },
}

/// What a request comes to, or why it can't be.
fn judge(level: &Level, plan: &ClusterPlan, hosts: &Hosts, request: &HostReplace) -> Result<Change, Refusal> {
    let wanted = request.host.as_str();
    let conflict = |reason: String| refuse(RefusalKind::Conflict, reason);
    let names = |id: HostId, name: &str| name == wanted || id.to_string() == wanted;
    let alive = |host: &PlannedHost| hosts.get(&host.id).is_some_and(|host| host.alive);
    // Who was replaced keeps its name's certificates, for the other has them as well.
    let gone = removed_as(level, wanted).filter(|gone| !gone.certificates);
    let Some(from) = plan.hosts.iter().find(|host| names(host.id, &host.name)) else {
        // By the id that it had.
        if let Some(gone) = gone
            && let Some(from) = gone.id
            && let Some(to) = plan.hosts.iter().find(|host| host.name == gone.name && alive(host))
        {
            return Ok(Change::Past { from, to: to.clone() });
        }
        let bearers: Vec<&str> = plan.hosts.iter().map(|host| host.name.as_str()).collect();
        let reason = format!("no host {wanted:?} bears instances of the cluster, but {}", bearers.join(", "));
        return refuse(RefusalKind::NotFound, reason);
    };
    if level.is_removed(from.id) {
        return conflict(format!(
            "{} was removed, and the cluster has forgotten its servers: they can't come back",
            from.name
        ));
    }
    if alive(from) {
        if let Some(id) = gone.and_then(|gone| gone.id) {
            return Ok(Change::Past { from: id, to: from.clone() });
        }
        return conflict(format!("{} ({}) is alive, and bears its instances itself", from.name, from.id));
    }
    let with = request.with.as_deref().unwrap_or(&from.name);
    let is_meant = |host: &&CensusHost| {
        host.alive && host.id != from.id && (host.name() == with || host.id.to_string() == with)
    };
    let found: Vec<&CensusHost> = hosts.values().filter(is_meant).collect();
    let (host, facts) = match found[..] {
        [host] => match &host.facts {
            Some(facts) => (host, facts),
            None => return conflict(format!("{with} has not said yet where its servers are: try again")),
        },
        [] => {
            return conflict(format!(
                "no other host {with:?} is here to take the place of {} ({}): start its agent, with an empty \
                 state directory, or name another one by --with",
                from.name, from.id
            ));
        }
        _ => {
            let ids: Vec<_> = found.iter().map(|host| host.id.to_string()).collect();
            return conflict(format!("several hosts are called {with:?}: --with ID, of {}", ids.join(", ")));
        }
    };
    if plan.hosts.iter().any(|planned| planned.id == host.id) {
        return conflict(format!("{with} bears instances of the cluster already"));
    }
    if (facts.redis_ip, facts.base_port) != (from.ip, from.base_port) {
        return conflict(format!(
            "the servers of {with} would be at {} from port {} on, those of {} are known to their peers at {} from \
             port {} on: give {with} that address (redis.ip, redis.base_port)",
            facts.redis_ip, facts.base_port, from.name, from.ip, from.base_port
        ));
    }
    let to = PlannedHost { id: host.id, name: facts.name.clone(), ..from.clone() };
    Ok(Change::Due { from: from.id, to })
}

impl Control {
    pub(super) async fn replace(&self, level: &Level, request: &HostReplace) -> Answer {
        let Some(plan) = &level.plan else {
            return refuse(
                RefusalKind::NotFound,
                "there is no cluster, so no host has instances to hand over",
            );
        };
        let instances = |host: HostId| plan.instances_of(host).count() as u32;
        let replaced = match judge(level, plan, &self.census.hosts(), request)? {
            Change::Past { from, to } => Replaced { from, instances: instances(to.id), to, fresh: false },
            Change::Due { from, to } => {
                self.commit(Command::ReplaceHost {
                    plan: plan.id,
                    from,
                    to: to.id,
                    name: to.name.clone(),
                    at_unix_ms: self.census.clock.now_unix_ms(),
                })
                .await?;
                tracing::info!(%from, to = %to.id, name = to.name, "a host took another's place");
                Replaced { from, instances: instances(from), to, fresh: true }
            }
        };
        Ok(ControlReply::Replaced(replaced))
    }
}

#[cfg(test)]
mod tests;
