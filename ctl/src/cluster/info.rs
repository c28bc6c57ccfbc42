//! `cluster info`: hosts, instances, slots and keys.

use redmesh_api::control::{ClusterCheck, ClusterStatus};
use redmesh_api::level::{ClusterPlan, PlanStage, SlotRange};
use serde::Serialize;

use super::{check, phases};
use crate::exit::Exit;
use crate::members::{table, table_text};
use crate::output::Output;
use crate::session::Session;
use crate::units::{seconds, thousands};

/// The JSON answer.
#[derive(Debug, Serialize)]
struct Info {
    /// The plan and how far it is.
    status: ClusterStatus,
    /// What the instances say; `None` while there is no plan.
    check: Option<ClusterCheck>,
}

/// The command. Without a cluster the exit code is 1.
pub async fn run(session: &mut Session, output: &Output) -> anyhow::Result<Exit> {
    let status = session.cluster_status().await?;
    let check = match status.plan {
        Some(_) => Some(session.cluster_check().await?),
        None => None,
    };
    let info = Info { status, check };
    output.answer(&info, || render(&info))?;
    Ok(Exit::ok_if(info.status.plan.is_some()))
}

fn render(info: &Info) -> String {
    let (Some(plan), Some(check)) = (&info.status.plan, &info.check) else {
        return "There is no cluster yet: `redmeshctl cluster create` forms one.\n".to_owned();
    };
    let mut text = format!("{}\n", headline(plan, info.status.since_ms));
    let mut rows = table(&["HOST", "ADDRESS", "PORTS", "UP", "PRIMARIES", "REPLICAS", "SLOTS", "KEYS"]);
    for host in &plan.hosts {
        let planned = plan.instances_of(host.id).count();
        let up: Vec<_> = check.instances.iter().filter(|i| i.host == host.id && i.up).collect();
        let primaries = || up.iter().filter(|instance| instance.primary);
        let slots: usize = primaries().flat_map(|i| &i.slots).map(|range: &SlotRange| range.len()).sum();
        let keys: u64 = primaries().map(|instance| instance.keys).sum();
        rows.add_row([
            host.name.clone(),
            host.ip.to_string(),
            format!("{}-{}", host.base_port, usize::from(host.base_port) + planned.max(1) - 1),
            format!("{}/{planned}", up.len()),
            primaries().count().to_string(),
            (up.len() - primaries().count()).to_string(),
            thousands(slots as u64),
            thousands(keys),
        ]);
    }
    text.push_str(&table_text(&rows));
    text.push_str(&check::render_keys(check));
    text.push_str(&phases::render(&phases::of_plan(plan), plan));
    if let Some(overdue) = &info.status.overdue {
        text.push_str(&format!("[WARNING] overdue: {overdue}\n"));
    }
    for host in &info.status.hosts {
        for problem in &host.problems {
            text.push_str(&format!("[WARNING] {}: {problem}\n", host.name));
        }
    }
    text
}

fn headline(plan: &ClusterPlan, since_ms: u64) -> String {
    let since = seconds(since_ms as f64 / 1e3);
    let stage = match plan.stage {
        PlanStage::Prepare => format!("being prepared for {since}"),
        PlanStage::Release => format!("joining for {since}"),
        PlanStage::Replicate => format!("setting up replicas for {since}"),
        PlanStage::Formed => format!("formed in {since}"),
    };
    format!(
        "cluster of {} nodes ({} primaries) on {} hosts, {stage}; cluster-node-timeout {} ms",
        plan.instances.len(),
        plan.primaries(),
        plan.hosts.len(),
        plan.node_timeout_ms
    )
}
