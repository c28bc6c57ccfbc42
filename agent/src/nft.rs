//! nft, with the one capability that it needs: transactions, and what stands in the agent's
//! own table.
//!
//! The agent's redis-servers must not have it, so `main` takes it out of the ambient set
//! before there is a second thread, and only the short-lived thread that starts nft puts it
//! back for itself (capabilities(7): a child gets the ambient set of the thread that made it).

use std::io::{Read as _, Write as _};
use std::process::{Command, Stdio};
use std::time::Duration;

use rustix::thread::{
    CapabilitySet, capabilities, clear_ambient_capability_set, configure_capability_in_ambient_set,
};
use serde::{Deserialize, Serialize};

/// Name of the agent's table; the family is inet.
pub const TABLE: &str = "redmesh";

/// Longest that one transaction may take.
const NFT_TIMEOUT: Duration = Duration::from_secs(10);

/// Of what nft says, bytes.
const SAID_BYTES_MAX: u64 = 4096;

/// Of the rules that it lists, bytes.
const PRINTED_BYTES_MAX: u64 = 4 * 1024 * 1024;

/// Between two looks whether nft has ended.
const WAIT_INTERVAL: Duration = Duration::from_millis(10);

/// How the agent gets its capability.
pub const CAPABILITY_REMEDY: &str = "copy /usr/share/doc/redmesh-agent/examples/firewall.conf to \
                                     /etc/systemd/system/redmesh-agent.service.d/, then `systemctl daemon-reload` and \
                                     `systemctl restart redmesh-agent`; or set firewall.manage = false";

/// Why the sets could not be written.
#[derive(Debug, thiserror::Error)]
pub enum NftError {
    /// The agent may not.
    #[error(
        "firewall.manage = true needs the capability CAP_NET_ADMIN, and the agent hasn't got it: {CAPABILITY_REMEDY}"
    )]
    Capability,
    /// There is no nft, or it can't be started.
    #[error("can't run nft: firewall.manage = true needs the package nftables")]
    Start(#[source] std::io::Error),
    /// It did not take the transaction; nothing has changed.
    #[error("nft refused: {said}")]
    Refused {
        /// In its words.
        said: String,
    },
    /// It did not end.
    #[error("nft had not ended after {} s", NFT_TIMEOUT.as_secs())]
    Timeout,
    /// The thread that was to start it failed.
    #[error("the thread for nft failed")]
    Thread,
}

/// Takes the ambient capabilities away: what is started from now on has none. To be called
/// while there is one thread.
pub fn withhold() {
    // Fails only on a kernel before 4.3, which has no such set.
    let _ = clear_ambient_capability_set();
}

/// Whether this process may change a firewall.
///
/// # Errors
/// [`NftError::Capability`].
pub fn allowed() -> Result<(), NftError> {
    match capabilities(None) {
        Ok(sets) if sets.permitted.contains(CapabilitySet::NET_ADMIN) => Ok(()),
        _ => Err(NftError::Capability),
    }
}

/// Carries `script` out as one transaction.
///
/// # Errors
/// Any [`NftError`].
pub async fn run(script: String) -> Result<(), NftError> {
    allowed()?;
    ask(&["-f", "-"], script).await.map(drop)
}

/// What stands in the table, and whether the agent may change it.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct FirewallRead {
    /// Whether the agent has CAP_NET_ADMIN.
    pub capability: bool,
    /// What the table holds, or why that can't be told.
    pub table: Result<TableRead, String>,
}

/// What stands in the table.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct TableRead {
    /// How many of the agent's two sets of members are there.
    pub sets: u8,
    /// Whether a chain sees what comes in: without one nobody asks the sets.
    pub input: bool,
}

/// Reads the table.
pub async fn read() -> FirewallRead {
    let table = match ask(&["-t", "list", "ruleset", "inet"], String::new()).await {
        Ok(text) => Ok(parse(&text)),
        Err(error) => Err(crate::error_chain(&error)),
    };
    FirewallRead { capability: allowed().is_ok(), table }
}

/// Reads what `nft -t list ruleset` prints.
fn parse(text: &str) -> TableRead {
    let mut table = TableRead::default();
    let own = format!("table inet {TABLE} {{");
    let lines = text.lines().skip_while(|line| *line != own).take_while(|line| *line != "}");
    for line in lines.map(str::trim) {
        table.sets += u8::from(line == "set members4 {" || line == "set members6 {");
        table.input |= line.contains(" hook input ");
    }
    table
}

/// What nft prints when it is started with `args` and fed `input`.
async fn ask(args: &'static [&'static str], input: String) -> Result<String, NftError> {
    // A thread of its own, which ends: what it may must not stay with a pool's thread.
    let (done, ended) = tokio::sync::oneshot::channel();
    let started = std::thread::Builder::new().name("nft".to_owned()).spawn(move || {
        // Whoever waited may be gone.
        let _ = done.send(transact(args, &input));
    });
    started.map_err(NftError::Start)?;
    ended.await.map_err(|_| NftError::Thread)?
}

fn transact(args: &[&str], input: &str) -> Result<String, NftError> {
    // Root's children have it without that, and can't be given it so.
    let _ = configure_capability_in_ambient_set(CapabilitySet::NET_ADMIN, true);
    let mut child = Command::new("nft")
        .args(args)
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .map_err(NftError::Start)?;
    if let Some(mut stdin) = child.stdin.take() {
        // nft that ends early says why itself.
        let _ = stdin.write_all(input.as_bytes());
    }
    // A ruleset is longer than a pipe holds, so it is read while nft runs. What is longer than
    // the bound stays unread, and ends nft by its timeout.
    let stdout = child.stdout.take();
    let printed = std::thread::spawn(move || {
        let mut printed = Vec::new();
        if let Some(stdout) = stdout {
            let _ = stdout.take(PRINTED_BYTES_MAX).read_to_end(&mut printed);
        }
        printed
    });
    let until = std::time::Instant::now() + NFT_TIMEOUT;
    let status = loop {
        match child.try_wait().map_err(NftError::Start)? {
            Some(status) => break status,
            None if std::time::Instant::now() >= until => {
                let _ = child.kill();
                let _ = child.wait();
                return Err(NftError::Timeout);
            }
            None => std::thread::sleep(WAIT_INTERVAL),
        }
    };
    if status.success() {
        let printed = printed.join().map_err(|_| NftError::Thread)?;
        return Ok(String::from_utf8_lossy(&printed).into_owned());
    }
    let mut said = Vec::new();
    if let Some(stderr) = child.stderr.take() {
        let _ = stderr.take(SAID_BYTES_MAX).read_to_end(&mut said);
    }
    Err(NftError::Refused { said: redmesh_api::frames::readable(&said).trim().to_owned() })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_agents_own_table_is_read_and_no_other() {
        let other = "table inet other {\n\tset members4 {\n\t}\n\tchain input {\n\t\ttype filter hook input \
                     priority filter; policy accept;\n\t}\n}\n";
        assert_eq!(parse(other), TableRead::default());
        let sets =
            "table inet redmesh {\n\tset members4 {\n\t\ttype ipv4_addr\n\t}\n\n\tset members6 {\n\t}\n";
        assert_eq!(parse(&format!("{sets}}}\n{other}")), TableRead { sets: 2, input: false });
        let rules = format!(
            "{other}{sets}\tchain input {{\n\t\ttype filter hook input priority filter; policy drop;\n\t}}\n}}\n"
        );
        assert_eq!(parse(&rules), TableRead { sets: 2, input: true });
        assert_eq!(parse(""), TableRead::default());
    }
}
