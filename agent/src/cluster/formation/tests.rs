use std::net::SocketAddr;

use proptest::prelude::*;
use rand::SeedableRng;
use rand::rngs::StdRng;
use redmesh_api::ids::{HostId, PlanId};
use redmesh_api::level::{ClusterSpec, Formation, PlannedHost};
use uuid::Uuid;

use super::*;
use crate::cluster::plan::{PlanInput, plan};

fn planned(per_host: u16, replicas: u8, stage: PlanStage) -> ClusterPlan {
    let host = |n: u8| PlannedHost {
        id: HostId(n.into()),
        name: format!("host-{n}"),
        ip: [10, 0, 0, n].into(),
        base_port: 6379,
    };
    let input = PlanInput {
        id: PlanId(Uuid::from_u128(1)),
        spec: ClusterSpec { instances_per_host: per_host, replicas, ..ClusterSpec::default() },
        hosts: (1..=3).map(host).collect(),
        created_unix_ms: 0,
        node_timeout_ms: 5000,
        hz: 10,
        formation: Formation::Meet,
    };
    let mut plan = plan(input, &mut StdRng::seed_from_u64(3)).expect("a plan");
    if stage > PlanStage::Prepare {
        for (n, instance) in plan.instances.iter_mut().enumerate() {
            instance.node_id = id(n);
        }
    }
    plan.stage = stage;
    plan
}

fn id(n: usize) -> NodeId {
    NodeId([n as u8 + 1; 20])
}

fn node(id: NodeId, addr: Option<SocketAddr>, myself: bool, slots: Vec<SlotRange>) -> TopologyNode {
    TopologyNode {
        id,
        addr,
        flags: vec!["master".to_owned()],
        myself,
        primary: None,
        config_epoch: u64::from(!myself),
        connected: true,
        slots,
        open: Vec::new(),
    }
}

/// What instance `of` sees when it knows `known`, all with their slots.
fn view(plan: &ClusterPlan, of: usize, known: impl IntoIterator<Item = usize>) -> Topology {
    let seen = |n: usize| {
        let instance = &plan.instances[n];
        let slots = instance.planned_slots().into_iter().collect();
        node(instance.node_id, Some(plan.addr_of(instance)), n == of, slots)
    };
    Topology { nodes: known.into_iter().map(seen).collect() }
}

fn primary(plan: &ClusterPlan) -> usize {
    plan.instances.iter().position(|i| i.planned_slots().is_some()).expect("a primary")
}

fn replica(plan: &ClusterPlan) -> (usize, usize) {
    let of = |instance: &PlannedInstance| match instance.role {
        PlannedRole::Replica { primary } => Some(primary as usize),
        PlannedRole::Primary { .. } => None,
    };
    let found = plan.instances.iter().enumerate().find_map(|(n, instance)| Some((n, of(instance)?)));
    found.expect("a replica")
}

fn stuck(due: Move) -> String {
    match due {
        Move::Stuck(words) => words,
        other => panic!("{other:?}"),
    }
}

#[test]
fn an_empty_server_is_given_its_epoch_then_its_slots_and_is_ready() {
    let plan = planned(2, 1, PlanStage::Prepare);
    let of = primary(&plan);
    let (addr, slots) = (plan.addr_of(&plan.instances[of]), plan.instances[of].planned_slots());
    let mut alone = Topology { nodes: vec![node(id(9), None, true, Vec::new())] };
    let next = |view: &Topology| next_move(&plan, of, view, false);
    assert_eq!(next(&alone), Move::SetEpoch(epoch(&plan, of)));
    alone.nodes[0].config_epoch = epoch(&plan, of);
    assert_eq!(next(&alone), Move::AddSlots(slots.into_iter().collect()));
    // A part of them was given before the agent was killed.
    let range = slots.expect("a primary's");
    let half = SlotRange { first: range.first, last: range.first + 9 };
    alone.nodes[0].slots = vec![half];
    assert_eq!(next(&alone), Move::AddSlots(vec![SlotRange { first: half.last + 1, last: range.last }]));
    alone.nodes[0].slots = vec![range];
    alone.nodes[0].addr = Some(addr);
    assert_eq!(next(&alone), Move::Done);
    // Others have gone on to meet it, before this host has heard of the next stage.
    alone.nodes.push(node(id(3), Some(plan.addr_of(&plan.instances[1])), false, Vec::new()));
    assert_eq!(next(&alone), Move::Done);
}

