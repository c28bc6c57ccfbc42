//! What must hold of a formed cluster, whoever has formed it.

use std::collections::BTreeMap;
use std::net::SocketAddr;
use std::process::Command;
use std::time::{Duration, Instant, SystemTime};

use anyhow::{Context as _, ensure};
use redmesh_agent::load::workload::slot_of;
use redmesh_benches::ask::ask;
use redmesh_benches::children::Children;
use rustix::process::{Pid, Signal, kill_process};

use super::cluster::Setting;
use super::watch::{Limits, all_agree, pid_of};

/// How long a server may take over one command.
const ANSWER_MAX: Duration = Duration::from_secs(20);

/// `redis-cli --cluster check`, tried so often: nodes that restart at that moment make it fail.
const CHECK_TRIES: u32 = 5;

/// Pause between two tries.
const CHECK_PAUSE: Duration = Duration::from_secs(1);

/// Between two looks at whether a killed server is there again.
const BACK_EVERY: Duration = Duration::from_millis(20);

/// The outside verdict, and a write and a read by way of every primary.
pub fn check(setting: &Setting, limits: &Limits, children: &Children) -> anyhow::Result<()> {
    let addresses = setting.addresses();
    for tries_left in (0..CHECK_TRIES).rev() {
        let mut check = Command::new(&setting.cli);
        check.args(["--cluster", "check", &addresses[0].to_string()]);
        let left = limits.until.saturating_duration_since(Instant::now());
        match children.run_within(&mut check, left) {
            Ok(Some(_)) => break,
            Ok(None) => anyhow::bail!("redis-cli --cluster check: not within the deadline"),
            Err(error) if tries_left == 0 => return Err(error.context("redis-cli --cluster check disagrees")),
            Err(_) => {
                limits.check()?;
                std::thread::sleep(CHECK_PAUSE);
            }
        }
    }
    write_and_read(&addresses)
}

/// One key on each primary: no redirection, and the value comes back.
fn write_and_read(addresses: &[SocketAddr]) -> anyhow::Result<()> {
    let nodes = ask(addresses[0], "CLUSTER NODES", ANSWER_MAX)?;
    let slots = first_slots(&nodes);
    let wanted = slots.values().copied().collect::<std::collections::BTreeSet<u16>>();
    let mut keys: BTreeMap<u16, String> = BTreeMap::new();
    let mut tried = 0u64;
    while keys.len() < wanted.len() {
        let key = format!("bench:{tried}");
        let slot = slot_of(key.as_bytes());
        if wanted.contains(&slot) {
            keys.entry(slot).or_insert(key);
        }
        tried += 1;
    }
    for addr in addresses {
        let slot = slots.get(addr).with_context(|| format!("{addr} bears no slot"))?;
        let key = &keys[slot];
        let value = format!("value-of-{key}");
        let set = ask(*addr, &format!("SET {key} {value}"), ANSWER_MAX)?;
        ensure!(set.trim() == "+OK", "{addr}: SET {key}: {}", set.trim());
        let got = ask(*addr, &format!("GET {key}"), ANSWER_MAX)?;
        ensure!(got == value, "{addr}: GET {key}: {got:?} and not {value:?}");
    }
    Ok(())
}

/// Of each primary in `CLUSTER NODES`, its first slot.
fn first_slots(nodes: &str) -> BTreeMap<SocketAddr, u16> {
    let line = |line: &str| {
        let mut words = line.split_whitespace();
        let addr = words.nth(1)?.split('@').next()?.parse().ok()?;
        let slot = words.nth(6)?.split('-').next()?.parse().ok()?;
        Some((addr, slot))
    };
    nodes.lines().filter_map(line).collect()
}

/// Kills the last server; `restart` is what makes it come back (an agent needs none).
/// Seconds until it is another process and every instance agrees again.
pub fn kill_and_rejoin(
    setting: &Setting,
    limits: &Limits,
    restart: impl FnOnce() -> anyhow::Result<()>,
) -> anyhow::Result<f64> {
    let addresses = setting.addresses();
    let victim = *addresses.last().context("no instances")?;
    let pid = pid_of(victim)?;
    let began = SystemTime::now();
    kill_process(Pid::from_raw(pid).context("process id 0")?, Signal::KILL).context("can't kill a server")?;
    restart()?;
    while pid_of(victim).map_or(true, |now| now == pid) {
        limits.check().with_context(|| format!("{victim} was killed and has not come back"))?;
        std::thread::sleep(BACK_EVERY);
    }
    let agreed = all_agree(&addresses, limits).context("after a server was killed")?;
    Ok(agreed.duration_since(began).context("the clock was set back")?.as_secs_f64())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_primary_is_known_by_its_first_slot() {
        let nodes = "id1 127.0.0.1:6379@16379 myself,master - 0 0 1 connected 0-81 90\n\
                     id2 127.0.0.2:6380@16380,,shard-id=ab master - 0 1 2 connected 82\n\
                     id3 127.0.0.3:6379@16379 slave id1 0 1 1 connected\n";
        let slots = first_slots(nodes);
        let of = |addr: &str| slots.get(&addr.parse().unwrap()).copied();
        assert_eq!(
            (of("127.0.0.1:6379"), of("127.0.0.2:6380"), of("127.0.0.3:6379")),
            (Some(0), Some(82), None)
        );
    }
}
