use std::io::{Read, Write};
use std::net::{Ipv4Addr, SocketAddr, TcpListener, TcpStream};

use redmesh_api::ids::{NodeId, PlanId};
use redmesh_api::level::{
    ClusterSpec, Formation, PlanStage, PlannedHost, PlannedInstance, PlannedRole, SlotRange,
};
use redmesh_api::run::{Counts, RunSpec, RunUntil};
use redmesh_api::workload::Workload;
use tempfile::TempDir;
use uuid::Uuid;

use super::*;

const ME: HostId = HostId(7);

fn shares(dir: &TempDir) -> Shares {
    shares_of_life(dir, 0)
}

fn shares_of_life(dir: &TempDir, generation: u64) -> Shares {
    Shares::new(ShareSettings {
        host: ME,
        generation,
        state_dir: dir.path().to_owned(),
        threads: 1,
        logins: Logins::default(),
        tls: None,
        engine: Arc::new(load::Engine),
        clock: WallClock::default(),
        disk: Disk::default(),
    })
}

fn run_id() -> RunId {
    RunId(Uuid::from_u128(1))
}

fn run(shares: Vec<Share>) -> Run {
    Run {
        id: run_id(),
        spec: RunSpec::closed_loop(Workload::uuid_counter(), 4, RunUntil::Writes(100)),
        shares,
        stage: RunStage::Running,
        created_unix_ms: 1,
        starts_unix_ms: 1,
        before: Vec::new(),
        result: None,
    }
}

fn share(given_up: bool) -> Share {
    Share { host: ME, workers: 2, first_worker: 0, writes: Some(50), given_up, rest_of: None }
}

fn level(run: Run) -> Level {
    Level { runs: vec![run], ..Level::default() }
}

/// What an earlier life has left.
fn left(shares: &Shares, share: u16, epoch: u32, issued: u64, acked: u64) {
    let dir = shares.ledger_dir(run_id());
    std::fs::create_dir_all(&dir).expect("a directory");
    let path = load::ledger_path(&dir, epoch);
    let ledger = ledger::Ledger::create(&path, run_id(), ME, share, epoch, 1).expect("creates");
    let counts = Counts { issued, acked, ..Counts::default() };
    ledger.slots().for_each(|mut slot| slot.write(&counts, false).expect("writes"));
}

fn accounts(report: &ShareReport) -> Vec<(u16, u32, bool, u64, u64)> {
    let account = |t: &Tally| (t.share, t.epoch, t.closed, t.counts.acked, t.counts.unknown);
    report.tallies.iter().map(account).collect()
}

#[test]
fn each_share_has_the_account_of_its_own_lives() {
    let dir = tempfile::tempdir().expect("temp dir");
    let shares = shares(&dir);
    left(&shares, 0, 0, 10, 9);
    left(&shares, 4, 1, 7, 7);
    left(&shares, 0, 2, 5, 5);
    let one = shares.recovered(&run(Vec::new()), 0);
    assert_eq!((one.done().lives, one.done().issued), (2, 15));
    assert_eq!(shares.recovered(&run(Vec::new()), 4).done().issued, 7);
    assert_eq!(shares.recovered(&run(Vec::new()), 3).done().lives, 0);
    assert_eq!(shares.next_epoch(run_id()), Ok(3));
    let all = [(0, 0, true, 9, 1), (4, 1, true, 7, 0), (0, 2, true, 5, 0)];
    assert_eq!(accounts(&shares.report_blocking(run_id())), all);
}

#[test]
fn a_life_that_lost_its_ledgers_uses_no_epoch_again() {
    let dir = tempfile::tempdir().expect("temp dir");
    let first = shares_of_life(&dir, 1).next_epoch(run_id()).expect("an epoch");
    left(&shares(&dir), 0, first, 10, 9);
    left(&shares(&dir), 1, first + 1, 10, 9);
    assert_eq!(shares_of_life(&dir, 1).next_epoch(run_id()), Ok(first + 2));
    std::fs::remove_dir_all(dir.path().join("runs")).expect("removes the ledgers");
    let second = shares_of_life(&dir, 2).next_epoch(run_id()).expect("an epoch");
    assert!(second > first + 1, "{second} after {first}");
    let words = shares_of_life(&dir, u64::MAX >> 20).next_epoch(run_id()).expect_err("no number is left");
    assert!(words.contains("move its state directory away"), "{words}");
}

