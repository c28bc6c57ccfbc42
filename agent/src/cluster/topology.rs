//! What an instance says of its cluster: `CLUSTER NODES` and `CLUSTER INFO`, parsed.
//!
//! The text comes over a network: whatever it is, the result is a value or an error
//! that names the line, never a panic, and sizes are bounded.

use std::net::{IpAddr, SocketAddr};

use redmesh_api::ids::NodeId;
use redmesh_api::level::{SLOTS, SlotRange};

use super::info::InfoMap;
use super::slots;

/// Bytes of a `CLUSTER NODES` reply; 16384 nodes have some 3 MB.
pub const REPLY_BYTES_MAX: usize = 16 * 1024 * 1024;

/// Nodes of one reply; forgotten ones linger a minute, so more than a cluster may have.
pub const NODES_MAX: usize = 32 * 1024;

/// A reply that can't be read.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum TopologyError {
    /// Too large.
    #[error("a reply of {got} {unit} is over the bound of {max}")]
    TooLarge {
        /// How many.
        got: usize,
        /// Of what.
        unit: &'static str,
        /// The bound.
        max: usize,
    },
    /// One line of `CLUSTER NODES`.
    #[error("CLUSTER NODES line {line}: {what} {text:?} can't be read")]
    Line {
        /// Its number, from 1.
        line: usize,
        /// Which field.
        what: &'static str,
        /// What stands there, cut.
        text: String,
    },
    /// A field of `CLUSTER INFO`.
    #[error("CLUSTER INFO: {field} is missing or not a number")]
    Field {
        /// Its name.
        field: &'static str,
    },
}

/// A slot on its way between two nodes.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum OpenSlot {
    /// `[slot->-id]`: being given to a node.
    Migrating {
        /// The slot.
        slot: u16,
        /// Who gets it.
        to: NodeId,
    },
    /// `[slot-<-id]`: being taken from a node.
    Importing {
        /// The slot.
        slot: u16,
        /// Who gives it.
        from: NodeId,
    },
}

impl OpenSlot {
    /// The slot.
    pub fn slot(self) -> u16 {
        match self {
            Self::Migrating { slot, .. } | Self::Importing { slot, .. } => slot,
        }
    }
}

/// One line of `CLUSTER NODES`.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct TopologyNode {
    /// Its id.
    pub id: NodeId,
    /// Data address; `None` where the speaker knows none (`noaddr`, or itself before
    /// anyone told it).
    pub addr: Option<SocketAddr>,
    /// Flags as they stand: `master`, `slave`, `fail?`, `fail`, `handshake`, `noaddr`, …
    pub flags: Vec<String>,
    /// Whether this is the speaker.
    pub myself: bool,
    /// The primary that it follows.
    pub primary: Option<NodeId>,
    /// Config epoch.
    pub config_epoch: u64,
    /// Whether the speaker's link to it stands.
    pub connected: bool,
    /// Its slots, normalised.
    pub slots: Vec<SlotRange>,
    /// Slots on their way; only the speaker's own line has any.
    pub open: Vec<OpenSlot>,
}

impl TopologyNode {
    /// Whether the flag stands.
    pub fn has(&self, flag: &str) -> bool {
        self.flags.iter().any(|f| f == flag)
    }
}

/// A whole view.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Topology {
    /// All nodes known to the speaker, in its order.
    pub nodes: Vec<TopologyNode>,
}

impl Topology {
    /// Reads a `CLUSTER NODES` reply (format: <https://redis.io/commands/cluster-nodes>).
    pub fn parse(text: &str) -> Result<Self, TopologyError> {
        if text.len() > REPLY_BYTES_MAX {
            return Err(TopologyError::TooLarge { got: text.len(), unit: "bytes", max: REPLY_BYTES_MAX });
        }
        let mut nodes = Vec::new();
        for (index, line) in text.lines().enumerate() {
            let line = line.trim_end();
            if line.is_empty() {
                continue;
            }
            if nodes.len() == NODES_MAX {
                return Err(TopologyError::TooLarge { got: nodes.len() + 1, unit: "nodes", max: NODES_MAX });
            }
            nodes.push(parse_line(index + 1, line)?);
        }
        Ok(Self { nodes })
    }

