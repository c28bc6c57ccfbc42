//! What whoever runs a host does with its agent: reload it, stop its servers on purpose.

use std::fs;
use std::time::Duration;

use redmesh_tests::{Mesh, MeshBuilder, http, until};
use rustix::process::{Pid, Signal, kill_process};

const SOON: Duration = Duration::from_secs(30);

fn hang_up(mesh: &Mesh, host: usize) {
    let pid = Pid::from_raw(mesh.agent_pid(host)).expect("a pid");
    kill_process(pid, Signal::HUP).expect("signal the agent");
}

fn await_log(mesh: &Mesh, host: usize, words: &str) {
    until(&format!("{words:?} in the log of host {host}"), SOON, || {
        mesh.log(host).contains(words).then_some(())
    });
}

fn expiry(mesh: &Mesh, host: usize) -> Option<f64> {
    let text = http::get(&format!("{}:7380", mesh.ip(host)), "/metrics")?;
    let line = text.lines().find(|line| line.starts_with("redmesh_certificate_expiry_timestamp_seconds "))?;
    line.split(' ').nth(1)?.parse().ok()
}

#[test]
fn a_reload_takes_log_level_and_certificates_and_names_what_it_cannot() {
    let mesh = MeshBuilder::new(1).ready();
    let (pki, file) = (mesh.dir().join("pki"), mesh.host_dir(0).join("agent.toml"));
    let first = until("the certificate's end", SOON, || expiry(&mesh, 0));

    let issue = ["pki", "issue", "--dir", pki.to_str().unwrap(), "--host", "host-1", "--ip", &mesh.ip(0)];
    let renewed = mesh.ctl(&[&issue[..], &["--renew", "--days", "700"]].concat());
    assert!(renewed.status.success());
    let config = fs::read_to_string(&file).expect("read the config");
    let changed = config.replace("gossip_interval_ms = 100", "gossip_interval_ms = 150");
    fs::write(&file, format!("{changed}\n[log]\nlevel = \"warn\"\n")).expect("write the config");
    hang_up(&mesh, 0);
    await_log(&mesh, 0, "only after a restart of the agent (the servers stay): mesh.gossip_interval_ms");
    // It stands before that warning, and informs.
    assert!(!mesh.log(0).contains("new connections present"), "{}", mesh.log(0));
    until("a later end", SOON, || (expiry(&mesh, 0)? > first + 300.0 * 86400.0).then_some(()));
    // Whoever dials now meets the new certificate.
    mesh.ok_at(0, &["members"]);

    // What can't be used changes nothing, and the agent goes on.
    fs::write(pki.join("host-1/key.pem"), "no key").expect("write");
    fs::write(&file, "nonsense").expect("write");
    hang_up(&mesh, 0);
    await_log(&mesh, 0, "nothing has changed");
    fs::write(&file, &config).expect("write");
    hang_up(&mesh, 0);
    await_log(&mesh, 0, "the certificate in use stays");
    await_log(&mesh, 0, "the log has another level");
    mesh.ok_at(0, &["members"]);
}

#[test]
fn servers_are_stopped_on_purpose_only_without_an_agent_and_die_before_it() {
    let mut mesh = MeshBuilder::new(1).servers_outlive_agents().ready();
    mesh.ok_at(0, &["cluster", "create", "--instances-per-host", "3"]);
    assert_eq!(mesh.servers().len(), 3);
    let score = |pid: i32| -> i32 {
        let text = fs::read_to_string(format!("/proc/{pid}/oom_score_adj")).expect("read a score");
        text.trim().parse().expect("a number")
    };
    let agents = score(mesh.agent_pid(0));
    for server in mesh.servers() {
        assert!(score(server.pid) > agents || agents == 1000);
    }

    let refused = mesh.agent_command(0, &["stop-servers"]);
    let words = String::from_utf8_lossy(&refused.stderr).into_owned();
    assert!(!refused.status.success() && words.contains("stop the agent first"), "{words}");
    assert_eq!(mesh.servers().len(), 3);

    // By whichever name the directory is given: /proc tells the real one.
    let data = mesh.servers()[0].dir.parent().expect("a data directory").to_owned();
    let link = mesh.dir().join("elsewhere");
    std::os::unix::fs::symlink(data, &link).expect("make a link");
    mesh.kill_agent(0);
    let by_link = format!("redis.data_dir={}", link.display());
    let stopped = mesh.agent_command(0, &["--set", &by_link, "stop-servers"]);
    assert!(stopped.status.success(), "{}", String::from_utf8_lossy(&stopped.stderr));
    assert_eq!(String::from_utf8_lossy(&stopped.stdout), "3 servers have ended\n");
    assert!(mesh.servers().is_empty());
    // Nothing left to stop is no mistake.
    assert!(mesh.agent_command(0, &["stop-servers"]).status.success());
    mesh.start_agent(0);
    until("the servers to be back", SOON, || (mesh.servers().len() == 3).then_some(()));
}

