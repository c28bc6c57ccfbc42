//! One question to a server, over a connection of its own.

use std::io::{BufRead as _, BufReader, Error, ErrorKind, Read as _, Write as _};
use std::net::{SocketAddr, TcpStream};
use std::time::Duration;

use anyhow::{Context as _, bail};

/// Bytes of one answer; `CLUSTER NODES` of 1000 instances has 110 KB.
const ANSWER_BYTES_MAX: u64 = 16 << 20;

/// One inline command; its reply. A server that says nothing for `patience` is given up.
pub fn ask(addr: SocketAddr, command: &str, patience: Duration) -> anyhow::Result<String> {
    let talk = || -> std::io::Result<String> {
        let mut stream = TcpStream::connect_timeout(&addr, patience)?;
        stream.set_read_timeout(Some(patience))?;
        stream.write_all(format!("{command}\r\n").as_bytes())?;
        let mut reader = BufReader::new(stream);
        let mut line = String::new();
        if (&mut reader).take(ANSWER_BYTES_MAX).read_line(&mut line)? == 0 {
            return Err(Error::from(ErrorKind::UnexpectedEof));
        }
        match line.trim_end().strip_prefix('$').and_then(|len| len.parse::<u64>().ok()) {
            Some(len) => {
                let mut text = String::new();
                reader.take(len.min(ANSWER_BYTES_MAX)).read_to_string(&mut text)?;
                Ok(text)
            }
            None => Ok(line),
        }
    };
    let reply = talk().with_context(|| format!("{addr}: {command}"))?;
    match reply.strip_prefix('-') {
        Some(error) => bail!("{addr}: {command}: {error}"),
        None => Ok(reply),
    }
}
