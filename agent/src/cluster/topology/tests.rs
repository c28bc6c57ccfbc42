use proptest::prelude::*;

use super::*;

const A: &str = "e0fba8ca7b0f46d7c4b7bb14b3d5c9e8a7f6d5c4";
const B: &str = "5e7b3dae787fe92f24e40f0d304aee3398bf78b5";
const C: &str = "0000000000000000000000000000000000000001";

fn id(text: &str) -> NodeId {
    text.parse().unwrap()
}

fn view() -> String {
    format!(
        "{A} 127.0.0.1:6379@16379,host-1,shard-id={C} myself,master - 0 1700000000000 3 connected 0-99 101 103-110 [93-<-{B}] [77->-{C}]\n\
         {B} ::1:6380@16380 master,fail? - 1700000000001 0 2 disconnected 100 111-16383\n\
         {C} :0@0 slave,noaddr {A} 0 0 3 disconnected\n"
    )
}

#[test]
fn reads_a_view() {
    let topology = Topology::parse(&view()).unwrap();
    assert_eq!(topology.nodes.len(), 3);
    let me = topology.myself().unwrap();
    assert_eq!(me.id, id(A));
    assert_eq!(me.addr, Some("127.0.0.1:6379".parse().unwrap()));
    assert_eq!(me.slots.iter().map(|s| s.to_string()).collect::<Vec<_>>(), ["0-99", "101", "103-110"]);
    let open = [OpenSlot::Importing { slot: 93, from: id(B) }, OpenSlot::Migrating { slot: 77, to: id(C) }];
    assert_eq!(me.open, open);
    assert_eq!(topology.nodes[1].addr, Some("[::1]:6380".parse().unwrap()));
    assert!(topology.nodes[1].has("fail?") && !topology.nodes[1].connected);
    assert_eq!((topology.nodes[2].addr, topology.nodes[2].primary), (None, Some(id(A))));
    assert_eq!(topology.slots_covered(), 16383);
    let map = topology.slot_map();
    assert_eq!(map.len(), 5);
    assert!(map.windows(2).all(|w| w[0].0.last < w[1].0.first));
}

#[test]
fn the_digest_ignores_what_differs_between_healthy_nodes() {
    let digest = |text: &str| Topology::parse(text).unwrap().view_digest();
    let base = digest(&view());
    let mut lines: Vec<String> = view().lines().map(str::to_owned).collect();
    lines.reverse();
    let other = lines
        .join("\n")
        .replace("myself,master", "master")
        .replace("master,fail?", "myself,master")
        .replace("1700000000001", "5")
        .replace("disconnected", "connected")
        .replace(&format!(" [93-<-{B}] [77->-{C}]"), "");
    assert_eq!(base, digest(&other));
    assert_ne!(base, digest(&view().replace("103-110", "103-109")));
    assert_ne!(base, digest(&view().replace(":6379@", ":6381@")));
    assert_ne!(base, digest(&view().replace(&format!("noaddr {A}"), &format!("noaddr {B}"))));
    // Pinned: agents of different versions compare digests.
    assert_eq!(
        digest(&format!("{C} 127.0.0.1:1@10001 master - 0 0 1 connected 0-16383\n")),
        0xeffa_19b6_6185_345d
    );
}

#[test]
fn odd_lines_are_errors_that_name_the_line() {
    let good = format!("{A} 127.0.0.1:1@2 master - 0 0 1 connected");
    for bad in [
        "x",
        A,
        &format!("{good}\n{A} 127.0.0.1 master - 0 0 1 connected"),
        &format!("{A} 127.0.0.1:99999@2 master - 0 0 1 connected"),
        &format!("{A} 127.0.0.1:1@2 master {} 0 0 1 connected", "é".repeat(40)),
        &format!("{A} 127.0.0.1:1@2 master - 0 0 -1 connected"),
        &format!("{A} 127.0.0.1:1@2 master - 0 0 1 maybe"),
        &format!("{good} 16384"),
        &format!("{good} 5-4"),
        &format!("{good} [5->-]"),
        &format!("{good} [99999-<-{A}]"),
    ] {
        let error = Topology::parse(bad).unwrap_err();
        assert!(matches!(error, TopologyError::Line { .. }), "{bad}: {error}");
    }
    assert_eq!(Topology::parse("").unwrap(), Topology::default());
}

#[test]
fn a_huge_reply_is_refused() {
    let text = " ".repeat(REPLY_BYTES_MAX + 1);
    assert!(matches!(Topology::parse(&text), Err(TopologyError::TooLarge { .. })));
    assert!(matches!(ClusterInfo::parse(&text), Err(TopologyError::TooLarge { .. })));
}

#[test]
fn reads_cluster_info() {
    let text = "cluster_state:ok\r\ncluster_slots_assigned:16384\r\ncluster_slots_ok:16384\r\ncluster_slots_pfail:0\r\n\
                cluster_slots_fail:0\r\ncluster_known_nodes:6\r\ncluster_size:3\r\ncluster_current_epoch:6\r\n\
                cluster_my_epoch:2\r\ncluster_stats_messages_sent:1483972\r\n";
    let info = ClusterInfo::parse(text).unwrap();
    assert!(info.state_ok);
    assert_eq!((info.slots_assigned, info.known_nodes, info.size, info.my_epoch), (16384, 6, 3, 2));
    assert!(!ClusterInfo::parse(&text.replace(":ok", ":fail")).unwrap().state_ok);
    let error = ClusterInfo::parse(&text.replace("known_nodes:6", "known_nodes:x")).unwrap_err();
    assert_eq!(error, TopologyError::Field { field: "cluster_known_nodes" });
    assert!(ClusterInfo::parse("").is_err());
}

proptest! {
    #[test]
    fn no_text_panics(text in "\\PC{0,200}") {
        let _ = Topology::parse(&text);
        let _ = ClusterInfo::parse(&text);
    }

    /// Close to the real format, so that the later fields are reached.
    #[test]
    fn no_nearly_right_text_panics(
        addr in "([0-9a-f.:\\[\\]]{0,12}):[0-9]{0,6}(@[0-9]{0,6})?(,[a-z=]{0,5})?",
        flags in "[a-z,?]{1,12}",
        tail in "( ?[\\[\\]0-9<>é-]{0,12}){0,4}",
    ) {
        let text = format!("{A} {addr} {flags} - 0 0 1 connected {tail}");
        if let Ok(topology) = Topology::parse(&text) {
            topology.view_digest();
            topology.slots_covered();
            topology.slot_map();
        }
    }
}
