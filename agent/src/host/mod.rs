//! Reconciles this host to the newest level and publishes what it observes.
//!
//! Each task drives one thing: [`levels`] keeps the level newest, [`instances`] hands the plan
//! to the supervisor, [`joining`] introduces instances to each other, [`views`] asks them what
//! they see ([`convergence`]: since when), [`settling`] tells them that the cluster is formed, [`certificates`]
//! that theirs was renewed,
//! [`shares`] runs this host's part of a load run. None decides for the mesh; a failure is status that is
//! gossiped, and the next level or tick tries again.

pub mod certificates;
pub mod convergence;
pub mod detail;
pub mod instances;
pub mod joining;
pub mod levels;
pub mod settling;
pub mod shares;
pub mod views;
