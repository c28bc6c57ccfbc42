//! The agent's own metrics: one struct, each field named and explained once.

use std::sync::Arc;
use std::time::Duration;

use metrics::{Gauge, Unit, describe_gauge, gauge};
use redmesh_api::level::PlanStage;
use redmesh_api::run::RunStage;
use tokio::sync::watch;
use tokio_util::sync::CancellationToken;

use crate::census::Census;
use crate::stats;
use crate::supervisor::InstanceStatus;

/// Between two updates of the gauges.
const UPDATE_INTERVAL: Duration = Duration::from_secs(1);

macro_rules! gauges {
    ($(#[$doc:meta])* $name:ident { $($(#[doc = $help:literal])+ $field:ident: $metric:literal, $unit:expr;)+ }) => {
        $(#[$doc])*
        #[derive(Clone)]
        pub struct $name { $($(#[doc = $help])+ pub $field: Gauge,)+ }

        impl $name {
            fn describe() {
                $(describe_gauge!($metric, $unit, concat!($($help),+).trim());)+
            }

            /// Handles to the installed recorder's gauges.
            pub fn new() -> Self {
                Self { $($field: gauge!($metric),)+ }
            }
        }

        impl Default for $name {
            fn default() -> Self {
                Self::new()
            }
        }

        impl std::fmt::Debug for $name {
            fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
                f.debug_struct(stringify!($name)).finish_non_exhaustive()
            }
        }
    };
}

/// Labelled with the phase.
const PHASE_SECONDS: &str = "redmesh_formation_phase_seconds";

gauges! {
    /// Gauges of one agent.
    AgentGauges {
        /// Hosts that gossip hears of, this one included
        members_alive: "redmesh_members_alive", Unit::Count;
        /// Hosts that gossip does not hear of any more
        members_dead: "redmesh_members_dead", Unit::Count;
        /// 1 if this host knows of an acting coordinator
        coordinator_known: "redmesh_coordinator_known", Unit::Count;
        /// 1 if this host is the acting coordinator
        coordinator: "redmesh_coordinator", Unit::Count;
        /// Raft term of this host's node
        raft_term: "redmesh_raft_term", Unit::Count;
        /// Raft log index of the newest level seen
        level_index: "redmesh_level_index", Unit::Count;
        /// Instances that the plan wants of this host
        instances_planned: "redmesh_instances_planned", Unit::Count;
        /// Instances running on this host
        instances_up: "redmesh_instances_up", Unit::Count;
        /// Instances on this host whose view of the cluster is whole
        instances_agreed: "redmesh_instances_agreed", Unit::Count;
        /// Restarts of instances by this agent
        instance_restarts: "redmesh_instance_restarts", Unit::Count;
        /// Stage of the plan: 0 none, 1 prepare, 2 release, 3 replicate, 4 formed
        plan_stage: "redmesh_plan_stage", Unit::Count;
        /// 1 while a run is going on
        run_active: "redmesh_run_active", Unit::Count;
        /// Writes issued in the newest run, over all hosts
        run_issued: "redmesh_run_writes_issued", Unit::Count;
        /// Writes acked in the newest run, over all hosts
        run_acked: "redmesh_run_writes_acked", Unit::Count;
        /// Writes failed in the newest run, over all hosts
        run_failed: "redmesh_run_writes_failed", Unit::Count;
        /// Writes of unknown fate in the newest run, over all hosts
        run_unknown: "redmesh_run_writes_unknown", Unit::Count;
    }
}

pub(super) fn describe() {
    AgentGauges::describe();
    describe_gauge!("redmesh_build_info", Unit::Count, "1, labelled with the agent's version");
    describe_gauge!(PHASE_SECONDS, Unit::Seconds, "How long each phase of the cluster's formation took");
}

/// Keeps the gauges current until cancelled.
pub async fn update(
    census: Census,
    statuses: watch::Receiver<Arc<Vec<InstanceStatus>>>,
    cancel: CancellationToken,
) {
    let build_info = gauge!("redmesh_build_info", "version" => env!("CARGO_PKG_VERSION"));
    let gauges = AgentGauges::new();
    let mut ticks = tokio::time::interval(UPDATE_INTERVAL);
    ticks.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Delay);
    loop {
        tokio::select! {
            _ = ticks.tick() => {
                // All of them, each time: what is not set is withdrawn.
                build_info.set(1.0);
                gauges.set(&census, &statuses.borrow());
            }
            () = cancel.cancelled() => return,
        }
    }
}

impl AgentGauges {
    fn set(&self, census: &Census, statuses: &[InstanceStatus]) {
        let flag = |condition: bool| f64::from(u8::from(condition));
        let hosts = census.hosts();
        let alive = hosts.values().filter(|host| host.alive).count();
        self.members_alive.set(alive as f64);
        self.members_dead.set((hosts.len() - alive) as f64);
        self.coordinator_known.set(flag(census.coordinator().is_some()));
        self.coordinator.set(flag(census.acting()));
        self.raft_term.set(census.leadership.borrow().term as f64);

        let level = census.level();
        self.level_index.set(level.stamp.index as f64);
        let stage = level.plan.as_ref().map_or(0, |plan| match plan.stage {
            PlanStage::Prepare => 1,
            PlanStage::Release => 2,
            PlanStage::Replicate => 3,
            PlanStage::Formed => 4,
        });
        self.plan_stage.set(f64::from(stage));
        for (phase, ms) in level.plan.iter().flat_map(|plan| plan.phases_ms()) {
            gauge!(PHASE_SECONDS, "phase" => phase.name()).set(ms as f64 / 1e3);
        }
        let observed = hosts.get(&census.host).map(|me| me.observed.clone()).unwrap_or_default();
        self.instances_planned.set(f64::from(observed.planned));
        self.instances_up.set(f64::from(observed.up));
        self.instances_agreed.set(f64::from(observed.agreed));
        self.instance_restarts.set(statuses.iter().map(|status| f64::from(status.restarts)).sum::<f64>());

        let run = level.runs.last();
        self.run_active.set(flag(run.is_some_and(|run| run.stage != RunStage::Done)));
        let tallies = run.map(|run| census.tallies(run)).unwrap_or_default();
        let total = stats::total(&tallies);
        self.run_issued.set(total.issued as f64);
        self.run_acked.set(total.acked as f64);
        self.run_failed.set(total.failed as f64);
        self.run_unknown.set(total.unknown as f64);
    }
}
