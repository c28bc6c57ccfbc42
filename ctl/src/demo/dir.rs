//! A demo's directory: made by it, marked as its own, and nothing else ever removed.

use std::os::unix::fs::DirBuilderExt as _;
use std::path::{Path, PathBuf};

use anyhow::{Context as _, bail};
use serde::{Deserialize, Serialize};

use super::plan::DemoPlan;
use super::sweep::Scope;

/// File that says that a directory is a demo's.
const MARKER: &str = "redmesh-demo.json";

/// Directory of `demo --keep` where none is named.
const KEPT_DEFAULT: &str = "redmesh-demo";

/// What the marker holds; its presence is what counts.
#[derive(Debug, Serialize, Deserialize)]
struct Marker {
    /// Hosts of the demo.
    hosts: u16,
    /// Instances on each.
    per_host: u16,
    /// Process that made it.
    ctl_pid: u32,
    /// File name of the servers' executable.
    server: Option<String>,
}

/// The directory of one demo; absolute, without symbolic links.
#[derive(Debug)]
pub struct DemoDir {
    path: PathBuf,
    server: Option<String>,
}

impl DemoDir {
    /// Name of the demo's operator.
    pub const OPERATOR: &str = "operator";

    /// Makes it: `dir`, or a new one in the temporary directory, or [`KEPT_DEFAULT`]. What an
    /// earlier demo left there is replaced; anything else that is there is refused.
    pub fn create(dir: Option<PathBuf>, keep: bool, plan: &DemoPlan, server: &Path) -> anyhow::Result<Self> {
        let path = match dir {
            Some(dir) => dir,
            None if keep => PathBuf::from(KEPT_DEFAULT),
            None => {
                let unique = uuid::Uuid::new_v4().simple().to_string();
                std::env::temp_dir().join(format!("redmesh-demo-{}", &unique[..8]))
            }
        };
        if path.symlink_metadata().is_ok() {
            clear(&path)?;
        }
        std::fs::DirBuilder::new()
            .recursive(true)
            .mode(0o700)
            .create(&path)
            .with_context(|| format!("can't create {}", path.display()))?;
        let path = path.canonicalize().with_context(|| format!("can't resolve {}", path.display()))?;
        // As /proc will tell it.
        let server = server.canonicalize().with_context(|| format!("can't resolve {}", server.display()))?;
        let server = server.file_name().and_then(|name| name.to_str()).map(str::to_owned);
        let marker = Marker {
            hosts: plan.hosts(),
            per_host: plan.per_host,
            ctl_pid: std::process::id(),
            server: server.clone(),
        };
        let file = path.join(MARKER);
        std::fs::write(&file, serde_json::to_vec(&marker)?)
            .with_context(|| format!("can't write {}", file.display()))?;
        Ok(Self { path, server })
    }

    /// One that is there, by its marker.
    pub fn open(dir: &Path) -> anyhow::Result<Self> {
        let Some(Marker { server, .. }) = marker(dir) else {
            bail!(
                "{} is no demo's directory: there is no {MARKER} in it. Name the one that `redmeshctl demo --keep` \
                 printed",
                dir.display()
            );
        };
        let path = dir.canonicalize().with_context(|| format!("can't resolve {}", dir.display()))?;
        Ok(Self { path, server })
    }

    /// What of it may be running.
    pub fn scope(&self) -> Scope {
        Scope { dir: self.path.clone(), server: self.server.clone() }
    }

    /// Removes it.
    pub fn remove(&self) -> anyhow::Result<()> {
        // An agent that was killed in mid-write may have left what is not listed yet;
        // everything has ended by now, so a second attempt finds a still directory.
        std::fs::remove_dir_all(&self.path)
            .or_else(|_| std::fs::remove_dir_all(&self.path))
            .with_context(|| format!("can't remove {}", self.path.display()))
    }

    /// Its path.
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// The certificate authority and all identities.
    pub fn pki(&self) -> PathBuf {
        self.path.join("pki")
    }

    /// The operator's identity.
    pub fn operator(&self) -> PathBuf {
        self.pki().join(Self::OPERATOR)
    }

