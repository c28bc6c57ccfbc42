//! Hosts that `cluster create` gives a number of instances of their own.

use redmesh_api::control::{Refusal, RefusalKind};
use redmesh_api::level::ClusterSpec;

use super::host_by_name;
use crate::census::Hosts;

/// Whether all hosts named in `spec` are here. One that is not heard of may be left out all
/// the same.
pub fn known(spec: &ClusterSpec, hosts: &Hosts) -> Result<(), Refusal> {
    spec.instances_of.iter().try_for_each(|(name, &instances)| match host_by_name(hosts, name) {
        Err(refusal) if refusal.kind != RefusalKind::Conflict || instances > 0 => Err(refusal),
        _ => Ok(()),
    })
}

/// `, host-3 40, host-4 0`: how hosts differ from the number that holds for all.
pub fn in_words(spec: &ClusterSpec) -> String {
    spec.instances_of.iter().map(|(name, instances)| format!(", {name} {instances}")).collect()
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeMap;

    use redmesh_api::ids::HostId;

    use super::*;
    use crate::census::{CensusHost, example_host};

    fn hosts() -> Hosts {
        let host = |id: u8, alive| (HostId(id.into()), example_host(id, &format!("db-{id}"), alive));
        BTreeMap::from([host(1, true), host(2, true), host(3, false)])
    }

    fn spec(of: &[(&str, u16)]) -> ClusterSpec {
        ClusterSpec {
            instances_per_host: 10,
            instances_of: of.iter().map(|&(name, instances)| (name.to_owned(), instances)).collect(),
            ..ClusterSpec::default()
        }
    }

    #[test]
    fn unknown_hosts_are_refused_with_the_names_there_are() {
        assert_eq!(known(&spec(&[("db-1", 4), ("db-2", 0)]), &hosts()), Ok(()));
        let refusal = known(&spec(&[("db-1", 4), ("db-9", 0)]), &hosts()).expect_err("a refusal");
        assert_eq!(refusal.kind, RefusalKind::NotFound);
        assert!(refusal.message.contains("\"db-9\"; known are db-1, db-2, db-3"), "{refusal}");
    }

    #[test]
    fn a_host_that_is_not_heard_of_can_only_be_left_out() {
        assert_eq!(known(&spec(&[("db-3", 0)]), &hosts()), Ok(()));
        let refusal = known(&spec(&[("db-3", 5)]), &hosts()).expect_err("a refusal");
        assert!(refusal.message.contains("\"db-3\" is not heard of"), "{refusal}");
    }

    #[test]
    fn a_host_that_came_back_is_meant_and_not_its_dead_namesake() {
        let mut hosts = hosts();
        hosts.insert(HostId(4), CensusHost { id: HostId(4), ..example_host(3, "db-3", true) });
        assert_eq!(host_by_name(&hosts, "db-3"), Ok(HostId(4)));
    }

    #[test]
    fn exceptions_are_told() {
        assert_eq!(in_words(&spec(&[])), "");
        assert_eq!(in_words(&spec(&[("db-1", 40), ("db-2", 0)])), ", db-1 40, db-2 0");
    }
}
