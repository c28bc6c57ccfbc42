//! The newest level that this host has seen, and the fence that keeps it newest.
//!
//! Levels arrive from the local Raft state machine, from the coordinator's push and
//! from pulls; whichever brings it, one with an older stamp is refused, and one of
//! another mesh too. The level is kept on disk before anybody acts on it, so that a
//! restarted agent runs its instances without asking anyone and still knows its fence.

use std::io;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use redmesh_api::codec::{self, CodecError};
use redmesh_api::ids::MeshId;
use redmesh_api::level::{Level, Stamp};
use tokio::sync::watch;

use crate::disk::Disk;
use crate::files;

const FILE_NAME: &str = "level.bin";

/// Why a level was not taken.
#[derive(Debug, thiserror::Error)]
pub enum LevelError {
    /// Its fence is older than one seen before.
    #[error("level {got} is older than {newest}, which this host has seen")]
    Stale {
        /// What came.
        got: Stamp,
        /// What is here.
        newest: Stamp,
    },
    /// It belongs to a mesh that was initialised apart.
    #[error(
        "level of mesh {theirs}, but this host belongs to mesh {ours}: two meshes were initialised \
         apart; move one's state directories away and let its hosts join the other"
    )]
    OtherMesh {
        /// The level's.
        theirs: MeshId,
        /// This host's.
        ours: MeshId,
    },
    /// It could not be written or read.
    #[error("can't keep the level in {}: check free space and permissions", .path.display())]
    Io {
        /// The file.
        path: PathBuf,
        /// Why.
        #[source]
        source: io::Error,
    },
    /// The agent is stopping.
    #[error("the level was not kept, because the agent is stopping")]
    Interrupted,
    /// The file holds something else.
    #[error(
        "{} is damaged: move it away, this host then asks the others for the level",
        .path.display()
    )]
    Corrupt {
        /// The file.
        path: PathBuf,
        /// Why.
        #[source]
        source: CodecError,
    },
}

/// Cloneable handle to the newest level.
#[derive(Debug, Clone)]
pub struct LevelCell {
    inner: Arc<Inner>,
}

#[derive(Debug)]
struct Inner {
    path: PathBuf,
    disk: Disk,
    /// Serialises accept: compare, write, publish.
    writing: Mutex<()>,
    newest: watch::Sender<Arc<Level>>,
    /// The newest level that was heard of and could not be kept, and why.
    unkept: Mutex<Option<(Arc<Level>, String)>>,
}

impl LevelCell {
    /// Opens what an earlier life kept in `state_dir`, or begins with nothing wanted.
    ///
    /// # Errors
    /// [`LevelError::Io`] or [`LevelError::Corrupt`].
    pub fn open(state_dir: &Path, disk: Disk) -> Result<Self, LevelError> {
        let path = state_dir.join(FILE_NAME);
        let level = match std::fs::read(&path) {
            Ok(bytes) => {
                codec::decode(&bytes).map_err(|source| LevelError::Corrupt { path: path.clone(), source })?
            }
            Err(error) if error.kind() == io::ErrorKind::NotFound => Level::default(),
            Err(source) => return Err(LevelError::Io { path, source }),
        };
        let newest = watch::Sender::new(Arc::new(level));
        let (writing, unkept) = (Mutex::new(()), Mutex::new(None));
        Ok(Self { inner: Arc::new(Inner { path, disk, writing, newest, unkept }) })
    }

    /// Follows the newest level.
    pub fn subscribe(&self) -> watch::Receiver<Arc<Level>> {
        self.inner.newest.subscribe()
    }

    /// The newest level.
    pub fn get(&self) -> Arc<Level> {
        self.inner.newest.borrow().clone()
    }

    /// Why a newer level could not be taken, until one is.
    pub fn problem(&self) -> Option<String> {
        self.unkept_now().as_ref().map(|(_, problem)| problem.clone())
    }

    /// The level that could not be taken, until one is. Nothing may be begun by it, for a
    /// restart would forget it; what it ends may be ended, for that harms nobody.
    pub fn unkept(&self) -> Option<Arc<Level>> {
        self.unkept_now().as_ref().map(|(level, _)| level.clone())
    }

    fn unkept_now(&self) -> MutexGuard<'_, Option<(Arc<Level>, String)>> {
        self.inner.unkept.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Takes `level` if it is newer; `false` if it is the one that is here. Everybody
    /// who brings one brings what Raft has committed.
    ///
    /// # Errors
    /// [`LevelError`]; the newest level then stays what it was.
    pub async fn accept(&self, level: Arc<Level>) -> Result<bool, LevelError> {
        let cell = self.clone();
        let accepted = self.inner.disk.access(move || cell.accept_blocking(level)).await;
        accepted.unwrap_or(Err(LevelError::Interrupted))
    }

