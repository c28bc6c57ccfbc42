//! Certificates that run out.

use super::{
    HOSTS, Load, Observed, SOON, Scenario, await_dead, coordinator_and_others, formed, timed, whole,
};
use crate::mesh::{Mesh, MeshBuilder};
use crate::wait::until;

/// See [`super::all`].
pub const ALL: &[Scenario] = &[Scenario {
    name: "certificate-expires",
    fault: "a host's certificate expires while it is connected; then it is renewed",
    result: "its connections end and say why; the renewed one is taken up without a restart",
    needs: &[],
    trial: certificate_expires,
}];

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
