//! The person at the keyboard: wants a cluster, then runs, asks any agent that is up, and
//! looks before trying again.

use std::time::Duration;

use rand::Rng;
use rand::rngs::SmallRng;
use redmesh_api::control::{ClusterCreate, ControlReply, ControlRequest};
use redmesh_api::level::{ClusterSpec, Level, PlanStage};
use redmesh_api::preflight::Check;
use redmesh_api::run::{RunSpec, RunStage, RunUntil};
use redmesh_api::workload::Workload;

use super::host::Host;

/// Between an answer and the next request.
const PAUSE: Duration = Duration::from_millis(700);

/// A request without an answer is given up after so long; a forwarded one may take 40 s.
const PATIENCE: Duration = Duration::from_secs(45);

/// Workers of every run.
const WORKERS: u32 = 8;

/// What is wanted of the mesh.
#[derive(Debug, Clone, Copy)]
pub struct Wishes {
    /// redis-servers of each host.
    pub instances_per_host: u16,
    /// Runs, one after the other.
    pub runs: usize,
}

/// See the module.
#[derive(Debug)]
pub struct Operator {
    wishes: Wishes,
    dice: SmallRng,
    asked: Option<(u64, usize, Duration)>,
    number: u64,
    next: Duration,
}

impl Operator {
    /// Wants `wishes`; chooses by `dice` whom to ask.
    pub fn new(wishes: Wishes, dice: SmallRng) -> Self {
        Self { wishes, dice, asked: None, number: 0, next: Duration::ZERO }
    }

    /// Goes on; `newest` is the newest level that any agent has.
    pub fn look(&mut self, now: Duration, hosts: &[Host], newest: &Level) {
        if let Some((number, host, since)) = self.asked {
            for (replied, reply) in hosts[host].take_replies() {
                if replied == number {
                    self.heard(now, &reply);
                }
            }
            if self.asked.is_some() && (now > since + PATIENCE || hosts[host].census().is_none()) {
                self.asked = None;
            }
        }
        if self.asked.is_some() || now < self.next {
            return;
        }
        let Some(request) = self.wish(newest) else { return };
        let host = self.dice.random_range(0..hosts.len());
        if hosts[host].census().is_some() {
            self.number += 1;
            self.asked = Some((self.number, host, now));
            hosts[host].ask(self.number, request);
        }
        self.next = now + PAUSE;
    }

    fn heard(&mut self, now: Duration, reply: &ControlReply) {
        match reply {
            ControlReply::Refused(refusal) => tracing::info!(%refusal, "refused"),
            reply => tracing::info!(?reply, "answered"),
        }
        self.asked = None;
        self.next = now + PAUSE;
    }

    fn wish(&mut self, newest: &Level) -> Option<ControlRequest> {
        let Some(plan) = &newest.plan else {
            let instances_per_host = self.wishes.instances_per_host;
            let spec = ClusterSpec { instances_per_host, ..ClusterSpec::default() };
            // What the preflight reads is the machine that simulates.
            let force = Check::ALL.to_vec();
            return Some(ControlRequest::ClusterCreate(ClusterCreate { spec, force }));
        };
        let open = newest.runs.iter().any(|run| run.stage != RunStage::Done);
        if plan.stage != PlanStage::Formed || open || self.satisfied(newest) {
            return None;
        }
        let until = match self.dice.random_bool(0.7) {
            true => RunUntil::Writes(self.dice.random_range(1..4000)),
            false => RunUntil::Seconds(self.dice.random_range(1..20)),
        };
        let spec = RunSpec::closed_loop(Workload::uuid_counter(), WORKERS, until);
        Some(ControlRequest::RunStart(spec))
    }

    /// Whether all wishes have come true.
    pub fn satisfied(&self, newest: &Level) -> bool {
        newest.runs.iter().filter(|run| run.stage == RunStage::Done).count() >= self.wishes.runs
    }
}
