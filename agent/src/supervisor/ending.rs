//! Ending all servers of a host on purpose, while no agent runs there: what takes a host
//! out of service, and what its shutdown does.
//!
//! It asks (SIGTERM) and waits, and never kills: a server that is still saving its data
//! is named and left to whoever asked.

use std::io;
use std::path::Path;
use std::time::Duration;

use futures_util::future::join_all;
use rustix::process::Signal;

use super::process::{self, Process};

/// What became of the servers.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Ended {
    /// Servers that were asked and have ended.
    pub ended: usize,
    /// Pids of those that were asked and still run.
    pub left: Vec<u32>,
}

/// Asks all servers below `data_dir` to end and waits for them, at most for `patience`.
///
/// # Errors
/// When `/proc` can't be looked through, or the directory not be resolved.
pub async fn end_all(data_dir: &Path, server: Option<&Path>, patience: Duration) -> io::Result<Ended> {
    // As a server's working directory is told: without symbolic links.
    let data_dir = &match data_dir.canonicalize() {
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(Ended::default()),
        resolved => resolved?,
    };
    let mut asked = Vec::new();
    for (dir, found) in process::find_running(data_dir, server)? {
        // Held and looked at again, so that no other process is hit by its pid.
        let Ok(process) = Process::open(found.pid) else { continue };
        if process::find_one(found.pid, data_dir, server)?.is_some_and(|(now, _)| now == dir) {
            process.signal(Signal::TERM);
            // One that is held would not hear it.
            process.signal(Signal::CONT);
            asked.push(process);
        }
    }
    let watched = asked.iter().map(|process| async {
        (tokio::time::timeout(patience, process.ended()).await.is_err()).then(|| process.pid())
    });
    let left: Vec<u32> = join_all(watched).await.into_iter().flatten().collect();
    Ok(Ended { ended: asked.len() - left.len(), left })
}
