//! What this agent knows of the mesh: gossip, the newest level and the local Raft
//! node's view of leadership, read together. Coordinator, control and metrics all ask
//! here, so that there is one answer to "who is alive", "who coordinates" and "how
//! many writes".

use std::collections::{BTreeMap, BTreeSet};
use std::net::SocketAddr;
use std::sync::{Arc, Mutex, PoisonError};

use redmesh_api::ids::{HostId, MeshId, RunId};
use redmesh_api::level::{Level, RemovedHost};
use redmesh_api::run::{Run, Tally};
use tokio::sync::watch;

use crate::clock::WallClock;
use crate::consensus::Leadership;
use crate::facts::{self, HostFacts, LeadFacts, Observed};
use crate::level::LevelCell;
use crate::mesh::{MeshMember, MeshView};
use crate::stats;

/// A host of the mesh, as its gossip tells it.
#[derive(Debug, Clone, PartialEq)]
pub struct CensusHost {
    /// Its id.
    pub id: HostId,
    /// Its mesh address.
    pub addr: SocketAddr,
    /// By the failure detector; this host itself is always alive.
    pub alive: bool,
    /// What it says of itself; `None` until that has arrived.
    pub facts: Option<HostFacts>,
    /// What it knows of leadership.
    pub lead: LeadFacts,
    /// How far it has reconciled.
    pub observed: Observed,
}

impl CensusHost {
    /// Its name, or its id while the name is not known.
    pub fn name(&self) -> String {
        self.facts.as_ref().map_or_else(|| self.id.to_string(), |facts| facts.name.clone())
    }

    fn of(member: &MeshMember) -> Self {
        Self {
            id: member.id,
            addr: member.addr,
            alive: member.alive,
            facts: member.get(facts::HOST),
            lead: member.get(facts::LEAD).unwrap_or_default(),
            observed: member.get(facts::OBSERVED).unwrap_or_default(),
        }
    }
}

/// Cloneable reader of all that is known.
#[derive(Debug, Clone)]
pub struct Census {
    /// This host.
    pub host: HostId,
    /// Its mesh's name.
    pub mesh_name: String,
    /// Hosts needed to initialise.
    pub bootstrap_expect: u16,
    /// Gossip.
    pub view: watch::Receiver<Arc<MeshView>>,
    /// The newest level.
    pub levels: LevelCell,
    /// The local Raft node.
    pub leadership: watch::Receiver<Leadership>,
    /// What the newest view says of its hosts.
    pub parsed: ParsedHosts,
    /// Counts of the open run that were heard so far.
    pub heard: HeardCounts,
    /// This host's, by which it judges the times that others say.
    pub clock: WallClock,
}

/// Hosts by id.
pub type Hosts = BTreeMap<HostId, CensusHost>;

/// The hosts of the view that was asked for last, without those that were removed: their
/// values are JSON, which is parsed once per view, not each time that somebody asks.
#[derive(Debug, Clone, Default)]
pub struct ParsedHosts(Arc<Mutex<Option<ParsedView>>>);

type ParsedView = (Arc<MeshView>, Vec<RemovedHost>, Arc<Hosts>);

impl ParsedHosts {
    fn of(&self, view: &Arc<MeshView>, level: &Level) -> Arc<Hosts> {
        let mut last = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some((known, removed, hosts)) = &*last
            && Arc::ptr_eq(known, view)
            && *removed == level.removed
        {
            return hosts.clone();
        }
        let there = view.members.values().filter(|member| !level.is_removed(member.id));
        let hosts: Arc<Hosts> = Arc::new(there.map(|member| (member.id, CensusHost::of(member))).collect());
        *last = Some((view.clone(), level.removed.clone(), hosts.clone()));
        hosts
    }
}

/// Counts of the run that was asked about last, as far as they were ever heard. Gossip
/// forgets: a host withdraws its counts once the run is closed, of which others may hear
/// later than of that, and what a dead host said is dropped after a while. A sum that
/// once knew of writes must not lose them.
#[derive(Debug, Clone, Default)]
pub struct HeardCounts(Arc<Mutex<Option<HeardOfRun>>>);

type HeardOfRun = (RunId, BTreeMap<stats::Life, Tally>);

impl HeardCounts {
    /// All that was heard of `run`, `sightings` included.
    fn with(&self, run: RunId, sightings: impl Iterator<Item = Tally>) -> Vec<Tally> {
        let mut heard = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        let before = heard.take().filter(|(of, _)| *of == run).map(|(_, tallies)| tallies);
        let all = stats::merge(before.unwrap_or_default().into_values().chain(sightings));
        let (_, all) = heard.insert((run, all));
        all.values().cloned().collect()
    }
}

impl Census {
    /// All hosts known, by id; none that was removed.
    pub fn hosts(&self) -> Arc<Hosts> {
        let view = self.view.borrow().clone();
        self.parsed.of(&view, &self.levels.get())
    }

