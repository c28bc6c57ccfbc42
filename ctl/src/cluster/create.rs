//! `cluster create`: hand the wish over, show the plan, watch it being carried out.

use std::fmt::Write as _;
use std::time::{Duration, Instant};

use redmesh_api::control::{self, ClusterCheck, ClusterCreate, ClusterStatus, HostProgress};
use redmesh_api::level::{ClusterPlan, ClusterSpec, PlanStage, PlannedRole};
use redmesh_api::preflight::{Check, Finding};
use serde::Serialize;

use super::check;
use super::phases::{self, Phase};
use crate::doctor;
use crate::exit::Exit;
use crate::output::Output;
use crate::progress::Progress;
use crate::session::{Patience, Session, SessionError};
use crate::units::seconds;

/// Pause between two looks at the formation.
const POLL_EVERY: Duration = Duration::from_millis(200);

/// Checks after a formation before what they find is the verdict.
const CHECK_TRIES: u32 = 10;

/// Pause between two of them.
const CHECK_PAUSE: Duration = Duration::from_millis(300);

/// Lines of a plan's listing that are printed; more instances are summed up.
const PLAN_LINES_MAX: usize = 10;

/// Hosts and problems that a message names.
const NAMED_MAX: usize = 10;

/// What is to be created, and how long to watch.
#[derive(Debug)]
pub struct CreateOptions {
    /// The wish.
    pub spec: ClusterSpec,
    /// Checks of the preflight that may fail.
    pub force: Vec<Check>,
    /// How long to wait until it is formed.
    pub deadline: Duration,
    /// Whether to wait at all.
    pub wait: bool,
}

/// What became of it: the JSON answer of `cluster create`.
#[derive(Debug, Serialize)]
pub struct Created {
    /// Nodes of the cluster.
    pub nodes: usize,
    /// Of these, primaries.
    pub primaries: usize,
    /// Hosts that bear them.
    pub hosts: usize,
    /// False when the same plan was there before.
    pub fresh: bool,
    /// Of a fresh plan: what the preflight warned of, and failures that were overridden.
    pub warnings: Vec<Finding>,
    /// Whether all instances have agreed.
    pub formed: bool,
    /// From the request until it was formed, seconds, by this process' clock.
    pub seconds: f64,
    /// Its phases, in their order; empty if not waited for.
    pub phases: Vec<Phase>,
    /// What every instance said at the end; `None` if not waited for.
    pub check: Option<ClusterCheck>,
    /// What should be known of it: why it is formed as it is.
    pub notes: Vec<String>,
    /// Whom it waited for when the deadline passed.
    pub awaited: Vec<String>,
    /// The plan.
    pub plan: ClusterPlan,
}

impl Created {
    /// Whether it is all that was asked for.
    pub fn is_whole(&self) -> bool {
        self.formed && self.check.as_ref().is_some_and(check::is_whole)
    }
}

/// The command.
pub async fn run(options: CreateOptions, session: &mut Session, output: &Output) -> anyhow::Result<Exit> {
    let wait = options.wait;
    let created = create(options, session, output).await?;
    output.answer(&created, String::new)?;
    Ok(Exit::ok_if(!wait || created.is_whole()))
}

