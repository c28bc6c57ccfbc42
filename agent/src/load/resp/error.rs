//! What an error line means for the operation that it answers.

use std::net::{IpAddr, SocketAddr};

use redmesh_api::level::SLOTS;

/// What an error line asks of the client. All but `Fatal` prove that the write was not
/// executed and may be sent again.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum ErrorReply<'a> {
    /// The slot lives at another server for good.
    Moved(Redirect<'a>),
    /// This key lives at another server while its slot is migrated.
    Ask(Redirect<'a>),
    /// Not now.
    Retry,
    /// The server turned the connection itself away before reading anything from it.
    Rejected,
    /// Refused for good.
    Fatal,
}

/// Target of a redirection.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Redirect<'a> {
    /// Which slot.
    pub slot: u16,
    /// Host as written: an IP address, a name, or nothing (the sender's own).
    pub host: &'a str,
    /// Data port.
    pub port: u16,
}

impl Redirect<'_> {
    /// The target's address, given who sent the redirection; `None` for a name, since
    /// nothing here may wait for a resolver.
    pub fn addr(&self, sender: SocketAddr) -> Option<SocketAddr> {
        let ip = match self.host {
            "" | "?" => sender.ip(),
            host => host.trim_matches(['[', ']']).parse::<IpAddr>().ok()?,
        };
        Some(SocketAddr::new(ip, self.port))
    }
}

/// Reads an error line. A redirection that can't be understood is `Fatal`.
pub fn classify(line: &[u8]) -> ErrorReply<'_> {
    match kind(line) {
        "MOVED" => redirect(line).map_or(ErrorReply::Fatal, ErrorReply::Moved),
        "ASK" => redirect(line).map_or(ErrorReply::Fatal, ErrorReply::Ask),
        "TRYAGAIN" | "CLUSTERDOWN" | "LOADING" | "READONLY" | "MASTERDOWN" | "BUSY" => ErrorReply::Retry,
        "ERR" if line.starts_with(b"ERR max number of clients") => ErrorReply::Rejected,
        _ => ErrorReply::Fatal,
    }
}

/// The first word of an error line, by which errors are told apart; `?` if it has none
/// that is printable and short.
pub fn kind(line: &[u8]) -> &str {
    const KIND_BYTES_MAX: usize = 32;
    let end = line.iter().position(|byte| *byte == b' ').unwrap_or(line.len());
    match std::str::from_utf8(&line[..end]) {
        Ok(word) if (1..=KIND_BYTES_MAX).contains(&end) && word.bytes().all(|b| b.is_ascii_graphic()) => word,
        _ => "?",
    }
}

fn redirect(line: &[u8]) -> Option<Redirect<'_>> {
    let mut words = std::str::from_utf8(line).ok()?.split(' ').skip(1);
    let (slot, target) = (words.next()?.parse().ok()?, words.next()?);
    // An IPv6 address has colons of its own.
    let (host, port) = target.rsplit_once(':')?;
    let port = port.parse().ok()?;
    (slot < SLOTS && port != 0 && words.next().is_none()).then_some(Redirect { slot, host, port })
}
