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
    ClusterCheck, ClusterCreate, ClusterStatus, ControlReply, ControlRequest, HostRemove, HostReplace,
    Members, OperatorRevoke, Refusal, RefusalKind, RunDetail, RunRef, RunView, ShareRequest, TokenCreate,
    VerifyRequest,
};
use redmesh_api::join::{CaPin, TokenId, TokenRecord};
use redmesh_api::level::{ClusterPlan, ClusterSpec, PlannedHost, RemovedHost, RevokedOperator};
use redmesh_api::preflight::{Check, Finding, Report};
use redmesh_api::run::{Run, RunSpec};
use redmesh_api::tls::{Identity, Role};
use serde::Serialize;

use crate::client::{self, Client, ClientError};
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

/// A plan that was made, or that was there before.
#[derive(Debug)]
pub struct CreatedPlan {
    /// The plan.
    pub plan: ClusterPlan,
    /// Whether it is new.
    pub fresh: bool,
    /// Of a new one: what the preflight warns of.
    pub warnings: Vec<Finding>,
    /// What should be known of it, in words.
    pub notes: Vec<String>,
}

/// A host that is refused from now on, or was before.
#[derive(Debug, Serialize)]
pub struct RemovedReply {
    /// Whom.
    pub host: RemovedHost,
    /// Whether that is new.
    pub fresh: bool,
    /// Nodes that it has in the plan.
    pub nodes: u32,
    /// What is left to do, in words.
    pub notes: Vec<String>,
}

