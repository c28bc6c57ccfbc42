//! Keys: their text and the slots that they hash to.

use crc::{CRC_16_XMODEM, Crc};
use redmesh_api::ids::{HostId, RunId};
use redmesh_api::level::SLOTS;
use uuid::Uuid;

/// Bytes of `<uuid>-`.
pub const PREFIX_BYTES: usize = 37;

/// Redis Cluster's key hash (CRC16/XMODEM), from the cluster specification.
static CRC16: Crc<u16> = Crc::<u16>::new(&CRC_16_XMODEM);

/// UUID v5 in the run's namespace of the text `<host hex>/<epoch>/<worker>`, where
/// `worker` counts over the whole run.
pub fn worker_uuid(run: RunId, host: HostId, epoch: u32, worker: u32) -> Uuid {
    Uuid::new_v5(&run.0, format!("{host}/{epoch}/{worker}").as_bytes())
}

/// Slot of a key without a hash tag, or of a hash tag.
#[inline]
pub fn slot_of(key: &[u8]) -> u16 {
    CRC16.checksum(key) % SLOTS
}

/// A number as decimal digits.
#[derive(Debug, Clone, Copy)]
pub struct Digits {
    buf: [u8; 20],
    start: u8,
}

impl Digits {
    /// Of `n`.
    #[inline]
    pub fn new(n: u64) -> Self {
        if n < 100_000_000 { Self::short(n as u32) } else { Self::long(n) }
    }

    /// Of at most eight digits, all at once: split into four and four, those into two and
    /// two, and those into one and one, each half in a lane of its own. Such numbers are
    /// most of those that workers count to.
    #[inline]
    fn short(n: u32) -> Self {
        let fours = u64::from(n / 10_000) | u64::from(n % 10_000) << 32;
        // Divides each lane by 100 (exact below 10,000), then by 10 (exact below 100).
        let hundreds = ((fours * 10_486) >> 20) & 0x0000_007f_0000_007f;
        let twos = hundreds | (fours - 100 * hundreds) << 16;
        let tens = ((twos * 103) >> 10) & 0x000f_000f_000f_000f;
        let ones = tens | (twos - 10 * tens) << 8;
        // The first digit is the lowest byte; the last one stays even if it is 0.
        let leading_zeros = (ones.trailing_zeros() / 8).min(7);
        let mut buf = [0; 20];
        buf[12..].copy_from_slice(&(ones | 0x3030_3030_3030_3030).to_le_bytes());
        Self { buf, start: 12 + leading_zeros as u8 }
    }

    fn long(mut n: u64) -> Self {
        let mut buf = [0; 20];
        let mut start = buf.len();
        loop {
            start -= 1;
            buf[start] = b'0' + (n % 10) as u8;
            n /= 10;
            if n == 0 {
                return Self { buf, start: start as u8 };
            }
        }
    }

    /// As text.
    #[inline]
    pub fn as_bytes(&self) -> &[u8] {
        &self.buf[usize::from(self.start)..]
    }

    /// How many.
    #[inline]
    pub(super) fn len(&self) -> usize {
        self.buf.len() - usize::from(self.start)
    }
}

/// The constant part of one worker's counter keys, with its hash carried so far.
#[derive(Debug, Clone)]
pub struct KeyPrefix {
    pub(super) text: [u8; PREFIX_BYTES],
    crc: u16,
}

impl KeyPrefix {
    /// Of the worker with this UUID.
    pub fn new(uuid: Uuid) -> Self {
        let mut text = [b'-'; PREFIX_BYTES];
        uuid.hyphenated().encode_lower(&mut text);
        Self { text, crc: CRC16.checksum(&text) }
    }

    /// Slot of the key `<uuid>-<digits>`: only the digits are hashed.
    #[inline]
    pub fn slot(&self, digits: &Digits) -> u16 {
        let mut digest = CRC16.digest_with_initial(self.crc);
        digest.update(digits.as_bytes());
        digest.finalize() % SLOTS
    }

    /// Appends the key `<uuid>-<digits>` itself.
    #[inline]
    pub fn append_key(&self, digits: &Digits, out: &mut Vec<u8>) {
        out.extend_from_slice(&self.text);
        out.extend_from_slice(digits.as_bytes());
    }
}
