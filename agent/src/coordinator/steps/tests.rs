use std::net::{IpAddr, Ipv4Addr};

use redmesh_api::ids::{MeshId, NodeId};
use redmesh_api::level::{ClusterSpec, Formation, PlannedHost, PlannedInstance, PlannedRole, SlotRange};
use redmesh_api::run::{Counts, Run, RunSpec, RunUntil};
use redmesh_api::workload::Workload;
use uuid::Uuid;

use super::*;
use crate::coordinator::account;

const A: HostId = HostId(1);
const B: HostId = HostId(2);

fn plan(stage: PlanStage) -> ClusterPlan {
    let host = |id, last| PlannedHost {
        id,
        name: format!("host-{id}"),
        ip: IpAddr::V4(Ipv4Addr::new(127, 0, 0, last)),
        base_port: 6379,
    };
    let instance = |host, n: u8| PlannedInstance {
        host,
        port: 6379 + u16::from(n),
        node_id: NodeId([n; 20]),
        shard_id: NodeId([n; 20]),
        role: PlannedRole::Primary { slots: SlotRange { first: 0, last: 1 }, config_epoch: u64::from(n) },
    };
    ClusterPlan {
        id: PlanId(Uuid::from_u128(5)),
        spec: ClusterSpec { instances_per_host: 2, replicas: 0, node_timeout_ms: None, ..Default::default() },
        node_timeout_ms: 5000,
        hz: 10,
        stage,
        hosts: vec![host(A, 1), host(B, 2)],
        instances: vec![instance(0, 0), instance(0, 1), instance(1, 0), instance(1, 1)],
        created_unix_ms: 0,
        formation: Formation::Seeded,
        reached: Vec::new(),
        convergence: None,
    }
}

fn level(stage: PlanStage) -> Level {
    Level { mesh: Some(MeshId(Uuid::from_u128(9))), plan: Some(plan(stage)), ..Level::default() }
}

fn seen(stage: PlanStage, held: u32, up: u32, agreed: u32) -> Seen {
    let plan = Some((PlanId(Uuid::from_u128(5)), stage));
    let observed = Observed { plan, planned: 2, held, up, agreed, ..Observed::default() };
    Seen { name: "x".to_owned(), dead_for: Duration::ZERO, observed }
}

fn due(level: &Level, hosts: [Seen; 2]) -> Vec<Step> {
    let [a, b] = hosts;
    steps(level, &BTreeMap::from([(A, a), (B, b)]), &BTreeMap::new(), 0)
}

#[test]
fn a_mesh_without_an_id_is_founded_first() {
    assert_eq!(steps(&Level::default(), &BTreeMap::new(), &BTreeMap::new(), 0), [Step::Found]);
}

#[test]
fn release_waits_until_every_host_holds_all_of_its_servers() {
    use PlanStage::{Prepare, Release};
    let full = || seen(Prepare, 2, 0, 0);
    assert_eq!(due(&level(Prepare), [full(), seen(Prepare, 1, 0, 0)]), []);
    let advance = Step::AdvancePlan { plan: PlanId(Uuid::from_u128(5)), to: Release };
    assert_eq!(due(&level(Prepare), [full(), seen(Prepare, 1, 1, 0)]), [advance]);
    // Figures of another plan or stage don't count, nor does a host that is unknown.
    assert_eq!(due(&level(Prepare), [full(), seen(Release, 2, 0, 0)]), []);
    let one = BTreeMap::from([(A, full())]);
    assert_eq!(steps(&level(Prepare), &one, &BTreeMap::new(), 0), []);
}

#[test]
fn formed_means_that_every_instance_is_up_and_agrees() {
    use PlanStage::{Formed, Release};
    let full = || seen(Release, 0, 2, 2);
    assert_eq!(due(&level(Release), [full(), seen(Release, 0, 2, 1)]), []);
    assert_eq!(due(&level(Release), [full(), seen(Release, 0, 1, 2)]), []);
    let advance = Step::AdvancePlan { plan: PlanId(Uuid::from_u128(5)), to: Formed };
    assert_eq!(due(&level(Release), [full(), full()]), [advance]);
    assert_eq!(due(&level(Formed), [full(), full()]), []);
}

#[test]
fn by_meet_nodes_are_named_then_replicas_set_up_where_there_are_any() {
    use PlanStage::{Formed, Prepare, Release, Replicate};
    let meet = |stage, replicas: bool| {
        let mut level = level(stage);
        let plan = level.plan.as_mut().expect("a plan");
        plan.formation = Formation::Meet;
        if replicas {
            plan.instances[3].role = PlannedRole::Replica { primary: 0 };
        }
        level
    };
    let id = PlanId(Uuid::from_u128(5));
    let full = |stage| [seen(stage, 0, 2, 2), seen(stage, 0, 2, 2)];
    assert_eq!(due(&meet(Prepare, true), [seen(Prepare, 0, 2, 0), seen(Prepare, 0, 1, 0)]), []);
    assert_eq!(due(&meet(Prepare, true), full(Prepare)), [Step::NameNodes { plan: id }]);
    assert_eq!(due(&meet(Release, true), full(Release)), [Step::AdvancePlan { plan: id, to: Replicate }]);
    assert_eq!(due(&meet(Release, false), full(Release)), [Step::AdvancePlan { plan: id, to: Formed }]);
    assert_eq!(due(&meet(Replicate, true), full(Replicate)), [Step::AdvancePlan { plan: id, to: Formed }]);
    assert_eq!(due(&meet(Replicate, true), [seen(Replicate, 0, 2, 2), seen(Replicate, 0, 2, 1)]), []);
}

fn running(tallies: Vec<Tally>, dead_b: u64) -> Vec<Step> {
    let run = Run {
        id: RunId(Uuid::from_u128(3)),
        spec: RunSpec::closed_loop(Workload::uuid_counter(), 2, RunUntil::Writes(100)),
        shares: account::shares(&[A, B], 2, Some(100)),
        stage: RunStage::Running,
        created_unix_ms: 1_000,
        starts_unix_ms: 1_500,
        before: Vec::new(),
        result: None,
    };
    let tallies = BTreeMap::from([(run.id, tallies)]);
    let level = Level { runs: vec![run], ..level(PlanStage::Formed) };
    let alive = seen(PlanStage::Formed, 0, 2, 2);
    let b = Seen { dead_for: Duration::from_secs(dead_b), ..alive.clone() };
    steps(&level, &BTreeMap::from([(A, alive), (B, b)]), &tallies, 2_000)
}

fn tally(host: HostId, share: u16, closed: bool, issued: u64) -> Tally {
    let counts = Counts { issued, acked: issued, ..Counts::default() };
    Tally { host, share, epoch: 0, closed, counts }
}

#[test]
fn a_run_goes_on_is_taken_over_or_is_closed() {
    let whole = || vec![tally(A, 0, true, 50), tally(B, 1, true, 50)];
    let id = RunId(Uuid::from_u128(3));
    assert_eq!(running(whole(), 99), [Step::CloseRun { run: id, known: 2, outcome: Outcome::Completed }]);
    let open = || vec![tally(A, 0, true, 50), tally(B, 1, false, 20)];
    assert_eq!(running(open(), 0), []);
    match &running(open(), 99)[..] {
        [Step::TakeOver { run, known: 2, given_up: 1, shares }] if *run == id => {
            assert_eq!(
                shares.iter().map(|share| (share.host, share.writes)).collect::<Vec<_>>(),
                [(A, Some(30))]
            );
        }
        other => panic!("{other:?}"),
    }
}
