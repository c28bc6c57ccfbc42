//! Programs of others that tests use where they are there: in PATH, or unpacked below the
//! build's directory by `deploy/dev/need unpacked`.

use std::path::{Path, PathBuf};

/// The repository.
pub fn repository() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).parent().expect("tests/ lies in the repository").to_owned()
}

/// Where a program is; `None` (said on stderr) where it isn't.
pub fn find(name: &str) -> Option<PathBuf> {
    let path = std::env::var_os("PATH").unwrap_or_default();
    // A test's binary lies in TARGET/debug/deps.
    let target =
        std::env::current_exe().ok().and_then(|exe| Some(exe.parent()?.parent()?.parent()?.to_owned()));
    let unpacked = target
        .into_iter()
        .flat_map(|target| ["usr/bin", "usr/sbin"].map(|dir| target.join("tools/root").join(dir)));
    let found =
        std::env::split_paths(&path).chain(unpacked).map(|dir| dir.join(name)).find(|file| file.is_file());
    if found.is_none() {
        let words = format!(
            "skipped, because there is no {name}: a part of {}\n",
            std::thread::current().name().unwrap_or("a test")
        );
        let _ = std::io::Write::write_all(&mut std::io::stderr(), words.as_bytes());
    }
    found
}
