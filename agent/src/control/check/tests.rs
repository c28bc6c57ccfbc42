use rand::SeedableRng;
use rand::rngs::StdRng;
use redmesh_api::ids::{HostId, NodeId, PlanId};
use redmesh_api::level::{ClusterSpec, Formation, PlannedHost, PlannedInstance, PlannedRole};

use super::*;
use crate::cluster::{PlanInput, plan as plan_of};

/// A plan, and what its instances say.
struct Cluster {
    plan: ClusterPlan,
    views: Vec<InstanceView>,
}

fn cluster(sizes: &[u16], replicas: u8) -> Cluster {
    cluster_at(sizes, replicas, |host| host + 1)
}

/// `address` gives each host its last byte.
fn cluster_at(sizes: &[u16], replicas: u8, address: fn(u8) -> u8) -> Cluster {
    let host = |at: usize| PlannedHost {
        id: HostId(at as u32 + 1),
        name: format!("db-{}", at + 1),
        ip: [10, 0, 0, address(at as u8)].into(),
        base_port: 7000 + 100 * at as u16,
    };
    let input = PlanInput {
        id: PlanId(Default::default()),
        spec: ClusterSpec {
            instances_per_host: 1,
            instances_of: sizes.iter().enumerate().map(|(at, &size)| (host(at).name, size)).collect(),
            replicas,
            ..ClusterSpec::default()
        },
        hosts: (0..sizes.len()).map(host).collect(),
        formation: Formation::Seeded,
        created_unix_ms: 0,
        node_timeout_ms: 5000,
        hz: 10,
    };
    let plan = plan_of(input, &mut StdRng::seed_from_u64(4)).expect("a plan");
    let view = |instance: &PlannedInstance| InstanceView {
        host: plan.host_of(instance).id,
        addr: plan.addr_of(instance),
        node_id: instance.node_id,
        up: true,
        primary: matches!(instance.role, PlannedRole::Primary { .. }),
        primary_id: match instance.role {
            PlannedRole::Primary { .. } => None,
            PlannedRole::Replica { primary } => Some(plan.instances[primary as usize].node_id),
        },
        slots: match instance.role {
            PlannedRole::Primary { slots, .. } => vec![slots],
            PlannedRole::Replica { .. } => Vec::new(),
        },
        keys: 0,
        state_ok: true,
        known_nodes: plan.instances.len() as u32,
        slots_assigned: SLOTS,
        view_digest: 7,
        open_slots: Vec::new(),
        problem: None,
    };
    let views = plan.instances.iter().map(view).collect();
    Cluster { plan, views }
}

impl Cluster {
    fn warnings(&self) -> Vec<String> {
        judge(&Level::default(), &self.plan, self.views.clone(), Vec::new(), REDIS_CLI).warnings
    }

    /// Indices of the views for which `wanted` holds.
    fn all(&self, wanted: impl Fn(&InstanceView) -> bool) -> Vec<usize> {
        (0..self.views.len()).filter(|&at| wanted(&self.views[at])).collect()
    }

    fn primaries_on(&self, host: u32) -> Vec<usize> {
        self.all(|view| view.primary && view.host == HostId(host))
    }

    fn replicas_of(&self, primary: usize) -> Vec<usize> {
        self.all(|view| view.primary_id == Some(self.views[primary].node_id))
    }

    fn at(&self, index: usize) -> String {
        let view = &self.views[index];
        format!("{} (db-{})", view.addr, view.host.0)
    }

    fn redis_cli(&self, index: usize, words: &str) -> String {
        let addr = self.views[index].addr;
        format!("`redis-cli -h {} -p {} {words}`", addr.ip(), addr.port())
    }

    /// `CLUSTER FAILOVER` on a replica.
    fn failover(&mut self, replica: usize) {
        let primary = self.index_of(self.views[replica].primary_id.expect("a replica"));
        let (old, new) = (self.views[primary].node_id, self.views[replica].node_id);
        for view in &mut self.views {
            if view.primary_id == Some(old) {
                view.primary_id = Some(new);
            }
        }
        let slots = std::mem::take(&mut self.views[primary].slots);
        let (was, is) = (primary, replica);
        (self.views[was].primary, self.views[was].primary_id) = (false, Some(new));
        (self.views[is].primary, self.views[is].primary_id, self.views[is].slots) = (true, None, slots);
    }

    /// `CLUSTER REPLICATE` on a replica.
    fn replicate(&mut self, replica: usize, primary: usize) {
        self.views[replica].primary_id = Some(self.views[primary].node_id);
    }

