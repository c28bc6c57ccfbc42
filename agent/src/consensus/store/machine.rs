//! The applied state, on disk with every entry applied, as openraft's state machine.

use std::io::Cursor;
use std::sync::Arc;

use openraft::storage::RaftStateMachine;
use openraft::{EntryPayload, ErrorSubject, ErrorVerb, OptionalSend, RaftSnapshotBuilder};
use redb::{Durability, ReadableDatabase};
use redmesh_api::codec;
use redmesh_api::level::{Level, Stamp};
use tokio::sync::watch;

use super::super::command::Applied;
use super::super::machine;
use super::super::types::{
    Entry, LogId, Response, Snapshot, SnapshotMeta, StorageError, StoredMembership, TypeConfig,
};
use super::{APPLIED, Fault, LEVEL, META, SNAPSHOT, Store, StoreError, get, put, storage_error};

/// openraft's state machine: the level, and where in the log it stands.
#[derive(Debug)]
pub(in crate::consensus) struct MachineStore {
    store: Store,
    state: State,
    /// Told of every level once it is on disk.
    levels: watch::Sender<Arc<Level>>,
}

#[derive(Debug, Clone, Default)]
struct State {
    last_applied: Option<LogId>,
    membership: StoredMembership,
    level: Arc<Level>,
}

impl MachineStore {
    /// The state as it was left.
    pub(in crate::consensus) async fn open(store: Store) -> Result<Self, StoreError> {
        let state = store
            .read(|db| {
                let meta = db.begin_read()?.open_table(META)?;
                let (last_applied, membership) = get(&meta, APPLIED)?.unwrap_or_default();
                let level = Arc::new(get(&meta, LEVEL)?.unwrap_or_default());
                Ok(State { last_applied, membership, level })
            })
            .await?;
        let levels = watch::Sender::new(Arc::clone(&state.level));
        Ok(Self { store, state, levels })
    }

    /// The level, now and whenever it changes.
    pub(in crate::consensus) fn levels(&self) -> watch::Receiver<Arc<Level>> {
        self.levels.subscribe()
    }

    /// Makes `next` the state, first on disk and then in memory.
    async fn commit(
        &mut self,
        next: State,
        snapshot: Option<(SnapshotMeta, Vec<u8>)>,
    ) -> Result<(), StoreError> {
        let level_changed = !Arc::ptr_eq(&next.level, &self.state.level);
        let write = next.clone();
        self.store
            .write(Durability::Immediate, move |txn| {
                let mut meta = txn.open_table(META)?;
                put(&mut meta, APPLIED, &(write.last_applied, write.membership))?;
                if level_changed {
                    put(&mut meta, LEVEL, &*write.level)?;
                }
                if let Some(snapshot) = snapshot {
                    put(&mut meta, SNAPSHOT, &snapshot)?;
                }
                Ok(())
            })
            .await?;
        self.state = next;
        if level_changed {
            self.levels.send_replace(Arc::clone(&self.state.level));
        }
        Ok(())
    }
}

/// Applies one entry in memory.
fn step(state: &mut State, entry: Entry) -> Response {
    state.last_applied = Some(entry.log_id);
    let applied = match entry.payload {
        EntryPayload::Blank => Applied::Unchanged,
        EntryPayload::Membership(membership) => {
            state.membership = StoredMembership::new(Some(entry.log_id), membership);
            Applied::Unchanged
        }
        EntryPayload::Normal(proposal) => {
            let stamp = Stamp {
                term: entry.log_id.leader_id.term,
                index: entry.log_id.index,
                leader: proposal.leader,
            };
            let mut level = Level::clone(&state.level);
            let applied = machine::apply(&mut level, stamp, &proposal.command);
            if applied == Applied::Done {
                state.level = Arc::new(level);
            }
            applied
        }
    };
    Response { applied, stamp: state.level.stamp }
}

impl RaftStateMachine<TypeConfig> for MachineStore {
    type SnapshotBuilder = SnapshotBuilder;

