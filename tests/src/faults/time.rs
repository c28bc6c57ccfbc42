//! Certificates that run out, and clocks that are wrong.

use std::fs;

use super::{
    HOSTS, Load, Need, Observed, PER_HOST, SOON, Scenario, await_dead, coordinator_and_others, formed, timed,
    whole,
};
use crate::mesh::{Mesh, MeshBuilder};
use crate::run::{assert_accounted, count};
use crate::tools;
use crate::wait::until;

/// See [`super::all`].
pub const ALL: &[Scenario] = &[
    Scenario {
        name: "certificate-expires",
        fault: "a host's certificate expires while it is connected; then it is renewed",
        result: "its connections end and say why; the renewed one is taken up without a restart",
        needs: &[],
        trial: certificate_expires,
    },
    Scenario {
        name: "clocks-wrong",
        fault: "the clock of one agent is 120 s ahead and that of another 120 s behind (libfaketime, the wall clock of these processes alone); they change places in mid-run, and are put right in another",
        result: "`doctor` names both, the create is done, each host bears its part of a run of 5 s, and no count is lost",
        needs: &[Need::FakeTime],
        trial: clocks_wrong,
    },
];

/// The library that gives a process another clock.
const LIBRARY: &str = "faketime/libfaketime.so.1";

/// Why no process can be given another clock here; `None` if one can.
pub fn missing() -> Option<&'static str> {
    tools::library(LIBRARY)
        .is_none()
        .then_some("there is no libfaketime (deploy/dev/need unpacked libfaketime)")
}

/// The file that says how wrong the clock of a host's agent is.
const CLOCK_FILE: &str = "clock";

/// Seconds by which a clock is wrong.
const WRONG_S: i32 = 120;

/// Seconds that the short certificate is good for: enough to be taken up and used.
const SHORT_S: &str = "15";

fn issue(mesh: &Mesh, host: usize, more: &[&str]) {
    let pki = mesh.dir().join("pki");
    let (pki, ip) = (pki.to_str().expect("temp paths are UTF-8"), mesh.ip(host));
    let name = format!("host-{}", host + 1);
    let output =
        mesh.ctl(&[&["pki", "issue", "--dir", pki, "--host", &name, "--ip", &ip, "--renew"], more].concat());
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
}

fn certificate_expires() -> Observed {
    let mesh = formed(MeshBuilder::new(HOSTS), "0");
    let [at, host, _] = coordinator_and_others(&mesh);
    let pids = mesh.servers();
    issue(&mesh, host, &["--valid-for-seconds", SHORT_S]);
    let taken = |times: usize| mesh.log(host).matches("took up a renewed certificate").count() >= times;
    until("the short certificate to be used", SOON, || taken(1).then_some(()));
    let load = Load::begin(&mesh, at);
    await_dead(&mesh, at, host);
    load.goes_on(&mesh, at);
    issue(&mesh, host, &[]);
    let (time, ()) = timed(|| whole(&mesh, at));
    assert!(taken(2));
    load.goes_on(&mesh, at);
    assert_eq!(mesh.servers(), pids);
    Observed { whole: Some(time), writes: Some(load.end_without_loss(&mesh, at)), served: None }
}

/// Makes the clock of a host's agent so many seconds wrong.
fn set_clock(mesh: &Mesh, host: usize, wrong_s: i32) {
    let file = mesh.host_dir(host).join(CLOCK_FILE);
    let new = file.with_extension("new");
    fs::write(&new, format!("{wrong_s:+}s\n")).expect("write the clock");
    fs::rename(&new, &file).expect("set the clock");
}

/// Waits until a look at all hosts finds one ahead and one behind.
fn await_found(mesh: &Mesh, at: usize, ahead: usize, behind: usize) {
    until("the wrong clocks to be told", SOON, || {
        let said = String::from_utf8(mesh.ctl_at(at, &["doctor"]).stdout).expect("it prints UTF-8");
        let told = |host: usize, way: &str| {
            let name = format!("host-{}", host + 1);
            said.lines().any(|line| line.contains("clock-skew") && line.contains(&name) && line.contains(way))
        };
        (told(ahead, "ahead") && told(behind, "behind")).then_some(())
    });
}

fn clocks_wrong() -> Observed {
    let library = tools::library(LIBRARY).expect("the library is there");
    let library = library.to_str().expect("paths here are UTF-8");
    let mut builder = MeshBuilder::new(HOSTS);
    for host in 0..HOSTS {
        builder = builder
            .env_of(host, "LD_PRELOAD", library)
            // In its working directory, once there is one.
            .env_of(host, "FAKETIME_TIMESTAMP_FILE", CLOCK_FILE)
            .env_of(host, "FAKETIME_CACHE_DURATION", "1")
            // Timers and timeouts stay those of the machine.
            .env_of(host, "FAKETIME_DONT_FAKE_MONOTONIC", "1");
    }
    let mesh = builder.servers_outlive_agents().ready();
    let [at, one, other] = coordinator_and_others(&mesh);
    let wrong = |ahead, behind| {
        set_clock(&mesh, ahead, WRONG_S);
        set_clock(&mesh, behind, -WRONG_S);
        await_found(&mesh, at, ahead, behind);
    };
    wrong(one, other);
    mesh.ok_at(at, &["cluster", "create", "--instances-per-host", &PER_HOST.to_string()]);
    whole(&mesh, at);
    let pids = mesh.servers();

    // Each host bears its part of a short run, though one of them takes it for long over.
    mesh.ctl_at(at, &["run", "start", "--workers", "12", "--seconds", "5"]);
    let run: serde_json::Value = mesh.json_at(at, &["run", "show"]);
    assert_accounted(&run);
    let hosts = run["hosts"].as_array().expect("a list");
    assert!(hosts.len() == HOSTS && hosts.iter().all(|host| count(&host["acked"]) > 0), "{run}");

    let load = Load::begin(&mesh, at);
    wrong(other, one);
    load.goes_on(&mesh, at);
    let first = load.end_without_loss(&mesh, at);
    let load = Load::begin(&mesh, at);
    (0..HOSTS).for_each(|host| set_clock(&mesh, host, 0));
    let (time, ()) = timed(|| whole(&mesh, at));
    load.goes_on(&mesh, at);
    assert_eq!(mesh.servers(), pids);
    let second = load.end_without_loss(&mesh, at);
    Observed { whole: Some(time), writes: Some(first.plus(&second)), served: None }
}
