//! Removing a host from the mesh for good: whom it means, what speaks against it, and the
//! order in which it is done.
//!
//! The voters are changed first, while the host still takes part: a removed voter would
//! count against the majority that the removal itself needs. A coordinator gives leadership
//! up before it is removed. The host's redis-servers are left alone; every other host has its
//! own forget them, see `host::forgetting`.

use std::collections::{BTreeMap, BTreeSet};
use std::time::Duration;

use redmesh_api::control::{
    ControlReply, HostRemove, InstanceView, Refusal, RefusalKind, RemovalCheck, Removed,
};
use redmesh_api::ids::HostId;
use redmesh_api::level::{ClusterPlan, Level, PlanStage, RemovedHost, SLOTS};

use super::change::uncertain;
use super::{Answer, Control, check, natural, refuse};
use crate::census::{CensusHost, Hosts};
use crate::consensus::voters::voters_without;
use crate::consensus::{Command, HAND_OVER_MAX, VoterNode};
use crate::peer::{self, PeerReply, PeerRequest};

/// For another host to be elected after the coordinator has given leadership up.
const SUCCESSION_MAX: Duration = Duration::from_secs(10);

/// Between two looks at who coordinates.
const SUCCESSION_LOOK: Duration = Duration::from_millis(50);

/// Whom a request means.
#[derive(Debug, PartialEq, Eq)]
enum Target {
    /// Removed before.
    Gone(RemovedHost),
    /// Still there, alive or dead; or a name that nobody bears.
    Host { id: Option<HostId>, name: String, certificates: bool },
}

/// The host that was removed last of those whose name or id is `wanted`.
pub(super) fn removed_as<'a>(level: &'a Level, wanted: &str) -> Option<&'a RemovedHost> {
    let is_meant =
        |host: &&RemovedHost| host.name == wanted || host.id.is_some_and(|id| id.to_string() == wanted);
    level.removed.iter().rev().find(is_meant)
}

fn find(level: &Level, hosts: &Hosts, request: &HostRemove) -> Result<Target, Refusal> {
    let wanted = request.host.as_str();
    let means = |id: HostId, name: &str| name == wanted || id.to_string() == wanted;
    let planned = level.plan.iter().flat_map(|plan| &plan.hosts).map(|host| (host.id, host.name.clone()));
    // The plan remembers hosts that gossip has forgotten; each counts once.
    let known: BTreeMap<HostId, String> = hosts
        .values()
        .map(|host| (host.id, host.name()))
        .chain(planned)
        .filter(|(id, _)| !level.is_removed(*id))
        .collect();
    let found: Vec<_> = known.iter().filter(|(id, name)| means(**id, name)).collect();
    match found[..] {
        [(id, name)] => {
            let certificates = !known.iter().any(|(other, theirs)| other != id && theirs == name);
            Ok(Target::Host { id: Some(*id), name: name.clone(), certificates })
        }
        [] => {
            if let Some(gone) = removed_as(level, wanted) {
                return Ok(Target::Gone(gone.clone()));
            }
            if request.force.contains(&RemovalCheck::Unknown) {
                if !redmesh_api::tls::valid_name(wanted) {
                    return refuse(RefusalKind::Invalid, format!("{wanted:?} can be no host's name"));
                }
                return Ok(Target::Host { id: None, name: wanted.to_owned(), certificates: true });
            }
            let mut names: Vec<_> = known.into_values().collect();
            names.sort_by_cached_key(|name| natural(name));
            refuse(
                RefusalKind::NotFound,
                format!(
                    "there is no host {wanted:?}; known are {}. To refuse the certificates of a host that the mesh \
                     has forgotten: --force {}",
                    names.join(", "),
                    RemovalCheck::Unknown.name()
                ),
            )
        }
        _ => {
            let ids: Vec<_> = found.iter().map(|(id, _)| id.to_string()).collect();
            refuse(
                RefusalKind::Conflict,
                format!("several hosts bear the name {wanted:?}: name one by its id, of {}", ids.join(", ")),
            )
        }
    }
}

/// Slots that no primary on another host covers.
fn slots_without(host: HostId, views: &[InstanceView]) -> usize {
    let others = views.iter().filter(|view| view.host != host && view.up && view.primary);
    let covered: BTreeSet<u16> =
        others.flat_map(|view| &view.slots).flat_map(|range| range.first..=range.last).collect();
    usize::from(SLOTS).saturating_sub(covered.len())
}

/// What is left to do about the servers of a host that was removed.
fn notes(nodes: u32) -> Vec<String> {
    if nodes == 0 {
        return Vec::new();
    }
    vec![format!(
        "its {nodes} redis-servers are left as they are: stop them there (`systemctl stop redmesh-servers`); the \
         others' agents have the cluster forget them"
    )]
}

/// Nodes that a host has in the plan.
fn nodes_of(level: &Level, host: Option<HostId>) -> u32 {
    let planned = level.plan.iter().flat_map(|plan| host.map(|host| plan.instances_of(host).count()));
    planned.sum::<usize>() as u32
}

impl Control {
    /// Whether a removal names this host.
    pub(super) fn removes(&self, request: &HostRemove, host: HostId) -> bool {
        let name = self.census.hosts().get(&host).map(CensusHost::name);
        name.as_ref() == Some(&request.host) || host.to_string() == request.host
    }

