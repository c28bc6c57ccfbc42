//! Taking an operator's certificates back: every agent refuses them at once, for open
//! connections too and after restarts, and a certificate that is issued later is good.

use std::io::{BufRead, BufReader, Read};
use std::process::Output;
use std::time::Duration;

use redmesh_tests::{Mesh, MeshBuilder, until};
use serde_json::Value;

const SOON: Duration = Duration::from_secs(60);

fn issue(mesh: &Mesh, args: &[&str]) {
    let issued = mesh.ctl(&[&["pki", "issue", "--dir", "pki"], args].concat());
    assert!(issued.status.success(), "{}", String::from_utf8_lossy(&issued.stderr));
}

fn ask(mesh: &Mesh, who: &str, host: usize, args: &[&str]) -> Output {
    let (agent, identity) = (mesh.agent_addr(host), format!("pki/{who}"));
    mesh.ctl(&[&["--agent", agent.as_str(), "--identity", identity.as_str()], args].concat())
}

fn said(output: &Output) -> String {
    String::from_utf8_lossy(&output.stderr).into_owned()
}

/// Asks with `args`, which has to be refused with exit code 1; what is said.
fn refused(mesh: &Mesh, who: &str, host: usize, args: &[&str]) -> String {
    let output = ask(mesh, who, host, args);
    assert_eq!(output.status.code(), Some(1), "{}", said(&output));
    said(&output)
}

#[test]
fn a_revoked_operator_is_refused_by_all_for_good_and_a_later_certificate_is_good() {
    let mut mesh = MeshBuilder::new(3).ready();
    issue(&mesh, &["--operator", "bob"]);
    issue(&mesh, &["--operator", "rose", "--read-only"]);
    mesh.ok_at(0, &["cluster", "create", "--instances-per-host", "1"]);
    mesh.ok_at(0, &["run", "start", "--workers", "3", "--seconds", "600", "--no-wait"]);

    let words = refused(&mesh, "rose", 1, &["operators", "revoke", "bob"]);
    assert!(words.contains("certificate of rose, a read-only operator's"), "{words}");
    let words = refused(&mesh, "bob", 1, &["operators", "revoke", "bob"]);
    assert!(words.contains("you are bob") && words.contains("--force self"), "{words}");
    let words = refused(&mesh, "bob", 1, &["operators", "revoke", "no name"]);
    assert!(words.contains("can be no operator's name"), "{words}");

    // What is open ends, also at an agent that did not take the revocation.
    let mut watching = mesh.ctl_spawn_as("bob", 2, &["run", "watch"]);
    let mut saying = BufReader::new(watching.stderr.take().expect("piped"));
    let mut words = String::new();
    saying.read_line(&mut words).expect("it says how far the run is");
    for host in 0..3 {
        assert!(ask(&mesh, "bob", host, &["members"]).status.success());
    }
    let revoked = mesh.json_at(0, &["operators", "revoke", "bob"]);
    assert_eq!(revoked["name"], "bob");
    let status = until("bob's watching to end", SOON, || watching.try_wait().expect("it can be awaited"));
    saying.read_to_string(&mut words).expect("text");
    assert_eq!(status.code(), Some(1), "{words}");
    assert!(words.contains("operator bob was revoked"), "{words}");
    for host in 0..3 {
        let words = refused(&mesh, "bob", host, &["members"]);
        assert!(words.contains("operator bob was revoked") && words.contains("--renew"), "{words}");
        assert!(ask(&mesh, "rose", host, &["members"]).status.success(), "she is none of it");
    }
    let list = ask(&mesh, "rose", 2, &["operators", "list", "-o", "json"]);
    let list: Value = serde_json::from_slice(&list.stdout).expect("JSON");
    assert_eq!(list["revoked"], Value::Array(vec![revoked.clone()]));

    // Agents that are started again know it before they hear of anybody.
    for host in 0..3 {
        mesh.kill_agent(host);
    }
    mesh.start_agent(1);
    let words = until("the agent to serve", SOON, || {
        let words = said(&ask(&mesh, "bob", 1, &["--timeout", "5s", "members"]));
        words.contains("revoked").then_some(words)
    });
    assert!(words.contains("operator bob was revoked"), "{words}");
    mesh.start_agent(0);
    mesh.start_agent(2);
    mesh.await_members(3);

    // A certificate's time has whole seconds.
    let later = until("a certificate of a later second", SOON, || {
        issue(&mesh, &["--operator", "bob", "--renew"]);
        let output = ask(&mesh, "bob", 0, &["members"]);
        output.status.success().then_some(output)
    });
    assert!(later.status.success());
    for host in 1..3 {
        assert!(ask(&mesh, "bob", host, &["members"]).status.success());
    }
    // On purpose one may revoke oneself, and is told that it is done.
    let own = ask(&mesh, "bob", 2, &["operators", "revoke", "bob", "--force", "self"]);
    assert!(own.status.success(), "{}", said(&own));
    assert!(String::from_utf8_lossy(&own.stdout).contains("revoked bob"));
    assert!(refused(&mesh, "bob", 2, &["members"]).contains("was revoked"));
}
