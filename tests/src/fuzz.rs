//! Parsers of outside bytes under bytes that nobody meant to send.
//!
//! A target is called with what stands in `tests/corpus/<name>/`, as it is and then
//! changed at random: bits, bytes, lengths, pieces of other files. It must come back,
//! whatever it says. This is not guided by coverage, which needs a nightly toolchain; it
//! runs wherever the tests do, a bounded number of cases each, or for
//! `FUZZ_SECONDS` a target (`make fuzz`). The seed is printed when a case fails,
//! and `FUZZ_SEED` begins with it again. A case that failed belongs into the
//! corpus. (`REDMESH_…` variables would be the agents' configuration.)

use std::panic::{AssertUnwindSafe, catch_unwind, resume_unwind};
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

/// Cases of a target where no time is given.
const CASES: u64 = 2_000;

/// Changes that one case makes, at most.
const CHANGES_MAX: u64 = 8;

/// Longest case, bytes.
const CASE_BYTES_MAX: usize = 64 * 1024;

/// Of a case that failed, shown.
const SHOWN_BYTES_MAX: usize = 4096;

/// Bytes and lengths that parsers like to trip over.
const PIECES: &[&[u8]] = &[
    b"",
    b"\0",
    b"\r\n",
    b"-1",
    b"0",
    b"18446744073709551616",
    b"9223372036854775807",
    b"4294967295",
    b"\xff\xff\xff\xff\xff\xff\xff\xff\xff",
    b"\xfc\xff\xff\xff\xff",
    b"\xfd\xff\xff\xff\xff\xff\xff\xff\xff",
    b"\xc3\x28",
    "é".as_bytes(),
    b"$",
    b"*",
    b"[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[",
    b"nan",
    b"1e999",
    b",",
    b":",
    b"\"",
    b"\\",
];

/// SplitMix64 (Steele, Lea, Flood, 2014): small, seeded, and all that is needed here.
#[derive(Debug, Clone)]
struct Random(u64);

impl Random {
    fn next(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut z = self.0;
        z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        z ^ (z >> 31)
    }

    fn below(&mut self, bound: usize) -> usize {
        (self.next() % bound.max(1) as u64) as usize
    }
}

/// Directory of a parser's corpus.
pub fn corpus_dir(name: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("corpus").join(name)
}

/// Calls `target` with the corpus called `name` and `more` seeds, then with cases made
/// of them.
///
/// # Panics
/// When the target does, having said by which seed and which bytes; and when there is no
/// seed at all.
pub fn fuzz(name: &str, more: Vec<Vec<u8>>, mut target: impl FnMut(&[u8])) {
    let mut seeds = more;
    if let Ok(entries) = std::fs::read_dir(corpus_dir(name)) {
        let mut paths: Vec<_> = entries.flatten().map(|entry| entry.path()).collect();
        paths.sort();
        seeds.extend(paths.iter().map(|path| std::fs::read(path).expect("a corpus can be read")));
    }
    assert!(!seeds.is_empty(), "{name}: no seeds in {}", corpus_dir(name).display());
    let number = |name| std::env::var(name).ok().and_then(|text| text.parse::<u64>().ok());
    let seed = number("FUZZ_SEED").unwrap_or_else(|| {
        SystemTime::now().duration_since(UNIX_EPOCH).map_or(1, |since| since.as_nanos() as u64)
    });
    let end = number("FUZZ_SECONDS").map(|s| Instant::now() + Duration::from_secs(s));
    for bytes in &seeds {
        call(name, seed, bytes, &mut target);
    }
    let mut random = Random(seed);
    let mut cases = 0;
    while end.map_or(cases < CASES, |end| Instant::now() < end) {
        let case = changed(&seeds, &mut random);
        call(name, seed, &case, &mut target);
        cases += 1;
    }
}

fn call(name: &str, seed: u64, bytes: &[u8], target: &mut impl FnMut(&[u8])) {
    if let Err(panic) = catch_unwind(AssertUnwindSafe(|| target(bytes))) {
        let words = format!(
            "{name}: failed; FUZZ_SEED={seed} begins with it again; case of {} bytes: {}\n",
            bytes.len(),
            bytes[..bytes.len().min(SHOWN_BYTES_MAX)].escape_ascii()
        );
        let _ = std::io::Write::write_all(&mut std::io::stderr(), words.as_bytes());
        resume_unwind(panic);
    }
}

fn changed(seeds: &[Vec<u8>], random: &mut Random) -> Vec<u8> {
    let mut case = seeds[random.below(seeds.len())].clone();
    for _ in 0..=random.next() % CHANGES_MAX {
        let at = random.below(case.len() + 1);
        let end = at + random.below((case.len() - at).min(64) + 1);
        match random.below(8) {
            0 if at < case.len() => case[at] ^= 1 << random.below(8),
            1 if at < case.len() => case[at] = random.next() as u8,
            2 => drop(case.splice(at..end, [])),
            3 => {
                let piece = case[at..end].to_vec();
                let to = random.below(case.len() + 1);
                case.splice(to..to, piece);
            }
            4 => {
                let other = &seeds[random.below(seeds.len())];
                let from = random.below(other.len() + 1);
                let to = from + random.below((other.len() - from).min(256) + 1);
                case.splice(at..end, other[from..to].iter().copied());
            }
            5 => case.truncate(at),
            6 => drop(case.splice(at..at, PIECES[random.below(PIECES.len())].iter().copied())),
            _ => drop(case.splice(at..end, PIECES[random.below(PIECES.len())].iter().copied())),
        }
        case.truncate(CASE_BYTES_MAX);
    }
    case
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn one_seed_gives_the_same_cases_and_they_differ_from_the_corpus() {
        let seeds = vec![b"hello, world".to_vec(), b"*1\r\n$1\r\na\r\n".to_vec()];
        let cases = |seed| {
            let mut random = Random(seed);
            (0..1000).map(|_| changed(&seeds, &mut random)).collect::<Vec<_>>()
        };
        assert_eq!(cases(7), cases(7));
        assert_ne!(cases(7), cases(8));
        let kept = cases(7).iter().filter(|case| seeds.contains(case)).count();
        assert!(kept < 100, "{kept} of 1000 cases are no cases");
    }

    #[test]
    fn a_target_that_fails_on_a_change_is_found() {
        let failed = catch_unwind(|| {
            fuzz("none", vec![b"aaaaaaaa".to_vec()], |bytes| assert!(!bytes.contains(&b'$')));
        });
        assert!(failed.is_err());
    }
}
