//! MEET formation as decisions: what one server needs next, given the plan and the
//! server's own view of the cluster.
//!
//! Pure: no IO, no clock. The plan is the truth that every view is held against, so
//! nobody has to compare views with each other: a view that is the plan's is everybody's.
//! Each decision is made anew from what the server says, so each is safe to repeat, by
//! a restarted agent too.
//!
//! Servers are introduced along a tree over the plan's instances: each meets its parent,
//! so that no server takes part in more than [`TREE_DEGREE`] + 1 introductions and all
//! hosts work at once. Gossip does the rest. Where it is slow (one node of hundreds may
//! take minutes), the server is introduced to those that it lacks, directly.

mod choice;

use std::collections::{BTreeMap, BTreeSet};

use redmesh_api::ids::NodeId;
use redmesh_api::level::{ClusterPlan, PlanStage, PlannedInstance, PlannedRole, SlotRange};

use super::topology::{Topology, TopologyNode};

pub use choice::{Choice, choose};

/// Children of a node in the tree of introductions.
pub const TREE_DEGREE: usize = 8;

/// Servers that one straggler is introduced to at a time.
pub const MEETS_AT_ONCE_MAX: usize = 16;

/// What a server needs next.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Move {
    /// Nothing: it is where the plan's stage wants it.
    Done,
    /// Time; the words say for what.
    Wait(String),
    /// `CLUSTER SET-CONFIG-EPOCH`.
    SetEpoch(u64),
    /// `CLUSTER ADDSLOTSRANGE`.
    AddSlots(Vec<SlotRange>),
    /// `CLUSTER MEET` with these instances of the plan, by index.
    Meet(Vec<usize>),
    /// `CLUSTER REPLICATE`.
    Follow(NodeId),
    /// A person: what is wrong, and the remedy.
    Stuck(String),
}

/// What instance `index` of `plan` needs next, whose own view is `view`. `straggling`
/// says that gossip has had its time.
pub fn next_move(plan: &ClusterPlan, index: usize, view: &Topology, straggling: bool) -> Move {
    let Some(planned) = plan.instances.get(index) else { return Move::Done };
    let Some(me) = view.myself() else {
        return Move::Stuck("does not list itself among the cluster's nodes".to_owned());
    };
    let look = Look { plan, index, planned, view, me };
    match plan.stage {
        PlanStage::Prepare => look.prepare(),
        PlanStage::Release => look.introduce(straggling),
        PlanStage::Replicate => look.replicate(straggling),
        PlanStage::Formed => Move::Done,
    }
}

/// Whom instance `index` meets in the tree; the root meets nobody.
pub fn parent(index: usize) -> Option<usize> {
    Some(index.checked_sub(1)? / TREE_DEGREE)
}

/// The config epoch of instance `index`: its own, for equal ones are resolved one after
/// the other, each with a `nodes.conf` written and synced. Replicas-to-be are primaries
/// until they are told whom to follow, so they get one as well.
fn epoch(plan: &ClusterPlan, index: usize) -> u64 {
    match plan.instances[index].role {
        PlannedRole::Primary { config_epoch, .. } => config_epoch,
        PlannedRole::Replica { .. } => {
            let primaries = plan.instances.iter().filter_map(|instance| match instance.role {
                PlannedRole::Primary { config_epoch, .. } => Some(config_epoch),
                PlannedRole::Replica { .. } => None,
            });
            primaries.max().unwrap_or(0) + 1 + index as u64
        }
    }
}

/// Everything that a decision about one server is made of.
struct Look<'a> {
    plan: &'a ClusterPlan,
    index: usize,
    planned: &'a PlannedInstance,
    view: &'a Topology,
    me: &'a TopologyNode,
}

