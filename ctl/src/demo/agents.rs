//! The demo's agents: child processes with a log each.

use std::cell::Cell;
use std::fs::File;
use std::io::{Read as _, Seek as _, SeekFrom};
use std::os::unix::process::CommandExt as _;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, ExitStatus, Stdio};
use std::time::Duration;

use anyhow::Context as _;

use super::dir::DemoDir;
use super::plan::DemoPlan;
use crate::output::note;

/// Pause between two looks at whether all agents live.
const LOOK_EVERY: Duration = Duration::from_millis(200);

/// Lines of a dead agent's log that are shown.
const LOG_LINES_SHOWN: usize = 20;

/// Bytes from the end of a log that are looked at for them.
const LOG_TAIL_BYTES: u64 = 16 * 1024;

/// One agent.
#[derive(Debug)]
pub struct Agent {
    name: String,
    log: PathBuf,
    child: Child,
    /// Set once it has ended.
    ended: Option<ExitStatus>,
}

impl Agent {
    /// Whether it has ended, and how; reaps it.
    pub fn ended(&mut self) -> Option<ExitStatus> {
        if self.ended.is_none() {
            // An error means that there is no such child (any more), so it has ended.
            self.ended = self.child.try_wait().unwrap_or_else(|_| Some(ExitStatus::default()));
        }
        self.ended
    }

    /// Its process id, safe to signal as long as it has not been reaped.
    pub fn pid(&mut self) -> Option<rustix::process::Pid> {
        match self.ended() {
            Some(_) => None,
            None => rustix::process::Pid::from_raw(i32::try_from(self.child.id()).ok()?),
        }
    }
}

/// All of them.
#[derive(Debug, Default)]
pub struct Agents(Vec<Agent>);

impl Agents {
    /// Starts one agent per host. Each is the leader of a process group of its own, so
    /// that a Ctrl-C on the terminal reaches ctl alone, which stops them in order.
    pub fn start(
        &mut self,
        plan: &DemoPlan,
        dir: &DemoDir,
        binary: &Path,
        with_parent: bool,
    ) -> anyhow::Result<()> {
        for at in 0..plan.ips.len() {
            let name = plan.name(at);
            let host_dir = dir.host(&name);
            let log = DemoDir::agent_log(&host_dir);
            let file = File::create(&log).with_context(|| format!("can't create {}", log.display()))?;
            let mut command = Command::new(binary);
            command.arg("--config").arg(DemoDir::agent_toml(&host_dir));
            if with_parent {
                command.arg("--exit-with-parent");
            }
            let child = command
                .current_dir(&host_dir)
                .stdin(Stdio::null())
                .stdout(file.try_clone()?)
                .stderr(file)
                .process_group(0)
                .spawn()
                .with_context(|| format!("can't start {}", binary.display()))?;
            self.0.push(Agent { name, log, child, ended: None });
        }
        Ok(())
    }

    /// Each of them.
    pub fn iter_mut(&mut self) -> impl Iterator<Item = &mut Agent> {
        self.0.iter_mut()
    }

    /// Returns when an agent has ended: nobody starts it again, so a mesh that is still
    /// to be formed never will be. Once `formed`, the mesh does without it, and a line
    /// has to do.
    pub async fn death(&mut self, formed: &Cell<bool>) -> anyhow::Error {
        let mut told = vec![false; self.0.len()];
        loop {
            for (agent, told) in self.0.iter_mut().zip(&mut told) {
                let Some(status) = agent.ended().filter(|_| !*told) else { continue };
                let what = format!("the agent of {} has ended ({status})", agent.name);
                if !formed.get() {
                    return anyhow::anyhow!("{what}. The end of its log:\n{}", log_tail(&agent.log));
                }
                note(&format!("demo: {what}; the others go on"));
                *told = true;
            }
            tokio::time::sleep(LOOK_EVERY).await;
        }
    }
}

/// The last lines of a log.
fn log_tail(file: &Path) -> String {
    let read = || -> std::io::Result<Vec<u8>> {
        let mut file = File::open(file)?;
        let len = file.metadata()?.len();
        file.seek(SeekFrom::Start(len.saturating_sub(LOG_TAIL_BYTES)))?;
        let mut bytes = Vec::new();
        file.take(LOG_TAIL_BYTES).read_to_end(&mut bytes)?;
        Ok(bytes)
    };
    match read() {
        Ok(bytes) => {
            let text = String::from_utf8_lossy(&bytes);
            let lines: Vec<&str> = text.lines().collect();
            let shown = &lines[lines.len().saturating_sub(LOG_LINES_SHOWN)..];
            if shown.is_empty() { "  (it is empty)".to_owned() } else { format!("  {}", shown.join("\n  ")) }
        }
        Err(error) => format!("  (can't read {}: {error})", file.display()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_tail_of_a_log_is_bounded() {
        let dir = tempfile::tempdir().unwrap();
        let file = dir.path().join("agent.log");
        assert!(log_tail(&file).contains("can't read"));
        std::fs::write(&file, "").unwrap();
        assert_eq!(log_tail(&file), "  (it is empty)");
        let lines: Vec<String> = (0..5000).map(|n| format!("line {n}")).collect();
        std::fs::write(&file, lines.join("\n")).unwrap();
        let tail = log_tail(&file);
        assert_eq!(tail.lines().count(), LOG_LINES_SHOWN);
        assert!(tail.starts_with("  line 4980\n") && tail.ends_with("  line 4999"));
    }
}
