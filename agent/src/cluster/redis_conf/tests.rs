use proptest::prelude::*;

use super::*;
use redmesh_api::secret::RedisSecrets;

fn conf(directives: &[(&str, &[&str])]) -> RedisConf {
    let own = |values: &[&str]| values.iter().map(|v| (*v).to_owned()).collect();
    RedisConf {
        addr: "10.0.0.1:6379".parse().unwrap(),
        node_timeout_ms: 15_000,
        hz: 10,
        forming: false,
        clients_needed: clients_needed(1000),
        dir: "/var/lib/redmesh/6379".into(),
        somaxconn: Some(4096),
        directives: directives.iter().map(|(name, values)| ((*name).to_owned(), own(values))).collect(),
        access: None,
        tls: None,
    }
}

fn render(directives: &[(&str, &[&str])]) -> String {
    conf(directives).render().unwrap()
}

fn refusal(directives: &[(&str, &[&str])]) -> String {
    conf(directives).render().unwrap_err().to_string()
}

#[test]
fn a_cluster_that_is_being_formed_has_time_until_it_is() {
    let line = |conf: &RedisConf, line: &str| conf.render().unwrap().lines().any(|l| l == line);
    let forming = RedisConf { forming: true, ..conf(&[]) };
    assert!(line(&forming, &format!("cluster-node-timeout {FORMING_NODE_TIMEOUT_MS}")));
    assert_eq!(forming.settings_once_formed(), [("cluster-node-timeout", "15000".to_owned())]);
    assert!(line(&conf(&[]), "cluster-node-timeout 15000"), "at a later start");
}

#[test]
fn the_users_ticks_win_over_the_plans() {
    let lines = |directives: &[(&str, &[&str])]| {
        let text = RedisConf { hz: 2, ..conf(directives) }.render().unwrap();
        text.lines().filter(|line| line.starts_with("hz ")).map(str::to_owned).collect::<Vec<_>>()
    };
    assert_eq!(lines(&[]), ["hz 2"]);
    assert_eq!(lines(&[("HZ", &["20"])]), ["hz 20"]);
}

#[test]
fn defaults() {
    let expected = "\
# Written by redmesh-agent before each start; edits are lost.
port 6379
bind 10.0.0.1
cluster-announce-ip 10.0.0.1
cluster-enabled yes
cluster-config-file nodes.conf
cluster-node-timeout 15000
daemonize no
supervised no
dir /var/lib/redmesh/6379
logfile redis.log
appendonly no
save \"\"
protected-mode no
repl-diskless-sync-delay 0
tcp-backlog 4096
maxclients 6094
hz 10
";
    assert_eq!(render(&[]), expected);
}

#[test]
fn with_tls_there_is_no_plain_port() {
    let mut conf = conf(&[]);
    conf.tls = Some("/etc/redmesh/identity".into());
    let expected = "\
port 0
tls-port 6379
tls-cluster yes
tls-replication yes
tls-cert-file /etc/redmesh/identity/cert.pem
tls-key-file /etc/redmesh/identity/key.pem
tls-ca-cert-file /etc/redmesh/identity/ca.pem
tls-auth-clients optional
bind 10.0.0.1
";
    let text = conf.render().unwrap();
    assert!(text.contains(expected), "{text}");
    assert_eq!(
        conf.setting_to_read_certificates(),
        Some(("tls-cert-file", "/etc/redmesh/identity/cert.pem".to_owned()))
    );
    conf.directives = vec![("TLS-Auth-Clients".to_owned(), vec!["yes".to_owned()])];
    let text = conf.render().unwrap();
    assert!(text.contains("tls-auth-clients yes\n") && !text.contains("optional"), "{text}");
    conf.tls = Some("/etc/a\nb".into());
    assert!(conf.render().unwrap_err().to_string().contains("set identity.dir to one that is"));
    for name in ["tls-port", "tls-cluster", "tls-cert-file", "TLS-CA-Cert-File"] {
        assert!(refusal(&[(name, &["x"])]).contains("redis.tls = \"on\""), "{name}");
    }
}

#[test]
fn users_directives_replace_defaults() {
    let text = render(&[("Save", &["900 1", "300 10"]), ("maxmemory", &["8gb"]), ("appendonly", &["yes"])]);
    assert!(text.ends_with("save 900 1\nsave 300 10\nmaxmemory 8gb\nappendonly yes\n"), "{text}");
    assert!(!text.contains("save \"\"") && !text.contains("appendonly no"), "{text}");
    assert!(render(&[("save", &[""])]).contains("save \"\"\n"));
}

#[test]
fn values_are_quoted_as_redis_reads_them() {
    let text = render(&[
        ("proc-title-template", &["\"{title} \\\"x\\\" #1\""]),
        ("user", &["a on '>p w' ~* +@all"]),
    ]);
    assert!(text.contains("proc-title-template \"{title} \\\"x\\\" #1\"\n"), "{text}");
    assert!(text.contains("user a on \">p w\" ~* +@all\n"), "{text}");
}

#[test]
fn a_password_is_given_to_replicas_too() {
    let text = render(&[("requirepass", &["\"top secret\""])]);
    assert!(text.contains("requirepass \"top secret\"\nmasterauth \"top secret\"\n"), "{text}");
    let own =
        [("requirepass".to_owned(), vec!["a".to_owned()]), ("masterauth".to_owned(), vec!["b".to_owned()])];
    assert_eq!(password(&own).as_deref(), Some("a"));
    assert_eq!(render(&[("requirepass", &["a"]), ("masterauth", &["b"])]).matches("masterauth").count(), 1);
    assert_eq!(password(&[]), None);
}

