//! Who this host is from one start to the next: its id, a generation that grows at
//! every start, and a secret that outlives the process.
//!
//! The state directory belongs to one agent at a time, which holds a lock on it for as
//! long as it lives. The generation is on the disk before anyone can see it: peers take
//! the larger one for the newer life, so a number must never be used twice.

#[cfg(test)]
mod tests;

use std::fmt;
use std::fs::{DirBuilder, File, OpenOptions};
use std::io::{self, ErrorKind, Read, Seek, Write};
use std::os::unix::fs::{DirBuilderExt, OpenOptionsExt};
use std::path::{Path, PathBuf};

use redmesh_api::codec::PROTOCOL_VERSION;
use redmesh_api::ids::HostId;
use rustix::fs::FlockOperation;
use serde::{Deserialize, Serialize};

use crate::files;

/// Bytes of the host's secret.
pub const SECRET_BYTES: usize = 32;

/// Largest file of the state directory that is read here, bytes.
const FILE_BYTES_MAX: u64 = 64 * 1024;

/// What a host that has been in a mesh keeps besides, and only under its own id.
const KEPT: &[&str] = &["raft.redb", "level.bin", "runs"];

/// Why the state directory can't be used.
#[derive(Debug, thiserror::Error)]
pub enum IdentityError {
    /// Some agent holds the lock.
    #[error(
        "another redmesh-agent (pid {pid}) uses {}: stop it, or give this one a state.dir of its own", .dir.display()
    )]
    InUse {
        /// The state directory.
        dir: PathBuf,
        /// What the lock file says, or `unknown`.
        pid: String,
    },
    /// A file is there and isn't what it should be.
    #[error(
        "{} is damaged ({reason}): restore it from a backup, or move {} away to join as a new host",
        .path.display(), .dir.display()
    )]
    Damaged {
        /// Which.
        path: PathBuf,
        /// The state directory.
        dir: PathBuf,
        /// What is wrong with it.
        reason: String,
    },
    /// Another version's.
    #[error(
        "{} was written by a redmesh-agent of format {got}, this one uses {PROTOCOL_VERSION}: start that version \
         again, or move the directory away to join as a new host", .dir.display()
    )]
    Format {
        /// The state directory.
        dir: PathBuf,
        /// Its format; 0 before they were numbered.
        got: u8,
    },
    /// No space.
    #[error("no space left to write {}: free some, the agent can't start without it", .path.display())]
    DiskFull {
        /// What was to be written.
        path: PathBuf,
        /// The error.
        #[source]
        source: io::Error,
    },
    /// Anything else that the filesystem refuses.
    #[error("can't {what} {}", .path.display())]
    Io {
        /// To do what.
        what: &'static str,
        /// With which.
        path: PathBuf,
        /// The error.
        #[source]
        source: io::Error,
    },
}

#[derive(Debug, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct HostFile {
    /// Of all that the agent keeps in the state directory: it is encoded as on the wire.
    #[serde(default)]
    format: u8,
    id: HostId,
    generation: u64,
}

/// This host's identity; holds the state directory's lock until it is dropped.
pub struct HostIdentity {
    id: HostId,
    generation: u64,
    secret: [u8; SECRET_BYTES],
    _lock: File,
}

impl fmt::Debug for HostIdentity {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        // Never the secret.
        f.debug_struct("HostIdentity")
            .field("id", &self.id)
            .field("generation", &self.generation)
            .finish_non_exhaustive()
    }
}

impl HostIdentity {
    /// Reads the identity in `state_dir`, or draws one at the first start, and begins a
    /// new generation.
    pub fn open(state_dir: &Path) -> Result<Self, IdentityError> {
        DirBuilder::new()
            .recursive(true)
            .mode(0o700)
            .create(state_dir)
            .map_err(io_error("create", state_dir))?;
        let lock = lock(state_dir)?;
        let host_path = state_dir.join("host.toml");
        let known = match read(&host_path)? {
            Some(bytes) => Some(parse_host(&bytes).map_err(|reason| damaged(state_dir, &host_path, reason))?),
            // With a new id it would bring another host's votes and levels into the mesh.
            None => match KEPT.iter().find(|name| state_dir.join(name).exists()) {
                Some(kept) => {
                    return Err(damaged(state_dir, &host_path, format!("missing, though {kept} is there")));
                }
                None => None,
            },
        };
        if let Some(HostFile { format, .. }) = known
            && format != PROTOCOL_VERSION
        {
            return Err(IdentityError::Format { dir: state_dir.to_owned(), got: format });
        }
        let secret = secret(state_dir, known.is_some())?;
        let (id, generation) = match known {
            Some(HostFile { id, generation, .. }) => (
                id,
                generation
                    .checked_add(1)
                    .ok_or_else(|| damaged(state_dir, &host_path, "generation is at its end".into()))?,
            ),
            None => (HostId(rand::random_range(1..=u32::MAX)), 1),
        };
        let text = toml::to_string(&HostFile { format: PROTOCOL_VERSION, id, generation })
            .map_err(|error| damaged(state_dir, &host_path, error.to_string()))?;
        files::replace(&host_path, text.as_bytes(), 0o644).map_err(io_error("write", &host_path))?;
        Ok(Self { id, generation, secret, _lock: lock })
    }

