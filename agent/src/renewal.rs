//! Renewed certificates taken up without a restart.
//!
//! The files of the identity's directory are looked at every few seconds; what has
//! changed and then kept still is loaded, checked as at the start, and given to the
//! transport, and to what talks TLS to redis-servers: new connections are made with it, and
//! the host's instances are told (see [`crate::host::certificates`]). A reload (SIGHUP) does the
//! same at once. An identity that can't be used is logged once and the old one kept. What only a
//! start can change (the host's name) is not taken up; the secret of the redis-servers is
//! `host::rotation`'s.

use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use redmesh_api::tls::{self, Identity};
use tokio_util::sync::CancellationToken;
use tracing::{info, warn};

use crate::clock::now_unix_ms;
use crate::redis_tls::RedisTls;
use crate::transport::quic::QuicTransport;

/// Between two looks at the files.
pub const LOOK_INTERVAL: Duration = Duration::from_secs(2);

/// A certificate with less time left is worth a warning, milliseconds: a week.
const LEFT_MS_LOW: u64 = 7 * 24 * 3600 * 1000;

/// Between two such warnings, milliseconds: six hours.
const WARN_INTERVAL_MS: u64 = 6 * 3600 * 1000;

/// By which a changed file is known: inode, length, and time of change, of its owner or mode too.
pub(crate) type Mark = Vec<Option<(u64, u64, i64, i64)>>;

pub(crate) fn mark(dir: &Path, names: &[&str]) -> Mark {
    let of = |name: &&str| {
        let meta = std::fs::metadata(dir.join(name)).ok()?;
        Some((meta.ino(), meta.len(), meta.ctime(), meta.ctime_nsec()))
    };
    names.iter().map(of).collect()
}

/// The files of an identity.
const FILES: [&str; 3] = ["ca.pem", "cert.pem", "key.pem"];

/// What to do after a look.
#[derive(Debug, PartialEq, Eq)]
pub(crate) enum Look {
    Nothing,
    Load,
}

/// Decides when files have changed and are whole again: one look after the last change.
#[derive(Debug, Default)]
pub(crate) struct Watch {
    used: Mark,
    seen: Mark,
}

impl Watch {
    pub(crate) fn look(&mut self, now: Mark) -> Look {
        let still = now == self.seen;
        self.seen = now;
        if !still || self.seen == self.used {
            return Look::Nothing;
        }
        self.used.clone_from(&self.seen);
        Look::Load
    }
}

/// Uses `identity` for the mesh and for redis-servers from now on; for both, or for neither.
///
/// # Errors
/// In words: why it can't be used; what was in use stays.
pub fn take_up(
    transport: &QuicTransport,
    redis: Option<&RedisTls>,
    identity: &Identity,
) -> Result<(), String> {
    let prepared = redis.map(|redis| redis.prepare(identity).map(|prepared| (redis, prepared)));
    let prepared = prepared.transpose().map_err(|error| crate::error_chain(&error))?;
    transport.replace_identity(identity).map_err(|error| crate::error_chain(&error))?;
    if let Some((redis, prepared)) = prepared {
        redis.adopt(prepared);
    }
    Ok(())
}

/// Until `cancel`: takes up what appears in `dir`. `current` is what is in use.
pub async fn watch(
    dir: PathBuf,
    current: Identity,
    transport: Arc<QuicTransport>,
    redis: Option<RedisTls>,
    cancel: CancellationToken,
) {
    let mut current = current;
    // Whatever was changed since it was loaded is found at the first look.
    let mut watch = Watch::default();
    let mut valid_until_ms = tls::valid_until_unix_ms(current.chain());
    let mut warned_ms = 0;
    let mut looks = tokio::time::interval(LOOK_INTERVAL);
    loop {
        tokio::select! {
            _ = looks.tick() => {}
            () = cancel.cancelled() => return,
        }
        let now_ms = now_unix_ms();
        if valid_until_ms.saturating_sub(now_ms) < LEFT_MS_LOW && now_ms - warned_ms >= WARN_INTERVAL_MS {
            warned_ms = now_ms;
            let hours_left = valid_until_ms.saturating_sub(now_ms) / 3_600_000;
            warn!(
                hours_left,
                "this host's certificate expires: renew it with `redmeshctl pki issue … --renew`"
            );
        }
        let from = dir.clone();
        let Ok(now) = tokio::task::spawn_blocking(move || mark(&from, &FILES)).await else { return };
        if watch.look(now) == Look::Nothing {
            continue;
        }
        let from = dir.clone();
        let Ok(loaded) = tokio::task::spawn_blocking(move || Identity::load(&from)).await else { return };
        let taken = loaded.map_err(|error| crate::error_chain(&error)).and_then(|identity| {
            if identity.same_as(&current) {
                return Ok(false);
            }
            take_up(&transport, redis.as_ref(), &identity)?;
            valid_until_ms = tls::valid_until_unix_ms(identity.chain());
            current = identity;
            Ok(true)
        });
        match taken {
            Ok(true) => {
                warned_ms = 0;
                let days_left = valid_until_ms.saturating_sub(now_unix_ms()) / 86_400_000;
                info!(days_left, "took up a renewed certificate");
            }
            Ok(false) => {}
            Err(error) => {
                warn!(error, dir = %dir.display(), "the changed identity can't be used, the old one stays");
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn files_are_loaded_once_they_keep_still() {
        let file = |n: u64| vec![Some((n, 0, 0, 0))];
        let mut watch = Watch { used: file(1), seen: file(1) };
        assert_eq!(watch.look(file(1)), Look::Nothing);
        assert_eq!(watch.look(file(2)), Look::Nothing, "it may be half of a change");
        assert_eq!(watch.look(file(3)), Look::Nothing);
        assert_eq!(watch.look(file(3)), Look::Load);
        assert_eq!(watch.look(file(3)), Look::Nothing);
        assert_eq!(watch.look(vec![None]), Look::Nothing);
        assert_eq!(watch.look(file(3)), Look::Nothing, "gone for a moment, and back");
    }
}
