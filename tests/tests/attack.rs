//! Attacks on a real agent from outside: what they cost it, and that others are served.
//!
//! Nothing is timed. An attack goes on in the background while an operator asks and has
//! to get answers; the agent's memory is held against a bound that is far above what it
//! needs and far below what an attack would cost without limits.

use std::net::{SocketAddr, UdpSocket};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::time::Duration;

use quinn::{ClientConfig, Connection, Endpoint, TransportConfig, VarInt};
use redmesh_api::codec::{self, Channel, Direction};
use redmesh_api::control::ControlRequest;
use redmesh_api::frames;
use redmesh_api::tls::{self, Identity};
use redmesh_tests::{Mesh, MeshBuilder, until};

const SOON: Duration = Duration::from_secs(60);

/// What an attack may cost the agent's resident memory, bytes.
const COST_BYTES_MAX: u64 = 128 * 1024 * 1024;

/// Attempts of a flood.
const FLOOD: usize = 10_000;

/// Attempts of a flood under way at a time.
const AT_ONCE: usize = 200;

/// Answers that an operator must get while an attack goes on.
const ANSWERS: usize = 20;

fn resident(mesh: &Mesh) -> u64 {
    let status = procfs::process::Process::new(mesh.agent_pid(0)).and_then(|agent| agent.status());
    status.expect("the agent's status").vmrss.expect("a process has memory") * 1024
}

fn agent(mesh: &Mesh) -> SocketAddr {
    mesh.agent_addr(0).parse().expect("an address")
}

/// An address of the mesh's own loopback network that no host has.
fn attacker(mesh: &Mesh, last: u8) -> SocketAddr {
    let mut host = agent(mesh);
    if let std::net::IpAddr::V4(ip) = host.ip() {
        let [a, b, _, _] = ip.octets();
        host = SocketAddr::from(([a, b, 9, last], 0));
    }
    host
}

fn identity(mesh: &Mesh, name: &str) -> Identity {
    Identity::load(&mesh.dir().join("pki").join(name)).expect("an identity")
}

/// A client that trusts the mesh's CA, has no certificate and speaks `alpn`.
fn stranger(mesh: &Mesh, alpn: &[u8]) -> ClientConfig {
    let provider = Arc::new(rustls::crypto::ring::default_provider());
    let mut config = rustls::ClientConfig::builder_with_provider(provider)
        .with_protocol_versions(&[&rustls::version::TLS13])
        .expect("TLS 1.3")
        .with_root_certificates(identity(mesh, "tester").roots().clone())
        .with_no_client_auth();
    config.alpn_protocols = vec![alpn.to_vec()];
    let crypto = quinn::crypto::rustls::QuicClientConfig::try_from(config).expect("QUIC over TLS 1.3");
    ClientConfig::new(Arc::new(crypto))
}

fn endpoint(from: SocketAddr) -> Endpoint {
    Endpoint::client(from).expect("a socket")
}

async fn connect(endpoint: &Endpoint, config: ClientConfig, to: SocketAddr) -> Result<Connection, String> {
    let connecting =
        endpoint.connect_with(config, to, &to.ip().to_string()).map_err(|error| error.to_string())?;
    connecting.await.map_err(|error| error.to_string())
}

fn runtime() -> tokio::runtime::Runtime {
    tokio::runtime::Builder::new_multi_thread().worker_threads(2).enable_all().build().expect("a runtime")
}

/// Runs `attack` until it ends and an operator has got its answers meanwhile.
fn under<F: Future<Output = ()> + Send + 'static>(mesh: &Mesh, attack: impl FnOnce(Arc<AtomicBool>) -> F) {
    let before = resident(mesh);
    let runtime = runtime();
    let enough = Arc::new(AtomicBool::new(false));
    let attacking = runtime.spawn(attack(enough.clone()));
    let mut most = 0;
    for _ in 0..ANSWERS {
        mesh.json_at(0, &["members"]);
        most = most.max(resident(mesh));
    }
    enough.store(true, Ordering::Relaxed);
    until("the attack to end", SOON * 5, || {
        most = most.max(resident(mesh));
        attacking.is_finished().then_some(())
    });
    runtime.block_on(attacking).expect("the attack itself does not fail");
    mesh.json_at(0, &["members"]);
    let cost = most.saturating_sub(before);
    assert!(cost < COST_BYTES_MAX, "{before} bytes before, {most} at the most");
}

