//! Replicas and uneven hosts: what forms, what `cluster check` says of failovers, and
//! that what it says mends it.

use std::time::Duration;

use redmesh_tests::{Mesh, MeshBuilder, process, until};
use rustix::process::Signal;
use serde_json::Value;

/// For a failover, asked for or not, until all have heard of it.
const TAKEN_OVER: Duration = Duration::from_secs(60);

/// An instance as `cluster check` sees it.
#[derive(Debug, Clone)]
struct Instance {
    ip: String,
    port: u16,
    id: String,
    primary: bool,
    follows: Option<String>,
}

impl Instance {
    fn addr(&self) -> String {
        format!("{}:{}", self.ip, self.port)
    }

    fn host(&self) -> usize {
        self.ip.rsplit('.').next().and_then(|byte| byte.parse::<usize>().ok()).expect("an IPv4 address") - 1
    }

    /// `127.100.0.1:6379 (host-1)`, as warnings name it.
    fn name(&self) -> String {
        format!("{} (host-{})", self.addr(), self.host() + 1)
    }

    fn redis_cli(&self, words: &str) -> String {
        format!("redis-cli -h {} -p {} {words}", self.ip, self.port)
    }
}

/// `cluster check`, whatever its exit code.
fn check(mesh: &Mesh) -> Value {
    let output = mesh.ctl_at(0, &["-o", "json", "cluster", "check"]);
    serde_json::from_slice(&output.stdout)
        .unwrap_or_else(|error| panic!("no JSON: {error}\n{}", String::from_utf8_lossy(&output.stderr)))
}

fn instances(check: &Value) -> Vec<Instance> {
    let of = |view: &Value| {
        let (ip, port) = view["addr"].as_str()?.rsplit_once(':')?;
        Some(Instance {
            ip: ip.to_owned(),
            port: port.parse().ok()?,
            id: view["node_id"].as_str()?.to_owned(),
            primary: view["up"] == true && view["primary"] == true,
            follows: view["primary_id"].as_str().map(str::to_owned),
        })
    };
    check["instances"]
        .as_array()
        .expect("instances")
        .iter()
        .map(|view| of(view).expect("an instance"))
        .collect()
}

fn warnings(check: &Value) -> Vec<String> {
    let lines = check["warnings"].as_array().expect("warnings").iter();
    lines.map(|line| line.as_str().expect("words").to_owned()).collect()
}

fn primaries(all: &[Instance], host: usize) -> impl Iterator<Item = &Instance> {
    all.iter().filter(move |instance| instance.primary && instance.host() == host)
}

fn replicas_of<'a>(all: &'a [Instance], primary: &Instance) -> Vec<&'a Instance> {
    all.iter().filter(|instance| instance.follows.as_ref() == Some(&primary.id)).collect()
}

/// Waits until a check without errors satisfies `wanted`.
fn await_check<T>(mesh: &Mesh, what: &str, wanted: impl Fn(&Value) -> Option<T>) -> T {
    until(what, TAKEN_OVER, || {
        let now = check(mesh);
        (now["errors"] == Value::Array(vec![])).then(|| wanted(&now)).flatten()
    })
}

/// `CLUSTER FAILOVER` by hand, until `replica` leads.
fn fail_over(mesh: &Mesh, replica: &Instance) {
    let role = || mesh.redis_cli(replica.host(), replica.port, &["ROLE"]);
    until(&format!("{} to lead", replica.addr()), TAKEN_OVER, || {
        if role().starts_with("master") {
            return Some(());
        }
        // Refused while the link to its primary is down: asked for again.
        mesh.redis_cli(replica.host(), replica.port, &["CLUSTER", "FAILOVER"]);
        None
    });
}

/// A key in each primary's slots, written and read back through that very primary.
fn write_and_read_through_every_primary(mesh: &Mesh, all: &[Instance]) {
    let mut left: Vec<&Instance> = all.iter().filter(|instance| instance.primary).collect();
    for number in 0..10_000 {
        if left.is_empty() {
            return;
        }
        let key = format!("key-{number}");
        left.retain(|primary| {
            // Without -c: a key of another's slots is refused with MOVED.
            let said = mesh.redis_cli(primary.host(), primary.port, &["SET", &key, "kept"]);
            if said.starts_with("MOVED") {
                return true;
            }
            assert_eq!(said, "OK", "{}", primary.addr());
            assert_eq!(mesh.redis_cli(primary.host(), primary.port, &["GET", &key]), "kept");
            false
        });
    }
    panic!("no key for {left:?}");
}

