use bytemuck::{Pod, Zeroable};
use procfs::process::Process;

use crate::record::DiskTotalsRecord;

/// Counters of a process or thread since its start.
#[repr(C)]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Pod, Zeroable)]
pub struct DiskTotals {
    pub(super) dirtied_bytes: u64,
    pub(super) cancelled_bytes: u64,
}

impl DiskTotals {
    pub(super) fn of(record: &DiskTotalsRecord) -> Self {
        Self { dirtied_bytes: record.dirtied_bytes, cancelled_bytes: record.cancelled_bytes }
    }

    pub(super) fn is_zero(&self) -> bool {
        *self == Self::default()
    }

    /// Of a process that eBPF does not show, by its threads; `None` if it is gone. The figures of
    /// the whole process would include children that it has waited for.
    pub(super) fn from_procfs(pid: u32) -> Option<Self> {
        let mut sum = Self::default();
        for task in Process::new(i32::try_from(pid).ok()?).ok()?.tasks().ok()?.flatten() {
            if let Ok(io) = task.io() {
                sum.dirtied_bytes += io.write_bytes;
                sum.cancelled_bytes += io.cancelled_write_bytes;
            }
        }
        Some(sum)
    }
}
