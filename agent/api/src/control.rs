//! What ctl (and any other client with an operator's certificate) may ask of any agent.

use std::net::SocketAddr;

use serde::{Deserialize, Serialize};

use crate::ids::{HostId, MeshId};
use crate::join::{TokenId, TokenRecord};
use crate::level::{ClusterPlan, ClusterSpec, PlanStage, PlannedHost, RemovedHost, RevokedOperator, Stamp};
use crate::preflight::{Check, Finding, Report};
use crate::run::{LatencySummary, Run, RunSpec, ShareDetail, Tally};

/// A request; each is answered by the [`ControlReply`] variant named beside it or
/// by [`ControlReply::Refused`].
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub enum ControlRequest {
    /// Who is here? → `Members`
    Members,
    /// Refuse a host for good. → `Removed`
    HostRemove(HostRemove),
    /// Give the instances of a host that is gone to the one that took its place. → `Replaced`
    HostReplace(HostReplace),
    /// Begin (or continue, or confirm) a cluster; returns once the plan is
    /// committed, `ClusterStatus` tells the rest. → `Created`
    ClusterCreate(ClusterCreate),
    /// Could the hosts bear this cluster? Changes nothing, and any agent answers. → `Doctor`
    Doctor(ClusterSpec),
    /// How far is the plan? Cheap, made of gossip: what progress bars poll. → `ClusterStatus`
    ClusterStatus,
    /// Ask every instance for its view now. → `ClusterCheck`
    ClusterCheck,
    /// Begin a run. → `RunStarted`
    RunStart(RunSpec),
    /// Give a host a share in a run that is going on. → `Run`
    RunShare(ShareRequest),
    /// Read back what a run has written: begins a run of its own. → `RunStarted`
    RunVerify(VerifyRequest),
    /// Stop a run; the stage tells when it has. → `Run`
    RunStop(RunRef),
    /// All runs known. → `Runs`
    RunList,
    /// One run, with live counts. → `Run`
    RunShow {
        /// Which.
        run: RunRef,
        /// Also pull the hosts' histograms (else `latency` is `None` in mid-run).
        latency: bool,
    },
    /// One run with all that its hosts kept. → `RunDetail`
    RunDetail(RunRef),
    /// Let hosts in that prove this token. → `Token`
    TokenCreate(TokenCreate),
    /// All join tokens that the mesh remembers. → `Tokens`
    TokenList,
    /// Let nobody in any more by this token. → `Token`
    TokenRevoke(TokenId),
    /// Refuse an operator's certificates that were issued until now. → `Revoked`
    OperatorRevoke(OperatorRevoke),
    /// Whose certificates are refused? → `Operators`
    OperatorList,
}

impl ControlRequest {
    /// Its name, where what it carries would say too much.
    pub fn name(&self) -> &'static str {
        match self {
            Self::Members => "Members",
            Self::HostRemove(_) => "HostRemove",
            Self::HostReplace(_) => "HostReplace",
            Self::ClusterCreate(_) => "ClusterCreate",
            Self::Doctor(_) => "Doctor",
            Self::ClusterStatus => "ClusterStatus",
            Self::ClusterCheck => "ClusterCheck",
            Self::RunStart(_) => "RunStart",
            Self::RunShare(_) => "RunShare",
            Self::RunVerify(_) => "RunVerify",
            Self::RunStop(_) => "RunStop",
            Self::RunList => "RunList",
            Self::RunShow { .. } => "RunShow",
            Self::RunDetail(_) => "RunDetail",
            Self::TokenCreate(_) => "TokenCreate",
            Self::TokenList => "TokenList",
            Self::TokenRevoke(_) => "TokenRevoke",
            Self::OperatorRevoke(_) => "OperatorRevoke",
            Self::OperatorList => "OperatorList",
        }
    }

    /// Whether it changes the mesh, or puts load upon it; only the coordinator does that.
    /// No default: whoever adds a request has to say it here.
    pub fn changes(&self) -> bool {
        match self {
            Self::HostRemove(_)
            | Self::HostReplace(_)
            | Self::ClusterCreate(_)
            | Self::RunStart(_)
            | Self::RunShare(_)
            | Self::RunVerify(_)
            | Self::RunStop(_)
            | Self::TokenCreate(_)
            | Self::TokenRevoke(_)
            | Self::OperatorRevoke(_) => true,
            Self::Members
            | Self::Doctor(_)
            | Self::ClusterStatus
            | Self::ClusterCheck
            | Self::RunList
            | Self::RunShow { .. }
            | Self::RunDetail(_)
            | Self::TokenList
            | Self::OperatorList => false,
        }
    }

    /// Whether carrying it out twice is as good as once.
    pub fn repeatable(&self) -> bool {
        // A second revocation would take back what was issued since the first: but only within
        // one command's timeout.
        let idempotent = matches!(
            self,
            Self::HostRemove(_)
                | Self::HostReplace(_)
                | Self::ClusterCreate(_)
                | Self::RunStop(_)
                | Self::TokenCreate(_)
                | Self::TokenRevoke(_)
                | Self::OperatorRevoke(_)
        );
        idempotent || !self.changes()
    }
}

