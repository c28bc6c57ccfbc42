//! The life of one operation: routed, answered or not, and counted exactly once as
//! acked, failed or unknown.
//!
//! The rule for sending again: only after an answer that proves that it was not
//! executed, or when no byte of it was handed to the kernel.

use std::cmp::Reverse;
use std::io;
use std::net::SocketAddr;

use mio::Token;
use redmesh_api::workload::Verb;

use super::conn::{Conn, Expect, Parked, Stage};
use super::issue::Work;
use super::resp::{ErrorReply, Redirect, Shape, Skimmed, Value, classify, fits, kind};
use super::routing::NODES_MAX;
use super::thread::{LoadThread, NOBODY, Timer};
use super::workload::{ASKING, Digits, encode_get};
use crate::redis_tls::is_refusal;

/// First wait before an operation is sent again, microseconds; doubles each time.
const RETRY_MIN_US: u64 = 2_000;

/// Longest such wait, microseconds.
const RETRY_MAX_US: u64 = 500_000;

/// Redirections of one operation that are followed at once; then it waits like a retry.
const REDIRECTS_MAX: u8 = 5;

/// How an operation ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Fate {
    Acked,
    Failed,
    Unknown,
}

/// A reply that is neither `+OK` nor an error.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Answer<'a> {
    shape: Shape,
    /// Whether it says that there is no such key.
    missed: bool,
    /// The value, where it was kept.
    value: Option<&'a [u8]>,
}

impl<'a> From<Value<'a>> for Answer<'a> {
    fn from(value: Value<'a>) -> Self {
        let shape = value.shape();
        match value {
            Value::Int(_) => Self { shape, missed: false, value: None },
            Value::Bulk(bytes) => Self { shape, missed: false, value: Some(bytes) },
            Value::Null => Self { shape, missed: true, value: None },
            // Of HGETALL nothing at all, of MGET nothing but nulls.
            Value::Array { len, nulls } => Self { shape, missed: nulls == len, value: None },
        }
    }
}

impl From<Skimmed> for Answer<'_> {
    fn from(skimmed: Skimmed) -> Self {
        let nothing = skimmed.shape == Shape::Array && skimmed.nulls == skimmed.elements;
        Self { shape: skimmed.shape, missed: skimmed.is_null || nothing, value: None }
    }
}

impl LoadThread {
    /// Counts the operation in hand; the lane is free.
    #[inline]
    fn finish(&mut self, index: u32, fate: Fate) {
        match fate {
            Fate::Acked => self.count_ack(index),
            Fate::Failed => self.counts.failed += 1,
            Fate::Unknown => self.counts.unknown += 1,
        }
        if fate != Fate::Acked {
            self.note_exception(index, fate == Fate::Unknown);
            if let Work::ReadBack(_, asked) = &mut self.work {
                asked[index as usize] = None;
            }
        }
        self.lanes[index as usize].ended += 1;
        self.last_answer_us = self.now_us;
        self.issue_next(index);
    }

    #[inline]
    fn count_ack(&mut self, index: u32) {
        let lane = &mut self.lanes[index as usize];
        lane.acked += 1;
        self.counts.acked += 1;
        let service_us = self.now_us - lane.since_us;
        if self.now_us < self.issuing.warm_until_us {
            self.counts.warm_acked += 1;
            return;
        }
        self.recorder.record(service_us);
        if let Some(intended) = &mut self.intended {
            intended.record(self.now_us - lane.due_us);
        }
    }

    fn fail(&mut self, index: u32, kind: &str, message: impl FnOnce() -> String) {
        self.shared.note(kind, message);
        self.finish(index, Fate::Failed);
    }

    /// Sends the operation in hand to whoever serves its slot now.
    #[inline]
    pub fn route(&mut self, index: u32) {
        let route = self.routes[usize::from(self.lanes[index as usize].slot)];
        if route == NOBODY {
            self.ask_refresh();
            return self.retry_later(index);
        }
        self.send(route, Parked { lane: index, asking: false });
    }

    /// Queues an operation on a connection, or parks it until that is open.
    #[inline]
    fn send(&mut self, target: u16, parked: Parked) {
        let conn = &mut self.conns[usize::from(target)];
        if conn.stage != Stage::Open {
            conn.parked.push_back(parked);
            return self.dial_if_idle(target);
        }
        if parked.asking {
            conn.push(Expect::Asking, self.now_us, |out| out.extend_from_slice(ASKING));
        }
        let lane = &self.lanes[parked.lane as usize];
        conn.push(Expect::Lane(parked.lane), self.now_us, |out| match &self.work {
            Work::Load(source) => source.encode(&lane.prefix, &lane.op, out),
            Work::ReadBack(..) => encode_get(&lane.prefix, &Digits::new(lane.op.key), out),
        });
        self.mark_dirty(target);
    }

