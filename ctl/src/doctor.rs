//! `doctor`: could these hosts bear that cluster? Every check beside its threshold, hosts
//! with the same figure in one row, and what mends the rest.

use clap::Args;
use redmesh_api::level::ClusterSpec;
use redmesh_api::limits::INSTANCES_PER_HOST_MAX;
use redmesh_api::preflight::{Finding, Report, Severity};

use crate::cluster::REPLICAS_MAX;
use crate::exit::Exit;
use crate::members::{table, table_text};
use crate::output::Output;
use crate::session::Session;
use crate::units::thousands;

/// Instances per host that are examined for where there is no cluster and none is asked
/// for: what redmesh is made for.
const PER_HOST_DEFAULT: u16 = 100;

/// Hosts that one row names.
const NAMED_MAX: usize = 4;

/// `doctor …`
#[derive(Debug, Args)]
#[command(after_help = "\
Without options it examines for the cluster that is there, else for 100 instances per host.
The exit code is 1 if a check fails: `cluster create` would be refused.

Examples:
  redmeshctl doctor
  redmeshctl doctor --instances-per-host 6 --replicas 1
  redmeshctl doctor --instances-per-host 100 --node-timeout 5000 -o json")]
pub struct DoctorArgs {
    /// redis-servers on each host
    #[arg(long, value_name = "N",
          value_parser = clap::value_parser!(u16).range(1..=i64::from(INSTANCES_PER_HOST_MAX)))]
    instances_per_host: Option<u16>,
    /// Replicas of each primary
    #[arg(long, value_name = "R", value_parser = clap::value_parser!(u8).range(0..=REPLICAS_MAX))]
    replicas: Option<u8>,
    /// cluster-node-timeout in milliseconds [default: what suits the size and the machines]
    #[arg(long, value_name = "MS", value_parser = clap::value_parser!(u32).range(100..=600_000))]
    node_timeout: Option<u32>,
}

impl DoctorArgs {
    /// The cluster that there is, with what the options change.
    fn spec(&self, planned: Option<ClusterSpec>) -> ClusterSpec {
        let base =
            planned.unwrap_or(ClusterSpec { instances_per_host: PER_HOST_DEFAULT, ..ClusterSpec::default() });
        ClusterSpec {
            instances_per_host: self.instances_per_host.unwrap_or(base.instances_per_host),
            replicas: self.replicas.unwrap_or(base.replicas),
            node_timeout_ms: self.node_timeout.or(base.node_timeout_ms),
            ..base
        }
    }
}

/// The command.
pub async fn run(args: DoctorArgs, session: &mut Session, output: &Output) -> anyhow::Result<Exit> {
    let planned = session.cluster_status().await?.plan.map(|plan| plan.spec);
    let report = session.doctor(args.spec(planned)).await?;
    output.answer(&report, || render(&report))?;
    Ok(Exit::ok_if(report.of(Severity::Fail).next().is_none()))
}

fn render(report: &Report) -> String {
    let mut text = format!(
        "examined for {} instances on {} hosts ({}), cluster-node-timeout {} ms\n",
        thousands(report.instances.into()),
        report.hosts.len(),
        match report.machines {
            1 => "one machine".to_owned(),
            machines => format!("{machines} machines"),
        },
        thousands(report.node_timeout_ms.into())
    );
    let mut rows = table(&["CHECK", "STATE", "FIGURE", "SHOULD BE", "HOSTS"]);
    for finding in &report.findings {
        let hosts = whom(finding, report);
        let state = state(finding.severity).to_owned();
        rows.add_row([
            finding.check.to_string(),
            state,
            finding.figure.clone(),
            finding.threshold.clone(),
            hosts,
        ]);
    }
    text.push_str(&table_text(&rows));
    for severity in [Severity::Fail, Severity::Warn] {
        for finding in report.of(severity) {
            text.push_str(&explain(finding, &whom(finding, report)));
        }
    }
    let (fail, warn) = (report.of(Severity::Fail).count(), report.of(Severity::Warn).count());
    text.push_str(&match (fail, warn) {
        (0, 0) => "Nothing stands in the way.\n".to_owned(),
        (0, warn) => format!("Nothing stands in the way; {warn} to be warned of.\n"),
        (fail, warn) => format!("{fail} would keep it from working; {warn} to be warned of.\n"),
    });
    text
}