    /// The speaker's own line.
    pub fn myself(&self) -> Option<&TopologyNode> {
        self.nodes.iter().find(|node| node.myself)
    }

    /// Who serves which slots, in slot order; nodes without an address are left out.
    pub fn slot_map(&self) -> Vec<(SlotRange, SocketAddr)> {
        let ranges = |node: &TopologyNode| {
            let addr = node.addr;
            node.slots.clone().into_iter().filter_map(move |range| Some((range, addr?)))
        };
        let mut map: Vec<_> = self.nodes.iter().filter(|n| n.has("master")).flat_map(ranges).collect();
        map.sort_unstable();
        map
    }

    /// Number of slots that some primary serves.
    pub fn slots_covered(&self) -> u16 {
        let all = self.nodes.iter().flat_map(|node| node.slots.iter().copied()).collect();
        let covered: usize = slots::normalise(all).iter().map(|range| range.len()).sum();
        u16::try_from(covered).expect("normalised ranges hold each slot once")
    }

    /// A stable 64-bit hash of who is where, follows whom and serves what: equal views
    /// have equal digests, on any machine and in any version. Flags, epochs, ping
    /// times and link states don't count, for they differ between healthy nodes.
    pub fn view_digest(&self) -> u64 {
        let mut nodes: Vec<_> = self.nodes.iter().collect();
        nodes.sort_unstable_by_key(|node| node.id);
        let mut hash = Fnv::new();
        for node in nodes {
            hash.bytes(&node.id.0);
            hash.text(&node.addr.map(|addr| addr.to_string()).unwrap_or_default());
            hash.bytes(&node.primary.map_or([0; 20], |id| id.0));
            for range in &node.slots {
                hash.bytes(&range.first.to_be_bytes());
                hash.bytes(&range.last.to_be_bytes());
            }
            hash.bytes(b"\n");
        }
        hash.0
    }
}

/// FNV-1a, 64 bits: stable across versions, which std's hasher doesn't promise. Not
/// against an adversary; an instance that lies about its view could do worse.
struct Fnv(u64);

impl Fnv {
    fn new() -> Self {
        Self(0xcbf2_9ce4_8422_2325)
    }

    fn bytes(&mut self, bytes: &[u8]) {
        for byte in bytes {
            self.0 = (self.0 ^ u64::from(*byte)).wrapping_mul(0x0000_0100_0000_01b3);
        }
    }

    fn text(&mut self, text: &str) {
        self.bytes(text.as_bytes());
        self.bytes(&[0xff]);
    }
}

fn parse_line(line: usize, text: &str) -> Result<TopologyNode, TopologyError> {
    let bad = |what, text: &str| TopologyError::Line { line, what, text: text.chars().take(80).collect() };
    let mut words = text.split(' ').filter(|word| !word.is_empty());
    let mut next = |what| words.next().ok_or_else(|| bad(what, ""));
    let id = next("node id")?;
    let id: NodeId = id.parse().map_err(|_| bad("node id", id))?;
    let addr = next("address")?;
    let addr = parse_addr(addr).map_err(|()| bad("address", addr))?;
    let flags: Vec<String> = next("flags")?.split(',').map(str::to_owned).collect();
    let primary = match next("primary")? {
        "-" => None,
        id => Some(id.parse().map_err(|_| bad("primary", id))?),
    };
    next("ping time")?;
    next("pong time")?;
    let epoch = next("config epoch")?;
    let config_epoch = epoch.parse().map_err(|_| bad("config epoch", epoch))?;
    let connected = match next("link state")? {
        "connected" => true,
        "disconnected" => false,
        other => return Err(bad("link state", other)),
    };
    let (mut ranges, mut open) = (Vec::new(), Vec::new());
    for word in words {
        if word.starts_with('[') {
            open.push(parse_open(word).ok_or_else(|| bad("open slot", word))?);
        } else {
            ranges.push(parse_range(word).ok_or_else(|| bad("slots", word))?);
        }
    }
    let myself = flags.iter().any(|flag| flag == "myself");
    let slots = slots::normalise(ranges);
    Ok(TopologyNode { id, addr, flags, myself, primary, config_epoch, connected, slots, open })
}

