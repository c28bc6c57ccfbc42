//! What becomes of a request to join: judged here, counted by the coordinator, signed here.

use std::net::SocketAddr;
use std::path::PathBuf;
use std::sync::{Mutex, PoisonError};
use std::time::Instant;

use async_trait::async_trait;
use redmesh_api::join::{EXPORTER_BYTES, Enrolled, JoinRefusal, JoinReply, JoinRequest, JoinedIdentity};
use redmesh_api::secret::RedisSecrets;
use time::OffsetDateTime;
use tracing::{info, warn};

use super::judge::{self, Known};
use super::pace::Pace;
use super::signer::{Request, Signer};
use crate::census::Census;
use crate::control::Control;
use crate::transport::quic::Strangers;

/// Lets hosts in that prove a token.
#[derive(Debug)]
pub struct Gate {
    census: Census,
    control: Control,
    identity_dir: PathBuf,
    pace: Mutex<Pace>,
}

impl Gate {
    /// Signs with what is in `identity_dir`.
    pub fn new(census: Census, control: Control, identity_dir: PathBuf) -> Self {
        Self { census, control, identity_dir, pace: Mutex::default() }
    }

    async fn admit(
        &self,
        request: &JoinRequest,
        from: SocketAddr,
        binding: &[u8; EXPORTER_BYTES],
    ) -> Result<JoinedIdentity, JoinRefusal> {
        if !self.pace.lock().unwrap_or_else(PoisonError::into_inner).allow(from.ip(), Instant::now()) {
            return Err(JoinRefusal::later("too many requests to join: try again in a few seconds"));
        }
        let ask = {
            let level = self.census.level();
            let alive: Vec<_> = self
                .census
                .hosts()
                .values()
                .filter(|host| host.alive)
                .map(|host| (host.name(), host.addr.ip()))
                .collect();
            let known = Known {
                mesh: level.mesh,
                tokens: &level.tokens,
                alive: &alive,
                now_unix_ms: self.census.clock.now_unix_ms(),
            };
            judge::judge(request, from.ip(), binding, &known)?
        };
        let signing =
            Request::parse(&ask.csr).map_err(|error| JoinRefusal::invalid(crate::error_chain(&error)))?;
        // Before the token is used up: a host that can't sign must not cost a use.
        let now = OffsetDateTime::now_utc();
        let dir = self.identity_dir.clone();
        let read = tokio::task::spawn_blocking(move || {
            (Signer::load(&dir, now), secret(&dir), std::fs::read_to_string(dir.join("ca.pem")))
        })
        .await;
        let (signer, redis_secret, ca) = read.map_err(|error| JoinRefusal::later(error.to_string()))?;
        let signer = signer.map_err(|error| cannot_sign(&error))?;
        let ca = ca.map_err(|error| cannot_sign(&error))?;
        let host = Enrolled { name: ask.name, ip: ask.ip, key: signing.key(), at_unix_ms: 0 };
        self.control.enrol(request.token, host.clone()).await?;
        let chain =
            signer.sign(&signing, &host.name, &[host.ip], now).map_err(|error| cannot_sign(&error))?;
        info!(name = host.name, ip = %host.ip, token = %request.token, "let a host in by its token");
        Ok(JoinedIdentity { ca, chain, redis_secret })
    }
}

fn secret(dir: &std::path::Path) -> Option<String> {
    RedisSecrets::load(dir).ok().map(|secret| secret.file_text())
}

pub(super) fn cannot_sign(error: &dyn std::error::Error) -> JoinRefusal {
    warn!(error = crate::error_chain(error), "this host can't sign for others");
    JoinRefusal::later("this agent can't sign at the moment, its log says why: try another one")
}

#[async_trait]
impl Strangers for Gate {
    async fn join(&self, request: JoinRequest, from: SocketAddr, binding: [u8; EXPORTER_BYTES]) -> JoinReply {
        match self.admit(&request, from, &binding).await {
            Ok(joined) => JoinReply::Joined(joined),
            Err(refusal) => JoinReply::Refused(refusal),
        }
    }
}
