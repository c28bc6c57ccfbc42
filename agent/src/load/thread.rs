//! The loop of one load thread: wait for sockets, read replies and issue what follows
//! from them, put the account on file, and only then flush, once per connection.
//!
//! The order within a turn is what the ledger rests on: nothing is handed to the
//! kernel that the file does not know. What becomes of a single write is in
//! `dispatch`, on the same struct.

use std::cmp::Reverse;
use std::collections::{BinaryHeap, HashMap};
use std::io::ErrorKind;
use std::net::SocketAddr;
use std::sync::Arc;
use std::time::{Duration, Instant};

use mio::{Events, Poll, Token};
use redmesh_api::level::SLOTS;
use redmesh_api::run::Counts;
use rustix::time::{ClockId, clock_gettime};
use tokio::sync::{mpsc, watch};

use super::conn::{Conn, Dial, Stage};
use super::ledger::LedgerSlot;
use super::pace::Pace;
use super::quota::Part;
use super::resp::{LINE_BYTES_MAX, Parsed, parse};
use super::routing::SlotMap;
use super::shared::{Command, Shared};
use super::workload::{KeyPrefix, worker_uuid};
use super::{Limits, Password, ShareSpec, ShareUntil};
use crate::stats::recorder::Recorder;

/// The waker's token; connections use their indexes.
pub(super) const WAKE: Token = Token(usize::MAX);

/// Bytes read at once. One buffer per thread: a connection keeps only an unfinished line.
const SCRATCH_BYTES: usize = 64 * 1024;

/// Events taken at once.
const EVENTS_MAX: usize = 1024;

/// Interval of everything that need not be looked at in each turn, microseconds.
const TICK_US: u64 = 100_000;

/// Least interval between two requests for a newer slot map, microseconds.
const REFRESH_EVERY_US: u64 = 100_000;

/// Stands for "no server" in the routing table.
pub(super) const NOBODY: u16 = u16::MAX;

/// One closed loop. What its write waits for is told by who holds its index: a
/// connection (owed or parked) or the timers.
#[derive(Debug)]
pub(super) struct Worker {
    pub prefix: KeyPrefix,
    /// Number of the write in hand.
    pub n: u64,
    /// When that write was issued, microseconds.
    pub since_us: u64,
    pub acked: u64,
    pub slot: u16,
    /// Answers in a row that asked to try again.
    pub attempts: u8,
    /// Redirections in a row.
    pub redirects: u8,
}

/// What happens at a time.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub(super) enum Timer {
    /// Send the worker's write again.
    Retry(u32),
    /// Dial the connection again.
    Dial(u16),
}

/// Everything a thread is started with.
pub(super) struct Setup {
    pub spec: ShareSpec,
    pub part: Part,
    pub index: usize,
    pub poll: Poll,
    pub recorder: Recorder,
    pub ledger: LedgerSlot,
    pub slots: watch::Receiver<Arc<SlotMap>>,
    pub refresh: mpsc::Sender<()>,
    pub shared: Arc<Shared>,
    pub limits: Limits,
    pub base: Instant,
}

/// [`Limits`] in the loop's unit.
#[derive(Debug, Clone, Copy)]
pub(super) struct LimitsUs {
    pub write_deadline: u64,
    pub reply_timeout: u64,
    pub drain_max: u64,
    pub connect_timeout: u64,
}

/// Whether the thread may issue.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Phase {
    /// No server is known yet.
    Waiting,
    Issuing,
    /// No more writes; what is open at this time (microseconds) is given up.
    Draining(u64),
}

