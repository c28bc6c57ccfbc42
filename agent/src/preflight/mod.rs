//! Whether hosts can bear a cluster, before anything is begun.
//!
//! `readings` is what one host reads of itself, `texts` parses what the kernel prints;
//! `rules` holds all hosts' readings against the wish and is pure. Who asks the hosts, and
//! who is refused, is in `control`. Nothing here changes anything on a host.

pub mod readings;
pub mod rules;
mod texts;
mod words;

pub use readings::{Reader, Readings};
pub use rules::{ClockOffset, HostSeen, Question, examine};
