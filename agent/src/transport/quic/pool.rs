//! Connections that we dialled: at most one per address, shared by everything that goes
//! there.
//!
//! A dial is a task of its own, so that it is neither repeated by each request that
//! waits for it nor cut short by the first one whose deadline ends. A link's watcher takes
//! it out of the pool as soon as it is dead, and says hello again when our mesh becomes
//! known.

use std::collections::HashMap;
use std::net::SocketAddr;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use quinn::{ConnectionError, VarInt};
use redmesh_api::codec::{self, Channel};
use redmesh_api::frames::{self, CLOSE_DONE, CLOSE_REFUSED, FrameError};
use redmesh_api::ids::{HostId, MeshId};
use redmesh_api::tls;
use tokio::sync::watch;
use tokio::time::{Instant, timeout};

use super::Shared;
use super::expiry;
use super::hello::{self, Certified, Hello, HelloReply};
use crate::transport::TransportError;

/// From the first packet to the peer's welcome.
pub const DIAL_TIMEOUT: Duration = Duration::from_secs(3);

/// Links and dials in the pool; beyond, the one that was idle longest makes room.
pub const LINKS_MAX: usize = 1024;

/// How long requests under way may go on over a link made with an earlier certificate of
/// ours: longer than any of them waits.
const RETIRED_MAX: Duration = Duration::from_secs(60);

/// Why there is no link. Told to all who waited for it.
#[derive(Debug, Clone)]
pub enum DialError {
    /// No answer, or no connection.
    Unreachable(String),
    /// One side would not have the other.
    Refused(String),
}

impl DialError {
    pub(super) fn about(self, to: SocketAddr) -> TransportError {
        match self {
            Self::Unreachable(reason) => TransportError::Unreachable { to, reason },
            Self::Refused(reason) => TransportError::Refused { by: to, reason },
        }
    }
}

impl From<ConnectionError> for DialError {
    fn from(error: ConnectionError) -> Self {
        let reason = tls::explain(&error).unwrap_or_else(|| error.to_string());
        if tls::is_refusal(&error) { Self::Refused(reason) } else { Self::Unreachable(reason) }
    }
}

impl From<FrameError> for DialError {
    fn from(error: FrameError) -> Self {
        match error {
            FrameError::Connection(error) => error.into(),
            error => {
                Self::Unreachable(format!("no proper answer to the hello: {}", crate::error_chain(&error)))
            }
        }
    }
}

/// A connection that we dialled and whose peer has welcomed us.
#[derive(Debug)]
pub struct Link {
    pub(super) connection: quinn::Connection,
    certified: Certified,
    to: SocketAddr,
    /// Our mesh as the first hello said it.
    said_mesh: Option<MeshId>,
    peer: Mutex<Hello>,
    used: Mutex<Instant>,
}

impl Link {
    fn alive(&self) -> bool {
        self.connection.close_reason().is_none()
    }

    fn touch(&self) {
        *lock(&self.used) = Instant::now();
    }
}

type DialResult = Result<Arc<Link>, DialError>;

enum Slot {
    Dialling(watch::Receiver<Option<DialResult>>),
    Linked(Arc<Link>),
}

/// See the module.
#[derive(Default)]
pub struct Pool {
    slots: Mutex<HashMap<SocketAddr, Slot>>,
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    // Nothing panics while holding one of these; were it otherwise, the map is still whole.
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

impl Pool {
    /// A live link to `to`, dialling if there is none. Bounded by [`DIAL_TIMEOUT`].
    pub async fn get(&self, shared: &Arc<Shared>, to: SocketAddr) -> DialResult {
        let mut waiting = {
            let mut slots = lock(&self.slots);
            match slots.get(&to) {
                Some(Slot::Linked(link)) if link.alive() => {
                    link.touch();
                    return Ok(link.clone());
                }
                Some(Slot::Dialling(result)) => result.clone(),
                _ => {
                    make_room(&mut slots)?;
                    let (tell, result) = watch::channel(None);
                    slots.insert(to, Slot::Dialling(result.clone()));
                    let dialler = shared.clone();
                    shared.tasks.spawn(async move {
                        let result = tokio::select! {
                            result = dial(&dialler, to) => result,
                            () = dialler.cancel.cancelled() => Err(DialError::Unreachable("this agent is stopping".into())),
                        };
                        dialler.pool.settle(to, &result);
                        let link = result.as_ref().ok().cloned();
                        // Nobody may be waiting any more.
                        let _ = tell.send(Some(result));
                        if let Some(link) = link {
                            watch_link(&dialler, &link).await;
                            dialler.pool.forget(&link);
                        }
                    });
                    result
                }
            }
        };
        match waiting.wait_for(Option::is_some).await {
            Ok(result) => result.clone().expect("waited until it is there"),
            Err(_) => Err(DialError::Unreachable("this agent is stopping".into())),
        }
    }

