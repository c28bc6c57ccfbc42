use rand::SeedableRng;
use rand::rngs::StdRng;
use redmesh_api::ids::{HostId, PlanId};
use redmesh_api::level::{ClusterSpec, Formation, PlannedHost};
use uuid::Uuid;

use super::*;
use crate::cluster::plan::{PlanInput, plan};
use crate::cluster::topology::Topology;

fn small() -> ClusterPlan {
    let host = |n: u8| PlannedHost {
        id: HostId(u32::from(n)),
        name: format!("h{n}"),
        ip: [127, 78, 1, n].into(),
        base_port: 21000,
    };
    let input = PlanInput {
        id: PlanId(Uuid::from_u128(1)),
        spec: ClusterSpec {
            instances_per_host: 2,
            replicas: 1,
            node_timeout_ms: Some(2000),
            ..Default::default()
        },
        hosts: (1..=3).map(host).collect(),
        created_unix_ms: 0,
        node_timeout_ms: 5000,
        hz: 10,
        formation: Formation::Seeded,
    };
    let mut made = plan(input, &mut StdRng::seed_from_u64(3)).unwrap();
    // Ids that can be read in the expectation below.
    for (n, instance) in made.instances.iter_mut().enumerate() {
        instance.node_id = NodeId([n as u8; 20]);
        instance.shard_id = match instance.role {
            PlannedRole::Primary { .. } => NodeId([0xa0 + n as u8; 20]),
            PlannedRole::Replica { primary } => NodeId([0xa0 + primary as u8; 20]),
        };
    }
    made
}

/// The file with each id cut to its last two digits.
fn short(text: &str) -> String {
    let short = |word: &str| {
        let id = |id: &str| (id.len() == 40).then(|| id[38..].to_owned());
        match word.split_once("shard-id=") {
            Some((head, shard)) => format!("{head}shard-id={}", id(shard).unwrap()),
            None => id(word).unwrap_or_else(|| word.to_owned()),
        }
    };
    text.lines().map(|line| line.split(' ').map(short).collect::<Vec<_>>().join(" ") + "\n").collect()
}

#[test]
fn golden_redis_7_0() {
    let plan = small();
    let text = render_nodes_conf(&plan, NodeId([0; 20]), NodesConfFormat::Plain).unwrap();
    assert_eq!(short(&text), include_str!("golden_7_0.txt"));
    let topology = Topology::parse(text.rsplit_once("vars").unwrap().0).unwrap();
    assert_eq!(topology.slots_covered(), 16384);
    assert_eq!(topology.myself().unwrap().id, NodeId([0; 20]));
}

#[test]
fn golden_with_shard_ids() {
    let text = render_nodes_conf(&small(), NodeId([5; 20]), NodesConfFormat::ShardIds).unwrap();
    assert_eq!(short(&text), include_str!("golden_7_2.txt"));
}

#[test]
fn every_instance_has_the_same_view() {
    let plan = small();
    let digests: Vec<u64> = plan
        .instances
        .iter()
        .map(|i| render_nodes_conf(&plan, i.node_id, NodesConfFormat::ShardIds).unwrap())
        .map(|text| Topology::parse(text.rsplit_once("vars").unwrap().0).unwrap().view_digest())
        .collect();
    assert!(digests.windows(2).all(|w| w[0] == w[1]), "{digests:?}");
}

#[test]
fn an_impossible_plan_is_an_error() {
    let mut plan = small();
    let error = render_nodes_conf(&plan, NodeId([9; 20]), NodesConfFormat::Plain).unwrap_err();
    assert!(matches!(error, NodesConfError::UnknownNode { .. }));
    let replica = plan.instances.iter().position(|i| matches!(i.role, PlannedRole::Replica { .. })).unwrap();
    for primary in [replica as u32, 99] {
        plan.instances[replica].role = PlannedRole::Replica { primary };
        let error = render_nodes_conf(&plan, NodeId([0; 20]), NodesConfFormat::Plain).unwrap_err();
        assert!(matches!(error, NodesConfError::NoPrimary { .. }));
    }
}
