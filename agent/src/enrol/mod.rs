//! Hosts that join by token, on both sides: an agent without a certificate asks for one,
//! an agent with a signer's key gives it.
//!
//! The asking side makes its key itself and never sends it; it believes an agent only under
//! the CA that its token names. The giving side believes nobody: what a stranger may send,
//! how often and how much is bounded before anything is looked at ([`pace`],
//! `transport::quic::strangers`), a proof comes before any answer that says more than no
//! ([`judge`]), and the use of the token is committed to Raft before anything is signed.
//!
//! A host that has joined renews what it was given over the mesh's own connections: [`renew`]
//! asks, [`again`] answers.

pub mod again;
pub mod dial;
pub mod judge;
pub mod pace;
pub mod renew;
pub mod serve;
pub mod signer;

pub use again::Again;
pub use dial::{JoinError, Joining};
pub use renew::{RenewalCounts, Renewing};
pub use serve::Gate;
