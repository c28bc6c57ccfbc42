//! Replacing a file whole: the one way in which the agent writes what it must find
//! again after a crash.

use std::ffi::OsString;
use std::fs::{self, File, OpenOptions};
use std::io::{self, ErrorKind, Write};
use std::os::unix::fs::OpenOptionsExt;
use std::path::Path;

use redmesh_api::codec;
use serde::Serialize;

/// Mode of files that may hold what only the agent's user is to know.
pub const PRIVATE: u32 = 0o600;

/// Writes `bytes` at `path`: after a crash at any moment either the old file or the new
/// one is there, whole. Nobody sees the bytes under another mode than `mode`. Waits for
/// the disk, so a task calls it on a blocking thread.
///
/// # Errors
/// The file system's; the old file then stays, and no half of a new one is left.
pub fn replace(path: &Path, bytes: &[u8], mode: u32) -> io::Result<()> {
    let mut name = path.file_name().map_or_else(OsString::new, OsString::from);
    name.push(".new");
    let temporary = path.with_file_name(name);
    // What an earlier crash left behind may bear another mode.
    match fs::remove_file(&temporary) {
        Err(error) if error.kind() != ErrorKind::NotFound => return Err(error),
        _ => {}
    }
    let written = OpenOptions::new()
        .write(true)
        .create_new(true)
        .mode(mode)
        .open(&temporary)
        .and_then(|mut file| file.write_all(bytes).and_then(|()| file.sync_all()))
        .and_then(|()| fs::rename(&temporary, path));
    if let Err(error) = written {
        // It would only take up what is scarce; if it can't go, no matter.
        let _ = fs::remove_file(&temporary);
        return Err(error);
    }
    match path.parent() {
        Some(dir) => File::open(dir)?.sync_all(),
        None => Ok(()),
    }
}

/// Keeps `value` at `path`, encoded, for the agent's user alone.
///
/// # Errors
/// In words: what could not be written, and where.
pub fn keep(path: &Path, value: &impl Serialize) -> Result<(), String> {
    let bytes = codec::encode(value).map_err(|error| crate::error_chain(&error))?;
    replace(path, &bytes, PRIVATE).map_err(|error| format!("can't write {}: {error}", path.display()))
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::PermissionsExt;

    use super::*;

    #[test]
    fn the_new_file_has_its_mode_whatever_was_there() {
        let dir = tempfile::tempdir().expect("temp dir");
        let path = dir.path().join("a.conf");
        fs::write(&path, "old, and readable by all").expect("write");
        fs::write(dir.path().join("a.conf.new"), "half of a").expect("write");
        replace(&path, b"new", PRIVATE).expect("replace");
        assert_eq!(fs::read(&path).expect("read"), b"new");
        assert_eq!(fs::metadata(&path).expect("stat").permissions().mode() & 0o777, PRIVATE);
        assert_eq!(fs::read_dir(dir.path()).expect("list").count(), 1);
    }
}
