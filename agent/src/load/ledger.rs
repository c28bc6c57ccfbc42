//! The crash-proof account of one share's epoch: a small file that says at least as
//! many writes as were ever sent.
//!
//! One header and one slot per load thread, each 128 bytes with a checksum of its own.
//! A thread overwrites its slot in place once per loop turn, *before* it hands the
//! turn's new writes to the kernel; so when the process dies at any point, what was
//! issued and is not accounted for has an unknown fate and nothing was sent that the
//! file does not know. The file is synced once, when it is made: its slots survive `kill -9` of
//! the process, not the loss of the machine. A slot never straddles a page, so a killed process
//! leaves the old slot or the new one, never a mixture.

use std::fs::File;
use std::io;
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use crc::{CRC_64_XZ, Crc};
use redmesh_api::ids::{HostId, RunId};
use redmesh_api::limits::THREADS_PER_HOST_MAX;
use redmesh_api::run::Counts;
use uuid::Uuid;

use crate::files;

/// Suffix of ledger files.
pub const EXTENSION: &str = "ledger";

/// Files that [`list`] returns at most.
pub const FILES_MAX: usize = 10_000;

/// Bytes of the header and of each slot.
const RECORD_BYTES: usize = 128;

/// A record's checksum stands at its end.
const CHECKSUM_AT: usize = RECORD_BYTES - 8;

const MAGIC: [u8; 8] = *b"RMLEDGER";
const VERSION: u32 = 3;

static CHECKSUM: Crc<u64> = Crc::<u64>::new(&CRC_64_XZ);

/// A ledger that can't be written or read.
#[derive(Debug, thiserror::Error)]
pub enum LedgerError {
    /// A file operation.
    #[error("{}: {op} failed", .path.display())]
    Io {
        /// Which file.
        path: PathBuf,
        /// What was attempted.
        op: &'static str,
        /// Why.
        #[source]
        source: io::Error,
    },
    /// Not a ledger, or a damaged one.
    #[error("{}: {what}; move the file away if its run no longer matters", .path.display())]
    Corrupt {
        /// Which file.
        path: PathBuf,
        /// What is wrong with it.
        what: String,
    },
}

/// What a ledger file says.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Recovered {
    /// Of which run.
    pub run: RunId,
    /// Whose share.
    pub host: HostId,
    /// Which share of the run.
    pub share: u16,
    /// Of which life of its agent.
    pub epoch: u32,
    /// Sum of all threads, closed: what was issued and not accounted for is unknown.
    pub counts: Counts,
    /// Whether every thread had closed its account itself.
    pub closed: bool,
}

/// A ledger being written. Each thread owns one [`LedgerSlot`].
#[derive(Debug)]
pub struct Ledger {
    file: Arc<File>,
    path: Arc<Path>,
    threads: usize,
}

/// One thread's place in the file.
#[derive(Debug)]
pub struct LedgerSlot {
    file: Arc<File>,
    path: Arc<Path>,
    offset: u64,
    record: [u8; RECORD_BYTES],
}

impl Ledger {
    /// Creates the file (which must not exist: an epoch has one account) with all its
    /// slots, so that later writes need no space. It has its name once it is whole and on
    /// disk: a half one could never be recovered.
    pub fn create(
        path: &Path,
        run: RunId,
        host: HostId,
        share: u16,
        epoch: u32,
        threads: usize,
    ) -> Result<Self, LedgerError> {
        let error = |op| move |source| LedgerError::Io { path: path.into(), op, source };
        if path.try_exists().map_err(error("stat"))? {
            return Err(error("create")(io::ErrorKind::AlreadyExists.into()));
        }
        let mut bytes = vec![0; RECORD_BYTES * (1 + threads)];
        let header = &mut bytes[..RECORD_BYTES];
        header[..8].copy_from_slice(&MAGIC);
        header[8..12].copy_from_slice(&VERSION.to_le_bytes());
        header[12..16].copy_from_slice(&(threads as u32).to_le_bytes());
        header[16..32].copy_from_slice(run.0.as_bytes());
        header[32..36].copy_from_slice(&host.0.to_le_bytes());
        header[36..40].copy_from_slice(&epoch.to_le_bytes());
        header[40..42].copy_from_slice(&share.to_le_bytes());
        bytes.chunks_exact_mut(RECORD_BYTES).for_each(seal);
        files::replace(path, &bytes, files::PRIVATE).map_err(error("write"))?;
        let file = File::options().write(true).open(path).map_err(error("open"))?;
        Ok(Self { file: Arc::new(file), path: path.into(), threads })
    }

    /// The threads' slots, in order.
    pub fn slots(&self) -> impl Iterator<Item = LedgerSlot> + '_ {
        (1..=self.threads).map(|i| LedgerSlot {
            file: self.file.clone(),
            path: self.path.clone(),
            offset: (i * RECORD_BYTES) as u64,
            record: [0; RECORD_BYTES],
        })
    }
}

