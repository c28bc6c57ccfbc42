//! Settings that each of this host's instances is told once, by `CONFIG SET`.

use std::collections::BTreeSet;
use std::net::SocketAddr;

use futures_util::{StreamExt, stream};
use redmesh_api::level::ClusterPlan;

use super::instances::{self, LocalSettings};
use crate::cluster::admin::ASKED_AT_ONCE_MAX;
use crate::cluster::{AdminPool, RedisConf};

/// How it went with those that were due.
#[derive(Debug)]
pub struct Telling {
    /// How many they were.
    pub due: usize,
    /// Those that did not take it, each with the reason.
    pub failed: Vec<(SocketAddr, String)>,
}

/// Tells `settings` to those that are not in `told`, and adds whoever takes them. `None` where
/// nobody was due.
pub async fn tell_each(
    plan: &ClusterPlan,
    admin: &AdminPool,
    local: &LocalSettings,
    told: &mut BTreeSet<SocketAddr>,
    settings: impl Fn(&RedisConf) -> Vec<(&'static str, String)>,
) -> Option<Telling> {
    let due: Vec<_> = plan
        .instances_of(local.host)
        .map(|instance| instances::conf(plan, instance, local))
        .filter(|conf| !told.contains(&conf.addr))
        .collect();
    if due.is_empty() {
        return None;
    }
    let mut telling = Telling { due: due.len(), failed: Vec::new() };
    let asked = due.into_iter().map(|conf| {
        let settings = settings(&conf);
        async move { (conf.addr, admin.config_set(conf.addr, &settings).await) }
    });
    let answers: Vec<_> = stream::iter(asked).buffer_unordered(ASKED_AT_ONCE_MAX).collect().await;
    for (addr, answer) in answers {
        match answer {
            Ok(()) => drop(told.insert(addr)),
            Err(error) => telling.failed.push((addr, crate::error_chain(&error))),
        }
    }
    Some(telling)
}