#[test]
fn check_tells_of_primaries_that_gathered_and_how_to_mend_it() {
    let mesh = MeshBuilder::new(3).ready();
    mesh.ok_at(0, &["cluster", "create", "--instances-per-host", "4", "--replicas", "1"]);
    let formed = check(&mesh);
    let all = instances(&formed);
    assert_eq!(warnings(&formed), Vec::<String>::new());
    write_and_read_through_every_primary(&mesh, &all);

    // What host-1 has replicas of fails over to it.
    let moved: Vec<(&Instance, &Instance)> = all
        .iter()
        .filter(|instance| instance.primary && instance.host() != 0)
        .flat_map(|primary| replicas_of(&all, primary).into_iter().map(move |replica| (primary, replica)))
        .filter(|(_, replica)| replica.host() == 0)
        .collect();
    assert_eq!(moved.len(), 2, "two of host-1's four instances are replicas: {all:?}");
    moved.iter().for_each(|(_, replica)| fail_over(&mesh, replica));
    let said = await_check(&mesh, "a warning about host-1", |now| {
        warnings(now).into_iter().find(|line| line.contains("host-1 would take 4 of 6 primaries"))
    });
    assert!(said.contains("no majority"), "{said}");
    for (primary, _) in &moved {
        assert!(said.contains(&primary.redis_cli("CLUSTER FAILOVER")), "{said}");
    }
    let text = mesh.ctl_at(1, &["cluster", "check"]);
    let text = String::from_utf8_lossy(&text.stdout).into_owned();
    assert!(text.contains(&format!("[WARNING] {said}")), "{text}");

    // What it says mends it.
    moved.iter().for_each(|(primary, _)| fail_over(&mesh, primary));
    await_check(&mesh, "no warning any more", |now| warnings(now).is_empty().then_some(()));
}

#[test]
fn check_tells_of_a_replica_beside_its_primary() {
    // Or Redis itself would soon give the shard that was left alone a replica again.
    let stay = "[redis.directives]\ncluster-migration-barrier = \"10\"\n";
    let mesh = MeshBuilder::new(3).config(stay).ready();
    mesh.ok_at(0, &["cluster", "create", "--instances-per-host", "4", "--replicas", "1"]);
    let all = instances(&check(&mesh));
    let primary = primaries(&all, 1).next().expect("a primary on host-2");
    let stray =
        all.iter().find(|instance| !instance.primary && instance.host() == 1).expect("a replica there");
    let home = all.iter().find(|instance| Some(&instance.id) == stray.follows.as_ref()).expect("its primary");
    let to = |primary: &Instance| {
        let said = mesh.redis_cli(stray.host(), stray.port, &["CLUSTER", "REPLICATE", &primary.id]);
        assert_eq!(said, "OK");
    };
    to(primary);
    let said = await_check(&mesh, "both warnings", |now| {
        let said = warnings(now);
        (said.len() == 2).then_some(said)
    });
    let back = stray.redis_cli(&format!("CLUSTER REPLICATE {}", home.id));
    let beside = format!("{} and its replica {} are on one host", primary.name(), stray.name());
    assert!(said[0].starts_with(&beside) && said[0].contains(&back), "{said:?}");
    assert!(said[1].starts_with(&format!("{} has no replica left", home.name())), "{said:?}");
    assert!(said[1].contains(&back), "{said:?}");
    to(home);
    await_check(&mesh, "no warning any more", |now| warnings(now).is_empty().then_some(()));
}

#[test]
fn a_killed_primary_is_followed_by_its_replica_and_check_says_what_is_missing() {
    let mesh = MeshBuilder::new(3).ready();
    let args =
        ["cluster", "create", "--instances-per-host", "3", "--replicas", "2", "--node-timeout", "2000"];
    mesh.ok_at(0, &args);
    let formed = check(&mesh);
    let all = instances(&formed);
    assert_eq!(warnings(&formed), Vec::<String>::new());
    assert_eq!(all.iter().filter(|instance| instance.primary).count(), 3);
    for primary in all.iter().filter(|instance| instance.primary) {
        let mut hosts: Vec<_> = replicas_of(&all, primary).iter().map(|replica| replica.host()).collect();
        hosts.push(primary.host());
        hosts.sort_unstable();
        assert_eq!(hosts, [0, 1, 2], "one copy on each host: {all:?}");
    }
    write_and_read_through_every_primary(&mesh, &all);

    let killed = primaries(&all, 2).next().expect("a primary on host-3").clone();
    mesh.redis_cli(0, 6379, &["-c", "SET", "before", "kept"]);
    let kill = |instance: &Instance| {
        let servers = mesh.servers_of(instance.host());
        let dir = instance.port.to_string();
        let server = servers.iter().find(|server| server.dir.ends_with(&dir)).expect("it runs");
        process::send(server, Signal::KILL);
    };
    kill(&killed);
    // One of its two replicas leads, the other one follows that.
    let next = until("a replica to take over", TAKEN_OVER, || {
        let now = instances(&check(&mesh));
        let leads = |id: &str| now.iter().any(|instance| instance.primary && instance.id == id);
        replicas_of(&all, &killed).into_iter().find(|replica| leads(&replica.id)).cloned()
    });
    assert_eq!(mesh.redis_cli(0, 6379, &["-c", "GET", "before"]), "kept");
    await_check(&mesh, "the killed one to be back as a replica", |now| {
        let now = instances(now);
        now.iter().any(|i| i.id == killed.id && i.follows.as_ref() == Some(&next.id)).then_some(())
    });
}

