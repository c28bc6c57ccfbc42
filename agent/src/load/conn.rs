//! One load thread's connection to one server: bytes to send, what is owed for them,
//! and what waits for the connection to open.
//!
//! It knows for every write whether any of its bytes was handed to the kernel (with TLS to
//! the session, see `stream`); that alone decides between *unknown* and *may be sent again*
//! when the connection is lost. It takes no decision itself: `dispatch` does.

use std::collections::VecDeque;
use std::io::{self, ErrorKind};
use std::net::SocketAddr;

use mio::{Registry, Token};

use super::resp::Skim;
use super::stream::{Got, Stream};
use crate::redis_tls::RedisTls;

/// First wait before a lost server is dialled again, microseconds; doubles each time.
const RECONNECT_MIN_US: u64 = 20_000;

/// Longest such wait, microseconds.
const RECONNECT_MAX_US: u64 = 1_000_000;

/// An idle connection keeps this much of its send buffer, bytes.
const OUT_KEPT_BYTES: usize = 256 * 1024;

/// What the next reply answers.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Expect {
    /// This lane's command.
    Lane(u32),
    /// An ASKING; the command's own reply follows.
    Asking,
    /// The AUTH that begins a connection; what follows gets replies of its own.
    Auth,
}

/// A lane's command that waits for the connection to open.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Parked {
    pub lane: u32,
    /// It must be preceded by ASKING.
    pub asking: bool,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Stage {
    /// Not connected and no attempt under way.
    Idle,
    /// Dialling since this time, microseconds.
    Connecting(u64),
    Open,
    /// Lost; a timer will dial again.
    BackingOff,
}

/// How a connection attempt stands.
#[derive(Debug)]
pub(super) enum Dial {
    Pending,
    Open,
    Failed(io::Error),
}

#[derive(Debug)]
pub(super) struct Conn {
    pub addr: SocketAddr,
    pub stage: Stage,
    pub parked: VecDeque<Parked>,
    /// Whether it stands in the thread's list of connections to flush.
    pub dirty: bool,
    /// Whether the server has answered anything since it was dialled.
    pub answered: bool,
    /// When bytes last came in, or answers began to be owed, microseconds.
    pub progress_us: u64,
    /// Operations that this server has acked.
    pub acked: u64,
    /// A large reply that is being passed over.
    pub skim: Skim,
    stream: Option<Stream>,
    out: Vec<u8>,
    /// Of `out`, handed to the kernel.
    written: usize,
    /// Position in the byte stream of the first byte of `out`.
    base: u64,
    pending: VecDeque<(Expect, u64)>,
    /// The beginning of a reply whose rest has not come yet.
    carry: Vec<u8>,
    failures: u32,
}

impl Conn {
    pub fn new(addr: SocketAddr) -> Self {
        Self {
            addr,
            stage: Stage::Idle,
            parked: VecDeque::new(),
            dirty: false,
            answered: false,
            progress_us: 0,
            acked: 0,
            skim: Skim::new(),
            stream: None,
            out: Vec::new(),
            written: 0,
            base: 0,
            pending: VecDeque::new(),
            carry: Vec::new(),
            failures: 0,
        }
    }

    /// Begins a connection attempt.
    pub fn dial(
        &mut self,
        tls: Option<&RedisTls>,
        registry: &Registry,
        token: Token,
        now_us: u64,
    ) -> io::Result<()> {
        self.stream = Some(Stream::dial(self.addr, tls, registry, token)?);
        self.stage = Stage::Connecting(now_us);
        self.answered = false;
        Ok(())
    }

    /// Looks whether the attempt has come to an end.
    pub fn check_dial(&mut self) -> Dial {
        match self.stream.as_mut().map(Stream::check_open) {
            None | Some(Ok(false)) => Dial::Pending,
            Some(Err(e)) => Dial::Failed(e),
            Some(Ok(true)) => {
                self.stage = Stage::Open;
                Dial::Open
            }
        }
    }

