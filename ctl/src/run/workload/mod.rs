//! Workloads by name or by file, and `run workloads`.
//!
//! Built-in workloads are files like any user's: what `run workloads NAME` prints is
//! what is carried out, and a template for another.

mod file;
#[cfg(test)]
mod tests;

use std::io::Read as _;
use std::path::Path;

use clap::Args;
use redmesh_api::workload::{UUID_COUNTER, Workload};
use serde::Serialize;

use crate::exit::{Exit, UsageError};
use crate::members::{table, table_text};
use crate::output::Output;

/// Largest workload file, bytes: what a request to an agent may hold.
const FILE_BYTES_MAX: u64 = redmesh_api::limits::CONTROL_REQUEST_BYTES_MAX as u64;

/// Name and text of each built-in workload; the first line of a text says what it is.
const BUILT_IN: [(&str, &str); 4] = [
    (UUID_COUNTER, include_str!("builtin/uuid-counter.toml")),
    ("cache", include_str!("builtin/cache.toml")),
    ("session", include_str!("builtin/session.toml")),
    ("multikey", include_str!("builtin/multikey.toml")),
];

/// `run workloads …`
#[derive(Debug, Args)]
pub struct WorkloadsArgs {
    /// Print this one's file instead, a template for others
    #[arg(value_name = "NAME")]
    name: Option<String>,
}

/// One line of `run workloads`.
#[derive(Debug, Serialize)]
struct Listed {
    name: &'static str,
    description: &'static str,
}

/// Carries out `run workloads`.
pub fn show(args: &WorkloadsArgs, output: &Output) -> anyhow::Result<Exit> {
    match &args.name {
        None => {
            let listed = BUILT_IN.map(|(name, text)| Listed { name, description: description(text) });
            output.answer(&serde_json::json!({ "workloads": listed }), || render(&listed))?;
        }
        Some(name) => {
            let text = built_in(name).ok_or_else(|| UsageError(unknown(name)))?;
            output.answer(&serde_json::json!({ "name": name, "toml": text }), || text.to_owned())?;
        }
    }
    Ok(Exit::Ok)
}

/// The workload that `--workload` names: a built-in one, or a file if it contains '/' or
/// ends in ".toml".
///
/// # Errors
/// Of a file: file, line, column, field, value and remedy.
pub fn resolve(name: &str) -> Result<Workload, UsageError> {
    if name.contains('/') || name.ends_with(".toml") {
        let refuse = |why: String| UsageError(format!("workload file {name}: {why}"));
        let text = read(Path::new(name)).map_err(refuse)?;
        return file::parse(&text).map_err(|mistake| UsageError(format!("workload file {name}:{mistake}")));
    }
    let text = built_in(name).ok_or_else(|| UsageError(format!("--workload: {}", unknown(name))))?;
    file::parse(text).map_err(|mistake| UsageError(format!("built-in workload {name}:{mistake}")))
}

fn built_in(name: &str) -> Option<&'static str> {
    BUILT_IN.iter().find(|(known, _)| *known == name).map(|(_, text)| *text)
}

fn unknown(name: &str) -> String {
    let names = BUILT_IN.map(|(name, _)| name).join(", ");
    format!(
        "{name:?} is no built-in workload (there are {names}); a file is named by a path with a '/' in it or \
         by an ending of .toml"
    )
}

fn description(text: &'static str) -> &'static str {
    text.lines().next().unwrap_or_default().trim_start_matches('#').trim()
}

fn render(listed: &[Listed]) -> String {
    let mut rows = table(&["WORKLOAD", "WHAT IT DOES"]);
    rows.set_content_arrangement(comfy_table::ContentArrangement::Disabled);
    for line in listed {
        rows.add_row([line.name, line.description]);
    }
    table_text(&rows)
}

fn read(path: &Path) -> Result<String, String> {
    let file = std::fs::File::open(path).map_err(|error| format!("can't open it: {error}"))?;
    let mut bytes = Vec::new();
    // A device or a pipe has no end that its size would tell.
    file.take(FILE_BYTES_MAX + 1)
        .read_to_end(&mut bytes)
        .map_err(|error| format!("can't read it: {error}"))?;
    if bytes.len() as u64 > FILE_BYTES_MAX {
        return Err(format!(
            "longer than {FILE_BYTES_MAX} bytes: this is not a workload file, or cut it down"
        ));
    }
    String::from_utf8(bytes).map_err(|error| {
        let line = 1 + error.as_bytes()[..error.utf8_error().valid_up_to()]
            .iter()
            .filter(|byte| **byte == b'\n')
            .count();
        format!("line {line} is not UTF-8 text: save it as UTF-8")
    })
}