pub(super) struct LoadThread {
    pub workers: Vec<Worker>,
    pub conns: Vec<Conn>,
    pub by_addr: HashMap<SocketAddr, u16>,
    /// Slot to connection.
    pub routes: Box<[u16]>,
    pub timers: BinaryHeap<Reverse<(u64, Timer)>>,
    pub counts: Counts,
    pub now_us: u64,
    pub recorder: Recorder,
    pub shared: Arc<Shared>,
    pub limits: LimitsUs,
    /// Connections with bytes to flush.
    pub dirty: Vec<u16>,
    pub poll: Poll,
    /// What each connection begins with, if anything.
    pub auth: Option<Box<[u8]>>,
    pub pace: Pace,
    /// When the last answer came, microseconds.
    pub last_answer_us: u64,
    first_issue_us: Option<u64>,
    phase: Phase,
    /// Writes that may be issued in all.
    quota: u64,
    issue_for_us: Option<u64>,
    flushing: Vec<u16>,
    index: usize,
    ledger: LedgerSlot,
    ledger_failed: bool,
    on_file: Counts,
    slots: watch::Receiver<Arc<SlotMap>>,
    refresh: mpsc::Sender<()>,
    refreshed_us: Option<u64>,
    tick_us: u64,
    scratch: Vec<u8>,
    base: Instant,
}

fn us(duration: Duration) -> u64 {
    u64::try_from(duration.as_micros()).unwrap_or(u64::MAX)
}

impl LoadThread {
    pub fn new(setup: Setup) -> Self {
        let Setup { spec, part, index, poll, recorder, ledger, slots, refresh, shared, limits, base } = setup;
        let first = spec.first_worker + part.first_worker;
        let workers = (first..first + part.workers)
            .map(|worker| Worker {
                prefix: KeyPrefix::new(worker_uuid(spec.run, spec.host, spec.epoch, worker)),
                n: 0,
                since_us: 0,
                acked: 0,
                slot: 0,
                attempts: 0,
                redirects: 0,
            })
            .collect();
        let (quota, issue_for_us) = match spec.until {
            ShareUntil::Writes(_) => (part.writes, None),
            ShareUntil::Seconds(seconds) => (u64::MAX, Some(u64::from(seconds) * 1_000_000)),
        };
        Self {
            workers,
            conns: Vec::new(),
            by_addr: HashMap::new(),
            routes: vec![NOBODY; usize::from(SLOTS)].into(),
            timers: BinaryHeap::new(),
            counts: Counts::default(),
            now_us: us(base.elapsed()),
            recorder,
            shared,
            limits: LimitsUs {
                write_deadline: us(limits.write_deadline),
                reply_timeout: us(limits.reply_timeout),
                drain_max: us(limits.drain_max),
                connect_timeout: us(limits.connect_timeout),
            },
            dirty: Vec::new(),
            poll,
            pace: Pace::new(part.workers as usize),
            auth: spec.password.as_ref().map(Password::command),
            last_answer_us: 0,
            first_issue_us: None,
            phase: Phase::Waiting,
            quota,
            issue_for_us,
            flushing: Vec::new(),
            index,
            ledger,
            ledger_failed: false,
            on_file: Counts::default(),
            slots,
            refresh,
            refreshed_us: None,
            tick_us: 0,
            scratch: vec![0; SCRATCH_BYTES],
            base,
        }
    }

    /// Runs until every write's fate is counted.
    pub fn run(mut self) {
        let mut events = Events::with_capacity(EVENTS_MAX);
        self.slots.mark_changed();
        loop {
            self.follow_map();
            self.change_phase();
            if let Phase::Draining(until_us) = self.phase {
                if self.counts.in_flight() == 0 {
                    break;
                }
                if self.now_us >= until_us || self.shared.command() == Command::Abort {
                    self.give_up();
                    break;
                }
            }
            self.account();
            self.flush();
            self.rest();

            let timeout = self.poll_timeout();
            if let Err(e) = self.poll.poll(&mut events, Some(timeout))
                && e.kind() != ErrorKind::Interrupted
            {
                self.shared.note("poll", || e.to_string());
                self.give_up();
                break;
            }
            self.now_us = self.clock();
            for event in &events {
                if event.token() != WAKE {
                    let closed = event.is_read_closed() || event.is_error();
                    self.on_event(event.token().0 as u16, closed);
                }
            }
            self.run_timers();
            if self.now_us >= self.tick_us {
                self.tick();
            }
        }
        self.close();
    }

    pub fn clock(&self) -> u64 {
        us(self.base.elapsed())
    }

    /// Whether a worker that has finished a write may begin another.
    #[inline]
    pub fn may_issue(&self) -> bool {
        self.phase == Phase::Issuing && self.counts.issued < self.quota
    }

