//! placeholder
use std::net::IpAddr;
use std::path::{Path, PathBuf};
#[derive(Debug, clap::Args)]
pub struct PkiArgs {}
impl PkiArgs {
    pub fn run(self) -> anyhow::Result<()> { Ok(()) }
}
pub fn init(_dir: &Path, _mesh: &str) -> anyhow::Result<()> { Ok(()) }
pub fn issue_host(dir: &Path, name: &str, _ips: &[IpAddr]) -> anyhow::Result<PathBuf> { Ok(dir.join(name)) }
pub fn issue_operator(dir: &Path, name: &str) -> anyhow::Result<PathBuf> { Ok(dir.join(name)) }
