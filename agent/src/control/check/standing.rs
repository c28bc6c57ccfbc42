//! How primaries and replicas stand on the machines now, after whatever failovers there
//! were, held against the plan: what the next loss of a machine would do.
//!
//! Pure, and only words: nothing is moved by itself, for each failover is felt by
//! clients. Every warning names instances and hosts, and the command that mends it.
//!
//! A machine is an address. It is a host's own as a rule; agents that share one share the
//! machine too.

use std::collections::{BTreeMap, BTreeSet};
use std::net::IpAddr;

use redmesh_api::control::InstanceView;
use redmesh_api::ids::NodeId;
use redmesh_api::level::{ClusterPlan, PlannedInstance, PlannedRole};

/// Commands, instances or hosts that one warning names; the rest are counted.
const NAMED_MAX: usize = 5;

/// A machine may have this part of its planned primaries on top of them before it is
/// called crowded, but at least one: single failovers are nothing to mend.
const CROWDED_BEYOND: usize = 4;

/// What should be known, the gravest first; `redis_cli` begins the commands that mend it.
pub fn warnings(plan: &ClusterPlan, views: &[InstanceView], redis_cli: &str) -> Vec<String> {
    if plan.spec.replicas == 0 {
        // Nobody can take over anything.
        return Vec::new();
    }
    let standing = Standing::of(plan, views, redis_cli);
    if let [machine] = standing.machines.keys().collect::<Vec<_>>().as_slice() {
        return vec![format!(
            "all instances are at the address {machine}: replicas guard against the loss of a server, not of \
             the machine; give each host its own redis.ip"
        )];
    }
    let mut said = standing.crowded();
    said.extend(standing.beside());
    said.extend(standing.alone());
    said
}

/// What a machine bears.
#[derive(Debug, Default)]
struct Machine<'a> {
    /// Names of its hosts.
    hosts: Vec<&'a str>,
    /// Primaries by plan.
    planned: usize,
    /// Primaries with slots now.
    now: usize,
}

struct Standing<'a> {
    redis_cli: &'a str,
    plan: &'a ClusterPlan,
    planned: BTreeMap<NodeId, &'a PlannedInstance>,
    /// In the order of addresses.
    all: &'a [InstanceView],
    views: BTreeMap<NodeId, &'a InstanceView>,
    machines: BTreeMap<IpAddr, Machine<'a>>,
    /// Members of each shard by plan.
    members: BTreeMap<NodeId, Vec<&'a PlannedInstance>>,
    /// Who serves each shard's first slot now.
    leaders: BTreeMap<NodeId, &'a InstanceView>,
    /// Primaries that some instance that is up follows.
    followed: BTreeSet<NodeId>,
}

fn leads(view: &InstanceView) -> bool {
    view.up && view.primary && !view.slots.is_empty()
}

fn follows(view: &InstanceView, primary: NodeId) -> bool {
    view.up && !view.primary && view.primary_id == Some(primary)
}

/// `a, b, c and 4 more`.
fn listed(all: &[String]) -> String {
    let mut words = all[..all.len().min(NAMED_MAX)].join(", ");
    if all.len() > NAMED_MAX {
        words.push_str(&format!(" and {} more", all.len() - NAMED_MAX));
    }
    words
}

impl<'a> Standing<'a> {
    fn command(&self, at: &InstanceView, words: &str) -> String {
        format!("`{} -h {} -p {} {words}`", self.redis_cli, at.addr.ip(), at.addr.port())
    }

    fn replicate(&self, at: &InstanceView, primary: &InstanceView) -> String {
        self.command(at, &format!("CLUSTER REPLICATE {}", primary.node_id))
    }

    fn failover(&self, at: &InstanceView) -> String {
        self.command(at, "CLUSTER FAILOVER")
    }

