//! Peers that are let in and then do harm.

use futures_util::StreamExt;
use redmesh_api::control::{ControlReply, RefusalKind};

use super::*;

#[tokio::test]
async fn hostile_streams_end_alone() {
    let a = Node::start("a", 60);
    let raw = Raw::connect(&ca().host("b", &[ip(61)]), 61, a.addr).await.unwrap();
    raw.hello(&hello("b", 61)).await.unwrap();
    let oversize = |channel: Channel| {
        let mut bytes = vec![PROTOCOL_VERSION, channel as u8];
        bytes.extend(u32::MAX.to_le_bytes());
        bytes
    };
    let mut whole = codec::header(Channel::Peer, Direction::Request, 100).unwrap().to_vec();
    whole.extend([0; 50]);
    let cases: [(&str, Vec<u8>); 8] = [
        ("at most", oversize(Channel::Peer)),
        ("at most", oversize(Channel::Control)),
        // Refused by its channel: the payload is never asked for.
        (
            "allows no control requests",
            codec::header(Channel::Control, Direction::Request, 100).unwrap().to_vec(),
        ),
        ("protocol version 99", vec![99; HEADER_BYTES]),
        ("unknown channel 77", vec![PROTOCOL_VERSION, 77, 0, 0, 0, 0]),
        ("stream ended after 0 bytes", vec![]),
        ("stream ended after 3 bytes", vec![PROTOCOL_VERSION, 2, 0]),
        ("stream ended after 50 bytes", whole),
    ];
    for (expected, bytes) in &cases {
        let (mut send, mut recv) = raw.connection.open_bi().await.unwrap();
        send.write_all(bytes).await.unwrap();
        send.finish().unwrap();
        let reason = timeout(DEADLINE, frames::read_reply(&mut recv)).await.unwrap().unwrap().unwrap_err();
        assert!(reason.contains(expected), "{expected:?} is not in {reason:?}");
        let mut uni = raw.connection.open_uni().await.unwrap();
        uni.write_all(bytes).await.unwrap();
        // The other side may have stopped it already.
        let _ = uni.finish();
    }
    until("bad gossip is counted", async || a.quic.stats().gossip_dropped_in == cases.len() as u64).await;
    assert_eq!(raw.exchange(Channel::Peer, b"x").await.unwrap().unwrap(), "a<b/0000013d Peer x");
    raw.endpoint.close(VarInt::from_u32(CLOSE_REFUSED), &[0xff; 100]);
    until("its refusal is counted", async || a.quic.stats().refused == 1).await;
    until("it is gone", async || a.quic.stats().connections == 0).await;
    close_all(&[&a]).await;
}

proptest! {
    #[test]
    fn hostile_hellos_never_panic(bytes: Vec<u8>) {
        let _ = codec::decode::<Hello>(&bytes);
        let _ = codec::decode::<HelloReply>(&bytes);
    }
}

/// Answers once it is told to.
struct Slow(tokio::sync::Semaphore);

#[async_trait]
impl Handler for Slow {
    async fn handle(&self, _: &Peer, _: Channel, _: Bytes) -> Result<Vec<u8>, CodecError> {
        self.0.acquire().await.expect("never closed").forget();
        Ok(b"done".to_vec())
    }
}

#[tokio::test]
async fn an_operator_with_too_many_requests_is_told_that_the_agent_is_busy() {
    let (options, _mesh) = Start::new("a", 70).options();
    let a = QuicTransport::bind(options).unwrap();
    let slow = Arc::new(Slow(tokio::sync::Semaphore::new(0)));
    a.serve(slow.clone());
    let raw = Raw::connect(&ca().operator("ann"), 71, a.advertise_addr()).await.unwrap();
    let asks = (0..operators::REQUESTS_PER_CONNECTION_MAX + 1).map(|_| raw.exchange(Channel::Control, b"x"));
    let mut asks: futures_util::stream::FuturesUnordered<_> = asks.collect();
    // The one that is too many is answered at once, while the others wait.
    let busy = asks.next().await.unwrap().unwrap().unwrap();
    match codec::decode(&busy).unwrap() {
        ControlReply::Refused(refusal) => {
            assert_eq!(refusal.kind, RefusalKind::Busy);
            assert!(refusal.message.contains("16 requests of this connection"), "{}", refusal.message);
        }
        other => panic!("{other:?}"),
    }
    slow.0.add_permits(operators::REQUESTS_PER_CONNECTION_MAX);
    while let Some(answer) = asks.next().await {
        assert_eq!(answer.unwrap().unwrap(), "done");
    }
    slow.0.add_permits(1);
    assert_eq!(raw.exchange(Channel::Control, b"x").await.unwrap().unwrap(), "done");
    a.close().await;
}

