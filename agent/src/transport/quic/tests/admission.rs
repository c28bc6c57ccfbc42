//! Who is let in, and what each may then ask.

use super::*;

#[tokio::test]
async fn strangers_are_refused_with_the_reason_on_both_sides() {
    let (log, _guard) = Log::begin();
    let a = Node::start("a", 10);
    // No certificate.
    let mut config =
        rustls::ClientConfig::builder_with_provider(Arc::new(rustls::crypto::ring::default_provider()))
            .with_protocol_versions(&[&rustls::version::TLS13])
            .unwrap()
            .with_root_certificates(ca().operator("o").roots().clone())
            .with_no_client_auth();
    config.alpn_protocols = vec![tls::ALPN.to_vec()];
    let crypto = quinn::crypto::rustls::QuicClientConfig::try_from(config).unwrap();
    let raw = Raw::connect_with(quinn::ClientConfig::new(Arc::new(crypto)), 11, a.addr).await.unwrap();
    assert_eq!(raw.end().await, "the peer says: we presented no certificate");
    // Another CA's certificate, of a client that trusts ours.
    let other = TestCa::new();
    let foreign = other.issue(Role::Host, "x", &[ip(12)], ca(), Days::days(1));
    let raw = Raw::connect(&foreign, 12, a.addr).await.unwrap();
    assert!(raw.end().await.contains("our certificate was signed by another CA"));
    // Another CA on both sides: the stranger is the one who refuses.
    let error = Raw::connect(&other.host("x", &[ip(13)]), 13, a.addr).await.err().unwrap();
    assert!(tls::explain(&error).unwrap().contains("the peer's certificate was signed by another CA"));
    // Expired.
    let old = ca().issue(Role::Host, "old", &[ip(14)], ca(), Days::days(-1));
    let raw = Raw::connect(&old, 14, a.addr).await.unwrap();
    assert!(raw.end().await.contains("our certificate has expired"));
    until("all are logged", async || a.quic.stats().refused == 4).await;
    let log = log.text();
    for expected in [
        "the peer presented no certificate",
        "the peer's certificate was signed by another CA",
        "the peer says: our certificate was signed by another CA",
        "the peer's certificate has expired",
    ] {
        assert!(log.contains(expected), "{expected:?} is not in:\n{log}");
    }
    // An agent that is refused says so to whoever asked.
    let start = Start { identity: Some(foreign), ..Start::new("x", 12) };
    let b = start.bind();
    assert!(words(b.ask(&a, Channel::Peer, "x").await).contains("our certificate was signed by another CA"));
    close_all(&[&a, &b]).await;
}

#[tokio::test]
async fn a_peer_that_is_no_redmesh_is_called_so() {
    let a = Node::start("a", 15);
    let mut config = tls::client_config(&ca().host("b", &[ip(16)])).unwrap();
    config.alpn_protocols = vec![b"h3".to_vec()];
    let crypto = quinn::crypto::rustls::QuicClientConfig::try_from(config).unwrap();
    let connected = Raw::connect_with(quinn::ClientConfig::new(Arc::new(crypto)), 16, a.addr).await;
    let said = tls::explain(&connected.err().unwrap()).unwrap();
    assert!(said.contains("does not speak redmesh/1"), "{said}");
    // And a certificate for another address than the one dialled.
    let start = Start { identity: Some(ca().host("c", &[ip(17), ip(18)])), ..Start::new("c", 17) };
    let (mut options, _mesh) = start.options();
    options.listen = SocketAddr::new(ip(19), 0);
    let c = QuicTransport::bind(options).unwrap();
    let to = SocketAddr::new(ip(19), c.advertise_addr().port());
    let refused = a.quic.request(to, Channel::Peer, vec![], DEADLINE).await;
    assert!(words(refused).contains("not for the address that was dialled"));
    c.close().await;
    close_all(&[&a]).await;
}