    fn of(plan: &'a ClusterPlan, views: &'a [InstanceView], redis_cli: &'a str) -> Self {
        let mut machines: BTreeMap<IpAddr, Machine<'a>> = BTreeMap::new();
        for host in &plan.hosts {
            machines.entry(host.ip).or_default().hosts.push(&host.name);
        }
        let mut by_slot: BTreeMap<u16, &InstanceView> = BTreeMap::new();
        for view in views.iter().filter(|view| leads(view)) {
            machines.entry(view.addr.ip()).or_default().now += 1;
            let slots = view.slots.iter().flat_map(|range| range.first..=range.last);
            by_slot.extend(slots.map(|slot| (slot, view)));
        }
        let mut members: BTreeMap<NodeId, Vec<&PlannedInstance>> = BTreeMap::new();
        let mut leaders = BTreeMap::new();
        for instance in &plan.instances {
            members.entry(instance.shard_id).or_default().push(instance);
            if let PlannedRole::Primary { slots, .. } = instance.role {
                machines.entry(plan.host_of(instance).ip).or_default().planned += 1;
                leaders.extend(by_slot.get(&slots.first).map(|&leader| (instance.shard_id, leader)));
            }
        }
        Self {
            redis_cli,
            plan,
            planned: plan.instances.iter().map(|instance| (instance.node_id, instance)).collect(),
            all: views,
            views: views.iter().map(|view| (view.node_id, view)).collect(),
            machines,
            members,
            leaders,
            followed: views
                .iter()
                .filter(|view| view.up && !view.primary)
                .filter_map(|v| v.primary_id)
                .collect(),
        }
    }

    /// `10.0.0.1:6379 (db-1)`.
    fn name(&self, view: &InstanceView) -> String {
        match self.planned.get(&view.node_id) {
            Some(planned) => format!("{} ({})", view.addr, self.plan.host_of(planned).name),
            None => view.addr.to_string(),
        }
    }

