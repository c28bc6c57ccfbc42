//! Hosts that joined by token and renew their certificates by themselves: over real QUIC,
//! with certificates that were made long ago.

use std::fs;
use std::net::{IpAddr, SocketAddr};
use std::os::unix::fs::PermissionsExt;
use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use rcgen::{CertificateParams, Issuer, KeyPair};
use redmesh_agent::peer::{PeerReply, PeerRequest};
use redmesh_agent::transport::quic::{Barred, LocalPeer, QuicOptions, QuicTransport};
use redmesh_agent::transport::{Transport, TransportError};
use redmesh_api::codec::{self, Channel};
use redmesh_api::frames;
use redmesh_api::ids::HostId;
use redmesh_api::issue::{self, Validity};
use redmesh_api::tls::{self, Identity, Role};
use redmesh_tests::{Mesh, MeshBuilder, http, until};
use rustls::pki_types::CertificateDer;
use rustls::pki_types::pem::PemObject;
use time::OffsetDateTime;
use tokio::sync::watch;

const SOON: Duration = Duration::from_secs(60);
const DEADLINE: Duration = Duration::from_secs(20);

/// Writes what a host that joined `days.0` days ago, through the first host's signer, has
/// today, `days.1` days before its certificate ends.
fn joined_long_ago(mesh: &Mesh, host: usize, days: (i64, i64)) {
    let from = mesh.dir().join("pki/host-1");
    let read = |name: &str| fs::read_to_string(from.join(name)).unwrap_or_else(|e| panic!("{name}: {e}"));
    let signer = read("signer.pem");
    let der = CertificateDer::from_pem_slice(signer.as_bytes()).expect("a certificate");
    let signer_key = KeyPair::from_pem(&read("signer.key")).expect("a key");
    let issuer = Issuer::from_ca_cert_der(&der, signer_key).expect("a signer");
    let now = OffsetDateTime::now_utc();
    let validity =
        Validity { from: now - time::Duration::days(days.0), until: now + time::Duration::days(days.1) };
    let names = issue::names(Role::Host, &format!("host-{}", host + 1), &[ip(mesh, host)]);
    let key = KeyPair::generate().expect("a key");
    let leaf = issue::leaf(&names, &key, &issuer, validity).expect("a certificate");
    let dir = mesh.identity_dir(host);
    fs::create_dir_all(&dir).expect("make the identity's directory");
    for (name, text) in [
        ("ca.pem", read("ca.pem")),
        ("cert.pem", leaf.pem() + &signer),
        ("key.pem", key.serialize_pem()),
        ("redis.secret", read("redis.secret")),
    ] {
        fs::write(dir.join(name), text).expect("write");
        fs::set_permissions(dir.join(name), fs::Permissions::from_mode(0o600)).expect("chmod");
    }
}

fn ip(mesh: &Mesh, host: usize) -> IpAddr {
    mesh.ip(host).parse().expect("an address")
}

fn metric(mesh: &Mesh, host: usize, name: &str) -> Option<f64> {
    let text = http::get(&format!("{}:7380", mesh.ip(host)), "/metrics")?;
    text.lines().find_map(|line| line.strip_prefix(name)?.trim().parse().ok())
}

fn read(dir: &Path, name: &str) -> String {
    fs::read_to_string(dir.join(name)).unwrap_or_else(|error| panic!("{name}: {error}"))
}

#[test]
fn a_host_that_joined_renews_its_certificate_before_it_ends_and_goes_on() {
    let mut mesh = MeshBuilder::new(2).signers(1).spare(2).ready();
    joined_long_ago(&mesh, 2, (280, 60));
    // More than a third of this one's life is left.
    joined_long_ago(&mesh, 3, (240, 200));
    let dir = mesh.identity_dir(2);
    let (before, key, other) = (
        Identity::load(&dir).expect("loads"),
        read(&dir, "key.pem"),
        read(&mesh.identity_dir(3), "cert.pem"),
    );
    mesh.start_agent(2);
    mesh.start_agent(3);
    mesh.await_members(4);
    until("the certificate to be renewed", SOON, || {
        mesh.log(2).contains("this host's certificate was renewed").then_some(())
    });
    assert!(mesh.log(2).contains("took up a renewed certificate"), "{}", mesh.log(2));
    assert!(mesh.log(0).contains("renewed a host's certificate"), "{}", mesh.log(0));

    let after = Identity::load(&dir).expect("a whole identity");
    assert!(after.name() == "host-3" && after.names_ip(ip(&mesh, 2)) && after.role() == Role::Host);
    assert!(after.valid_until_unix_s() > before.valid_until_unix_s());
    assert!(read(&dir, "key.pem") != key, "the key is another one");
    let mode = fs::metadata(dir.join("key.pem")).expect("a key").permissions().mode();
    assert_eq!(mode & 0o777, 0o600);
    let left: Vec<_> = fs::read_dir(&dir).expect("list").flatten().map(|entry| entry.file_name()).collect();
    assert_eq!(left.len(), 4, "{left:?}");
    until("it to be counted", SOON, || {
        let until_s = after.valid_until_unix_s()? as f64;
        (metric(&mesh, 2, "redmesh_certificate_renewals_total")? == 1.0
            && metric(&mesh, 2, "redmesh_certificate_expiry_timestamp_seconds")? == until_s
            && metric(&mesh, 0, "redmesh_certificates_renewed_for_hosts_total")? == 1.0
            && metric(&mesh, 3, "redmesh_certificate_renewals_total")? == 0.0)
            .then_some(())
    });
    assert_eq!(read(&mesh.identity_dir(3), "cert.pem"), other, "it was not due");

    // With it, it is the host that it was: for whoever is dialled, and after another start.
    mesh.ok_at(2, &["cluster", "create", "--instances-per-host", "1"]);
    mesh.kill_agent(2);
    // As if it had been killed between the two files of the next renewal.
    let renewed = dir.join("renewed");
    fs::create_dir(&renewed).expect("make a directory");
    fs::rename(dir.join("cert.pem"), renewed.join("cert.pem")).expect("move");
    let checked = mesh.agent_command(2, &["check-config"]);
    assert!(checked.status.success(), "{}", String::from_utf8_lossy(&checked.stderr));
    mesh.start_agent(2);
    mesh.await_members(4);
}