    #[inline]
    pub fn mark_dirty(&mut self, index: u16) {
        let conn = &mut self.conns[usize::from(index)];
        if !conn.dirty {
            conn.dirty = true;
            self.dirty.push(index);
        }
    }

    /// `+OK`; false when the connection is gone.
    #[inline]
    pub fn on_ok(&mut self, index: u16) -> bool {
        let conn = &mut self.conns[usize::from(index)];
        conn.mark_answered();
        match conn.pop() {
            Some(Expect::Lane(lane))
                if matches!(self.lanes[lane as usize].op.verb, Verb::Set | Verb::Mset) =>
            {
                conn.acked += 1;
                self.finish(lane, Fate::Acked);
            }
            Some(Expect::Asking) => {}
            Some(Expect::Auth { .. }) => self.conns[usize::from(index)].logged_in = true,
            Some(Expect::Lane(lane)) => return self.lose_step(index, lane, "+OK"),
            None => {
                self.lose_garbage(index, b"+OK");
                return false;
            }
        }
        true
    }

    /// A value; false when the connection is gone.
    #[inline]
    pub fn on_value(&mut self, index: u16, answer: Answer<'_>) -> bool {
        let conn = &mut self.conns[usize::from(index)];
        conn.mark_answered();
        let server = conn.addr;
        let Some(Expect::Lane(lane)) = conn.pop() else {
            self.lose_garbage(index, b"a value");
            return false;
        };
        if !fits(self.lanes[lane as usize].op.verb, answer.shape) {
            return self.lose_step(index, lane, "a value");
        }
        self.conns[usize::from(index)].acked += 1;
        self.counts.missed += u64::from(answer.missed);
        if let Work::ReadBack(cursor, asked) = &mut self.work
            && let Some(key) = asked[lane as usize].take()
        {
            asked[lane as usize] = cursor.take(&key, answer.value, server);
        }
        self.finish(lane, Fate::Acked);
        true
    }

    /// The server answered a command with what can't be its answer: nothing that it has
    /// said or will say on this connection is to be trusted.
    #[cold]
    fn lose_step(&mut self, index: u16, lane: u32, what: &str) -> bool {
        let verb = self.lanes[lane as usize].op.verb.name();
        self.lose_garbage(index, format!("{what} to {verb}").as_bytes());
        // Taken off the connection already.
        self.finish(lane, Fate::Unknown);
        false
    }

    /// An error line; false when the connection is gone.
    #[cold]
    pub fn on_error(&mut self, index: u16, line: &[u8]) -> bool {
        let reply = classify(line);
        let conn = &mut self.conns[usize::from(index)];
        let sender = conn.addr;
        if reply == ErrorReply::Rejected && !conn.answered {
            self.shared.note("rejected", || format!("{sender}: {}", String::from_utf8_lossy(line)));
            self.lose_rejected(index);
            return false;
        }
        conn.mark_answered();
        let lane = match conn.pop() {
            Some(Expect::Lane(lane)) => lane,
            // The command behind it gets an answer of its own.
            Some(Expect::Asking) => return true,
            // Another one may be right, or was.
            Some(Expect::Auth { last }) if !last || conn.logged_in => return true,
            Some(Expect::Auth { .. }) => {
                self.shared.note("auth", || format!("{sender}: {}", String::from_utf8_lossy(line)));
                return true;
            }
            None => {
                self.lose_garbage(index, line);
                return false;
            }
        };
        match reply {
            ErrorReply::Moved(to) => self.on_moved(lane, to, sender),
            ErrorReply::Ask(to) => self.on_ask(lane, to, sender),
            ErrorReply::Retry => {
                self.counts.retried += 1;
                self.ask_refresh();
                self.retry_later(lane);
            }
            ErrorReply::Rejected | ErrorReply::Fatal => {
                self.fail(lane, kind(line), || format!("{sender}: {}", String::from_utf8_lossy(line)));
            }
        }
        true
    }

    fn on_moved(&mut self, lane: u32, to: Redirect<'_>, sender: SocketAddr) {
        self.counts.moved += 1;
        self.ask_refresh();
        if let Some(target) = to.addr(sender).and_then(|addr| self.conn_for(addr)) {
            self.routes[usize::from(to.slot)] = target;
            if self.redirect_now(lane) {
                return self.route(lane);
            }
        }
        self.retry_later(lane);
    }