    /// The newest level.
    pub fn level(&self) -> Arc<Level> {
        self.levels.get()
    }

    /// The mesh that this host belongs to, once it has been founded.
    pub fn mesh(&self) -> Option<MeshId> {
        self.levels.get().mesh
    }

    /// Whether this very host may act as the coordinator now.
    pub fn acting(&self) -> bool {
        self.leadership.borrow().acting
    }

    /// Who acts as the coordinator, of the newest term in which somebody does.
    pub fn coordinator(&self) -> Option<CensusHost> {
        let hosts = self.hosts();
        if self.acting() {
            return hosts.get(&self.host).cloned();
        }
        let others = hosts.values().filter(|host| host.id != self.host);
        others.filter(|host| host.alive && host.lead.acting).max_by_key(|host| host.lead.term).cloned()
    }

    /// Who votes, by the acting coordinator's word or by the local Raft node's.
    pub fn voters(&self) -> BTreeSet<HostId> {
        match self.coordinator() {
            Some(coordinator) if coordinator.id != self.host => coordinator.lead.voters,
            _ => self.leadership.borrow().voters.clone(),
        }
    }

    /// Counts of `run` by host, share and epoch: all that gossip has told, earlier lives
    /// included; those of a closed run are the level's own. An agent's sum never goes back.
    pub fn tallies(&self, run: &Run) -> Vec<Tally> {
        match &run.result {
            Some(result) => result.tallies.clone(),
            None => self.gossiped_tallies(run.id),
        }
    }

    fn gossiped_tallies(&self, run: RunId) -> Vec<Tally> {
        let view = self.view.borrow().clone();
        self.heard.with(run, view.members.values().flat_map(|member| facts::tallies_of(member, run)))
    }
}

/// A host called `name` at 10.0.0.`id`, as tests have it.
#[cfg(test)]
pub(crate) fn example_host(id: u8, name: &str, alive: bool) -> CensusHost {
    let facts = HostFacts {
        name: name.to_owned(),
        version: "1".to_owned(),
        http: None,
        redis_ip: [10, 0, 0, id].into(),
        base_port: 6379,
        bootstrap_expect: 3,
        signs: false,
        redis_tls: false,
    };
    CensusHost {
        id: HostId(id.into()),
        addr: ([10, 0, 0, id], 7379).into(),
        alive,
        facts: Some(facts),
        lead: LeadFacts::default(),
        observed: Observed::default(),
    }
}

#[cfg(test)]
mod tests {
    use redmesh_api::run::Counts;
    use uuid::Uuid;

    use super::*;

    #[test]
    fn what_gossip_has_forgotten_still_counts_until_another_run_is_asked_about() {
        let heard = HeardCounts::default();
        let [one, two] = [1, 2].map(|run| RunId(Uuid::from_u128(run)));
        let tally = |host, acked| {
            let counts = Counts { issued: acked, acked, ..Counts::default() };
            Tally { host: HostId(host), share: 0, epoch: 0, closed: false, counts }
        };
        let sum = |run, said: Vec<Tally>| stats::total(&heard.with(run, said.into_iter())).acked;
        assert_eq!(sum(one, vec![tally(1, 5), tally(2, 7)]), 12);
        assert_eq!(sum(one, vec![tally(1, 6)]), 13, "host 2 has withdrawn");
        assert_eq!(sum(two, vec![tally(1, 1)]), 1);
        assert_eq!(sum(one, vec![]), 0);
    }

    fn view(name: &str) -> Arc<MeshView> {
        let facts = format!(
            r#"{{"name":"{name}","version":"1","http":null,"redis_ip":"127.0.0.1","base_port":1,"bootstrap_expect":1}}"#
        );
        let member = MeshMember {
            id: HostId(1),
            generation: 1,
            addr: "127.0.0.1:1".parse().expect("an address"),
            alive: true,
            values: BTreeMap::from([(facts::HOST.to_owned(), facts)]),
            older: Vec::new(),
        };
        Arc::new(MeshView { members: BTreeMap::from([(member.id, member)]) })
    }

    #[test]
    fn a_view_is_parsed_once_and_a_newer_one_anew() {
        let parsed = ParsedHosts::default();
        let (a, b) = (view("a"), view("b"));
        let mut level = Level::default();
        let first = parsed.of(&a, &level);
        assert_eq!(first[&HostId(1)].name(), "a");
        assert!(Arc::ptr_eq(&first, &parsed.of(&a, &level)));
        assert_eq!(parsed.of(&b, &level)[&HostId(1)].name(), "b");
        level.removed = vec![RemovedHost {
            id: Some(HostId(1)),
            name: "b".to_owned(),
            certificates: true,
            at_unix_ms: 1,
        }];
        assert!(parsed.of(&b, &level).is_empty(), "removed");
    }
}