    async fn applied_state(&mut self) -> Result<(Option<LogId>, StoredMembership), StorageError> {
        Ok((self.state.last_applied, self.state.membership.clone()))
    }

    async fn apply<I>(&mut self, entries: I) -> Result<Vec<Response>, StorageError>
    where
        I: IntoIterator<Item = Entry> + OptionalSend,
        I::IntoIter: OptionalSend,
    {
        let mut next = self.state.clone();
        let responses = entries.into_iter().map(|entry| step(&mut next, entry)).collect();
        self.commit(next, None)
            .await
            .map_err(|error| storage_error(ErrorSubject::StateMachine, ErrorVerb::Write, &error))?;
        Ok(responses)
    }

    async fn get_snapshot_builder(&mut self) -> SnapshotBuilder {
        SnapshotBuilder { store: self.store.clone(), state: self.state.clone() }
    }

    async fn begin_receiving_snapshot(&mut self) -> Result<Box<Cursor<Vec<u8>>>, StorageError> {
        Ok(Box::default())
    }

    async fn install_snapshot(
        &mut self,
        meta: &SnapshotMeta,
        snapshot: Box<Cursor<Vec<u8>>>,
    ) -> Result<(), StorageError> {
        let data = snapshot.into_inner();
        let fail = |error: &StoreError| {
            storage_error(ErrorSubject::Snapshot(Some(meta.signature())), ErrorVerb::Write, error)
        };
        let level: Level =
            codec::decode(&data).map_err(|source| fail(&self.store.inner.error(Fault::Decode(source))))?;
        let next = State {
            last_applied: meta.last_log_id,
            membership: meta.last_membership.clone(),
            level: Arc::new(level),
        };
        self.commit(next, Some((meta.clone(), data))).await.map_err(|error| fail(&error))
    }

    async fn get_current_snapshot(&mut self) -> Result<Option<Snapshot>, StorageError> {
        let stored: Option<(SnapshotMeta, Vec<u8>)> = self
            .store
            .read(|db| get(&db.begin_read()?.open_table(META)?, SNAPSHOT))
            .await
            .map_err(|error| storage_error(ErrorSubject::Snapshot(None), ErrorVerb::Read, &error))?;
        Ok(stored.map(|(meta, data)| Snapshot { meta, snapshot: Box::new(Cursor::new(data)) }))
    }
}

/// Writes a snapshot of the state as it was when the builder was made.
#[derive(Debug)]
pub(in crate::consensus) struct SnapshotBuilder {
    store: Store,
    state: State,
}

impl RaftSnapshotBuilder<TypeConfig> for SnapshotBuilder {
    async fn build_snapshot(&mut self) -> Result<Snapshot, StorageError> {
        let fail = |error: &StoreError| storage_error(ErrorSubject::Snapshot(None), ErrorVerb::Write, error);
        let data = codec::encode(&*self.state.level).map_err(|source| {
            let path = self.store.inner.path.clone();
            fail(&StoreError::Encode { path, what: SNAPSHOT, source })
        })?;
        let meta = SnapshotMeta {
            last_log_id: self.state.last_applied,
            last_membership: self.state.membership.clone(),
            // The state at one log id is the same on every voter, so the id may be too.
            snapshot_id: self
                .state
                .last_applied
                .map_or_else(|| "empty".to_owned(), |log_id| log_id.to_string()),
        };
        let stored = (meta.clone(), data.clone());
        self.store
            .write(Durability::Immediate, move |txn| {
                let mut table = txn.open_table(META)?;
                let current: Option<(SnapshotMeta, Vec<u8>)> = get(&table, SNAPSHOT)?;
                // One that was installed meanwhile is newer and stays.
                if current.is_none_or(|(current, _)| current.last_log_id <= stored.0.last_log_id) {
                    put(&mut table, SNAPSHOT, &stored)?;
                }
                Ok(())
            })
            .await
            .map_err(|error| fail(&error))?;
        Ok(Snapshot { meta, snapshot: Box::new(Cursor::new(data)) })
    }
}
