//! Gossip on its way out: a bounded queue and a sending task per peer.
//!
//! Whoever gossips must not wait, least of all for a dial: a message goes into the
//! peer's queue or nowhere. Each travels on a unidirectional stream of its own, so that
//! none holds up the next. A peer that can't be reached costs its queue and nothing more.

use std::collections::HashMap;
use std::net::SocketAddr;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use redmesh_api::codec::{Channel, Direction};
use redmesh_api::frames::{self, FrameError};
use tokio::sync::mpsc;
use tokio::time::timeout;

use super::Shared;

/// Messages that may wait for one peer; beyond, the newest is dropped.
pub const PER_PEER_MAX: usize = 32;

/// Peers with a queue; beyond, messages to further ones are dropped.
pub const PEERS_MAX: usize = 1024;

/// A message that isn't on its way after this is dropped: the next one is newer.
pub const SEND_TIMEOUT: Duration = Duration::from_secs(2);

/// A sender without work for so long ends.
pub const SENDER_IDLE: Duration = Duration::from_secs(30);

/// See the module.
#[derive(Default)]
pub struct GossipOut {
    queues: Mutex<HashMap<SocketAddr, mpsc::Sender<Vec<u8>>>>,
}

impl GossipOut {
    /// Queues a message for `to`; false if it was dropped.
    pub fn enqueue(&self, shared: &Arc<Shared>, to: SocketAddr, message: Vec<u8>) -> bool {
        let mut queues = self.queues.lock().unwrap_or_else(PoisonError::into_inner);
        if !queues.contains_key(&to) {
            if queues.len() >= PEERS_MAX || shared.cancel.is_cancelled() {
                return false;
            }
            let (queue, waiting) = mpsc::channel(PER_PEER_MAX);
            queues.insert(to, queue);
            let sender = shared.clone();
            shared.tasks.spawn(async move {
                tokio::select! {
                    () = send_all(&sender, to, waiting) => {}
                    () = sender.cancel.cancelled() => {}
                }
            });
        }
        queues.get(&to).is_some_and(|queue| queue.try_send(message).is_ok())
    }

    /// Ends a queue, unless something was put into it meanwhile.
    fn retire(&self, to: SocketAddr, waiting: &mpsc::Receiver<Vec<u8>>) -> bool {
        let mut queues = self.queues.lock().unwrap_or_else(PoisonError::into_inner);
        // Under the lock nothing can be added.
        if waiting.is_empty() {
            queues.remove(&to);
        }
        waiting.is_empty()
    }
}

async fn send_all(shared: &Arc<Shared>, to: SocketAddr, mut waiting: mpsc::Receiver<Vec<u8>>) {
    loop {
        let message = match timeout(SENDER_IDLE, waiting.recv()).await {
            Ok(Some(message)) => message,
            Ok(None) => return,
            Err(_) if shared.gossip_out.retire(to, &waiting) => return,
            Err(_) => continue,
        };
        let link = match shared.pool.get(shared, to).await {
            Ok(link) => link,
            Err(_) => {
                // What waited all the while is as stale as what could not go.
                let mut dropped = 1;
                while waiting.try_recv().is_ok() {
                    dropped += 1;
                }
                shared.counts.gossip_dropped_out(dropped);
                continue;
            }
        };
        match timeout(SEND_TIMEOUT, send(&link.connection, &message)).await {
            Ok(Ok(())) => shared.counts.gossip_sent(),
            Ok(Err(_)) | Err(_) => shared.counts.gossip_dropped_out(1),
        }
    }
}

async fn send(connection: &quinn::Connection, message: &[u8]) -> Result<(), FrameError> {
    let mut stream = connection.open_uni().await.map_err(FrameError::Connection)?;
    frames::write_frame(&mut stream, Channel::Gossip, Direction::Request, message).await?;
    // Only fails on a stream that the peer has stopped.
    let _ = stream.finish();
    Ok(())
}
