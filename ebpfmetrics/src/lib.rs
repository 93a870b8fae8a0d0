#![doc = include_str!("../README.md")]
#![cfg_attr(docsrs, feature(doc_cfg))]
#![cfg_attr(not(test), warn(clippy::unwrap_used, clippy::print_stdout, clippy::print_stderr))]

#[cfg(feature = "__bench")]
#[doc(hidden)]
pub mod bench;
mod collect;
mod error;
pub mod events;
pub mod group;
pub mod histogram;
pub mod intervals;
pub mod job;
mod kernel;
pub mod kit;
mod object;
mod options;
mod preflight;
pub mod probe;
mod probes;
pub mod process;
mod record;
mod set;
pub mod snapshot;

pub use collect::Filter;
pub use error::{Error, ErrorKind, Result};
pub use events::{Event, Events};
pub use intervals::{Interval, Intervals};
pub use job::{Job, JobReport};
pub use kernel::{Kernel, checks::Preflight};
pub use preflight::preflight;
pub use probe::Probe;
pub use probes::cpu::{self, CpuProbe, CpuUsage};
pub use probes::disk::{self, DiskProbe, DiskUsage};
pub use probes::mem::{self, MemProbe, MemUsage};
pub use probes::slab::{self, SlabProbe, SlabUsage};
pub use process::{Cgroups, Comm, ProcessId, ProcessInfo};
pub use set::{ProbeSet, ProbeSetBuilder};
pub use snapshot::{Handle, Losses, Process, Snapshot, Usage, Window};
