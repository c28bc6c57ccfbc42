//! A host's promise, kept on disk, to let one host and no other initialise the mesh.
//!
//! `initialize` must happen once in a mesh's life. The initializer needs the pledges of
//! `expect` hosts, which is more than half of all; each host gives one; so no two
//! initializers can have enough.

use redmesh_api::ids::HostId;
use serde::{Deserialize, Serialize};

/// The promise.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Pledge {
    /// Who may initialise.
    pub to: HostId,
    /// Its name, for people.
    pub to_name: String,
    /// Hosts that it waits for.
    pub expect: u16,
}

/// The answer to a request for a pledge.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub enum PledgeReply {
    /// Given, now or before.
    Pledged,
    /// Refused: given to another.
    PledgedToAnother {
        /// To whom.
        to: HostId,
        /// Its name.
        to_name: String,
    },
    /// Refused: this host belongs to an initialised mesh.
    Initialized,
}
