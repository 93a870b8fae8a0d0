use std::ops::AddAssign;

use super::{
    collector::MemCounters,
    gauges::{Marks, MemGauges},
};
use crate::{
    collect::collector::Span,
    process::ProcessId,
    snapshot::{Usage, add_known, known_since},
};

/// Where the figures of a process come from.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash)]
#[cfg_attr(
    feature = "serde",
    derive(serde::Serialize, serde::Deserialize),
    serde(rename_all = "kebab-case")
)]
#[non_exhaustive]
pub enum MemSource {
    /// The kernel's own counters, read by the probe's programs.
    #[default]
    Kernel,
    /// `/proc/PID/status` and `stat`, for a process that the machine hides from eBPF. Sizes
    /// are exact to the KiB, the start time to 10 ms. A peak is known only if it was the
    /// highest since exec.
    Procfs,
}

/// What a process holds, and what it did in a window. Usages can be added.
///
/// Gauges are `None` for kernel threads, which have no memory of their own, and 0 for a
/// process that has exited. Peaks and high-water marks that are not known are `None`, for
/// example those of a process that exited before the probe was loaded.
///
/// Peaks and high-water marks belong to an address space: exec starts new ones. Processes
/// that share an address space have the same.
///
/// # Sums
/// In a sum over a group, a tree or the machine, `resident_bytes` is a sum of resident sets: a
/// page that several processes map counts for each of them. For other figures see
/// [`ProportionalMemory`](super::ProportionalMemory) and [`CgroupMemory`](super::CgroupMemory).
///
/// An address space that several processes share counts once, with the process that owns it. A
/// process that only runs in the address space of another
/// ([`shares_memory_with`](Self::shares_memory_with)) adds its counters to a sum and no memory,
/// even if the owner is not in the sum: the kernel charges the owner too.
///
/// Processes reach their peaks at different moments, so peaks have no sum. If two usages that
/// have peaks or high-water marks are added, the four fields are `None` in the sum, and stay
/// `None` whatever is added later. A sum of one process keeps its values.
/// [`FilteredMemory`](super::FilteredMemory) has the peak of several processes.
///
/// ```
/// use ebpfmetrics::MemUsage;
///
/// let mut usage = MemUsage::default();
/// (usage.resident_bytes, usage.resident_peak_bytes) = (Some(1 << 20), Some(3 << 20));
/// let sum = usage + usage;
/// assert_eq!(sum.resident_bytes, Some(2 << 20));
/// assert_eq!(sum.resident_peak_bytes, None);
/// ```
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
#[cfg_attr(feature = "serde", derive(serde::Serialize, serde::Deserialize), serde(default))]
#[non_exhaustive]
pub struct MemUsage {
    /// Size of the address space. `mm_struct::total_vm`, `VmSize` of `/proc/PID/status`.
    #[doc(alias = "VmSize")]
    #[doc(alias = "total_vm")]
    pub virtual_bytes: Option<u64>,
    /// The largest `virtual_bytes` in the window. Followed at every change of the address
    /// space. If that is off, known only if it was the largest since exec.
    pub virtual_peak_bytes: Option<u64>,
    /// The largest `virtual_bytes` since exec. `mm_struct::hiwater_vm`, `VmPeak`.
    #[doc(alias = "VmPeak")]
    pub virtual_high_water_bytes: Option<u64>,
    /// Pages in memory: anonymous, of files and shared. `mm_struct::rss_stat`, including what
    /// CPUs and threads have not added to it yet; exact to the page. `VmRSS`.
    #[doc(alias = "VmRSS")]
    #[doc(alias = "RSS")]
    pub resident_bytes: Option<u64>,
    /// The part without a file behind it: heap, stack. `MM_ANONPAGES`, `RssAnon`.
    #[doc(alias = "RssAnon")]
    pub resident_anon_bytes: Option<u64>,
    /// The part that maps files. `MM_FILEPAGES`, `RssFile`.
    #[doc(alias = "RssFile")]
    pub resident_file_bytes: Option<u64>,
    /// The part that is shared memory and tmpfs. `MM_SHMEMPAGES`, `RssShmem`.
    #[doc(alias = "RssShmem")]
    pub resident_shmem_bytes: Option<u64>,
    /// The highest `resident_bytes` in the window, including between two reads. Followed at
    /// the tracepoint `rss_stat`. About 30 pages too low per CPU that the process runs on,
    /// unless it was the highest since exec (then by `hiwater_rss`).
    pub resident_peak_bytes: Option<u64>,
    /// The highest `resident_bytes` since exec. `mm_struct::hiwater_rss`, `VmHWM`. At the end
    /// of a process also `signal_struct::maxrss`, `ru_maxrss`.
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
    /// Pages of hugetlbfs, which no other field here includes except the virtual sizes.
    /// `mm_struct::hugetlb_usage`, `HugetlbPages`. `None` on kernels without
    /// `CONFIG_HUGETLB_PAGE`. Transparent huge pages are in `resident_anon_bytes`.
    #[doc(alias = "HugetlbPages")]
    pub hugetlb_bytes: Option<u64>,
    /// Page faults served without a disk. `task_struct::min_flt`, `ru_minflt`.
    #[doc(alias = "min_flt")]
    pub minor_faults: u64,
    /// Page faults that waited for a disk. `task_struct::maj_flt`, `ru_majflt`.
    #[doc(alias = "maj_flt")]
    pub major_faults: u64,
    /// Number of times that the address space grew: `mmap`, `brk`, `mremap`, the stack, exec.
    /// If a single system call grows and shrinks it, the difference counts.
    pub allocations: Option<u64>,
    /// By how much it grew. `virtual_bytes` is the size at fork, plus this, minus
    /// `deallocated_bytes`.
    pub allocated_bytes: Option<u64>,
    /// Number of times that the address space shrank. Exec returns all of the old one. Exit
    /// does not count.
    pub deallocations: Option<u64>,
    /// By how much it shrank.
    pub deallocated_bytes: Option<u64>,
    /// 1 if the kernel chose to kill the process because memory ran out, otherwise 0; more in
    /// sums. `signal_struct::oom_mm`. Of processes that share the memory and are killed
    /// together the kernel chooses one.
    #[doc(alias = "oom_kill")]
    pub oom_kills: u64,
    /// The process that owns the address space, if this one only runs in it, after `vfork` or
    /// `clone` with `CLONE_VM`. Both rows show all of the memory. `None` in sums.
    pub shares_memory_with: Option<ProcessId>,
    /// Where the figures come from. In sums `Kernel` unless all are from `/proc`.
    pub source: MemSource,
    /// Several peaks have been added: there is none any more.
    #[doc(hidden)]
    #[cfg_attr(feature = "serde", serde(skip))]
    pub peaks_mixed: bool,
}

