//! What the disk does to one process, changed by `strace`: each time that the process
//! syncs a file it waits longer, or is told of an error. The file systems are those of the
//! machine. While it is traced all its system calls are a little slower, too.

use std::fs;
use std::process::{Child, Command, Stdio};
use std::time::Duration;

use rustix::process::{Pid, Signal, kill_process};

use crate::wait::until;

/// For strace to take hold of all threads.
const SOON: Duration = Duration::from_secs(20);

/// Calls by which a file is synced.
const SYNCS: &str = "fsync,fdatasync,sync_file_range,msync";

/// Why nothing can be traced here; `None` if it can.
pub fn missing() -> Option<&'static str> {
    let tried = Command::new("strace")
        .args(["-qq", "-o", "/dev/null", "-e", "inject=fsync:delay_enter=1", "true"])
        .stderr(Stdio::null())
        .status();
    match tried {
        Err(_) => Some("there is no strace (apt-get install strace)"),
        Ok(status) if status.success() => None,
        Ok(_) => Some("strace may not trace here"),
    }
}

/// A process under changed syncs, until this is dropped.
#[derive(Debug)]
pub struct Tracer(Child);

impl Tracer {
    /// Every sync of process `pid` takes so much longer.
    pub fn slow_syncs(pid: i32, delay: Duration) -> Self {
        Self::inject(pid, &format!("delay_enter={}", delay.as_micros()))
    }

    /// Every sync of process `pid` fails, and nothing is synced.
    pub fn failing_syncs(pid: i32) -> Self {
        Self::inject(pid, "error=EIO")
    }

    fn inject(pid: i32, how: &str) -> Self {
        let inject = format!("inject={SYNCS}:{how}");
        let trace = format!("trace={SYNCS}");
        let child = Command::new("strace")
            .args(["-f", "-qq", "-o", "/dev/null", "-e", &trace, "-e", &inject, "-p", &pid.to_string()])
            .stdin(Stdio::null())
            .stderr(Stdio::null())
            .spawn()
            .expect("run strace");
        let tracer = Self(child);
        until("strace to hold the process", SOON, || {
            let tasks = fs::read_dir(format!("/proc/{pid}/task")).ok()?;
            let traced = |task: fs::DirEntry| {
                let status = fs::read_to_string(task.path().join("status"));
                // One that has ended meanwhile is no matter.
                status.map_or(true, |status| !status.contains("TracerPid:\t0\n"))
            };
            tasks.flatten().all(traced).then_some(())
        });
        tracer
    }
}

impl Drop for Tracer {
    fn drop(&mut self) {
        // It lets go of what it traces; killed it would leave calls half done.
        let _ = kill_process(Pid::from_child(&self.0), Signal::TERM);
        let _ = self.0.wait();
    }
}
