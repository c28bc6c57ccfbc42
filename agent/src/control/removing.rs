//! Removing a host from the mesh for good: whom it means, what speaks against it, and the
//! order in which it is done.
//!
//! The voters are changed first, while the host still takes part: a removed voter would
//! count against the majority that the removal itself needs. Its redis-servers are left
//! alone; what is to be done about them is said.

use std::collections::{BTreeMap, BTreeSet};

use redmesh_api::control::{ControlReply, HostRemove, InstanceView, RefusalKind, RemovalCheck};
use redmesh_api::ids::HostId;
use redmesh_api::level::{ClusterPlan, Level, PlanStage, RemovedHost, SLOTS};

use super::change::uncertain;
use super::joining::Refused;
use super::{Control, check, natural, refused};
use crate::census::{CensusHost, Hosts};
use crate::consensus::voters::voters_without;
use crate::consensus::{Applied, Command, VoterNode};

/// Commands that a reply lists; the rest are counted.
const LISTED_MAX: usize = 50;

/// Whom a request means.
#[derive(Debug, PartialEq, Eq)]
enum Target {
    /// Removed before.
    Gone(RemovedHost),
    /// Still there, alive or dead; or a name that nobody bears.
    Host { id: Option<HostId>, name: String, certificates: bool },
}

