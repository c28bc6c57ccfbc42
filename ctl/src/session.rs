//! One agent, asked and answered: the typed way to the control protocol.
//!
//! The only file besides `client.rs` that knows the client. It connects at the first
//! request and again after a loss, and it waits (within the timeout) for a coordinator
//! where a request needs one: an election takes a second or two and is no failure.

use std::net::{SocketAddr, ToSocketAddrs};
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use anyhow::Context as _;
use redmesh_api::control::{
    ClusterCheck, ClusterCreate, ClusterStatus, ControlReply, ControlRequest, Created, HostRemove,
    HostReplace, Members, OperatorRevoke, Refusal, RefusalKind, Removed, Replaced, RunDetail, RunRef,
    RunView, ShareRequest, TokenCreate, VerifyRequest,
};
use redmesh_api::join::{CaPin, TokenId, TokenRecord};
use redmesh_api::level::{ClusterSpec, RevokedOperator};
use redmesh_api::preflight::Report;
use redmesh_api::run::{Run, RunSpec};
use redmesh_api::tls::{Identity, Role};

use crate::client::{Client, ClientError};
use crate::exit::Exit;

/// Port of an agent whose address was given without one.
pub const MESH_PORT_DEFAULT: u16 = 7379;

/// Pause before a request is put again to a mesh that had no coordinator.
const NO_COORDINATOR_PAUSE: Duration = Duration::from_millis(250);

/// Why an agent's answer is not what was asked for.
#[derive(Debug, thiserror::Error)]
pub enum SessionError {
    /// It could not be asked, or did not answer.
    #[error(transparent)]
    Client(ClientError),
    /// It answered that it won't.
    #[error("{0}")]
    Refused(Refusal),
    /// It answered something else.
    #[error(
        "agent {agent} gave an answer of another kind to {asked}: run the same redmesh version on both sides"
    )]
    Unexpected {
        /// Who.
        agent: SocketAddr,
        /// The request.
        asked: &'static str,
    },
}

impl SessionError {
    /// The exit code that it stands for.
    pub fn exit(&self) -> Exit {
        match self {
            Self::Client(
                ClientError::Unreachable { .. } | ClientError::Timeout { .. } | ClientError::Lost { .. },
            ) => Exit::Unreachable,
            Self::Refused(refusal)
                if matches!(
                    refusal.kind,
                    RefusalKind::NoCoordinator | RefusalKind::Deadline | RefusalKind::Busy
                ) =>
            {
                Exit::Unreachable
            }
            Self::Client(_) | Self::Refused(_) | Self::Unexpected { .. } => Exit::Failed,
        }
    }

    /// Whether the same request may succeed a little later.
    pub fn passes(&self) -> bool {
        self.exit() == Exit::Unreachable
    }
}

/// What was asked for, or why there is none.
type Answer<T> = Result<T, SessionError>;

/// A conversation with one agent.
#[derive(Debug)]
pub struct Session {
    agent: SocketAddr,
    identity: Identity,
    timeout: Duration,
    client: Option<Client>,
}

impl Session {
    /// With the agent at `agent` (`IP:PORT`, `IP` or `NAME:PORT`), by the identity in
    /// `identity` or else in the first default place that exists. Dials nothing yet.
    pub fn new(agent: &str, identity: Option<&Path>, timeout: Duration) -> anyhow::Result<Self> {
        let agent = resolve(agent)?;
        let dir = match identity {
            Some(dir) => dir.to_owned(),
            None => default_identity_dir(std::env::home_dir())?,
        };
        let identity =
            Identity::load(&dir).with_context(|| format!("operator's identity in {}", dir.display()))?;
        if identity.role() == Role::Host {
            anyhow::bail!(
                "the certificate in {} is the host {}'s, and only an operator may ask: make one with `redmeshctl pki \
                 issue --dir D --operator NAME` and name it with --identity",
                dir.display(),
                identity.name()
            );
        }
        Ok(Self { agent, identity, timeout, client: None })
    }

    /// Whom it asks.
    pub fn agent(&self) -> SocketAddr {
        self.agent
    }

    /// The CA that a host which joins is to trust: the first of this operator's.
    pub fn ca(&self) -> Option<CaPin> {
        self.identity.cas().first().map(|ca| CaPin::of(ca))
    }

    /// Says goodbye.
    pub async fn close(self) {
        if let Some(client) = self.client {
            client.close().await;
        }
    }

    async fn request(&mut self, request: &ControlRequest) -> Result<ControlReply, SessionError> {
        let client = match self.client.take() {
            Some(client) => client,
            None => match Client::connect(self.agent, &self.identity, self.timeout).await {
                Ok(client) => client,
                Err(ClientError::Refused(refusal)) => return Err(SessionError::Refused(refusal)),
                Err(error) => return Err(SessionError::Client(error)),
            },
        };
        match client.request(request).await {
            Ok(ControlReply::Refused(refusal)) | Err(ClientError::Refused(refusal)) => {
                self.client = Some(client);
                Err(SessionError::Refused(refusal))
            }
            Ok(reply) => {
                self.client = Some(client);
                Ok(reply)
            }
            // The next request dials anew.
            Err(error) => Err(SessionError::Client(error)),
        }
    }

