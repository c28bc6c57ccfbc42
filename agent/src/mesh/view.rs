//! What one host has heard of all: an immutable picture, replaced whole.

use std::cmp::Reverse;
use std::collections::BTreeMap;
use std::net::SocketAddr;

use chitchat::{Chitchat, ChitchatId};
use redmesh_api::ids::HostId;
use serde::de::DeserializeOwned;

use super::gossip::RESTART_BITS;

/// All hosts heard of and not yet forgotten, dead ones among them, this one too.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct MeshView {
    /// By id.
    pub members: BTreeMap<HostId, MeshMember>,
}

impl MeshView {
    /// Those alive.
    pub fn live(&self) -> impl Iterator<Item = &MeshMember> {
        self.members.values().filter(|member| member.alive)
    }
}

/// One host, as its newest agent presents it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct MeshMember {
    /// Its id.
    pub id: HostId,
    /// Which life of its agent.
    pub generation: u64,
    /// Its mesh address.
    pub addr: SocketAddr,
    /// Whether it has been heard of lately.
    pub alive: bool,
    /// Its values, JSON by key.
    pub values: BTreeMap<String, String>,
    /// Last values of its agent's earlier lives, newest first, as long as gossip still
    /// remembers them: counts of an earlier life must not vanish from sums.
    pub older: Vec<BTreeMap<String, String>>,
}

impl MeshMember {
    /// The value under `key`; `None` if there is none or it is not a `T` (of another
    /// version of redmesh, mostly).
    pub fn get<T: DeserializeOwned>(&self, key: &str) -> Option<T> {
        parse(self.id, key, self.values.get(key)?)
    }

    /// The values under `key`, of the newest life and of all older ones.
    pub fn get_all<T: DeserializeOwned>(&self, key: &str) -> Vec<T> {
        let lives = std::iter::once(&self.values).chain(&self.older);
        lives.filter_map(|values| parse(self.id, key, values.get(key)?)).collect()
    }
}

fn parse<T: DeserializeOwned>(host: HostId, key: &str, json: &str) -> Option<T> {
    serde_json::from_str(json)
        .inspect_err(|error| tracing::debug!(%host, key, %error, "undecodable gossip value"))
        .ok()
}

/// What a view is made of, without the values: equal marks mean equal views.
pub(super) type Mark = Vec<(ChitchatId, u64, u64, bool)>;

pub(super) fn mark(chitchat: &Chitchat) -> Mark {
    let live: std::collections::HashSet<_> = chitchat.live_nodes().collect();
    let states = chitchat.node_states().iter();
    states
        .map(|(id, state)| (id.clone(), state.max_version(), state.last_gc_version(), live.contains(id)))
        .collect()
}

pub(super) fn build(chitchat: &Chitchat) -> MeshView {
    let live: std::collections::HashSet<_> = chitchat.live_nodes().collect();
    let mut lives: BTreeMap<HostId, Vec<_>> = BTreeMap::new();
    for (id, state) in chitchat.node_states() {
        // An id that is no host's comes of another program: not a member.
        let Ok(host) = id.node_id.parse::<HostId>() else { continue };
        lives.entry(host).or_default().push((id, state));
    }
    let members = lives.into_iter().filter_map(|(id, mut lives)| {
        lives.sort_by_key(|(life, _)| Reverse((life.generation_id, live.contains(life))));
        let mut newest_first = lives.into_iter().map(|(life, state)| {
            let values: BTreeMap<_, _> =
                state.key_values().map(|(key, value)| (key.to_owned(), value.to_owned())).collect();
            (life, values)
        });
        let (life, values) = newest_first.next()?;
        let generation = life.generation_id >> RESTART_BITS;
        // A restart of gossip within one life published the same values again.
        let older = newest_first
            .filter(|(older, _)| older.generation_id >> RESTART_BITS != generation)
            .map(|(_, values)| values)
            .filter(|values| !values.is_empty());
        let member = MeshMember {
            id,
            generation,
            addr: life.gossip_advertise_addr,
            alive: live.contains(life),
            older: older.collect(),
            values,
        };
        Some((id, member))
    });
    MeshView { members: members.collect() }
}
