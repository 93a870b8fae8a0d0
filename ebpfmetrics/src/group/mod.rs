//! Groups of processes: by cgroup, by user, by a key of your choice, and process trees.

mod groups;
mod tree;

pub use groups::{Group, Groups, group_by, group_by_cgroup};
pub use tree::ProcessTree;
