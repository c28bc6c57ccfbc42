//! Child processes that end when this program is told to end.

use std::os::unix::process::CommandExt as _;
use std::process::{Child, Command, ExitStatus, Stdio};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use anyhow::{Context as _, bail};
use rustix::process::{Pid, Signal, kill_process};
use tokio::signal::unix::{SignalKind, signal};

/// Between two looks at a child.
const LOOK_EVERY: Duration = Duration::from_millis(5);

/// Between SIGTERM and SIGKILL for a child that is told to end.
const END_GRACE: Duration = Duration::from_secs(60);

/// Whether to go on; shared with whoever gets signals.
#[derive(Debug, Clone, Default)]
pub struct Children(Arc<AtomicBool>);

impl Children {
    /// Ends the child that runs now, and starts no other.
    pub fn interrupt(&self) {
        self.0.store(true, Ordering::SeqCst);
    }

    /// Whether to end; whoever waits for anything but a child looks at it.
    pub fn interrupted(&self) -> bool {
        self.0.load(Ordering::SeqCst)
    }

    /// Runs a command to its end; its stdout, if it was successful.
    pub fn run(&self, command: &mut Command) -> anyhow::Result<String> {
        self.run_within(command, Duration::MAX)?.context("a child without a limit has outlived it")
    }

    /// The same, but told to end after `limit`, and killed if it doesn't: then `None`.
    pub fn run_within(&self, command: &mut Command, limit: Duration) -> anyhow::Result<Option<String>> {
        if self.interrupted() {
            bail!("interrupted");
        }
        self.run_anyway(command, limit)
    }

    /// The same for what has to be done after an interruption too.
    pub fn run_to_clean_up(command: &mut Command) -> anyhow::Result<String> {
        let done = Self::default().run_anyway(command, Duration::MAX)?;
        done.context("a child without a limit has outlived it")
    }

    fn run_anyway(&self, command: &mut Command, limit: Duration) -> anyhow::Result<Option<String>> {
        let name = command.get_program().to_string_lossy().into_owned();
        // A group of its own: Ctrl-C reaches this program alone.
        command.stdin(Stdio::null()).stdout(Stdio::piped()).stderr(Stdio::piped()).process_group(0);
        let mut child = command.spawn().with_context(|| format!("can't start {name}"))?;
        let out = drain(child.stdout.take());
        let err = drain(child.stderr.take());
        let (status, in_time) = self.wait(&mut child, limit)?;
        let text = |drained: std::thread::JoinHandle<String>| drained.join().unwrap_or_default();
        let (out, err) = (text(out), text(err));
        if self.interrupted() {
            bail!("interrupted");
        }
        if !in_time {
            return Ok(None);
        }
        if !status.success() {
            bail!("{name} ended with {status}:\n{err}{out}");
        }
        Ok(Some(out))
    }

    /// How it ended, and whether by itself.
    fn wait(&self, child: &mut Child, limit: Duration) -> anyhow::Result<(ExitStatus, bool)> {
        let began = Instant::now();
        let mut told: Option<Instant> = None;
        loop {
            if let Some(status) = child.try_wait()? {
                return Ok((status, told.is_none()));
            }
            match told {
                None if self.interrupted() || began.elapsed() >= limit => {
                    told = Some(Instant::now());
                    // Not reaped yet, so the id is still the child's.
                    if let Some(pid) = i32::try_from(child.id()).ok().and_then(Pid::from_raw) {
                        let _ = kill_process(pid, Signal::TERM);
                    }
                }
                Some(told) if told.elapsed() >= END_GRACE => child.kill()?,
                _ => {}
            }
            std::thread::sleep(LOOK_EVERY);
        }
    }
}

/// Does `work` on a thread of its own; SIGINT and SIGTERM interrupt `children`, and with
/// them the work, which then takes away what there is of it.
pub fn until_interrupted<T: Send + 'static>(
    children: Children,
    work: impl FnOnce() -> anyhow::Result<T> + Send + 'static,
) -> anyhow::Result<T> {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_io().build()?;
    runtime.block_on(async {
        let mut interrupt = signal(SignalKind::interrupt())?;
        let mut terminate = signal(SignalKind::terminate())?;
        let mut work = tokio::task::spawn_blocking(work);
        loop {
            tokio::select! {
                done = &mut work => return done?,
                _ = interrupt.recv() => children.interrupt(),
                _ = terminate.recv() => children.interrupt(),
            }
        }
    })
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
