use std::net::{IpAddr, Ipv4Addr};

use proptest::prelude::*;
use redmesh_api::ids::{HostId, MeshId, NodeId, PlanId, RunId};
use redmesh_api::level::{ClusterSpec, Formation, PlannedHost, PlannedInstance, PlannedRole, SlotRange};
use redmesh_api::run::{LatencySummary, Ledger, Outcome, ReadBack, RunSpec, RunUntil, ServerSample, Share};
use redmesh_api::workload::Workload;
use uuid::Uuid;

use super::*;

fn stamp(index: u64) -> Stamp {
    Stamp { term: 1, index, leader: HostId(1) }
}

fn plan(id: u128) -> ClusterPlan {
    ClusterPlan {
        id: PlanId(Uuid::from_u128(id)),
        spec: ClusterSpec { instances_per_host: 1, replicas: 0, node_timeout_ms: None, ..Default::default() },
        node_timeout_ms: 5000,
        hz: 10,
        stage: PlanStage::Prepare,
        hosts: vec![PlannedHost {
            id: HostId(1),
            name: "host-1".to_owned(),
            ip: IpAddr::V4(Ipv4Addr::LOCALHOST),
            base_port: 6379,
        }],
        instances: vec![PlannedInstance {
            host: 0,
            port: 6379,
            node_id: NodeId([1; 20]),
            shard_id: NodeId([2; 20]),
            role: PlannedRole::Primary { slots: SlotRange { first: 0, last: 16383 }, config_epoch: 1 },
        }],
        created_unix_ms: 1,
        formation: Formation::Seeded,
        reached: Vec::new(),
        convergence: None,
    }
}

fn share(host: u32, rest_of: Option<u16>) -> Share {
    Share { host: HostId(host), workers: 2, first_worker: 0, writes: Some(10), given_up: false, rest_of }
}

fn run(id: u128) -> Run {
    Run {
        id: RunId(Uuid::from_u128(id)),
        spec: RunSpec::closed_loop(Workload::uuid_counter(), 2, RunUntil::Writes(10)),
        shares: vec![share(1, None)],
        stage: RunStage::Running,
        created_unix_ms: 1,
        starts_unix_ms: 1,
        before: Vec::new(),
        result: None,
    }
}

fn result(samples: usize) -> RunResult {
    let sample = ServerSample {
        host: HostId(1),
        port: 6379,
        run_id: "0".repeat(40),
        primary: true,
        dbsize: 1,
        calls: 1,
        cpu_us: 1,
    };
    RunResult {
        outcome: Outcome::Completed,
        tallies: Vec::new(),
        latency: LatencySummary::default(),
        intended: None,
        ledger: Ledger::default(),
        after: vec![sample; samples],
        server_cpu_us: 0,
        ended_unix_ms: 2,
    }
}

/// A level that commands are applied to, each as the next entry.
#[derive(Default)]
struct Machine {
    level: Level,
    index: u64,
}

impl Machine {
    fn formed() -> Self {
        let mut machine = Self::default();
        machine.done(Command::CreatePlan(Box::new(plan(1))));
        machine.done(Command::AdvancePlan {
            plan: plan(1).id,
            to: PlanStage::Formed,
            at_unix_ms: 2,
            convergence: None,
        });
        machine
    }

    fn apply(&mut self, command: Command) -> Applied {
        self.index += 1;
        let before = self.level.clone();
        let applied = apply(&mut self.level, stamp(self.index), &command);
        match applied {
            Applied::Done => assert_eq!(self.level.stamp, stamp(self.index)),
            _ => assert_eq!(self.level, before),
        }
        applied
    }

    fn done(&mut self, command: Command) {
        assert_eq!(self.apply(command), Applied::Done);
    }

    fn unchanged(&mut self, command: Command) {
        assert_eq!(self.apply(command), Applied::Unchanged);
    }

    fn rejected(&mut self, command: Command, words: &str) {
        let Applied::Rejected(reason) = self.apply(command) else { panic!("not rejected") };
        assert!(reason.contains(words), "{reason}");
    }

