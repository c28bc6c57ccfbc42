//! `members`: the hosts of the mesh as one agent sees them, and what can be done with one.

mod remove;
mod replace;

use std::collections::{BTreeMap, BTreeSet};

use clap::{Args, Subcommand};
use comfy_table::{Table, presets};
use redmesh_api::control::{Member, MemberState, Members};
use redmesh_api::ids::HostId;

use crate::exit::Exit;
use crate::output::Output;
use crate::session::Session;

/// Examples of `members`.
pub const EXAMPLES: &str = "\
Examples:
  redmeshctl members
  redmeshctl --agent 10.0.0.7 members -o json
  redmeshctl members remove db-3
  redmeshctl members replace db-2";

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
    #[command(after_help = remove::EXAMPLES)]
    Remove(remove::RemoveArgs),
    /// Give the instances of a host that is gone to the one that took its place
    #[command(after_help = replace::EXAMPLES)]
    Replace(replace::ReplaceArgs),
}

/// Asks and prints.
pub async fn run(args: MembersArgs, session: &mut Session, output: &Output) -> anyhow::Result<Exit> {
    match args.command {
        Some(MembersCommand::Remove(args)) => return remove::run(args, session, output).await,
        Some(MembersCommand::Replace(args)) => return replace::run(args, session, output).await,
        None => {}
    }
    let members = session.members().await?;
    output.answer(&members, || render(&members))?;
    Ok(Exit::Ok)
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
}
