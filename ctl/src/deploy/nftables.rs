//! `deploy nftables`: rules that let a mesh's ports be reached by whom they are for.
//!
//! One table of its own, replaced as a whole by each load; no other rule of a host is
//! touched, and no port is that redmesh doesn't use.

use std::collections::BTreeSet;
use std::net::IpAddr;

use anyhow::{Result, ensure};
use clap::Args;
use redmesh_api::control::{ClusterStatus, Members};
use redmesh_api::join::JOIN_PORT_DEFAULT;
use redmesh_api::level::{BUS_PORT_OFFSET, PlannedInstance};

use super::hosts::{self, HostSpec};
use crate::exit::Exit;
use crate::output::Output;
use crate::session::{MESH_PORT_DEFAULT, Session};

/// Examples of `deploy nftables`.
pub const EXAMPLES: &str = "\
Examples:
  redmeshctl deploy nftables --clients 10.1.0.0/16 --scrapers 10.2.0.5 >redmesh.nft
  redmeshctl deploy nftables --hosts db-1=10.0.0.1,db-2=10.0.0.2 --instances-per-host 100
  nft -c -f redmesh.nft && nft -f redmesh.nft     on each host, the same file";

/// Arguments of `deploy nftables`.
#[derive(Debug, Args)]
pub struct NftablesArgs {
    /// The mesh's hosts, as name=address [default: those that an agent knows]
    #[arg(long, value_delimiter = ',', value_name = "NAME=IP,…")]
    pub hosts: Vec<HostSpec>,
    /// Instances of each host, where there is no cluster to ask for its ports
    #[arg(long, default_value_t = 100, value_name = "N", value_parser = clap::value_parser!(u16).range(1..=1000))]
    pub instances_per_host: u16,
    /// Port of each host's first instance, where there is no cluster to ask
    #[arg(long, default_value_t = 6379, value_name = "PORT", value_parser = clap::value_parser!(u16).range(1024..=54000))]
    pub base_port: u16,
    /// Port of the agents
    #[arg(long, default_value_t = MESH_PORT_DEFAULT, value_name = "PORT", value_parser = clap::value_parser!(u16).range(1..))]
    pub mesh_port: u16,
    /// Port of /metrics
    #[arg(long, default_value_t = 7380, value_name = "PORT", value_parser = clap::value_parser!(u16).range(1..))]
    pub http_port: u16,
    /// Port at which agents with a signer hear hosts that join
    #[arg(long, default_value_t = JOIN_PORT_DEFAULT, value_name = "PORT", value_parser = clap::value_parser!(u16).range(1..))]
    pub join_port: u16,
    /// Networks from which hosts may join by token
    #[arg(long, value_delimiter = ',', value_name = "CIDR,…")]
    pub joiners: Vec<Network>,
    /// Networks of the cluster's clients, besides the hosts themselves
    #[arg(long, value_delimiter = ',', value_name = "CIDR,…")]
    pub clients: Vec<Network>,
    /// Networks from which redmeshctl reaches the agents
    #[arg(long, value_delimiter = ',', value_name = "CIDR,…")]
    pub operators: Vec<Network>,
    /// Networks from which /metrics is scraped
    #[arg(long, value_delimiter = ',', value_name = "CIDR,…")]
    pub scrapers: Vec<Network>,
}

/// An address, or addresses that have their first bits in common.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub struct Network {
    ip: IpAddr,
    bits: u8,
}

impl std::str::FromStr for Network {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let wrong = || format!("{text:?} is not a network, for example 10.1.0.0/16 or 10.2.0.5");
        let (ip, bits) = text.split_once('/').map_or((text, None), |(ip, bits)| (ip, Some(bits)));
        let ip: IpAddr = ip.parse().map_err(|_| wrong())?;
        let most = if ip.is_ipv4() { 32 } else { 128 };
        let bits = bits.map_or(Ok(most), |bits| bits.parse().map_err(|_| wrong()))?;
        if bits > most { Err(wrong()) } else { Ok(Self { ip, bits }) }
    }
}

impl std::fmt::Display for Network {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let most = if self.ip.is_ipv4() { 32 } else { 128 };
        if self.bits == most { write!(f, "{}", self.ip) } else { write!(f, "{}/{}", self.ip, self.bits) }
    }
}

