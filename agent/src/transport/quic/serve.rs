//! Connections that others dialled: who may come in, and what they may ask.
//!
//! A connection is nobody's until its certificate's role is known and, for an agent,
//! its hello accepted; only so many may be in that state at once, and not for long.
//! Operators may send control requests and nothing else, agents everything else and no
//! control requests. What a role may not send is not even read. No input from outside
//! panics or ends more than its own connection.

use std::net::SocketAddr;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

use bytes::Bytes;
use quinn::{Connection, Incoming, RecvStream, SendStream, VarInt};
use redmesh_api::codec::{self, Channel, CodecError, Direction};
use redmesh_api::frames::{self, CLOSE_BUSY, CLOSE_DONE, CLOSE_REFUSED, FrameError};
use redmesh_api::ids::HostId;
use redmesh_api::tls::{self, Role};
use tokio::sync::Semaphore;
use tokio::task::JoinSet;
use tokio::time::timeout;

use super::Shared;
use super::expiry;
use super::hello::{self, Certified, Hello, HelloReply, Rejection};
use super::intake::{Pending, Verdict};
use super::operators::{Seat, Turn};
use crate::transport::{Handler, Peer};

/// Connections that others have to us.
pub const INBOUND_MAX: usize = 2048;

/// For the TLS handshake.
pub const HANDSHAKE_TIMEOUT: Duration = Duration::from_secs(3);

/// For an agent's hello after that.
pub const HELLO_TIMEOUT: Duration = Duration::from_secs(3);

/// For a request to arrive once its stream is open, or a reply to leave.
pub const FRAME_TIMEOUT: Duration = Duration::from_secs(10);

/// For somebody to serve requests after we began to listen.
pub const STARTING_MAX: Duration = Duration::from_secs(10);

/// For words of farewell to arrive before a refused connection is closed.
const FAREWELL_TIMEOUT: Duration = Duration::from_millis(500);

/// For answers to what a revoked operator asked before: the one that it revoked itself comes
/// when every host has been told, or is known to be out of reach.
const LAST_ANSWERS_TIMEOUT: Duration = Duration::from_secs(10);

/// Code of a stream whose request its sender may not ask.
const STREAM_REFUSED_CODE: u32 = 2;

/// Code of a stream that was given up because nothing came in time.
const STREAM_TIMEOUT_CODE: u32 = 1;

/// Lets go of whoever serves requests, who mostly holds us: also where a runtime ends
/// before [`crate::transport::Transport::close`] was called.
struct LetGo(Arc<Shared>);

impl Drop for LetGo {
    fn drop(&mut self) {
        self.0.handler.send_replace(None);
    }
}

/// Accepts until the endpoint closes.
pub async fn accept_all(shared: Arc<Shared>) {
    let _let_go = LetGo(shared.clone());
    let inbound = Arc::new(Semaphore::new(INBOUND_MAX));
    loop {
        let incoming = tokio::select! {
            incoming = shared.endpoint.accept() => incoming,
            () = shared.cancel.cancelled() => return,
        };
        let Some(incoming) = incoming else { return };
        let from = incoming.remote_address();
        // What can't be asked for a proof has given it.
        let proven = incoming.remote_address_validated() || !incoming.may_retry();
        let pending = match Pending::judge(&shared.intake, from.ip(), proven, Instant::now()) {
            Ok(pending) => pending,
            Err(Verdict::Refuse(reason)) => {
                shared.refusals.note(from, reason);
                incoming.refuse();
                continue;
            }
            Err(Verdict::Retry | Verdict::Admit) => {
                // Only fails where may_retry() is false.
                let _ = incoming.retry();
                continue;
            }
        };
        let Ok(place) = inbound.clone().try_acquire_owned() else {
            shared.refusals.note(from, "too many connections at once");
            incoming.refuse();
            continue;
        };
        let server = shared.clone();
        shared.tasks.spawn(async move {
            let admitted = tokio::select! {
                admitted = admit(&server, incoming) => admitted,
                () = server.cancel.cancelled() => return,
            };
            drop(pending);
            match admitted {
                Ok(inbound) => serve_connection(server, inbound).await,
                Err(reason) => server.refusals.note(from, &reason),
            }
            drop(place);
        });
    }
}

