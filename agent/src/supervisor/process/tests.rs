use super::*;

#[test]
fn a_missing_binary_names_what_was_searched() {
    let empty = tempfile::tempdir().unwrap();
    let words = find_in(None, empty.path().as_os_str()).unwrap_err().to_string();
    assert!(words.contains(&empty.path().display().to_string()), "{words}");
    assert!(words.contains("apt-get install redis-server") && words.contains("redis.server"), "{words}");
    let words = find_server(Some(Path::new("/nowhere/redis-server"))).unwrap_err().to_string();
    assert!(words.contains("/nowhere/redis-server"), "{words}");
}

#[test]
fn a_server_may_be_named_as_in_path_or_by_a_path() {
    let dir = tempfile::tempdir().unwrap();
    let server = dir.path().join("my-redis");
    std::os::unix::fs::symlink("/bin/sh", &server).unwrap();
    let path = dir.path().as_os_str();
    assert_eq!(find_in(Some(Path::new("my-redis")), path).unwrap(), server);
    assert_eq!(find_in(Some(&server), OsStr::new("")).unwrap(), server);
    assert!(find_in(Some(Path::new("other")), path).is_err());
}

fn script(dir: &Path, text: &str) -> PathBuf {
    let path = dir.join("my-redis");
    std::fs::write(&path, format!("#!/bin/sh\n{text}\n")).unwrap();
    std::fs::set_permissions(&path, std::os::unix::fs::PermissionsExt::from_mode(0o755)).unwrap();
    path
}

#[test]
fn the_version_is_asked_for_in_the_servers_environment() {
    let dir = tempfile::tempdir().unwrap();
    let server = script(dir.path(), "exec env");
    let printed = server_version(Some(&server), VERSION_WAIT).unwrap();
    assert!(printed.contains("PATH=") && !printed.contains("CARGO_MANIFEST_DIR"), "{printed}");
}

#[test]
fn a_binary_that_says_no_version_and_does_not_end_is_killed() {
    let dir = tempfile::tempdir().unwrap();
    let server = script(dir.path(), "exec sleep 600");
    let error = server_version(Some(&server), Duration::from_millis(50)).unwrap_err();
    assert!(crate::error_chain(&error).contains("doesn't end within"), "{error:?}");
}

#[test]
fn a_low_limit_of_open_files_names_the_figures() {
    let words = nofile_words(Some(1024), 6094).unwrap_err();
    for part in ["6158", "6094", "1024", "LimitNOFILE=6158"] {
        assert!(words.contains(part), "{part}: {words}");
    }
    assert_eq!(nofile_words(Some(6158), 6094), Ok(()));
    assert_eq!(nofile_words(None, u32::MAX), Ok(()));
}

#[test]
fn servers_are_told_by_their_executable() {
    let server = |exe: &str| is_server(Path::new(exe), None);
    assert!(server("/usr/bin/redis-server") && server("/usr/bin/valkey-server"));
    assert!(server("/usr/bin/redis-check-rdb"), "what Debian's redis-server is a link to");
    assert!(server("/usr/bin/redis-server (deleted)"), "replaced by an upgrade");
    assert!(!server("/usr/bin/redis-cli") && !server("/bin/sh") && !server("/"));
    assert!(is_server(Path::new("/opt/keep/my-redis (deleted)"), Some(Path::new("/opt/keep/my-redis"))));
}

#[tokio::test]
#[expect(clippy::zombie_processes, reason = "reaping through the pidfd is what is tested")]
async fn an_end_is_reaped_and_told() {
    for (script, told) in [("exit 3", "exit status 3"), ("kill -9 $$", "signal 9")] {
        let child = Command::new("sh").args(["-c", script]).spawn().unwrap();
        let process = Process::open(child.id()).unwrap();
        assert_eq!(process.ended().await, told);
        process.signal(Signal::KILL);
        let gone = procfs::process::Process::new(child.id() as i32).and_then(|p| p.stat());
        assert!(gone.is_err(), "no zombie is left");
    }
}

/// What a server that is `sh` prints of its environment: its redis.conf is the script.
async fn environment(malloc_conf: Option<&str>) -> String {
    let dir = tempfile::tempdir().unwrap();
    std::fs::write(dir.path().join(layout::CONFIG), "env").unwrap();
    let process = Process::spawn(Path::new("/bin/sh"), dir.path(), malloc_conf).unwrap();
    assert_eq!(process.ended().await, "exit status 0");
    std::fs::read_to_string(dir.path().join(layout::STDERR)).unwrap()
}

#[tokio::test]
async fn a_server_gets_its_allocators_settings_and_nothing_of_the_agents_environment() {
    let with = environment(Some("dirty_decay_ms:1")).await;
    for line in ["MALLOC_CONF=dirty_decay_ms:1", "JE_MALLOC_CONF=dirty_decay_ms:1"] {
        assert!(with.lines().any(|is| is == line), "{with}");
    }
    let without = environment(None).await;
    assert!(!without.contains("MALLOC_CONF") && !without.contains("CARGO"), "{without}");
}

#[test]
fn servers_die_before_the_agent_and_never_past_the_kernels_bound() {
    assert_eq!(oom_score_adj_of_servers(0), OOM_SCORE_ABOVE);
    assert_eq!(oom_score_adj_of_servers(-OOM_SCORE_ABOVE), 0);
    assert_eq!(oom_score_adj_of_servers(900), OOM_SCORE_ADJ_MAX);
}

#[test]
fn a_process_that_cannot_be_looked_at_for_want_of_descriptors_is_not_gone() {
    use procfs::ProcError;
    let io = |errno: Errno| ProcError::Io(errno.into(), None);
    assert!(there::<()>(Err(io(Errno::MFILE))).is_err());
    assert!(there::<()>(Err(io(Errno::NFILE))).is_err());
    assert!(matches!(there::<()>(Err(io(Errno::SRCH))), Ok(None)));
    assert!(matches!(there::<()>(Err(ProcError::NotFound(None))), Ok(None)));
    assert!(matches!(there(Ok(1)), Ok(Some(1))));
}