/// A host that is to be removed.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct HostRemove {
    /// Its name, or its id in hex where several bear the name.
    pub host: String,
    /// Checks that don't stop it when they fail.
    pub force: Vec<RemovalCheck>,
}

/// A host that another one is to take the place of.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct HostReplace {
    /// The plan's name of the host that is gone, or its id in hex.
    pub host: String,
    /// Name or id of the one that takes its place; without it the one of the same name.
    pub with: Option<String>,
}

/// What keeps a host from being removed unless it is overridden by name.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum RemovalCheck {
    /// Its servers hold slots that no other host covers.
    Slots,
    /// The mesh knows no such host.
    Unknown,
}

impl RemovalCheck {
    /// Its name on the command line.
    pub fn name(self) -> &'static str {
        match self {
            Self::Slots => "slots",
            Self::Unknown => "unknown",
        }
    }
}

/// An operator whose certificates are to be refused.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct OperatorRevoke {
    /// The name in them.
    pub name: String,
    /// Checks that don't stop it when they fail.
    pub force: Vec<RevocationCheck>,
}

/// What keeps an operator from being revoked unless it is overridden by name.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum RevocationCheck {
    /// Whoever asks bears the name, and would be refused from then on.
    Itself,
}

impl RevocationCheck {
    /// Its name on the command line.
    pub fn name(self) -> &'static str {
        match self {
            Self::Itself => "self",
        }
    }
}

/// A cluster that is to be.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct ClusterCreate {
    /// What it is to be like.
    pub spec: ClusterSpec,
    /// Checks of the preflight that don't stop it when they fail.
    pub force: Vec<Check>,
}

/// A join token to be; its secret stays with whoever made it.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct TokenCreate {
    /// See [`crate::join::JoinToken::public_key`].
    pub key: [u8; 32],
    /// The mesh that its text names.
    pub mesh: MeshId,
    /// How long it lets hosts in, seconds.
    pub ttl_s: u32,
    /// How many.
    pub uses: u16,
}

/// A share for a host that has joined, or for one that can bear more.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct ShareRequest {
    /// In which run.
    pub run: RunRef,
    /// The host's name.
    pub host: String,
    /// Workers that it adds.
    pub workers: u32,
    /// Operations that it adds; needed where the run is bounded by them.
    pub writes: Option<u64>,
}

/// What is to be read back.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct VerifyRequest {
    /// Of which run.
    pub run: RunRef,
    /// About so many keys, evenly strewn; `None` for all.
    pub sample: Option<u64>,
    /// Workers over the whole mesh.
    pub workers: u32,
}

/// Names a run.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub enum RunRef {
    /// The newest.
    Latest,
    /// The one whose UUID begins with this text (hex digits and dashes).
    Prefix(String),
}

/// An answer.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub enum ControlReply {
    /// See [`ControlRequest::Members`].
    Members(Members),
    /// See [`ControlRequest::HostRemove`].
    Removed(Removed),
    /// See [`ControlRequest::HostReplace`].
    Replaced(Replaced),
    /// See [`ControlRequest::ClusterCreate`].
    Created(Created),
    /// See [`ControlRequest::Doctor`].
    Doctor(Box<Report>),
    /// See [`ControlRequest::ClusterStatus`].
    ClusterStatus(ClusterStatus),
    /// See [`ControlRequest::ClusterCheck`].
    ClusterCheck(ClusterCheck),
    /// See [`ControlRequest::RunStart`].
    RunStarted(Run),
    /// See [`ControlRequest::RunShow`].
    Run(RunView),
    /// See [`ControlRequest::RunDetail`].
    RunDetail(RunDetail),
    /// See [`ControlRequest::RunList`].
    Runs(Vec<RunView>),
    /// See [`ControlRequest::TokenCreate`] and [`ControlRequest::TokenRevoke`].
    Token(TokenRecord),
    /// See [`ControlRequest::TokenList`].
    Tokens(Vec<TokenRecord>),
    /// See [`ControlRequest::OperatorRevoke`].
    Revoked(RevokedOperator),
    /// See [`ControlRequest::OperatorList`]; by name.
    Operators(Vec<RevokedOperator>),
    /// Not done, and why.
    Refused(Refusal),
}

