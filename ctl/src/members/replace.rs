//! `members replace`: another host takes the place of one that is gone.

use clap::Args;
use redmesh_api::control::{HostReplace, Replaced};

use crate::exit::Exit;
use crate::output::Output;
use crate::session::Session;

/// Examples of `members replace`.
pub const EXAMPLES: &str = "\
Examples:
  redmeshctl members replace db-2                    by the host that has its name and address now
  redmeshctl members replace db-2 --with db-12       by one of another name at the same address

For a host that lost its state directory or all of its disk: its agent starts with an empty state
directory and joins as a new host, which the cluster's plan does not know. This gives it the
plan's instances. Servers that still run there keep running and are supervised again; where there
are none they are started, empty, under their old node ids. The old id is refused from then on.";

/// Arguments of `members replace`.
#[derive(Debug, Args)]
pub struct ReplaceArgs {
    /// Name of the host that is gone, or its id
    #[arg(value_name = "HOST")]
    pub host: String,
    /// Name or id of the host that takes its place [default: the one of the same name]
    #[arg(long, value_name = "HOST")]
    pub with: Option<String>,
}

/// Asks and prints.
pub async fn run(args: ReplaceArgs, session: &mut Session, output: &Output) -> anyhow::Result<Exit> {
    let ReplaceArgs { host, with } = args;
    let replaced = session.host_replace(HostReplace { host, with }).await?;
    output.answer(&replaced, || text(&replaced))?;
    Ok(Exit::Ok)
}

fn text(replaced: &Replaced) -> String {
    let Replaced { from, to, instances, fresh } = replaced;
    match fresh {
        true => format!(
            "{} ({}) bears the {instances} instances of {from} from now on; `redmeshctl cluster check` says how they do\n",
            to.name, to.id
        ),
        false => format!("{} ({}) had taken the place of {from} before\n", to.name, to.id),
    }
}

#[cfg(test)]
mod tests {
    use redmesh_api::ids::HostId;
    use redmesh_api::level::PlannedHost;

    use super::*;

    #[test]
    fn who_took_whose_place_is_said() {
        let to = PlannedHost {
            id: HostId(2),
            name: "db-2".to_owned(),
            ip: "10.0.0.2".parse().unwrap(),
            base_port: 6379,
        };
        let said = |fresh| text(&Replaced { from: HostId(1), to: to.clone(), instances: 3, fresh });
        assert!(said(true).starts_with("db-2 (00000002) bears the 3 instances of 00000001 from now on"));
        assert_eq!(said(false), "db-2 (00000002) had taken the place of 00000001 before\n");
    }
}
