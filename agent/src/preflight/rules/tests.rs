use std::net::SocketAddr;

use redmesh_api::level::ClusterSpec;
use redmesh_api::preflight::{Check, Finding, Report, Severity};

use super::*;
use crate::nft::{FirewallRead, TableRead};
use crate::preflight::readings::{Network, roomy};
use crate::supervisor::{DirProblem, PortProblem};

const GIB: u64 = 1 << 30;
const VALKEY: &str = "Valkey server v=8.0.1 sha=00000000:0 malloc=jemalloc-5.3.0 bits=64";

/// `hosts` hosts on machines of their own.
struct Mesh {
    spec: ClusterSpec,
    hosts: Vec<HostSeen>,
    silent: Vec<Silent>,
    planned_timeout_ms: Option<u32>,
    expect: u16,
}

impl Mesh {
    fn of(hosts: u16, per_host: u16) -> Self {
        let host = |n: u16| HostSeen {
            name: format!("host-{n}"),
            version: "0.1.0".to_owned(),
            base_port: 6379,
            redis_tls: false,
            read: Ok(roomy(&format!("machine-{n}"))),
            clock: Some(ClockOffset { offset_ms: i64::from(n), error_ms: 1 }),
        };
        Self {
            spec: ClusterSpec { instances_per_host: per_host, ..ClusterSpec::default() },
            hosts: (1..=hosts).map(host).collect(),
            silent: Vec::new(),
            planned_timeout_ms: None,
            expect: hosts,
        }
    }

    /// Changes what all hosts read.
    fn all(mut self, change: impl Fn(&mut Readings)) -> Self {
        self.hosts.iter_mut().filter_map(|host| host.read.as_mut().ok()).for_each(change);
        self
    }

    /// Changes what host `n` reads.
    fn on(mut self, n: usize, change: impl FnOnce(&mut Readings)) -> Self {
        change(self.hosts[n - 1].read.as_mut().expect("it answered"));
        self
    }

    fn with(mut self, change: impl FnOnce(&mut Self)) -> Self {
        change(&mut self);
        self
    }

    fn report(&self) -> Report {
        examine(&Question {
            spec: &self.spec,
            planned_timeout_ms: self.planned_timeout_ms,
            bootstrap_expect: self.expect,
            hosts: self.hosts.clone(),
            silent: self.silent.clone(),
        })
    }

    /// Findings of one check, a line each: severity, hosts, figure, threshold.
    fn lines(&self, check: Check) -> Vec<String> {
        self.report().findings.iter().filter(|finding| finding.check == check).map(line).collect()
    }

    /// The one finding of a check.
    fn one(&self, check: Check) -> Finding {
        let mut findings: Vec<Finding> =
            self.report().findings.into_iter().filter(|finding| finding.check == check).collect();
        assert_eq!(findings.len(), 1, "{findings:#?}");
        findings.remove(0)
    }

    /// The finding of a check that isn't all right, as (severity, words and remedy).
    fn bad(&self, check: Check) -> (Severity, String) {
        let findings = self.report().findings;
        let mut bad = findings.into_iter().filter(|it| it.check == check && it.severity > Severity::Ok);
        let finding = bad.next().unwrap_or_else(|| panic!("{check} is all right"));
        assert_eq!(bad.next(), None);
        (finding.severity, format!("{} | {}", finding.words, finding.remedy.expect("a remedy")))
    }
}

fn line(finding: &Finding) -> String {
    let severity = match finding.severity {
        Severity::Ok => "ok",
        Severity::Warn => "WARN",
        Severity::Fail => "FAIL",
    };
    let hosts = match finding.hosts.len() {
        0 => "mesh".to_owned(),
        1 => finding.hosts[0].clone(),
        n => format!("{n} hosts"),
    };
    format!("{} {severity} {hosts}: {} / {}", finding.check, finding.figure, finding.threshold)
}