impl From<IpAddr> for Network {
    fn from(ip: IpAddr) -> Self {
        Self { ip, bits: if ip.is_ipv4() { 32 } else { 128 } }
    }
}

/// Whom and which ports the rules are about.
#[derive(Debug, Clone, PartialEq, Eq)]
struct Rules {
    mesh: String,
    members: Vec<Network>,
    operators: Vec<Network>,
    clients: Vec<Network>,
    scrapers: Vec<Network>,
    joiners: Vec<Network>,
    join_port: u16,
    mesh_ports: BTreeSet<u16>,
    http_ports: BTreeSet<u16>,
    data_ports: BTreeSet<u16>,
}

/// Asks where it has to, and prints.
pub async fn run(
    args: &NftablesArgs,
    session: impl FnOnce() -> Result<Session>,
    output: &Output,
) -> Result<Exit> {
    let rules = if args.hosts.is_empty() {
        let mut session = session()?;
        let asked = async { anyhow::Ok((session.members().await?, session.cluster_status().await?)) };
        let asked = asked.await;
        session.close().await;
        let (members, status) = asked?;
        of_mesh(args, &members, &status)?
    } else {
        hosts::check(&args.hosts)?;
        of_hosts(args)
    };
    let text = render(&rules);
    output.answer(&serde_json::json!({ "nftables": text }), || text.clone())?;
    Ok(Exit::Ok)
}

fn of_hosts(args: &NftablesArgs) -> Rules {
    let last = args.base_port.saturating_add(args.instances_per_host - 1);
    Rules {
        mesh: "given hosts".to_owned(),
        members: args.hosts.iter().map(|host| host.ip.into()).collect(),
        operators: args.operators.clone(),
        clients: args.clients.clone(),
        scrapers: args.scrapers.clone(),
        joiners: args.joiners.clone(),
        join_port: args.join_port,
        mesh_ports: BTreeSet::from([args.mesh_port]),
        http_ports: BTreeSet::from([args.http_port]),
        data_ports: (args.base_port..=last).collect(),
    }
}

fn of_mesh(args: &NftablesArgs, members: &Members, status: &ClusterStatus) -> Result<Rules> {
    ensure!(
        !members.members.is_empty(),
        "the agent knows of no hosts yet: name them with --hosts, or try again"
    );
    let mut rules = of_hosts(args);
    rules.mesh = format!("mesh {:?}", members.mesh_name);
    let mut ips: BTreeSet<IpAddr> = members.members.iter().map(|member| member.addr.ip()).collect();
    rules.mesh_ports = members.members.iter().map(|member| member.addr.port()).collect();
    let http: BTreeSet<u16> = members.members.iter().filter_map(|m| Some(m.http_addr?.port())).collect();
    if !http.is_empty() {
        rules.http_ports = http;
    }
    if let Some(plan) = &status.plan {
        // A removed host is to be shut out.
        let removed = |id| status.hosts.iter().any(|host| host.id == id && host.removed);
        let stays = |instance: &&PlannedInstance| !removed(plan.host_of(instance).id);
        let addrs: Vec<_> = plan.instances.iter().filter(stays).map(|i| plan.addr_of(i)).collect();
        rules.data_ports = addrs.iter().map(|addr| addr.port()).collect();
        ips.extend(addrs.iter().map(|addr| addr.ip()));
    }
    rules.members = ips.into_iter().map(Network::from).collect();
    Ok(rules)
}

/// Ports as ranges: `6379-6478, 7000`.
fn ranges(ports: &BTreeSet<u16>) -> String {
    let mut ranges: Vec<(u16, u16)> = Vec::new();
    for &port in ports {
        match ranges.last_mut() {
            Some((_, last)) if last.checked_add(1) == Some(port) => *last = port,
            _ => ranges.push((port, port)),
        }
    }
    let text = ranges.iter().map(|(a, b)| if a == b { a.to_string() } else { format!("{a}-{b}") });
    text.collect::<Vec<_>>().join(", ")
}

