//! The preflight on real hosts: what it finds, whom it refuses, and what overrides it.

use std::net::TcpListener;
use std::os::unix::fs::PermissionsExt;
use std::process::Output;
use std::time::Duration;

use redmesh_tests::{Mesh, MeshBuilder, until};
use serde_json::Value;

const SMALL: &[&str] = &["--instances-per-host", "2"];

/// `doctor` with these options: its report and its exit code.
fn doctor(mesh: &Mesh, options: &[&str]) -> (Value, Option<i32>) {
    let output = mesh.ctl_at(1, &[&["-o", "json", "doctor"], options].concat());
    let report = serde_json::from_slice(&output.stdout).unwrap_or_else(|error| {
        panic!("no report: {error}\n{}", String::from_utf8_lossy(&output.stderr));
    });
    (report, output.status.code())
}

/// Findings of one check.
fn of<'a>(report: &'a Value, check: &str) -> Vec<&'a Value> {
    let findings = report["findings"].as_array().expect("findings");
    findings.iter().filter(|finding| finding["check"] == check).collect()
}

/// The one finding of a check that isn't as it should be.
fn bad<'a>(report: &'a Value, check: &str, severity: &str) -> &'a Value {
    let found = of(report, check);
    let found: Vec<_> = found.into_iter().filter(|finding| finding["severity"] == severity).collect();
    assert_eq!(found.len(), 1, "{check} {severity}: {report:#}");
    found[0]
}

fn assert_has(text: &Value, parts: &[&str]) {
    let text = text.as_str().expect("text");
    for part in parts {
        assert!(text.contains(part), "lacks {part:?}: {text}");
    }
}

fn stderr(output: &Output) -> String {
    String::from_utf8_lossy(&output.stderr).into_owned()
}

#[test]
fn sound_hosts_pass_and_a_lost_one_is_missed() {
    let mut mesh = MeshBuilder::new(3).servers_outlive_agents().ready();
    let (report, code) = doctor(&mesh, SMALL);
    assert_eq!(code, Some(0), "{report:#}");
    assert_eq!((&report["instances"], &report["machines"]), (&Value::from(6), &Value::from(1)));
    for check in [
        "hosts",
        "agent-versions",
        "server",
        "server-versions",
        "redis-tls",
        "ports",
        "ephemeral-ports",
        "data-dir",
        "disk",
        "file-descriptors",
        "threads",
        "memory",
        "overcommit-memory",
        "transparent-huge-pages",
        "somaxconn",
        "tcp-memory",
        "udp-buffers",
        "clock-skew",
        "node-timeout",
        "bus-traffic",
    ] {
        assert!(!of(&report, check).is_empty(), "{check} is not in {report:#}");
    }
    // Three agents of one machine: one row, not three.
    assert_eq!(of(&report, "server").len(), 1);
    assert_eq!(of(&report, "server")[0]["hosts"], serde_json::json!(["host-1", "host-2", "host-3"]));
    assert_eq!(of(&report, "clock-skew")[0]["severity"], "ok", "one clock: {report:#}");
    let text = mesh.ok_at(0, &[&["doctor"], SMALL].concat());
    assert!(text.contains("examined for 6 instances on 3 hosts (one machine)"), "{text}");
    assert!(text.lines().any(|line| line.starts_with("ports ") && line.ends_with("all 3")), "{text}");

    // More than the machine can hold, whatever it is.
    let (report, code) = doctor(&mesh, &["--instances-per-host", "1000"]);
    assert_eq!(code, Some(1), "{report:#}");
    assert_has(&bad(&report, "memory", "fail")["remedy"], &["--instances-per-host"]);
    let refused = mesh.ctl_at(0, &["cluster", "create", "--instances-per-host", "1000"]);
    assert_eq!(refused.status.code(), Some(1));
    assert!(stderr(&refused).contains("--force memory"), "{}", stderr(&refused));

    mesh.ok_at(0, &[&["cluster", "create"], SMALL].concat());
    // Of the cluster that there is, whose ports are taken by itself.
    let (report, code) = doctor(&mesh, &[]);
    assert_eq!((code, &report["instances"]), (Some(0), &Value::from(6)), "{report:#}");
    assert_eq!(of(&report, "ports")[0]["figure"], "2 of 2 are our own instances'");

    mesh.kill_agent(2);
    until("the lost host to be missed", Duration::from_secs(30), || {
        let (report, code) = doctor(&mesh, &[]);
        let lost = of(&report, "hosts").into_iter().find(|it| it["severity"] == "fail").cloned()?;
        (code == Some(1) && lost["hosts"][0] == "host-3").then_some(())
    });
}

