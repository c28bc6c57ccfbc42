//! One server's life as a pure state machine: events in, effects out, time passed in.
//!
//! It holds no process and does no IO. Two things are true of it whatever happens: it
//! never asks for a second process before the first is known to have ended or failed,
//! and never asks to end one unless a stop was asked for.

use std::net::SocketAddr;
use std::time::{Duration, Instant};

use super::{InstanceStatus, Phase, Run};

/// Pause before the first restart; doubled for each exit in a row.
pub const BACKOFF_MIN: Duration = Duration::from_millis(100);
/// The longest pause between restarts.
pub const BACKOFF_MAX: Duration = Duration::from_secs(30);
/// A server that lived this long starts with a clean slate.
pub const HEALTHY_AFTER: Duration = Duration::from_secs(60);
/// This many exits…
pub const CRASH_EXITS: usize = 5;
/// … within this time are a crash loop.
pub const CRASH_WINDOW: Duration = Duration::from_secs(60);
/// Pause between attempts in a crash loop.
pub const CRASH_RETRY: Duration = Duration::from_secs(60);
/// Pause before what blocks a start is looked at again.
pub const BLOCKED_RETRY: Duration = Duration::from_secs(3);
/// A server that doesn't listen by then is no longer waited for before others start.
pub const START_PATIENCE: Duration = Duration::from_secs(30);
/// A released server that doesn't answer by then no longer keeps others from being released.
pub const RELEASE_PATIENCE: Duration = Duration::from_secs(10);
/// Pause between probes of a server that doesn't answer yet.
pub const PROBE_EVERY: Duration = Duration::from_millis(200);

/// What happened.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Event {
    /// It is wanted, so far.
    Wanted(Run),
    /// It isn't wanted any more: it is left as it is, and not started again.
    Unwanted,
    /// Directory, ports and limits are in order and no server was found.
    Prepared,
    /// Something outside must change first; the words name the remedy.
    Blocked(String),
    /// A server of an earlier supervisor was found.
    Adopted {
        /// Its process.
        pid: u32,
        /// Whether it is stopped (SIGSTOP).
        stopped: bool,
    },
    /// A process was started.
    Spawned {
        /// It.
        pid: u32,
    },
    /// No process could be started.
    SpawnFailed(String),
    /// Its bus port listens.
    BusListening,
    /// It was stopped (SIGSTOP) as asked.
    HoldDone,
    /// It is its turn to be released, if it waits for that.
    Admitted,
    /// It answers.
    Ready {
        /// Its `run_id`.
        run_id: String,
        /// What is amiss all the same, with the remedy.
        note: Option<String>,
    },
    /// It doesn't answer yet, and what it says.
    NotReady(String),
    /// The process has ended.
    Exited {
        /// How, in words: `exit status 1`, `signal 9`.
        status: String,
        /// Last words of its log.
        log_tail: String,
    },
    /// It is to end for good; at `kill_at` by force.
    StopAsked {
        /// When patience ends.
        kill_at: Instant,
    },
    /// Time passed.
    Tick,
}

/// What is to be done.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Effect {
    /// Look for a server that is there already, write the files, check ports and
    /// limits; comes back as `Prepared`, `Adopted` or `Blocked`.
    Prepare,
    /// Start the process; comes back as `Spawned` or `SpawnFailed`.
    Spawn,
    /// SIGSTOP; comes back as `HoldDone`.
    Hold,
    /// SIGCONT.
    Release,
    /// Ask whether it answers; comes back as `Ready` or `NotReady`.
    Probe,
    /// SIGTERM.
    Terminate,
    /// SIGKILL.
    Kill,
}

