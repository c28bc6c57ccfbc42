//! The bytes of one connection, plain or through TLS.
//!
//! Plain bytes go straight to the socket. TLS is rustls's session, driven without waiting:
//! what is written counts as sent once the session has it, although the kernel may not. What
//! is lost between the two has an unknown fate, which claims no more than is known.
//! Like a socket, it says `WouldBlock` and is called again when the socket is ready.

use std::io::{self, ErrorKind, Read, Write};
use std::net::SocketAddr;

use mio::net::TcpStream;
use mio::{Interest, Registry, Token};
use rustls::ClientConnection;

use crate::redis_tls::RedisTls;

/// What was read.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Got {
    /// Bytes from the begin of the buffer; 0 when there is nothing now.
    pub bytes: usize,
    /// Whether there may be more to read without another event.
    pub more: bool,
}

/// See the module.
#[derive(Debug)]
pub(super) enum Stream {
    Plain(TcpStream),
    Tls(Box<Tls>),
}

/// A socket and the session on it.
#[derive(Debug)]
pub(super) struct Tls {
    socket: TcpStream,
    session: ClientConnection,
    /// Whether the last read of the socket took all that there was.
    drained: bool,
}

/// A socket, and whether the last read of it filled the buffer: if not, there is no more.
struct Noting<'a> {
    socket: &'a mut TcpStream,
    short: bool,
}

impl Read for Noting<'_> {
    fn read(&mut self, into: &mut [u8]) -> io::Result<usize> {
        let bytes = self.socket.read(into)?;
        self.short = bytes < into.len();
        Ok(bytes)
    }
}

impl Stream {
    /// Begins a connection attempt.
    pub fn dial(
        addr: SocketAddr,
        tls: Option<&RedisTls>,
        registry: &Registry,
        token: Token,
    ) -> io::Result<Self> {
        let session = tls.map(|tls| tls.session(addr)).transpose().map_err(io::Error::other)?;
        let mut socket = TcpStream::connect(addr)?;
        registry.register(&mut socket, token, Interest::READABLE | Interest::WRITABLE)?;
        Ok(match session {
            None => Self::Plain(socket),
            Some(session) => Self::Tls(Box::new(Tls { socket, session, drained: false })),
        })
    }

    /// Whether it is open: connected, and the handshake done where there is one.
    pub fn check_open(&mut self) -> io::Result<bool> {
        let socket = match self {
            Self::Plain(socket) => socket,
            Self::Tls(tls) => &mut tls.socket,
        };
        if let Some(e) = socket.take_error()? {
            return Err(e);
        }
        match socket.peer_addr() {
            Ok(_) => {}
            Err(e) if e.kind() == ErrorKind::NotConnected => return Ok(false),
            Err(e) => return Err(e),
        }
        socket.set_nodelay(true)?;
        match self {
            Self::Plain(_) => Ok(true),
            Self::Tls(tls) => tls.shake_hands(),
        }
    }

    /// Hands on some of `bytes`; how many.
    #[inline]
    pub fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        match self {
            Self::Plain(socket) => socket.write(bytes),
            Self::Tls(tls) => {
                // What the session holds goes first, so that it holds little.
                tls.send()?;
                tls.session.writer().write(bytes)
            }
        }
    }

    /// Hands what was written to the kernel.
    #[inline]
    pub fn flush(&mut self) -> io::Result<()> {
        match self {
            Self::Plain(_) => Ok(()),
            Self::Tls(tls) => tls.send(),
        }
    }

    /// Reads once.
    #[inline]
    pub fn read(&mut self, into: &mut [u8]) -> io::Result<Got> {
        match self {
            Self::Plain(socket) => loop {
                match socket.read(into) {
                    Ok(0) => return Err(ErrorKind::UnexpectedEof.into()),
                    // A short read means that there is no more: edge triggered epoll reports
                    // what comes later as a new event.
                    Ok(bytes) => return Ok(Got { bytes, more: bytes == into.len() }),
                    Err(e) if e.kind() == ErrorKind::Interrupted => {}
                    Err(e) if e.kind() == ErrorKind::WouldBlock => return Ok(Got { bytes: 0, more: false }),
                    Err(e) => return Err(e),
                }
            },
            Self::Tls(tls) => tls.read(into),
        }
    }
}

impl Tls {
    /// All that the session has for the other side, to the kernel.
    fn send(&mut self) -> io::Result<()> {
        while self.session.wants_write() {
            match self.session.write_tls(&mut self.socket) {
                Ok(0) => return Err(ErrorKind::WriteZero.into()),
                Ok(_) => {}
                Err(e) if e.kind() == ErrorKind::Interrupted => {}
                Err(e) => return Err(e),
            }
        }
        Ok(())
    }

    /// One read of the socket, taken in; false when there is nothing now.
    fn receive(&mut self) -> io::Result<bool> {
        let mut socket = Noting { socket: &mut self.socket, short: false };
        loop {
            match self.session.read_tls(&mut socket) {
                Ok(0) => return Err(ErrorKind::UnexpectedEof.into()),
                Ok(_) => break,
                Err(e) if e.kind() == ErrorKind::Interrupted => {}
                Err(e) if e.kind() == ErrorKind::WouldBlock => return Ok(false),
                Err(e) => return Err(e),
            }
        }
        self.drained = socket.short;
        if let Err(e) = self.session.process_new_packets() {
            // The other side may want to know why; the connection is lost either way.
            let _ = self.session.write_tls(&mut self.socket);
            return Err(io::Error::new(ErrorKind::InvalidData, e));
        }
        Ok(true)
    }

    fn shake_hands(&mut self) -> io::Result<bool> {
        loop {
            match self.send() {
                Err(e) if e.kind() == ErrorKind::WouldBlock => return Ok(false),
                sent => sent?,
            }
            if !self.session.is_handshaking() {
                return Ok(true);
            }
            if !self.receive()? {
                return Ok(false);
            }
        }
    }

    fn read(&mut self, into: &mut [u8]) -> io::Result<Got> {
        loop {
            match self.session.reader().read(into) {
                Ok(0) => return Err(ErrorKind::UnexpectedEof.into()),
                Ok(bytes) => return Ok(Got { bytes, more: bytes == into.len() || !self.drained }),
                Err(e) if e.kind() == ErrorKind::WouldBlock => {}
                Err(e) => return Err(e),
            }
            if !self.receive()? {
                return Ok(Got { bytes: 0, more: false });
            }
            // A key update is answered.
            match self.send() {
                Err(e) if e.kind() == ErrorKind::WouldBlock => {}
                sent => sent?,
            }
        }
    }
}
