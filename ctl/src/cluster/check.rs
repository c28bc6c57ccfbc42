//! `cluster check`: every instance's view, in redis-cli's words.

use redmesh_api::control::{ClusterCheck, InstanceView};
use redmesh_api::level::SLOTS;

use crate::exit::Exit;
use crate::output::Output;
use crate::session::Session;
use crate::units::thousands;

/// Errors and warnings that are printed, each.
const SHOWN_MAX: usize = 20;

/// The command.
pub async fn run(session: &mut Session, output: &Output) -> anyhow::Result<Exit> {
    let check = session.cluster_check().await?;
    output.answer(&check, || render(&check))?;
    Ok(Exit::ok_if(is_whole(&check)))
}

/// Whether nothing is wrong.
pub fn is_whole(check: &ClusterCheck) -> bool {
    check.errors.is_empty()
        && check.agreed
        && check.open_slots.is_empty()
        && check.slots_covered == SLOTS
        && !check.instances.is_empty()
}

fn render(check: &ClusterCheck) -> String {
    if check.instances.is_empty() {
        return "[ERR] There is no cluster: `redmeshctl cluster create` forms one.\n".to_owned();
    }
    format!("{}{}", render_keys(check), render_verdict(check, check.instances.len()))
}

/// The sum of keys, as `redis-cli --cluster info` ends.
pub fn render_keys(check: &ClusterCheck) -> String {
    let primaries = || check.instances.iter().filter(|instance| instance.up && instance.primary);
    let keys: u64 = primaries().map(|instance| instance.keys).sum();
    format!(
        "[OK] {} keys in {} primaries.\n{:.2} keys per slot on average.\n",
        thousands(keys),
        primaries().count(),
        keys as f64 / f64::from(SLOTS)
    )
}

/// What `redis-cli --cluster check` says at its end.
pub fn render_verdict(check: &ClusterCheck, nodes: usize) -> String {
    let mut text = match check.instances.iter().find(|instance| instance.up) {
        Some(InstanceView { addr, .. }) => {
            format!(">>> Performing Cluster Check ({nodes} nodes, {addr} among them)\n")
        }
        None => format!(">>> Performing Cluster Check ({nodes} nodes, none answers)\n"),
    };
    text.push_str(match check.agreed {
        true => "[OK] All nodes agree about slots configuration.\n",
        false => "[ERR] Nodes don't agree about configuration!\n",
    });
    text.push_str(">>> Check for open slots...\n");
    if !check.open_slots.is_empty() {
        let open: Vec<String> = check.open_slots.iter().take(SHOWN_MAX).map(ToString::to_string).collect();
        let more = if check.open_slots.len() > SHOWN_MAX { ",..." } else { "" };
        text.push_str(&format!("[WARNING] The following slots are open: {}{more}.\n", open.join(",")));
    }
    text.push_str(">>> Check slots coverage...\n");
    text.push_str(&match check.slots_covered {
        SLOTS => format!("[OK] All {SLOTS} slots covered.\n"),
        covered => format!("[ERR] Not all {SLOTS} slots are covered by nodes: {covered} are.\n"),
    });
    push_bounded(&mut text, "[ERR]", &check.errors);
    push_bounded(&mut text, "[WARNING]", &check.warnings);
    text
}

fn push_bounded(text: &mut String, tag: &str, lines: &[String]) {
    for line in lines.iter().take(SHOWN_MAX) {
        text.push_str(&format!("{tag} {line}\n"));
    }
    if lines.len() > SHOWN_MAX {
        text.push_str(&format!("{tag} and {} more\n", lines.len() - SHOWN_MAX));
    }
}

#[cfg(test)]
pub mod tests {
    use redmesh_api::ids::{HostId, NodeId};

    use super::*;

    pub fn whole() -> ClusterCheck {
        let instance = |port, keys| InstanceView {
            host: HostId(1),
            addr: ([127, 0, 0, 1], port).into(),
            node_id: NodeId([1; 20]),
            up: true,
            primary: true,
            primary_id: None,
            slots: Vec::new(),
            keys,
            state_ok: true,
            known_nodes: 2,
            slots_assigned: SLOTS,
            view_digest: 1,
            open_slots: Vec::new(),
            problem: None,
        };
        ClusterCheck {
            instances: vec![instance(6379, 1000), instance(6380, 638)],
            slots_covered: SLOTS,
            agreed: true,
            open_slots: Vec::new(),
            errors: Vec::new(),
            warnings: Vec::new(),
        }
    }

    #[test]
    fn a_whole_cluster_reads_as_redis_cli_says_it() {
        let check = whole();
        assert!(is_whole(&check));
        assert_eq!(
            render(&check),
            "\
[OK] 1,638 keys in 2 primaries.
0.10 keys per slot on average.
>>> Performing Cluster Check (2 nodes, 127.0.0.1:6379 among them)
[OK] All nodes agree about slots configuration.
>>> Check for open slots...
>>> Check slots coverage...
[OK] All 16384 slots covered.
"
        );
    }

    #[test]
    fn a_broken_cluster_says_what_is_broken() {
        let mut check = whole();
        check.agreed = false;
        check.slots_covered = 16_000;
        check.open_slots = vec![7, 9];
        check.errors = vec!["127.0.0.1:6380 is down".to_owned()];
        assert!(!is_whole(&check));
        let text = render(&check);
        for line in [
            "[ERR] Nodes don't agree about configuration!",
            "[WARNING] The following slots are open: 7,9.",
            "[ERR] Not all 16384 slots are covered by nodes: 16000 are.",
            "[ERR] 127.0.0.1:6380 is down",
        ] {
            assert!(text.lines().any(|l| l == line), "{line} in {text}");
        }
    }

    #[test]
    fn no_cluster_is_not_whole() {
        let check = ClusterCheck { instances: Vec::new(), ..whole() };
        assert!(!is_whole(&check));
        assert!(render(&check).contains("cluster create"));
    }
}
