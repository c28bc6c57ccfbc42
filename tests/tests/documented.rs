//! Every command of docs/operations.md is run by a test: here, word for word but for names,
//! addresses and sizes, or by the one that is named. A command that is added, changed or
//! taken away has to be dealt with below.

use std::path::Path;
use std::process::{Command, Stdio};

use redmesh_tests::{Mesh, MeshBuilder};

/// How a command is covered.
#[derive(Debug, Clone, Copy)]
enum Covered {
    /// Run here, in order, with these words replaced before the common ones.
    Here(&'static [(&'static str, &'static str)]),
    /// Run by this file, which holds these words.
    By(&'static str, &'static str),
    /// Not run, and why.
    Not(&'static str),
}

use Covered::{By, Here, Not};

const BOOT: &str = "deploy/dev/boot-test";
/// What it renders runs in the boot test.
const USER_DATA: &str = "ctl/src/deploy/cloud_init.rs";

/// The commands in the document's order; one that stands there twice, twice.
const COMMANDS: &[(&str, Covered)] = &[
    (
        "cp redmesh-agent redmeshctl /usr/bin && cp examples/*.service /etc/systemd/system",
        By("deploy/dev/tarball", "examples"),
    ),
    ("cp examples/sysusers.conf /etc/sysusers.d/redmesh-agent.conf && systemd-sysusers", Not("copies")),
    ("cp examples/tmpfiles.conf /etc/tmpfiles.d/redmesh-agent.conf", Not("copies")),
    ("cp examples/sysctl.conf /etc/sysctl.d/60-redmesh-agent.conf && sysctl --system", Not("copies")),
    ("apt-get install ./redmeshctl_0.1.0-1_amd64.deb", By(BOOT, "install /opt/redmeshctl.deb")),
    ("redmeshctl pki init --dir pki --mesh prod", Here(&[("--dir pki", "--dir another")])),
    ("redmeshctl pki issue --dir pki --operator alice --out ~/.config/redmesh", Here(&[])),
    (
        "redmeshctl deploy cloud-init --pki pki --mesh prod --hosts db-1=10.0.0.1,db-2=10.0.0.2,db-3=10.0.0.3 \
         --package https://example.com/redmesh-agent_0.1.0-1_amd64.deb --sha256 \"$(sha256sum \
         redmesh-agent_0.1.0-1_amd64.deb | cut -d' ' -f1)\" --out user-data",
        Here(&[]),
    ),
    ("export REDMESH_AGENT=10.0.0.1:7379", Here(&[])),
    ("redmeshctl members", Here(&[])),
    ("redmeshctl cluster create --instances-per-host 100", Here(&[("100", "2")])),
    ("redmeshctl run start --workers 2000 --writes 1000000", Here(&[("2000", "20"), ("1000000", "2000")])),
    ("redmeshctl run verify --sample 100k", Here(&[])),
    ("export REDISCLI_AUTH=$(redmeshctl pki redis-password --dir pki)", Here(&[])),
    ("redis-cli -c -h 10.0.0.1", Here(&[("10.0.0.1", "10.0.0.1 PING")])),
    ("hosts=$(for i in $(seq 10); do echo \"host-$i=10.0.0.$((10 + i))\"; done | paste -sd,)", Here(&[])),
    (
        "redmeshctl deploy cloud-init --pki pki --mesh prod --hosts \"$hosts\" --package \
         /opt/redmesh-agent_0.1.0-1_amd64.deb --out user-data",
        // It is the variable of the line before; the mesh's own host-1 has another address.
        Here(&[("\"$hosts\"", "x-1=10.0.0.11,x-2=10.0.0.12")]),
    ),
    ("terraform -chdir=deploy/terraform init", Not("downloads Oracle's provider")),
    (
        "terraform -chdir=deploy/terraform apply -var user_data_dir=\"$PWD/user-data\" …",
        By("deploy/dev/check-deploy", "fmt -check -recursive deploy/terraform"),
    ),
    ("redmeshctl pki issue --dir pki --host db-1 --ip 10.0.0.1", Here(&[("db-1", "by-hand")])),
    ("apt-get install ./redmesh-agent_0.1.0-1_amd64.deb", By(BOOT, "install /opt/redmesh-agent.deb")),
    ("scp pki/db-1/* root@10.0.0.1:/etc/redmesh/identity/", Not("copies")),
    ("cp /usr/share/doc/redmesh-agent/examples/agent.toml /etc/redmesh/agent.toml", Not("copies")),
    (
        "editor /etc/redmesh/agent.toml (mesh.name, mesh.listen, mesh.seeds, mesh.bootstrap_expect)",
        Not("a person's work"),
    ),
    (
        "systemd-tmpfiles --create redmesh-agent.conf",
        By(USER_DATA, "systemd-tmpfiles --create redmesh-agent.conf"),
    ),
    ("systemctl enable --now redmesh-agent", By(USER_DATA, "systemctl enable --now redmesh-agent")),
    ("redis-cli --tls --cacert pki/ca.pem -c -h 10.0.0.1", By("tests/src/mesh/asking.rs", "--cacert")),
    (
        "redmeshctl deploy nftables --clients 10.1.0.0/16 --operators 10.3.0.1 --scrapers 10.2.0.5 >redmesh.nft",
        Here(&[("10.2.0.5", "10.4.0.5")]),
    ),
    ("nft -c -f redmesh.nft && nft -f redmesh.nft", By(BOOT, "nft -c -f /root/redmesh.nft")),
    (
        "mkdir -p /etc/systemd/system/redmesh-agent.service.d",
        By(BOOT, "mkdir -p /etc/systemd/system/redmesh-agent.service.d"),
    ),
    (
        "cp /usr/share/doc/redmesh-agent/examples/firewall.conf /etc/systemd/system/redmesh-agent.service.d/",
        By(BOOT, "cp /usr/share/doc/redmesh-agent/examples/firewall.conf"),
    ),
    (
        "systemctl daemon-reload && systemctl restart redmesh-agent",
        By(BOOT, "systemctl daemon-reload && systemctl restart redmesh-agent"),
    ),
    ("redmeshctl deploy prometheus >prometheus.yml", Here(&[(" >", " --from 10.0.0.1:7380 >")])),
    ("promtool check config prometheus.yml", By(BOOT, "check config")),
    ("redmeshctl pki signer --dir pki --host db-1", Here(&[("--host db-1", "--host db-1 --renew")])),
    ("scp pki/db-1/signer.pem pki/db-1/signer.key root@10.0.0.1:/etc/redmesh/identity/", Not("copies")),
    (
        "systemd-tmpfiles --create redmesh-agent.conf",
        By(USER_DATA, "systemd-tmpfiles --create redmesh-agent.conf"),
    ),
    ("systemctl restart redmesh-agent", By(BOOT, "systemctl restart redmesh-agent")),
    ("redmeshctl join-token create --ttl 2h --uses 7 --out join-token", Here(&[])),
    (
        "redmeshctl deploy cloud-init --join-token join-token --mesh prod --hosts db-1=10.0.0.1 --package \
         /opt/redmesh-agent_0.1.0-1_amd64.deb --out user-data",
        Here(&[]),
    ),
    ("redmeshctl join-token list", Here(&[])),
    (
        "runuser -u redmesh -- redmesh-agent join --token-file join-token --peers 10.0.0.1",
        Here(&[("runuser -u redmesh -- redmesh-agent", "redmesh-agent --config host-3/agent.toml")]),
    ),
    (
        "redmeshctl join-token revoke 6b0c7e0a91d3f2c4",
        Here(&[("6b0c7e0a91d3f2c4", "$(cut -d. -f2 join-token)")]),
    ),
    ("redmeshctl members", Here(&[])),
    ("redmeshctl pki issue --dir pki --host db-2 --ip 10.0.0.2 --renew", Here(&[])),
    (
        "redmeshctl deploy cloud-init --pki pki --mesh prod --hosts db-1=10.0.0.1,db-2=10.0.0.2,db-3=10.0.0.3 \
         --package /opt/redmesh-agent_0.1.0-1_amd64.deb --out user-data",
        Here(&[]),
    ),
    (
        "redmeshctl members replace db-2",
        By("tests/tests/replacement.rs", "\"members\", \"replace\", &named(lost)"),
    ),
    ("redmeshctl members remove db-3", By("tests/tests/removal.rs", "\"members\", \"remove\", &named(gone)")),
    ("systemctl stop redmesh-servers (on db-3)", By(BOOT, "systemctl stop redmesh-servers")),
    ("apt-get install ./redmesh-agent_0.2.0-1_amd64.deb", By(BOOT, "install /opt/redmesh-agent-next.deb")),
    ("redmeshctl members", Here(&[])),
    ("redmeshctl pki issue --dir pki --host db-1 --ip 10.0.0.1 --renew", Here(&[])),
    ("scp pki/db-1/cert.pem pki/db-1/key.pem root@10.0.0.1:/etc/redmesh/identity/", Not("copies")),
    (
        "systemd-tmpfiles --create redmesh-agent.conf",
        By(USER_DATA, "systemd-tmpfiles --create redmesh-agent.conf"),
    ),
    ("systemctl reload redmesh-agent", By(BOOT, "systemctl reload redmesh-agent")),
    ("redmeshctl pki show pki/db-1", Here(&[])),
    ("redmeshctl operators revoke bob", Here(&[])),
    ("redmeshctl operators list", Here(&[])),
    ("redmeshctl pki issue --dir pki --operator bob --out bob-again", Here(&[])),
    (
        "redmeshctl pki redis-secret --dir pki --renew",
        By("tests/tests/rotation.rs", "\"redis-secret\", \"--dir\", &dir, \"--renew\""),
    ),
    ("scp pki/redis.secret root@10.0.0.1:/etc/redmesh/identity/ (and to every other host)", Not("copies")),
    (
        "systemd-tmpfiles --create redmesh-agent.conf",
        By(USER_DATA, "systemd-tmpfiles --create redmesh-agent.conf"),
    ),
    ("redmeshctl members", Here(&[])),
    (
        "redmeshctl pki redis-secret --dir pki --finish",
        By("tests/tests/rotation.rs", "\"redis-secret\", \"--dir\", &dir, \"--finish\""),
    ),
    ("scp pki/redis.secret root@10.0.0.1:/etc/redmesh/identity/ (and to every other host)", Not("copies")),
    (
        "systemd-tmpfiles --create redmesh-agent.conf",
        By(USER_DATA, "systemd-tmpfiles --create redmesh-agent.conf"),
    ),
    ("redmeshctl members", Here(&[])),
    ("redmesh-agent check-config", Here(&[("redmesh-agent", "redmesh-agent --config host-1/agent.toml")])),
    ("systemctl reload redmesh-agent", By(BOOT, "systemctl reload redmesh-agent")),
    ("journalctl -u redmesh-agent -n 20", Not("a person reads it")),
    ("apt-get purge redmesh-agent", By(BOOT, "purge redmesh-agent")),
    ("rm -r /etc/redmesh /var/lib/redmesh", By(BOOT, "rm -r /etc/redmesh /var/lib/redmesh")),
    ("userdel redmesh", By(BOOT, "userdel redmesh")),
    (
        "nft delete table inet redmesh",
        By("tests/tests/firewall.rs", "\"delete\", \"table\", \"inet\", \"redmesh\""),
    ),
];

fn repository() -> &'static Path {
    Path::new(env!("CARGO_MANIFEST_DIR")).parent().expect("tests lie in the repository")
}

fn read(path: &str) -> String {
    let path = repository().join(path);
    std::fs::read_to_string(&path).unwrap_or_else(|error| panic!("{}: {error}", path.display()))
}

/// The commands of the document, each in one line with single blanks.
fn documented() -> Vec<String> {
    let text = read("docs/operations.md").replace("\\\n", " ");
    text.lines()
        .filter_map(|line| line.strip_prefix("    [admin] ").or_else(|| line.strip_prefix("    [host]  ")))
        .map(|line| line.split_whitespace().collect::<Vec<_>>().join(" "))
        .collect()
}

#[test]
fn every_command_is_dealt_with_and_none_is_that_is_not_there() {
    let known: Vec<&str> = COMMANDS.iter().map(|(command, _)| *command).collect();
    assert_eq!(documented(), known, "docs/operations.md has other commands: say here which test runs each");
    for (command, covered) in COMMANDS {
        match covered {
            By(file, words) => assert!(read(file).contains(words), "{file} doesn't run {command:?} any more"),
            Not(reason) => assert!(!reason.is_empty()),
            Here(_) => {}
        }
    }
}

/// A command as it is run in `mesh`.
fn adapted(mesh: &Mesh, command: &str, replacements: &[(&str, &str)]) -> String {
    let mut command = command.to_owned();
    for (from, to) in replacements {
        assert!(command.contains(from), "{from:?} is not in {command:?}");
        command = command.replace(from, to);
    }
    for host in 0..3 {
        // Not the addresses that go on with another digit.
        let (from, to) = (format!("10.0.0.{}", host + 1), mesh.ip(host));
        let mut parts = command.split(&from);
        let mut text = parts.next().unwrap_or_default().to_owned();
        for part in parts {
            let whole = !part.starts_with(|c: char| c.is_ascii_digit());
            text.push_str(if whole { &to } else { &from });
            text.push_str(part);
        }
        command = text.replace(&format!("db-{}", host + 1), &format!("host-{}", host + 1));
    }
    command
}

#[test]
fn the_commands_that_need_no_host_of_their_own_do_what_they_say() {
    let mesh = MeshBuilder::new(2).signers(1).spare(1).ready();
    let home = mesh.dir().join("home");
    std::fs::create_dir(&home).expect("make a home");
    std::fs::write(mesh.dir().join("redmesh-agent_0.1.0-1_amd64.deb"), "a package").expect("write");
    let binaries = std::env::current_exe().expect("own path");
    let binaries = binaries.parent().and_then(|deps| deps.parent()).expect("target/debug");
    let path = format!("{}:{}", binaries.display(), std::env::var("PATH").expect("a PATH"));
    for (command, covered) in COMMANDS {
        let Here(replacements) = covered else { continue };
        let adapted = adapted(&mesh, command, replacements);
        let output = Command::new("sh")
            .args(["-c", &adapted])
            .current_dir(mesh.dir())
            .env("PATH", &path)
            .env("HOME", &home)
            .env("REDMESH_AGENT", mesh.agent_addr(0))
            .env("REDISCLI_AUTH", mesh.redis_password())
            .env_remove("REDMESH_IDENTITY")
            .stdin(Stdio::null())
            .output()
            .expect("run sh");
        let said = String::from_utf8_lossy(&output.stderr).into_owned();
        assert!(output.status.success(), "{command:?}, run as {adapted:?}: {said}");
    }
    for file in ["user-data/host-1.yaml", "user-data/join.yaml", "redmesh.nft", "prometheus.yml"] {
        assert!(mesh.dir().join(file).exists(), "{file} was not written");
    }
    assert!(mesh.identity_dir(2).join("cert.pem").exists(), "the third host has joined");
}
