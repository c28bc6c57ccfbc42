//! The preflight: all hosts' readings asked for, and a create refused that can't work.
//!
//! Any agent can examine: it changes nothing, and needs no coordinator. What is judged is
//! in `preflight::rules`.

use std::time::{Duration, Instant};

use redmesh_api::control::{ControlReply, RefusalKind};
use redmesh_api::level::{ClusterPlan, ClusterSpec, Level};
use redmesh_api::limits::INSTANCES_PER_HOST_MAX;
use redmesh_api::preflight::{Check, Finding, Report, Severity};

use super::{Answer, Control, natural, refuse};
use crate::census::CensusHost;
use crate::peer::{self, PeerReply, PeerRequest};
use crate::preflight::rules::Silent;
use crate::preflight::{ClockOffset, HostSeen, Question, Readings, examine};

/// For a host to read itself: it looks at each of its ports, and asks its server's binary.
const READ_DEADLINE: Duration = Duration::from_secs(15);

/// Times that a host is asked what time it is; the quickest answer is the most exact.
const CLOCK_TRIES: usize = 4;

/// Hosts that a refusal names for each finding.
const NAMED_MAX: usize = 5;

impl Control {
    /// Answers `redmeshctl doctor`.
    pub(super) async fn doctor(&self, spec: ClusterSpec) -> Answer {
        match per_host_problem(&spec) {
            Some(reason) => refuse(RefusalKind::Invalid, reason),
            None => Ok(ControlReply::Doctor(Box::new(self.examine(&self.census.level(), &spec).await))),
        }
    }

    /// What all hosts that would bear `spec` say of themselves, held against it.
    pub(super) async fn examine(&self, level: &Level, spec: &ClusterSpec) -> Report {
        let known = self.census.hosts();
        let plan = level.plan.as_ref();
        let is_planned = |host: &CensusHost| {
            plan.is_some_and(|plan| plan.hosts.iter().any(|planned| planned.id == host.id))
        };
        let mut alive = Vec::new();
        let mut silent = Vec::new();
        for host in known.values() {
            match &host.facts {
                // Left out by the wish.
                Some(facts) if spec.instances_on(&facts.name) == 0 => {}
                Some(_) if host.alive => alive.push(host),
                _ => silent.push(Silent { name: host.name(), planned: is_planned(host) }),
            }
        }
        let gone = plan.iter().flat_map(|plan| &plan.hosts).filter(|host| !known.contains_key(&host.id));
        silent.extend(gone.map(|host| Silent { name: host.name.clone(), planned: true }));
        silent.sort_by_cached_key(|host| natural(&host.name));
        alive.sort_by_cached_key(|host| natural(&host.name()));
        let seen = alive.into_iter().map(|host| self.look_at(host, spec, plan));
        let question = Question {
            spec,
            planned_timeout_ms: plan.filter(|plan| plan.spec == *spec).map(|plan| plan.node_timeout_ms),
            bootstrap_expect: self.census.bootstrap_expect,
            hosts: futures_util::future::join_all(seen).await,
            silent,
        };
        examine(&question)
    }

    async fn look_at(&self, host: &CensusHost, spec: &ClusterSpec, plan: Option<&ClusterPlan>) -> HostSeen {
        // First, and alone: what comes after keeps hosts busy, and clocks would seem apart.
        let clock = self.clock_of(host).await;
        let (version, base_port, redis_tls) = match &host.facts {
            Some(facts) => (facts.version.clone(), facts.base_port, facts.redis_tls),
            None => Default::default(),
        };
        let read = self.read_of(host, spec, plan).await;
        HostSeen { name: host.name(), version, base_port, redis_tls, read, clock }
    }

    async fn clock_of(&self, host: &CensusHost) -> Option<ClockOffset> {
        let mut best: Option<ClockOffset> = None;
        for _ in 0..CLOCK_TRIES {
            let (asked_ms, asked) = (self.census.clock.now_unix_ms(), Instant::now());
            let answer = peer::ask(&*self.transport, host.addr, &PeerRequest::Clock, peer::QUICK_DEADLINE);
            let Ok(PeerReply::Clock { unix_ms }) = answer.await else { break };
            let round_trip_ms =
                u64::try_from(asked.elapsed().as_millis()).unwrap_or(u64::MAX).saturating_add(1);
            let offset = ClockOffset::of(asked_ms, round_trip_ms, unix_ms);
            if best.is_none_or(|best| offset.error_ms < best.error_ms) {
                best = Some(offset);
            }
        }
        best
    }

