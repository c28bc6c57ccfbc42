//! Replies of a server to SET and ASKING, parsed in place.
//!
//! Only what these two commands can answer is understood: `+OK` or one error line.
//! Anything else means that the connection is out of step, and whoever reads it must
//! drop it: to guess would be to count a write wrongly.

use std::net::{IpAddr, SocketAddr};

use redmesh_api::level::SLOTS;

/// Longest error line, bytes; a longer one is garbage.
pub const LINE_BYTES_MAX: usize = 512;

/// What begins a buffer.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Parsed<'a> {
    /// The beginning of a reply, to be continued.
    Incomplete,
    /// `+OK`, which took so many bytes.
    Ok(usize),
    /// An error's text (without `-` and line end), which took so many bytes.
    Error(&'a [u8], usize),
    /// Not a reply of these commands.
    Garbage,
}

/// Parses the reply that begins `buf`.
#[inline]
pub fn parse(buf: &[u8]) -> Parsed<'_> {
    const OK: &[u8] = b"+OK\r\n";
    if buf.starts_with(OK) {
        return Parsed::Ok(OK.len());
    }
    match buf.first() {
        None => Parsed::Incomplete,
        Some(b'-') => parse_error(buf),
        Some(_) if OK.starts_with(buf) => Parsed::Incomplete,
        Some(_) => Parsed::Garbage,
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

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    /// Feeds `stream` in two pieces, the way a connection does: what is incomplete is
    /// kept and continued.
    fn feed(stream: &[u8], cut: usize) -> Vec<String> {
        let (mut seen, mut held) = (Vec::new(), Vec::new());
        for piece in [&stream[..cut], &stream[cut..]] {
            held.extend_from_slice(piece);
            let mut at = 0;
            loop {
                match parse(&held[at..]) {
                    Parsed::Incomplete => break,
                    Parsed::Ok(used) => {
                        seen.push("OK".into());
                        at += used;
                    }
                    Parsed::Error(text, used) => {
                        seen.push(String::from_utf8_lossy(text).into());
                        at += used;
                    }
                    Parsed::Garbage => {
                        seen.push("garbage".into());
                        return seen;
                    }
                }
            }
            held.drain(..at);
        }
        seen
    }

    proptest! {
        #[test]
        fn a_stream_reads_the_same_wherever_it_is_split(
            replies in proptest::collection::vec("OK|[A-Z]{2,9} [a-z0-9 :.]{0,40}", 0..12),
            cut: prop::sample::Index,
        ) {
            let stream: Vec<u8> = replies
                .iter()
                .flat_map(|r| match r.as_str() {
                    "OK" => b"+OK\r\n".to_vec(),
                    error => format!("-{error}\r\n").into_bytes(),
                })
                .collect();
            prop_assert_eq!(feed(&stream, cut.index(stream.len() + 1)), replies);
        }

        #[test]
        fn hostile_bytes_never_panic(bytes: Vec<u8>, lead in prop::sample::select(vec!["", "-", "-MOVED ", "+", "-ASK 1 "])) {
            let mut stream = lead.as_bytes().to_vec();
            stream.extend_from_slice(&bytes);
            feed(&stream, stream.len() / 2);
            classify(&stream);
            classify(stream.get(1..).unwrap_or_default());
        }
    }

    #[test]
    fn what_is_not_ours_is_garbage() {
        for bytes in [
            &b":1\r\n"[..],
            b"+OKAY\r\n",
            b"$-1\r\n",
            b"+OK\n",
            b"OK",
            b"-\n",
            b"-X\n",
            b"\r\n",
            b"+QUEUED\r\n",
        ] {
            assert_eq!(parse(bytes), Parsed::Garbage, "{bytes:?}");
        }
        let mut endless = vec![b'-'; LINE_BYTES_MAX - 1];
        assert_eq!(parse(&endless), Parsed::Incomplete);
        endless.push(b'x');
        assert_eq!(parse(&endless), Parsed::Garbage);
    }

    #[test]
    fn errors_are_told_apart() {
        let sender: SocketAddr = "10.0.0.9:7000".parse().expect("an address");
        let target = |line: &'static str| match classify(line.as_bytes()) {
            ErrorReply::Moved(to) | ErrorReply::Ask(to) => {
                to.addr(sender).map(|addr| (to.slot, addr.to_string()))
            }
            _ => None,
        };
        assert_eq!(target("MOVED 3999 127.0.0.1:6381"), Some((3999, "127.0.0.1:6381".into())));
        assert_eq!(target("ASK 0 ::1:6381"), Some((0, "[::1]:6381".into())));
        assert_eq!(target("MOVED 5 :6400"), Some((5, "10.0.0.9:6400".into())));
        assert_eq!(target("MOVED 5 ?:6400"), Some((5, "10.0.0.9:6400".into())));
        assert_eq!(target("MOVED 5 some.name:6400"), None);
        for bad in [
            "MOVED",
            "MOVED 16384 1.1.1.1:1",
            "MOVED x 1.1.1.1:1",
            "MOVED 1 1.1.1.1",
            "ASK 1 1.1.1.1:0",
            "MOVED 1 a:1 b",
        ] {
            assert_eq!(classify(bad.as_bytes()), ErrorReply::Fatal, "{bad}");
        }
        for retry in
            ["TRYAGAIN x", "CLUSTERDOWN The cluster is down", "LOADING", "READONLY x", "MASTERDOWN", "BUSY x"]
        {
            assert_eq!(classify(retry.as_bytes()), ErrorReply::Retry, "{retry}");
        }
        assert_eq!(classify(b"ERR max number of clients reached"), ErrorReply::Rejected);
        for fatal in ["OOM command not allowed", "NOAUTH x", "WRONGTYPE x", "ERR x", ""] {
            assert_eq!(classify(fatal.as_bytes()), ErrorReply::Fatal, "{fatal}");
        }
        assert_eq!((kind(b"OOM x"), kind(b""), kind(b"\xff\xfe x")), ("OOM", "?", "?"));
    }
}
