//! Reconciles this host to the newest level and publishes what it observes.
//!
//! Each task drives one thing: [`levels`] keeps the level newest, [`instances`] hands the plan
//! to the supervisor, [`joining`] introduces instances to each other, [`views`] asks them what
//! they see ([`convergence`]: since when), [`settling`] tells them that the cluster is formed,
//! [`directives`] what was changed in the configuration, [`certificates`] that theirs was renewed,
//! [`forgetting`] that hosts were removed, [`rotation`] which passwords are good, [`shares`] runs
//! this host's part of a load run. [`telling`] is what those share that tell instances once. None
//! decides for the mesh; a failure is status that is
//! gossiped, and the next level or tick tries again.

pub mod certificates;
pub mod convergence;
pub mod detail;
pub mod directives;
pub mod forgetting;
pub mod instances;
pub mod joining;
pub mod levels;
pub mod rotation;
pub mod settling;
pub mod shares;
pub mod telling;
pub mod views;
