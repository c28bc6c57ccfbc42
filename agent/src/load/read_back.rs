//! Which keys a read-back asks for next, and what it makes of the answers.
//!
//! The keys of closed epochs are known exactly. An epoch whose agent was killed may have
//! gone further than its file says, by what was issued since the file was last put away:
//! its lanes are followed key by key until so many in a row are missing that a lost one
//! among them is no explanation.

use std::net::SocketAddr;
use std::ops::Range;
use std::sync::Arc;

use redmesh_api::run::{Findings, ReadBack};

use super::ReadBackTask;
use super::workload::{Digits, KeyPrefix, is_value_of, worker_uuid};
use super::written::Written;

/// Examples of lost and wrong keys that are kept.
const EXAMPLES_MAX: usize = 5;

/// Missing keys in a row after which a lane is followed no further.
const MISSES_MAX: u8 = 32;

const ALL: u32 = ReadBack::ALL;

/// What should be under a key.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Expectation {
    /// An acked write.
    Acked,
    /// Perhaps a write whose fate is unknown.
    Unknown,
    /// Perhaps a write that came after the file: the lane's next is asked for too.
    Beyond {
        /// Index in the task.
        epoch: u32,
        lane: u32,
        /// Which of the lane's operations.
        index: u64,
        /// Missing ones in a row before it.
        misses: u8,
    },
}

/// A key to read.
#[derive(Debug, Clone)]
pub struct Asked {
    pub prefix: KeyPrefix,
    pub n: u64,
    pub expected: Expectation,
}

/// One thread's part of a read-back: a range of all lanes of all epochs.
#[derive(Debug)]
pub struct Cursor {
    task: Arc<ReadBackTask>,
    /// Lanes still to begin, counted over all epochs.
    lanes: Range<u64>,
    now: Option<LaneCursor>,
    /// Error diffusion of the sampling, millionths.
    carried: u64,
    pub findings: Findings,
    /// Keys found beyond what the files say.
    pub beyond: u64,
}

/// The lane whose keys are being asked for.
#[derive(Debug)]
struct LaneCursor {
    epoch: u32,
    lane: u32,
    prefix: KeyPrefix,
    /// Next of its operations.
    index: u64,
    /// First that need not be asked for.
    end: u64,
    /// Operations whose fate is not acked: index and whether it is unknown; ascending.
    exceptions: Vec<(u64, bool)>,
    follow: bool,
}

impl Cursor {
    /// The part `index` of `parts`.
    pub fn new(task: Arc<ReadBackTask>, index: usize, parts: usize) -> Self {
        let lanes: u64 = task.written.iter().map(|written| written.ended.len() as u64).sum();
        let bound = |part: usize| lanes * part as u64 / parts.max(1) as u64;
        Self {
            lanes: bound(index)..bound(index + 1),
            task,
            now: None,
            carried: 0,
            findings: Findings::default(),
            beyond: 0,
        }
    }

    /// The next key; `None` when there are no more.
    pub fn next(&mut self) -> Option<Asked> {
        loop {
            if self.now.is_none() {
                let lane = self.lanes.next()?;
                self.now = Some(LaneCursor::new(&self.task, lane));
            }
            let all = self.task.per_million >= ALL;
            let lane = self.now.as_mut()?;
            // How many to pass over until the sampling takes one.
            let rate = u64::from(self.task.per_million.clamp(1, ALL));
            let step = (u64::from(ALL) - self.carried).div_ceil(rate) - 1;
            let written = &self.task.written[lane.epoch as usize];
            if lane.index.saturating_add(step) < lane.end {
                lane.index += step;
                self.carried = self.carried + (step + 1) * rate - u64::from(ALL);
                let index = lane.index;
                lane.index += 1;
                let exception = lane.exceptions.binary_search_by_key(&index, |(index, _)| *index);
                let expected = match exception.map(|at| lane.exceptions[at].1) {
                    // Surely not executed: nothing to be seen.
                    Ok(false) => continue,
                    Ok(true) => Expectation::Unknown,
                    Err(_) => Expectation::Acked,
                };
                return Some(Asked {
                    prefix: lane.prefix.clone(),
                    n: number(written, lane.lane, index),
                    expected,
                });
            }
            self.carried += lane.end.saturating_sub(lane.index) * rate;
            let done = self.now.take()?;
            if done.follow && all {
                return Some(self.beyond(done.epoch, done.lane, done.end, 0));
            }
        }
    }

    fn beyond(&self, epoch: u32, lane: u32, index: u64, misses: u8) -> Asked {
        let written = &self.task.written[epoch as usize];
        Asked {
            prefix: prefix_of(written, lane),
            n: number(written, lane, index),
            expected: Expectation::Beyond { epoch, lane, index, misses },
        }
    }

