use super::*;

const MINIMAL: &str = "[mesh]\nlisten = \"127.0.0.1:7379\"\nbootstrap_expect = 3\n";

fn load(text: &str, env: &[(&str, &str)], flags: &[&str]) -> Result<Config, String> {
    let dir = tempfile::tempdir().expect("temp dir");
    let path = dir.path().join("agent.toml");
    std::fs::write(&path, text).expect("write");
    let overrides = Overrides {
        env: env.iter().map(|(k, v)| ((*k).to_owned(), (*v).to_owned())).collect(),
        flags: flags.iter().map(|f| (*f).to_owned()).collect(),
    };
    Config::load(&path, &overrides).map_err(|error| crate::error_chain(&error))
}

#[test]
fn two_keys_are_enough() {
    let config = load(MINIMAL, &[], &[]).expect("valid");
    assert_eq!(config.mesh.advertise, "127.0.0.1:7379".parse().expect("addr"));
    assert_eq!(config.redis.ip, config.mesh.advertise.ip());
    assert_eq!(config.redis.base_port, 6379);
    assert_eq!(config.http_listen, Some("127.0.0.1:7380".parse().expect("addr")));
}

#[test]
fn environment_beats_the_file_and_flags_beat_both() {
    let env = [("REDMESH_MESH__BOOTSTRAP_EXPECT", "5"), ("REDMESH_LOAD__THREADS", "2")];
    let config = load(MINIMAL, &env, &["mesh.bootstrap_expect=7"]).expect("valid");
    assert_eq!((config.mesh.bootstrap_expect, config.load_threads), (7, 2));
}

#[test]
fn directives_take_text_number_and_lines() {
    let text = format!(
        "{MINIMAL}[redis.directives]\nmaxmemory = \"1gb\"\nhz = 20\nsave = [\"900 1\", \"300 10\"]\n"
    );
    let config = load(&text, &[], &["redis.directives.loglevel=verbose"]).expect("valid");
    let lines = |name: &str| config.redis.directives[name].clone();
    assert_eq!(lines("maxmemory"), ["1gb"]);
    assert_eq!(lines("hz"), ["20"]);
    assert_eq!(lines("save"), ["900 1", "300 10"]);
    assert_eq!(lines("loglevel"), ["verbose"]);
}

#[test]
fn mistakes_are_refused_by_name() {
    let cases: &[(&str, &[&str])] = &[
        ("[mesh]\nbootstrap_expect = 3\n", &["mesh.listen", "is not set"]),
        ("[mesh]\nlisten = \"127.0.0.1:1\"\n", &["mesh.bootstrap_expect", "is not set"]),
        ("[mesh]\nlisten = \"127.0.0.1:1\"\nbootstrap_expect = 0\n", &["mesh.bootstrap_expect = 0"]),
        ("[mesh]\nlisten = \"0.0.0.0:7379\"\nbootstrap_expect = 1\n", &["mesh.advertise"]),
        ("[mesh]\nlisten = \"here\"\nbootstrap_expect = 1\n", &["listen", "socket address"]),
        (&format!("{MINIMAL}colour = 1\n"), &["colour", "unknown field"]),
        (&format!("{MINIMAL}[rediss]\n"), &["rediss", "unknown field"]),
        (&format!("{MINIMAL}seeds = [\"nowhere\"]\n"), &["mesh.seeds", "nowhere", "host:port"]),
        (&format!("{MINIMAL}[redis]\nbase_port = 60000\n"), &["redis.base_port = 60000", "55535"]),
        (&format!("{MINIMAL}[redis.directives]\nx = \"a\\nb\"\n"), &["redis.directives", "control"]),
        (&format!("{MINIMAL}[load]\nthreads = 0\n"), &["load.threads = 0"]),
        (&format!("{MINIMAL}[http]\nlisten = \"yes\"\n"), &["http.listen", "off"]),
    ];
    for (text, words) in cases {
        let error = load(text, &[], &[]).expect_err(text);
        for word in *words {
            assert!(error.contains(word), "{text}\n-> {error}\nlacks {word:?}");
        }
    }
}

#[test]
fn overrides_name_their_origin() {
    let error = load(MINIMAL, &[("REDMESH_MESH__COLOUR", "1")], &[]).expect_err("unknown key");
    assert!(error.contains("REDMESH_MESH__COLOUR") && error.contains("colour"), "{error}");
    let error = load(MINIMAL, &[], &["mesh.bootstrap_expect=many"]).expect_err("not a number");
    assert!(error.contains("--set mesh.bootstrap_expect=many"), "{error}");
    let error = load(MINIMAL, &[], &["nonsense"]).expect_err("no key");
    assert!(error.contains("section.key=value"), "{error}");
}

