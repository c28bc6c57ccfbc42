//! What may be asked of the replicated state.

use redmesh_api::ids::{HostId, MeshId, NodeId, PlanId, RunId};
use redmesh_api::join::{Enrolled, TokenId, TokenRecord};
use redmesh_api::level::{ClusterPlan, Convergence, PlanStage, RemovedHost, RevokedOperator};
use redmesh_api::run::{Run, RunResult, RunStage, Share};
use serde::{Deserialize, Serialize};

/// One change of the level. Each is idempotent: proposed twice, the second comes to
/// [`Applied::Unchanged`], so that a proposal whose answer was lost may be repeated.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub enum Command {
    /// Gives the mesh its id; the first entry of a mesh.
    Found {
        /// The id, drawn by the first leader.
        mesh: MeshId,
    },
    /// Sets the cluster plan, once and for all.
    CreatePlan(Box<ClusterPlan>),
    /// Moves the plan on.
    AdvancePlan {
        /// Which; must be the one there is.
        plan: PlanId,
        /// The stage reached.
        to: PlanStage,
        /// The coordinator's clock, Unix milliseconds.
        at_unix_ms: u64,
        /// How the views became one, where the plan is formed now.
        convergence: Option<Convergence>,
    },
    /// Writes the servers' own node ids into a plan for MEET, and so takes it from
    /// [`PlanStage::Prepare`] to [`PlanStage::Release`].
    NameNodes {
        /// Which; must be the one there is.
        plan: PlanId,
        /// One for each instance of the plan, in its order.
        ids: Vec<NodeId>,
        /// The coordinator's clock, Unix milliseconds.
        at_unix_ms: u64,
    },
    /// Refuses a host for good.
    RemoveHost(RemovedHost),
    /// Gives the instances of a host that is gone to another one, and refuses it for good.
    ReplaceHost {
        /// Which; must be the one there is.
        plan: PlanId,
        /// Who bears them so far.
        from: HostId,
        /// Who bears them from now on; no host of the plan yet.
        to: HostId,
        /// Its certificate's name.
        name: String,
        /// The coordinator's clock, Unix milliseconds.
        at_unix_ms: u64,
    },
    /// Refuses an operator's certificates of until then.
    RevokeOperator(RevokedOperator),
    /// Begins a run.
    StartRun(Box<Run>),
    /// Moves a run on, but not to [`RunStage::Done`]: that takes `CloseRun`.
    AdvanceRun {
        /// Which.
        run: RunId,
        /// The stage reached.
        to: RunStage,
    },
    /// Closes a run's account.
    CloseRun {
        /// Which.
        run: RunId,
        /// Shares that it has: the account was closed with these in view.
        known: u16,
        /// The account.
        result: Box<RunResult>,
    },
    /// Adds shares to a run that is going on.
    AddShares {
        /// Which.
        run: RunId,
        /// Shares that it has: what is added was decided upon with these in view.
        known: u16,
        /// Index of a lost host's share whose rest is added; its host then only accounts
        /// for it.
        given_up: Option<u16>,
        /// What is added; not empty.
        shares: Vec<Share>,
    },
    /// Adds a join token.
    CreateToken(Box<TokenRecord>),
    /// Takes a join token back.
    RevokeToken(TokenId),
    /// Uses a join token up by one: this host is to get a certificate.
    Enrol {
        /// By which token.
        token: TokenId,
        /// Whom; its time is the coordinator's, and decides whether the token is still good.
        host: Box<Enrolled>,
    },
}

/// What became of a command.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub enum Applied {
    /// The level changed and bears the entry's stamp.
    Done,
    /// It was so already.
    Unchanged,
    /// It can't be, and why; nothing changed.
    Rejected(String),
}
