//! Hosts that come without a certificate: let in by a token, or not.

use std::fs;
use std::net::SocketAddr;
use std::os::unix::fs::PermissionsExt;
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use redmesh_api::codec::{self, Channel};
use redmesh_api::frames;
use redmesh_api::ids::MeshId;
use redmesh_api::join::{
    CaPin, EXPORTER_BYTES, EXPORTER_LABEL, JoinAsk, JoinRefusal, JoinReply, JoinRequest, JoinToken,
};
use redmesh_api::tls::{self, Identity};
use redmesh_tests::{Mesh, MeshBuilder, until};

const SOON: Duration = Duration::from_secs(30);

/// Makes a token by redmeshctl, in place of the one there; its id.
fn token(mesh: &Mesh, options: &[&str]) -> String {
    let file = mesh.token_file();
    let _ = fs::remove_file(&file);
    let create = ["join-token", "create", "--out", file.to_str().expect("UTF-8")];
    let made = mesh.json_at(0, &[&create[..], options].concat());
    assert_eq!(fs::metadata(&file).expect("stat").permissions().mode() & 0o777, 0o600);
    made["id"].as_str().expect("an id").to_owned()
}

fn state(mesh: &Mesh, id: &str) -> String {
    let tokens = mesh.json_at(1, &["join-token", "list"]);
    let tokens = tokens["tokens"].as_array().expect("a list");
    let token = tokens.iter().find(|token| token["id"] == id).expect("it is listed");
    token["state"].as_str().expect("a state").to_owned()
}

/// `redmesh-agent join` of a spare host must fail with these words.
#[track_caller]
fn refused(mesh: &Mesh, host: usize, words: &str) {
    let output = mesh.agent_command(host, &["join"]);
    let said = String::from_utf8_lossy(&output.stderr).into_owned();
    assert!(!output.status.success() && said.contains(words), "{words:?} is not in: {said}");
    assert!(!mesh.identity_dir(host).join("cert.pem").exists());
}

fn put(mesh: &Mesh, token: &JoinToken) {
    fs::write(mesh.token_file(), token.text()).expect("write a token");
}

#[test]
fn a_host_joins_by_token_and_never_needs_it_again() {
    let mut mesh = MeshBuilder::new(2).signers(1).spare(2).ready();
    let id = token(&mesh, &["--ttl", "10m"]);
    assert!(state(&mesh, &id).starts_with("good for "));
    let checked = mesh.agent_command(2, &["check-config"]);
    let said = String::from_utf8_lossy(&checked.stdout).into_owned();
    assert!(checked.status.success() && said.contains(&format!("host-3 at {} joins", mesh.ip(2))), "{said}");

    mesh.start_agent(2);
    mesh.await_members(3);
    let dir = mesh.identity_dir(2);
    assert_eq!(fs::metadata(dir.join("key.pem")).expect("a key").permissions().mode() & 0o777, 0o600);
    let identity = Identity::load(&dir).expect("an identity");
    assert!(identity.name() == "host-3" && identity.chain().len() == 2, "the signer's stands beside it");
    assert_eq!(state(&mesh, &id), "used up");
    // It is a host like any other.
    mesh.ok_at(0, &["cluster", "create", "--instances-per-host", "1"]);

    // The next one is one too many, and says so.
    mesh.start_agent(3);
    until("the fourth host's agent to give up", SOON, || (!mesh.agent_runs(3)).then_some(()));
    assert!(mesh.log(3).contains("is used up: it was good for 1 hosts"), "{}", mesh.log(3));

    fs::remove_file(mesh.token_file()).expect("no token any more");
    mesh.kill_agent(2);
    mesh.start_agent(2);
    mesh.await_members(3);
    let again = mesh.agent_command(2, &["join"]);
    assert!(String::from_utf8_lossy(&again.stderr).contains("has a certificate already"));
}

#[test]
fn who_may_not_join_is_told_why_once_the_secret_is_proven() {
    let mesh = MeshBuilder::new(2).signers(2).spare(1).ready();
    let id = token(&mesh, &["--ttl", "1s"]);
    until("the token to expire", SOON, || (state(&mesh, &id) == "expired").then_some(()));
    refused(&mesh, 2, &format!("join token {id} expired"));

    let id = token(&mesh, &[]);
    mesh.ok_at(0, &["join-token", "revoke", &id]);
    assert_eq!(state(&mesh, &id), "revoked");
    refused(&mesh, 2, &format!("join token {id} has been revoked"));
    let unknown = mesh.ctl_at(0, &["join-token", "revoke", "0123456789abcdef"]);
    assert!(String::from_utf8_lossy(&unknown.stderr).contains("no join token 0123456789abcdef"));

    // A name that another host has, and an address that isn't its own.
    token(&mesh, &[]);
    let output = mesh.agent_command(2, &["join", "--name", "host-1"]);
    let said = String::from_utf8_lossy(&output.stderr).into_owned();
    assert!(said.contains("host-1 is here already"), "{said}");
    let other = format!("mesh.advertise={}:7379", mesh.ip(7));
    let output = mesh.agent_command(2, &["--set", &other, "join"]);
    let said = String::from_utf8_lossy(&output.stderr).into_owned();
    assert!(said.contains("a token gives only that address"), "{said}");

    // Another secret, and another CA: whoever is asked has nothing to say, or is not asked.
    let good = JoinToken::load(&mesh.token_file()).expect("a token");
    put(&mesh, &JoinToken::generate(good.mesh, good.ca).expect("a token"));
    refused(&mesh, 2, "this mesh has no such join token");
    put(&mesh, &JoinToken::generate(good.mesh, CaPin::of(b"another")).expect("a token"));
    refused(&mesh, 2, "can't be trusted");
    // What was refused has used nothing up.
    put(&mesh, &good);
    let joined = mesh.agent_command(2, &["join"]);
    assert!(joined.status.success(), "{}", String::from_utf8_lossy(&joined.stderr));
}

