//! What was measured, for people and for programs.

use std::fmt;
use std::fmt::Write as _;

use clap::ValueEnum;
use redmesh_benches::figures::{fit_power, fit_square, median};
use serde_json::json;

use super::cluster::{Formed, Outcome};

/// Who forms.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub enum Peer {
    /// redmesh, by complete nodes.conf files
    Redmesh,
    /// redmesh, by CLUSTER MEET
    RedmeshMeet,
    /// redis-cli --cluster create, of servers with the settings that redmesh chooses
    RedisCli,
    /// redis-cli --cluster create, of servers with Redis' own hz, node timeout and allocator settings
    RedisCliStock,
}

impl Peer {
    /// Whether it has to form each time; the others may fail.
    pub fn is_redmesh(self) -> bool {
        matches!(self, Self::Redmesh | Self::RedmeshMeet)
    }
}

impl fmt::Display for Peer {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(match self {
            Self::Redmesh => "redmesh",
            Self::RedmeshMeet => "redmesh, MEET",
            Self::RedisCli => "redis-cli",
            Self::RedisCliStock => "redis-cli, stock",
        })
    }
}

/// One peer's formations of one size.
#[derive(Debug)]
pub struct Row {
    /// Who.
    pub peer: Peer,
    /// Instances.
    pub instances: usize,
    /// One a round.
    pub outcomes: Vec<Outcome>,
}

impl Row {
    /// None yet.
    pub fn new(peer: Peer, instances: usize) -> Self {
        Self { peer, instances, outcomes: Vec::new() }
    }

    fn formed(&self) -> impl Iterator<Item = &Formed> {
        self.outcomes.iter().filter_map(|outcome| match outcome {
            Outcome::Formed(formed) => Some(formed),
            Outcome::Failed(_) => None,
        })
    }

    /// Of those that have formed; NaN where none has.
    fn median(&self, of: impl Fn(&Formed) -> f64) -> f64 {
        median(self.formed().map(of).collect())
    }
}

/// One of a formation's figures.
type Figure = fn(&Formed) -> f64;

const MIB: f64 = (1u64 << 20) as f64;

/// One formation in a line, as it ends.
pub fn line(peer: Peer, instances: usize, round: u16, outcome: &Outcome) -> String {
    let head = format!("round {round:<3} {peer:<16} {instances:>5} instances");
    match outcome {
        Outcome::Formed(formed) => format!(
            "{head}  servers started {:.1} s, formed {:.1} s, peak {:.0} MiB, rejoined {:.1} s",
            formed.phases.start_s,
            formed.phases.form_s,
            formed.peak_bytes as f64 / MIB,
            formed.rejoin_s
        ),
        Outcome::Failed(why) => format!("{head}  FAILED: {why}"),
    }
}

/// The same for programs.
pub fn json(peer: Peer, instances: usize, round: u16, outcome: &Outcome) -> serde_json::Value {
    let peer = peer.to_string();
    match outcome {
        Outcome::Formed(formed) => json!({
            "peer": peer, "instances": instances, "round": round, "formed": true,
            "start_s": formed.phases.start_s, "form_s": formed.phases.form_s, "told_s": formed.phases.told_s,
            "peak_bytes": formed.peak_bytes, "servers_bytes": formed.servers_bytes, "rejoin_s": formed.rejoin_s,
        }),
        Outcome::Failed(why) => {
            json!({ "peer": peer, "instances": instances, "round": round, "formed": false, "why": why })
        }
    }
}

