//! Join tokens: made, listed and taken back for operators, used up for agents that let
//! hosts in.
//!
//! What is already known to be refused is never proposed: whoever holds an old token's
//! secret must not fill the log.

use redmesh_api::control::{ControlReply, Refusal, RefusalKind, TokenCreate};
use redmesh_api::join::{Enrolled, JoinRefusal, TTL_S_MAX, TTL_S_MIN, TokenId, TokenRecord, USES_MAX};
use redmesh_api::level::Level;

use super::change::uncertain;
use super::{Answer, Control, refuse};
use crate::consensus::{Applied, Command, would_apply};
use crate::peer::{self, PeerReply, PeerRequest};

impl Control {
    pub(super) fn token_list(&self) -> ControlReply {
        ControlReply::Tokens(self.census.level().tokens.clone())
    }

    pub(super) async fn token_create(&self, level: &Level, create: &TokenCreate) -> Answer {
        may_be(level, create)?;
        let now_ms = self.census.clock.now_unix_ms();
        let token = TokenRecord {
            id: TokenId::of(&create.key),
            key: create.key,
            created_unix_ms: now_ms,
            expires_unix_ms: now_ms + u64::from(create.ttl_s) * 1000,
            uses: create.uses,
            revoked: false,
            enrolled: Vec::new(),
        };
        let id = token.id;
        self.token_changed(level, Command::CreateToken(Box::new(token)), id).await
    }

    pub(super) async fn token_revoke(&self, level: &Level, id: TokenId) -> Answer {
        if !level.tokens.iter().any(|token| token.id == id) {
            return refuse(RefusalKind::NotFound, format!("there is no join token {id}"));
        }
        self.token_changed(level, Command::RevokeToken(id), id).await
    }

    async fn token_changed(&self, level: &Level, command: Command, id: TokenId) -> Answer {
        if let Applied::Rejected(reason) = would_apply(level, &command) {
            return refuse(RefusalKind::Conflict, reason);
        }
        self.commit(command).await?;
        let level = self.orders.confirm().await.map_err(|error| uncertain(&error))?;
        match level.tokens.iter().find(|token| token.id == id) {
            Some(token) => Ok(ControlReply::Token(token.clone())),
            None => refuse(RefusalKind::NotFound, format!("join token {id} is gone again")),
        }
    }

    /// Uses a token up by one for `host`, here or on the coordinator.
    pub async fn enrol(&self, token: TokenId, host: Enrolled) -> Result<(), JoinRefusal> {
        if self.census.acting() {
            return self.enrol_here(token, host).await;
        }
        let Some(coordinator) = self.census.coordinator() else {
            return Err(JoinRefusal::later("the mesh has no coordinator at the moment: try again"));
        };
        let request = PeerRequest::Enrol { token, host: Box::new(host) };
        match peer::ask(&*self.transport, coordinator.addr, &request, peer::FORWARD_DEADLINE).await {
            Ok(PeerReply::Enrolled(enrolled)) => enrolled,
            Ok(_) => Err(JoinRefusal::later("the coordinator gave an answer of another kind: try again")),
            Err(error) => Err(JoinRefusal::later(format!(
                "the coordinator did not answer: {}",
                crate::error_chain(&error)
            ))),
        }
    }

    /// The same on the coordinator; elsewhere it is refused for the moment.
    pub(super) async fn enrol_here(&self, token: TokenId, host: Enrolled) -> Result<(), JoinRefusal> {
        let later = |error: &dyn std::error::Error| JoinRefusal::later(crate::error_chain(error));
        let level = self.orders.confirm().await.map_err(|error| later(&error))?;
        // Whether the token is still good is judged by one clock, this one.
        let host = Enrolled { at_unix_ms: self.census.clock.now_unix_ms(), ..host };
        let command = Command::Enrol { token, host: Box::new(host) };
        if let Applied::Rejected(reason) = would_apply(&level, &command) {
            return Err(JoinRefusal::token(reason));
        }
        match self.orders.commit(command).await {
            Ok(Applied::Done | Applied::Unchanged) => Ok(()),
            Ok(Applied::Rejected(reason)) => Err(JoinRefusal::token(reason)),
            Err(error) => Err(later(&error)),
        }
    }
}

/// Whether such a token may be made.
fn may_be(level: &Level, create: &TokenCreate) -> Result<(), Refusal> {
    let Some(mesh) = level.mesh else {
        return refuse(RefusalKind::NoCoordinator, "the mesh is just being founded: try again");
    };
    if mesh != create.mesh {
        return refuse(
            RefusalKind::Conflict,
            format!("the token is for mesh {}, and this one is {mesh}: make it again", create.mesh),
        );
    }
    if !(TTL_S_MIN..=TTL_S_MAX).contains(&create.ttl_s) {
        let reason = format!("ttl = {} s: must be {TTL_S_MIN} s to {TTL_S_MAX} s (a week)", create.ttl_s);
        return refuse(RefusalKind::Invalid, reason);
    }
    if !(1..=USES_MAX).contains(&create.uses) {
        return refuse(RefusalKind::Invalid, format!("uses = {}: must be 1 to {USES_MAX}", create.uses));
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use redmesh_api::ids::MeshId;
    use uuid::Uuid;

    use super::*;

    #[test]
    fn a_token_is_for_this_mesh_and_within_its_bounds() {
        let mesh = MeshId(Uuid::from_u128(1));
        let level = Level { mesh: Some(mesh), ..Level::default() };
        let good = TokenCreate { key: [1; 32], mesh, ttl_s: 3600, uses: 10 };
        assert_eq!(may_be(&level, &good), Ok(()));
        let founding = may_be(&Level::default(), &good).expect_err("no mesh yet");
        assert_eq!(founding.kind, RefusalKind::NoCoordinator);
        for (create, words) in [
            (TokenCreate { mesh: MeshId(Uuid::from_u128(2)), ..good.clone() }, "make it again"),
            (TokenCreate { ttl_s: 0, ..good.clone() }, "ttl = 0 s"),
            (TokenCreate { ttl_s: TTL_S_MAX + 1, ..good.clone() }, "ttl = 604801 s"),
            (TokenCreate { uses: 0, ..good.clone() }, "uses = 0"),
            (TokenCreate { uses: USES_MAX + 1, ..good.clone() }, "uses = 257"),
        ] {
            let refusal = may_be(&level, &create).expect_err(words);
            assert!(refusal.message.contains(words), "{refusal}");
        }
    }
}
