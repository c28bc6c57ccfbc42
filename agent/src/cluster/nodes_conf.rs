//! A complete `nodes.conf` for one instance's first start.
//!
//! With every id, address, slot and config epoch in it from the beginning there is no
//! MEET and nothing to converge; servers only have to connect. The format is what the
//! server itself writes (`clusterGenNodeDescription` and `clusterLoadConfig` of
//! Redis's `cluster.c`, `cluster_legacy.c` of Valkey):
//!
//! ```text
//! <id> <ip>:<port>@<bus port>[,<hostname>[,shard-id=<id>]] <flags> <primary|-> <ping> <pong> <epoch> <link> <slots>…
//! vars currentEpoch <n> lastVoteEpoch <n>
//! ```

use std::fmt::Write as _;

use redmesh_api::ids::NodeId;
use redmesh_api::level::{BUS_PORT_OFFSET, ClusterPlan, PlannedInstance, PlannedRole};

use super::version::NodesConfFormat;

/// Of a peer: when its last PONG came. A server that loads anything but 0 takes the moment of
/// loading. With 0 it finds the peer long silent as soon as a connection is begun and queues a
/// PING, besides the one that is sent when the connection is open: all peers get two.
const PONG_HEARD: u8 = 1;

/// A plan from which no file can be made.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum NodesConfError {
    /// The plan has no such node.
    #[error("plan {plan} has no node {node}")]
    UnknownNode {
        /// The plan.
        plan: redmesh_api::ids::PlanId,
        /// The node.
        node: NodeId,
    },
    /// A replica whose primary isn't one.
    #[error("plan {plan}: replica {node} follows instance number {primary}, which is no primary")]
    NoPrimary {
        /// The plan.
        plan: redmesh_api::ids::PlanId,
        /// The replica.
        node: NodeId,
        /// Index that it names.
        primary: u32,
    },
}

/// Renders the file for the instance `myself` of `plan`, in `format`.
pub fn render_nodes_conf(
    plan: &ClusterPlan,
    myself: NodeId,
    format: NodesConfFormat,
) -> Result<String, NodesConfError> {
    const LINE_BYTES: usize = 160;
    let mut text = String::with_capacity(LINE_BYTES * (plan.instances.len() + 1));
    let (mut found, mut epoch_max) = (false, 0);
    for instance in &plan.instances {
        let me = instance.node_id == myself;
        found |= me;
        epoch_max = epoch_max.max(push_line(&mut text, plan, instance, me, format)?);
    }
    if !found {
        return Err(NodesConfError::UnknownNode { plan: plan.id, node: myself });
    }
    let _ = writeln!(text, "vars currentEpoch {epoch_max} lastVoteEpoch 0");
    Ok(text)
}

/// Appends one node's line and returns its config epoch.
fn push_line(
    text: &mut String,
    plan: &ClusterPlan,
    instance: &PlannedInstance,
    myself: bool,
    format: NodesConfFormat,
) -> Result<u64, NodesConfError> {
    let primary_of = |index: u32| plan.instances.get(index as usize);
    let (primary, slots, epoch) = match instance.role {
        PlannedRole::Primary { slots, config_epoch } => (None, Some(slots), config_epoch),
        PlannedRole::Replica { primary } => match primary_of(primary).map(|p| (p.node_id, &p.role)) {
            // A replica's line shows its primary's epoch.
            Some((id, PlannedRole::Primary { config_epoch, .. })) => (Some(id), None, *config_epoch),
            _ => return Err(NodesConfError::NoPrimary { plan: plan.id, node: instance.node_id, primary }),
        },
    };
    let (ip, port) = (plan.host_of(instance).ip, instance.port);
    // Writing into a String can't fail. An IPv6 address stands without brackets.
    let _ = write!(text, "{} {ip}:{port}@{}", instance.node_id, u32::from(port) + u32::from(BUS_PORT_OFFSET));
    if format == NodesConfFormat::ShardIds {
        let _ = write!(text, ",,shard-id={}", instance.shard_id);
    }
    let flags = match (myself, primary.is_some()) {
        (true, false) => "myself,master",
        (true, true) => "myself,slave",
        (false, false) => "master",
        (false, true) => "slave",
    };
    let _ = write!(text, " {flags} ");
    match primary {
        Some(id) => {
            let _ = write!(text, "{id}");
        }
        None => text.push('-'),
    }
    let (pong, link) = if myself { (0, "connected") } else { (PONG_HEARD, "disconnected") };
    let _ = write!(text, " 0 {pong} {epoch} {link}");
    if let Some(slots) = slots {
        let _ = write!(text, " {slots}");
    }
    text.push('\n');
    Ok(epoch)
}

#[cfg(test)]
mod tests;