/// Creates and, if asked to, waits; says the plan and the check on `output`.
pub async fn create(
    options: CreateOptions,
    session: &mut Session,
    output: &Output,
) -> anyhow::Result<Created> {
    let began = Instant::now();
    let wish = ClusterCreate { spec: options.spec, force: options.force };
    let control::Created { plan, fresh, warnings, notes } = session.cluster_create(wish).await?;
    let request = Phase { name: "request", seconds: began.elapsed().as_secs_f64() };
    for warning in &warnings {
        output.text(&doctor::explain(warning, &doctor::named(&warning.hosts)))?;
    }
    output.text(&render_plan(&plan, fresh))?;
    notes.iter().try_for_each(|note| output.text(&format!("note: {note}\n")))?;
    let mut created = Created {
        nodes: plan.instances.len(),
        primaries: plan.primaries(),
        hosts: plan.hosts.len(),
        fresh,
        warnings,
        formed: plan.stage == PlanStage::Formed,
        seconds: 0.0,
        phases: Vec::new(),
        check: None,
        notes,
        awaited: Vec::new(),
        plan,
    };
    if !options.wait {
        output.text("The hosts carry it out; `redmeshctl cluster info` shows how far they are.\n")?;
        created.seconds = began.elapsed().as_secs_f64();
        return Ok(created);
    }
    if !created.formed {
        output.text(">>> Waiting for the cluster to join\n")?;
        let (status, formed) = watch(session, began + options.deadline).await?;
        created.formed = formed;
        if let Some(plan) = status.plan {
            created.plan = plan;
        }
        if !formed {
            created.awaited = awaited(&status.hosts);
            let mut text = format!(
                "[ERR] The cluster has not formed within {}. Still awaited:\n",
                seconds(options.deadline.as_secs_f64())
            );
            created.awaited.iter().for_each(|line| writeln!(text, "  {line}").expect("a String takes all"));
            text.push_str("The hosts go on with it; the same command again continues and waits once more.\n");
            // Whoever asked for JSON finds the same in `awaited`.
            match output.is_json() {
                true => crate::output::note(text.trim_end()),
                false => output.text(&text)?,
            }
        }
    }
    created.seconds = began.elapsed().as_secs_f64();
    if created.formed {
        let check_began = Instant::now();
        let check = settled_check(session).await?;
        let checked = Phase { name: "check", seconds: check_began.elapsed().as_secs_f64() };
        output.text(&check::render_verdict(&check, created.nodes))?;
        created.check = Some(check);
        created.phases = phases::of_plan(&created.plan);
        // Of one that was there before, this request was no part.
        if created.fresh {
            created.phases.insert(0, request);
        }
        created.phases.push(checked);
        output.text(&phases::render(&created.phases, &created.plan))?;
    }
    Ok(created)
}

/// The check of a cluster just formed: each instance has agreed once, and the last
/// messages about epochs may still be on their way.
async fn settled_check(session: &mut Session) -> Result<ClusterCheck, SessionError> {
    for _ in 1..CHECK_TRIES {
        let check = session.cluster_check().await?;
        if check::is_whole(&check) {
            return Ok(check);
        }
        tokio::time::sleep(CHECK_PAUSE).await;
    }
    session.cluster_check().await
}

/// Looks at it until it is formed (true) or `until` has passed (false).
async fn watch(session: &mut Session, until: Instant) -> anyhow::Result<(ClusterStatus, bool)> {
    let mut progress = Progress::new("forming");
    let mut patience = Patience::default();
    let mut last = None;
    loop {
        if let Some(status) = patience.bear(session.cluster_status().await)? {
            let stage = status.plan.as_ref().map(|plan| plan.stage);
            let view = Forming::of(stage, &status.hosts);
            progress.update(view.done, view.total, &view.text);
            if stage == Some(PlanStage::Formed) {
                return Ok((status, true));
            }
            last = Some(status);
        }
        if Instant::now() >= until {
            // Without a single look at it there is an error to tell, not a state.
            let status = match last {
                Some(status) => status,
                None => session.cluster_status().await?,
            };
            return Ok((status, false));
        }
        tokio::time::sleep(POLL_EVERY).await;
    }
}

/// How a formation stands, for the progress bar.
#[derive(Debug, PartialEq, Eq)]
struct Forming {
    done: u64,
    total: u64,
    text: String,
}

impl Forming {
    fn of(stage: Option<PlanStage>, hosts: &[HostProgress]) -> Self {
        let sum = |of: fn(&HostProgress) -> u32| hosts.iter().map(|host| u64::from(of(host))).sum::<u64>();
        let (planned, ready, agreed) = (sum(|h| h.planned), sum(HostProgress::ready), sum(|h| h.agreed));
        let hosts_ready = hosts.iter().filter(|host| host.planned == host.ready()).count();
        let mut text =
            format!("{hosts_ready}/{} hosts ready, {ready}/{planned} servers listening", hosts.len());
        if stage >= Some(PlanStage::Release) {
            let (held, up) = (sum(|h| h.held), sum(|h| h.up));
            let released = planned.saturating_sub(held);
            text = format!("{released}/{planned} servers released, {up} up, {agreed} agreed");
        }
        if stage == Some(PlanStage::Replicate) {
            text.push_str(" about replicas");
        }
        let behind: Vec<&HostProgress> = hosts.iter().filter(|host| !is_through(host, stage)).collect();
        if let [first, rest @ ..] = behind.as_slice()
            && behind.len() < hosts.len()
        {
            write!(text, "; waiting for {}", first.name).expect("a String takes all");
            if !rest.is_empty() {
                write!(text, " and {} more", rest.len()).expect("a String takes all");
            }
        }
        if let Some(problem) = hosts.iter().find_map(|host| host.problems.first()) {
            write!(text, " ({problem})").expect("a String takes all");
        }
        // Listening is the first half of the way, agreeing the second.
        Self { done: ready + agreed, total: planned * 2, text }
    }
}