/// A connection whose peer is known.
struct Inbound {
    connection: Connection,
    certified: Certified,
    kind: Kind,
}

enum Kind {
    /// Its newest hello.
    Agent(Mutex<Hello>),
    /// Its place among them.
    Operator(Seat),
}

impl Inbound {
    fn hello(&self) -> Option<Hello> {
        match &self.kind {
            Kind::Agent(hello) => Some(hello.lock().unwrap_or_else(PoisonError::into_inner).clone()),
            Kind::Operator(_) => None,
        }
    }

    fn peer(&self) -> Peer {
        match self.hello() {
            Some(hello) => Peer::Agent {
                id: hello.id,
                name: hello.name,
                addr: hello.addr,
                presented: self.certified.presented(),
            },
            None => Peer::Operator {
                name: self.certified.name.clone(),
                role: self.certified.role,
                addr: self.connection.remote_address(),
            },
        }
    }
}

impl Inbound {
    /// Leave to serve one more request: agents have as many as streams, operators may be
    /// told that the agent is busy.
    fn turn(&self) -> Result<Option<Turn>, Result<Vec<u8>, CodecError>> {
        match &self.kind {
            Kind::Agent(_) => Ok(None),
            Kind::Operator(seat) => seat.turn().map(Some),
        }
    }
}

async fn admit(shared: &Arc<Shared>, incoming: Incoming) -> Result<Inbound, String> {
    let say = |error: quinn::ConnectionError| tls::explain(&error).unwrap_or_else(|| error.to_string());
    let handshake = async { incoming.accept()?.await };
    let connection = timeout(HANDSHAKE_TIMEOUT, handshake)
        .await
        .map_err(|_| format!("no TLS handshake within {} s", HANDSHAKE_TIMEOUT.as_secs()))?
        .map_err(say)?;
    let refuse = |reason: String| {
        connection.close(VarInt::from_u32(CLOSE_REFUSED), reason.as_bytes());
        reason
    };
    let certified = Certified::of(&connection).map_err(|error| refuse(error.to_string()))?;
    if certified.role != Role::Host {
        let revoked = shared.barred.borrow().operator(&certified);
        revoked.map_or(Ok(()), |reason| Err(refuse(reason)))?;
        let seat = shared.operators.seat(&certified.name).inspect_err(|reason| {
            connection.close(VarInt::from_u32(CLOSE_BUSY), reason.as_bytes());
        })?;
        return Ok(Inbound { connection, certified, kind: Kind::Operator(seat) });
    }
    let first = async {
        let (send, mut recv) = connection.accept_bi().await.map_err(FrameError::Connection)?;
        let frame = frames::read_frame(&mut recv, Direction::Request).await?;
        Ok::<_, FrameError>((send, recv, frame))
    };
    let (mut send, _recv, (channel, payload)) = match timeout(HELLO_TIMEOUT, first).await {
        Ok(Ok(first)) => first,
        Ok(Err(FrameError::Connection(error))) => return Err(say(error)),
        Ok(Err(error)) => return Err(refuse(crate::error_chain(&error))),
        Err(_) => return Err(refuse(format!("no hello within {} s", HELLO_TIMEOUT.as_secs()))),
    };
    if channel != Channel::Hello {
        return Err(refuse("an agent's first stream must carry its hello".into()));
    }
    let judged = judge(shared, &connection, &certified, &payload);
    answer_hello(shared, &connection, &mut send, judged.as_ref()).await;
    let hello = judged.map_err(|rejection| rejection.reason().to_owned())?;
    tls::trust_agent(&connection);
    tracing::debug!(from = %hello.addr, name = %hello.name, id = %hello.id, boot_id = hello.boot_id, "welcomed");
    Ok(Inbound { connection, certified, kind: Kind::Agent(Mutex::new(hello)) })
}

fn judge(
    shared: &Shared,
    connection: &Connection,
    certified: &Certified,
    payload: &[u8],
) -> Result<Hello, Rejection> {
    let theirs = judge_hello(shared, certified, payload)?;
    let admitted = shared.lives.lock().unwrap_or_else(PoisonError::into_inner).admit(
        &theirs,
        connection.stable_id(),
        connection.clone(),
    );
    let (closing, newer) = admitted.map_err(Rejection::Refused)?;
    for earlier in closing {
        earlier.close(VarInt::from_u32(CLOSE_DONE), b"a later connection of you has taken its place");
    }
    if newer {
        shared.pool.end_earlier_lives(theirs.id, theirs.boot_id);
    }
    Ok(theirs)
}

