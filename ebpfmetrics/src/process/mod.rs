//! Processes and threads: identity, name, state and cgroup.

mod cgroups;
mod comm;
mod command_line;
mod id;
mod info;
mod proc;

pub use cgroups::{CgroupHierarchy, Cgroups};
pub use comm::Comm;
pub use command_line::CommandLines;
pub(crate) use id::TICK_NS;
pub use id::{ProcessId, ThreadId};
pub use info::{ProcessInfo, ProcessState, SchedulingPolicy};
