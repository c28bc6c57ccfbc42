//! How far something is, on stderr: one bar that redraws itself on a terminal, a plain
//! line now and then elsewhere (a CI log, a file).

use std::io::IsTerminal;
use std::time::{Duration, Instant};

use indicatif::{ProgressBar, ProgressStyle};

use crate::output::note;

/// Shortest time between two plain lines.
const PLAIN_EVERY: Duration = Duration::from_secs(1);

/// Progress of one thing.
#[derive(Debug)]
pub struct Progress {
    name: &'static str,
    bar: Option<ProgressBar>,
    said: String,
    said_at: Option<Instant>,
}

impl Progress {
    /// Progress of what is called `name`.
    pub fn new(name: &'static str) -> Self {
        let bar = std::io::stderr().is_terminal().then(|| {
            let bar = ProgressBar::new(1);
            let style = ProgressStyle::with_template("{prefix} [{bar:24}] {wide_msg}");
            bar.set_style(style.unwrap_or_else(|_| ProgressStyle::default_bar()).progress_chars("=> "));
            bar.set_prefix(name);
            bar
        });
        Self { name, bar, said: String::new(), said_at: None }
    }

    /// `done` of `total`, and how that is to be put.
    pub fn update(&mut self, done: u64, total: u64, text: &str) {
        if let Some(bar) = &self.bar {
            bar.set_length(total.max(1));
            bar.set_position(done.min(total));
            bar.set_message(text.to_owned());
            return;
        }
        let due = self.said_at.is_none_or(|at| at.elapsed() >= PLAIN_EVERY);
        if due && self.said != text {
            note(&format!("{}: {text}", self.name));
            text.clone_into(&mut self.said);
            self.said_at = Some(Instant::now());
        }
    }

    /// Takes the bar away.
    pub fn finish(&self) {
        if let Some(bar) = &self.bar {
            bar.finish_and_clear();
        }
    }
}

impl Drop for Progress {
    fn drop(&mut self) {
        self.finish();
    }
}
