//! `members`: the hosts of the mesh as one agent sees them; `members remove` has one refused
//! for good.

use std::collections::{BTreeMap, BTreeSet};
use std::time::{Duration, Instant};

use clap::{Args, Subcommand, ValueEnum};
use comfy_table::{Table, presets};
use redmesh_api::control::{HostProgress, HostRemove, Member, MemberState, Members, RemovalCheck};
use redmesh_api::ids::HostId;
use serde::Serialize;

use crate::exit::Exit;
use crate::output::Output;
use crate::progress::Progress;
use crate::session::{Patience, RemovedReply, Session};
use crate::units;

/// Between two looks at how far the cluster has forgotten.
const POLL_EVERY: Duration = Duration::from_millis(250);

/// Examples of `members`.
pub const EXAMPLES: &str = "\
Examples:
  redmeshctl members
  redmeshctl --agent 10.0.0.7 members -o json
  redmeshctl members remove db-3";

const REMOVE_EXAMPLES: &str = "\
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

/// `redmeshctl members …`
#[derive(Debug, Args)]
pub struct MembersArgs {
    /// What to do; shows the hosts without it.
    #[command(subcommand)]
    pub command: Option<MembersCommand>,
}

/// What can be done with a host.
#[derive(Debug, Subcommand)]
pub enum MembersCommand {
    /// Refuse a host and its certificates from now on
    #[command(after_help = REMOVE_EXAMPLES)]
    Remove(RemoveArgs),
}

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

/// Asks and prints.
pub async fn run(args: MembersArgs, session: &mut Session, output: &Output) -> anyhow::Result<Exit> {
    if let Some(MembersCommand::Remove(args)) = args.command {
        return remove(args, session, output).await;
    }
    let members = session.members().await?;
    output.answer(&members, || render(&members))?;
    Ok(Exit::Ok)
}

