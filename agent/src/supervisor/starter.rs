//! What has to be in order before a server starts, and the start: the blocking half of
//! [`super::instance::Effect::Prepare`] and [`super::instance::Effect::Spawn`].
//!
//! The order matters: a server that is there already is adopted before anything is
//! touched, and nothing is written before ports and limits are known to do.

use std::collections::HashMap;
use std::io;
use std::net::SocketAddr;
use std::path::PathBuf;
use std::sync::{Mutex, PoisonError};
use std::time::{Duration, Instant};

use redmesh_api::ids::PlanId;
use redmesh_api::level::BUS_PORT_OFFSET;

use super::WantedInstance;
use super::layout::Layout;
use super::process::{self, Found, Process};
use super::sockets;

/// How old a look through all processes may be. Only the agent starts servers in its
/// directories, so one look serves a whole batch of starts.
const SCAN_AGE_MAX: Duration = Duration::from_secs(1);

/// What came of a step towards a running server.
#[derive(Debug)]
pub(super) enum Started {
    /// Can't be, with the remedy.
    Blocked(String),
    /// It may be spawned.
    Prepared { log_from: u64 },
    /// There is one.
    Adopted { process: Process, stopped: bool, log_from: u64 },
    /// There is one now.
    Spawned(Process),
    /// The binary could not be executed.
    SpawnFailed(String),
}

/// Prepares and starts servers below one data directory.
#[derive(Debug)]
pub(super) struct Starter {
    data_dir: PathBuf,
    server: Option<PathBuf>,
    malloc_conf: Option<String>,
    /// When this life of the agent began: servers found missing ended before.
    began: Instant,
    scan: Mutex<Option<Scan>>,
}

#[derive(Debug)]
struct Scan {
    began: Instant,
    found: HashMap<PathBuf, Found>,
}

impl Starter {
    pub(super) fn new(data_dir: PathBuf, server: Option<PathBuf>, malloc_conf: Option<String>) -> Self {
        Self { data_dir, server, malloc_conf, began: Instant::now(), scan: Mutex::new(None) }
    }

    pub(super) fn prepare(&self, plan: PlanId, wanted: &WantedInstance) -> Started {
        match self.try_prepare(plan, wanted) {
            Ok(started) => started,
            Err(problem) => Started::Blocked(problem),
        }
    }

    fn try_prepare(&self, plan: PlanId, wanted: &WantedInstance) -> Result<Started, String> {
        let layout = Layout::new(&self.data_dir, wanted.addr.port());
        let running =
            self.find(&layout).map_err(|e| format!("can't look for running servers in /proc: {e}"))?;
        layout.check_ours(plan).map_err(|error| match &running {
            Some((process, _)) => format!("{error} (its server runs as pid {})", process.pid()),
            None => error.to_string(),
        })?;
        if let Some((process, stopped)) = running {
            return Ok(Started::Adopted { process, stopped, log_from: layout.log_len() });
        }
        // When it ended nobody knows, if it was before this agent's time; at the latest then.
        let pause = wanted.restart_pause.saturating_sub(self.began.elapsed());
        if layout.has_been_seeded() && !pause.is_zero() {
            return Err(format!(
                "{} was not running when the agent started; it is started in {} s, so that a replica takes \
                 over its slots and its keys first",
                wanted.addr,
                pause.as_secs() + 1
            ));
        }
        process::find_server(self.server.as_deref()).map_err(|error| error.to_string())?;
        process::check_nofile(wanted.clients_needed)?;
        sockets::check_free(wanted.addr, "data port").map_err(|problem| problem.to_string())?;
        let bus = bus_addr(wanted.addr).ok_or_else(|| format!("{} has no bus port", wanted.addr))?;
        sockets::check_free(bus, "bus port").map_err(|problem| problem.to_string())?;
        let files = layout.prepare(plan, &wanted.config, wanted.nodes_conf.as_deref());
        files.map_err(|error| error.to_string())?;
        Ok(Started::Prepared { log_from: layout.log_len() })
    }

    pub(super) fn spawn(&self, port: u16) -> Started {
        let layout = Layout::new(&self.data_dir, port);
        let server = match process::find_server(self.server.as_deref()) {
            Ok(server) => server,
            Err(error) => return Started::SpawnFailed(error.to_string()),
        };
        match Process::spawn(&server, layout.dir(), self.malloc_conf.as_deref()) {
            Ok(process) => Started::Spawned(process),
            Err(error) => Started::SpawnFailed(format!("{}: {error}", server.display())),
        }
    }

    /// The server that runs in a directory, held, if there is one.
    fn find(&self, layout: &Layout) -> io::Result<Option<(Process, bool)>> {
        // Held during a look, so that a batch of starts waits for one instead of each
        // doing its own. Nothing half changed is left behind by a panic.
        let mut scan = self.scan.lock().unwrap_or_else(PoisonError::into_inner);
        let asked = Instant::now();
        loop {
            if scan.as_ref().is_none_or(|scan| scan.began.elapsed() > SCAN_AGE_MAX) {
                let began = Instant::now();
                let found = process::find_running(&self.data_dir, self.server.as_deref())?;
                *scan = Some(Scan { began, found });
            }
            let Some(Scan { began, found }) = scan.as_ref() else { continue };
            let Some(found) = found.get(layout.dir()) else { return Ok(None) };
            let process = match Process::open(found.pid) {
                Err(error) if process::out_of_descriptors(&error) => return Err(error),
                process => process,
            };
            // Looked at again while held: the pid can't be another's from here on.
            let still = process::find_one(found.pid, &self.data_dir, self.server.as_deref())?;
            match (process, still) {
                (Ok(process), Some((dir, found))) if dir == layout.dir() => {
                    return Ok(Some((process, found.stopped)));
                }
                _ if *began >= asked => return Ok(None),
                _ => *scan = None,
            }
        }
    }
}

/// The bus address that belongs to a data address.
pub(super) fn bus_addr(addr: SocketAddr) -> Option<SocketAddr> {
    Some(SocketAddr::new(addr.ip(), addr.port().checked_add(BUS_PORT_OFFSET)?))
}
