//! From walks and final records to rows: one process table per set of probes, with one column
//! of counters per probe. Knows no probe.

mod assemble;
mod cell;
mod cgroups;
mod clocks;
pub(crate) mod collector;
mod column;
pub mod counters;
pub(crate) mod engine;
mod filter;
pub(crate) mod handlers;
#[cfg(feature = "__bench")]
pub(crate) mod harness;
mod hidden;
mod loading;
mod members;
mod moves;
mod recent;
mod table;
#[cfg(test)]
pub(crate) mod testing;
mod typed_column;
mod walk;

pub(crate) use column::program_costs;
pub use filter::Filter;
pub(crate) use filter::SharedFilter;
pub use loading::{Loading, WalkPart};