/// A host that has taken another one's place.
#[derive(Debug, Serialize)]
pub struct ReplacedReply {
    /// Id of the one that is gone.
    pub from: String,
    /// Who bears its instances now.
    pub to: PlannedHost,
    /// How many they are.
    pub instances: u32,
    /// Whether that is new.
    pub fresh: bool,
}

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

    fn unexpected(&self, asked: &'static str) -> SessionError {
        SessionError::Unexpected { agent: self.agent, asked }
    }

    /// Who is there.
    pub async fn members(&mut self) -> Result<Members, SessionError> {
        match self.request(&ControlRequest::Members).await? {
            ControlReply::Members(members) => Ok(members),
            _ => Err(self.unexpected("Members")),
        }
    }

    /// Has a host refused for good.
    pub async fn host_remove(&mut self, request: HostRemove) -> Result<RemovedReply, SessionError> {
        match self.request_of_coordinator(&ControlRequest::HostRemove(request)).await? {
            ControlReply::Removed { host, fresh, nodes, notes } => {
                Ok(RemovedReply { host, fresh, nodes, notes })
            }
            _ => Err(self.unexpected("HostRemove")),
        }
    }

    /// Has a host take the place of one that is gone.
    pub async fn host_replace(&mut self, request: HostReplace) -> Result<ReplacedReply, SessionError> {
        match self.request_of_coordinator(&ControlRequest::HostReplace(request)).await? {
            ControlReply::Replaced { from, to, instances, fresh } => {
                Ok(ReplacedReply { from, to, instances, fresh })
            }
            _ => Err(self.unexpected("HostReplace")),
        }
    }

    /// Has an operator's certificates of until now refused.
    pub async fn operator_revoke(
        &mut self,
        request: OperatorRevoke,
    ) -> Result<RevokedOperator, SessionError> {
        match self.request_of_coordinator(&ControlRequest::OperatorRevoke(request)).await? {
            ControlReply::Revoked(operator) => Ok(operator),
            _ => Err(self.unexpected("OperatorRevoke")),
        }
    }

    /// Operators whose earlier certificates are refused.
    pub async fn operators(&mut self) -> Result<Vec<RevokedOperator>, SessionError> {
        match self.request(&ControlRequest::OperatorList).await? {
            ControlReply::Operators(revoked) => Ok(revoked),
            _ => Err(self.unexpected("OperatorList")),
        }
    }

    /// Begins, continues or confirms a cluster.
    pub async fn cluster_create(
        &mut self,
        spec: ClusterSpec,
        force: Vec<Check>,
    ) -> Result<CreatedPlan, SessionError> {
        let create = ControlRequest::ClusterCreate(ClusterCreate { spec, force });
        match self.request_of_coordinator(&create).await? {
            ControlReply::Created { plan, fresh, warnings, notes } => {
                Ok(CreatedPlan { plan, fresh, warnings, notes })
            }
            _ => Err(self.unexpected("ClusterCreate")),
        }
    }

    /// Whether the hosts could bear such a cluster.
    pub async fn doctor(&mut self, spec: ClusterSpec) -> Result<Report, SessionError> {
        match self.request(&ControlRequest::Doctor(spec)).await? {
            ControlReply::Doctor(report) => Ok(*report),
            _ => Err(self.unexpected("Doctor")),
        }
    }

    /// How far the plan is.
    pub async fn cluster_status(&mut self) -> Result<ClusterStatus, SessionError> {
        match self.request(&ControlRequest::ClusterStatus).await? {
            ControlReply::ClusterStatus(status) => Ok(status),
            _ => Err(self.unexpected("ClusterStatus")),
        }
    }

    /// What every instance says now.
    pub async fn cluster_check(&mut self) -> Result<ClusterCheck, SessionError> {
        match self.request(&ControlRequest::ClusterCheck).await? {
            ControlReply::ClusterCheck(check) => Ok(check),
            _ => Err(self.unexpected("ClusterCheck")),
        }
    }

    /// Begins a run.
    pub async fn run_start(&mut self, spec: RunSpec) -> Result<Run, SessionError> {
        match self.request_of_coordinator(&ControlRequest::RunStart(spec)).await? {
            ControlReply::RunStarted(run) => Ok(run),
            _ => Err(self.unexpected("RunStart")),
        }
    }

    /// Begins to read back what a run has written; that is a run of its own.
    pub async fn run_verify(&mut self, request: VerifyRequest) -> Result<Run, SessionError> {
        match self.request_of_coordinator(&ControlRequest::RunVerify(request)).await? {
            ControlReply::RunStarted(run) => Ok(run),
            _ => Err(self.unexpected("RunVerify")),
        }
    }

    /// Gives a host a share in a run.
    pub async fn run_share(&mut self, request: ShareRequest) -> Result<RunView, SessionError> {
        match self.request_of_coordinator(&ControlRequest::RunShare(request)).await? {
            ControlReply::Run(view) => Ok(view),
            _ => Err(self.unexpected("RunShare")),
        }
    }

    /// Asks for a run to be stopped.
    pub async fn run_stop(&mut self, run: RunRef) -> Result<RunView, SessionError> {
        match self.request_of_coordinator(&ControlRequest::RunStop(run)).await? {
            ControlReply::Run(view) => Ok(view),
            _ => Err(self.unexpected("RunStop")),
        }
    }

    /// All runs known.
    pub async fn runs(&mut self) -> Result<Vec<RunView>, SessionError> {
        match self.request(&ControlRequest::RunList).await? {
            ControlReply::Runs(runs) => Ok(runs),
            _ => Err(self.unexpected("RunList")),
        }
    }

    /// One run with all that its hosts kept of it.
    pub async fn run_detail(&mut self, run: RunRef) -> Result<RunDetail, SessionError> {
        match self.request(&ControlRequest::RunDetail(run)).await? {
            ControlReply::RunDetail(detail) => Ok(detail),
            _ => Err(self.unexpected("RunDetail")),
        }
    }

    /// Makes the mesh let hosts in that prove a token.
    pub async fn token_create(&mut self, create: TokenCreate) -> Result<TokenRecord, SessionError> {
        match self.request_of_coordinator(&ControlRequest::TokenCreate(create)).await? {
            ControlReply::Token(token) => Ok(token),
            _ => Err(self.unexpected("TokenCreate")),
        }
    }

    /// All join tokens that are remembered.
    pub async fn tokens(&mut self) -> Result<Vec<TokenRecord>, SessionError> {
        match self.request(&ControlRequest::TokenList).await? {
            ControlReply::Tokens(tokens) => Ok(tokens),
            _ => Err(self.unexpected("TokenList")),
        }
    }

    /// Takes a join token back.
    pub async fn token_revoke(&mut self, id: TokenId) -> Result<TokenRecord, SessionError> {
        match self.request_of_coordinator(&ControlRequest::TokenRevoke(id)).await? {
            ControlReply::Token(token) => Ok(token),
            _ => Err(self.unexpected("TokenRevoke")),
        }
    }

    /// One run; `latency` also pulls the hosts' histograms.
    pub async fn run_show(&mut self, run: RunRef, latency: bool) -> Result<RunView, SessionError> {
        match self.request(&ControlRequest::RunShow { run, latency }).await? {
            ControlReply::Run(view) => Ok(view),
            _ => Err(self.unexpected("RunShow")),
        }
    }
}

fn may_repeat(kind: RefusalKind, request: &ControlRequest) -> bool {
    match kind {
        RefusalKind::NoCoordinator | RefusalKind::Busy => true,
        RefusalKind::Deadline => client::repeatable(request),
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
