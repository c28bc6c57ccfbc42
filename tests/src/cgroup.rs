//! A group of processes that may use so much memory and no more: a cgroup of its own, of
//! version 1 or 2, gone when it is dropped. Needs root.

use std::fs;
use std::io;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

/// Version 1's hierarchy for memory.
const V1: &str = "/sys/fs/cgroup/memory";
/// Version 2's only hierarchy, where it is mounted alone.
const V2: &str = "/sys/fs/cgroup";

/// For the kernel to take the processes of a group away.
const EMPTY_WAIT: Duration = Duration::from_secs(10);

/// See the module's words.
#[derive(Debug)]
pub struct MemoryGroup(PathBuf);

/// Why no such group can be made here; `None` if it can.
pub fn missing() -> Option<&'static str> {
    if !rustix::process::geteuid().is_root() {
        return Some("cgroups need root");
    }
    match MemoryGroup::new("probe", u64::from(u32::MAX)) {
        Ok(_) => None,
        Err(_) => Some("no cgroup that limits memory can be made here"),
    }
}

impl MemoryGroup {
    /// An empty group for `bytes` of memory.
    ///
    /// # Errors
    /// Where there is no memory controller, or it may not be used.
    pub fn new(name: &str, bytes: u64) -> io::Result<Self> {
        let name = format!("redmesh-test-{}-{name}", std::process::id());
        let v1 = Path::new(V1).join("memory.limit_in_bytes").exists();
        let group = Self(Path::new(if v1 { V1 } else { V2 }).join(name));
        fs::create_dir(&group.0)?;
        fs::write(group.0.join(if v1 { "memory.limit_in_bytes" } else { "memory.max" }), bytes.to_string())?;
        Ok(group)
    }

    /// Takes a process in. What it uses already stays on its old group's account; what it
    /// asks for from now on is this one's.
    ///
    /// # Errors
    /// Where the process is gone.
    pub fn take(&self, pid: i32) -> io::Result<()> {
        fs::write(self.0.join("cgroup.procs"), pid.to_string())
    }
}

impl Drop for MemoryGroup {
    fn drop(&mut self) {
        let end = Instant::now() + EMPTY_WAIT;
        // Busy while a process is in it.
        while fs::remove_dir(&self.0).is_err() && Instant::now() < end {
            std::thread::sleep(Duration::from_millis(20));
        }
    }
}