impl LedgerSlot {
    /// Overwrites the slot.
    pub fn write(&mut self, counts: &Counts, closed: bool) -> Result<(), LedgerError> {
        for (field, value) in self.record.chunks_exact_mut(8).zip(counts.to_words()) {
            field.copy_from_slice(&value.to_le_bytes());
        }
        self.record[8 * Counts::WORDS] = u8::from(closed);
        seal(&mut self.record);
        self.file.write_all_at(&self.record, self.offset).map_err(|source| LedgerError::Io {
            path: self.path.to_path_buf(),
            op: "write",
            source,
        })
    }
}

fn seal(record: &mut [u8]) {
    let checksum = CHECKSUM.checksum(&record[..CHECKSUM_AT]);
    record[CHECKSUM_AT..].copy_from_slice(&checksum.to_le_bytes());
}

fn is_sealed(record: &[u8]) -> bool {
    record[CHECKSUM_AT..] == CHECKSUM.checksum(&record[..CHECKSUM_AT]).to_le_bytes()
}

fn word(record: &[u8], index: usize) -> u64 {
    u64::from_le_bytes(record[8 * index..8 * index + 8].try_into().expect("a slice of 8"))
}

fn half(record: &[u8], at: usize) -> u32 {
    u32::from_le_bytes(record[at..at + 4].try_into().expect("a slice of 4"))
}

/// Reads a ledger that nobody writes any more.
pub fn recover(path: &Path) -> Result<Recovered, LedgerError> {
    let io_error = |op| move |source| LedgerError::Io { path: path.into(), op, source };
    let corrupt = |what: String| LedgerError::Corrupt { path: path.into(), what };
    let file = File::open(path).map_err(io_error("open"))?;
    let len = file.metadata().map_err(io_error("stat"))?.len();
    let len_max = (RECORD_BYTES * (1 + usize::from(THREADS_PER_HOST_MAX))) as u64;
    if len < RECORD_BYTES as u64 || len > len_max || len % RECORD_BYTES as u64 != 0 {
        return Err(corrupt(format!("{len} bytes is no ledger's size")));
    }
    let mut bytes = vec![0; len as usize];
    file.read_exact_at(&mut bytes, 0).map_err(io_error("read"))?;

    let (header, slots) = bytes.split_at(RECORD_BYTES);
    if header[..8] != MAGIC {
        return Err(corrupt("not a ledger".into()));
    }
    if half(header, 8) != VERSION {
        return Err(corrupt(format!("ledger of version {}, this is {VERSION}", half(header, 8))));
    }
    if !is_sealed(header) {
        return Err(corrupt("header's checksum does not match".into()));
    }
    let threads = half(header, 12) as usize;
    if slots.len() != threads * RECORD_BYTES {
        return Err(corrupt(format!("{} slots for {threads} threads", slots.len() / RECORD_BYTES)));
    }
    let run = RunId(Uuid::from_slice(&header[16..32]).expect("a slice of 16"));
    let mut recovered = Recovered {
        run,
        host: HostId(half(header, 32)),
        share: half(header, 40) as u16,
        epoch: half(header, 36),
        counts: Counts::default(),
        closed: true,
    };
    for (index, slot) in slots.chunks_exact(RECORD_BYTES).enumerate() {
        if !is_sealed(slot) {
            return Err(corrupt(format!("checksum of thread {index} does not match")));
        }
        let mut counts = Counts::from_words(std::array::from_fn(|i| word(slot, i)));
        let accounted = [counts.acked, counts.failed, counts.unknown]
            .into_iter()
            .try_fold(0u64, |sum, count| sum.checked_add(count))
            .filter(|sum| *sum <= counts.issued)
            .ok_or_else(|| corrupt(format!("thread {index} accounts for more than it issued")))?;
        let open = counts.issued - accounted;
        let closed = slot[8 * Counts::WORDS] == 1;
        if closed && open > 0 {
            return Err(corrupt(format!("thread {index} is closed with {open} writes open")));
        }
        counts.unknown += open;
        recovered.closed &= closed;
        recovered.counts = checked_sum(recovered.counts, counts)
            .ok_or_else(|| corrupt("counts add up to more than 2^64".into()))?;
    }
    Ok(recovered)
}

fn checked_sum(a: Counts, b: Counts) -> Option<Counts> {
    let (wa, wb) = (a.to_words(), b.to_words());
    wa.iter().zip(&wb).all(|(x, y)| x.checked_add(*y).is_some()).then(|| a.plus(b))
}