fn set(name: &str, networks: &[Network]) -> String {
    let mut text = String::new();
    for (suffix, kind, v4) in [("4", "ipv4_addr", true), ("6", "ipv6_addr", false)] {
        let of_kind: BTreeSet<_> = networks.iter().filter(|network| network.ip.is_ipv4() == v4).collect();
        let elements: Vec<_> = of_kind.iter().map(ToString::to_string).collect();
        let elements = if elements.is_empty() {
            String::new()
        } else {
            format!("\n        elements = {{ {} }}", elements.join(", "))
        };
        text.push_str(&format!(
            "    set {name}{suffix} {{\n        type {kind}\n        flags interval\n        \
             auto-merge{elements}\n    }}\n"
        ));
    }
    text
}

fn render(rules: &Rules) -> String {
    let bus: BTreeSet<u16> = rules.data_ports.iter().filter_map(|p| p.checked_add(BUS_PORT_OFFSET)).collect();
    let (mesh, http) = (ranges(&rules.mesh_ports), ranges(&rules.http_ports));
    let (data, bus, join) = (ranges(&rules.data_ports), ranges(&bus), rules.join_port);
    let sets = [
        set("members", &rules.members),
        set("operators", &rules.operators),
        set("clients", &rules.clients),
        set("scrapers", &rules.scrapers),
        set("joiners", &rules.joiners),
    ];
    let accept = |from: &str, ports: &str| {
        format!("        ip saddr @{from}4 {ports} accept\n        ip6 saddr @{from}6 {ports} accept\n")
    };
    let accepted = [
        accept("members", &format!("udp dport {{ {mesh} }}")),
        accept("operators", &format!("udp dport {{ {mesh} }}")),
        accept("joiners", &format!("udp dport {{ {join} }}")),
        accept("members", &format!("tcp dport {{ {data}, {bus} }}")),
        accept("clients", &format!("tcp dport {{ {data} }}")),
        accept("scrapers", &format!("tcp dport {{ {http} }}")),
        accept("members", &format!("tcp dport {{ {http} }}")),
    ];
    format!(
        "#!/usr/sbin/nft -f\n\
         # Ports of {}: the same rules on each of its hosts.\n\
         # It replaces the table redmesh and touches no other; what this accepts, another\n\
         # table may still drop.\n\
         table inet redmesh\n\
         delete table inet redmesh\n\
         table inet redmesh {{\n\
         {}\
         \x20   chain input {{\n\
         \x20       type filter hook input priority filter; policy accept;\n\
         \x20       iif lo accept\n\
         {}\
         \x20       udp dport {{ {mesh}, {join} }} drop\n\
         \x20       tcp dport {{ {data}, {bus}, {http} }} drop\n\
         \x20   }}\n\
         }}\n",
        rules.mesh,
        sets.concat(),
        accepted.concat()
    )
}

#[cfg(test)]
mod tests {
    use super::*;

    fn args() -> NftablesArgs {
        NftablesArgs {
            hosts: ["a=10.0.0.1", "b=10.0.0.2", "c=fd00::3"].map(|host| host.parse().unwrap()).to_vec(),
            instances_per_host: 100,
            base_port: 6379,
            mesh_port: 7379,
            http_port: 7380,
            join_port: 7381,
            joiners: vec!["10.0.0.0/24".parse().unwrap()],
            clients: vec!["10.1.0.0/16".parse().unwrap()],
            operators: vec!["10.3.0.1".parse().unwrap()],
            scrapers: vec!["10.2.0.5".parse().unwrap()],
        }
    }

    #[test]
    fn rules_are_as_they_were_looked_at() {
        assert_eq!(render(&of_hosts(&args())), include_str!("golden/redmesh.nft"));
    }

    #[test]
    fn ports_are_ranges() {
        assert_eq!(ranges(&BTreeSet::from([1, 2, 3, 5, 65535])), "1-3, 5, 65535");
    }

    #[test]
    fn networks_are_checked() {
        for text in ["10.0.0.0/33", "10.0.0", "::/129", "10.0.0.0/", "a; flush ruleset"] {
            assert!(text.parse::<Network>().is_err(), "{text}");
        }
        assert_eq!("10.0.0.1/32".parse::<Network>().unwrap().to_string(), "10.0.0.1");
    }
}
