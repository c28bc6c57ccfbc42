//! Against a real cluster of six seeded servers on 127.78.0.x, started by hand.

use std::path::Path;
use std::process::{Child, Command, Stdio};
use std::time::Instant;

use rand::SeedableRng;
use rand::rngs::StdRng;
use redmesh_api::ids::PlanId;
use redmesh_api::level::{ClusterPlan, ClusterSpec, Formation, PlannedHost, PlannedRole};
use uuid::Uuid;

use super::*;
use crate::cluster::plan::{PlanInput, plan};
use crate::cluster::redis_conf::{RedisConf, clients_needed};
use crate::cluster::version::ServerVersion;
use crate::cluster::{render_nodes_conf, topology};
use crate::login::Login;

const PATIENCE: Duration = Duration::from_secs(60);

/// The servers of one test; ended and reaped when it ends, however it ends.
struct Servers {
    dir: tempfile::TempDir,
    children: Vec<Child>,
}

impl Drop for Servers {
    fn drop(&mut self) {
        for child in &mut self.children {
            let _ = child.kill();
            let _ = child.wait();
        }
    }
}

impl Servers {
    fn new() -> Self {
        Self { dir: tempfile::tempdir().unwrap(), children: Vec::new() }
    }

    fn start(&mut self, name: &str, config: &str, nodes_conf: Option<&str>) {
        let dir = self.dir.path().join(name);
        std::fs::create_dir(&dir).unwrap();
        std::fs::write(dir.join("redis.conf"), config).unwrap();
        if let Some(nodes_conf) = nodes_conf {
            std::fs::write(dir.join("nodes.conf"), nodes_conf).unwrap();
        }
        let child = Command::new("redis-server")
            .arg("redis.conf")
            .current_dir(&dir)
            .stdin(Stdio::null())
            .stdout(Stdio::null())
            .stderr(Stdio::null())
            .spawn()
            .expect("redis-server is installed");
        self.children.push(child);
    }

    fn path(&self, name: &str) -> std::path::PathBuf {
        self.dir.path().join(name)
    }
}

fn version() -> ServerVersion {
    let output = Command::new("redis-server").arg("--version").output().unwrap();
    ServerVersion::parse(&String::from_utf8_lossy(&output.stdout)).unwrap()
}

fn config(addr: SocketAddr, dir: &Path, directives: &[(String, Vec<String>)]) -> String {
    let conf = RedisConf {
        addr,
        node_timeout_ms: 5000,
        hz: 10,
        forming: false,
        clients_needed: clients_needed(6).min(1000),
        dir: dir.to_owned(),
        somaxconn: Some(4096),
        directives: directives.to_vec(),
        access: None,
        tls: None,
    };
    conf.render().unwrap()
}

fn six() -> ClusterPlan {
    let host = |n: u8| PlannedHost {
        id: HostId(u32::from(n)),
        name: format!("h{n}"),
        ip: [127, 78, 0, n].into(),
        base_port: 22000,
    };
    let input = PlanInput {
        id: PlanId(Uuid::from_u128(1)),
        spec: ClusterSpec {
            instances_per_host: 2,
            replicas: 1,
            node_timeout_ms: Some(5000),
            ..Default::default()
        },
        hosts: (1..=3).map(host).collect(),
        created_unix_ms: 0,
        node_timeout_ms: 5000,
        hz: 10,
        formation: Formation::Seeded,
    };
    plan(input, &mut StdRng::seed_from_u64(11)).unwrap()
}

