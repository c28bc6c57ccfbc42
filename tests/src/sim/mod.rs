//! Whole meshes in one thread, in virtual time, under faults that a seed draws.
//!
//! Real are the agents, built by `app::build` itself: transport (QUIC over a simulated
//! network), gossip, consensus, coordinator, census, level, reconciliation, control, and
//! their files. Simulated are packets and time (turmoil), redis-servers ([`world`]), their
//! supervisor ([`servers`]), what they answer ([`mod@line`]), the load threads ([`load`]), the
//! wall clocks ([`clock`]) and the person who asks for things ([`operator`]).
//!
//! A simulation has a safety phase, in which a [`schedule`] of faults happens, and then a
//! healing phase. The [`invariants`] judge every [`event`] of both. A [`flaw`] makes a world
//! in which one of them breaks.

pub mod clock;
pub mod driver;
pub mod event;
pub mod flaw;
pub mod host;
pub mod invariants;
pub mod line;
pub mod load;
pub mod log;
pub mod net;
pub mod operator;
pub mod pki;
pub mod scale;
pub mod schedule;
pub mod servers;
pub mod world;