    fn close(&mut self, id: u128, samples: usize) -> Applied {
        let known = self.level.runs.iter().find(|known| known.id == run(id).id);
        let known = known.map_or(0, |run| run.shares.len() as u16);
        self.apply(Command::CloseRun { run: run(id).id, known, result: Box::new(result(samples)) })
    }
}

#[test]
fn the_first_found_wins() {
    let mut machine = Machine::default();
    let (a, b) = (MeshId(Uuid::from_u128(1)), MeshId(Uuid::from_u128(2)));
    machine.done(Command::Found { mesh: a });
    machine.unchanged(Command::Found { mesh: a });
    machine.rejected(Command::Found { mesh: b }, &a.to_string());
}

#[test]
fn there_is_one_plan_and_it_only_advances() {
    let mut machine = Machine::default();
    machine.rejected(
        Command::AdvancePlan { plan: plan(1).id, to: PlanStage::Release, at_unix_ms: 2, convergence: None },
        "no plan yet",
    );
    machine.done(Command::CreatePlan(Box::new(plan(1))));
    machine.done(Command::AdvancePlan {
        plan: plan(1).id,
        to: PlanStage::Release,
        at_unix_ms: 2,
        convergence: None,
    });
    machine.unchanged(Command::CreatePlan(Box::new(plan(1))));
    machine.unchanged(Command::AdvancePlan {
        plan: plan(1).id,
        to: PlanStage::Release,
        at_unix_ms: 2,
        convergence: None,
    });
    machine.rejected(
        Command::AdvancePlan { plan: plan(1).id, to: PlanStage::Prepare, at_unix_ms: 2, convergence: None },
        "only advance",
    );
    machine.rejected(Command::CreatePlan(Box::new(plan(2))), "a plan already");
    machine.rejected(
        Command::AdvancePlan { plan: plan(2).id, to: PlanStage::Formed, at_unix_ms: 2, convergence: None },
        "not the mesh's plan",
    );
}

fn by_meet(id: u128) -> ClusterPlan {
    let mut meet = ClusterPlan { formation: Formation::Meet, ..plan(id) };
    let second = PlannedInstance { port: 6380, ..meet.instances[0].clone() };
    meet.instances.push(second);
    meet.instances.iter_mut().for_each(|instance| instance.node_id = NodeId::UNKNOWN);
    meet
}

fn name(id: u128, ids: &[u8]) -> Command {
    let ids = ids.iter().map(|n| NodeId([*n; 20])).collect();
    Command::NameNodes { plan: plan(id).id, ids, at_unix_ms: 2 }
}

#[test]
fn a_plan_for_meet_goes_on_once_its_nodes_are_named() {
    let mut machine = Machine::default();
    machine.rejected(name(1, &[1, 2]), "no plan yet");
    machine.done(Command::CreatePlan(Box::new(by_meet(1))));
    let advance = |to| Command::AdvancePlan { plan: plan(1).id, to, at_unix_ms: 2, convergence: None };
    machine.rejected(advance(PlanStage::Release), "no node ids yet");
    machine.rejected(advance(PlanStage::Formed), "no node ids yet");
    machine.rejected(name(2, &[1, 2]), "not the mesh's plan");
    machine.rejected(name(1, &[1]), "1 node ids");
    machine.rejected(name(1, &[1, 1]), "1 of them distinct");
    machine.rejected(name(1, &[0, 1]), "1 of them distinct");
    machine.done(name(1, &[1, 2]));
    machine.unchanged(name(1, &[1, 2]));
    machine.rejected(name(1, &[2, 1]), "other node ids already");
    let known = machine.level.plan.clone().expect("a plan");
    assert_eq!(known.instances.iter().map(|i| i.node_id.0[0]).collect::<Vec<_>>(), [1, 2]);
    assert_eq!(known.reached_unix_ms(PlanStage::Release), Some(2));
    machine.done(advance(PlanStage::Replicate));
    machine.unchanged(name(1, &[1, 2]));
    machine.done(advance(PlanStage::Formed));

    let mut machine = Machine::default();
    machine.done(Command::CreatePlan(Box::new(plan(1))));
    machine.rejected(name(1, &[1]), "is seeded");
}

