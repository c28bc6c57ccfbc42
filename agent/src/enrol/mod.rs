//! Hosts that join by token, on both sides: an agent without a certificate asks for one,
//! an agent with a signer's key gives it.
//!
//! The asking side makes its key itself and never sends it; it believes an agent only under
//! the CA that its token names. The giving side believes nobody: what a stranger may send,
//! how often and how much is bounded before anything is looked at ([`pace`],
//! `transport::quic::strangers`), a proof comes before any answer that says more than no
//! ([`judge`]), and the use of the token is committed to Raft before anything is signed.

pub mod dial;
pub mod judge;
pub mod pace;
pub mod serve;
pub mod signer;

pub use dial::{JoinError, Joining};
pub use serve::Gate;