#[derive(Debug, Clone, PartialEq, Eq)]
enum State {
    Absent,
    Preparing,
    Spawning,
    Alive(Alive),
    Waiting { until: Instant, why: Waiting },
    Stopping { pid: u32, kill_at: Instant, killed: bool },
    Stopped,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Waiting {
    Backoff,
    CrashLoop,
    Blocked,
}

#[derive(Debug, Clone, PartialEq, Eq)]
struct Alive {
    pid: u32,
    since: Instant,
    adopted: bool,
    listening: bool,
    /// It took longer than [`START_PATIENCE`] to listen.
    late: bool,
    hold: HoldState,
    /// When it was released, if it was held.
    released: Option<Instant>,
    ready: bool,
    /// When the last probe went out, until its answer came.
    probing: bool,
    probe_at: Instant,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum HoldState {
    Free,
    Asked,
    Held,
}

/// One server. See the module's words.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Instance {
    addr: SocketAddr,
    wanted: Option<Run>,
    /// Set once it is to end for good: when patience ends.
    stop: Option<Instant>,
    state: State,
    /// Ends within [`CRASH_WINDOW`], oldest first; at most [`CRASH_EXITS`].
    exits: Vec<Instant>,
    /// Ends in a row, for the backoff.
    streak: u32,
    /// In a crash loop until it has lived for [`HEALTHY_AFTER`].
    looping: bool,
    spawns: u32,
    killed: bool,
    /// Least pause between the end of a server that served and the next start.
    restart_pause: Duration,
    run_id: Option<String>,
    problem: Option<String>,
}

impl Instance {
    /// One that is not there.
    pub fn new(addr: SocketAddr) -> Self {
        Self {
            addr,
            wanted: None,
            stop: None,
            state: State::Absent,
            exits: Vec::new(),
            streak: 0,
            looping: false,
            spawns: 0,
            killed: false,
            restart_pause: Duration::ZERO,
            run_id: None,
            problem: None,
        }
    }

    /// From now on, a server that served and ended is not started again before `pause`
    /// is over.
    pub fn set_restart_pause(&mut self, pause: Duration) {
        self.restart_pause = pause;
    }

    /// Takes one event and says what is to be done, in order.
    pub fn step(&mut self, event: Event, now: Instant) -> Vec<Effect> {
        match event {
            Event::Wanted(run) => self.on_wanted(run, now),
            Event::Unwanted => {
                self.wanted = None;
                if matches!(self.state, State::Waiting { .. }) {
                    self.state = State::Absent;
                }
                Vec::new()
            }
            Event::Prepared => self.on_prepared(),
            Event::Blocked(problem) => self.on_blocked(problem, now),
            Event::Adopted { pid, stopped } => self.on_adopted(pid, stopped, now),
            Event::Spawned { pid } => self.on_spawned(pid, now),
            Event::SpawnFailed(reason) => {
                if self.state == State::Spawning && !self.end_if_stopping() {
                    self.on_ended(format!("could not be started: {reason}"), Duration::ZERO, now);
                }
                Vec::new()
            }
            Event::BusListening => {
                if let State::Alive(alive) = &mut self.state
                    && !alive.listening
                {
                    alive.listening = true;
                    if alive.late {
                        self.problem = None;
                    }
                }
                self.advance(now)
            }
            Event::HoldDone => {
                if let State::Alive(alive) = &mut self.state
                    && alive.hold == HoldState::Asked
                {
                    alive.hold = HoldState::Held;
                }
                self.advance(now)
            }
            Event::Admitted => self.on_admitted(now),
            Event::Ready { run_id, note } => {
                if let State::Alive(alive) = &mut self.state {
                    (alive.probing, alive.ready) = (false, true);
                    (self.run_id, self.problem) = (Some(run_id), note);
                }
                Vec::new()
            }
            Event::NotReady(words) => {
                if let State::Alive(alive) = &mut self.state {
                    (alive.probing, alive.probe_at) = (false, now + PROBE_EVERY);
                    self.problem = Some(words);
                }
                Vec::new()
            }
            Event::Exited { status, log_tail } => self.on_exited(&status, &log_tail, now),
            Event::StopAsked { kill_at } => self.on_stop(kill_at),
            Event::Tick => self.on_tick(now),
        }
    }

