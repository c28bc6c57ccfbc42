use proptest::prelude::*;
use redmesh_api::workload::{Keys, NAME_BYTES_MAX, Pick, SIZES_MAX, ValueBytes, Verb};

use super::file::parse;
use super::*;
use crate::exit::{Exit, of_error};

/// A pool of single keys; `edit` replaces text in it.
fn cache(edit: &[(&str, &str)]) -> String {
    let mut text = built_in("cache").unwrap().to_owned();
    for (from, to) in edit {
        assert!(text.contains(from), "{from}");
        text = text.replacen(from, to, 1);
    }
    text
}

#[test]
fn built_in_workloads_are_what_they_say() {
    for (name, text) in BUILT_IN {
        let workload = resolve(name).unwrap();
        assert_eq!(workload.name, name);
        assert!(text.starts_with("# ") && description(text).len() > 20, "{name}");
    }
    assert_eq!(resolve(UUID_COUNTER).unwrap(), Workload::uuid_counter());
    let cache = resolve("cache").unwrap();
    assert_eq!(cache.mix, [(Verb::Set, 10), (Verb::Get, 90)]);
    assert_eq!(cache.keys, Keys::Pool { count: 1_000_000, pick: Pick::Zipf { exponent: 0.99 } });
    assert_eq!(cache.value, ValueBytes::Weighted(vec![(100, 6), (500, 3), (4000, 1)]));
    assert_eq!(cache.ttl_s, Some(3600));
    let session = resolve("session").unwrap();
    assert_eq!(session.mix, [(Verb::Hset, 20), (Verb::Hgetall, 70), (Verb::Expire, 10)]);
    assert_eq!((session.fields, session.ttl_s), (5, Some(1800)));
    assert_eq!(session.value, ValueBytes::Uniform { min: 16, max: 128 });
    let multikey = resolve("multikey").unwrap();
    assert_eq!(multikey.mix, [(Verb::Mset, 20), (Verb::Mget, 80)]);
    assert_eq!((multikey.keys_per_command, multikey.value), (10, ValueBytes::Fixed(100)));
}

#[test]
fn they_are_listed_one_a_line() {
    let text = render(&BUILT_IN.map(|(name, text)| Listed { name, description: description(text) }));
    let names: Vec<&str> = text.lines().filter_map(|line| line.split_whitespace().next()).collect();
    assert_eq!(names, ["WORKLOAD", "uuid-counter", "cache", "session", "multikey"]);
    assert!(text.contains("90 % GET, 10 % SET"), "{text}");
}

