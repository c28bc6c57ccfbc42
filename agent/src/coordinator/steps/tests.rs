use std::net::{IpAddr, Ipv4Addr};

use redmesh_api::ids::{MeshId, NodeId};
use redmesh_api::level::{ClusterSpec, PlannedHost, PlannedInstance, PlannedRole, SlotRange};
use redmesh_api::run::{Counts, RunSpec, UUID_COUNTER};
use uuid::Uuid;

use super::*;

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
        spec: ClusterSpec { instances_per_host: 2, replicas: 0, node_timeout_ms: None },
        node_timeout_ms: 5000,
        stage,
        hosts: vec![host(A, 1), host(B, 2)],
        instances: vec![instance(0, 0), instance(0, 1), instance(1, 0), instance(1, 1)],
        created_unix_ms: 0,
        formed_unix_ms: None,
    }
}

fn level(stage: PlanStage) -> Level {
    Level { mesh: Some(MeshId(Uuid::from_u128(9))), plan: Some(plan(stage)), ..Level::default() }
}

fn seen(stage: PlanStage, held: u32, up: u32, agreed: u32) -> Seen {
    let plan = Some((PlanId(Uuid::from_u128(5)), stage));
    let observed = Observed { plan, planned: 2, held, up, agreed, problems: Vec::new(), share_lost: None };
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

fn running(until: RunUntil, stage: RunStage) -> Level {
    let share = |host, writes| Share { host, workers: 1, first_worker: 0, writes };
    let writes = |n| matches!(until, RunUntil::Writes(_)).then_some(n);
    let run = Run {
        id: RunId(Uuid::from_u128(3)),
        spec: RunSpec { workload: UUID_COUNTER.to_owned(), workers: 2, load_hosts: None, until },
        shares: vec![share(A, writes(60)), share(B, writes(40))],
        stage,
        created_unix_ms: 1_000,
        before: Vec::new(),
        result: None,
    };
    Level { runs: vec![run], ..level(PlanStage::Formed) }
}

fn tally(host: HostId, epoch: u32, closed: bool, issued: u64) -> Tally {
    Tally { host, epoch, closed, counts: Counts { issued, acked: issued, ..Counts::default() } }
}

fn closes(level: &Level, tallies: Vec<Tally>, dead_b: u64, now_ms: u64) -> Option<Outcome> {
    let alive = seen(PlanStage::Formed, 0, 2, 2);
    let b = Seen { name: "host-b".to_owned(), dead_for: Duration::from_secs(dead_b), ..alive.clone() };
    let tallies = BTreeMap::from([(RunId(Uuid::from_u128(3)), tallies)]);
    match steps(level, &BTreeMap::from([(A, alive), (B, b)]), &tallies, now_ms).pop() {
        Some(Step::CloseRun { outcome, .. }) => Some(outcome),
        None => None,
        other => panic!("{other:?}"),
    }
}

#[test]
fn a_run_by_writes_closes_when_every_quota_is_spent() {
    let level = running(RunUntil::Writes(100), RunStage::Running);
    let whole = || tally(A, 0, true, 60);
    assert_eq!(closes(&level, vec![whole()], 0, 0), None, "nothing heard of the other share");
    assert_eq!(closes(&level, vec![whole(), tally(B, 0, false, 40)], 0, 0), None, "not closed");
    assert_eq!(closes(&level, vec![whole(), tally(B, 0, true, 30)], 0, 0), None, "ten are left");
    assert_eq!(closes(&level, vec![whole(), tally(B, 0, true, 40)], 0, 0), Some(Outcome::Completed));
    let two_lives = vec![whole(), tally(B, 0, true, 30), tally(B, 1, true, 10)];
    assert_eq!(closes(&level, two_lives, 0, 0), Some(Outcome::Completed));
}

#[test]
fn a_run_by_seconds_closes_when_its_time_is_over() {
    let level = running(RunUntil::Seconds(5), RunStage::Running);
    let both = || vec![tally(A, 0, true, 6), tally(B, 0, true, 4)];
    assert_eq!(closes(&level, both(), 0, 3_000), None, "a restarted agent may still go on");
    assert_eq!(closes(&level, both(), 0, 6_000), Some(Outcome::Completed));
    let stopping = running(RunUntil::Seconds(5), RunStage::Stopping);
    assert_eq!(closes(&stopping, both(), 0, 3_000), Some(Outcome::Stopped));
}

#[test]
fn a_host_that_stays_away_does_not_hold_the_account_open_for_ever() {
    let level = running(RunUntil::Writes(100), RunStage::Running);
    let tallies = || vec![tally(A, 0, true, 60), tally(B, 0, false, 17)];
    assert_eq!(closes(&level, tallies(), 59, 0), None);
    match closes(&level, tallies(), 61, 0) {
        Some(Outcome::Incomplete(reason)) => assert!(reason.contains("host-b"), "{reason}"),
        other => panic!("{other:?}"),
    }
}

#[test]
fn a_share_that_its_host_cannot_bear_is_lost_at_once() {
    let level = running(RunUntil::Writes(100), RunStage::Running);
    let alive = seen(PlanStage::Formed, 0, 2, 2);
    let mut b = Seen { name: "host-b".to_owned(), ..alive.clone() };
    let run = RunId(Uuid::from_u128(3));
    b.observed.share_lost = Some((run, "disk full".to_owned()));
    let hosts = BTreeMap::from([(A, alive), (B, b)]);
    let due = |tally| steps(&level, &hosts, &BTreeMap::from([(run, vec![tally])]), 0);
    assert_eq!(due(tally(A, 0, false, 60)), [], "the other share goes on");
    match &due(tally(A, 0, true, 60))[..] {
        [Step::CloseRun { outcome: Outcome::Incomplete(reason), .. }] => {
            assert!(reason.contains("host-b") && reason.contains("disk full"), "{reason}");
        }
        other => panic!("{other:?}"),
    }
}