    /// When [`Event::Tick`] is due; `None` where only other events matter.
    pub fn due(&self) -> Option<Instant> {
        match &self.state {
            State::Waiting { until, .. } => self.wanted.map(|_| *until),
            State::Stopping { kill_at, killed: false, .. } => Some(*kill_at),
            State::Alive(alive) if self.wants_probe(alive) => Some(alive.probe_at),
            State::Alive(alive) if !alive.listening && !alive.late => Some(alive.since + START_PATIENCE),
            _ => None,
        }
    }

    /// Whether [`Event::BusListening`] is awaited.
    pub fn awaits_bus(&self) -> bool {
        matches!(&self.state, State::Alive(alive) if !alive.listening)
    }

    /// Whether it is on its way up and should count against the bound of starts.
    pub fn starting(&self) -> bool {
        match &self.state {
            State::Preparing | State::Spawning => true,
            State::Alive(alive) => !alive.listening && !alive.late,
            _ => false,
        }
    }

    /// Whether [`Event::Admitted`] is awaited.
    pub fn awaits_release(&self) -> bool {
        self.wanted == Some(Run::Running)
            && matches!(&self.state, State::Alive(alive) if alive.hold != HoldState::Free)
    }

    /// Whether it was released and is still busy with what its peers sent it meanwhile.
    pub fn settling(&self, now: Instant) -> bool {
        match &self.state {
            State::Alive(Alive { released: Some(released), ready: false, .. }) => {
                now.saturating_duration_since(*released) < RELEASE_PATIENCE
            }
            _ => false,
        }
    }

    /// Whether it was stopped on request.
    pub fn stopped(&self) -> bool {
        self.state == State::Stopped
    }

    /// Whether it had to be killed to stop.
    pub fn killed(&self) -> bool {
        self.killed
    }

    /// The process, while there is one.
    pub fn pid(&self) -> Option<u32> {
        match &self.state {
            State::Alive(Alive { pid, .. }) | State::Stopping { pid, .. } => Some(*pid),
            _ => None,
        }
    }

    /// What is known of it.
    pub fn status(&self) -> InstanceStatus {
        let phase = match &self.state {
            State::Absent => Phase::Absent,
            State::Preparing | State::Spawning => Phase::Starting,
            State::Alive(alive) if alive.hold == HoldState::Held => Phase::Held,
            State::Alive(alive) if alive.ready => Phase::Running,
            State::Alive(_) => Phase::Starting,
            State::Waiting { until, why: Waiting::Backoff } => {
                Phase::Backoff { until: *until, exits: self.exits.len() as u32 }
            }
            State::Waiting { why: Waiting::CrashLoop, .. } => Phase::CrashLoop,
            State::Waiting { why: Waiting::Blocked, .. } => Phase::Blocked,
            State::Stopping { .. } => Phase::Stopping,
            State::Stopped => Phase::Stopped,
        };
        InstanceStatus {
            addr: self.addr,
            phase,
            pid: self.pid(),
            run_id: self.run_id.clone(),
            problem: self.problem.clone(),
            restarts: self.spawns.saturating_sub(1),
            adopted: matches!(&self.state, State::Alive(alive) if alive.adopted),
        }
    }

    fn on_wanted(&mut self, run: Run, now: Instant) -> Vec<Effect> {
        if self.stop.is_some() {
            return Vec::new();
        }
        // Releasing is final: a server that clients may be using is not stopped again.
        if self.wanted != Some(Run::Running) {
            self.wanted = Some(run);
        }
        match self.state {
            State::Absent => {
                self.state = State::Preparing;
                vec![Effect::Prepare]
            }
            _ => self.advance(now),
        }
    }

    fn on_prepared(&mut self) -> Vec<Effect> {
        if self.state != State::Preparing || self.end_if_stopping() {
            return Vec::new();
        }
        if self.wanted.is_none() {
            self.state = State::Absent;
            return Vec::new();
        }
        self.state = State::Spawning;
        vec![Effect::Spawn]
    }

    fn on_blocked(&mut self, problem: String, now: Instant) -> Vec<Effect> {
        if self.state == State::Preparing && !self.end_if_stopping() {
            self.state = match self.wanted {
                Some(_) => State::Waiting { until: now + BLOCKED_RETRY, why: Waiting::Blocked },
                None => State::Absent,
            };
            self.problem = Some(problem);
        }
        Vec::new()
    }