#[test]
fn a_shard_that_lost_its_last_replica_is_named() {
    let mesh = MeshBuilder::new(3).ready();
    let args =
        ["cluster", "create", "--instances-per-host", "2", "--replicas", "1", "--node-timeout", "2000"];
    mesh.ok_at(0, &args);
    let all = instances(&check(&mesh));
    let killed = primaries(&all, 1).next().expect("a primary on host-2");
    let heir = replicas_of(&all, killed)[0];
    let server = mesh.servers_of(1).into_iter().find(|server| server.dir.ends_with(killed.port.to_string()));
    process::send(&server.expect("it runs"), Signal::KILL);
    let said = until("the heir to lead, without a replica", TAKEN_OVER, || {
        warnings(&check(&mesh)).into_iter().find(|line| line.starts_with(&heir.name()))
    });
    assert!(said.contains(&format!("has no replica left; not up: {}", killed.name())), "{said}");
    await_check(&mesh, "the killed one to follow", |now| {
        let now = instances(now);
        now.iter().any(|i| i.id == killed.id && i.follows.as_ref() == Some(&heir.id)).then_some(())
    });
}

#[test]
fn uneven_hosts_form() {
    let mesh = MeshBuilder::new(4).ready();
    let create = |args: &[&str]| {
        let mut all = vec!["cluster", "create", "--instances-per-host", "3", "--replicas", "1"];
        all.extend(args);
        mesh.ctl_at(0, &all)
    };
    let refused = |args: &[&str]| {
        let output = create(args);
        assert_eq!(output.status.code(), Some(1), "{args:?}");
        String::from_utf8_lossy(&output.stderr).into_owned()
    };
    let unknown = refused(&["--instances", "host-9=2"]);
    assert!(unknown.contains("host-9") && unknown.contains("host-1, host-2, host-3, host-4"), "{unknown}");
    let large = refused(&["--instances", "host-2=10,host-4=0"]);
    assert!(large.contains("\"host-2\" bears 10 of 16") && large.contains("--instances host-2=6"), "{large}");

    let output = create(&["--instances", "host-2=5", "--instances", "host-4=0"]);
    let text = String::from_utf8_lossy(&output.stdout).into_owned();
    assert!(output.status.success(), "{text}{}", String::from_utf8_lossy(&output.stderr));
    for line in ["host-2: 5 nodes, ", "11 nodes on 3 hosts: 5 primaries, 6 replicas"] {
        assert!(text.contains(line), "{line:?} in {text}");
    }
    let all = instances(&check(&mesh));
    let on = |host: usize| all.iter().filter(|instance| instance.host() == host).count();
    assert_eq!([on(0), on(1), on(2), on(3)], [3, 5, 3, 0]);
    assert_eq!(mesh.servers().len(), 11);
    write_and_read_through_every_primary(&mesh, &all);
    for primary in all.iter().filter(|instance| instance.primary) {
        let mut hosts: Vec<_> = replicas_of(&all, primary).iter().map(|replica| replica.host()).collect();
        hosts.push(primary.host());
        let copies = hosts.len();
        hosts.sort_unstable();
        hosts.dedup();
        assert_eq!(hosts.len(), copies, "{all:?}");
    }
    // The same wish confirms it; another one is refused with what is there.
    let again = mesh.json_at(
        1,
        &[
            "cluster",
            "create",
            "--instances-per-host",
            "3",
            "--replicas",
            "1",
            "--instances",
            "host-4=0,host-2=5",
        ],
    );
    assert_eq!(again["fresh"], false);
    let other = refused(&["--instances", "host-2=4,host-4=0"]);
    assert!(other.contains("3 per host, host-2 5, host-4 0"), "{other}");
}