#[test]
fn a_run_needs_a_formed_cluster_and_no_other_run() {
    let mut machine = Machine::default();
    machine.rejected(Command::StartRun(Box::new(run(1))), "no cluster yet");
    machine.done(Command::CreatePlan(Box::new(plan(1))));
    machine.rejected(Command::StartRun(Box::new(run(1))), "still being formed");
    let mut machine = Machine::formed();
    machine.done(Command::StartRun(Box::new(run(1))));
    machine.unchanged(Command::StartRun(Box::new(run(1))));
    machine.rejected(Command::StartRun(Box::new(run(2))), "not done yet");
    assert_eq!(machine.close(1, 0), Applied::Done);
    machine.done(Command::StartRun(Box::new(run(2))));
    let other = Run { spec: RunSpec { workers: 3, ..run(1).spec }, ..run(1) };
    machine.rejected(Command::StartRun(Box::new(other)), "another spec");
}

#[test]
fn a_run_is_not_closed_with_other_shares_in_view() {
    let mut machine = Machine::formed();
    machine.done(Command::StartRun(Box::new(run(1))));
    let known = run(1).shares.len() as u16 + 1;
    let close = Command::CloseRun { run: run(1).id, known, result: Box::new(result(0)) };
    machine.rejected(close, &format!("closed with {known} in view"));
    assert_eq!(machine.close(1, 0), Applied::Done);
}

#[test]
fn a_run_is_closed_once() {
    let mut machine = Machine::formed();
    assert!(matches!(machine.close(1, 0), Applied::Rejected(_)));
    machine.done(Command::StartRun(Box::new(run(1))));
    machine.rejected(Command::AdvanceRun { run: run(1).id, to: RunStage::Done }, "account is closed");
    machine.done(Command::AdvanceRun { run: run(1).id, to: RunStage::Stopping });
    machine.rejected(Command::AdvanceRun { run: run(1).id, to: RunStage::Running }, "only advance");
    assert_eq!(machine.close(1, 0), Applied::Done);
    assert_eq!(machine.close(1, 0), Applied::Unchanged);
    assert!(matches!(machine.close(1, 1), Applied::Rejected(_)));
    let known = &machine.level.runs[0];
    assert_eq!((known.stage, known.result.as_ref()), (RunStage::Done, Some(&result(0))));
    machine.unchanged(Command::AdvanceRun { run: run(1).id, to: RunStage::Done });
    machine.rejected(Command::AdvanceRun { run: run(1).id, to: RunStage::Stopping }, "only advance");
}

fn add(known: u16, given_up: Option<u16>, shares: Vec<Share>) -> Command {
    Command::AddShares { run: run(1).id, known, given_up, shares }
}

#[test]
fn a_lost_hosts_share_is_given_up_once() {
    let mut machine = Machine::formed();
    let takeover = || add(1, Some(0), vec![share(2, Some(0)), share(3, Some(0))]);
    machine.rejected(takeover(), "is unknown");
    machine.done(Command::StartRun(Box::new(run(1))));
    machine.done(takeover());
    machine.unchanged(takeover());
    machine.unchanged(Command::StartRun(Box::new(run(1))));
    let shares = &machine.level.runs[0].shares;
    assert_eq!(shares.iter().map(|share| share.given_up).collect::<Vec<_>>(), [true, false, false]);
    assert_eq!(shares[1..], [share(2, Some(0)), share(3, Some(0))]);

    machine.rejected(add(1, Some(0), vec![share(4, Some(0))]), "3 shares by now, not 1");
    machine.rejected(add(3, Some(0), vec![share(4, Some(0))]), "given up before");
    // One of the takers is lost in its turn: the first takeover stays what it was.
    machine.done(add(3, Some(1), vec![share(3, Some(1))]));
    machine.unchanged(takeover());
    machine.done(Command::AdvanceRun { run: run(1).id, to: RunStage::Stopping });
    machine.unchanged(takeover());
    machine.rejected(add(4, None, vec![share(4, None)]), "not going on any more");
}

