//! Certificates that expire while their connection lives.
//!
//! TLS looks at a certificate once, when a connection is made; a connection between two
//! agents lives for months. So each side ends what it has with a peer whose certificate
//! runs out, and a peer that has renewed it meanwhile is back at once.

use std::time::Duration;

use redmesh_api::tls;

use super::hello::Certified;
use crate::clock::now_unix_ms;

/// Between two looks at the clock, which may be set meanwhile.
const LOOK_AGAIN: Duration = Duration::from_secs(60);

/// What the other side is told.
pub const EXPIRED: &str = "your certificate has expired: renew it with `redmeshctl pki issue … --renew`; agents take \
                           up the renewed one by themselves";

/// Returns once the certificate has expired.
pub async fn expired(certified: &Certified) {
    let until_ms = tls::valid_until_unix_ms(certified.chain());
    loop {
        match until_ms.saturating_sub(now_unix_ms()) {
            0 => return,
            left_ms => tokio::time::sleep(Duration::from_millis(left_ms).min(LOOK_AGAIN)).await,
        }
    }
}