    fn on_ask(&mut self, lane: u32, to: Redirect<'_>, sender: SocketAddr) {
        self.counts.asked += 1;
        if let Some(target) = to.addr(sender).and_then(|addr| self.conn_for(addr))
            && self.redirect_now(lane)
        {
            return self.send(target, Parked { lane, asking: true });
        }
        self.ask_refresh();
        self.retry_later(lane);
    }

    /// Whether this redirection may be followed without a wait.
    fn redirect_now(&mut self, index: u32) -> bool {
        let lane = &mut self.lanes[index as usize];
        lane.redirects = lane.redirects.saturating_add(1);
        lane.redirects <= REDIRECTS_MAX
    }

    /// Sends the operation in hand again after a while, as long as its deadline allows.
    fn retry_later(&mut self, index: u32) {
        let lane = &mut self.lanes[index as usize];
        let wait_us = (RETRY_MIN_US << lane.attempts.min(16)).min(RETRY_MAX_US);
        lane.attempts = lane.attempts.saturating_add(1);
        let deadline_us = lane.since_us + self.limits.write_deadline;
        // Never before now: a zero wait must not spin within one turn.
        let at_us = (self.now_us + wait_us).min(deadline_us.max(self.now_us + RETRY_MIN_US));
        self.timers.push(Reverse((at_us, Timer::Retry(index))));
    }

    /// A retry's time has come.
    pub fn retry_now(&mut self, index: u32) {
        let lane = &mut self.lanes[index as usize];
        lane.redirects = 0;
        if self.now_us >= lane.since_us + self.limits.write_deadline {
            let slot = lane.slot;
            return self
                .fail(index, "deadline", || format!("no server took a command to slot {slot} in time"));
        }
        self.route(index);
    }

    /// The connection to `addr`, made known if it is new; `None` when too many are.
    pub fn conn_for(&mut self, addr: SocketAddr) -> Option<u16> {
        if let Some(index) = self.by_addr.get(&addr) {
            return Some(*index);
        }
        if self.conns.len() >= NODES_MAX {
            return None;
        }
        let index = self.conns.len() as u16;
        self.conns.push(Conn::new(addr));
        self.by_addr.insert(addr, index);
        Some(index)
    }

    /// Opens the connection unless that has been begun or has to wait.
    pub fn dial_if_idle(&mut self, index: u16) {
        if self.conns[usize::from(index)].stage == Stage::Idle {
            self.dial(index);
        }
    }

    fn dial(&mut self, index: u16) {
        let conn = &mut self.conns[usize::from(index)];
        let token = Token(usize::from(index));
        if let Err(e) = conn.dial(self.tls.as_ref(), self.poll.registry(), token, self.now_us) {
            self.note_loss(index, &e);
            self.back_off(index);
        }
    }

    /// The wait after a loss is over: dial if anything waits for it.
    pub fn dial_again(&mut self, index: u16) {
        let conn = &mut self.conns[usize::from(index)];
        if conn.stage != Stage::BackingOff {
            return;
        }
        conn.stage = Stage::Idle;
        if !conn.parked.is_empty() {
            self.dial(index);
        }
    }

    fn back_off(&mut self, index: u16) {
        let conn = &mut self.conns[usize::from(index)];
        // A failed dial may have left a socket behind.
        debug_assert!(!conn.owes());
        conn.sever();
        conn.stage = Stage::BackingOff;
        let at_us = self.now_us + conn.next_backoff_us();
        self.timers.push(Reverse((at_us, Timer::Dial(index))));
        self.ask_refresh();
    }

    /// The connection opened: the password and what waited for it are queued.
    pub fn unpark(&mut self, index: u16) {
        // All at once: a login that fails leaves an earlier one's in force.
        let logins = self.logins.get();
        for (at, login) in logins.iter().enumerate() {
            let last = at + 1 == logins.len();
            let conn = &mut self.conns[usize::from(index)];
            conn.push(Expect::Auth { last }, self.now_us, |out| out.extend_from_slice(&login.command()));
            self.mark_dirty(index);
        }
        for parked in std::mem::take(&mut self.conns[usize::from(index)].parked) {
            self.send(index, parked);
        }
    }

    fn note_loss(&self, index: u16, error: &io::Error) {
        let addr = self.conns[usize::from(index)].addr;
        self.shared.note("connection", || format!("{addr}: {error}"));
    }

