//! The supervisor's task: owns the instances, carries out their effects, and feeds
//! what comes of them back as events.
//!
//! It decides nothing about one server's life (that is [`Instance`]); it bounds how
//! many start at once, holds the pidfds, and owns every task that it begins. At its end
//! it waits for starts under way, so that no server appears after it is gone.

use std::collections::{BTreeMap, HashSet, VecDeque};
use std::net::{IpAddr, Ipv4Addr, SocketAddr};
use std::path::PathBuf;
use std::sync::Arc;
use std::time::{Duration, Instant};

use redmesh_api::ids::PlanId;
use rustix::process::Signal;
use tokio::sync::{mpsc, oneshot, watch};
use tokio::task::JoinSet;

use super::cause::{self, OomKills};
use super::instance::{Effect, Event, Instance};
use super::layout::{self, Layout};
use super::process::{self, Found, Process};
use super::starter::{self, Started, Starter};
use super::{
    Command, InstanceStatus, OnExit, STOP_DEADLINE, StopReport, SupervisorError, SupervisorOptions,
    WantedInstance, WantedLevel, probe, sockets,
};

/// Starts at once, for each core: a start is a burst of work on the disk and one core.
const STARTS_PER_CORE_MAX: usize = 2;

/// Pause between two looks at who listens by now, while some start is under way. A look
/// costs microseconds for each of them, and a server that is to be held should not run
/// for long.
const BUS_POLL: Duration = Duration::from_millis(3);

/// How long after SIGKILL a process may take to be gone.
const KILL_WAIT: Duration = Duration::from_secs(5);

/// Between two looks at how many processes the kernel has killed for want of memory; also
/// the longest sleep of the task.
const OOM_LOOK_EVERY: Duration = Duration::from_secs(10);

/// One instance and what is held for it.
struct Entry {
    instance: Instance,
    wanted: Option<(PlanId, WantedInstance)>,
    process: Option<Process>,
    /// Length of redis.log when the process was started.
    log_from: u64,
    /// Why what is wanted can't even be tried.
    conflict: Option<String>,
}

/// What a task brought.
enum Report {
    /// About one process; stale when the instance has another by now.
    Process {
        addr: SocketAddr,
        pid: u32,
        event: Event,
    },
    Started {
        addr: SocketAddr,
        started: Started,
    },
    Leftover(Vec<(SocketAddr, Found)>),
}

/// A stop under way.
struct Stop {
    kill_at: Instant,
    /// Whether servers of earlier levels were looked for.
    search: Search,
    waiters: Vec<oneshot::Sender<StopReport>>,
}

#[derive(Clone, Copy, PartialEq, Eq)]
enum Search {
    /// To be begun once all known instances have come to rest.
    Due,
    UnderWay,
    Done,
}

/// See the module's words.
pub(super) struct Actor {
    options: SupervisorOptions,
    starter: Arc<Starter>,
    publish: watch::Sender<Arc<Vec<InstanceStatus>>>,
    entries: BTreeMap<SocketAddr, Entry>,
    /// Instances that are to be prepared once there is room.
    queue: VecDeque<SocketAddr>,
    starts_max: usize,
    release_max: usize,
    paced: bool,
    oom_kills: Arc<OomKills>,
    oom_look_at: Instant,
    /// Starts: waited for at the end.
    starts: JoinSet<Report>,
    /// Watches and questions: dropped at the end.
    watches: JoinSet<Report>,
    poll_at: Instant,
    stop: Option<Stop>,
}

impl Actor {
    pub(super) fn new(options: SupervisorOptions, publish: watch::Sender<Arc<Vec<InstanceStatus>>>) -> Self {
        let cores = std::thread::available_parallelism().map_or(1, |cores| cores.get());
        Self {
            release_max: options.release_at_once.unwrap_or(cores).max(1),
            starter: Arc::new(Starter::new(
                options.data_dir.clone(),
                options.server.clone(),
                options.malloc_conf.clone(),
            )),
            paced: false,
            oom_kills: Arc::default(),
            oom_look_at: Instant::now(),
            options,
            publish,
            entries: BTreeMap::new(),
            queue: VecDeque::new(),
            starts_max: cores * STARTS_PER_CORE_MAX,
            starts: JoinSet::new(),
            watches: JoinSet::new(),
            poll_at: Instant::now(),
            stop: None,
        }
    }

