//! From walks and final records to rows: one process table per set of probes, with one column
//! of counters per probe. Knows no probe.

pub mod collector;
mod column;
pub mod counters;
pub(crate) mod engine;
mod filter;
mod hidden;
mod loading;
mod table;
#[cfg(test)]
pub(crate) mod testing;
mod walk;

pub use filter::Filter;
pub use loading::{Loading, WalkPart};
