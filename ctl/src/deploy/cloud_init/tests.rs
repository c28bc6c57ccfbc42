use std::os::unix::fs::PermissionsExt;

use super::*;

fn host(text: &str) -> HostSpec {
    text.parse().expect("a host")
}

fn common<'a>(package: Package<'a>, extra: &'a str) -> Common<'a> {
    let seeds = ["10.0.0.1:7379", "10.0.0.2:7379"].map(|seed| seed.parse().expect("an address"));
    Common { mesh: "prod", expect: 2, seeds: seeds.to_vec(), package, extra }
}

fn certificates() -> Certificates {
    let pem = |what: &str| format!("-----BEGIN {what}-----\nAAAA\n-----END {what}-----\n");
    let redis_secret = "0123abcd\n".to_owned();
    Certificates { ca: pem("CA"), cert: pem("CERTIFICATE"), key: pem("KEY"), signer: None, redis_secret }
}

const SUM: &str = "0123456789abcdef0123456789abcdef0123456789abcdef0123456789abcdef";

#[test]
fn user_data_is_as_it_was_looked_at() {
    let package = package("https://example.com/redmesh-agent.deb", Some(SUM)).expect("a package");
    let extra = "[redis.directives]\n\nmaxmemory = \"1gb\"\n";
    let text = render(&host("db-2=10.0.0.2"), &common(package, extra), &certificates());
    assert_eq!(text, include_str!("../golden/cloud-init.yaml"));
}

/// One of the mesh 1, whose seed is no secret.
const TOKEN: &str = "redmesh-join-1.56475aa75463474c.00000000000000000000000000000001.\
                     6959097001d10501ac7d54c0bdb8db61420f658f2922cc26e46d536119a31126.\
                     000102030405060708090a0b0c0d0e0f101112131415161718191a1b1c1d1e1f.dbad86df";

#[test]
fn user_data_of_hosts_that_join_is_as_it_was_looked_at() {
    let package = package("https://example.com/redmesh-agent.deb", Some(SUM)).expect("a package");
    let extra = "[redis.directives]\n\nmaxmemory = \"1gb\"\n";
    let token = JoinToken::parse(TOKEN).expect("a token");
    assert_eq!(render_join(&common(package, extra), &token), include_str!("../golden/join.yaml"));
}

#[test]
fn the_script_is_one_that_a_shell_reads() {
    let text = install(&package("/opt/redmesh-agent.deb", None).expect("a package"), "");
    let checked = std::process::Command::new("sh").args(["-n", "-c", &text]).output().expect("run sh");
    assert!(checked.status.success(), "{}", String::from_utf8_lossy(&checked.stderr));
    assert!(text.contains("deb=/opt/redmesh-agent.deb\n"));
}

#[test]
fn a_package_that_cannot_be_had_or_trusted_is_refused() {
    for (address, sum, words) in [
        ("http://example.com/a.deb", Some(SUM), "https://"),
        ("https://example.com/a.deb", None, "--sha256"),
        ("https://example.com/a.deb", Some("12"), "64 hex digits"),
        ("/a.deb", Some(SUM), "on the image"),
        ("https://example.com/$(id).deb", Some(SUM), "characters"),
        ("https://example.com/a'b.deb", Some(SUM), "characters"),
    ] {
        let error = package(address, sum).expect_err(address).to_string();
        assert!(error.contains(words), "{error}");
    }
}

