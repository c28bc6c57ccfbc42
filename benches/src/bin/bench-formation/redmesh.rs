//! redmesh: a demo's agents, driven as a user drives them.

use std::io::Write as _;
use std::path::PathBuf;
use std::process::Command;
use std::sync::atomic::Ordering;
use std::time::{Duration, SystemTime};

use anyhow::{Context as _, bail};
use redmesh_benches::children::Children;
use serde_json::Value;

use super::cluster::{BASE_PORT, MESH_PORT, Phases, Setting};
use super::watch::{Limits, all_agree, all_answer};

/// How redmesh forms.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Way {
    /// By complete `nodes.conf` files.
    Seeded,
    /// By `CLUSTER MEET`.
    Meet,
}

/// A mesh that runs; taken down when dropped.
#[derive(Debug)]
pub struct Mesh {
    ctl: PathBuf,
    dir: PathBuf,
}

impl Drop for Mesh {
    fn drop(&mut self) {
        if !self.dir.exists() {
            return;
        }
        let mut stop = Command::new(&self.ctl);
        stop.args(["demo", "stop", "--dir"]).arg(&self.dir);
        let stopped = Children::run_to_clean_up(&mut stop);
        // What a failed demo has kept for reading.
        if self.dir.exists() {
            let _ = std::fs::remove_dir_all(&self.dir);
        }
        if let Err(error) = stopped {
            let _ = writeln!(std::io::stderr(), "{}: {error:#}", self.dir.display());
        }
    }
}

/// Forms one cluster. The mesh lives as long as what is returned.
pub fn form(
    way: Way,
    setting: &Setting,
    limits: &Limits,
    children: &Children,
) -> anyhow::Result<(Mesh, Phases)> {
    let mesh = Mesh { ctl: setting.bin.join("redmeshctl"), dir: setting.dir("redmesh") };
    let mut demo = Command::new(&mesh.ctl);
    // The run is the least that a demo does; it begins when the cluster is formed.
    // redis-cli's servers have no password either.
    demo.args(["demo", "--keep", "--no-auth", "--writes", "1000", "--workers", "10", "-o", "json", "--dir"])
        .arg(&mesh.dir);
    for (option, value) in [
        ("--hosts", setting.hosts.to_string()),
        ("--per-host", setting.per_host.to_string()),
        ("--first-ip", setting.first_ip.to_string()),
        ("--base-port", BASE_PORT.to_string()),
        ("--mesh-port", MESH_PORT.to_string()),
    ] {
        demo.args([option, &value]);
    }
    demo.arg("--server").arg(&setting.server);
    if way == Way::Meet {
        demo.args(["--formation", "meet"]);
    }
    let (told, listening, agreed) = std::thread::scope(|scope| {
        let told = scope.spawn(|| {
            let left = limits.until.saturating_duration_since(std::time::Instant::now());
            let ended = children.run_within(&mut demo, left);
            if !matches!(ended, Ok(Some(_))) {
                limits.given_up.store(true, Ordering::SeqCst);
            }
            ended
        });
        // Seeded servers are held as soon as they listen: only the plan tells when all do.
        let listening = (way == Way::Meet).then(|| listening(setting, limits)).transpose();
        let agreed = all_agree(&setting.addresses(), limits);
        (told.join(), listening, agreed)
    });
    let told = match told {
        Ok(told) => told.context("redmeshctl demo")?,
        Err(_) => bail!("the thread that ran redmeshctl has panicked"),
    };
    let Some(told) = told else { bail!("redmesh: not within {} s", setting.deadline.as_secs()) };
    let told: Value = serde_json::from_str(&told).context("redmeshctl's answer")?;
    let create_s = told["formation"]["form_s"].as_f64().context("redmeshctl's answer has no form_s")?;

    let (created, released) = plan_times(setting, &mesh, children)?;
    let listening = listening?.unwrap_or(released);
    let since = |end: SystemTime, begin: SystemTime| {
        end.duration_since(begin).map(|time| time.as_secs_f64()).context("the clock was set back")
    };
    let start_s = since(listening, created)?;
    Ok((mesh, Phases { start_s, form_s: since(agreed?, listening)?, told_s: create_s - start_s }))
}

/// When all servers have answered once.
fn listening(setting: &Setting, limits: &Limits) -> anyhow::Result<SystemTime> {
    all_answer(&setting.addresses(), setting.deadline, limits)?;
    Ok(SystemTime::now())
}

/// When the plan was committed, and when it reached its second stage; seeded servers all listen then.
fn plan_times(
    setting: &Setting,
    mesh: &Mesh,
    children: &Children,
) -> anyhow::Result<(SystemTime, SystemTime)> {
    let mut info = Command::new(&mesh.ctl);
    info.arg("--agent").arg(format!("{}:{MESH_PORT}", setting.first_ip));
    info.arg("--identity").arg(mesh.dir.join("pki/operator")).args(["cluster", "info", "-o", "json"]);
    let info: Value = serde_json::from_str(&children.run(&mut info)?).context("redmeshctl cluster info")?;
    let plan = &info["status"]["plan"];
    let at = |unix_ms: &Value| {
        let ms = unix_ms.as_u64()?;
        Some(SystemTime::UNIX_EPOCH + Duration::from_millis(ms))
    };
    let stages = plan["reached"].as_array().map(Vec::as_slice).unwrap_or_default();
    let release = stages.iter().find(|reached| is_stage(&reached["stage"], "release"));
    let released = release.and_then(|reached| at(&reached["at_unix_ms"]));
    let created = at(&plan["created_unix_ms"]);
    created.zip(released).with_context(|| format!("the plan does not tell when it was released: {stages:?}"))
}

fn is_stage(value: &Value, name: &str) -> bool {
    value.as_str().is_some_and(|stage| stage.eq_ignore_ascii_case(name))
}
