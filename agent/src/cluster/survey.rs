//! Servers that run already: whether they may become nodes of a new cluster.
//!
//! Pure: [`super::AdminPool`] asks, this judges. A server must be nobody's: in cluster
//! mode, empty, knowing no other node. Whatever is wrong is told at once, each with its
//! remedy, for whoever has to put a hundred servers right wants one list.

use std::collections::BTreeMap;
use std::net::{IpAddr, SocketAddr};

use redmesh_api::ids::NodeId;
use redmesh_api::level::BUS_PORT_OFFSET;
use serde::{Deserialize, Serialize};

use super::info::InfoMap;
use super::topology::{ClusterInfo, Topology};

/// Connections that a server must have room for besides its bus links.
const CLIENTS_BESIDES_BUS_MIN: u64 = 64;

/// A server that runs already.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct SurveyedServer {
    /// Where.
    pub addr: SocketAddr,
    /// Its node id, where it says one.
    pub node_id: Option<NodeId>,
    /// Its version, where it says one: `7.0.15`.
    pub version: Option<String>,
    /// Its `cluster-node-timeout` in milliseconds, where it says one.
    pub node_timeout_ms: Option<u32>,
    /// Why it won't do, each with the remedy; none if it will.
    pub problems: Vec<String>,
}

/// What a server says of itself.
#[derive(Debug, Clone, Default)]
pub struct Found {
    /// `INFO`.
    pub info: InfoMap,
    /// `CLUSTER INFO`; `None` outside cluster mode.
    pub cluster: Option<ClusterInfo>,
    /// `CLUSTER NODES`.
    pub view: Topology,
    /// `DBSIZE`.
    pub keys: u64,
    /// `CONFIG GET` of what matters here; empty where the command is not allowed.
    pub config: BTreeMap<String, String>,
}

/// A server that gave no usable answer, by the error's words.
pub fn silent(addr: SocketAddr, reason: &str) -> SurveyedServer {
    let remedy = if reason.contains("NOAUTH") || reason.contains("WRONGPASS") {
        "set redis.auth of the agents to \"off\", and redis.directives.requirepass to its password if it has one"
    } else if reason.contains("without any password") {
        "it has no password: take redis.directives.requirepass out of the agents' configuration, or give it one"
    } else if reason.contains("certificate") || reason.contains("InvalidContentType") {
        "redis.tls of the agents is \"on\": give it tls-port there, tls-cluster yes, and a certificate of the mesh's \
         CA that names its address"
    } else {
        "start it there, or set redis.ip and redis.base_port to where it is"
    };
    SurveyedServer {
        addr,
        node_id: None,
        version: None,
        node_timeout_ms: None,
        problems: vec![format!("does not answer ({reason}): {remedy}")],
    }
}

/// Judges a server at `addr` for a cluster of `nodes`.
pub fn judge(addr: SocketAddr, nodes: u32, found: &Found) -> SurveyedServer {
    let me = found.view.myself();
    let config = |name: &str| found.config.get(name).map(String::as_str).filter(|value| !value.is_empty());
    let mut problems = Vec::new();
    let empty =
        "take an empty one (FLUSHALL and CLUSTER RESET HARD make it so, if nobody needs what it holds)";
    match &found.cluster {
        None => problems.push(
            "is not in cluster mode: set cluster-enabled yes in its configuration and start it again"
                .to_owned(),
        ),
        Some(cluster) => {
            if cluster.known_nodes > 1 {
                problems.push(format!("knows {} other nodes: {empty}", cluster.known_nodes - 1));
            }
            if cluster.known_nodes <= 1 && cluster.slots_assigned > 0 {
                problems.push(format!("serves {} slots: {empty}", cluster.slots_assigned));
            }
        }
    }
    if found.info.get("role").is_some_and(|role| role != "master") {
        problems.push(format!("is a replica: {empty}"));
    }
    if found.keys > 0 {
        problems.push(format!("holds {} keys: {empty}", found.keys));
    }
    let links = u64::from(nodes.saturating_sub(1)) * 2;
    let clients = config("maxclients").and_then(|text| text.parse::<u64>().ok());
    if let Some(clients) = clients.filter(|clients| *clients < links + CLIENTS_BESIDES_BUS_MIN) {
        let needed = links + CLIENTS_BESIDES_BUS_MIN;
        problems.push(format!(
            "has maxclients {clients}, but the bus of {nodes} nodes takes {links} connections: CONFIG SET \
             maxclients {needed} or more"
        ));
    }
    problems.extend(announced(addr, me.and_then(|me| me.addr), &config));
    let version = found.info.get("valkey_version").or_else(|| found.info.get("redis_version"));
    SurveyedServer {
        addr,
        node_id: me.map(|me| me.id),
        version: version.map(str::to_owned),
        node_timeout_ms: config("cluster-node-timeout").and_then(|text| text.parse().ok()),
        problems,
    }
}

