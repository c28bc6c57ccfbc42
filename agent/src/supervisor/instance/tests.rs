use proptest::prelude::*;

use super::*;

/// An instance under virtual time.
struct Sim {
    instance: Instance,
    now: Instant,
}

impl Sim {
    fn new() -> Self {
        Self { instance: Instance::new("127.0.0.1:6379".parse().unwrap()), now: Instant::now() }
    }

    fn step(&mut self, event: Event) -> Vec<Effect> {
        self.instance.step(event, self.now)
    }

    fn pass(&mut self, time: Duration) -> Vec<Effect> {
        self.now += time;
        self.step(Event::Tick)
    }

    fn phase(&self) -> Phase {
        self.instance.status().phase
    }

    fn problem(&self) -> String {
        self.instance.status().problem.unwrap_or_default()
    }

    /// From prepared to spawned and listening.
    fn spawn(&mut self, pid: u32) -> Vec<Effect> {
        assert_eq!(self.step(Event::Prepared), [Effect::Spawn]);
        assert_eq!(self.step(Event::Spawned { pid }), []);
        self.step(Event::BusListening)
    }

    fn ready(&mut self) {
        self.step(Event::Ready { run_id: "r".into(), note: None });
        assert_eq!(self.phase(), Phase::Running);
    }

    fn exit(&mut self) {
        let exited = Event::Exited { status: "exit status 1".into(), log_tail: "Bad directive".into() };
        assert_eq!(self.step(exited), []);
    }
}

#[test]
fn held_then_released_then_running() {
    let mut sim = Sim::new();
    assert_eq!(sim.phase(), Phase::Absent);
    assert_eq!(sim.step(Event::Wanted(Run::Held)), [Effect::Prepare]);
    assert_eq!(sim.phase(), Phase::Starting);
    assert_eq!(sim.spawn(7), [Effect::Hold]);
    assert_eq!(sim.step(Event::HoldDone), []);
    assert_eq!((sim.phase(), sim.instance.pid()), (Phase::Held, Some(7)));
    assert_eq!(sim.step(Event::Wanted(Run::Held)), [], "a level is idempotent");
    assert_eq!(sim.instance.due(), None, "a held server can't be asked anything");
    assert_eq!(sim.step(Event::Admitted), [], "it isn't to run yet");
    assert_eq!(sim.step(Event::Wanted(Run::Running)), [], "it waits for its turn");
    assert!(sim.instance.awaits_release() && !sim.instance.settling(sim.now));
    assert_eq!(sim.step(Event::Admitted), [Effect::Release, Effect::Probe]);
    assert_eq!(sim.phase(), Phase::Starting);
    assert!(!sim.instance.awaits_release() && sim.instance.settling(sim.now));
    assert!(!sim.instance.settling(sim.now + RELEASE_PATIENCE), "others need not wait for ever");
    assert_eq!(sim.step(Event::NotReady("LOADING".into())), []);
    assert_eq!(sim.problem(), "LOADING");
    assert_eq!(sim.pass(PROBE_EVERY / 2), []);
    assert_eq!(sim.pass(PROBE_EVERY / 2), [Effect::Probe]);
    sim.ready();
    assert!(!sim.instance.settling(sim.now));
    let status = sim.instance.status();
    assert_eq!((status.run_id.as_deref(), status.problem, status.restarts), (Some("r"), None, 0));
    assert_eq!(sim.step(Event::Wanted(Run::Held)), [], "what was released is never held again");
    assert_eq!(sim.phase(), Phase::Running);
}

#[test]
fn released_before_it_was_held() {
    let mut sim = Sim::new();
    sim.step(Event::Wanted(Run::Held));
    sim.step(Event::Prepared);
    sim.step(Event::Wanted(Run::Running));
    sim.step(Event::Spawned { pid: 7 });
    assert_eq!(sim.step(Event::BusListening), [Effect::Probe]);

    let mut sim = Sim::new();
    sim.step(Event::Wanted(Run::Held));
    assert_eq!(sim.spawn(7), [Effect::Hold]);
    assert_eq!(sim.step(Event::Wanted(Run::Running)), []);
    assert_eq!(sim.step(Event::Admitted), [Effect::Release, Effect::Probe]);
    assert_eq!(sim.step(Event::HoldDone), [], "a late report changes nothing");
    assert_eq!(sim.phase(), Phase::Starting);
}

