//! The engine against real redis-servers in cluster mode.

use std::io::{BufRead, BufReader, Read, Write};
use std::net::{TcpListener, TcpStream};
use std::process::{Child, Command, Stdio};

use super::*;
use crate::load::workload::slot_of;
use crate::login::Login;

/// One redis-server, killed with the value.
struct Server {
    addr: SocketAddr,
    child: Child,
    _dir: TempDir,
}

impl Drop for Server {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

/// A data port whose bus port (10000 above) is free as well. The address block is this
/// module's own, the port is the kernel's choice, so parallel runs don't meet.
fn free_addr(host: u8) -> SocketAddr {
    for _ in 0..100 {
        let probe = TcpListener::bind(("127.79.0.1", 0)).expect("binds");
        let port = probe.local_addr().expect("an address").port();
        let port = 20_000 + port % 30_000;
        let addr = SocketAddr::from(([127, 79, 1, host], port));
        let bus = SocketAddr::from(([127, 79, 1, host], port + 10_000));
        if TcpListener::bind(addr).is_ok() && TcpListener::bind(bus).is_ok() {
            return addr;
        }
    }
    panic!("no free port in 100 attempts");
}

fn start(host: u8) -> Server {
    let addr = free_addr(host);
    let dir = tempfile::tempdir().expect("a directory");
    let (ip, port) = (addr.ip().to_string(), addr.port().to_string());
    let child = Command::new("redis-server")
        .args(["--bind", &ip, "--port", &port, "--cluster-announce-ip", &ip, "--cluster-enabled", "yes"])
        .args(["--cluster-node-timeout", "1000", "--appendonly", "no", "--save", "", "--daemonize", "no"])
        .arg("--dir")
        .arg(dir.path())
        .stdin(Stdio::null())
        .stdout(Stdio::null())
        .spawn()
        .expect("redis-server is installed");
    let server = Server { addr, child, _dir: dir };
    wait_for("redis-server to listen", || TcpStream::connect(addr).is_ok());
    server
}

/// One inline command; the reply's text.
fn ask(addr: SocketAddr, command: &str) -> String {
    answer_to(addr, &[command])
}

/// The reply to the last of some inline commands; the others' are lines.
fn answer_to(addr: SocketAddr, commands: &[&str]) -> String {
    let mut stream = TcpStream::connect(addr).expect("connects");
    stream.set_read_timeout(Some(DEADLINE)).expect("sets");
    commands.iter().for_each(|text| stream.write_all(format!("{text}\r\n").as_bytes()).expect("writes"));
    let command = commands.join("; ");
    let mut reader = BufReader::new(stream);
    let mut line = String::new();
    for _ in 1..commands.len() {
        reader.read_line(&mut line).expect("reads");
        assert_eq!(std::mem::take(&mut line), "+OK\r\n", "{command}");
    }
    reader.read_line(&mut line).expect("reads");
    match line.trim_end().split_at(1) {
        ("$", len) => {
            let mut bytes = vec![0; len.parse().expect("a length")];
            reader.read_exact(&mut bytes).expect("reads");
            String::from_utf8(bytes).expect("text")
        }
        ("-", error) => panic!("{command}: {error}"),
        (_, value) => value.to_owned(),
    }
}

fn number(addr: SocketAddr, command: &str) -> u64 {
    ask(addr, command).parse().expect("a number")
}

fn set_calls(addr: SocketAddr) -> u64 {
    let info = ask(addr, "INFO commandstats");
    let calls = info.lines().find_map(|line| line.strip_prefix("cmdstat_set:calls=")?.split(',').next());
    calls.map_or(0, |calls| calls.parse().expect("a number"))
}

/// A cluster of 3 primaries without replicas.
fn cluster() -> Vec<Server> {
    let servers: Vec<_> = (1..=3).map(start).collect();
    let addrs: Vec<_> = servers.iter().map(|server| server.addr).collect();
    for (i, (range, addr)) in even(&addrs).into_iter().enumerate() {
        ask(addr, &format!("CLUSTER ADDSLOTSRANGE {} {}", range.first, range.last));
        ask(addr, &format!("CLUSTER SET-CONFIG-EPOCH {}", i + 1));
    }
    for addr in &addrs[1..] {
        ask(addrs[0], &format!("CLUSTER MEET {} {}", addr.ip(), addr.port()));
    }
    wait_for("the cluster to form", || {
        addrs.iter().all(|addr| {
            let info = ask(*addr, "CLUSTER INFO");
            info.contains("cluster_state:ok") && info.contains("cluster_known_nodes:3")
        })
    });
    servers
}

#[test]
fn the_ledger_closes_to_the_last_write() {
    let servers = cluster();
    let addrs: Vec<_> = servers.iter().map(|server| server.addr).collect();
    for key in ["foo", "123456789", "a-0", "6ba7b810-9dad-11d1-80b4-00c04fd430c8-17"] {
        let keyslot = number(addrs[0], &format!("CLUSTER KEYSLOT {key}"));
        assert_eq!(keyslot, u64::from(slot_of(key.as_bytes())), "{key}");
    }
    // All slots said to be at the first server: MOVED leads to the others.
    let map = SlotMap::new(even(&addrs[..1])).expect("a map");
    let two = ShareSpec { threads: 2, ..spec(100, ShareUntil::Writes(20_000)) };
    let bench = Bench::start(two, map, Limits::default());
    let counts = bench.close();
    assert_eq!((counts.issued, counts.acked), (20_000, 20_000), "{:?}", bench.handle.error());
    assert!(counts.moved > 0 && counts.cpu_us > 0);
    assert_eq!(addrs.iter().map(|addr| number(*addr, "DBSIZE")).sum::<u64>(), 20_000);
    assert_eq!(addrs.iter().map(|addr| set_calls(*addr)).sum::<u64>(), 20_000);
    let (min, max) = bench.handle.worker_spread();
    assert!(min > 0 && min <= max);
}

#[test]
fn the_account_closes_when_a_server_is_killed() {
    let mut servers = cluster();
    let addrs: Vec<_> = servers.iter().map(|server| server.addr).collect();
    let limits = Limits { write_deadline: Duration::from_secs(2), ..Limits::default() };
    let map = SlotMap::new(even(&addrs)).expect("a map");
    let bench = Bench::start(spec(100, ShareUntil::Writes(u64::MAX)), map, limits);
    wait_for("writes", || bench.handle.counts().acked > 2000);
    let victim = servers.pop().expect("three");
    let lost = victim.addr;
    drop(victim);
    wait_for("the loss to show", || {
        bench.handle.error().is_some_and(|text| text.contains(&lost.to_string()))
            && bench.handle.counts().failed > 0
    });
    bench.handle.stop();
    let counts = bench.close();
    let executed: u64 = addrs[..2].iter().map(|addr| set_calls(*addr)).sum();
    assert!(counts.unknown <= 100, "at most one write per worker was in flight: {counts:?}");
    // A survivor has executed nothing that is counted as failed.
    assert!(executed <= counts.acked + counts.unknown, "{executed} executed, {counts:?}");
}

#[test]
fn a_password_is_given_before_anything_else() {
    let servers = cluster();
    let addrs: Vec<_> = servers.iter().map(|server| server.addr).collect();
    for addr in &addrs {
        ask(*addr, "CONFIG SET requirepass \"top secret\"");
    }
    let with = |password: &str| ShareSpec {
        logins: Login::default_user(password).into(),
        ..spec(100, ShareUntil::Writes(5_000))
    };
    assert!(!format!("{:?}", with("top secret")).contains("top secret"));
    let bench = Bench::to(with("top secret"), &addrs);
    let counts = bench.close();
    assert_eq!((counts.acked, bench.handle.error()), (5_000, None));
    let held = |addr: &SocketAddr| -> u64 {
        answer_to(*addr, &["AUTH \"top secret\"", "DBSIZE"]).parse().expect("a number")
    };
    assert_eq!(addrs.iter().map(held).sum::<u64>(), 5_000);

    // A wrong one is named, and nothing is counted as written.
    let bench = Bench::to(with("guess"), &addrs);
    let counts = bench.close();
    assert_eq!((counts.acked, counts.unknown, counts.failed), (0, 0, 5_000));
    let error = bench.handle.error().expect("an error");
    assert!(error.contains("auth") && error.contains("WRONGPASS"), "{error}");
}
