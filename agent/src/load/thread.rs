//! The loop of one load thread: wait for sockets, read replies and issue what follows
//! from them, put the account on file, and only then flush, once per connection.
//!
//! The order within a turn is what the ledger rests on: nothing is handed to the
//! kernel that the file does not know. Who begins an operation and when is in `issue`,
//! what becomes of it in `dispatch`, on the same struct.

use std::cmp::Reverse;
use std::collections::{BinaryHeap, HashMap};
use std::io::ErrorKind;
use std::net::SocketAddr;
use std::sync::Arc;
use std::time::{Duration, Instant};

use mio::{Events, Poll, Token};
use redmesh_api::level::SLOTS;
use redmesh_api::run::Counts;
use redmesh_api::workload::VALUE_BYTES_MAX;
use rustix::fd::OwnedFd;
use rustix::time::{ClockId, Itimerspec, TimerfdTimerFlags, Timespec, clock_gettime, timerfd_settime};
use tokio::sync::{mpsc, watch};

use super::conn::{Conn, Dial, Stage};
use super::issue::{Issuing, Work};
use super::ledger::LedgerSlot;
use super::quota::Part;
use super::read_back::Cursor;
use super::resp::{LINE_BYTES_MAX, Parsed, parse};
use super::routing::SlotMap;
use super::shared::{Command, Shared, Survey};
use super::stream::Got;
use super::workload::{KeyPrefix, Op, Source, worker_uuid};
use super::written::{EXCEPTIONS_MAX, Exception};
use super::{Limits, ShareSpec, Task};
use crate::login::Logins;
use crate::redis_tls::RedisTls;
use crate::stats::recorder::Recorder;

/// The waker's token; connections use their indexes.
pub(super) const WAKE: Token = Token(usize::MAX);

/// Token of the timer that wakes an open loop more precisely than a poll's timeout does.
pub(super) const DUE: Token = Token(usize::MAX - 1);

/// Bytes read at once. One buffer per thread: a connection keeps only an unfinished line.
const SCRATCH_BYTES: usize = 64 * 1024;

/// Events taken at once.
const EVENTS_MAX: usize = 1024;

/// Interval of everything that need not be looked at in each turn, microseconds.
const TICK_US: u64 = 100_000;

/// Ticks between two looks at every lane.
const TICKS_PER_SURVEY: u32 = 5;

/// Shortest sleep of an open loop: what is due within it is begun in one batch.
const SLEEP_MIN: Duration = Duration::from_micros(50);

/// Least interval between two requests for a newer slot map, microseconds.
const REFRESH_EVERY_US: u64 = 100_000;

/// Stands for "no server" in the routing table.
pub(super) const NOBODY: u16 = u16::MAX;

/// One outstanding operation of one worker. What it waits for is told by who holds its
/// index: a connection (owed or parked), the timers, or the list of idle ones.
#[derive(Debug)]
pub(super) struct Lane {
    pub prefix: KeyPrefix,
    /// The operation in hand.
    pub op: Op,
    /// Operations that have ended.
    pub ended: u64,
    pub acked: u64,
    /// When the one in hand was issued, microseconds.
    pub since_us: u64,
    /// When it was due, microseconds; in a closed loop when it was issued.
    pub due_us: u64,
    pub slot: u16,
    /// Answers in a row that asked to try again.
    pub attempts: u8,
    /// Redirections in a row.
    pub redirects: u8,
}

/// What happens at a time.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub(super) enum Timer {
    /// Send the lane's command again.
    Retry(u32),
    /// Let the lane begin: the load grows.
    Begin(u32),
    /// Dial the connection again.
    Dial(u16),
}