    async fn read_of(
        &self,
        host: &CensusHost,
        spec: &ClusterSpec,
        plan: Option<&ClusterPlan>,
    ) -> Result<Readings, String> {
        let request = PeerRequest::Preflight { spec: spec.clone(), plan: plan.map(|plan| plan.id) };
        let answer = peer::ask(&*self.transport, host.addr, &request, READ_DEADLINE).await;
        match answer.map_err(|error| crate::error_chain(&error))? {
            PeerReply::Readings(readings) => Ok(*readings),
            PeerReply::Refused(refusal) => Err(refusal.message),
            other => Err(format!("answered {other:?}")),
        }
    }
}

/// Why no cluster can have so many instances on a host.
pub(super) fn per_host_problem(spec: &ClusterSpec) -> Option<String> {
    let got = spec.instances_per_host;
    let fits = (1..=INSTANCES_PER_HOST_MAX).contains(&got);
    (!fits).then(|| format!("instances per host = {got}: must be 1 to {INSTANCES_PER_HOST_MAX}"))
}

/// What a create goes on with in spite of: warnings, and failures of the checks in `force`.
///
/// # Errors
/// Every other failure in words, each with its remedy and the option that overrides it.
pub(super) fn pass(report: Report, force: &[Check]) -> Result<Vec<Finding>, String> {
    let stops = |finding: &&Finding| finding.severity == Severity::Fail && !force.contains(&finding.check);
    let failing: Vec<&Finding> = report.findings.iter().filter(stops).collect();
    if failing.is_empty() {
        return Ok(report.findings.into_iter().filter(|finding| finding.severity > Severity::Ok).collect());
    }
    let mut text = format!(
        "the hosts can't bear {} instances as they are; nothing was changed. What fails:",
        report.instances
    );
    for finding in failing {
        let Finding { check, figure, threshold, words, .. } = finding;
        let hosts = match named(&finding.hosts) {
            hosts if hosts.is_empty() => hosts,
            hosts => format!(" ({hosts})"),
        };
        text += &format!("\n  {check}{hosts}: {figure}, should be {threshold}: {words}");
        if let Some(remedy) = &finding.remedy {
            text += &format!("\n    mend it: {remedy}");
        }
        text += &format!("\n    or go on all the same: --force {check}");
    }
    Err(text)
}

fn named(hosts: &[String]) -> String {
    match hosts.len() {
        all if all > NAMED_MAX => {
            format!("{} and {} more", hosts[..NAMED_MAX - 1].join(", "), all - NAMED_MAX + 1)
        }
        _ => hosts.join(", "),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn report(severities: &[(Check, Severity)]) -> Report {
        let finding = |&(check, severity): &(Check, Severity)| Finding {
            check,
            hosts: (1..=7).map(|n| format!("host-{n}")).collect(),
            severity,
            figure: "1".to_owned(),
            threshold: "2".to_owned(),
            words: "too few".to_owned(),
            remedy: Some("add one".to_owned()),
        };
        Report {
            spec: ClusterSpec::default(),
            instances: 30,
            hosts: Vec::new(),
            machines: 1,
            node_timeout_ms: 5000,
            hz: 10,
            findings: severities.iter().map(finding).collect(),
        }
    }

    #[test]
    fn failures_stop_it_by_name_unless_they_are_overridden() {
        let all = [
            (Check::Ports, Severity::Fail),
            (Check::Disk, Severity::Ok),
            (Check::Memory, Severity::Fail),
            (Check::Somaxconn, Severity::Warn),
        ];
        let checks = |findings: Vec<Finding>| -> Vec<Check> { findings.iter().map(|it| it.check).collect() };
        let words = pass(report(&all), &[Check::Ports]).expect_err("memory fails");
        assert_eq!(
            words,
            "the hosts can't bear 30 instances as they are; nothing was changed. What fails:\
             \n  memory (host-1, host-2, host-3, host-4 and 3 more): 1, should be 2: too few\
             \n    mend it: add one\
             \n    or go on all the same: --force memory"
        );
        let words = pass(report(&all), &[]).expect_err("both fail");
        assert!(words.contains("--force ports") && words.contains("--force memory"), "{words}");
        let gone_on = pass(report(&all), &[Check::Memory, Check::Ports]).map(checks);
        assert_eq!(gone_on, Ok(vec![Check::Ports, Check::Memory, Check::Somaxconn]));
        assert_eq!(pass(report(&all[3..]), &[]).map(checks), Ok(vec![Check::Somaxconn]));
    }
}
