//! What servers are asked and told while they are made a cluster by MEET.

use std::collections::BTreeMap;
use std::net::SocketAddr;

use futures_util::{StreamExt, stream};
use redmesh_api::ids::NodeId;
use redmesh_api::level::SlotRange;

use super::{ASKED_AT_ONCE_MAX, AdminError, AdminPool};
use crate::cluster::survey::{self, Found, SurveyedServer};
use crate::cluster::topology::TopologyError;

/// Slots that one `CLUSTER ADDSLOTS` names, where ranges are not understood.
const SLOTS_AT_ONCE_MAX: usize = 1000;

impl AdminPool {
    /// Its own node id, by its own account.
    pub async fn my_id(&self, addr: SocketAddr) -> Result<NodeId, AdminError> {
        let text: String = self.ask(addr, "CLUSTER MYID", redis::cmd("CLUSTER").arg("MYID")).await?;
        text.parse().map_err(|_| AdminError::Answer {
            addr,
            source: TopologyError::Line { line: 1, what: "node id", text: text.chars().take(80).collect() },
        })
    }

    /// [`AdminPool::my_id`] of many, [`ASKED_AT_ONCE_MAX`] at a time, in their order.
    pub async fn my_id_all(&self, addrs: Vec<SocketAddr>) -> Vec<(SocketAddr, Result<NodeId, AdminError>)> {
        let asked = addrs.into_iter().map(|addr| async move { (addr, self.my_id(addr).await) });
        stream::iter(asked).buffered(ASKED_AT_ONCE_MAX).collect().await
    }

    /// Makes the instance shake hands with another; harmless where they know each other.
    pub async fn meet(&self, addr: SocketAddr, other: SocketAddr) -> Result<(), AdminError> {
        let mut command = redis::cmd("CLUSTER");
        command.arg("MEET").arg(other.ip().to_string()).arg(other.port());
        self.ask::<()>(addr, "CLUSTER MEET", &command).await
    }

    /// Gives it its config epoch: once, while it knows nobody.
    pub async fn set_config_epoch(&self, addr: SocketAddr, epoch: u64) -> Result<(), AdminError> {
        let mut command = redis::cmd("CLUSTER");
        command.arg("SET-CONFIG-EPOCH").arg(epoch);
        self.ask::<()>(addr, "CLUSTER SET-CONFIG-EPOCH", &command).await
    }

    /// Gives it slots that nobody serves.
    pub async fn add_slots(&self, addr: SocketAddr, ranges: &[SlotRange]) -> Result<(), AdminError> {
        let mut command = redis::cmd("CLUSTER");
        command.arg("ADDSLOTSRANGE");
        for range in ranges {
            command.arg(range.first).arg(range.last);
        }
        let added = self.ask::<()>(addr, "CLUSTER ADDSLOTSRANGE", &command).await;
        match added {
            // Before Redis 7.0 slots are named one by one.
            Err(AdminError::Command { source, .. })
                if source.to_string().to_ascii_lowercase().contains("unknown subcommand") =>
            {
                self.add_slots_singly(addr, ranges).await
            }
            added => added,
        }
    }

    pub(super) async fn add_slots_singly(
        &self,
        addr: SocketAddr,
        ranges: &[SlotRange],
    ) -> Result<(), AdminError> {
        let slots: Vec<u16> = ranges.iter().flat_map(|range| range.first..=range.last).collect();
        for chunk in slots.chunks(SLOTS_AT_ONCE_MAX) {
            let mut command = redis::cmd("CLUSTER");
            command.arg("ADDSLOTS").arg(chunk);
            self.ask::<()>(addr, "CLUSTER ADDSLOTS", &command).await?;
        }
        Ok(())
    }

    /// Makes it the replica of a primary that it knows.
    pub async fn replicate(&self, addr: SocketAddr, primary: NodeId) -> Result<(), AdminError> {
        let mut command = redis::cmd("CLUSTER");
        command.arg("REPLICATE").arg(primary.to_string());
        self.ask::<()>(addr, "CLUSTER REPLICATE", &command).await
    }

    /// Whether the server at `addr` may become one of `nodes` of a new cluster.
    pub async fn survey(&self, addr: SocketAddr, nodes: u32) -> SurveyedServer {
        match self.find(addr).await {
            Ok(found) => survey::judge(addr, nodes, &found),
            Err(error) => survey::silent(addr, &crate::error_chain(&error)),
        }
    }

    /// [`AdminPool::survey`] of many, [`ASKED_AT_ONCE_MAX`] at a time, in their order.
    pub async fn survey_all(&self, addrs: Vec<SocketAddr>, nodes: u32) -> Vec<SurveyedServer> {
        let asked = addrs.into_iter().map(|addr| self.survey(addr, nodes));
        stream::iter(asked).buffered(ASKED_AT_ONCE_MAX).collect().await
    }

    async fn find(&self, addr: SocketAddr) -> Result<Found, AdminError> {
        let info = self.info(addr).await?;
        let keys = self.ask(addr, "DBSIZE", &redis::cmd("DBSIZE")).await?;
        let mut config = BTreeMap::new();
        for pattern in ["cluster-*", "maxclients"] {
            let asked = self.ask(addr, "CONFIG GET", redis::cmd("CONFIG").arg("GET").arg(pattern)).await;
            match asked {
                Ok(values) => config.extend::<BTreeMap<String, String>>(values),
                // Where CONFIG is renamed or forbidden there is nothing to be learnt from it.
                Err(AdminError::Command { source, .. }) if !source.is_io_error() => {}
                Err(error) => return Err(error),
            }
        }
        if info.u64("cluster_enabled") != Some(1) {
            return Ok(Found { info, keys, config, ..Found::default() });
        }
        let cluster = Some(self.cluster_info(addr).await?);
        let view = self.topology(addr).await?;
        Ok(Found { info, cluster, view, keys, config })
    }
}
