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

/// Where a library is, named by its path below the directories of libraries.
pub fn library(name: &str) -> Option<PathBuf> {
    let exe = std::env::current_exe().ok()?;
    // Of a test's binary TARGET/debug/deps, else TARGET/debug.
    let below = exe.ancestors().skip(2).take(2).map(|target| target.join("tools/root"));
    let roots = std::iter::once(PathBuf::from("/")).chain(below);
    let triplet = format!("{}-linux-gnu", std::env::consts::ARCH);
    let dirs = roots.flat_map(|root| [root.join("usr/lib").join(&triplet), root.join("usr/lib")]);
    dirs.map(|dir| dir.join(name)).find(|file| file.is_file())
}