    /// Asks for a newer slot map, not too often and without waiting.
    pub fn ask_refresh(&mut self) {
        if self.refreshed_us.is_none_or(|at| self.now_us >= at + REFRESH_EVERY_US) {
            self.refreshed_us = Some(self.now_us);
            // Full: a refresh is under way. Closed: nobody refreshes any more, and
            // writes end at their deadline.
            let _ = self.refresh.try_send(());
        }
    }

    fn change_phase(&mut self) {
        if self.phase == Phase::Waiting && self.routes.iter().any(|route| *route != NOBODY) {
            self.phase = Phase::Issuing;
            self.first_issue_us = Some(self.now_us);
            if self.shared.command() == Command::Run {
                for worker in 0..self.workers.len() as u32 {
                    self.issue_next(worker);
                }
            }
        }
        let spent = self.counts.issued >= self.quota || self.workers.is_empty();
        let late = match (self.first_issue_us, self.issue_for_us) {
            (Some(first), Some(span)) => self.now_us >= first + span,
            _ => false,
        };
        let over = spent || late || self.ledger_failed || self.shared.command() != Command::Run;
        if over && !matches!(self.phase, Phase::Draining(_)) {
            self.phase = Phase::Draining(self.now_us + self.limits.drain_max);
        }
    }

    /// Puts the account on file and shows it to readers, if it has changed.
    fn account(&mut self) {
        if let Some(first) = self.first_issue_us {
            self.counts.active_us = self.last_answer_us.saturating_sub(first);
        }
        if self.counts == self.on_file {
            return;
        }
        self.on_file = self.counts;
        self.shared.figures[self.index].publish(&self.counts);
        if !self.ledger_failed
            && let Err(e) = self.ledger.write(&self.counts, false)
        {
            self.lose_ledger(&e);
        }
    }

    /// Without a ledger a crash would lose the account: issue no more. What is issued
    /// is drained, and counted as long as the process lives.
    fn lose_ledger(&mut self, error: &super::ledger::LedgerError) {
        self.ledger_failed = true;
        let source = std::error::Error::source(error).map(|e| format!(": {e}")).unwrap_or_default();
        self.shared.note("ledger", || format!("{error}{source}"));
    }

    /// One write per connection and turn.
    fn flush(&mut self) {
        std::mem::swap(&mut self.dirty, &mut self.flushing);
        let mut lost = Vec::new();
        for &index in &self.flushing {
            let conn = &mut self.conns[usize::from(index)];
            conn.dirty = false;
            let queued = std::mem::take(&mut conn.queued);
            if queued > 0 {
                self.pace.flushed(queued.into());
            }
            if let Err(e) = conn.flush() {
                lost.push((index, e));
            }
        }
        self.flushing.clear();
        // Only now: what follows from a loss issues writes that are not on file yet.
        for (index, e) in lost {
            self.lose(index, &e);
        }
    }

    /// Lets answers gather where batches are small; see [`Pace`]. A timer or a stop
    /// waits for it, for less than a millisecond.
    fn rest(&mut self) {
        let rest_us = self.pace.rest();
        if rest_us > 0 && self.phase == Phase::Issuing && self.dirty.is_empty() {
            std::thread::sleep(Duration::from_micros(rest_us));
        }
    }

    fn poll_timeout(&self) -> Duration {
        if !self.dirty.is_empty() {
            return Duration::ZERO;
        }
        let mut next_us = self.tick_us;
        if let Some(Reverse((at_us, _))) = self.timers.peek() {
            next_us = next_us.min(*at_us);
        }
        if let (Some(first), Some(span), Phase::Issuing) =
            (self.first_issue_us, self.issue_for_us, self.phase)
        {
            next_us = next_us.min(first + span);
        }
        Duration::from_micros(next_us.saturating_sub(self.now_us))
    }

    fn on_event(&mut self, index: u16, closed: bool) {
        let Some(conn) = self.conns.get_mut(usize::from(index)) else { return };
        if let Stage::Connecting(_) = conn.stage {
            match conn.check_dial() {
                Dial::Pending => return,
                Dial::Failed(e) => return self.lose(index, &e),
                Dial::Open => self.unpark(index),
            }
        }
        let conn = &mut self.conns[usize::from(index)];
        if conn.stage != Stage::Open {
            return;
        }
        // It may have become writable again; sent with the turn's other bytes.
        if conn.owes() && !conn.dirty {
            conn.dirty = true;
            self.dirty.push(index);
        }
        self.read(index, closed);
    }

