//! Whether a TCP port is taken, and by whom.
//!
//! The kernel lists all listening sockets before any connection (Linux
//! `Documentation/networking/proc_net_tcp.rst`), so the search for a port's holder stops
//! at the first connection: a host with 200,000 bus links has a short list as well.

use std::collections::HashSet;
use std::fs::File;
use std::io::{self, BufRead, BufReader};
use std::net::{IpAddr, SocketAddr, TcpListener};

use rustix::io::Errno;
use rustix::net::{AddressFamily, SocketFlags, SocketType, bind, socket_with, sockopt};
use serde::{Deserialize, Serialize};

/// Lines read of one table at the most.
const LINES_MAX: usize = 100_000;

/// `TCP_LISTEN` of the kernel's `tcp_states.h`, as printed.
const LISTEN: &str = "0A";

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct Listener {
    addr: SocketAddr,
    inode: u64,
}

/// Whether somebody listens at `addr`, itself or by way of the unspecified address.
///
/// Asked by binding with SO_REUSEADDR, which fails against a listener and only against
/// one: microseconds, where `/proc/net/tcp` costs a walk through the kernel's whole
/// connection table. A server that binds or listens at the same moment isn't disturbed,
/// for it sets SO_REUSEADDR too and this socket never listens.
pub(super) fn is_listened(addr: SocketAddr) -> bool {
    let family = if addr.is_ipv4() { AddressFamily::INET } else { AddressFamily::INET6 };
    let bind = || {
        let socket = socket_with(family, SocketType::STREAM, SocketFlags::CLOEXEC, None)?;
        sockopt::set_socket_reuseaddr(&socket, true)?;
        bind(&socket, &addr)
    };
    matches!(bind(), Err(Errno::ADDRINUSE))
}

/// Why a port can't be listened at.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, thiserror::Error)]
#[error("{words}; {remedy}")]
pub struct PortProblem {
    /// What is wrong, and by whom.
    pub words: String,
    /// What to do.
    pub remedy: String,
}

/// Tries to listen at `addr`; says in words with a remedy why that can't be.
pub(super) fn check_free(addr: SocketAddr, what: &str) -> Result<(), PortProblem> {
    let error = match TcpListener::bind(addr) {
        Ok(_) => return Ok(()),
        Err(error) => error,
    };
    let ip = addr.ip();
    let (words, remedy) = match error.kind() {
        io::ErrorKind::AddrInUse => {
            let holder =
                holder(addr).unwrap_or_else(|| "another process (not visible to the agent's user)".into());
            (
                format!("{what} {addr} is taken by {holder}"),
                "stop it, or set redis.base_port to other ports (or redis.ip to another address)",
            )
        }
        io::ErrorKind::AddrNotAvailable => {
            (format!("{ip} is not an address of this host"), "set redis.ip to one that is (see: ip address)")
        }
        io::ErrorKind::PermissionDenied => (
            format!("{what} {addr} may not be bound by the agent's user"),
            "set redis.base_port to 1024 or higher",
        ),
        _ => (format!("{what} {addr} can't be bound: {error}"), "set redis.ip or redis.base_port to another"),
    };
    Err(PortProblem { words, remedy: remedy.to_owned() })
}

/// Who listens at `addr`: `redis-server (pid 17, /usr/bin/redis-check-rdb)`.
fn holder(addr: SocketAddr) -> Option<String> {
    let inodes: HashSet<u64> = listeners()
        .ok()?
        .into_iter()
        .filter(|l| l.addr.port() == addr.port())
        .filter(|l| l.addr.ip() == addr.ip() || l.addr.ip().is_unspecified())
        .map(|l| l.inode)
        .collect();
    if inodes.is_empty() {
        return Some("a connection that uses it as its own port".into());
    }
    procfs::process::all_processes().ok()?.flatten().find_map(|process| {
        let ours = process.fd().ok()?.flatten().any(|fd| match fd.target {
            procfs::process::FDTarget::Socket(inode) => inodes.contains(&inode),
            _ => false,
        });
        if !ours {
            return None;
        }
        let name = process.stat().map_or_else(|_| "a process".into(), |stat| stat.comm);
        let exe = process.exe().map(|exe| format!(", {}", exe.display())).unwrap_or_default();
        Some(format!("{name} (pid {}{exe})", process.pid))
    })
}

fn listeners() -> io::Result<Vec<Listener>> {
    let mut all = read_table("/proc/net/tcp")?;
    // A kernel without IPv6 has no such table.
    all.extend(read_table("/proc/net/tcp6").unwrap_or_default());
    Ok(all)
}

