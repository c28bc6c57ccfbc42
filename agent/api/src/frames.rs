//! Frames over QUIC streams, the same on both ends: one request frame and one reply
//! frame on a bidirectional stream, or one frame on a unidirectional one.
//!
//! A reply's first byte says whether it is an answer or the words of a refusal, so that
//! a request that could not even be decoded still brings back a reason. Nothing here
//! opens a stream or sets a deadline: the caller does.

use bytes::{Bytes, BytesMut};
use quinn::{ConnectionError, ReadError, ReadExactError, RecvStream, SendStream, VarInt, WriteError};

use crate::codec::{self, Channel, CodecError, Direction, HEADER_BYTES};

/// Allocated at once for a payload whose length is only announced, bytes: the rest
/// grows with what really arrives.
const READ_AHEAD_BYTES_MAX: usize = 64 * 1024;

/// Longest refusal that travels, bytes.
const REASON_BYTES_MAX: usize = 4 * 1024;

/// Code of a connection that is closed because its side is done with it.
pub const CLOSE_DONE: u32 = 0;

/// Code of a connection that is closed because the other side may not have it; the
/// close's reason says why.
pub const CLOSE_REFUSED: u32 = 1;

/// Code of a connection that is closed for want of room, which passes; the close's reason
/// says of what.
pub const CLOSE_BUSY: u32 = 2;

const ANSWERED: u8 = 0;
const REFUSED: u8 = 1;

