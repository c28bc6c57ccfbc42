//! Worlds that are wrong in one way, so that an invariant which the agents keep breaks:
//! proof that the simulation would see it.
//!
//! Nothing in the agents is changed for that. Each flaw takes away something that they
//! rely on: a disk that keeps what was written, a supervisor that looks before it starts,
//! an engine that counts what it sends, a configuration that the manual allows, a network
//! that heals.

use std::path::Path;

use redmesh_agent::consensus;

/// What is wrong.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Flaw {
    /// After each crash a host finds its votes, its log and its level as they were at its
    /// first one: a disk that is set back.
    OldDisk,
    /// After a crash a host finds none of its accounts of runs; agents stand this one.
    LostAccounts,
    /// After a crash a host finds no votes and no log.
    LostVotes,
    /// So few hosts found a mesh, be it half of them or less.
    Founders(u16),
    /// An agent that begins starts its servers without looking whether they run.
    BlindSupervisor,
    /// Engines count one write of each batch twice.
    CountsTwice,
    /// Engines send one write more in each batch than they account for.
    UncountedWrites,
    /// The network stays as it is when everything else is healed.
    NetworkStays,
}

impl Flaw {
    /// What a crash does to a host's state directory; `kept` is a directory of the flaw's
    /// own.
    pub fn crash(self, state: &Path, kept: &Path) {
        let gone = "the state directory can be changed";
        match self {
            Self::OldDisk => {
                [consensus::FILE_NAME, "level.bin"].into_iter().for_each(|name| roll_back(name, state, kept))
            }
            Self::LostVotes => std::fs::remove_file(state.join(consensus::FILE_NAME)).expect(gone),
            Self::LostAccounts => {
                let runs = state.join("runs");
                if runs.exists() {
                    std::fs::remove_dir_all(runs).expect(gone);
                }
            }
            _ => {}
        }
    }
}

/// The first time that it is there, the file is kept; every later time what was kept takes
/// its place.
fn roll_back(name: &str, state: &Path, kept: &Path) {
    let (now, then) = (state.join(name), kept.join(name));
    std::fs::create_dir_all(kept).expect("a directory");
    if !then.exists() {
        if now.exists() {
            std::fs::copy(&now, &then).expect("the file can be kept");
        }
        return;
    }
    // As another file: what the crash has interrupted may still hold the old one.
    let fresh = state.join("rolled-back");
    std::fs::copy(&then, &fresh).expect("the file can be restored");
    std::fs::rename(&fresh, &now).expect("the file can be restored");
}
