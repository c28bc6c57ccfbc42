//! `deploy prometheus`: how a Prometheus finds and scrapes the mesh.
//!
//! The list of targets is the mesh's own: any agent serves that of all, so several are
//! named and the configuration need not change when hosts come and go.

use std::net::SocketAddr;

use anyhow::{Result, ensure};
use clap::Args;

use crate::exit::Exit;
use crate::output::Output;
use crate::session::Session;

/// Examples of `deploy prometheus`.
pub const EXAMPLES: &str = "\
Examples:
  redmeshctl deploy prometheus >prometheus.yml
  redmeshctl deploy prometheus --from 10.0.0.1:7380,10.0.0.2:7380 --rules /etc/prometheus/redmesh-rules.yml";

/// Agents that are asked for the list: as many as may be down at once, and one more.
const ASKED: usize = 3;

/// Arguments of `deploy prometheus`.
#[derive(Debug, Args)]
pub struct PrometheusArgs {
    /// HTTP ports of agents to ask for the list of all [default: a few that an agent knows]
    #[arg(long, value_delimiter = ',', value_name = "ADDR,…")]
    pub from: Vec<SocketAddr>,
    /// File with redmesh's recording and alert rules, where Prometheus runs
    #[arg(long, default_value = "/etc/prometheus/redmesh-rules.yml", value_name = "FILE")]
    pub rules: String,
}

/// Asks where it has to, and prints.
pub async fn run(
    args: &PrometheusArgs,
    session: impl FnOnce() -> Result<Session>,
    output: &Output,
) -> Result<Exit> {
    let from = if args.from.is_empty() {
        let mut session = session()?;
        let members = session.members().await;
        session.close().await;
        let http = members?.members.into_iter().filter_map(|member| member.http_addr);
        let reachable: Vec<_> = http.filter(|addr| !addr.ip().is_loopback()).take(ASKED).collect();
        ensure!(
            !reachable.is_empty(),
            "all agents serve /metrics on loopback or not at all: set http.listen to an address of each host, or \
             give --from"
        );
        reachable
    } else {
        args.from.clone()
    };
    ensure!(
        !args.rules.is_empty() && !args.rules.contains(|c: char| c.is_control() || c == '\''),
        "--rules {:?} is not a path that can be written down",
        args.rules
    );
    let text = render(&from, &args.rules);
    output.answer(&serde_json::json!({ "prometheus": text }), || text.clone())?;
    Ok(Exit::Ok)
}

fn render(from: &[SocketAddr], rules: &str) -> String {
    let urls: String = from
        .iter()
        .map(|addr| format!("      - url: http://{addr}/sd/targets\n        refresh_interval: 30s\n"))
        .collect();
    format!(
        "# A mesh of redmesh: any agent lists all of them.\n\
         global:\n  scrape_interval: 10s\n  evaluation_interval: 10s\n\
         rule_files:\n  - '{rules}'\n\
         scrape_configs:\n  - job_name: redmesh\n    http_sd_configs:\n{urls}"
    )
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_configuration_is_as_it_was_looked_at() {
        let from = ["10.0.0.1:7380", "[fd00::2]:7380"].map(|addr| addr.parse().expect("an address"));
        let text = render(&from, "/etc/prometheus/redmesh-rules.yml");
        assert_eq!(text, include_str!("golden/prometheus.yml"));
    }
}