#[test]
fn shares_are_added_within_bounds_and_as_what_they_are() {
    let mut machine = Machine::formed();
    machine.done(Command::StartRun(Box::new(run(1))));
    machine.rejected(add(1, None, Vec::new()), "0 shares can't be added");
    machine.rejected(add(1, None, vec![share(2, None); SHARES_MAX]), "10000 in all");
    machine.rejected(add(1, None, vec![share(2, Some(0))]), "the rest of the one given up");
    machine.rejected(add(1, Some(0), vec![share(2, None)]), "the rest of the one given up");
    machine.rejected(add(1, Some(1), vec![share(2, Some(1))]), "no such share");
    let gone = Share { given_up: true, ..share(2, None) };
    machine.rejected(add(1, None, vec![gone]), "the rest of the one given up");
    machine.done(add(1, None, vec![share(2, None)]));
    machine.unchanged(add(1, None, vec![share(2, None)]));

    let mut machine = Machine::formed();
    machine.done(Command::StartRun(Box::new(reads(1, 9))));
    machine.rejected(add(1, None, vec![share(2, None)]), "reads back");
}

fn reads(id: u128, of: u128) -> Run {
    let mut reads = run(id);
    reads.spec.job = Job::ReadBack(ReadBack { of: run(of).id, wrap: None, pipeline: 1, per_million: 1 });
    reads
}

#[test]
fn a_run_stays_while_it_is_read_back() {
    let mut machine = Machine::formed();
    let count = RUNS_KEPT_MAX as u128;
    for id in 1..=count {
        machine.done(Command::StartRun(Box::new(run(id))));
        assert_eq!(machine.close(id, 0), Applied::Done);
    }
    machine.done(Command::StartRun(Box::new(reads(count + 1, 1))));
    let oldest = |machine: &Machine| [machine.level.runs[0].id, machine.level.runs[1].id];
    assert_eq!(oldest(&machine), [run(1).id, run(3).id]);
    assert_eq!(machine.close(count + 1, 0), Applied::Done);
    machine.done(Command::StartRun(Box::new(run(count + 2))));
    assert_eq!(oldest(&machine), [run(3).id, run(4).id]);
}

#[test]
fn the_oldest_closed_runs_make_room() {
    let mut machine = Machine::formed();
    let count = RUNS_KEPT_MAX as u128 + 3;
    for id in 1..=count {
        machine.done(Command::StartRun(Box::new(run(id))));
        assert_eq!(machine.close(id, 0), Applied::Done);
    }
    let kept: Vec<_> = machine.level.runs.iter().map(|run| run.id).collect();
    let wanted: Vec<_> = (4..=count).map(|id| run(id).id).collect();
    assert_eq!(kept, wanted);
}

#[test]
fn the_level_is_bounded_in_bytes() {
    let mut machine = Machine::formed();
    // Two of these don't fit one level.
    let samples = LEVEL_BYTES_MAX * 2 / 3 / codec::encode(&result(1).after[0]).unwrap().len();
    for id in 1..=3 {
        machine.done(Command::StartRun(Box::new(run(id))));
        assert_eq!(machine.close(id, samples), Applied::Done);
    }
    let kept: Vec<_> = machine.level.runs.iter().map(|run| run.id).collect();
    assert_eq!(kept, [run(3).id]);
    machine.done(Command::StartRun(Box::new(run(4))));
    assert!(matches!(machine.close(4, samples * 2), Applied::Rejected(_)));
    assert_eq!(machine.close(4, 0), Applied::Done);
}

#[test]
fn an_older_entry_changes_nothing() {
    let mut machine = Machine::formed();
    machine.index = 0;
    machine.rejected(Command::Found { mesh: MeshId(Uuid::from_u128(1)) }, "not newer");
}

