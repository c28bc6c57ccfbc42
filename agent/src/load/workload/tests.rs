use proptest::prelude::*;
use redmesh_api::ids::{HostId, RunId};
use redmesh_api::level::SLOTS;
use redmesh_api::workload::{Keys, Pick, ValueBytes};
use uuid::Uuid;

use super::*;

/// CRC16/XMODEM bit by bit, as the cluster specification defines it.
fn crc16(bytes: &[u8]) -> u16 {
    bytes.iter().fold(0, |crc, byte| {
        (0..8).fold(crc ^ (u16::from(*byte) << 8), |crc: u16, _| {
            if crc & 0x8000 == 0 { crc << 1 } else { (crc << 1) ^ 0x1021 }
        })
    })
}

/// Slot of a whole key by the specification's rule of hash tags: what stands between
/// the first `{` and the next `}`, unless that is nothing.
fn spec_slot(key: &[u8]) -> u16 {
    let tag = key.iter().position(|byte| *byte == b'{').and_then(|open| {
        let rest = &key[open + 1..];
        rest.iter().position(|byte| *byte == b'}').filter(|len| *len > 0).map(|len| &rest[..len])
    });
    crc16(tag.unwrap_or(key)) % SLOTS
}

/// The words of the one command that `bytes` are.
fn words(bytes: &[u8]) -> Vec<String> {
    fn len(kind: u8, rest: &mut &[u8]) -> usize {
        let (line, behind) = {
            let end = rest.windows(2).position(|two| two == b"\r\n").expect("a line end");
            (&rest[..end], &rest[end + 2..])
        };
        *rest = behind;
        assert_eq!(line[0], kind);
        std::str::from_utf8(&line[1..]).expect("digits").parse().expect("a length")
    }
    let mut rest = bytes;
    let words = (0..len(b'*', &mut rest))
        .map(|_| {
            let len = len(b'$', &mut rest);
            let word = String::from_utf8(rest[..len].to_vec()).expect("text");
            assert_eq!(&rest[len..len + 2], b"\r\n");
            rest = &rest[len + 2..];
            word
        })
        .collect();
    assert!(rest.is_empty(), "{} bytes behind the command", rest.len());
    words
}

fn repeated(key: &str, bytes: usize) -> String {
    key.chars().cycle().take(bytes).collect()
}

/// The words that `op` must be, and its keys.
fn expected(workload: &Workload, uuid: Uuid, op: &Op) -> (Vec<String>, Vec<String>) {
    let single = match workload.keys {
        Keys::Counter { .. } => format!("{uuid}-{}", op.key),
        Keys::Pool { .. } => format!("{}:{{{}}}", workload.name, op.key),
    };
    let group: Vec<_> = (0..workload.keys_per_command).map(|j| format!("{single}:{j}")).collect();
    let value = |key: &str| match workload.value {
        ValueBytes::KeyTwice => format!("{key}{key}"),
        _ => repeated(key, op.bytes as usize),
    };
    let ttl = workload.ttl_s.map(|ttl| ttl.to_string());
    let mut words = vec![op.verb.name().to_uppercase()];
    match op.verb {
        Verb::Mset => words.extend(group.iter().flat_map(|key| [key.clone(), value(key)])),
        Verb::Mget => words.extend(group.iter().cloned()),
        _ => words.push(single.clone()),
    }
    match op.verb {
        Verb::Set => {
            words.push(value(&single));
            words.extend(ttl.into_iter().flat_map(|ttl| ["EX".to_owned(), ttl]));
        }
        Verb::Hset => {
            words.extend((0..workload.fields).flat_map(|field| [format!("f{field}"), value(&single)]));
        }
        Verb::Expire => words.extend(ttl),
        Verb::Get | Verb::Hgetall | Verb::Mset | Verb::Mget => {}
    }
    let keys = if matches!(op.verb, Verb::Mset | Verb::Mget) { group } else { vec![single] };
    (words, keys)
}

fn sizes() -> impl Strategy<Value = ValueBytes> {
    prop_oneof![
        Just(ValueBytes::KeyTwice),
        (1u32..5000).prop_map(ValueBytes::Fixed),
        (1u32..500, 0u32..500).prop_map(|(min, more)| ValueBytes::Uniform { min, max: min + more }),
        prop::collection::vec((1u32..2000, 1u32..9), 1..6).prop_map(ValueBytes::Weighted),
    ]
}

