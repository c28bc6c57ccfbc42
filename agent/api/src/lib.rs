//! What crosses the wire of a redmesh, and the two things that both ends must agree
//! upon besides: the codec and TLS.
//!
//! ctl depends on this crate and never on the agent. Nothing here opens a socket or
//! reads a clock; the types hold no behaviour beyond what follows from them alone.

#![deny(missing_docs)]

pub mod codec;
pub mod control;
pub mod frames;
mod hex;
pub mod histogram;
pub mod ids;
pub mod issue;
pub mod join;
pub mod level;
pub mod limits;
pub mod preflight;
pub mod run;
pub mod secret;
pub mod tls;
pub mod workload;

/// An error and all its sources in one line, printed where the error is handled. Our
/// errors never repeat their source; of others that do, the repetition is left out.
pub fn error_chain(error: &dyn std::error::Error) -> String {
    let mut words = error.to_string();
    let mut source = error.source();
    while let Some(inner) = source {
        let text = inner.to_string();
        if !words.ends_with(&text) {
            words.push_str(": ");
            words.push_str(&text);
        }
        source = inner.source();
    }
    words
}

/// Bytes in the unit that suits them: `3.2 GiB`, `12 MiB`, `208 KiB`.
pub fn bytes(n: u64) -> String {
    match n {
        n if n >= 1 << 30 => format!("{:.1} GiB", n as f64 / f64::from(1 << 30)),
        n if n >= 1 << 20 => format!("{:.0} MiB", n as f64 / f64::from(1 << 20)),
        n => format!("{:.0} KiB", n as f64 / 1024.0),
    }
}

/// A number as people read it: `1234567` is `1,234,567`.
pub fn thousands(number: u64) -> String {
    let digits = number.to_string();
    let mut text = String::with_capacity(digits.len() + digits.len() / 3);
    for (at, digit) in digits.chars().enumerate() {
        if at > 0 && (digits.len() - at).is_multiple_of(3) {
            text.push(',');
        }
        text.push(digit);
    }
    text
}
