mod promises;
mod uneven;

use proptest::prelude::*;
use rand::SeedableRng;
use rand::rngs::StdRng;
use redmesh_api::ids::HostId;
use uuid::Uuid;

use super::*;

fn host(n: usize) -> PlannedHost {
    PlannedHost {
        id: HostId(n as u32 + 1),
        name: format!("host-{}", n + 1),
        ip: IpAddr::from([10, 0, 0, n as u8 + 1]),
        base_port: 6379,
    }
}

fn input(hosts: usize, per_host: u16, replicas: u8) -> PlanInput {
    PlanInput {
        id: PlanId(Uuid::from_u128(7)),
        spec: ClusterSpec {
            instances_per_host: per_host,
            replicas,
            node_timeout_ms: None,
            ..Default::default()
        },
        hosts: (0..hosts).map(host).collect(),
        created_unix_ms: 1,
        node_timeout_ms: 15_000,
        hz: 10,
        formation: Formation::Seeded,
    }
}

fn make(input: PlanInput, seed: u64) -> Result<ClusterPlan, PlanError> {
    plan(input, &mut StdRng::seed_from_u64(seed))
}

/// Checks every promise of a plan of equal hosts.
fn check(plan: &ClusterPlan, hosts: usize, per_host: usize, replicas: usize) {
    assert_eq!(usize::from(plan.spec.replicas), replicas);
    promises::kept(plan, &vec![per_host; hosts]).unwrap();
}

#[test]
fn every_small_shape_keeps_the_promises() {
    for hosts in 2..=12 {
        for per_host in 1..=12u16 {
            for replicas in 0..=2u8 {
                let shape = format!("{hosts} hosts, {per_host} each, {replicas} replicas");
                match make(input(hosts, per_host, replicas), 42) {
                    Ok(plan) => check(&plan, hosts, per_host.into(), replicas.into()),
                    Err(PlanError::TooFewPrimaries { primaries, enough, .. }) => {
                        assert!(primaries < PRIMARIES_MIN, "{shape}");
                        let enough = u16::try_from(enough).unwrap();
                        assert!(make(input(hosts, enough, replicas), 1).is_ok(), "{shape}: the remedy works");
                    }
                    Err(PlanError::TooFewHosts { .. }) => {
                        assert!(usize::from(replicas) + 1 > hosts, "{shape}")
                    }
                    Err(error) => panic!("{shape}: {error}"),
                }
            }
        }
    }
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(64))]
    #[test]
    fn any_shape_keeps_the_promises(
        hosts in 2usize..=20, per_host in 2u16..=30, replicas in 0u8..=3, seed in any::<u64>()
    ) {
        prop_assume!(usize::from(replicas) < hosts);
        prop_assume!(hosts * usize::from(per_host) / (usize::from(replicas) + 1) >= PRIMARIES_MIN);
        let made = make(input(hosts, per_host, replicas), seed).unwrap();
        check(&made, hosts, per_host.into(), replicas.into());
    }
}

#[test]
fn the_articles_cluster() {
    let plan = make(input(10, 100, 0), 1).unwrap();
    check(&plan, 10, 100, 0);
    assert_eq!(plan.node_timeout_ms, 15_000);
    assert_eq!(plan.stage, PlanStage::Prepare);
    let again = make(input(10, 100, 0), 1).unwrap();
    assert_eq!(plan, again, "the same randomness makes the same plan");
}

#[test]
fn replicas_of_one_host_are_spread_over_the_others() {
    let plan = make(input(4, 30, 1), 5).unwrap();
    let hosts: BTreeSet<u16> = plan
        .instances
        .iter()
        .filter_map(|i| match i.role {
            PlannedRole::Replica { primary } if plan.instances[primary as usize].host == 0 => Some(i.host),
            _ => None,
        })
        .collect();
    assert_eq!(hosts, BTreeSet::from([1, 2, 3]));
}

#[test]
fn one_host_without_replicas_will_do() {
    check(&make(input(1, 3, 0), 1).unwrap(), 1, 3, 0);
}

#[test]
fn refusals_name_the_remedy() {
    let words = |input| make(input, 1).unwrap_err().to_string();
    assert!(words(input(0, 1, 0)).contains("at least one agent"));
    assert!(words(input(3, 0, 0)).contains("ask for 1 to 1000"));
    assert!(words(input(3, 1001, 0)).contains("1001 instances per host"));
    assert!(words(input(30, 1000, 0)).contains("16384 slots"));
    let few = words(input(2, 2, 1));
    assert!(few.contains("make 2 primaries") && few.contains("at least 3 instances per host"), "{few}");
    let few = words(input(2, 9, 2));
    assert!(few.contains("at least 3 hosts") && few.contains("at most 1 replicas"), "{few}");
    let with = |change: fn(&mut PlanInput)| {
        let mut input = input(3, 4, 0);
        change(&mut input);
        words(input)
    };
    assert!(with(|i| i.hosts[1].base_port = 55533).contains("55533-55536"));
    assert!(with(|i| i.hosts[1].base_port = 0).contains("ports 0-3"));
    assert!(with(|i| i.hosts[1].id = i.hosts[0].id).contains("listed twice"));
    assert!(with(|i| i.hosts[1].ip = IpAddr::from([0, 0, 0, 0])).contains("redis.ip"));
    assert!(with(|i| i.spec.node_timeout_ms = Some(5)).contains("5 ms is out of bounds"));
}

#[test]
fn hosts_that_share_an_address_need_ports_apart() {
    let shared = |other: u16| {
        let mut input = input(3, 4, 0);
        input.hosts[1].ip = input.hosts[0].ip;
        input.hosts[1].base_port = other;
        make(input, 1)
    };
    assert!(matches!(shared(6379), Err(PlanError::PortsOverlap { .. })));
    assert!(matches!(shared(6382), Err(PlanError::PortsOverlap { .. })));
    assert!(matches!(shared(16379 + 3), Err(PlanError::PortsOverlap { .. })), "data on the other's bus");
    assert!(matches!(shared(16379 - 3), Err(PlanError::PortsOverlap { .. })));
    assert!(shared(6383).is_ok());
    assert!(shared(16383).is_ok());
}
