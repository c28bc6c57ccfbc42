//! The engine as a whole: against a scripted server that answers whatever a test
//! wants, and against real redis-servers.

mod fake;
mod faults;
mod real;
mod tls;
mod workloads;

use std::net::SocketAddr;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::{Duration, Instant};

use redmesh_api::ids::{HostId, RunId};
use redmesh_api::level::SlotRange;
use redmesh_api::run::Counts;
use redmesh_api::workload::Workload;
use tempfile::TempDir;
use tokio::sync::{mpsc, watch};
use uuid::Uuid;

use super::routing::SlotMap;
use super::{Engine, Limits, ShareHandle, ShareSpec, ShareUntil, Task, ledger, ledger_path};

/// No condition of these tests may take longer.
const DEADLINE: Duration = Duration::from_secs(60);

fn wait_for(what: &str, mut condition: impl FnMut() -> bool) {
    let deadline = Instant::now() + DEADLINE;
    while !condition() {
        assert!(Instant::now() < deadline, "waited {DEADLINE:?} for {what}");
        std::thread::sleep(Duration::from_millis(2));
    }
}

/// Slots split evenly over `addrs`, in order.
fn even(addrs: &[SocketAddr]) -> Vec<(SlotRange, SocketAddr)> {
    let bound = |i: usize| (16384 * i / addrs.len()) as u16;
    addrs
        .iter()
        .enumerate()
        .map(|(i, addr)| (SlotRange { first: bound(i), last: bound(i + 1) - 1 }, *addr))
        .collect()
}

/// A share with everything around it.
struct Bench {
    handle: ShareHandle,
    map: watch::Sender<Arc<SlotMap>>,
    refresh: mpsc::Receiver<()>,
    ledger: PathBuf,
    _dir: TempDir,
}

fn run_id() -> RunId {
    RunId(Uuid::from_u128(0x5eed))
}

pub(super) fn spec(workers: u32, until: ShareUntil) -> ShareSpec {
    ShareSpec {
        run: run_id(),
        host: HostId(0xa1),
        share: 0,
        epoch: 1,
        first_worker: 0,
        workers,
        pipeline: 1,
        task: Task::Load(Arc::new(Workload::uuid_counter())),
        rate: None,
        ramp: Duration::ZERO,
        warm_up: Duration::ZERO,
        begin: Instant::now(),
        until,
        threads: 1,
        login: None,
        tls: None,
    }
}

impl Bench {
    fn start(spec: ShareSpec, map: SlotMap, limits: Limits) -> Self {
        let dir = tempfile::tempdir().expect("a directory");
        let (map, slots) = watch::channel(Arc::new(map));
        let (poke, refresh) = mpsc::channel(1);
        let ledger = ledger_path(dir.path(), spec.epoch);
        let handle = Engine::start_with(spec, slots, poke, ledger.clone(), limits).expect("starts");
        Self { handle, map, refresh, ledger, _dir: dir }
    }

    fn to(spec: ShareSpec, addrs: &[SocketAddr]) -> Self {
        Self::start(spec, SlotMap::new(even(addrs)).expect("a map"), Limits::default())
    }

    /// Waits for the end and holds the account against its equation and its file.
    fn close(&self) -> Counts {
        wait_for("the share to close", || self.handle.closed());
        let counts = self.handle.counts();
        assert_eq!(counts.issued, counts.acked + counts.failed + counts.unknown, "{counts:?}");
        let file = ledger::recover(&self.ledger).expect("reads");
        assert!(file.closed);
        assert_eq!(file.counts, counts);
        assert_eq!(self.handle.histogram().len(), counts.acked - counts.warm_acked);
        let by_server: u64 = self.handle.acked_by().iter().map(|(_, acked)| acked).sum();
        assert_eq!(by_server, counts.acked);
        counts
    }
}