#[test]
fn what_is_not_empty_stays_as_it_is_and_is_named() {
    let plan = planned(2, 1, PlanStage::Prepare);
    let of = primary(&plan);
    let alone = |slots| Topology { nodes: vec![node(id(9), None, true, slots)] };
    let all = SlotRange { first: 0, last: 16383 };
    assert!(stuck(next_move(&plan, of, &alone(vec![all]), false)).contains("0-16383"));
    let mut other = alone(Vec::new());
    other.nodes.push(node(id(8), "10.9.9.9:1".parse().ok(), false, Vec::new()));
    assert!(stuck(next_move(&plan, of, &other, false)).contains("10.9.9.9:1"));
    let mut follower = alone(Vec::new());
    follower.nodes[0].flags = vec!["slave".to_owned()];
    assert!(stuck(next_move(&plan, of, &follower, false)).contains("is a replica"));
}

#[test]
fn epochs_differ_also_of_replicas_to_be() {
    let plan = planned(4, 1, PlanStage::Prepare);
    let all: BTreeSet<_> = (0..plan.instances.len()).map(|n| epoch(&plan, n)).collect();
    assert_eq!(all.len(), plan.instances.len());
    assert!(!all.contains(&0));
}

#[test]
fn an_instance_meets_its_parent_then_waits_then_is_introduced_to_what_it_lacks() {
    let plan = planned(40, 0, PlanStage::Release);
    let n = plan.instances.len();
    assert_eq!(next_move(&plan, 100, &view(&plan, 100, [100]), false), Move::Meet(vec![12]));
    assert_eq!(next_move(&plan, 100, &view(&plan, 100, [100]), true), Move::Meet(vec![12]));
    let some = || view(&plan, 100, [12, 100, 101]);
    assert!(matches!(next_move(&plan, 100, &some(), false), Move::Wait(words) if words.contains("3 of 120")));
    let Move::Meet(missing) = next_move(&plan, 100, &some(), true) else { panic!("a straggler is helped") };
    assert_eq!(missing, (102..102 + MEETS_AT_ONCE_MAX).collect::<Vec<_>>());
    // A made-up id of a handshake is nobody.
    let mut shaking = some();
    shaking.nodes[0].flags.push("handshake".to_owned());
    assert_eq!(next_move(&plan, 100, &shaking, false), Move::Meet(vec![12]));
    assert_eq!(next_move(&plan, 100, &view(&plan, 100, 0..n), false), Move::Done);
    let mut blind = view(&plan, 100, 0..n);
    blind.nodes[7].slots.clear();
    assert!(
        matches!(next_move(&plan, 100, &blind, false), Move::Wait(words) if words.contains("1 primaries"))
    );
}

#[test]
fn a_server_that_lost_itself_or_sees_strangers_needs_a_person() {
    let plan = planned(2, 1, PlanStage::Release);
    let n = plan.instances.len();
    let mut other = view(&plan, 0, 0..n);
    other.nodes[0].id = id(77);
    assert!(stuck(next_move(&plan, 0, &other, false)).contains("has lost its nodes.conf"));
    let mut foreign = view(&plan, 0, 0..n);
    foreign.nodes.push(node(id(99), "10.9.9.9:1".parse().ok(), false, Vec::new()));
    assert!(stuck(next_move(&plan, 0, &foreign, false)).contains("CLUSTER FORGET"));
    let mut misplaced = view(&plan, 0, 0..n);
    misplaced.nodes[3].addr = "127.0.0.1:6379".parse().ok();
    assert!(stuck(next_move(&plan, 0, &misplaced, false)).contains("cluster-announce-ip"));
    // It came back without the slots that it had been given.
    let of = primary(&plan);
    let mut bare = view(&plan, of, 0..n);
    let mine = std::mem::take(&mut bare.nodes[of].slots);
    assert_eq!(next_move(&plan, of, &bare, false), Move::AddSlots(mine.clone()));
    let thief = (0..n).find(|n| *n != of && plan.instances[*n].shard_id != plan.instances[of].shard_id);
    bare.nodes[thief.expect("another shard")].slots = mine;
    assert!(stuck(next_move(&plan, of, &bare, false)).contains("which are its own by the plan"));
}

