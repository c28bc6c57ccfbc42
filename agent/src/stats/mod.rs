//! What was counted and how long it took: recorders of the load threads, their summary
//! and wire form, rates, and the mesh-wide sum of tallies.
//!
//! Everything here is either pure or a lock held for microseconds; nothing opens a
//! socket. Percentiles are never averaged: histograms are added, then asked.

pub mod aggregate;
pub mod rates;
pub mod recorder;
pub mod summary;
pub mod wire;

pub use aggregate::{merge, total};
pub use rates::RateWindow;
pub use recorder::{Recorder, RecorderView, empty_histogram};
pub use summary::summary;
pub use wire::{HistogramError, decode, encode};
