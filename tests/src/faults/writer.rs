//! A client that is none of redmesh's: `redis-cli -c`, writing one key after the other.

use std::io::{BufRead as _, BufReader, Write as _};
use std::process::Stdio;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::thread::JoinHandle;

use super::{KEYS, SOON};
use crate::mesh::Mesh;
use crate::wait::until;

/// Writes until it is ended.
#[derive(Debug)]
pub struct Writer {
    written: Arc<AtomicU64>,
    end: Arc<AtomicBool>,
    thread: JoinHandle<Option<String>>,
}

impl Writer {
    /// Begins at a host's first server. Its few keys are all there when this returns, so
    /// that a run that begins afterwards counts none of them.
    pub fn begin(mesh: &Mesh, host: usize) -> Self {
        let mut child = mesh
            .redis_cli_command()
            .args(["-c", "-h", &mesh.ip(host), "-p", "6379"])
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .spawn()
            .expect("run redis-cli");
        let (written, end) = (Arc::new(AtomicU64::new(0)), Arc::new(AtomicBool::new(false)));
        let (count, ending) = (Arc::clone(&written), Arc::clone(&end));
        let thread = std::thread::spawn(move || {
            let mut stdin = child.stdin.take().expect("it is piped");
            // It says where it was redirected to.
            let lines = BufReader::new(child.stdout.take().expect("it is piped")).lines();
            let redirected = |line: &String| line.starts_with("-> Redirected");
            let mut lines = lines.filter(|line| !line.as_ref().is_ok_and(redirected));
            let mut failure = None;
            while !ending.load(Ordering::Relaxed) && failure.is_none() {
                let number = count.load(Ordering::Relaxed);
                let sent = writeln!(stdin, "SET another-client-{} {number}", number % KEYS as u64);
                failure = match (sent, lines.next()) {
                    (Ok(()), Some(Ok(line))) if line.trim() == "OK" => None,
                    (sent, said) => Some(format!("write {number}: {sent:?}, {said:?}")),
                };
                if failure.is_none() {
                    count.fetch_add(1, Ordering::Relaxed);
                }
            }
            drop(stdin);
            let _ = child.wait();
            failure
        });
        let writer = Self { written, end, thread };
        writer.await_more();
        writer
    }

    /// Waits until each key was written once more.
    pub fn await_more(&self) {
        let now = self.written.load(Ordering::Relaxed);
        until("another client's writes", SOON, || {
            let done = self.written.load(Ordering::Relaxed) >= now + KEYS as u64;
            (done || self.thread.is_finished()).then_some(())
        });
    }

    /// Ends it; not one write has failed.
    pub fn end_without_failure(self) {
        self.end.store(true, Ordering::Relaxed);
        let failure = self.thread.join().expect("the writer's thread");
        assert_eq!(failure, None);
    }
}
