//! What a voter must not forget, in one redb file: log, vote, applied state, snapshot
//! and the bootstrap pledge.
//!
//! Every access runs on a blocking thread, because a write waits for the disk and the
//! runtime must not. Each write is one transaction that is on disk before it is
//! answered; the one exception is named where it is made. A file that can't be read is
//! never repaired or replaced here: a voter that forgets its vote may elect two leaders.

mod log;
mod machine;

use std::path::{Path, PathBuf};
use std::sync::{Arc, PoisonError, RwLock};

use redb::{Database, Durability, ReadableDatabase, ReadableTable, TableDefinition, WriteTransaction};
use redmesh_api::codec::{self, CodecError};
use redmesh_api::ids::HostId;
use serde::Serialize;
use serde::de::DeserializeOwned;

use super::pledge::{self, Pledge, PledgeReply};
use super::types::StorageError;
use crate::disk::Disk;

pub(super) use log::LogStore;
pub(super) use machine::MachineStore;

/// Name of the file in the state directory.
pub const FILE_NAME: &str = "raft.redb";

/// Of the file, so much is kept in memory. redb's own bound is 1 GiB, so an agent's memory
/// would follow the file, which grows until the first logs are dropped.
const CACHE_BYTES_MAX: usize = 1024 * 1024;

/// Log entries by index.
const LOG: TableDefinition<'_, u64, &[u8]> = TableDefinition::new("log");
/// Single values by name.
const META: TableDefinition<'_, &str, &[u8]> = TableDefinition::new("meta");

const VOTE: &str = "vote";
const COMMITTED: &str = "committed";
const PURGED: &str = "purged";
const APPLIED: &str = "applied";
const LEVEL: &str = "level";
const SNAPSHOT: &str = "snapshot";
const PLEDGE: &str = "pledge";

/// Why the store can't serve.
#[derive(Debug, thiserror::Error)]
pub enum StoreError {
    /// Another process holds the file.
    #[error("{} is in use: is another agent running with this state directory?", .path.display())]
    Busy {
        /// The file.
        path: PathBuf,
    },
    /// The file is not what this program wrote.
    #[error(
        "{} is damaged: move the whole state directory away and start again; the host then joins under a new id",
        .path.display()
    )]
    Corrupt {
        /// The file.
        path: PathBuf,
        /// What was found.
        #[source]
        source: Box<dyn std::error::Error + Send + Sync>,
    },
    /// A host of a mesh without its votes and its log.
    #[error(
        "{} is missing or empty, but this host belongs to a mesh, and without its votes it could vote twice: \
         restore it, or move the whole state directory away; the host then joins under a new id", .path.display()
    )]
    Lost {
        /// The file.
        path: PathBuf,
    },
    /// The disk or the file system failed.
    #[error("can't use {}: check its disk's space, health and permissions", .path.display())]
    Io {
        /// The file.
        path: PathBuf,
        /// How.
        #[source]
        source: Box<redb::Error>,
    },
    /// A value that can't be written.
    #[error("can't write {what} to {}", .path.display())]
    Encode {
        /// The file.
        path: PathBuf,
        /// Which value.
        what: &'static str,
        /// Why.
        #[source]
        source: CodecError,
    },
    /// Used after the node was shut down.
    #[error("{} is closed: the agent is stopping", .path.display())]
    Closed {
        /// The file.
        path: PathBuf,
    },
}

/// What goes wrong inside a transaction, before it is put into words.
#[derive(Debug)]
enum Fault {
    Redb(redb::Error),
    Decode(CodecError),
    Encode { what: &'static str, source: CodecError },
}

impl<E: Into<redb::Error>> From<E> for Fault {
    fn from(error: E) -> Self {
        Self::Redb(error.into())
    }
}

/// The file. Cheap to clone.
#[derive(Debug, Clone)]
pub(super) struct Store {
    inner: Arc<Inner>,
}

#[derive(Debug)]
struct Inner {
    path: PathBuf,
    disk: Disk,
    /// `None` once closed, so that the file is free although openraft's last tasks may
    /// still hold clones.
    db: RwLock<Option<Database>>,
}

impl Store {
    /// Opens the file in `state_dir`, or makes it; `in_mesh` says that there was one.
    pub(super) async fn open(state_dir: &Path, in_mesh: bool, disk: Disk) -> Result<Self, StoreError> {
        let path = state_dir.join(FILE_NAME);
        if in_mesh && std::fs::metadata(&path).map_or(0, |file| file.len()) == 0 {
            return Err(StoreError::Lost { path });
        }
        let inner = Arc::new(Inner { path, disk, db: RwLock::new(None) });
        let store = Self { inner: Arc::clone(&inner) };
        store
            .blocking(move || {
                let mut options = Database::builder();
                let db = options
                    .set_cache_size(CACHE_BYTES_MAX)
                    .create(&inner.path)
                    .map_err(|error| inner.open_error(error))?;
                *inner.db.write().unwrap_or_else(PoisonError::into_inner) = Some(db);
                Ok(())
            })
            .await?;
        // Both tables exist from here on, so that reads need not tell empty from absent.
        store
            .write(Durability::Immediate, |txn| {
                txn.open_table(LOG)?;
                txn.open_table(META)?;
                Ok(())
            })
            .await?;
        Ok(store)
    }

