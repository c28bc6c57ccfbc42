//! How a formation went: seconds per phase, and how many instances agreed when.

use std::fmt::Write as _;

use redmesh_api::level::{ClusterPlan, Convergence};
use serde::Serialize;

use crate::units::seconds;

/// Figures of a convergence that are printed; more seconds are shown at larger steps.
const COLUMNS_MAX: usize = 12;

/// One phase.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct Phase {
    /// `request` and `check` by this process's clock; the stages of the plan by the
    /// coordinator's.
    pub name: &'static str,
    /// How long it took, seconds.
    pub seconds: f64,
}

/// The phases of a plan that are over.
pub fn of_plan(plan: &ClusterPlan) -> Vec<Phase> {
    let phase = |(stage, ms): (redmesh_api::level::PlanStage, u64)| Phase {
        name: stage.name(),
        seconds: ms as f64 / 1e3,
    };
    plan.phases_ms().into_iter().map(phase).collect()
}

/// Lines for people; empty while no phase is over.
pub fn render(phases: &[Phase], plan: &ClusterPlan) -> String {
    let mut text = String::new();
    if !phases.is_empty() {
        let each: Vec<_> =
            phases.iter().map(|phase| format!("{} {}", phase.name, seconds(phase.seconds))).collect();
        let all: f64 = phases.iter().map(|phase| phase.seconds).sum();
        writeln!(text, "phases: {}; {} in all", each.join(", "), seconds(all)).expect("a String takes all");
    }
    if let Some(convergence) = &plan.convergence {
        text.push_str(&render_convergence(convergence, plan.instances.len()));
    }
    text
}

fn render_convergence(convergence: &Convergence, instances: usize) -> String {
    let by_s = &convergence.agreed_by_s;
    let step = by_s.len().div_ceil(COLUMNS_MAX).max(1);
    // The last one counts whatever the step.
    let mut columns: Vec<String> =
        by_s.iter().skip(step - 1).step_by(step).map(ToString::to_string).collect();
    if !by_s.len().is_multiple_of(step) {
        columns.extend(by_s.last().map(ToString::to_string));
    }
    let every = if step == 1 { "second by second".to_owned() } else { format!("every {step} s") };
    let unknown = match convergence.unknown {
        0 => String::new(),
        unknown => format!("; of {unknown} it is not known when"),
    };
    match columns.is_empty() {
        true => format!("agreed: of {instances} instances it is not known when\n"),
        false => format!(
            "agreed: {} of {instances} instances, {every} since the release{unknown}\n",
            columns.join(" ")
        ),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn convergence(agreed_by_s: Vec<u32>, unknown: u32) -> Convergence {
        Convergence { agreed_by_s, unknown }
    }

    #[test]
    fn a_convergence_is_one_line() {
        assert_eq!(
            render_convergence(&convergence(vec![0, 27, 30], 0), 30),
            "agreed: 0 27 30 of 30 instances, second by second since the release\n"
        );
        assert_eq!(
            render_convergence(&convergence((1..=30).collect(), 2), 32),
            "agreed: 3 6 9 12 15 18 21 24 27 30 of 32 instances, every 3 s since the release; of 2 it is not \
             known when\n"
        );
        let last = render_convergence(&convergence((1..=25).collect(), 0), 25);
        assert!(last.starts_with("agreed: 3 6 9 12 15 18 21 24 25 of"), "{last}");
        assert_eq!(
            render_convergence(&convergence(Vec::new(), 3), 3),
            "agreed: of 3 instances it is not known when\n"
        );
    }
}