/// `FLOOD` attempts, [`AT_ONCE`] at a time.
async fn flood(endpoints: Vec<Endpoint>, config: ClientConfig, to: SocketAddr, let_in: Arc<AtomicUsize>) {
    let mut tasks = tokio::task::JoinSet::new();
    for n in 0..FLOOD {
        if tasks.len() >= AT_ONCE {
            tasks.join_next().await;
        }
        let (endpoint, config, let_in) =
            (endpoints[n % endpoints.len()].clone(), config.clone(), let_in.clone());
        tasks.spawn(async move {
            // A client without a certificate takes itself for connected until it is told.
            if let Ok(connection) = connect(&endpoint, config, to).await {
                let mut bytes = Vec::new();
                let asked = async {
                    let (mut send, mut recv) = connection.open_bi().await.ok()?;
                    let payload = codec::encode(&ControlRequest::Members).ok()?;
                    frames::write_frame(&mut send, Channel::Control, Direction::Request, &payload)
                        .await
                        .ok()?;
                    send.finish().ok()?;
                    bytes = recv.read_to_end(1 << 20).await.ok()?;
                    Some(())
                };
                if asked.await.is_some() {
                    let_in.fetch_add(1, Ordering::Relaxed);
                }
            }
        });
    }
    while tasks.join_next().await.is_some() {}
}

#[test]
fn floods_of_handshakes_cost_little_and_others_are_served() {
    let mesh = MeshBuilder::new(1).ready();
    let to = agent(&mesh);
    for alpn in [tls::ALPN, b"h3"] {
        let config = stranger(&mesh, alpn);
        let from: Vec<_> = (1..=4).map(|last| attacker(&mesh, last)).collect();
        let let_in = Arc::new(AtomicUsize::new(0));
        let counted = let_in.clone();
        under(&mesh, |_| async move {
            flood(from.into_iter().map(endpoint).collect(), config, to, counted).await
        });
        assert_eq!(let_in.load(Ordering::Relaxed), 0, "a stranger got an answer");
    }
    assert!(mesh.log(0).contains("refused a connection"));
}

/// First datagrams of connections that will never go on: taken from a client that dials
/// an address where nobody answers.
async fn first_datagrams(config: &ClientConfig, from: SocketAddr, count: usize) -> Vec<Vec<u8>> {
    let sink = tokio::net::UdpSocket::bind(from).await.expect("a socket");
    let to = sink.local_addr().expect("an address");
    let client = endpoint(from);
    let mut datagrams = Vec::new();
    let mut buffer = vec![0; 2048];
    for _ in 0..count {
        let connecting = client.connect_with(config.clone(), to, "127.0.0.1").expect("dials");
        let received = tokio::time::timeout(SOON, sink.recv(&mut buffer)).await;
        let length = received.expect("a datagram in time").expect("a datagram");
        datagrams.push(buffer[..length].to_vec());
        drop(connecting);
    }
    datagrams
}

#[test]
fn handshakes_that_are_begun_and_left_cost_little_and_others_are_served() {
    let mesh = MeshBuilder::new(1).ready();
    let (to, config, from) = (agent(&mesh), stranger(&mesh, tls::ALPN), attacker(&mesh, 1));
    under(&mesh, |_| async move {
        let datagrams = first_datagrams(&config, from, 500).await;
        // From many sources, none of which will ever prove that it is there.
        for round in 0..FLOOD / datagrams.len() {
            let mut source = from;
            if let std::net::IpAddr::V4(ip) = source.ip() {
                let [a, b, c, _] = ip.octets();
                source = SocketAddr::from(([a, b, c, 10 + round as u8], 0));
            }
            let socket = UdpSocket::bind(source).expect("a socket");
            for datagram in &datagrams {
                // A full buffer is the network's way to lose one.
                let _ = socket.send_to(datagram, to);
                tokio::task::yield_now().await;
            }
        }
    });
}

