//! The mesh's members in this host's firewall, kept current; only where
//! `firewall.manage` allows it.
//!
//! The agent owns the sets `members4` and `members6` of the table `inet redmesh` and writes
//! nothing else: no rule, no other set, no other table. The rules that use them are those of
//! `redmeshctl deploy nftables`. What it wrote stays when it stops, because the servers do.
//! Reconciled to a level: the whole sets, in one transaction, when they change and every
//! [`REPEAT_INTERVAL`], since somebody may have loaded the rules anew.

pub mod members;

use std::collections::BTreeSet;
use std::net::{IpAddr, SocketAddr};
use std::time::Duration;

use redmesh_api::level::Level;
use tokio::time::Instant;
use tokio_util::sync::CancellationToken;
use tracing::{info, warn};

use crate::census::{Census, Hosts};
use crate::nft;
use members::{Members, script};

/// Between two looks at who is there.
const LOOK_INTERVAL: Duration = Duration::from_secs(1);

/// The sets are written again after this time even where nothing has changed.
pub const REPEAT_INTERVAL: Duration = Duration::from_secs(15);

/// Keeps the sets until cancelled.
pub async fn keep(census: Census, seeds: Vec<String>, cancel: CancellationToken) {
    let mut members = Members::default();
    let seeds: Vec<IpAddr> =
        seeds.iter().filter_map(|seed| seed.parse::<SocketAddr>().ok()).map(|seed| seed.ip()).collect();
    let (mut written, mut at): (Option<BTreeSet<IpAddr>>, _) = (None, Instant::now());
    let mut said = None;
    loop {
        let wanted = members.update(
            known(&census.hosts(), &census.level()).chain(seeds.iter().copied()),
            census.clock.now_unix_ms(),
        );
        let changed = written.as_ref() != Some(&wanted);
        if changed || at.elapsed() >= REPEAT_INTERVAL {
            at = Instant::now();
            match nft::run(script(&wanted)).await {
                Ok(()) => {
                    if changed {
                        info!(members = wanted.len(), "the firewall's set of members is current");
                    }
                    (written, said) = (Some(wanted), None);
                }
                Err(error) => {
                    let words = crate::error_chain(&error);
                    // Once, until it is another one or it works again.
                    if said.as_ref() != Some(&words) {
                        warn!(error = words, "the firewall's set of members is not current");
                        said = Some(words);
                    }
                    // Tried again with the next repetition.
                    written = Some(wanted);
                }
            }
        }
        tokio::select! {
            () = tokio::time::sleep(LOOK_INTERVAL) => {}
            () = cancel.cancelled() => return,
        }
    }
}

/// Addresses of all hosts that the mesh knows of, in whichever way, but for removed ones: a
/// removed host is to be shut out, unless another one has its address.
fn known(hosts: &Hosts, level: &Level) -> impl Iterator<Item = IpAddr> {
    let mut ips = Vec::new();
    for host in hosts.values() {
        ips.push(host.addr.ip());
        ips.extend(host.facts.as_ref().map(|facts| facts.redis_ip));
    }
    ips.extend(
        level
            .plan
            .iter()
            .flat_map(|plan| &plan.hosts)
            .filter(|host| !level.is_removed(host.id))
            .map(|host| host.ip),
    );
    // They have a certificate, and must be let in to be heard of.
    let tokens = level.tokens.iter().filter(|token| !token.revoked);
    ips.extend(tokens.flat_map(|token| &token.enrolled).map(|host| host.ip));
    ips.into_iter()
}

#[cfg(test)]
mod tests {
    use redmesh_api::ids::{HostId, PlanId};
    use redmesh_api::level::{ClusterPlan, ClusterSpec, Formation, PlanStage, PlannedHost, RemovedHost};

    use super::*;
    use crate::census::example_host;

    #[test]
    fn a_removed_host_is_shut_out_unless_another_has_its_address() {
        let planned = |id: u8, name: &str| PlannedHost {
            id: HostId(id.into()),
            name: name.to_owned(),
            ip: [10, 0, 0, id].into(),
            base_port: 6379,
        };
        let plan = ClusterPlan {
            id: PlanId(uuid::Uuid::from_u128(1)),
            spec: ClusterSpec::default(),
            node_timeout_ms: 5000,
            hz: 10,
            formation: Formation::Seeded,
            stage: PlanStage::Formed,
            hosts: vec![planned(1, "a"), planned(2, "b")],
            instances: Vec::new(),
            created_unix_ms: 1,
            reached: Vec::new(),
            convergence: None,
        };
        let removed =
            RemovedHost { id: Some(HostId(2)), name: "b".to_owned(), certificates: true, at_unix_ms: 1 };
        let level = Level { plan: Some(plan), removed: vec![removed], ..Level::default() };
        let ips = |hosts: &Hosts| known(hosts, &level).collect::<BTreeSet<_>>();
        let mut hosts = Hosts::from([(HostId(1), example_host(1, "a", true))]);
        assert_eq!(ips(&hosts), BTreeSet::from([[10, 0, 0, 1].into()]));
        hosts.insert(HostId(7), example_host(2, "c", true));
        assert_eq!(ips(&hosts), BTreeSet::from([[10, 0, 0, 1].into(), [10, 0, 0, 2].into()]));
    }
}
