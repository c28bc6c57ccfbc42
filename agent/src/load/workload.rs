//! The built-in workload `uuid-counter`: worker w writes `SET "<uuid>-<n>" "<key><key>"`
//! for n = 0, 1, 2, …, where `<uuid>` is its own. No key is ever written twice, so the
//! number of keys is the number of executed writes.
//!
//! A worker's UUID is derived, not drawn, so that anyone can reconstruct which keys a
//! run has written. Encoding is pure and appends to a buffer; it never allocates beyond
//! that buffer's growth.

use crc::{CRC_16_XMODEM, Crc};
use redmesh_api::ids::{HostId, RunId};
use redmesh_api::level::SLOTS;
use uuid::Uuid;

/// Bytes of `<uuid>-`.
pub const PREFIX_BYTES: usize = 37;

/// Longest encoded command, bytes: the largest n has 20 digits.
pub const COMMAND_BYTES_MAX: usize = 13 + 5 + (PREFIX_BYTES + 20 + 2) + 6 + 2 * (PREFIX_BYTES + 20) + 2;

/// What precedes a SET that follows an ASK redirection.
pub const ASKING: &[u8] = b"*1\r\n$6\r\nASKING\r\n";

/// Redis Cluster's key hash (CRC16/XMODEM), from the cluster specification.
static CRC16: Crc<u16> = Crc::<u16>::new(&CRC_16_XMODEM);

/// UUID v5 in the run's namespace of the text `<host hex>/<epoch>/<worker>`, where
/// `worker` counts over the whole run.
pub fn worker_uuid(run: RunId, host: HostId, epoch: u32, worker: u32) -> Uuid {
    Uuid::new_v5(&run.0, format!("{host}/{epoch}/{worker}").as_bytes())
}

/// Slot of a key without a hash tag.
pub fn slot_of(key: &[u8]) -> u16 {
    CRC16.checksum(key) % SLOTS
}

/// The constant part of one worker's keys, with its hash carried so far.
#[derive(Debug, Clone)]
pub struct KeyPrefix {
    text: [u8; PREFIX_BYTES],
    crc: u16,
}

/// A key's number as decimal digits.
#[derive(Debug, Clone, Copy)]
pub struct Digits {
    buf: [u8; 20],
    start: u8,
}

impl Digits {
    /// Of `n`.
    #[inline]
    pub fn new(mut n: u64) -> Self {
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

    /// Appends the RESP form of `SET <key> <key><key>`.
    #[inline]
    pub fn encode_set(&self, digits: &Digits, out: &mut Vec<u8>) {
        let digits = digits.as_bytes();
        let key_len = PREFIX_BYTES + digits.len();
        // Lengths: a key has 38..=57 bytes, a value 76..=114.
        let mut head = *b"*3\r\n$3\r\nSET\r\n$00\r\n";
        head[14] = b'0' + (key_len / 10) as u8;
        head[15] = b'0' + (key_len % 10) as u8;
        out.extend_from_slice(&head);
        out.extend_from_slice(&self.text);
        out.extend_from_slice(digits);
        let value_len = 2 * key_len;
        if value_len < 100 {
            let mut middle = *b"\r\n$00\r\n";
            middle[3] = b'0' + (value_len / 10) as u8;
            middle[4] = b'0' + (value_len % 10) as u8;
            out.extend_from_slice(&middle);
        } else {
            let mut middle = *b"\r\n$100\r\n";
            middle[4] = b'0' + (value_len / 10 % 10) as u8;
            middle[5] = b'0' + (value_len % 10) as u8;
            out.extend_from_slice(&middle);
        }
        out.extend_from_slice(&self.text);
        out.extend_from_slice(digits);
        out.extend_from_slice(&self.text);
        out.extend_from_slice(digits);
        out.extend_from_slice(b"\r\n");
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn reference(uuid: Uuid, n: u64) -> (u16, Vec<u8>) {
        let key = format!("{uuid}-{n}");
        let value = format!("{key}{key}");
        let command =
            format!("*3\r\n$3\r\nSET\r\n${}\r\n{key}\r\n${}\r\n{value}\r\n", key.len(), value.len());
        (slot_of(key.as_bytes()), command.into_bytes())
    }

    proptest! {
        #[test]
        fn encoding_and_slot_are_those_of_the_plain_text(bytes: [u8; 16], n: u64, shift in 0u32..64) {
            let (uuid, n) = (Uuid::from_bytes(bytes), n >> shift);
            let prefix = KeyPrefix::new(uuid);
            let digits = Digits::new(n);
            let (slot, command) = reference(uuid, n);
            prop_assert_eq!(prefix.slot(&digits), slot);
            let mut out = Vec::new();
            prefix.encode_set(&digits, &mut out);
            prop_assert!(out.len() <= COMMAND_BYTES_MAX);
            prop_assert_eq!(out, command);
        }
    }

    #[test]
    fn longest_command_is_within_its_bound() {
        let mut out = Vec::new();
        KeyPrefix::new(Uuid::nil()).encode_set(&Digits::new(u64::MAX), &mut out);
        assert_eq!(out, reference(Uuid::nil(), u64::MAX).1);
        assert!(out.len() <= COMMAND_BYTES_MAX);
    }

    #[test]
    fn slots_match_the_specification() {
        // From the Redis Cluster specification: CRC16("123456789") = 0x31C3.
        assert_eq!(slot_of(b"123456789"), 0x31c3 % SLOTS);
        assert_eq!(slot_of(b"foo"), 12182);
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
}
