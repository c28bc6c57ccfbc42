use std::net::{Ipv4Addr, SocketAddr};

use tokio::time::timeout;

use super::*;
use crate::transport::memory::{MemoryNetwork, MemoryTransport};

/// Anything that should come about does within this.
const PATIENCE: Duration = Duration::from_secs(30);
const INTERVAL: Duration = Duration::from_millis(20);

fn addr(id: u32) -> SocketAddr {
    (Ipv4Addr::LOCALHOST, u16::try_from(id).unwrap()).into()
}

struct Host {
    mesh: Mesh,
    transport: Arc<MemoryTransport>,
}

impl Host {
    async fn stop(self) {
        self.mesh.shutdown().await;
        self.transport.close().await;
    }
}

fn options(id: u32, generation: u64, interval: Duration) -> MeshOptions {
    MeshOptions {
        mesh_name: "test".to_owned(),
        id: HostId(id),
        generation,
        seeds: vec![addr(1).to_string()],
        gossip_interval: interval,
        initial: vec![("name".to_owned(), format!("\"host-{id}\""))],
    }
}

async fn start(network: &MemoryNetwork, id: u32, generation: u64, interval: Duration) -> Host {
    let transport = network.join(addr(id), HostId(id), format!("host-{id}"));
    let options = options(id, generation, interval);
    let mesh = Mesh::start(options, transport.clone(), CancellationToken::new()).await.unwrap();
    Host { mesh, transport }
}

async fn start_all(network: &MemoryNetwork, count: u32, interval: Duration) -> Vec<Host> {
    let mut hosts = Vec::new();
    for id in 1..=count {
        hosts.push(start(network, id, 1, interval).await);
    }
    hosts
}

async fn stop_all(hosts: Vec<Host>) {
    for host in hosts {
        host.stop().await;
    }
}

async fn until(what: &str, host: &Host, mut condition: impl FnMut(&MeshView) -> bool) {
    let mut view = host.mesh.view();
    let seen = timeout(PATIENCE, view.wait_for(|view| condition(view))).await;
    if seen.is_err() {
        panic!("{what}: not within {PATIENCE:?}; {:?}", host.mesh.view().borrow());
    }
}

fn live(view: &MeshView) -> usize {
    view.live().count()
}

#[tokio::test]
async fn five_join_through_one_seed_and_a_value_spreads() {
    let network = MemoryNetwork::new();
    let hosts = start_all(&network, 5, INTERVAL).await;
    for host in &hosts {
        until("all are live", host, |view| live(view) == 5).await;
        let view = host.mesh.view().borrow().clone();
        for member in view.members.values() {
            assert_eq!(member.addr, addr(member.id.0));
            assert_eq!(member.generation, 1);
            assert_eq!(member.get::<String>("name"), Some(format!("host-{}", member.id.0)));
            assert_eq!(member.get::<u32>("name"), None);
        }
    }
    hosts[2].mesh.publish("count", &41u64).unwrap();
    hosts[2].mesh.publish("count", &42u64).unwrap();
    let count = |view: &MeshView| view.members[&HostId(3)].get::<u64>("count");
    for host in &hosts {
        until("the value is everywhere", host, |view| count(view) == Some(42)).await;
    }
    hosts[2].mesh.unpublish("count");
    for host in &hosts {
        until("the value is gone everywhere", host, |view| count(view).is_none()).await;
    }
    stop_all(hosts).await;
}

#[tokio::test]
async fn a_closed_host_is_dead_and_comes_back_as_a_later_generation() {
    let network = MemoryNetwork::new();
    let mut hosts = start_all(&network, 3, INTERVAL).await;
    hosts[2].mesh.publish("count", &7u64).unwrap();
    for host in &hosts {
        until("all are live", host, |view| {
            live(view) == 3 && view.members[&HostId(3)].get::<u64>("count").is_some()
        })
        .await;
    }
    hosts.pop().unwrap().stop().await;
    for host in &hosts {
        until("it is dead", host, |view| !view.members[&HostId(3)].alive).await;
        // Dead, and what it said still stands.
        assert_eq!(host.mesh.view().borrow().members[&HostId(3)].get::<u64>("count"), Some(7));
    }
    hosts.push(start(&network, 3, 2, INTERVAL).await);
    hosts[2].mesh.publish("count", &1u64).unwrap();
    for host in &hosts {
        until("it is back", host, |view| {
            let back = &view.members[&HostId(3)];
            back.alive && back.generation == 2 && back.get_all::<u64>("count") == [1, 7]
        })
        .await;
        assert_eq!(host.mesh.view().borrow().members[&HostId(3)].get::<u64>("count"), Some(1));
    }
    stop_all(hosts).await;
}

