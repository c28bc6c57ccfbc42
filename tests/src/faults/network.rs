//! Hosts that are cut off, from all or from some, or badly connected: a network namespace
//! for each.

use std::time::Duration;

use super::{
    HOSTS, Load, Need, Observed, SOON, Scenario, await_coordinator, await_dead, await_served,
    coordinator_and_others, formed, timed, whole,
};
use crate::mesh::{Mesh, MeshBuilder};
use crate::wait::until;

const NAMESPACES: &[Need] = &[Need::Namespaces];

/// See [`super::all`].
pub const ALL: &[Scenario] = &[
    Scenario {
        name: "host-down",
        fault: "the link of a host goes down (`ip link set eth0 down` in its namespace) and comes back (`--replicas 1`, node timeout 2 s)",
        result: "replicas lead, the run goes on; the host's servers come back as replicas",
        needs: NAMESPACES,
        trial: host_down,
    },
    Scenario {
        name: "coordinator-partitioned",
        fault: "nftables drops all packets between the coordinator's host and the others, in both directions",
        result: "the others get another coordinator, the one that is cut off coordinates no more",
        needs: NAMESPACES,
        trial: coordinator_partitioned,
    },
    Scenario {
        name: "minority-partitioned",
        fault: "nftables drops all packets between two of five hosts, the coordinator's among them, and the other three",
        result: "the three get another coordinator, the two have none",
        needs: NAMESPACES,
        trial: minority_partitioned,
    },
    Scenario {
        name: "packet-loss",
        fault: "each host loses 30 % of the packets that arrive (nftables, `numgen random`)",
        result: "the run goes on; no host needs to be started again",
        needs: NAMESPACES,
        trial: packet_loss,
    },
];

fn host_down() -> Observed {
    let mesh = formed(MeshBuilder::new(HOSTS).in_namespaces(), "1");
    let [at, victim, other] = coordinator_and_others(&mesh);
    let (load, pids) = (Load::begin(&mesh, at), mesh.servers());
    mesh.net().link(victim, false);
    let (served, ()) = timed(|| await_served(&mesh, &[at, other]));
    await_dead(&mesh, at, victim);
    load.goes_on(&mesh, at);
    mesh.net().link(victim, true);
    let (time, ()) = timed(|| whole(&mesh, at));
    assert_eq!(mesh.servers(), pids);
    Observed { served: Some(served), whole: Some(time), writes: Some(load.end(&mesh, at)) }
}

/// Nobody who can be asked at `host` acts as coordinator: asked from its own namespace.
fn await_none_at(mesh: &Mesh, host: usize) {
    until("the one that is cut off to name no coordinator", SOON, || {
        let said = mesh.ctl_on(host, &["-o", "json", "members"]);
        let members: serde_json::Value = serde_json::from_slice(&said.stdout).ok()?;
        members["coordinator"].is_null().then_some(())
    });
}

fn cut(hosts: usize, minority: usize) -> Observed {
    let mesh = formed(MeshBuilder::new(hosts).in_namespaces(), "0");
    let old = coordinator_and_others(&mesh)[0];
    let order: Vec<usize> = (0..hosts).map(|nth| (old + nth) % hosts).collect();
    let (cut_off, others) = order.split_at(minority);
    let at = others[0];
    let (load, pids) = (Load::begin(&mesh, at), mesh.servers());
    mesh.net().cut(cut_off, others);
    let (served, new) = timed(|| await_coordinator(&mesh, at, |new| others.contains(&new)));
    await_none_at(&mesh, old);
    cut_off.iter().for_each(|&host| mesh.net().mend(host));
    let (time, ()) = timed(|| {
        for &host in &order {
            await_coordinator(&mesh, host, |named| named == new);
        }
        whole(&mesh, at);
    });
    load.goes_on(&mesh, at);
    assert_eq!(mesh.servers(), pids);
    Observed { served: Some(served), whole: Some(time), writes: Some(load.end_without_loss(&mesh, at)) }
}

fn coordinator_partitioned() -> Observed {
    cut(HOSTS, 1)
}

fn minority_partitioned() -> Observed {
    cut(5, 2)
}

const LOSS_PERCENT: u8 = 30;

/// For writes to be acked: TCP waits up to two minutes before it sends again.
const LOSSY: Duration = Duration::from_secs(300);

fn packet_loss() -> Observed {
    let mesh = formed(MeshBuilder::new(HOSTS).in_namespaces(), "0");
    let (load, pids) = (Load::begin(&mesh, 0), mesh.servers());
    (0..HOSTS).for_each(|host| mesh.net().lose(host, LOSS_PERCENT));
    let (served, ()) = timed(|| load.goes_on_within(&mesh, 0, LOSSY));
    (0..HOSTS).for_each(|host| mesh.net().mend(host));
    let (time, ()) = timed(|| whole(&mesh, 0));
    load.goes_on(&mesh, 0);
    assert_eq!(mesh.servers(), pids);
    Observed { served: Some(served), whole: Some(time), writes: Some(load.end_without_loss(&mesh, 0)) }
}
