//! Processes and threads: identity, name, state and cgroup.

mod cgroups;
mod comm;
mod id;
mod info;

pub use cgroups::{CgroupHierarchy, Cgroups};
pub use comm::Comm;
pub(crate) use id::TICK_NS;
pub use id::{ProcessId, ThreadId};
pub use info::{ProcessInfo, ProcessState, SchedulingPolicy};
