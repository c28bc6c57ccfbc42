//! Replies of a server (RESP2) to a workload's commands and to ASKING, parsed in place.
//!
//! Only what these commands can answer is understood: `+OK`, one error line, an
//! integer, a bulk string, or an array of the last two. Anything else means that the
//! connection is out of step, and whoever reads it must drop it: to guess would be to
//! count an operation wrongly.
//!
//! Replies come from outside: no length that one claims is believed beyond its bound,
//! and none makes room for anything. A reply too large for a buffer goes through
//! [`Skim`], which keeps nothing of it.

mod error;
mod skim;

use redmesh_api::workload::{OPERATION_BYTES_MAX, Verb};

pub use error::{ErrorReply, Redirect, classify, kind};
pub use skim::{Garbage, Skim, Skimmed};

/// Longest error line, bytes; a longer one is garbage.
pub const LINE_BYTES_MAX: usize = 512;

/// Digits of the longest number.
const DIGITS_MAX: usize = 20;

/// What begins a buffer.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Parsed<'a> {
    /// The beginning of a reply, to be continued.
    Incomplete,
    /// `+OK`, which took so many bytes.
    Ok(usize),
    /// An error's text (without `-` and line end), which took so many bytes.
    Error(&'a [u8], usize),
    /// Any other reply, which took so many bytes.
    Value(Value<'a>, usize),
    /// Not a reply of these commands.
    Garbage,
}

/// What a reply holds.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Value<'a> {
    /// A number.
    Int(i64),
    /// A string of bytes.
    Bulk(&'a [u8]),
    /// Nothing: there is no such key.
    Null,
    /// Several, of which only the number is told.
    Array {
        /// How many.
        len: usize,
        /// How many of them are nothing.
        nulls: usize,
    },
}

/// What kind of reply one is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Shape {
    /// `+OK`
    Ok,
    /// See [`Value::Int`].
    Int,
    /// See [`Value::Bulk`].
    Bulk,
    /// See [`Value::Null`].
    Null,
    /// See [`Value::Array`].
    Array,
}

impl Value<'_> {
    /// What kind it is.
    #[inline]
    pub fn shape(&self) -> Shape {
        match self {
            Self::Int(_) => Shape::Int,
            Self::Bulk(_) => Shape::Bulk,
            Self::Null => Shape::Null,
            Self::Array { .. } => Shape::Array,
        }
    }
}

/// Whether a command can get such a reply, besides an error; if not, the connection is
/// out of step.
#[inline]
pub fn fits(verb: Verb, shape: Shape) -> bool {
    match verb {
        Verb::Set | Verb::Mset => shape == Shape::Ok,
        Verb::Get => matches!(shape, Shape::Bulk | Shape::Null),
        Verb::Hset | Verb::Expire => shape == Shape::Int,
        Verb::Hgetall | Verb::Mget => shape == Shape::Array,
    }
}

const OK: &[u8] = b"+OK\r\n";

/// Parses the reply that begins `buf`.
#[inline]
pub fn parse(buf: &[u8]) -> Parsed<'_> {
    if buf.starts_with(OK) {
        return Parsed::Ok(OK.len());
    }
    parse_other(buf)
}

/// Apart, so that a row of `+OK` is read in a loop of a few instructions.
#[inline(never)]
fn parse_other(buf: &[u8]) -> Parsed<'_> {
    match buf.first() {
        None => Parsed::Incomplete,
        Some(b'$') => parse_bulk(buf),
        Some(b':') => match number(&buf[1..]) {
            Number::Is(value, used) => Parsed::Value(Value::Int(value), 1 + used),
            Number::Incomplete => Parsed::Incomplete,
            Number::Garbage => Parsed::Garbage,
        },
        Some(b'*') => parse_array(buf),
        Some(b'-') => parse_error(buf),
        Some(_) if OK.starts_with(buf) => Parsed::Incomplete,
        Some(_) => Parsed::Garbage,
    }
}

#[inline]
fn parse_bulk(buf: &[u8]) -> Parsed<'_> {
    match length(&buf[1..]) {
        Length::Is(len, used) => {
            let start = 1 + used;
            let end = start + len;
            match (buf.get(end), buf.get(end + 1)) {
                (Some(b'\r'), Some(b'\n')) => Parsed::Value(Value::Bulk(&buf[start..end]), end + 2),
                (None | Some(b'\r'), None) => Parsed::Incomplete,
                _ => Parsed::Garbage,
            }
        }
        Length::Null(used) => Parsed::Value(Value::Null, 1 + used),
        Length::Incomplete => Parsed::Incomplete,
        Length::Garbage => Parsed::Garbage,
    }
}

fn parse_array(buf: &[u8]) -> Parsed<'_> {
    match Skim::new().feed(buf) {
        Ok((used, Some(Skimmed { is_null: true, .. }))) => Parsed::Value(Value::Null, used),
        Ok((used, Some(Skimmed { elements, nulls, .. }))) => {
            Parsed::Value(Value::Array { len: elements, nulls }, used)
        }
        Ok((_, None)) => Parsed::Incomplete,
        Err(Garbage) => Parsed::Garbage,
    }
}

#[cold]
fn parse_error(buf: &[u8]) -> Parsed<'_> {
    let window = &buf[..buf.len().min(LINE_BYTES_MAX)];
    match window.iter().position(|byte| *byte == b'\n') {
        Some(end) if end >= 2 && window[end - 1] == b'\r' => Parsed::Error(&buf[1..end - 1], end + 1),
        Some(_) => Parsed::Garbage,
        None if buf.len() >= LINE_BYTES_MAX => Parsed::Garbage,
        None => Parsed::Incomplete,
    }
}

/// A number and its line end, behind the byte that tells a reply's kind.
enum Number {
    Is(i64, usize),
    Incomplete,
    Garbage,
}

#[inline]
fn number(buf: &[u8]) -> Number {
    let negative = buf.first() == Some(&b'-');
    let first = usize::from(negative);
    let (mut at, mut value) = (first, 0u64);
    loop {
        match buf.get(at) {
            Some(digit @ b'0'..=b'9') if at - first < DIGITS_MAX => {
                let Some(more) =
                    value.checked_mul(10).and_then(|value| value.checked_add(u64::from(digit - b'0')))
                else {
                    return Number::Garbage;
                };
                value = more;
                at += 1;
            }
            Some(b'\r') if at > first => break,
            Some(_) => return Number::Garbage,
            None => return Number::Incomplete,
        }
    }
    match buf.get(at + 1) {
        Some(b'\n') => {}
        Some(_) => return Number::Garbage,
        None => return Number::Incomplete,
    }
    let value = if negative { 0i64.checked_sub_unsigned(value) } else { i64::try_from(value).ok() };
    value.map_or(Number::Garbage, |value| Number::Is(value, at + 2))
}

/// Length of a bulk string or an array, within its bound.
enum Length {
    Is(usize, usize),
    Null(usize),
    Incomplete,
    Garbage,
}

#[inline]
fn length(buf: &[u8]) -> Length {
    match number(buf) {
        Number::Is(-1, used) => Length::Null(used),
        Number::Is(len @ 0.., used) if len as u64 <= OPERATION_BYTES_MAX => Length::Is(len as usize, used),
        Number::Is(..) | Number::Garbage => Length::Garbage,
        Number::Incomplete => Length::Incomplete,
    }
}

#[cfg(test)]
mod tests;