#[tokio::test]
async fn an_operator_may_send_control_requests_only() {
    let a = Node::start("a", 20);
    let raw = Raw::connect(&ca().operator("ann"), 21, a.addr).await.unwrap();
    assert_eq!(raw.exchange(Channel::Control, b"x").await.unwrap().unwrap(), "a<ann Control x");
    for channel in [Channel::Peer, Channel::Raft, Channel::Gossip] {
        let reason = raw.exchange(channel, b"x").await.unwrap().unwrap_err();
        assert!(reason.contains("control requests only"), "{reason}");
    }
    let reply = raw.exchange(Channel::Hello, &codec::encode(&hello("ann", 21)).unwrap()).await.unwrap();
    assert!(reply.unwrap_err().contains("no hello"));
    let mut stream = raw.connection.open_uni().await.unwrap();
    frames::write_frame(&mut stream, Channel::Gossip, Direction::Request, b"x").await.unwrap();
    assert!(raw.end().await.contains("control requests only"));
    // An operator's certificate is no agent's, even with an address.
    let start = Start {
        identity: Some(ca().issue(Role::Operator, "o", &[ip(22)], ca(), Days::days(1))),
        ..Start::new("o", 22)
    };
    let error = QuicTransport::bind(start.options().0).unwrap_err();
    assert!(matches!(error, BindError::NotAHost { .. }), "{error}");
    close_all(&[&a]).await;
}

#[tokio::test]
async fn a_reader_is_known_as_one_and_an_agent_is_no_operator() {
    let a = Node::start("a", 23);
    let reader = ca().issue(Role::Reader, "rose", &[], ca(), Days::days(1));
    let raw = Raw::connect(&reader, 24, a.addr).await.unwrap();
    assert_eq!(
        raw.exchange(Channel::Control, b"x").await.unwrap().unwrap(),
        "a<rose/read-only operator Control x"
    );
    for channel in [Channel::Peer, Channel::Raft, Channel::Gossip] {
        let reason = raw.exchange(channel, b"x").await.unwrap().unwrap_err();
        assert!(reason.contains("control requests only"), "{reason}");
    }
    // A host asks neither before its hello nor after it.
    let identity = ca().host("b", &[ip(25)]);
    let raw = Raw::connect(&identity, 25, a.addr).await.unwrap();
    assert!(raw.exchange(Channel::Control, b"x").await.is_err());
    assert!(raw.end().await.contains("must carry its hello"));
    let raw = Raw::connect(&identity, 25, a.addr).await.unwrap();
    raw.hello(&hello("b", 25)).await.unwrap();
    let reason = raw.exchange(Channel::Control, b"x").await.unwrap().unwrap_err();
    assert!(reason.contains("allows no control requests"), "{reason}");
    // Nor does a reader's certificate make an agent.
    let start = Start {
        identity: Some(ca().issue(Role::Reader, "o", &[ip(26)], ca(), Days::days(1))),
        ..Start::new("o", 26)
    };
    assert!(matches!(QuicTransport::bind(start.options().0), Err(BindError::NotAHost { .. })));
    close_all(&[&a]).await;
}

#[tokio::test]
async fn hellos_that_do_not_fit_their_certificate_or_mesh_are_refused() {
    let a = Start { mesh_id: Some(MeshId(Uuid::from_u128(1))), ..Start::new("a", 30) }.bind();
    let identity = ca().host("b", &[ip(31)]);
    let good = hello("b", 31);
    let cases: Vec<(&str, Hello)> = vec![
        ("the certificate \"b\"", Hello { name: "c".into(), ..good.clone() }),
        ("not for that address", Hello { addr: (ip(32), 1).into(), ..good.clone() }),
        ("compare mesh.name", Hello { mesh_name: "other".into(), ..good.clone() }),
        ("initialised apart", Hello { mesh_id: Some(MeshId(Uuid::from_u128(2))), ..good.clone() }),
        ("same redmesh version", Hello { protocol: 99, ..good.clone() }),
        ("state directory copied", Hello { id: HostId(30), ..good.clone() }),
        ("nobody's", Hello { id: HostId(0), ..good.clone() }),
    ];
    for (expected, bad) in cases {
        let raw = Raw::connect(&identity, 31, a.addr).await.unwrap();
        let reason = raw.hello(&bad).await.unwrap_err();
        assert!(reason.contains(expected), "{expected:?} is not in {reason:?}");
        assert!(raw.end().await.contains(expected));
    }
    // A request before any hello.
    let raw = Raw::connect(&identity, 31, a.addr).await.unwrap();
    assert!(raw.exchange(Channel::Peer, b"x").await.is_err());
    assert!(raw.end().await.contains("must carry its hello"));
    // The good one, its successor, and then a ghost.
    let first = Raw::connect(&identity, 31, a.addr).await.unwrap();
    assert_eq!(first.hello(&good).await.unwrap().name, "a");
    assert_eq!(first.exchange(Channel::Peer, b"x").await.unwrap().unwrap(), "a<b/0000011f Peer x");
    let later = Raw::connect(&identity, 31, a.addr).await.unwrap();
    later.hello(&Hello { boot_id: 6, ..good.clone() }).await.unwrap();
    assert!(first.end().await.contains("later connection"));
    let ghost = Raw::connect(&identity, 31, a.addr).await.unwrap();
    assert!(ghost.hello(&good).await.unwrap_err().contains("older agent"));
    // On one connection the life can't change.
    let swapped = later.hello(&Hello { boot_id: 7, ..good }).await.unwrap_err();
    assert!(swapped.contains("same life"), "{swapped}");
    close_all(&[&a]).await;
}

