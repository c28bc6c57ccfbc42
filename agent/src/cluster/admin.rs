//! Questions to running instances and what their answers mean; [`Line`] carries them.

mod join;

use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use futures_util::{StreamExt, stream};
use redis::FromRedisValue;
use redmesh_api::control::InstanceView;
use redmesh_api::ids::{HostId, NodeId};
use redmesh_api::level::SlotRange;
use redmesh_api::run::ServerSample;
use redmesh_api::workload::Verb;

use super::info::InfoMap;
use super::line::{Connections, Line};
use super::topology::{ClusterInfo, Topology, TopologyError};
use crate::login::Login;
use crate::redis_tls::RedisTls;

/// From dialling to a connection that has said hello.
pub const CONNECT_TIMEOUT: Duration = Duration::from_secs(2);

/// From a command to its answer. A loaded server that forks or serves a 200 KB
/// `CLUSTER NODES` takes tens of milliseconds.
pub const RESPONSE_TIMEOUT: Duration = Duration::from_secs(5);

/// Instances asked at a time by the `*_all` questions.
pub const ASKED_AT_ONCE_MAX: usize = 32;

/// Why an instance gave no usable answer.
#[derive(Debug, thiserror::Error)]
pub enum AdminError {
    /// It can't be reached or refused the connection.
    #[error("can't connect to {addr}")]
    Connect {
        /// Whom.
        addr: SocketAddr,
        /// Why.
        #[source]
        source: redis::RedisError,
    },
    /// The command failed or its answer did not come.
    #[error("{command} of {addr} failed")]
    Command {
        /// Whose.
        addr: SocketAddr,
        /// Which.
        command: &'static str,
        /// Why.
        #[source]
        source: redis::RedisError,
    },
    /// The answer can't be read.
    #[error("{addr} gave an answer that can't be read")]
    Answer {
        /// Whose.
        addr: SocketAddr,
        /// What is wrong.
        #[source]
        source: TopologyError,
    },
    /// A field is missing.
    #[error("INFO of {addr} has no {field}")]
    Missing {
        /// Whose.
        addr: SocketAddr,
        /// Which.
        field: &'static str,
    },
}

/// How to reach instances.
#[derive(Debug, Clone)]
pub struct AdminOptions {
    /// What instances want to be told first, if anything.
    pub login: Option<Login>,
    /// Set where instances speak TLS.
    pub tls: Option<RedisTls>,
    /// Connections kept; an idle one of another instance makes room for a new one.
    pub connections_max: usize,
}

impl Default for AdminOptions {
    /// No login; one host's instances at their most.
    fn default() -> Self {
        let connections_max = usize::from(redmesh_api::limits::INSTANCES_PER_HOST_MAX);
        Self { login: None, tls: None, connections_max }
    }
}

/// An instance to be asked, as planned.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Target {
    /// Host that bears it.
    pub host: HostId,
    /// Data address.
    pub addr: SocketAddr,
    /// Its node id as planned, [`NodeId::UNKNOWN`] while the plan has none.
    pub node_id: NodeId,
}

/// Asks instances; clones share the line to them.
#[derive(Debug, Clone)]
pub struct AdminPool {
    line: Arc<dyn Line>,
}

impl AdminPool {
    /// A pool with connections of its own; they are made when needed.
    pub fn new(options: AdminOptions) -> Self {
        Self::over(Arc::new(Connections::new(options)))
    }

    /// A pool that asks through `line`.
    pub fn over(line: Arc<dyn Line>) -> Self {
        Self { line }
    }

    /// The instance's state and view. Never fails: what is amiss stands in the view.
    pub async fn check(&self, target: Target) -> InstanceView {
        self.try_check(target).await.unwrap_or_else(|error| silent(target, crate::error_chain(&error)))
    }

    /// [`AdminPool::check`] of many, [`ASKED_AT_ONCE_MAX`] at a time, in their order.
    pub async fn check_all(&self, targets: Vec<Target>) -> Vec<InstanceView> {
        let asked = targets.into_iter().map(|target| self.check(target));
        stream::iter(asked).buffered(ASKED_AT_ONCE_MAX).collect().await
    }

    /// Only `CLUSTER INFO`: some 600 bytes, what a poll should ask.
    pub async fn cluster_info(&self, addr: SocketAddr) -> Result<ClusterInfo, AdminError> {
        let text: String = self.ask(addr, "CLUSTER INFO", redis::cmd("CLUSTER").arg("INFO")).await?;
        ClusterInfo::parse(&text).map_err(|source| AdminError::Answer { addr, source })
    }

    /// [`AdminPool::cluster_info`] of many, [`ASKED_AT_ONCE_MAX`] at a time.
    pub async fn cluster_info_all(
        &self,
        addrs: Vec<SocketAddr>,
    ) -> Vec<(SocketAddr, Result<ClusterInfo, AdminError>)> {
        let asked = addrs.into_iter().map(|addr| async move { (addr, self.cluster_info(addr).await) });
        stream::iter(asked).buffered(ASKED_AT_ONCE_MAX).collect().await
    }

