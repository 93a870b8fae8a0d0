//! From walks and final records to rows: one process table per set of probes, with one column
//! of counters per probe. Knows no probe.

pub mod collector;
mod column;
pub mod counters;
pub(crate) mod engine;
mod filter;
#[cfg(feature = "__bench")]
pub(crate) mod harness;
mod hidden;
mod loading;
mod table;
mod walk;

pub use filter::Filter;
pub use loading::{Loading, WalkPart};
