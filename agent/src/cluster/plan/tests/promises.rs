//! Whether a plan keeps what plans promise; and that this can tell.

use std::collections::{BTreeMap, BTreeSet};

use super::*;

fn ensure(holds: bool, broken: impl FnOnce() -> String) -> Result<(), String> {
    if holds { Ok(()) } else { Err(broken()) }
}

/// The first promise that `plan` breaks, in words; `sizes` are the instances asked of
/// host-1, host-2, …
pub fn kept(plan: &ClusterPlan, sizes: &[usize]) -> Result<(), String> {
    let copies = usize::from(plan.spec.replicas) + 1;
    let total: usize = sizes.iter().sum();
    ensure(plan.primaries() == total / copies, || format!("{} primaries of {total}", plan.primaries()))?;
    instances_are_in_order(plan, sizes)?;
    slots_are_even(plan)?;
    shards_are_apart(plan, copies)?;
    primaries_are_in_proportion(plan)
}

/// Every host's instances, neighbours by port; hosts without any are not in the plan.
fn instances_are_in_order(plan: &ClusterPlan, sizes: &[usize]) -> Result<(), String> {
    let wanted: Vec<(String, u16)> = sizes
        .iter()
        .enumerate()
        .flat_map(|(at, &size)| (0..size).map(move |nth| (format!("host-{}", at + 1), 6379 + nth as u16)))
        .collect();
    let there: Vec<(String, u16)> =
        plan.instances.iter().map(|i| (plan.host_of(i).name.clone(), i.port)).collect();
    ensure(there == wanted, || format!("instances are {there:?}, not {wanted:?}"))?;
    let bearing = sizes.iter().filter(|&&size| size > 0).count();
    ensure(plan.hosts.len() == bearing, || format!("{} hosts, not {bearing}", plan.hosts.len()))?;
    let ids: BTreeSet<_> = plan.instances.iter().map(|i| i.node_id).collect();
    ensure(ids.len() == plan.instances.len(), || "node ids are not unique".to_owned())
}

fn slots_are_even(plan: &ClusterPlan) -> Result<(), String> {
    let (mut slots, mut epochs) = (Vec::new(), BTreeSet::new());
    for instance in &plan.instances {
        if let PlannedRole::Primary { slots: range, config_epoch } = instance.role {
            slots.push(range);
            epochs.insert(config_epoch);
        }
    }
    let expected: BTreeSet<u64> = (1..=slots.len() as u64).collect();
    ensure(epochs == expected, || format!("config epochs are {epochs:?}"))?;
    slots.sort();
    let whole =
        slots.first().is_some_and(|s| s.first == 0) && slots.last().is_some_and(|s| s.last == SLOTS - 1);
    let once = slots.windows(2).all(|w| w[0].last + 1 == w[1].first);
    ensure(whole && once, || format!("not every slot exactly once: {slots:?}"))?;
    let (least, most) = (slots.iter().map(|s| s.len()).min(), slots.iter().map(|s| s.len()).max());
    ensure(most.unwrap() - least.unwrap() <= 1, || format!("slots are uneven: {least:?} to {most:?}"))
}

/// Enough copies of each shard, as many of one as of another, no two on one host.
fn shards_are_apart(plan: &ClusterPlan, copies: usize) -> Result<(), String> {
    let mut shards: BTreeMap<usize, Vec<usize>> = BTreeMap::new();
    for (at, instance) in plan.instances.iter().enumerate() {
        let primary = match instance.role {
            PlannedRole::Primary { .. } => at,
            PlannedRole::Replica { primary } => primary as usize,
        };
        let leads = matches!(plan.instances[primary].role, PlannedRole::Primary { .. });
        ensure(leads, || format!("instance {at} follows {primary}, which is no primary"))?;
        let same = plan.instances[primary].shard_id == instance.shard_id;
        ensure(same, || format!("instance {at} has another shard id than its primary"))?;
        shards.entry(primary).or_default().push(at);
    }
    let ids: BTreeSet<_> = plan.instances.iter().map(|i| i.shard_id).collect();
    ensure(ids.len() == shards.len(), || "shard ids are not unique".to_owned())?;
    for (primary, members) in &shards {
        let hosts: BTreeSet<u16> = members.iter().map(|&at| plan.instances[at].host).collect();
        ensure(hosts.len() == members.len(), || format!("copies of {primary} share a host: {members:?}"))?;
        ensure(members.len() >= copies, || format!("only {} copies of {primary}", members.len()))?;
    }
    let (least, most) = (shards.values().map(Vec::len).min(), shards.values().map(Vec::len).max());
    ensure(most.unwrap() - least.unwrap() <= 1, || format!("{least:?} to {most:?} copies of a shard"))
}

