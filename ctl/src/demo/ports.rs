//! Whether all of a demo's ports are free, and if not, who holds one.

use std::io;
use std::net::{IpAddr, SocketAddr, TcpListener, UdpSocket};

use procfs::process::{FDTarget, all_processes};
use redmesh_api::level::BUS_PORT_OFFSET;

use super::plan::DemoPlan;

/// A port that can't be had.
#[derive(Debug, thiserror::Error)]
#[error("{protocol} port {addr} ({what}) can't be used{holder}; choose others with {remedy}")]
pub struct PortError {
    protocol: Protocol,
    addr: SocketAddr,
    what: &'static str,
    holder: String,
    remedy: &'static str,
    #[source]
    source: io::Error,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Protocol {
    Tcp,
    Udp,
}

impl std::fmt::Display for Protocol {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(match self {
            Self::Tcp => "TCP",
            Self::Udp => "UDP",
        })
    }
}

/// Tries every port of every host once. Another process may still take one between
/// this look and its use; then the agent says so.
pub fn check(plan: &DemoPlan) -> Result<(), PortError> {
    for (at, ip) in plan.ips.iter().enumerate() {
        let ip = IpAddr::V4(*ip);
        check_one(Protocol::Udp, plan.agent(at), "agent", "--mesh-port")?;
        check_one(Protocol::Tcp, plan.http(at), "the agent's /metrics", "--mesh-port")?;
        for port in plan.data_ports() {
            check_one(Protocol::Tcp, (ip, port).into(), "data", "--base-port")?;
            check_one(Protocol::Tcp, (ip, port + BUS_PORT_OFFSET).into(), "cluster bus", "--base-port")?;
        }
    }
    Ok(())
}

fn check_one(
    protocol: Protocol,
    addr: SocketAddr,
    what: &'static str,
    remedy: &'static str,
) -> Result<(), PortError> {
    let tried = match protocol {
        Protocol::Tcp => TcpListener::bind(addr).map(drop),
        Protocol::Udp => UdpSocket::bind(addr).map(drop),
    };
    tried.map_err(|source| {
        let holder = match holder(protocol, addr) {
            Some(holder) => format!(", {holder} holds it"),
            None => String::new(),
        };
        PortError { protocol, addr, what, holder, remedy, source }
    })
}

/// The process that holds `addr`, as far as /proc shows it to this user.
fn holder(protocol: Protocol, addr: SocketAddr) -> Option<String> {
    let inode = inode(protocol, addr)?;
    all_processes().ok()?.filter_map(Result::ok).find_map(|process| {
        let held = process.fd().ok()?.filter_map(Result::ok).any(|fd| fd.target == FDTarget::Socket(inode));
        if !held {
            return None;
        }
        let name = process.stat().map_or_else(|_| "a process".to_owned(), |stat| stat.comm);
        Some(format!("{name} (pid {})", process.pid()))
    })
}

fn inode(protocol: Protocol, addr: SocketAddr) -> Option<u64> {
    let tcp = || procfs::net::tcp().into_iter().chain(procfs::net::tcp6()).flatten();
    let udp = || procfs::net::udp().into_iter().chain(procfs::net::udp6()).flatten();
    let holds = |local: SocketAddr| {
        local.port() == addr.port() && (local.ip().is_unspecified() || local.ip().to_canonical() == addr.ip())
    };
    match protocol {
        Protocol::Tcp => tcp().find(|entry| holds(entry.local_address) && entry.inode != 0).map(|e| e.inode),
        Protocol::Udp => udp().find(|entry| holds(entry.local_address)).map(|entry| entry.inode),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_taken_port_is_named_with_its_holder_and_the_remedy() {
        let tcp = TcpListener::bind("127.31.9.1:0").unwrap();
        let udp = UdpSocket::bind("127.31.9.1:0").unwrap();
        for (protocol, addr) in
            [(Protocol::Tcp, tcp.local_addr().unwrap()), (Protocol::Udp, udp.local_addr().unwrap())]
        {
            let error = check_one(protocol, addr, "data", "--base-port").unwrap_err().to_string();
            let pid = format!("(pid {})", std::process::id());
            for words in [addr.to_string(), pid, "--base-port".to_owned(), protocol.to_string()] {
                assert!(error.contains(&words), "{words} in {error}");
            }
        }
        // The wildcard holds all addresses.
        let all = TcpListener::bind("0.0.0.0:0").unwrap();
        let addr = SocketAddr::new("127.31.9.2".parse().unwrap(), all.local_addr().unwrap().port());
        assert!(check_one(Protocol::Tcp, addr, "data", "--base-port").is_err());
    }
}