fn read_table(path: &str) -> io::Result<Vec<Listener>> {
    parse_table(BufReader::new(File::open(path)?))
}

fn parse_table(reader: impl BufRead) -> io::Result<Vec<Listener>> {
    let mut listeners = Vec::new();
    for line in reader.lines().skip(1).take(LINES_MAX) {
        let line = line?;
        let mut words = line.split_ascii_whitespace();
        let (local, state) = (words.nth(1), words.nth(1));
        if state != Some(LISTEN) {
            break;
        }
        let inode = words.nth(5).and_then(|inode| inode.parse().ok());
        if let (Some(addr), Some(inode)) = (local.and_then(parse_addr), inode) {
            listeners.push(Listener { addr, inode });
        }
    }
    Ok(listeners)
}

/// `0100007F:1F90`: the address as words in the machine's byte order, the port in hex.
fn parse_addr(text: &str) -> Option<SocketAddr> {
    let (ip, port) = text.split_once(':')?;
    let port = u16::from_str_radix(port, 16).ok()?;
    let word = |at: usize| u32::from_str_radix(ip.get(at * 8..at * 8 + 8)?, 16).ok().map(u32::to_ne_bytes);
    let ip = match ip.len() {
        8 => IpAddr::from(word(0)?),
        32 => {
            let mut bytes = [0; 16];
            for (at, chunk) in bytes.chunks_exact_mut(4).enumerate() {
                chunk.copy_from_slice(&word(at)?);
            }
            IpAddr::from(bytes)
        }
        _ => return None,
    };
    Some(SocketAddr::new(ip, port))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn finds_a_listener_and_names_its_process() {
        let listener = TcpListener::bind("127.77.250.1:0").unwrap();
        let addr = listener.local_addr().unwrap();
        assert!(is_listened(addr));
        let words = check_free(addr, "data port").unwrap_err().to_string();
        assert!(words.contains(&format!("pid {}", std::process::id())), "{words}");
        assert!(words.contains("redis.base_port"), "{words}");
        drop(listener);
        assert!(!is_listened(addr));
        assert_eq!(check_free(addr, "data port"), Ok(()));
    }

    #[test]
    fn says_when_an_address_is_not_ours() {
        let words = check_free("192.0.2.1:20001".parse().unwrap(), "data port").unwrap_err().to_string();
        assert!(words.contains("not an address of this host"), "{words}");
    }

    #[test]
    fn asking_disturbs_nobody_who_begins_to_listen() {
        let addr: SocketAddr = "127.77.250.2:20001".parse().unwrap();
        let asking = std::sync::atomic::AtomicBool::new(true);
        std::thread::scope(|scope| {
            scope.spawn(|| {
                while asking.load(std::sync::atomic::Ordering::Relaxed) {
                    is_listened(addr);
                }
            });
            let failed = (0..2000).find_map(|_| TcpListener::bind(addr).err());
            asking.store(false, std::sync::atomic::Ordering::Relaxed);
            assert!(failed.is_none(), "{failed:?}");
        });
    }

    #[test]
    fn any_address_counts_as_listened() {
        let listener = TcpListener::bind("0.0.0.0:0").unwrap();
        let port = listener.local_addr().unwrap().port();
        assert!(is_listened(SocketAddr::new([127, 77, 250, 3].into(), port)));
    }

    #[test]
    fn reads_the_kernels_table() {
        let table = "  sl  local_address rem_address   st tx_queue rx_queue tr tm->when retrnsmt   uid  timeout inode\n\
             0: 0100007F:1F90 00000000:0000 0A 00000000:00000000 00:00000000 00000000     0        0 4242 1 0 100 0 0 10 0\n\
             1: 0000000000000000FFFF00000100007F:1F91 00000000000000000000000000000000:0000 0A 00000000:00000000 00:00000000 00000000     0        0 7 1\n\
             2: 0100007F:1F92 0100007F:0001 01 00000000:00000000 00:00000000 00000000     0        0 8 1\n\
             3: 0100007F:1F93 00000000:0000 0A 00000000:00000000 00:00000000 00000000     0        0 9 1\n";
        let listeners = parse_table(table.as_bytes()).unwrap();
        assert_eq!(listeners.len(), 2, "reading stops at the first connection");
        assert_eq!(listeners[0], Listener { addr: "127.0.0.1:8080".parse().unwrap(), inode: 4242 });
        assert_eq!(listeners[1].addr.port(), 0x1f91);
        for text in ["", ":", "xx:1", "0100007F:zz", "0100007:1", "é100007F:1F90"] {
            assert_eq!(parse_addr(text), None, "{text:?}");
        }
    }
}
