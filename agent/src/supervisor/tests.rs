//! Against real redis-servers, on 127.77.x.y.

use std::net::IpAddr;
use std::path::Path;

use rustix::process::{Pid, Signal, kill_process};
use uuid::Uuid;

use super::*;
use crate::transport::quic::testing::TestCa;

/// For anything that a healthy machine does in a second.
const PATIENCE: Duration = Duration::from_secs(30);

/// Ends what a test leaves running, also when it fails: by pid, and only servers whose
/// working directory is below its own data directory.
struct Guard(tempfile::TempDir);

impl Drop for Guard {
    fn drop(&mut self) {
        let Ok(dir) = self.0.path().canonicalize() else { return };
        for found in process::find_running(&dir, None).unwrap_or_default().into_values() {
            kill(found.pid);
        }
    }
}

fn kill(pid: u32) {
    if let Some(pid) = Pid::from_raw(pid as i32) {
        let _ = kill_process(pid, Signal::KILL);
    }
}

/// One test's directory and address.
struct Bench {
    guard: Guard,
    ip: IpAddr,
    plan: PlanId,
}

impl Bench {
    /// Every test has an address of its own: 127.77.0.`last`.
    fn new(last: u8) -> Self {
        let ip = IpAddr::from([127, 77, 0, last]);
        Self {
            guard: Guard(tempfile::tempdir().unwrap()),
            ip,
            plan: PlanId(Uuid::from_u128(u128::from(last))),
        }
    }

    fn data(&self) -> &Path {
        self.guard.0.path()
    }

    fn options(&self) -> SupervisorOptions {
        SupervisorOptions {
            data_dir: self.data().to_owned(),
            server: None,
            malloc_conf: None,
            login: None,
            tls: None,
            release_at_once: None,
            on_exit: OnExit::Leave,
            cancel: CancellationToken::new(),
        }
    }

    fn start(&self) -> Supervisor {
        Supervisor::start(self.options()).unwrap()
    }

    fn addr(&self, nth: u16) -> SocketAddr {
        SocketAddr::new(self.ip, 21000 + nth)
    }

    fn wanted(&self, nth: u16, run: Run) -> WantedInstance {
        let (ip, port) = (self.ip, 21000 + nth);
        let config = format!(
            "port {port}\nbind {ip}\ncluster-announce-ip {ip}\ncluster-enabled yes\ncluster-config-file nodes.conf\n\
             appendonly no\nsave \"\"\nprotected-mode no\ndaemonize no\nlogfile redis.log\nmaxclients 500\n"
        );
        let nodes_conf = format!(
            "{:040x} {ip}:{port}@{} myself,master - 0 0 1 connected\nvars currentEpoch 1 lastVoteEpoch 0\n",
            u32::from(nth) + 1,
            port + BUS_PORT_OFFSET
        );
        WantedInstance {
            addr: self.addr(nth),
            config,
            nodes_conf: Some(nodes_conf),
            run,
            clients_needed: 500,
            restart_pause: Duration::ZERO,
        }
    }

    fn level(&self, count: u16, run: Run) -> WantedLevel {
        WantedLevel {
            plan: self.plan,
            paced: true,
            instances: (0..count).map(|nth| self.wanted(nth, run)).collect(),
        }
    }
}

/// Waits until all statuses satisfy the condition and returns them.
async fn until(
    supervisor: &Supervisor,
    what: &str,
    done: impl Fn(&[InstanceStatus]) -> bool,
) -> Vec<InstanceStatus> {
    let mut statuses = supervisor.statuses();
    let waited = tokio::time::timeout(PATIENCE, statuses.wait_for(|now| done(now))).await;
    match waited {
        Ok(Ok(now)) => now.to_vec(),
        Ok(Err(_)) => panic!("waiting for {what}: the supervisor ended"),
        Err(_) => panic!("waiting for {what}: {:#?}", supervisor.statuses().borrow()),
    }
}

fn all(phase: Phase, count: usize) -> impl Fn(&[InstanceStatus]) -> bool {
    move |now| now.len() == count && now.iter().all(|status| status.phase == phase)
}

