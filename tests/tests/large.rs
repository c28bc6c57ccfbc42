//! Meshes of many agents: see `redmesh_tests::sim::scale`.

use redmesh_tests::sim::log::say;
use redmesh_tests::sim::scale::measure;
use std::time::Duration;

/// Agents, unless `REDMESH_SIM_AGENTS` says how many.
const AGENTS: usize = 100;

/// A message may be so large, by chitchat.
const MESSAGE_BYTES_MAX: usize = 65_507;

#[test]
fn a_large_mesh_converges() {
    let agents = std::env::var("REDMESH_SIM_AGENTS").map_or(AGENTS, |text| text.parse().expect("a number"));
    let figures = measure(agents);
    say(&format!("{figures:?}"));
    // Virtual time: these say how many rounds it takes, whatever the machine.
    assert!(figures.members < Duration::from_secs(30), "membership took {:?}", figures.members);
    assert!(figures.value < Duration::from_secs(5), "a value took {:?}", figures.value);
    assert!(figures.message_max <= MESSAGE_BYTES_MAX, "a message of {} bytes", figures.message_max);
}
