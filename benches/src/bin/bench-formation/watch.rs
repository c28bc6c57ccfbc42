//! Looking at a formation from outside, in the same way whoever forms it.

use std::collections::VecDeque;
use std::net::SocketAddr;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::thread::JoinHandle;
use std::time::{Duration, Instant, SystemTime};

use anyhow::{Context as _, bail, ensure};
use procfs::{Current as _, Meminfo, process::Process};
use redmesh_agent::cluster::InfoMap;
use redmesh_benches::ask::ask;
use redmesh_benches::children::Children;

/// Those who ask. More would take the cores from those who are watched.
const ASKERS: usize = 4;

/// How long one answer is awaited: a held server gives none, and is asked again.
const PATIENCE: Duration = Duration::from_millis(300);

/// Pause of an asker after an answer that is not the awaited one.
const PAUSE: Duration = Duration::from_millis(20);

/// Between two looks at the memory.
const MEMORY_EVERY: Duration = Duration::from_millis(50);

/// How long a server may take to say a figure when nothing is being formed.
const FIGURE_PATIENCE: Duration = Duration::from_secs(20);

/// Why waiting for agreement ends early; shared with whoever forms.
#[derive(Debug, Clone)]
pub struct Limits {
    /// Interruption.
    pub children: Children,
    /// The formation's end, at the latest.
    pub until: Instant,
    /// Set when there is too little memory.
    pub low_memory: Arc<AtomicBool>,
    /// Set when the formation has failed otherwise.
    pub given_up: Arc<AtomicBool>,
}

impl Limits {
    /// None reached yet.
    pub fn new(children: &Children, deadline: Duration, memory: &MemoryWatch) -> Self {
        let low_memory = Arc::clone(&memory.low);
        Self {
            children: children.clone(),
            until: Instant::now() + deadline,
            low_memory,
            given_up: Arc::default(),
        }
    }

    /// Errs once one of them is reached.
    pub fn check(&self) -> anyhow::Result<()> {
        ensure!(!self.children.interrupted(), "interrupted");
        ensure!(!self.low_memory.load(Ordering::SeqCst), "the machine's memory is nearly used up");
        ensure!(!self.given_up.load(Ordering::SeqCst), "given up");
        ensure!(Instant::now() < self.until, "the deadline has passed");
        Ok(())
    }
}

/// Waits until each server answers `PING`, for so long in all.
pub fn all_answer(addresses: &[SocketAddr], within: Duration, limits: &Limits) -> anyhow::Result<()> {
    let began = Instant::now();
    for addr in addresses {
        while let Err(error) = ask(*addr, "PING", PATIENCE) {
            limits.check()?;
            ensure!(
                began.elapsed() < within,
                "{addr} has not started within {} s: {error:#}",
                within.as_secs()
            );
            std::thread::sleep(PAUSE);
        }
    }
    Ok(())
}

/// Asks until every instance knows all nodes and slots, says `ok` and has had as many PONGs
/// as it has peers; when the last one did so.
pub fn all_agree(addresses: &[SocketAddr], limits: &Limits) -> anyhow::Result<SystemTime> {
    let left = Mutex::new(addresses.iter().copied().collect::<VecDeque<_>>());
    let awaited = AtomicU64::new(addresses.len() as u64);
    let asker = || -> anyhow::Result<()> {
        while awaited.load(Ordering::SeqCst) > 0 {
            limits.check()?;
            let next = left.lock().unwrap_or_else(PoisonError::into_inner).pop_front();
            let Some(addr) = next else {
                // The others have the last ones in hand.
                std::thread::sleep(PAUSE);
                continue;
            };
            if agrees(addr, addresses.len()) {
                awaited.fetch_sub(1, Ordering::SeqCst);
            } else {
                left.lock().unwrap_or_else(PoisonError::into_inner).push_back(addr);
                std::thread::sleep(PAUSE);
            }
        }
        Ok(())
    };
    let results: Vec<_> = std::thread::scope(|scope| {
        let askers: Vec<_> = (0..ASKERS).map(|_| scope.spawn(asker)).collect();
        askers.into_iter().map(|asker| asker.join()).collect()
    });
    let agreed = SystemTime::now();
    for result in results {
        match result {
            Ok(done) => done.with_context(|| {
                let left = awaited.load(Ordering::SeqCst);
                format!("{left} of {} instances do not agree", addresses.len())
            })?,
            Err(_) => bail!("an asker has panicked"),
        }
    }
    Ok(agreed)
}