    fn settle(&self, to: SocketAddr, result: &DialResult) {
        let mut slots = lock(&self.slots);
        match result {
            Ok(link) => slots.insert(to, Slot::Linked(link.clone())),
            Err(_) => slots.remove(&to),
        };
    }

    fn forget(&self, link: &Arc<Link>) {
        let mut slots = lock(&self.slots);
        if matches!(slots.get(&link.to), Some(Slot::Linked(other)) if Arc::ptr_eq(other, link)) {
            slots.remove(&link.to);
        }
    }

    /// Closes links to lives of `id` earlier than `boot_id`.
    pub fn end_earlier_lives(&self, id: HostId, boot_id: u64) {
        for slot in lock(&self.slots).values() {
            let Slot::Linked(link) = slot else { continue };
            let peer = lock(&link.peer);
            if peer.id == id && peer.boot_id < boot_id {
                link.connection.close(VarInt::from_u32(CLOSE_DONE), b"a later life of you has connected");
            }
        }
    }

    /// Links that are alive.
    pub fn len(&self) -> usize {
        lock(&self.slots).values().filter(|slot| matches!(slot, Slot::Linked(link) if link.alive())).count()
    }
}

fn make_room(slots: &mut HashMap<SocketAddr, Slot>) -> Result<(), DialError> {
    if slots.len() < LINKS_MAX {
        return Ok(());
    }
    slots.retain(|_, slot| !matches!(slot, Slot::Linked(link) if !link.alive()));
    if slots.len() < LINKS_MAX {
        return Ok(());
    }
    let idlest = slots
        .values()
        .filter_map(|slot| match slot {
            Slot::Linked(link) => Some((*lock(&link.used), link.clone())),
            Slot::Dialling(_) => None,
        })
        .min_by_key(|(used, _)| *used);
    let Some((_, link)) = idlest else {
        return Err(DialError::Unreachable(format!("{LINKS_MAX} other peers are being dialled")));
    };
    link.connection.close(VarInt::from_u32(CLOSE_DONE), b"making room for other peers");
    slots.remove(&link.to);
    Ok(())
}

async fn dial(shared: &Arc<Shared>, to: SocketAddr) -> DialResult {
    let attempt = async {
        let connecting = shared
            .endpoint
            .connect_with(shared.client_config(), to, &to.ip().to_string())
            .map_err(|error| DialError::Unreachable(error.to_string()))?;
        let connection = connecting.await?;
        let greeted = async {
            let certified =
                Certified::of(&connection).map_err(|error| DialError::Refused(error.to_string()))?;
            let said = shared.hello();
            let peer = greet(shared, &connection, &certified, &said).await?;
            Ok((certified, peer, said.mesh_id))
        };
        match greeted.await {
            Ok((certified, peer, said_mesh)) => Ok(Arc::new(Link {
                connection,
                certified,
                to,
                said_mesh,
                peer: Mutex::new(peer),
                used: Mutex::new(Instant::now()),
            })),
            Err(error) => {
                let (DialError::Refused(reason) | DialError::Unreachable(reason)) = &error;
                connection.close(VarInt::from_u32(CLOSE_REFUSED), reason.as_bytes());
                Err(error)
            }
        }
    };
    let result = timeout(DIAL_TIMEOUT, attempt).await.unwrap_or_else(|_| {
        let seconds = DIAL_TIMEOUT.as_secs();
        Err(DialError::Unreachable(format!(
            "no answer within {seconds} s: is its agent running, and does UDP pass?"
        )))
    });
    match &result {
        Ok(link) => tracing::debug!(%to, peer = %lock(&link.peer).name, "connected"),
        Err(error) => tracing::debug!(%to, ?error, "dialled in vain"),
    }
    result
}

/// Says hello and judges the welcome.
async fn greet(
    shared: &Shared,
    connection: &quinn::Connection,
    certified: &Certified,
    ours: &Hello,
) -> Result<Hello, DialError> {
    let bytes = codec::encode(ours).map_err(|error| DialError::Unreachable(crate::error_chain(&error)))?;
    let streams = connection.open_bi().await?;
    let reply = frames::exchange(streams, Channel::Hello, &bytes).await?.map_err(DialError::Refused)?;
    match codec::decode(&reply).map_err(|error| DialError::Refused(crate::error_chain(&error)))? {
        HelloReply::Refused { reason } => Err(DialError::Refused(frames::readable(reason.as_bytes()))),
        HelloReply::Removed { reason } => {
            let reason = frames::readable(reason.as_bytes());
            shared.told_removed.send_if_modified(|told| {
                let first = told.is_none();
                told.get_or_insert_with(|| reason.clone());
                first
            });
            Err(DialError::Refused(reason))
        }
        HelloReply::Welcome(theirs) => {
            hello::judge(&theirs, certified, ours).map_err(DialError::Refused)?;
            match shared.barred.borrow().host(&theirs, certified) {
                Some(reason) => Err(DialError::Refused(reason)),
                None => Ok(theirs),
            }
        }
    }
}

/// Waits for a link's end; says hello again when our mesh becomes known.
async fn watch_link(shared: &Arc<Shared>, link: &Arc<Link>) {
    let mut mesh_id = shared.mesh_id.clone();
    let mut said_mesh = link.said_mesh;
    let mut renewed = shared.dialling.subscribe();
    let mut barred = shared.barred.clone();
    loop {
        let removed = barred.borrow_and_update().host(&lock(&link.peer), &link.certified);
        if let Some(reason) = removed {
            shared.refusals.note(link.to, &reason);
            link.connection.close(VarInt::from_u32(CLOSE_REFUSED), reason.as_bytes());
            return;
        }
        let now = *mesh_id.borrow_and_update();
        if now != said_mesh {
            said_mesh = now;
            greet_again(shared, link).await;
        }
        tokio::select! {
            reason = link.connection.closed() => {
                tracing::debug!(to = %link.to, %reason, "link ended");
                return;
            }
            () = shared.cancel.cancelled() => return,
            () = expiry::expired(&link.certified) => {
                shared.refusals.note(link.to, "the peer's certificate has expired");
                link.connection.close(VarInt::from_u32(CLOSE_REFUSED), expiry::EXPIRED.as_bytes());
                return;
            }
            Ok(()) = renewed.changed() => {
                // The next request dials with the new certificate; those under way end on this one.
                shared.pool.forget(link);
                tokio::select! {
                    _ = timeout(RETIRED_MAX, link.connection.closed()) => {}
                    () = shared.cancel.cancelled() => {}
                }
                link.connection.close(VarInt::from_u32(CLOSE_DONE), b"a later connection has taken its place");
                return;
            }
            Ok(()) = mesh_id.changed() => {}
            Ok(()) = barred.changed() => {}
        }
    }
}

async fn greet_again(shared: &Arc<Shared>, link: &Link) {
    let ours = shared.hello();
    match timeout(DIAL_TIMEOUT, greet(shared, &link.connection, &link.certified, &ours)).await {
        Ok(Ok(peer)) => *lock(&link.peer) = peer,
        Ok(Err(DialError::Refused(reason))) => {
            shared.refusals.note(link.to, &reason);
            link.connection.close(VarInt::from_u32(CLOSE_REFUSED), reason.as_bytes());
        }
        // A link that can't even carry a hello is as good as dead: dial afresh.
        Ok(Err(DialError::Unreachable(_))) | Err(_) => {
            link.connection.close(VarInt::from_u32(CLOSE_DONE), b"no answer to a hello");
        }
    }
}
