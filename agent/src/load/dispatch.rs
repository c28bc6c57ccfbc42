//! The life of one write: issued, routed, answered or not, and counted exactly once as
//! acked, failed or unknown.
//!
//! The rule for sending again: only after an answer that proves that the write was not
//! executed, or when no byte of it was handed to the kernel.

use std::cmp::Reverse;
use std::io;
use std::net::SocketAddr;

use mio::Token;

use super::conn::{Conn, Expect, Parked, Stage};
use super::resp::{ErrorReply, Redirect, classify, kind};
use super::routing::NODES_MAX;
use super::thread::{LoadThread, NOBODY, Timer};
use super::workload::{ASKING, Digits};

/// First wait before a write is sent again, microseconds; doubles each time.
const RETRY_MIN_US: u64 = 2_000;

/// Longest such wait, microseconds.
const RETRY_MAX_US: u64 = 500_000;

/// Redirections of one write that are followed at once; then it waits like a retry.
const REDIRECTS_MAX: u8 = 5;

/// How a write ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Fate {
    Acked,
    Failed,
    Unknown,
}

impl LoadThread {
    /// Begins the worker's next write, if there is one to do.
    #[inline]
    pub fn issue_next(&mut self, index: u32) {
        if !self.may_issue() {
            return;
        }
        self.counts.issued += 1;
        let worker = &mut self.workers[index as usize];
        worker.since_us = self.now_us;
        worker.attempts = 0;
        worker.redirects = 0;
        let digits = Digits::new(worker.n);
        worker.slot = worker.prefix.slot(&digits);
        self.route_digits(index, &digits);
    }

    /// Counts the write in hand and goes on to the next.
    #[inline]
    fn finish(&mut self, index: u32, fate: Fate) {
        let worker = &mut self.workers[index as usize];
        worker.n += 1;
        match fate {
            Fate::Acked => {
                worker.acked += 1;
                self.counts.acked += 1;
                let service_us = self.now_us - worker.since_us;
                self.recorder.record(service_us);
                self.pace.acked(service_us);
            }
            Fate::Failed => self.counts.failed += 1,
            Fate::Unknown => self.counts.unknown += 1,
        }
        self.last_answer_us = self.now_us;
        self.issue_next(index);
    }

    fn fail(&mut self, index: u32, kind: &str, message: impl FnOnce() -> String) {
        self.shared.note(kind, message);
        self.finish(index, Fate::Failed);
    }

    /// Sends the write in hand to whoever serves its slot now.
    fn route(&mut self, index: u32) {
        let digits = Digits::new(self.workers[index as usize].n);
        self.route_digits(index, &digits);
    }

    #[inline]
    fn route_digits(&mut self, index: u32, digits: &Digits) {
        let route = self.routes[usize::from(self.workers[index as usize].slot)];
        if route == NOBODY {
            self.ask_refresh();
            return self.retry_later(index);
        }
        self.send(route, Parked { worker: index, asking: false }, digits);
    }

    /// Queues a write on a connection, or parks it until that is open.
    #[inline]
    fn send(&mut self, target: u16, write: Parked, digits: &Digits) {
        let conn = &mut self.conns[usize::from(target)];
        if conn.stage != Stage::Open {
            conn.parked.push_back(write);
            if conn.stage == Stage::Idle {
                self.dial(target);
            }
            return;
        }
        if write.asking {
            conn.push(Expect::Asking, self.now_us, |out| out.extend_from_slice(ASKING));
        }
        let prefix = &self.workers[write.worker as usize].prefix;
        conn.push(Expect::Set(write.worker), self.now_us, |out| prefix.encode_set(digits, out));
        if !conn.dirty {
            conn.dirty = true;
            self.dirty.push(target);
        }
    }

    /// `+OK`; false when the connection is gone.
    #[inline]
    pub fn on_ok(&mut self, index: u16) -> bool {
        let conn = &mut self.conns[usize::from(index)];
        conn.mark_answered();
        match conn.pop() {
            Some(Expect::Set(worker)) => self.finish(worker, Fate::Acked),
            Some(Expect::Asking | Expect::Auth) => {}
            None => {
                self.lose_garbage(index, b"+OK");
                return false;
            }
        }
        true
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
        let worker = match conn.pop() {
            Some(Expect::Set(worker)) => worker,
            // The SET behind it gets an answer of its own.
            Some(Expect::Asking) => return true,
            Some(Expect::Auth) => {
                self.shared.note("auth", || format!("{sender}: {}", String::from_utf8_lossy(line)));
                return true;
            }
            None => {
                self.lose_garbage(index, line);
                return false;
            }
        };
        match reply {
            ErrorReply::Moved(to) => self.on_moved(worker, to, sender),
            ErrorReply::Ask(to) => self.on_ask(worker, to, sender),
            ErrorReply::Retry => {
                self.counts.retried += 1;
                self.ask_refresh();
                self.retry_later(worker);
            }
            ErrorReply::Rejected | ErrorReply::Fatal => {
                self.fail(worker, kind(line), || format!("{sender}: {}", String::from_utf8_lossy(line)));
            }
        }
        true
    }