#[test]
fn the_articles_hosts_bear_the_articles_cluster() {
    let mesh = Mesh::of(10, 100);
    let report = mesh.report();
    assert_eq!((report.instances, report.machines, report.node_timeout_ms), (1000, 10, 5_000));
    let lines: Vec<String> = report.findings.iter().map(line).collect();
    assert_eq!(
        lines,
        [
            "hosts ok mesh: 10 alive / at least 10",
            "agent-versions ok 10 hosts: 0.1.0 / one version",
            "server ok 10 hosts: Redis 7.0.15 / redis-server or valkey-server",
            "server-versions ok 10 hosts: Redis 7.0.15 / one version",
            "redis-tls ok 10 hosts: off / the same on all hosts",
            "ports ok 10 hosts: 100 data, 100 bus free / all free",
            "ephemeral-ports ok 10 hosts: 32768-60999 / apart from 6379-6478,16379-16478",
            "data-dir ok 10 hosts: usable / writable, no other cluster's",
            "disk ok 10 hosts: 800.0 GiB free / at least 138 MiB",
            "file-descriptors ok 10 hosts: hard limit 1,048,576 / at least 6,158 a server",
            "file-descriptors ok 10 hosts: 206,200 for 100 servers / at most fs.file-max 9,000,000,000",
            "threads ok 10 hosts: 600 for 100 servers / at most 4,194,304 (kernel.pid_max, threads-max)",
            "memory ok 10 hosts: 2.7 GiB for 100 servers / at most 525.0 GiB of 700.0 GiB",
            "overcommit-memory ok 10 hosts: 1 / 1",
            "transparent-huge-pages ok 10 hosts: madvise / madvise or never",
            "somaxconn ok 10 hosts: 4,096 / at least 999",
            "tcp-memory ok 10 hosts: 402 MiB / at most 64.0 GiB",
            "udp-buffers ok 10 hosts: 4 MiB in, 4 MiB out / at least 4 MiB",
            "clock-skew ok mesh: 5 ms (± 1 ms) / at most 500 ms",
            "node-timeout ok mesh: 5,000 ms / at least 5,000 ms",
            "bus-traffic ok 10 hosts: at most 7.3 Gbit/s each way / at most half of ens3's 25.0 Gbit/s",
            "firewall ok 10 hosts: not managed / anything, where firewall.manage = false",
        ]
    );
    let checked: std::collections::BTreeSet<Check> = report.findings.iter().map(|it| it.check).collect();
    assert_eq!(checked.len(), Check::ALL.len(), "each check says something");
}

#[test]
fn hosts_that_are_not_there_are_told_by_what_hangs_on_them() {
    let silent = |planned| Silent { name: "host-4".to_owned(), planned };
    let mesh = Mesh::of(3, 2).with(|mesh| mesh.silent.push(silent(false)));
    assert_eq!(
        mesh.lines(Check::Hosts),
        ["hosts WARN host-4: not heard of / alive", "hosts ok mesh: 3 alive / at least 3"]
    );
    assert_eq!(mesh.report().instances, 6);
    let mesh = Mesh::of(3, 2).with(|mesh| mesh.silent.push(silent(true)));
    assert_eq!(mesh.bad(Check::Hosts).0, Severity::Fail);
    assert_eq!(mesh.report().instances, 8, "it bears its part of the plan");
    let mesh = Mesh::of(3, 2).with(|mesh| mesh.expect = 4);
    assert_eq!(mesh.bad(Check::Hosts).0, Severity::Fail);

    let mesh = Mesh::of(3, 2).with(|mesh| mesh.hosts[1].read = Err("no reply within 15000 ms".to_owned()));
    let (severity, words) = mesh.bad(Check::Hosts);
    assert_eq!(severity, Severity::Fail);
    assert!(words.contains("could not be examined: no reply within 15000 ms"), "{words}");
    assert_eq!(mesh.report().machines, 2);
    assert_eq!(mesh.report().instances, 6, "its instances count all the same");
}

