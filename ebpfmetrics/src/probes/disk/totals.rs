use bytemuck::{Pod, Zeroable};
use procfs::process::Process;

use super::usage::DiskUsage;
use crate::{kernel::Kernel, record::DiskTotalsRecord};

/// Counters of a process or thread since its start.
#[repr(C)]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Pod, Zeroable)]
pub struct DiskTotals {
    pub(super) dirtied_bytes: u64,
    pub(super) cancelled_bytes: u64,
    pub(super) read_chars: u64,
    pub(super) written_chars: u64,
    pub(super) read_calls: u64,
    pub(super) write_calls: u64,
}

impl DiskTotals {
    pub(super) fn of(record: &DiskTotalsRecord) -> Self {
        let DiskTotalsRecord {
            dirtied_bytes,
            cancelled_bytes,
            read_chars,
            written_chars,
            read_calls,
            write_calls,
        } = *record;
        Self { dirtied_bytes, cancelled_bytes, read_chars, written_chars, read_calls, write_calls }
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
                sum.read_chars += io.rchar;
                sum.written_chars += io.wchar;
                sum.read_calls += io.syscr;
                sum.write_calls += io.syscw;
            }
        }
        Some(sum)
    }
}

/// Which counters of `task_io_accounting` the kernel has.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct IoAccounting {
    /// `CONFIG_TASK_XACCT`: characters and system calls.
    pub(super) chars: bool,
    /// `CONFIG_TASK_IO_ACCOUNTING`: dirtied and cancelled bytes.
    pub(super) bytes: bool,
}

impl IoAccounting {
    pub(super) const ALL: Self = Self { chars: true, bytes: true };

    pub(super) fn of(kernel: &Kernel) -> Self {
        let fields = kernel.btf().layout("task_io_accounting").map(|(_, fields)| fields);
        let has = |name: &str| fields.iter().flatten().any(|(field, _)| field == name);
        Self { chars: has("rchar"), bytes: has("write_bytes") }
    }

    /// Adds the counters of a process to its usage. What is already there is that of its time
    /// before it left the process table.
    pub(super) fn complete(self, usage: &mut DiskUsage, totals: &DiskTotals) {
        let set = |figure: &mut Option<u64>, is_known: bool, now: u64| {
            *figure = is_known.then(|| figure.unwrap_or_default().max(now));
        };
        set(&mut usage.dirtied_bytes, self.bytes, totals.dirtied_bytes);
        set(&mut usage.cancelled_bytes, self.bytes, totals.cancelled_bytes);
        set(&mut usage.read_chars, self.chars, totals.read_chars);
        set(&mut usage.written_chars, self.chars, totals.written_chars);
        set(&mut usage.read_calls, self.chars, totals.read_calls);
        set(&mut usage.write_calls, self.chars, totals.write_calls);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_kernel_here_counts_all() {
        assert_eq!(IoAccounting::of(&Kernel::read().unwrap()), IoAccounting::ALL);
    }

    #[test]
    fn what_the_kernel_does_not_count_is_unknown() {
        let totals =
            DiskTotals { dirtied_bytes: 1, read_chars: 2, write_calls: 3, ..<_>::default() };
        let mut usage = DiskUsage { read_chars: Some(1), write_calls: Some(5), ..<_>::default() };
        IoAccounting { chars: true, bytes: false }.complete(&mut usage, &totals);
        let figures = (usage.dirtied_bytes, usage.read_chars, usage.write_calls);
        assert_eq!(figures, (None, Some(2), Some(5)));
    }
}
