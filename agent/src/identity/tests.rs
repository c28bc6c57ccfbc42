use std::fs;
use std::os::unix::fs::PermissionsExt;

use super::*;

fn mode(path: &Path) -> u32 {
    fs::metadata(path).unwrap().permissions().mode() & 0o777
}

#[test]
fn id_and_secret_stay_and_the_generation_grows() {
    let dir = tempfile::tempdir().unwrap();
    let state = dir.path().join("a/b");
    let first = HostIdentity::open(&state).unwrap();
    let (id, secret) = (first.id(), *first.secret());
    assert_ne!(id, HostId(0));
    assert_eq!(first.generation(), 1);
    assert_eq!(mode(&state.join("secret")), 0o600);
    drop(first);
    let second = HostIdentity::open(&state).unwrap();
    assert_eq!((second.id(), *second.secret(), second.generation()), (id, secret, 2));
    assert!(!format!("{second:?}").contains("secret"));
}

#[test]
fn a_second_agent_is_refused_and_told_the_first_ones_pid() {
    let dir = tempfile::tempdir().unwrap();
    let first = HostIdentity::open(dir.path()).unwrap();
    let error = HostIdentity::open(dir.path()).unwrap_err().to_string();
    let expected =
        format!("another redmesh-agent (pid {}) uses {}", std::process::id(), dir.path().display());
    assert!(error.starts_with(&expected), "{error}");
    assert_eq!(first.generation(), 1);
    drop(first);
    // The refused one did not spend a generation.
    assert_eq!(HostIdentity::open(dir.path()).unwrap().generation(), 2);
}

#[test]
fn damage_is_named_and_nothing_is_overwritten() {
    let dir = tempfile::tempdir().unwrap();
    drop(HostIdentity::open(dir.path()).unwrap());
    let host = dir.path().join("host.toml");
    let good = fs::read(&host).unwrap();
    for bad in [
        &b""[..],
        b"id = \"00000000\"\ngeneration = 1\n",
        b"id = \"1\"\ngeneration = 1\n",
        format!("format = {PROTOCOL_VERSION}\nid = \"00000001\"\ngeneration = {}\n", u64::MAX).as_bytes(),
        b"\xff\xfe",
    ] {
        fs::write(&host, bad).unwrap();
        let error = HostIdentity::open(dir.path()).unwrap_err();
        assert!(matches!(error, IdentityError::Damaged { .. }), "{error}");
        assert!(error.to_string().contains("host.toml"), "{error}");
        assert_eq!(fs::read(&host).unwrap(), bad);
    }
    fs::remove_file(&host).unwrap();
    fs::write(dir.path().join("level.bin"), b"").unwrap();
    let error = HostIdentity::open(dir.path()).unwrap_err().to_string();
    assert!(error.contains("host.toml is damaged (missing, though level.bin is there)"), "{error}");
    fs::write(&host, good).unwrap();
    fs::write(dir.path().join("secret"), b"short").unwrap();
    let error = HostIdentity::open(dir.path()).unwrap_err().to_string();
    assert!(error.contains("secret is damaged (5 bytes instead of 32)"), "{error}");
    fs::remove_file(dir.path().join("secret")).unwrap();
    assert!(matches!(HostIdentity::open(dir.path()), Err(IdentityError::Damaged { .. })));
}

#[test]
fn a_state_of_another_format_is_refused_and_left_alone() {
    let dir = tempfile::tempdir().unwrap();
    drop(HostIdentity::open(dir.path()).unwrap());
    let host = dir.path().join("host.toml");
    for (text, got) in [
        ("id = \"00000001\"\ngeneration = 1\n", 0),
        ("format = 255\nid = \"00000001\"\ngeneration = 1\n", 255),
    ] {
        fs::write(&host, text).unwrap();
        let error = HostIdentity::open(dir.path()).unwrap_err();
        assert!(error.to_string().contains(&format!("of format {got}, this one uses")), "{error}");
        assert_eq!(fs::read_to_string(&host).unwrap(), text);
    }
}

#[test]
fn a_write_that_was_cut_short_by_a_crash_leaves_the_old_file_in_force() {
    let dir = tempfile::tempdir().unwrap();
    let id = HostIdentity::open(dir.path()).unwrap().id();
    fs::write(dir.path().join("host.toml.new"), b"id = \"0000").unwrap();
    let again = HostIdentity::open(dir.path()).unwrap();
    assert_eq!((again.id(), again.generation()), (id, 2));
}

#[test]
fn a_full_disk_is_called_so() {
    let error = io_error("write", Path::new("/state/host.toml"))(ErrorKind::StorageFull.into());
    assert!(error.to_string().contains("no space left to write /state/host.toml"), "{error}");
}