/// Whether the hello fits its certificate, our mesh, and nobody who was removed.
fn judge_hello(shared: &Shared, certified: &Certified, payload: &[u8]) -> Result<Hello, Rejection> {
    let theirs: Hello =
        codec::decode(payload).map_err(|error| Rejection::Refused(crate::error_chain(&error)))?;
    hello::judge(&theirs, certified, &shared.hello()).map_err(Rejection::Refused)?;
    match shared.barred.borrow().host(&theirs, certified) {
        Some(reason) => Err(Rejection::Removed(reason)),
        None => Ok(theirs),
    }
}

async fn answer_hello(
    shared: &Shared,
    connection: &Connection,
    send: &mut SendStream,
    judged: Result<&Hello, &Rejection>,
) {
    let reply = match judged {
        Ok(_) => HelloReply::Welcome(shared.hello()),
        Err(Rejection::Refused(reason)) => HelloReply::Refused { reason: reason.clone() },
        Err(Rejection::Removed(reason)) => HelloReply::Removed { reason: reason.clone() },
    };
    let bytes = codec::encode(&reply).map_err(|error| crate::error_chain(&error));
    let bytes = bytes.as_deref().map_err(String::as_str);
    let written = timeout(HELLO_TIMEOUT, frames::write_reply(send, Channel::Hello, bytes)).await;
    if let Err(rejection) = judged {
        if matches!(written, Ok(Ok(()))) {
            // The words should arrive before the connection's end does.
            let _ = timeout(FAREWELL_TIMEOUT, send.stopped()).await;
        }
        connection.close(VarInt::from_u32(CLOSE_REFUSED), rejection.reason().as_bytes());
    }
}

/// Serves a connection until it ends; requests in service then still run to their end.
async fn serve_connection(shared: Arc<Shared>, inbound: Inbound) {
    let inbound = Arc::new(inbound);
    let connection = &inbound.connection;
    let mut mesh_id = shared.mesh_id.clone();
    let mut barred = shared.barred.clone();
    // Bounded by the connection's stream limits.
    let mut serving = JoinSet::new();
    // Either may have become known between the hello and here.
    end_if_of_another_mesh(&shared, &inbound);
    end_if_barred(&shared, &inbound, &mut serving).await;
    let expiry = expiry::expired(&inbound.certified);
    tokio::pin!(expiry);
    let mut expired = false;
    loop {
        tokio::select! {
            () = &mut expiry, if !expired => {
                expired = true;
                shared.refusals.note(connection.remote_address(), "the peer's certificate has expired");
                connection.close(VarInt::from_u32(CLOSE_REFUSED), expiry::EXPIRED.as_bytes());
            }
            stream = connection.accept_bi() => match stream {
                Ok((send, recv)) => {
                    serving.spawn(serve_request(shared.clone(), inbound.clone(), send, recv));
                }
                Err(_) => break,
            },
            stream = connection.accept_uni() => match stream {
                Ok(recv) => {
                    serving.spawn(take_gossip(shared.clone(), inbound.clone(), recv));
                }
                Err(_) => break,
            },
            Some(ended) = serving.join_next() => log_panic(ended),
            Ok(()) = mesh_id.changed() => end_if_of_another_mesh(&shared, &inbound),
            Ok(()) = barred.changed() => end_if_barred(&shared, &inbound, &mut serving).await,
            () = shared.cancel.cancelled() => break,
        }
    }
    if let Some(error) = connection.close_reason().filter(tls::is_refusal) {
        let reason = tls::explain(&error).unwrap_or_else(|| error.to_string());
        shared.refusals.note(connection.remote_address(), &reason);
    }
    if let Some(hello) = inbound.hello() {
        leave(&shared, hello.id, connection.stable_id());
    }
    loop {
        tokio::select! {
            ended = serving.join_next() => match ended {
                Some(ended) => log_panic(ended),
                None => return,
            },
            () = shared.cancel.cancelled() => return serving.shutdown().await,
        }
    }
}