#[test]
fn each_file_holds_its_own_hosts_key_alone_and_a_second_time_is_the_same() {
    let dir = tempfile::tempdir().expect("a directory");
    let (pki, out) = (dir.path().join("pki"), dir.path().join("out"));
    pki::init(&pki, "prod").expect("a CA");
    let args = CloudInitArgs {
        hosts: ["a=10.0.0.1", "b=10.0.0.2", "c=10.0.0.3"].map(host).to_vec(),
        mesh: "prod".to_owned(),
        pki: Some(pki.clone()),
        join_token: None,
        package: "/opt/redmesh-agent.deb".to_owned(),
        sha256: None,
        expect: None,
        config: None,
        out: out.clone(),
    };
    let output = Output::aside();
    run(&args, &output).expect("user data");
    let read = |path: PathBuf| std::fs::read_to_string(path).expect("read");
    // The base64 of a key, as one line of it.
    let secret = |path: PathBuf| read(path).lines().nth(1).expect("a line of a key").to_owned();
    let first: Vec<String> = ["a", "b", "c"].map(|name| read(out.join(format!("{name}.yaml")))).to_vec();
    for (i, name) in ["a", "b", "c"].into_iter().enumerate() {
        let key = secret(pki.join(name).join("key.pem"));
        for (j, text) in first.iter().enumerate() {
            assert_eq!(text.contains(&key), i == j, "the key of {name} in file {j}");
        }
        assert!(!first[i].contains(&secret(pki.join("ca.key"))));
        let redis = read(pki.join("redis.secret"));
        assert!(first[i].contains(&format!(
            "identity/redis.secret\n    permissions: '0600'\n    content: |\n      {redis}"
        )));
        let mode = std::fs::metadata(out.join(format!("{name}.yaml"))).expect("stat").permissions().mode();
        assert_eq!(mode & 0o777, 0o600);
        assert!(first[i].contains("bootstrap_expect = 2"));
    }
    run(&args, &output).expect("user data again");
    assert_eq!(read(out.join("b.yaml")), first[1]);
    let lost = pki.join("c/redis.secret");
    std::fs::remove_file(&lost).expect("lose a secret");
    let error = run(&args, &output).expect_err("no secret").to_string();
    assert!(error.contains("c/redis.secret") && error.contains("redmeshctl pki"), "{error}");
    std::fs::copy(pki.join("redis.secret"), &lost).expect("copy it");
    run(&args, &output).expect("user data again");
    let moved = CloudInitArgs { hosts: vec![host("a=10.0.0.9")], ..args };
    let error = run(&moved, &output).expect_err("another address").to_string();
    assert!(error.contains("--renew"), "{error}");
}

#[test]
fn one_file_is_for_all_hosts_that_join_and_holds_the_token_alone() {
    let common = common(package("/opt/redmesh-agent.deb", None).expect("a package"), "");
    let mesh = redmesh_api::ids::MeshId(uuid::Uuid::from_u128(1));
    let token = JoinToken::generate(mesh, redmesh_api::join::CaPin::of(b"ca")).expect("a token");
    let text = render_join(&common, &token);
    assert!(text.contains(&token.text()) && !text.contains("PRIVATE KEY"), "{text}");
    for words in
        ["listen = \"@ADDRESS@:7379\"", "dir = \"/var/lib/redmesh/identity\"", "ip -o route get 10.0.0.1"]
    {
        assert!(text.contains(words), "{words:?} is not in {text}");
    }
    // The script finds its address by the route, and puts it in.
    let script: String = text
        .split_once("/usr/local/sbin/redmesh-install\n")
        .expect("the script")
        .1
        .lines()
        .filter_map(|line| line.strip_prefix("      "))
        .map(|line| format!("{line}\n"))
        .collect();
    let checked = std::process::Command::new("sh").args(["-n", "-c", &script]).output().expect("run sh");
    assert!(checked.status.success(), "{}", String::from_utf8_lossy(&checked.stderr));
    let found = "echo '10.0.0.1 dev eth0 src 10.0.0.7 uid 0' | sed -n 's/.* src \\([0-9a-f.:]*\\).*/\\1/p'";
    assert!(script.contains(&found[found.find("sed").expect("sed")..]), "{script}");
    let address = std::process::Command::new("sh").args(["-c", found]).output().expect("run sh");
    assert_eq!(String::from_utf8_lossy(&address.stdout), "10.0.0.7\n");
}

#[test]
fn a_signer_goes_along_with_its_host_alone() {
    let with = Certificates { signer: Some(("SIGNER".to_owned(), "SECRET".to_owned())), ..certificates() };
    let common = common(package("/opt/redmesh-agent.deb", None).expect("a package"), "");
    let text = render(&host("a=10.0.0.1"), &common, &with);
    assert!(
        text.contains("identity/signer.key\n    permissions: '0600'\n    content: |\n      SECRET\n"),
        "{text}"
    );
    assert!(!render(&host("a=10.0.0.1"), &common, &certificates()).contains("SECRET"));
}