#[tokio::test]
async fn a_seeded_cluster_forms_and_answers() {
    let (plan, format) = (six(), version().nodes_conf_format().expect("a known version"));
    let mut servers = Servers::new();
    for instance in &plan.instances {
        let (addr, name) = (plan.addr_of(instance), instance.node_id.to_string());
        let nodes_conf = render_nodes_conf(&plan, instance.node_id, format).unwrap();
        let config = config(addr, &servers.path(&name), &[]);
        servers.start(&name, &config, Some(&nodes_conf));
    }
    let targets: Vec<Target> = plan
        .instances
        .iter()
        .map(|i| Target { host: plan.host_of(i).id, addr: plan.addr_of(i), node_id: i.node_id })
        .collect();

    let pool = AdminPool::new(AdminOptions::default());
    let deadline = Instant::now() + PATIENCE;
    let views = loop {
        let views = pool.check_all(targets.clone()).await;
        let whole = |v: &InstanceView| v.state_ok && v.slots_assigned == 16384 && v.known_nodes == 6;
        let same = views.windows(2).all(|w| w[0].view_digest == w[1].view_digest);
        if same && views.iter().all(whole) {
            break views;
        }
        assert!(Instant::now() < deadline, "{views:#?}");
        tokio::time::sleep(Duration::from_millis(50)).await;
    };
    for (view, instance) in views.iter().zip(&plan.instances) {
        assert!(
            view.up && view.problem.is_none() && view.keys == 0 && view.open_slots.is_empty(),
            "{view:?}"
        );
        match &instance.role {
            PlannedRole::Primary { slots, .. } => {
                assert!(view.primary && view.slots == [*slots] && view.primary_id.is_none(), "{view:?}");
            }
            PlannedRole::Replica { primary } => {
                assert!(!view.primary && view.slots.is_empty(), "{view:?}");
                assert_eq!(view.primary_id, Some(plan.instances[*primary as usize].node_id));
            }
        }
    }

    // The slot map is the plan's, whoever is asked.
    for target in &targets {
        let map = pool.slot_map(target.addr).await.unwrap();
        assert_eq!(map.len(), 3);
        for instance in &plan.instances {
            if let PlannedRole::Primary { slots, .. } = instance.role {
                assert!(map.contains(&(slots, plan.addr_of(instance))), "{map:?}");
            }
        }
    }

    // A write shows in its primary's sample. The key's slot decides which one takes it.
    let before: Vec<ServerSample> = samples(&pool, &targets).await;
    let mut taken = 0;
    for target in &targets {
        for key in 0..30 {
            let mut command = redis::cmd("SET");
            command.arg(format!("key-{key}")).arg("v");
            taken += u64::from(pool.ask::<()>(target.addr, "SET", &command).await.is_ok());
        }
    }
    assert_eq!(taken, 30, "each key is taken by one primary");
    let after: Vec<ServerSample> = samples(&pool, &targets).await;
    let primaries = |samples: &[ServerSample], f: fn(&ServerSample) -> u64| -> u64 {
        samples.iter().filter(|s| s.primary).map(f).sum()
    };
    assert_eq!((primaries(&before, |s| s.dbsize), primaries(&before, |s| s.calls)), (0, 0));
    assert_eq!((primaries(&after, |s| s.dbsize), primaries(&after, |s| s.calls)), (30, 30));
    assert_eq!(after.iter().filter(|s| s.primary).count(), 3);
    assert!(after.iter().all(|s| s.run_id.len() == 40 && s.cpu_us > 0));

    // Slots on their way are seen.
    let source = plan.instances.iter().find(|i| matches!(i.role, PlannedRole::Primary { .. })).unwrap();
    let other = |i: &&redmesh_api::level::PlannedInstance| {
        matches!(i.role, PlannedRole::Primary { .. }) && i.node_id != source.node_id
    };
    let to = plan.instances.iter().find(other).unwrap();
    let PlannedRole::Primary { slots, .. } = source.role else { unreachable!() };
    let mut command = redis::cmd("CLUSTER");
    command.arg("SETSLOT").arg(slots.first).arg("MIGRATING").arg(to.node_id.to_string());
    pool.ask::<()>(plan.addr_of(source), "CLUSTER SETSLOT", &command).await.unwrap();
    let topology = pool.topology(plan.addr_of(source)).await.unwrap();
    let open = topology::OpenSlot::Migrating { slot: slots.first, to: to.node_id };
    assert_eq!(topology.myself().unwrap().open, [open]);

    // Another id than planned is said.
    let wrong = Target { node_id: NodeId([1; 20]), ..targets[0] };
    let problem = pool.check(wrong).await.problem.unwrap();
    assert!(problem.contains("another cluster's server"), "{problem}");

    // A server that ended is a view, not an error; the stale connection is given up.
    servers.children[0].kill().unwrap();
    servers.children[0].wait().unwrap();
    let down = pool.check(targets[0]).await;
    assert!(!down.up && down.problem.is_some(), "{down:?}");
    assert!(pool.check(targets[1]).await.up);
}

async fn samples(pool: &AdminPool, targets: &[Target]) -> Vec<ServerSample> {
    let of = targets.iter().map(|t| (t.host, t.addr)).collect();
    pool.sample_all(of).await.into_iter().map(Result::unwrap).collect()
}

