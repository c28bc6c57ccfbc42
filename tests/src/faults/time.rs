//! Certificates that run out, and clocks that are moved.

use std::path::{Path, PathBuf};

use super::{
    HOSTS, Load, Need, Observed, SOON, Scenario, await_dead, coordinator_and_others, formed, timed, whole,
};
use crate::mesh::{Mesh, MeshBuilder};
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
        name: "clock-moved",
        fault: "the clock of the coordinator's agent jumps an hour ahead, then two hours back (libfaketime)",
        result: "no host is taken for dead, the run goes on, and its account closes",
        needs: &[Need::Faketime],
        trial: clock_moved,
    },
];

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

/// Where Debian's package has it.
pub fn library() -> Option<PathBuf> {
    let found = std::fs::read_dir("/usr/lib").ok()?.flatten();
    let mut candidates = found.map(|entry| entry.path().join("faketime/libfaketime.so.1"));
    candidates.find(|path| path.is_file())
}

fn set_clock(file: &Path, offset: &str) {
    std::fs::write(file, format!("{offset}\n")).expect("set the clock");
}

fn clock_moved() -> Observed {
    let files = tempfile::tempdir().expect("temp dir");
    let library = library().expect("it was looked for");
    let text = |path: &Path| path.to_str().expect("paths here are UTF-8").to_owned();
    let builder = (0..HOSTS).fold(MeshBuilder::new(HOSTS), |builder, host| {
        // Each may come to coordinate: each has a file of its own.
        let own = files.path().join(format!("clock-{host}"));
        set_clock(&own, "+0");
        builder
            .env_of(host, "LD_PRELOAD", &text(&library))
            .env_of(host, "FAKETIME_TIMESTAMP_FILE", &text(&own))
            .env_of(host, "FAKETIME_NO_CACHE", "1")
            .env_of(host, "FAKETIME_DONT_FAKE_MONOTONIC", "1")
    });
    let mesh = formed(builder, "0");
    let [moved, at, _] = coordinator_and_others(&mesh);
    let (load, pids) = (Load::begin(&mesh, at), mesh.servers());
    let own = files.path().join(format!("clock-{moved}"));
    let (time, ()) = timed(|| {
        for offset in ["+3600", "-3600"] {
            set_clock(&own, offset);
            load.await_more(&mesh, at, 10_000);
            whole(&mesh, at);
        }
    });
    assert_eq!(mesh.servers(), pids);
    Observed { whole: Some(time), writes: Some(load.end_without_loss(&mesh, at)), served: None }
}