#[tokio::test]
async fn meshes_that_were_initialised_apart_part_as_soon_as_both_know() {
    let (a, b) = (Node::start("a", 40), Node::start("b", 41));
    a.ask(&b, Channel::Peer, "x").await.unwrap();
    b.ask(&a, Channel::Peer, "x").await.unwrap();
    let one = MeshId(Uuid::from_u128(1));
    a.mesh.send_replace(Some(one));
    a.ask(&b, Channel::Peer, "one side does not know yet").await.unwrap();
    b.mesh.send_replace(Some(MeshId(Uuid::from_u128(2))));
    until("the links end", async || a.quic.stats().links + b.quic.stats().links == 0).await;
    for (from, to) in [(&a, &b), (&b, &a)] {
        let reason = words(from.ask(to, Channel::Peer, "x").await);
        assert!(reason.contains("two meshes that were initialised apart"), "{reason}");
    }
    b.mesh.send_replace(Some(one));
    until("one mesh again", async || a.ask(&b, Channel::Peer, "x").await.is_ok()).await;
    close_all(&[&a, &b]).await;
}

#[tokio::test]
async fn two_hosts_with_one_id_are_refused() {
    let a = Start { id: Some(9), ..Start::new("a", 42) }.bind();
    let b = Start { id: Some(9), ..Start::new("b", 43) }.bind();
    assert!(words(a.ask(&b, Channel::Peer, "x").await).contains("was a state directory copied?"));
    close_all(&[&a, &b]).await;
}

#[tokio::test]
async fn a_certificate_that_expires_ends_its_connections_and_a_renewed_one_needs_no_restart() {
    let short = |name, last| ca().issue(Role::Host, name, &[ip(last)], ca(), Days::seconds(8));
    let a = Start { identity: Some(short("a", 80)), ..Start::new("a", 80) }.bind();
    let b = Node::start("b", 81);
    a.ask(&b, Channel::Peer, "x").await.unwrap();
    b.ask(&a, Channel::Peer, "x").await.unwrap();
    let person = ca().issue(Role::Operator, "o", &[], ca(), Days::seconds(8));
    let operator = Raw::connect(&person, 82, b.addr).await.unwrap();
    operator.exchange(Channel::Control, b"x").await.unwrap().unwrap();
    until("all connections with expired certificates to end", async || {
        a.quic.stats().links + b.quic.stats().links == 0
    })
    .await;
    assert!(operator.end().await.contains("certificate has expired"));
    assert!(words(a.ask(&b, Channel::Peer, "x").await).contains("our certificate has expired"));
    assert!(words(b.ask(&a, Channel::Peer, "x").await).contains("the peer's certificate has expired"));

    let fresh = ca().host("a", &[ip(80)]);
    a.quic.replace_identity(&fresh).unwrap();
    assert_eq!(a.ask(&b, Channel::Peer, "y").await.unwrap(), "b<a/00000050 Peer y");
    assert_eq!(b.ask(&a, Channel::Peer, "y").await.unwrap(), "a<b/00000051 Peer y");
    let raw = Raw::connect(&ca().operator("o"), 82, a.addr).await.unwrap();
    assert_eq!(tls::chain_of(&raw.connection).unwrap(), fresh.chain());
    close_all(&[&a, &b]).await;
}

