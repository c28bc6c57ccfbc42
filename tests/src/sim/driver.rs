//! Runs one simulation: a safety phase under faults, then healing, with the invariants
//! judging every event.

use std::collections::{BTreeMap, BTreeSet};
use std::fmt;
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::Duration;

use rand::SeedableRng;
use rand::rngs::SmallRng;
use redmesh_agent::census::Census;
use redmesh_agent::stats;
use redmesh_api::ids::HostId;
use redmesh_api::level::{Level, PlanStage, Stamp};
use redmesh_api::run::RunStage;

use super::event::{Event, Happened};
use super::flaw::Flaw;
use super::host::Host;
use super::invariants::{self, Invariant, SERVES_WITHIN};
use super::net::{Net, Trouble, ip};
use super::operator::{Operator, Wishes};
use super::schedule::{Fault, Moment, Schedule, When, Whom};
use super::world::World;

/// Virtual time of one step.
const TICK: Duration = Duration::from_millis(4);

/// Between two looks at counts and at what operators want.
const LOOK_INTERVAL: Duration = Duration::from_millis(100);

/// Longest time that a packet takes, while nothing is wrong.
const LATENCY_MAX: Duration = Duration::from_millis(10);

/// The safety phase goes on for so long after a fault that waited for its moment.
const AFTER_MOMENT: Duration = Duration::from_secs(5);

/// Longest healing phase, also where no judge puts an end to it.
const HEALING_MAX: Duration = SERVES_WITHIN.saturating_mul(2);

/// Events that a failure shows.
const SHOWN_MAX: usize = 120;

/// What is simulated.
#[derive(Debug, Clone)]
pub struct Scenario {
    /// For everything that is drawn.
    pub seed: u64,
    /// Hosts.
    pub hosts: usize,
    /// What goes wrong.
    pub schedule: Schedule,
    /// What people want meanwhile.
    pub wishes: Wishes,
    /// What is wrong with the world, where an invariant is to break.
    pub flaw: Option<Flaw>,
}

impl Scenario {
    /// The scenario of a seed.
    pub fn random(seed: u64) -> Self {
        let hosts = [3, 5, 5, 4][(seed % 4) as usize];
        let wishes = Wishes { instances_per_host: 2, runs: 2 };
        Self { seed, hosts, schedule: Schedule::random(seed, hosts), wishes, flaw: None }
    }
}

/// How a simulation went.
#[derive(Debug, Clone)]
pub struct Report {
    /// Its virtual time.
    pub took: Duration,
    /// From healing until the mesh served.
    pub healed_in: Duration,
    /// Packets and bytes that were sent.
    pub sent: (u64, u64),
    /// Terms in which somebody acted as the coordinator.
    pub terms: usize,
    /// What has happened, without what happens all the time.
    pub history: Vec<Happened>,
}

/// A simulation that has broken an invariant.
#[derive(Debug)]
pub struct Failure {
    /// Which.
    pub invariant: &'static str,
    /// How.
    pub words: String,
    /// What had happened, without what happens all the time.
    pub history: Vec<Happened>,
}

impl fmt::Display for Failure {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let hidden = self.history.len().saturating_sub(SHOWN_MAX);
        writeln!(f, "{} is broken: {}", self.invariant, self.words)?;
        for happened in &self.history[hidden..] {
            writeln!(f, "{happened}")?;
        }
        Ok(())
    }
}

/// Something that is due.
#[derive(Debug)]
enum Action {
    Begin(Fault),
    EndTrouble(u64),
    EndDelay,
    EndSlowDisk(usize),
    Start(usize),
}

/// What was last seen of a host.
#[derive(Debug, Default)]
struct Seen {
    acting: Option<(HostId, u64)>,
    stamp: Option<Stamp>,
}

struct Driver {
    sim: turmoil::Sim<'static>,
    hosts: Vec<Host>,
    world: Arc<World>,
    net: Arc<Net>,
    operator: Operator,
    due: BTreeMap<(Duration, u64), Action>,
    awaited: Vec<(Moment, Duration, Fault)>,
    seen: Vec<Seen>,
    /// The safety phase lasts until then at the least.
    not_before: Duration,
    /// Hosts whose agents are killed at the moment.
    down: BTreeSet<usize>,
    /// Ids that will never come back.
    lost: BTreeSet<HostId>,
    newest: Arc<Level>,
    terms: BTreeSet<u64>,
    judges: Vec<Box<dyn Invariant>>,
    /// The network doesn't heal.
    stays: bool,
    history: Vec<Happened>,
    numbers: u64,
}