    /// As [`Self::request`], and again while the mesh has no coordinator, until the
    /// timeout. A request refused for want of a coordinator was not carried out, so
    /// putting it again can't do it twice; one whose fate is open is put again only where
    /// twice is as good as once.
    async fn request_of_coordinator(
        &mut self,
        request: &ControlRequest,
    ) -> Result<ControlReply, SessionError> {
        let until = Instant::now() + self.timeout;
        loop {
            match self.request(request).await {
                Err(SessionError::Refused(refusal))
                    if may_repeat(refusal.kind, request) && Instant::now() < until =>
                {
                    tokio::time::sleep(NO_COORDINATOR_PAUSE).await;
                }
                other => return other,
            }
        }
    }

    /// Puts `request` to the coordinator if it changes something, else to the agent alone, and
    /// takes the answer that belongs to it.
    async fn ask<T: TryFrom<ControlReply>>(&mut self, request: ControlRequest) -> Answer<T> {
        let reply = match request.changes() {
            true => self.request_of_coordinator(&request).await?,
            false => self.request(&request).await?,
        };
        let unexpected = |_| SessionError::Unexpected { agent: self.agent, asked: request.name() };
        T::try_from(reply).map_err(unexpected)
    }

    /// Who is there.
    pub async fn members(&mut self) -> Answer<Members> {
        self.ask(ControlRequest::Members).await
    }

    /// Has a host refused for good.
    pub async fn host_remove(&mut self, request: HostRemove) -> Answer<Removed> {
        self.ask(ControlRequest::HostRemove(request)).await
    }

    /// Has a host take the place of one that is gone.
    pub async fn host_replace(&mut self, request: HostReplace) -> Answer<Replaced> {
        self.ask(ControlRequest::HostReplace(request)).await
    }

    /// Has an operator's certificates of until now refused.
    pub async fn operator_revoke(&mut self, request: OperatorRevoke) -> Answer<RevokedOperator> {
        self.ask(ControlRequest::OperatorRevoke(request)).await
    }

    /// Operators whose earlier certificates are refused.
    pub async fn operators(&mut self) -> Answer<Vec<RevokedOperator>> {
        self.ask(ControlRequest::OperatorList).await
    }

    /// Begins, continues or confirms a cluster.
    pub async fn cluster_create(&mut self, create: ClusterCreate) -> Answer<Created> {
        self.ask(ControlRequest::ClusterCreate(create)).await
    }

    /// Whether the hosts could bear such a cluster.
    pub async fn doctor(&mut self, spec: ClusterSpec) -> Answer<Report> {
        self.ask::<Box<Report>>(ControlRequest::Doctor(spec)).await.map(|report| *report)
    }

    /// How far the plan is.
    pub async fn cluster_status(&mut self) -> Answer<ClusterStatus> {
        self.ask(ControlRequest::ClusterStatus).await
    }

    /// What every instance says now.
    pub async fn cluster_check(&mut self) -> Answer<ClusterCheck> {
        self.ask(ControlRequest::ClusterCheck).await
    }

    /// Begins a run.
    pub async fn run_start(&mut self, spec: RunSpec) -> Answer<Run> {
        self.ask(ControlRequest::RunStart(spec)).await
    }

    /// Begins to read back what a run has written; that is a run of its own.
    pub async fn run_verify(&mut self, request: VerifyRequest) -> Answer<Run> {
        self.ask(ControlRequest::RunVerify(request)).await
    }

    /// Gives a host a share in a run.
    pub async fn run_share(&mut self, request: ShareRequest) -> Answer<RunView> {
        self.ask(ControlRequest::RunShare(request)).await
    }

    /// Asks for a run to be stopped.
    pub async fn run_stop(&mut self, run: RunRef) -> Answer<RunView> {
        self.ask(ControlRequest::RunStop(run)).await
    }

    /// All runs known.
    pub async fn runs(&mut self) -> Answer<Vec<RunView>> {
        self.ask(ControlRequest::RunList).await
    }

    /// One run; `latency` also pulls the hosts' histograms.
    pub async fn run_show(&mut self, run: RunRef, latency: bool) -> Answer<RunView> {
        self.ask(ControlRequest::RunShow { run, latency }).await
    }

    /// One run with all that its hosts kept of it.
    pub async fn run_detail(&mut self, run: RunRef) -> Answer<RunDetail> {
        self.ask(ControlRequest::RunDetail(run)).await
    }

    /// Makes the mesh let hosts in that prove a token.
    pub async fn token_create(&mut self, create: TokenCreate) -> Answer<TokenRecord> {
        self.ask(ControlRequest::TokenCreate(create)).await
    }

    /// All join tokens that are remembered.
    pub async fn tokens(&mut self) -> Answer<Vec<TokenRecord>> {
        self.ask(ControlRequest::TokenList).await
    }

