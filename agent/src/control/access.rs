//! Which certificate may ask what: the one place where a control request is allowed.
//!
//! Asked by the agent that was asked, before it answers or passes anything on; between
//! agents a forwarded request is taken as allowed, since a host's certificate may do
//! more than any operator's anyway.

use redmesh_api::control::{ControlRequest, Refusal, RefusalKind, RevocationCheck};
use redmesh_api::tls::Role;

use crate::transport::Peer;

/// Why `peer` may not ask `request`, if it may not.
pub fn forbidden(peer: &Peer, request: &ControlRequest) -> Option<Refusal> {
    let reason = match peer {
        Peer::Operator { name, role: Role::Operator, .. } => return ends_itself(name, request),
        Peer::Operator { role: Role::Reader, .. } if !request.changes() => return None,
        Peer::Operator { name, role: Role::Reader, .. } => format!(
            "{} is not for the certificate of {name}, a read-only operator's: it may look at the mesh and change \
             nothing; one that may is made by `redmeshctl pki issue --operator NAME` without --read-only",
            request.name()
        ),
        Peer::Operator { name, .. } | Peer::Agent { name, .. } => format!(
            "{} is not for the certificate of {name}, a host's: control requests need an operator's, made by \
             `redmeshctl pki issue --operator NAME`",
            request.name()
        ),
    };
    Some(Refusal { kind: RefusalKind::Forbidden, message: reason })
}

/// Why the operator `name` may not ask `request` of its own certificate.
fn ends_itself(name: &str, request: &ControlRequest) -> Option<Refusal> {
    let ControlRequest::OperatorRevoke(revoke) = request else { return None };
    if revoke.name != name || revoke.force.contains(&RevocationCheck::Itself) {
        return None;
    }
    let message = format!(
        "you are {name}: this would revoke the certificate that you are asking with, and only another operator \
         could go on; --force {} does it all the same",
        RevocationCheck::Itself.name()
    );
    Some(Refusal { kind: RefusalKind::Conflict, message })
}

#[cfg(test)]
mod tests {
    use redmesh_api::control::{
        ClusterCreate, HostRemove, HostReplace, OperatorRevoke, RunRef, ShareRequest, TokenCreate,
        VerifyRequest,
    };
    use redmesh_api::ids::{HostId, MeshId};
    use redmesh_api::join::TokenId;
    use redmesh_api::level::ClusterSpec;
    use redmesh_api::run::{RunSpec, RunUntil};
    use redmesh_api::workload::Workload;

    use super::*;
    use crate::transport::Presented;

    fn mesh() -> MeshId {
        MeshId(uuid::Uuid::from_u128(1))
    }

    fn requests() -> (Vec<ControlRequest>, Vec<ControlRequest>) {
        let run = RunRef::Latest;
        let asking = vec![
            ControlRequest::Members,
            ControlRequest::Doctor(ClusterSpec::default()),
            ControlRequest::ClusterStatus,
            ControlRequest::ClusterCheck,
            ControlRequest::RunList,
            ControlRequest::RunShow { run: run.clone(), latency: true },
            ControlRequest::RunDetail(run.clone()),
            ControlRequest::TokenList,
            ControlRequest::OperatorList,
        ];
        let spec = RunSpec::closed_loop(Workload::uuid_counter(), 1, RunUntil::Writes(1));
        let share = ShareRequest { run: run.clone(), host: "h".to_owned(), workers: 1, writes: None };
        let changing = vec![
            ControlRequest::HostRemove(HostRemove { host: "h".to_owned(), force: Vec::new() }),
            ControlRequest::HostReplace(HostReplace { host: "h".to_owned(), with: None }),
            ControlRequest::ClusterCreate(ClusterCreate { spec: ClusterSpec::default(), force: Vec::new() }),
            ControlRequest::RunStart(spec),
            ControlRequest::RunShare(share),
            ControlRequest::RunVerify(VerifyRequest { run: run.clone(), sample: None, workers: 1 }),
            ControlRequest::RunStop(run),
            ControlRequest::TokenCreate(TokenCreate { key: [1; 32], mesh: mesh(), ttl_s: 60, uses: 1 }),
            ControlRequest::TokenRevoke(TokenId::of(&[1; 32])),
            revoke("alice", Vec::new()),
        ];
        (asking, changing)
    }

    fn revoke(name: &str, force: Vec<RevocationCheck>) -> ControlRequest {
        ControlRequest::OperatorRevoke(OperatorRevoke { name: name.to_owned(), force })
    }

    #[test]
    fn nobody_revokes_itself_by_mistake() {
        let refusal = forbidden(&operator(Role::Operator), &revoke("bob", Vec::new())).expect("is refused");
        assert_eq!(refusal.kind, RefusalKind::Conflict);
        assert!(refusal.message.contains("you are bob") && refusal.message.contains("--force self"));
        assert_eq!(forbidden(&operator(Role::Operator), &revoke("bob", vec![RevocationCheck::Itself])), None);
        let reader = forbidden(&operator(Role::Reader), &revoke("bob", vec![RevocationCheck::Itself]));
        assert_eq!(reader.map(|refusal| refusal.kind), Some(RefusalKind::Forbidden));
    }

    fn operator(role: Role) -> Peer {
        Peer::Operator { name: "bob".to_owned(), role, addr: ([127, 0, 0, 1], 1).into() }
    }

    #[test]
    fn a_reader_asks_and_changes_nothing_and_an_operator_does_both() {
        let (asking, changing) = requests();
        for request in asking.iter().chain(&changing) {
            assert_eq!(forbidden(&operator(Role::Operator), request), None, "{request:?}");
        }
        for request in &asking {
            assert_eq!(forbidden(&operator(Role::Reader), request), None, "{request:?}");
        }
        for request in &changing {
            let refusal = forbidden(&operator(Role::Reader), request).expect("is refused");
            assert_eq!(refusal.kind, RefusalKind::Forbidden);
            let words = [request.name(), "bob", "read-only operator"];
            assert!(words.iter().all(|word| refusal.message.contains(word)), "{}", refusal.message);
        }
    }

    #[test]
    fn an_agent_asks_nothing() {
        let (asking, changing) = requests();
        let addr = ([127, 0, 0, 1], 1).into();
        let agent =
            Peer::Agent { id: HostId(1), name: "h".to_owned(), addr, presented: Presented::default() };
        for request in asking.iter().chain(&changing) {
            assert_eq!(
                forbidden(&agent, request).map(|r| r.kind),
                Some(RefusalKind::Forbidden),
                "{request:?}"
            );
        }
    }
}