#[test]
fn backoff_doubles_and_five_exits_are_a_crash_loop() {
    let mut sim = Sim::new();
    assert_eq!(sim.step(Event::Wanted(Run::Running)), [Effect::Prepare]);
    for (n, pause_ms) in [(1, 100), (2, 200), (3, 400), (4, 800)] {
        assert_eq!(sim.spawn(n), [Effect::Probe]);
        sim.exit();
        let pause = Duration::from_millis(pause_ms);
        assert_eq!(sim.phase(), Phase::Backoff { until: sim.now + pause, exits: n });
        assert!(sim.problem().contains("Bad directive"), "{}", sim.problem());
        assert_eq!(sim.pass(pause - Duration::from_millis(1)), []);
        assert_eq!(sim.pass(Duration::from_millis(1)), [Effect::Prepare]);
    }
    sim.spawn(5);
    sim.exit();
    assert_eq!(sim.phase(), Phase::CrashLoop);
    assert!(
        sim.problem().contains("Bad directive") && sim.problem().contains("redis.log"),
        "{}",
        sim.problem()
    );
    assert_eq!(sim.pass(CRASH_RETRY - Duration::from_millis(1)), []);
    assert_eq!(sim.pass(Duration::from_millis(1)), [Effect::Prepare]);
    sim.spawn(6);
    assert!(!sim.problem().is_empty(), "the words stay until it has answered");
    sim.exit();
    assert_eq!(sim.phase(), Phase::CrashLoop, "one more exit and it is a loop again");
    assert_eq!(sim.pass(CRASH_RETRY), [Effect::Prepare]);
    sim.spawn(7);
    sim.ready();
    sim.pass(HEALTHY_AFTER);
    sim.exit();
    let until = sim.now + BACKOFF_MIN;
    assert_eq!(sim.phase(), Phase::Backoff { until, exits: 1 }, "health clears the slate");
    assert_eq!(sim.instance.status().restarts, 6);
}

#[test]
fn one_that_served_stays_away_until_a_replica_can_have_taken_over() {
    let mut sim = Sim::new();
    let pause = Duration::from_secs(12);
    sim.instance.set_restart_pause(pause);
    sim.step(Event::Wanted(Run::Running));
    sim.spawn(7);
    sim.exit();
    assert_eq!(sim.pass(BACKOFF_MIN), [Effect::Prepare], "it never served");
    sim.spawn(8);
    sim.ready();
    sim.exit();
    assert!(sim.problem().contains("after 12000 ms, so that a replica takes over"), "{}", sim.problem());
    assert_eq!(sim.pass(pause - Duration::from_millis(1)), []);
    assert_eq!(sim.pass(Duration::from_millis(1)), [Effect::Prepare]);
}

#[test]
fn backoff_is_bounded() {
    let mut sim = Sim::new();
    sim.step(Event::Wanted(Run::Running));
    for n in 1..200 {
        sim.spawn(n);
        sim.now += HEALTHY_AFTER - Duration::from_secs(1);
        sim.exit();
        let Phase::Backoff { until, .. } = sim.phase() else { panic!("{:?}", sim.phase()) };
        assert!(until - sim.now <= BACKOFF_MAX);
        assert_eq!(sim.pass(until - sim.now), [Effect::Prepare]);
    }
}

#[test]
fn blocked_is_tried_again() {
    let mut sim = Sim::new();
    sim.step(Event::Wanted(Run::Running));
    sim.step(Event::Blocked("port taken".into()));
    assert_eq!((sim.phase(), sim.problem().as_str()), (Phase::Blocked, "port taken"));
    assert_eq!(sim.instance.due(), Some(sim.now + BLOCKED_RETRY));
    assert_eq!(sim.pass(BLOCKED_RETRY), [Effect::Prepare]);
    assert_eq!(sim.spawn(1), [Effect::Probe]);
    assert_eq!(sim.problem(), "");
}

#[test]
fn a_failed_spawn_counts_as_an_exit() {
    let mut sim = Sim::new();
    sim.step(Event::Wanted(Run::Running));
    sim.step(Event::Prepared);
    sim.step(Event::SpawnFailed("Exec format error".into()));
    assert_eq!(sim.phase(), Phase::Backoff { until: sim.now + BACKOFF_MIN, exits: 1 });
    assert!(sim.problem().contains("Exec format error"));
}

#[test]
fn one_that_does_not_listen_does_not_keep_others_from_starting() {
    let mut sim = Sim::new();
    sim.step(Event::Wanted(Run::Held));
    sim.step(Event::Prepared);
    sim.step(Event::Spawned { pid: 7 });
    assert!(sim.instance.starting());
    assert_eq!(sim.instance.due(), Some(sim.now + START_PATIENCE));
    assert_eq!(sim.pass(START_PATIENCE), []);
    assert!(!sim.instance.starting() && sim.instance.awaits_bus());
    assert_eq!(sim.instance.due(), None);
    assert!(sim.problem().contains("bus port"), "{}", sim.problem());
    assert_eq!(sim.step(Event::BusListening), [Effect::Hold]);
    assert_eq!(sim.problem(), "");
}