    /// Who now serves the slots of the shard that the plan puts `view` into.
    fn leader_at_home(&self, view: &InstanceView) -> Option<&'a InstanceView> {
        self.leaders.get(&self.planned.get(&view.node_id)?.shard_id).copied()
    }

    /// Machines with so many primaries that the cluster would not survive their loss, or
    /// many more than the plan gave them.
    fn crowded(&self) -> Vec<String> {
        let total: usize = self.machines.values().map(|machine| machine.now).sum();
        let mut said = Vec::new();
        for (&address, machine) in &self.machines {
            let Machine { now, planned, .. } = *machine;
            let hosts = machine.hosts.join(" and ");
            let left = total - now;
            // Primaries elect by a majority of all that serve slots, the lost ones included.
            let fatal = now > 0 && left < total / 2 + 1;
            if fatal {
                let words = format!(
                    "losing {hosts} would take {now} of {total} primaries with it: the {left} others are no \
                     majority, no replica could take over, and the cluster would stay down"
                );
                said.push(match now > planned {
                    true => format!(
                        "{words}; the plan has {planned} there: {}",
                        self.relieved(address, now - planned)
                    ),
                    false => format!(
                        "{words}; the plan has {planned} there: only a cluster over more hosts, or more even \
                         ones, would stand it"
                    ),
                });
            } else if now > planned + (planned / CROWDED_BEYOND).max(1) {
                said.push(format!(
                    "{hosts} has {now} primaries, the plan has {planned} there: {}",
                    self.relieved(address, now - planned)
                ));
            }
        }
        said
    }

    /// How `surplus` primaries leave the machine at `address`.
    fn relieved(&self, address: IpAddr, surplus: usize) -> String {
        // One for each primary there.
        let mut takers: BTreeMap<NodeId, (bool, &InstanceView)> = BTreeMap::new();
        for view in self.all.iter().filter(|view| view.up && !view.primary && view.addr.ip() != address) {
            let leader = view.primary_id.and_then(|id| self.views.get(&id));
            let Some(leader) = leader.filter(|leader| leads(leader) && leader.addr.ip() == address) else {
                continue;
            };
            let by_plan = self
                .planned
                .get(&view.node_id)
                .is_some_and(|planned| matches!(planned.role, PlannedRole::Primary { .. }));
            if takers.get(&leader.node_id).is_none_or(|&(known, _)| by_plan && !known) {
                takers.insert(leader.node_id, (by_plan, view));
            }
        }
        // Those that lead by plan first; others only where their machine has room.
        let mut takers: Vec<_> = takers.into_values().collect();
        takers.sort_by_key(|&(by_plan, view)| (!by_plan, view.addr));
        let mut given: BTreeMap<IpAddr, usize> = BTreeMap::new();
        takers.retain(|&(by_plan, view)| {
            let given = given.entry(view.addr.ip()).or_default();
            let room =
                self.machines.get(&view.addr.ip()).is_some_and(|there| there.now + *given < there.planned);
            let takes = by_plan || room;
            *given += usize::from(takes);
            takes
        });
        let commands: Vec<_> = takers.iter().take(surplus).map(|&(_, view)| self.failover(view)).collect();
        if commands.is_empty() {
            return "no replica that could take over is up on a host with room for it; once there is, CLUSTER \
                    FAILOVER on it mends this"
                .to_owned();
        }
        format!("mend it with {}", listed(&commands))
    }

    /// Replicas on their primary's machine.
    fn beside(&self) -> Vec<String> {
        let (mut said, mut by_plan) = (Vec::new(), Vec::new());
        for replica in self.all.iter().filter(|view| view.up && !view.primary) {
            let primary = replica.primary_id.and_then(|id| self.views.get(&id).copied());
            let Some(primary) =
                primary.filter(|primary| leads(primary) && primary.addr.ip() == replica.addr.ip())
            else {
                continue;
            };
            let both = format!("{} and its replica {}", self.name(primary), self.name(replica));
            let shard_of =
                |view: &InstanceView| self.planned.get(&view.node_id).map(|planned| planned.shard_id);
            if shard_of(primary).is_some() && shard_of(primary) == shard_of(replica) {
                by_plan.push(both);
                continue;
            }
            said.push(format!(
                "{both} are on one host and would be lost together; {}",
                self.parted(primary, replica)
            ));
        }
        if !by_plan.is_empty() {
            said.push(format!(
                "the plan has these at one address, which bears too many instances to part them: {}",
                listed(&by_plan)
            ));
        }
        said
    }

    /// How a primary and its replica come to be on two machines.
    fn parted(&self, primary: &InstanceView, replica: &InstanceView) -> String {
        let elsewhere = |other: &InstanceView| other.addr.ip() != replica.addr.ip();
        let home = self.leader_at_home(replica);
        if let Some(home) = home.filter(|home| home.node_id != primary.node_id && elsewhere(home)) {
            return format!("mend it with {}, as the plan has it", self.replicate(replica, home));
        }
        // The primary is the stranger: another replica has to lead first.
        let other = self.all.iter().find(|view| follows(view, primary.node_id) && elsewhere(view));
        let back =
            self.leader_at_home(primary).filter(|home| home.node_id != primary.node_id && elsewhere(home));
        match (other, back) {
            (Some(other), Some(home)) => {
                format!("mend it with {} and then {}", self.failover(other), self.replicate(primary, home))
            }
            (Some(other), None) => format!("mend it with {}", self.failover(other)),
            (None, _) => "no replica of it is up elsewhere: first let an instance of another host follow it \
                          (CLUSTER REPLICATE)"
                .to_owned(),
        }
    }

    /// Primaries that nobody follows any more.
    fn alone(&self) -> Vec<String> {
        let mut shards: BTreeMap<NodeId, NodeId> = BTreeMap::new();
        shards.extend(self.leaders.iter().map(|(&shard, leader)| (leader.node_id, shard)));
        let alone = self.all.iter().filter(|view| leads(view) && !self.followed.contains(&view.node_id));
        alone
            .map(|primary| {
                format!(
                    "{} has no replica left; {}",
                    self.name(primary),
                    self.joined(primary, shards.get(&primary.node_id))
                )
            })
            .collect()
    }

    /// How `primary` comes by a replica again.
    fn joined(&self, primary: &InstanceView, shard: Option<&NodeId>) -> String {
        let members = shard.and_then(|shard| self.members.get(shard)).map(Vec::as_slice).unwrap_or_default();
        let members = || members.iter().filter(|instance| instance.node_id != primary.node_id);
        let view = |instance: &&PlannedInstance| self.views.get(&instance.node_id).copied();
        let astray = members().filter_map(view).find(|view| view.up);
        if let Some(astray) = astray.filter(|astray| astray.addr.ip() != primary.addr.ip()) {
            return format!("mend it with {}, as the plan has it", self.replicate(astray, primary));
        }
        let down: Vec<String> = members()
            .filter(|&instance| view(instance).is_none_or(|view| !view.up))
            .map(|instance| format!("{} ({})", self.plan.addr_of(instance), self.plan.host_of(instance).name))
            .collect();
        match down.is_empty() {
            true => "let an instance of another host follow it (CLUSTER REPLICATE)".to_owned(),
            false => format!(
                "not up: {}. Its agent starts it again after a pause, and it follows; `redmeshctl members` and \
                 `redmeshctl cluster info` say what is in the way",
                listed(&down)
            ),
        }
    }
}
