//! Join tokens in the state machine: made, taken back, used up one host at a time.
//!
//! Time comes with each command, from the coordinator that proposed it, so that all
//! voters agree on which token has expired.

use redmesh_api::join::{Enrolled, TOKENS_MAX, TokenId, TokenRecord, USES_MAX};
use redmesh_api::tls::valid_name;

use super::{Applied, rejected};

/// A token that is over is listed for so long, milliseconds: a day.
const KEPT_MS: u64 = 24 * 3600 * 1000;

pub(super) fn create(tokens: &mut Vec<TokenRecord>, token: &TokenRecord) -> Applied {
    if let Some(known) = tokens.iter().find(|known| known.id == token.id) {
        return match known.key == token.key {
            true => Applied::Unchanged,
            false => rejected(format!("there is another join token {} already", token.id)),
        };
    }
    let fits = (1..=USES_MAX).contains(&token.uses) && token.enrolled.is_empty() && !token.revoked;
    if !fits || token.id != TokenId::of(&token.key) {
        return rejected(format!("join token {} is not as one begins", token.id));
    }
    tokens.retain(|old| old.expires_unix_ms.saturating_add(KEPT_MS) > token.created_unix_ms);
    // Those that let nobody in make room before anything is refused.
    while tokens.len() >= TOKENS_MAX {
        match tokens.iter().position(|old| old.is_over(token.created_unix_ms)) {
            Some(oldest) => drop(tokens.remove(oldest)),
            None => {
                return rejected(format!(
                    "{TOKENS_MAX} join tokens are good already: take some back (redmeshctl join-token revoke)"
                ));
            }
        }
    }
    tokens.push(token.clone());
    Applied::Done
}

pub(super) fn revoke(tokens: &mut [TokenRecord], id: TokenId) -> Applied {
    match tokens.iter_mut().find(|token| token.id == id) {
        None => rejected(format!("there is no join token {id}")),
        Some(token) if token.revoked => Applied::Unchanged,
        Some(token) => {
            token.revoked = true;
            Applied::Done
        }
    }
}

/// Takes back what has let the host called `name` in: it knows the secret, and would come back by it.
pub(super) fn revoke_used_by(tokens: &mut [TokenRecord], name: &str) {
    let used = |token: &&mut TokenRecord| token.enrolled.iter().any(|host| host.name == name);
    tokens.iter_mut().filter(used).for_each(|token| token.revoked = true);
}