/// Gives each answer's own type out of a [`ControlReply`], or the reply back if it is of
/// another kind.
macro_rules! answers {
    ($($variant:ident: $answer:ty,)*) => {$(
        impl TryFrom<ControlReply> for $answer {
            type Error = ControlReply;

            fn try_from(reply: ControlReply) -> Result<Self, ControlReply> {
                match reply {
                    ControlReply::$variant(answer) => Ok(answer),
                    other => Err(other),
                }
            }
        }
    )*};
}

answers! {
    Members: Members,
    Removed: Removed,
    Replaced: Replaced,
    Created: Created,
    Doctor: Box<Report>,
    ClusterStatus: ClusterStatus,
    ClusterCheck: ClusterCheck,
    RunStarted: Run,
    Run: RunView,
    RunDetail: RunDetail,
    Runs: Vec<RunView>,
    Token: TokenRecord,
    Tokens: Vec<TokenRecord>,
    Revoked: RevokedOperator,
    Operators: Vec<RevokedOperator>,
}

/// A host that is refused from now on, or was before.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Removed {
    /// Whom.
    pub host: RemovedHost,
    /// False when it was so before.
    pub fresh: bool,
    /// Nodes that it has in the plan: the other hosts have their instances forget them, see
    /// [`HostProgress::forgotten`].
    pub nodes: u32,
    /// What is left to do, in words.
    pub notes: Vec<String>,
}

/// A host that has taken another one's place.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Replaced {
    /// Who is refused from now on.
    pub from: HostId,
    /// Who has its instances.
    pub to: PlannedHost,
    /// How many they are.
    pub instances: u32,
    /// False when it was so before.
    pub fresh: bool,
}

/// A plan that was made, or that was there before.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Created {
    /// The plan that is now being carried out, or was already.
    pub plan: ClusterPlan,
    /// False when the same plan was there before.
    pub fresh: bool,
    /// Of a fresh plan: what the preflight warns of, and failures that were overridden.
    pub warnings: Vec<Finding>,
    /// What should be known of it, in words: why it is formed as it is.
    pub notes: Vec<String>,
}

/// Why a request was not carried out.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, thiserror::Error)]
#[error("{message}")]
pub struct Refusal {
    /// For programs.
    pub kind: RefusalKind,
    /// For people: what, which value, and the remedy.
    pub message: String,
}

impl Refusal {
    /// One of `kind`.
    pub fn new(kind: RefusalKind, message: impl Into<String>) -> Self {
        Self { kind, message: message.into() }
    }
}

/// Classes of refusal.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum RefusalKind {
    /// No coordinator with a fresh quorum at the moment. Nothing was done: try again.
    NoCoordinator,
    /// The request itself can't be carried out as it stands.
    Invalid,
    /// The mesh's state forbids it (a cluster is there already, a run is going on).
    Conflict,
    /// The preflight found what can't work; the message names each check.
    Preflight,
    /// There is nothing by that name.
    NotFound,
    /// The certificate's role doesn't allow it.
    Forbidden,
    /// The agent serves as many requests as it may. Nothing was done: try again.
    Busy,
    /// It did not finish in time, and may have been carried out or not; what it was
    /// waiting for is in the message.
    Deadline,
    /// The agent failed; its log has more.
    Internal,
}

/// The mesh as one agent sees it.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Members {
    /// Name from the configuration.
    pub mesh_name: String,
    /// Set once the mesh has initialised.
    pub mesh: Option<MeshId>,
    /// The agent that answers.
    pub answered_by: HostId,
    /// The coordinator, where one is known to act.
    pub coordinator: Option<HostId>,
    /// Hosts needed before the mesh initialises.
    pub bootstrap_expect: u16,
    /// What the mesh is waiting for, in words, when it isn't serving.
    pub waiting_for: Option<String>,
    /// Newest level seen.
    pub stamp: Stamp,
    /// All members, by name.
    pub members: Vec<Member>,
}

/// One host of the mesh.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Member {
    /// Its id.
    pub id: HostId,
    /// Its certificate's name.
    pub name: String,
    /// Its mesh address.
    pub addr: SocketAddr,
    /// By the failure detector.
    pub state: MemberState,
    /// Whether it votes.
    pub voter: bool,
    /// Whether it coordinates.
    pub coordinator: bool,
    /// redis-servers running.
    pub instances_up: u32,
    /// redis-servers that the plan wants of it.
    pub instances_planned: u32,
    /// Agent's version.
    pub version: String,
    /// Where it serves `/metrics`; `None` if it doesn't.
    pub http_addr: Option<SocketAddr>,
    /// First problem that it reports, with the remedy.
    pub problem: Option<String>,
    /// Which secrets of the redis-servers' passwords are good there, as far as it has said.
    pub secrets: Option<SecretState>,
}

