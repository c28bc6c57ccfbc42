use std::os::unix::fs::PermissionsExt;

use clap::Parser;
use redmesh_api::tls::Identity;

use super::*;

#[derive(Debug, Parser)]
struct Cli {
    #[command(subcommand)]
    command: PkiCommand,
}

fn pki(args: &[&str]) -> Result<String> {
    run(&Cli::try_parse_from(["pki"].iter().chain(args))?.command)
}

fn mode(path: &Path) -> u32 {
    fs::metadata(path).unwrap().permissions().mode() & 0o777
}

fn words(result: Result<impl std::fmt::Debug>) -> String {
    format!("{:#}", result.unwrap_err())
}

#[test]
fn a_host_and_an_operator_get_identities_that_load() {
    let temp = tempfile::tempdir().unwrap();
    let dir = temp.path().join("pki");
    let d = dir.to_str().unwrap();
    pki(&["init", "--dir", d, "--mesh", "demo"]).unwrap();
    assert_eq!(mode(&dir.join("ca.key")), 0o600);
    pki(&["issue", "--dir", d, "--host", "host-1", "--ip", "127.0.0.1", "--ip", "::1"]).unwrap();
    assert_eq!(mode(&dir.join("host-1/key.pem")), 0o600);
    assert_eq!(mode(&dir.join("host-1")), 0o700);
    let host = Identity::load(&dir.join("host-1")).unwrap();
    assert_eq!((host.role(), host.name()), (Role::Host, "host-1"));
    assert!(host.names_ip("127.0.0.1".parse().unwrap()) && host.names_ip("::1".parse().unwrap()));
    assert!(!host.names_ip("127.0.0.2".parse().unwrap()));
    let secret = RedisSecrets::load(&dir).unwrap();
    assert_eq!(RedisSecrets::load(&dir.join("host-1")).unwrap(), secret);
    assert_eq!(pki(&["redis-password", "--dir", d]).unwrap(), secret.newest().client_password());
    let out = issue_operator(&dir, "ann").unwrap();
    assert!(!out.join(REDIS_SECRET_FILE).exists(), "operators get no secret");
    let operator = Identity::load(&out).unwrap();
    assert_eq!((operator.role(), operator.name()), (Role::Operator, "ann"));
    let shown = pki(&["show", out.to_str().unwrap()]).unwrap();
    assert!(shown.contains("operator    ann") && shown.contains("days left"), "{shown}");
    pki(&["issue", "--dir", d, "--operator", "bob", "--read-only"]).unwrap();
    let reader = Identity::load(&dir.join("bob")).unwrap();
    assert_eq!((reader.role(), reader.name()), (Role::Reader, "bob"));
    let shown = pki(&["show", dir.join("bob").to_str().unwrap()]).unwrap();
    assert!(shown.contains("operator    bob (read-only)"), "{shown}");
    let shown = pki(&["show", dir.join("host-1").to_str().unwrap()]).unwrap();
    assert!(shown.contains("address     127.0.0.1") && shown.contains("host-1.host.redmesh"), "{shown}");
    assert!(pki(&["show", d]).unwrap().contains("certificate authority"));
}

#[test]
fn nothing_is_overwritten_unasked() {
    let temp = tempfile::tempdir().unwrap();
    let dir = temp.path();
    init(dir, "m").unwrap();
    let ca = fs::read(dir.join("ca.pem")).unwrap();
    let key = fs::read(dir.join("ca.key")).unwrap();
    assert!(words(init(dir, "m")).contains("ca.pem is there already"));
    fs::remove_file(dir.join("ca.pem")).unwrap();
    assert!(words(init(dir, "m")).contains("ca.key is there already"));
    fs::remove_file(dir.join("ca.key")).unwrap();
    assert!(words(init(dir, "m")).contains("redis.secret is there already"));
    fs::write(dir.join("ca.pem"), ca).unwrap();
    fs::write(dir.join("ca.key"), key).unwrap();
    let ip = ["10.0.0.1".parse().unwrap()];
    let out = issue_host(dir, "a", &ip).unwrap();
    let cert = fs::read(out.join("cert.pem")).unwrap();
    assert!(words(issue_host(dir, "a", &ip)).contains("--renew replaces it"));
    assert_eq!(fs::read(out.join("cert.pem")).unwrap(), cert);
    pki(&["issue", "--dir", dir.to_str().unwrap(), "--host", "a", "--ip", "10.0.0.2", "--renew"]).unwrap();
    let renewed = Identity::load(&out).unwrap();
    assert!(renewed.names_ip("10.0.0.2".parse().unwrap()) && !renewed.names_ip(ip[0]));
    assert_eq!(mode(&out.join("key.pem")), 0o600);
}

#[test]
fn a_missing_or_foreign_ca_key_is_refused_with_the_remedy() {
    let temp = tempfile::tempdir().unwrap();
    let (one, two) = (temp.path().join("one"), temp.path().join("two"));
    assert!(words(issue_operator(&one, "a")).contains("redmeshctl pki init"));
    init(&one, "m").unwrap();
    init(&two, "m").unwrap();
    fs::copy(two.join("ca.key"), one.join("ca.key")).unwrap();
    let error = words(issue_operator(&one, "a"));
    assert!(error.contains("is not the key of") && error.contains("Restore both"), "{error}");
    fs::remove_file(one.join("ca.key")).unwrap();
    assert!(words(issue_operator(&one, "a")).contains("ca.key is missing"));
    assert!(!one.join("a").exists(), "a refused issue leaves nothing behind");
}