impl MemUsage {
    pub(super) fn of_counters(counters: &MemCounters, follows_space: bool) -> Self {
        let of_space = |count: u64| follows_space.then_some(count);
        Self {
            minor_faults: counters.minor_faults,
            major_faults: counters.major_faults,
            allocations: of_space(counters.allocations),
            allocated_bytes: of_space(counters.allocated_bytes),
            deallocations: of_space(counters.deallocations),
            deallocated_bytes: of_space(counters.deallocated_bytes),
            oom_kills: counters.oom_kills,
            ..Self::default()
        }
    }

    /// Sets what the process holds, and its peaks: in the window, or in all its time.
    pub(super) fn add_gauges(&mut self, process: ProcessId, gauges: &MemGauges, span: Span) {
        let Marks { resident, virtual_bytes } = match span {
            Span::Window => gauges.peak,
            Span::Total => gauges.peak.max(gauges.high_water),
        };
        self.resident_peak_bytes = resident;
        self.virtual_peak_bytes = virtual_bytes;
        self.resident_high_water_bytes = gauges.high_water.resident;
        self.virtual_high_water_bytes = gauges.high_water.virtual_bytes;
        if gauges.from_procfs {
            self.source = MemSource::Procfs;
        }
        let Some(held) = gauges.held else { return };
        self.virtual_bytes = Some(held.virtual_bytes);
        self.resident_bytes = Some(held.resident());
        self.resident_anon_bytes = Some(held.resident_anon);
        self.resident_file_bytes = Some(held.resident_file);
        self.resident_shmem_bytes = Some(held.resident_shmem);
        self.swap_bytes = Some(held.swap);
        self.page_table_bytes = Some(held.page_tables);
        self.locked_bytes = Some(held.locked);
        self.hugetlb_bytes = held.hugetlb;
        self.shares_memory_with = held.owner.filter(|owner| *owner != process);
    }

