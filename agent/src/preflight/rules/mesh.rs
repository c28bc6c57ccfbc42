//! Checks of the hosts beside each other: who is there, versions, clocks.

use std::collections::BTreeMap;

use redmesh_api::preflight::{Check, Severity};

use super::{Case, ClockOffset, Findings, HostSeen, Verdict, version_of};

/// Clocks that differ by more make a run's hosts begin apart: it begins this long after its
/// commit, by each host's own clock. Milliseconds.
const CLOCK_SKEW_MS_MAX: u64 = 500;

pub(super) fn hosts(case: &Case<'_>, findings: &mut Findings) {
    let question = case.question;
    for silent in &question.silent {
        let verdict = Verdict::ok("not heard of", "alive");
        let start = "systemctl restart redmesh-agent (on that host)";
        let verdict = match silent.planned {
            true => verdict.but(Severity::Fail, "the plan has instances on it", start),
            false => verdict.but(Severity::Warn, "a cluster is formed without it", start),
        };
        findings.add(Check::Hosts, &[&silent.name], verdict);
    }
    for host in &question.hosts {
        if let Err(reason) = &host.read {
            let verdict = Verdict::ok("no answer", "answers").but(
                Severity::Fail,
                format!("it could not be examined: {reason}"),
                "systemctl restart redmesh-agent (on that host)",
            );
            findings.add(Check::Hosts, &[&host.name], verdict);
        }
    }
    let alive = question.hosts.len();
    // Hosts that are left out on purpose are not missing.
    let left_out = question.spec.instances_of.values().filter(|instances| **instances == 0).count();
    let expect = usize::from(question.bootstrap_expect).saturating_sub(left_out);
    let verdict = Verdict::ok(format!("{alive} alive"), format!("at least {expect}"));
    let verdict = match alive < expect {
        true => verdict.but(
            Severity::Fail,
            "fewer hosts are here to bear instances than mesh.bootstrap_expect names",
            "systemctl start redmesh-agent (on the others)",
        ),
        false => verdict,
    };
    findings.add(Check::Hosts, &[], verdict);
}

pub(super) fn agent_versions(case: &Case<'_>, findings: &mut Findings) {
    let versions = case.question.hosts.iter().map(|host| (host.version.clone(), host));
    let remedy = "install one version of redmesh-agent, then: systemctl restart redmesh-agent (instances that are \
                  left running go on)";
    one_version(Check::AgentVersions, "agents", versions, remedy, findings);
}

pub(super) fn server_versions(case: &Case<'_>, findings: &mut Findings) {
    if !case.starts_servers() {
        return;
    }
    let known = case.answered().filter_map(|(host, read)| Some((version_of(read)?.to_string(), host)));
    let remedy = "apt-get install --only-upgrade redis-server (on the hosts that are behind)";
    one_version(Check::ServerVersions, "redis-servers", known, remedy, findings);
}

/// Servers with TLS and servers without can't be nodes of one cluster, nor can agents ask
/// those of the other kind.
pub(super) fn redis_tls(case: &Case<'_>, findings: &mut Findings) {
    let hosts = |tls| {
        let those = case.question.hosts.iter().filter(move |host| host.redis_tls == tls);
        those.map(|host| host.name.as_str()).collect::<Vec<_>>()
    };
    let (on, off) = (hosts(true), hosts(false));
    let differ = !on.is_empty() && !off.is_empty();
    for (value, hosts) in [("on", on), ("off", off)] {
        if hosts.is_empty() {
            continue;
        }
        let verdict = Verdict::ok(value, "the same on all hosts");
        let verdict = match differ {
            true => verdict.but(
                Severity::Fail,
                "redis.tls differs: servers with TLS and without can't be nodes of one cluster",
                "set redis.tls alike in /etc/redmesh/agent.toml of all hosts, then: systemctl restart redmesh-agent",
            ),
            false => verdict,
        };
        findings.add(Check::RedisTls, &hosts, verdict);
    }
}

fn one_version<'a>(
    check: Check,
    what: &str,
    versions: impl Iterator<Item = (String, &'a HostSeen)>,
    remedy: &str,
    findings: &mut Findings,
) {
    let mut by_version: BTreeMap<String, Vec<&str>> = BTreeMap::new();
    for (version, host) in versions {
        by_version.entry(version).or_default().push(&host.name);
    }
    let several = by_version.len() > 1;
    for (version, hosts) in by_version {
        let verdict = Verdict::ok(version, "one version");
        let verdict = match several {
            true => verdict.but(
                Severity::Warn,
                format!("{what} of different versions: they may not understand each other in everything"),
                remedy,
            ),
            false => verdict,
        };
        findings.add(check, &hosts, verdict);
    }
}

/// The median is taken for right: who asked may be the one that is wrong.
pub(super) fn clocks(case: &Case<'_>, findings: &mut Findings) {
    let threshold = format!("at most {CLOCK_SKEW_MS_MAX} ms");
    let known: Vec<(&HostSeen, ClockOffset)> =
        case.question.hosts.iter().filter_map(|host| Some((host, host.clock?))).collect();
    let mut offsets: Vec<i64> = known.iter().map(|(_, clock)| clock.offset_ms).collect();
    offsets.sort_unstable();
    let Some(&median) = offsets.get(offsets.len().saturating_sub(1) / 2) else {
        return findings.add(Check::ClockSkew, &[], Verdict::unknown(threshold));
    };
    let mut worst = (0, 0);
    for (host, clock) in &known {
        let off = clock.offset_ms.abs_diff(median);
        worst = worst.max((off, clock.error_ms));
        if off.saturating_sub(clock.error_ms) > CLOCK_SKEW_MS_MAX {
            let way = if clock.offset_ms > median { "ahead" } else { "behind" };
            let figure = format!("{off} ms {way} (± {} ms)", clock.error_ms);
            let verdict = Verdict::ok(figure, &threshold).but(
                Severity::Warn,
                "its clock differs from the others': hosts begin a run by their own clocks, and certificates are \
                 valid by them",
                "timedatectl set-ntp true (or: chronyc makestep)",
            );
            findings.add(Check::ClockSkew, &[&host.name], verdict);
        }
    }
    let (off, error) = worst;
    if off.saturating_sub(error) <= CLOCK_SKEW_MS_MAX {
        findings.add(Check::ClockSkew, &[], Verdict::ok(format!("{off} ms (± {error} ms)"), threshold));
    }
}