#[test]
fn a_firewall_that_is_to_be_kept_and_is_not_is_a_warning() {
    let with = |capability, table| {
        Mesh::of(3, 2).on(2, |read| read.firewall = Some(FirewallRead { capability, table }))
    };
    let table = |sets, input| Ok(TableRead { sets, input });
    assert_eq!(
        with(true, table(2, true)).lines(Check::Firewall),
        [
            "firewall ok 2 hosts: not managed / anything, where firewall.manage = false",
            "firewall ok host-2: 2 sets, rules / CAP_NET_ADMIN, both sets, and rules"
        ]
    );
    let bad = |mesh: Mesh, parts: [&str; 2]| {
        let (got, words) = mesh.bad(Check::Firewall);
        assert_eq!(got, Severity::Warn, "{words}");
        assert!(parts.iter().all(|part| words.contains(part)), "{words}");
    };
    bad(with(false, table(2, true)), ["may not change the firewall", "firewall.conf"]);
    bad(with(true, Err("can't run nft".to_owned())), ["can't run nft", "install nftables"]);
    bad(with(true, table(1, true)), ["sets of members are not in", "journalctl"]);
    bad(with(true, table(2, false)), ["no chain", "deploy nftables"]);
    // Whatever else is wrong, the capability comes first.
    bad(with(false, Err("x".to_owned())), ["may not change", "firewall.conf"]);
}

#[test]
fn tls_that_is_not_the_same_everywhere_fails() {
    let mesh = Mesh::of(3, 2).with(|mesh| mesh.hosts[1].redis_tls = true);
    assert_eq!(
        mesh.lines(Check::RedisTls),
        [
            "redis-tls FAIL host-2: on / the same on all hosts",
            "redis-tls FAIL 2 hosts: off / the same on all hosts"
        ]
    );
    let all = Mesh::of(3, 2).with(|mesh| mesh.hosts.iter_mut().for_each(|host| host.redis_tls = true));
    assert_eq!(all.lines(Check::RedisTls), ["redis-tls ok 3 hosts: on / the same on all hosts"]);
}

#[test]
fn versions_that_differ_are_a_warning() {
    let mesh = Mesh::of(3, 2).on(2, |read| read.server = Ok(VALKEY.to_owned()));
    assert_eq!(
        mesh.lines(Check::ServerVersions),
        [
            "server-versions WARN 2 hosts: Redis 7.0.15 / one version",
            "server-versions WARN host-2: Valkey 8.0.1 / one version"
        ]
    );
    let mesh = Mesh::of(3, 2).with(|mesh| mesh.hosts[2].version = "0.2.0".to_owned());
    assert_eq!(
        mesh.lines(Check::AgentVersions),
        [
            "agent-versions WARN 2 hosts: 0.1.0 / one version",
            "agent-versions WARN host-3: 0.2.0 / one version"
        ]
    );
}

#[test]
fn a_server_that_cannot_be_asked_fails() {
    let mesh = Mesh::of(3, 2).on(1, |read| read.server = Err("redis.server is /nowhere".to_owned()));
    let (severity, words) = mesh.bad(Check::Server);
    assert_eq!(severity, Severity::Fail);
    assert!(words.starts_with("redis.server is /nowhere | apt-get install"), "{words}");
    let mesh = Mesh::of(3, 2).on(1, |read| read.server = Ok("KeyDB v=6".to_owned()));
    assert_eq!(mesh.bad(Check::Server).0, Severity::Fail);
    assert_eq!(mesh.one(Check::ServerVersions).hosts.len(), 2, "of the known ones");
}

#[test]
fn ports_of_others_fail_and_our_own_do_not() {
    let problem = |port: u16| PortProblem {
        words: format!("data port 10.0.0.2:{port} is taken by nginx (pid 7, /usr/sbin/nginx)"),
        remedy: "stop it, or set redis.base_port to other ports".to_owned(),
    };
    let mesh = Mesh::of(3, 4).on(2, |read| (read.ports, read.ports_more) = (vec![problem(6380)], 2));
    assert_eq!(
        mesh.lines(Check::Ports),
        ["ports ok 2 hosts: 4 data, 4 bus free / all free", "ports FAIL host-2: 3 not free / all free"]
    );
    assert_eq!(
        mesh.bad(Check::Ports).1,
        "data port 10.0.0.2:6380 is taken by nginx (pid 7, /usr/sbin/nginx); \
         2 more are taken | stop it, or set redis.base_port to other ports"
    );
    let own = Mesh::of(3, 4).all(|read| read.own = 4);
    assert_eq!(own.lines(Check::Ports), ["ports ok 3 hosts: 4 of 4 are our own instances' / all free"]);
}

