//! Hosts of different sizes: the promises, and that what is refused can't be done.

use std::collections::BTreeSet;

use super::*;

fn uneven(sizes: &[usize], replicas: u8) -> PlanInput {
    let mut input = input(sizes.len(), 1, replicas);
    for (host, &size) in input.hosts.iter().zip(sizes) {
        if size != 1 {
            input.spec.instances_of.insert(host.name.clone(), size as u16);
        }
    }
    input
}

/// Whether hosts of these sizes can hold `shards` shards of `copies` copies or more, no
/// two of one shard on a host, `all` instances used or not: by trying everything. A state
/// says how many shards have 0, 1, … copies so far; shards are interchangeable.
fn possible(sizes: &[usize], shards: usize, copies: usize, all: bool) -> bool {
    let mut start = vec![0; copies + 1];
    start[0] = shards;
    let mut states = BTreeSet::from([start]);
    // The largest first: it rules out most.
    let mut sizes = sizes.to_vec();
    sizes.sort_unstable_by(|a, b| b.cmp(a));
    for size in sizes {
        if all && size > shards {
            return false;
        }
        let mut next = BTreeSet::new();
        for state in &states {
            give(state, size.min(shards), copies, &mut state.clone(), &mut next);
        }
        states = next;
    }
    states.iter().any(|state| state[copies] == shards)
}

/// Every way in which a host gives its `left` instances to shards of `level` copies or fewer.
fn give(before: &[usize], left: usize, level: usize, now: &mut Vec<usize>, found: &mut BTreeSet<Vec<usize>>) {
    let top = before.len() - 1;
    for given in 0..=left.min(before[level]) {
        // From the level with all copies there is nowhere further.
        let up = (level + 1).min(top);
        now[level] -= given;
        now[up] += given;
        if level > 0 {
            give(before, left - given, level - 1, now, found);
        } else if left == given {
            found.insert(now.clone());
        }
        now[up] -= given;
        now[level] += given;
    }
}

/// That `error` is right about hosts of these sizes, and its remedy works.
fn refusal_is_right(error: &PlanError, sizes: &[usize], replicas: u8) -> Result<(), TestCaseError> {
    let copies = usize::from(replicas) + 1;
    let (total, bearing) = (sizes.iter().sum::<usize>(), sizes.iter().filter(|&&size| size > 0).count());
    match error {
        PlanError::AllLeftOut => prop_assert_eq!(total, 0),
        PlanError::TooFewHosts { needed, hosts, most, .. } => {
            prop_assert_eq!((*needed, *hosts, *most), (copies, bearing, bearing - 1));
            prop_assert!(bearing < copies);
        }
        PlanError::TooFewPrimaries { primaries, enough, .. } => {
            prop_assert!(*primaries < PRIMARIES_MIN);
            prop_assert!(!possible(sizes, PRIMARIES_MIN, copies, false), "three shards are possible");
            let enlarged: Vec<_> =
                sizes.iter().map(|&size| if size == 0 { 0 } else { size.max(*enough) }).collect();
            let then = make(uneven(&enlarged, replicas), 1);
            prop_assert!(!matches!(then, Err(PlanError::TooFewPrimaries { .. })), "{:?}", then);
        }
        PlanError::HostsTooLarge { fit, name, .. } => {
            for shards in PRIMARIES_MIN..=total / copies {
                prop_assert!(!possible(sizes, shards, copies, true), "{} shards hold all", shards);
            }
            let at: usize = name.strip_prefix("host-").unwrap().parse().unwrap();
            prop_assert_eq!(sizes.get(at - 1), sizes.iter().max());
            let capped = |most: usize| sizes.iter().map(|&size| size.min(most)).collect::<Vec<_>>();
            prop_assert!(make(uneven(&capped(*fit), replicas), 1).is_ok(), "the remedy works");
            prop_assert!(make(uneven(&capped(*fit + 1), replicas), 1).is_err(), "and is the most");
        }
        other => return Err(TestCaseError::fail(other.to_string())),
    }
    Ok(())
}

fn holds(sizes: &[usize], replicas: u8, seed: u64) -> Result<(), TestCaseError> {
    let made = make(uneven(sizes, replicas), seed);
    prop_assert_eq!(&made, &make(uneven(sizes, replicas), seed), "the same randomness makes the same plan");
    match made {
        Ok(plan) => promises::kept(&plan, sizes).map_err(TestCaseError::fail),
        Err(error) => refusal_is_right(&error, sizes, replicas),
    }
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(256))]

    /// Sizes of any kind: many are refused.
    #[test]
    fn any_sizes_keep_the_promises_or_are_rightly_refused(
        sizes in prop::collection::vec(0usize..=12, 1..=12), replicas in 0u8..=3, seed in any::<u64>()
    ) {
        holds(&sizes, replicas, seed)?;
    }

    /// Sizes about as different as machines are: most are planned.
    #[test]
    fn somewhat_uneven_hosts_keep_the_promises(
        sizes in prop::collection::vec(10usize..=30, 4..=12), replicas in 0u8..=3, seed in any::<u64>()
    ) {
        holds(&sizes, replicas, seed)?;
    }

    /// One host as large as it may be, and just larger.
    #[test]
    fn the_bound_on_one_host_is_sharp(
        others in prop::collection::vec(3usize..=9, 3..=11), replicas in 1u8..=3, seed in any::<u64>()
    ) {
        let copies = usize::from(replicas) + 1;
        prop_assume!(others.len() >= copies);
        let rest: usize = others.iter().sum();
        let most = rest / (copies - 1);
        prop_assume!(others.iter().all(|&size| size <= most));
        for size in [most, most + 1] {
            let mut sizes = others.clone();
            sizes.push(size);
            prop_assert_eq!(make(uneven(&sizes, replicas), seed).is_ok(), size == most, "{:?}", sizes);
            holds(&sizes, replicas, seed)?;
        }
    }
}