#[test]
fn a_mistake_is_told_by_line_column_field_and_remedy() {
    for (edit, place, words) in [
        // Of the form.
        (("count = 1_000_000", "count = \"many\""), "8:9:", vec!["keys.count: ", "\"many\"", "expected u64"]),
        (("count = 1_000_000", "count = -5"), "8:9:", vec!["keys.count: ", "-5"]),
        (("count =", "cuont ="), "8:1:", vec!["keys.cuont: ", "unknown field", "`count`"]),
        (("get = 90", "incr = 90"), "21:1:", vec!["mix.incr: ", "unknown variant", "`get`"]),
        (("get = 90", "get = 4.5"), "21:7:", vec!["mix.get: ", "4.5"]),
        (("pick = \"zipf\"", "pick = \"gauss\""), "9:8:", vec!["keys.pick: ", "gauss", "`zipf`"]),
        (("weight = 3", "weight = -3"), "16:29:", vec!["value.bytes: ", "-3"]),
        (("{ bytes = 500, weight = 3 }", "500"), "16:5:", vec!["value.bytes: ", "500"]),
        (("seed = 1", "seed = "), "3:23:", vec!["redmeshctl run workloads cache"]),
        (("seed = 1", "seed = 1\nseed = 2"), "4:1:", vec!["duplicate key"]),
        // Of the meaning.
        (("name = \"cache\"", "name = \"a b\""), "2:1:", vec!["name: ", "\"a b\" must be"]),
        (("ttl = 3600", "ttl = 0"), "4:1:", vec!["ttl: 0", "leave it out"]),
        (("count = 1_000_000", "count = 0"), "8:1:", vec!["keys.count: 0 must be 1 to"]),
        (("0.99", "nan"), "10:1:", vec!["keys.exponent: NaN must be greater than 0"]),
        (("get = 90", "hset = 90"), "20:2:", vec!["mix: ", "two workloads"]),
        (("bytes = 4000", "bytes = 0"), "14:1:", vec!["value.bytes: 0 must be 1"]),
        (("seed = 1", "fields = 5"), "3:1:", vec!["fields: 5", "leave it out"]),
        (("seed = 1", "fields = 0"), "3:1:", vec!["fields: 0", "leave it out"]),
        (("seed = 1", "keys_per_command = 5"), "3:1:", vec!["keys_per_command: 5", "mset"]),
        (("exponent = 0.99", "wrap = 5"), "10:1:", vec!["keys.wrap: 5", "\"counter\" alone"]),
        (("exponent = 0.99", ""), "6:2:", vec!["keys.exponent: missing"]),
        (("pick = \"zipf\"", ""), "6:2:", vec!["keys.pick: missing"]),
        (("count = 1_000_000", ""), "6:2:", vec!["keys.count: missing"]),
        (("\"zipf\"", "\"uniform\""), "10:1:", vec!["keys.exponent: 0.99"]),
        (("\"pool\"", "\"counter\""), "8:1:", vec!["keys.count: 1000000"]),
    ] {
        let text = cache(&[edit]);
        let mistake = parse(&text).expect_err(&text).to_string();
        assert!(mistake.starts_with(place), "{edit:?}: {mistake}");
        for words in words {
            assert!(mistake.contains(words), "{edit:?}: {words} in {mistake}");
        }
        assert!(!mistake.contains('\n'), "{mistake}");
    }
}

#[test]
fn a_missing_field_is_told_by_what_misses_it() {
    let expire = built_in("session").unwrap().replacen("ttl = 1800", "", 1);
    let mistake = parse(&expire).unwrap_err().to_string();
    let line = 1 + expire.lines().position(|line| line.starts_with("expire")).unwrap();
    assert!(mistake.starts_with(&format!("{line}:1: ttl: ")), "{mistake}");
    for (name, width, too_many) in [
        ("session", "fields = 5", "fields = 1001"),
        ("multikey", "keys_per_command = 10", "keys_per_command = 0"),
    ] {
        let text = built_in(name).unwrap().replacen(width, too_many, 1);
        let line = 1 + text.lines().position(|line| line.starts_with(too_many)).unwrap();
        let mistake = parse(&text).unwrap_err().to_string();
        let expected = format!("{line}:1: {} must be 1 to 1000", too_many.replace(" =", ":"));
        assert_eq!(mistake, expected);
    }
    let mistake = parse(&cache(&[("count = 1_000_000", "wrap = 0"), ("\"pool\"", "\"counter\"")]));
    assert!(mistake.unwrap_err().to_string().starts_with("9:1: keys.pick: "));
    let counter = "name = \"c\"\nkeys = { kind = \"counter\", wrap = 0 }\nvalue.bytes = 1\nmix.set = 1\n";
    let mistake = parse(counter).unwrap_err().to_string();
    assert!(mistake.starts_with("2:28: keys.wrap: 0 must be"), "{mistake}");
    let mistake = parse(&counter.replace("wrap = 0", "wrap = 9").replace("mix.set", "mix.get")).unwrap_err();
    assert!(mistake.to_string().starts_with("4:1: mix: "), "{mistake}");
    let mistake = parse("").unwrap_err().to_string();
    assert!(mistake.starts_with("1:1: ") && mistake.contains("missing field `name`"), "{mistake}");
    let wide = "name = \"w\"\nfields = 1000\nkeys = { kind = \"pool\", count = 1, pick = \"uniform\" }\n\
                value.bytes = 1_000_000\nmix.hset = 1\n";
    let mistake = parse(wide).unwrap_err().to_string();
    assert!(mistake.starts_with("4:7: value.bytes: 1000000000 bytes"), "{mistake}");
}

