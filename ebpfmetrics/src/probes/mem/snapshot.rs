use std::sync::Arc;

use super::decode::Totals;
use crate::{
    Losses, ProcessId, ProcessInfo, Provenance, Window,
    ledger::{Folded, Known},
};

/// What every process holds, and what it took and gave back in a window.
///
/// Counters and peaks are of [`window`](MemSnapshot::window); gauges are as of its
/// end.
#[derive(Clone, Debug)]
#[cfg_attr(feature = "serde", derive(serde::Serialize))]
#[non_exhaustive]
pub struct MemSnapshot {
    /// The time that the counters and peaks are of.
    pub window: Window,
    /// Processes in ascending order of [`ProcessId`], exited ones included. Those
    /// that lived and died between two snapshots are there too, with their peaks.
    pub processes: Vec<MemProcess>,
    /// Processes that exited beyond the bound of
    /// [`MemProbeBuilder::max_exited`](super::MemProbeBuilder::max_exited),
    /// together.
    pub folded: MemFolded,
    /// What could not be counted.
    pub losses: Losses,
    /// Where the figures come from on this kernel.
    #[cfg_attr(feature = "serde", serde(skip))]
    pub provenance: Arc<Provenance>,
}

impl MemSnapshot {
    /// The sum over all processes, with those that have exited.
    ///
    /// What several processes hold together because they share an address space
    /// is in it once. Pages that different address spaces map are in it as often
    /// as they are mapped, as the kernel counts them to each. Peaks and high-water
    /// marks are `None`: they are not reached at the same time.
    pub fn total(&self) -> MemUsage {
        let rows = self.processes.iter().map(|process| {
            let shares = process.shares_memory_with.is_some();
            if shares { process.usage.without_memory() } else { process.usage }
        });
        let sum = rows.fold(self.folded.usage, |sum, usage| sum.plus(&usage));
        MemUsage {
            virtual_peak_bytes: None,
            virtual_high_water_bytes: None,
            resident_peak_bytes: None,
            resident_high_water_bytes: None,
            ..sum
        }
    }

    /// Processes that the kernel killed in the window for want of memory.
    pub fn oom_killed(&self) -> impl Iterator<Item = &MemProcess> {
        self.processes.iter().filter(|process| process.usage.oom_kills > 0)
    }
}

crate::process_rows!(MemSnapshot: MemProcess: MemUsage);

/// One process.
#[derive(Clone, Debug, PartialEq)]
#[cfg_attr(feature = "serde", derive(serde::Serialize))]
#[non_exhaustive]
pub struct MemProcess {
    /// Who it is, for all time.
    #[cfg_attr(feature = "serde", serde(flatten))]
    pub id: ProcessId,
    /// Its name, its parent, whether it has exited and more.
    #[cfg_attr(feature = "serde", serde(flatten))]
    pub info: ProcessInfo,
    /// The process whose address space this one runs in as well, after `vfork` or
    /// `clone` with `CLONE_VM`. Both rows show all of it.
    pub shares_memory_with: Option<ProcessId>,
    /// Where its figures come from.
    pub source: MemSource,
    /// What it holds, and what it did in the window.
    #[cfg_attr(feature = "serde", serde(flatten))]
    pub usage: MemUsage,
}

impl MemProcess {
    pub(super) fn new(known: &Known<Totals>, follows_space: bool) -> Self {
        let gauges = &known.gauges;
        let owner = gauges.held.and_then(|held| held.owner);
        let from_kernel = !gauges.from_procfs;
        Self {
            id: known.id,
            info: known.info,
            shares_memory_with: owner.filter(|owner| *owner != known.id),
            source: if from_kernel { MemSource::Kernel } else { MemSource::Procfs },
            usage: MemUsage {
                virtual_bytes: gauges.held.map(|held| held.virtual_bytes),
                virtual_peak_bytes: gauges.virtual_peak_bytes,
                virtual_high_water_bytes: gauges.held.map(|held| held.high_water.virtual_bytes),
                resident_bytes: gauges.held.map(|held| held.resident()),
                resident_anon_bytes: gauges.held.map(|held| held.resident_anon),
                resident_file_bytes: gauges.held.map(|held| held.resident_file),
                resident_shmem_bytes: gauges.held.map(|held| held.resident_shmem),
                resident_peak_bytes: gauges.resident_peak_bytes,
                resident_high_water_bytes: gauges.held.map(|held| held.high_water.resident),
                swap_bytes: gauges.held.map(|held| held.swap),
                page_table_bytes: gauges.held.map(|held| held.page_tables),
                locked_bytes: gauges.held.map(|held| held.locked),
                hugetlb_bytes: gauges.held.and_then(|held| held.hugetlb),
                ..MemUsage::counters(&known.counters(), follows_space && from_kernel)
            },
        }
    }
}

