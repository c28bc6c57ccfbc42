//! What an agent acts through and can't be made from its configuration: packets,
//! processes, load threads, the wall clock, the disk's speed.
//!
//! [`crate::app`] takes them as one argument, so that a simulation runs the very same
//! agent in a world of its own.

use std::sync::Arc;

use crate::clock::WallClock;
use crate::cluster::{AdminOptions, AdminPool};
use crate::disk::Disk;
use crate::load::{Engine, LoadEngine};
use crate::metrics::Exposition;
use crate::reload::Reloads;
use crate::supervisor::{Supervise, Supervisor, SupervisorError, SupervisorOptions};
use crate::transport::quic::Wire;

/// Starts what runs this host's servers.
type StartServers = Box<dyn FnOnce(SupervisorOptions) -> Result<Arc<dyn Supervise>, SupervisorError> + Send>;

/// Makes what asks instances.
type MakeAdmin = Box<dyn FnOnce(AdminOptions) -> AdminPool + Send>;

/// See the module.
pub struct Effects {
    /// Packets, where they don't go through a UDP socket.
    pub wire: Option<Wire>,
    /// This host's redis-servers.
    pub servers: StartServers,
    /// What instances are asked through.
    pub admin: MakeAdmin,
    /// What carries out shares of load runs.
    pub load: Arc<dyn LoadEngine>,
    /// This host's wall clock.
    pub clock: WallClock,
    /// This host's disk.
    pub disk: Disk,
    /// What the HTTP port shows; without it there is none.
    pub exposition: Option<Exposition>,
    /// What asks for a reload; without it nothing is taken anew while the agent runs.
    pub reloads: Option<Reloads>,
}

impl std::fmt::Debug for Effects {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Effects")
            .field("wire", &self.wire)
            .field("load", &self.load)
            .field("clock", &self.clock)
            .finish_non_exhaustive()
    }
}

impl Effects {
    /// This machine's own.
    pub fn real(exposition: Exposition, reloads: Reloads) -> Self {
        Self {
            wire: None,
            servers: Box::new(|options| Ok(Arc::new(Supervisor::start(options)?))),
            admin: Box::new(AdminPool::new),
            load: Arc::new(Engine),
            clock: WallClock::default(),
            disk: Disk::default(),
            exposition: Some(exposition),
            reloads: Some(reloads),
        }
    }
}