    /// Has the coordinator give leadership up, where it is the one to be removed, and waits
    /// until another host coordinates.
    pub(super) async fn succeed(&self, coordinator: &CensusHost) -> Result<(), Refusal> {
        let name = coordinator.name();
        let request = PeerRequest::HandOver;
        let deadline = HAND_OVER_MAX + peer::QUICK_DEADLINE;
        let reason = match peer::ask(&*self.transport, coordinator.addr, &request, deadline).await {
            Ok(PeerReply::Accepted) => None,
            Ok(PeerReply::Refused(refusal)) => Some(refusal.message),
            Ok(other) => Some(format!("it answered {other:?}")),
            Err(error) => Some(crate::error_chain(&error)),
        };
        if let Some(reason) = reason {
            let reason = format!(
                "{name} coordinates, and could not hand that over to another voter first: {reason}; nothing was \
                 changed. Or stop its agent (systemctl stop redmesh-agent): another host takes over"
            );
            return refuse(RefusalKind::Conflict, reason);
        }
        let until = tokio::time::Instant::now() + SUCCESSION_MAX;
        while self.census.coordinator().is_none_or(|host| host.id == coordinator.id) {
            if tokio::time::Instant::now() >= until {
                let reason =
                    format!("{name} has handed over, and nobody is known to coordinate yet: try again");
                return refuse(RefusalKind::NoCoordinator, reason);
            }
            tokio::time::sleep(SUCCESSION_LOOK).await;
        }
        Ok(())
    }

    pub(super) async fn remove(&self, level: &Level, request: &HostRemove) -> Answer {
        let hosts = self.census.hosts();
        let (id, name, certificates) = match find(level, &hosts, request)? {
            Target::Gone(host) => {
                let nodes = nodes_of(level, host.id);
                let known = Removed { host, fresh: false, nodes, notes: Vec::new() };
                return Ok(ControlReply::Removed(known));
            }
            Target::Host { id, name, certificates } => (id, name, certificates),
        };
        if id == Some(self.census.host) {
            // Whoever is asked makes it hand over first; then it is elected again at worst.
            let reason = format!("{name} coordinates again, nothing was changed: try again");
            return refuse(RefusalKind::NoCoordinator, reason);
        }
        if let (Some(id), Some(plan)) = (id, &level.plan)
            && plan.instances_of(id).next().is_some()
        {
            self.may_lose(plan, id, &name, &request.force).await?;
        }
        if let Some(id) = id {
            self.vote_without(&hosts, id, &name).await?;
        }
        let host = RemovedHost { id, name, certificates, at_unix_ms: self.census.clock.now_unix_ms() };
        self.commit(Command::RemoveHost(host.clone())).await?;
        tracing::info!(host = host.name, ?id, "removed a host");
        let nodes = nodes_of(level, id);
        Ok(ControlReply::Removed(Removed { host, fresh: true, nodes, notes: notes(nodes) }))
    }

    /// Whether the cluster can do without the servers of a host.
    async fn may_lose(
        &self,
        plan: &ClusterPlan,
        host: HostId,
        name: &str,
        force: &[RemovalCheck],
    ) -> Result<(), Refusal> {
        if plan.stage != PlanStage::Formed {
            return refuse(
                RefusalKind::Conflict,
                format!("the cluster is still being formed, and {name} is part of it: wait for it"),
            );
        }
        if force.contains(&RemovalCheck::Slots) {
            return Ok(());
        }
        let check = check::cluster_check(&self.census, &*self.transport).await?;
        match slots_without(host, &check.instances) {
            0 => Ok(()),
            slots => refuse(
                RefusalKind::Conflict,
                format!(
                    "{slots} of {SLOTS} slots are covered by no other host than {name}: move them to others (`redis-cli \
                     --cluster reshard`), or let replicas elsewhere take over (`redmeshctl cluster check` says how \
                     they stand); --force {} removes it all the same, and the cluster loses them",
                    RemovalCheck::Slots.name()
                ),
            ),
        }
    }

    /// Makes sure that the host does not vote.
    async fn vote_without(&self, hosts: &Hosts, host: HostId, name: &str) -> Result<(), Refusal> {
        let voters = self.census.leadership.borrow().voters.clone();
        if !voters.contains(&host) {
            return Ok(());
        }
        let alive = hosts.values().filter(|host| host.alive && host.facts.is_some()).map(|host| host.id);
        let wanted = voters_without(&voters, host, &alive.collect()).map_err(|reason| {
            let reason = format!(
                "{name} votes, and without it the mesh could decide nothing: {reason}; bring one of the others back, \
                 or remove the dead ones first"
            );
            Refusal::new(RefusalKind::Conflict, reason)
        })?;
        let node = |id: &HostId| {
            let host = hosts.get(id)?;
            Some((*id, VoterNode { addr: host.addr, name: host.name() }))
        };
        let nodes: Option<_> = wanted.iter().map(node).collect();
        let Some(nodes) = nodes else {
            let reason = "a voter is not known by gossip at the moment, nothing was changed: try again";
            return refuse(RefusalKind::NoCoordinator, reason);
        };
        self.orders.set_voters(nodes).await.map_err(|error| uncertain(&error))
    }
}

#[cfg(test)]
mod tests;
