//! When each of this host's instances first agreed, since its plan was released.
//!
//! Pure: looks come in with their time. Only what was seen to happen is noted: an agent
//! that starts in the middle of a formation can't tell when those that agree already did,
//! and says so.

use std::collections::BTreeMap;
use std::net::SocketAddr;
use std::time::Instant;

use redmesh_api::ids::PlanId;
use redmesh_api::level::{ClusterPlan, Convergence, PlanStage};
use redmesh_api::limits::CONVERGENCE_S_MAX;

/// Notes of one plan at a time.
#[derive(Debug, Clone, Default)]
pub struct Agreeing {
    plan: Option<PlanId>,
    /// When this host heard that the plan was released; `None` if it was before its time.
    released: Option<Instant>,
    /// Milliseconds from there to the first agreement; `None` where that isn't known.
    agreed_ms: BTreeMap<SocketAddr, Option<u64>>,
    looked: bool,
}

impl Agreeing {
    /// Takes notice of a level's plan, before its instances are looked at.
    pub fn on_plan(&mut self, plan: &ClusterPlan, now: Instant) {
        if self.plan != Some(plan.id) {
            *self = Self { plan: Some(plan.id), ..Self::default() };
            if plan.stage > PlanStage::Prepare {
                self.looked = true;
                return;
            }
        }
        if plan.stage > PlanStage::Prepare && self.released.is_none() && !self.looked {
            self.released = Some(now);
        }
    }

    /// Takes one look at who agrees.
    pub fn on_look(&mut self, agreed: impl Iterator<Item = SocketAddr>, now: Instant) {
        let since = self.released.map(|released| now.saturating_duration_since(released));
        let ms = since.map(|since| u64::try_from(since.as_millis()).unwrap_or(u64::MAX));
        for addr in agreed {
            self.agreed_ms.entry(addr).or_insert(ms);
        }
    }

    /// What is noted of `plan`, an entry for each instance that has agreed.
    pub fn of(&self, plan: PlanId) -> Vec<Option<u64>> {
        if self.plan == Some(plan) { self.agreed_ms.values().copied().collect() } else { Vec::new() }
    }
}

/// What all hosts noted, as one curve; those of `instances` that nobody noted are unknown.
pub fn sum(instances: usize, noted: impl Iterator<Item = Option<u64>>) -> Convergence {
    let seconds: Vec<usize> = noted
        .flatten()
        .map(|ms| usize::try_from(ms / 1000).unwrap_or(usize::MAX).min(CONVERGENCE_S_MAX - 1))
        .collect();
    let mut agreed_by_s = vec![0; seconds.iter().max().map_or(0, |last| last + 1)];
    for second in &seconds {
        agreed_by_s[*second] += 1;
    }
    let mut agreed = 0;
    for count in &mut agreed_by_s {
        agreed += *count;
        *count = agreed;
    }
    let unknown = u32::try_from(instances.saturating_sub(seconds.len())).unwrap_or(u32::MAX);
    Convergence { agreed_by_s, unknown }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use redmesh_api::level::{ClusterSpec, Formation};
    use uuid::Uuid;

    use super::*;

    fn plan(id: u128, stage: PlanStage) -> ClusterPlan {
        ClusterPlan {
            id: PlanId(Uuid::from_u128(id)),
            spec: ClusterSpec::default(),
            node_timeout_ms: 5000,
            hz: 10,
            formation: Formation::Seeded,
            stage,
            hosts: Vec::new(),
            instances: Vec::new(),
            created_unix_ms: 1,
            reached: Vec::new(),
            convergence: None,
        }
    }

    fn addr(port: u16) -> SocketAddr {
        SocketAddr::from(([127, 0, 0, 1], port))
    }

    #[test]
    fn times_count_from_the_release_and_the_first_agreement_stays() {
        let mut agreeing = Agreeing::default();
        let began = Instant::now();
        let after = |ms| began + Duration::from_millis(ms);
        let plan = |stage| plan(1, stage);
        agreeing.on_plan(&plan(PlanStage::Prepare), began);
        agreeing.on_plan(&plan(PlanStage::Release), after(5000));
        agreeing.on_look([addr(1)].into_iter(), after(6200));
        agreeing.on_plan(&plan(PlanStage::Release), after(7000));
        agreeing.on_look([addr(1), addr(2)].into_iter(), after(7500));
        assert_eq!(agreeing.of(plan(PlanStage::Release).id), [Some(1200), Some(2500)]);
        assert_eq!(agreeing.of(PlanId(Uuid::from_u128(2))), []);
    }

    #[test]
    fn an_agent_that_starts_in_the_middle_does_not_guess() {
        let mut agreeing = Agreeing::default();
        let now = Instant::now();
        agreeing.on_plan(&plan(1, PlanStage::Release), now);
        agreeing.on_plan(&plan(1, PlanStage::Release), now);
        agreeing.on_look([addr(1)].into_iter(), now);
        assert_eq!(agreeing.of(plan(1, PlanStage::Release).id), [None]);
    }

    #[test]
    fn the_curve_is_cumulative_and_bounded() {
        let noted = [Some(100), Some(2999), None, Some(2000), Some(u64::MAX)];
        let sum = sum(6, noted.into_iter());
        assert_eq!(sum.agreed_by_s.len(), CONVERGENCE_S_MAX);
        assert_eq!(sum.agreed_by_s[..4], [1, 1, 3, 3]);
        assert_eq!((sum.agreed_by_s[CONVERGENCE_S_MAX - 1], sum.unknown), (4, 2));
        assert_eq!(super::sum(3, [].into_iter()), Convergence { agreed_by_s: Vec::new(), unknown: 3 });
    }
}