fn keys_and_mix() -> impl Strategy<Value = (Keys, Vec<(Verb, u32)>)> {
    let pick = prop_oneof![
        Just(Pick::Uniform),
        (0.01f64..10.0).prop_map(|exponent| Pick::Zipf { exponent }),
        Just(Pick::Zipf { exponent: 1.0 }),
    ];
    let pool = (1u64..=1_000_000_000_000, 0u32..40, pick)
        .prop_map(|(count, shift, pick)| Keys::Pool { count: (count >> shift).max(1), pick });
    let mix = prop_oneof![
        Just(vec![(Verb::Set, 1), (Verb::Get, 3), (Verb::Expire, 1)]),
        Just(vec![(Verb::Hset, 2), (Verb::Hgetall, 2), (Verb::Expire, 1)]),
        Just(vec![(Verb::Set, 1), (Verb::Mset, 2), (Verb::Mget, 2), (Verb::Get, 0)]),
    ];
    prop_oneof![
        1 => prop::option::of(1u64..1000)
            .prop_map(|wrap| (Keys::Counter { wrap }, vec![(Verb::Set, 1)])),
        4 => (pool, mix),
    ]
}

fn workload() -> impl Strategy<Value = Workload> {
    (
        "[a-zA-Z0-9._-]{1,32}",
        any::<u64>(),
        keys_and_mix(),
        sizes(),
        prop::option::of(1u32..),
        1u16..12,
        1u16..12,
    )
        .prop_map(|(name, seed, (keys, mix), value, ttl_s, fields, keys_per_command)| {
            let expires = mix.iter().any(|(verb, _)| *verb == Verb::Expire);
            let ttl_s = if expires { ttl_s.or(Some(60)) } else { ttl_s };
            Workload { name, seed, keys, value, mix, ttl_s, fields, keys_per_command }
        })
}

proptest! {
    #[test]
    fn a_plain_counter_command_and_its_slot_are_those_of_the_text(bytes: [u8; 16], n: u64, shift in 0u32..64) {
        let (uuid, n) = (Uuid::from_bytes(bytes), n >> shift);
        let prefix = KeyPrefix::new(uuid);
        let digits = Digits::new(n);
        prop_assert_eq!(digits.as_bytes().to_vec(), n.to_string().into_bytes());
        let key = format!("{uuid}-{n}");
        prop_assert_eq!(prefix.slot(&digits), spec_slot(key.as_bytes()));
        let mut out = Vec::new();
        prefix.encode_set(&digits, &mut out);
        prop_assert_eq!(words(&out), ["SET".to_owned(), key.clone(), format!("{key}{key}")]);
        out.clear();
        encode_get(&prefix, &digits, &mut out);
        prop_assert_eq!(words(&out), ["GET".to_owned(), key.clone()]);
        out.clear();
        prefix.append_key(&digits, &mut out);
        prop_assert_eq!(out, key.into_bytes());
    }

    #[test]
    fn each_operation_is_the_words_it_should_be_in_the_slot_of_its_keys(
        workload in workload(), stream: u64, bytes: [u8; 16], first in 0u64..1 << 62,
    ) {
        prop_assert_eq!(workload.check(), Ok(()));
        let uuid = Uuid::from_bytes(bytes);
        let prefix = KeyPrefix::new(uuid);
        let mut source = Source::new(&workload, stream);
        let mut again = Source::new(&workload, stream);
        for n in first..first + 20 {
            let op = source.draw(n);
            prop_assert_eq!(op, again.draw(n));
            let mut out = b"before".to_vec();
            source.encode(&prefix, &op, &mut out);
            let (expected, keys) = expected(&workload, uuid, &op);
            prop_assert_eq!(words(out.strip_prefix(b"before").expect("it appends")), expected);
            for key in keys {
                prop_assert_eq!(source.slot(&prefix, &op), spec_slot(key.as_bytes()), "{}", key);
            }
        }
    }

    #[test]
    fn what_is_drawn_is_within_its_bounds(workload in workload(), stream: u64) {
        let mut source = Source::new(&workload, stream);
        for n in 0..200 {
            let op = source.draw(n);
            prop_assert!(workload.mix.iter().any(|(verb, weight)| *verb == op.verb && *weight > 0));
            match workload.keys {
                Keys::Counter { wrap } => prop_assert_eq!(op.key, wrap.map_or(n, |wrap| n % wrap)),
                Keys::Pool { count, .. } => prop_assert!(op.key < count),
            }
            if matches!(op.verb, Verb::Get | Verb::Hgetall | Verb::Expire | Verb::Mget) {
                prop_assert_eq!(op.bytes, 0);
                continue;
            }
            match &workload.value {
                ValueBytes::KeyTwice => prop_assert_eq!(op.bytes, 0),
                ValueBytes::Fixed(bytes) => prop_assert_eq!(op.bytes, *bytes),
                ValueBytes::Uniform { min, max } => prop_assert!((*min..=*max).contains(&op.bytes)),
                ValueBytes::Weighted(sizes) => prop_assert!(sizes.iter().any(|(bytes, _)| *bytes == op.bytes)),
            }
        }
    }

    #[test]
    fn a_counter_value_is_known_by_its_key(key in "[a-z0-9-]{38,57}", bytes in 1usize..400, at: prop::sample::Index) {
        let mut value = repeated(&key, bytes).into_bytes();
        prop_assert!(is_value_of(key.as_bytes(), &value));
        value[at.index(bytes)] ^= 1;
        prop_assert!(!is_value_of(key.as_bytes(), &value));
    }
}