    /// What a process adds to a sum. Memory that belongs to another process is left out.
    fn share(&self) -> Self {
        if self.shares_memory_with.is_none() {
            return *self;
        }
        let nothing = |bytes: Option<u64>| bytes.map(|_| 0);
        Self {
            virtual_bytes: nothing(self.virtual_bytes),
            virtual_peak_bytes: None,
            virtual_high_water_bytes: None,
            resident_bytes: nothing(self.resident_bytes),
            resident_anon_bytes: nothing(self.resident_anon_bytes),
            resident_file_bytes: nothing(self.resident_file_bytes),
            resident_shmem_bytes: nothing(self.resident_shmem_bytes),
            resident_peak_bytes: None,
            resident_high_water_bytes: None,
            swap_bytes: nothing(self.swap_bytes),
            page_table_bytes: nothing(self.page_table_bytes),
            locked_bytes: nothing(self.locked_bytes),
            hugetlb_bytes: nothing(self.hugetlb_bytes),
            shares_memory_with: None,
            ..*self
        }
    }

    fn peaks(&self) -> [Option<u64>; 4] {
        [
            self.virtual_peak_bytes,
            self.virtual_high_water_bytes,
            self.resident_peak_bytes,
            self.resident_high_water_bytes,
        ]
    }

    fn has_peaks(&self) -> bool {
        self.peaks_mixed || self.peaks().iter().any(Option::is_some)
    }

    fn forget_peaks(&mut self) {
        self.virtual_peak_bytes = None;
        self.virtual_high_water_bytes = None;
        self.resident_peak_bytes = None;
        self.resident_high_water_bytes = None;
        self.peaks_mixed = true;
    }

    fn add_peaks(&mut self, more: &Self) {
        match (self.has_peaks(), more.has_peaks()) {
            (_, false) => {}
            (true, true) => self.forget_peaks(),
            (false, true) => {
                self.virtual_peak_bytes = more.virtual_peak_bytes;
                self.virtual_high_water_bytes = more.virtual_high_water_bytes;
                self.resident_peak_bytes = more.resident_peak_bytes;
                self.resident_high_water_bytes = more.resident_high_water_bytes;
                self.peaks_mixed = more.peaks_mixed;
            }
        }
    }
}

impl AddAssign<&Self> for MemUsage {
    fn add_assign(&mut self, more: &Self) {
        *self = self.share();
        let more = more.share();
        self.add_peaks(&more);
        add_known(&mut self.virtual_bytes, more.virtual_bytes);
        add_known(&mut self.resident_bytes, more.resident_bytes);
        add_known(&mut self.resident_anon_bytes, more.resident_anon_bytes);
        add_known(&mut self.resident_file_bytes, more.resident_file_bytes);
        add_known(&mut self.resident_shmem_bytes, more.resident_shmem_bytes);
        add_known(&mut self.swap_bytes, more.swap_bytes);
        add_known(&mut self.page_table_bytes, more.page_table_bytes);
        add_known(&mut self.locked_bytes, more.locked_bytes);
        add_known(&mut self.hugetlb_bytes, more.hugetlb_bytes);
        self.minor_faults += more.minor_faults;
        self.major_faults += more.major_faults;
        add_known(&mut self.allocations, more.allocations);
        add_known(&mut self.allocated_bytes, more.allocated_bytes);
        add_known(&mut self.deallocations, more.deallocations);
        add_known(&mut self.deallocated_bytes, more.deallocated_bytes);
        self.oom_kills += more.oom_kills;
        if more.source == MemSource::Kernel {
            self.source = MemSource::Kernel;
        }
    }
}

impl Usage for MemUsage {
    fn since(&self, earlier: &Self) -> Self {
        Self {
            minor_faults: self.minor_faults.saturating_sub(earlier.minor_faults),
            major_faults: self.major_faults.saturating_sub(earlier.major_faults),
            allocations: known_since(self.allocations, earlier.allocations),
            allocated_bytes: known_since(self.allocated_bytes, earlier.allocated_bytes),
            deallocations: known_since(self.deallocations, earlier.deallocations),
            deallocated_bytes: known_since(self.deallocated_bytes, earlier.deallocated_bytes),
            oom_kills: self.oom_kills.saturating_sub(earlier.oom_kills),
            ..*self
        }
    }
}

crate::usage_operators!(MemUsage);

#[cfg(test)]
mod tests {
    use super::*;

