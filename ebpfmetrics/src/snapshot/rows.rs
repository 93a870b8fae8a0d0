use super::{Process, Usage, Window};
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
        Process::new(self.id, *self.info, self.usage.clone(), self.total.clone())
    }
}