/// What others will take for its address, where that can be seen to be wrong.
fn announced<'a>(
    addr: SocketAddr,
    own: Option<SocketAddr>,
    config: &impl Fn(&str) -> Option<&'a str>,
) -> Vec<String> {
    let mut problems = Vec::new();
    let (ip, bus) = (addr.ip(), u32::from(addr.port()) + u32::from(BUS_PORT_OFFSET));
    let first = IpAddr::from([127, 0, 0, 1]);
    match (config("cluster-announce-ip"), own) {
        (Some(announced), _) if announced != ip.to_string() => problems.push(format!(
            "announces {announced} to its peers, but is planned at {ip}: CONFIG SET cluster-announce-ip {ip}"
        )),
        (None, Some(own)) if own != addr => problems.push(format!(
            "takes {own} for its own address, but is planned at {addr}: CONFIG SET cluster-announce-ip {ip}"
        )),
        // Its connections come from 127.0.0.1, which is what peers then believe.
        (None, _) if ip.is_loopback() && ip != first => problems.push(format!(
            "does not announce its address, so peers will take it for {first}: CONFIG SET \
             cluster-announce-ip {ip}"
        )),
        _ => {}
    }
    for (name, planned) in [
        ("cluster-announce-port", u32::from(addr.port())),
        ("cluster-announce-bus-port", bus),
        ("cluster-port", bus),
    ] {
        let set = config(name).and_then(|text| text.parse::<u32>().ok()).filter(|port| *port != 0);
        if let Some(port) = set.filter(|port| *port != planned) {
            problems.push(format!("has {name} {port}, but redmesh looks for {planned}: set it to 0"));
        }
    }
    problems
}

#[cfg(test)]
mod tests {
    use super::*;

    const ADDR: &str = "127.0.0.2:6379";
    const ALONE: &str =
        "07c37dfeb235213a872192d90877d0cd55635b91 :6379@16379 myself,master - 0 0 0 connected";
    const EMPTY: &str = "cluster_state:fail\r\ncluster_slots_assigned:0\r\ncluster_slots_ok:0\r\n\
        cluster_slots_pfail:0\r\ncluster_slots_fail:0\r\ncluster_known_nodes:1\r\ncluster_size:0\r\n\
        cluster_current_epoch:0\r\ncluster_my_epoch:0\r\n";

    fn good() -> Found {
        let config = [("cluster-announce-ip", "127.0.0.2"), ("cluster-port", "0"), ("maxclients", "10000")];
        Found {
            info: InfoMap::parse("redis_version:7.0.15\r\nrole:master\r\n"),
            cluster: Some(ClusterInfo::parse(EMPTY).expect("parses")),
            view: Topology::parse(ALONE).expect("parses"),
            keys: 0,
            config: config.map(|(name, value)| (name.to_owned(), value.to_owned())).into(),
        }
    }

    fn words(found: &Found) -> String {
        judge(ADDR.parse().expect("an address"), 1000, found).problems.join("; ")
    }

    #[test]
    fn an_empty_server_in_cluster_mode_will_do() {
        let judged = judge(ADDR.parse().expect("an address"), 1000, &good());
        assert_eq!(judged.problems, Vec::<String>::new());
        assert_eq!(judged.version.as_deref(), Some("7.0.15"));
        assert_eq!(judged.node_id.map(|id| id.to_string()).as_deref(), Some(&ALONE[..40]));
    }

    #[test]
    fn each_thing_that_is_wrong_is_named_with_its_remedy() {
        let with = |change: fn(&mut Found)| {
            let mut found = good();
            change(&mut found);
            words(&found)
        };
        assert!(with(|it| it.cluster = None).contains("cluster-enabled yes"));
        assert!(with(|it| it.keys = 3).contains("holds 3 keys"));
        assert!(with(|it| it.info = InfoMap::parse("role:slave\r\n")).contains("is a replica"));
        let known = |it: &mut Found| it.cluster.as_mut().expect("in cluster mode").known_nodes = 4;
        assert!(with(known).contains("knows 3 other nodes"));
        let slots = |it: &mut Found| it.cluster.as_mut().expect("in cluster mode").slots_assigned = 5;
        assert!(with(slots).contains("serves 5 slots"));
        assert!(
            with(|it| drop(it.config.insert("maxclients".into(), "500".into()))).contains("maxclients 2062")
        );
        let both = with(|it| {
            it.keys = 1;
            it.config.clear();
        });
        assert!(both.contains("holds 1 keys") && both.contains("cluster-announce-ip 127.0.0.2"), "{both}");
    }

    #[test]
    fn an_address_that_peers_would_get_wrong_is_named() {
        let with = |name: &str, value: &str| {
            let mut found = good();
            found.config.insert(name.to_owned(), value.to_owned());
            words(&found)
        };
        assert!(with("cluster-announce-ip", "").contains("for 127.0.0.1"));
        assert!(with("cluster-announce-ip", "10.0.0.1").contains("announces 10.0.0.1"));
        assert!(with("cluster-announce-bus-port", "17000").contains("cluster-announce-bus-port 17000"));
        assert_eq!(with("cluster-port", "16379"), "");
        let mut found = good();
        found.config.clear();
        let judged = judge("127.0.0.1:6379".parse().expect("an address"), 3, &found);
        assert_eq!(judged.problems, Vec::<String>::new());
    }

    #[test]
    fn silence_is_told_by_its_cause() {
        let addr = ADDR.parse().expect("an address");
        for (reason, remedy) in [
            ("NOAUTH Authentication required.", "redis.auth of the agents to \"off\""),
            ("ERR AUTH <password> called without any password configured", "no password"),
            ("connection refused", "redis.base_port"),
            ("received corrupt message of type InvalidContentType", "tls-port"),
        ] {
            let problem = silent(addr, reason).problems.remove(0);
            assert!(problem.contains(reason) && problem.contains(remedy), "{problem}");
        }
    }
}
