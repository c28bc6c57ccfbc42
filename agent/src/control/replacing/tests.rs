use redmesh_api::level::{ClusterSpec, Formation, PlanStage, RemovedHost};

use super::*;
use crate::census::example_host;

const PORT: u16 = 6379;

fn host(id: u8, name: &str, ip: u8, alive: bool) -> CensusHost {
    CensusHost { id: HostId(id.into()), ..example_host(ip, name, alive) }
}

fn planned(id: u32, name: &str, ip: u8) -> PlannedHost {
    PlannedHost { id: HostId(id), name: name.to_owned(), ip: [10, 0, 0, ip].into(), base_port: PORT }
}

fn plan() -> ClusterPlan {
    ClusterPlan {
        id: redmesh_api::ids::PlanId(uuid::Uuid::from_u128(1)),
        spec: ClusterSpec::default(),
        node_timeout_ms: 5000,
        hz: 10,
        formation: Formation::Seeded,
        stage: PlanStage::Formed,
        hosts: vec![planned(1, "a", 1), planned(2, "b", 2)],
        instances: Vec::new(),
        created_unix_ms: 1,
        reached: Vec::new(),
        convergence: None,
    }
}

fn removed(id: u32) -> RemovedHost {
    RemovedHost { id: Some(HostId(id)), name: "b".to_owned(), certificates: false, at_unix_ms: 1 }
}

fn judged(
    removed: &[RemovedHost],
    hosts: &[CensusHost],
    host: &str,
    with: Option<&str>,
) -> Result<Change, String> {
    let level = Level { removed: removed.to_vec(), ..Level::default() };
    let hosts = hosts.iter().map(|host| (host.id, host.clone())).collect();
    let request = HostReplace { host: host.to_owned(), with: with.map(str::to_owned) };
    judge(&level, &plan(), &hosts, &request).map_err(|refusal| refusal.message)
}

#[test]
fn the_host_of_the_same_name_and_address_takes_the_place() {
    let hosts = [host(1, "a", 1, true), host(2, "b", 2, false), host(7, "b", 2, true)];
    let due = Ok(Change::Due { from: HostId(2), to: planned(7, "b", 2) });
    assert_eq!(judged(&[], &hosts, "b", None), due);
    assert_eq!(judged(&[], &hosts, "00000002", Some("00000007")), due);
    let forgotten = [hosts[0].clone(), hosts[2].clone()];
    assert_eq!(judged(&[], &forgotten, "b", None), due, "gossip forgets who is gone");
}

#[test]
fn another_name_will_do_where_it_is_given() {
    let hosts = [host(1, "a", 1, true), host(7, "c", 2, true)];
    let due = Change::Due { from: HostId(2), to: planned(7, "c", 2) };
    assert_eq!(judged(&[], &hosts, "b", Some("c")), Ok(due));
}

#[test]
fn what_can_not_be_is_refused_in_words() {
    let (a, gone) = (host(1, "a", 1, true), host(2, "b", 2, false));
    let words = |hosts: &[CensusHost], host, with| judged(&[], hosts, host, with).expect_err("is refused");
    let here = [a.clone(), gone];
    assert!(words(&here, "x", None).contains("no host \"x\" bears instances of the cluster, but a, b"));
    assert!(words(&here, "a", None).contains("is alive"));
    assert!(words(&here, "b", None).contains("no other host \"b\" is here"));
    assert!(words(&here, "b", Some("a")).contains("bears instances of the cluster already"));
    let elsewhere = [a.clone(), host(7, "b", 9, true)];
    assert!(words(&elsewhere, "b", None).contains("give b that address"));
    let twice = [a.clone(), host(7, "b", 2, true), host(8, "b", 2, true)];
    assert!(words(&twice, "b", None).contains("--with ID, of 00000007, 00000008"));
    let silent = [a, CensusHost { facts: None, ..host(7, "b", 2, true) }];
    assert!(words(&silent, "b", Some("00000007")).contains("has not said yet"));
}

#[test]
fn a_second_try_finds_it_done_and_a_removed_host_stays_removed() {
    let hosts = [host(1, "a", 1, true), host(2, "b", 2, true)];
    for by in ["b", "00000009"] {
        match judged(&[removed(9)], &hosts, by, None) {
            Ok(Change::Past { from, to }) => assert_eq!((from, to.id), (HostId(9), HostId(2))),
            other => panic!("{other:?}"),
        }
    }
    let given_up = RemovedHost { certificates: true, ..removed(9) };
    let words = judged(&[given_up], &hosts, "b", None).expect_err("nobody was replaced");
    assert!(words.contains("is alive, and bears its instances itself"), "{words}");
    let gone = [host(1, "a", 1, true), host(7, "b", 2, true)];
    let words = judged(&[removed(2)], &gone, "b", None).expect_err("is refused");
    assert!(words.contains("was removed, and the cluster has forgotten its servers"), "{words}");
}
