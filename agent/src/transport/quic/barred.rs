//! Hosts that were removed from the mesh and operators that were revoked: by what they are
//! known, and what they are told.
//!
//! A host chooses its id itself, so the id alone would keep nobody out who holds a
//! removed host's key: what counts is the certificate, by the name that the CA has signed
//! and the time at which it did so. An operator has nothing else. Pure.

use redmesh_api::ids::HostId;
use redmesh_api::level::{Level, RemovedHost, RevokedOperator};
use redmesh_api::tls;
use rustls::pki_types::CertificateDer;

use super::hello::{Certified, Hello};

/// Whether the host that bears `id` and presents `chain`, its certificate under `name`, was
/// removed.
pub fn is_removed(id: HostId, name: &str, chain: &[CertificateDer<'_>], removed: &[RemovedHost]) -> bool {
    by_id_and_certificate(id, name, tls::issued_unix_ms(chain), removed) != (false, false)
}

/// Whom nobody speaks with any more.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Barred {
    /// See [`Level::removed`].
    pub hosts: Vec<RemovedHost>,
    /// See [`Level::revoked`].
    pub operators: Vec<RevokedOperator>,
}

impl Barred {
    /// Those of a level.
    pub fn of(level: &Level) -> Self {
        Self { hosts: level.removed.clone(), operators: level.revoked.clone() }
    }

    /// Why the agent with these two is refused, if it was removed.
    pub(super) fn host(&self, theirs: &Hello, certified: &Certified) -> Option<String> {
        if self.hosts.is_empty() {
            return None;
        }
        judge(theirs, &certified.name, tls::issued_unix_ms(certified.chain()), &self.hosts)
    }

    /// Why the operator with this certificate is refused, if it was revoked.
    pub(super) fn operator(&self, certified: &Certified) -> Option<String> {
        if self.operators.is_empty() {
            return None;
        }
        judge_operator(&certified.name, tls::issued_unix_ms(certified.chain()), &self.operators)
    }
}

fn judge_operator(name: &str, issued_unix_ms: u64, revoked: &[RevokedOperator]) -> Option<String> {
    let earlier =
        |operator: &&RevokedOperator| operator.name == name && issued_unix_ms <= operator.at_unix_ms;
    revoked.iter().find(earlier).map(|_| {
        format!(
            "this certificate of operator {name} was revoked: whoever is to go on as {name} needs another one \
             (`redmeshctl pki issue --operator {name} --renew`)"
        )
    })
}

fn judge(theirs: &Hello, name: &str, issued_unix_ms: u64, removed: &[RemovedHost]) -> Option<String> {
    let remedy = match by_id_and_certificate(theirs.id, name, issued_unix_ms, removed) {
        (false, false) => return None,
        (true, false) => "empty its state directory",
        (false, true) => {
            "issue it another certificate (`redmeshctl pki issue --host NAME --ip ADDRESS --renew`)"
        }
        (true, true) => {
            "empty its state directory and issue it another certificate (`redmeshctl pki issue --host NAME --ip \
             ADDRESS --renew`)"
        }
    };
    Some(format!(
        "host {name} ({}) was removed from the mesh: stop its agent; if it is to join again, as a new host, {remedy}",
        theirs.id
    ))
}

fn by_id_and_certificate(
    id: HostId,
    name: &str,
    issued_unix_ms: u64,
    removed: &[RemovedHost],
) -> (bool, bool) {
    let by_id = removed.iter().any(|host| host.id == Some(id));
    let by_certificate = removed
        .iter()
        .any(|host| host.certificates && host.name == name && issued_unix_ms <= host.at_unix_ms);
    (by_id, by_certificate)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn hello(id: u32) -> Hello {
        Hello {
            protocol: super::super::hello::HELLO_PROTOCOL,
            id: HostId(id),
            name: "a".into(),
            boot_id: 1,
            addr: ([127, 0, 0, 1], 1).into(),
            mesh_name: "m".into(),
            mesh_id: None,
            agent_version: "1".into(),
        }
    }

    #[test]
    fn a_removed_host_is_known_by_its_id_and_by_every_certificate_issued_until_then() {
        let removed = |id: Option<u32>, certificates| RemovedHost {
            id: id.map(HostId),
            name: "a".into(),
            certificates,
            at_unix_ms: 100,
        };
        let barred = |id, issued, removed: RemovedHost| judge(&hello(id), "a", issued, &[removed]);
        let words = barred(7, 100, removed(Some(7), true)).unwrap();
        assert!(
            words.contains("was removed") && words.contains("empty its state") && words.contains("--renew")
        );
        // Another id, made up by whoever has the key; and an earlier certificate of that name.
        let words = barred(8, 50, removed(Some(7), true)).unwrap();
        assert!(!words.contains("empty its state") && words.contains("--renew"), "{words}");
        assert!(barred(8, 50, removed(None, true)).is_some());
        let words = barred(7, 101, removed(Some(7), true)).unwrap();
        assert!(words.contains("empty its state") && !words.contains("--renew"), "{words}");
        assert_eq!(barred(8, 101, removed(Some(7), true)), None, "a new host with a new certificate");
        assert_eq!(barred(8, 50, removed(Some(7), false)), None, "another host that bears the name");
        assert_eq!(judge(&hello(8), "b", 50, &[removed(Some(7), true)]), None);
    }

    #[test]
    fn a_revoked_operator_is_known_by_every_certificate_of_its_name_issued_until_then() {
        let revoked = [
            RevokedOperator { name: "a".to_owned(), at_unix_ms: 100 },
            RevokedOperator { name: "b".to_owned(), at_unix_ms: 200 },
        ];
        let words = judge_operator("a", 100, &revoked).expect("is refused");
        assert!(words.contains("was revoked") && words.contains("--operator a --renew"), "{words}");
        assert!(judge_operator("b", 150, &revoked).is_some());
        assert_eq!(judge_operator("a", 101, &revoked), None, "a later certificate");
        assert_eq!(judge_operator("c", 1, &revoked), None);
        // One whose time can't be read counts as issued at the beginning of time.
        assert!(judge_operator("a", 0, &revoked).is_some());
    }
}