/// A finding that isn't as it should be, with what mends it.
pub fn explain(finding: &Finding, hosts: &str) -> String {
    let tag = match finding.severity {
        Severity::Fail => "[ERR]",
        Severity::Warn | Severity::Ok => "[WARNING]",
    };
    let remedy = finding.remedy.as_ref().map(|remedy| format!("\n    mend it: {remedy}")).unwrap_or_default();
    let hosts = if hosts.is_empty() { String::new() } else { format!(" ({hosts})") };
    format!(
        "{tag} {}{hosts}: {}, should be {}: {}{remedy}\n",
        finding.check, finding.figure, finding.threshold, finding.words
    )
}

/// Hosts by name, bounded.
pub fn named(hosts: &[String]) -> String {
    match hosts.len() {
        all if all > NAMED_MAX => {
            format!("{} and {} more", hosts[..NAMED_MAX - 1].join(", "), all - NAMED_MAX + 1)
        }
        _ => hosts.join(", "),
    }
}

fn whom(finding: &Finding, report: &Report) -> String {
    let all = report.hosts.len();
    match finding.hosts.len() {
        0 => "the mesh".to_owned(),
        n if n == all && all > 1 => format!("all {all}"),
        _ => named(&finding.hosts),
    }
}

fn state(severity: Severity) -> &'static str {
    match severity {
        Severity::Ok => "ok",
        Severity::Warn => "warn",
        Severity::Fail => "FAIL",
    }
}

#[cfg(test)]
mod tests {
    use redmesh_api::preflight::Check;

    use super::*;

    fn finding(check: Check, severity: Severity, hosts: std::ops::RangeInclusive<u16>) -> Finding {
        Finding {
            check,
            hosts: hosts.map(|n| format!("host-{n}")).collect(),
            severity,
            figure: "128".to_owned(),
            threshold: "at least 29".to_owned(),
            words: if severity == Severity::Ok { String::new() } else { "too few".to_owned() },
            remedy: (severity != Severity::Ok).then(|| "sysctl -w a=1".to_owned()),
        }
    }

    fn report(findings: Vec<Finding>) -> Report {
        Report {
            spec: ClusterSpec::default(),
            instances: 1000,
            hosts: (1..=10).map(|n| format!("host-{n}")).collect(),
            machines: 1,
            node_timeout_ms: 60_000,
            hz: 10,
            findings,
        }
    }

    #[test]
    fn rows_are_by_check_and_remedies_follow() {
        let text = render(&report(vec![
            finding(Check::Ports, Severity::Fail, 2..=2),
            finding(Check::Ports, Severity::Ok, 3..=10),
            finding(Check::Somaxconn, Severity::Warn, 1..=10),
        ]));
        let lines: Vec<String> =
            text.lines().map(|line| line.split_whitespace().collect::<Vec<_>>().join(" ")).collect();
        assert_eq!(
            lines,
            [
                "examined for 1,000 instances on 10 hosts (one machine), cluster-node-timeout 60,000 ms",
                "CHECK STATE FIGURE SHOULD BE HOSTS",
                "ports FAIL 128 at least 29 host-2",
                "ports ok 128 at least 29 host-3, host-4, host-5 and 5 more",
                "somaxconn warn 128 at least 29 all 10",
                "[ERR] ports (host-2): 128, should be at least 29: too few",
                "mend it: sysctl -w a=1",
                "[WARNING] somaxconn (all 10): 128, should be at least 29: too few",
                "mend it: sysctl -w a=1",
                "1 would keep it from working; 1 to be warned of.",
            ]
        );
        let fine = render(&report(vec![finding(Check::Disk, Severity::Ok, 1..=1)]));
        assert!(fine.ends_with("Nothing stands in the way.\n"), "{fine}");
    }

    #[test]
    fn options_change_the_cluster_that_is_there() {
        let args = |per_host, replicas, node_timeout| DoctorArgs {
            instances_per_host: per_host,
            replicas,
            node_timeout,
        };
        assert_eq!(args(None, None, None).spec(None).instances_per_host, PER_HOST_DEFAULT);
        let there = ClusterSpec {
            instances_per_host: 6,
            replicas: 1,
            node_timeout_ms: Some(7000),
            instances_of: [("host-1".to_owned(), 2)].into(),
            ..ClusterSpec::default()
        };
        assert_eq!(args(None, None, None).spec(Some(there.clone())), there);
        let changed = args(Some(8), Some(0), Some(9000)).spec(Some(there.clone()));
        let wanted = ClusterSpec { instances_per_host: 8, replicas: 0, node_timeout_ms: Some(9000), ..there };
        assert_eq!(changed, wanted);
    }
}
