//! The faults of `docs/reliability.md` that are quickly tried, once each, so that no row
//! of its table can rot. `make reliability` tries all, as often as one likes.

use std::io::Write as _;

use redmesh_tests::faults;

fn try_once(name: &str) {
    let scenario = faults::find(name).expect("the fault is in the list");
    if let Some(reason) = scenario.skipped() {
        // Past the test's capture of output: it must be seen.
        let _ = writeln!(std::io::stderr(), "{name}: skipped, because {reason}");
        return;
    }
    let seen = (scenario.trial)();
    assert!(seen.whole.is_some(), "{seen:?}");
}

macro_rules! faults {
    ($($test:ident: $name:literal;)+) => {
        $(#[test]
        fn $test() {
            try_once($name);
        })+
    };
}

faults! {
    a_host_is_killed_at_once: "host-killed";
    a_coordinator_is_partitioned: "coordinator-partitioned";
    a_data_disk_is_full: "data-disk-full";
    a_nodes_conf_is_damaged: "nodes-conf-damaged";
}

#[test]
fn every_row_of_the_table_is_a_fault_and_every_fault_has_a_row() {
    let table = redmesh_tests::tools::repository().join("docs/reliability.md");
    let text = std::fs::read_to_string(table).expect("read docs/reliability.md");
    let rows: Vec<&str> = text
        .lines()
        .filter(|line| line.starts_with("| ") && line.contains("`make reliability FAULT="))
        .collect();
    for scenario in faults::all() {
        let command = format!("`make reliability FAULT={} TRIALS=", scenario.name);
        let row = rows.iter().find(|row| row.contains(&command));
        assert!(
            row.is_some_and(|row| row.starts_with(&format!("| {} |", scenario.fault))),
            "{}",
            scenario.name
        );
    }
    assert_eq!(rows.len(), faults::all().count(), "rows of faults that are not there any more");
}
