//! Every invariant can fail: in a world with a flaw the simulation catches it, and in the
//! same world without the flaw nothing is wrong. See `redmesh_tests::sim::flaw`.

use std::time::Duration;

use redmesh_api::run::RunStage;
use redmesh_tests::sim::driver::{Scenario, simulate, simulate_under};
use redmesh_tests::sim::flaw::Flaw;
use redmesh_tests::sim::invariants::{
    Counts, Fence, Invariant, LedgerCloses, OneCoordinator, OnePlan, OneServer, Serves,
};
use redmesh_tests::sim::log;
use redmesh_tests::sim::net::Trouble;
use redmesh_tests::sim::operator::Wishes;
use redmesh_tests::sim::schedule::{Fault, Moment, Schedule, When, Whom};

/// Seeds that a flaw has to show itself. Chance decides who is elected, for one.
const SEEDS: u64 = 6;

const S: fn(u64) -> Duration = Duration::from_secs;

fn kill(when: When, host: usize, away: Duration) -> (When, Fault) {
    (when, Fault::Kill { whom: Whom::Host(host), away, wipe: false })
}

/// Expects that `I`, judging alone, says `words` of a world with `flaw` (one flaw often
/// breaks several), and that all of them are content with the world without it.
fn is_caught<I: Invariant + Default + 'static>(
    flaw: Flaw,
    hosts: usize,
    faults: Vec<(When, Fault)>,
    words: &str,
) {
    log::start();
    let schedule = Schedule { faults, ends: S(30) };
    let wishes = Wishes { instances_per_host: 1, runs: 1 };
    let sound = Scenario { seed: 1, hosts, schedule, wishes, flaw: None };
    simulate(&sound).unwrap_or_else(|failure| panic!("without {flaw:?}: {failure}"));
    let caught = (1..=SEEDS).find_map(|seed| {
        let flawed = Scenario { seed, flaw: Some(flaw), ..sound.clone() };
        let failure = simulate_under(&flawed, vec![Box::<I>::default()]).err()?;
        (failure.invariant == I::default().name()).then_some(failure)
    });
    let failure = caught.unwrap_or_else(|| panic!("{flaw:?} is not caught by {SEEDS} seeds"));
    assert!(failure.words.contains(words), "{words:?} is not in {failure}");
}

/// All crash once. Then the coordinator is lost, and its successor; when that one is, all
/// who elected it crash too, and have forgotten the election when they hold the next.
#[test]
fn voters_that_forget_their_votes_elect_two_in_one_term() {
    let after = |at| When::After(Moment::Founded, at);
    let lose = |at| (after(at), Fault::Kill { whom: Whom::Coordinator, away: S(60), wipe: false });
    let crash = |at| (0..5).map(move |host| kill(after(at), host, S(1)));
    let mut faults: Vec<_> = crash(S(2)).collect();
    faults.extend([lose(S(6)), lose(S(15))]);
    faults.extend(crash(S(15)));
    is_caught::<OneCoordinator>(Flaw::OldDisk, 5, faults, "both act in term");
}

#[test]
fn a_host_that_forgets_its_level_takes_an_older_fence() {
    let after = |at| When::After(Moment::Founded, at);
    let faults =
        vec![kill(after(S(1)), 1, S(1)), kill(When::After(Moment::Run(RunStage::Done), S(1)), 1, S(1))];
    is_caught::<Fence>(Flaw::OldDisk, 3, faults, "back to");
}

#[test]
fn meshes_that_minorities_found_make_two_plans() {
    let faults = vec![(When::At(S(0)), Fault::Network(Trouble::Split(vec![0, 2]), S(10)))];
    is_caught::<OnePlan>(Flaw::Founders(2), 4, faults, "then mesh");
}

#[test]
fn a_supervisor_that_does_not_look_starts_a_second_server() {
    let faults = vec![kill(When::After(Moment::Run(RunStage::Running), S(1)), 2, S(1))];
    is_caught::<OneServer>(Flaw::BlindSupervisor, 3, faults, "was started in");
}

#[test]
fn an_engine_that_counts_writes_twice_shows_writes_that_nobody_made() {
    is_caught::<Counts>(Flaw::CountsTwice, 3, Vec::new(), " counts ");
}

#[test]
fn an_engine_that_sends_more_than_it_counts_leaves_the_ledger_open() {
    is_caught::<LedgerCloses>(Flaw::UncountedWrites, 3, Vec::new(), "nobody accounts for");
}

/// The one flaw that agents stand: another life writes under other keys and numbers, so what
/// was lost is missed, and said to be.
#[test]
fn a_host_that_loses_its_accounts_breaks_nothing() {
    log::start();
    let faults = vec![kill(When::After(Moment::Run(RunStage::Running), S(1)), 2, S(1))];
    let schedule = Schedule { faults, ends: S(30) };
    let wishes = Wishes { instances_per_host: 1, runs: 1 };
    for seed in 1..=SEEDS {
        let flaw = Some(Flaw::LostAccounts);
        let scenario = Scenario { seed, hosts: 3, schedule: schedule.clone(), wishes, flaw };
        simulate(&scenario).unwrap_or_else(|failure| panic!("seed {seed}: {failure}"));
    }
}

#[test]
fn a_mesh_that_stays_cut_does_not_serve() {
    let faults = vec![(When::At(S(20)), Fault::Network(Trouble::Split(vec![0]), S(300)))];
    is_caught::<Serves>(Flaw::NetworkStays, 3, faults, "after healing: host");
}

#[test]
fn an_agent_that_refuses_to_start_is_noticed() {
    let faults = vec![kill(When::After(Moment::Founded, S(2)), 1, S(1))];
    is_caught::<Serves>(Flaw::LostVotes, 3, faults, "host 1 ended");
}
