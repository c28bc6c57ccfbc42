//! Names of things: hosts, meshes, plans, runs and Redis Cluster nodes.

use std::fmt;
use std::str::FromStr;

use serde::{Deserialize, Serialize};
use uuid::Uuid;

use crate::hex::{from_hex, hex};

/// An id that could not be read back from its text form.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{what} {value:?} is not {expected}")]
pub struct ParseIdError {
    what: &'static str,
    value: String,
    expected: &'static str,
}

impl ParseIdError {
    fn new(what: &'static str, value: &str, expected: &'static str) -> Self {
        // The value is outside input: an error must not carry a megabyte of it.
        let value = value.chars().take(80).collect();
        Self { what, value, expected }
    }
}

/// One agent's identity, and its id as a Raft voter: random, drawn at the first
/// start and kept in the state directory, so that a host that lost its disk comes
/// back as another one. Eight hex digits in text.
#[derive(Clone, Copy, Default, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct HostId(pub u32);

impl fmt::Display for HostId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{:08x}", self.0)
    }
}

impl fmt::Debug for HostId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(self, f)
    }
}

impl FromStr for HostId {
    type Err = ParseIdError;

    fn from_str(s: &str) -> Result<Self, Self::Err> {
        let err = || ParseIdError::new("host id", s, "8 hex digits");
        if s.len() != 8 || !s.bytes().all(|b| b.is_ascii_hexdigit()) {
            return Err(err());
        }
        u32::from_str_radix(s, 16).map(Self).map_err(|_| err())
    }
}

/// A Redis Cluster node id: 160 random bits, 40 hex digits in `nodes.conf`.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct NodeId(pub [u8; 20]);

impl NodeId {
    /// Stands in a plan until the server's own id is known. Redis draws ids at random and
    /// never this one.
    pub const UNKNOWN: Self = Self([0; 20]);
}

impl fmt::Display for NodeId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&hex(&self.0))
    }
}

impl fmt::Debug for NodeId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(self, f)
    }
}

impl FromStr for NodeId {
    type Err = ParseIdError;

    fn from_str(s: &str) -> Result<Self, Self::Err> {
        from_hex(s).map(Self).ok_or_else(|| ParseIdError::new("node id", s, "40 hex digits"))
    }
}

/// Serde as text where the format is for people (JSON), compact elsewhere (bincode).
macro_rules! serde_as_text {
    ($type:ident, $inner:ty) => {
        impl Serialize for $type {
            fn serialize<S: serde::Serializer>(&self, s: S) -> Result<S::Ok, S::Error> {
                if s.is_human_readable() { s.collect_str(self) } else { self.0.serialize(s) }
            }
        }

        impl<'de> Deserialize<'de> for $type {
            fn deserialize<D: serde::Deserializer<'de>>(d: D) -> Result<Self, D::Error> {
                if d.is_human_readable() {
                    String::deserialize(d)?.parse().map_err(serde::de::Error::custom)
                } else {
                    <$inner>::deserialize(d).map(Self)
                }
            }
        }
    };
}
serde_as_text!(HostId, u32);
serde_as_text!(NodeId, [u8; 20]);

macro_rules! uuid_id {
    ($(#[$doc:meta])* $type:ident, $what:literal) => {
        $(#[$doc])*
        #[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
        #[serde(transparent)]
        pub struct $type(pub Uuid);

        impl fmt::Display for $type {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                fmt::Display::fmt(&self.0, f)
            }
        }

        impl fmt::Debug for $type {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                fmt::Display::fmt(self, f)
            }
        }

        impl FromStr for $type {
            type Err = ParseIdError;

            fn from_str(s: &str) -> Result<Self, Self::Err> {
                Uuid::parse_str(s).map(Self).map_err(|_| ParseIdError::new($what, s, "a UUID"))
            }
        }
    };
}

uuid_id!(
    /// One mesh, drawn when it initialises. Two meshes that were initialised apart
    /// bear different ids, by which they refuse each other.
    MeshId, "mesh id"
);
uuid_id!(
    /// One cluster plan: everything done for a formation is idempotent under it.
    PlanId, "plan id"
);

/// One load run: a UUID, and the namespace from which its workers' own UUIDs are
/// derived. People may name it by any unique prefix; ctl shows the first 8 digits.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(transparent)]
pub struct RunId(pub Uuid);

impl fmt::Display for RunId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{:08x}", self.0.as_fields().0)
    }
}

impl fmt::Debug for RunId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(&self.0, f)
    }
}
