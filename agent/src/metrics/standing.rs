//! How this host's instances stand: how many lead, beside how many by plan, and replicas
//! whose primary is at the same address.
//!
//! Made of the `INFO` that is asked of them anyway: nobody asks another host's instances.
//! The mesh's figures are the sums over all hosts.

use std::net::IpAddr;

use metrics::{Unit, describe_gauge, gauge};
use redmesh_api::ids::HostId;
use redmesh_api::level::{ClusterPlan, PlannedRole};

use crate::cluster::InfoMap;

const PRIMARIES: &str = "redmesh_primaries";
const PRIMARIES_PLANNED: &str = "redmesh_primaries_planned";
const BESIDE: &str = "redmesh_replicas_beside_primary";

pub(super) fn describe() {
    describe_gauge!(PRIMARIES, Unit::Count, "This host's instances that are primaries now");
    describe_gauge!(PRIMARIES_PLANNED, Unit::Count, "Primaries that the plan gave this host");
    describe_gauge!(
        BESIDE,
        Unit::Count,
        "This host's replicas whose primary is at the same address: both would be lost together"
    );
}

/// Of one host's instances.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
struct Standing {
    primaries: usize,
    beside: usize,
}

impl Standing {
    /// `at` is the instances' address.
    fn of<'a>(at: IpAddr, answers: impl Iterator<Item = &'a InfoMap>) -> Self {
        let mut standing = Self::default();
        for info in answers {
            match info.get("role") {
                Some("master") => standing.primaries += 1,
                Some("slave") => {
                    let primary = info.get("master_host").and_then(|host| host.parse::<IpAddr>().ok());
                    standing.beside += usize::from(primary == Some(at));
                }
                _ => {}
            }
        }
        standing
    }
}

/// Sets the gauges for `host`, whose instances answered so.
pub(super) fn set<'a>(host: HostId, plan: &ClusterPlan, answers: impl Iterator<Item = &'a InfoMap>) {
    // A host that the plan left out has nothing to say.
    let Some(planned) = plan.hosts.iter().find(|planned| planned.id == host) else { return };
    let standing = Standing::of(planned.ip, answers);
    let by_plan = plan.instances_of(host).filter(|i| matches!(i.role, PlannedRole::Primary { .. })).count();
    gauge!(PRIMARIES).set(standing.primaries as f64);
    gauge!(PRIMARIES_PLANNED).set(by_plan as f64);
    gauge!(BESIDE).set(standing.beside as f64);
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn leaders_and_replicas_beside_theirs_are_counted() {
        let said = [
            "role:master\r\nconnected_slaves:1\r\n",
            "role:slave\r\nmaster_host:10.0.0.1\r\nmaster_port:6379\r\n",
            "role:slave\r\nmaster_host:10.0.0.2\r\nmaster_port:6379\r\n",
            "loading:1\r\n",
        ]
        .map(InfoMap::parse);
        let standing = Standing::of([10, 0, 0, 1].into(), said.iter());
        assert_eq!(standing, Standing { primaries: 1, beside: 1 });
    }
}