/// Every host has its share of the primaries, rounded down or up.
fn primaries_are_in_proportion(plan: &ClusterPlan) -> Result<(), String> {
    for (at, host) in plan.hosts.iter().enumerate() {
        let own = || plan.instances.iter().filter(|i| usize::from(i.host) == at);
        let primaries = own().filter(|i| matches!(i.role, PlannedRole::Primary { .. })).count();
        let (due, of) = (own().count() * plan.primaries(), plan.instances.len());
        ensure((due / of..=due.div_ceil(of)).contains(&primaries), || {
            format!("{} has {primaries} primaries and is due {due}/{of}", host.name)
        })?;
    }
    Ok(())
}

fn index_of(plan: &ClusterPlan, wanted: impl Fn(&PlannedInstance) -> bool) -> usize {
    plan.instances.iter().position(wanted).expect("the plan has such an instance")
}

fn swap_roles(plan: &mut ClusterPlan, replica: usize) {
    let PlannedRole::Replica { primary } = plan.instances[replica].role else { panic!("not a replica") };
    let role = plan.instances[primary as usize].role.clone();
    for instance in &mut plan.instances {
        if instance.role == (PlannedRole::Replica { primary }) {
            instance.role = PlannedRole::Replica { primary: replica as u32 };
        }
    }
    plan.instances[primary as usize].role = PlannedRole::Replica { primary: replica as u32 };
    plan.instances[replica].role = role;
}

/// A good plan, spoilt by `spoil`.
fn verdict(spoil: impl FnOnce(&mut ClusterPlan)) -> Result<(), String> {
    let mut plan = make(input(4, 6, 1), 3).unwrap();
    spoil(&mut plan);
    kept(&plan, &[6; 4])
}

#[test]
fn a_good_plan_passes_and_each_broken_promise_is_found() {
    assert_eq!(verdict(|_| ()), Ok(()));
    let broken = |words: &str, spoil: fn(&mut ClusterPlan)| {
        let said = verdict(spoil).expect_err(words);
        assert!(said.contains(words), "{words:?} in {said:?}");
    };
    broken("share a host", |plan| {
        // Two replicas change places, so that one stands beside its primary.
        let primary = index_of(plan, |i| matches!(i.role, PlannedRole::Primary { .. }));
        let follows = |i: &PlannedInstance| i.role == PlannedRole::Replica { primary: primary as u32 };
        let far = index_of(plan, follows);
        let host = plan.instances[primary].host;
        let near = index_of(plan, |i| {
            i.host == host && matches!(i.role, PlannedRole::Replica { .. }) && !follows(i)
        });
        let (a, b) = (plan.instances[far].clone(), plan.instances[near].clone());
        (plan.instances[far].role, plan.instances[far].shard_id) = (b.role, b.shard_id);
        (plan.instances[near].role, plan.instances[near].shard_id) = (a.role, a.shard_id);
    });
    broken("primaries and is due", |plan| {
        for at in 0..plan.instances.len() {
            if plan.instances[at].host == 0 && matches!(plan.instances[at].role, PlannedRole::Replica { .. })
            {
                swap_roles(plan, at);
            }
        }
    });
    broken("every slot exactly once", |plan| {
        let at = index_of(plan, |i| matches!(i.role, PlannedRole::Primary { .. }));
        let PlannedRole::Primary { slots, .. } = &mut plan.instances[at].role else { unreachable!() };
        slots.last -= 1;
    });
    broken("11 primaries", |plan| {
        let at = index_of(plan, |i| matches!(i.role, PlannedRole::Primary { .. }));
        plan.instances[at].role = PlannedRole::Replica { primary: at as u32 };
    });
    broken("copies of", |plan| {
        // A replica moves to another shard with none of its host.
        let at = index_of(plan, |i| matches!(i.role, PlannedRole::Replica { .. }));
        let host = plan.instances[at].host;
        let shards: BTreeSet<_> =
            plan.instances.iter().filter(|i| i.host == host).map(|i| i.shard_id).collect();
        let to = index_of(plan, |i| {
            matches!(i.role, PlannedRole::Primary { .. }) && !shards.contains(&i.shard_id)
        });
        let shard_id = plan.instances[to].shard_id;
        plan.instances[at].role = PlannedRole::Replica { primary: to as u32 };
        plan.instances[at].shard_id = shard_id;
    });
    broken("instances are", |plan| plan.instances.swap(0, 1));
    broken("node ids", |plan| plan.instances[1].node_id = plan.instances[0].node_id);
    broken("config epochs", |plan| {
        let at = index_of(plan, |i| matches!(i.role, PlannedRole::Primary { .. }));
        let PlannedRole::Primary { config_epoch, .. } = &mut plan.instances[at].role else { unreachable!() };
        *config_epoch += 100;
    });
}
