//! Another Redis secret takes the place of the one in use while servers run and a run writes:
//! hosts get it one after another, and nobody is locked out meanwhile.

use std::os::unix::fs::{OpenOptionsExt, PermissionsExt};
use std::path::PathBuf;
use std::time::Duration;

use redmesh_tests::process::{self, send};
use redmesh_tests::{Mesh, MeshBuilder, until};
use rustix::process::Signal;
use serde_json::Value;

const SOON: Duration = Duration::from_secs(60);
const HOSTS: usize = 3;
const PORTS: [u16; 2] = [6379, 6380];

/// The CA of a person who hands the files out: the agents read another directory.
fn admin(mesh: &Mesh) -> String {
    let admin = mesh.dir().join("admin");
    if !admin.exists() {
        std::fs::create_dir(&admin).expect("make a directory");
        for file in ["ca.pem", "ca.key", "redis.secret"] {
            std::fs::copy(mesh.dir().join("pki").join(file), admin.join(file)).expect("copy");
        }
    }
    admin.to_str().expect("temp paths are UTF-8").to_owned()
}

fn pki(mesh: &Mesh, args: &[&str]) -> String {
    let output = mesh.ctl(&[&["pki"], args].concat());
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    String::from_utf8_lossy(&output.stdout).trim().to_owned()
}

/// Copies the admin's secret to a host, as scp does it: not at once.
fn hand_out(mesh: &Mesh, host: usize) {
    let text = std::fs::read(PathBuf::from(admin(mesh)).join("redis.secret")).expect("the secret");
    let path = mesh.identity_dir(host).join("redis.secret");
    let mut file =
        std::fs::OpenOptions::new().write(true).truncate(true).mode(0o600).open(path).expect("open it");
    std::io::Write::write_all(&mut file, &text).expect("write it");
}

/// What each host has said: the secrets that its servers accept, and the one of its replicas.
fn states(mesh: &Mesh) -> Option<Vec<(usize, bool)>> {
    let members = mesh.try_json_at(0, &["members"])?;
    let state = |member: &Value| {
        let accepts = member["secrets"]["accepts"].as_array()?;
        Some((accepts.len(), member["secrets"]["replicates"] == accepts[0]))
    };
    members["members"].as_array()?.iter().map(state).collect()
}

fn await_states(mesh: &Mesh, wanted: &[(usize, bool)]) {
    until(&format!("the hosts to be at {wanted:?}"), SOON, || (states(mesh)? == wanted).then_some(()));
}

/// Whether the server takes `password` from a client.
fn takes(mesh: &Mesh, host: usize, password: &str) -> bool {
    let output = std::process::Command::new("redis-cli")
        .args(["-h", &mesh.ip(host), "-p", "6379", "PING"])
        .env("REDISCLI_AUTH", password)
        .output()
        .expect("run redis-cli");
    String::from_utf8_lossy(&output.stdout).trim() == "PONG"
}

/// Cuts every replica off from its primary, and waits until all have logged in there again.
fn replicas_log_in_again(mesh: &Mesh, password: &str) {
    let ask = |host: usize, port: u16, args: &[&str]| {
        let output = std::process::Command::new("redis-cli")
            .args(["-h", &mesh.ip(host), "-p", &port.to_string()])
            .args(args)
            .env("REDISCLI_AUTH", password)
            .output()
            .expect("run redis-cli");
        String::from_utf8_lossy(&output.stdout).into_owned()
    };
    let all = || (0..HOSTS).flat_map(|host| PORTS.map(|port| (host, port)));
    for (host, port) in all() {
        ask(host, port, &["CLIENT", "KILL", "TYPE", "replica"]);
    }
    until("the replicas to be back", SOON, || {
        let synced = |(host, port)| {
            let said = ask(host, port, &["INFO", "replication"]);
            said.contains("role:master") || said.contains("master_link_status:up")
        };
        all().all(synced).then_some(())
    });
}

/// A short run of all three hosts, whose connections are new: it must lose nothing.
fn writes(mesh: &Mesh) {
    let run = mesh.json_at(0, &["run", "start", "--workers", "30", "--writes", "3000"]);
    assert_whole(&run);
}

fn assert_whole(run: &Value) {
    let text = run.to_string();
    let counts = &run["run"];
    assert_eq!((&counts["failed"], &counts["unknown"]), (&0.into(), &0.into()), "{text}");
    assert_eq!(run["ledger"]["ok"], true, "{text}");
    assert!(!text.contains("WRONGPASS") && !text.contains("NOAUTH"), "{text}");
}