#[test]
fn a_share_that_was_given_up_is_only_accounted_for() {
    let dir = tempfile::tempdir().expect("temp dir");
    let shares = shares(&dir);
    left(&shares, 0, 0, 10, 9);
    let admin = AdminPool::new(Default::default());
    let level = level(run(vec![share(true), share(false)]));
    // Not current, and without a plan: what is to be issued has to wait, the account has not.
    shares.reconcile(&level, false, &admin);
    assert_eq!(accounts(&shares.report_blocking(run_id())), [(0, 0, true, 9, 1)]);
    assert!(shares.get((run_id(), 1)).is_none());
    assert_eq!(shares.lost(), None);

    let mut closed = level;
    closed.runs[0].stage = RunStage::Done;
    shares.reconcile(&closed, false, &admin);
    assert!(shares.get((run_id(), 0)).is_none());
    assert_eq!(accounts(&shares.report_blocking(run_id())), [(0, 0, true, 9, 1)], "from its file");
}

#[test]
fn shares_that_cannot_be_accounted_for_are_lost_and_say_why() {
    let dir = tempfile::tempdir().expect("temp dir");
    let shares = shares(&dir);
    left(&shares, 0, 0, 10, 9);
    std::fs::write(load::ledger_path(&shares.ledger_dir(run_id()), 0), b"rubbish").expect("writes");
    shares.reconcile(&level(run(vec![share(true), share(true)])), true, &AdminPool::new(Default::default()));
    let lost = shares.lost().expect("they are");
    assert!(lost.has(run_id(), 0) && lost.has(run_id(), 1) && !lost.has(run_id(), 2));
    assert!(lost.reason.contains("0.ledger"), "{}", lost.reason);
    assert_eq!(accounts(&shares.report_blocking(run_id())), []);
}

#[test]
fn what_cannot_be_read_back_is_named() {
    let dir = tempfile::tempdir().expect("temp dir");
    let shares = shares(&dir);
    let read = ReadBack { of: run_id(), wrap: None, pipeline: 1, per_million: 1 };
    let nothing = shares.read_back(&read).expect_err("nothing was written");
    assert!(nothing.contains("nothing to read back"), "{nothing}");

    left(&shares, 0, 0, 0, 0);
    left(&shares, 0, 3, 10, 9);
    let missing = shares.read_back(&read).expect_err("no keys are known");
    assert!(missing.contains("life 3") && missing.contains("3.written"), "{missing}");

    let written = Written {
        run: run_id(),
        host: ME,
        epoch: 3,
        first_worker: 0,
        pipeline: 1,
        wrap: None,
        ended: vec![4, 5],
        exceptions: Vec::new(),
        exceptions_cut: false,
        closed: false,
    };
    written.save(&shares.ledger_dir(run_id())).expect("saves");
    assert_eq!(shares.read_back(&read).expect("reads").written, [written]);
}

/// No condition of these tests may take longer.
const DEADLINE: Duration = Duration::from_secs(60);

async fn wait_for(what: &str, mut condition: impl FnMut() -> bool) {
    let deadline = Instant::now() + DEADLINE;
    while !condition() {
        assert!(Instant::now() < deadline, "waited {DEADLINE:?} for {what}");
        tokio::time::sleep(Duration::from_millis(2)).await;
    }
}

/// Answers `+OK` to every SET; ends with its clients.
fn server(ip: Ipv4Addr) -> SocketAddr {
    let listener = TcpListener::bind((ip, 0)).expect("binds");
    let addr = listener.local_addr().expect("an address");
    std::thread::spawn(move || {
        for client in listener.incoming().flatten() {
            std::thread::spawn(move || answer(client));
        }
    });
    addr
}

fn answer(mut client: TcpStream) {
    const SET: &[u8] = b"\r\n$3\r\nSET\r\n";
    let (mut seen, mut buf) = (Vec::new(), [0; 4096]);
    while let Ok(read @ 1..) = client.read(&mut buf) {
        seen.extend_from_slice(&buf[..read]);
        while let Some(at) = seen.windows(SET.len()).position(|bytes| bytes == SET) {
            seen.drain(..at + SET.len());
            if client.write_all(b"+OK\r\n").is_err() {
                return;
            }
        }
    }
}

