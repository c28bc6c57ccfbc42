//! Asks a server whether it serves, over a short connection of its own.
//!
//! Plain RESP by hand: a client library would leave connections and reconnect logic
//! behind, and this needs three commands.

use std::io;
use std::net::SocketAddr;
use std::time::Duration;

use tokio::io::{AsyncBufReadExt, AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt, BufReader};
use tokio::net::TcpStream;

use crate::login::Login;
use crate::redis_tls::RedisTls;

/// For the whole conversation.
const PROBE_TIMEOUT: Duration = Duration::from_secs(2);

/// Bytes of one answer; `INFO server` has about 1 KB.
const ANSWER_BYTES_MAX: usize = 64 * 1024;

/// A server that serves.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Answer {
    pub(super) run_id: String,
    pub(super) note: Option<String>,
}

/// Asks the server at `addr`, which should be the process `pid`. Errors are words for
/// a status.
pub(super) async fn probe(
    addr: SocketAddr,
    pid: u32,
    clients_needed: u32,
    login: Option<&Login>,
    tls: Option<&RedisTls>,
) -> Result<Answer, String> {
    let talk = async {
        let lost = |error| format!("{addr} does not answer: {error}");
        let Some(tls) = tls else {
            let stream = TcpStream::connect(addr).await.map_err(lost)?;
            return talk_on(stream, addr, pid, clients_needed, login).await;
        };
        let stream = tls.connect(addr).await.map_err(|error| {
            format!("{addr} does not answer by TLS: {error} (one that was started without redis.tls has to be restarted)")
        })?;
        talk_on(stream, addr, pid, clients_needed, login).await
    };
    match tokio::time::timeout(PROBE_TIMEOUT, talk).await {
        Ok(result) => result,
        Err(_) => Err(format!("{addr} does not answer PING within {} ms", PROBE_TIMEOUT.as_millis())),
    }
}

/// The conversation, over whatever carries it.
async fn talk_on<S: AsyncRead + AsyncWrite + Unpin>(
    stream: S,
    addr: SocketAddr,
    pid: u32,
    clients_needed: u32,
    login: Option<&Login>,
) -> Result<Answer, String> {
    let lost = |e: io::Error| format!("{addr} does not answer: {e}");
    let mut stream = BufReader::new(stream);
    let says = |words: String| format!("{addr} is not ready; it says: {words}");
    if let Some(login) = login
        && let Reply::Error(words) = ask(&mut stream, &login.words()).await.map_err(lost)?
    {
        return Err(says(format!(
            "{words} (it was started under another password, or without one: restart it to give it the agent's)"
        )));
    }
    match ask(&mut stream, &["PING"]).await.map_err(lost)? {
        Reply::Text(text) if text == "PONG" => {}
        Reply::Error(words) if words.starts_with("NOAUTH") => {
            return Err(format!(
                "{addr} wants a password that the agent doesn't know; set redis.auth = \"on\" (the default), or requirepass in redis.directives"
            ));
        }
        Reply::Error(words) | Reply::Text(words) => return Err(says(words)),
        Reply::Array(_) => return Err(says("an array".into())),
    }
    let info = match ask(&mut stream, &["INFO", "server"]).await.map_err(lost)? {
        Reply::Text(text) => text,
        Reply::Error(words) => return Err(says(words)),
        Reply::Array(_) => return Err(says("an array".into())),
    };
    let field = |name: &str| info.lines().find_map(|line| line.strip_prefix(name)?.strip_prefix(':'));
    let run_id = field("run_id").ok_or_else(|| format!("{addr} does not tell its run_id"))?.trim().to_owned();
    let other = field("process_id").filter(|id| id.trim() != pid.to_string());
    if let Some(other) = other {
        return Err(format!(
            "{addr} is answered by process {}, not by the agent's own {pid}: two servers share the port; stop the other",
            other.trim()
        ));
    }
    // CONFIG may be renamed or forbidden: then there is nothing to compare.
    let note = match ask(&mut stream, &["CONFIG", "GET", "maxclients"]).await {
        Ok(Reply::Array(words)) => match words.last().and_then(|max| max.parse::<u32>().ok()) {
            Some(max) if max < clients_needed => Some(format!(
                "{addr} runs with maxclients {max}, but {clients_needed} are needed (two for each peer, and \
                 clients): raise maxclients in redis.directives, or the limit of open files (LimitNOFILE=) and restart it"
            )),
            _ => None,
        },
        _ => None,
    };
    Ok(Answer { run_id, note })
}

