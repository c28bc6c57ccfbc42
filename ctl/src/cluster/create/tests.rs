use redmesh_api::ids::{HostId, NodeId, PlanId};
use redmesh_api::level::{Formation, PlannedHost, PlannedInstance, SlotRange};

use super::*;

fn plan(hosts: u16, replicas: u8) -> ClusterPlan {
    let count = 16_384 / hosts;
    let instance = |host: u16, port: u16, role| PlannedInstance {
        host,
        port,
        node_id: NodeId([1; 20]),
        shard_id: NodeId([2; 20]),
        role,
    };
    let mut instances: Vec<_> = (0..hosts)
        .map(|host| {
            let last = if host + 1 == hosts { 16_383 } else { (host + 1) * count - 1 };
            let slots = SlotRange { first: host * count, last };
            instance(host, 6379, PlannedRole::Primary { slots, config_epoch: 1 })
        })
        .collect();
    if replicas > 0 {
        let replicas = (0..hosts).map(|host| {
            instance(host, 6380, PlannedRole::Replica { primary: u32::from((host + 1) % hosts) })
        });
        instances.extend(replicas);
    }
    ClusterPlan {
        id: PlanId(Default::default()),
        spec: ClusterSpec { instances_per_host: 1, replicas, node_timeout_ms: None, ..Default::default() },
        node_timeout_ms: 5000,
        hz: 10,
        stage: PlanStage::Prepare,
        hosts: (0..hosts)
            .map(|at| PlannedHost {
                id: HostId(u32::from(at) + 1),
                name: format!("host-{}", at + 1),
                ip: std::net::Ipv4Addr::new(127, 0, 0, at as u8 + 1).into(),
                base_port: 6379,
            })
            .collect(),
        instances,
        created_unix_ms: 0,
        formation: Formation::Seeded,
        reached: Vec::new(),
        convergence: None,
    }
}

fn host(name: &str, up: u32, agreed: u32) -> HostProgress {
    HostProgress {
        id: HostId(1),
        name: name.to_owned(),
        alive: true,
        stage: Some(PlanStage::Prepare),
        planned: 3,
        held: 0,
        up,
        agreed,
        problems: Vec::new(),
        removed: false,
        forgotten: Vec::new(),
        withheld: None,
    }
}

#[test]
fn a_small_plan_is_printed_whole() {
    assert_eq!(
        render_plan(&plan(3, 1), true),
        "\
>>> Performing hash slots allocation on 6 nodes...
Primary[0] -> Slots 0 - 5460  127.0.0.1:6379
Primary[1] -> Slots 5461 - 10921  127.0.0.2:6379
Primary[2] -> Slots 10922 - 16383  127.0.0.3:6379
Adding replica 127.0.0.1:6380 to 127.0.0.2:6379
Adding replica 127.0.0.2:6380 to 127.0.0.3:6379
Adding replica 127.0.0.3:6380 to 127.0.0.1:6379
6 nodes on 3 hosts: 3 primaries, 3 replicas; cluster-node-timeout 5000 ms
"
    );
}

#[test]
fn a_large_plan_is_summed_up() {
    let text = render_plan(&plan(100, 0), true);
    assert_eq!(text.lines().count(), 1 + PLAN_LINES_MAX + 1);
    assert!(text.contains("... 91 more primaries ...\nPrimary[99] -> "), "{text}");
}

#[test]
fn uneven_hosts_are_summed_up() {
    let mut plan = plan(4, 1);
    assert!(!render_plan(&plan, true).contains("host-1"), "equal hosts need no sums");
    plan.instances.retain(|instance| instance.host != 1 || instance.port == 6379);
    let text = render_plan(&plan, true);
    for line in ["host-1: 2 nodes, 1 primaries, 1 replicas", "host-2: 1 nodes, 1 primaries, 0 replicas"] {
        assert!(text.lines().any(|l| l == line), "{line} in {text}");
    }
}

#[test]
fn a_known_plan_is_only_confirmed() {
    let mut plan = plan(3, 0);
    assert_eq!(render_plan(&plan, false), "The same cluster of 3 nodes is being formed: continuing.\n");
    plan.stage = PlanStage::Formed;
    assert_eq!(render_plan(&plan, false), "The same cluster of 3 nodes is formed already.\n");
}

#[test]
fn progress_names_who_is_behind() {
    let hosts = [host("host-1", 3, 0), host("host-2", 1, 0), host("host-3", 0, 0)];
    let view = Forming::of(Some(PlanStage::Prepare), &hosts);
    assert_eq!((view.done, view.total), (4, 18));
    assert_eq!(view.text, "1/3 hosts ready, 4/9 servers listening; waiting for host-2 and 1 more");
    let hosts = [host("host-1", 3, 3), host("host-2", 3, 2)];
    let view = Forming::of(Some(PlanStage::Release), &hosts);
    assert_eq!(view.text, "6/6 servers released, 6 up, 5 agreed; waiting for host-2");
    let mut held = host("host-1", 1, 0);
    held.held = 1;
    let view = Forming::of(Some(PlanStage::Release), &[held]);
    assert_eq!(view.text, "2/3 servers released, 1 up, 0 agreed");
}

#[test]
fn a_missed_deadline_names_hosts_and_problems() {
    let mut silent = host("host-2", 0, 0);
    silent.alive = false;
    let mut taken = host("host-3", 2, 0);
    taken.problems = vec!["127.0.0.3:6380: port taken by nginx (pid 7)".to_owned()];
    assert_eq!(
        awaited(&[host("host-1", 3, 3), silent, taken]),
        [
            "host-2: not heard of; is its agent running?",
            "host-3: 2 of 3 servers ready, 0 agreed",
            "host-3: 127.0.0.3:6380: port taken by nginx (pid 7)",
        ]
    );
    let many: Vec<_> = (0..30).map(|at| host(&format!("h{at}"), 0, 0)).collect();
    assert_eq!(awaited(&many).len(), NAMED_MAX + 1);
}