    fn index_of(&self, id: NodeId) -> usize {
        self.all(|view| view.node_id == id)[0]
    }

    fn down(&mut self, index: usize) {
        let view = &mut self.views[index];
        (view.up, view.primary, view.primary_id) = (false, false, None);
        view.slots.clear();
        view.problem = Some("no answer".to_owned());
    }
}

#[test]
fn a_cluster_as_planned_has_no_warning() {
    for (sizes, replicas) in [(&[4, 4, 4][..], 1), (&[6, 6, 6], 2), (&[8, 6, 4, 4], 1), (&[5, 5, 5], 0)] {
        let found = cluster(sizes, replicas);
        let check = judge(&Level::default(), &found.plan, found.views.clone(), Vec::new(), REDIS_CLI);
        assert_eq!((check.errors, check.warnings), (vec![], vec![]), "{sizes:?}");
        assert!(check.agreed && check.slots_covered == SLOTS);
    }
}

#[test]
fn a_host_whose_loss_the_cluster_would_not_survive_is_named_with_the_failovers() {
    let mut it = cluster(&[4, 4, 4], 1);
    // All primaries of db-2 that db-1 has replicas of move there.
    let led: Vec<usize> = it.primaries_on(2);
    for &primary in &led {
        let replica = it.replicas_of(primary)[0];
        if it.views[replica].host == HostId(1) {
            it.failover(replica);
        }
    }
    let moved: Vec<usize> = led.into_iter().filter(|&at| !it.views[at].primary).collect();
    assert!(!moved.is_empty(), "the plan spreads replicas");
    let said = it.warnings();
    let now = it.primaries_on(1).len();
    assert_eq!(said.len(), 1, "{said:#?}");
    assert!(said[0].starts_with(&format!("losing db-1 would take {now} of 6 primaries")), "{}", said[0]);
    assert!(said[0].contains("no majority"), "{}", said[0]);
    for &primary in &moved {
        assert!(said[0].contains(&it.redis_cli(primary, "CLUSTER FAILOVER")), "{}", said[0]);
    }
    let by_tls = judge(&Level::default(), &it.plan, it.views.clone(), Vec::new(), REDIS_CLI_TLS).warnings;
    assert!(by_tls[0].contains("`redis-cli --tls --cacert ca.pem -h "), "{}", by_tls[0]);
    // What it says mends it.
    moved.into_iter().for_each(|primary| it.failover(primary));
    assert_eq!(it.warnings(), Vec::<String>::new());
}

#[test]
fn a_crowded_host_is_named_only_beyond_the_bound() {
    let mut it = cluster(&[12; 6], 1);
    let candidates: Vec<usize> = it
        .all(|view| view.primary && view.host != HostId(1))
        .into_iter()
        .filter(|&primary| it.views[it.replicas_of(primary)[0]].host == HostId(1))
        .collect();
    // Six by plan, and one more is a quarter of that.
    let replica = it.replicas_of(candidates[0])[0];
    it.failover(replica);
    assert_eq!(it.warnings(), Vec::<String>::new());
    let replica = it.replicas_of(candidates[1])[0];
    it.failover(replica);
    let said = it.warnings();
    assert_eq!(said.len(), 1, "{said:#?}");
    assert!(said[0].starts_with("db-1 has 8 primaries, the plan has 6 there: mend it with "), "{}", said[0]);
    for primary in &candidates[..2] {
        assert!(said[0].contains(&it.redis_cli(*primary, "CLUSTER FAILOVER")), "{}", said[0]);
    }
    // Whoever should lead is gone: others may, where there is room, and then nobody.
    let gone: Vec<u32> = candidates[..2].iter().map(|&primary| it.views[primary].host.0).collect();
    candidates[..2].iter().for_each(|&primary| it.down(primary));
    let said = it.warnings();
    let takers = it.all(|view| said[0].contains(&format!("-h {} -p {} ", view.addr.ip(), view.addr.port())));
    assert!(
        !takers.is_empty() && takers.iter().all(|&at| gone.contains(&it.views[at].host.0)),
        "{}",
        said[0]
    );
    for primary in it.primaries_on(1) {
        it.replicas_of(primary).into_iter().for_each(|replica| it.down(replica));
    }
    assert!(it.warnings()[0].contains("no replica that could take over is up"), "{:?}", it.warnings());
}

