//! The one place where bytes on the wire (and in the Raft store) become values.
//!
//! A frame is `version: u8, channel: u8, length: u32 LE, payload`. The length is held
//! against the channel's limit before anything is allocated; the payload is bincode
//! (fixed configuration below), decoded under the same limit so that a hostile inner
//! length can't allocate more than the frame's own size bound.

use serde::Serialize;
use serde::de::DeserializeOwned;

use crate::limits::{CONTROL_REQUEST_BYTES_MAX, FRAME_BYTES_MAX, HELLO_BYTES_MAX, JOIN_BYTES_MAX};

/// Version of frames and payloads. A peer of another version is refused by number.
pub const PROTOCOL_VERSION: u8 = 6;

/// Bytes of a frame's header.
pub const HEADER_BYTES: usize = 6;

/// What a frame's payload is.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
#[repr(u8)]
pub enum Channel {
    /// A [`crate::control::ControlRequest`] or its reply.
    Control = 1,
    /// A request between agents, or its reply.
    Peer = 2,
    /// Consensus traffic between agents.
    Raft = 3,
    /// One gossip message (on a stream of its own, never answered).
    Gossip = 4,
    /// What two agents tell each other first on a connection, and again when it changes.
    Hello = 5,
    /// A stranger's [`crate::join::JoinRequest`], on the join service's port alone.
    Join = 6,
}

/// Which way a frame travels; requests of strangers to the mesh are held shorter.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Direction {
    /// From whoever opened the stream.
    Request,
    /// Back to them.
    Reply,
}

impl Channel {
    /// Largest payload, bytes.
    pub fn limit(self, direction: Direction) -> usize {
        match (self, direction) {
            (Channel::Control, Direction::Request) => CONTROL_REQUEST_BYTES_MAX,
            // One chitchat message is at most a UDP datagram's payload.
            (Channel::Gossip, _) => 65_507,
            (Channel::Hello, _) => HELLO_BYTES_MAX,
            (Channel::Join, _) => JOIN_BYTES_MAX,
            _ => FRAME_BYTES_MAX,
        }
    }
}

/// Bytes that are not what they should be, or a value that is too large to send.
#[derive(Debug, thiserror::Error)]
pub enum CodecError {
    /// The first byte of a frame.
    #[error(
        "frame of protocol version {got}, this side speaks {PROTOCOL_VERSION}: run the same redmesh version on both sides"
    )]
    Version {
        /// What was sent.
        got: u8,
    },
    /// The second byte of a frame.
    #[error("frame for unknown channel {got}")]
    Channel {
        /// What was sent.
        got: u8,
    },
    /// A frame's length, or a value to be sent.
    #[error("frame of {got} bytes on channel {channel:?}, at most {limit} are allowed")]
    TooLarge {
        /// Where.
        channel: Channel,
        /// Payload length.
        got: usize,
        /// Bound.
        limit: usize,
    },
    /// The payload is not a value of the expected type.
    #[error("undecodable {type_name}")]
    Decode {
        /// What was expected.
        type_name: &'static str,
        /// Why.
        #[source]
        source: Box<bincode::error::DecodeError>,
    },
    /// Bytes follow the value.
    #[error("{extra} bytes follow a complete {type_name}")]
    Trailing {
        /// What was expected.
        type_name: &'static str,
        /// How many.
        extra: usize,
    },
    /// A value that serde can't write as bincode.
    #[error("unencodable {type_name}")]
    Encode {
        /// What was to be sent.
        type_name: &'static str,
        /// Why.
        #[source]
        source: Box<bincode::error::EncodeError>,
    },
}

fn config() -> impl bincode::config::Config {
    bincode::config::standard().with_limit::<FRAME_BYTES_MAX>()
}

/// `value` as a payload.
pub fn encode<T: Serialize>(value: &T) -> Result<Vec<u8>, CodecError> {
    bincode::serde::encode_to_vec(value, config()).map_err(|source| CodecError::Encode {
        type_name: std::any::type_name::<T>(),
        source: Box::new(source),
    })
}

/// A payload back as a value; every byte must belong to it.
pub fn decode<T: DeserializeOwned>(payload: &[u8]) -> Result<T, CodecError> {
    let type_name = std::any::type_name::<T>();
    let (value, used) = bincode::serde::decode_from_slice(payload, config())
        .map_err(|source| CodecError::Decode { type_name, source: Box::new(source) })?;
    match payload.len() - used {
        0 => Ok(value),
        extra => Err(CodecError::Trailing { type_name, extra }),
    }
}

/// The header of a frame whose payload has `len` bytes.
pub fn header(channel: Channel, direction: Direction, len: usize) -> Result<[u8; HEADER_BYTES], CodecError> {
    let limit = channel.limit(direction);
    if len > limit {
        return Err(CodecError::TooLarge { channel, got: len, limit });
    }
    let [a, b, c, d] = (len as u32).to_le_bytes();
    Ok([PROTOCOL_VERSION, channel as u8, a, b, c, d])
}

/// Reads a header: whose payload, and how many bytes of it follow.
pub fn parse_header(bytes: [u8; HEADER_BYTES], direction: Direction) -> Result<(Channel, usize), CodecError> {
    let [version, channel, a, b, c, d] = bytes;
    if version != PROTOCOL_VERSION {
        return Err(CodecError::Version { got: version });
    }
    let channel = match channel {
        1 => Channel::Control,
        2 => Channel::Peer,
        3 => Channel::Raft,
        4 => Channel::Gossip,
        5 => Channel::Hello,
        6 => Channel::Join,
        got => return Err(CodecError::Channel { got }),
    };
    let len = u32::from_le_bytes([a, b, c, d]) as usize;
    let limit = channel.limit(direction);
    if len > limit {
        return Err(CodecError::TooLarge { channel, got: len, limit });
    }
    Ok((channel, len))
}
