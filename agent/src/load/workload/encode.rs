//! Commands as servers read them (RESP, arrays of bulk strings), appended to a buffer;
//! nothing else is allocated.

use std::ops::Range;

use redmesh_api::workload::{Keys, ValueBytes, Verb, WIDTH_MAX, Workload};

use super::Op;
use super::keys::{Digits, KeyPrefix, PREFIX_BYTES, slot_of};

/// What precedes a command that follows an ASK redirection.
pub const ASKING: &[u8] = b"*1\r\n$6\r\nASKING\r\n";

impl KeyPrefix {
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

/// Appends `GET` of a counter key.
pub fn encode_get(prefix: &KeyPrefix, digits: &Digits, out: &mut Vec<u8>) {
    append_head(2, Verb::Get, out);
    append_len(b'$', PREFIX_BYTES + digits.len(), out);
    prefix.append_key(digits, out);
    out.extend_from_slice(b"\r\n");
}

/// Whether `value` is what a counter workload writes to this key: the key's text over
/// and over, cut anywhere behind its first byte.
pub fn is_value_of(key: &[u8], value: &[u8]) -> bool {
    !key.is_empty() && !value.is_empty() && value.chunks(key.len()).all(|piece| *piece == key[..piece.len()])
}

/// How a workload's operations are written.
#[derive(Debug)]
pub(super) struct Form {
    keys: KeyForm,
    /// Whether all commands are `SET <key> <key><key>` of counter keys.
    plain: bool,
    /// Whether a value has twice its key's size, instead of the operation's.
    key_twice: bool,
    ttl_s: Option<u32>,
    fields: u16,
    keys_per_command: u16,
}

#[derive(Debug)]
enum KeyForm {
    /// `<uuid>-<n>`
    Counter,
    /// `<name>:{<i>}`, beginning with this `<name>:{`.
    Pool(Box<[u8]>),
}

impl Form {
    pub fn new(workload: &Workload) -> Self {
        let key_twice = workload.value == ValueBytes::KeyTwice;
        let (keys, counter) = match workload.keys {
            Keys::Counter { .. } => (KeyForm::Counter, true),
            Keys::Pool { .. } => (KeyForm::Pool(format!("{}:{{", workload.name).into_bytes().into()), false),
        };
        Self {
            keys,
            plain: counter && key_twice && workload.ttl_s.is_none(),
            key_twice,
            ttl_s: workload.ttl_s,
            fields: workload.fields.clamp(1, WIDTH_MAX),
            keys_per_command: workload.keys_per_command.clamp(1, WIDTH_MAX),
        }
    }

    #[inline]
    pub fn slot(&self, prefix: &KeyPrefix, op: &Op) -> u16 {
        let digits = Digits::new(op.key);
        match &self.keys {
            KeyForm::Counter => prefix.slot(&digits),
            // Only what stands between the braces is hashed.
            KeyForm::Pool(_) => slot_of(digits.as_bytes()),
        }
    }

    #[inline]
    pub fn encode(&self, prefix: &KeyPrefix, op: &Op, out: &mut Vec<u8>) {
        let digits = Digits::new(op.key);
        if self.plain {
            return prefix.encode_set(&digits, out);
        }
        self.encode_any(prefix, op, &digits, out);
    }