fn pids(statuses: &[InstanceStatus]) -> Vec<u32> {
    statuses.iter().map(|status| status.pid.unwrap()).collect()
}

/// The kernel's state letter; `None` once it is gone.
fn state(pid: u32) -> Option<char> {
    procfs::process::Process::new(pid as i32).and_then(|p| p.stat()).ok().map(|stat| stat.state)
}

fn running(bench: &Bench) -> usize {
    process::find_running(&bench.data().canonicalize().unwrap(), None).unwrap().len()
}

#[tokio::test]
async fn four_are_held_released_and_stopped() {
    let bench = Bench::new(1);
    let supervisor = bench.start();
    supervisor.set_wanted(bench.level(4, Run::Held)).await.unwrap();
    let held = until(&supervisor, "held", all(Phase::Held, 4)).await;
    let stopped = async {
        while !pids(&held).iter().all(|&pid| state(pid) == Some('T')) {
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
    };
    tokio::time::timeout(PATIENCE, stopped).await.expect("the kernel stops them");
    for nth in 0..4 {
        let files = std::fs::read_dir(bench.data().join((21000 + nth).to_string())).unwrap();
        let names: Vec<_> = files.map(|f| f.unwrap().file_name().into_string().unwrap()).collect();
        assert!(
            ["redis.conf", "redis.log", "nodes.conf"].iter().all(|f| names.iter().any(|n| n == f)),
            "{names:?}"
        );
    }

    supervisor.set_wanted(bench.level(4, Run::Running)).await.unwrap();
    let up = until(&supervisor, "running", all(Phase::Running, 4)).await;
    assert_eq!(pids(&up), pids(&held));
    assert!(
        up.iter().all(|s| s.run_id.as_ref().is_some_and(|id| id.len() == 40) && s.problem.is_none()),
        "{up:?}"
    );
    supervisor.set_wanted(bench.level(4, Run::Running)).await.unwrap();
    assert_eq!(*supervisor.statuses().borrow().as_ref(), up, "the same level changes nothing");

    let report = supervisor.stop_all(PATIENCE).await.unwrap();
    assert_eq!((report.stopped.len(), report.killed.len(), report.left.len()), (4, 0, 0), "{report:?}");
    assert!(pids(&up).iter().all(|&pid| state(pid).is_none()), "ended and reaped");
    let refused = supervisor.set_wanted(bench.level(4, Run::Running)).await;
    assert!(matches!(refused, Err(SupervisorError::Stopping)));
    supervisor.shutdown().await;
    assert!(matches!(supervisor.stop_all(PATIENCE).await, Err(SupervisorError::Ended)));
}

#[tokio::test]
async fn a_killed_server_comes_back() {
    let bench = Bench::new(2);
    let supervisor = bench.start();
    supervisor.set_wanted(bench.level(2, Run::Running)).await.unwrap();
    let before = until(&supervisor, "running", all(Phase::Running, 2)).await;
    let seeded = bench.data().join("21000/nodes.conf");
    std::fs::write(&seeded, std::fs::read_to_string(&seeded).unwrap() + "\n").unwrap();
    let now = std::fs::read_to_string(&seeded).unwrap();
    kill(pids(&before)[0]);
    let after = until(&supervisor, "a restart", |now| {
        now[0].restarts == 1 && now[0].phase == Phase::Running && now[1].phase == Phase::Running
    })
    .await;
    assert_ne!(after[0].run_id, before[0].run_id);
    assert_eq!(after[1], before[1], "the other one was left alone");
    assert!(
        std::fs::read_to_string(&seeded).unwrap().starts_with(&now[..40]),
        "the seed isn't written again"
    );
    supervisor.stop_all(PATIENCE).await.unwrap();
    supervisor.shutdown().await;
}

#[tokio::test]
async fn running_and_held_servers_are_adopted() {
    let bench = Bench::new(3);
    let first = bench.start();
    let mut level = bench.level(3, Run::Running);
    level.instances[2].run = Run::Held;
    first.set_wanted(level.clone()).await.unwrap();
    let up = |now: &[InstanceStatus]| {
        now.len() == 3 && now[..2].iter().all(|s| s.phase == Phase::Running) && now[2].phase == Phase::Held
    };
    let before = until(&first, "two running and one held", up).await;
    first.shutdown().await;
    drop(first);
    assert_eq!(running(&bench), 3, "they outlive their supervisor");

    let second = bench.start();
    second.set_wanted(level).await.unwrap();
    let after = until(&second, "adoption", up).await;
    assert_eq!(pids(&after), pids(&before));
    assert_eq!(running(&bench), 3, "no second process");
    for (before, after) in before.iter().zip(&after) {
        assert_eq!(before.run_id, after.run_id);
        assert!(after.adopted && after.restarts == 0, "{after:?}");
    }
    second.set_wanted(bench.level(3, Run::Running)).await.unwrap();
    until(&second, "release of an adopted one", all(Phase::Running, 3)).await;
    // An adopted one is watched and restarted like any other.
    kill(pids(&after)[1]);
    until(&second, "its restart", |now| {
        now[1].restarts == 0 && now[1].pid != after[1].pid && now[1].run_id.is_some()
    })
    .await;
    assert_eq!(running(&bench), 3);
    second.stop_all(PATIENCE).await.unwrap();
    second.shutdown().await;
    assert_eq!(running(&bench), 0);
}

#[tokio::test]
async fn stop_finds_servers_of_an_earlier_level() {
    let bench = Bench::new(4);
    let first = bench.start();
    first.set_wanted(bench.level(3, Run::Held)).await.unwrap();
    until(&first, "held", all(Phase::Held, 3)).await;
    // A level without two of them leaves these as they are.
    first.set_wanted(bench.level(1, Run::Held)).await.unwrap();
    assert_eq!(running(&bench), 3);
    first.shutdown().await;

    let second = bench.start();
    let report = second.stop_all(PATIENCE).await.unwrap();
    let expected: Vec<SocketAddr> = (0..3).map(|nth| bench.addr(nth)).collect();
    assert_eq!((report.stopped, report.left), (expected, vec![]));
    assert_eq!(running(&bench), 0);
    second.shutdown().await;
}

#[tokio::test]
async fn on_exit_stop_stops_them() {
    let bench = Bench::new(5);
    let supervisor =
        Supervisor::start(SupervisorOptions { on_exit: OnExit::Stop, ..bench.options() }).unwrap();
    supervisor.set_wanted(bench.level(2, Run::Held)).await.unwrap();
    until(&supervisor, "held", all(Phase::Held, 2)).await;
    supervisor.shutdown().await;
    assert_eq!(running(&bench), 0);
}

#[tokio::test]
async fn what_ignores_sigterm_is_killed_at_the_deadline() {
    let bench = Bench::new(6);
    let supervisor = bench.start();
    supervisor.set_wanted(bench.level(1, Run::Running)).await.unwrap();
    let up = until(&supervisor, "running", all(Phase::Running, 1)).await;
    // A server in a long script doesn't come to its shutdown.
    let mut stream = std::net::TcpStream::connect(bench.addr(0)).unwrap();
    std::io::Write::write_all(&mut stream, b"*3\r\n$4\r\nEVAL\r\n$17\r\nwhile true do end\r\n$1\r\n0\r\n")
        .unwrap();
    let report = supervisor.stop_all(Duration::from_secs(1)).await.unwrap();
    assert_eq!(report.left, []);
    assert_eq!(report.killed, [bench.addr(0)]);
    assert_eq!(state(pids(&up)[0]), None);
    supervisor.shutdown().await;
}

#[tokio::test]
async fn a_taken_port_names_the_process_and_is_tried_again() {
    let bench = Bench::new(7);
    let bus = SocketAddr::new(bench.ip, 21000 + BUS_PORT_OFFSET);
    let holder = std::net::TcpListener::bind(bus).unwrap();
    let supervisor = bench.start();
    supervisor.set_wanted(bench.level(1, Run::Running)).await.unwrap();
    let blocked = until(&supervisor, "blocked", all(Phase::Blocked, 1)).await;
    let words = blocked[0].problem.clone().unwrap();
    for part in [&bus.to_string(), &format!("pid {}", std::process::id()), "redis.base_port"] {
        assert!(words.contains(part), "{part}: {words}");
    }
    assert!(!bench.data().join("21000").exists(), "nothing was written");
    drop(holder);
    until(&supervisor, "running once it is free", all(Phase::Running, 1)).await;
    supervisor.stop_all(PATIENCE).await.unwrap();
    supervisor.shutdown().await;
}

#[tokio::test]
async fn a_missing_binary_is_named() {
    let bench = Bench::new(8);
    let server = Some(bench.data().join("no-such-server"));
    let supervisor = Supervisor::start(SupervisorOptions { server, ..bench.options() }).unwrap();
    assert!(matches!(supervisor.server_version().await, Err(ProcessError::NotExecutable { .. })));
    supervisor.set_wanted(bench.level(1, Run::Running)).await.unwrap();
    let blocked = until(&supervisor, "blocked", all(Phase::Blocked, 1)).await;
    let words = blocked[0].problem.clone().unwrap();
    assert!(words.contains("no-such-server") && words.contains("apt-get install redis-server"), "{words}");
    supervisor.shutdown().await;
    let found = bench.start();
    assert!(found.server_version().await.unwrap().contains(" server v="));
}

#[tokio::test]
async fn a_server_without_tls_is_refused_in_its_own_words() {
    let bench = Bench::new(15);
    let tls = || Some(RedisTls::new(&TestCa::new().host("a", &[bench.ip]), bench.ip).unwrap());
    let file = bench.data().join("old-server");
    let said = "*** FATAL CONFIG FILE ERROR (Redis 5.0.3) ***\nReading the configuration file, at line 3\n\
                >>> 'tls-port \"0\"'\nBad directive or wrong number of arguments";
    std::fs::write(&file, format!("#!/bin/sh\ncat >&2 <<'END'\n{said}\nEND\nexit 1\n")).unwrap();
    std::fs::set_permissions(&file, std::os::unix::fs::PermissionsExt::from_mode(0o755)).unwrap();
    let old = SupervisorOptions { server: Some(file), tls: tls(), ..bench.options() };
    let error = Supervisor::start(old).unwrap().server_version().await.unwrap_err().to_string();
    assert!(error.contains("built without TLS") && error.contains("'tls-port"), "{error}");
    let new = SupervisorOptions { tls: tls(), ..bench.options() };
    let version = Supervisor::start(new).unwrap().server_version().await.unwrap();
    assert!(version.contains(" server v="), "{version}");
}

#[tokio::test]
async fn a_foreign_directory_is_left_untouched() {
    let bench = Bench::new(9);
    let dir = bench.data().join("21000");
    std::fs::create_dir(&dir).unwrap();
    std::fs::write(dir.join("nodes.conf"), "somebody's").unwrap();
    let supervisor = bench.start();
    supervisor.set_wanted(bench.level(1, Run::Running)).await.unwrap();
    let blocked = until(&supervisor, "blocked", all(Phase::Blocked, 1)).await;
    let words = blocked[0].problem.clone().unwrap();
    assert!(
        words.contains("holds nodes.conf of another cluster") && words.contains("redis.data_dir"),
        "{words}"
    );
    assert_eq!(std::fs::read_to_string(dir.join("nodes.conf")).unwrap(), "somebody's");
    assert_eq!(std::fs::read_dir(&dir).unwrap().count(), 1);
    supervisor.shutdown().await;
}

#[tokio::test]
async fn another_plans_running_server_is_not_touched() {
    let bench = Bench::new(10);
    let supervisor = bench.start();
    supervisor.set_wanted(bench.level(1, Run::Running)).await.unwrap();
    let up = until(&supervisor, "running", all(Phase::Running, 1)).await;
    let other = WantedLevel { plan: PlanId(Uuid::from_u128(99)), ..bench.level(1, Run::Held) };
    supervisor.set_wanted(other.clone()).await.unwrap();
    let now = until(&supervisor, "a conflict", |now| now[0].problem.is_some()).await;
    assert_eq!((now[0].phase, now[0].pid), (Phase::Running, up[0].pid));
    assert!(now[0].problem.as_ref().unwrap().contains("another plan"));
    supervisor.shutdown().await;

    let second = bench.start();
    second.set_wanted(other).await.unwrap();
    let blocked = until(&second, "blocked", all(Phase::Blocked, 1)).await;
    assert!(blocked[0].problem.as_ref().unwrap().contains(&format!("pid {}", up[0].pid.unwrap())));
    assert_eq!(state(up[0].pid.unwrap()).map(|s| s == 'T'), Some(false));
    second.stop_all(PATIENCE).await.unwrap();
    second.shutdown().await;
    assert_eq!(running(&bench), 0);
}

#[tokio::test]
async fn a_crash_loop_shows_the_servers_own_words() {
    let bench = Bench::new(11);
    let supervisor = bench.start();
    let mut level = bench.level(1, Run::Running);
    level.instances[0].config.push_str("no-such-directive 1\n");
    supervisor.set_wanted(level).await.unwrap();
    let looping = until(&supervisor, "a crash loop", all(Phase::CrashLoop, 1)).await;
    let words = looping[0].problem.clone().unwrap();
    assert!(words.contains("Bad directive") && words.contains("exit status 1"), "{words}");
    assert_eq!(looping[0].restarts, 4);
    let report = supervisor.stop_all(PATIENCE).await.unwrap();
    assert_eq!(report.stopped, [bench.addr(0)]);
    supervisor.shutdown().await;
}

#[tokio::test]
async fn too_few_clients_are_noted_on_a_running_server() {
    let bench = Bench::new(12);
    let supervisor = bench.start();
    let mut level = bench.level(1, Run::Running);
    level.instances[0].clients_needed = 600;
    supervisor.set_wanted(level).await.unwrap();
    let up = until(&supervisor, "running", all(Phase::Running, 1)).await;
    let words = up[0].problem.clone().unwrap();
    assert!(words.contains("maxclients 500") && words.contains("600"), "{words}");
    supervisor.stop_all(PATIENCE).await.unwrap();
    supervisor.shutdown().await;
}

#[tokio::test]
async fn a_password_is_asked_for_and_used() {
    let bench = Bench::new(13);
    let mut level = bench.level(1, Run::Running);
    level.instances[0].config.push_str("requirepass \"top secret\"\n");
    let without = bench.start();
    without.set_wanted(level.clone()).await.unwrap();
    let words = until(&without, "the refusal", |now| now.iter().any(|s| s.problem.is_some())).await;
    assert!(words[0].problem.as_ref().unwrap().contains("requirepass"), "{words:?}");
    without.shutdown().await;
    let with = SupervisorOptions { login: Some(Login::default_user("top secret")), ..bench.options() };
    assert!(!format!("{with:?}").contains("secret"));
    let with = Supervisor::start(with).unwrap();
    with.set_wanted(level).await.unwrap();
    until(&with, "running", all(Phase::Running, 1)).await;
    with.stop_all(PATIENCE).await.unwrap();
    with.shutdown().await;
}

#[tokio::test]
async fn a_level_that_contradicts_itself_is_refused() {
    let bench = Bench::new(14);
    let supervisor = bench.start();
    let mut level = bench.level(2, Run::Held);
    level.instances[1].addr.set_port(21000);
    assert!(matches!(
        supervisor.set_wanted(level).await,
        Err(SupervisorError::DuplicatePort { port: 21000 })
    ));
    let mut level = bench.level(1, Run::Held);
    level.instances[0].addr.set_port(60000);
    assert!(matches!(supervisor.set_wanted(level).await, Err(SupervisorError::Port { port: 60000 })));
    supervisor.shutdown().await;
    assert!(matches!(supervisor.set_wanted(bench.level(1, Run::Held)).await, Err(SupervisorError::Ended)));
}