/// Why a frame could not be written or read.
#[derive(Debug, thiserror::Error)]
pub enum FrameError {
    /// The bytes are not a frame, or the payload is too large to be one.
    #[error("bad frame")]
    Codec(#[source] CodecError),
    /// The connection ended; [`crate::tls::explain`] has words for it.
    #[error("connection lost")]
    Connection(#[source] ConnectionError),
    /// The peer gave this one stream up.
    #[error("stream ended by the peer with code {code}")]
    Abandoned {
        /// The peer's code.
        code: u64,
    },
    /// The stream ended inside a frame.
    #[error("stream ended after {got} bytes of a frame's {of}")]
    Truncated {
        /// Bytes that came.
        got: usize,
        /// Bytes that were due.
        of: usize,
    },
    /// A reply that is neither an answer nor a refusal.
    #[error("reply begins with {got:?} instead of 0 (answer) or 1 (refusal)")]
    ReplyMark {
        /// The first byte, if there was one.
        got: Option<u8>,
    },
    /// This side has closed the stream already.
    #[error("stream is closed on this side")]
    Closed,
}

impl From<WriteError> for FrameError {
    fn from(error: WriteError) -> Self {
        match error {
            WriteError::Stopped(code) => Self::Abandoned { code: code.into_inner() },
            WriteError::ConnectionLost(source) => Self::Connection(source),
            WriteError::ClosedStream | WriteError::ZeroRttRejected => Self::Closed,
        }
    }
}

impl From<ReadError> for FrameError {
    fn from(error: ReadError) -> Self {
        match error {
            ReadError::Reset(code) => Self::Abandoned { code: code.into_inner() },
            ReadError::ConnectionLost(source) => Self::Connection(source),
            ReadError::ClosedStream | ReadError::IllegalOrderedRead | ReadError::ZeroRttRejected => {
                Self::Closed
            }
        }
    }
}

/// Writes one frame. The stream stays open: finish it after its last frame.
pub async fn write_frame(
    stream: &mut SendStream,
    channel: Channel,
    direction: Direction,
    payload: &[u8],
) -> Result<(), FrameError> {
    let header = codec::header(channel, direction, payload.len()).map_err(FrameError::Codec)?;
    stream.write_all(&header).await?;
    stream.write_all(payload).await?;
    Ok(())
}

/// Reads one frame; its length is held against the channel's limit before anything is
/// allocated.
pub async fn read_frame(
    stream: &mut RecvStream,
    direction: Direction,
) -> Result<(Channel, Bytes), FrameError> {
    let (channel, len) = read_header(stream, direction).await?;
    Ok((channel, read_payload(stream, len).await?))
}

/// Reads a frame's header: whose payload, and how many bytes of it follow, within the
/// channel's limit. For whoever decides by the channel whether to read the payload at all.
pub async fn read_header(
    stream: &mut RecvStream,
    direction: Direction,
) -> Result<(Channel, usize), FrameError> {
    let mut header = [0; HEADER_BYTES];
    stream.read_exact(&mut header).await.map_err(|error| match error {
        ReadExactError::FinishedEarly(got) => FrameError::Truncated { got, of: HEADER_BYTES },
        ReadExactError::ReadError(error) => error.into(),
    })?;
    codec::parse_header(header, direction).map_err(FrameError::Codec)
}

/// Reads the payload of `len` bytes that follows a header.
pub async fn read_payload(stream: &mut RecvStream, len: usize) -> Result<Bytes, FrameError> {
    let mut payload = BytesMut::with_capacity(len.min(READ_AHEAD_BYTES_MAX));
    while payload.len() < len {
        match stream.read_chunk(len - payload.len(), true).await? {
            Some(chunk) => payload.extend_from_slice(&chunk.bytes),
            None => return Err(FrameError::Truncated { got: payload.len(), of: len }),
        }
    }
    Ok(payload.freeze())
}

/// Answers a request, or refuses it in words, and finishes the stream.
pub async fn write_reply(
    stream: &mut SendStream,
    channel: Channel,
    reply: Result<&[u8], &str>,
) -> Result<(), FrameError> {
    let (mark, body) = match reply {
        Ok(answer) => (ANSWERED, answer),
        Err(reason) => (REFUSED, truncated(reason).as_bytes()),
    };
    let header = codec::header(channel, Direction::Reply, 1 + body.len()).map_err(FrameError::Codec)?;
    stream.write_all(&header).await?;
    stream.write_all(&[mark]).await?;
    stream.write_all(body).await?;
    // Only fails when the stream was finished or reset before, which is none of ours.
    let _ = stream.finish();
    Ok(())
}

/// Reads a reply: the answer, or the peer's reason for refusing.
pub async fn read_reply(stream: &mut RecvStream) -> Result<Result<Bytes, String>, FrameError> {
    let (_, mut payload) = read_frame(stream, Direction::Reply).await?;
    match payload.first().copied() {
        Some(ANSWERED) => Ok(Ok(payload.split_off(1))),
        Some(REFUSED) => Ok(Err(readable(&payload[1..]))),
        got => Err(FrameError::ReplyMark { got }),
    }
}

/// One request and its reply on a fresh stream. Sets no deadline.
pub async fn exchange(
    (mut send, mut recv): (SendStream, RecvStream),
    channel: Channel,
    request: &[u8],
) -> Result<Result<Bytes, String>, FrameError> {
    match write_frame(&mut send, channel, Direction::Request, request).await {
        Ok(()) => {
            // Only fails on a stream that the peer has stopped: its reply says why.
            let _ = send.finish();
        }
        // A peer that refuses a request by its header stops reading, and then says why.
        Err(FrameError::Abandoned { .. }) => {}
        Err(error) => return Err(error),
    }
    read_reply(&mut recv).await
}

/// Ends one stream without an answer, both ways.
pub fn abandon(send: &mut SendStream, recv: &mut RecvStream, code: u32) {
    // Each fails only on a stream that has ended already, which is what is wanted.
    let _ = send.reset(VarInt::from_u32(code));
    let _ = recv.stop(VarInt::from_u32(code));
}

/// A peer's words as they may be shown to people and written into a log: bounded, and
/// without control characters.
pub fn readable(bytes: &[u8]) -> String {
    String::from_utf8_lossy(&bytes[..bytes.len().min(REASON_BYTES_MAX)])
        .chars()
        .map(|c| if c.is_control() { ' ' } else { c })
        .collect()
}

fn truncated(reason: &str) -> &str {
    let mut end = reason.len().min(REASON_BYTES_MAX);
    while !reason.is_char_boundary(end) {
        end -= 1;
    }
    &reason[..end]
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;
    use crate::control::{ControlReply, ControlRequest};

    proptest! {
        #[test]
        fn hostile_bytes_never_panic(header: [u8; HEADER_BYTES], payload: Vec<u8>) {
            for direction in [Direction::Request, Direction::Reply] {
                if let Ok((channel, len)) = codec::parse_header(header, direction) {
                    prop_assert!(len <= channel.limit(direction));
                }
            }
            let _ = codec::decode::<ControlRequest>(&payload);
            let _ = codec::decode::<ControlReply>(&payload);
            let _ = readable(&payload);
        }
    }

    #[test]
    fn a_long_reason_is_cut_between_characters() {
        let reason = "é".repeat(REASON_BYTES_MAX);
        assert!(truncated(&reason).len() <= REASON_BYTES_MAX);
        assert_eq!(truncated("short"), "short");
    }

    #[test]
    fn a_peer_cannot_write_control_characters_into_a_log() {
        assert_eq!(readable(b"a\n\x1b[31mb\xff"), "a  [31mb\u{fffd}");
    }
}