/// Runs a simulation to its end.
///
/// # Errors
/// The first invariant that it broke.
pub fn simulate(scenario: &Scenario) -> Result<Report, Failure> {
    simulate_under(scenario, invariants::all())
}

/// The same, judged by these invariants.
///
/// # Errors
/// The first of them that it broke.
pub fn simulate_under(scenario: &Scenario, judges: Vec<Box<dyn Invariant>>) -> Result<Report, Failure> {
    let dir = scratch();
    let mut driver = Driver::new(scenario, judges, dir.path());
    let ended = driver.run(scenario.schedule.ends);
    let history = std::mem::take(&mut driver.history);
    let report = |healed_in| Report {
        took: driver.sim.elapsed(),
        healed_in,
        sent: driver.net.sent(),
        terms: driver.terms.len(),
        history: Vec::new(),
    };
    match ended {
        Ok(healed_in) => Ok(Report { history, ..report(healed_in) }),
        Err((invariant, words)) => Err(Failure { invariant, words, history }),
    }
}

/// In memory where that is possible: nothing here is to wait for a disk.
fn scratch() -> tempfile::TempDir {
    let mut builder = tempfile::Builder::new();
    let builder = builder.prefix("redmesh-sim-");
    builder.tempdir_in("/dev/shm").or_else(|_| builder.tempdir()).expect("a directory")
}