#[test]
fn streams_that_are_opened_and_left_cost_little_and_others_are_served() {
    let mesh = MeshBuilder::new(1).ready();
    let to = agent(&mesh);
    let config = tls::quic_client_config(&identity(&mesh, "tester")).expect("TLS");
    let from = attacker(&mesh, 1);
    under(&mesh, |enough| async move {
        let client = endpoint(from);
        let header = codec::header(Channel::Control, Direction::Request, 60_000).expect("a header");
        while !enough.load(Ordering::Relaxed) {
            let mut held = Vec::new();
            for _ in 0..16 {
                let Ok(connection) = connect(&client, config.clone(), to).await else { continue };
                for _ in 0..tls::STRANGER_STREAMS_MAX / 2 {
                    let Ok((mut send, recv)) = connection.open_bi().await else { break };
                    // All that was announced but the last byte.
                    let _ = send.write_all(&header).await;
                    let _ =
                        tokio::time::timeout(Duration::from_millis(20), send.write_all(&[0; 59_999])).await;
                    held.push((send, recv));
                }
            }
        }
    });
}

/// Asks again and again on connections on which the agent can't send a byte of its answers.
async fn never_read(identity: Identity, from: SocketAddr, to: SocketAddr, enough: Arc<AtomicBool>) {
    let client = endpoint(from);
    let mut config = tls::quic_client_config(&identity).expect("TLS");
    let mut transport = TransportConfig::default();
    transport
        .stream_receive_window(VarInt::from_u32(0))
        .keep_alive_interval(Some(Duration::from_secs(1)))
        .max_idle_timeout(None);
    config.transport_config(Arc::new(transport));
    let payload = codec::encode(&ControlRequest::Members).expect("encodes");
    let mut connections = Vec::new();
    for _ in 0..8 {
        connections.push(connect(&client, config.clone(), to).await.expect("an operator is let in"));
    }
    // Dropped, a stream would tell the agent not to send.
    let mut unread = Vec::new();
    while !enough.load(Ordering::Relaxed) {
        for connection in &connections {
            for _ in 0..tls::STRANGER_STREAMS_MAX / 2 {
                let opened = tokio::time::timeout(Duration::from_millis(20), connection.open_bi());
                let Ok(Ok((mut send, recv))) = opened.await else { break };
                // A stream that the agent has given up is none to write on.
                let _ = frames::write_frame(&mut send, Channel::Control, Direction::Request, &payload).await;
                let _ = send.finish();
                unread.push(recv);
            }
        }
        tokio::time::sleep(Duration::from_millis(50)).await;
    }
    assert!(connections.iter().all(|connection| connection.close_reason().is_none()));
    // Still there, still not reading.
    std::future::pending().await
}

#[test]
fn answers_that_nobody_reads_make_the_agent_busy_and_then_free_again() {
    let mesh = MeshBuilder::new(1).ready();
    let runtime = runtime();
    let before = resident(&mesh);
    let enough = Arc::new(AtomicBool::new(false));
    let (to, from) = (agent(&mesh), attacker(&mesh, 1));
    let attack = runtime.spawn(never_read(identity(&mesh, "tester"), from, to, enough.clone()));
    // All that the agent serves at once is waiting to be read: it says so, at once.
    until("an operator to be told that the agent is busy", SOON, || {
        let output = mesh.ctl_at(0, &["members"]);
        let said = String::from_utf8_lossy(&output.stderr);
        let busy = said.contains("busy: this agent serves 64 requests already");
        assert!(busy || output.status.success(), "{said}");
        assert!(!busy || output.status.code() == Some(3), "{said}");
        busy.then_some(())
    });
    enough.store(true, Ordering::Relaxed);
    // It gives them up after a while, and serves others though they never went away.
    until("the agent to serve again", SOON, || mesh.try_json_at(0, &["members"]));
    assert!(!attack.is_finished(), "the attack failed");
    assert!(resident(&mesh).saturating_sub(before) < COST_BYTES_MAX);
    attack.abort();
}