fn log_panic(ended: Result<(), tokio::task::JoinError>) {
    if let Err(error) = ended {
        tracing::error!(%error, "serving a request failed");
    }
}

fn leave(shared: &Shared, id: HostId, number: usize) {
    shared.lives.lock().unwrap_or_else(PoisonError::into_inner).leave(id, number);
}

fn end_if_of_another_mesh(shared: &Shared, inbound: &Inbound) {
    let Some(theirs) = inbound.hello() else { return };
    if let Err(reason) = hello::judge_mesh(&theirs, &shared.hello()) {
        shared.refusals.note(theirs.addr, &reason);
        inbound.connection.close(VarInt::from_u32(CLOSE_REFUSED), reason.as_bytes());
    }
}

/// Ends the connection of a removed host or a revoked operator. Nothing more is taken from
/// it; an operator that has just revoked itself still gets the answer that says so.
async fn end_if_barred(shared: &Shared, inbound: &Inbound, serving: &mut JoinSet<()>) {
    let reason = match inbound.hello() {
        Some(theirs) => shared.barred.borrow().host(&theirs, &inbound.certified),
        None => shared.barred.borrow().operator(&inbound.certified),
    };
    let Some(reason) = reason else { return };
    shared.refusals.note(inbound.connection.remote_address(), &reason);
    if matches!(inbound.kind, Kind::Operator(_)) {
        let answered = async { while serving.join_next().await.is_some() {} };
        let heard = async {
            let _ = timeout(LAST_ANSWERS_TIMEOUT, answered).await;
            // A connection's end overtakes what was written on it.
            let _ = timeout(FAREWELL_TIMEOUT, inbound.connection.closed()).await;
        };
        tokio::select! {
            () = heard => {}
            () = shared.cancel.cancelled() => {}
        }
    }
    inbound.connection.close(VarInt::from_u32(CLOSE_REFUSED), reason.as_bytes());
}

async fn serve_request(
    shared: Arc<Shared>,
    inbound: Arc<Inbound>,
    mut send: SendStream,
    mut recv: RecvStream,
) {
    // Held until the answer is sent: what waits to be read counts as well.
    let mut turn = None;
    let (channel, reply) = match timeout(FRAME_TIMEOUT, read_permitted(&inbound, &mut recv)).await {
        Ok(Ok((Channel::Hello, Ok(payload)))) => {
            greet_again(&shared, &inbound, &mut send, &payload).await;
            return;
        }
        Ok(Ok((channel, Ok(payload)))) => match inbound.turn() {
            Ok(taken) => {
                turn = taken;
                (channel, answer(&shared, &inbound, channel, payload).await)
            }
            Err(busy) => {
                shared
                    .refusals
                    .note(inbound.connection.remote_address(), "too many control requests at once");
                (channel, busy.map_err(|error| crate::error_chain(&error)))
            }
        },
        Ok(Ok((channel, Err(reason)))) => {
            shared.refusals.note(inbound.connection.remote_address(), &reason);
            // Fails only on a stream that has ended already.
            let _ = recv.stop(VarInt::from_u32(STREAM_REFUSED_CODE));
            (channel, Err(reason))
        }
        Ok(Err(error @ (FrameError::Codec(_) | FrameError::Truncated { .. }))) => {
            (Channel::Control, Err(crate::error_chain(&error)))
        }
        Ok(Err(_)) => return,
        Err(_) => return frames::abandon(&mut send, &mut recv, STREAM_TIMEOUT_CODE),
    };
    let reply = reply.as_deref().map_err(String::as_str);
    match timeout(FRAME_TIMEOUT, frames::write_reply(&mut send, channel, reply)).await {
        Ok(Err(error @ FrameError::Codec(_))) => {
            // The answer is too large for a frame: say that instead.
            let reason = crate::error_chain(&error);
            let _ = timeout(FRAME_TIMEOUT, frames::write_reply(&mut send, channel, Err(&reason))).await;
        }
        // Whoever asked is gone.
        Ok(_) => {}
        Err(_) => frames::abandon(&mut send, &mut recv, STREAM_TIMEOUT_CODE),
    }
    drop(turn);
}

