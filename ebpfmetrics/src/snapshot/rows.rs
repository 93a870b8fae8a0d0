use super::{CgroupUsage, Process, Usage, Window, sum_of};
use crate::process::{ProcessId, ProcessInfo};

/// A snapshot with one row per process.
///
/// [`delta`](super::delta), [`group_by`](crate::group::group_by) and
/// [`ProcessTree`](crate::group::ProcessTree) work with every type that implements this.
pub trait Rows {
    /// Usage in each row.
    type Usage: Usage;

    /// Time span of the usages.
    fn window(&self) -> Window;

    /// The rows in ascending order of [`ProcessId`].
    fn rows(&self) -> impl Iterator<Item = Row<'_, Self::Usage>> + '_;

    /// Usage of the processes that have no row, see [`Overflow`](super::Overflow).
    fn overflow_usage(&self) -> Self::Usage;
}

/// One row of [`Rows`]: a borrowed [`Process`].
#[derive(Debug, PartialEq, Eq)]
pub struct Row<'a, U> {
    /// Identity of the process.
    pub id: ProcessId,
    /// Name, parent, state and other attributes.
    pub info: &'a ProcessInfo,
    /// Usage in the window.
    pub usage: &'a U,
    /// Usage since the process began, see [`Process::total`].
    pub total: &'a U,
    /// Parts that were used in other cgroups, see [`Process::other_cgroups`].
    pub other_cgroups: &'a [CgroupUsage<U>],
}

impl<U> Clone for Row<'_, U> {
    fn clone(&self) -> Self {
        *self
    }
}

impl<U> Copy for Row<'_, U> {}

impl<U: Clone> Row<'_, U> {
    /// Copies the row.
    pub fn to_process(&self) -> Process<U> {
        let mut process = Process::new(self.id, *self.info, self.usage.clone(), self.total.clone());
        process.other_cgroups = self.other_cgroups.to_vec();
        process
    }
}

impl<U: Usage> Row<'_, U> {
    /// Divides the row by cgroup: cgroup, usage in the window and usage since the process began.
    /// The present cgroup comes first, with all gauges and with the counters that the other
    /// parts do not have. It is `None` if it is not known.
    pub fn by_cgroup(&self) -> impl Iterator<Item = (Option<u64>, U, U)> + '_ {
        let parts = self.other_cgroups;
        let rest = |all: &U, of: fn(&CgroupUsage<U>) -> &U| match parts {
            [] => all.clone(),
            _ => all.since(&sum_of(parts.iter().map(of))),
        };
        let (usage, total) = (rest(self.usage, |it| &it.usage), rest(self.total, |it| &it.total));
        let others =
            parts.iter().map(|it| (Some(it.cgroup_id), it.usage.clone(), it.total.clone()));
        std::iter::once((self.info.cgroup_id, usage, total)).chain(others)
    }
}