    fn usage(resident: u64, peak: Option<u64>) -> MemUsage {
        MemUsage {
            resident_bytes: Some(resident),
            resident_peak_bytes: peak,
            ..MemUsage::default()
        }
    }

    #[test]
    fn gauges_stay_and_counters_are_subtracted() {
        let usage = |faults, resident| MemUsage {
            minor_faults: faults,
            allocations: Some(faults + 1),
            resident_bytes: Some(resident),
            ..MemUsage::default()
        };
        let since = usage(10, 5).since(&usage(4, 9));
        assert_eq!((since.minor_faults, since.allocations), (6, Some(6)));
        assert_eq!(since.resident_bytes, Some(5));
        // an earlier one that is ahead is no reason to go below zero
        assert_eq!(usage(4, 5).since(&usage(10, 9)).minor_faults, 0);
    }

    #[test]
    fn peaks_of_several_processes_have_no_sum() {
        let (a, b) = (usage(1, Some(10)), usage(2, Some(20)));
        let mut high_water = usage(3, None);
        high_water.virtual_high_water_bytes = Some(7);
        let none = usage(4, None);
        assert_eq!([a].iter().sum::<MemUsage>(), a, "a single one keeps its value");
        assert_eq!((a + none).resident_peak_bytes, Some(10));
        assert_eq!((none + a).resident_peak_bytes, Some(10));
        assert_eq!((a + b).peaks(), [None; 4]);
        assert_eq!((a + high_water).peaks(), [None; 4]);
        assert_eq!((a + b + none).resident_bytes, Some(7));
        let all = [a, b, high_water, none];
        for x in all {
            for y in all {
                assert_eq!(x + y, y + x);
                for z in all {
                    let sum = (x + y) + z;
                    assert_eq!(sum, x + (y + z));
                    let with_peaks = [x, y, z].iter().filter(|usage| usage.has_peaks()).count();
                    assert_eq!(sum.peaks() != [None; 4], with_peaks == 1);
                }
            }
        }
    }

    #[test]
    fn a_shared_address_space_is_in_a_sum_once() {
        let owner = ProcessId { pid: 5, start_time_ns: 1 };
        let guest = |faults| MemUsage {
            shares_memory_with: Some(owner),
            minor_faults: faults,
            ..usage(10, Some(10))
        };
        let mut own = usage(10, Some(10));
        own.minor_faults = 4;
        // in every order, and grouped in every way
        for all in [[guest(1), guest(2), own], [guest(1), own, guest(2)], [own, guest(1), guest(2)]]
        {
            let [a, b, c] = all;
            for sum in [all.iter().sum(), (a + b) + c, a + (b + c)] {
                assert_eq!((sum.resident_bytes, sum.minor_faults), (Some(10), 7));
                // no other address space is in it
                assert_eq!(sum.resident_peak_bytes, Some(10));
                assert_eq!(sum.shares_memory_with, None);
            }
        }
        let other = usage(3, Some(4));
        assert_eq!((own + guest(1) + other).resident_bytes, Some(13));
        assert_eq!((own + guest(1) + other).resident_peak_bytes, None);
        // its owner has it, in another sum
        assert_eq!((guest(1) + other).resident_bytes, Some(3));
        assert_eq!([guest(1)].iter().sum::<MemUsage>(), guest(1), "a single one keeps its value");
    }

    #[test]
    fn a_sum_is_from_procfs_if_all_of_it_is() {
        let procfs = MemUsage { source: MemSource::Procfs, ..usage(1, None) };
        let kernel = usage(2, None);
        assert_eq!([procfs, procfs].iter().sum::<MemUsage>().source, MemSource::Procfs);
        assert_eq!([procfs, kernel].iter().sum::<MemUsage>().source, MemSource::Kernel);
        assert_eq!([kernel, procfs].iter().sum::<MemUsage>().source, MemSource::Kernel);
    }

    #[cfg(feature = "serde")]
    #[test]
    fn usages_round_trip_through_json() {
        let mut usage = usage(1, Some(2));
        usage.shares_memory_with = Some(ProcessId { pid: 5, start_time_ns: 1 });
        usage.source = MemSource::Procfs;
        let json = serde_json::to_value(usage).unwrap();
        assert_eq!(json["source"], "procfs");
        assert!(json.get("peaks_mixed").is_none());
        assert_eq!(serde_json::from_value::<MemUsage>(json).unwrap(), usage);
    }
}