impl Look<'_> {
    fn prepare(&self) -> Move {
        if !self.me.has("master") {
            return Move::Stuck(
                "is a replica already: make it an empty primary (CLUSTER RESET HARD) if nobody needs it"
                    .to_owned(),
            );
        }
        let planned: BTreeSet<_> = self.plan.instances.iter().map(|i| self.plan.addr_of(i)).collect();
        let others = || self.view.nodes.iter().filter(|node| !node.myself);
        if let Some(other) = others().find(|node| node.addr.is_some_and(|addr| !planned.contains(&addr))) {
            return Move::Stuck(stranger(other));
        }
        if let Some(stuck) = self.foreign_slots() {
            return stuck;
        }
        // Later it would be refused. One that has an epoch can't be given another; two
        // that are equal are resolved by the servers, if slowly.
        if self.me.config_epoch == 0 && others().next().is_none() {
            return Move::SetEpoch(epoch(self.plan, self.index));
        }
        self.missing_slots().unwrap_or(Move::Done)
    }

    fn introduce(&self, straggling: bool) -> Move {
        if self.me.id != self.planned.node_id {
            return Move::Stuck(format!(
                "is node {}, but was {} when the cluster's servers were counted: it has lost its nodes.conf, \
                 or another server runs there; bring back the old one",
                self.me.id, self.planned.node_id
            ));
        }
        let known = self.known();
        let ids: BTreeSet<_> = self.plan.instances.iter().map(|instance| instance.node_id).collect();
        if let Some(other) = known.values().find(|node| !ids.contains(&node.id)) {
            return Move::Stuck(stranger(other));
        }
        if let Some(needed) = self.foreign_slots().or_else(|| self.missing_slots()) {
            return needed;
        }
        let knows = |index: usize| {
            let node = known.get(&self.plan.instances[index].node_id);
            node.is_some_and(|node| node.myself || node.addr.is_some())
        };
        if let Some(parent) = parent(self.index).filter(|parent| !knows(*parent)) {
            return Move::Meet(vec![parent]);
        }
        for instance in &self.plan.instances {
            let (node, planned) = (known.get(&instance.node_id), self.plan.addr_of(instance));
            if let Some(addr) = node.and_then(|node| node.addr).filter(|addr| *addr != planned) {
                return Move::Stuck(format!(
                    "knows {planned} as {addr}, where others can't find it: {planned} must announce its own \
                     address (CONFIG SET cluster-announce-ip {} there)",
                    planned.ip()
                ));
            }
        }
        // Begun behind its own place, so that stragglers don't all turn to the same few.
        let n = self.plan.instances.len();
        let missing: Vec<_> = (1..n).map(|by| (self.index + by) % n).filter(|index| !knows(*index)).collect();
        if !missing.is_empty() && straggling {
            return Move::Meet(missing.into_iter().take(MEETS_AT_ONCE_MAX).collect());
        }
        if !missing.is_empty() {
            return Move::Wait(format!("knows {} of {n} nodes", n - missing.len()));
        }
        self.wait_for_shards(false)
    }

    fn replicate(&self, straggling: bool) -> Move {
        match self.introduce(straggling) {
            Move::Done => {}
            needed => return needed,
        }
        if let PlannedRole::Replica { primary } = self.planned.role {
            let in_shard = self.me.primary.is_some_and(|id| self.shard_has(id));
            if !in_shard && self.me.slots.is_empty() {
                let known = self.known();
                // The planned primary, or who has taken its place.
                let heads = self.shard().filter_map(|mate| known.get(&mate.node_id));
                let head = heads.clone().find(|node| node.has("master") && !node.slots.is_empty());
                let planned = self.plan.instances.get(primary as usize).map(|primary| primary.node_id);
                return match head.map(|node| node.id).or(planned) {
                    Some(id) => Move::Follow(id),
                    None => Move::Stuck(format!("is to follow instance {primary}, which the plan lacks")),
                };
            }
        }
        self.wait_for_shards(true)
    }

    /// Nodes of the view by id, except those that it is only shaking hands with: their
    /// ids are made up.
    fn known(&self) -> BTreeMap<NodeId, &TopologyNode> {
        let nodes = self.view.nodes.iter().filter(|node| !node.has("handshake"));
        nodes.map(|node| (node.id, node)).collect()
    }

    /// The instances that hold the same data, this one included.
    fn shard(&self) -> impl Iterator<Item = &PlannedInstance> + Clone {
        self.plan.instances.iter().filter(|other| other.shard_id == self.planned.shard_id)
    }

    fn shard_has(&self, id: NodeId) -> bool {
        self.shard().any(|mate| mate.node_id == id)
    }

    /// The slots of this server's shard. A failover gives them to another one of it.
    fn shard_slots(&self) -> Option<SlotRange> {
        self.shard().find_map(|mate| mate.planned_slots())
    }

    fn foreign_slots(&self) -> Option<Move> {
        let within = |range: &SlotRange| {
            self.shard_slots().is_some_and(|ours| ours.first <= range.first && range.last <= ours.last)
        };
        let foreign = self.me.slots.iter().find(|range| !within(range))?;
        Some(Move::Stuck(format!(
            "serves the slots {foreign}, which the plan gives to others: if nobody needs what it holds, make \
             it empty (CLUSTER RESET HARD)"
        )))
    }

    /// Slots that it is to serve and nobody does.
    fn missing_slots(&self) -> Option<Move> {
        let planned = self.planned.planned_slots()?;
        let mut missing = vec![planned];
        for node in &self.view.nodes {
            let before = missing.clone();
            missing = missing.into_iter().flat_map(|range| minus(range, &node.slots)).collect();
            // A shard's other members may have taken over.
            if missing != before && !node.myself && !self.shard_has(node.id) {
                return Some(Move::Stuck(format!(
                    "sees slots of {planned}, which are its own by the plan, at node {}: if nobody needs what \
                     that holds, make it empty (CLUSTER RESET HARD)",
                    node.id
                )));
            }
        }
        (!missing.is_empty() && self.me.has("master")).then_some(Move::AddSlots(missing))
    }

    /// Waits until the view has every shard as it is planned: its slots at one of its
    /// members and, with `roles`, all others following one.
    fn wait_for_shards(&self, roles: bool) -> Move {
        let known = self.known();
        let mut shards: BTreeMap<NodeId, Vec<&PlannedInstance>> = BTreeMap::new();
        for instance in &self.plan.instances {
            shards.entry(instance.shard_id).or_default().push(instance);
        }
        let whole = |mates: &Vec<&PlannedInstance>| {
            let slots = mates.iter().find_map(|mate| mate.planned_slots());
            let nodes: Vec<_> = mates.iter().filter_map(|mate| known.get(&mate.node_id)).collect();
            let heads: Vec<_> = nodes.iter().filter(|node| !node.slots.is_empty()).collect();
            let [head] = heads.as_slice() else { return false };
            let follows = |node: &&&&TopologyNode| {
                node.id == head.id
                    || node.primary.is_some_and(|id| mates.iter().any(|mate| mate.node_id == id))
            };
            head.slots.iter().copied().eq(slots)
                && (!roles || nodes.iter().filter(follows).count() == mates.len())
        };
        let lagging = shards.values().filter(|mates| !whole(mates)).count();
        match (lagging, roles) {
            (0, _) => Move::Done,
            (_, false) => Move::Wait(format!("does not see all slots of {lagging} primaries yet")),
            (_, true) => Move::Wait(format!("does not see all replicas of {lagging} primaries yet")),
        }
    }
}

