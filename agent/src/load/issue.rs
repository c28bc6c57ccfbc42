//! Who begins an operation, and when: closed loop or schedule, ramp, warm-up, quota; on
//! the same struct as `thread` and `dispatch`.

use std::cmp::Reverse;
use std::collections::VecDeque;
use std::time::Duration;

use redmesh_api::workload::Verb;

use super::read_back::{Asked, Cursor};
use super::schedule::Schedule;
use super::thread::{LoadThread, Timer, us};
use super::workload::{Op, Source};
use super::{ShareSpec, ShareUntil};

/// What the lanes do.
pub(super) enum Work {
    Load(Source),
    /// With the key that each lane has asked for.
    ReadBack(Cursor, Vec<Option<Asked>>),
}

/// What begins an operation.
pub(super) enum Trigger {
    /// The end of the one before, of the same lane.
    Closed,
    /// Its due time and a lane that is free.
    Open(OpenLoop),
}

/// The state of an open loop.
pub(super) struct OpenLoop {
    pub schedule: Schedule,
    /// Operations begun by the schedule.
    pub begun: u64,
    /// Lanes that are free, longest first.
    pub idle: VecDeque<u32>,
}

/// When the thread issues, and how much.
pub(super) struct Issuing {
    pub trigger: Trigger,
    /// When the first was issued, microseconds.
    pub first_us: Option<u64>,
    /// Until then (microseconds) answers are warm-up; unknown before the first issue.
    pub warm_until_us: u64,
    /// Operations that may be issued in all.
    pub quota: u64,
    /// How long they may be, after the first.
    span_us: Option<u64>,
    warm_us: u64,
    ramp_us: u64,
}

impl Issuing {
    /// `writes` and `part_rate` are this thread's part of the share's.
    pub fn new(spec: &ShareSpec, writes: u64, part_rate: Option<f64>) -> Self {
        let (quota, span_us) = match spec.until {
            ShareUntil::Writes(_) => (writes, None),
            ShareUntil::Seconds(seconds) => (u64::MAX, Some(u64::from(seconds) * 1_000_000)),
            ShareUntil::Exhausted => (u64::MAX, None),
        };
        let trigger = part_rate.map_or(Trigger::Closed, |rate| {
            Trigger::Open(OpenLoop {
                schedule: Schedule::new(rate, spec.ramp),
                begun: 0,
                idle: VecDeque::new(),
            })
        });
        Self {
            trigger,
            first_us: None,
            warm_until_us: 0,
            quota,
            span_us,
            warm_us: us(spec.warm_up),
            ramp_us: us(spec.ramp),
        }
    }

    /// When issuing ends, microseconds; `None` while or where no time says so.
    pub fn end_us(&self) -> Option<u64> {
        Some(self.first_us? + self.span_us?)
    }

    /// How long it has been going on until `us`, and how much of that was warm-up.
    pub fn active_us(&self, us: u64) -> (u64, u64) {
        let active_us = self.first_us.map_or(0, |first| us.saturating_sub(first));
        (active_us, active_us.min(self.warm_us))
    }

    /// Operations whose time has come until `us` and that were not begun.
    pub fn behind(&self, us: u64) -> u64 {
        match (&self.trigger, self.first_us) {
            (Trigger::Open(open), Some(first)) => {
                let until = self.end_us().map_or(us, |end| us.min(end.saturating_sub(1)));
                let due = open.schedule.due(until.saturating_sub(first)).min(self.quota);
                due.saturating_sub(open.begun)
            }
            _ => 0,
        }
    }
}

impl LoadThread {
    /// Begins: in a closed loop all lanes at once, or one after the other in a ramp.
    pub fn begin(&mut self) {
        self.shared.begin();
        self.issuing.first_us = Some(self.now_us);
        self.issuing.warm_until_us = self.now_us + self.issuing.warm_us;
        let lanes = self.lanes.len() as u32;
        match &mut self.issuing.trigger {
            Trigger::Open(open) => open.idle.extend(0..lanes),
            Trigger::Closed if self.issuing.ramp_us > 0 => {
                for lane in 0..lanes {
                    let after_us = self.issuing.ramp_us * u64::from(lane) / u64::from(lanes);
                    self.timers.push(Reverse((self.now_us + after_us, Timer::Begin(lane))));
                }
            }
            Trigger::Closed => (0..lanes).for_each(|lane| self.issue(lane, self.now_us)),
        }
    }

    /// Begins what is due and can be begun, in an open loop.
    pub fn keep_schedule(&mut self) {
        let Some(first_us) = self.issuing.first_us else { return };
        while self.may_issue()
            && let Trigger::Open(open) = &mut self.issuing.trigger
        {
            let due_us = first_us + open.schedule.due_us(open.begun);
            if due_us > self.now_us {
                return;
            }
            let Some(lane) = open.idle.pop_front() else { return };
            open.begun += 1;
            self.issue(lane, due_us);
        }
    }

    /// How long until the next operation is due that a lane is free for.
    pub fn next_due(&self) -> Option<Duration> {
        let Trigger::Open(open) = &self.issuing.trigger else { return None };
        if open.idle.is_empty() || !self.may_issue() {
            return None;
        }
        let due_us = self.issuing.first_us? + open.schedule.due_us(open.begun);
        Some(Duration::from_micros(due_us.saturating_sub(self.now_us)))
    }

    /// The lane is free.
    #[inline]
    pub fn issue_next(&mut self, index: u32) {
        match &mut self.issuing.trigger {
            Trigger::Closed => self.issue(index, self.now_us),
            Trigger::Open(open) => open.idle.push_back(index),
        }
    }

    /// Begins the lane's next operation, if there is one to do.
    #[inline]
    pub fn issue(&mut self, index: u32, due_us: u64) {
        if !self.may_issue() {
            return;
        }
        let lane = &mut self.lanes[index as usize];
        match &mut self.work {
            Work::Load(source) => {
                // Lanes of one worker take turns at its counter.
                let remainder = u64::from(index % self.pipeline);
                lane.op = source.draw(lane.ended * u64::from(self.pipeline) + remainder);
                lane.slot = source.slot(&lane.prefix, &lane.op);
            }
            Work::ReadBack(cursor, asked) => {
                let Some(next) = asked[index as usize].take().or_else(|| cursor.next()) else {
                    self.exhausted = true;
                    return;
                };
                lane.prefix = next.prefix.clone();
                lane.op = Op { verb: Verb::Get, key: next.n, bytes: 0 };
                lane.slot = lane.prefix.slot(&super::workload::Digits::new(next.n));
                asked[index as usize] = Some(next);
            }
        }
        lane.since_us = self.now_us;
        lane.due_us = due_us;
        lane.attempts = 0;
        lane.redirects = 0;
        self.counts.issued += 1;
        self.route(index);
    }
}