#[test]
fn trying_everything_finds_what_is_possible() {
    assert!(possible(&[2, 2, 2], 3, 2, true));
    assert!(!possible(&[4, 1, 1], 3, 2, true), "a host meets a shard twice");
    assert!(!possible(&[4, 1, 1], 3, 2, false));
    assert!(possible(&[4, 2, 1], 3, 2, false));
    assert!(!possible(&[3, 3], 3, 3, false), "three copies on two hosts");
    assert!(possible(&[3, 3, 3], 3, 3, true));
    assert!(possible(&[3, 3, 3], 3, 2, true), "further copies are fine");
}

#[test]
fn the_largest_clusters_are_planned() {
    // 1000 on ten uneven hosts, and every slot an instance.
    let sizes = [140, 140, 120, 100, 100, 100, 100, 80, 60, 60];
    for replicas in 0..=3 {
        promises::kept(&make(uneven(&sizes, replicas), 9).unwrap(), &sizes).unwrap();
    }
    let mut sizes = vec![1000; 16];
    sizes.extend([300, 84]);
    assert_eq!(sizes.iter().sum::<usize>(), INSTANCES_MAX);
    for replicas in [0, 2] {
        promises::kept(&make(uneven(&sizes, replicas), 9).unwrap(), &sizes).unwrap();
    }
}

#[test]
fn hosts_without_instances_are_left_out() {
    let plan = make(uneven(&[4, 0, 4, 4], 1), 1).unwrap();
    let names: Vec<_> = plan.hosts.iter().map(|host| host.name.as_str()).collect();
    assert_eq!(names, ["host-1", "host-3", "host-4"]);
}

#[test]
fn agents_of_one_address_bear_no_two_copies_where_that_is_possible() {
    let on = |addresses: &[u8]| {
        let mut input = input(addresses.len(), 4, 1);
        for (at, host) in input.hosts.iter_mut().enumerate() {
            host.ip = IpAddr::from([10, 0, 0, addresses[at]]);
            host.base_port = 7000 + 100 * at as u16;
        }
        make(input, 8).unwrap()
    };
    let shared = |plan: &ClusterPlan| {
        let beside = plan.instances.iter().filter(|instance| match instance.role {
            PlannedRole::Primary { .. } => false,
            PlannedRole::Replica { primary } => {
                plan.host_of(instance).ip == plan.host_of(&plan.instances[primary as usize]).ip
            }
        });
        beside.count()
    };
    assert_eq!(shared(&on(&[1, 1, 2, 2])), 0, "half of all on each of two machines");
    assert_eq!(shared(&on(&[1, 1, 2, 3, 4])), 0);
    assert!(shared(&on(&[1, 1, 1, 2])) > 0, "three quarters on one machine: hosts have to do");
}

#[test]
fn what_a_lost_host_leaves_is_spread() {
    // Three equal hosts: each host's replicas are on both others, whatever the seed.
    for seed in 0..50 {
        let plan = make(input(3, 8, 1), seed).unwrap();
        for lost in 0..3 {
            let mut taken = [0; 3];
            for instance in &plan.instances {
                if let PlannedRole::Replica { primary } = instance.role
                    && plan.instances[primary as usize].host == lost
                {
                    taken[usize::from(instance.host)] += 1;
                }
            }
            taken.sort_unstable();
            assert_eq!(taken, [0, 2, 2], "seed {seed}, host {lost}");
        }
    }
}

#[test]
fn refusals_name_the_host_and_the_remedy() {
    let words = |sizes: &[usize], replicas| make(uneven(sizes, replicas), 1).unwrap_err().to_string();
    let large = words(&[40, 100, 10, 10], 1);
    for part in ["host \"host-2\" bears 100 of 160", "at most 60 there (--instances host-2=60)"] {
        assert!(large.contains(part), "{part:?} in {large}");
    }
    let two = words(&[100, 90, 10, 10], 2);
    assert!(
        two.contains("host-1") && two.contains("host-2") && two.contains("for the copies of 20"),
        "{two}"
    );
    assert!(words(&[5, 1001], 0).contains("1001 instances on host \"host-2\""));
    assert!(words(&[0, 0, 0], 0).contains("every host is left out"));
    assert!(words(&[9, 0, 0], 1).contains("1 bear instances"));
    let few = words(&[9, 1, 1], 1);
    assert!(few.contains("make 2 primaries") && few.contains("at least 2 instances per host"), "{few}");
}

#[test]
fn ports_of_uneven_hosts_are_compared_by_their_own_sizes() {
    let shared = |first: usize, second: usize, other: u16| {
        let mut input = uneven(&[first, second, 4], 0);
        input.hosts[1].ip = input.hosts[0].ip;
        input.hosts[1].base_port = other;
        make(input, 1)
    };
    assert!(shared(10, 2, 6389).is_ok());
    assert!(matches!(shared(11, 2, 6389), Err(PlanError::PortsOverlap { apart: 11, .. })));
    // Data of the upper host beside the bus of the lower one.
    assert!(shared(10, 2, 16389).is_ok());
    assert!(matches!(shared(11, 2, 16389), Err(PlanError::PortsOverlap { .. })));
    assert!(shared(11, 2, 16377).is_ok());
    assert!(matches!(shared(11, 3, 16377), Err(PlanError::PortsOverlap { .. })));
}