    pub(super) async fn run(mut self, mut commands: mpsc::Receiver<Command>) {
        let cancel = self.options.cancel.clone();
        loop {
            self.settle();
            let due = tokio::time::Instant::from_std(self.due());
            tokio::select! {
                () = cancel.cancelled() => break,
                command = commands.recv() => match command {
                    Some(command) => self.on_command(command),
                    None => break,
                },
                report = next_report(&mut self.starts, &mut self.watches) => self.on_report(report),
                () = tokio::time::sleep_until(due) => self.on_tick(),
            }
        }
        commands.close();
        if self.options.on_exit == OnExit::Stop && self.stop.is_none() {
            self.begin_stop(STOP_DEADLINE, None);
        }
        loop {
            self.settle();
            if self.stop.is_none() {
                break;
            }
            let due = tokio::time::Instant::from_std(self.due());
            tokio::select! {
                report = next_report(&mut self.starts, &mut self.watches) => self.on_report(report),
                () = tokio::time::sleep_until(due) => self.on_tick(),
            }
        }
        // A spawn under way must come to its end, or its server would appear after us.
        while self.starts.join_next().await.is_some() {}
        self.watches.shutdown().await;
    }

    /// Does what follows from the present state, then tells it.
    fn settle(&mut self) {
        // In this order: what a look at the bus ports ends makes room for what is queued,
        // and nothing else may come to wake this loop up for it.
        self.poll_bus();
        self.begin_queued();
        self.release_due();
        if self.stop.as_ref().is_some_and(|stop| stop.search == Search::Due) && self.all_stopped() {
            self.search_leftover();
        }
        if self.stop_finished() {
            self.finish_stop();
        }
        let statuses: Vec<InstanceStatus> = self.entries.values().map(Entry::status).collect();
        self.publish.send_if_modified(|old| {
            let changed = **old != statuses;
            if changed {
                *old = Arc::new(statuses);
            }
            changed
        });
    }

    /// When something is to be done without an event.
    fn due(&self) -> Instant {
        let idle = self.oom_look_at;
        let instances = self.entries.values().filter_map(|entry| entry.instance.due());
        let poll = self.awaits_bus().then_some(self.poll_at);
        let gone = self.stop.as_ref().map(|stop| stop.kill_at + KILL_WAIT);
        instances.chain(poll).chain(gone).min().map_or(idle, |due| due.min(idle))
    }

    fn awaits_bus(&self) -> bool {
        self.entries.values().any(|entry| entry.instance.awaits_bus())
    }

    fn on_command(&mut self, command: Command) {
        match command {
            Command::SetWanted(level, reply) => {
                let result = match self.stop {
                    None if !self.entries.values().any(|e| e.instance.stopped()) => {
                        self.set_wanted(&level);
                        Ok(())
                    }
                    _ => Err(SupervisorError::Stopping),
                };
                // Whoever asked may have gone; the level stands all the same.
                let _ = reply.send(result);
            }
            Command::StopAll(deadline, reply) => self.begin_stop(deadline, Some(reply)),
        }
    }

    fn set_wanted(&mut self, level: &WantedLevel) {
        self.paced = level.paced;
        let wanted: HashSet<SocketAddr> = level.instances.iter().map(|wanted| wanted.addr).collect();
        let dropped: Vec<SocketAddr> = self.entries.keys().filter(|a| !wanted.contains(a)).copied().collect();
        for addr in dropped {
            self.step(addr, Event::Unwanted);
        }
        for wanted in &level.instances {
            let entry = self.entries.entry(wanted.addr).or_insert_with(|| Entry::new(wanted.addr));
            let other_plan = entry.wanted.as_ref().is_some_and(|(plan, _)| *plan != level.plan);
            entry.conflict = None;
            if other_plan && entry.instance.pid().is_some() {
                entry.conflict = Some(format!(
                    "{} is still run by a server of another plan; stop that cluster first",
                    wanted.addr
                ));
                self.step(wanted.addr, Event::Unwanted);
                continue;
            }
            entry.wanted = Some((level.plan, wanted.clone()));
            entry.instance.set_restart_pause(wanted.restart_pause);
            self.step(wanted.addr, Event::Wanted(wanted.run));
        }
    }