/// What every instance of the one host says that it has.
fn has(mesh: &Mesh, directive: &str, value: &str) -> bool {
    (6379..6382).all(|port| {
        let said = mesh.redis_cli(0, port, &["CONFIG", "GET", directive]);
        said.lines().nth(1).unwrap_or_default() == value
    })
}

/// Replaces the directives of the one host, and asks for a reload.
fn reload_with(mesh: &Mesh, config: &str, directives: &str) {
    fs::write(mesh.host_dir(0).join("agent.toml"), format!("{config}[redis.directives]\n{directives}"))
        .expect("write the config");
    hang_up(mesh, 0);
}

#[test]
fn changed_directives_reach_running_servers_by_a_reload() {
    let mesh = MeshBuilder::new(1).servers_outlive_agents().ready();
    mesh.ok_at(0, &["cluster", "create", "--instances-per-host", "3"]);
    let config = fs::read_to_string(mesh.host_dir(0).join("agent.toml")).expect("read the config");
    let before = mesh.servers();
    reload_with(
        &mesh,
        &config,
        "maxmemory = \"200mb\"\nMaxmemory-Policy = \"allkeys-lru\"\nsave = [\"900 1\", \"300 10\"]\n\
         client-output-buffer-limit = [\"normal 0 0 0\", \"replica 512mb 64mb 60\"]\n\
         tcp-backlog = 511\nuser = \"bob on nopass ~* +@read\"\nmaxmemory-samples = \"none\"\n",
    );
    await_log(&mesh, 0, "the running servers have changed directives");
    assert!(has(&mesh, "maxmemory", "209715200") && has(&mesh, "maxmemory-policy", "allkeys-lru"));
    assert!(has(&mesh, "save", "900 1 300 10"));
    let limits = mesh.redis_cli(0, 6379, &["CONFIG", "GET", "client-output-buffer-limit"]);
    assert!(limits.contains("slave 536870912 67108864 60"), "{limits}");
    let log = mesh.log(0);
    let line = |words: &str| log.lines().find(|line| line.contains(words)).unwrap_or_default();
    for (words, names) in [
        ("the running servers have changed", "client-output-buffer-limit, maxmemory, maxmemory-policy, save"),
        ("can't be changed while a server runs", "tcp-backlog, user"),
        ("can't use its new value: it stays", "maxmemory-samples"),
    ] {
        assert!(line(words).contains(names), "{words:?} of {names}: {log}");
    }
    assert_eq!(mesh.servers(), before, "no server was started again");

    // What a later start reads: all but what no server could use.
    let pid = Pid::from_raw(before[0].pid).expect("a pid");
    kill_process(pid, Signal::KILL).expect("kill a server");
    until("another server in its place", SOON, || {
        (mesh.servers().len() == 3 && has(&mesh, "maxmemory", "209715200")).then_some(())
    });
    let file = before[0].dir.join("redis.conf");
    let text = fs::read_to_string(&file).unwrap_or_else(|error| panic!("{}: {error}", file.display()));
    for line in ["maxmemory 200mb", "save 900 1", "tcp-backlog 511", "user bob on nopass ~* +@read"] {
        assert!(text.lines().any(|it| it == line), "{line:?} is not in {text}");
    }
    assert!(!text.contains("maxmemory-samples"), "{text}");

    // A server that doesn't answer is told when it does; what was taken away is as by default.
    let silent = mesh.servers()[0].pid;
    let signal =
        |signal| kill_process(Pid::from_raw(silent).expect("a pid"), signal).expect("signal a server");
    signal(Signal::STOP);
    reload_with(&mesh, &config, "maxmemory = \"300mb\"\n");
    await_log(&mesh, 0, "don't answer: they are told of changed directives once they do");
    signal(Signal::CONT);
    until("all to have it", SOON, || has(&mesh, "maxmemory", "314572800").then_some(()));
    until("the agent's own default", SOON, || has(&mesh, "save", "").then_some(()));
    await_log(&mesh, 0, "maxmemory-policy, tcp-backlog, user");

    // A password is a value that no log shows.
    reload_with(&mesh, &config, "maxmemory = \"300mb\"\nrequirepass = \"open-sesame\"\n");
    until("the clients' other password", SOON, || {
        let mut command = mesh.redis_cli_command();
        command.env("REDISCLI_AUTH", "open-sesame").args(["-h", &mesh.ip(0), "-p", "6381", "PING"]);
        let said = command.output().expect("run redis-cli").stdout;
        (String::from_utf8_lossy(&said).trim() == "PONG").then_some(())
    });
    assert!(!mesh.log(0).contains("open-sesame"));
    mesh.await_whole(0, 3);
}