    /// Directory of the host called `name`: its agent's working directory.
    pub fn host(&self, name: &str) -> PathBuf {
        self.path.join(name)
    }

    /// The agent's configuration in a host's directory.
    pub fn agent_toml(host_dir: &Path) -> PathBuf {
        host_dir.join("agent.toml")
    }

    /// The agent's log in a host's directory.
    pub fn agent_log(host_dir: &Path) -> PathBuf {
        host_dir.join("agent.log")
    }

    /// What to do with a demo that is kept.
    pub fn how_to_reach(&self, plan: &DemoPlan, auth: bool, tls: bool) -> String {
        // As this process was called: after `make demo` ctl is in nobody's PATH.
        let ctl = std::env::args().next().unwrap_or_else(|| "redmeshctl".to_owned());
        // Not on a command line, where everybody on this machine could read it.
        let password = match auth {
            true => format!("REDISCLI_AUTH=$({ctl} pki redis-password --dir {}) ", self.pki().display()),
            false => String::new(),
        };
        let tls = match tls {
            true => format!("--tls --cacert {} ", self.pki().join("ca.pem").display()),
            false => String::new(),
        };
        format!(
            "\nIt goes on running:\n  {password}redis-cli {tls}-c -h {} -p {}\n  {ctl} --agent {} --identity {} members\n\
             Stop it and remove its files:\n  {ctl} demo stop --dir {}",
            plan.ips[0],
            plan.base_port,
            plan.agent(0),
            self.operator().display(),
            self.path.display()
        )
    }
}

fn marker(dir: &Path) -> Option<Marker> {
    serde_json::from_slice(&std::fs::read(dir.join(MARKER)).ok()?).ok()
}

/// Makes room where a demo is to be: an earlier demo's directory goes, an empty one may
/// stay, all else is refused.
fn clear(path: &Path) -> anyhow::Result<()> {
    let shown = path.display();
    if marker(path).is_some() {
        let old = DemoDir::open(path)?;
        let running = old.scope().find().with_context(|| "/proc".to_owned())?;
        if let Some(first) = running.first() {
            bail!(
                "a demo is running in {shown} ({} processes, {first} is one): `redmeshctl demo stop --dir {shown}` \
                 ends it",
                running.len()
            );
        }
        return old.remove();
    }
    let mut entries = std::fs::read_dir(path).with_context(|| format!("{shown} is in the way"))?;
    if entries.next().is_some() {
        bail!("{shown} is there and is no demo's directory: name another one with --dir");
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::demo::plan::tests::plan;

    #[test]
    fn only_its_own_directory_is_replaced_and_removed() {
        let parent = tempfile::tempdir().unwrap();
        let plan = plan("").unwrap();
        let at = parent.path().join("demo");
        let create = || DemoDir::create(Some(at.clone()), false, &plan, Path::new("/bin/sh"));

        let dir = create().unwrap();
        std::fs::write(at.join("old"), "x").unwrap();
        assert!(DemoDir::open(&at).is_ok());
        create().unwrap();
        assert!(!at.join("old").exists());
        dir.remove().unwrap();
        assert!(!at.exists());
        assert!(DemoDir::open(&at).is_err());

        std::fs::create_dir(&at).unwrap();
        create().expect("an empty directory is taken");
        std::fs::remove_file(at.join(MARKER)).unwrap();
        std::fs::write(at.join("mine"), "x").unwrap();
        assert!(create().unwrap_err().to_string().contains("--dir"));
        assert!(at.join("mine").exists());
        assert!(DemoDir::open(&at).unwrap_err().to_string().contains(MARKER));
    }

    #[test]
    fn a_directory_without_a_name_is_new_and_private() {
        use std::os::unix::fs::PermissionsExt as _;
        let plan = plan("").unwrap();
        let dir = DemoDir::create(None, false, &plan, Path::new("/bin/sh")).unwrap();
        let mode = dir.path().metadata().unwrap().permissions().mode();
        dir.remove().unwrap();
        assert_eq!(mode & 0o777, 0o700);
    }
}