#[test]
fn existing_servers_are_expected_at_their_ports() {
    let existing = |mesh: &mut Mesh| mesh.spec.servers = Servers::Existing;
    let taken = PortProblem { words: "taken".to_owned(), remedy: "stop it".to_owned() };
    let mesh = Mesh::of(3, 4).with(existing).all(|read| {
        read.ports = vec![taken.clone()];
        read.server = Err("none".to_owned());
        read.nofile_hard = Some(1);
        read.dir_problem = Some(DirProblem { words: "x".to_owned(), remedy: "y".to_owned() });
    });
    assert_eq!(mesh.lines(Check::Ports), ["ports ok 3 hosts: all in use / 4 data ports in use"]);
    assert_eq!(mesh.report().of(Severity::Fail).count(), 0, "limits and directories are somebody else's");
    let first: SocketAddr = "10.0.0.1:6381".parse().expect("an address");
    let mesh = mesh.on(1, |read| read.silent = Some((first, 2)));
    let (severity, words) = mesh.bad(Check::Ports);
    assert_eq!(severity, Severity::Fail);
    assert!(words.contains("nobody listens at 10.0.0.1:6381") && words.contains("--port 6381"), "{words}");
}

#[test]
fn an_ephemeral_range_over_the_ports_is_a_warning_unless_they_are_reserved() {
    let wide = |read: &mut Readings| read.ephemeral = Some((1024, 65_535));
    let (severity, words) = Mesh::of(3, 100).all(wide).bad(Check::EphemeralPorts);
    assert_eq!(severity, Severity::Warn);
    assert!(words.ends_with("| sysctl -w net.ipv4.ip_local_reserved_ports=6379-6478,16379-16478"), "{words}");
    let half = Mesh::of(3, 100).all(|read| {
        read.ephemeral = Some((16_400, 16_500));
        read.reserved = vec![(80, 80)];
    });
    assert!(half.bad(Check::EphemeralPorts).1.ends_with("=80,16379-16478"));
    let reserved =
        Mesh::of(3, 100).all(wide).all(|read| read.reserved = vec![(6000, 7000), (16_379, 16_478)]);
    assert_eq!(reserved.one(Check::EphemeralPorts).severity, Severity::Ok);
    let unknown = Mesh::of(3, 100).all(|read| read.ephemeral = None).one(Check::EphemeralPorts);
    assert_eq!((unknown.severity, unknown.figure.as_str()), (Severity::Ok, "not known"));
}

#[test]
fn directories_and_disks_must_take_the_servers() {
    let problem = DirProblem { words: "holds nodes.conf".to_owned(), remedy: "mv a b".to_owned() };
    let mesh = Mesh::of(3, 2).on(3, |read| read.dir_problem = Some(problem));
    assert_eq!(mesh.bad(Check::DataDir), (Severity::Fail, "holds nodes.conf | mv a b".to_owned()));

    let disk = |free| Mesh::of(3, 10).all(|read| read.disk = Some((1, free)));
    // 10 MiB, and 10 files of 30 lines.
    let need = 10 * (1 << 20) + 10 * 30 * 400;
    assert_eq!(disk(need - 1).one(Check::Disk).severity, Severity::Fail);
    assert_eq!(disk(need).one(Check::Disk).severity, Severity::Warn);
    assert_eq!(disk(need * 10).one(Check::Disk).severity, Severity::Ok);
    // On one file system the sum counts; on a second one by itself.
    let shared = disk(need * 10).all(|read| read.boot_id = "one".to_owned());
    assert_eq!(shared.one(Check::Disk).severity, Severity::Warn);
    let apart = shared.on(1, |read| read.disk = Some((2, need * 10)));
    assert_eq!(apart.lines(Check::Disk).len(), 2);
}

