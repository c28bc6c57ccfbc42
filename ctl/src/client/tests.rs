use std::net::IpAddr;
use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};

use redmesh_api::codec::Direction;
use redmesh_api::control::{RefusalKind, RunRef};
use redmesh_api::run::{RunSpec, RunUntil};
use redmesh_api::workload::Workload;
use tokio::task::JoinHandle;

use super::*;
use crate::pki;

const DEADLINE: Duration = Duration::from_secs(10);
const IP: [u8; 4] = [127, 41, 0, 1];

struct Mesh {
    dir: tempfile::TempDir,
}

impl Mesh {
    fn new() -> Self {
        let dir = tempfile::tempdir().unwrap();
        pki::init(dir.path(), "m").unwrap();
        pki::issue_host(dir.path(), "h", &[IpAddr::from(IP)]).unwrap();
        pki::issue_operator(dir.path(), "o").unwrap();
        Self { dir }
    }

    fn identity(&self, name: &str) -> Identity {
        Identity::load(&self.dir.path().join(name)).unwrap()
    }
}

/// An agent that answers `RunList` and refuses `Members`; every other request ends the
/// connection unanswered, the first `deaf` ones of any kind too.
struct Agent {
    addr: SocketAddr,
    endpoint: Endpoint,
    asked: Arc<AtomicUsize>,
    task: JoinHandle<()>,
}

impl Agent {
    fn start(identity: &Identity, deaf: usize) -> Self {
        let config = tls::quic_server_config(identity).unwrap();
        let endpoint = Endpoint::server(config, (IP, 0).into()).unwrap();
        let addr = endpoint.local_addr().unwrap();
        let asked = Arc::new(AtomicUsize::new(0));
        let task = tokio::spawn(accept(endpoint.clone(), asked.clone(), deaf));
        Self { addr, endpoint, asked, task }
    }

    async fn stop(self) -> usize {
        self.endpoint.close(VarInt::from_u32(CLOSE_DONE), b"agent is stopping");
        self.task.await.unwrap();
        self.asked.load(Ordering::SeqCst)
    }
}

async fn accept(endpoint: Endpoint, asked: Arc<AtomicUsize>, deaf: usize) {
    while let Some(incoming) = endpoint.accept().await {
        let Ok(connection) = incoming.await else { continue };
        while let Ok((mut send, mut recv)) = connection.accept_bi().await {
            let (channel, payload) = frames::read_frame(&mut recv, Direction::Request).await.unwrap();
            let number = asked.fetch_add(1, Ordering::SeqCst);
            let reply = match codec::decode(&payload).unwrap() {
                _ if number < deaf => None,
                ControlRequest::RunList => Some(ControlReply::Runs(vec![])),
                ControlRequest::Members => Some(ControlReply::Refused(Refusal {
                    kind: RefusalKind::NoCoordinator,
                    message: "none yet".into(),
                })),
                _ => None,
            };
            let Some(reply) = reply else {
                connection.close(VarInt::from_u32(CLOSE_DONE), b"agent is stopping");
                break;
            };
            frames::write_reply(&mut send, channel, Ok(&codec::encode(&reply).unwrap())).await.unwrap();
        }
    }
}

#[tokio::test]
async fn answers_and_refusals_come_back() {
    let mesh = Mesh::new();
    let agent = Agent::start(&mesh.identity("h"), 0);
    let client = Client::connect(agent.addr, &mesh.identity("o"), DEADLINE).await.unwrap();
    assert_eq!(client.request(&ControlRequest::RunList).await.unwrap(), ControlReply::Runs(vec![]));
    let error = client.request(&ControlRequest::Members).await.unwrap_err();
    assert!(matches!(&error, ClientError::Refused(r) if r.kind == RefusalKind::NoCoordinator), "{error}");
    client.close().await;
    agent.stop().await;
}