#[test]
fn files_are_told_from_names_and_named_in_errors() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("mine.toml");
    let name = path.to_str().unwrap();
    let refused = |name: &str| {
        let error = anyhow::Error::from(resolve(name).unwrap_err());
        assert_eq!(of_error(&error), Exit::Usage);
        error.to_string()
    };
    assert!(refused(name).starts_with(&format!("workload file {name}: can't open it")));
    assert!(refused("cash").contains("\"cash\" is no built-in workload (there are uuid-counter, cache"));
    std::fs::write(&path, cache(&[("name = \"cache\"", "name = \"mine\"")])).unwrap();
    assert_eq!(resolve(name).unwrap().name, "mine");
    std::fs::write(&path, cache(&[("count = 1_000_000", "count = 0")])).unwrap();
    assert!(refused(name).starts_with(&format!("workload file {name}:8:1: keys.count: 0 must be")));
    std::fs::write(&path, b"name = \"a\"\n# \xff\n").unwrap();
    assert!(refused(name).contains("line 2 is not UTF-8"));
    std::fs::write(&path, vec![b'#'; FILE_BYTES_MAX as usize + 1]).unwrap();
    assert!(refused(name).contains("longer than"));
    assert!(refused(dir.path().join("").to_str().unwrap()).contains("can't read it"));
}

/// The file of a workload.
fn to_toml(workload: &Workload) -> String {
    let mut text = format!("name = {:?}\nseed = {}\n", workload.name, workload.seed);
    let has = |verbs: [Verb; 2]| workload.mix.iter().any(|(verb, _)| verbs.contains(verb));
    if let Some(ttl_s) = workload.ttl_s {
        text.push_str(&format!("ttl = {ttl_s}\n"));
    }
    if has([Verb::Hset, Verb::Hgetall]) {
        text.push_str(&format!("fields = {}\n", workload.fields));
    }
    if has([Verb::Mset, Verb::Mget]) {
        text.push_str(&format!("keys_per_command = {}\n", workload.keys_per_command));
    }
    text.push_str("[keys]\n");
    match workload.keys {
        Keys::Counter { wrap } => {
            text.push_str("kind = \"counter\"\n");
            wrap.iter().for_each(|wrap| text.push_str(&format!("wrap = {wrap}\n")));
        }
        Keys::Pool { count, pick } => {
            text.push_str(&format!("kind = \"pool\"\ncount = {count}\n"));
            match pick {
                Pick::Uniform => text.push_str("pick = \"uniform\"\n"),
                Pick::Zipf { exponent } => {
                    text.push_str(&format!("pick = \"zipf\"\nexponent = {exponent:?}\n"));
                }
            }
        }
    }
    let bytes = match &workload.value {
        ValueBytes::KeyTwice => "\"key-twice\"".to_owned(),
        ValueBytes::Fixed(bytes) => bytes.to_string(),
        ValueBytes::Uniform { min, max } => format!("{{ min = {min}, max = {max} }}"),
        ValueBytes::Weighted(sizes) => {
            let size = |(bytes, weight): &(u32, u32)| format!("{{ bytes = {bytes}, weight = {weight} }}");
            format!("[{}]", sizes.iter().map(size).collect::<Vec<_>>().join(", "))
        }
    };
    text.push_str(&format!("[value]\nbytes = {bytes}\n[mix]\n"));
    workload.mix.iter().for_each(|(verb, weight)| text.push_str(&format!("{} = {weight}\n", verb.name())));
    text
}

fn keys() -> impl Strategy<Value = Keys> {
    let exponent = 0.01..10.0_f64;
    let pick = prop_oneof![Just(Pick::Uniform), exponent.prop_map(|exponent| Pick::Zipf { exponent })];
    prop_oneof![
        proptest::option::of(1..u64::MAX >> 1).prop_map(|wrap| Keys::Counter { wrap }),
        (1..=1_000_000_000_000_u64, pick).prop_map(|(count, pick)| Keys::Pool { count, pick }),
    ]
}

