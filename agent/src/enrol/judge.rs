//! Whether a request to join may go on to the coordinator. Pure.
//!
//! The order is the point: nothing is said of the token, the mesh or its hosts before the
//! secret is proven.

use std::net::IpAddr;

use redmesh_api::codec;
use redmesh_api::ids::MeshId;
use redmesh_api::join::{EXPORTER_BYTES, JoinAsk, JoinRefusal, JoinRequest, TokenRecord, proves};
use redmesh_api::tls::{NAME_BYTES_MAX, valid_name};

/// A joining host's clock may differ so much, milliseconds: certificates begin an hour
/// before they are made.
pub const SKEW_MS_MAX: u64 = 30 * 60 * 1000;

/// What is known where the request arrived.
#[derive(Debug, Clone, Copy)]
pub struct Known<'a> {
    /// The mesh, once it is founded.
    pub mesh: Option<MeshId>,
    /// Its tokens.
    pub tokens: &'a [TokenRecord],
    /// Names and addresses of the hosts that are alive.
    pub alive: &'a [(String, IpAddr)],
    /// This host's clock, Unix milliseconds.
    pub now_unix_ms: u64,
}

/// A request from `from`, on the connection that exported `binding`.
///
/// # Errors
/// What is to be answered instead.
pub fn judge(
    request: &JoinRequest,
    from: IpAddr,
    binding: &[u8; EXPORTER_BYTES],
    known: &Known<'_>,
) -> Result<JoinAsk, JoinRefusal> {
    let token = known.tokens.iter().find(|token| token.id == request.token);
    let token = token.filter(|token| proves(&token.key, &request.ask, binding, &request.proof));
    let Some(token) = token else { return Err(JoinRefusal::unproven()) };
    let ask: JoinAsk = codec::decode(&request.ask)
        .map_err(|error| JoinRefusal::invalid(redmesh_api::error_chain(&error)))?;
    match known.mesh {
        Some(mesh) if mesh == ask.mesh => {}
        Some(mesh) => {
            return Err(JoinRefusal::token(format!(
                "join token {} is for mesh {}, and this one is {mesh}: correct join.peers, or ask for another token",
                token.id, ask.mesh
            )));
        }
        None => return Err(JoinRefusal::later("the mesh is just being founded: try again")),
    }
    let skew_ms = ask.unix_ms.abs_diff(known.now_unix_ms);
    if skew_ms > SKEW_MS_MAX {
        let side = if ask.unix_ms < known.now_unix_ms { "behind" } else { "ahead of" };
        return Err(JoinRefusal::invalid(format!(
            "the joining host's clock is {} s {side} the mesh's: set it first (timedatectl set-ntp true), or its \
             certificate would not be valid",
            skew_ms / 1000
        )));
    }
    if !valid_name(&ask.name) {
        return Err(JoinRefusal::invalid(format!(
            "host name {:?} must be 1 to {NAME_BYTES_MAX} of a-z, 0-9 and -, with no - at either end: set join.name",
            ask.name.chars().take(80).collect::<String>()
        )));
    }
    if ask.ip != from.to_canonical() {
        return Err(JoinRefusal::invalid(format!(
            "the host asks for a certificate for {}, and comes from {from}: a token gives only that address; correct \
             mesh.advertise",
            ask.ip
        )));
    }
    if let Some((name, ip)) = known.alive.iter().find(|(name, ip)| *name == ask.name && *ip != ask.ip) {
        return Err(JoinRefusal::invalid(format!(
            "a host {name} is here already, at {ip}: give the new one another name (join.name)"
        )));
    }
    Ok(ask)
}

#[cfg(test)]
mod tests {
    use redmesh_api::join::{CaPin, JoinRefusalKind, JoinToken, TokenId};
    use uuid::Uuid;

    use super::*;

    const BINDING: [u8; EXPORTER_BYTES] = [3; EXPORTER_BYTES];
    const NOW: u64 = 1_700_000_000_000;
    const FROM: IpAddr = IpAddr::V4(std::net::Ipv4Addr::new(10, 0, 0, 9));

