//! The firewall's sets of members, kept by the agents; in a network namespace of their own.

use std::fs;
use std::io::Write;
use std::os::unix::fs::PermissionsExt;
use std::process::{Command, Stdio};
use std::time::Duration;

use redmesh_tests::{Mesh, MeshBuilder, until};
use serde_json::Value;

const SOON: Duration = Duration::from_secs(40);

/// Set in the namespace.
const INSIDE: &str = "TEST_FIREWALL_INSIDE";

/// Runs the test `name` again in a network namespace where nothing else is; false where that
/// was done, or can't be.
fn inside(name: &str) -> bool {
    if std::env::var_os(INSIDE).is_some() {
        return true;
    }
    let works = |program: &str, args: &[&str]| {
        Command::new(program).args(args).output().is_ok_and(|output| output.status.success())
    };
    if !works("unshare", &["-n", "nft", "list", "tables"]) {
        let words = "skipped, because there is no nft, or no network namespace can be made (root)\n";
        let _ = std::io::stderr().write_all(words.as_bytes());
        return false;
    }
    let status = Command::new("unshare")
        .args(["-n", "sh", "-c", "ip link set lo up && exec \"$@\"", "sh"])
        .arg(std::env::current_exe().expect("own path"))
        .args(["--exact", name, "--nocapture"])
        .env(INSIDE, "1")
        .status()
        .expect("run the test in a namespace");
    assert!(status.success(), "{name} failed in its namespace");
    false
}

fn nft(args: &[&str], input: &str) -> String {
    let mut child =
        Command::new("nft").args(args).stdin(Stdio::piped()).stdout(Stdio::piped()).spawn().expect("run nft");
    child.stdin.take().expect("it is piped").write_all(input.as_bytes()).expect("feed nft");
    let output = child.wait_with_output().expect("wait for nft");
    assert!(output.status.success(), "nft {args:?}");
    String::from_utf8_lossy(&output.stdout).into_owned()
}

fn list(what: &str) -> String {
    nft(&["list", "ruleset"], "").split_inclusive("\n}\n").filter(|table| table.starts_with(what)).collect()
}

fn members() -> String {
    nft(&["list", "set", "inet", "redmesh", "members4"], "")
}

/// Whether the set holds a host's address; neighbours stand in it as one interval.
fn holds(mesh: &Mesh, host: usize) -> bool {
    let element = format!("{{ {} }}", mesh.ip(host));
    let get = Command::new("nft").args(["get", "element", "inet", "redmesh", "members4", &element]).output();
    get.expect("run nft").status.success()
}

fn await_members(mesh: &Mesh, hosts: &[usize]) {
    until("the set to hold the members", SOON, || hosts.iter().all(|host| holds(mesh, *host)).then_some(()));
}

/// What the doctor finds of a host's firewall; asked of that host.
fn verdict(mesh: &Mesh, host: usize) -> Value {
    let output = mesh.ctl_at(host, &["-o", "json", "doctor", "--instances-per-host", "1"]);
    let report: Value = serde_json::from_slice(&output.stdout).expect("a report");
    let name = format!("host-{}", host + 1);
    let findings = report["findings"].as_array().expect("findings");
    let of_host = |finding: &&Value| {
        finding["check"] == "firewall"
            && finding["hosts"].as_array().is_some_and(|hosts| hosts.iter().any(|host| *host == name))
    };
    findings.iter().find(of_host).unwrap_or_else(|| panic!("no verdict on {name}: {report:#}")).clone()
}

