//! Who may speak to whom, and what a mesh waits for.

use std::time::Duration;

use redmesh_tests::{MeshBuilder, until};

const SOON: Duration = Duration::from_secs(20);

#[test]
fn strangers_are_refused_with_the_reason_on_both_sides() {
    let mesh = MeshBuilder::new(1).ready();
    let ok = |args: &[&str]| assert!(mesh.ctl(args).status.success(), "{args:?}");
    ok(&["pki", "init", "--dir", "other"]);
    ok(&["pki", "issue", "--dir", "other", "--operator", "mallory"]);
    ok(&["pki", "issue", "--dir", "pki", "--operator", "late", "--valid-from-days-ago", "10", "--days", "1"]);

    let agent = mesh.agent_addr(0);
    // The mesh's own CA beside a foreign certificate: the agent has to find it out.
    std::fs::copy(mesh.dir().join("pki/ca.pem"), mesh.dir().join("other/mallory/ca.pem")).expect("copy");
    for (identity, words) in [("other/mallory", "CA"), ("pki/late", "expired")] {
        // Again and again: the agent logs refusals of one address at most once a second.
        until(&format!("ctl and the agent to tell {identity} of {words:?}"), SOON, || {
            let output = mesh.ctl(&["--agent", &agent, "--identity", identity, "members"]);
            assert!(!output.status.success(), "{identity} was let in");
            let said = String::from_utf8_lossy(&output.stderr);
            (said.contains(words) && mesh.log(0).contains(words)).then_some(())
        });
    }
    // A CA that is not the mesh's: ctl itself refuses the agent.
    let ca = mesh.dir().join("other/ca.pem");
    std::fs::copy(ca, mesh.dir().join("other/mallory/ca.pem")).expect("copy");
    let output = mesh.ctl(&["--agent", &agent, "--identity", "other/mallory", "members"]);
    assert!(!output.status.success());
    // A host's certificate is no operator's, nor is an operator's an agent's.
    let output = mesh.ctl(&["--agent", &agent, "--identity", "pki/host-1", "members"]);
    let said = String::from_utf8_lossy(&output.stderr);
    assert!(!output.status.success() && said.contains("pki issue") && said.contains("--operator"), "{said}");
    let set = format!("identity.dir={}", mesh.dir().join("pki/tester").display());
    let checked = std::process::Command::new(std::env::current_exe().map(agent_beside).expect("own path"))
        .args(["--config", "agent.toml", "check-config", "--set", &set])
        .current_dir(mesh.host_dir(0))
        .output()
        .expect("run an agent");
    let said = String::from_utf8_lossy(&checked.stderr);
    assert!(!checked.status.success() && said.contains("is an operator's"), "{said}");
    // Everybody else is served as before.
    assert!(mesh.ok_at(0, &["members"]).contains("host-1"));
}

#[test]
fn with_too_few_hosts_the_mesh_waits_and_says_for_whom() {
    let mesh = MeshBuilder::new(2).expecting(3).start();
    let waiting = until("the mesh to wait for the third host", SOON, || {
        let members = mesh.try_json_at(0, &["members"])?;
        members["waiting_for"].as_str().filter(|words| words.contains("1 more host")).map(str::to_owned)
    });
    assert!(waiting.contains("host-1") && waiting.contains("host-2"), "{waiting}");
    let output = mesh.ctl_at(1, &["--timeout", "2", "cluster", "create", "--instances-per-host", "2"]);
    assert_eq!(output.status.code(), Some(3), "no coordinator");
    assert!(String::from_utf8_lossy(&output.stderr).contains("1 more host"));
}

#[test]
fn a_second_agent_on_the_same_state_is_refused() {
    let mesh = MeshBuilder::new(1).ready();
    let dir = mesh.host_dir(0);
    let second = std::process::Command::new(std::env::current_exe().map(agent_beside).expect("own path"))
        .args(["--config", "agent.toml", "--set", "mesh.listen=127.0.0.1:17379"])
        .current_dir(&dir)
        .output()
        .expect("run an agent");
    assert!(!second.status.success());
    let words = String::from_utf8_lossy(&second.stderr);
    assert!(words.contains("another redmesh-agent"), "{words}");
}

fn agent_beside(test: std::path::PathBuf) -> std::path::PathBuf {
    let dir = test.parent().and_then(|deps| deps.parent()).expect("target/debug/deps/<test>");
    dir.join("redmesh-agent")
}