    fn mesh(n: u128) -> MeshId {
        MeshId(Uuid::from_u128(n))
    }

    fn record(token: &JoinToken) -> TokenRecord {
        TokenRecord {
            id: token.id(),
            key: token.public_key(),
            created_unix_ms: NOW,
            expires_unix_ms: NOW + 1,
            uses: 1,
            revoked: false,
            enrolled: Vec::new(),
        }
    }

    fn ask() -> JoinAsk {
        JoinAsk { mesh: mesh(1), name: "db-9".to_owned(), ip: FROM, csr: Vec::new(), unix_ms: NOW }
    }

    fn request(token: &JoinToken, ask: &JoinAsk) -> JoinRequest {
        let ask = codec::encode(ask).expect("encodes");
        let proof = token.prove(&ask, &BINDING).expect("a proof");
        JoinRequest { token: token.id(), ask, proof }
    }

    #[test]
    fn who_proves_the_secret_is_heard_and_told_what_is_wrong() {
        let token = JoinToken::generate(mesh(1), CaPin::of(b"ca")).expect("a token");
        let tokens = [record(&token)];
        let alive = [("db-1".to_owned(), IpAddr::from([10, 0, 0, 1]))];
        let known = Known { mesh: Some(mesh(1)), tokens: &tokens, alive: &alive, now_unix_ms: NOW };
        let judged = |ask: &JoinAsk| judge(&request(&token, ask), FROM, &BINDING, &known);
        assert_eq!(judged(&ask()), Ok(ask()));
        for (ask, kind, words) in [
            (JoinAsk { mesh: mesh(2), ..ask() }, JoinRefusalKind::Token, "is for mesh"),
            (JoinAsk { unix_ms: NOW - SKEW_MS_MAX - 1, ..ask() }, JoinRefusalKind::Invalid, "1800 s behind"),
            (JoinAsk { unix_ms: u64::MAX, ..ask() }, JoinRefusalKind::Invalid, "ahead of"),
            (JoinAsk { name: "Db".to_owned(), ..ask() }, JoinRefusalKind::Invalid, "join.name"),
            (JoinAsk { name: "db-1".to_owned(), ..ask() }, JoinRefusalKind::Invalid, "here already"),
            (JoinAsk { ip: [10, 0, 0, 8].into(), ..ask() }, JoinRefusalKind::Invalid, "mesh.advertise"),
        ] {
            let refusal = judged(&ask).expect_err(words);
            assert_eq!(refusal.kind, kind, "{refusal}");
            assert!(refusal.message.contains(words), "{refusal}");
        }
        let founding = judge(&request(&token, &ask()), FROM, &BINDING, &Known { mesh: None, ..known });
        assert_eq!(founding.expect_err("no mesh").kind, JoinRefusalKind::Later);
    }

    #[test]
    fn who_proves_nothing_learns_nothing() {
        let token = JoinToken::generate(mesh(1), CaPin::of(b"ca")).expect("a token");
        let other = JoinToken::generate(mesh(1), CaPin::of(b"ca")).expect("a token");
        let tokens = [record(&token)];
        let known = Known { mesh: None, tokens: &tokens, alive: &[], now_unix_ms: 0 };
        let right = request(&token, &ask());
        let stolen = JoinRequest { token: token.id(), ..request(&other, &ask()) };
        let unknown = JoinRequest { token: TokenId::of(&[9; 32]), ..right.clone() };
        let changed = JoinRequest {
            ask: codec::encode(&JoinAsk { name: "x".to_owned(), ..ask() }).unwrap(),
            ..right.clone()
        };
        for (request, binding) in
            [(&stolen, BINDING), (&unknown, BINDING), (&changed, BINDING), (&right, [4; EXPORTER_BYTES])]
        {
            assert_eq!(judge(request, FROM, &binding, &known), Err(JoinRefusal::unproven()));
        }
    }
}