fn plan(addr: SocketAddr) -> ClusterPlan {
    let slots = SlotRange { first: 0, last: 16383 };
    ClusterPlan {
        id: PlanId(Uuid::from_u128(5)),
        spec: ClusterSpec { instances_per_host: 1, replicas: 0, node_timeout_ms: None, ..Default::default() },
        node_timeout_ms: 5000,
        hz: 10,
        stage: PlanStage::Formed,
        hosts: vec![PlannedHost { id: ME, name: "a".to_owned(), ip: addr.ip(), base_port: addr.port() }],
        instances: vec![PlannedInstance {
            host: 0,
            port: addr.port(),
            node_id: NodeId([1; 20]),
            shard_id: NodeId([1; 20]),
            role: PlannedRole::Primary { slots, config_epoch: 1 },
        }],
        created_unix_ms: 0,
        formation: Formation::Seeded,
        reached: Vec::new(),
        convergence: None,
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn what_ends_by_a_level_that_could_not_be_kept_is_ended_and_nothing_is_begun_by_it() {
    let dir = tempfile::tempdir().expect("temp dir");
    let bearer = shares(&dir);
    let plan = Some(plan(server(Ipv4Addr::new(127, 31, 9, 3))));
    let unbounded = Share { writes: None, ..share(false) };
    let mut level = Level { plan, ..level(run(vec![unbounded.clone(), unbounded.clone()])) };
    level.runs[0].spec.until = RunUntil::Seconds(u32::MAX);
    bearer.reconcile(&level, true, &AdminPool::new(Default::default()));
    let all = bearer.of_run(run_id());

    level.runs[0].shares.push(unbounded);
    bearer.stop_what_ends(&level);
    let acked = || all.iter().map(|share| share.counts()[0].counts.acked).min();
    wait_for("both to write", || acked() > Some(0)).await;
    assert!(bearer.get((run_id(), 2)).is_none());

    level.runs[0].shares[1].given_up = true;
    bearer.stop_what_ends(&level);
    wait_for("the one that was given up to close", || all[1].closed()).await;
    assert!(!all[0].closed());
    level.runs[0].stage = RunStage::Stopping;
    bearer.stop_what_ends(&level);
    wait_for("the other to close", || all[0].closed()).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_host_bears_its_own_share_and_one_that_it_took_over() {
    let dir = tempfile::tempdir().expect("temp dir");
    let bearer = shares(&dir);
    let plan = Some(plan(server(Ipv4Addr::new(127, 31, 9, 1))));
    let mut level = Level { plan, ..level(run(vec![share(false)])) };
    let admin = AdminPool::new(Default::default());
    bearer.reconcile(&level, false, &admin);
    assert!(bearer.get((run_id(), 0)).is_none(), "a newer level may know better");
    bearer.reconcile(&level, true, &admin);
    let taken = Share { first_worker: 2, writes: Some(7), rest_of: Some(9), ..share(false) };
    level.runs[0].shares.extend([Share { host: HostId(99), ..share(true) }, taken]);
    bearer.reconcile(&level, true, &admin);
    assert_eq!(bearer.lost(), None);

    let all = bearer.of_run(run_id());
    wait_for("both to close", || all.iter().all(|share| share.closed())).await;
    let accounts_of = |bearer: &Shares| accounts(&bearer.report_blocking(run_id()));
    let whole = [(0, 0, true, 50, 0), (2, 1, true, 7, 0)];
    assert_eq!(accounts_of(&bearer), whole);

    assert!(bearer.observe(), "the end is to be kept");
    bearer.keep();
    assert!(!bearer.observe(), "once");
    assert!(all.iter().all(|share| share.is_kept()));
    let details = bearer.report_blocking(run_id()).details;
    assert_eq!(details.iter().map(|detail| detail.epoch).collect::<Vec<_>>(), [0, 1]);
    let count = |detail: &redmesh_api::run::ShareDetail| {
        crate::stats::decode(&detail.histogram).expect("a histogram").len()
    };
    assert_eq!(details.iter().map(count).collect::<Vec<_>>(), [50, 7]);

    // Another life finds the same, without a thread being told to end.
    let later = shares(&dir);
    let report = later.report_blocking(run_id());
    assert_eq!((accounts(&report), report.details), (whole.to_vec(), details));
    later.reconcile(&level, true, &admin);
    assert_eq!(accounts_of(&later), whole, "nothing is left to issue");
}
