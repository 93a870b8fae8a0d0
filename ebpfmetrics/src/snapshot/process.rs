use super::{Row, Usage};
use crate::process::{ProcessId, ProcessInfo};

/// One process in a snapshot: its identity, its attributes and its resource usage.
///
/// In JSON the fields of `id`, `info` and `usage` are at the top level, and `total` is an
/// object of its own. A usage must not have a field named `total`, or one that `id` or
/// `info` have.
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
    /// probe is loaded. Counters never decrease while the probe is loaded.
    pub total: U,
}

impl<U> Process<U> {
    /// Creates a row.
    pub fn new(id: ProcessId, info: ProcessInfo, usage: U, total: U) -> Self {
        Self { id, info, usage, total }
    }
}

impl<U: Usage> Process<U> {
    /// Borrows the row.
    pub fn as_row(&self) -> Row<'_, U> {
        Row { id: self.id, info: &self.info, usage: &self.usage, total: &self.total }
    }
}
