//! The machine that figures are from, and its accounting of CPU time.

use std::path::Path;
use std::process::Command;

use anyhow::Context as _;
use procfs::process::Process;
use procfs::{CpuInfo, Current as _, KernelVersion, Meminfo};

/// CPU time of all children that have ended, seconds. In clock ticks of 10 ms.
pub fn children_cpu_s() -> anyhow::Result<f64> {
    let stat = Process::myself().and_then(|me| me.stat()).context("/proc/self/stat")?;
    let ticks = stat.cutime + stat.cstime;
    Ok(ticks as f64 / procfs::ticks_per_second() as f64)
}

/// Cores that this process may use.
pub fn cores() -> usize {
    std::thread::available_parallelism().map_or(1, usize::from)
}

/// In one line: cores, CPU, memory, kernel, and what `peer` says of its version.
pub fn describe(peer: &Path) -> anyhow::Result<String> {
    let cpu = CpuInfo::current().context("/proc/cpuinfo")?;
    let model = cpu.model_name(0).unwrap_or("unknown CPU").to_owned();
    let memory = Meminfo::current().context("/proc/meminfo")?.mem_total as f64 / f64::from(1 << 30);
    let kernel = KernelVersion::current().context("the kernel's version")?;
    let version = Command::new(peer).arg("--version").output();
    let version = version.with_context(|| format!("{}: can't be asked for its version", peer.display()))?;
    Ok(format!(
        "{} cores ({model}), {memory:.0} GiB, Linux {}.{}.{}, {}",
        cores(),
        kernel.major,
        kernel.minor,
        kernel.patch,
        String::from_utf8_lossy(&version.stdout).trim()
    ))
}