    fn begin_stop(&mut self, deadline: Duration, waiter: Option<oneshot::Sender<StopReport>>) {
        let kill_at = Instant::now() + deadline;
        if let Some(stop) = &mut self.stop {
            stop.kill_at = stop.kill_at.min(kill_at);
            stop.waiters.extend(waiter);
        } else {
            let waiters = waiter.into_iter().collect();
            self.stop = Some(Stop { kill_at, search: Search::Due, waiters });
            self.search_leftover();
        }
        let queued = std::mem::take(&mut self.queue);
        let addrs: Vec<SocketAddr> = self.entries.keys().copied().collect();
        for addr in addrs {
            self.step(addr, Event::StopAsked { kill_at });
        }
        // Nothing was under way for these yet, so nothing else would end their start.
        for addr in queued {
            self.step(addr, Event::Blocked("stopped before it was started".into()));
        }
    }

    fn search_leftover(&mut self) {
        let Some(stop) = &mut self.stop else { return };
        stop.search = Search::UnderWay;
        let data_dir = self.options.data_dir.clone();
        let server = self.options.server.clone();
        self.watches.spawn(async move {
            let search = move || leftover(&data_dir, server.as_deref());
            Report::Leftover(tokio::task::spawn_blocking(search).await.unwrap_or_default())
        });
    }

    fn all_stopped(&self) -> bool {
        self.entries.values().all(|entry| entry.instance.stopped())
    }

    fn stop_finished(&self) -> bool {
        let Some(stop) = &self.stop else { return false };
        (stop.search == Search::Done && self.all_stopped()) || Instant::now() >= stop.kill_at + KILL_WAIT
    }

    fn finish_stop(&mut self) {
        let Some(stop) = self.stop.take() else { return };
        let mut report = StopReport::default();
        for (addr, entry) in &self.entries {
            match (entry.instance.stopped(), entry.instance.killed()) {
                (true, false) => report.stopped.push(*addr),
                (true, true) => report.killed.push(*addr),
                (false, _) => report.left.push(*addr),
            }
        }
        for waiter in stop.waiters {
            // Whoever asked may have gone.
            let _ = waiter.send(report.clone());
        }
    }

    fn on_tick(&mut self) {
        let now = Instant::now();
        if now >= self.oom_look_at {
            self.oom_look_at = now + OOM_LOOK_EVERY;
            // For the count as it was before whatever ends next.
            self.oom_kills.lately();
        }
        let due = |entry: &Entry| entry.instance.due().is_some_and(|due| due <= now);
        let addrs: Vec<SocketAddr> =
            self.entries.iter().filter(|(_, entry)| due(entry)).map(|(addr, _)| *addr).collect();
        for addr in addrs {
            self.step(addr, Event::Tick);
        }
    }

    fn on_report(&mut self, report: Report) {
        match report {
            Report::Process { addr, pid, event } => {
                if self.entries.get(&addr).is_some_and(|entry| entry.instance.pid() == Some(pid)) {
                    self.step(addr, event);
                }
            }
            Report::Started { addr, started } => self.on_started(addr, started),
            Report::Leftover(found) => self.on_leftover(found),
        }
    }

    fn on_started(&mut self, addr: SocketAddr, started: Started) {
        let (event, process) = match started {
            Started::Blocked(problem) => (Event::Blocked(problem), None),
            Started::Prepared { log_from } => {
                if let Some(entry) = self.entries.get_mut(&addr) {
                    entry.log_from = log_from;
                }
                (Event::Prepared, None)
            }
            Started::Adopted { process, stopped, log_from } => {
                if let Some(entry) = self.entries.get_mut(&addr) {
                    entry.log_from = log_from;
                }
                tracing::info!(%addr, pid = process.pid(), stopped, "adopted a running server");
                (Event::Adopted { pid: process.pid(), stopped }, Some(process))
            }
            Started::Spawned(process) => {
                tracing::info!(%addr, pid = process.pid(), "started a server");
                (Event::Spawned { pid: process.pid() }, Some(process))
            }
            Started::SpawnFailed(reason) => (Event::SpawnFailed(reason), None),
        };
        if let Some(process) = process {
            self.watch(addr, process);
        }
        self.step(addr, event);
    }