#[test]
fn a_plan_that_cannot_stand_the_loss_of_a_host_says_so() {
    let said = cluster(&[6, 6], 1).warnings();
    assert_eq!(said.len(), 2, "{said:#?}");
    for (host, words) in said.iter().enumerate() {
        let start = format!("losing db-{} would take 3 of 6 primaries", host + 1);
        assert!(words.starts_with(&start) && words.contains("only a cluster over more hosts"), "{words}");
    }
    assert_eq!(cluster(&[6, 6], 0).warnings(), Vec::<String>::new(), "nobody could take over anyway");
}

#[test]
fn a_replica_beside_its_primary_is_named_with_the_way_home() {
    let mut it = cluster(&[4, 4, 4, 4], 1);
    let primary = it.primaries_on(1)[0];
    let stray = it.all(|view| !view.primary && view.host == HostId(1))[0];
    let home = it.index_of(it.views[stray].primary_id.expect("a replica"));
    it.replicate(stray, primary);
    let said = it.warnings();
    let beside = format!("{} and its replica {} are on one host", it.at(primary), it.at(stray));
    assert_eq!(said.len(), 2, "{said:#?}");
    let back = it.redis_cli(stray, &format!("CLUSTER REPLICATE {}", it.views[home].node_id));
    assert!(said[0].starts_with(&beside) && said[0].contains(&back), "{}", said[0]);
    // The shard that it left is alone now, and the same command mends that.
    assert!(said[1].starts_with(&format!("{} has no replica left", it.at(home))), "{}", said[1]);
    assert!(said[1].contains(&back), "{}", said[1]);
    it.replicate(stray, home);
    assert_eq!(it.warnings(), Vec::<String>::new());
}

#[test]
fn a_primary_that_came_from_elsewhere_makes_way_first() {
    // A replica of another shard has moved in beside a replica, and then was elected.
    let mut it = cluster(&[6, 6, 6, 6], 2);
    let primary = it.primaries_on(1)[0];
    let member = it.replicas_of(primary)[0];
    let host = it.views[member].host;
    let stranger = it
        .all(|view| !view.primary && view.host == host && view.primary_id != Some(it.views[primary].node_id))
        [0];
    let home = it.index_of(it.views[stranger].primary_id.expect("a replica"));
    it.replicate(stranger, primary);
    it.failover(stranger);
    let said = it.warnings();
    let words = said.iter().find(|words| words.contains("are on one host")).expect("a warning");
    let first =
        it.replicas_of(stranger).into_iter().find(|&at| it.views[at].host != host).expect("elsewhere");
    assert!(words.starts_with(&format!("{} and its replica {}", it.at(stranger), it.at(member))), "{words}");
    let then = it.redis_cli(stranger, &format!("CLUSTER REPLICATE {}", it.views[home].node_id));
    let order = format!("mend it with {} and then {then}", it.redis_cli(first, "CLUSTER FAILOVER"));
    assert!(words.contains(&order), "{words}");
}

#[test]
fn a_shard_without_replicas_says_who_is_down() {
    let mut it = cluster(&[4, 4, 4], 1);
    let primary = it.primaries_on(3)[0];
    let replica = it.replicas_of(primary)[0];
    let dead = it.at(primary);
    it.failover(replica);
    it.down(primary);
    let said = it.warnings();
    let words = said.iter().find(|words| words.contains("no replica left")).expect("a warning");
    assert!(
        words.starts_with(&format!("{} has no replica left; not up: {dead}.", it.at(replica))),
        "{words}"
    );
}

#[test]
fn agents_of_one_address_are_one_machine() {
    // Three of four hosts at one address: the plan can't part all copies by address.
    let said = cluster_at(&[4, 4, 4, 4], 1, |host| u8::from(host == 3) + 1).warnings();
    assert!(said[0].starts_with("losing db-1 and db-2 and db-3 would take 6 of 8 primaries"), "{said:#?}");
    assert!(said.iter().any(|words| words.starts_with("the plan has these at one address")), "{said:#?}");
    let said = cluster_at(&[4, 4, 4], 1, |_| 1).warnings();
    assert_eq!(said.len(), 1, "{said:#?}");
    assert!(said[0].contains("all instances are at the address 10.0.0.1"), "{said:#?}");
}

#[test]
fn lists_are_bounded() {
    let mut it = cluster(&[60; 4], 1);
    for replica in it.all(|view| !view.primary) {
        it.down(replica);
    }
    let check = judge(&Level::default(), &it.plan, it.views.clone(), Vec::new(), REDIS_CLI);
    for lines in [check.warnings, check.errors] {
        assert_eq!(lines.len(), LISTED_MAX + 1);
        assert_eq!(lines[LISTED_MAX], "… and 70 more");
    }
}