fn any_command() -> impl Strategy<Value = Command> {
    let plan_stage = prop_oneof![
        Just(PlanStage::Prepare),
        Just(PlanStage::Release),
        Just(PlanStage::Replicate),
        Just(PlanStage::Formed)
    ];
    let run_stage = prop_oneof![Just(RunStage::Running), Just(RunStage::Stopping), Just(RunStage::Done)];
    let id = 1u128..4;
    prop_oneof![
        id.clone().prop_map(|id| Command::Found { mesh: MeshId(Uuid::from_u128(id)) }),
        id.clone().prop_map(|id| Command::CreatePlan(Box::new(plan(id)))),
        id.clone().prop_map(|id| Command::CreatePlan(Box::new(by_meet(id)))),
        (id.clone(), prop::collection::vec(0u8..4, 1..4)).prop_map(|(id, ids)| name(id, &ids)),
        (id.clone(), plan_stage).prop_map(|(id, to)| Command::AdvancePlan {
            plan: plan(id).id,
            to,
            at_unix_ms: 2,
            convergence: None,
        }),
        id.clone().prop_map(|id| Command::StartRun(Box::new(run(id)))),
        (id.clone(), run_stage).prop_map(|(id, to)| Command::AdvanceRun { run: run(id).id, to }),
        (id.clone(), 1u16..4, prop::option::of(0u16..3)).prop_map(|(id, known, given_up)| {
            let shares = vec![share(2, given_up)];
            Command::AddShares { run: run(id).id, known, given_up, shares }
        }),
        (id, 1u16..4, 0usize..2).prop_map(|(id, known, samples)| Command::CloseRun {
            run: run(id).id,
            known,
            result: Box::new(result(samples)),
        }),
    ]
}

proptest! {
    /// Whatever is proposed: nothing set is unset, no stage goes back, the stamp grows
    /// exactly when something changes, at most one run is open, and a command that
    /// came to Done comes to Unchanged at once after.
    #[test]
    fn nothing_goes_back(commands in prop::collection::vec(any_command(), 0..40)) {
        let mut machine = Machine::default();
        for command in commands {
            let before = machine.level.clone();
            let applied = machine.apply(command.clone());
            let after = machine.level.clone();
            prop_assert_eq!(applied == Applied::Done, after.stamp > before.stamp);
            prop_assert!(before.mesh.is_none() || before.mesh == after.mesh);
            if let Some(plan) = &before.plan {
                let now = after.plan.as_ref().expect("a plan stays");
                prop_assert!(now.id == plan.id && now.stage >= plan.stage);
                let named = now.instances.iter().all(|instance| instance.node_id != NodeId::UNKNOWN);
                prop_assert!(named == (now.formation == Formation::Seeded || now.stage > PlanStage::Prepare));
                prop_assert!(plan.stage == PlanStage::Prepare || plan.instances == now.instances);
            }
            for run in &before.runs {
                let now = after.runs.iter().find(|now| now.id == run.id).expect("few enough to stay");
                prop_assert!(now.stage >= run.stage);
                prop_assert!(run.result.is_none() || now.result == run.result);
                prop_assert!(now.shares.len() >= run.shares.len());
                for (now, before) in now.shares.iter().zip(&run.shares) {
                    prop_assert!(now.given_up >= before.given_up);
                    prop_assert_eq!(&Share { given_up: before.given_up, ..now.clone() }, before);
                }
            }
            prop_assert!(after.runs.iter().filter(|run| run.stage != RunStage::Done).count() <= 1);
            for run in &after.runs {
                prop_assert_eq!(run.stage == RunStage::Done, run.result.is_some());
            }
            if applied == Applied::Done {
                prop_assert_eq!(machine.apply(command), Applied::Unchanged);
            }
        }
    }
}

#[test]
fn a_host_is_removed_once_and_the_removals_are_bounded() {
    let mut level = Level::default();
    let removed = |id: u32| RemovedHost {
        id: Some(HostId(id)),
        name: format!("host-{id}"),
        certificates: true,
        at_unix_ms: 1,
    };
    let remove = |id| Command::RemoveHost(removed(id));
    assert_eq!(apply(&mut level, stamp(1), &remove(1)), Applied::Done);
    assert!(level.is_removed(HostId(1)) && !level.is_removed(HostId(2)));
    let later = Command::RemoveHost(RemovedHost { at_unix_ms: 2, ..removed(1) });
    assert_eq!(apply(&mut level, stamp(2), &later), Applied::Unchanged);
    let nameless = RemovedHost { id: None, ..removed(2) };
    assert_eq!(apply(&mut level, stamp(3), &Command::RemoveHost(nameless.clone())), Applied::Done);
    assert_eq!(apply(&mut level, stamp(4), &Command::RemoveHost(nameless)), Applied::Unchanged);
    for id in 3..=REMOVED_MAX as u32 {
        assert_eq!(apply(&mut level, stamp(2 + u64::from(id)), &remove(id)), Applied::Done);
    }
    let refused = apply(&mut level, stamp(10_000), &remove(10_000));
    assert!(matches!(&refused, Applied::Rejected(why) if why.contains("another CA")), "{refused:?}");
    assert_eq!(level.removed.len(), REMOVED_MAX);
}