    #[inline(never)]
    fn encode_any(&self, prefix: &KeyPrefix, op: &Op, digits: &Digits, out: &mut Vec<u8>) {
        let (fields, width) = (usize::from(self.fields), usize::from(self.keys_per_command));
        let words = match op.verb {
            Verb::Get | Verb::Hgetall => 2,
            Verb::Set if self.ttl_s.is_some() => 5,
            Verb::Set | Verb::Expire => 3,
            Verb::Hset => 2 + 2 * fields,
            Verb::Mset => 1 + 2 * width,
            Verb::Mget => 1 + width,
        };
        append_head(words, op.verb, out);
        let ttl = || Digits::new(u64::from(self.ttl_s.unwrap_or(1)));
        match op.verb {
            Verb::Get | Verb::Hgetall => {
                self.append_key(prefix, digits, None, out);
            }
            Verb::Expire => {
                self.append_key(prefix, digits, None, out);
                append_bulk(ttl().as_bytes(), out);
            }
            Verb::Set => {
                let key = self.append_key(prefix, digits, None, out);
                self.append_value(op, key, out);
                if self.ttl_s.is_some() {
                    append_bulk(b"EX", out);
                    append_bulk(ttl().as_bytes(), out);
                }
            }
            Verb::Hset => {
                let key = self.append_key(prefix, digits, None, out);
                for field in 0..self.fields {
                    let number = Digits::new(u64::from(field));
                    append_len(b'$', 1 + number.len(), out);
                    out.push(b'f');
                    out.extend_from_slice(number.as_bytes());
                    out.extend_from_slice(b"\r\n");
                    self.append_value(op, key.clone(), out);
                }
            }
            Verb::Mset | Verb::Mget => {
                for member in 0..self.keys_per_command {
                    let key = self.append_key(prefix, digits, Some(member), out);
                    if op.verb == Verb::Mset {
                        self.append_value(op, key, out);
                    }
                }
            }
        }
    }

    /// Returns where the key's text stands in `out`.
    fn append_key(
        &self,
        prefix: &KeyPrefix,
        digits: &Digits,
        member: Option<u16>,
        out: &mut Vec<u8>,
    ) -> Range<usize> {
        let start;
        match &self.keys {
            KeyForm::Counter => {
                append_len(b'$', PREFIX_BYTES + digits.len(), out);
                start = out.len();
                prefix.append_key(digits, out);
            }
            KeyForm::Pool(head) => {
                let member = member.map(|member| Digits::new(u64::from(member)));
                let member_bytes = member.as_ref().map_or(0, |member| 1 + member.len());
                append_len(b'$', head.len() + digits.len() + 1 + member_bytes, out);
                start = out.len();
                out.extend_from_slice(head);
                out.extend_from_slice(digits.as_bytes());
                out.push(b'}');
                if let Some(member) = &member {
                    out.push(b':');
                    out.extend_from_slice(member.as_bytes());
                }
            }
        }
        let end = out.len();
        out.extend_from_slice(b"\r\n");
        start..end
    }

    /// Appends the text at `key` in `out` over and over.
    fn append_value(&self, op: &Op, key: Range<usize>, out: &mut Vec<u8>) {
        let bytes = if self.key_twice { 2 * key.len() } else { op.bytes as usize };
        append_len(b'$', bytes, out);
        let start = out.len();
        out.extend_from_within(key.start..key.end.min(key.start + bytes));
        // What is there already is doubled: it always ends with the key's end.
        loop {
            let there = out.len() - start;
            if there >= bytes {
                break;
            }
            out.extend_from_within(start..start + there.min(bytes - there));
        }
        out.extend_from_slice(b"\r\n");
    }
}

/// A command's begin: how many words it has, and the first of them.
#[inline]
fn append_head(words: usize, verb: Verb, out: &mut Vec<u8>) {
    append_len(b'*', words, out);
    out.extend_from_slice(match verb {
        Verb::Set => b"$3\r\nSET\r\n",
        Verb::Get => b"$3\r\nGET\r\n",
        Verb::Hset => b"$4\r\nHSET\r\n",
        Verb::Hgetall => b"$7\r\nHGETALL\r\n",
        Verb::Expire => b"$6\r\nEXPIRE\r\n",
        Verb::Mset => b"$4\r\nMSET\r\n",
        Verb::Mget => b"$4\r\nMGET\r\n",
    });
}

#[inline]
fn append_bulk(text: &[u8], out: &mut Vec<u8>) {
    append_len(b'$', text.len(), out);
    out.extend_from_slice(text);
    out.extend_from_slice(b"\r\n");
}

#[inline]
fn append_len(kind: u8, len: usize, out: &mut Vec<u8>) {
    out.push(kind);
    out.extend_from_slice(Digits::new(len as u64).as_bytes());
    out.extend_from_slice(b"\r\n");
}