/// Which secrets are good on one host: fingerprints, which lead back to none.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct SecretState {
    /// What all of its running servers accept, the newest first; at most two.
    pub accepts: Vec<String>,
    /// The one that its replicas use, once all hosts accept that.
    pub replicates: Option<String>,
}

/// What the failure detector says.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum MemberState {
    /// Heard of lately.
    Alive,
    /// Not heard of.
    Dead,
}

/// How far the plan is, made of what hosts gossip.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct ClusterStatus {
    /// The plan; `None` before the first create.
    pub plan: Option<ClusterPlan>,
    /// Per host of the plan.
    pub hosts: Vec<HostProgress>,
    /// Milliseconds since the plan was committed, until it was formed or until now.
    pub since_ms: u64,
    /// Set when it is past its deadline: what is awaited, of whom.
    pub overdue: Option<String>,
}

/// One host's part of a formation.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct HostProgress {
    /// Who.
    pub id: HostId,
    /// Its name.
    pub name: String,
    /// Whether gossip hears of it.
    pub alive: bool,
    /// Stage of the plan that it works on; `None` before it has seen the plan.
    pub stage: Option<PlanStage>,
    /// Instances that it is to run.
    pub planned: u32,
    /// Of these, held: their bus ports listen, and they wait to be released.
    pub held: u32,
    /// Of these, up: they answer.
    pub up: u32,
    /// Whose view is whole: `cluster_state:ok`, all nodes known, all slots covered.
    pub agreed: u32,
    /// Instances that aren't there yet, with the reason and the remedy; bounded.
    pub problems: Vec<String>,
    /// Whether it was removed from the mesh.
    pub removed: bool,
    /// Removed hosts whose nodes none of its instances knows any more.
    pub forgotten: Vec<HostId>,
    /// Why it does not have such a node forgotten, and the remedy.
    pub withheld: Option<String>,
}

impl HostProgress {
    /// Instances that wait for nothing of their own host any more.
    pub fn ready(&self) -> u32 {
        self.held + self.up
    }
}

/// What all instances say, asked now.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct ClusterCheck {
    /// Every instance of the plan.
    pub instances: Vec<InstanceView>,
    /// Slots covered by a primary, by the majority's view.
    pub slots_covered: u16,
    /// Whether all views are the same.
    pub agreed: bool,
    /// Slots being migrated or imported.
    pub open_slots: Vec<u16>,
    /// What is wrong, each with the instance's name; empty when whole.
    pub errors: Vec<String>,
    /// What is not wrong but should be known (replica beside its primary, …).
    pub warnings: Vec<String>,
}

/// One instance's state and its view of the cluster.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct InstanceView {
    /// Host that bears it.
    pub host: HostId,
    /// Data address.
    pub addr: SocketAddr,
    /// Its node id as planned.
    pub node_id: crate::ids::NodeId,
    /// Whether it answers.
    pub up: bool,
    /// Whether it is a primary now.
    pub primary: bool,
    /// The primary that it follows.
    pub primary_id: Option<crate::ids::NodeId>,
    /// Slots that it serves, by its own account.
    pub slots: Vec<crate::level::SlotRange>,
    /// Keys.
    pub keys: u64,
    /// `cluster_state:ok`.
    pub state_ok: bool,
    /// `cluster_known_nodes`.
    pub known_nodes: u32,
    /// `cluster_slots_assigned`.
    pub slots_assigned: u16,
    /// Digest of its whole view (who is where with which slots); equal views, equal digests.
    pub view_digest: u64,
    /// Slots that it is migrating or importing.
    pub open_slots: Vec<u16>,
    /// Why it isn't up or what is amiss, with the remedy.
    pub problem: Option<String>,
}

/// A run with its counts as gossip has them (at most about a second old), or closed.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct RunView {
    /// The run.
    pub run: Run,
    /// Counts by host and epoch.
    pub tallies: Vec<Tally>,
    /// Operations acked per second lately, over all hosts; of a closed run over its whole
    /// time after warm-up.
    pub writes_per_s: f64,
    /// The same per share, in the order of the run's shares.
    pub share_writes_per_s: Vec<f64>,
    /// Service times over all hosts; `None` where not asked for or not known.
    pub latency: Option<LatencySummary>,
    /// Open loop: the same from the intended begin.
    pub intended: Option<LatencySummary>,
    /// What it is waiting for, in words, when a share is silent.
    pub waiting_for: Option<String>,
}

/// A run with all that its hosts kept of it.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct RunDetail {
    /// The run.
    pub view: RunView,
    /// One per host and epoch that could be had.
    pub details: Vec<ShareDetail>,
    /// What could not, in words.
    pub missing: Vec<String>,
}