#[tokio::test]
async fn a_password_is_used_and_connections_are_bounded() {
    let directives = [("requirepass".to_owned(), vec!["\"top secret\"".to_owned()])];
    let mut servers = Servers::new();
    let addrs: Vec<SocketAddr> =
        (0..3).map(|nth| SocketAddr::new([127, 78, 1, 1].into(), 22000 + nth)).collect();
    for addr in &addrs {
        let name = addr.port().to_string();
        let config = config(*addr, &servers.path(&name), &directives);
        servers.start(&name, &config, None);
    }
    let options = AdminOptions {
        logins: Login::default_user("top secret").into(),
        connections_max: 2,
        ..AdminOptions::default()
    };
    assert!(!format!("{options:?}").contains("secret"));
    let connections = Arc::new(Connections::new(options));
    let pool = AdminPool::over(connections.clone());
    for addr in &addrs {
        let deadline = Instant::now() + PATIENCE;
        while let Err(error) = pool.cluster_info(*addr).await {
            assert!(Instant::now() < deadline, "{error:?}");
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
        assert!(!pool.cluster_info(*addr).await.unwrap().state_ok);
    }
    assert_eq!(connections.count(), 2);
    pool.meet(addrs[0], addrs[1]).await.unwrap();
    let refused = AdminPool::new(AdminOptions::default()).cluster_info(addrs[0]).await.unwrap_err();
    assert!(crate::error_chain(&refused).contains("NOAUTH"), "{refused:?}");
}

#[tokio::test]
async fn nobody_there_is_an_error_with_its_cause() {
    let addr: SocketAddr = "127.78.2.1:22000".parse().unwrap();
    let pool = AdminPool::new(AdminOptions::default());
    let error = pool.info(addr).await.unwrap_err();
    assert_eq!(error.to_string(), format!("can't connect to {addr}"));
    let target = Target { host: HostId(1), addr, node_id: NodeId([0; 20]) };
    let view = pool.check(target).await;
    assert!(!view.up && view.problem.unwrap().contains("refused"), "the whole chain is told");
}

#[tokio::test]
async fn two_servers_are_surveyed_given_slots_and_joined() {
    let mut servers = Servers::new();
    let addrs: Vec<SocketAddr> =
        (0..2).map(|nth| SocketAddr::new([127, 78, 3, 1].into(), 22000 + nth)).collect();
    for addr in &addrs {
        let name = addr.port().to_string();
        let config = config(*addr, &servers.path(&name), &[]);
        servers.start(&name, &config, None);
    }
    let pool = AdminPool::new(AdminOptions::default());
    let deadline = Instant::now() + PATIENCE;
    for addr in &addrs {
        while let Err(error) = pool.cluster_info(*addr).await {
            assert!(Instant::now() < deadline, "{error:?}");
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
    }
    let surveyed = pool.survey_all(addrs.clone(), 2).await;
    for server in &surveyed {
        assert_eq!(server.problems, Vec::<String>::new());
        assert_eq!(server.node_id, Some(pool.my_id(server.addr).await.unwrap()));
        assert_eq!(server.node_timeout_ms, Some(5000));
    }
    let range = |first, last| SlotRange { first, last };
    pool.set_config_epoch(addrs[0], 7).await.unwrap();
    pool.add_slots(addrs[0], &[range(0, 99), range(200, 16383)]).await.unwrap();
    // As for servers before 7.0, in more than one command.
    pool.add_slots_singly(addrs[1], &[range(0, 99)]).await.unwrap();
    pool.add_slots_singly(addrs[1], &[range(300, 3000)]).await.unwrap();
    let of = |addr| async move { AdminPool::new(AdminOptions::default()).topology(addr).await.unwrap() };
    let (first, second) = (of(addrs[0]).await, of(addrs[1]).await);
    assert_eq!(first.myself().unwrap().slots, [range(0, 99), range(200, 16383)]);
    assert_eq!(first.myself().unwrap().config_epoch, 7);
    assert_eq!(second.myself().unwrap().slots, [range(0, 99), range(300, 3000)]);
    assert!(pool.add_slots(addrs[0], &[range(0, 0)]).await.is_err(), "they are taken");
    let problems = pool.survey(addrs[0], 2).await.problems;
    assert!(problems[0].contains("serves 16284 slots"), "{problems:?}");
    pool.meet(addrs[0], addrs[1]).await.unwrap();
    while of(addrs[1]).await.nodes.len() < 2 {
        assert!(Instant::now() < deadline);
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
    let refused = pool.replicate(addrs[0], surveyed[1].node_id.unwrap()).await.unwrap_err();
    assert!(crate::error_chain(&refused).contains("empty"), "{refused:?}");
}