#[test]
fn open_files_are_counted_by_server_and_by_machine() {
    // 2 · 29 links, 4096 clients, 64 of its own.
    let hard = |limit| Mesh::of(3, 10).all(|read| read.nofile_hard = Some(limit));
    assert!(hard(4218).report().of(Severity::Fail).next().is_none());
    let (severity, words) = hard(4217).bad(Check::FileDescriptors);
    assert_eq!(severity, Severity::Fail);
    assert!(
        words.contains("58 bus links, 4,096 other clients") && words.contains("LimitNOFILE=4218"),
        "{words}"
    );
    let unlimited = Mesh::of(3, 10).all(|read| read.nofile_hard = None);
    assert!(unlimited.lines(Check::FileDescriptors)[0].contains("no hard limit"));

    // All on one machine: 30 · (58 + 64) besides 2000.
    let max = |max| Mesh::of(3, 10).all(|read| (read.boot_id, read.file_max) = ("one".to_owned(), Some(max)));
    assert!(max(5660).report().of(Severity::Fail).next().is_none());
    let (severity, words) = max(5659).bad(Check::FileDescriptors);
    assert_eq!(severity, Severity::Fail);
    assert!(
        words.contains("2,000 are open already") && words.ends_with("sysctl -w fs.file-max=11320"),
        "{words}"
    );
    let there = max(5659).all(|read| read.own = 10);
    assert!(there.report().of(Severity::Fail).next().is_none(), "those that run have theirs");
}

#[test]
fn threads_are_counted_by_unit_and_by_machine() {
    let max =
        |max| Mesh::of(3, 10).all(|read| (read.boot_id, read.threads_max) = ("one".to_owned(), Some(max)));
    assert_eq!(max(1080).one(Check::Threads).severity, Severity::Ok);
    let (severity, words) = max(1079).bad(Check::Threads);
    assert_eq!(severity, Severity::Fail);
    assert!(words.contains("kernel.pid_max=2160"), "{words}");
    let left = |left| Mesh::of(3, 10).all(|read| read.tasks_left = Some(left));
    assert!(left(60).report().of(Severity::Fail).next().is_none());
    let (severity, words) = left(59).bad(Check::Threads);
    assert_eq!(severity, Severity::Fail);
    assert!(words.contains("TasksMax=infinity"), "{words}");
}

/// Ten agents on one machine with Redis 7.0.
fn one_machine(per_host: u16, cores: u32, available: u64) -> Mesh {
    Mesh::of(10, per_host).all(|read| {
        read.boot_id = "one".to_owned();
        (read.cores, read.memory_available) = (cores, Some(available));
        read.network = Network { interface: Some("lo".to_owned()), bits_per_s: None };
    })
}

#[test]
fn memory_is_what_was_measured() {
    // 300 took about 3 GB and 500 some 8; 1000 were killed at 23 GB.
    let figure = |per_host| one_machine(per_host, 2, 24 * GIB).one(Check::Memory);
    assert_eq!(
        line(&figure(30)),
        "memory ok 10 hosts: 2.9 GiB for 300 servers / at most 18.0 GiB of 24.0 GiB"
    );
    assert_eq!(
        line(&figure(50)),
        "memory ok 10 hosts: 7.4 GiB for 500 servers / at most 18.0 GiB of 24.0 GiB"
    );
    let thousand = figure(100);
    assert_eq!(
        line(&thousand),
        "memory FAIL 10 hosts: 27.3 GiB for 1,000 servers / at most 18.0 GiB of 24.0 GiB"
    );
    assert_eq!(thousand.remedy.as_deref(), Some("redmeshctl cluster create --instances-per-host 80"));
    assert!(thousand.words.contains("Valkey, would take 17.0 GiB"), "{}", thousand.words);
    let valkey = one_machine(100, 2, 24 * GIB).all(|read| read.server = Ok(VALKEY.to_owned()));
    assert_eq!(valkey.one(Check::Memory).severity, Severity::Ok);
    let tls = one_machine(50, 2, 24 * GIB)
        .with(|mesh| mesh.hosts.iter_mut().for_each(|host| host.redis_tls = true))
        .one(Check::Memory);
    assert_eq!(line(&tls), "memory FAIL 10 hosts: 27.6 GiB for 500 servers / at most 18.0 GiB of 24.0 GiB");
    let tight = one_machine(90, 2, 24 * GIB).one(Check::Memory);
    assert_eq!(tight.severity, Severity::Warn);
    let running = one_machine(100, 2, GIB).all(|read| read.own = 100).one(Check::Memory);
    assert_eq!(running.severity, Severity::Ok, "what runs has its memory already");
    let unknown = one_machine(100, 2, 0).all(|read| read.memory_available = None).one(Check::Memory);
    assert_eq!(unknown.threshold, "not known");
}

