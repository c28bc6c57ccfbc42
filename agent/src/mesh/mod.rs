//! Who is there and what each host says of itself: chitchat over [`Transport`].
//!
//! A host publishes small JSON values under keys of its own and reads everybody's from
//! a [`MeshView`]. Nothing here is agreed upon: a view is what this host has heard so
//! far. What must be agreed upon goes through consensus, and what is larger than
//! [`VALUE_BYTES_MAX`] is pulled from its host, because chitchat never delivers a value
//! larger than a message and holds back all that host's later ones behind it.
//! Nobody outside this module sees chitchat.

mod gossip;
mod view;

use std::collections::BTreeMap;
use std::fmt;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use redmesh_api::ids::HostId;
use serde::Serialize;
use tokio::sync::{Notify, watch};
use tokio::task::JoinHandle;
use tokio_util::sync::CancellationToken;

use crate::transport::Transport;

pub use view::{MeshMember, MeshView};

/// Default pause between gossip rounds.
pub const GOSSIP_INTERVAL: Duration = Duration::from_millis(200);
/// Largest value, bytes of JSON.
pub const VALUE_BYTES_MAX: usize = 8 * 1024;
/// Longest key, bytes.
pub const KEY_BYTES_MAX: usize = 128;
/// Most keys of one host at a time.
pub const KEYS_MAX: usize = 256;
/// Generations must be below this: chitchat's own carry a restart count in the low bits.
pub const GENERATION_MAX: u64 = 1 << (u64::BITS - gossip::RESTART_BITS);

/// How to start.
#[derive(Debug, Clone)]
pub struct MeshOptions {
    /// Meshes of different names ignore each other's gossip.
    pub mesh_name: String,
    /// This host.
    pub id: HostId,
    /// Which life of this host's agent; must grow at each start and stay below
    /// [`GENERATION_MAX`] (Unix milliseconds do).
    pub generation: u64,
    /// `address:port` or `name:port` of hosts to ask first; this host's own is harmless.
    pub seeds: Vec<String>,
    /// Pause between gossip rounds, [`GOSSIP_INTERVAL`] by default.
    pub gossip_interval: Duration,
    /// Keys and JSON values published from the beginning.
    pub initial: Vec<(String, String)>,
}

/// Why the mesh can't start or a value can't be published.
#[derive(Debug, thiserror::Error)]
pub enum MeshError {
    /// See [`GENERATION_MAX`].
    #[error("generation {generation} is not below {GENERATION_MAX}: use Unix milliseconds or a counter")]
    Generation {
        /// What was given.
        generation: u64,
    },
    /// Gossip rounds without a pause.
    #[error("the gossip interval is zero: use {} ms", GOSSIP_INTERVAL.as_millis())]
    Interval,
    /// The transport's gossip was taken before.
    #[error("the transport's gossip is taken already: one mesh per transport")]
    Taken,
    /// chitchat did not start.
    #[error("gossip does not start: {reason}")]
    Start {
        /// In its words.
        reason: String,
    },
    /// See [`VALUE_BYTES_MAX`].
    #[error(
        "value of {key:?} has {bytes} bytes, at most {VALUE_BYTES_MAX} can be gossiped: let peers pull it"
    )]
    ValueTooLarge {
        /// Its key.
        key: String,
        /// Its size.
        bytes: usize,
    },
    /// See [`KEY_BYTES_MAX`].
    #[error("key of {bytes} bytes, at most {KEY_BYTES_MAX} are allowed")]
    KeyTooLong {
        /// Its size.
        bytes: usize,
    },
    /// See [`KEYS_MAX`].
    #[error("no room for key {key:?}: {KEYS_MAX} are published, unpublish some")]
    TooManyKeys {
        /// The one too many.
        key: String,
    },
    /// The value is not JSON's.
    #[error("value of {key:?} can't be written as JSON")]
    Encode {
        /// Its key.
        key: String,
        /// Why.
        #[source]
        source: serde_json::Error,
    },
}

/// What this host says of itself, and whoever has to know that it changed.
#[derive(Debug, Default)]
struct Published {
    values: Mutex<BTreeMap<String, String>>,
    changed: Notify,
}