/// Where the figures of a process come from.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash)]
#[cfg_attr(feature = "serde", derive(serde::Serialize), serde(rename_all = "kebab-case"))]
#[non_exhaustive]
pub enum MemSource {
    /// The kernel's own books, by the probe's programs.
    #[default]
    Kernel,
    /// `/proc/PID/status` and `stat`, for a process that eBPF does not show: to the
    /// KiB, start time to 10 ms, peak only if it was the highest ever.
    Procfs,
}

/// Processes that exited, counted together.
#[derive(Clone, Debug, Default, PartialEq)]
#[cfg_attr(feature = "serde", derive(serde::Serialize))]
#[non_exhaustive]
pub struct MemFolded {
    /// How many.
    pub processes: u64,
    /// What they did in the window; they hold nothing any more.
    #[cfg_attr(feature = "serde", serde(flatten))]
    pub usage: MemUsage,
}

impl MemFolded {
    pub(super) fn new(folded: &Folded<Totals>, follows_space: bool) -> Self {
        Self {
            processes: folded.processes,
            usage: MemUsage::counters(&folded.totals, follows_space),
        }
    }
}

/// What a process holds, and what it did in a window.
///
/// Gauges are `None` for threads of the kernel, which have no memory of their own,
/// and 0 for a process that has exited.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
#[cfg_attr(feature = "serde", derive(serde::Serialize))]
pub struct MemUsage {
    /// Size of the address space. `mm_struct::total_vm`, `VmSize` of
    /// `/proc/PID/status`.
    #[doc(alias = "VmSize")]
    #[doc(alias = "total_vm")]
    pub virtual_bytes: Option<u64>,
    /// The largest in the window. Followed at every change of the address space;
    /// `None` if that is off and it was not the largest ever either.
    pub virtual_peak_bytes: Option<u64>,
    /// The largest since exec. `mm_struct::hiwater_vm`, `VmPeak`.
    #[doc(alias = "VmPeak")]
    pub virtual_high_water_bytes: Option<u64>,
    /// Pages in memory: anonymous, of files and shared. `mm_struct::rss_stat` with
    /// what CPUs and threads have not handed in yet, exact to the page; `VmRSS`.
    #[doc(alias = "VmRSS")]
    #[doc(alias = "RSS")]
    pub resident_bytes: Option<u64>,
    /// The part that no file stands behind: heap, stack. `MM_ANONPAGES`, `RssAnon`.
    #[doc(alias = "RssAnon")]
    pub resident_anon_bytes: Option<u64>,
    /// The part that maps files. `MM_FILEPAGES`, `RssFile`.
    #[doc(alias = "RssFile")]
    pub resident_file_bytes: Option<u64>,
    /// The part that is shared memory and tmpfs. `MM_SHMEMPAGES`, `RssShmem`.
    #[doc(alias = "RssShmem")]
    pub resident_shmem_bytes: Option<u64>,
    /// The highest `resident_bytes` in the window, between two reads too. Followed
    /// at the tracepoint `rss_stat`; some 30 pages low per CPU that the process
    /// runs on, unless it was the highest ever (then by `hiwater_rss`).
    pub resident_peak_bytes: Option<u64>,
    /// The highest since exec. `mm_struct::hiwater_rss`, `VmHWM`.
    #[doc(alias = "VmHWM")]
    pub resident_high_water_bytes: Option<u64>,
    /// Swapped out. `MM_SWAPENTS`, `VmSwap`.
    #[doc(alias = "VmSwap")]
    pub swap_bytes: Option<u64>,
    /// Page tables. `mm_struct::pgtables_bytes`, `VmPTE`.
    #[doc(alias = "VmPTE")]
    pub page_table_bytes: Option<u64>,
    /// Locked into memory with `mlock`. `mm_struct::locked_vm`, `VmLck`.
    #[doc(alias = "VmLck")]
    pub locked_bytes: Option<u64>,
    /// Pages of hugetlbfs, which are in no other figure here but the virtual ones.
    /// `mm_struct::hugetlb_usage`, `HugetlbPages`; `None` on kernels without
    /// `CONFIG_HUGETLB_PAGE`. Transparent huge pages are in `resident_anon_bytes`.
    #[doc(alias = "HugetlbPages")]
    pub hugetlb_bytes: Option<u64>,
    /// Page faults served without a disk. `task_struct::min_flt`, `ru_minflt`.
    #[doc(alias = "min_flt")]
    pub minor_faults: u64,
    /// Page faults that waited for a disk. `task_struct::maj_flt`, `ru_majflt`.
    #[doc(alias = "maj_flt")]
    pub major_faults: u64,
    /// Times the address space grew: `mmap`, `brk`, `mremap`, the stack, exec.
    /// What a single system call grows and shrinks at once counts by its sum.
    pub allocations: Option<u64>,
    /// By how much. `virtual_bytes` is what it was at fork, plus this, less
    /// `deallocated_bytes`.
    pub allocated_bytes: Option<u64>,
    /// Times the address space shrank. Exec gives all of the old one back; exit
    /// does not count.
    pub deallocations: Option<u64>,
    /// By how much.
    pub deallocated_bytes: Option<u64>,
    /// 1 if the kernel chose to kill it for want of memory, 0 if not; more in sums.
    /// `signal_struct::oom_mm`.
    #[doc(alias = "oom_kill")]
    pub oom_kills: u64,
}