/// Everything a thread is started with.
pub(super) struct Setup {
    pub spec: ShareSpec,
    pub part: Part,
    pub index: usize,
    pub poll: Poll,
    /// Wakes an open loop.
    pub timer: Option<OwnedFd>,
    pub recorder: Recorder,
    /// Times from the due time on, in an open loop.
    pub intended: Option<Recorder>,
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
    pub lanes: Vec<Lane>,
    /// Lanes of one worker.
    pub pipeline: u32,
    pub work: Work,
    pub issuing: Issuing,
    /// The task has nothing more to begin by itself.
    pub exhausted: bool,
    pub exceptions: Vec<Exception>,
    pub exceptions_cut: bool,
    pub conns: Vec<Conn>,
    pub by_addr: HashMap<SocketAddr, u16>,
    /// Slot to connection.
    pub routes: Box<[u16]>,
    pub timers: BinaryHeap<Reverse<(u64, Timer)>>,
    pub counts: Counts,
    pub now_us: u64,
    pub recorder: Recorder,
    pub intended: Option<Recorder>,
    pub shared: Arc<Shared>,
    pub limits: LimitsUs,
    /// Connections with bytes to flush.
    pub dirty: Vec<u16>,
    pub poll: Poll,
    /// What each connection begins with, if anything.
    pub logins: Logins,
    /// Set where servers are spoken to by TLS.
    pub tls: Option<RedisTls>,
    /// When the last answer came, microseconds.
    pub last_answer_us: u64,
    phase: Phase,
    begin_us: u64,
    timer: Option<OwnedFd>,
    flushing: Vec<u16>,
    index: usize,
    ledger: LedgerSlot,
    ledger_failed: bool,
    on_file: Counts,
    slots: watch::Receiver<Arc<SlotMap>>,
    refresh: mpsc::Sender<()>,
    refreshed_us: Option<u64>,
    tick_us: u64,
    ticks: u32,
    scratch: Vec<u8>,
    /// Size of `scratch`, which is away while it is read from.
    scratch_bytes: usize,
    base: Instant,
}

pub(super) fn us(duration: Duration) -> u64 {
    u64::try_from(duration.as_micros()).unwrap_or(u64::MAX)
}

