//! Prometheus beside a mesh: what it scrapes, and that dashboard and rules ask for metrics
//! that there are.

use std::collections::BTreeSet;
use std::fs;
use std::io::Write;
use std::process::{Child, Command, Stdio};
use std::time::Duration;

use redmesh_tests::{Mesh, MeshBuilder, http, tools, until};
use serde_json::Value;

const SOON: Duration = Duration::from_secs(60);

/// Names that PromQL itself has, or that Prometheus makes.
const NOT_OURS: [&str; 1] = ["up"];

fn metrics(mesh: &Mesh, host: usize) -> Option<String> {
    http::get(&format!("{}:7380", mesh.ip(host)), "/metrics")
}

/// Words of `text` that begin as metrics of ours do.
fn names(text: &str) -> BTreeSet<String> {
    text.split(|c: char| !c.is_ascii_alphanumeric() && c != '_' && c != ':')
        .filter(|word| (word.starts_with("redmesh_") || word.starts_with("redis_")) && !word.contains(':'))
        .map(str::to_owned)
        .collect()
}

/// What the rules file asks for: its `expr` lines.
fn asked_by_rules() -> BTreeSet<String> {
    let rules =
        fs::read_to_string(tools::repository().join("deploy/prometheus/rules.yml")).expect("read the rules");
    let exprs: Vec<&str> = rules.lines().filter_map(|line| line.trim().strip_prefix("expr:")).collect();
    assert!(!exprs.is_empty());
    names(&exprs.join("\n"))
}

fn asked_by_dashboard() -> BTreeSet<String> {
    fn walk(value: &Value, found: &mut BTreeSet<String>) {
        match value {
            Value::Object(object) => object.iter().for_each(|(key, value)| match value.as_str() {
                Some(text) if key == "expr" || key == "query" => found.extend(names(text)),
                _ => walk(value, found),
            }),
            Value::Array(array) => array.iter().for_each(|value| walk(value, found)),
            _ => {}
        }
    }
    let text = fs::read_to_string(tools::repository().join("deploy/grafana/redmesh.json"))
        .expect("read the dashboard");
    let mut found = BTreeSet::new();
    walk(&serde_json::from_str(&text).expect("the dashboard is JSON"), &mut found);
    found
}

struct Prometheus(Child);

impl Drop for Prometheus {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

#[test]
fn what_is_asked_for_is_there_and_a_prometheus_finds_all_hosts() {
    let mesh = MeshBuilder::new(3).ready();
    mesh.ok_at(0, &["cluster", "create", "--instances-per-host", "2", "--replicas", "1"]);
    mesh.ok_at(0, &["run", "start", "--workers", "10", "--writes", "1000"]);

    let asked: BTreeSet<_> = asked_by_rules().union(&asked_by_dashboard()).cloned().collect();
    assert!(asked.len() > 20 && !NOT_OURS.iter().any(|name| asked.contains(*name)), "{asked:?}");
    let missing = |text: &str| -> Vec<String> {
        let there: BTreeSet<_> =
            text.lines().filter(|l| !l.starts_with('#')).filter_map(|l| l.split(['{', ' ']).next()).collect();
        asked.iter().filter(|name| !there.contains(name.as_str())).cloned().collect()
    };
    // After the first sweep over the instances; the rest comes within the next.
    let first =
        until("the instances' metrics", SOON, || metrics(&mesh, 0).filter(|text| text.contains("redis_up{")));
    let awaited = format!("metrics that rules and dashboard ask for, {:?} among them", missing(&first));
    let text = until(&awaited, SOON, || metrics(&mesh, 0).filter(|text| missing(text).is_empty()));

    if let Some(promtool) = tools::find("promtool") {
        let mut child = Command::new(promtool)
            .args(["check", "metrics"])
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .stderr(Stdio::piped())
            .spawn()
            .expect("run promtool");
        child.stdin.take().expect("piped").write_all(text.as_bytes()).expect("write to promtool");
        let output = child.wait_with_output().expect("wait for promtool");
        let words = String::from_utf8_lossy(&output.stderr).into_owned();
        // Names that are redis_exporter's are not ours to choose.
        let ours: Vec<_> = words.lines().filter(|line| line.starts_with("redmesh_")).collect();
        assert!(ours.is_empty() && !words.contains("error while linting"), "{words}");
    }

    let targets = http::get(&format!("{}:7380", mesh.ip(1)), "/sd/targets").expect("the list of targets");
    let targets: Value = serde_json::from_str(&targets).expect("JSON");
    assert_eq!(targets.as_array().map(Vec::len), Some(3), "{targets}");

    // Loopback addresses are this test's hosts, so they are named.
    let Some(prometheus) = tools::find("prometheus") else { return };
    let from: Vec<_> = (0..2).map(|host| format!("{}:7380", mesh.ip(host))).collect();
    let rules = tools::repository().join("deploy/prometheus/rules.yml");
    let config = mesh.ok_at(
        0,
        &["deploy", "prometheus", "--from", &from.join(","), "--rules", rules.to_str().expect("UTF-8")],
    );
    let file = mesh.dir().join("prometheus.yml");
    fs::write(&file, config.replace("scrape_interval: 10s", "scrape_interval: 1s")).expect("write");
    let listen = format!("{}:9090", mesh.ip(0));
    let log = fs::File::create(mesh.dir().join("prometheus.log")).expect("make a log");
    let _prometheus = Prometheus(
        Command::new(prometheus)
            .arg(format!("--config.file={}", file.display()))
            .arg(format!("--storage.tsdb.path={}", mesh.dir().join("tsdb").display()))
            .arg(format!("--web.listen-address={listen}"))
            .stdin(Stdio::null())
            .stdout(Stdio::null())
            .stderr(log)
            .spawn()
            .expect("run prometheus"),
    );
    let hosts = until("Prometheus to have scraped all hosts", SOON, || {
        let answer = http::get(&listen, "/api/v1/query?query=up%7Bjob%3D%22redmesh%22%7D%3D%3D1")?;
        let answer: Value = serde_json::from_str(&answer).ok()?;
        let found = answer["data"]["result"].as_array()?.iter();
        let hosts: Vec<_> =
            found.filter_map(|one| one["metric"]["host"].as_str().map(str::to_owned)).collect();
        (hosts.len() >= 3).then_some(hosts)
    });
    let different: BTreeSet<_> = hosts.iter().collect();
    assert_eq!(
        (hosts.len(), different.len()),
        (3, 3),
        "each host once, though two agents list it: {hosts:?}"
    );
    until("a recorded series", SOON, || {
        let answer = http::get(&listen, "/api/v1/query?query=redmesh:disk_free:ratio")?;
        let answer: Value = serde_json::from_str(&answer).ok()?;
        (answer["data"]["result"].as_array()?.len() == 6).then_some(())
    });
}