    /// The connection is gone: what may have reached the server has an unknown fate,
    /// the rest waits for the next connection.
    pub fn lose(&mut self, index: u16, error: &io::Error) {
        self.note_loss(index, error);
        let owed = self.conns[usize::from(index)].sever();
        self.settle(index, owed);
    }

    /// As [`LoadThread::lose`], of an error of reading: a server that has not taken the TLS
    /// certificate has read nothing either.
    pub fn lose_in_read(&mut self, index: u16, error: &io::Error) {
        if is_refusal(error) && !self.conns[usize::from(index)].answered {
            self.note_loss(index, error);
            return self.lose_rejected(index);
        }
        self.lose(index, error);
    }

    pub fn lose_garbage(&mut self, index: u16, bytes: &[u8]) {
        let text: String = String::from_utf8_lossy(bytes).chars().take(40).collect();
        self.lose(index, &io::Error::other(format!("answered out of step with {text:?}")));
    }

    /// The server turned the connection away without reading from it: nothing that was
    /// sent on it was executed.
    fn lose_rejected(&mut self, index: u16) {
        let mut owed = self.conns[usize::from(index)].sever();
        owed.iter_mut().for_each(|(_, sent)| *sent = false);
        self.counts.retried +=
            owed.iter().filter(|(expect, _)| matches!(expect, Expect::Lane(_))).count() as u64;
        self.settle(index, owed);
    }

    fn settle(&mut self, index: u16, owed: Vec<(Expect, bool)>) {
        // First, so that what is issued below is parked here and not dialled at once.
        self.back_off(index);
        let parked = std::mem::take(&mut self.conns[usize::from(index)].parked);
        for (expect, sent) in owed {
            match expect {
                Expect::Lane(lane) if sent => self.finish(lane, Fate::Unknown),
                Expect::Lane(lane) => self.route(lane),
                Expect::Asking | Expect::Auth { .. } => {}
            }
        }
        for waiting in parked {
            // Whether the slot is still being migrated here only its owner can tell.
            self.route(waiting.lane);
        }
    }

    /// What waits for connections that are not open is sent by the newest map.
    pub fn reroute_parked(&mut self) {
        for index in 0..self.conns.len() {
            for parked in std::mem::take(&mut self.conns[index].parked) {
                if parked.asking {
                    self.conns[index].parked.push_back(parked);
                } else {
                    self.route(parked.lane);
                }
            }
        }
    }

    /// Hung servers, dials that hang, and parked writes whose deadline has passed.
    pub fn enforce_timeouts(&mut self) {
        for index in 0..self.conns.len() as u16 {
            let conn = &mut self.conns[usize::from(index)];
            let waited_us = self.now_us.saturating_sub(conn.progress_us);
            match conn.stage {
                Stage::Open if conn.owes() && waited_us >= self.limits.reply_timeout => {
                    self.lose(index, &io::Error::new(io::ErrorKind::TimedOut, "no answer in time"));
                }
                Stage::Connecting(since_us) if self.now_us >= since_us + self.limits.connect_timeout => {
                    self.lose(index, &io::Error::new(io::ErrorKind::TimedOut, "no connection in time"));
                }
                _ => {}
            }
            self.expire_parked(index);
        }
    }

    fn expire_parked(&mut self, index: u16) {
        let conn = &mut self.conns[usize::from(index)];
        if conn.parked.is_empty() {
            return;
        }
        let addr = conn.addr;
        for parked in std::mem::take(&mut conn.parked) {
            let since_us = self.lanes[parked.lane as usize].since_us;
            if self.now_us >= since_us + self.limits.write_deadline {
                self.fail(parked.lane, "unreachable", || format!("{addr}: not reachable in time"));
            } else {
                self.conns[usize::from(index)].parked.push_back(parked);
            }
        }
    }

    /// Closes the account now: what may have been sent is unknown, the rest failed.
    pub fn give_up(&mut self) {
        let mut unknown: Vec<u32> = Vec::new();
        for conn in &mut self.conns {
            let sent = conn.sever().into_iter().filter_map(|(expect, sent)| match expect {
                Expect::Lane(lane) if sent => Some(lane),
                _ => None,
            });
            unknown.extend(sent);
            conn.parked.clear();
        }
        self.timers.clear();
        for lane in &unknown {
            self.note_exception(*lane, true);
            self.lanes[*lane as usize].ended += 1;
        }
        let unknown = unknown.len() as u64;
        let failed = self.counts.in_flight() - unknown;
        self.counts.unknown += unknown;
        self.counts.failed += failed;
        self.shared.note("given up", || format!("{unknown} operations without an answer, {failed} not sent"));
    }
}
