#![doc = include_str!("../README.md")]
#![cfg_attr(docsrs, feature(doc_cfg))]
#![cfg_attr(not(test), warn(clippy::unwrap_used, clippy::print_stdout, clippy::print_stderr))]

mod any_probe;
#[cfg(feature = "tokio")]
mod async_stream;
mod bpf;
mod btf;
mod cgroup;
mod error;
mod group;
mod histogram;
mod join;
mod kernel;
pub mod kit;
mod ledger;
mod loader;
mod preflight;
mod probe;
mod probes;
mod process;
mod record;
mod records;
mod snapshot;
mod stream;
mod sys;
mod task;
mod usage;
mod walk;
mod watch;

pub use any_probe::{AnyProbe, AnyRows, AnySnapshot};
#[cfg(feature = "tokio")]
pub use async_stream::IntervalStream;
pub use cgroup::{CgroupHierarchy, Cgroups};
pub use error::{Error, ErrorKind, Result};
pub use group::{Group, Groups, ProcessTree, group_by};
pub use histogram::{Bucket, Histogram};
pub use join::{Join, Joined, JoinedProcess, JoinedSnapshot};
pub use kernel::Kernel;
pub use preflight::{Check, Lockdown, Preflight, Requirements, preflight};
pub use probe::{Cost, Degraded, Health, Probe, ProgramCost, Statistics};
pub use probes::*;
pub use process::{Comm, ProcessId, ProcessInfo, ThreadId};
pub use snapshot::{Losses, Provenance, Snapshot, Source, Window};
pub use stream::{Interval, Intervals};
pub use usage::{Delta, ProcessRow, ProcessRows, Usage, delta};
pub use watch::Watch;