fn find(level: &Level, hosts: &Hosts, request: &HostRemove) -> Result<Target, Refused> {
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
            let gone = level
                .removed
                .iter()
                .rev()
                .find(|host| host.name == wanted || host.id.is_some_and(|id| id.to_string() == wanted));
            if let Some(gone) = gone {
                return Ok(Target::Gone(gone.clone()));
            }
            if request.force.contains(&RemovalCheck::Unknown) {
                if !redmesh_api::tls::valid_name(wanted) {
                    return Err((RefusalKind::Invalid, format!("{wanted:?} can be no host's name")));
                }
                return Ok(Target::Host { id: None, name: wanted.to_owned(), certificates: true });
            }
            let mut names: Vec<_> = known.into_values().collect();
            names.sort_by_cached_key(|name| natural(name));
            Err((
                RefusalKind::NotFound,
                format!(
                    "there is no host {wanted:?}; known are {}. To refuse the certificates of a host that the mesh \
                     has forgotten: --force {}",
                    names.join(", "),
                    RemovalCheck::Unknown.name()
                ),
            ))
        }
        _ => {
            let ids: Vec<_> = found.iter().map(|(id, _)| id.to_string()).collect();
            Err((
                RefusalKind::Conflict,
                format!("several hosts bear the name {wanted:?}: name one by its id, of {}", ids.join(", ")),
            ))
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
fn notes(plan: Option<&ClusterPlan>, level: &Level, host: HostId) -> Vec<String> {
    let Some(plan) = plan else { return Vec::new() };
    let nodes: Vec<_> = plan.instances_of(host).collect();
    let stays = |id: HostId| id != host && !level.is_removed(id);
    let entry = plan.instances.iter().find(|instance| stays(plan.host_of(instance).id));
    let (Some(entry), false) = (entry, nodes.is_empty()) else { return Vec::new() };
    let entry = plan.addr_of(entry);
    let mut notes = vec![format!(
        "its {} redis-servers are left as they are: stop them there (`systemctl stop redmesh-servers`), and let the \
         cluster forget them, which takes a minute to be forgotten itself:",
        nodes.len()
    )];
    let forget = |node| format!("redis-cli --cluster call {entry} CLUSTER FORGET {node}");
    notes.extend(nodes.iter().take(LISTED_MAX).map(|instance| forget(instance.node_id)));
    if nodes.len() > LISTED_MAX {
        notes.push(format!(
            "… and {} more, whose ids `redis-cli CLUSTER NODES` tells",
            nodes.len() - LISTED_MAX
        ));
    }
    notes
}

impl Control {
    /// Whether a removal names this very host.
    pub(super) fn removes_itself(&self, request: &HostRemove) -> bool {
        let own = self.census.hosts().get(&self.census.host).map(CensusHost::name);
        own.as_ref() == Some(&request.host) || self.census.host.to_string() == request.host
    }

    pub(super) async fn remove(&self, level: &Level, request: &HostRemove) -> ControlReply {
        let hosts = self.census.hosts();
        let (id, name, certificates) = match find(level, &hosts, request) {
            Ok(Target::Gone(host)) => {
                return ControlReply::Removed { host, fresh: false, notes: Vec::new() };
            }
            Ok(Target::Host { id, name, certificates }) => (id, name, certificates),
            Err((kind, reason)) => return refused(kind, reason),
        };
        if id == Some(self.census.host) {
            return refused(
                RefusalKind::Conflict,
                format!(
                    "{name} coordinates at the moment: stop its agent (systemctl stop redmesh-agent), or cut it off; \
                     another host takes over, and can then remove it"
                ),
            );
        }
        let plan = level.plan.as_ref();
        if let (Some(id), Some(plan)) = (id, plan)
            && plan.instances_of(id).next().is_some()
            && let Err((kind, reason)) = self.may_lose(plan, id, &name, &request.force).await
        {
            return refused(kind, reason);
        }
        if let Some(id) = id
            && let Err(reply) = self.vote_without(&hosts, id, &name).await
        {
            return *reply;
        }
        let host = RemovedHost { id, name, certificates, at_unix_ms: self.census.clock.now_unix_ms() };
        match self.orders.commit(Command::RemoveHost(host.clone())).await {
            Ok(Applied::Done | Applied::Unchanged) => {
                tracing::info!(host = host.name, ?id, "removed a host");
                let notes = id.map(|id| notes(plan, level, id)).unwrap_or_default();
                ControlReply::Removed { host, fresh: true, notes }
            }
            Ok(Applied::Rejected(reason)) => refused(RefusalKind::Conflict, reason),
            Err(error) => uncertain(&error),
        }
    }

    /// Whether the cluster can do without the servers of a host.
    async fn may_lose(
        &self,
        plan: &ClusterPlan,
        host: HostId,
        name: &str,
        force: &[RemovalCheck],
    ) -> Result<(), Refused> {
        if plan.stage != PlanStage::Formed {
            return Err((
                RefusalKind::Conflict,
                format!("the cluster is still being formed, and {name} is part of it: wait for it"),
            ));
        }
        if force.contains(&RemovalCheck::Slots) {
            return Ok(());
        }
        let views = match check::cluster_check(&self.census, &*self.transport).await {
            ControlReply::ClusterCheck(check) => check.instances,
            other => return Err((RefusalKind::Internal, format!("the check answered {other:?}"))),
        };
        match slots_without(host, &views) {
            0 => Ok(()),
            slots => Err((
                RefusalKind::Conflict,
                format!(
                    "{slots} of {SLOTS} slots are covered by no other host than {name}: move them to others (`redis-cli \
                     --cluster reshard`), or let replicas elsewhere take over (`redmeshctl cluster check` says how \
                     they stand); --force {} removes it all the same, and the cluster loses them",
                    RemovalCheck::Slots.name()
                ),
            )),
        }
    }

    /// Makes sure that the host does not vote.
    async fn vote_without(&self, hosts: &Hosts, host: HostId, name: &str) -> Result<(), Box<ControlReply>> {
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
            Box::new(refused(RefusalKind::Conflict, reason))
        })?;
        let node = |id: &HostId| {
            let host = hosts.get(id)?;
            Some((*id, VoterNode { addr: host.addr, name: host.name() }))
        };
        let nodes: Option<_> = wanted.iter().map(node).collect();
        let Some(nodes) = nodes else {
            let reason = "a voter is not known by gossip at the moment, nothing was changed: try again";
            return Err(Box::new(refused(RefusalKind::NoCoordinator, reason)));
        };
        self.orders.set_voters(nodes).await.map_err(|error| Box::new(uncertain(&error)))
    }
}

#[cfg(test)]
mod tests;