    /// The host's id; never 0.
    pub fn id(&self) -> HostId {
        self.id
    }

    /// Which life of the host's agent this is; grows at every [`HostIdentity::open`].
    pub fn generation(&self) -> u64 {
        self.generation
    }

    /// Known to this host alone, the same in every life.
    pub fn secret(&self) -> &[u8; SECRET_BYTES] {
        &self.secret
    }
}

fn io_error(what: &'static str, path: &Path) -> impl FnOnce(io::Error) -> IdentityError {
    move |source| match source.kind() {
        ErrorKind::StorageFull | ErrorKind::QuotaExceeded => {
            IdentityError::DiskFull { path: path.to_owned(), source }
        }
        _ => IdentityError::Io { what, path: path.to_owned(), source },
    }
}

fn damaged(dir: &Path, path: &Path, reason: String) -> IdentityError {
    IdentityError::Damaged { path: path.to_owned(), dir: dir.to_owned(), reason }
}

/// Holds the lock of `state_dir` without beginning a generation: for what must not be
/// done while an agent runs there. It lasts as long as the file that is returned.
///
/// # Errors
/// [`IdentityError::InUse`] while an agent holds it.
pub fn lock(dir: &Path) -> Result<File, IdentityError> {
    let path = dir.join("lock");
    // Never truncated here: until the lock is ours, the text is its holder's.
    let mut file = OpenOptions::new()
        .read(true)
        .write(true)
        .create(true)
        .truncate(false)
        .mode(0o644)
        .open(&path)
        .map_err(io_error("open", &path))?;
    match rustix::fs::flock(&file, FlockOperation::NonBlockingLockExclusive) {
        Ok(()) => {}
        Err(rustix::io::Errno::WOULDBLOCK) => {
            let mut text = String::new();
            let _ = (&file).take(32).read_to_string(&mut text);
            let pid = text.trim();
            let known = !pid.is_empty() && pid.bytes().all(|b| b.is_ascii_digit());
            let pid = if known { pid } else { "unknown" }.to_owned();
            return Err(IdentityError::InUse { dir: dir.to_owned(), pid });
        }
        Err(errno) => return Err(io_error("lock", &path)(errno.into())),
    }
    file.set_len(0)
        .and_then(|()| file.rewind())
        .and_then(|()| writeln!(file, "{}", std::process::id()))
        .map_err(io_error("write", &path))?;
    Ok(file)
}

fn read(path: &Path) -> Result<Option<Vec<u8>>, IdentityError> {
    let file = match File::open(path) {
        Ok(file) => file,
        Err(error) if error.kind() == ErrorKind::NotFound => return Ok(None),
        Err(error) => return Err(io_error("open", path)(error)),
    };
    let mut bytes = Vec::new();
    file.take(FILE_BYTES_MAX).read_to_end(&mut bytes).map_err(io_error("read", path))?;
    Ok(Some(bytes))
}

fn parse_host(bytes: &[u8]) -> Result<HostFile, String> {
    let text = std::str::from_utf8(bytes).map_err(|_| "not UTF-8 text".to_owned())?;
    let file: HostFile = toml::from_str(text).map_err(|error| error.message().to_owned())?;
    if file.id == HostId(0) { Err("id 00000000 is nobody's".into()) } else { Ok(file) }
}

/// A new secret for a known host would only cost its peers an idle timeout, but a lost
/// file means that somebody handled the directory: better to say so.
fn secret(dir: &Path, host_known: bool) -> Result<[u8; SECRET_BYTES], IdentityError> {
    let path = dir.join("secret");
    match read(&path)? {
        Some(bytes) => {
            let len = bytes.len();
            bytes
                .try_into()
                .map_err(|_| damaged(dir, &path, format!("{len} bytes instead of {SECRET_BYTES}")))
        }
        None if host_known => Err(damaged(dir, &path, "missing, though host.toml is there".into())),
        None => {
            let secret: [u8; SECRET_BYTES] = rand::random();
            files::replace(&path, &secret, files::PRIVATE).map_err(io_error("write", &path))?;
            Ok(secret)
        }
    }
}