    /// Takes a join token back.
    pub async fn token_revoke(&mut self, id: TokenId) -> Answer<TokenRecord> {
        self.ask(ControlRequest::TokenRevoke(id)).await
    }
}

fn may_repeat(kind: RefusalKind, request: &ControlRequest) -> bool {
    match kind {
        RefusalKind::NoCoordinator | RefusalKind::Busy => true,
        RefusalKind::Deadline => request.repeatable(),
        _ => false,
    }
}

/// How long a poll may go unanswered before that is the answer.
const PATIENCE: Duration = Duration::from_secs(10);

/// Bears the short absence of an agent or a coordinator between two polls.
#[derive(Debug, Default)]
pub struct Patience {
    absent_since: Option<Instant>,
}

impl Patience {
    /// The answer; `None` if there is none at the moment; the error once that has
    /// lasted too long, or if it won't pass.
    pub fn bear<T>(&mut self, answer: Result<T, SessionError>) -> Result<Option<T>, SessionError> {
        match answer {
            Ok(value) => {
                self.absent_since = None;
                Ok(Some(value))
            }
            Err(error) => {
                let since = *self.absent_since.get_or_insert_with(Instant::now);
                if error.passes() && since.elapsed() < PATIENCE { Ok(None) } else { Err(error) }
            }
        }
    }
}

fn resolve(agent: &str) -> anyhow::Result<SocketAddr> {
    if let Ok(addr) = agent.parse() {
        return Ok(addr);
    }
    if let Ok(ip) = agent.parse() {
        return Ok(SocketAddr::new(ip, MESH_PORT_DEFAULT));
    }
    let usage = |why: String| crate::exit::UsageError(format!("--agent {agent:?}: {why}"));
    let mut addrs = agent.to_socket_addrs().map_err(|error| usage(format!("{error}; write IP:PORT")))?;
    Ok(addrs.next().ok_or_else(|| usage("the name has no address".to_owned()))?)
}

/// Where an operator's identity is looked for without `--identity`.
fn default_identity_dir(home: Option<PathBuf>) -> anyhow::Result<PathBuf> {
    let places: Vec<PathBuf> = home
        .map(|home| home.join(".config/redmesh"))
        .into_iter()
        .chain(["/etc/redmesh/operator".into()])
        .collect();
    if let Some(dir) = places.iter().find(|dir| dir.join("cert.pem").exists()) {
        return Ok(dir.clone());
    }
    let names: Vec<String> = places.iter().map(|dir| dir.display().to_string()).collect();
    Err(crate::exit::UsageError(format!(
        "no operator's identity in {}: name one with --identity DIR (or REDMESH_IDENTITY), or make one with \
         `redmeshctl pki issue --dir PKI --operator NAME`",
        names.join(" or in ")
    ))
    .into())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn agents_are_named_by_address_with_or_without_port() {
        assert_eq!(resolve("127.0.0.3:9").unwrap(), "127.0.0.3:9".parse().unwrap());
        assert_eq!(resolve("127.0.0.3").unwrap(), "127.0.0.3:7379".parse().unwrap());
        assert_eq!(resolve("::1").unwrap(), "[::1]:7379".parse().unwrap());
        assert_eq!(crate::exit::of_error(&resolve("no port here").unwrap_err()), Exit::Usage);
    }

    #[test]
    fn a_run_whose_fate_is_open_is_not_started_again() {
        let until = redmesh_api::run::RunUntil::Writes(1);
        let workload = redmesh_api::workload::Workload::uuid_counter();
        let run = RunRef::Latest;
        for once in [
            ControlRequest::RunStart(RunSpec::closed_loop(workload, 1, until)),
            ControlRequest::RunShare(ShareRequest {
                run: run.clone(),
                host: "h".to_owned(),
                workers: 1,
                writes: None,
            }),
            ControlRequest::RunVerify(VerifyRequest { run, sample: None, workers: 1 }),
        ] {
            assert!(may_repeat(RefusalKind::NoCoordinator, &once), "{once:?}");
            assert!(may_repeat(RefusalKind::Busy, &once), "{once:?}");
            assert!(!may_repeat(RefusalKind::Deadline, &once), "{once:?}");
        }
        assert!(may_repeat(RefusalKind::Deadline, &ControlRequest::RunStop(RunRef::Latest)));
        assert!(!may_repeat(RefusalKind::Conflict, &ControlRequest::Members));
    }

    #[test]
    fn without_an_identity_the_places_and_the_remedy_are_named() {
        let home = tempfile::tempdir().unwrap();
        let error = default_identity_dir(Some(home.path().to_owned())).unwrap_err().to_string();
        if !Path::new("/etc/redmesh/operator/cert.pem").exists() {
            assert!(error.contains(".config/redmesh") && error.contains("--identity"), "{error}");
        }
        let dir = home.path().join(".config/redmesh");
        std::fs::create_dir_all(&dir).unwrap();
        std::fs::write(dir.join("cert.pem"), "").unwrap();
        assert_eq!(default_identity_dir(Some(home.path().to_owned())).unwrap(), dir);
    }
}