    /// The same, waiting for the disk.
    fn accept_blocking(&self, level: Arc<Level>) -> Result<bool, LevelError> {
        let _writing = self.inner.writing.lock().unwrap_or_else(PoisonError::into_inner);
        let newest = self.get();
        if let (Some(ours), Some(theirs)) = (newest.mesh, level.mesh)
            && ours != theirs
        {
            return Err(LevelError::OtherMesh { theirs, ours });
        }
        if level.stamp == newest.stamp {
            return Ok(false);
        }
        if level.stamp < newest.stamp {
            return Err(LevelError::Stale { got: level.stamp, newest: newest.stamp });
        }
        let io_error = |source| LevelError::Io { path: self.inner.path.clone(), source };
        let bytes = codec::encode(&*level)
            .map_err(|source| LevelError::Corrupt { path: self.inner.path.clone(), source })?;
        let written = files::replace(&self.inner.path, &bytes, files::PRIVATE).map_err(io_error);
        if let Err(error) = written {
            let mut unkept = self.unkept_now();
            if unkept.as_ref().is_none_or(|(known, _)| known.stamp <= level.stamp) {
                *unkept = Some((level, crate::error_chain(&error)));
            }
            return Err(error);
        }
        *self.unkept_now() = None;
        self.inner.newest.send_replace(level);
        Ok(true)
    }
}

#[cfg(test)]
mod tests {
    use redmesh_api::ids::HostId;
    use uuid::Uuid;

    use super::*;

    fn level(term: u64, index: u64) -> Arc<Level> {
        let stamp = Stamp { term, index, leader: HostId(7) };
        Arc::new(Level { stamp, mesh: Some(MeshId(Uuid::from_u128(1))), ..Level::default() })
    }

    #[test]
    fn an_older_fence_is_refused_also_after_a_restart() {
        let dir = tempfile::tempdir().expect("temp dir");
        let cell = LevelCell::open(dir.path(), Disk::default()).expect("open");
        assert!(cell.accept_blocking(level(2, 9)).expect("newer"));
        assert!(!cell.accept_blocking(level(2, 9)).expect("the same"));
        assert!(matches!(cell.accept_blocking(level(1, 50)), Err(LevelError::Stale { .. })));
        let again = LevelCell::open(dir.path(), Disk::default()).expect("reopen");
        assert_eq!(again.get().stamp, level(2, 9).stamp);
        assert!(matches!(again.accept_blocking(level(2, 8)), Err(LevelError::Stale { .. })));
        assert!(again.accept_blocking(level(3, 1)).expect("newer"));
    }

    #[test]
    fn a_level_that_can_not_be_kept_is_told_and_taken_later() {
        let dir = tempfile::tempdir().expect("temp dir");
        let state = dir.path().join("state");
        std::fs::create_dir(&state).expect("a directory");
        let cell = LevelCell::open(&state, Disk::default()).expect("open");
        std::fs::remove_dir(&state).expect("remove it");
        assert!(matches!(cell.accept_blocking(level(1, 1)), Err(LevelError::Io { .. })));
        assert!(cell.problem().is_some_and(|words| words.contains("check free space")));
        assert_eq!(cell.get().stamp, Stamp::default(), "nobody acts on it");
        assert!(matches!(cell.accept_blocking(level(2, 1)), Err(LevelError::Io { .. })));
        assert!(matches!(cell.accept_blocking(level(1, 1)), Err(LevelError::Io { .. })));
        assert_eq!(cell.unkept().map(|level| level.stamp.term), Some(2), "the newest");
        std::fs::create_dir(&state).expect("a directory");
        assert!(cell.accept_blocking(level(2, 1)).expect("the same level again"));
        assert_eq!((cell.problem(), cell.unkept()), (None, None));
    }

    #[test]
    fn another_mesh_is_refused() {
        let dir = tempfile::tempdir().expect("temp dir");
        let cell = LevelCell::open(dir.path(), Disk::default()).expect("open");
        cell.accept_blocking(level(1, 1)).expect("first");
        let mut other = Level::clone(&level(5, 5));
        other.mesh = Some(MeshId(Uuid::from_u128(2)));
        assert!(matches!(cell.accept_blocking(Arc::new(other)), Err(LevelError::OtherMesh { .. })));
    }

    #[test]
    fn a_damaged_file_is_named() {
        let dir = tempfile::tempdir().expect("temp dir");
        std::fs::write(dir.path().join(FILE_NAME), b"\xff\xff\xff").expect("write");
        let error = LevelCell::open(dir.path(), Disk::default()).expect_err("damaged");
        assert!(error.to_string().contains("level.bin is damaged"), "{error}");
    }
}