    /// Holds the process and reports its end.
    fn watch(&mut self, addr: SocketAddr, process: Process) {
        let Some(entry) = self.entries.get_mut(&addr) else { return };
        entry.process = Some(process.clone());
        let log_from = entry.log_from;
        let layout = Layout::new(&self.options.data_dir, addr.port());
        let oom_kills = Arc::clone(&self.oom_kills);
        self.watches.spawn(async move {
            let status = process.ended().await;
            let said = status.clone();
            let look = move || {
                let free = layout::free_bytes(layout.dir());
                (cause::explain(said, oom_kills.lately(), free), layout.last_words(log_from))
            };
            let looked = tokio::task::spawn_blocking(look).await;
            let (status, log_tail) = looked.unwrap_or_else(|_| (status, String::new()));
            Report::Process { addr, pid: process.pid(), event: Event::Exited { status, log_tail } }
        });
    }

    fn on_leftover(&mut self, found: Vec<(SocketAddr, Found)>) {
        let Some(stop) = &mut self.stop else { return };
        stop.search = Search::Done;
        let kill_at = stop.kill_at;
        for (addr, found) in found {
            let known = self.entries.iter().find(|(known, _)| known.port() == addr.port());
            match known.map(|(_, entry)| &entry.instance) {
                Some(instance) if instance.pid() == Some(found.pid) => continue,
                // On its way to be adopted or refused: looked at again when that is known.
                Some(instance) if !instance.stopped() => {
                    if let Some(stop) = &mut self.stop {
                        stop.search = Search::Due;
                    }
                    continue;
                }
                _ => {}
            }
            let addr = known.map_or(addr, |(known, _)| *known);
            let Ok(process) = Process::open(found.pid) else { continue };
            // Looked at again while held: the pid can't be another's from here on.
            let server = self.options.server.as_deref();
            if !matches!(process::find_one(found.pid, &self.options.data_dir, server), Ok(Some(_))) {
                continue;
            }
            self.entries.insert(addr, Entry::new(addr));
            self.watch(addr, process);
            self.step(addr, Event::Adopted { pid: found.pid, stopped: found.stopped });
            self.step(addr, Event::StopAsked { kill_at });
        }
    }

    /// Gives an instance an event and does what it asks for.
    fn step(&mut self, addr: SocketAddr, event: Event) {
        let Some(entry) = self.entries.get_mut(&addr) else { return };
        if let Event::Exited { status, log_tail } = &event {
            entry.process = None;
            tracing::warn!(%addr, %status, said = %log_tail, "a server ended");
        }
        let effects = entry.instance.step(event, Instant::now());
        for effect in effects {
            self.carry_out(addr, effect);
        }
    }

    fn carry_out(&mut self, addr: SocketAddr, effect: Effect) {
        let Some(entry) = self.entries.get_mut(&addr) else { return };
        let signal = |signal| {
            if let Some(process) = &entry.process {
                process.signal(signal);
            }
        };
        match effect {
            Effect::Prepare => self.queue.push_back(addr),
            Effect::Spawn => {
                let starter = Arc::clone(&self.starter);
                self.begin(addr, Started::SpawnFailed, move || starter.spawn(addr.port()));
            }
            Effect::Hold => {
                signal(Signal::STOP);
                self.step(addr, Event::HoldDone);
            }
            Effect::Release => signal(Signal::CONT),
            Effect::Terminate => signal(Signal::TERM),
            Effect::Kill => signal(Signal::KILL),
            Effect::Probe => self.probe(addr),
        }
    }

    fn probe(&mut self, addr: SocketAddr) {
        let Some(entry) = self.entries.get(&addr) else { return };
        let Some(pid) = entry.instance.pid() else { return };
        let clients_needed = entry.wanted.as_ref().map_or(0, |(_, wanted)| wanted.clients_needed);
        let (login, tls) = (self.options.login.clone(), self.options.tls.clone());
        self.watches.spawn(async move {
            let answer = probe::probe(addr, pid, clients_needed, login.as_ref(), tls.as_ref()).await;
            let event = match answer {
                Ok(probe::Answer { run_id, note }) => Event::Ready { run_id, note },
                Err(words) => Event::NotReady(words),
            };
            Report::Process { addr, pid, event }
        });
    }

