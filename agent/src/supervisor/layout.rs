//! An instance's directory: `<data>/<port>/{redis.conf,redis.log,nodes.conf}`.
//!
//! Writes atomically, and only into directories that redmesh itself began: a marker
//! file (`plan`, with the plan's id) is written first, so whatever holds a server's
//! files without it belongs to somebody else and is left untouched. `nodes.conf` is
//! written where there is none; after the first start it is the server's own.

use std::fs::{self, File};
use std::io::{self, Read, Seek, SeekFrom};
use std::net::IpAddr;
use std::path::{Path, PathBuf};

use redmesh_api::ids::PlanId;

use crate::files;

/// The marker file's name.
const MARKER: &str = "plan";
/// What a server prints before it opens its log.
pub(super) const STDERR: &str = "redis.err";
/// The server's log.
pub(super) const LOG: &str = "redis.log";
/// The configuration.
pub(super) const CONFIG: &str = "redis.conf";

/// Bytes read from the end of a log.
const TAIL_BYTES_MAX: u64 = 4096;
/// Lines quoted from it.
const TAIL_LINES_MAX: usize = 4;
/// Characters quoted from it.
const TAIL_CHARS_MAX: usize = 600;

/// Why a directory can't be used. The texts name the remedy.
#[derive(Debug, thiserror::Error)]
pub(super) enum LayoutError {
    /// Somebody else's.
    #[error(
        "{dir:?} holds {file} of another cluster; move it away or set redis.data_dir elsewhere (nothing in it \
         was touched)"
    )]
    Foreign {
        /// The directory.
        dir: PathBuf,
        /// What was found.
        file: String,
    },
    /// Full.
    #[error(
        "no space left under {dir:?}: {free} bytes free{}; free some or set redis.data_dir elsewhere",
        if *.quota { " but the user's quota is used up" } else { "" }
    )]
    NoSpace {
        /// The directory.
        dir: PathBuf,
        /// Bytes that the agent's user could still write.
        free: u64,
        /// Whether a quota is at its end, not the disk.
        quota: bool,
    },
    /// Anything else.
    #[error("can't write {path:?}: {source}; the agent's user must be able to write under redis.data_dir")]
    Io {
        /// What.
        path: PathBuf,
        /// Why. Part of the message: it becomes a status, which has no causes.
        source: io::Error,
    },
}

/// An instance's directory.
#[derive(Debug, Clone)]
pub(super) struct Layout {
    dir: PathBuf,
}

impl Layout {
    pub(super) fn new(data_dir: &Path, port: u16) -> Self {
        Self { dir: data_dir.join(port.to_string()) }
    }

    pub(super) fn dir(&self) -> &Path {
        &self.dir
    }

    /// Makes the directory fit for a start under `plan`.
    pub(super) fn prepare(
        &self,
        plan: PlanId,
        config: &str,
        nodes_conf: Option<&str>,
    ) -> Result<(), LayoutError> {
        self.check_ours(plan)?;
        fs::create_dir_all(&self.dir).map_err(|e| self.error(&self.dir, e))?;
        let marker = plan.to_string();
        if self.read_marker()?.as_deref() != Some(marker.as_str()) {
            self.write(MARKER, &marker)?;
        }
        let there = self.dir.join("nodes.conf").try_exists().map_err(|e| self.error(&self.dir, e))?;
        if let Some(nodes_conf) = nodes_conf.filter(|_| !there) {
            self.write("nodes.conf", nodes_conf)?;
        }
        self.write(CONFIG, config)
    }

    /// Whether redmesh began it.
    pub(super) fn is_marked(&self) -> bool {
        self.dir.join(MARKER).is_file()
    }

    /// Whether it holds a `nodes.conf`, so that a server may have served from it.
    pub(super) fn has_been_seeded(&self) -> bool {
        self.dir.join("nodes.conf").exists()
    }

    /// The address that its configuration binds.
    pub(super) fn bound_ip(&self) -> Option<IpAddr> {
        let config = fs::read_to_string(self.dir.join(CONFIG)).ok()?;
        config.lines().find_map(|line| line.strip_prefix("bind ")?.trim().parse().ok())
    }