/// What one instance says of the cluster, by `CLUSTER INFO`.
fn agrees(addr: SocketAddr, instances: usize) -> bool {
    // A server that can't be asked yet is asked again.
    let Ok(text) = ask(addr, "CLUSTER INFO", PATIENCE) else { return false };
    let info = InfoMap::parse(&text);
    let all = Some(instances as u64);
    info.get("cluster_state") == Some("ok")
        && info.u64("cluster_known_nodes") == all
        && info.u64("cluster_size") == all
        && info.u64("cluster_slots_ok") == Some(16384)
        // A seeded instance knows all nodes from its file; this tells that links are open.
        && info.u64("cluster_stats_messages_pong_received") >= Some(instances as u64 - 1)
}

/// The process of the server at `addr`.
pub fn pid_of(addr: SocketAddr) -> anyhow::Result<i32> {
    let info = InfoMap::parse(&ask(addr, "INFO server", FIGURE_PATIENCE)?);
    let pid = info.u64("process_id").and_then(|pid| i32::try_from(pid).ok());
    pid.with_context(|| format!("{addr} does not tell its process id"))
}

/// Anonymous memory of all servers, bytes.
pub fn anonymous_bytes(addresses: &[SocketAddr]) -> anyhow::Result<u64> {
    addresses.iter().try_fold(0, |sum, addr| {
        let status = Process::new(pid_of(*addr)?).and_then(|process| process.status())?;
        Ok(sum + status.rssanon.context("the kernel does not tell RssAnon")? * 1024)
    })
}

/// Samples the machine's memory until dropped.
#[derive(Debug)]
pub struct MemoryWatch {
    before: u64,
    least: Arc<AtomicU64>,
    low: Arc<AtomicBool>,
    end: Arc<AtomicBool>,
    thread: Option<JoinHandle<()>>,
}

impl MemoryWatch {
    /// Begins; less than `floor_bytes` available is low.
    pub fn begin(floor_bytes: u64) -> anyhow::Result<Self> {
        let before = available()?;
        ensure!(before > floor_bytes, "only {} MiB of memory are available", before >> 20);
        let least = Arc::new(AtomicU64::new(before));
        let (low, end) = (Arc::<AtomicBool>::default(), Arc::<AtomicBool>::default());
        let thread = {
            let (least, low, end) = (Arc::clone(&least), Arc::clone(&low), Arc::clone(&end));
            std::thread::spawn(move || {
                while !end.load(Ordering::SeqCst) {
                    // It could be read a moment ago, and will be the next time.
                    if let Ok(now) = available() {
                        least.fetch_min(now, Ordering::SeqCst);
                        low.fetch_or(now < floor_bytes, Ordering::SeqCst);
                    }
                    std::thread::sleep(MEMORY_EVERY);
                }
            })
        };
        Ok(Self { before, least, low, end, thread: Some(thread) })
    }

    /// How much less there was than at the begin, at most.
    pub fn peak_bytes(&self) -> u64 {
        self.before - self.least.load(Ordering::SeqCst)
    }
}

impl Drop for MemoryWatch {
    fn drop(&mut self) {
        self.end.store(true, Ordering::SeqCst);
        if let Some(thread) = self.thread.take() {
            // A panic in it was printed; there is nothing left to do.
            let _ = thread.join();
        }
    }
}

fn available() -> anyhow::Result<u64> {
    Meminfo::current()
        .context("/proc/meminfo")?
        .mem_available
        .context("the kernel does not tell MemAvailable")
}
