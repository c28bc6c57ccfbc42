//! What two agents tell each other first, and whether they may go on.
//!
//! The dialling side sends a [`Hello`] on the first stream, and again whenever its mesh id
//! becomes known; the reply is the proof that the certificate was accepted. Judging one
//! is pure: the certificate's facts come in as a [`Certified`].

use std::net::{IpAddr, SocketAddr};

use redmesh_api::ids::{HostId, MeshId};
use redmesh_api::tls::{self, Role, TlsError};
use serde::{Deserialize, Serialize};

use crate::transport::Presented;

/// Version of these types; raised when their meaning changes.
pub const HELLO_PROTOCOL: u32 = 1;

/// An agent's account of itself.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Hello {
    /// [`HELLO_PROTOCOL`].
    pub protocol: u32,
    /// Its host's id.
    pub id: HostId,
    /// Its certificate's name.
    pub name: String,
    /// Which life of it this is: grows at every start.
    pub boot_id: u64,
    /// Where it is to be dialled.
    pub addr: SocketAddr,
    /// The mesh that its configuration names.
    pub mesh_name: String,
    /// The mesh that it has joined, once it has.
    pub mesh_id: Option<MeshId>,
    /// For people.
    pub agent_version: String,
}

/// The answer to a hello.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub enum HelloReply {
    /// Accepted, by whom.
    Welcome(Hello),
    /// Not accepted; the connection ends.
    Refused {
        /// Why, with the remedy.
        reason: String,
    },
    /// Not accepted any more: the host was removed from the mesh, and is to stop.
    Removed {
        /// The same in words.
        reason: String,
    },
}

/// Why a hello is not accepted.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Rejection {
    /// Something doesn't fit.
    Refused(String),
    /// The host was removed.
    Removed(String),
}

impl Rejection {
    /// In words.
    pub fn reason(&self) -> &str {
        let (Self::Refused(reason) | Self::Removed(reason)) = self;
        reason
    }
}

/// What a peer's certificate proves, by which its hello is judged.
#[derive(Debug, Clone)]
pub struct Certified {
    /// Its role.
    pub role: Role,
    /// Its name.
    pub name: String,
    presented: Presented,
}

impl Certified {
    /// Reads the certificate of a connection's peer.
    pub fn of(connection: &quinn::Connection) -> Result<Self, TlsError> {
        let chain = tls::chain_of(connection)?;
        let (role, name) = tls::peer_of(&chain)?;
        Ok(Self { role, name, presented: Presented::new(chain) })
    }

    /// The chain, leaf first.
    pub fn chain(&self) -> &[rustls::pki_types::CertificateDer<'static>] {
        self.presented.chain()
    }

    /// The same, to be passed on.
    pub fn presented(&self) -> Presented {
        self.presented.clone()
    }

    /// Whether the certificate is valid for `ip`.
    pub fn names_ip(&self, ip: IpAddr) -> bool {
        tls::names_ip(self.chain(), ip)
    }
}

/// Whether the agent with these two may speak with us; else why not, in words for both
/// sides' people.
pub fn judge(theirs: &Hello, certified: &Certified, ours: &Hello) -> Result<(), String> {
    if certified.role != Role::Host {
        return Err(format!(
            "the certificate of {} is a {}'s, and agents need a host's: issue one with `redmeshctl pki issue \
             --host`",
            certified.name, certified.role
        ));
    }
    if theirs.protocol != HELLO_PROTOCOL {
        return Err(format!(
            "hello of protocol {}, here it is {HELLO_PROTOCOL}: run the same redmesh version on all hosts",
            theirs.protocol
        ));
    }
    if theirs.name != certified.name {
        return Err(format!(
            "the hello says {:?}, the certificate {:?}",
            shown(&theirs.name),
            certified.name
        ));
    }
    if !certified.names_ip(theirs.addr.ip()) {
        return Err(format!(
            "host {} advertises {}, and its certificate is not for that address: issue it again with `--ip {} \
             --renew`, or correct the agent's advertised address",
            theirs.name,
            theirs.addr,
            theirs.addr.ip()
        ));
    }
    if theirs.id == HostId(0) {
        return Err("host id 00000000 is nobody's".into());
    }
    if theirs.id == ours.id {
        return Err(if theirs.addr == ours.addr && theirs.boot_id == ours.boot_id {
            "this is the agent itself".into()
        } else {
            format!(
                "{} at {} and {} at {} have the same host id {}: was a state directory copied? Empty one of the \
                 two and start its agent again",
                ours.name, ours.addr, theirs.name, theirs.addr, ours.id
            )
        });
    }
    if theirs.mesh_name != ours.mesh_name {
        return Err(format!(
            "{} at {} belongs to mesh {:?}, {} at {} to mesh {:?}: compare mesh.name in both configurations",
            ours.name,
            ours.addr,
            ours.mesh_name,
            theirs.name,
            theirs.addr,
            shown(&theirs.mesh_name)
        ));
    }
    judge_mesh(theirs, ours)
}

/// Whether both have joined the same mesh, as far as each has joined one.
pub fn judge_mesh(theirs: &Hello, ours: &Hello) -> Result<(), String> {
    match (theirs.mesh_id, ours.mesh_id) {
        (Some(theirs_id), Some(ours_id)) if theirs_id != ours_id => Err(format!(
            "two meshes that were initialised apart: {} at {} is in {ours_id}, {} at {} in {theirs_id}; they can't \
             be merged: stop the agents of one, empty their state directories and start them again with the \
             other's addresses as seeds",
            ours.name, ours.addr, theirs.name, theirs.addr
        )),
        _ => Ok(()),
    }
}

fn shown(text: &str) -> String {
    text.chars().take(80).collect()
}