type Broken = (&'static str, String);

impl Driver {
    fn new(scenario: &Scenario, judges: Vec<Box<dyn Invariant>>, dir: &std::path::Path) -> Self {
        let mut sim = turmoil::Builder::new()
            .rng_seed(scenario.seed)
            .tick_duration(TICK)
            .simulation_duration(Duration::from_secs(3600))
            .min_message_latency(Duration::from_millis(1))
            .max_message_latency(LATENCY_MAX)
            .udp_capacity(4096)
            .build();
        let world = Arc::new(World::default());
        let net = Arc::new(Net::new(scenario.seed));
        let hosts: Vec<_> = (0..scenario.hosts)
            .map(|index| Host::new(index, scenario, dir, world.clone(), net.clone()))
            .collect();
        for (index, host) in hosts.iter().enumerate() {
            let host = host.clone();
            sim.host(ip(index), move || host.clone().live());
        }
        let mut driver = Self {
            sim,
            seen: hosts.iter().map(|_| Seen::default()).collect(),
            hosts,
            world,
            net,
            operator: Operator::new(scenario.wishes, SmallRng::seed_from_u64(scenario.seed ^ 0x0b5)),
            due: BTreeMap::new(),
            awaited: Vec::new(),
            not_before: Duration::ZERO,
            down: BTreeSet::new(),
            lost: BTreeSet::new(),
            newest: Arc::default(),
            terms: BTreeSet::new(),
            judges,
            stays: scenario.flaw == Some(Flaw::NetworkStays),
            history: Vec::new(),
            numbers: 0,
        };
        for (when, fault) in scenario.schedule.faults.iter().cloned() {
            match when {
                When::At(at) => driver.plan(at, Action::Begin(fault)),
                When::After(moment, after) => driver.awaited.push((moment, after, fault)),
            }
        }
        driver
    }

    fn number(&mut self) -> u64 {
        self.numbers += 1;
        self.numbers
    }

    fn plan(&mut self, at: Duration, action: Action) {
        let number = self.number();
        self.due.insert((at, number), action);
    }

    /// Both phases; how long healing took.
    fn run(&mut self, ends: Duration) -> Result<Duration, Broken> {
        while self.sim.elapsed() < ends.max(self.not_before) || !self.awaited.is_empty() {
            self.step()?;
            if self.sim.elapsed() > ends * 4 {
                let words = format!("these moments never came: {:?}", self.awaited);
                return Err(("schedule", words));
            }
        }
        self.heal();
        let healed = self.sim.elapsed();
        let mut look_at = healed;
        loop {
            self.step()?;
            if self.sim.elapsed() < look_at {
                continue;
            }
            look_at += LOOK_INTERVAL;
            if look_at > healed + HEALING_MAX {
                return Err(("simulation", "it doesn't serve, and no judge minds".to_owned()));
            }
            match self.missing() {
                Some(why) => self.happen(Event::Waiting(why))?,
                None => break,
            }
        }
        self.happen(Event::Serving)?;
        for judge in &mut self.judges {
            judge.end().map_err(|words| (judge.name(), words))?;
        }
        Ok(self.sim.elapsed() - healed)
    }

    fn step(&mut self) -> Result<(), Broken> {
        let now = self.sim.elapsed();
        while let Some(entry) = self.due.first_entry()
            && entry.key().0 <= now
        {
            let action = entry.remove();
            self.act(action)?;
        }
        self.sim.step().map_err(|error| ("simulation", error.to_string()))?;
        self.look_at_agents()?;
        if now.as_millis() % LOOK_INTERVAL.as_millis() < TICK.as_millis() {
            self.look_at_counts()?;
            self.operator.look(now, &self.hosts, &self.newest);
        }
        for Happened { at, event } in self.world.take_happened() {
            self.judge(at, event)?;
        }
        Ok(())
    }

    fn happen(&mut self, event: Event) -> Result<(), Broken> {
        self.judge(self.sim.elapsed(), event)
    }

    fn judge(&mut self, at: Duration, event: Event) -> Result<(), Broken> {
        let verdict = self.judges.iter_mut().find_map(|judge| {
            let words = judge.see(at, &event).err()?;
            Some((judge.name(), words))
        });
        let tiring = matches!(event, Event::Done { .. } | Event::Counted { .. } | Event::Waiting(_));
        if !tiring || verdict.is_some() {
            tracing::info!("{}", Happened { at, event: event.clone() });
            self.history.push(Happened { at, event });
        }
        verdict.map_or(Ok(()), Err)
    }

    fn act(&mut self, action: Action) -> Result<(), Broken> {
        let now = self.sim.elapsed();
        match action {
            Action::Begin(fault) => {
                self.happen(Event::Fault(format!("{fault:?}")))?;
                self.begin(now, fault)?;
            }
            Action::EndTrouble(number) => self.net.end(number),
            Action::EndDelay => self.sim.set_max_message_latency(LATENCY_MAX),
            Action::EndSlowDisk(host) => self.hosts[host].disk_ms.store(0, Ordering::Relaxed),
            Action::Start(host) => self.start(host),
        }
        Ok(())
    }

    fn begin(&mut self, now: Duration, fault: Fault) -> Result<(), Broken> {
        match fault {
            Fault::Network(trouble, lasts) => self.trouble(now, trouble, lasts),
            Fault::Flapping { group, half, times } => {
                for time in 0..times {
                    let split = Fault::Network(Trouble::Split(group.clone()), half);
                    self.plan(now + half * time * 2, Action::Begin(split));
                }
            }
            Fault::Delay(ms, lasts) => {
                self.sim.set_max_message_latency(Duration::from_millis(ms));
                self.plan(now + lasts, Action::EndDelay);
            }
            Fault::Kill { whom, away, wipe } => {
                let host = match whom {
                    Whom::Host(host) => Some(host),
                    Whom::Coordinator => self.seen.iter().position(|seen| seen.acting.is_some()),
                };
                if let Some(host) = host.filter(|host| !self.down.contains(host)) {
                    self.kill(host, wipe)?;
                    self.plan(now + away, Action::Start(host));
                }
            }
            Fault::Disk(host, ms, lasts) => {
                self.hosts[host].disk_ms.store(ms, Ordering::Relaxed);
                self.plan(now + lasts, Action::EndSlowDisk(host));
            }
            Fault::Clock(host, jump_ms) => {
                self.hosts[host].skew_ms.fetch_add(jump_ms, Ordering::Relaxed);
            }
        }
        Ok(())
    }

    fn trouble(&mut self, now: Duration, trouble: Trouble, lasts: Duration) {
        let number = self.number();
        self.net.begin(number, trouble);
        self.plan(now + lasts, Action::EndTrouble(number));
    }

    fn kill(&mut self, host: usize, wipe: bool) -> Result<(), Broken> {
        let id = self.hosts[host].census().map(|census| census.host);
        self.sim.crash(ip(host));
        self.hosts[host].gone(wipe);
        self.seen[host] = Seen::default();
        self.down.insert(host);
        if wipe {
            self.lost.extend(id);
        }
        for Happened { at, event } in self.world.take_happened() {
            self.judge(at, event)?;
        }
        self.happen(Event::Killed { host, wiped: wipe })
    }

    fn start(&mut self, host: usize) {
        if self.down.remove(&host) {
            self.sim.bounce(ip(host));
        }
    }

    fn heal(&mut self) {
        self.due.clear();
        if !self.stays {
            self.net.heal();
        }
        self.sim.set_max_message_latency(LATENCY_MAX);
        self.hosts.iter().for_each(|host| host.disk_ms.store(0, Ordering::Relaxed));
        for host in std::mem::take(&mut self.down) {
            self.sim.bounce(ip(host));
        }
        self.world.tell(self.sim.elapsed(), Event::Healed);
    }

    fn look_at_agents(&mut self) -> Result<(), Broken> {
        for host in 0..self.hosts.len() {
            let Some(census) = self.hosts[host].census() else { continue };
            let acting = {
                let leadership = census.leadership.borrow();
                leadership.acting.then_some((census.host, leadership.term))
            };
            let before = std::mem::replace(&mut self.seen[host].acting, acting);
            if before != acting {
                for (known, acting) in [(before, false), (acting, true)] {
                    if let Some((id, term)) = known {
                        self.terms.insert(term);
                        self.happen(Event::Acting { host, id, term, acting })?;
                    }
                }
            }
            let level = census.level();
            if self.seen[host].stamp.replace(level.stamp).unwrap_or_default() != level.stamp {
                self.happen(Event::Level { host, level: level.clone() })?;
                self.new_level(level);
            }
        }
        Ok(())
    }

    fn new_level(&mut self, level: Arc<Level>) {
        if level.stamp > self.newest.stamp {
            self.newest = level;
        }
        let now = self.sim.elapsed();
        let (come, awaited) = std::mem::take(&mut self.awaited)
            .into_iter()
            .partition(|(moment, _, _)| has_come(*moment, &self.newest));
        self.awaited = awaited;
        let come: Vec<_> = come;
        for (_, after, fault) in come {
            self.not_before = self.not_before.max(now + after + AFTER_MOMENT);
            self.plan(now + after, Action::Begin(fault));
        }
    }

    fn look_at_counts(&mut self) -> Result<(), Broken> {
        for done in self.world.work() {
            self.happen(done)?;
        }
        for host in 0..self.hosts.len() {
            let Some(census) = self.hosts[host].census() else { continue };
            for run in census.level().runs.iter().filter(|run| run.stage != RunStage::Done) {
                let total = stats::total(&census.tallies(run));
                self.happen(Event::Counted { host, run: run.id, total })?;
            }
        }
        Ok(())
    }

    /// What the mesh still lacks to serve.
    fn missing(&self) -> Option<String> {
        let mut all: Vec<Census> = Vec::new();
        for (host, handle) in self.hosts.iter().enumerate() {
            match handle.census() {
                Some(census) => all.push(census),
                None => return Some(format!("host {host} has no agent yet")),
            }
        }
        let ids: BTreeSet<_> = all.iter().map(|census| census.host).collect();
        let coordinator = all.iter().find(|census| census.acting()).map(|census| census.host);
        for (host, census) in all.iter().enumerate() {
            let hosts = census.hosts();
            let alive: BTreeSet<_> = hosts.values().filter(|host| host.alive).map(|host| host.id).collect();
            if alive != ids {
                return Some(format!("host {host} sees {alive:?} of {ids:?}"));
            }
            let known = census.coordinator().map(|host| host.id);
            if known.is_none() || known != coordinator {
                return Some(format!(
                    "host {host} takes {known:?} for the coordinator, who is {coordinator:?}"
                ));
            }
            let level = census.level();
            if level.stamp != self.newest.stamp {
                return Some(format!("host {host} has level {}, not {}", level.stamp, self.newest.stamp));
            }
        }
        let Some(plan) = &self.newest.plan else { return Some("there is no plan".to_owned()) };
        if let Some(run) = self.newest.runs.iter().find(|run| run.stage != RunStage::Done) {
            return Some(format!("run {} is {:?}", run.id, run.stage));
        }
        // Neither can a cluster be formed whose host is gone for good, nor one be written into.
        if plan.hosts.iter().any(|host| self.lost.contains(&host.id)) {
            return None;
        }
        if plan.stage != PlanStage::Formed {
            return Some(format!("the plan is at {:?}", plan.stage));
        }
        (!self.operator.satisfied(&self.newest)).then(|| "not every wanted run is done".to_owned())
    }
}

fn has_come(moment: Moment, level: &Level) -> bool {
    match moment {
        Moment::Founded => level.mesh.is_some(),
        Moment::Plan(stage) => level.plan.as_ref().is_some_and(|plan| plan.stage >= stage),
        Moment::Run(stage) => level.runs.iter().any(|run| run.stage >= stage),
    }
}