    fn on_adopted(&mut self, pid: u32, stopped: bool, now: Instant) -> Vec<Effect> {
        match self.state {
            State::Preparing | State::Absent | State::Waiting { .. } => {
                let hold = if stopped { HoldState::Held } else { HoldState::Free };
                self.become_alive(Alive {
                    pid,
                    since: now,
                    adopted: true,
                    // It is stopped only once its bus port listens.
                    listening: stopped,
                    late: false,
                    hold,
                    released: None,
                    ready: false,
                    probing: false,
                    probe_at: now,
                });
                let mut effects = Vec::new();
                if !stopped && self.wanted == Some(Run::Running) {
                    // An earlier supervisor's SIGSTOP may act only now.
                    effects.push(Effect::Release);
                }
                effects.extend(self.advance(now));
                effects
            }
            _ => Vec::new(),
        }
    }

    fn on_admitted(&mut self, now: Instant) -> Vec<Effect> {
        if !self.awaits_release() {
            return Vec::new();
        }
        let State::Alive(alive) = &mut self.state else { return Vec::new() };
        (alive.hold, alive.released, alive.probe_at) = (HoldState::Free, Some(now), now);
        let mut effects = vec![Effect::Release];
        effects.extend(self.advance(now));
        effects
    }

    fn on_spawned(&mut self, pid: u32, now: Instant) -> Vec<Effect> {
        if self.state != State::Spawning {
            return Vec::new();
        }
        self.spawns = self.spawns.saturating_add(1);
        self.become_alive(Alive {
            pid,
            since: now,
            adopted: false,
            listening: false,
            late: false,
            hold: HoldState::Free,
            released: None,
            ready: false,
            probing: false,
            probe_at: now,
        });
        self.advance(now)
    }

    /// Ends the life of one that has no process, if it is to stop.
    fn end_if_stopping(&mut self) -> bool {
        if self.stop.is_some() {
            self.state = State::Stopped;
            self.problem = None;
        }
        self.stop.is_some()
    }

    fn become_alive(&mut self, alive: Alive) {
        self.state = State::Alive(alive);
        self.run_id = None;
        // A crash's words stay until the server has answered.
        if self.streak == 0 {
            self.problem = None;
        }
    }

    fn on_exited(&mut self, status: &str, log_tail: &str, now: Instant) -> Vec<Effect> {
        match &self.state {
            State::Stopping { .. } => {
                self.state = State::Stopped;
                self.problem = None;
            }
            State::Alive(alive) => {
                // One that never served has left nothing for a replica to take over.
                let served = alive.ready || alive.adopted;
                if now.saturating_duration_since(alive.since) >= HEALTHY_AFTER {
                    self.forgive();
                }
                let pause_min = if served { self.restart_pause } else { Duration::ZERO };
                let said = if log_tail.is_empty() { String::new() } else { format!("; it said: {log_tail}") };
                self.on_ended(format!("ended with {status}{said}"), pause_min, now);
            }
            _ => {}
        }
        Vec::new()
    }

    /// It has lived long enough for earlier ends not to count.
    fn forgive(&mut self) {
        (self.streak, self.looping) = (0, false);
        self.exits.clear();
    }

    /// A process ended, or none came to be, without being asked to.
    fn on_ended(&mut self, words: String, pause_min: Duration, now: Instant) {
        self.run_id = None;
        self.streak = self.streak.saturating_add(1);
        self.exits.retain(|&exit| now.saturating_duration_since(exit) < CRASH_WINDOW);
        if self.exits.len() == CRASH_EXITS {
            self.exits.remove(0);
        }
        self.exits.push(now);
        self.looping |= self.exits.len() >= CRASH_EXITS;
        if self.wanted.is_none() {
            self.state = State::Absent;
            self.problem = Some(format!("{} {words}", self.addr));
        } else if self.looping {
            self.state = State::Waiting { until: now + CRASH_RETRY, why: Waiting::CrashLoop };
            self.problem = Some(format!(
                "{} {words}; it ends again and again ({} times in a row) and is tried every {} s: put right \
                 what redis.log and redis.err in its directory name",
                self.addr,
                self.streak,
                CRASH_RETRY.as_secs()
            ));
        } else {
            let doublings = (self.streak - 1).min(16);
            let pause = BACKOFF_MIN.saturating_mul(1 << doublings).min(BACKOFF_MAX);
            let (pause, why) = match pause_min > pause {
                true => (pause_min, ", so that a replica takes over its slots and its keys first"),
                false => (pause, ""),
            };
            self.state = State::Waiting { until: now + pause, why: Waiting::Backoff };
            self.problem =
                Some(format!("{} {words}; started again after {} ms{why}", self.addr, pause.as_millis()));
        }
    }

