//! Operators whose certificates are refused: revoked and listed.
//!
//! The mesh knows no operators but by what they show, so any name can be revoked; whoever
//! asks is judged by the agent that was asked, see `access`.

use redmesh_api::control::{ControlReply, OperatorRevoke, RefusalKind};
use redmesh_api::level::RevokedOperator;
use redmesh_api::tls::{NAME_BYTES_MAX, valid_name};

use super::{Answer, Control, refuse};
use crate::consensus::Command;

impl Control {
    pub(super) fn operator_list(&self) -> ControlReply {
        ControlReply::Operators(self.census.level().revoked.clone())
    }

    pub(super) async fn operator_revoke(&self, request: &OperatorRevoke) -> Answer {
        let name = &request.name;
        if !valid_name(name) {
            let shown: String = name.chars().take(NAME_BYTES_MAX).collect();
            return refuse(RefusalKind::Invalid, format!("{shown:?} can be no operator's name"));
        }
        let operator = RevokedOperator { name: name.clone(), at_unix_ms: self.census.clock.now_unix_ms() };
        self.commit(Command::RevokeOperator(operator.clone())).await?;
        tracing::info!(operator = name, "revoked an operator's certificates");
        // A clock that was set back leaves the later time of an earlier revocation.
        let level = self.census.level();
        let known = level.revoked.iter().find(|known| known.name == *name);
        Ok(ControlReply::Revoked(known.cloned().unwrap_or(operator)))
    }
}
