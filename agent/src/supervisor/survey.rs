//! What would keep servers from starting here, found without starting any: ports that are
//! taken, directories that can't be used. Writes nothing.
//!
//! Servers of this supervisor are no obstacle: their ports and directories are left out.

use std::collections::BTreeSet;
use std::net::SocketAddr;
use std::path::{Path, PathBuf};

use redmesh_api::ids::PlanId;
use rustix::fs::{Access, access};
use serde::{Deserialize, Serialize};
use uuid::Uuid;

use super::layout::Layout;
use super::{Phase, PortProblem, ProcessError, Supervisor, sockets, starter};

/// Ports whose holder is looked for: each costs a walk through all processes. Further ones
/// are counted.
pub const PORTS_NAMED_MAX: usize = 3;

/// What stands in the way.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Survey {
    /// Of the addresses asked for, those at which a server of this supervisor is.
    pub own: usize,
    /// Ports that can't be listened at, each in words; at most [`PORTS_NAMED_MAX`].
    pub ports: Vec<PortProblem>,
    /// Further ports that somebody listens at.
    pub ports_more: usize,
    /// Addresses at which nobody listens.
    pub silent: Vec<SocketAddr>,
    /// The first directory that can't be used.
    pub dir: Option<DirProblem>,
}

/// Why servers can't have their directories.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct DirProblem {
    /// Which directory, and what is wrong with it.
    pub words: String,
    /// The command that mends it.
    pub remedy: String,
}

impl Supervisor {
    /// Looks for what would keep servers from starting at `addrs` under `plan` (`None`: a
    /// plan that is yet to be).
    ///
    /// # Errors
    /// [`ProcessError::Interrupted`] when the agent ends meanwhile.
    pub async fn survey(&self, addrs: Vec<SocketAddr>, plan: Option<PlanId>) -> Result<Survey, ProcessError> {
        let is_there =
            |phase| matches!(phase, Phase::Starting | Phase::Held | Phase::Running | Phase::Stopping);
        let statuses = self.statuses.borrow().clone();
        let own: BTreeSet<SocketAddr> = statuses
            .iter()
            .filter(|status| status.pid.is_some() || is_there(status.phase))
            .map(|status| status.addr)
            .collect();
        let data_dir = self.data_dir.clone();
        let blocking = move || survey(&addrs, &own, &data_dir, plan);
        tokio::task::spawn_blocking(blocking).await.map_err(|_| ProcessError::Interrupted)
    }
}

fn survey(addrs: &[SocketAddr], own: &BTreeSet<SocketAddr>, data_dir: &Path, plan: Option<PlanId>) -> Survey {
    let mut survey = Survey {
        own: addrs.iter().filter(|addr| own.contains(addr)).count(),
        silent: addrs.iter().copied().filter(|addr| !sockets::is_listened(*addr)).collect(),
        ..Survey::default()
    };
    let others = || addrs.iter().copied().filter(|addr| !own.contains(addr));
    for addr in others() {
        for (addr, what) in [(Some(addr), "data port"), (starter::bus_addr(addr), "bus port")] {
            let Some(addr) = addr else { continue };
            if survey.ports.len() == PORTS_NAMED_MAX {
                survey.ports_more += usize::from(sockets::is_listened(addr));
            } else if let Err(problem) = sockets::check_free(addr, what)
                // An address that isn't the host's is wrong for all ports alike.
                && !survey.ports.contains(&problem)
            {
                survey.ports.push(problem);
            }
        }
    }
    survey.dir = unwritable(data_dir).or_else(|| {
        // No plan has this id: whatever a server left behind belongs to another one.
        let plan = plan.unwrap_or(PlanId(Uuid::nil()));
        others().find_map(|addr| unusable(&Layout::new(data_dir, addr.port()), plan))
    });
    survey
}

fn unwritable(data_dir: &Path) -> Option<DirProblem> {
    let error = access(data_dir, Access::WRITE_OK | Access::EXEC_OK).err()?;
    let (dir, user) = (data_dir.display(), rustix::process::geteuid().as_raw());
    Some(DirProblem {
        words: format!("redis.data_dir {dir} may not be written by the agent's user {user}: {error}"),
        remedy: format!("mkdir -p {dir} && chown -R {user} {dir}"),
    })
}

fn unusable(layout: &Layout, plan: PlanId) -> Option<DirProblem> {
    let error = layout.check_ours(plan).err()?;
    let dir: PathBuf = layout.dir().to_owned();
    Some(DirProblem { words: error.to_string(), remedy: format!("mv {0} {0}.before-redmesh", dir.display()) })
}

#[cfg(test)]
mod tests {
    use std::net::TcpListener;

    use super::*;

    fn addr(port: u16) -> SocketAddr {
        ([127, 77, 251, 1], port).into()
    }

    #[test]
    fn finds_ports_and_directories_of_others_and_leaves_out_ones_own() {
        let dir = tempfile::tempdir().expect("temp dir");
        let addrs: Vec<_> = (21001..=21006).map(addr).collect();
        let none = BTreeSet::new();
        let free = survey(&addrs, &none, dir.path(), None);
        assert_eq!(free, Survey { silent: addrs.clone(), ..Survey::default() });

        let taken: Vec<_> = addrs[..5].iter().map(|addr| TcpListener::bind(addr).expect("free")).collect();
        let bus = TcpListener::bind(addr(31006)).expect("free");
        let found = survey(&addrs, &none, dir.path(), None);
        assert_eq!((found.ports.len(), found.ports_more), (PORTS_NAMED_MAX, 3));
        assert!(found.ports[0].words.contains(&format!("pid {}", std::process::id())), "{found:?}");
        assert_eq!(found.silent, [addr(21006)]);
        let own: BTreeSet<_> = addrs[..5].iter().copied().collect();
        let found = survey(&addrs, &own, dir.path(), None);
        assert_eq!((found.own, found.ports.len()), (5, 1));
        assert!(found.ports[0].words.starts_with("bus port 127.77.251.1:31006 is taken by"), "{found:?}");
        drop((taken, bus));

        let foreign = dir.path().join("21002");
        std::fs::create_dir(&foreign).expect("make a directory");
        std::fs::write(foreign.join("nodes.conf"), "x").expect("write");
        let problem = survey(&addrs, &none, dir.path(), None).dir.expect("a problem");
        assert!(problem.words.contains("nodes.conf of another cluster"), "{problem:?}");
        let shown = foreign.display();
        assert_eq!(problem.remedy, format!("mv {shown} {shown}.before-redmesh"));
        assert_eq!(survey(&addrs, &own, dir.path(), None).dir, None);
        let plan = PlanId(Uuid::from_u128(5));
        std::fs::write(foreign.join("plan"), plan.to_string()).expect("write");
        assert_eq!(survey(&addrs, &none, dir.path(), Some(plan)).dir, None, "of the very plan");
    }

    #[test]
    fn a_directory_that_is_gone_is_told() {
        let problem =
            survey(&[], &BTreeSet::new(), Path::new("/nowhere/at/all"), None).dir.expect("a problem");
        assert!(problem.words.contains("/nowhere/at/all may not be written"), "{problem:?}");
        assert!(problem.remedy.contains("chown -R"), "{problem:?}");
    }
}
