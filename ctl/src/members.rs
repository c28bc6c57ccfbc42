//! `members`: the hosts of the mesh as one agent sees them.

use comfy_table::{Table, presets};
use redmesh_api::control::{Member, MemberState, Members};

use crate::exit::Exit;
use crate::output::Output;
use crate::session::Session;

/// Asks and prints.
pub async fn run(session: &mut Session, output: &Output) -> anyhow::Result<Exit> {
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
}
