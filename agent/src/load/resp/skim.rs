//! Reads a reply of any size without keeping it.

use redmesh_api::workload::OPERATION_BYTES_MAX;

use super::{DIGITS_MAX, Length, Number, OK, Shape, length, number};

/// Longest reply, bytes. Besides one command's values a hash can hold fields of an
/// earlier run, and what surrounds them.
const REPLY_BYTES_MAX: u64 = 4 * OPERATION_BYTES_MAX;

/// A kind, a sign, the digits and the line end.
const HEAD_BYTES_MAX: usize = 1 + 1 + DIGITS_MAX + 2;

/// Not a reply of a workload's commands.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Garbage;

/// What is left of a reply.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Skimmed {
    /// What kind of reply it was.
    pub shape: Shape,
    /// Elements of an array; 0 of anything else.
    pub elements: usize,
    /// How many of them are nothing.
    pub nulls: usize,
    /// Whether the reply as a whole is nothing.
    pub is_null: bool,
}

/// Reads one reply that is no error across any number of reads; then it is as new.
#[derive(Debug, Clone)]
pub struct Skim {
    /// Beginning of a head whose end has not come yet.
    head: [u8; HEAD_BYTES_MAX],
    held: u8,
    /// What the reply is; `None` until its own head was read.
    shape: Option<Shape>,
    elements: usize,
    nulls: usize,
    /// Bulk strings and integers still to come.
    items: usize,
    /// Of a bulk string, with its line end, still to come, bytes.
    body: usize,
    /// Consumed of this reply, bytes.
    consumed: u64,
}

/// What a head says.
enum Head {
    Ok,
    Int,
    Bulk(usize),
    Array(usize),
    NullBulk,
    NullArray,
}

impl Default for Skim {
    fn default() -> Self {
        Self::new()
    }
}

impl Skim {
    /// At the beginning of a reply.
    pub fn new() -> Self {
        Self {
            head: [0; HEAD_BYTES_MAX],
            held: 0,
            shape: None,
            elements: 0,
            nulls: 0,
            items: 1,
            body: 0,
            consumed: 0,
        }
    }

    /// Whether nothing of a reply was read yet.
    pub fn is_idle(&self) -> bool {
        self.consumed == 0
    }

    /// Reads on: how many bytes of `buf` belong to the reply, and what it was once it
    /// is complete (all of `buf` was used otherwise).
    ///
    /// # Errors
    /// It is no reply of a workload's commands, or beyond its bounds. What was read of it
    /// is forgotten.
    pub fn feed(&mut self, buf: &[u8]) -> Result<(usize, Option<Skimmed>), Garbage> {
        let read = self.read(buf);
        if !matches!(read, Ok((_, None))) {
            *self = Self::new();
        }
        read
    }

    fn read(&mut self, buf: &[u8]) -> Result<(usize, Option<Skimmed>), Garbage> {
        let mut at = 0;
        while self.items > 0 {
            if self.body > 0 {
                at += self.skip(&buf[at..])?;
                if self.body > 0 {
                    break;
                }
                self.items -= 1;
                continue;
            }
            let Some((head, used)) = self.take_head(&buf[at..])? else {
                at = buf.len();
                break;
            };
            at += used;
            self.begin(head)?;
        }
        self.consumed += at as u64;
        if self.consumed > REPLY_BYTES_MAX {
            return Err(Garbage);
        }
        let Some(shape) = self.shape.filter(|_| self.items == 0) else { return Ok((at, None)) };
        let skimmed =
            Skimmed { shape, elements: self.elements, nulls: self.nulls, is_null: shape == Shape::Null };
        Ok((at, Some(skimmed)))
    }

    /// Skips what `buf` has of a bulk string.
    fn skip(&mut self, buf: &[u8]) -> Result<usize, Garbage> {
        let used = buf.len().min(self.body);
        for (behind, end) in [(2, b'\r'), (1, b'\n')] {
            // Whether the body's last but one or last byte is among these.
            if self.body >= behind
                && let Some(byte) = buf[..used].get(self.body - behind)
                && *byte != end
            {
                return Err(Garbage);
            }
        }
        self.body -= used;
        Ok(used)
    }

    /// The head that begins `buf`, or whose beginning is held, and how much of `buf` it
    /// took; `None` if it goes on behind `buf`, all of which is held then.
    fn take_head(&mut self, buf: &[u8]) -> Result<Option<(Head, usize)>, Garbage> {
        let held = usize::from(self.held);
        if held == 0
            && let Some(found) = parse_head(buf)?
        {
            return Ok(Some(found));
        }
        let fresh = buf.len().min(HEAD_BYTES_MAX - held);
        self.head[held..held + fresh].copy_from_slice(&buf[..fresh]);
        match parse_head(&self.head[..held + fresh])? {
            Some((head, used)) => {
                self.held = 0;
                Ok(Some((head, used - held)))
            }
            // The longest head fits.
            None if fresh < buf.len() => Err(Garbage),
            None => {
                self.held = (held + fresh) as u8;
                Ok(None)
            }
        }
    }

    fn begin(&mut self, head: Head) -> Result<(), Garbage> {
        let is_element = self.shape.is_some();
        let shape = match head {
            Head::Ok | Head::Array(_) | Head::NullArray if is_element => return Err(Garbage),
            Head::Array(elements) => {
                self.elements = elements;
                self.items = elements;
                self.shape = Some(Shape::Array);
                return Ok(());
            }
            Head::Bulk(bytes) => {
                self.body = bytes + 2;
                self.shape.get_or_insert(Shape::Bulk);
                return Ok(());
            }
            Head::Ok => Shape::Ok,
            Head::Int => Shape::Int,
            Head::NullBulk | Head::NullArray => Shape::Null,
        };
        self.items -= 1;
        self.nulls += usize::from(is_element && shape == Shape::Null);
        self.shape.get_or_insert(shape);
        Ok(())
    }
}

fn parse_head(buf: &[u8]) -> Result<Option<(Head, usize)>, Garbage> {
    let Some(kind) = buf.first() else { return Ok(None) };
    let (head, used) = match kind {
        b'$' | b'*' => match length(&buf[1..]) {
            Length::Is(len, used) if *kind == b'$' => (Head::Bulk(len), used),
            Length::Is(len, used) => (Head::Array(len), used),
            Length::Null(used) if *kind == b'$' => (Head::NullBulk, used),
            Length::Null(used) => (Head::NullArray, used),
            Length::Incomplete => return Ok(None),
            Length::Garbage => return Err(Garbage),
        },
        b':' => match number(&buf[1..]) {
            Number::Is(_, used) => (Head::Int, used),
            Number::Incomplete => return Ok(None),
            Number::Garbage => return Err(Garbage),
        },
        _ if buf.starts_with(OK) => (Head::Ok, OK.len() - 1),
        _ if OK.starts_with(buf) => return Ok(None),
        _ => return Err(Garbage),
    };
    Ok(Some((head, 1 + used)))
}