async fn remove(args: RemoveArgs, session: &mut Session, output: &Output) -> anyhow::Result<Exit> {
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

    fn text(&self, removed: &RemovedReply) -> String {
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

/// The host's name as people know it, or its id where the mesh doesn't know it (any more).
pub fn name_of(members: &[Member], host: HostId) -> String {
    match members.iter().find(|member| member.id == host) {
        Some(member) => member.name.clone(),
        None => host.to_string(),
    }
}

/// A table as all commands print it: no borders, so that `awk` and eyes find columns.
pub fn table(header: &[&str]) -> Table {
    let mut table = Table::new();
    table.load_style(presets::NOTHING).set_header(header);
    table
}

/// A table's text without trailing blanks, each line ended.
pub fn table_text(table: &Table) -> String {
    table.lines().map(|line| format!("{}\n", line.trim().to_owned())).collect()
}

fn render(view: &Members) -> String {
    let mut table = table(&["HOST", "ID", "ADDRESS", "STATE", "ROLE", "INSTANCES", "VERSION"]);
    for member in &view.members {
        table.add_row([
            member.name.clone(),
            member.id.to_string(),
            member.addr.to_string(),
            state(member).to_owned(),
            role(member).to_owned(),
            format!("{}/{}", member.instances_up, member.instances_planned),
            member.version.clone(),
        ]);
    }
    let mut text = table_text(&table);
    let alive = view.members.iter().filter(|member| member.state == MemberState::Alive).count();
    text.push_str(&format!("mesh {:?}: {alive} of {} hosts alive", view.mesh_name, view.members.len()));
    match view.coordinator {
        Some(host) => text.push_str(&format!(", coordinator {}", name_of(&view.members, host))),
        None => text.push_str(", no coordinator"),
    }
    text.push('\n');
    if let Some(waiting) = &view.waiting_for {
        text.push_str(&format!("waiting for {waiting}\n"));
    }
    secrets_text(&view.members).iter().for_each(|line| text.push_str(&format!("{line}\n")));
    for member in &view.members {
        if let Some(problem) = &member.problem {
            text.push_str(&format!("{}: {problem}\n", member.name));
        }
    }
    text
}

/// How far another secret of the redis-servers' passwords has taken the former one's place;
/// nothing where none does.
fn secrets_text(members: &[Member]) -> Vec<String> {
    let said: Vec<_> =
        members.iter().filter_map(|member| Some((member.name.as_str(), member.secrets.as_ref()?))).collect();
    let mut groups: BTreeMap<String, Vec<&str>> = BTreeMap::new();
    for (name, state) in &said {
        let words = match &state.accepts[..] {
            [newest, former] if state.replicates.as_ref() == Some(newest) => {
                format!("{newest} in use, {former} accepted")
            }
            [newest, former] => format!("{newest} and {former} accepted"),
            all => all.join(", "),
        };
        groups.entry(words).or_default().push(name);
    }
    if groups.len() <= 1 && said.iter().all(|(_, state)| state.accepts.len() == 1) {
        return Vec::new();
    }
    let mut lines = vec!["another redis.secret is being taken up:".to_owned()];
    lines.extend(groups.iter().map(|(words, names)| format!("  {words}: {}", names.join(", "))));
    let newest: BTreeSet<_> = said.iter().map(|(_, state)| state.accepts.first()).collect();
    let through = said.iter().all(|(_, state)| state.replicates.as_ref() == state.accepts.first());
    if newest.len() == 1 && through && said.len() == members.len() {
        lines.push(
            "  all hosts use the new one: when clients do too, `redmeshctl pki redis-secret --finish`, and copy the file"
                .to_owned(),
        );
    }
    lines
}

fn removed_text(removed: &RemovedReply) -> String {
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

fn state(member: &Member) -> &'static str {
    match member.state {
        MemberState::Alive => "alive",
        MemberState::Dead => "dead",
    }
}

fn role(member: &Member) -> &'static str {
    match (member.coordinator, member.voter) {
        (true, _) => "coordinator",
        (false, true) => "voter",
        (false, false) => "-",
    }
}

#[cfg(test)]
mod tests {
    use redmesh_api::control::SecretState;
    use redmesh_api::level::Stamp;

    use super::*;

    #[test]
    fn members_are_a_table_and_a_summary() {
        let member = |id, name: &str| Member {
            id: HostId(id),
            name: name.to_owned(),
            addr: "127.0.0.1:7379".parse().unwrap(),
            state: MemberState::Alive,
            voter: true,
            coordinator: id == 1,
            instances_up: 2,
            instances_planned: 3,
            version: "0.1.0".to_owned(),
            http_addr: None,
            problem: None,
            secrets: None,
        };
        let mut second = member(2, "host-2");
        second.state = MemberState::Dead;
        second.voter = false;
        second.problem = Some("port 6379 is taken".to_owned());
        let view = Members {
            mesh_name: "demo".to_owned(),
            mesh: None,
            answered_by: HostId(1),
            coordinator: Some(HostId(1)),
            bootstrap_expect: 2,
            waiting_for: None,
            stamp: Stamp::default(),
            members: vec![member(1, "host-1"), second],
        };
        let text = render(&view);
        let lines: Vec<Vec<&str>> = text.lines().map(|line| line.split_whitespace().collect()).collect();
        assert_eq!(lines[0], ["HOST", "ID", "ADDRESS", "STATE", "ROLE", "INSTANCES", "VERSION"]);
        assert_eq!(
            lines[1],
            ["host-1", "00000001", "127.0.0.1:7379", "alive", "coordinator", "2/3", "0.1.0"]
        );
        assert_eq!(lines[2], ["host-2", "00000002", "127.0.0.1:7379", "dead", "-", "2/3", "0.1.0"]);
        assert!(text.ends_with(
            "mesh \"demo\": 1 of 2 hosts alive, coordinator host-1\nhost-2: port 6379 is taken\n"
        ));
    }

    #[test]
    fn how_far_another_secret_is_taken_up_is_said_while_it_is() {
        let member = |name: &str, accepts: &[&str], replicates: Option<&str>| Member {
            id: HostId(1),
            name: name.to_owned(),
            addr: "127.0.0.1:7379".parse().unwrap(),
            state: MemberState::Alive,
            voter: true,
            coordinator: false,
            instances_up: 2,
            instances_planned: 2,
            version: "0.1.0".to_owned(),
            http_addr: None,
            problem: None,
            secrets: Some(SecretState {
                accepts: accepts.iter().map(ToString::to_string).collect(),
                replicates: replicates.map(ToOwned::to_owned),
            }),
        };
        let one = |name| member(name, &["aa"], Some("aa"));
        assert_eq!(secrets_text(&[one("a"), one("b")]), Vec::<String>::new());
        let text = secrets_text(&[one("a"), member("b", &["bb", "aa"], None)]).join("\n");
        assert!(text.contains("  aa: a\n") && text.contains("bb and aa accepted: b"), "{text}");
        assert!(!text.contains("--finish"), "{text}");
        let through = |name| member(name, &["bb", "aa"], Some("bb"));
        let text = secrets_text(&[through("a"), through("b")]).join("\n");
        assert!(text.contains("bb in use, aa accepted: a, b") && text.contains("--finish"), "{text}");
        let silent = Member { secrets: None, ..one("c") };
        let text = secrets_text(&[through("a"), silent]).join("\n");
        assert!(!text.contains("--finish"), "one has not said: {text}");
        let last = secrets_text(&[through("a"), member("b", &["bb"], Some("bb"))]).join("\n");
        assert!(last.contains("  bb: b"), "{last}");
    }

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
            removed_text(&RemovedReply { host: host(certificates), fresh, nodes: 2, notes })
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
        let reply = RemovedReply { host, fresh: true, nodes: 2, notes: Vec::new() };
        let text = some.text(&reply);
        assert!(text.contains("1 of 3 hosts") && text.contains("db-4: not heard of"), "{text}");
        assert!(done.text(&reply).contains("forgotten by the servers of all 1 hosts"));
        slow.withheld = Some("node x holds 5 slots".to_owned());
        let text = Forgotten::of(gone, &[slow]).text(&reply);
        assert!(text.contains("holds 5 slots") && !text.contains("still at it"), "{text}");
    }
}