/// What [`PlannedRole`] says of slots.
trait PlannedSlots {
    fn planned_slots(&self) -> Option<SlotRange>;
}

impl PlannedSlots for PlannedInstance {
    fn planned_slots(&self) -> Option<SlotRange> {
        match self.role {
            PlannedRole::Primary { slots, .. } => Some(slots),
            PlannedRole::Replica { .. } => None,
        }
    }
}

fn stranger(node: &TopologyNode) -> String {
    let at = node.addr.map_or_else(|| "an unknown address".to_owned(), |addr| addr.to_string());
    format!(
        "knows node {} at {at}, which is not in the plan: either that server has lost its nodes.conf, or it \
         belongs to another cluster; once it is known which, CLUSTER FORGET it at every server",
        node.id
    )
}

/// `range` without what is in `taken`, which is normalised.
fn minus(range: SlotRange, taken: &[SlotRange]) -> Vec<SlotRange> {
    let mut left = Vec::new();
    let mut next = range.first;
    for taken in taken.iter().filter(|taken| taken.last >= range.first && taken.first <= range.last) {
        if taken.first > next {
            left.push(SlotRange { first: next, last: taken.first - 1 });
        }
        // A slot's number is far below u16's end.
        next = next.max(taken.last + 1);
    }
    if next <= range.last {
        left.push(SlotRange { first: next, last: range.last });
    }
    left
}

#[cfg(test)]
mod tests;