#[test]
fn an_operator_with_too_many_connections_is_told_that_the_agent_is_busy() {
    let mesh = MeshBuilder::new(1).ready();
    let runtime = runtime();
    let (to, client) = (agent(&mesh), runtime.block_on(async { endpoint(attacker(&mesh, 1)) }));
    let config = tls::quic_client_config(&identity(&mesh, "tester")).expect("TLS");
    let mut held = Vec::new();
    // How many there may be is the agent's; each that is let in stays.
    let busy = until("an operator to be told that the agent is busy", SOON, || {
        held.push(runtime.block_on(connect(&client, config.clone(), to)));
        let output = mesh.ctl_at(0, &["members"]);
        let said = String::from_utf8_lossy(&output.stderr).into_owned();
        assert!(output.status.success() || output.status.code() == Some(3), "{said}");
        (!output.status.success()).then_some(said)
    });
    for words in ["busy: 32 connections of operator tester are open already", "ask another agent"] {
        assert!(busy.contains(words), "{busy}");
    }
    assert!(!busy.contains("no trust"), "{busy}");
    // What may change something waits for its turn, as long as it was given.
    let changing = mesh.ctl_at(0, &["run", "stop", "--timeout", "1"]);
    let said = String::from_utf8_lossy(&changing.stderr);
    assert!(changing.status.code() == Some(3) && said.contains("busy: 32 connections"), "{said}");
    client.close(VarInt::from_u32(0), b"");
    until("the agent to serve again", SOON, || mesh.try_json_at(0, &["members"]));
}

#[test]
fn a_read_only_operator_asks_any_agent_and_changes_nothing_through_any() {
    let mesh = MeshBuilder::new(3).ready();
    let issued = mesh.ctl(&["pki", "issue", "--dir", "pki", "--operator", "rose", "--read-only"]);
    assert!(issued.status.success(), "{}", String::from_utf8_lossy(&issued.stderr));
    mesh.ok_at(0, &["cluster", "create", "--instances-per-host", "1"]);
    mesh.ok_at(0, &["run", "start", "--workers", "3", "--writes", "100"]);
    let coordinator = mesh.coordinator_at(0).expect("a coordinator");
    for host in 0..3 {
        let agent = mesh.agent_addr(host);
        let ctl = |args: &[&str]| {
            let mut all = vec!["--agent", &agent, "--identity", "pki/rose"];
            all.extend(args);
            mesh.ctl(&all)
        };
        for asking in [
            &["members"][..],
            &["cluster", "info"],
            &["cluster", "check"],
            &["run", "list"],
            &["run", "show"],
        ] {
            let output = ctl(asking);
            assert!(output.status.success(), "{asking:?}: {}", String::from_utf8_lossy(&output.stderr));
        }
        for changing in [
            &["cluster", "create", "--instances-per-host", "1"][..],
            &["run", "start", "--workers", "3", "--writes", "100"],
            &["run", "stop"],
            &["run", "verify"],
            &["run", "share", "--host", "host-1", "--workers", "1"],
        ] {
            let output = ctl(changing);
            let said = String::from_utf8_lossy(&output.stderr);
            assert!(said.contains("certificate of rose, a read-only operator's"), "{changing:?}: {said}");
            assert_eq!(output.status.code(), Some(1), "{changing:?}: {said}");
        }
        // Before it was passed on to the coordinator, where this is another one.
        assert!(mesh.log(host).contains("refused by its certificate's role"), "{host} of {coordinator}");
    }
    let runs = mesh.json_at(0, &["run", "list"]);
    let count = runs.as_array().or_else(|| runs["runs"].as_array()).map(Vec::len);
    assert_eq!(count, Some(1), "{runs}");
}