#[test]
fn adoption() {
    let mut sim = Sim::new();
    sim.step(Event::Wanted(Run::Running));
    let release = [Effect::Release];
    assert_eq!(sim.step(Event::Adopted { pid: 9, stopped: false }), release, "a SIGSTOP may be on its way");
    assert!(sim.instance.awaits_bus());
    assert_eq!(sim.step(Event::BusListening), [Effect::Probe]);
    sim.ready();
    let status = sim.instance.status();
    assert_eq!((status.pid, status.adopted, status.restarts), (Some(9), true, 0));

    let mut sim = Sim::new();
    sim.step(Event::Wanted(Run::Held));
    assert_eq!(sim.step(Event::Adopted { pid: 9, stopped: true }), []);
    assert_eq!(sim.phase(), Phase::Held);
    assert_eq!(sim.step(Event::Wanted(Run::Running)), []);
    assert_eq!(sim.step(Event::Admitted), [Effect::Release, Effect::Probe]);

    let mut sim = Sim::new();
    sim.step(Event::Wanted(Run::Running));
    assert_eq!(sim.step(Event::Adopted { pid: 9, stopped: true }), []);
    assert_eq!(sim.step(Event::Admitted), [Effect::Release, Effect::Probe]);

    let mut sim = Sim::new();
    sim.step(Event::Wanted(Run::Held));
    sim.step(Event::Adopted { pid: 9, stopped: false });
    assert_eq!(sim.step(Event::BusListening), [Effect::Hold]);
}

#[test]
fn stop_terminates_then_kills() {
    let mut sim = Sim::new();
    sim.step(Event::Wanted(Run::Running));
    sim.spawn(1);
    sim.ready();
    let kill_at = sim.now + Duration::from_secs(5);
    assert_eq!(sim.step(Event::StopAsked { kill_at }), [Effect::Release, Effect::Terminate]);
    assert_eq!((sim.phase(), sim.instance.due()), (Phase::Stopping, Some(kill_at)));
    assert_eq!(sim.pass(Duration::from_secs(4)), []);
    assert_eq!(sim.pass(Duration::from_secs(1)), [Effect::Kill]);
    assert_eq!(sim.pass(Duration::from_secs(1)), [], "once");
    sim.exit();
    assert!(sim.instance.stopped() && sim.instance.killed());
    assert_eq!(sim.step(Event::Wanted(Run::Running)), [], "for good");
    assert_eq!(sim.phase(), Phase::Stopped);
}

#[test]
fn stop_releases_one_that_was_found_just_before_it_stopped() {
    let mut sim = Sim::new();
    sim.step(Event::Adopted { pid: 9, stopped: false });
    let kill_at = sim.now + Duration::from_secs(5);
    assert_eq!(sim.step(Event::StopAsked { kill_at }), [Effect::Release, Effect::Terminate]);
}

#[test]
fn stop_in_every_other_state() {
    let stop = |sim: &mut Sim| {
        let kill_at = sim.now + Duration::from_secs(5);
        sim.step(Event::StopAsked { kill_at })
    };
    let mut absent = Sim::new();
    assert_eq!(stop(&mut absent), []);
    assert_eq!(absent.phase(), Phase::Stopped);

    let mut preparing = Sim::new();
    preparing.step(Event::Wanted(Run::Running));
    assert_eq!(stop(&mut preparing), []);
    assert_eq!(preparing.step(Event::Prepared), [], "nothing is spawned any more");
    assert_eq!(preparing.phase(), Phase::Stopped);

    let mut finds_one = Sim::new();
    finds_one.step(Event::Wanted(Run::Running));
    stop(&mut finds_one);
    let adopted = Event::Adopted { pid: 3, stopped: true };
    assert_eq!(finds_one.step(adopted), [Effect::Release, Effect::Terminate]);

    let mut spawning = Sim::new();
    spawning.step(Event::Wanted(Run::Running));
    spawning.step(Event::Prepared);
    assert_eq!(stop(&mut spawning), []);
    assert_eq!(spawning.step(Event::Spawned { pid: 1 }), [Effect::Release, Effect::Terminate]);

    let mut waiting = Sim::new();
    waiting.step(Event::Wanted(Run::Running));
    waiting.step(Event::Blocked("x".into()));
    assert_eq!(stop(&mut waiting), []);
    assert_eq!((waiting.phase(), waiting.problem().as_str()), (Phase::Stopped, ""));
    assert_eq!(waiting.pass(BLOCKED_RETRY), []);
}

