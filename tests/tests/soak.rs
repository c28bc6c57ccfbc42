//! What grows with time or with a host's instances, and must not: an agent's memory and
//! open files under load, and the page that Prometheus scrapes.

use std::io::Write;
use std::time::{Duration, Instant};

use procfs::process::Process;
use redmesh_tests::run::{assert_accounted, formed};
use redmesh_tests::{Mesh, MeshBuilder, http, until};
use serde_json::Value;

/// Bytes of `/metrics` of a host of [`INSTANCES`] at most. Prometheus itself has no limit
/// unless `body_size_limit` is set; whoever sets one should find that this fits.
const SCRAPE_BYTES_MAX: usize = 1024 * 1024;

/// Samples in it at most; the same of `sample_limit`.
const SCRAPE_SAMPLES_MAX: usize = 10_000;

/// Instances of that host.
const INSTANCES: usize = 100;

/// Seconds of the soak, unless `SOAK_SECONDS` says how many.
const SOAK_S: u64 = 1200;

/// Of the soak, the part after which memory is expected to be what it stays.
const WARM_UP: f64 = 0.4;

/// Between two readings.
const READ_INTERVAL: Duration = Duration::from_secs(5);

/// By how much a flat line may seem to rise between the end of the warm-up and the end.
const RISE_KIB_MAX: f64 = 4.0 * 1024.0;
/// The same of open files.
const RISE_FILES_MAX: f64 = 8.0;

fn metrics(mesh: &Mesh, host: usize) -> Option<String> {
    http::get(&format!("{}:7380", mesh.ip(host)), "/metrics")
}

#[test]
fn the_page_of_a_hundred_instances_fits_a_scrape() {
    let mesh = MeshBuilder::new(1).ready();
    mesh.ok_at(0, &["cluster", "create", "--instances-per-host", &INSTANCES.to_string()]);
    // Commands have series of their own.
    mesh.ok_at(0, &["run", "start", "--workload", "session", "--workers", "20", "--seconds", "2"]);
    let up = |text: &str| {
        text.lines().filter(|line| line.starts_with("redis_up{") && line.ends_with("} 1")).count()
    };
    let text = until("figures of all instances", Duration::from_secs(60), || {
        metrics(&mesh, 0).filter(|text| up(text) == INSTANCES)
    });
    let samples = text.lines().filter(|line| !line.starts_with('#') && !line.is_empty()).count();
    say(&format!("{INSTANCES} instances: {} bytes, {samples} samples", text.len()));
    assert!(text.len() <= SCRAPE_BYTES_MAX, "{} bytes", text.len());
    assert!(samples <= SCRAPE_SAMPLES_MAX, "{samples} samples");
}

fn say(line: &str) {
    let _ = writeln!(std::io::stderr(), "{line}");
}

/// One agent's memory (KiB) or open files over time (seconds).
#[derive(Debug, Default)]
struct Series(Vec<(f64, f64)>);

impl Series {
    /// The least-squares line: its value at the first and the last reading.
    fn line(&self) -> (f64, f64) {
        let n = self.0.len() as f64;
        let mean = |of: fn(&(f64, f64)) -> f64| self.0.iter().map(of).sum::<f64>() / n;
        let (t, v) = (mean(|p| p.0), mean(|p| p.1));
        let covariance: f64 = self.0.iter().map(|p| (p.0 - t) * (p.1 - v)).sum();
        let variance: f64 = self.0.iter().map(|p| (p.0 - t).powi(2)).sum();
        let slope = covariance / variance;
        let at = |point: Option<&(f64, f64)>| v + slope * (point.expect("readings").0 - t);
        (at(self.0.first()), at(self.0.last()))
    }

    fn per_hour(&self) -> f64 {
        let (begin, end) = self.line();
        let (first, last) = (self.0[0].0, self.0[self.0.len() - 1].0);
        (end - begin) / (last - first) * 3600.0
    }
}

fn read(pid: i32) -> (f64, f64) {
    let process = Process::new(pid).expect("the agent runs");
    let memory_kib = process.status().expect("its status").vmrss.expect("its memory");
    (memory_kib as f64, process.fd_count().expect("its files") as f64)
}

/// Three agents under load without a pause, scraped and asked as in real life.
#[test]
#[ignore = "takes 20 minutes: make soak-real"]
fn memory_and_open_files_stay_flat() {
    let soak_s = std::env::var("SOAK_SECONDS").map_or(SOAK_S, |text| text.parse().expect("a number"));
    let soak = Duration::from_secs(soak_s);
    let mesh = formed(3, "3");
    let mut memory: [Series; 3] = Default::default();
    let mut files: [Series; 3] = Default::default();
    let mut runs = 0;
    let began = Instant::now();
    while began.elapsed() < soak {
        let over = mesh.try_json_at(0, &["run", "show"]).is_none_or(|run| run["run"]["state"] == "completed");
        if over {
            let start = ["run", "start", "--workers", "60", "--seconds", "30", "--rate", "1500", "--no-wait"];
            runs += usize::from(mesh.ctl_at(runs % 3, &start).status.success());
        }
        for host in 0..3 {
            assert!(metrics(&mesh, host).is_some(), "host {host} serves no metrics");
            assert!(mesh.try_json_at(host, &["members"]).is_some(), "host {host} doesn't answer");
            let (kib, open) = read(mesh.agent_pid(host));
            let at = began.elapsed().as_secs_f64();
            if at > soak.as_secs_f64() * WARM_UP {
                memory[host].0.push((at, kib));
                files[host].0.push((at, open));
            }
        }
        std::thread::sleep(READ_INTERVAL);
    }
    let last: Value = until("the last run to end", Duration::from_secs(120), || {
        mesh.try_json_at(0, &["run", "show"]).filter(|run| run["run"]["state"] == "completed")
    });
    assert_accounted(&last);
    say(&format!("{soak_s} s, {runs} runs of 30 s"));
    for host in 0..3 {
        let ((kib, kib_end), (open, open_end)) = (memory[host].line(), files[host].line());
        say(&format!(
            "host {host}: memory {:.1} MiB, at the end {:.1} ({:+.2} an hour); open files {open:.1}, at the end \
             {open_end:.1} ({:+.1} an hour)",
            kib / 1024.0,
            kib_end / 1024.0,
            memory[host].per_hour() / 1024.0,
            files[host].per_hour(),
        ));
    }
    for host in 0..3 {
        let rise = |series: &Series| series.line().1 - series.line().0;
        assert!(
            rise(&memory[host]) < RISE_KIB_MAX,
            "host {host}: memory grew by {} KiB",
            rise(&memory[host])
        );
        assert!(rise(&files[host]) < RISE_FILES_MAX, "host {host}: {} more open files", rise(&files[host]));
    }
}