impl Published {
    fn lock(&self) -> MutexGuard<'_, BTreeMap<String, String>> {
        // Nothing that can panic runs under the lock, so a poisoned one is still whole.
        self.values.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn set(&self, key: &str, value: String) -> Result<(), MeshError> {
        if key.len() > KEY_BYTES_MAX {
            return Err(MeshError::KeyTooLong { bytes: key.len() });
        }
        if value.len() > VALUE_BYTES_MAX {
            return Err(MeshError::ValueTooLarge { key: key.to_owned(), bytes: value.len() });
        }
        let mut values = self.lock();
        match values.get(key) {
            Some(known) if *known == value => return Ok(()),
            None if values.len() >= KEYS_MAX => return Err(MeshError::TooManyKeys { key: key.to_owned() }),
            _ => drop(values.insert(key.to_owned(), value)),
        }
        drop(values);
        self.changed.notify_one();
        Ok(())
    }
}

/// This host's membership. Cheap to clone.
#[derive(Clone)]
pub struct Mesh {
    inner: Arc<Inner>,
}

struct Inner {
    id: HostId,
    published: Arc<Published>,
    view: watch::Receiver<Arc<MeshView>>,
    undecodable: Arc<AtomicU64>,
    cancel: CancellationToken,
    task: Mutex<Option<JoinHandle<()>>>,
}

impl fmt::Debug for Mesh {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Mesh")
            .field("id", &self.inner.id)
            .field("members", &self.inner.view.borrow().members.len())
            .finish_non_exhaustive()
    }
}

impl Mesh {
    /// Joins; returns as soon as gossip runs, whoever has been heard of by then.
    pub async fn start(
        options: MeshOptions,
        transport: Arc<dyn Transport>,
        cancel: CancellationToken,
    ) -> Result<Self, MeshError> {
        if options.generation >= GENERATION_MAX {
            return Err(MeshError::Generation { generation: options.generation });
        }
        if options.gossip_interval.is_zero() {
            return Err(MeshError::Interval);
        }
        let published = Arc::new(Published::default());
        for (key, value) in &options.initial {
            published.set(key, value.clone())?;
        }
        let id = options.id;
        let undecodable = Arc::default();
        let cancel = cancel.child_token();
        let socket = gossip::Adapter::new(transport, Arc::clone(&undecodable)).ok_or(MeshError::Taken)?;
        let (sender, view) = watch::channel(Arc::default());
        let driver = gossip::Driver::start(options, socket, Arc::clone(&published), sender).await?;
        let task = Mutex::new(Some(tokio::spawn(driver.run(cancel.clone()))));
        Ok(Self { inner: Arc::new(Inner { id, published, view, undecodable, cancel, task }) })
    }

    /// This host.
    pub fn id(&self) -> HostId {
        self.inner.id
    }

    /// Says `value`, as JSON, under `key`. Never waits; does nothing if it was said
    /// before.
    pub fn publish(&self, key: &str, value: &impl Serialize) -> Result<(), MeshError> {
        let value = serde_json::to_string(value)
            .map_err(|source| MeshError::Encode { key: key.to_owned(), source })?;
        self.inner.published.set(key, value)
    }

    /// Says nothing under `key` any more.
    pub fn unpublish(&self, key: &str) {
        if self.inner.published.lock().remove(key).is_some() {
            self.inner.published.changed.notify_one();
        }
    }

    /// What this host has heard, rebuilt at most once a gossip interval and only when
    /// something changed.
    pub fn view(&self) -> watch::Receiver<Arc<MeshView>> {
        self.inner.view.clone()
    }

    /// Gossip messages that arrived and made no sense, since the start.
    pub fn undecodable(&self) -> u64 {
        self.inner.undecodable.load(Ordering::Relaxed)
    }

    /// Falls silent, so that the others find this host dead, and waits for the task.
    pub async fn shutdown(&self) {
        self.inner.cancel.cancel();
        let task = self.inner.task.lock().unwrap_or_else(PoisonError::into_inner).take();
        if let Some(task) = task
            && let Err(error) = task.await
        {
            tracing::error!(%error, "the gossip task ended badly");
        }
    }
}

#[cfg(test)]
mod tests;