#[test]
fn what_is_not_wanted_any_more_is_left_alone() {
    let mut sim = Sim::new();
    sim.step(Event::Wanted(Run::Running));
    sim.spawn(1);
    sim.ready();
    assert_eq!(sim.step(Event::Unwanted), []);
    assert_eq!(sim.phase(), Phase::Running);
    sim.exit();
    assert_eq!(sim.phase(), Phase::Absent, "and not started again");
    assert_eq!(sim.pass(CRASH_RETRY), []);
    assert_eq!(sim.step(Event::Wanted(Run::Running)), [Effect::Prepare]);
    sim.step(Event::Unwanted);
    assert_eq!(sim.step(Event::Prepared), []);
    assert_eq!(sim.phase(), Phase::Absent);
}

/// What the world does next; the model below keeps it possible.
#[derive(Debug, Clone)]
enum Move {
    Want(bool),
    Unwant,
    Outcome(u8),
    Listen,
    Admit,
    Answer(bool),
    Exit,
    Stop,
    Pass(u16),
}

fn any_move() -> impl Strategy<Value = Move> {
    prop_oneof![
        3 => any::<bool>().prop_map(Move::Want),
        1 => Just(Move::Unwant),
        8 => any::<u8>().prop_map(Move::Outcome),
        4 => Just(Move::Listen),
        4 => Just(Move::Admit),
        4 => any::<bool>().prop_map(Move::Answer),
        4 => Just(Move::Exit),
        1 => Just(Move::Stop),
        6 => any::<u16>().prop_map(Move::Pass),
    ]
}

proptest! {
    /// Against a world that prepares, spawns, answers and crashes in any order: no second
    /// process before the first has ended, no signal that ends one unless a stop was
    /// asked for, and no signal at all without a process.
    #[test]
    fn never_two_processes_and_never_an_unasked_end(moves in prop::collection::vec(any_move(), 1..200)) {
        let mut sim = Sim::new();
        let (mut preparing, mut spawning, mut probing) = (false, false, false);
        let (mut pid, mut next_pid, mut stop_asked) = (None, 1, false);
        for step in moves {
            let event = match step {
                Move::Want(held) => Event::Wanted(if held { Run::Held } else { Run::Running }),
                Move::Unwant => Event::Unwanted,
                Move::Outcome(what) if preparing => {
                    preparing = false;
                    match what % 4 {
                        0 => Event::Blocked("x".into()),
                        1 => {
                            pid = Some(next_pid);
                            next_pid += 1;
                            Event::Adopted { pid: next_pid - 1, stopped: what & 4 == 0 }
                        }
                        _ => Event::Prepared,
                    }
                }
                Move::Outcome(what) if spawning => {
                    spawning = false;
                    if what % 4 == 0 {
                        Event::SpawnFailed("x".into())
                    } else {
                        pid = Some(next_pid);
                        next_pid += 1;
                        Event::Spawned { pid: next_pid - 1 }
                    }
                }
                Move::Listen if pid.is_some() => Event::BusListening,
                Move::Admit => Event::Admitted,
                Move::Answer(yes) if probing && pid.is_some() => {
                    probing = false;
                    if yes { Event::Ready { run_id: "r".into(), note: None } } else { Event::NotReady("x".into()) }
                }
                Move::Exit if pid.is_some() => {
                    pid = None;
                    probing = false;
                    Event::Exited { status: "signal 9".into(), log_tail: String::new() }
                }
                Move::Stop => {
                    stop_asked = true;
                    Event::StopAsked { kill_at: sim.now + Duration::from_secs(1) }
                }
                Move::Pass(ms) => {
                    sim.now += Duration::from_millis(ms.into());
                    Event::Tick
                }
                _ => continue,
            };
            for effect in sim.step(event) {
                match effect {
                    Effect::Prepare => {
                        prop_assert!(pid.is_none() && !preparing && !spawning);
                        preparing = true;
                    }
                    Effect::Spawn => {
                        prop_assert!(pid.is_none() && !preparing && !spawning && !stop_asked);
                        spawning = true;
                    }
                    Effect::Terminate | Effect::Kill => prop_assert!(stop_asked && pid.is_some()),
                    Effect::Hold | Effect::Release => prop_assert!(pid.is_some()),
                    Effect::Probe => {
                        prop_assert!(pid.is_some() && !probing);
                        probing = true;
                    }
                }
            }
            prop_assert_eq!(sim.instance.pid(), pid);
        }
        if stop_asked {
            // Whatever was under way, it comes to its end.
            if preparing { sim.step(Event::Prepared); }
            if spawning {
                let effects = sim.step(Event::Spawned { pid: next_pid });
                prop_assert!(!effects.is_empty());
                pid = Some(next_pid);
            }
            if pid.is_some() { sim.exit(); }
            prop_assert!(sim.instance.stopped());
        }
    }
}
