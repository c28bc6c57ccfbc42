//! Child processes that end when this program is told to end.

use std::os::unix::process::CommandExt as _;
use std::process::{Child, Command, Stdio};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use anyhow::{Context as _, bail};
use rustix::process::{Pid, Signal, kill_process};

/// Between two looks at a child.
const LOOK_EVERY: Duration = Duration::from_millis(5);

/// Whether to go on; shared with whoever gets signals.
#[derive(Debug, Clone, Default)]
pub struct Children(Arc<AtomicBool>);

impl Children {
    /// Ends the child that runs now, and starts no other.
    pub fn interrupt(&self) {
        self.0.store(true, Ordering::SeqCst);
    }

    /// Runs a command to its end; its stdout, if it was successful.
    pub fn run(&self, command: &mut Command) -> anyhow::Result<String> {
        if self.0.load(Ordering::SeqCst) {
            bail!("interrupted");
        }
        self.run_anyway(command)
    }

    /// The same for what has to be done after an interruption too.
    pub fn run_to_clean_up(command: &mut Command) -> anyhow::Result<String> {
        Self::default().run_anyway(command)
    }

    fn run_anyway(&self, command: &mut Command) -> anyhow::Result<String> {
        let name = command.get_program().to_string_lossy().into_owned();
        // A group of its own: Ctrl-C reaches this program alone.
        command.stdin(Stdio::null()).stdout(Stdio::piped()).stderr(Stdio::piped()).process_group(0);
        let mut child = command.spawn().with_context(|| format!("can't start {name}"))?;
        let out = drain(child.stdout.take());
        let err = drain(child.stderr.take());
        let status = self.wait(&mut child)?;
        let text = |drained: std::thread::JoinHandle<String>| drained.join().unwrap_or_default();
        let (out, err) = (text(out), text(err));
        if self.0.load(Ordering::SeqCst) {
            bail!("interrupted");
        }
        if !status.success() {
            bail!("{name} ended with {status}:\n{err}{out}");
        }
        Ok(out)
    }

    fn wait(&self, child: &mut Child) -> anyhow::Result<std::process::ExitStatus> {
        let mut told = false;
        loop {
            if let Some(status) = child.try_wait()? {
                return Ok(status);
            }
            if self.0.load(Ordering::SeqCst) && !told {
                told = true;
                // Not reaped yet, so the id is still the child's.
                if let Some(pid) = i32::try_from(child.id()).ok().and_then(Pid::from_raw) {
                    let _ = kill_process(pid, Signal::TERM);
                }
            }
            std::thread::sleep(LOOK_EVERY);
        }
    }
}

/// Reads a pipe to its end beside the wait, so that a full pipe stops nobody.
fn drain(pipe: Option<impl std::io::Read + Send + 'static>) -> std::thread::JoinHandle<String> {
    std::thread::spawn(move || {
        let mut bytes = Vec::new();
        if let Some(mut pipe) = pipe {
            // What was read before an error is still worth showing.
            let _ = pipe.read_to_end(&mut bytes);
        }
        String::from_utf8_lossy(&bytes).into_owned()
    })
}