/// A stranger at the join port.
struct Stranger {
    endpoint: quinn::Endpoint,
    ip: std::net::IpAddr,
    agent: SocketAddr,
}

impl Stranger {
    fn new(mesh: &Mesh, pin: CaPin) -> Self {
        let ip = mesh.ip(2).parse().expect("an address");
        let agent = format!("{}:7381", mesh.ip(0)).parse().expect("an address");
        let mut endpoint = quinn::Endpoint::client(SocketAddr::new(ip, 0)).expect("a socket");
        endpoint.set_default_client_config(tls::join_client_config(pin).expect("TLS"));
        Self { endpoint, ip, agent }
    }

    async fn connect(&self) -> quinn::Connection {
        let name = self.agent.ip().to_string();
        self.endpoint.connect(self.agent, &name).expect("dials").await.expect("is let in")
    }

    /// A request that is proven on `connection`.
    fn request(&self, token: &JoinToken, mesh: MeshId, connection: &quinn::Connection) -> Vec<u8> {
        let key = rcgen::KeyPair::generate().expect("a key");
        let csr = rcgen::CertificateParams::default().serialize_request(&key).expect("a request");
        let now = SystemTime::now().duration_since(UNIX_EPOCH).expect("after 1970");
        let ask = JoinAsk {
            mesh,
            name: "raw".to_owned(),
            ip: self.ip,
            csr: csr.der().to_vec(),
            unix_ms: now.as_millis() as u64,
        };
        let ask = codec::encode(&ask).expect("encodes");
        let mut binding = [0; EXPORTER_BYTES];
        connection.export_keying_material(&mut binding, EXPORTER_LABEL, b"").expect("exports");
        let proof = token.prove(&ask, &binding).expect("a proof");
        codec::encode(&JoinRequest { token: token.id(), ask, proof }).expect("encodes")
    }
}

async fn ask(connection: &quinn::Connection, channel: Channel, request: &[u8]) -> Result<JoinReply, String> {
    let streams = connection.open_bi().await.map_err(|error| error.to_string())?;
    let reply = frames::exchange(streams, channel, request)
        .await
        .map_err(|error| redmesh_api::error_chain(&error))??;
    codec::decode(&reply).map_err(|error| redmesh_api::error_chain(&error))
}

#[test]
fn a_proof_is_worth_nothing_twice_and_strangers_are_heard_on_one_thing_alone() {
    let mesh = MeshBuilder::new(1).signers(1).spare(2).ready();
    token(&mesh, &["--uses", "5"]);
    let token = JoinToken::load(&mesh.token_file()).expect("a token");
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().expect("a runtime");
    runtime.block_on(async {
        let stranger = Stranger::new(&mesh, token.ca);
        // What was overheard, even whole, is refused on any other connection.
        let first = stranger.connect().await;
        let request = stranger.request(&token, token.mesh, &first);
        let second = stranger.connect().await;
        let replayed = ask(&second, Channel::Join, &request).await;
        assert_eq!(replayed, Ok(JoinReply::Refused(JoinRefusal::unproven())));
        assert!(matches!(ask(&first, Channel::Join, &request).await, Ok(JoinReply::Joined(_))));
        // One request a connection.
        assert!(ask(&first, Channel::Join, &request).await.is_err());

        // A token of another mesh under the same CA, told apart once it is proven.
        let third = stranger.connect().await;
        let other = MeshId(uuid::Uuid::from_u128(1));
        let request = stranger.request(&token, other, &third);
        match ask(&third, Channel::Join, &request).await {
            Ok(JoinReply::Refused(refusal)) => assert!(refusal.message.contains("is for mesh"), "{refusal}"),
            other => panic!("{other:?}"),
        }
        for channel in [Channel::Control, Channel::Peer, Channel::Raft, Channel::Hello, Channel::Gossip] {
            let connection = stranger.connect().await;
            assert!(ask(&connection, channel, b"").await.is_err(), "{channel:?} was answered");
        }
        // And the agents' own port hears nobody without a certificate, nor this protocol.
        let agents = SocketAddr::new(stranger.agent.ip(), 7379);
        let dialled = stranger.endpoint.connect(agents, &agents.ip().to_string()).expect("dials");
        assert!(dialled.await.is_err());
        // Whoever asks again and again is made to wait, and others aren't.
        let mut waits = false;
        for _ in 0..60 {
            let connection = stranger.connect().await;
            let request = stranger.request(&token, other, &connection);
            if let Ok(JoinReply::Refused(refusal)) = ask(&connection, Channel::Join, &request).await {
                waits |= refusal.message.contains("too many requests");
            }
        }
        assert!(waits, "60 requests at once were all looked at");
    });
    let joined = mesh.agent_command(2, &["--set", &format!("mesh.listen={}:7379", mesh.ip(3)), "join"]);
    assert!(joined.status.success(), "{}", String::from_utf8_lossy(&joined.stderr));
    mesh.ok_at(0, &["members"]);
}
