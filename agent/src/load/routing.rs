//! Which server serves which slot, as one immutable value that threads share.

use std::collections::HashMap;
use std::fmt;
use std::net::SocketAddr;

use redmesh_api::level::{SLOTS, SlotRange};

/// Servers that one map (and one load thread) may know.
pub const NODES_MAX: usize = 16_384;

/// Stands for "no server" in the table.
const NOBODY: u16 = u16::MAX;

/// Ranges that are no slot map.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum SlotMapError {
    /// Slots that don't exist, or a range whose end lies before its begin.
    #[error("slots {range} of {addr} are not within 0-{} in ascending order", SLOTS - 1)]
    Range {
        /// The range.
        range: SlotRange,
        /// Whose.
        addr: SocketAddr,
    },
    /// Two servers for one slot.
    #[error("slot {slot} is claimed by both {one} and {other}")]
    Overlap {
        /// The slot.
        slot: u16,
        /// Who claimed it first.
        one: SocketAddr,
        /// Who claims it too.
        other: SocketAddr,
    },
}

/// 16384 slots to servers. Slots may be without a server (writes to them wait).
#[derive(Clone, PartialEq, Eq)]
pub struct SlotMap {
    slots: Box<[u16]>,
    nodes: Vec<SocketAddr>,
}

impl SlotMap {
    /// From ranges and who serves them; a server may appear any number of times.
    pub fn new(ranges: impl IntoIterator<Item = (SlotRange, SocketAddr)>) -> Result<Self, SlotMapError> {
        let mut map = Self::default();
        let mut index = HashMap::new();
        for (range, addr) in ranges {
            if range.first > range.last || range.last >= SLOTS {
                return Err(SlotMapError::Range { range, addr });
            }
            // Every server owns at least one slot of its own, so u16 can't overflow.
            let node = *index.entry(addr).or_insert_with(|| {
                map.nodes.push(addr);
                (map.nodes.len() - 1) as u16
            });
            for slot in range.first..=range.last {
                let entry = &mut map.slots[usize::from(slot)];
                if *entry != NOBODY && *entry != node {
                    let one = map.nodes[usize::from(*entry)];
                    return Err(SlotMapError::Overlap { slot, one, other: addr });
                }
                *entry = node;
            }
        }
        Ok(map)
    }

    /// Who serves `slot`.
    pub fn addr_of(&self, slot: u16) -> Option<SocketAddr> {
        let node = *self.slots.get(usize::from(slot))?;
        self.nodes.get(usize::from(node)).copied()
    }

    /// Index into [`SlotMap::nodes`] of who serves each slot, `None` for nobody.
    pub fn node_indexes(&self) -> impl Iterator<Item = Option<u16>> + '_ {
        self.slots.iter().map(|node| (*node != NOBODY).then_some(*node))
    }

    /// The servers.
    pub fn nodes(&self) -> &[SocketAddr] {
        &self.nodes
    }

    /// Slots that have a server.
    pub fn covered(&self) -> usize {
        self.slots.iter().filter(|node| **node != NOBODY).count()
    }

    /// The same map with one slot at `addr`; unchanged if there is no such slot or the
    /// map is full ([`NODES_MAX`]).
    #[must_use]
    pub fn patched(&self, slot: u16, addr: SocketAddr) -> Self {
        let mut map = self.clone();
        let node = map.nodes.iter().position(|known| *known == addr).unwrap_or(map.nodes.len());
        if node < NODES_MAX
            && let Some(entry) = map.slots.get_mut(usize::from(slot))
        {
            *entry = node as u16;
            if node == map.nodes.len() {
                map.nodes.push(addr);
            }
        }
        map
    }
}

impl Default for SlotMap {
    /// No servers: load waits until a newer map has some.
    fn default() -> Self {
        Self { slots: vec![NOBODY; usize::from(SLOTS)].into(), nodes: Vec::new() }
    }
}

impl fmt::Debug for SlotMap {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("SlotMap").field("nodes", &self.nodes).field("covered", &self.covered()).finish()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn addr(port: u16) -> SocketAddr {
        SocketAddr::from(([127, 0, 0, 1], port))
    }

    fn range(first: u16, last: u16) -> SlotRange {
        SlotRange { first, last }
    }

    #[test]
    fn slots_find_their_servers() {
        let map =
            SlotMap::new([(range(0, 99), addr(1)), (range(100, 16383), addr(2)), (range(5, 5), addr(1))])
                .expect("a whole map");
        assert_eq!(
            (map.addr_of(0), map.addr_of(99), map.addr_of(100)),
            (Some(addr(1)), Some(addr(1)), Some(addr(2)))
        );
        assert_eq!((map.addr_of(16384), map.covered(), map.nodes().len()), (None, 16384, 2));
        let patched = map.patched(99, addr(3)).patched(98, addr(2)).patched(16384, addr(4));
        assert_eq!((patched.addr_of(99), patched.addr_of(98)), (Some(addr(3)), Some(addr(2))));
        assert_eq!(patched.nodes().len(), 3);
        assert_eq!(map.addr_of(99), Some(addr(1)));
    }

    #[test]
    fn nonsense_is_refused_by_name() {
        assert!(matches!(SlotMap::new([(range(0, 16384), addr(1))]), Err(SlotMapError::Range { .. })));
        assert!(matches!(SlotMap::new([(range(7, 3), addr(1))]), Err(SlotMapError::Range { .. })));
        let twice = SlotMap::new([(range(0, 9), addr(1)), (range(9, 12), addr(2))]);
        assert_eq!(twice, Err(SlotMapError::Overlap { slot: 9, one: addr(1), other: addr(2) }));
        let empty = SlotMap::new([]).expect("an empty map is one");
        assert_eq!((empty.covered(), empty.addr_of(0)), (0, None));
    }
}
