//! `nft -f -`, with the one capability that it needs.
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

/// Longest that one transaction may take.
const NFT_TIMEOUT: Duration = Duration::from_secs(10);

/// Of what nft says, bytes.
const SAID_BYTES_MAX: u64 = 4096;

/// Between two looks whether nft has ended.
const WAIT_INTERVAL: Duration = Duration::from_millis(10);

/// Why the sets could not be written.
#[derive(Debug, thiserror::Error)]
pub enum NftError {
    /// The agent may not.
    #[error(
        "firewall.manage = true needs the capability CAP_NET_ADMIN, and the agent hasn't got it: copy \
         /usr/share/doc/redmesh-agent/examples/firewall.conf to /etc/systemd/system/redmesh-agent.service.d/, then \
         `systemctl daemon-reload` and a restart; or set firewall.manage = false"
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
    // A thread of its own, which ends: what it may must not stay with a pool's thread.
    let (done, ended) = tokio::sync::oneshot::channel();
    let started = std::thread::Builder::new().name("nft".to_owned()).spawn(move || {
        // Whoever waited may be gone.
        let _ = done.send(transact(&script));
    });
    started.map_err(NftError::Start)?;
    ended.await.map_err(|_| NftError::Thread)?
}

fn transact(script: &str) -> Result<(), NftError> {
    // Root's children have it without that, and can't be given it so.
    let _ = configure_capability_in_ambient_set(CapabilitySet::NET_ADMIN, true);
    let mut child = Command::new("nft")
        .args(["-f", "-"])
        .stdin(Stdio::piped())
        .stdout(Stdio::null())
        .stderr(Stdio::piped())
        .spawn()
        .map_err(NftError::Start)?;
    if let Some(mut stdin) = child.stdin.take() {
        // nft that ends early says why itself.
        let _ = stdin.write_all(script.as_bytes());
    }
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
        return Ok(());
    }
    let mut said = Vec::new();
    if let Some(stderr) = child.stderr.take() {
        let _ = stderr.take(SAID_BYTES_MAX).read_to_end(&mut said);
    }
    Err(NftError::Refused { said: redmesh_api::frames::readable(&said).trim().to_owned() })
}