pub(super) fn enrol(tokens: &mut [TokenRecord], id: TokenId, host: &Enrolled) -> Applied {
    let Some(token) = tokens.iter_mut().find(|token| token.id == id) else {
        return rejected(format!("there is no join token {id}"));
    };
    if !valid_name(&host.name) {
        return rejected(format!("{:?} is no name for a host", host.name));
    }
    if token.revoked {
        return rejected(format!("join token {id} has been revoked: ask for another one"));
    }
    if token.expires_unix_ms <= host.at_unix_ms {
        let ago_s = (host.at_unix_ms - token.expires_unix_ms) / 1000;
        return rejected(format!(
            "join token {id} expired {ago_s} s ago: ask for another one (redmeshctl join-token create)"
        ));
    }
    let same = |known: &&Enrolled| (&known.name, known.ip, known.key) == (&host.name, host.ip, host.key);
    // Its answer was lost: the same host asks again with the same key.
    if token.enrolled.iter().any(|known| same(&known)) {
        return Applied::Unchanged;
    }
    if let Some(other) = token.enrolled.iter().find(|known| known.name == host.name && known.ip != host.ip) {
        return rejected(format!(
            "the name {} was given to {} by this token: give the host at {} another name (join.name)",
            host.name, other.ip, host.ip
        ));
    }
    if token.enrolled.len() >= usize::from(token.uses) {
        return rejected(format!(
            "join token {id} is used up: it was good for {} hosts (redmeshctl join-token create --uses N)",
            token.uses
        ));
    }
    token.enrolled.push(host.clone());
    Applied::Done
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    const EXPIRES: u64 = 1_000_000;

    fn token(n: u8, uses: u16) -> TokenRecord {
        let key = [n; 32];
        TokenRecord {
            id: TokenId::of(&key),
            key,
            created_unix_ms: 1000,
            expires_unix_ms: EXPIRES,
            uses,
            revoked: false,
            enrolled: Vec::new(),
        }
    }

    fn host(name: &str, ip: u8, key: u8, at_unix_ms: u64) -> Enrolled {
        Enrolled { name: name.to_owned(), ip: [10, 0, 0, ip].into(), key: [key; 32], at_unix_ms }
    }

    #[track_caller]
    fn refused(applied: Applied, words: &str) {
        match applied {
            Applied::Rejected(reason) => assert!(reason.contains(words), "{reason}"),
            other => panic!("{other:?}, not refused with {words:?}"),
        }
    }

    #[test]
    fn a_token_lets_in_as_many_as_it_says_and_one_host_twice_counts_once() {
        let (mut tokens, id) = (Vec::new(), token(1, 2).id);
        assert_eq!(create(&mut tokens, &token(1, 2)), Applied::Done);
        assert_eq!(create(&mut tokens, &token(1, 2)), Applied::Unchanged);
        assert_eq!(enrol(&mut tokens, id, &host("a", 1, 1, 5000)), Applied::Done);
        assert_eq!(enrol(&mut tokens, id, &host("a", 1, 1, 6000)), Applied::Unchanged);
        refused(enrol(&mut tokens, id, &host("a", 9, 3, 6000)), "was given to 10.0.0.1");
        assert_eq!(enrol(&mut tokens, id, &host("b", 2, 2, 7000)), Applied::Done);
        refused(enrol(&mut tokens, id, &host("c", 3, 3, 8000)), "used up: it was good for 2");
        // The lost answer may still be asked for.
        assert_eq!(enrol(&mut tokens, id, &host("b", 2, 2, 9000)), Applied::Unchanged);
        refused(enrol(&mut tokens, token(2, 1).id, &host("d", 4, 4, 9000)), "no join token");
        refused(enrol(&mut tokens, id, &host("UP", 4, 4, 9000)), "no name for a host");
    }

    #[test]
    fn expired_and_revoked_tokens_let_nobody_in_not_even_again() {
        let (mut tokens, id) = (vec![token(1, 9)], token(1, 9).id);
        assert_eq!(enrol(&mut tokens, id, &host("a", 1, 1, EXPIRES - 1)), Applied::Done);
        refused(enrol(&mut tokens, id, &host("b", 2, 2, EXPIRES + 3000)), "expired 3 s ago");
        refused(enrol(&mut tokens, id, &host("a", 1, 1, EXPIRES)), "expired 0 s ago");
        assert_eq!(revoke(&mut tokens, id), Applied::Done);
        assert_eq!(revoke(&mut tokens, id), Applied::Unchanged);
        refused(enrol(&mut tokens, id, &host("c", 3, 3, 5000)), "revoked");
        refused(enrol(&mut tokens, id, &host("a", 1, 1, 5000)), "revoked");
        refused(revoke(&mut tokens, token(7, 1).id), "no join token");
    }

    #[test]
    fn what_has_let_a_removed_host_in_lets_nobody_in_again() {
        let mut tokens = vec![token(1, 9), token(2, 9)];
        assert_eq!(enrol(&mut tokens, token(1, 9).id, &host("a", 1, 1, 5000)), Applied::Done);
        revoke_used_by(&mut tokens, "a");
        refused(enrol(&mut tokens, token(1, 9).id, &host("a", 1, 1, 6000)), "revoked");
        assert_eq!(enrol(&mut tokens, token(2, 9).id, &host("b", 2, 2, 6000)), Applied::Done);
    }

    #[test]
    fn tokens_are_bounded_and_those_that_are_over_make_room() {
        let mut tokens = Vec::new();
        for n in 0..TOKENS_MAX as u8 {
            assert_eq!(create(&mut tokens, &token(n, 1)), Applied::Done);
        }
        refused(create(&mut tokens, &token(200, 1)), "32 join tokens are good");
        assert_eq!(revoke(&mut tokens, token(5, 1).id), Applied::Done);
        assert_eq!(create(&mut tokens, &token(200, 1)), Applied::Done);
        assert!(tokens.len() == TOKENS_MAX && !tokens.iter().any(|it| it.id == token(5, 1).id));
        let later = TokenRecord { created_unix_ms: EXPIRES + KEPT_MS, ..token(201, 1) };
        let later = TokenRecord { expires_unix_ms: later.created_unix_ms + 1, ..later };
        assert_eq!(create(&mut tokens, &later), Applied::Done);
        assert_eq!(tokens, [later], "what was over for a day is forgotten");
        refused(create(&mut tokens, &token(202, 0)), "not as one begins");
        refused(create(&mut tokens, &token(203, USES_MAX + 1)), "not as one begins");
        let stolen = TokenRecord { id: token(9, 1).id, ..token(204, 1) };
        refused(create(&mut tokens, &stolen), "not as one begins");
    }

    proptest! {
        #[test]
        fn no_order_of_commands_lets_in_more_hosts_than_uses(
            uses in 1u16..4,
            asks in proptest::collection::vec((0u8..6, 0u8..4, 0u8..3, 0u64..2 * EXPIRES, 0u8..10), 0..60),
        ) {
            let (mut tokens, id) = (vec![token(1, uses)], token(1, uses).id);
            let mut revoked = false;
            for (name, ip, key, at, dice) in asks {
                if dice == 0 {
                    revoke(&mut tokens, id);
                    revoked = true;
                }
                let applied = enrol(&mut tokens, id, &host(&format!("h{name}"), ip, key, at));
                let let_in = !matches!(applied, Applied::Rejected(_));
                prop_assert!(!let_in || (!revoked && at < EXPIRES));
                prop_assert!(tokens[0].enrolled.len() <= usize::from(uses));
            }
        }
    }
}