impl MemUsage {
    fn counters(totals: &Totals, follows_space: bool) -> Self {
        let of_space = |count: u64| follows_space.then_some(count);
        Self {
            minor_faults: totals.minor_faults,
            major_faults: totals.major_faults,
            allocations: of_space(totals.allocations),
            allocated_bytes: of_space(totals.allocated_bytes),
            deallocations: of_space(totals.deallocations),
            deallocated_bytes: of_space(totals.deallocated_bytes),
            oom_kills: totals.oom_kills,
            ..Self::default()
        }
    }

    fn without_memory(&self) -> Self {
        Self {
            minor_faults: self.minor_faults,
            major_faults: self.major_faults,
            allocations: self.allocations,
            allocated_bytes: self.allocated_bytes,
            deallocations: self.deallocations,
            deallocated_bytes: self.deallocated_bytes,
            oom_kills: self.oom_kills,
            ..Self::default()
        }
    }

    /// The sum of both; what only one of them has is taken as it is.
    #[must_use]
    pub fn plus(&self, other: &Self) -> Self {
        let sum = |a: Option<u64>, b: Option<u64>| match (a, b) {
            (Some(a), Some(b)) => Some(a + b),
            (a, b) => a.or(b),
        };
        Self {
            virtual_bytes: sum(self.virtual_bytes, other.virtual_bytes),
            virtual_peak_bytes: sum(self.virtual_peak_bytes, other.virtual_peak_bytes),
            virtual_high_water_bytes: sum(
                self.virtual_high_water_bytes,
                other.virtual_high_water_bytes,
            ),
            resident_bytes: sum(self.resident_bytes, other.resident_bytes),
            resident_anon_bytes: sum(self.resident_anon_bytes, other.resident_anon_bytes),
            resident_file_bytes: sum(self.resident_file_bytes, other.resident_file_bytes),
            resident_shmem_bytes: sum(self.resident_shmem_bytes, other.resident_shmem_bytes),
            resident_peak_bytes: sum(self.resident_peak_bytes, other.resident_peak_bytes),
            resident_high_water_bytes: sum(
                self.resident_high_water_bytes,
                other.resident_high_water_bytes,
            ),
            swap_bytes: sum(self.swap_bytes, other.swap_bytes),
            page_table_bytes: sum(self.page_table_bytes, other.page_table_bytes),
            locked_bytes: sum(self.locked_bytes, other.locked_bytes),
            hugetlb_bytes: sum(self.hugetlb_bytes, other.hugetlb_bytes),
            minor_faults: self.minor_faults + other.minor_faults,
            major_faults: self.major_faults + other.major_faults,
            allocations: sum(self.allocations, other.allocations),
            allocated_bytes: sum(self.allocated_bytes, other.allocated_bytes),
            deallocations: sum(self.deallocations, other.deallocations),
            deallocated_bytes: sum(self.deallocated_bytes, other.deallocated_bytes),
            oom_kills: self.oom_kills + other.oom_kills,
        }
    }
}

impl crate::Usage for MemUsage {
    fn plus(&self, other: &Self) -> Self {
        MemUsage::plus(self, other)
    }

    fn since(&self, earlier: &Self) -> Self {
        let counter = |now: Option<u64>, before: Option<u64>| {
            now.map(|now| now.saturating_sub(before.unwrap_or_default()))
        };
        Self {
            minor_faults: self.minor_faults.saturating_sub(earlier.minor_faults),
            major_faults: self.major_faults.saturating_sub(earlier.major_faults),
            allocations: counter(self.allocations, earlier.allocations),
            allocated_bytes: counter(self.allocated_bytes, earlier.allocated_bytes),
            deallocations: counter(self.deallocations, earlier.deallocations),
            deallocated_bytes: counter(self.deallocated_bytes, earlier.deallocated_bytes),
            oom_kills: self.oom_kills.saturating_sub(earlier.oom_kills),
            ..*self
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn gauges_stay_and_counters_are_subtracted() {
        let usage = |faults, resident| MemUsage {
            minor_faults: faults,
            allocations: Some(faults + 1),
            resident_bytes: Some(resident),
            ..MemUsage::default()
        };
        let since = crate::Usage::since(&usage(10, 5), &usage(4, 9));
        assert_eq!((since.minor_faults, since.allocations), (6, Some(6)));
        assert_eq!(since.resident_bytes, Some(5));
        // an earlier one that is ahead is no reason to go below zero
        assert_eq!(crate::Usage::since(&usage(4, 5), &usage(10, 9)).minor_faults, 0);
    }
}