/// The ledger files in `dir`, sorted; none if there is no such directory. At most
/// [`FILES_MAX`].
pub fn list(dir: &Path) -> Result<Vec<PathBuf>, LedgerError> {
    let error = |source| LedgerError::Io { path: dir.into(), op: "list", source };
    let entries = match std::fs::read_dir(dir) {
        Ok(entries) => entries,
        Err(e) if e.kind() == io::ErrorKind::NotFound => return Ok(Vec::new()),
        Err(e) => return Err(error(e)),
    };
    let mut files = Vec::new();
    for entry in entries {
        let path = entry.map_err(error)?.path();
        if path.extension().is_some_and(|ext| ext == EXTENSION) && files.len() < FILES_MAX {
            files.push(path);
        }
    }
    files.sort();
    Ok(files)
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn counts(issued: u64, acked: u64) -> Counts {
        Counts { issued, acked, moved: 3, cpu_us: 5, active_us: 7, ..Counts::default() }
    }

    fn ledger(dir: &Path) -> (PathBuf, Ledger) {
        let path = super::super::ledger_path(dir, 4);
        let ledger = Ledger::create(&path, RunId(Uuid::from_u128(9)), HostId(3), 6, 4, 2).expect("creates");
        (path, ledger)
    }

    #[test]
    fn a_ledger_that_was_never_whole_is_none_and_an_epoch_has_one_account() {
        let dir = tempfile::tempdir().expect("a directory");
        let unfinished = super::super::ledger_path(dir.path(), 4).with_extension("ledger.new");
        std::fs::write(&unfinished, "half of a").expect("writes");
        assert_eq!(list(dir.path()).expect("lists"), Vec::<PathBuf>::new());
        let (path, _) = ledger(dir.path());
        assert_eq!(list(dir.path()).expect("lists"), std::slice::from_ref(&path));
        assert!(!unfinished.exists());
        let again = Ledger::create(&path, RunId(Uuid::from_u128(9)), HostId(3), 6, 4, 2);
        assert!(matches!(again, Err(LedgerError::Io { op: "create", .. })), "{again:?}");
    }

    #[test]
    fn what_was_in_flight_at_a_crash_is_unknown() {
        let dir = tempfile::tempdir().expect("a directory");
        let (path, ledger) = ledger(dir.path());
        let fresh = recover(&path).expect("reads");
        assert_eq!((fresh.counts, fresh.closed), (Counts::default(), false));

        let mut slots: Vec<_> = ledger.slots().collect();
        slots[0].write(&counts(100, 90), false).expect("writes");
        slots[1].write(&counts(50, 50), true).expect("writes");
        let seen = recover(&path).expect("reads");
        assert_eq!(
            (seen.run, seen.host, seen.share, seen.epoch),
            (RunId(Uuid::from_u128(9)), HostId(3), 6, 4)
        );
        assert_eq!((seen.counts.issued, seen.counts.acked, seen.counts.unknown), (150, 140, 10));
        assert_eq!((seen.counts.moved, seen.counts.cpu_us, seen.counts.active_us), (6, 10, 7));
        assert!(!seen.closed);

        slots[0].write(&counts(100, 100), true).expect("writes");
        let closed = recover(&path).expect("reads");
        assert!(closed.closed && closed.counts.unknown == 0);
        assert_eq!(list(dir.path()).expect("lists"), [path]);
    }

    #[test]
    fn an_epoch_has_one_account() {
        let dir = tempfile::tempdir().expect("a directory");
        let (path, _ledger) = ledger(dir.path());
        let again = Ledger::create(&path, RunId(Uuid::from_u128(9)), HostId(3), 6, 4, 2);
        assert!(matches!(again, Err(LedgerError::Io { op: "create", .. })));
        assert!(list(&dir.path().join("absent")).expect("lists").is_empty());
    }

    #[test]
    fn every_truncation_is_an_error() {
        let dir = tempfile::tempdir().expect("a directory");
        let (path, ledger) = ledger(dir.path());
        ledger.slots().for_each(|mut slot| slot.write(&counts(9, 9), true).expect("writes"));
        let whole = std::fs::read(&path).expect("reads");
        for len in 0..whole.len() {
            std::fs::write(&path, &whole[..len]).expect("writes");
            assert!(matches!(recover(&path), Err(LedgerError::Corrupt { .. })), "{len} bytes");
        }
        assert!(recover(&dir.path().join("absent")).is_err());
    }

    #[test]
    fn impossible_accounts_are_an_error() {
        let dir = tempfile::tempdir().expect("a directory");
        let (path, ledger) = ledger(dir.path());
        let mut slot = ledger.slots().next().expect("a slot");
        for (bad, closed) in [(counts(1, 2), false), (counts(2, 1), true)] {
            slot.write(&bad, closed).expect("writes");
            assert!(matches!(recover(&path), Err(LedgerError::Corrupt { .. })), "{bad:?}");
        }
        let overflow = Counts { failed: u64::MAX, ..counts(u64::MAX, 1) };
        slot.write(&overflow, false).expect("writes");
        assert!(recover(&path).is_err());
    }

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(64))]
        #[test]
        fn a_flipped_bit_or_foreign_bytes_are_an_error(at: prop::sample::Index, bit in 0u8..8, noise: Vec<u8>) {
            let dir = tempfile::tempdir().expect("a directory");
            let (path, ledger) = ledger(dir.path());
            ledger.slots().for_each(|mut slot| slot.write(&counts(9, 9), true).expect("writes"));
            let mut bytes = std::fs::read(&path).expect("reads");
            bytes[at.index(3 * RECORD_BYTES)] ^= 1 << bit;
            std::fs::write(&path, &bytes).expect("writes");
            prop_assert!(recover(&path).is_err());
            std::fs::write(&path, &noise).expect("writes");
            prop_assert!(recover(&path).is_err());
        }
    }
}
