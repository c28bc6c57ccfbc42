//! `members`: the hosts of the mesh as one agent sees them; `members remove` has one refused
//! for good.

use clap::{Args, Subcommand, ValueEnum};
use comfy_table::{Table, presets};
use redmesh_api::control::{HostRemove, Member, MemberState, Members, RemovalCheck};

use crate::exit::Exit;
use crate::output::Output;
use crate::session::{RemovedReply, Session};

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
state directory and a certificate that is issued afterwards.";

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
    if let Some(MembersCommand::Remove(RemoveArgs { host, force })) = args.command {
        let force = force.into_iter().map(RemovalCheck::from).collect();
        let removed = session.host_remove(HostRemove { host, force }).await?;
        output.answer(&removed, || removed_text(&removed))?;
        return Ok(Exit::Ok);
    }
    let members = session.members().await?;
    output.answer(&members, || render(&members))?;
    Ok(Exit::Ok)
}

/// The host's name as people know it, or its id where the mesh doesn't know it (any more).
pub fn name_of(members: &[Member], host: redmesh_api::ids::HostId) -> String {
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
    for member in &view.members {
        if let Some(problem) = &member.problem {
            text.push_str(&format!("{}: {problem}\n", member.name));
        }
    }
    text
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
    use redmesh_api::ids::HostId;
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
    fn a_removal_says_what_is_refused_and_what_is_left_to_do() {
        let host = |certificates| redmesh_api::level::RemovedHost {
            id: Some(HostId(3)),
            name: "db-3".to_owned(),
            certificates,
            at_unix_ms: 1,
        };
        let said = |certificates, fresh| {
            removed_text(&RemovedReply { host: host(certificates), fresh, notes: vec!["forget".to_owned()] })
        };
        assert_eq!(said(true, true), "removed db-3 (00000003): every agent refuses it from now on\nforget\n");
        assert!(said(true, false).starts_with("db-3 (00000003) was removed before\n"));
        assert!(said(false, true).contains("the certificates of db-3 stay good"));
    }
}
