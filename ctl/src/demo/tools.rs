//! The binaries that a demo starts: where they are, or what to do about it.

use std::os::unix::fs::PermissionsExt as _;
use std::path::{Path, PathBuf};

use anyhow::{Context as _, bail};

/// The agent's file name.
const AGENT: &str = "redmesh-agent";

/// Servers in the order of preference.
const SERVERS: [&str; 2] = ["redis-server", "valkey-server"];

/// The agent: as asked for, else beside this binary, else in PATH.
pub fn agent(asked: Option<&Path>) -> anyhow::Result<PathBuf> {
    if let Some(file) = asked {
        if !is_executable(file) {
            bail!("--agent-bin {}: no executable file", file.display());
        }
        return file.canonicalize().with_context(|| format!("can't resolve {}", file.display()));
    }
    let beside = std::env::current_exe().ok().and_then(|exe| Some(exe.parent()?.join(AGENT)));
    let found = beside.filter(|file| is_executable(file)).or_else(|| in_path(AGENT));
    found.with_context(|| {
        format!(
            "{AGENT} is neither beside redmeshctl nor in PATH: build it with `cargo build --release --workspace \
             --bins`, or name it with --agent-bin"
        )
    })
}

/// The server: as asked for, else the first that PATH has.
pub fn server(asked: Option<&Path>) -> anyhow::Result<PathBuf> {
    if let Some(file) = asked {
        let found = match file.components().count() {
            1 => file.to_str().and_then(in_path),
            // Not resolved to the end: Debian's redis-server is a link to redis-check-rdb,
            // which knows by its name what it is to be.
            _ => std::path::absolute(file).ok().filter(|file| is_executable(file)),
        };
        return found.with_context(|| format!("--server {}: no executable file", file.display()));
    }
    SERVERS.iter().find_map(|name| in_path(name)).with_context(|| {
        format!(
            "neither {} is in PATH: install one (`apt-get install redis-server`), or name one with --server",
            SERVERS.join(" nor ")
        )
    })
}

fn in_path(name: &str) -> Option<PathBuf> {
    let path = std::env::var_os("PATH")?;
    std::env::split_paths(&path)
        .map(|dir| dir.join(name))
        .find(|file| file.is_absolute() && is_executable(file))
}

fn is_executable(file: &Path) -> bool {
    file.metadata().is_ok_and(|meta| meta.is_file() && meta.permissions().mode() & 0o111 != 0)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_server_is_started_by_the_name_that_it_was_given() {
        let dir = tempfile::tempdir().unwrap();
        let link = dir.path().join("redis-server");
        std::os::unix::fs::symlink("/bin/sh", &link).unwrap();
        assert_eq!(server(Some(&link)).unwrap(), link);
    }

    #[test]
    fn what_is_missing_is_named_with_the_remedy() {
        let error = agent(Some(Path::new("/nowhere/agent"))).unwrap_err().to_string();
        assert!(error.contains("--agent-bin /nowhere/agent"), "{error}");
        let error = server(Some(Path::new("no-such-server"))).unwrap_err().to_string();
        assert!(error.contains("--server no-such-server"), "{error}");
        assert!(in_path("sh").is_some());
        let dir = tempfile::tempdir().unwrap();
        let file = dir.path().join("agent");
        std::fs::write(&file, "").unwrap();
        std::fs::set_permissions(&file, std::fs::Permissions::from_mode(0o600)).unwrap();
        assert!(!is_executable(&file) && !is_executable(dir.path()));
    }
}