#[test]
fn digits_are_those_of_the_number() {
    let edges = (0..20).flat_map(|zeros| {
        let power = 10u64.pow(zeros);
        [power - 1, power, power + 1, power.saturating_mul(9)]
    });
    let each_place = (0..10_000).flat_map(|n| [n, n * 10_000, n * 10_000 + 9_999 - n, n * 1_000_000_007]);
    for n in edges.chain(each_place).chain([u64::MAX]) {
        assert_eq!(Digits::new(n).as_bytes(), n.to_string().as_bytes(), "{n}");
    }
}

#[test]
fn nothing_is_no_value() {
    assert!(!is_value_of(b"key", b""));
    assert!(!is_value_of(b"", b"value"));
}

fn pool(count: u64, pick: Pick) -> Workload {
    let keys = Keys::Pool { count, pick };
    Workload { name: "pool".into(), seed: 7, keys, value: ValueBytes::Fixed(8), ..Workload::uuid_counter() }
}

fn drawn(workload: &Workload, stream: u64, times: u64) -> Vec<Op> {
    let mut source = Source::new(workload, stream);
    (0..times).map(|n| source.draw(n)).collect()
}

#[test]
fn threads_and_seeds_draw_differently() {
    let first = pool(1_000_000, Pick::Uniform);
    let second = Workload { seed: 8, ..first.clone() };
    let keys = |workload, stream| drawn(workload, stream, 50);
    assert_ne!(keys(&first, 0), keys(&first, 1));
    assert_ne!(keys(&first, 0), keys(&second, 0));
    assert_ne!(keys(&first, 1), keys(&second, 0), "a seed's next thread is not the next seed's first");
}

/// Whether so many hits are within 6 standard deviations of what chance `p` gives.
fn is_likely(hits: usize, times: u64, p: f64) -> bool {
    let (mean, deviation) = (times as f64 * p, (times as f64 * p * (1.0 - p)).sqrt());
    (hits as f64 - mean).abs() <= 6.0 * deviation
}

#[test]
fn zipf_ranks_are_as_frequent_as_the_law_says() {
    const TIMES: u64 = 200_000;
    for exponent in [0.5, 0.99, 1.0, 1.0 + 1e-13, 1.0 - 1e-7, 2.0] {
        let ops = drawn(&pool(1000, Pick::Zipf { exponent }), 3, TIMES);
        let whole: f64 = (1..=1000).map(|rank| f64::from(rank).powf(-exponent)).sum();
        for key in [0u32, 1, 2, 9, 99] {
            let hits = ops.iter().filter(|op| op.key == u64::from(key)).count();
            let p = f64::from(key + 1).powf(-exponent) / whole;
            assert!(is_likely(hits, TIMES, p), "exponent {exponent}, key {key}: {hits} hits");
        }
        let (head, tail) = (|op: &&Op| op.key < 100, |op: &&Op| op.key >= 900);
        assert!(ops.iter().filter(head).count() > ops.iter().filter(tail).count());
    }
}

