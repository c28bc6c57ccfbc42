use redmesh_api::ids::NodeId;
use redmesh_api::level::SlotRange;

use super::*;
use crate::census::example_host;

fn hosts(named: &[(u8, &str)]) -> Hosts {
    named.iter().map(|(id, name)| (HostId((*id).into()), example_host(*id, name, true))).collect()
}

fn request(host: &str, force: &[RemovalCheck]) -> HostRemove {
    HostRemove { host: host.to_owned(), force: force.to_vec() }
}

fn target(id: Option<u32>, name: &str, certificates: bool) -> Result<Target, Refusal> {
    Ok(Target::Host { id: id.map(HostId), name: name.to_owned(), certificates })
}

#[test]
fn a_host_is_meant_by_its_name_or_by_its_id_where_several_bear_it() {
    let level = Level::default();
    let known = hosts(&[(1, "a"), (2, "b"), (3, "b")]);
    assert_eq!(find(&level, &known, &request("a", &[])), target(Some(1), "a", true));
    assert_eq!(find(&level, &known, &request("00000001", &[])), target(Some(1), "a", true));
    let Refusal { kind, message: words } = find(&level, &known, &request("b", &[])).unwrap_err();
    assert!(kind == RefusalKind::Conflict && words.contains("00000002, 00000003"), "{words}");
    let by_id = find(&level, &known, &request("00000003", &[]));
    assert_eq!(by_id, target(Some(3), "b", false), "the other's certificate stays good");
    let Refusal { kind, message: words } = find(&level, &known, &request("c", &[])).unwrap_err();
    assert!(kind == RefusalKind::NotFound && words.contains("known are a, b, b"), "{words}");
    let forced = [RemovalCheck::Unknown];
    assert_eq!(find(&level, &known, &request("c", &forced)), target(None, "c", true));
    assert!(find(&level, &known, &request("no name", &forced)).is_err());
}

#[test]
fn a_removed_host_is_removed_once_and_its_successor_is_another() {
    let gone = RemovedHost { id: Some(HostId(1)), name: "a".to_owned(), certificates: true, at_unix_ms: 5 };
    let level = Level { removed: vec![gone.clone()], ..Level::default() };
    for by in ["a", "00000001"] {
        let found = find(&level, &hosts(&[(1, "a"), (2, "b")]), &request(by, &[]));
        assert_eq!(found, Ok(Target::Gone(gone.clone())));
    }
    assert_eq!(find(&level, &hosts(&[(4, "a")]), &request("a", &[])), target(Some(4), "a", true));
}

#[test]
fn slots_count_that_only_the_host_covers() {
    let view = |host, primary, up, first, last| InstanceView {
        host: HostId(host),
        addr: ([127, 0, 0, 1], 1).into(),
        node_id: NodeId([1; 20]),
        up,
        primary,
        primary_id: None,
        slots: vec![SlotRange { first, last }],
        keys: 0,
        state_ok: true,
        known_nodes: 3,
        slots_assigned: SLOTS,
        view_digest: 0,
        open_slots: Vec::new(),
        problem: None,
    };
    let views =
        [view(1, true, true, 0, 8191), view(2, true, true, 8192, SLOTS - 1), view(3, false, true, 0, 9)];
    assert_eq!(slots_without(HostId(1), &views), 8192);
    assert_eq!(slots_without(HostId(3), &views), 0, "a replica");
    // One that says nothing covers nothing, whoever asks.
    let silent = [view(1, true, true, 0, 8191), view(2, true, false, 8192, SLOTS - 1)];
    assert_eq!(slots_without(HostId(2), &silent), 8192);
}