#[test]
fn a_taken_port_is_refused_by_name_and_overridden_by_name() {
    let mesh = MeshBuilder::new(3).ready();
    let taken = TcpListener::bind((mesh.ip(1).as_str(), 16380)).expect("take a bus port");
    let (port, me) = (format!("bus port {}:16380", mesh.ip(1)), format!("(pid {}", std::process::id()));
    let (report, code) = doctor(&mesh, SMALL);
    assert_eq!(code, Some(1));
    let finding = bad(&report, "ports", "fail");
    assert_eq!(finding["hosts"], serde_json::json!(["host-2"]));
    assert_has(&finding["words"], &[&port, &me]);
    assert_has(&finding["remedy"], &["stop it"]);

    let create = [&["cluster", "create"], SMALL].concat();
    let refused = mesh.ctl_at(0, &create);
    assert_eq!(refused.status.code(), Some(1));
    for part in ["ports (host-2)", &port, &me, "mend it: stop it", "--force ports"] {
        assert!(stderr(&refused).contains(part), "lacks {part:?}: {}", stderr(&refused));
    }
    assert_eq!(mesh.ctl_at(0, &["cluster", "info"]).status.code(), Some(1), "nothing was begun");
    // Another check's name doesn't help, and no check's name is refused with the list.
    let other = mesh.ctl_at(0, &[create.as_slice(), &["--force", "memory", "--force", "disk"]].concat());
    assert_eq!(other.status.code(), Some(1));
    let unknown = mesh.ctl_at(0, &[create.as_slice(), &["--force", "port"]].concat());
    assert_eq!(unknown.status.code(), Some(2));
    assert!(stderr(&unknown).contains("there are hosts, agent-versions"), "{}", stderr(&unknown));

    let forced = mesh.json_at(0, &[create.as_slice(), &["--force", "ports", "--no-wait"]].concat());
    assert_eq!(forced["fresh"], true);
    let warnings = forced["warnings"].as_array().expect("warnings");
    assert!(warnings.iter().any(|it| it["check"] == "ports" && it["severity"] == "fail"), "{forced:#}");
    // A plan that is there is continued without another preflight.
    let again = mesh.json_at(2, &[create.as_slice(), &["--no-wait"]].concat());
    assert_eq!((&again["fresh"], &again["warnings"]), (&Value::Bool(false), &Value::Array(vec![])));
    drop(taken);
    assert_eq!(mesh.json_at(0, &create)["formed"], true);
}

#[test]
fn a_low_limit_of_open_files_is_refused() {
    let mesh = MeshBuilder::new(3).nofile_of(1, 3000).ready();
    let (report, code) = doctor(&mesh, SMALL);
    assert_eq!(code, Some(1));
    let finding = bad(&report, "file-descriptors", "fail");
    assert_eq!(finding["hosts"], serde_json::json!(["host-2"]));
    assert_eq!(finding["figure"], "hard limit 3,000");
    // 2 · 5 links, 4096 clients, 64 of its own.
    assert_has(&finding["remedy"], &["LimitNOFILE=4170"]);
    let refused = mesh.ctl_at(0, &[&["cluster", "create"], SMALL].concat());
    assert!(stderr(&refused).contains("--force file-descriptors"), "{}", stderr(&refused));
}

#[test]
fn servers_of_different_versions_are_a_warning() {
    let scripts = tempfile::tempdir().expect("temp dir");
    let script = scripts.path().join("redis-server");
    let text = "#!/bin/sh\n[ \"$1\" = --version ] && exec echo 'Redis server v=6.2.99 sha=0'\n\
                exec /usr/bin/env redis-server \"$@\"\n";
    std::fs::write(&script, text).expect("write a script");
    std::fs::set_permissions(&script, std::fs::Permissions::from_mode(0o755)).expect("make it executable");
    let mesh = MeshBuilder::new(3).config_of(2, &format!("server = \"{}\"\n", script.display())).ready();
    let (report, code) = doctor(&mesh, SMALL);
    assert_eq!(code, Some(0), "it works: {report:#}");
    let found = of(&report, "server-versions");
    assert_eq!(found.len(), 2, "{report:#}");
    assert!(found.iter().all(|finding| finding["severity"] == "warn"), "{report:#}");
    let old = found.iter().find(|finding| finding["figure"] == "Redis 6.2.99").expect("the wrapped one");
    assert_eq!(old["hosts"], serde_json::json!(["host-3"]));
}