    /// Takes the answer to a key (`None`: not there) of `server`; a key that has to be
    /// asked for because of it.
    pub fn take(&mut self, asked: &Asked, value: Option<&[u8]>, server: SocketAddr) -> Option<Asked> {
        match asked.expected {
            Expectation::Acked => match value {
                Some(value) if is_value_of(&asked.key(), value) => self.findings.right += 1,
                Some(_) => {
                    self.findings.wrong += 1;
                    self.example(asked, "holds something else");
                }
                None => {
                    self.findings.lost += 1;
                    self.example(asked, "is not there");
                    add_lost(&mut self.findings, server, 1);
                }
            },
            Expectation::Unknown => match value {
                Some(_) => self.findings.arrived += 1,
                None => self.findings.not_arrived += 1,
            },
            Expectation::Beyond { epoch, lane, index, misses } => {
                self.beyond += u64::from(value.is_some());
                let misses = if value.is_some() { 0 } else { misses + 1 };
                if misses < MISSES_MAX {
                    return Some(self.beyond(epoch, lane, index + 1, misses));
                }
            }
        }
        None
    }

    fn example(&mut self, asked: &Asked, what: &str) {
        if self.findings.examples.len() < EXAMPLES_MAX {
            let key = String::from_utf8_lossy(&asked.key()).into_owned();
            self.findings.examples.push(format!("{key} {what}"));
        }
    }
}

fn add_lost(findings: &mut Findings, server: SocketAddr, more: u64) {
    match findings.lost_at.iter_mut().find(|(known, _)| *known == server) {
        Some((_, count)) => *count += more,
        None => findings.lost_at.push((server, more)),
    }
}

/// What all threads have found together.
///
/// Of what was found beyond the files, as many are acked writes as the ledgers have more
/// than the files; if fewer were found, acked writes are lost.
pub fn sum(task: &ReadBackTask, parts: impl Iterator<Item = (Findings, u64)>) -> Findings {
    let mut sum = Findings::default();
    let mut beyond = 0;
    for (part, part_beyond) in parts {
        beyond += part_beyond;
        sum.right += part.right;
        sum.wrong += part.wrong;
        sum.lost += part.lost;
        sum.arrived += part.arrived;
        sum.not_arrived += part.not_arrived;
        part.lost_at.into_iter().for_each(|(server, count)| add_lost(&mut sum, server, count));
        sum.examples.extend(part.examples);
    }
    sum.examples.truncate(EXAMPLES_MAX);
    let acked_beyond = if task.per_million >= ALL { task.acked_beyond } else { 0 };
    let right = beyond.min(acked_beyond);
    sum.right += right;
    sum.lost += acked_beyond - right;
    sum.arrived += beyond - right;
    sum
}

impl Asked {
    fn key(&self) -> Vec<u8> {
        let mut key = Vec::new();
        self.prefix.append_key(&Digits::new(self.n), &mut key);
        key
    }
}

impl LaneCursor {
    /// Of the lane with this number over all epochs.
    fn new(task: &ReadBackTask, number: u64) -> Self {
        let mut lane = number;
        let mut epoch = 0;
        for written in &task.written {
            let lanes = written.ended.len() as u64;
            if lane < lanes {
                break;
            }
            lane -= lanes;
            epoch += 1;
        }
        let (written, lane) = (&task.written[epoch], lane as u32);
        let ended = written.ended[lane as usize];
        let lap = written.wrap.map_or(u64::MAX, |wrap| lap(wrap, written.pipeline, lane));
        let all = &written.exceptions;
        let first = all.partition_point(|exception| exception.lane < lane);
        let of_lane = all[first..].iter().take_while(|exception| exception.lane == lane);
        // What failed in one lap was written in another.
        let of_lane = of_lane.filter(|_| ended <= lap);
        let exceptions = of_lane.map(|exception| (exception.index, exception.unknown)).collect();
        Self {
            epoch: epoch as u32,
            lane,
            prefix: prefix_of(written, lane),
            index: 0,
            end: ended.min(lap),
            exceptions,
            follow: !written.closed && ended < lap,
        }
    }
}

/// Operations of a lane until its keys repeat.
fn lap(wrap: u64, pipeline: u16, lane: u32) -> u64 {
    let (lanes, lane) = (u64::from(pipeline.max(1)), u64::from(lane) % u64::from(pipeline.max(1)));
    // Numbers lane, lane + D, … below the wrap; where the wrap is no multiple of D, later
    // laps hit the other lanes' keys, which those write as well.
    wrap.saturating_sub(lane).div_ceil(lanes)
}

fn prefix_of(written: &Written, lane: u32) -> KeyPrefix {
    let worker = written.first_worker + lane / u32::from(written.pipeline.max(1));
    KeyPrefix::new(worker_uuid(written.run, written.host, written.epoch, worker))
}

/// The number in the key of a lane's operation.
fn number(written: &Written, lane: u32, index: u64) -> u64 {
    let lanes = u64::from(written.pipeline.max(1));
    let n = index * lanes + u64::from(lane) % lanes;
    written.wrap.map_or(n, |wrap| n % wrap.max(1))
}
