//! Real QUIC on 127.42.0.0/24.

mod admission;
mod attack;

use std::net::IpAddr;
use std::sync::OnceLock;

use proptest::prelude::*;
use redmesh_api::codec::{self, CodecError, Direction, HEADER_BYTES, PROTOCOL_VERSION};
use redmesh_api::frames::CLOSE_REFUSED;
use redmesh_api::level::{RemovedHost, RevokedOperator};
use time::Duration as Days;
use tracing_subscriber::fmt::MakeWriter;
use uuid::Uuid;

use super::testing::TestCa;
use super::*;

const DEADLINE: Duration = Duration::from_secs(20);
const SECRET: [u8; 32] = [7; 32];

fn ip(last: u8) -> IpAddr {
    IpAddr::from([127, 42, 0, last])
}

fn ca() -> &'static TestCa {
    static CA: OnceLock<TestCa> = OnceLock::new();
    CA.get_or_init(TestCa::new)
}

/// Answers with its name, the asker's and what was asked; a payload "bad" can't be decoded.
struct Echo(&'static str);

#[async_trait]
impl Handler for Echo {
    async fn handle(&self, peer: &Peer, channel: Channel, payload: Bytes) -> Result<Vec<u8>, CodecError> {
        if payload == "bad" {
            return Err(CodecError::Channel { got: 99 });
        }
        let who = match peer {
            Peer::Agent { name, id, .. } => format!("{name}/{id}"),
            Peer::Operator { name, role: Role::Operator, .. } => name.clone(),
            Peer::Operator { name, role, .. } => format!("{name}/{role}"),
        };
        Ok(format!("{}<{who} {channel:?} {}", self.0, String::from_utf8_lossy(&payload)).into_bytes())
    }
}

struct Node {
    quic: Arc<QuicTransport>,
    addr: SocketAddr,
    mesh: watch::Sender<Option<MeshId>>,
}

struct Start {
    name: &'static str,
    last: u8,
    port: u16,
    boot_id: u64,
    mesh_name: &'static str,
    mesh_id: Option<MeshId>,
    identity: Option<Identity>,
    id: Option<u32>,
    barred: watch::Receiver<Barred>,
}

impl Start {
    fn new(name: &'static str, last: u8) -> Self {
        let barred = watch::channel(Barred::default()).1;
        Self {
            name,
            last,
            port: 0,
            boot_id: 1,
            mesh_name: "m",
            mesh_id: None,
            identity: None,
            id: None,
            barred,
        }
    }

    fn options(&self) -> (QuicOptions, watch::Sender<Option<MeshId>>) {
        let (mesh, mesh_id) = watch::channel(self.mesh_id);
        let addr = SocketAddr::new(ip(self.last), self.port);
        let identity = self.identity.clone().unwrap_or_else(|| ca().host(self.name, &[ip(self.last)]));
        let options = QuicOptions {
            wire: None,
            listen: addr,
            advertise: addr,
            identity,
            host_secret: SECRET,
            local: LocalPeer {
                id: HostId(self.id.unwrap_or(u32::from(self.last))),
                boot_id: self.boot_id,
                mesh_name: self.mesh_name.into(),
            },
            mesh_id,
            barred: self.barred.clone(),
        };
        (options, mesh)
    }

    fn bind(&self) -> Node {
        let (options, mesh) = self.options();
        let quic = QuicTransport::bind(options).unwrap();
        quic.serve(Arc::new(Echo(self.name)));
        Node { addr: quic.advertise_addr(), quic, mesh }
    }
}

impl Node {
    fn start(name: &'static str, last: u8) -> Self {
        Start::new(name, last).bind()
    }

    async fn ask(&self, to: &Self, channel: Channel, payload: &str) -> Result<String, TransportError> {
        let answer = self.quic.request(to.addr, channel, payload.into(), DEADLINE).await?;
        Ok(String::from_utf8(answer.to_vec()).unwrap())
    }
}

async fn close_all(nodes: &[&Node]) {
    for node in nodes {
        node.quic.close().await;
    }
}

/// Polls until it holds.
async fn until<F: AsyncFnMut() -> bool>(what: &str, mut holds: F) {
    let end = Instant::now() + DEADLINE;
    while !holds().await {
        assert!(Instant::now() < end, "{what}: not within {DEADLINE:?}");
        tokio::time::sleep(Duration::from_millis(10)).await;
    }
}

fn words(result: Result<impl fmt::Debug, TransportError>) -> String {
    match result.unwrap_err() {
        TransportError::Refused { reason, .. } => reason,
        other => panic!("not refused, but: {other:?}"),
    }
}

/// The log of this thread; a test's tasks all run on it.
#[derive(Clone, Default)]
struct Log(Arc<Mutex<Vec<u8>>>);

impl io::Write for Log {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        self.0.lock().unwrap().extend_from_slice(bytes);
        Ok(bytes.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

impl<'a> MakeWriter<'a> for Log {
    type Writer = Self;

    fn make_writer(&'a self) -> Self {
        self.clone()
    }
}

impl Log {
    fn begin() -> (Self, tracing::subscriber::DefaultGuard) {
        let log = Self::default();
        let subscriber = tracing_subscriber::fmt().with_ansi(false).with_writer(log.clone()).finish();
        (log, tracing::subscriber::set_default(subscriber))
    }

    fn text(&self) -> String {
        String::from_utf8_lossy(&self.0.lock().unwrap()).into_owned()
    }
}

/// A client that does what it wants.
struct Raw {
    endpoint: Endpoint,
    connection: Connection,
}

impl Raw {
    async fn connect(identity: &Identity, from: u8, to: SocketAddr) -> Result<Self, quinn::ConnectionError> {
        Self::connect_with(tls::quic_client_config(identity).unwrap(), from, to).await
    }

    async fn connect_with(
        config: quinn::ClientConfig,
        from: u8,
        to: SocketAddr,
    ) -> Result<Self, quinn::ConnectionError> {
        let endpoint = Endpoint::client(SocketAddr::new(ip(from), 0)).unwrap();
        let connection = endpoint.connect_with(config, to, &to.ip().to_string()).unwrap().await?;
        Ok(Self { endpoint, connection })
    }

    async fn exchange(&self, channel: Channel, payload: &[u8]) -> Result<Result<Bytes, String>, FrameError> {
        let streams = self.connection.open_bi().await.map_err(FrameError::Connection)?;
        timeout(DEADLINE, frames::exchange(streams, channel, payload)).await.unwrap()
    }

    async fn hello(&self, hello: &Hello) -> Result<Hello, String> {
        let reply = self.exchange(Channel::Hello, &codec::encode(hello).unwrap()).await.unwrap().unwrap();
        match codec::decode(&reply).unwrap() {
            HelloReply::Welcome(hello) => Ok(hello),
            HelloReply::Refused { reason } | HelloReply::Removed { reason } => Err(reason),
        }
    }

    /// How the connection ended, in words.
    async fn end(&self) -> String {
        let error = timeout(DEADLINE, self.connection.closed()).await.unwrap();
        tls::explain(&error).unwrap_or_else(|| error.to_string())
    }
}

fn hello(name: &str, last: u8) -> Hello {
    Hello {
        protocol: HELLO_PROTOCOL,
        id: HostId(0x100 + u32::from(last)),
        name: name.into(),
        boot_id: 5,
        addr: (ip(last), 1).into(),
        mesh_name: "m".into(),
        mesh_id: None,
        agent_version: "0".into(),
    }
}

#[tokio::test]
async fn requests_go_both_ways_over_one_dial_each() {
    let (a, b) = (Node::start("a", 1), Node::start("b", 2));
    let asks = (0..50).map(|n| {
        let (a, b) = (&a, &b);
        async move {
            let text = n.to_string();
            let (there, back) = tokio::join!(a.ask(b, Channel::Peer, &text), b.ask(a, Channel::Raft, &text));
            assert_eq!(there.unwrap(), format!("b<a/00000001 Peer {n}"));
            assert_eq!(back.unwrap(), format!("a<b/00000002 Raft {n}"));
        }
    });
    futures_util::future::join_all(asks).await;
    assert_eq!(a.ask(&a, Channel::Peer, "self").await.unwrap(), "a<a/00000001 Peer self");
    for node in [&a, &b] {
        assert_eq!((node.quic.stats().links, node.quic.stats().connections), (1, 2));
    }
    let large = "x".repeat(3_000_000);
    assert!(a.ask(&b, Channel::Peer, &large).await.unwrap().len() > large.len());
    close_all(&[&a, &b]).await;
}

#[tokio::test]
async fn a_request_that_cannot_be_decoded_or_sent_says_so() {
    let (a, b) = (Node::start("a", 3), Node::start("b", 4));
    assert_eq!(words(a.ask(&b, Channel::Peer, "bad").await), "frame for unknown channel 99");
    let large = "x".repeat(redmesh_api::limits::FRAME_BYTES_MAX + 1);
    let error = a.ask(&b, Channel::Peer, &large).await.unwrap_err();
    assert!(matches!(error, TransportError::Codec { .. }), "{error}");
    // An answer that fits its request's limit but, with what Echo adds, no frame.
    let full = "x".repeat(redmesh_api::limits::FRAME_BYTES_MAX);
    assert!(words(a.ask(&b, Channel::Peer, &full).await).contains("at most"));
    close_all(&[&a, &b]).await;
}

#[tokio::test]
async fn requests_wait_for_a_handler_and_for_no_longer_than_their_deadline() {
    let a = Node::start("a", 5);
    let (options, _mesh) = Start::new("b", 6).options();
    let b = QuicTransport::bind(options).unwrap();
    let to = b.advertise_addr();
    let late = a.quic.request(to, Channel::Peer, vec![], Duration::from_millis(300)).await.unwrap_err();
    assert!(matches!(late, TransportError::Timeout { .. }), "{late}");
    let request = a.quic.request(to, Channel::Peer, b"x".to_vec(), DEADLINE);
    let (answer, ()) = tokio::join!(request, async { b.serve(Arc::new(Echo("b"))) });
    assert_eq!(answer.unwrap(), "b<a/00000005 Peer x");
    let nobody = SocketAddr::new(ip(6), 1);
    let error = a.quic.request(nobody, Channel::Peer, vec![], Duration::from_millis(200)).await.unwrap_err();
    assert!(matches!(error, TransportError::Unreachable { .. }), "{error}");
    b.close().await;
    close_all(&[&a]).await;
}

#[tokio::test]
async fn gossip_arrives_with_its_senders_mesh_address() {
    let (a, b) = (Node::start("a", 7), Node::start("b", 8));
    let mut arrives = b.quic.take_gossip().unwrap();
    assert!(b.quic.take_gossip().is_none());
    for n in 0..10u8 {
        a.quic.gossip(b.addr, vec![n; 1000]);
    }
    let mut got = Vec::new();
    while got.len() < 10 {
        let (from, message) = timeout(DEADLINE, arrives.recv()).await.unwrap().unwrap();
        assert_eq!((from, message.len()), (a.addr, 1000));
        got.push(message[0]);
    }
    got.sort_unstable();
    assert_eq!(got, (0..10).collect::<Vec<_>>());
    // Never waits, also when nobody is there, and also when nobody reads.
    let nobody = SocketAddr::new(ip(8), 1);
    for _ in 0..gossip::PER_PEER_MAX * 2 {
        a.quic.gossip(nobody, vec![0]);
    }
    a.quic.gossip(b.addr, vec![0; 100_000]);
    a.quic.gossip(a.addr, vec![0]);
    until("drops are counted", async || a.quic.stats().gossip_dropped_out >= gossip::PER_PEER_MAX as u64 + 2)
        .await;
    for _ in 0..GOSSIP_QUEUE_MAX * 2 {
        a.quic.gossip(b.addr, vec![0]);
        tokio::task::yield_now().await;
    }
    assert_eq!(a.ask(&b, Channel::Peer, "still").await.unwrap(), "b<a/00000007 Peer still");
    close_all(&[&a, &b]).await;
}

/// A runtime that dies with everything in it, without a goodbye: as near to kill -9 as
/// one process gets.
fn life(start: Start) -> (tokio::runtime::Runtime, Node) {
    let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(1).enable_all().build().unwrap();
    let node = runtime.block_on(async { start.bind() });
    (runtime, node)
}

#[test]
fn a_peer_that_was_killed_and_started_again_is_reached_again() {
    let (own, a) = life(Start::new("a", 50));
    let (runtime, b) = life(Start::new("b", 51));
    let addr = b.addr;
    own.block_on(a.ask(&b, Channel::Peer, "x")).unwrap();
    runtime.block_on(b.ask(&a, Channel::Peer, "x")).unwrap();
    runtime.shutdown_background();
    drop(b);
    let end = std::time::Instant::now() + DEADLINE;
    let again = || Start { port: addr.port(), boot_id: 2, ..Start::new("b", 51) };
    let (runtime, b) = loop {
        // The dead runtime's socket closes when its last thread has ended.
        match UdpSocket::bind(addr).map(drop) {
            Ok(()) => break life(again()),
            Err(error) => assert!(std::time::Instant::now() < end, "{error}"),
        }
        std::thread::yield_now();
    };
    own.block_on(until("reached again", async || a.ask(&b, Channel::Peer, "y").await.is_ok()));
    assert_eq!(runtime.block_on(b.ask(&a, Channel::Peer, "z")).unwrap(), "a<b/00000033 Peer z");
    own.block_on(close_all(&[&a]));
    runtime.block_on(close_all(&[&b]));
}

#[tokio::test]
async fn closing_says_goodbye_and_leaves_nothing_running() {
    let (a, b) = (Node::start("a", 52), Node::start("b", 53));
    a.ask(&b, Channel::Peer, "x").await.unwrap();
    b.ask(&a, Channel::Peer, "x").await.unwrap();
    b.quic.close().await;
    assert!(b.quic.shared.tasks.is_empty());
    let error = b.ask(&a, Channel::Peer, "x").await.unwrap_err();
    assert!(matches!(error, TransportError::Unreachable { .. }), "{error}");
    until("a has heard", async || a.quic.stats().connections == 0).await;
    close_all(&[&a]).await;
    assert!(a.quic.shared.tasks.is_empty());
}

#[tokio::test]
async fn an_address_that_is_taken_or_wrong_is_named_with_the_remedy() {
    let a = Node::start("a", 54);
    let taken = Start { port: a.addr.port(), ..Start::new("a", 54) };
    let error = QuicTransport::bind(taken.options().0).unwrap_err().to_string();
    assert!(error.contains(&format!("{}/udp is in use", a.addr)), "{error}");
    let (mut options, _mesh) = Start::new("a", 54).options();
    options.advertise = SocketAddr::new(ip(55), 0);
    let error = QuicTransport::bind(options).unwrap_err().to_string();
    assert!(error.contains("--host a --ip 127.42.0.55 --renew"), "{error}");
    let (mut options, _mesh) = Start::new("a", 54).options();
    options.listen = "192.0.2.1:0".parse().unwrap();
    let error = QuicTransport::bind(options).unwrap_err();
    assert!(matches!(error, BindError::NoSuchAddress { .. }), "{error}");
    close_all(&[&a]).await;
}

#[tokio::test]
async fn a_dead_link_leaves_the_pool() {
    let a = Node::start("a", 62);
    for _ in 0..3 {
        let b = Node::start("b", 63);
        a.ask(&b, Channel::Peer, "x").await.unwrap();
        b.quic.close().await;
        until("the dead link is gone", async || a.quic.stats().links == 0).await;
    }
    close_all(&[&a]).await;
}