    /// Begins as many of the queued starts as there is room for.
    fn begin_queued(&mut self) {
        let queued: HashSet<SocketAddr> = self.queue.iter().copied().collect();
        let under_way =
            self.entries.iter().filter(|(addr, e)| e.instance.starting() && !queued.contains(addr)).count();
        let mut room = self.starts_max.saturating_sub(under_way);
        while room > 0 {
            let Some(addr) = self.queue.pop_front() else { return };
            // One that isn't wanted any more takes no room.
            let Some((plan, wanted)) = self.entries.get(&addr).and_then(|entry| entry.wanted.clone()) else {
                continue;
            };
            room -= 1;
            let starter = Arc::clone(&self.starter);
            self.begin(addr, Started::Blocked, move || starter.prepare(plan, &wanted));
        }
    }

    /// Releases as many held servers as there is room for. In a paced level one has to answer
    /// before another follows: servers that all begin at once send their first messages to
    /// everybody before anybody reads, and the kernel has to keep them.
    fn release_due(&mut self) {
        let now = Instant::now();
        let settling = || self.entries.values().filter(|entry| entry.instance.settling(now)).count();
        let waiting = self.entries.iter().filter(|(_, entry)| entry.instance.awaits_release());
        let room = if self.paced { self.release_max.saturating_sub(settling()) } else { usize::MAX };
        let admitted: Vec<SocketAddr> = waiting.map(|(addr, _)| *addr).take(room).collect();
        for addr in admitted {
            self.step(addr, Event::Admitted);
        }
    }

    /// Runs one blocking part of a start. If it should panic, `failed` becomes of it.
    fn begin(
        &mut self,
        addr: SocketAddr,
        failed: impl FnOnce(String) -> Started + Send + 'static,
        work: impl FnOnce() -> Started + Send + 'static,
    ) {
        self.starts.spawn(async move {
            let started = tokio::task::spawn_blocking(work).await;
            let started = started.unwrap_or_else(|error| failed(format!("the agent failed: {error}")));
            Report::Started { addr, started }
        });
    }

    fn poll_bus(&mut self) {
        let now = Instant::now();
        if now < self.poll_at || !self.awaits_bus() {
            return;
        }
        self.poll_at = now + BUS_POLL;
        let up = |addr: SocketAddr| starter::bus_addr(addr).is_some_and(sockets::is_listened);
        let waiting = self.entries.iter().filter(|(_, entry)| entry.instance.awaits_bus());
        let listening: Vec<SocketAddr> = waiting.map(|(addr, _)| *addr).filter(|addr| up(*addr)).collect();
        for addr in listening {
            self.step(addr, Event::BusListening);
        }
    }
}

impl Entry {
    fn new(addr: SocketAddr) -> Self {
        Self { instance: Instance::new(addr), wanted: None, process: None, log_from: 0, conflict: None }
    }

    fn status(&self) -> InstanceStatus {
        let status = self.instance.status();
        InstanceStatus { problem: self.conflict.clone().or(status.problem), ..status }
    }
}

/// The next thing that some task brings; never, while there is none.
async fn next_report(starts: &mut JoinSet<Report>, watches: &mut JoinSet<Report>) -> Report {
    loop {
        let joined = tokio::select! {
            Some(joined) = starts.join_next(), if !starts.is_empty() => joined,
            Some(joined) = watches.join_next(), if !watches.is_empty() => joined,
            else => std::future::pending().await,
        };
        match joined {
            Ok(report) => return report,
            Err(error) => tracing::error!(%error, "a task of the supervisor failed"),
        }
    }
}

/// Servers in directories of ours, whatever level they were started for.
fn leftover(data_dir: &std::path::Path, server: Option<&std::path::Path>) -> Vec<(SocketAddr, Found)> {
    let found = process::find_running(data_dir, server).unwrap_or_default();
    let ours = |(dir, found): (PathBuf, Found)| {
        let port: u16 = dir.file_name()?.to_str()?.parse().ok()?;
        let layout = Layout::new(data_dir, port);
        let ip = layout.bound_ip().unwrap_or(IpAddr::V4(Ipv4Addr::UNSPECIFIED));
        layout.is_marked().then_some((SocketAddr::new(ip, port), found))
    };
    found.into_iter().filter_map(ours).collect()
}