#[test]
fn the_shipped_example_is_valid() {
    let path = Path::new(concat!(env!("CARGO_MANIFEST_DIR"), "/../deploy/agent.example.toml"));
    Config::load(path, &Overrides::default()).expect("deploy/agent.example.toml parses");
}

#[test]
fn the_shipped_example_shows_every_key_and_its_default() {
    let path = concat!(env!("CARGO_MANIFEST_DIR"), "/../deploy/agent.example.toml");
    let text = std::fs::read_to_string(path).expect("read the example");
    // A commented-out `key = value` is the default: put in force, it changes nothing.
    let assignment = |line: &str| {
        line.strip_prefix("# ")
            .filter(|rest| {
                rest.split_once(" = ").is_some_and(|(key, _)| {
                    key.bytes().all(|byte| byte.is_ascii_lowercase() || byte == b'_' || byte == b'-')
                })
            })
            .map(str::to_owned)
    };
    let (head, directives) = text.split_once("[redis.directives]").expect("the section");
    let rest = directives.find("[load]").expect("the section");
    let example = format!("{head}{}", &directives[rest..]);
    let in_force: Vec<_> = example.lines().map(|line| assignment(line).unwrap_or(line.to_owned())).collect();
    let mut full = load(&in_force.join("\n"), &[], &[]).expect("all keys in force");
    // The one default that is no single value: whichever server there is.
    assert_eq!(full.redis.server.take(), Some("redis-server".into()));
    assert_eq!(full, load(&example, &[], &[]).expect("the example"));
    // And it has every key: an unknown one is refused with the names of those there are.
    for section in ["mesh", "identity", "state", "redis", "load", "http", "log", "join", "firewall"] {
        let header = if section == "mesh" { String::new() } else { format!("[{section}]\n") };
        let error = load(&format!("{MINIMAL}{header}no-such-key = 1\n"), &[], &[]).expect_err(section);
        let (_, expected) = error.split_once("expected ").expect("the keys that there are");
        for key in expected.split('`').skip(1).step_by(2).filter(|key| *key != "directives") {
            let shown = in_force.iter().any(|line| line.starts_with(&format!("{key} = ")));
            assert!(shown, "{path} does not show {section}.{key}");
        }
    }
}

#[test]
fn directives_values_stay_out_of_errors_and_logs() {
    let text = format!("{MINIMAL}[redis.directives]\nrequirepass = \"secret\"\n");
    let config = load(&text, &[], &[]).expect("valid");
    let shown = format!("{config:?}");
    assert!(shown.contains("requirepass") && !shown.contains("secret"), "{shown}");
    let text = format!("{MINIMAL}[redis.directives]\nrequirepass = \"secret\\n\"\n");
    let error = load(&text, &[], &[]).expect_err("a line break");
    assert!(error.contains("requirepass") && !error.contains("secret"), "{error}");
    let text = format!("{MINIMAL}[redis.directives]\nrequirepass = \"secret\nmaxmemory = 1\n");
    let error = load(&text, &[], &[]).expect_err("no end of a string");
    let line = MINIMAL.lines().count() + 2;
    let place = format!("line {line} (requirepass = …)");
    assert!(error.contains(&place) && !error.contains("secret"), "{error}");
}

#[test]
fn how_many_are_released_at_once_is_a_number_or_left_to_the_machine() {
    let of = |set: &[&str]| load(MINIMAL, &[], set).map(|config| config.redis.release_at_once);
    assert_eq!(of(&[]).unwrap(), None);
    assert_eq!(of(&["redis.release_at_once=auto"]).unwrap(), None);
    assert_eq!(of(&["redis.release_at_once=3"]).unwrap(), Some(3));
    for (set, shown) in [("0", "redis.release_at_once = 0"), ("few", "redis.release_at_once = \"few\"")] {
        let error = of(&[&format!("redis.release_at_once={set}")]).expect_err(set);
        assert!(error.contains(shown) && error.contains("auto"), "{error}");
    }
}

#[test]
fn allocator_options_can_be_set_and_taken_away() {
    let of = |set: &[&str]| load(MINIMAL, &[], set).map(|config| config.redis.malloc_conf);
    assert_eq!(of(&[]).unwrap().as_deref(), Some(MALLOC_CONF_DEFAULT));
    assert_eq!(of(&["redis.malloc_conf=narenas:1"]).unwrap().as_deref(), Some("narenas:1"));
    assert_eq!(of(&["redis.malloc_conf=\"\""]).unwrap(), None);
    let error = of(&["redis.malloc_conf=a b"]).expect_err("a space");
    assert!(error.contains("redis.malloc_conf") && error.contains("dirty_decay_ms"), "{error}");
}
