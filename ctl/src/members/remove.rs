//! `members remove`: a host is refused for good, and the cluster forgets its servers.

use std::time::{Duration, Instant};

use clap::{Args, ValueEnum};
use redmesh_api::control::{HostProgress, HostRemove, RemovalCheck, Removed};
use redmesh_api::ids::HostId;
use serde::Serialize;

use crate::exit::Exit;
use crate::output::Output;
use crate::progress::Progress;
use crate::session::{Patience, Session};
use crate::units;

/// Between two looks at how far the cluster has forgotten.
const POLL_EVERY: Duration = Duration::from_millis(250);

/// Examples of `members remove`.
pub const EXAMPLES: &str = "\
Examples:
  redmeshctl members remove db-3
  redmeshctl members remove 5f3a09c1                 by its id, where two hosts bear one name
  redmeshctl members remove db-3 --force slots       although the cluster loses what it holds

Every agent then refuses the host: by its id, and by every certificate of its name that was
issued until now. It can't be undone; the host may join again as a new one, with an empty
state directory and a certificate that is issued afterwards.

The other hosts have their redis-servers forget the host's (CLUSTER FORGET), but for those that
hold slots. They do so by themselves; the command waits for it. Where it isn't through within
the deadline the exit code is 1, and the same command waits again.";

/// Arguments of `members remove`.
#[derive(Debug, Args)]
pub struct RemoveArgs {
    /// The host's name, or its id where several bear the name
    #[arg(value_name = "HOST")]
    pub host: String,
    /// Remove it although this speaks against it
    #[arg(long, value_enum, value_name = "CHECK")]
    pub force: Vec<ForcedCheck>,
    /// How long to wait until the cluster has forgotten its servers, in seconds or with a unit
    #[arg(long, default_value = "90s", value_parser = units::parse_duration, value_name = "TIME")]
    pub deadline: Duration,
    /// Return as soon as the host is refused
    #[arg(long)]
    pub no_wait: bool,
}

/// What can be overridden.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub enum ForcedCheck {
    /// Its servers hold slots that no other host covers: the cluster loses them
    Slots,
    /// The mesh knows no host of this name (any more): certificates of it are refused all the same
    Unknown,
}

impl From<ForcedCheck> for RemovalCheck {
    fn from(check: ForcedCheck) -> Self {
        match check {
            ForcedCheck::Slots => Self::Slots,
            ForcedCheck::Unknown => Self::Unknown,
        }
    }
}

/// Asks, prints, and waits.
pub async fn run(args: RemoveArgs, session: &mut Session, output: &Output) -> anyhow::Result<Exit> {
    let RemoveArgs { host, force, deadline, no_wait } = args;
    let until = Instant::now() + deadline;
    let force = force.into_iter().map(RemovalCheck::from).collect();
    let removed = session.host_remove(HostRemove { host, force }).await?;
    output.text(&removed_text(&removed))?;
    let forgetting = match removed.host.id.filter(|_| removed.nodes > 0 && !no_wait) {
        Some(id) => Some(forgotten(id, until, session).await?),
        None => None,
    };
    if let Some(forgetting) = &forgetting {
        output.text(&forgetting.text(&removed))?;
    }
    let mut value = serde_json::to_value(&removed)?;
    value["forgetting"] = serde_json::to_value(&forgetting)?;
    output.answer(&value, String::new)?;
    // What holds slots is left on purpose, and said.
    Ok(Exit::ok_if(forgetting.is_none_or(|it| it.left.is_empty() || it.withheld.is_some())))
}

/// How far the cluster has forgotten a removed host's servers.
#[derive(Debug, Default, PartialEq, Eq, Serialize)]
struct Forgotten {
    /// Hosts whose servers have.
    hosts: usize,
    /// Hosts of the plan that are not removed.
    of: usize,
    /// The others, each with what is known of it.
    left: Vec<String>,
    /// Why it is left undone for now, and the remedy.
    withheld: Option<String>,
}

impl Forgotten {
    fn of(id: HostId, hosts: &[HostProgress]) -> Self {
        let staying: Vec<_> = hosts.iter().filter(|host| !host.removed && host.planned > 0).collect();
        let left: Vec<_> =
            staying.iter().filter(|host| !host.alive || !host.forgotten.contains(&id)).collect();
        let words = |host: &&&HostProgress| match (host.alive, host.problems.first()) {
            (false, _) => format!("{}: not heard of; its servers forget when its agent is back", host.name),
            (true, Some(problem)) => format!("{}: {problem}", host.name),
            (true, None) => format!("{}: still at it", host.name),
        };
        Self {
            hosts: staying.len() - left.len(),
            of: staying.len(),
            left: left.iter().map(words).collect(),
            withheld: left.iter().find_map(|host| host.withheld.clone()),
        }
    }