    /// Refuses a directory that holds a server's files of another plan, or of nobody.
    pub(super) fn check_ours(&self, plan: PlanId) -> Result<(), LayoutError> {
        let marker = self.read_marker()?;
        if marker.as_deref() == Some(plan.to_string().as_str()) {
            return Ok(());
        }
        let entries = match fs::read_dir(&self.dir) {
            Ok(entries) => entries,
            Err(e) if e.kind() == io::ErrorKind::NotFound => return Ok(()),
            Err(e) => return Err(self.error(&self.dir, e)),
        };
        for entry in entries {
            let name = entry.map_err(|e| self.error(&self.dir, e))?.file_name();
            let name = name.to_string_lossy();
            let servers = matches!(&*name, "nodes.conf" | "appendonlydir")
                || name.ends_with(".rdb")
                || name.ends_with(".aof")
                // With a marker of ours it is only our own, from a start that never was.
                || (marker.is_none() && name == CONFIG);
            if servers {
                return Err(LayoutError::Foreign { dir: self.dir.clone(), file: name.into_owned() });
            }
        }
        Ok(())
    }

    fn read_marker(&self) -> Result<Option<String>, LayoutError> {
        let path = self.dir.join(MARKER);
        match fs::read(&path) {
            Ok(bytes) => Ok(Some(String::from_utf8_lossy(&bytes).trim().to_owned())),
            Err(e) if e.kind() == io::ErrorKind::NotFound => Ok(None),
            Err(e) => Err(self.error(&path, e)),
        }
    }

    /// Replaces a file whole: after a crash there is the old one or the new one.
    fn write(&self, name: &str, text: &str) -> Result<(), LayoutError> {
        let path = self.dir.join(name);
        if fs::read(&path).is_ok_and(|old| old == text.as_bytes()) {
            return Ok(());
        }
        // The configuration may hold a password.
        files::replace(&path, text.as_bytes(), files::PRIVATE).map_err(|e| self.error(&path, e))
    }

    pub(super) fn error(&self, path: &Path, source: io::Error) -> LayoutError {
        match source.kind() {
            io::ErrorKind::StorageFull | io::ErrorKind::QuotaExceeded => LayoutError::NoSpace {
                dir: self.dir.clone(),
                free: free_bytes(&self.dir).unwrap_or(0),
                quota: source.kind() == io::ErrorKind::QuotaExceeded,
            },
            _ => LayoutError::Io { path: path.to_owned(), source },
        }
    }

    /// Length of the log now; what comes later is the next start's.
    pub(super) fn log_len(&self) -> u64 {
        fs::metadata(self.dir.join(LOG)).map_or(0, |meta| meta.len())
    }

    /// The last words of a server: what it printed, and its log from `log_from` on.
    pub(super) fn last_words(&self, log_from: u64) -> String {
        let mut lines = tail(&self.dir.join(STDERR), 0);
        lines.extend(tail(&self.dir.join(LOG), log_from));
        let first = lines.len().saturating_sub(TAIL_LINES_MAX);
        let words = lines[first..].join(" | ");
        let skip = words.chars().count().saturating_sub(TAIL_CHARS_MAX);
        words.chars().skip(skip).collect()
    }
}

/// A server quotes the line of its configuration that it can't use, and that may hold a
/// password: of such a line only the directive is kept.
fn without_value(line: String) -> String {
    match line.strip_prefix(">>> '").and_then(|quoted| quoted.split_once(char::is_whitespace)) {
        Some((directive, _)) => format!(">>> '{directive} …'"),
        None => line,
    }
}

/// Bytes that the agent's user may still write on the file system of `dir`, or of the
/// nearest directory above that exists; `None` if that can't be told.
pub(super) fn free_bytes(dir: &Path) -> Option<u64> {
    let stat = dir.ancestors().find_map(|dir| rustix::fs::statvfs(dir).ok())?;
    Some(stat.f_bavail.saturating_mul(stat.f_frsize))
}

/// The last lines of a file from `from` on; none if it can't be read.
fn tail(path: &Path, from: u64) -> Vec<String> {
    let read = || -> io::Result<Vec<u8>> {
        let mut file = File::open(path)?;
        let start = from.max(file.metadata()?.len().saturating_sub(TAIL_BYTES_MAX));
        file.seek(SeekFrom::Start(start))?;
        let mut bytes = Vec::new();
        file.take(TAIL_BYTES_MAX).read_to_end(&mut bytes)?;
        Ok(bytes)
    };
    let bytes = read().unwrap_or_default();
    let text = String::from_utf8_lossy(&bytes);
    let plain = |line: &str| line.chars().filter(|c| !c.is_control()).collect::<String>().trim().to_owned();
    text.lines().map(plain).filter(|line| !line.is_empty()).map(without_value).collect()
}

#[cfg(test)]
mod tests;