/// A host's agent, as far as TLS and the hello go.
fn agent(mesh: &Mesh, host: usize, identity: &Path) -> Arc<QuicTransport> {
    let addr = SocketAddr::new(ip(mesh, host), 7379);
    QuicTransport::bind(QuicOptions {
        listen: addr,
        advertise: addr,
        identity: Identity::load(identity).expect("an identity"),
        host_secret: [7; 32],
        local: LocalPeer { id: HostId(7 + host as u32), boot_id: 1, mesh_name: "test".to_owned() },
        mesh_id: watch::channel(None).1,
        barred: watch::channel(Barred::default()).1,
        wire: None,
    })
    .expect("binds")
}

fn request() -> Vec<u8> {
    let key = KeyPair::generate().expect("a key");
    let csr = CertificateParams::default().serialize_request(&key).expect("a request");
    codec::encode(&PeerRequest::Renew { csr: csr.der().to_vec() }).expect("encodes")
}

async fn renew(agent: &QuicTransport, mesh: &Mesh) -> Result<Result<String, String>, TransportError> {
    let to = mesh.agent_addr(0).parse().expect("an address");
    let reply = agent.request(to, Channel::Peer, request(), DEADLINE).await?;
    match codec::decode(&reply).expect("decodes") {
        PeerReply::Renewed(renewed) => Ok(renewed.map_err(|refusal| refusal.message)),
        other => panic!("{other:?}"),
    }
}

#[test]
fn who_may_not_renew_is_refused() {
    let mesh = MeshBuilder::new(2).signers(1).spare(3).ready();
    joined_long_ago(&mesh, 2, (280, 60));
    joined_long_ago(&mesh, 3, (100, 200));
    let pki = mesh.dir().join("pki");
    let issued = ["pki", "issue", "--dir", pki.to_str().expect("UTF-8"), "--host", "by-hand", "--ip"];
    let issued = mesh.ctl(&[&issued[..], &[&mesh.ip(4), "--days", "1"]].concat());
    assert!(issued.status.success(), "{}", String::from_utf8_lossy(&issued.stderr));
    let runtime = tokio::runtime::Builder::new_multi_thread().enable_all().build().expect("a runtime");
    runtime.block_on(async {
        let joined = agent(&mesh, 2, &mesh.identity_dir(2));
        let renewed = renew(&joined, &mesh).await.expect("is answered").expect("is renewed");
        let chain: Vec<_> = CertificateDer::pem_slice_iter(renewed.as_bytes()).flatten().collect();
        assert_eq!(tls::peer_of(&chain).expect("a host's"), (Role::Host, "host-3".to_owned()));
        assert_eq!(tls::ips_of(&chain), [ip(&mesh, 2)]);

        let early = agent(&mesh, 3, &mesh.identity_dir(3));
        let words = renew(&early, &mesh).await.expect("is answered").expect_err("too early");
        assert!(words.contains("more than half"), "{words}");
        early.close().await;

        // The CA's keeper has said for how long.
        let by_hand = agent(&mesh, 4, &pki.join("by-hand"));
        let words = renew(&by_hand, &mesh).await.expect("is answered").expect_err("the CA's own");
        assert!(words.contains("with the CA's key"), "{words}");
        by_hand.close().await;

        // An operator is no host, whatever it asks.
        let operator = Identity::load(&pki.join("tester")).expect("an identity");
        let mut endpoint = quinn::Endpoint::client(SocketAddr::new(ip(&mesh, 3), 0)).expect("a socket");
        endpoint.set_default_client_config(tls::quic_client_config(&operator).expect("TLS"));
        let to: SocketAddr = mesh.agent_addr(0).parse().expect("an address");
        let dialled = endpoint.connect(to, &to.ip().to_string()).expect("dials");
        let connection = dialled.await.expect("connects");
        let streams = connection.open_bi().await.expect("a stream");
        let answer = frames::exchange(streams, Channel::Peer, &request()).await.expect("is answered");
        assert!(answer.expect_err("refused").contains("control requests only"));

        // Removed, with the certificate still good and a connection that was there before.
        let removed = mesh.ctl_at(0, &["members", "remove", "host-3", "--force", "unknown"]);
        assert!(removed.status.success(), "{}", String::from_utf8_lossy(&removed.stderr));
        let cut_off = async {
            loop {
                match renew(&joined, &mesh).await {
                    Err(error) => return error,
                    Ok(_) => tokio::time::sleep(Duration::from_millis(200)).await,
                }
            }
        };
        let error = tokio::time::timeout(SOON, cut_off).await.expect("it hears of the removal");
        assert!(redmesh_api::error_chain(&error).contains("was removed"), "{error:?}");
        joined.close().await;
    });
}
