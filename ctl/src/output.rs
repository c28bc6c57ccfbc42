//! What goes to stdout and what to stderr.
//!
//! stdout carries the answer alone: text, or with `-o json` exactly one JSON object.
//! Everything said meanwhile goes to stderr. A reader that went away (`| head`) is not
//! an error: the command goes on and its output is dropped.

use std::io::{self, Write};

use serde::Serialize;

/// How answers are printed.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, clap::ValueEnum)]
pub enum Format {
    /// For people.
    #[default]
    Text,
    /// One JSON object on stdout and nothing else there.
    Json,
}

/// Where a command's text goes.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Sink {
    Stdout,
    Stderr,
}

/// A command's way to the terminal.
#[derive(Debug, Clone, Copy)]
pub struct Output {
    format: Format,
    sink: Sink,
}

impl Output {
    /// Answers on stdout.
    pub fn new(format: Format) -> Self {
        Self { format, sink: Sink::Stdout }
    }

    /// Text on stderr, for a command that is a step of another one.
    pub fn aside() -> Self {
        Self { format: Format::Text, sink: Sink::Stderr }
    }

    /// Whether the answer is to be JSON.
    pub fn is_json(&self) -> bool {
        self.format == Format::Json
    }

    /// Prints text as it is; with `-o json` nothing.
    pub fn text(&self, text: &str) -> io::Result<()> {
        match (self.format, self.sink) {
            (Format::Json, _) => Ok(()),
            (Format::Text, Sink::Stdout) => unless_gone(write_all(io::stdout().lock(), text)),
            (Format::Text, Sink::Stderr) => unless_gone(write_all(io::stderr().lock(), text)),
        }
    }

    /// Prints the answer: `text()` or `value` as JSON, by the format asked for.
    pub fn answer<T: Serialize>(&self, value: &T, text: impl FnOnce() -> String) -> anyhow::Result<()> {
        if self.is_json() {
            let mut json = serde_json::to_string(value)?;
            json.push('\n');
            unless_gone(write_all(io::stdout().lock(), &json))?;
        } else {
            self.text(&text())?;
        }
        Ok(())
    }
}

/// One line for the person on stderr; if nobody can read it, nobody misses it.
pub fn note(line: &str) {
    let _ = write_all(io::stderr().lock(), &format!("{line}\n"));
}

fn write_all(mut to: impl Write, text: &str) -> io::Result<()> {
    to.write_all(text.as_bytes())?;
    to.flush()
}

fn unless_gone(result: io::Result<()>) -> io::Result<()> {
    match result {
        Err(error) if error.kind() == io::ErrorKind::BrokenPipe => Ok(()),
        other => other,
    }
}
