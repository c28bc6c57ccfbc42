use uuid::Uuid;

use super::*;

fn plan(n: u128) -> PlanId {
    PlanId(Uuid::from_u128(n))
}

fn read(layout: &Layout, name: &str) -> String {
    fs::read_to_string(layout.dir().join(name)).unwrap()
}

#[test]
fn seeds_once_a_plan_and_renews_the_configuration() {
    let data = tempfile::tempdir().unwrap();
    let layout = Layout::new(data.path(), 6379);
    assert!(!layout.is_marked());
    layout.prepare(plan(1), "bind 127.0.0.1\n", Some("seed")).unwrap();
    assert_eq!(
        (read(&layout, CONFIG), read(&layout, "nodes.conf")),
        ("bind 127.0.0.1\n".into(), "seed".into())
    );
    assert_eq!(layout.bound_ip(), Some("127.0.0.1".parse().unwrap()));
    assert!(layout.is_marked());
    fs::write(layout.dir().join("nodes.conf"), "the server's own").unwrap();
    fs::write(layout.dir().join("dump.rdb"), "data").unwrap();
    layout.prepare(plan(1), "new", Some("seed")).unwrap();
    assert_eq!(
        (read(&layout, CONFIG), read(&layout, "nodes.conf")),
        ("new".into(), "the server's own".into())
    );
    let left: Vec<_> = fs::read_dir(layout.dir()).unwrap().map(|e| e.unwrap().file_name()).collect();
    assert!(!left.iter().any(|name| name.to_string_lossy().ends_with(".new")), "{left:?}");
}

#[test]
fn what_belongs_to_others_is_left_untouched() {
    for file in ["nodes.conf", "dump.rdb", "old.rdb", "appendonly.aof", "appendonlydir", "redis.conf"] {
        let data = tempfile::tempdir().unwrap();
        let layout = Layout::new(data.path(), 6379);
        fs::create_dir(layout.dir()).unwrap();
        fs::write(layout.dir().join(file), "mine").unwrap();
        let words = layout.prepare(plan(1), "config", Some("seed")).unwrap_err().to_string();
        assert!(words.contains(file) && words.contains("redis.data_dir"), "{words}");
        assert_eq!(read(&layout, file), "mine");
        assert_eq!(fs::read_dir(layout.dir()).unwrap().count(), 1);
    }
}

#[test]
fn another_plans_directory_is_refused_once_it_has_data() {
    let data = tempfile::tempdir().unwrap();
    let layout = Layout::new(data.path(), 6379);
    layout.prepare(plan(1), "config", Some("seed")).unwrap();
    let words = layout.prepare(plan(2), "config", Some("other")).unwrap_err().to_string();
    assert!(words.contains("nodes.conf of another cluster"), "{words}");
    assert_eq!(read(&layout, "nodes.conf"), "seed");
    fs::remove_file(layout.dir().join("nodes.conf")).unwrap();
    layout.prepare(plan(2), "config", Some("other")).unwrap();
    assert_eq!(read(&layout, "nodes.conf"), "other");
}

#[test]
fn a_start_that_was_cut_short_goes_on() {
    let data = tempfile::tempdir().unwrap();
    let layout = Layout::new(data.path(), 6379);
    fs::create_dir(layout.dir()).unwrap();
    fs::write(layout.dir().join(MARKER), plan(1).to_string()).unwrap();
    fs::write(layout.dir().join("nodes.conf.new"), "ha").unwrap();
    layout.prepare(plan(1), "config", Some("seed")).unwrap();
    assert_eq!(read(&layout, "nodes.conf"), "seed");
}

#[test]
fn a_full_disk_names_what_is_free() {
    let data = tempfile::tempdir().unwrap();
    let layout = Layout::new(data.path(), 6379);
    let words = |kind: io::ErrorKind| layout.error(layout.dir(), kind.into()).to_string();
    let full = words(io::ErrorKind::StorageFull);
    assert!(full.starts_with("no space left under") && full.contains("bytes free;"), "{full}");
    assert!(words(io::ErrorKind::QuotaExceeded).contains("quota"));
    assert!(words(io::ErrorKind::PermissionDenied).contains("must be able to write"));
    // ENOSPC and EDQUOT as the kernel gives them.
    assert_eq!(io::Error::from_raw_os_error(28).kind(), io::ErrorKind::StorageFull);
    assert_eq!(io::Error::from_raw_os_error(122).kind(), io::ErrorKind::QuotaExceeded);
}

#[test]
fn last_words_are_this_starts_and_bounded() {
    let data = tempfile::tempdir().unwrap();
    let layout = Layout::new(data.path(), 6379);
    assert_eq!(layout.last_words(0), "");
    fs::create_dir(layout.dir()).unwrap();
    fs::write(layout.dir().join(LOG), "old\n").unwrap();
    let from = layout.log_len();
    fs::write(layout.dir().join(LOG), "old\nnew\x07 words\n\nlast\n").unwrap();
    assert_eq!(layout.last_words(from), "new words | last");
    let quoted = "*** FATAL CONFIG FILE ERROR ***\n>>> 'user \"app on >s3cret\"'\nBad directive\n";
    fs::write(layout.dir().join(STDERR), quoted).unwrap();
    let words = layout.last_words(u64::MAX);
    assert_eq!(words, "*** FATAL CONFIG FILE ERROR *** | >>> 'user …' | Bad directive");
    fs::write(layout.dir().join(STDERR), "x".repeat(100_000)).unwrap();
    assert!(layout.last_words(from).chars().count() <= TAIL_CHARS_MAX);
    assert!(layout.last_words(from).ends_with("new words | last"));
}