fn value() -> impl Strategy<Value = ValueBytes> {
    let size = 1..=8_000_u32;
    prop_oneof![
        Just(ValueBytes::KeyTwice),
        size.clone().prop_map(ValueBytes::Fixed),
        (size.clone(), 0..300_u32).prop_map(|(min, more)| ValueBytes::Uniform { min, max: min + more }),
        proptest::collection::vec((size, 1..100_u32), 1..=SIZES_MAX).prop_map(ValueBytes::Weighted),
    ]
}

/// Workloads that mostly pass the check.
fn workload() -> impl Strategy<Value = Workload> {
    let mixes: [&[Verb]; 4] = [
        &[Verb::Set],
        &[Verb::Set, Verb::Get, Verb::Expire],
        &[Verb::Hset, Verb::Hgetall, Verb::Expire],
        &[Verb::Mset, Verb::Mget],
    ];
    let mix = (proptest::sample::select(mixes.to_vec()), [0..100_u32, 1..100_u32, 0..100_u32])
        .prop_map(|(verbs, weights)| verbs.iter().copied().zip(weights).collect::<Vec<_>>());
    let name = proptest::string::string_regex(&format!("[a-zA-Z0-9_.-]{{1,{NAME_BYTES_MAX}}}")).unwrap();
    let widths = (1..=1000_u16, 1..=1000_u16);
    let ttl = proptest::option::of(1..=u32::MAX);
    (name, 0..u64::MAX >> 1, keys(), value(), mix, ttl, widths).prop_map(
        |(name, seed, keys, value, mix, ttl_s, (fields, keys_per_command))| {
            let has = |verb| mix.iter().any(|(known, _)| *known == verb);
            let fields = if has(Verb::Hset) { fields } else { 1 };
            let keys_per_command = if has(Verb::Mset) { keys_per_command } else { 1 };
            Workload { name, seed, keys, value, mix, ttl_s, fields, keys_per_command }
        },
    )
}

proptest! {
    #[test]
    fn a_workload_written_as_a_file_is_the_same_again(workload in workload()) {
        let text = to_toml(&workload);
        match workload.check() {
            Ok(()) => prop_assert_eq!(parse(&text).map_err(|m| TestCaseError::fail(format!("{m}: {text}")))?, workload),
            Err(error) => {
                let mistake = parse(&text).expect_err(&text).to_string();
                prop_assert!(mistake.contains(&error.to_string()), "{} in {}", error, mistake);
                prop_assert!(!mistake.starts_with("1:1: ") || error.field == "name", "{}", mistake);
            }
        }
    }

    #[test]
    fn arbitrary_text_never_panics(text in "\\PC{0,200}") {
        prop_assert!(parse(&text).is_err());
    }

    #[test]
    fn what_is_left_of_a_mutated_file_is_right_or_refused(
        which in 0..BUILT_IN.len(),
        edits in proptest::collection::vec((any::<proptest::sample::Index>(), any::<u8>(), 0..3_u8), 1..6),
    ) {
        let mut bytes = BUILT_IN[which].1.as_bytes().to_vec();
        for (at, byte, how) in edits {
            let at = at.index(bytes.len());
            match how {
                0 => bytes[at] = byte,
                1 => bytes.insert(at, byte),
                _ => { bytes.remove(at); }
            }
        }
        match parse(&String::from_utf8_lossy(&bytes)) {
            Ok(workload) => prop_assert_eq!(workload.check(), Ok(())),
            Err(mistake) => prop_assert!(mistake.line >= 1 && mistake.column >= 1),
        }
    }
}

#[test]
fn nesting_without_end_is_refused() {
    for open in ["[", "{a=", "[{a="] {
        let text = format!("name = {}", open.repeat(FILE_BYTES_MAX as usize / 8));
        assert!(parse(&text).is_err());
    }
    assert!(parse(&format!("{}a = 1", "a.".repeat(FILE_BYTES_MAX as usize / 4))).is_err());
}

#[test]
fn fuzz_workload_files() {
    redmesh_tests::fuzz::fuzz("workload_toml", vec![], |bytes| {
        let text = String::from_utf8_lossy(bytes);
        match parse(&text) {
            Ok(workload) => workload.check().expect("what is accepted here is accepted by agents"),
            Err(mistake) => assert!(!mistake.to_string().is_empty()),
        }
    });
}
