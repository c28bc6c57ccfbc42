//! The engine through TLS, against one real redis-server.

use std::net::{IpAddr, TcpListener, TcpStream};
use std::process::{Child, Command, Stdio};

use redmesh_api::workload::{VALUE_BYTES_MAX, ValueBytes};

use super::*;
use crate::redis_tls::RedisTls;
use crate::transport::quic::testing::TestCa;

/// A server that has all slots, killed with the value.
struct Server {
    addr: SocketAddr,
    child: Child,
    dir: TempDir,
}

impl Drop for Server {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

/// Each test has an address of its own: 127.79.2.`last`.
fn ip(last: u8) -> IpAddr {
    IpAddr::from([127, 79, 2, last])
}

impl Server {
    /// With a certificate of `ca` for `named`; its clients must have one of `clients`, if
    /// that is given.
    fn start(last: u8, ca: &TestCa, named: IpAddr, clients: Option<&TestCa>) -> Self {
        let dir = tempfile::tempdir().expect("a directory");
        ca.write_host(dir.path(), "h", &[named], clients.unwrap_or(ca));
        let port = TcpListener::bind((ip(last), 0)).expect("binds").local_addr().expect("an address").port();
        let port = 20_000 + port % 30_000;
        let addr = SocketAddr::from((ip(last), port));
        let file = |name: &str| dir.path().join(name).display().to_string();
        let child = Command::new("redis-server")
            .args(["--bind", &ip(last).to_string(), "--port", "0", "--tls-port", &port.to_string()])
            .args(["--tls-auth-clients", if clients.is_some() { "yes" } else { "optional" }])
            .args(["--tls-cert-file", &file("cert.pem"), "--tls-key-file", &file("key.pem")])
            .args(["--tls-ca-cert-file", &file("ca.pem"), "--tls-cluster", "yes"])
            .args(["--cluster-enabled", "yes", "--save", "", "--daemonize", "no", "--dir", &file("")])
            .stdin(Stdio::null())
            .stdout(Stdio::null())
            .spawn()
            .expect("redis-server is installed");
        let server = Self { addr, child, dir };
        wait_for("redis-server to listen", || TcpStream::connect(addr).is_ok());
        server
    }

    /// By redis-cli, as a client with the server's own certificate.
    fn ask(&self, words: &[&str]) -> String {
        let file = |name: &str| self.dir.path().join(name);
        let output = Command::new("redis-cli")
            .args(["--tls", "--cacert"])
            .arg(file("ca.pem"))
            .arg("--cert")
            .arg(file("cert.pem"))
            .arg("--key")
            .arg(file("key.pem"))
            .args(["-h", &self.addr.ip().to_string(), "-p", &self.addr.port().to_string()])
            .args(words)
            .output()
            .expect("run redis-cli");
        assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
        String::from_utf8_lossy(&output.stdout).trim().to_owned()
    }

    fn serve_all(self) -> Self {
        assert_eq!(self.ask(&["CLUSTER", "ADDSLOTSRANGE", "0", "16383"]), "OK");
        wait_for("the cluster to be well", || self.ask(&["CLUSTER", "INFO"]).contains("cluster_state:ok"));
        self
    }
}

fn with(ca: &TestCa, last: u8, spec: ShareSpec) -> ShareSpec {
    let tls = RedisTls::new(&ca.host("agent", &[ip(last)]), ip(last)).expect("an identity");
    ShareSpec { tls: Some(tls), ..spec }
}

fn short() -> Limits {
    Limits { write_deadline: Duration::from_secs(1), ..Limits::default() }
}

fn map(server: &Server) -> SlotMap {
    SlotMap::new(even(&[server.addr])).expect("a map")
}

#[test]
fn the_ledger_closes_to_the_last_write() {
    let ca = TestCa::new();
    let server = Server::start(1, &ca, ip(1), None).serve_all();
    let two = ShareSpec { threads: 2, ..spec(100, ShareUntil::Writes(50_000)) };
    let bench = Bench::start(with(&ca, 1, two), map(&server), Limits::default());
    let counts = bench.close();
    assert_eq!((counts.issued, counts.acked), (50_000, 50_000), "{:?}", bench.handle.error());
    assert_eq!(server.ask(&["DBSIZE"]), "50000");
}

#[test]
fn values_larger_than_all_buffers_arrive() {
    let ca = TestCa::new();
    let server = Server::start(2, &ca, ip(2), None).serve_all();
    let mut workload = Workload::uuid_counter();
    workload.value = ValueBytes::Fixed(VALUE_BYTES_MAX);
    let large = ShareSpec { task: Task::Load(Arc::new(workload)), ..spec(20, ShareUntil::Writes(200)) };
    let bench = Bench::start(with(&ca, 2, large), map(&server), Limits::default());
    let counts = bench.close();
    assert_eq!((counts.issued, counts.acked), (200, 200), "{:?}", bench.handle.error());
    assert_eq!(server.ask(&["DBSIZE"]), "200");
}

#[test]
fn a_server_of_a_foreign_ca_or_another_address_gets_nothing() {
    for (last, foreign) in [(3, true), (4, false)] {
        let (ca, other) = (TestCa::new(), TestCa::new());
        let named = if foreign { ip(last) } else { ip(200) };
        let server = Server::start(last, if foreign { &other } else { &ca }, named, None).serve_all();
        let bench = Bench::start(with(&ca, last, spec(10, ShareUntil::Writes(50))), map(&server), short());
        wait_for("writes to fail", || bench.handle.counts().failed > 0);
        bench.handle.stop();
        let counts = bench.close();
        assert_eq!((counts.acked, counts.unknown), (0, 0), "{counts:?}");
        let error = bench.handle.error().expect("an error");
        assert!(error.contains("certificate"), "{error}");
        assert_eq!(server.ask(&["DBSIZE"]), "0");
    }
}

#[test]
fn a_server_that_does_not_take_the_certificate_gets_nothing() {
    let (ca, other) = (TestCa::new(), TestCa::new());
    // The server shows a certificate that the agent takes, and wants one of another CA.
    let server = Server::start(5, &ca, ip(5), Some(&other));
    let bench = Bench::start(with(&ca, 5, spec(10, ShareUntil::Writes(50))), map(&server), short());
    wait_for("writes to end", || bench.handle.counts().in_flight() < bench.handle.counts().issued);
    bench.handle.stop();
    let counts = bench.close();
    assert_eq!(counts.acked, 0, "{counts:?}");
    assert!(bench.handle.error().is_some());
}

#[test]
fn a_plain_server_gets_nothing() {
    let fake = fake::FakeServer::start(|_| fake::ok());
    let ca = TestCa::new();
    let map = SlotMap::new(even(&[fake.addr])).expect("a map");
    let bench = Bench::start(with(&ca, 6, spec(5, ShareUntil::Writes(20))), map, short());
    wait_for("writes to fail", || bench.handle.counts().failed > 0);
    bench.handle.stop();
    let counts = bench.close();
    assert_eq!((counts.acked, counts.unknown), (0, 0), "{counts:?}");
    assert!(fake.log().is_empty(), "not a word in plain text");
}
