//! What a thread's workers do: a [`Source`] draws operations, tells their slots and
//! encodes them. Nothing on that path allocates beyond its output buffer's growth.
//!
//! Keys and values can be told from each other and from nothing else: a worker's UUID
//! is derived, not drawn, so that anyone can reconstruct which keys a run of counter
//! keys has written, and a value is its key's text over and over. What is drawn follows
//! from the workload's seed and the thread's number.

mod draw;
mod encode;
mod keys;

use redmesh_api::workload::{Verb, Workload};

use draw::Draw;
use encode::Form;

pub use encode::{ASKING, encode_get, is_value_of};
pub use keys::{Digits, KeyPrefix, PREFIX_BYTES, slot_of, worker_uuid};

/// One operation; enough to encode it again.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Op {
    /// Which command.
    pub verb: Verb,
    /// Number of the key, or of the group of keys.
    pub key: u64,
    /// Size of each value, bytes; 0 if there is none or it follows from the key's.
    pub bytes: u32,
}

impl Default for Op {
    fn default() -> Self {
        Self { verb: Verb::Set, key: 0, bytes: 0 }
    }
}

/// Draws and encodes the operations of a thread's workers. One per thread.
#[derive(Debug)]
pub struct Source {
    draw: Draw,
    form: Form,
}

impl Source {
    /// Of a workload that [`Workload::check`] finds nothing wrong with. `stream` is a
    /// number that no other thread of the mesh has: with the workload's seed it decides
    /// all that is drawn.
    pub fn new(workload: &Workload, stream: u64) -> Self {
        Self { draw: Draw::new(workload, stream), form: Form::new(workload) }
    }

    /// The next operation of a lane whose next number is `n`. Counter keys follow from
    /// it, `n` or `n % wrap`; those of a pool are drawn.
    #[inline]
    pub fn draw(&mut self, n: u64) -> Op {
        self.draw.next(n)
    }

    /// Slot of all its keys. `prefix` is the worker's; a pool's keys don't have it.
    #[inline]
    pub fn slot(&self, prefix: &KeyPrefix, op: &Op) -> u16 {
        self.form.slot(prefix, op)
    }

    /// Appends the command.
    #[inline]
    pub fn encode(&self, prefix: &KeyPrefix, op: &Op, out: &mut Vec<u8>) {
        self.form.encode(prefix, op, out);
    }
}

#[cfg(test)]
mod tests;