#[tokio::test]
async fn a_lost_connection_is_made_again_but_a_run_is_never_started_twice() {
    let mesh = Mesh::new();
    let agent = Agent::start(&mesh.identity("h"), 1);
    let client = Client::connect(agent.addr, &mesh.identity("o"), DEADLINE).await.unwrap();
    assert_eq!(client.request(&ControlRequest::RunList).await.unwrap(), ControlReply::Runs(vec![]));
    assert_eq!(agent.asked.load(Ordering::SeqCst), 2);
    let spec = RunSpec::closed_loop(Workload::uuid_counter(), 1, RunUntil::Writes(1));
    let error = client.request(&ControlRequest::RunStart(spec)).await.unwrap_err();
    assert!(matches!(&error, ClientError::Lost { reason, .. } if reason == "agent is stopping"), "{error}");
    assert_eq!(agent.asked.load(Ordering::SeqCst), 3);
    assert_eq!(client.request(&ControlRequest::RunList).await.unwrap(), ControlReply::Runs(vec![]));
    let error = client.request(&ControlRequest::RunStop(RunRef::Latest)).await.unwrap_err();
    assert!(matches!(error, ClientError::Lost { .. }), "{error}");
    assert_eq!(agent.stop().await, 6, "a request that may be repeated is repeated once");
}

#[tokio::test]
async fn a_stranger_reads_why_it_is_refused() {
    let (mesh, other) = (Mesh::new(), Mesh::new());
    let agent = Agent::start(&mesh.identity("h"), 0);
    let refusal = |identity: Identity| async move {
        // The client's own handshake ends before the agent has judged the certificate.
        let error = match Client::connect(agent.addr, &identity, DEADLINE).await {
            Ok(client) => client.request(&ControlRequest::RunList).await.unwrap_err(),
            Err(error) => error,
        };
        assert!(matches!(error, ClientError::Untrusted { .. }), "{error}");
        error.to_string()
    };
    assert!(refusal(other.identity("o")).await.contains("the peer's certificate was signed by another CA"));
    let mixed = |from: &Mesh, cert: &str| {
        let out = mesh.dir.path().join("mixed");
        std::fs::create_dir(&out).unwrap();
        std::fs::copy(mesh.dir.path().join("ca.pem"), out.join("ca.pem")).unwrap();
        for file in ["cert.pem", "key.pem"] {
            std::fs::copy(from.dir.path().join(cert).join(file), out.join(file)).unwrap();
        }
        let identity = Identity::load(&out).unwrap();
        std::fs::remove_dir_all(out).unwrap();
        identity
    };
    let foreign = refusal(mixed(&other, "o")).await;
    assert!(foreign.contains("the peer says: our certificate was signed by another CA"), "{foreign}");
    expired(mesh.dir.path());
    let old = refusal(mesh.identity("old")).await;
    assert!(old.contains("our certificate has expired"), "{old}");
    assert_eq!(agent.asked.load(Ordering::SeqCst), 0);
    agent.endpoint.close(VarInt::from_u32(0), b"");
}

fn expired(dir: &Path) {
    let subject = pki::Subject::Operator { name: "old", read_only: false };
    pki::issue(dir, subject, &dir.join("old"), pki::days_since(10, 5), false).unwrap();
}

#[tokio::test]
async fn a_wrong_address_is_told_from_a_wrong_certificate() {
    let mesh = Mesh::new();
    let unused = std::net::UdpSocket::bind(SocketAddr::from((IP, 0))).unwrap().local_addr().unwrap();
    let error = Client::connect(unused, &mesh.identity("o"), DEADLINE).await.unwrap_err();
    assert!(matches!(error, ClientError::Unreachable { .. }), "{error}");
    assert!(error.to_string().contains("systemctl status redmesh-agent"), "{error}");
    // A socket that never answers.
    let silent = std::net::UdpSocket::bind(SocketAddr::from((IP, 0))).unwrap();
    let error =
        Client::connect(silent.local_addr().unwrap(), &mesh.identity("o"), Duration::from_millis(200)).await;
    assert!(error.unwrap_err().to_string().contains("no answer within 200 ms"));
    // An agent at an address that its certificate does not name.
    let config = tls::quic_server_config(&mesh.identity("h")).unwrap();
    let endpoint = Endpoint::server(config, ([127, 41, 0, 2], 0).into()).unwrap();
    let serving = endpoint.clone();
    let task = tokio::spawn(accept(serving, Arc::default(), 0));
    let error = Client::connect(endpoint.local_addr().unwrap(), &mesh.identity("o"), DEADLINE).await;
    let error = error.unwrap_err().to_string();
    assert!(error.contains("not for the address that was dialled"), "{error}");
    endpoint.close(VarInt::from_u32(0), b"");
    task.await.unwrap();
}
