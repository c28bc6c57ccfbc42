//! The demo as a new user runs it: one command, one report, nothing left behind.

use std::path::Path;
use std::process::{Command, Stdio};
use std::time::Duration;

use redmesh_tests::{process, until};
use serde_json::Value;

fn redmeshctl() -> Command {
    let test = std::env::current_exe().expect("own path");
    let dir = test.parent().and_then(Path::parent).expect("target/debug/deps/<test>");
    Command::new(dir.join("redmeshctl"))
}

fn demo_args(dir: &Path, first_ip: &str) -> Vec<String> {
    let dir = dir.to_str().expect("temp paths are UTF-8");
    ["demo", "--hosts", "3", "--per-host", "2", "--workers", "50", "--dir", dir, "--first-ip", first_ip]
        .map(str::to_owned)
        .to_vec()
}

#[test]
fn the_demo_reports_honestly_and_leaves_nothing() {
    let root = tempfile::tempdir().expect("temp dir");
    let dir = root.path().join("demo");
    let output = redmeshctl()
        .args(demo_args(&dir, "127.90.0.1"))
        .args(["--writes", "20000", "-o", "json"])
        .output()
        .expect("run the demo");
    let stderr = String::from_utf8_lossy(&output.stderr);
    assert!(output.status.success(), "{stderr}");
    let report: Value = serde_json::from_slice(&output.stdout).expect("one JSON object");
    assert_eq!((&report["hosts"], &report["instances"]), (&Value::from(3), &Value::from(6)));
    let (run, ledger) = (&report["run"], &report["ledger"]);
    assert_eq!((&run["issued"], &run["acked"]), (&Value::from(20_000), &Value::from(20_000)), "{report}");
    assert_eq!((&ledger["dbsize"], &ledger["calls"]), (&Value::from(20_000), &Value::from(20_000)));
    assert_eq!((&ledger["lost"], &ledger["ok"]), (&Value::from(0), &Value::Bool(true)));
    assert!(process::below(root.path()).is_empty(), "processes are left");
    assert!(!dir.exists(), "the directory is left");
}

#[test]
fn a_kept_demo_goes_on_until_it_is_stopped() {
    let root = tempfile::tempdir().expect("temp dir");
    let dir = root.path().join("demo");
    let output = redmeshctl()
        .args(demo_args(&dir, "127.91.0.1"))
        .args(["--writes", "1000", "--keep"])
        .output()
        .expect("run the demo");
    let text =
        String::from_utf8_lossy(&output.stdout).into_owned() + &String::from_utf8_lossy(&output.stderr);
    assert!(output.status.success(), "{text}");
    assert!(
        text.contains("pki redis-password --dir ") && text.contains(") redis-cli -c -h 127.91.0.1 -p 6379"),
        "{text}"
    );
    assert_eq!(process::servers_below(root.path()).len(), 6);
    let stop = redmeshctl().args(["demo", "stop", "--dir"]).arg(&dir).output().expect("stop the demo");
    assert!(stop.status.success(), "{}", String::from_utf8_lossy(&stop.stderr));
    let left = process::below(root.path());
    process::kill_below(root.path());
    assert!(left.is_empty(), "left: {left:?}");
}

#[test]
fn an_interrupted_demo_leaves_nothing() {
    let root = tempfile::tempdir().expect("temp dir");
    let dir = root.path().join("demo");
    let mut child = redmeshctl()
        .args(demo_args(&dir, "127.92.0.1"))
        .args(["--seconds", "600"])
        .stdin(Stdio::null())
        .stdout(Stdio::null())
        .stderr(Stdio::null())
        .spawn()
        .expect("run the demo");
    until("servers to be there", Duration::from_secs(60), || {
        (process::servers_below(root.path()).len() == 6).then_some(())
    });
    let pid = rustix::process::Pid::from_child(&child);
    rustix::process::kill_process(pid, rustix::process::Signal::INT).expect("interrupt the demo");
    let status =
        until("the demo to end", Duration::from_secs(60), || child.try_wait().expect("ask for a child"));
    let left = process::below(root.path());
    process::kill_below(root.path());
    assert!(!status.success());
    assert!(left.is_empty(), "left: {left:?}");
    assert!(!dir.exists(), "the directory is left");
}
