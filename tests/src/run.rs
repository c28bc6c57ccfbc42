//! What tests of load runs have in common.

use serde_json::Value;

use crate::mesh::{Mesh, MeshBuilder};

/// A mesh whose cluster is formed and whose servers outlive their agents.
pub fn formed(hosts: usize, per_host: &str) -> Mesh {
    let mesh = MeshBuilder::new(hosts).servers_outlive_agents().ready();
    mesh.ok_at(0, &["cluster", "create", "--instances-per-host", per_host]);
    mesh
}

/// A number of a report.
pub fn count(value: &Value) -> u64 {
    value.as_u64().unwrap_or_else(|| panic!("{value} is not a count"))
}

/// Everything issued in `run`, a report, has ended as acked, failed or unknown.
pub fn assert_accounted(run: &Value) {
    let figures = &run["run"];
    let parts = count(&figures["acked"]) + count(&figures["failed"]) + count(&figures["unknown"]);
    assert_eq!(count(&figures["issued"]), parts, "{run}");
}
