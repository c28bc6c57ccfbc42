//! Shares as those see them who start and watch them: traits, so that a simulation can
//! put another engine in the place of load threads.

use std::fmt;
use std::net::SocketAddr;
use std::path::PathBuf;
use std::sync::Arc;

use hdrhistogram::Histogram;
use redmesh_api::run::{Counts, ErrorCount, Findings};
use tokio::sync::{mpsc, watch};

use super::routing::SlotMap;
use super::written::Written;
use super::{Engine, LoadError, ShareHandle, ShareSpec};

/// Starts shares.
pub trait LoadEngine: fmt::Debug + Send + Sync {
    /// See [`Engine::start`].
    ///
    /// # Errors
    /// [`LoadError`]; nothing runs then.
    fn start(
        &self,
        spec: ShareSpec,
        slots: watch::Receiver<Arc<SlotMap>>,
        refresh: mpsc::Sender<()>,
        ledger: PathBuf,
    ) -> Result<Box<dyn RunningShare>, LoadError>;
}

/// A share that was started. Dropping it ends it at once.
pub trait RunningShare: fmt::Debug + Send + Sync {
    /// Everything counted so far; exact once closed.
    fn counts(&self) -> Counts;

    /// Every operation's fate is counted and no more will be issued.
    fn closed(&self) -> bool;

    /// Issue no more and wait for what is in flight. Returns at once.
    fn stop(&self);

    /// What went wrong so far, in one line of words.
    fn error(&self) -> Option<String>;

    /// What ended a part of it before its time, if anything did.
    fn failure(&self) -> Option<String>;

    /// Which keys were written; `None` of a task whose keys are not counted.
    fn written(&self) -> Option<Written>;

    /// What a report shows beside the counts.
    fn figures(&self) -> ShareFigures;
}

/// What a report shows of a share beside its counts.
#[derive(Debug, Clone)]
pub struct ShareFigures {
    /// When the first operation was issued, Unix milliseconds; `None` before.
    pub began_unix_ms: Option<u64>,
    /// Fewest and most acked operations of any one worker.
    pub worker_acked: (u64, u64),
    /// What went wrong, by kind.
    pub errors: Vec<ErrorCount>,
    /// Service times, microseconds.
    pub histogram: Histogram<u64>,
    /// Open loop: times from the intended begin, microseconds.
    pub intended: Option<Histogram<u64>>,
    /// Open loop: operations whose time has come and that have not begun.
    pub behind: u64,
    /// Load threads.
    pub threads: u16,
    /// Acked operations by server.
    pub acked_by: Vec<(SocketAddr, u64)>,
    /// What a read-back has found so far.
    pub findings: Option<Findings>,
}

impl LoadEngine for Engine {
    fn start(
        &self,
        spec: ShareSpec,
        slots: watch::Receiver<Arc<SlotMap>>,
        refresh: mpsc::Sender<()>,
        ledger: PathBuf,
    ) -> Result<Box<dyn RunningShare>, LoadError> {
        Ok(Box::new(Self::start(spec, slots, refresh, ledger)?))
    }
}

impl RunningShare for ShareHandle {
    fn counts(&self) -> Counts {
        self.view().counts()
    }

    fn closed(&self) -> bool {
        self.view().closed()
    }

    fn stop(&self) {
        self.view().stop();
    }

    fn error(&self) -> Option<String> {
        self.view().error()
    }

    fn failure(&self) -> Option<String> {
        self.view().failure()
    }

    fn written(&self) -> Option<Written> {
        self.view().written()
    }

    fn figures(&self) -> ShareFigures {
        let view = self.view();
        ShareFigures {
            began_unix_ms: view.began_unix_ms(),
            worker_acked: view.worker_spread(),
            errors: view.errors(),
            histogram: view.histogram(),
            intended: view.intended(),
            behind: view.behind(),
            threads: view.threads(),
            acked_by: view.acked_by(),
            findings: view.findings(),
        }
    }
}
