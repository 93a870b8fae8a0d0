#![doc = include_str!("../README.md")]
#![cfg_attr(docsrs, feature(doc_cfg))]
#![cfg_attr(not(test), warn(clippy::unwrap_used, clippy::print_stdout, clippy::print_stderr))]
// until the loader and the probes use the items that only they need
#![allow(dead_code, unreachable_pub)]

mod error;
pub mod group;
mod histogram;
mod intervals;
mod options;
mod probe;
pub mod process;
pub mod snapshot;

pub use error::{Error, ErrorKind, Result};
pub use histogram::{Bucket, Histogram};
#[cfg(feature = "tokio")]
pub use intervals::IntervalStream;
pub use intervals::{EndWindow, Interval, Intervals};
pub use probe::{Cost, Degraded, Health, Probe, ProgramCost};