    fn on_moved(&mut self, worker: u32, to: Redirect<'_>, sender: SocketAddr) {
        self.counts.moved += 1;
        self.ask_refresh();
        if let Some(target) = to.addr(sender).and_then(|addr| self.conn_for(addr)) {
            self.routes[usize::from(to.slot)] = target;
            if self.redirect_now(worker) {
                return self.route(worker);
            }
        }
        self.retry_later(worker);
    }

    fn on_ask(&mut self, worker: u32, to: Redirect<'_>, sender: SocketAddr) {
        self.counts.asked += 1;
        if let Some(target) = to.addr(sender).and_then(|addr| self.conn_for(addr))
            && self.redirect_now(worker)
        {
            let digits = Digits::new(self.workers[worker as usize].n);
            return self.send(target, Parked { worker, asking: true }, &digits);
        }
        self.ask_refresh();
        self.retry_later(worker);
    }

    /// Whether this redirection may be followed without a wait.
    fn redirect_now(&mut self, worker: u32) -> bool {
        let worker = &mut self.workers[worker as usize];
        worker.redirects = worker.redirects.saturating_add(1);
        worker.redirects <= REDIRECTS_MAX
    }

    /// Sends the write in hand again after a while, as long as its deadline allows.
    fn retry_later(&mut self, index: u32) {
        let worker = &mut self.workers[index as usize];
        let wait_us = (RETRY_MIN_US << worker.attempts.min(16)).min(RETRY_MAX_US);
        worker.attempts = worker.attempts.saturating_add(1);
        let deadline_us = worker.since_us + self.limits.write_deadline;
        // Never before now: a zero wait must not spin within one turn.
        let at_us = (self.now_us + wait_us).min(deadline_us.max(self.now_us + RETRY_MIN_US));
        self.timers.push(Reverse((at_us, Timer::Retry(index))));
    }

    /// A retry's time has come.
    pub fn retry_now(&mut self, index: u32) {
        let worker = &mut self.workers[index as usize];
        worker.redirects = 0;
        if self.now_us >= worker.since_us + self.limits.write_deadline {
            let slot = worker.slot;
            return self.fail(index, "deadline", || format!("no server took a write to slot {slot} in time"));
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

    fn dial(&mut self, index: u16) {
        let conn = &mut self.conns[usize::from(index)];
        if let Err(e) = conn.dial(self.poll.registry(), Token(usize::from(index)), self.now_us) {
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
        if let Some(auth) = &self.auth {
            let conn = &mut self.conns[usize::from(index)];
            conn.push(Expect::Auth, self.now_us, |out| out.extend_from_slice(auth));
        }
        for write in std::mem::take(&mut self.conns[usize::from(index)].parked) {
            let digits = Digits::new(self.workers[write.worker as usize].n);
            self.send(index, write, &digits);
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
            owed.iter().filter(|(expect, _)| matches!(expect, Expect::Set(_))).count() as u64;
        self.settle(index, owed);
    }

    fn settle(&mut self, index: u16, owed: Vec<(Expect, bool)>) {
        // First, so that what is issued below is parked here and not dialled at once.
        self.back_off(index);
        let parked = std::mem::take(&mut self.conns[usize::from(index)].parked);
        for (expect, sent) in owed {
            match expect {
                Expect::Set(worker) if sent => self.finish(worker, Fate::Unknown),
                Expect::Set(worker) => self.route(worker),
                Expect::Asking | Expect::Auth => {}
            }
        }
        for write in parked {
            // Whether the slot is still being migrated here only its owner can tell.
            self.route(write.worker);
        }
    }

    /// What waits for connections that are not open is sent by the newest map.
    pub fn reroute_parked(&mut self) {
        for index in 0..self.conns.len() {
            for write in std::mem::take(&mut self.conns[index].parked) {
                if write.asking {
                    self.conns[index].parked.push_back(write);
                } else {
                    self.route(write.worker);
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
        for write in std::mem::take(&mut conn.parked) {
            let since_us = self.workers[write.worker as usize].since_us;
            if self.now_us >= since_us + self.limits.write_deadline {
                self.fail(write.worker, "unreachable", || format!("{addr}: not reachable in time"));
            } else {
                self.conns[usize::from(index)].parked.push_back(write);
            }
        }
    }

    /// Closes the account now: what may have been sent is unknown, the rest failed.
    pub fn give_up(&mut self) {
        let mut unknown = 0;
        for conn in &mut self.conns {
            let owed = conn.sever();
            unknown +=
                owed.iter().filter(|(expect, sent)| *sent && matches!(expect, Expect::Set(_))).count() as u64;
            conn.parked.clear();
        }
        let failed = self.counts.in_flight() - unknown;
        self.counts.unknown += unknown;
        self.counts.failed += failed;
        self.timers.clear();
        self.shared.note("given up", || format!("{unknown} writes without an answer, {failed} not sent"));
    }
}