#[test]
fn zipf_of_the_largest_pool_reaches_far_and_not_beyond() {
    const COUNT: u64 = redmesh_api::workload::POOL_KEYS_MAX;
    for exponent in [f64::MIN_POSITIVE, 0.01, 0.5, 0.99, 1.0 - 1e-10, 1.0, 1.0 + 1e-10, 1.0 + 1e-8, 1.5, 10.0]
    {
        let ops = drawn(&pool(COUNT, Pick::Zipf { exponent }), 5, 20_000);
        assert!(ops.iter().all(|op| op.key < COUNT), "exponent {exponent}");
        let far = ops.iter().filter(|op| op.key >= COUNT / 2).count();
        // The chance of the upper half, by the integral of the law.
        let area = |to: f64| {
            if (exponent - 1.0f64).abs() < 1e-9 {
                to.ln()
            } else {
                (to.powf(1.0 - exponent) - 1.0) / (1.0 - exponent)
            }
        };
        let p = (area(COUNT as f64) - area(COUNT as f64 / 2.0)) / (1.0 + area(COUNT as f64));
        assert!(far as f64 <= 20_000.0 * p * 1.5 + 20.0, "exponent {exponent}: {far} in the upper half");
        assert!(far as f64 >= 20_000.0 * p * 0.8 - 20.0, "exponent {exponent}: {far} in the upper half");
    }
}

#[test]
fn verbs_and_sizes_are_as_frequent_as_their_weights() {
    const TIMES: u64 = 50_000;
    let mix = vec![(Verb::Get, 6), (Verb::Set, 3), (Verb::Mget, 0), (Verb::Expire, 1)];
    let value = ValueBytes::Weighted(vec![(10, 1), (20, 0), (30, 4)]);
    let workload = Workload { mix, value, ttl_s: Some(9), ..pool(100, Pick::Uniform) };
    assert_eq!(workload.check(), Ok(()));
    let ops = drawn(&workload, 1, TIMES);
    for (verb, weight) in &workload.mix {
        let hits = ops.iter().filter(|op| op.verb == *verb).count();
        assert!(is_likely(hits, TIMES, f64::from(*weight) / 10.0), "{verb:?}: {hits}");
    }
    let sets: Vec<_> = ops.iter().filter(|op| op.verb == Verb::Set).collect();
    for (bytes, weight) in [(10, 1.0), (20, 0.0), (30, 4.0)] {
        let hits = sets.iter().filter(|op| op.bytes == bytes).count();
        assert!(is_likely(hits, sets.len() as u64, weight / 5.0), "{bytes} bytes: {hits}");
    }
}

#[test]
fn the_largest_command_is_written_whole() {
    let workload = Workload {
        value: ValueBytes::Fixed(8000),
        mix: vec![(Verb::Hset, 1)],
        fields: 1000,
        ..pool(10, Pick::Uniform)
    };
    assert_eq!(workload.check(), Ok(()));
    let op = Source::new(&workload, 0).draw(0);
    let (uuid, mut out) = (Uuid::nil(), Vec::new());
    Source::new(&workload, 0).encode(&KeyPrefix::new(uuid), &op, &mut out);
    assert_eq!(words(&out), expected(&workload, uuid, &op).0);
}

#[test]
fn slots_match_the_specification() {
    // From the Redis Cluster specification: CRC16("123456789") = 0x31C3.
    assert_eq!(slot_of(b"123456789"), 0x31c3 % SLOTS);
    assert_eq!(slot_of(b"foo"), 12182);
    assert_eq!(crc16(b"123456789"), 0x31c3);
}

#[test]
fn worker_uuids_are_stable_and_differ_in_each_part() {
    let run = RunId(Uuid::from_u128(7));
    let base = worker_uuid(run, HostId(0xab), 1, 2);
    assert_eq!(base, Uuid::new_v5(&run.0, b"000000ab/1/2"));
    for other in [
        worker_uuid(RunId(Uuid::from_u128(8)), HostId(0xab), 1, 2),
        worker_uuid(run, HostId(0xac), 1, 2),
        worker_uuid(run, HostId(0xab), 2, 2),
        worker_uuid(run, HostId(0xab), 1, 3),
    ] {
        assert_ne!(base, other);
    }
}