    fn text(&self, removed: &Removed) -> String {
        let mut text = match self.left.is_empty() {
            true => {
                format!("its {} nodes are forgotten by the servers of all {} hosts\n", removed.nodes, self.of)
            }
            false => format!(
                "its {} nodes are forgotten by the servers of {} of {} hosts; the agents go on with it\n",
                removed.nodes, self.hosts, self.of
            ),
        };
        match &self.withheld {
            Some(words) => text.push_str(&format!("{words}\n")),
            None => self.left.iter().for_each(|line| text.push_str(&format!("  {line}\n"))),
        }
        text
    }
}

/// Looks until all have forgotten the host `id`, until one withholds it, or until the time.
async fn forgotten(id: HostId, until: Instant, session: &mut Session) -> anyhow::Result<Forgotten> {
    let mut progress = Progress::new("forgetting");
    let mut patience = Patience::default();
    let mut last = None;
    loop {
        if let Some(status) = patience.bear(session.cluster_status().await)? {
            let now = Forgotten::of(id, &status.hosts);
            let text = format!("{} of {} hosts", now.hosts, now.of);
            progress.update(now.hosts as u64, now.of as u64, &text);
            // What is withheld is said once every host that is there has seen the removal.
            let seen = status.hosts.iter().filter(|host| host.alive && !host.removed && host.planned > 0);
            let all_say =
                seen.into_iter().all(|host| host.withheld.is_some() || host.forgotten.contains(&id));
            if now.left.is_empty() || (all_say && now.withheld.is_some()) {
                return Ok(now);
            }
            last = Some(now);
        }
        if Instant::now() >= until {
            return Ok(last.unwrap_or_default());
        }
        tokio::time::sleep(POLL_EVERY).await;
    }
}

fn removed_text(removed: &Removed) -> String {
    let host = &removed.host;
    let id = host.id.map(|id| format!(" ({id})")).unwrap_or_default();
    let name = &host.name;
    let mut text = match removed.fresh {
        true => format!("removed {name}{id}: every agent refuses it from now on\n"),
        false => format!("{name}{id} was removed before\n"),
    };
    if host.id.is_some() && !host.certificates {
        text.push_str(&format!(
            "the certificates of {name} stay good, because another host bears the name: if a key was lost, issue that \
             host another one, under another name\n"
        ));
    }
    for note in &removed.notes {
        text.push_str(&format!("{note}\n"));
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_removal_says_what_is_refused_and_what_is_left_to_do() {
        let host = |certificates| redmesh_api::level::RemovedHost {
            id: Some(HostId(3)),
            name: "db-3".to_owned(),
            certificates,
            at_unix_ms: 1,
        };
        let said = |certificates, fresh| {
            let notes = vec!["forget".to_owned()];
            removed_text(&Removed { host: host(certificates), fresh, nodes: 2, notes })
        };
        assert_eq!(said(true, true), "removed db-3 (00000003): every agent refuses it from now on\nforget\n");
        assert!(said(true, false).starts_with("db-3 (00000003) was removed before\n"));
        assert!(said(false, true).contains("the certificates of db-3 stay good"));
    }

    #[test]
    fn who_has_not_forgotten_a_host_is_named_with_the_reason() {
        let gone = HostId(3);
        let host = |name: &str, alive, forgotten: bool| HostProgress {
            id: HostId(1),
            name: name.to_owned(),
            alive,
            stage: None,
            planned: 2,
            held: 0,
            up: 2,
            agreed: 2,
            problems: Vec::new(),
            removed: false,
            forgotten: forgotten.then_some(gone).into_iter().collect(),
            withheld: None,
        };
        let removed = HostProgress { removed: true, ..host("db-3", false, false) };
        let bare = HostProgress { planned: 0, ..host("db-9", true, false) };
        let done = Forgotten::of(gone, &[host("db-1", true, true), removed.clone(), bare]);
        assert_eq!(done, Forgotten { hosts: 1, of: 1, ..Forgotten::default() });
        let mut slow = host("db-2", true, false);
        let silent = host("db-4", false, true);
        let some = Forgotten::of(gone, &[host("db-1", true, true), slow.clone(), silent, removed]);
        assert_eq!((some.hosts, some.of, some.left.len()), (1, 3, 2));
        let host = redmesh_api::level::RemovedHost {
            id: Some(gone),
            name: "db-3".to_owned(),
            certificates: true,
            at_unix_ms: 1,
        };
        let reply = Removed { host, fresh: true, nodes: 2, notes: Vec::new() };
        let text = some.text(&reply);
        assert!(text.contains("1 of 3 hosts") && text.contains("db-4: not heard of"), "{text}");
        assert!(done.text(&reply).contains("forgotten by the servers of all 1 hosts"));
        slow.withheld = Some("node x holds 5 slots".to_owned());
        let text = Forgotten::of(gone, &[slow]).text(&reply);
        assert!(text.contains("holds 5 slots") && !text.contains("still at it"), "{text}");
    }
}
