//! The agents' identities and configuration files: the same as an operator would write.

use std::net::{IpAddr, SocketAddr};
use std::path::PathBuf;

use anyhow::Context as _;
use serde::Serialize;

use super::DemoOptions;
use super::dir::DemoDir;
use super::plan::DemoPlan;
use crate::pki;

/// Seeds that each agent is told; one would do, a second one spares it the wait for a
/// first host that comes up last.
const SEEDS: usize = 2;

/// `agent.toml`, as far as the demo sets it.
#[derive(Debug, Serialize)]
struct AgentConfig {
    mesh: Mesh,
    identity: Identity,
    state: State,
    redis: Redis,
    http: Http,
}

#[derive(Debug, Serialize)]
struct Mesh {
    name: &'static str,
    listen: SocketAddr,
    seeds: Vec<SocketAddr>,
    bootstrap_expect: u16,
}

#[derive(Debug, Serialize)]
struct Identity {
    dir: PathBuf,
}

#[derive(Debug, Serialize)]
struct State {
    dir: PathBuf,
}

#[derive(Debug, Serialize)]
struct Redis {
    server: PathBuf,
    data_dir: PathBuf,
    base_port: u16,
    release_at_once: usize,
    on_agent_exit: &'static str,
    auth: &'static str,
    tls: &'static str,
}

#[derive(Debug, Serialize)]
struct Http {
    listen: SocketAddr,
}

/// Name of a demo's mesh.
const MESH_NAME: &str = "demo";

/// Makes the PKI, and each host's directory with its `agent.toml`.
pub fn write(
    plan: &DemoPlan,
    dir: &DemoDir,
    server: &std::path::Path,
    options: &DemoOptions,
) -> anyhow::Result<()> {
    let pki_dir = dir.pki();
    pki::init(&pki_dir, MESH_NAME)?;
    pki::issue_operator(&pki_dir, DemoDir::OPERATOR)?;
    for (at, ip) in plan.ips.iter().enumerate() {
        let name = plan.name(at);
        pki::issue_host(&pki_dir, &name, &[IpAddr::V4(*ip)])?;
        let host_dir = dir.host(&name);
        std::fs::create_dir(&host_dir).with_context(|| format!("can't create {}", host_dir.display()))?;
        let text = render(plan, dir, at, server, options)?;
        let file = DemoDir::agent_toml(&host_dir);
        std::fs::write(&file, text).with_context(|| format!("can't write {}", file.display()))?;
    }
    Ok(())
}

/// Each host's share of the machine's cores.
fn release_at_once(hosts: usize) -> usize {
    std::thread::available_parallelism().map_or(1, |cores| cores.get() / hosts).max(1)
}

fn render(
    plan: &DemoPlan,
    dir: &DemoDir,
    at: usize,
    server: &std::path::Path,
    options: &DemoOptions,
) -> anyhow::Result<String> {
    let name = plan.name(at);
    let host_dir = dir.host(&name);
    let config = AgentConfig {
        mesh: Mesh {
            name: MESH_NAME,
            listen: plan.agent(at),
            seeds: (0..plan.ips.len().min(SEEDS)).map(|seed| plan.agent(seed)).collect(),
            bootstrap_expect: plan.hosts(),
        },
        identity: Identity { dir: dir.pki().join(&name) },
        state: State { dir: host_dir.join("state") },
        redis: Redis {
            server: server.to_owned(),
            data_dir: host_dir.join("redis_cluster"),
            base_port: plan.base_port,
            release_at_once: release_at_once(plan.ips.len()),
            on_agent_exit: if options.keep { "leave" } else { "stop" },
            auth: if options.no_auth { "off" } else { "on" },
            tls: if options.redis_tls { "on" } else { "off" },
        },
        http: Http { listen: plan.http(at) },
    };
    Ok(format!(
        "# {name} of a redmeshctl demo. All keys: deploy/agent.example.toml.\n{}",
        toml::to_string(&config)?
    ))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::demo::plan::tests::{options, plan};

    #[test]
    fn each_host_gets_an_ordinary_configuration() {
        let parent = tempfile::tempdir().unwrap();
        let at = parent.path().join("demo");
        let plan = plan("--hosts 3 --per-host 4").unwrap();
        let dir = DemoDir::create(Some(at.clone()), false, &plan, std::path::Path::new("/bin/sh")).unwrap();
        let text = render(&plan, &dir, 1, "redis-server".as_ref(), &options("--keep --no-auth --redis-tls"))
            .unwrap();
        let value: toml::Table = toml::from_str(&text).unwrap();
        assert_eq!(value["mesh"]["listen"].as_str(), Some("127.0.0.2:7379"));
        assert_eq!(value["mesh"]["bootstrap_expect"].as_integer(), Some(3));
        assert_eq!(value["mesh"]["seeds"].as_array().unwrap().len(), 2);
        assert_eq!(value["redis"]["on_agent_exit"].as_str(), Some("leave"));
        assert_eq!(value["redis"]["auth"].as_str(), Some("off"));
        assert_eq!(value["redis"]["tls"].as_str(), Some("on"));
        assert_eq!(value["http"]["listen"].as_str(), Some("127.0.0.2:7380"));
        let state = value["state"]["dir"].as_str().unwrap();
        assert!(state.ends_with("demo/host-2/state") && state.starts_with('/'), "{state}");
    }
}
