//! Hosts that `cluster create` gives a number of instances of their own.

use redmesh_api::control::RefusalKind;
use redmesh_api::level::ClusterSpec;

use super::joining::{self, Refused};
use crate::census::Hosts;

/// The first host named in `spec` that there is not. One that is not heard of may be left
/// out all the same.
pub fn unknown(spec: &ClusterSpec, hosts: &Hosts) -> Option<Refused> {
    spec.instances_of.iter().find_map(|(name, &instances)| match joining::host_by_name(hosts, name) {
        Ok(_) => None,
        Err((RefusalKind::Conflict, _)) if instances == 0 => None,
        Err(refusal) => Some(refusal),
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
    use crate::census::CensusHost;
    use crate::facts::HostFacts;

    fn hosts() -> Hosts {
        let host = |id: u32, alive| {
            let facts = HostFacts {
                name: format!("db-{id}"),
                version: String::new(),
                http: None,
                redis_ip: [127, 0, 0, 1].into(),
                base_port: 6379,
                bootstrap_expect: 3,
                redis_tls: false,
            };
            let host = CensusHost {
                id: HostId(id),
                addr: ([127, 0, 0, 1], 7379).into(),
                alive,
                facts: Some(facts),
                lead: Default::default(),
                observed: Default::default(),
            };
            (host.id, host)
        };
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
        assert_eq!(unknown(&spec(&[("db-1", 4), ("db-2", 0)]), &hosts()), None);
        let (kind, reason) = unknown(&spec(&[("db-1", 4), ("db-9", 0)]), &hosts()).expect("a refusal");
        assert_eq!(kind, RefusalKind::NotFound);
        assert!(reason.contains("\"db-9\"; known are db-1, db-2, db-3"), "{reason}");
    }

    #[test]
    fn a_host_that_is_not_heard_of_can_only_be_left_out() {
        assert_eq!(unknown(&spec(&[("db-3", 0)]), &hosts()), None);
        let (_, reason) = unknown(&spec(&[("db-3", 5)]), &hosts()).expect("a refusal");
        assert!(reason.contains("\"db-3\" is not heard of"), "{reason}");
    }

    #[test]
    fn exceptions_are_told() {
        assert_eq!(in_words(&spec(&[])), "");
        assert_eq!(in_words(&spec(&[("db-1", 40), ("db-2", 0)])), ", db-1 40, db-2 0");
    }
}