impl LoadThread {
    pub fn new(setup: Setup) -> Self {
        let Setup {
            spec, part, index, poll, timer, recorder, intended, ledger, slots, refresh, shared, ..
        } = setup;
        let Setup { limits, base, .. } = setup;
        let first = spec.first_worker + part.first_worker;
        let lane = |prefix: KeyPrefix| Lane {
            prefix,
            op: Op::default(),
            ended: 0,
            acked: 0,
            since_us: 0,
            due_us: 0,
            slot: 0,
            attempts: 0,
            redirects: 0,
        };
        let lanes: Vec<Lane> = (first..first + part.workers)
            .map(|worker| KeyPrefix::new(worker_uuid(spec.run, spec.host, spec.epoch, worker)))
            .flat_map(|prefix| std::iter::repeat_n(prefix, usize::from(spec.pipeline)))
            .map(lane)
            .collect();
        let part_rate = spec.rate.map(|rate| rate * f64::from(part.workers) / f64::from(spec.workers.max(1)));
        let (work, scratch_bytes) = match &spec.task {
            Task::Load(workload) => {
                let stream = u64::from(spec.share) << 48 | u64::from(spec.epoch) << 16 | index as u64;
                (Work::Load(Source::new(workload, stream)), SCRATCH_BYTES)
            }
            // Values are compared, so a whole one must fit.
            Task::ReadBack(task) => {
                let cursor = Cursor::new(task.clone(), index, shared.figures.len());
                let asked = vec![None; lanes.len()];
                (Work::ReadBack(cursor, asked), SCRATCH_BYTES + VALUE_BYTES_MAX as usize)
            }
        };
        Self {
            lanes,
            pipeline: spec.pipeline.into(),
            work,
            issuing: Issuing::new(&spec, part.writes, part_rate),
            exhausted: false,
            exceptions: Vec::new(),
            exceptions_cut: false,
            conns: Vec::new(),
            by_addr: HashMap::new(),
            routes: vec![NOBODY; usize::from(SLOTS)].into(),
            timers: BinaryHeap::new(),
            counts: Counts::default(),
            now_us: us(base.elapsed()),
            recorder,
            intended,
            shared,
            limits: LimitsUs {
                write_deadline: us(limits.write_deadline),
                reply_timeout: us(limits.reply_timeout),
                drain_max: us(limits.drain_max),
                connect_timeout: us(limits.connect_timeout),
            },
            dirty: Vec::new(),
            poll,
            logins: spec.logins.clone(),
            tls: spec.tls,
            last_answer_us: 0,
            phase: Phase::Waiting,
            begin_us: us(spec.begin.saturating_duration_since(base)),
            timer,
            flushing: Vec::new(),
            index,
            ledger,
            ledger_failed: false,
            on_file: Counts::default(),
            slots,
            refresh,
            refreshed_us: None,
            tick_us: 0,
            ticks: 0,
            scratch: vec![0; scratch_bytes],
            scratch_bytes,
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
            self.keep_schedule();
            self.account();
            self.flush();

            let timeout = self.poll_timeout();
            if let Err(e) = self.poll.poll(&mut events, Some(timeout))
                && e.kind() != ErrorKind::Interrupted
            {
                self.shared.note_failure("poll", format!("can't wait for sockets: {e}"));
                self.give_up();
                break;
            }
            self.now_us = self.clock();
            for event in &events {
                if event.token() != WAKE && event.token() != DUE {
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
        self.phase == Phase::Issuing && self.counts.issued < self.issuing.quota
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
        let ready = || self.routes.iter().any(|route| *route != NOBODY);
        if self.phase == Phase::Waiting && self.now_us >= self.begin_us && ready() {
            self.phase = Phase::Issuing;
            if self.shared.command() == Command::Run {
                self.begin();
            }
        }
        // An answer may still bring another key to read.
        let exhausted = self.exhausted && self.counts.in_flight() == 0;
        let spent = self.counts.issued >= self.issuing.quota || exhausted || self.lanes.is_empty();
        let late = self.issuing.end_us().is_some_and(|end| self.now_us >= end);
        let over = spent || late || self.ledger_failed || self.shared.command() != Command::Run;
        if over && !matches!(self.phase, Phase::Draining(_)) {
            self.phase = Phase::Draining(self.now_us + self.limits.drain_max);
        }
    }

    /// Puts the account on file and shows it to readers, if it has changed.
    fn account(&mut self) {
        (self.counts.active_us, self.counts.warm_us) = self.issuing.active_us(self.last_answer_us);
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
        self.shared.note_failure("ledger", format!("{error}{source}"));
    }

    /// One write per connection and turn.
    fn flush(&mut self) {
        std::mem::swap(&mut self.dirty, &mut self.flushing);
        let mut lost = Vec::new();
        for &index in &self.flushing {
            let conn = &mut self.conns[usize::from(index)];
            conn.dirty = false;
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

    fn poll_timeout(&mut self) -> Duration {
        if !self.dirty.is_empty() {
            return Duration::ZERO;
        }
        let mut next_us = self.tick_us;
        if let Some(Reverse((at_us, _))) = self.timers.peek() {
            next_us = next_us.min(*at_us);
        }
        match self.phase {
            Phase::Waiting => next_us = next_us.min(self.begin_us.max(self.now_us + TICK_US / 100)),
            Phase::Issuing => next_us = self.issuing.end_us().map_or(next_us, |end| next_us.min(end)),
            Phase::Draining(_) => {}
        }
        let timeout = Duration::from_micros(next_us.saturating_sub(self.now_us));
        match self.next_due() {
            Some(due) if due < timeout => self.wake_in(due.max(SLEEP_MIN), timeout),
            _ => timeout,
        }
    }

    /// Has the poll end after `due`, and returns the timeout to poll with: a poll's own
    /// is in whole milliseconds.
    fn wake_in(&self, due: Duration, timeout: Duration) -> Duration {
        let value = Itimerspec {
            it_interval: Timespec::default(),
            it_value: Timespec { tv_sec: due.as_secs() as i64, tv_nsec: due.subsec_nanos().into() },
        };
        let set = self.timer.as_ref().map(|timer| timerfd_settime(timer, TimerfdTimerFlags::empty(), &value));
        match set {
            Some(Ok(_)) => timeout,
            _ => due,
        }
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

    /// Reads and answers until there is no more.
    fn read(&mut self, index: u16, closed: bool) {
        let mut scratch = std::mem::take(&mut self.scratch);
        loop {
            match self.conns[usize::from(index)].read(&mut scratch) {
                Ok(Got { bytes: 0, .. }) => break,
                Ok(Got { bytes, more }) => {
                    self.now_us = self.clock();
                    self.conns[usize::from(index)].progress_us = self.now_us;
                    if !self.on_bytes(index, &scratch[..bytes]) || (!more && !closed) {
                        break;
                    }
                }
                Err(e) => {
                    self.lose_in_read(index, &e);
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
            let conn = &mut self.conns[usize::from(index)];
            if !conn.skim.is_idle() {
                match conn.skim.feed(&bytes[at..]) {
                    Ok((_, None)) => return true,
                    Ok((used, Some(skimmed))) => {
                        at += used;
                        if !self.on_value(index, skimmed.into()) {
                            return false;
                        }
                        continue;
                    }
                    Err(_) => {
                        self.lose_garbage(index, &bytes[at..bytes.len().min(at + LINE_BYTES_MAX)]);
                        return false;
                    }
                }
            }
            match parse(&bytes[at..]) {
                Parsed::Incomplete => return self.hold(index, &bytes[at..]),
                Parsed::Value(value, used) => {
                    at += used;
                    if !self.on_value(index, value.into()) {
                        return false;
                    }
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

    /// Keeps the beginning of a reply, or passes over it if it is a value that nobody
    /// looks at; false when the connection is gone.
    fn hold(&mut self, index: u16, rest: &[u8]) -> bool {
        let conn = &mut self.conns[usize::from(index)];
        let value = matches!(rest.first(), Some(b'$' | b'*'));
        match &self.work {
            Work::Load(_) if value => {
                if conn.skim.feed(rest).is_err() {
                    self.lose_garbage(index, &rest[..rest.len().min(LINE_BYTES_MAX)]);
                    return false;
                }
            }
            // One more byte has to fit behind it.
            _ if rest.len() < self.scratch_bytes => conn.hold(rest),
            _ => {
                self.lose_garbage(index, &rest[..LINE_BYTES_MAX]);
                return false;
            }
        }
        true
    }

    fn run_timers(&mut self) {
        while let Some(Reverse((at_us, timer))) = self.timers.peek().copied() {
            if at_us > self.now_us {
                return;
            }
            self.timers.pop();
            match timer {
                Timer::Retry(lane) => self.retry_now(lane),
                Timer::Begin(lane) => self.issue(lane, self.now_us),
                Timer::Dial(index) => self.dial_again(index),
            }
        }
    }

    fn tick(&mut self) {
        self.tick_us = self.now_us + TICK_US;
        self.counts.cpu_us = thread_cpu_us();
        self.recorder.publish();
        self.intended.iter_mut().for_each(Recorder::publish);
        if self.ticks.is_multiple_of(TICKS_PER_SURVEY) {
            self.survey();
        }
        self.ticks += 1;
        self.enforce_timeouts();
    }

    /// Shows readers what stands at the lanes and connections.
    fn survey(&self) {
        let workers = self.lanes.chunks(self.pipeline as usize);
        let acked = workers.map(|lanes| lanes.iter().map(|lane| lane.acked).sum::<u64>());
        let (min, max) = acked.fold((u64::MAX, 0), |(min, max), n| (n.min(min), n.max(max)));
        let (findings, beyond) = match &self.work {
            Work::Load(_) => (None, 0),
            Work::ReadBack(cursor, _) => (Some(cursor.findings.clone()), cursor.beyond),
        };
        let acked_by = self.conns.iter().filter(|conn| conn.acked > 0).map(|conn| (conn.addr, conn.acked));
        self.shared.figures[self.index].publish_survey(Survey {
            worker_acked: (min.min(max), max),
            ended: self.lanes.iter().map(|lane| lane.ended).collect(),
            exceptions: self.exceptions.clone(),
            exceptions_cut: self.exceptions_cut,
            acked_by: acked_by.collect(),
            behind: self.issuing.behind(self.now_us),
            findings,
            beyond,
        });
    }

    /// Notes an operation that did not end as acked.
    pub fn note_exception(&mut self, lane: u32, unknown: bool) {
        if self.exceptions.len() >= EXCEPTIONS_MAX {
            self.exceptions_cut = true;
            return;
        }
        let index = self.lanes[lane as usize].ended;
        self.exceptions.push(Exception { lane, index, unknown });
    }

    /// Follows a newer slot map.
    fn follow_map(&mut self) {
        // Closed: the last map stays.
        if !self.slots.has_changed().unwrap_or(false) {
            return;
        }
        let map = self.slots.borrow_and_update().clone();
        let conns: Vec<_> = map.nodes().iter().map(|addr| self.conn_for(*addr).unwrap_or(NOBODY)).collect();
        // So that nobody waits for a handshake once it begins.
        if self.phase == Phase::Waiting {
            conns.iter().filter(|conn| **conn != NOBODY).for_each(|conn| self.dial_if_idle(*conn));
        }
        for (route, node) in self.routes.iter_mut().zip(map.node_indexes()) {
            *route = node.map_or(NOBODY, |node| conns[usize::from(node)]);
        }
        self.reroute_parked();
    }

    fn close(mut self) {
        self.counts.cpu_us = thread_cpu_us();
        (self.counts.active_us, self.counts.warm_us) = self.issuing.active_us(self.last_answer_us);
        let c = self.counts;
        debug_assert_eq!(c.issued, c.acked + c.failed + c.unknown, "the account of a closed share is closed");
        self.recorder.finish();
        self.intended.iter_mut().for_each(Recorder::finish);
        self.survey();
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