#[test]
fn what_instances_send_at_once_is_held_against_the_kernels_bound() {
    let pressure = 1_572_335_616;
    let check = |per_host| {
        one_machine(per_host, 2, 24 * GIB)
            .all(|read| read.tcp_pressure = Some(pressure))
            .one(Check::TcpMemory)
    };
    // Seen at the most: 300 at once 0.36 GiB; a few at a time 500 0.72 and 700 1.4.
    assert_eq!(line(&check(30)), "tcp-memory ok 10 hosts: 460 MiB / at most 1.5 GiB");
    assert_eq!(line(&check(50)), "tcp-memory ok 10 hosts: 591 MiB / at most 1.5 GiB");
    assert_eq!(line(&check(70)), "tcp-memory ok 10 hosts: 1.4 GiB / at most 1.5 GiB");
    assert_eq!(line(&check(100)), "tcp-memory WARN 10 hosts: 3.9 GiB / at most 1.5 GiB");
    assert!(check(100).remedy.expect("a remedy").starts_with("sysctl -w net.ipv4.tcp_mem=\""));
}

#[test]
fn kernel_settings_that_only_slow_it_down_are_warnings() {
    type Change = fn(&mut Readings);
    let cases: [(Check, Change, &str); 5] = [
        (Check::OvercommitMemory, |it| it.overcommit = Some(0), "sysctl -w vm.overcommit_memory=1"),
        (
            Check::TransparentHugePages,
            |it| it.huge_pages = Some("always".to_owned()),
            "echo madvise > /sys/kernel/mm/transparent_hugepage/enabled",
        ),
        (Check::Somaxconn, |it| it.somaxconn = Some(28), "sysctl -w net.core.somaxconn=4096"),
        (Check::UdpBuffers, |it| it.udp_buffers.0 = 212_992, "net.core.rmem_max=4194304"),
        (Check::UdpBuffers, |it| it.udp_buffers.1 = 212_992, "net.core.wmem_max=4194304"),
    ];
    for (check, change, remedy) in cases {
        let (severity, words) = Mesh::of(3, 10).all(change).bad(check);
        assert_eq!(severity, Severity::Warn, "{check}");
        assert!(words.contains(remedy), "{check}: {words}");
    }
    let unknown = Mesh::of(3, 10).all(|it| (it.overcommit, it.huge_pages, it.somaxconn) = (None, None, None));
    assert_eq!(unknown.report().of(Severity::Warn).count(), 0);
    let enough = Mesh::of(3, 10).all(|it| it.somaxconn = Some(29));
    assert_eq!(enough.one(Check::Somaxconn).severity, Severity::Ok);
}

#[test]
fn clocks_are_held_against_the_median_and_their_error() {
    let clocks = |offsets: [(i64, u64); 3]| {
        Mesh::of(3, 1).with(|mesh| {
            for (host, (offset_ms, error_ms)) in mesh.hosts.iter_mut().zip(offsets) {
                host.clock = Some(ClockOffset { offset_ms, error_ms });
            }
        })
    };
    assert_eq!(
        clocks([(0, 1), (501, 1), (0, 1)]).lines(Check::ClockSkew),
        ["clock-skew ok mesh: 501 ms (± 1 ms) / at most 500 ms"]
    );
    assert_eq!(
        clocks([(0, 1), (-2000, 1), (30, 1)]).lines(Check::ClockSkew),
        ["clock-skew WARN host-2: 2000 ms behind (± 1 ms) / at most 500 ms"]
    );
    // The one that asks is wrong.
    let asker = clocks([(0, 0), (9000, 1), (9001, 1)]);
    assert_eq!(
        asker.lines(Check::ClockSkew),
        ["clock-skew WARN host-1: 9000 ms behind (± 0 ms) / at most 500 ms"]
    );
    let none = Mesh::of(3, 1).with(|mesh| mesh.hosts.iter_mut().for_each(|host| host.clock = None));
    assert_eq!(none.one(Check::ClockSkew).figure, "not known");
}