#[test]
fn servers_want_a_password_that_stands_in_no_log_argument_or_readable_file() {
    use std::os::unix::fs::PermissionsExt;

    let mesh = MeshBuilder::new(3).ready();
    mesh.ok_at(0, &["cluster", "create", "--instances-per-host", "2", "--replicas", "1"]);
    let password = mesh.redis_password();
    assert_eq!(mesh.redis_cli(0, 6379, &["PING"]), "PONG");
    let stranger = std::process::Command::new("redis-cli")
        .args(["-h", &mesh.ip(0), "-p", "6379", "PING"])
        .env_remove("REDISCLI_AUTH")
        .output()
        .expect("run redis-cli");
    assert!(String::from_utf8_lossy(&stranger.stdout).contains("NOAUTH"));
    // Clients have one user, agents another; locking clients out leaves the agents in.
    assert_eq!(mesh.redis_cli(0, 6379, &["ACL", "WHOAMI"]), "default");
    let users = mesh.redis_cli(0, 6379, &["ACL", "LIST"]);
    assert!(users.contains("user redmesh on") && users.contains("user default on"), "{users}");
    mesh.ok_at(1, &["run", "start", "--workers", "10", "--writes", "2000"]);
    for host in 0..3 {
        for port in [6379, 6380] {
            mesh.redis_cli(host, port, &["ACL", "SETUSER", "default", "off"]);
        }
    }
    mesh.ok_at(1, &["run", "start", "--workers", "10", "--writes", "2000"]);
    mesh.ok_at(1, &["cluster", "check"]);
    // Replicas log in by themselves.
    let secret = std::fs::read_to_string(mesh.dir().join("pki/redis.secret")).expect("read the secret");
    let confs: Vec<_> = (0..3)
        .map(|host| mesh.host_dir(host).join("redis_cluster/6379/redis.conf"))
        .map(|path| std::fs::read_to_string(path).expect("read a redis.conf"))
        .collect();
    let agents = confs[0].lines().find_map(|line| line.strip_prefix("masterauth ")).expect("masterauth");
    let secrets = [password.as_str(), secret.trim(), agents];
    let holds = |bytes: &[u8]| {
        secrets.iter().any(|secret| bytes.windows(secret.len()).any(|window| window == secret.as_bytes()))
    };
    let mut dirs = vec![mesh.dir().to_owned()];
    let mut holding = 0;
    while let Some(dir) = dirs.pop() {
        for entry in std::fs::read_dir(&dir).expect("list").flatten() {
            let path = entry.path();
            if path.is_dir() {
                dirs.push(path);
            } else if holds(&std::fs::read(&path).unwrap_or_default()) {
                holding += 1;
                let mode = std::fs::metadata(&path).expect("stat").permissions().mode();
                assert_eq!(mode & 0o077, 0, "{} may be read by others", path.display());
                let name = path.file_name().and_then(|name| name.to_str()).expect("a name");
                assert!(["redis.conf", "redis.secret"].contains(&name), "{}", path.display());
            }
        }
    }
    // One in the CA's directory, one of each host, one of each server.
    assert_eq!(holding, 1 + 3 + 6);
    for process in redmesh_tests::process::below(mesh.dir()) {
        for file in ["cmdline", "environ"] {
            let bytes = std::fs::read(format!("/proc/{}/{file}", process.pid)).unwrap_or_default();
            assert!(!holds(&bytes), "{file} of {process:?}");
        }
    }
    let operator = mesh.dir().join("pki/tester/redis.secret");
    assert!(!operator.exists(), "an operator has the secret");
}