/// A request's payload, or why its sender may not ask it; then nothing more is read.
async fn read_permitted(
    inbound: &Inbound,
    recv: &mut RecvStream,
) -> Result<(Channel, Result<Bytes, String>), FrameError> {
    let (channel, len) = frames::read_header(recv, Direction::Request).await?;
    match permitted(inbound.certified.role, channel) {
        Ok(()) => Ok((channel, Ok(frames::read_payload(recv, len).await?))),
        Err(reason) => Ok((channel, Err(reason))),
    }
}

async fn answer(
    shared: &Shared,
    inbound: &Inbound,
    channel: Channel,
    payload: Bytes,
) -> Result<Vec<u8>, String> {
    let handler = shared.handler().await.ok_or("this agent is still starting: try again")?;
    handler.handle(&inbound.peer(), channel, payload).await.map_err(|error| crate::error_chain(&error))
}

/// What a role may send on a stream that is to be answered.
fn permitted(role: Role, channel: Channel) -> Result<(), String> {
    match (role, channel) {
        (Role::Host, Channel::Hello | Channel::Peer | Channel::Raft)
        | (Role::Operator | Role::Reader, Channel::Control) => Ok(()),
        (Role::Operator | Role::Reader, Channel::Hello) => Err("an operator has no hello to say".to_owned()),
        (Role::Operator | Role::Reader, _) => Err(format!(
            "an operator's certificate allows control requests only, not {channel:?}: agents need a host's"
        )),
        (Role::Host, Channel::Control) => Err(
            "a host's certificate allows no control requests: make an operator's with `redmeshctl pki issue \
             --operator NAME`"
                .to_owned(),
        ),
        (Role::Host, Channel::Gossip) => Err("Gossip is not answered".to_owned()),
        (Role::Host, Channel::Join) => Err("a host that joins asks at another port".to_owned()),
    }
}

/// An agent says hello again when its mesh becomes known.
async fn greet_again(shared: &Arc<Shared>, inbound: &Inbound, send: &mut SendStream, payload: &[u8]) {
    // Nobody else is permitted to send one.
    let Kind::Agent(known) = &inbound.kind else { return };
    let judged = rejudge(shared, inbound, payload);
    if let Ok(hello) = &judged {
        *known.lock().unwrap_or_else(PoisonError::into_inner) = hello.clone();
    }
    answer_hello(shared, &inbound.connection, send, judged.as_ref()).await;
    if let Err(rejection) = judged {
        shared.refusals.note(inbound.connection.remote_address(), rejection.reason());
    }
}

fn rejudge(shared: &Shared, inbound: &Inbound, payload: &[u8]) -> Result<Hello, Rejection> {
    let theirs = judge_hello(shared, &inbound.certified, payload)?;
    match inbound.hello() {
        Some(first) if (first.id, first.boot_id, first.addr) == (theirs.id, theirs.boot_id, theirs.addr) => {
            Ok(theirs)
        }
        _ => {
            Err(Rejection::Refused("a connection's later hello must be of the same life as its first".into()))
        }
    }
}

async fn take_gossip(shared: Arc<Shared>, inbound: Arc<Inbound>, mut recv: RecvStream) {
    let Some(from): Option<SocketAddr> = inbound.hello().map(|hello| hello.addr) else {
        let reason = "an operator's certificate allows control requests only, not gossip";
        shared.refusals.note(inbound.connection.remote_address(), reason);
        inbound.connection.close(VarInt::from_u32(CLOSE_REFUSED), reason.as_bytes());
        return;
    };
    match timeout(FRAME_TIMEOUT, frames::read_frame(&mut recv, Direction::Request)).await {
        Ok(Ok((Channel::Gossip, message))) => {
            if shared.gossip_in.try_send((from, message)).is_err() {
                shared.counts.gossip_dropped_in();
            }
        }
        // Nobody reads an answer here: one bad message is dropped like a lost one.
        Ok(_) | Err(_) => {
            let _ = recv.stop(VarInt::from_u32(STREAM_TIMEOUT_CODE));
            shared.counts.gossip_dropped_in();
        }
    }
}

impl Shared {
    /// Who serves requests; `None` if nobody does in time.
    pub(super) async fn handler(&self) -> Option<Arc<dyn Handler>> {
        let mut handler = self.handler.subscribe();
        let set = timeout(STARTING_MAX, handler.wait_for(Option::is_some)).await.ok()?.ok()?;
        set.clone()
    }
}