/// `ip:port@bus[,hostname[,aux…]]`; `:0@0` and `:port@bus` mean that there is none.
fn parse_addr(text: &str) -> Result<Option<SocketAddr>, ()> {
    let addr = text.split(',').next().unwrap_or_default();
    let addr = addr.split('@').next().unwrap_or_default();
    let (ip, port) = addr.rsplit_once(':').ok_or(())?;
    let port: u16 = port.parse().map_err(|_| ())?;
    if ip.is_empty() || port == 0 {
        return Ok(None);
    }
    let ip: IpAddr = ip.trim_start_matches('[').trim_end_matches(']').parse().map_err(|_| ())?;
    Ok(Some(SocketAddr::new(ip, port)))
}

fn parse_slot(text: &str) -> Option<u16> {
    text.parse().ok().filter(|slot| *slot < SLOTS)
}

fn parse_range(text: &str) -> Option<SlotRange> {
    let (first, last) = text.split_once('-').unwrap_or((text, text));
    let range = SlotRange { first: parse_slot(first)?, last: parse_slot(last)? };
    (range.first <= range.last).then_some(range)
}

fn parse_open(text: &str) -> Option<OpenSlot> {
    let inner = text.strip_prefix('[')?.strip_suffix(']')?;
    if let Some((slot, to)) = inner.split_once("->-") {
        return Some(OpenSlot::Migrating { slot: parse_slot(slot)?, to: to.parse().ok()? });
    }
    let (slot, from) = inner.split_once("-<-")?;
    Some(OpenSlot::Importing { slot: parse_slot(slot)?, from: from.parse().ok()? })
}

/// The fields of `CLUSTER INFO` that tell whether a view is whole.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct ClusterInfo {
    /// `cluster_state:ok`.
    pub state_ok: bool,
    /// Slots that have a primary.
    pub slots_assigned: u16,
    /// Slots whose primary is neither failing nor failed.
    pub slots_ok: u16,
    /// Slots whose primary is suspected.
    pub slots_pfail: u16,
    /// Slots whose primary has failed.
    pub slots_fail: u16,
    /// Nodes known, the speaker included.
    pub known_nodes: u32,
    /// Primaries with slots.
    pub size: u32,
    /// The cluster's epoch as known here.
    pub current_epoch: u64,
    /// The speaker's (or its primary's) config epoch.
    pub my_epoch: u64,
}

impl ClusterInfo {
    /// Reads a `CLUSTER INFO` reply (format: <https://redis.io/commands/cluster-info>).
    pub fn parse(text: &str) -> Result<Self, TopologyError> {
        if text.len() > REPLY_BYTES_MAX {
            return Err(TopologyError::TooLarge { got: text.len(), unit: "bytes", max: REPLY_BYTES_MAX });
        }
        let info = InfoMap::parse(text);
        fn number<T: std::str::FromStr>(info: &InfoMap, field: &'static str) -> Result<T, TopologyError> {
            info.get(field).and_then(|v| v.parse().ok()).ok_or(TopologyError::Field { field })
        }
        let state = info.get("cluster_state").ok_or(TopologyError::Field { field: "cluster_state" })?;
        Ok(Self {
            state_ok: state == "ok",
            slots_assigned: number(&info, "cluster_slots_assigned")?,
            slots_ok: number(&info, "cluster_slots_ok")?,
            slots_pfail: number(&info, "cluster_slots_pfail")?,
            slots_fail: number(&info, "cluster_slots_fail")?,
            known_nodes: number(&info, "cluster_known_nodes")?,
            size: number(&info, "cluster_size")?,
            current_epoch: number(&info, "cluster_current_epoch")?,
            my_epoch: number(&info, "cluster_my_epoch")?,
        })
    }
}

#[cfg(test)]
mod tests;