    fn on_stop(&mut self, kill_at: Instant) -> Vec<Effect> {
        self.wanted = None;
        self.stop = Some(kill_at);
        match &mut self.state {
            State::Alive(_) => self.terminate(kill_at),
            // What is under way comes back as an event and is ended then.
            State::Preparing | State::Spawning | State::Stopped => Vec::new(),
            State::Stopping { kill_at: earlier, .. } => {
                *earlier = kill_at.min(*earlier);
                Vec::new()
            }
            State::Absent | State::Waiting { .. } => {
                self.end_if_stopping();
                Vec::new()
            }
        }
    }

    fn terminate(&mut self, kill_at: Instant) -> Vec<Effect> {
        let State::Alive(alive) = &self.state else { return Vec::new() };
        self.state = State::Stopping { pid: alive.pid, kill_at, killed: false };
        // A stopped process keeps SIGTERM pending until it may run again. Always, for one
        // that was adopted may be about to stop: SIGSTOP acts only once it is scheduled.
        vec![Effect::Release, Effect::Terminate]
    }

    fn on_tick(&mut self, now: Instant) -> Vec<Effect> {
        match &mut self.state {
            State::Waiting { until, .. } if now >= *until && self.wanted.is_some() => {
                self.state = State::Preparing;
                vec![Effect::Prepare]
            }
            State::Stopping { kill_at, killed, .. } if now >= *kill_at && !*killed => {
                *killed = true;
                self.killed = true;
                vec![Effect::Kill]
            }
            State::Alive(alive) => {
                if now.saturating_duration_since(alive.since) >= HEALTHY_AFTER {
                    self.forgive();
                }
                self.note_late(now);
                self.advance(now)
            }
            _ => Vec::new(),
        }
    }

    fn note_late(&mut self, now: Instant) {
        let addr = self.addr;
        if let State::Alive(alive) = &mut self.state
            && !alive.listening
            && !alive.late
            && now.saturating_duration_since(alive.since) >= START_PATIENCE
        {
            alive.late = true;
            self.problem = Some(format!(
                "{addr} runs as pid {} but has not listened at its bus port within {} s; see redis.log in its \
                 directory",
                alive.pid,
                START_PATIENCE.as_secs()
            ));
        }
    }

    fn wants_probe(&self, alive: &Alive) -> bool {
        self.wanted == Some(Run::Running)
            && alive.listening
            && alive.hold == HoldState::Free
            && !alive.ready
            && !alive.probing
    }

    /// What a living server needs next to become what is wanted.
    fn advance(&mut self, now: Instant) -> Vec<Effect> {
        if let Some(kill_at) = self.stop {
            return self.terminate(kill_at);
        }
        let Some(wanted) = self.wanted else { return Vec::new() };
        let mut effects = Vec::new();
        if let State::Alive(alive) = &mut self.state {
            let free = alive.hold == HoldState::Free && alive.listening && !alive.ready;
            if wanted == Run::Held && free {
                alive.hold = HoldState::Asked;
                effects.push(Effect::Hold);
            }
        }
        if let State::Alive(alive) = &self.state
            && self.wants_probe(alive)
            && now >= alive.probe_at
            && let State::Alive(alive) = &mut self.state
        {
            alive.probing = true;
            effects.push(Effect::Probe);
        }
        effects
    }
}

#[cfg(test)]
mod tests;