#[test]
fn replicas_follow_their_shard_and_everybody_sees_it() {
    let plan = planned(2, 1, PlanStage::Replicate);
    let n = plan.instances.len();
    let ((of, head), next) = (replica(&plan), |of, view: &Topology| next_move(&plan, of, view, false));
    let mut all = view(&plan, of, 0..n);
    assert_eq!(next(of, &all), Move::Follow(id(head)));
    for (node, instance) in all.nodes.iter_mut().zip(&plan.instances) {
        if let PlannedRole::Replica { primary } = instance.role {
            (node.flags, node.primary) = (vec!["slave".to_owned()], Some(id(primary as usize)));
        }
    }
    assert_eq!(next(of, &all), Move::Done);
    // It has taken its primary's place, and that came back as its replica.
    let mut turned = all.clone();
    let slots = std::mem::take(&mut turned.nodes[head].slots);
    (turned.nodes[head].flags, turned.nodes[head].primary) = (vec!["slave".to_owned()], Some(id(of)));
    (turned.nodes[of].flags, turned.nodes[of].primary) = (vec!["master".to_owned()], None);
    turned.nodes[of].slots = slots;
    assert_eq!(next(of, &turned), Move::Done);
    turned.nodes[of].myself = false;
    turned.nodes[head].myself = true;
    assert_eq!(next(head, &turned), Move::Done);
    // Another one's view lags.
    let mut lags = all;
    lags.nodes[of].myself = false;
    lags.nodes[head].myself = true;
    (lags.nodes[of].flags, lags.nodes[of].primary) = (vec!["master".to_owned()], None);
    assert!(matches!(next(head, &lags), Move::Wait(words) if words.contains("1 primaries")));
}

proptest! {
    #[test]
    fn the_tree_reaches_everybody_within_its_degree(n in 1_usize..2000) {
        let mut children = vec![0; n];
        for start in 0..n {
            let (mut at, mut steps) = (start, 0);
            while let Some(up) = parent(at) {
                prop_assert!(up < at, "no circle");
                (at, steps) = (up, steps + 1);
            }
            prop_assert_eq!(at, 0);
            prop_assert!(steps <= 4, "{steps} steps of {n}");
            if let Some(up) = parent(start) {
                children[up] += 1;
            }
        }
        prop_assert!(children.iter().all(|children| *children <= TREE_DEGREE));
    }

    /// Whatever subset is known: nobody is met who is known, at most the bound at a time,
    /// and repeating it comes to an end with everybody known.
    #[test]
    fn stragglers_come_to_know_everybody(known in prop::collection::btree_set(0_usize..60, 0..60), of in 0_usize..60) {
        let plan = planned(20, 0, PlanStage::Release);
        let mut known = known;
        known.insert(of);
        for _ in 0..60 {
            match next_move(&plan, of, &view(&plan, of, known.iter().copied()), true) {
                Move::Meet(others) => {
                    prop_assert!((1..=MEETS_AT_ONCE_MAX).contains(&others.len()));
                    for other in others {
                        prop_assert!(known.insert(other), "{other} was known");
                    }
                }
                Move::Done => break,
                other => prop_assert!(false, "{other:?}"),
            }
        }
        prop_assert_eq!(known.len(), 60);
    }

    #[test]
    fn what_is_left_of_a_range_and_what_is_taken_make_the_range(
        first in 0_u16..100, len in 0_u16..100, taken in prop::collection::vec((0_u16..220, 0_u16..30), 0..6),
    ) {
        let range = SlotRange { first, last: first + len };
        let taken: Vec<_> = taken.into_iter().map(|(first, len)| SlotRange { first, last: first + len }).collect();
        let taken = crate::cluster::slots::normalise(taken);
        let left = minus(range, &taken);
        let has = |ranges: &[SlotRange], slot| ranges.iter().any(|r| (r.first..=r.last).contains(&slot));
        for slot in 0..260 {
            let wanted = (range.first..=range.last).contains(&slot) && !has(&taken, slot);
            prop_assert_eq!(has(&left, slot), wanted);
        }
    }
}