    /// The instance's whole view: some 100 KB of a cluster of 1000.
    pub async fn topology(&self, addr: SocketAddr) -> Result<Topology, AdminError> {
        let text: String = self.ask(addr, "CLUSTER NODES", redis::cmd("CLUSTER").arg("NODES")).await?;
        Topology::parse(&text).map_err(|source| AdminError::Answer { addr, source })
    }

    /// Who serves which slots, by the instance's view.
    pub async fn slot_map(&self, addr: SocketAddr) -> Result<Vec<(SlotRange, SocketAddr)>, AdminError> {
        Ok(self.topology(addr).await?.slot_map())
    }

    /// All of `INFO`, per-command figures included.
    pub async fn info(&self, addr: SocketAddr) -> Result<InfoMap, AdminError> {
        let text: String = self.ask(addr, "INFO everything", redis::cmd("INFO").arg("everything")).await?;
        Ok(InfoMap::parse(&text))
    }

    /// [`AdminPool::info`] of many, [`ASKED_AT_ONCE_MAX`] at a time.
    pub async fn info_all(&self, addrs: Vec<SocketAddr>) -> Vec<(SocketAddr, Result<InfoMap, AdminError>)> {
        let asked = addrs.into_iter().map(|addr| async move { (addr, self.info(addr).await) });
        stream::iter(asked).buffered(ASKED_AT_ONCE_MAX).collect().await
    }

    /// Sets configuration parameters of a running instance, one after another: before
    /// Redis 7 one command takes one.
    pub async fn config_set(
        &self,
        addr: SocketAddr,
        settings: &[(&'static str, String)],
    ) -> Result<(), AdminError> {
        for (name, value) in settings {
            let mut command = redis::cmd("CONFIG");
            command.arg("SET").arg(name).arg(value);
            self.ask::<()>(addr, "CONFIG SET", &command).await?;
        }
        Ok(())
    }

    /// The instance's own figures, for a run's ledger.
    pub async fn sample(&self, host: HostId, addr: SocketAddr) -> Result<ServerSample, AdminError> {
        let info = self.info(addr).await?;
        let dbsize = self.ask(addr, "DBSIZE", &redis::cmd("DBSIZE")).await?;
        let field = |field| info.get(field).ok_or(AdminError::Missing { addr, field });
        Ok(ServerSample {
            host,
            port: addr.port(),
            run_id: field("run_id")?.to_owned(),
            primary: field("role")? == "master",
            dbsize,
            calls: Verb::ALL.iter().map(|verb| info.calls(verb.name())).sum(),
            cpu_us: info.cpu_us(),
        })
    }

    /// [`AdminPool::sample`] of many, [`ASKED_AT_ONCE_MAX`] at a time, in their order.
    pub async fn sample_all(&self, of: Vec<(HostId, SocketAddr)>) -> Vec<Result<ServerSample, AdminError>> {
        let asked = of.into_iter().map(|(host, addr)| self.sample(host, addr));
        stream::iter(asked).buffered(ASKED_AT_ONCE_MAX).collect().await
    }

    async fn try_check(&self, target: Target) -> Result<InstanceView, AdminError> {
        let Target { host, addr, node_id } = target;
        let info = self.cluster_info(addr).await?;
        let topology = self.topology(addr).await?;
        let keys = self.ask(addr, "DBSIZE", &redis::cmd("DBSIZE")).await?;
        let me = topology.myself();
        let problem = match me {
            None => Some(format!("{addr} does not list itself among the cluster's nodes")),
            Some(me) if node_id != NodeId::UNKNOWN && me.id != node_id => Some(format!(
                "{addr} says that it is node {}, but the plan has {node_id} there: another cluster's server \
                 holds the port",
                me.id
            )),
            Some(_) => None,
        };
        let node_id = if node_id == NodeId::UNKNOWN { me.map_or(node_id, |me| me.id) } else { node_id };
        Ok(InstanceView {
            host,
            addr,
            node_id,
            up: true,
            primary: me.is_some_and(|me| me.has("master")),
            primary_id: me.and_then(|me| me.primary),
            slots: me.map(|me| me.slots.clone()).unwrap_or_default(),
            keys,
            state_ok: info.state_ok,
            known_nodes: info.known_nodes,
            slots_assigned: info.slots_assigned,
            view_digest: topology.view_digest(),
            open_slots: me.map(|me| me.open.iter().map(|open| open.slot()).collect()).unwrap_or_default(),
            problem,
        })
    }

    async fn ask<T: FromRedisValue>(
        &self,
        addr: SocketAddr,
        name: &'static str,
        command: &redis::Cmd,
    ) -> Result<T, AdminError> {
        let answer = self.line.ask(addr, name, command).await?;
        redis::from_redis_value(answer).map_err(|error| AdminError::Command {
            addr,
            command: name,
            source: error.into(),
        })
    }
}

/// The view of an instance that does not answer.
fn silent(target: Target, problem: String) -> InstanceView {
    InstanceView {
        host: target.host,
        addr: target.addr,
        node_id: target.node_id,
        up: false,
        primary: false,
        primary_id: None,
        slots: Vec::new(),
        keys: 0,
        state_ok: false,
        known_nodes: 0,
        slots_assigned: 0,
        view_digest: 0,
        open_slots: Vec::new(),
        problem: Some(problem),
    }
}

#[cfg(test)]
mod tests;
