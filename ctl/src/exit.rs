//! How ctl ends: four exit codes, the same for every command.

use std::process::ExitCode;

use crate::session::SessionError;

/// Text of `--help` about exit codes.
pub const HELP: &str = "\
Exit codes:
  0  done
  1  refused or failed; a ledger that isn't closed; a check that found something
  2  the command line can't be carried out as it stands
  3  no agent answers, it is busy, or the mesh has no coordinator at the moment";

/// How a command ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[repr(u8)]
pub enum Exit {
    /// Done.
    Ok = 0,
    /// Refused or failed.
    Failed = 1,
    /// The command line can't be carried out as it stands.
    Usage = 2,
    /// No agent answers, it is busy, or the mesh has no coordinator at the moment.
    Unreachable = 3,
}

impl Exit {
    /// [`Exit::Ok`] if `fine`, else [`Exit::Failed`].
    pub fn ok_if(fine: bool) -> Self {
        if fine { Self::Ok } else { Self::Failed }
    }
}

impl From<Exit> for ExitCode {
    fn from(exit: Exit) -> Self {
        Self::from(exit as u8)
    }
}

/// A command line that parses and still makes no sense (exit code 2).
#[derive(Debug, thiserror::Error)]
#[error("{0}")]
pub struct UsageError(pub String);

/// The exit code of an error that ended a command.
pub fn of_error(error: &anyhow::Error) -> Exit {
    if error.is::<UsageError>() {
        return Exit::Usage;
    }
    match error.chain().find_map(|cause| cause.downcast_ref::<SessionError>()) {
        Some(error) => error.exit(),
        None => Exit::Failed,
    }
}

/// The error and all its causes in one line.
pub fn whole_chain(error: &anyhow::Error) -> String {
    redmesh_api::error_chain(error.as_ref())
}

#[cfg(test)]
mod tests {
    use redmesh_api::control::{Refusal, RefusalKind};

    use super::*;

    fn refused(kind: RefusalKind) -> anyhow::Error {
        anyhow::Error::from(SessionError::Refused(Refusal { kind, message: "no".into() })).context("outer")
    }

    #[test]
    fn exit_codes_tell_refusals_from_an_absent_mesh() {
        assert_eq!(of_error(&refused(RefusalKind::Conflict)), Exit::Failed);
        assert_eq!(of_error(&refused(RefusalKind::NoCoordinator)), Exit::Unreachable);
        assert_eq!(of_error(&UsageError("x".into()).into()), Exit::Usage);
        assert_eq!(of_error(&anyhow::anyhow!("disk full")), Exit::Failed);
    }

    #[test]
    fn the_chain_is_one_line() {
        assert_eq!(whole_chain(&refused(RefusalKind::Invalid)), "outer: no");
    }
}
