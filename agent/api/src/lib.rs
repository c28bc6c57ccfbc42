//! What crosses the wire of a redmesh, and the two things that both ends must agree
//! upon besides: the codec and TLS.
//!
//! ctl depends on this crate and never on the agent. Nothing here opens a socket or
//! reads a clock; the types hold no behaviour beyond what follows from them alone.

#![deny(missing_docs)]

pub mod codec;
pub mod control;
pub mod frames;
pub mod histogram;
pub mod ids;
pub mod level;
pub mod limits;
pub mod run;
pub mod tls;