fn is_through(host: &HostProgress, stage: Option<PlanStage>) -> bool {
    match stage {
        Some(PlanStage::Release | PlanStage::Replicate | PlanStage::Formed) => host.agreed == host.planned,
        Some(PlanStage::Prepare) | None => host.ready() == host.planned,
    }
}

/// Whom a formation waits for and why, a line each.
fn awaited(hosts: &[HostProgress]) -> Vec<String> {
    let behind: Vec<&HostProgress> = hosts.iter().filter(|host| host.agreed < host.planned).collect();
    let mut lines = Vec::new();
    for host in behind.iter().take(NAMED_MAX) {
        let what = match (host.alive, host.stage) {
            (false, _) => "not heard of; is its agent running?".to_owned(),
            (true, None) => "has not seen the plan yet".to_owned(),
            (true, Some(_)) => {
                format!("{} of {} servers ready, {} agreed", host.ready(), host.planned, host.agreed)
            }
        };
        lines.push(format!("{}: {what}", host.name));
        lines.extend(host.problems.iter().take(NAMED_MAX).map(|problem| format!("{}: {problem}", host.name)));
    }
    if behind.len() > NAMED_MAX {
        lines.push(format!("and {} more hosts", behind.len() - NAMED_MAX));
    }
    lines
}

/// The plan in redis-cli's words, bounded.
fn render_plan(plan: &ClusterPlan, fresh: bool) -> String {
    let nodes = plan.instances.len();
    let mut text = String::new();
    if !fresh {
        let how =
            if plan.stage == PlanStage::Formed { "is formed already" } else { "is being formed: continuing" };
        text.push_str(&format!("The same cluster of {nodes} nodes {how}.\n"));
        return text;
    }
    text.push_str(&format!(">>> Performing hash slots allocation on {nodes} nodes...\n"));
    let primaries = plan.instances.iter().filter_map(|instance| match &instance.role {
        PlannedRole::Primary { slots, .. } => Some((plan.addr_of(instance), *slots)),
        PlannedRole::Replica { .. } => None,
    });
    let lines = primaries.enumerate().map(|(at, (addr, slots))| {
        format!("Primary[{at}] -> Slots {} - {}  {addr}", slots.first, slots.last)
    });
    push_bounded(&mut text, lines.collect(), "primaries");
    let lines = plan.instances.iter().filter_map(|instance| match instance.role {
        PlannedRole::Primary { .. } => None,
        PlannedRole::Replica { primary } => {
            let primary = plan.instances.get(primary as usize)?;
            Some(format!("Adding replica {} to {}", plan.addr_of(instance), plan.addr_of(primary)))
        }
    });
    push_bounded(&mut text, lines.collect(), "replicas");
    push_bounded(&mut text, sums_by_host(plan), "hosts");
    text.push_str(&format!(
        "{nodes} nodes on {} hosts: {} primaries, {} replicas; cluster-node-timeout {} ms\n",
        plan.hosts.len(),
        plan.primaries(),
        nodes - plan.primaries(),
        plan.node_timeout_ms,
    ));
    text
}

/// What each host bears, a line each, where that differs; nothing where all are alike.
fn sums_by_host(plan: &ClusterPlan) -> Vec<String> {
    let mut sums = vec![(0, 0); plan.hosts.len()];
    for instance in &plan.instances {
        let (instances, primaries) = &mut sums[usize::from(instance.host)];
        *instances += 1;
        *primaries += usize::from(matches!(instance.role, PlannedRole::Primary { .. }));
    }
    if sums.windows(2).all(|pair| pair[0].0 == pair[1].0) {
        return Vec::new();
    }
    let lines = plan.hosts.iter().zip(sums).map(|(host, (instances, primaries))| {
        format!("{}: {instances} nodes, {primaries} primaries, {} replicas", host.name, instances - primaries)
    });
    lines.collect()
}

fn push_bounded(text: &mut String, lines: Vec<String>, what: &str) {
    let shown = if lines.len() > PLAN_LINES_MAX { PLAN_LINES_MAX - 2 } else { lines.len() };
    for line in &lines[..shown] {
        text.push_str(line);
        text.push('\n');
    }
    if let Some(last) = lines.last().filter(|_| shown < lines.len()) {
        text.push_str(&format!("... {} more {what} ...\n{last}\n", lines.len() - shown - 1));
    }
}

#[cfg(test)]
mod tests;
