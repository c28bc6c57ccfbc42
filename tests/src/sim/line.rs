//! Answers of simulated servers to what agents ask.

use std::io;
use std::net::SocketAddr;
use std::sync::Arc;

use async_trait::async_trait;
use redis::{Cmd, Value};
use redmesh_agent::cluster::admin::RESPONSE_TIMEOUT;
use redmesh_agent::cluster::{AdminError, Line};
use redmesh_api::level::SLOTS;

use super::clock::HostClock;
use super::world::{Server, World};

/// See the module.
#[derive(Debug)]
pub struct SimLine {
    /// Where the servers are.
    pub world: Arc<World>,
    /// The asking host's.
    pub clock: HostClock,
}

#[async_trait]
impl Line for SimLine {
    async fn ask(&self, addr: SocketAddr, name: &'static str, _: &Cmd) -> Result<Value, AdminError> {
        let failed = |kind: io::ErrorKind| redis::RedisError::from(io::Error::from(kind));
        let Some(server) = self.world.server(addr) else {
            return Err(AdminError::Connect { addr, source: failed(io::ErrorKind::ConnectionRefused) });
        };
        let now = self.clock.now();
        if !server.answers(now) {
            // Held: it takes connections and says nothing.
            tokio::time::sleep(RESPONSE_TIMEOUT).await;
            return Err(AdminError::Command { addr, command: name, source: failed(io::ErrorKind::TimedOut) });
        }
        let text = match name {
            "CLUSTER INFO" => cluster_info(&server, self.world.cluster_problem(now).is_none()),
            "CLUSTER NODES" => cluster_nodes(&server),
            "INFO everything" => info(&server),
            "CONFIG SET" => return Ok(Value::Okay),
            "DBSIZE" => return Ok(Value::Int(server.keys as i64)),
            other => {
                let source = failed(io::ErrorKind::Unsupported);
                tracing::error!(other, "simulated servers don't know this command");
                return Err(AdminError::Command { addr, command: name, source });
            }
        };
        Ok(Value::BulkString(text.into_bytes()))
    }
}

fn nodes(server: &Server) -> impl Iterator<Item = &str> {
    server.nodes_conf.lines().filter(|line| !line.starts_with("vars"))
}

fn cluster_info(server: &Server, fine: bool) -> String {
    let known = nodes(server).count();
    let size = nodes(server).filter(|line| line.contains("master")).count();
    let state = if fine { "ok" } else { "fail" };
    format!(
        "cluster_state:{state}\r\ncluster_slots_assigned:{SLOTS}\r\ncluster_slots_ok:{SLOTS}\r\n\
         cluster_slots_pfail:0\r\ncluster_slots_fail:0\r\ncluster_known_nodes:{known}\r\ncluster_size:{size}\r\n\
         cluster_current_epoch:{size}\r\ncluster_my_epoch:1\r\n"
    )
}

fn cluster_nodes(server: &Server) -> String {
    nodes(server).map(|line| format!("{}\n", line.replace(" disconnected", " connected"))).collect()
}

fn info(server: &Server) -> String {
    format!(
        "# Server\r\nrun_id:{}\r\n# Replication\r\nrole:{}\r\n# CPU\r\nused_cpu_sys:0.0\r\nused_cpu_user:0.0\r\n\
         # Commandstats\r\ncmdstat_set:calls={},usec=0\r\n# Keyspace\r\ndb0:keys={},expires=0\r\n",
        server.run_id(),
        if server.primary { "master" } else { "slave" },
        server.calls,
        server.keys
    )
}