#[tokio::test]
async fn an_operators_connections_are_bounded_and_one_that_ends_makes_room() {
    let a = Node::start("a", 72);
    let identity = ca().operator("ann");
    let mut open = Vec::new();
    for _ in 0..operators::CONNECTIONS_PER_NAME_MAX {
        let raw = Raw::connect(&identity, 73, a.addr).await.unwrap();
        raw.exchange(Channel::Control, b"x").await.unwrap().unwrap();
        open.push(raw);
    }
    let raw = Raw::connect(&identity, 73, a.addr).await.unwrap();
    assert!(raw.end().await.contains("connections of operator ann are open already"));
    let other = Raw::connect(&ca().operator("bob"), 73, a.addr).await.unwrap();
    assert_eq!(other.exchange(Channel::Control, b"x").await.unwrap().unwrap(), "a<bob Control x");
    open.pop().unwrap().connection.close(VarInt::from_u32(CLOSE_DONE), b"");
    until("there is room again", async || {
        let raw = Raw::connect(&identity, 73, a.addr).await.unwrap();
        let answer = raw.exchange(Channel::Control, b"x").await;
        open.push(raw);
        matches!(answer, Ok(Ok(_)))
    })
    .await;
    close_all(&[&a]).await;
}

#[tokio::test]
async fn a_hello_that_is_replayed_again_and_again_keeps_few_connections() {
    let a = Node::start("a", 74);
    let identity = ca().host("b", &[ip(75)]);
    let good = hello("b", 75);
    let mut open = Vec::new();
    for _ in 0..50 {
        let raw = Raw::connect(&identity, 75, a.addr).await.unwrap();
        raw.hello(&good).await.unwrap();
        open.push(raw);
    }
    let most = lives::CONNECTIONS_PER_HOST_MAX as u64;
    until("the others are closed", async || a.quic.stats().connections <= most).await;
    let last = open.last().unwrap();
    for _ in 0..500 {
        last.hello(&good).await.unwrap();
    }
    // Another host's certificate can't say it at all.
    let thief = Raw::connect(&ca().host("c", &[ip(76)]), 76, a.addr).await.unwrap();
    assert!(thief.hello(&good).await.unwrap_err().contains("the certificate \"c\""));
    assert_eq!(last.exchange(Channel::Peer, b"x").await.unwrap().unwrap(), "a<b/0000014b Peer x");
    close_all(&[&a]).await;
}

#[tokio::test]
async fn a_peer_gets_an_agents_limits_only_once_it_has_proven_to_be_one() {
    let a = Node::start("a", 77);
    let operator = Raw::connect(&ca().operator("ann"), 78, a.addr).await.unwrap();
    operator.exchange(Channel::Control, b"x").await.unwrap().unwrap();
    let agent = Raw::connect(&ca().host("b", &[ip(79)]), 79, a.addr).await.unwrap();
    agent.hello(&hello("b", 79)).await.unwrap();
    // Streams without a request on them, until the agent allows no more or there are `count`.
    let opened = async |raw: &Raw, count: usize, patience: Duration| {
        let mut streams = Vec::new();
        while streams.len() < count {
            let Ok(stream) = timeout(patience, raw.connection.open_bi()).await else { break };
            let (mut send, recv) = stream.unwrap();
            send.write_all(&[PROTOCOL_VERSION]).await.unwrap();
            streams.push((send, recv));
        }
        (streams.len(), streams)
    };
    let strangers = tls::STRANGER_STREAMS_MAX as usize;
    let (few, _held) = opened(&operator, strangers * 2, Duration::from_secs(1)).await;
    assert!(few <= strangers, "{few}");
    let (many, _held_too) = opened(&agent, strangers * 4, DEADLINE).await;
    assert_eq!(many, strangers * 4);
    // Neither keeps anybody else from being served.
    let other = Raw::connect(&ca().operator("bob"), 78, a.addr).await.unwrap();
    assert_eq!(other.exchange(Channel::Control, b"x").await.unwrap().unwrap(), "a<bob Control x");
    close_all(&[&a]).await;
}