#[test]
fn without_authentication_servers_are_as_redis_makes_them_and_no_secret_is_needed() {
    let mut mesh = MeshBuilder::new(3).without_redis_auth().ready();
    for host in 0..3 {
        mesh.kill_agent(host);
        let secret = mesh.dir().join(format!("pki/host-{}/redis.secret", host + 1));
        std::fs::remove_file(secret).expect("a host is issued the secret");
        mesh.start_agent(host);
    }
    mesh.await_members(3);
    // The coordinator may have heard of fewer as yet.
    let create = ["cluster", "create", "--instances-per-host", "1"];
    until("the cluster", SOON, || mesh.ctl_at(0, &create).status.success().then_some(()));
    let open = std::process::Command::new("redis-cli")
        .args(["-h", &mesh.ip(0), "-p", "6379", "PING"])
        .env_remove("REDISCLI_AUTH")
        .output()
        .expect("run redis-cli");
    assert_eq!(String::from_utf8_lossy(&open.stdout).trim(), "PONG");
    mesh.ok_at(1, &["run", "start", "--workers", "10", "--writes", "2000"]);
}

#[test]
fn without_the_secret_an_agent_says_what_to_do_and_starts_no_open_server() {
    use std::os::unix::fs::PermissionsExt;

    let mut mesh = MeshBuilder::new(1).expecting(2).start();
    let secret = mesh.dir().join("pki/host-1/redis.secret");
    let text = std::fs::read_to_string(&secret).expect("a host is issued the secret");
    mesh.kill_agent(0);
    std::fs::set_permissions(&secret, std::fs::Permissions::from_mode(0o644)).expect("open it");
    let said = |mesh: &Mesh| {
        let check = mesh.agent_command(0, &["check-config"]);
        assert_eq!(check.status.code(), Some(1));
        String::from_utf8_lossy(&check.stderr).into_owned()
    };
    let words = said(&mesh);
    assert!(words.contains("mode 0644") && words.contains("chmod 600"), "{words}");
    assert!(!words.contains(text.trim()), "{words}");
    std::fs::remove_file(&secret).expect("lose it");
    let words = said(&mesh);
    assert!(words.contains("host-1/redis.secret") && words.contains("redmeshctl pki issue"), "{words}");
    mesh.start_agent(0);
    until("the agent to give up", SOON, || (!mesh.agent_runs(0)).then_some(()));
    let log = mesh.log(0);
    assert!(log.contains("redis.secret") && log.contains("redmeshctl pki issue"), "{log}");
    std::fs::write(&secret, text).expect("copy it");
    std::fs::set_permissions(&secret, std::fs::Permissions::from_mode(0o600)).expect("close it");
    assert!(mesh.agent_command(0, &["check-config"]).status.success());
}

#[test]
fn a_renewed_certificate_is_taken_up_by_a_running_agent_and_a_broken_one_is_not() {
    let mesh = MeshBuilder::new(2).ready();
    let (to, runtime) = (agent(&mesh), runtime());
    let config = tls::quic_client_config(&identity(&mesh, "tester")).expect("TLS");
    let presented = || {
        let (from, config) = (attacker(&mesh, 1), config.clone());
        let connection = runtime.block_on(async { connect(&endpoint(from), config, to).await });
        tls::chain_of(&connection.expect("the agent answers")).expect("a certificate")
    };
    let old = presented();
    assert_eq!(old, identity(&mesh, "host-1").chain());
    let key = mesh.dir().join("pki/host-1/key.pem");
    let whole = std::fs::read(&key).expect("read a key");
    std::fs::write(&key, "broken").expect("break a key");
    until("the agent to say that it can't use it", SOON, || {
        mesh.log(0).contains("the changed identity can't be used, the old one stays").then_some(())
    });
    assert_eq!(presented(), old);
    std::fs::write(&key, whole).expect("mend a key");
    let renewed =
        mesh.ctl(&["pki", "issue", "--dir", "pki", "--host", "host-1", "--ip", &mesh.ip(0), "--renew"]);
    assert!(renewed.status.success(), "{}", String::from_utf8_lossy(&renewed.stderr));
    let new = identity(&mesh, "host-1");
    assert_ne!(new.chain(), old);
    until("the agent to present the new one", SOON, || (presented() == new.chain()).then_some(()));
    mesh.await_members(2);
}