#[test]
fn bad_names_addresses_and_combinations_are_refused() {
    let temp = tempfile::tempdir().unwrap();
    let dir = temp.path();
    let d = dir.to_str().unwrap();
    init(dir, "m").unwrap();
    let long = "a".repeat(64);
    for name in ["", "A", "a.b", "-a", "a-", "a/../b", "ä", long.as_str()] {
        assert!(words(issue_operator(dir, name)).contains("must be 1 to 63"), "{name:?}");
    }
    assert!(words(issue_host(dir, "a", &["0.0.0.0".parse().unwrap()])).contains("not an address"));
    for args in [
        &["issue", "--dir", d, "--host", "a"][..],
        &["issue", "--dir", d],
        &["issue", "--dir", d, "--operator", "a", "--ip", "10.0.0.1"],
        &["issue", "--dir", d, "--operator", "a", "--host", "b", "--ip", "10.0.0.1"],
        &["issue", "--dir", d, "--operator", "a", "--days", "0"],
        &["issue", "--dir", d, "--host", "a", "--ip", "10.0.0.1", "--read-only"],
        &["issue", "--dir", d, "--operator", "a", "--days", "-1"],
        &["init", "--dir", d, "--mesh", ""],
    ] {
        assert!(pki(args).is_err(), "{args:?}");
    }
}

#[test]
fn an_expired_certificate_can_be_made_for_tests_and_is_shown_as_such() {
    let temp = tempfile::tempdir().unwrap();
    let d = temp.path().to_str().unwrap();
    init(temp.path(), "m").unwrap();
    pki(&["issue", "--dir", d, "--operator", "old", "--valid-from-days-ago", "10", "--days", "5"]).unwrap();
    let shown = show(&temp.path().join("old")).unwrap();
    assert!(shown.contains("EXPIRED"), "{shown}");
}

#[test]
fn fuzz_certificates() {
    let temp = tempfile::tempdir().unwrap();
    init(temp.path(), "m").unwrap();
    let host = issue_host(temp.path(), "h", &["10.0.0.1".parse().unwrap()]).unwrap();
    let pem = |dir: &Path, file: &str| fs::read(dir.join(file)).unwrap();
    let mut seeds = vec![pem(temp.path(), "ca.pem"), pem(&host, "cert.pem")];
    // As DER, changes reach what is inside.
    seeds.extend(Identity::load(&host).unwrap().chain().iter().map(|der| der.to_vec()));
    let file = temp.path().join("case.pem");
    redmesh_tests::fuzz::fuzz("certificate", seeds, |bytes| {
        fs::write(&file, bytes).unwrap();
        let _ = show(&file);
        let der = CertificateDer::from(bytes.to_vec());
        let _ = tls::peer_of(std::slice::from_ref(&der));
        let _ = tls::names_ip(std::slice::from_ref(&der), "10.0.0.1".parse().unwrap());
        let _ = tls::valid_until_unix_ms(std::slice::from_ref(&der));
        let text = fuzz_pem(bytes);
        fs::write(&file, text).unwrap();
        let _ = show(&file);
    });
}

/// DER wrapped as a PEM file.
fn fuzz_pem(der: &[u8]) -> String {
    const DIGITS: &[u8; 64] = b"ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789+/";
    let mut text = String::from("-----BEGIN CERTIFICATE-----\n");
    for group in der.chunks(3) {
        let mut bits = 0u32;
        for at in 0..3 {
            bits = bits << 8 | u32::from(group.get(at).copied().unwrap_or(0));
        }
        for digit in 0..4 {
            let index = (bits >> (18 - 6 * digit)) & 63;
            let pad = digit > group.len();
            text.push(if pad { '=' } else { char::from(DIGITS[index as usize]) });
        }
    }
    text + "\n-----END CERTIFICATE-----\n"
}

#[test]
fn another_secret_comes_in_two_steps_and_reaches_every_copy() {
    let dir = tempfile::tempdir().unwrap();
    let dir = dir.path();
    init(dir, "m").unwrap();
    issue_host(dir, "host-1", &["10.0.0.1".parse().unwrap()]).unwrap();
    issue_operator(dir, "alice").unwrap();
    let step =
        |renew, finish| run(&PkiCommand::RedisSecret(RedisSecretArgs { dir: dir.to_owned(), renew, finish }));
    let first = RedisSecrets::load(dir).unwrap();
    let password = |former| redis_secret::password(dir, former);
    let before = password(false).unwrap();
    assert!(step(false, true).unwrap_err().to_string().contains("nothing is to be ended"));
    let said = step(true, false).unwrap();
    let both = RedisSecrets::load(dir).unwrap();
    assert_eq!(both.former(), Some(first.newest()));
    assert_ne!(both.newest(), first.newest());
    let host = dir.join("host-1");
    assert_eq!(RedisSecrets::load(&host).unwrap(), both);
    assert!(!dir.join("alice/redis.secret").exists(), "operators get none");
    assert!(said.contains(&both.newest().fingerprint()) && said.contains("1 hosts"), "{said}");
    assert!(both.all().all(|secret| !said.contains(&secret.client_password())), "{said}");
    assert_eq!(password(true).unwrap(), before);
    assert_ne!(password(false).unwrap(), before);
    assert!(step(true, false).unwrap_err().to_string().contains("--finish"));
    issue_host(dir, "host-2", &["10.0.0.2".parse().unwrap()]).unwrap();
    assert_eq!(
        RedisSecrets::load(&dir.join("host-2")).unwrap(),
        both,
        "a host that comes meanwhile knows both"
    );
    step(false, true).unwrap();
    for place in [dir, &host, &dir.join("host-2")] {
        assert_eq!(RedisSecrets::load(place).unwrap(), both.newest().clone().into());
    }
    assert!(password(true).unwrap_err().to_string().contains("no former one"));
    let one = RedisSecretArgs { dir: host, renew: true, finish: false };
    assert!(run(&PkiCommand::RedisSecret(one)).unwrap_err().to_string().contains("no ca.key"));
}