#[test]
fn an_offset_is_between_question_and_answer() {
    assert_eq!(ClockOffset::of(1000, 10, 1005), ClockOffset { offset_ms: 0, error_ms: 5 });
    assert_eq!(ClockOffset::of(1000, 3, 900), ClockOffset { offset_ms: -102, error_ms: 2 });
    assert_eq!(ClockOffset::of(1000, 0, 8000), ClockOffset { offset_ms: 7000, error_ms: 0 });
}

#[test]
fn node_timeouts_are_held_against_what_suits() {
    let short = one_machine(30, 2, 24 * GIB).with(|mesh| mesh.spec.node_timeout_ms = Some(5000));
    assert_eq!(short.lines(Check::NodeTimeout), ["node-timeout WARN mesh: 5,000 ms / at least 15,000 ms"]);
    assert_eq!(short.report().node_timeout_ms, 5000, "who asks for it has it");
    let (_, words) = short.bad(Check::NodeTimeout);
    assert!(words.contains("--node-timeout 15000"), "{words}");
    assert_eq!(one_machine(30, 2, 24 * GIB).report().node_timeout_ms, 15_000);
    let crowded = one_machine(100, 2, 24 * GIB);
    assert_eq!(
        crowded.lines(Check::NodeTimeout),
        ["node-timeout WARN mesh: 300,000 ms / at least 300,000 ms"],
        "calm, but a failure is noticed late"
    );
    let planned = one_machine(30, 2, 24 * GIB).with(|mesh| mesh.planned_timeout_ms = Some(20_000));
    assert_eq!(planned.lines(Check::NodeTimeout), ["node-timeout ok mesh: 20,000 ms / at least 15,000 ms"]);
}

#[test]
fn traffic_is_held_against_the_network() {
    let nic = |mbits: u64, timeout| {
        Mesh::of(10, 100).all(|read| read.network.bits_per_s = Some(mbits * 1_000_000)).with(|mesh| {
            mesh.spec.node_timeout_ms = Some(timeout);
        })
    };
    assert_eq!(
        nic(10_000, 5_000).lines(Check::BusTraffic),
        ["bus-traffic WARN 10 hosts: at most 7.3 Gbit/s each way / at most half of ens3's 10.0 Gbit/s"]
    );
    let (_, words) = nic(10_000, 5_000).bad(Check::BusTraffic);
    assert!(words.contains("about 3.1 Gbit/s is likely") && words.contains("--node-timeout 7290"), "{words}");
    assert_eq!(nic(10_000, 7_290).one(Check::BusTraffic).severity, Severity::Ok);
    let (severity, words) = nic(1_000, 5_000).bad(Check::BusTraffic);
    assert_eq!(severity, Severity::Fail, "{words}");
    assert_eq!(nic(1_000, 60_000).one(Check::BusTraffic).severity, Severity::Warn);
    let unknown = Mesh::of(10, 100).all(|read| read.network.bits_per_s = None).one(Check::BusTraffic);
    assert_eq!(unknown.threshold, "ens3's speed is not known");
    assert_eq!(one_machine(10, 2, 24 * GIB).one(Check::BusTraffic).figure, "none leaves the machine");
}

#[test]
fn uneven_hosts_are_counted_as_they_are() {
    let mesh = Mesh::of(3, 10).with(|mesh| {
        mesh.spec.instances_of = [("host-2".to_owned(), 40)].into();
    });
    assert_eq!(mesh.report().instances, 60);
    assert_eq!(mesh.lines(Check::Threads).len(), 2);
    assert!(
        mesh.lines(Check::Threads)
            .iter()
            .any(|line| line.starts_with("threads ok host-2: 240 for 40 servers"))
    );
}

#[test]
fn what_the_kernel_hides_stops_nothing() {
    let mesh = Mesh::of(3, 10).all(|read| {
        *read = Readings {
            memory_available: None,
            nofile_hard: None,
            file_max: None,
            files_open: None,
            threads: None,
            threads_max: None,
            somaxconn: None,
            tcp_pressure: None,
            overcommit: None,
            huge_pages: None,
            ephemeral: None,
            disk: None,
            boot_id: String::new(),
            network: Network { interface: None, bits_per_s: None },
            ..roomy("")
        }
    });
    assert_eq!(mesh.report().of(Severity::Fail).count(), 0);
    assert_eq!(mesh.report().machines, 3);
}