    /// Reads and answers until the socket has no more. A short read means that: edge
    /// triggered epoll reports what comes later as a new event.
    fn read(&mut self, index: u16, closed: bool) {
        let mut scratch = std::mem::take(&mut self.scratch);
        loop {
            match self.conns[usize::from(index)].read(&mut scratch) {
                Ok(None) => break,
                Ok(Some(len)) => {
                    self.now_us = self.clock();
                    self.conns[usize::from(index)].progress_us = self.now_us;
                    if !self.on_bytes(index, &scratch[..len]) || (len < scratch.len() && !closed) {
                        break;
                    }
                }
                Err(e) => {
                    self.lose(index, &e);
                    break;
                }
            }
        }
        self.scratch = scratch;
    }

    /// Answers what `bytes` hold; false when the connection is gone.
    fn on_bytes(&mut self, index: u16, bytes: &[u8]) -> bool {
        let mut at = 0;
        loop {
            match parse(&bytes[at..]) {
                Parsed::Incomplete => {
                    self.conns[usize::from(index)].hold(&bytes[at..]);
                    return true;
                }
                Parsed::Ok(used) => {
                    at += used;
                    if !self.on_ok(index) {
                        return false;
                    }
                }
                Parsed::Error(line, used) => {
                    at += used;
                    if !self.on_error(index, line) {
                        return false;
                    }
                }
                Parsed::Garbage => {
                    self.lose_garbage(index, &bytes[at..bytes.len().min(at + LINE_BYTES_MAX)]);
                    return false;
                }
            }
        }
    }

    fn run_timers(&mut self) {
        while let Some(Reverse((at_us, timer))) = self.timers.peek().copied() {
            if at_us > self.now_us {
                return;
            }
            self.timers.pop();
            match timer {
                Timer::Retry(worker) => self.retry_now(worker),
                Timer::Dial(index) => self.dial_again(index),
            }
        }
    }

    fn tick(&mut self) {
        self.tick_us = self.now_us + TICK_US;
        self.counts.cpu_us = thread_cpu_us();
        self.recorder.publish();
        self.publish_spread();
        self.enforce_timeouts();
    }

    fn publish_spread(&self) {
        let acked = || self.workers.iter().map(|worker| worker.acked);
        let (min, max) = (acked().min().unwrap_or(0), acked().max().unwrap_or(0));
        self.shared.figures[self.index].publish_spread(min, max);
    }

    /// Follows a newer slot map.
    fn follow_map(&mut self) {
        // Closed: the last map stays.
        if !self.slots.has_changed().unwrap_or(false) {
            return;
        }
        let map = self.slots.borrow_and_update().clone();
        let conns: Vec<_> = map.nodes().iter().map(|addr| self.conn_for(*addr).unwrap_or(NOBODY)).collect();
        for (route, node) in self.routes.iter_mut().zip(map.node_indexes()) {
            *route = node.map_or(NOBODY, |node| conns[usize::from(node)]);
        }
        self.reroute_parked();
    }

    fn close(mut self) {
        self.counts.cpu_us = thread_cpu_us();
        if let Some(first) = self.first_issue_us {
            self.counts.active_us = self.last_answer_us.saturating_sub(first);
        }
        let c = self.counts;
        debug_assert_eq!(c.issued, c.acked + c.failed + c.unknown, "the account of a closed share is closed");
        self.recorder.finish();
        self.publish_spread();
        if let Err(e) = self.ledger.write(&c, true)
            && !self.ledger_failed
        {
            self.lose_ledger(&e);
        }
        let figures = &self.shared.figures[self.index];
        figures.publish(&c);
        figures.close();
    }
}

fn thread_cpu_us() -> u64 {
    let time = clock_gettime(ClockId::ThreadCPUTime);
    time.tv_sec as u64 * 1_000_000 + time.tv_nsec as u64 / 1000
}