#[test]
fn agents_keep_the_members_in_their_own_table_and_touch_no_other() {
    if !inside("agents_keep_the_members_in_their_own_table_and_touch_no_other") {
        return;
    }
    nft(
        &["-f", "-"],
        "table inet other {\n set members4 {\n type ipv4_addr\n elements = { 192.0.2.1 }\n }\n}\n",
    );
    let mut mesh = MeshBuilder::new(2).signers(1).spare(1).config("[firewall]\nmanage = true\n").ready();
    await_members(&mesh, &[0, 1]);

    // Rules that were rendered when only one host was there: the agents bring the others.
    let first = format!("host-1={}", mesh.ip(0));
    let rules = mesh.ok_at(
        0,
        &["deploy", "nftables", "--hosts", &first, "--clients", "10.1.0.0/16", "--joiners", "10.9.0.0/16"],
    );
    nft(&["-f", "-"], &rules);
    let strip = |text: String| {
        let kept = |line: &&str| !line.contains(&mesh.ip(0)) && !line.trim_start().starts_with("127.");
        text.lines().filter(kept).map(|line| format!("{line}\n")).collect::<String>()
    };
    let (table, other) = (strip(list("table inet redmesh")), list("table inet other"));
    assert!(table.contains("10.1.0.0/16") && table.contains("chain input") && other.contains("192.0.2.1"));
    await_members(&mesh, &[0, 1]);
    assert_eq!(strip(list("table inet redmesh")), table, "a rule or another set was changed");
    assert_eq!(list("table inet other"), other);

    // A host is let in with its certificate, before anybody has heard of it.
    let file = mesh.token_file();
    mesh.ok_at(0, &["join-token", "create", "--out", file.to_str().expect("UTF-8")]);
    assert!(!holds(&mesh, 2));
    let joined = mesh.agent_command(2, &["join"]);
    assert!(joined.status.success(), "{}", String::from_utf8_lossy(&joined.stderr));
    await_members(&mesh, &[0, 1, 2]);

    // Without the capability an agent is a member, and it and the doctor say what it lacks.
    assert_eq!(verdict(&mesh, 0)["severity"], "ok", "{}", verdict(&mesh, 0));
    mesh.start_agent_by(2, &["setpriv", "--bounding-set", "-net_admin"]);
    mesh.await_members(3);
    let found = verdict(&mesh, 2);
    assert_eq!((&found["severity"], &found["figure"]), (&"warn".into(), &"no CAP_NET_ADMIN".into()));
    assert!(found["remedy"].as_str().is_some_and(|words| words.contains("firewall.conf")), "{found}");
    until("the agent to say so", SOON, || {
        mesh.log(2).contains("needs the capability CAP_NET_ADMIN").then_some(())
    });
    mesh.kill_agent(2);

    // What they wrote stays when they end: the servers do as well.
    let before = members();
    mesh.kill_agent(0);
    mesh.kill_agent(1);
    assert_eq!(members(), before);
    // As an ordinary user with the capability alone, as the unit runs it: nft gets it, and
    // nothing else that the agent starts.
    nft(&["delete", "table", "inet", "redmesh"], "");
    // The sets alone, without anybody's rules, shut nobody out.
    let open = fs::Permissions::from_mode(0o755);
    fs::set_permissions(mesh.dir(), open).expect("let another user in");
    let chown =
        Command::new("chown").args(["-R", "65534:65534"]).arg(mesh.dir()).status().expect("run chown");
    assert!(chown.success());
    mesh.start_agent_by(
        1,
        &[
            "setpriv",
            "--reuid=65534",
            "--regid=65534",
            "--clear-groups",
            "--no-new-privs",
            "--bounding-set=-all,+net_admin",
            "--inh-caps=-all,+net_admin",
            "--ambient-caps=-all,+net_admin",
        ],
    );
    await_members(&mesh, &[1]);
    let found = verdict(&mesh, 1);
    assert_eq!((&found["severity"], &found["figure"]), (&"warn".into(), &"2 sets, no rules".into()));
    let status = fs::read_to_string(format!("/proc/{}/status", mesh.agent_pid(1))).expect("its status");
    let ambient = status.lines().find(|line| line.starts_with("CapAmb:")).expect("its ambient set");
    assert!(ambient.ends_with("0000000000000000"), "{ambient}: servers would get it");
}
