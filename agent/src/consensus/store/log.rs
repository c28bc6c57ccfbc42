//! Log, vote and the two marks that go with them, as openraft's log storage.

use std::fmt::Debug;
use std::ops::{Bound, RangeBounds};

use openraft::storage::{LogFlushed, LogState, RaftLogStorage};
use openraft::{ErrorSubject, ErrorVerb, OptionalSend, RaftLogReader};
use redb::{Database, Durability, ReadableDatabase, ReadableTable};
use redmesh_api::codec;
use redmesh_api::limits::FRAME_BYTES_MAX;

use super::super::types::{Entry, LogId, StorageError, TypeConfig, Vote};
use super::{COMMITTED, Fault, LOG, META, PURGED, Store, StoreError, VOTE, get, put, storage_error};

/// Encoded entries that one read for replication returns, bytes, unless the first alone
/// is larger. Half a frame: the request that carries them must fit one.
const READ_BYTES_MAX: usize = FRAME_BYTES_MAX / 2;

/// openraft's log storage. Writes are serialised by redb's single writer and by
/// openraft, which awaits each.
#[derive(Debug, Clone)]
pub(in crate::consensus) struct LogStore {
    store: Store,
}

impl LogStore {
    pub(in crate::consensus) fn new(store: Store) -> Self {
        Self { store }
    }

    async fn entries(
        &self,
        range: (Bound<u64>, Bound<u64>),
        bytes_max: usize,
    ) -> Result<Vec<Entry>, StorageError> {
        self.store
            .read(move |db| read_entries(db, range, bytes_max))
            .await
            .map_err(|error| storage_error(ErrorSubject::Logs, ErrorVerb::Read, &error))
    }
}

fn read_entries(
    db: &Database,
    range: (Bound<u64>, Bound<u64>),
    bytes_max: usize,
) -> Result<Vec<Entry>, Fault> {
    let log = db.begin_read()?.open_table(LOG)?;
    let mut entries = Vec::new();
    let mut bytes: usize = 0;
    for item in log.range(range)? {
        let (_, value) = item?;
        bytes = bytes.saturating_add(value.value().len());
        if bytes > bytes_max && !entries.is_empty() {
            break;
        }
        entries.push(codec::decode(value.value()).map_err(Fault::Decode)?);
    }
    Ok(entries)
}

impl RaftLogReader<TypeConfig> for LogStore {
    async fn try_get_log_entries<RB: RangeBounds<u64> + Clone + Debug + OptionalSend>(
        &mut self,
        range: RB,
    ) -> Result<Vec<Entry>, StorageError> {
        let range = (range.start_bound().cloned(), range.end_bound().cloned());
        self.entries(range, usize::MAX).await
    }

    async fn limited_get_log_entries(&mut self, start: u64, end: u64) -> Result<Vec<Entry>, StorageError> {
        self.entries((Bound::Included(start), Bound::Excluded(end)), READ_BYTES_MAX).await
    }
}

impl RaftLogStorage<TypeConfig> for LogStore {
    type LogReader = Self;

    async fn get_log_state(&mut self) -> Result<LogState<TypeConfig>, StorageError> {
        self.store
            .read(|db| {
                let txn = db.begin_read()?;
                let purged: Option<LogId> = get(&txn.open_table(META)?, PURGED)?;
                let last = match txn.open_table(LOG)?.last()? {
                    Some((_, value)) => {
                        let entry: Entry = codec::decode(value.value()).map_err(Fault::Decode)?;
                        Some(entry.log_id)
                    }
                    None => purged,
                };
                Ok(LogState { last_purged_log_id: purged, last_log_id: last })
            })
            .await
            .map_err(|error| storage_error(ErrorSubject::Logs, ErrorVerb::Read, &error))
    }

    async fn get_log_reader(&mut self) -> Self::LogReader {
        self.clone()
    }

    async fn save_vote(&mut self, vote: &Vote) -> Result<(), StorageError> {
        let vote = *vote;
        self.store
            .write(Durability::Immediate, move |txn| put(&mut txn.open_table(META)?, VOTE, &vote))
            .await
            .map_err(|error| storage_error(ErrorSubject::Vote, ErrorVerb::Write, &error))
    }

    async fn read_vote(&mut self) -> Result<Option<Vote>, StorageError> {
        self.store
            .read(|db| get(&db.begin_read()?.open_table(META)?, VOTE))
            .await
            .map_err(|error| storage_error(ErrorSubject::Vote, ErrorVerb::Read, &error))
    }

    async fn save_committed(&mut self, committed: Option<LogId>) -> Result<(), StorageError> {
        // Not waited for on disk: it only spares a restart from asking the leader what
        // is committed, and the next durable transaction carries it along.
        self.store
            .write(Durability::None, move |txn| put(&mut txn.open_table(META)?, COMMITTED, &committed))
            .await
            .map_err(|error| storage_error(ErrorSubject::Store, ErrorVerb::Write, &error))
    }

    async fn read_committed(&mut self) -> Result<Option<LogId>, StorageError> {
        self.store
            .read(|db| get::<Option<LogId>>(&db.begin_read()?.open_table(META)?, COMMITTED))
            .await
            .map(Option::flatten)
            .map_err(|error| storage_error(ErrorSubject::Store, ErrorVerb::Read, &error))
    }

    async fn append<I>(&mut self, entries: I, callback: LogFlushed<TypeConfig>) -> Result<(), StorageError>
    where
        I: IntoIterator<Item = Entry> + OptionalSend,
        I::IntoIter: OptionalSend,
    {
        let mut encoded = Vec::new();
        for entry in entries {
            let bytes = codec::encode(&entry).map_err(|source| {
                let path = self.store.inner.path.clone();
                let error = StoreError::Encode { path, what: "a log entry", source };
                storage_error(ErrorSubject::Log(entry.log_id), ErrorVerb::Write, &error)
            })?;
            encoded.push((entry.log_id.index, bytes));
        }
        let written = self
            .store
            .write(Durability::Immediate, move |txn| {
                let mut log = txn.open_table(LOG)?;
                for (index, bytes) in &encoded {
                    log.insert(index, bytes.as_slice())?;
                }
                Ok(())
            })
            .await;
        match written {
            Ok(()) => {
                callback.log_io_completed(Ok(()));
                Ok(())
            }
            Err(error) => {
                callback.log_io_completed(Err(std::io::Error::other(error.to_string())));
                Err(storage_error(ErrorSubject::Logs, ErrorVerb::Write, &error))
            }
        }
    }

    async fn truncate(&mut self, log_id: LogId) -> Result<(), StorageError> {
        self.store
            .write(Durability::Immediate, move |txn| {
                txn.open_table(LOG)?.retain_in(log_id.index.., |_, _| false)?;
                Ok(())
            })
            .await
            .map_err(|error| storage_error(ErrorSubject::Log(log_id), ErrorVerb::Delete, &error))
    }

    async fn purge(&mut self, log_id: LogId) -> Result<(), StorageError> {
        self.store
            .write(Durability::Immediate, move |txn| {
                put(&mut txn.open_table(META)?, PURGED, &log_id)?;
                txn.open_table(LOG)?.retain_in(..=log_id.index, |_, _| false)?;
                Ok(())
            })
            .await
            .map_err(|error| storage_error(ErrorSubject::Log(log_id), ErrorVerb::Delete, &error))
    }
}