    /// Queues a command: whatever `encode` appends, and one reply owed for it.
    #[inline]
    pub fn push(&mut self, expect: Expect, now_us: u64, encode: impl FnOnce(&mut Vec<u8>)) {
        if self.pending.is_empty() {
            self.progress_us = now_us;
        }
        self.pending.push_back((expect, self.base + self.out.len() as u64));
        encode(&mut self.out);
    }

    /// Takes what the next reply answers; `None` when the server owes none: what it was
    /// not sent it can't have answered.
    #[inline]
    pub fn pop(&mut self) -> Option<Expect> {
        let (_, start) = *self.pending.front()?;
        if start >= self.base + self.written as u64 {
            return None;
        }
        self.pending.pop_front().map(|(expect, _)| expect)
    }

    /// Whether answers are owed.
    pub fn owes(&self) -> bool {
        !self.pending.is_empty()
    }

    /// A reply came that was in order: the server is well.
    pub fn mark_answered(&mut self) {
        if !self.answered {
            self.answered = true;
            self.failures = 0;
        }
    }

    /// Hands as much as possible to the kernel; what does not fit goes when the socket
    /// reports to be writable.
    pub fn flush(&mut self) -> io::Result<()> {
        let Some(stream) = self.stream.as_mut().filter(|_| self.stage == Stage::Open) else { return Ok(()) };
        while self.written < self.out.len() {
            match stream.write(&self.out[self.written..]) {
                Ok(0) => return Err(ErrorKind::WriteZero.into()),
                Ok(count) => self.written += count,
                Err(e) if e.kind() == ErrorKind::Interrupted => {}
                Err(e) if e.kind() == ErrorKind::WouldBlock => {
                    // Keeps the buffer's size in the order of what is not sent.
                    if self.written > self.out.len() / 2 {
                        self.out.drain(..self.written);
                        self.base += self.written as u64;
                        self.written = 0;
                    }
                    return Ok(());
                }
                Err(e) => return Err(e),
            }
        }
        match stream.flush() {
            // The stream has the rest; the socket tells when it takes it.
            Err(e) if e.kind() == ErrorKind::WouldBlock => {}
            flushed => flushed?,
        }
        self.base += self.out.len() as u64;
        self.written = 0;
        self.out.clear();
        if self.out.capacity() > OUT_KEPT_BYTES && self.pending.is_empty() {
            self.out.shrink_to(OUT_KEPT_BYTES);
        }
        Ok(())
    }

    /// Reads once, behind the held-over beginning of a reply: the bytes to parse are those
    /// from the begin of `scratch`.
    pub fn read(&mut self, scratch: &mut [u8]) -> io::Result<Got> {
        let Some(stream) = self.stream.as_mut() else { return Ok(Got { bytes: 0, more: false }) };
        let held = self.carry.len();
        let got = stream.read(&mut scratch[held..])?;
        if got.bytes == 0 {
            return Ok(got);
        }
        scratch[..held].copy_from_slice(&self.carry);
        self.carry.clear();
        Ok(Got { bytes: held + got.bytes, ..got })
    }

    /// Keeps the beginning of a reply until the rest comes.
    pub fn hold(&mut self, rest: &[u8]) {
        self.carry.extend_from_slice(rest);
    }

    /// Drops the connection. Returns what was owed, in order, each with whether any of
    /// its bytes may have reached the server.
    pub fn sever(&mut self) -> Vec<(Expect, bool)> {
        let sent_to = self.base + self.written as u64;
        let owed = self.pending.drain(..).map(|(expect, start)| (expect, start < sent_to)).collect();
        // Closing deregisters it.
        self.stream = None;
        self.stage = Stage::Idle;
        self.base += self.out.len() as u64;
        self.written = 0;
        self.out.clear();
        self.carry.clear();
        self.skim = Skim::new();
        owed
    }

    /// How long to wait before the next attempt, microseconds.
    pub fn next_backoff_us(&mut self) -> u64 {
        let wait = RECONNECT_MIN_US.saturating_mul(1 << self.failures.min(16)).min(RECONNECT_MAX_US);
        self.failures = self.failures.saturating_add(1);
        wait
    }
}
