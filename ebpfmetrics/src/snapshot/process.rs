use super::{Row, Usage};
use crate::process::{ProcessId, ProcessInfo};

/// One process in a snapshot: its identity, its attributes and its resource usage.
///
/// In JSON the fields of `id`, `info` and `usage` are at the top level, and `total` is an
/// object of its own. A usage must not have a field named `total` or `other_cgroups`, or one
/// that `id` or `info` have.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
#[cfg_attr(feature = "serde", derive(serde::Serialize, serde::Deserialize))]
#[non_exhaustive]
pub struct Process<U> {
    /// Identity of the process.
    #[cfg_attr(feature = "serde", serde(flatten))]
    pub id: ProcessId,
    /// Name, parent, state and other attributes.
    #[cfg_attr(feature = "serde", serde(flatten))]
    pub info: ProcessInfo,
    /// Usage in the window.
    #[cfg_attr(feature = "serde", serde(flatten))]
    pub usage: U,
    /// Usage since the process began. Figures that the probe itself counts begin when the
    /// probe is loaded. Counters never decrease while the probe is loaded, with one exception: if
    /// I/O of an ended process completes after 8,192 others have ended, its total begins again.
    pub total: U,
    /// The parts of `usage` and `total` that were used in other cgroups than
    /// [`cgroup_id`](ProcessInfo::cgroup_id): before the process moved, and by threads in a
    /// cgroup of their own. Empty for most processes. [`Row::by_cgroup`] divides a row, and
    /// [`group_by_cgroup`](crate::group::group_by_cgroup) sums a snapshot.
    #[cfg_attr(
        feature = "serde",
        serde(default = "Vec::new", skip_serializing_if = "Vec::is_empty")
    )]
    pub other_cgroups: Vec<CgroupUsage<U>>,
}

/// A part of the usage of a process: what it used in one cgroup.
///
/// It has CPU time, switches, waits, migrations, page faults, dirtied and cancelled bytes, and
/// characters and system calls.
/// Memory belongs to the cgroup where the process is now, and so do operations on disks, slab
/// memory and what probes of other crates count. They are 0 or unknown here.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
#[cfg_attr(feature = "serde", derive(serde::Serialize, serde::Deserialize))]
#[non_exhaustive]
pub struct CgroupUsage<U> {
    /// Cgroup, in the hierarchy of the probe.
    pub cgroup_id: u64,
    /// Usage in the window.
    #[cfg_attr(feature = "serde", serde(flatten))]
    pub usage: U,
    /// Usage since the process began. Moves before the set was loaded are not known: that
    /// usage is in the cgroup where the process was then.
    pub total: U,
}

impl<U> CgroupUsage<U> {
    /// Creates a part.
    pub fn new(cgroup_id: u64, usage: U, total: U) -> Self {
        Self { cgroup_id, usage, total }
    }
}

impl<U> Process<U> {
    /// Creates a row of a process that used everything in its present cgroup.
    pub fn new(id: ProcessId, info: ProcessInfo, usage: U, total: U) -> Self {
        Self { id, info, usage, total, other_cgroups: Vec::new() }
    }
}

impl<U: Usage> Process<U> {
    /// Borrows the row.
    pub fn as_row(&self) -> Row<'_, U> {
        let Self { id, info, usage, total, other_cgroups } = self;
        Row { id: *id, info, usage, total, other_cgroups }
    }
}