    /// Waits for what is under way and lets go of the file; anything later is refused.
    pub(super) async fn close(&self) {
        let inner = Arc::clone(&self.inner);
        let closed = self.blocking(move || {
            drop(inner.db.write().unwrap_or_else(PoisonError::into_inner).take());
            Ok(())
        });
        if let Err(error) = closed.await {
            tracing::warn!(%error, "closing the consensus store");
        }
    }

    /// The pledge given, if any.
    pub(super) async fn pledged(&self) -> Result<Option<Pledge>, StoreError> {
        self.read(|db| get(&db.begin_read()?.open_table(META)?, PLEDGE)).await
    }

    /// Gives `asked`, on behalf of `me`, if [`pledge::answer`] allows it.
    pub(super) async fn pledge(&self, me: HostId, asked: Pledge) -> Result<PledgeReply, StoreError> {
        self.write(Durability::Immediate, move |txn| {
            let mut meta = txn.open_table(META)?;
            let given: Option<Pledge> = get(&meta, PLEDGE)?;
            let reply = pledge::answer(me, given.as_ref(), &asked);
            if reply == PledgeReply::Pledged {
                put(&mut meta, PLEDGE, &Pledge { holds: Vec::new(), ..asked })?;
            }
            Ok(reply)
        })
        .await
    }

    /// Reads in one snapshot of the file.
    async fn read<T: Send + 'static>(
        &self,
        f: impl FnOnce(&Database) -> Result<T, Fault> + Send + 'static,
    ) -> Result<T, StoreError> {
        let inner = Arc::clone(&self.inner);
        self.blocking(move || inner.with(f)).await
    }

    /// Writes in one transaction, committed when this returns.
    async fn write<T: Send + 'static>(
        &self,
        durability: Durability,
        f: impl FnOnce(&WriteTransaction) -> Result<T, Fault> + Send + 'static,
    ) -> Result<T, StoreError> {
        self.read(move |db| {
            let mut txn = db.begin_write()?;
            txn.set_durability(durability)?;
            let value = f(&txn)?;
            txn.commit()?;
            Ok(value)
        })
        .await
    }

    async fn blocking<T: Send + 'static>(
        &self,
        f: impl FnOnce() -> Result<T, StoreError> + Send + 'static,
    ) -> Result<T, StoreError> {
        match self.inner.disk.access(f).await {
            Ok(result) => result,
            // redb panics on some damage that its checks don't cover.
            Err(error) if error.is_panic() => {
                Err(StoreError::Corrupt { path: self.inner.path.clone(), source: Box::new(error) })
            }
            Err(_) => Err(StoreError::Closed { path: self.inner.path.clone() }),
        }
    }
}

impl Inner {
    fn with<T>(&self, f: impl FnOnce(&Database) -> Result<T, Fault>) -> Result<T, StoreError> {
        let guard = self.db.read().unwrap_or_else(PoisonError::into_inner);
        let db = guard.as_ref().ok_or_else(|| StoreError::Closed { path: self.path.clone() })?;
        f(db).map_err(|fault| self.error(fault))
    }

    fn error(&self, fault: Fault) -> StoreError {
        let path = self.path.clone();
        match fault {
            Fault::Redb(redb::Error::Io(error)) if error.kind() == std::io::ErrorKind::InvalidData => {
                StoreError::Corrupt { path, source: Box::new(error) }
            }
            Fault::Redb(
                error @ (redb::Error::Corrupted(_)
                | redb::Error::TableTypeMismatch { .. }
                | redb::Error::TypeDefinitionChanged { .. }
                | redb::Error::TableIsMultimap(_)
                | redb::Error::UpgradeRequired(_)
                | redb::Error::RepairAborted),
            ) => StoreError::Corrupt { path, source: Box::new(error) },
            Fault::Redb(error) => StoreError::Io { path, source: Box::new(error) },
            Fault::Decode(source) => StoreError::Corrupt { path, source: Box::new(source) },
            Fault::Encode { what, source } => StoreError::Encode { path, what, source },
        }
    }

    fn open_error(&self, error: redb::DatabaseError) -> StoreError {
        match error {
            redb::DatabaseError::DatabaseAlreadyOpen => StoreError::Busy { path: self.path.clone() },
            error => self.error(Fault::Redb(error.into())),
        }
    }
}

/// The value called `key`.
fn get<T: DeserializeOwned>(
    meta: &impl ReadableTable<&'static str, &'static [u8]>,
    key: &'static str,
) -> Result<Option<T>, Fault> {
    match meta.get(key)? {
        Some(bytes) => codec::decode(bytes.value()).map(Some).map_err(Fault::Decode),
        None => Ok(None),
    }
}

/// Sets the value called `key`.
fn put<T: Serialize>(
    meta: &mut redb::Table<'_, &'static str, &'static [u8]>,
    key: &'static str,
    value: &T,
) -> Result<(), Fault> {
    let bytes = codec::encode(value).map_err(|source| Fault::Encode { what: key, source })?;
    meta.insert(key, bytes.as_slice())?;
    Ok(())
}

/// `error` as openraft wants it: fatal, and saying which part failed at what.
fn storage_error(
    subject: openraft::ErrorSubject<super::types::VoterId>,
    verb: openraft::ErrorVerb,
    error: &StoreError,
) -> StorageError {
    openraft::StorageIOError::new(subject, verb, openraft::AnyError::new(error)).into()
}

#[cfg(test)]
mod tests;
