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

    mesh.kill_agent(0);
    let stopped = mesh.agent_command(0, &["stop-servers"]);
    assert!(stopped.status.success(), "{}", String::from_utf8_lossy(&stopped.stderr));
    assert_eq!(String::from_utf8_lossy(&stopped.stdout), "3 servers have ended\n");
    assert!(mesh.servers().is_empty());
    // Nothing left to stop is no mistake.
    assert!(mesh.agent_command(0, &["stop-servers"]).status.success());
    mesh.start_agent(0);
    until("the servers to be back", SOON, || (mesh.servers().len() == 3).then_some(()));
}
