//! Somebody else's server under a pid that one of the mesh's had: what an agent must
//! neither adopt nor signal.

use std::fs;
use std::path::Path;
use std::process::{Child, Command, Stdio};

use super::SOON;
use crate::wait::until;

/// The pid that the kernel gave last, in this namespace (proc(5)); who writes it says
/// which one comes next.
const LAST_PID: &str = "/proc/sys/kernel/ns_last_pid";

/// Why a pid can't be given a second time here; `None` if it can.
pub fn missing() -> Option<&'static str> {
    if !rustix::process::geteuid().is_root() {
        return Some("choosing a pid needs root");
    }
    let last = fs::read_to_string(LAST_PID).and_then(|last| fs::write(LAST_PID, last.trim()));
    last.is_err().then_some("/proc/sys/kernel/ns_last_pid can't be written here")
}

/// A redis-server of somebody else's, in a directory of its own.
#[derive(Debug)]
pub struct Stranger {
    child: Child,
    dir: tempfile::TempDir,
}

impl Stranger {
    /// Starts it under `pid`, which is free or soon will be.
    pub fn under(pid: i32) -> Self {
        let dir = tempfile::Builder::new().prefix("redmesh-stranger-").tempdir().expect("temp dir");
        let child = until(&format!("pid {pid} to be given again"), SOON, || {
            fs::write(LAST_PID, (pid - 1).to_string()).expect("write the last pid");
            // Others are given pids as well: tried until it is this one.
            let mut child = Self::server(dir.path());
            if child.id().cast_signed() == pid {
                return Some(child);
            }
            child.kill().expect("kill a child");
            child.wait().expect("reap a child");
            None
        });
        Self { child, dir }
    }

    fn server(dir: &Path) -> Child {
        Command::new("redis-server")
            .args(["--port", "0", "--save", "", "--unixsocket", "socket"])
            .current_dir(dir)
            .stdin(Stdio::null())
            .stdout(Stdio::null())
            .spawn()
            .expect("start a redis-server")
    }

    /// It has not been killed, and it answers: nor has it been stopped.
    pub fn assert_untouched(&mut self) {
        assert_eq!(self.child.try_wait().expect("ask for a child"), None, "somebody ended the stranger");
        until("the stranger to answer", SOON, || {
            let said = Command::new("timeout")
                .args(["5", "redis-cli", "-s", "socket", "PING"])
                .current_dir(self.dir.path())
                .output()
                .expect("run redis-cli");
            said.stdout.starts_with(b"PONG").then_some(())
        });
    }
}

impl Drop for Stranger {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}