/// The table for people and for documents (it is Markdown), and the curves.
pub fn render(rows: &[Row], rounds: u16, deadline_s: u32) -> String {
    let mut text = format!(
        "Medians of {rounds} formations, taken in turns. \"Formed\" is from the moment when all servers \
         listen until every instance, asked by CLUSTER INFO in the same way for both, knows all nodes and \
         slots, says ok and has had as many PONGs as it has peers; the servers' start is counted for neither. \"Told\" is when the tool itself says \
         so. Peak is how much less memory the machine had at most (agents included); servers is their \
         anonymous memory when formed. Not within {deadline_s} s is not formed.\n\n\
         | instances | by | converged | servers start s | formed s | lowest..highest | told s | peak MiB | servers MiB | rejoin s | × redmesh |\n\
         |--:|---|--:|--:|--:|--:|--:|--:|--:|--:|--:|\n"
    );
    for row in rows {
        let form = || row.formed().map(|formed| formed.phases.form_s);
        let seeded = rows.iter().find(|r| r.peer == Peer::Redmesh && r.instances == row.instances);
        let mine = row.median(|f| f.phases.form_s);
        let ratio = seeded.map_or(f64::NAN, |seeded| mine / seeded.median(|f| f.phases.form_s));
        // Writing into a String can't fail.
        let _ = writeln!(
            text,
            "| {} | {} | {} of {} | {} | {} | {}..{} | {} | {} | {} | {} | {} |",
            row.instances,
            row.peer,
            form().count(),
            row.outcomes.len(),
            figure(row.median(|f| f.phases.start_s), 1),
            figure(mine, 1),
            figure(form().fold(f64::NAN, f64::min), 1),
            figure(form().fold(f64::NAN, f64::max), 1),
            figure(row.median(|f| f.phases.told_s), 1),
            figure(row.median(|f| f.peak_bytes as f64 / MIB), 0),
            figure(row.median(|f| f.servers_bytes as f64 / MIB), 0),
            figure(row.median(|f| f.rejoin_s), 1),
            figure(ratio, 1),
        );
    }
    text.push('\n');
    for peer in Peer::value_variants() {
        curves(&mut text, rows, *peer);
    }
    for row in rows {
        for outcome in &row.outcomes {
            if let Outcome::Failed(why) = outcome {
                let _ = writeln!(text, "{} at {}: {why}", row.peer, row.instances);
            }
        }
    }
    text
}

/// Least squares over all single formations.
fn curves(text: &mut String, rows: &[Row], peer: Peer) {
    let points = |of: Figure| -> Vec<(f64, f64)> {
        let mine = rows.iter().filter(|row| row.peer == peer);
        mine.flat_map(|row| row.formed().map(move |formed| (row.instances as f64, of(formed)))).collect()
    };
    if let Some((a, b)) = fit_power(&points(|f| f.phases.form_s)) {
        let _ = writeln!(
            text,
            "{peer}: seconds until formed = {a:.3e} · N^{b:.2} (least squares of the logarithms)"
        );
    }
    let memory: [(&str, Figure); 2] = [
        ("peak memory", |f| f.peak_bytes as f64 / 1024.0),
        ("servers' memory", |f| f.servers_bytes as f64 / 1024.0),
    ];
    for (what, of) in memory {
        if let Some((a, b)) = fit_square(&points(of)) {
            let _ = writeln!(text, "{peer}: {what} = {a:.0} KiB · N + {b:.1} KiB · N² (least squares)");
        }
    }
}

/// A dash where there is none.
fn figure(value: f64, digits: usize) -> String {
    if value.is_finite() { format!("{value:.digits$}") } else { "–".to_owned() }
}

#[cfg(test)]
mod tests {
    use super::super::cluster::Phases;
    use super::*;

    fn formed(form_s: f64, peak_mib: u64) -> Outcome {
        let phases = Phases { start_s: 1.0, form_s, told_s: form_s };
        Outcome::Formed(Formed { phases, peak_bytes: peak_mib << 20, servers_bytes: 1 << 20, rejoin_s: 2.0 })
    }

    #[test]
    fn ratios_and_curves_are_of_what_was_measured() {
        let rows = [
            Row { peer: Peer::Redmesh, instances: 100, outcomes: vec![formed(2.0, 100), formed(4.0, 100)] },
            Row { peer: Peer::RedisCli, instances: 100, outcomes: vec![formed(30.0, 100)] },
            Row { peer: Peer::Redmesh, instances: 200, outcomes: vec![formed(6.0, 400)] },
        ];
        let text = render(&rows, 2, 60);
        assert!(text.contains("| 100 | redmesh | 2 of 2 | 1.0 | 3.0 | 2.0..4.0 |"), "{text}");
        assert!(text.contains("| 100 | redis-cli | 1 of 1 | 1.0 | 30.0 |"), "{text}");
        assert!(text.contains("| 2.0 | 10.0 |"), "{text}");
        assert!(text.contains("redmesh: peak memory = 0 KiB · N + 10.2 KiB · N²"), "{text}");
        // One size of redis-cli makes no curve, and it is compared with what redmesh took at this size.
        assert!(!text.contains("redis-cli: ") && !text.contains("| 2.0 | 5.0 |"), "{text}");
    }

    #[test]
    fn what_has_not_formed_is_told_and_not_averaged() {
        let failed = Outcome::Failed("not within 60 s".into());
        let rows = [Row { peer: Peer::RedisCli, instances: 300, outcomes: vec![failed, formed(50.0, 9)] }];
        let text = render(&rows, 2, 60);
        assert!(text.contains("| 300 | redis-cli | 1 of 2 | 1.0 | 50.0 |"), "{text}");
        assert!(text.contains("redis-cli at 300: not within 60 s"), "{text}");
    }
}