enum Reply {
    Text(String),
    Error(String),
    Array(Vec<String>),
}

async fn ask<S: AsyncRead + AsyncWrite + Unpin>(
    stream: &mut BufReader<S>,
    words: &[&str],
) -> io::Result<Reply> {
    let mut command = format!("*{}\r\n", words.len());
    for word in words {
        command.push_str(&format!("${}\r\n{word}\r\n", word.len()));
    }
    stream.get_mut().write_all(command.as_bytes()).await?;
    let line = read_line(stream).await?;
    if let Some(count) = line.strip_prefix('*') {
        const WORDS_MAX: usize = 16;
        let count =
            count.parse::<usize>().ok().filter(|count| *count <= WORDS_MAX).ok_or_else(|| odd(&line))?;
        let mut words = Vec::with_capacity(count);
        for _ in 0..count {
            let head = read_line(stream).await?;
            match read_rest(stream, &head).await? {
                Reply::Text(text) | Reply::Error(text) => words.push(text),
                Reply::Array(_) => return Err(odd(&head)),
            }
        }
        return Ok(Reply::Array(words));
    }
    read_rest(stream, &line).await
}

async fn read_rest<S: AsyncRead + AsyncWrite + Unpin>(
    stream: &mut BufReader<S>,
    head: &str,
) -> io::Result<Reply> {
    if let Some(text) = head.strip_prefix('+') {
        return Ok(Reply::Text(text.to_owned()));
    }
    if let Some(text) = head.strip_prefix('-') {
        return Ok(Reply::Error(text.to_owned()));
    }
    let len = head.strip_prefix('$').and_then(|len| len.parse::<usize>().ok());
    let len = len.filter(|len| *len <= ANSWER_BYTES_MAX).ok_or_else(|| odd(head))?;
    let mut bytes = vec![0; len + 2];
    stream.read_exact(&mut bytes).await?;
    bytes.truncate(len);
    Ok(Reply::Text(String::from_utf8_lossy(&bytes).into_owned()))
}

async fn read_line<S: AsyncRead + AsyncWrite + Unpin>(stream: &mut BufReader<S>) -> io::Result<String> {
    let mut line = Vec::new();
    let mut bounded = stream.take(ANSWER_BYTES_MAX as u64);
    bounded.read_until(b'\n', &mut line).await?;
    if line.pop() != Some(b'\n') {
        return Err(io::ErrorKind::UnexpectedEof.into());
    }
    Ok(String::from_utf8_lossy(&line).trim_end().to_owned())
}

fn odd(line: &str) -> io::Error {
    io::Error::new(
        io::ErrorKind::InvalidData,
        format!("{:?} is no answer of a Redis server", line.get(..40).unwrap_or(line)),
    )
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn fuzz_answers_to_a_probe() {
        let runtime = tokio::runtime::Builder::new_current_thread().build().expect("a runtime");
        let login = Login::default_user("secret");
        redmesh_tests::fuzz::fuzz("resp", vec![], |bytes| {
            let read = tokio::io::join(bytes, tokio::io::sink());
            let talk = talk_on(read, ([127, 0, 0, 1], 1).into(), 1, 5, Some(&login));
            match runtime.block_on(talk) {
                Ok(answer) => assert!(!answer.run_id.contains('\n')),
                Err(words) => assert!(!words.contains("secret"), "{words}"),
            }
        });
    }
}