#[test]
fn with_a_secret_agents_and_replicas_have_a_user_and_clients_a_password() {
    let secret = RedisSecret::generate().unwrap();
    let (agent, client) = (secret.agent_password(), secret.client_password());
    let rule = secret.agent_password_rule();
    let with = |directives: &[(&str, &[&str])]| {
        let mut conf = conf(directives);
        conf.access = Some(RedisSecrets::from(secret.clone()).into());
        assert!(!format!("{conf:?}").contains(&client));
        conf.render().map_err(|error| error.to_string())
    };
    let text = with(&[]).unwrap();
    let expected = format!(
        "user redmesh on \"{rule}\" ~* &* +@all\nrequirepass {client}\nmasteruser redmesh\nmasterauth {agent}\n"
    );
    assert!(text.ends_with(&expected), "{text}");
    // What the user says wins; the agents keep their own way in.
    let text = with(&[("RequirePass", &["mine"])]).unwrap();
    assert!(text.contains("requirepass mine\n") && !text.contains(&client), "{text}");
    assert!(text.contains("user redmesh on") && text.contains(&format!("masterauth {agent}\n")), "{text}");
    let text = with(&[("masterauth", &["other"])]).unwrap();
    assert_eq!(text.matches("masterauth").count(), 1);
    assert!(!text.contains("masteruser"));
    for (name, value) in [("aclfile", "/x"), ("user", "redmesh on nopass"), ("user", "\"redmesh\" off")] {
        let words = with(&[(name, &[value])]).unwrap_err();
        assert!(words.contains(name) && words.contains("redis.auth"), "{words}");
    }
    let text = with(&[("user", &["default off", "alice on >p ~* +@read"])]).unwrap();
    assert!(
        !text.contains("requirepass"),
        "whoever writes the default user's rules gives its password: {text}"
    );
}

#[test]
fn while_one_secret_takes_anothers_place_both_are_let_in_and_replicas_use_the_former() {
    let (old, new) = (RedisSecret::generate().unwrap(), RedisSecret::generate().unwrap());
    let mut conf = conf(&[]);
    conf.access = Some(RedisSecrets::with(new.clone(), Some(old.clone())).into());
    let text = conf.render().unwrap();
    let user = |name: &str, rule: fn(&RedisSecret) -> String| {
        format!("user {name} on \"{}\" \"{}\" ~* &* +@all\n", rule(&new), rule(&old))
    };
    assert!(text.contains(&user("redmesh", RedisSecret::agent_password_rule)), "{text}");
    assert!(text.contains(&user("default", RedisSecret::client_password_rule)), "{text}");
    assert!(!text.contains("requirepass"), "{text}");
    assert!(text.contains(&format!("masterauth {}\n", old.agent_password())), "{text}");
    conf.directives = vec![("requirepass".to_owned(), vec!["mine".to_owned()])];
    assert!(!conf.render().unwrap().contains("user default"));
}

#[test]
fn owned_directives_are_refused_by_name() {
    for (name, _) in OWNED {
        let words = refusal(&[(&name.to_uppercase(), &["1"])]);
        assert!(words.contains(&name.to_uppercase()), "{words}");
    }
    assert!(refusal(&[("bind-source-addr", &["10.0.0.1"])]).contains("ephemeral ports"));
}

#[test]
fn nothing_can_be_smuggled_in() {
    assert!(refusal(&[("maxmemory", &["1gb\nport 1"])]).contains("line break"));
    assert!(refusal(&[("max memory", &["1"])]).contains("not a directive's name"));
    assert!(refusal(&[("", &["1"])]).contains("not a directive's name"));
    assert!(refusal(&[("maxmemory", &["\"1gb"])]).contains("unbalanced"));
    assert!(refusal(&[("maxmemory", &["a\"b"])]).contains("unbalanced"));
    assert!(refusal(&[("hz", &["1"]), ("HZ", &["2"])]).contains("twice"));
    let long = "x".repeat(VALUE_BYTES_MAX + 1);
    assert!(refusal(&[("maxmemory", &[&long])]).contains("4096"));
    let mut conf = conf(&[]);
    conf.dir = "/a\nport 1".into();
    assert!(conf.render().is_err());
}

#[test]
fn a_backlog_beyond_the_kernels_is_cut_and_said() {
    let mut conf = conf(&[]);
    conf.somaxconn = Some(128);
    let text = conf.render().unwrap();
    assert!(text.contains("tcp-backlog 128\n") && text.contains("# tcp-backlog is cut"), "{text}");
    conf.somaxconn = None;
    assert!(conf.render().unwrap().contains("tcp-backlog 4096\n"));
}

#[test]
fn clients_needed_counts_two_links_a_peer() {
    assert_eq!(clients_needed(1), CLIENTS_BESIDES_BUS);
    assert_eq!(clients_needed(1000), 2 * 999 + CLIENTS_BESIDES_BUS);
    assert_eq!(clients_needed(usize::MAX), u32::MAX);
}

proptest! {
    #[test]
    fn a_value_stays_on_its_line_and_keeps_its_words(value in "\\PC{0,40}") {
        if let Ok(words) = split_words("x", &value) {
            let mut line = String::new();
            push_line(&mut line, "x", &words);
            prop_assert_eq!(line.lines().count(), 1);
            let again = split_words("x", line.trim_end_matches('\n').strip_prefix("x ").unwrap()).unwrap();
            prop_assert_eq!(again, words);
        }
    }
}
