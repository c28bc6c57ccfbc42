//! Faults as data: which, when, for how long. A seed makes a schedule; the same seed makes
//! the same one.

use std::time::Duration;

use rand::rngs::SmallRng;
use rand::seq::SliceRandom;
use rand::{Rng, SeedableRng};
use redmesh_api::level::PlanStage;
use redmesh_api::run::RunStage;

use super::net::Trouble;

/// When a fault begins.
#[derive(Debug, Clone, Copy, PartialEq)]
pub enum When {
    /// So long after the simulation's begin.
    At(Duration),
    /// So long after the first host has seen this.
    After(Moment, Duration),
}

/// Something that the level says for the first time.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum Moment {
    /// The mesh has its id.
    Founded,
    /// The plan has reached a stage.
    Plan(PlanStage),
    /// Some run has reached a stage.
    Run(RunStage),
}

/// Whom a fault hits.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Whom {
    /// This host.
    Host(usize),
    /// Whoever coordinates at that moment.
    Coordinator,
}

/// One kind of fault.
#[derive(Debug, Clone, PartialEq)]
pub enum Fault {
    /// Something is wrong with the network for a while.
    Network(Trouble, Duration),
    /// Nothing passes between a group and the others, again and again.
    Flapping {
        /// The group.
        group: Vec<usize>,
        /// How long each cut and each pause between two last.
        half: Duration,
        /// Cuts.
        times: u32,
    },
    /// Packets take up to so many milliseconds, for a while.
    Delay(u64, Duration),
    /// An agent is killed, and started again later; its servers live on.
    Kill {
        /// Whose.
        whom: Whom,
        /// How long it is away.
        away: Duration,
        /// Whether its state directory is lost: it comes back as another host.
        wipe: bool,
    },
    /// Whatever a host reads from its disk or writes to it takes up to twice so many
    /// milliseconds, for a while.
    Disk(usize, u64, Duration),
    /// A host's wall clock jumps by so many milliseconds and stays there.
    Clock(usize, i64),
}

/// Faults in the safety phase, and when that ends.
#[derive(Debug, Clone, PartialEq)]
pub struct Schedule {
    /// What happens.
    pub faults: Vec<(When, Fault)>,
    /// When everything is healed.
    pub ends: Duration,
}

/// The safety phase of a random schedule.
const FAULTS_FOR: Duration = Duration::from_secs(40);

/// Faults of a random schedule, at most.
const FAULTS_MAX: usize = 8;

/// No trouble of the network, and no absence but a few, lasts longer.
const LASTS_MS: std::ops::Range<u64> = 200..12_000;

/// A killed agent is away so long; past 15 s others take over its share.
const AWAY_MS: std::ops::Range<u64> = 50..22_000;

impl Schedule {
    /// The schedule of a seed for a mesh of `hosts`.
    pub fn random(seed: u64, hosts: usize) -> Self {
        let mut dice = SmallRng::seed_from_u64(seed);
        let count = dice.random_range(1..=FAULTS_MAX);
        let mut faults: Vec<_> = (0..count)
            .map(|_| {
                let at = dice.random_range(0..FAULTS_FOR.as_millis() as u64);
                (When::At(Duration::from_millis(at)), fault(&mut dice, hosts))
            })
            .collect();
        // A host that is lost before the mesh is founded takes its pledge with it, and a
        // person has to help: see `redmesh_agent::coordinator::bootstrap`.
        if dice.random_ratio(1, 5) {
            let after = Duration::from_millis(dice.random_range(0..25_000));
            let away = Duration::from_millis(dice.random_range(AWAY_MS));
            let whom = Whom::Host(dice.random_range(0..hosts));
            faults.push((When::After(Moment::Founded, after), Fault::Kill { whom, away, wipe: true }));
        }
        Self { faults, ends: FAULTS_FOR }
    }
}

fn fault(dice: &mut SmallRng, hosts: usize) -> Fault {
    let lasts = Duration::from_millis(dice.random_range(LASTS_MS));
    let mut shuffled: Vec<usize> = (0..hosts).collect();
    shuffled.shuffle(dice);
    let minority = dice.random_range(1..=(hosts - 1) / 2);
    let (group, others) = shuffled.split_at(minority);
    let (group, others) = (group.to_vec(), others.to_vec());
    match dice.random_range(0..14) {
        0 => Fault::Network(Trouble::Split(group), lasts),
        1 => Fault::Network(Trouble::Cut { from: group, to: others }, lasts),
        2 => Fault::Network(Trouble::Cut { from: others, to: group }, lasts),
        3 => Fault::Flapping {
            group,
            half: Duration::from_millis(dice.random_range(100..1500)),
            times: dice.random_range(2..8),
        },
        4 => Fault::Network(Trouble::Loss(dice.random_range(1..40)), lasts),
        5 => Fault::Network(Trouble::Copies(dice.random_range(1..60)), lasts),
        6 => Fault::Delay(dice.random_range(20..400), lasts),
        7 => Fault::Clock(shuffled[0], dice.random_range(-120_000..120_000)),
        8 | 9 => {
            let away = Duration::from_millis(dice.random_range(AWAY_MS));
            Fault::Kill { whom: Whom::Host(shuffled[0]), away, wipe: false }
        }
        10 => Fault::Kill { whom: Whom::Coordinator, away: lasts, wipe: false },
        11 | 12 => Fault::Disk(shuffled[0], dice.random_range(5..1500), lasts),
        // Everybody for himself.
        _ => Fault::Network(Trouble::Cut { from: shuffled.clone(), to: shuffled }, lasts),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_seed_makes_one_schedule_and_seeds_make_many() {
        assert_eq!(Schedule::random(7, 5), Schedule::random(7, 5));
        let all: Vec<_> = (0..200).map(|seed| Schedule::random(seed, 5)).collect();
        for (index, schedule) in all.iter().enumerate() {
            assert!(!all[..index].contains(schedule), "seed {index}");
        }
        let faults = || all.iter().flat_map(|schedule| &schedule.faults);
        let kinds: std::collections::HashSet<_> =
            faults().map(|(_, fault)| std::mem::discriminant(fault)).collect();
        assert_eq!(kinds.len(), 6, "every kind of fault is drawn");
        assert!(faults().any(|(_, fault)| matches!(fault, Fault::Kill { wipe: true, .. })));
    }
}