#[test]
fn a_replaced_host_gives_its_instances_away_and_is_refused() {
    let mut level = Level { plan: Some(plan(1)), ..Level::default() };
    let hosts = level.plan.as_ref().expect("a plan").hosts.clone();
    let (first, other) = (hosts[0].clone(), HostId(99));
    let replace =
        |from, to| Command::ReplaceHost { plan: plan(1).id, from, to, name: "new".to_owned(), at_unix_ms: 7 };
    assert_eq!(apply(&mut level, stamp(1), &replace(first.id, other)), Applied::Done);
    let now = &level.plan.as_ref().expect("a plan").hosts[0];
    assert_eq!((now.id, now.name.as_str(), now.ip, now.base_port), (other, "new", first.ip, first.base_port));
    assert!(level.is_removed(first.id));
    assert!(!level.removed[0].certificates, "its successor may have the same ones");
    assert_eq!(apply(&mut level, stamp(2), &replace(first.id, other)), Applied::Unchanged);
    for (from, to, why) in [
        (HostId(50), HostId(51), "bears no instance"),
        (other, other, "bears instances of plan"),
        (other, first.id, "was removed"),
    ] {
        let refused = apply(&mut level, stamp(3), &replace(from, to));
        assert!(matches!(&refused, Applied::Rejected(words) if words.contains(why)), "{refused:?}");
    }
    let mut removed = Level { plan: Some(plan(1)), ..Level::default() };
    let gone = RemovedHost { id: Some(first.id), name: first.name, certificates: true, at_unix_ms: 1 };
    assert_eq!(apply(&mut removed, stamp(1), &Command::RemoveHost(gone)), Applied::Done);
    let refused = apply(&mut removed, stamp(2), &replace(first.id, other));
    assert!(matches!(&refused, Applied::Rejected(words) if words.contains("was removed")), "{refused:?}");
}

#[test]
fn an_operator_is_revoked_by_name_with_the_latest_time_and_the_names_are_bounded() {
    let mut level = Level::default();
    let revoke = |name: &str, at_unix_ms| {
        Command::RevokeOperator(RevokedOperator { name: name.to_owned(), at_unix_ms })
    };
    assert_eq!(apply(&mut level, stamp(1), &revoke("bob", 5)), Applied::Done);
    assert_eq!(apply(&mut level, stamp(2), &revoke("bob", 5)), Applied::Unchanged);
    assert_eq!(apply(&mut level, stamp(3), &revoke("bob", 4)), Applied::Unchanged, "never an earlier time");
    assert_eq!(apply(&mut level, stamp(4), &revoke("bob", 9)), Applied::Done, "it got a certificate since");
    assert_eq!(level.revoked, [RevokedOperator { name: "bob".to_owned(), at_unix_ms: 9 }]);
    for n in 1..REVOKED_MAX as u64 {
        assert_eq!(apply(&mut level, stamp(10 + n), &revoke(&format!("n{n}"), 1)), Applied::Done);
    }
    let Applied::Rejected(reason) = apply(&mut level, stamp(1000), &revoke("one-more", 1)) else {
        panic!("more than {REVOKED_MAX} names")
    };
    assert!(reason.contains("256 operators") && reason.contains("another CA"), "{reason}");
    assert_eq!(apply(&mut level, stamp(1001), &revoke("n7", 2)), Applied::Done, "a known name has its place");
    assert_eq!(level.revoked.len(), REVOKED_MAX);
}