#[test]
fn another_secret_is_taken_up_while_a_run_writes_and_the_former_is_then_refused() {
    let mut mesh = MeshBuilder::new(HOSTS).servers_outlive_agents().ready();
    mesh.ok_at(0, &["cluster", "create", "--instances-per-host", "2", "--replicas", "1"]);
    let dir = admin(&mesh);
    let old = mesh.redis_password();
    await_states(&mesh, &[(1, true); HOSTS]);
    let writing = mesh.ctl_spawn_at(2, &["-o", "json", "run", "start", "--workers", "30", "--seconds", "60"]);
    until("the run to go on", SOON, || {
        mesh.try_json_at(1, &["run", "show"])?["run"]["acked"].as_u64().filter(|acked| *acked > 0)
    });

    pki(&mesh, &["redis-secret", "--dir", &dir, "--renew"]);
    let new = pki(&mesh, &["redis-password", "--dir", &dir]);
    assert_ne!(old, new);
    assert_eq!(pki(&mesh, &["redis-password", "--dir", &dir, "--former"]), old);

    // One host after another; each time replicas and agents connect anew across the mix.
    hand_out(&mesh, 0);
    await_states(&mesh, &[(2, false), (1, true), (1, true)]);
    assert!(takes(&mesh, 0, &old) && takes(&mesh, 0, &new));
    assert!(takes(&mesh, 1, &old) && !takes(&mesh, 1, &new));
    replicas_log_in_again(&mesh, &old);
    let said = mesh.ok_at(0, &["members"]);
    assert!(said.contains("another redis.secret is being taken up") && !said.contains("--finish"), "{said}");
    // An agent that is started amid it, on a host that has both and on one that has the former.
    for host in [0, 1] {
        mesh.kill_agent(host);
        mesh.start_agent(host);
    }
    mesh.await_members(HOSTS);
    await_states(&mesh, &[(2, false), (1, true), (1, true)]);
    hand_out(&mesh, 1);
    await_states(&mesh, &[(2, false), (2, false), (1, true)]);
    hand_out(&mesh, 2);
    await_states(&mesh, &[(2, true); HOSTS]);
    for host in 0..HOSTS {
        assert!(takes(&mesh, host, &old) && takes(&mesh, host, &new));
    }
    replicas_log_in_again(&mesh, &new);
    assert!(mesh.ok_at(0, &["members"]).contains("--finish"));

    // A host that gets the last file before the others goes on accepting what they say.
    pki(&mesh, &["redis-secret", "--dir", &dir, "--finish"]);
    for host in 0..HOSTS {
        hand_out(&mesh, host);
    }
    await_states(&mesh, &[(1, true); HOSTS]);
    for host in 0..HOSTS {
        assert!(!takes(&mesh, host, &old) && takes(&mesh, host, &new));
    }
    replicas_log_in_again(&mesh, &new);

    // Its agents were killed, and it lost nothing but what those had under way: no write failed.
    let output = writing.wait_with_output().expect("await the run");
    let run: Value = serde_json::from_slice(&output.stdout).expect("JSON");
    assert_eq!(run["run"]["failed"], 0, "{run}");
    assert!(!run.to_string().contains("WRONGPASS") && !run.to_string().contains("NOAUTH"), "{run}");
    writes(&mesh);

    // What starts later has the new one alone; nothing of either stands where others may read.
    let conf = mesh.host_dir(1).join("redis_cluster/6379/redis.conf");
    for server in mesh.servers_of(1) {
        send(&server, Signal::KILL);
    }
    until("the servers of a host to be started again", SOON, || takes(&mesh, 1, &new).then_some(()));
    assert!(!takes(&mesh, 1, &old));
    let text = std::fs::read_to_string(&conf).expect("a redis.conf");
    assert!(text.contains(&new) && !text.contains(&old));
    assert_eq!(std::fs::metadata(&conf).expect("stat").permissions().mode() & 0o077, 0);
    let secrets = std::fs::read_to_string(mesh.dir().join("admin/redis.secret")).expect("the secret");
    for host in 0..HOSTS {
        let log = mesh.log(host);
        assert!([&old, &new, &secrets.trim().to_owned()].iter().all(|secret| !log.contains(secret.as_str())));
    }
    for process in process::below(mesh.dir()) {
        let line = std::fs::read(format!("/proc/{}/cmdline", process.pid)).unwrap_or_default();
        let line = String::from_utf8_lossy(&line).into_owned();
        assert!(!line.contains(&old) && !line.contains(&new), "{line}");
    }
}

#[test]
fn new_connections_lose_no_write_in_any_mix_and_a_file_of_the_end_alone_locks_nobody_out() {
    let mesh = MeshBuilder::new(HOSTS).ready();
    mesh.ok_at(0, &["cluster", "create", "--instances-per-host", "2", "--replicas", "1"]);
    let dir = admin(&mesh);
    let old = mesh.redis_password();
    pki(&mesh, &["redis-secret", "--dir", &dir, "--renew"]);
    let new = pki(&mesh, &["redis-password", "--dir", &dir]);
    // Somebody was too quick: hosts get what they should get in the end.
    pki(&mesh, &["redis-secret", "--dir", &dir, "--finish"]);
    await_states(&mesh, &[(1, true); HOSTS]);
    writes(&mesh);
    hand_out(&mesh, 0);
    await_states(&mesh, &[(2, false), (1, true), (1, true)]);
    writes(&mesh);
    hand_out(&mesh, 1);
    await_states(&mesh, &[(2, false), (2, false), (1, true)]);
    writes(&mesh);
    assert!((0..HOSTS).all(|host| takes(&mesh, host, &old)));
    hand_out(&mesh, 2);
    await_states(&mesh, &[(1, true); HOSTS]);
    writes(&mesh);
    assert!((0..HOSTS).all(|host| takes(&mesh, host, &new) && !takes(&mesh, host, &old)));
    // A file that others may read is refused, and what was good stays.
    let path = mesh.identity_dir(0).join("redis.secret");
    std::fs::set_permissions(&path, std::fs::Permissions::from_mode(0o644)).expect("open it");
    until("the agent to say so", SOON, || {
        mesh.json_at(1, &["members"])["members"][0]["problem"]
            .as_str()
            .is_some_and(|words| words.contains("chmod 600"))
            .then_some(())
    });
    writes(&mesh);
    std::fs::set_permissions(&path, std::fs::Permissions::from_mode(0o600)).expect("close it");
    until("the problem to be over", SOON, || {
        mesh.json_at(1, &["members"])["members"][0]["problem"].is_null().then_some(())
    });
}