#[tokio::test]
async fn what_cannot_be_gossiped_is_refused() {
    let network = MemoryNetwork::new();
    let host = start(&network, 1, 1, INTERVAL).await;
    let error = host.mesh.publish("big", &"x".repeat(VALUE_BYTES_MAX)).unwrap_err();
    assert!(matches!(&error, MeshError::ValueTooLarge { key, .. } if key == "big"), "{error}");
    host.mesh.publish("fits", &"x".repeat(VALUE_BYTES_MAX - 2)).unwrap();
    let error = host.mesh.publish(&"k".repeat(KEY_BYTES_MAX + 1), &0).unwrap_err();
    assert!(matches!(error, MeshError::KeyTooLong { .. }), "{error}");
    // Two keys are there already.
    for key in 2..KEYS_MAX {
        host.mesh.publish(&key.to_string(), &key).unwrap();
    }
    let error = host.mesh.publish("one more", &0).unwrap_err();
    assert!(matches!(error, MeshError::TooManyKeys { .. }), "{error}");
    host.mesh.publish("fits", &1).unwrap();
    host.mesh.unpublish("fits");
    host.mesh.publish("one more", &0).unwrap();
    host.stop().await;
}

#[tokio::test]
async fn options_that_cannot_work_are_refused() {
    let network = MemoryNetwork::new();
    let transport = network.join(addr(1), HostId(1), "host-1");
    let start = |options| Mesh::start(options, transport.clone(), CancellationToken::new());
    let error = start(options(1, GENERATION_MAX, INTERVAL)).await.unwrap_err();
    assert!(matches!(error, MeshError::Generation { .. }), "{error}");
    let error = start(options(1, 1, Duration::ZERO)).await.unwrap_err();
    assert!(matches!(error, MeshError::Interval), "{error}");
    let mesh = start(options(1, GENERATION_MAX - 1, INTERVAL)).await.unwrap();
    let error = start(options(1, 1, INTERVAL)).await.unwrap_err();
    assert!(matches!(error, MeshError::Taken), "{error}");
    mesh.shutdown().await;
}

#[tokio::test]
async fn undecodable_gossip_is_counted_and_ignored() {
    let network = MemoryNetwork::new();
    let hosts = start_all(&network, 2, INTERVAL).await;
    let stranger = network.join(addr(99), HostId(99), "stranger");
    for message in [vec![], vec![0xFF; 100], b"GET / HTTP/1.1\r\n\r\n".to_vec()] {
        stranger.gossip(addr(1), message);
    }
    // What arrives after it is still understood.
    until("both are live", &hosts[0], |view| live(view) == 2).await;
    hosts[1].mesh.publish("after", &true).unwrap();
    until("gossip goes on", &hosts[0], |view| view.members[&HostId(2)].get("after") == Some(true)).await;
    assert_eq!(hosts[0].mesh.undecodable(), 3);
    assert!(!hosts[0].mesh.view().borrow().members.contains_key(&HostId(99)));
    stop_all(hosts).await;
}

#[tokio::test]
async fn another_meshs_gossip_is_ignored() {
    let network = MemoryNetwork::new();
    let host = start(&network, 1, 1, INTERVAL).await;
    let second = start(&network, 2, 1, INTERVAL).await;
    let transport = network.join(addr(3), HostId(3), "host-3");
    let other = MeshOptions { mesh_name: "other".to_owned(), ..options(3, 1, INTERVAL) };
    let other = Mesh::start(other, transport, CancellationToken::new()).await.unwrap();
    until("the own are live", &host, |view| live(view) == 2).await;
    host.mesh.publish("tick", &1).unwrap();
    until("a round has passed", &second, |view| view.members[&HostId(1)].get("tick") == Some(1)).await;
    assert!(!host.mesh.view().borrow().members.contains_key(&HostId(3)));
    assert_eq!(other.view().borrow().members.len(), 1);
    other.shutdown().await;
    stop_all(vec![host, second]).await;
}

#[tokio::test]
async fn a_partition_heals() {
    let network = MemoryNetwork::new();
    let hosts = start_all(&network, 3, INTERVAL).await;
    for host in &hosts {
        until("all are live", host, |view| live(view) == 3).await;
    }
    network.isolate(addr(3));
    until("the isolated one is dead", &hosts[0], |view| !view.members[&HostId(3)].alive).await;
    until("the others are dead to it", &hosts[2], |view| live(view) == 1).await;
    network.heal();
    for host in &hosts {
        until("all are live again", host, |view| live(view) == 3).await;
    }
    stop_all(hosts).await;
}

#[tokio::test]
async fn gossip_ends_with_the_transport() {
    let network = MemoryNetwork::new();
    let Host { mesh, transport } = start(&network, 1, 1, INTERVAL).await;
    transport.close().await;
    let task = mesh.inner.task.lock().unwrap().take().unwrap();
    timeout(PATIENCE, task).await.expect("the task ends by itself").unwrap();
    mesh.shutdown().await;
}

#[tokio::test]
async fn thirty_converge() {
    let network = MemoryNetwork::new();
    let hosts = start_all(&network, 30, INTERVAL * 5).await;
    for host in &hosts {
        until("all are live and named", host, |view| {
            live(view) == 30 && view.live().all(|member| member.get::<String>("name").is_some())
        })
        .await;
    }
    stop_all(hosts).await;
}