#[tokio::test]
async fn a_renewal_replaces_links_and_loses_no_request() {
    let (a, b) = (Node::start("a", 83), Node::start("b", 84));
    for round in 0..3 {
        let fresh = ca().host("a", &[ip(83)]);
        a.quic.replace_identity(&fresh).unwrap();
        let asks = (0..20).map(|n| {
            let (a, b) = (&a, &b);
            async move { a.ask(b, Channel::Peer, &format!("{round}.{n}")).await.unwrap() }
        });
        assert_eq!(futures_util::future::join_all(asks).await.len(), 20);
        let newest = fresh.chain();
        until("the new certificate to be the one that b sees", async || {
            a.ask(&b, Channel::Peer, "x").await.unwrap();
            b.quic
                .shared
                .lives
                .lock()
                .unwrap()
                .connections()
                .any(|connection| tls::chain_of(connection).unwrap() == newest)
        })
        .await;
    }
    // Whatever is no renewal of this host's is refused, and changes nothing.
    let wrong = [
        (ca().host("c", &[ip(83)]), "restart it to give the host another name"),
        (ca().host("a", &[ip(85)]), "not for 127.42.0.83"),
        (ca().issue(Role::Operator, "a", &[ip(83)], ca(), Days::days(1)), "an operator's"),
    ];
    for (identity, expected) in wrong {
        let error = a.quic.replace_identity(&identity).unwrap_err().to_string();
        assert!(error.contains(expected), "{error}");
    }
    a.ask(&b, Channel::Peer, "x").await.unwrap();
    close_all(&[&a, &b]).await;
}

#[tokio::test]
async fn a_removed_host_is_cut_off_told_so_and_known_again_under_another_id() {
    let (log, _guard) = Log::begin();
    let (remove, barred) = watch::channel(Barred::default());
    let a = Start { barred, ..Start::new("a", 150) }.bind();
    let (b, c) = (Node::start("b", 151), Node::start("c", 152));
    for (from, to) in [(&a, &b), (&b, &a), (&c, &a)] {
        from.ask(to, Channel::Peer, "x").await.unwrap();
    }
    let now_ms = crate::clock::now_unix_ms();
    let host =
        RemovedHost { id: Some(HostId(151)), name: "b".into(), certificates: true, at_unix_ms: now_ms };
    remove.send_replace(Barred { hosts: vec![host], ..Barred::default() });
    until("both connections to end", async || {
        a.quic.stats().links == 0 && b.quic.stats().links == 0 && b.quic.stats().connections == 0
    })
    .await;
    assert!(log.text().contains("host b (00000097) was removed from the mesh"), "{}", log.text());
    assert!(words(a.ask(&b, Channel::Peer, "x").await).contains("was removed from the mesh"));
    assert_eq!(*b.quic.told_removed().borrow(), None, "a broken link tells nothing yet");
    assert!(words(b.ask(&a, Channel::Peer, "x").await).contains("was removed from the mesh"));
    let told = b.quic.told_removed().borrow().clone();
    assert!(told.is_some_and(|words| words.contains("stop its agent")));
    // Whoever has its key can make up another id.
    let again = Start { id: Some(77), ..Start::new("b", 151) }.bind();
    assert!(words(again.ask(&a, Channel::Peer, "x").await).contains("issue it another certificate"));
    c.ask(&a, Channel::Peer, "x").await.unwrap();
    close_all(&[&a, &b, &c, &again]).await;
}

#[tokio::test]
async fn a_revoked_operator_is_cut_off_and_comes_back_with_a_later_certificate_alone() {
    let (log, _guard) = Log::begin();
    let (revoke, barred) = watch::channel(Barred::default());
    let a = Start { barred, ..Start::new("a", 153) }.bind();
    let (bob, carol) = (ca().operator("bob"), ca().operator("carol"));
    let open = Raw::connect(&bob, 154, a.addr).await.unwrap();
    let kept = Raw::connect(&carol, 154, a.addr).await.unwrap();
    open.exchange(Channel::Control, b"x").await.unwrap().unwrap();
    let until = |at_unix_ms| {
        let bob = RevokedOperator { name: "bob".into(), at_unix_ms };
        Barred { operators: vec![bob], ..Barred::default() }
    };
    revoke.send_replace(until(crate::clock::now_unix_ms()));
    let said = open.end().await;
    assert!(said.contains("operator bob was revoked") && said.contains("--renew"), "{said}");
    // A client takes itself for connected until it is told.
    let again = Raw::connect(&bob, 154, a.addr).await.unwrap();
    assert!(again.end().await.contains("operator bob was revoked"));
    kept.exchange(Channel::Control, b"x").await.unwrap().unwrap();
    assert!(log.text().contains("operator bob was revoked"), "{}", log.text());
    // The tests' certificates begin a month ago, and count as issued then.
    revoke.send_replace(until(1));
    let later = Raw::connect(&bob, 154, a.addr).await.unwrap();
    later.exchange(Channel::Control, b"x").await.unwrap().unwrap();
    close_all(&[&a]).await;
}
