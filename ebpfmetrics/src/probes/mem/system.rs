use procfs::{Current as _, Meminfo};

/// Memory of the machine, and of all processes in the filter together.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
#[cfg_attr(feature = "serde", derive(serde::Serialize, serde::Deserialize), serde(default))]
#[non_exhaustive]
pub struct MemSystem {
    /// Memory and swap of the machine at the end of the window. `None` if `/proc/meminfo` cannot
    /// be read.
    pub machine: Option<MachineMemory>,
    /// The processes in the filter together. `None` without a filter, and with
    /// [`MemPeaks::Off`](super::MemPeaks::Off).
    pub filtered: Option<FilteredMemory>,
}

/// Highest sum of the resident sets of the processes in the filter, at one instant.
///
/// The kernel side adds up the resident sets at each change, so processes that have their peaks
/// one after another do not add up. A shared address space counts once, with the process that
/// owns it. It is a sum of resident sets: a page that several processes map counts for each of
/// them, for example after `fork`. For other figures see
/// [`ProportionalMemory`](super::ProportionalMemory) and [`CgroupMemory`](super::CgroupMemory).
///
/// * **Accuracy**: each process is as exact as its own peak, see [`MemPeaks`](super::MemPeaks).
///   Each read counts again to the page (before Linux 6.2 without what threads have not added yet:
///   up to 64 pages each), so errors do not accumulate.
/// * **Processes** count from fork, and an exec replaces what they held. The memory of a process
///   that exits stops counting when its last thread begins to exit.
/// * **A process that moves into or out of the filter's cgroup** counts from its next page fault,
///   or from the next read.
/// * **The owner of a shared address space ends**: the memory counts for the next owner from its
///   next page fault, or from the next read.
/// * **A full table** of tracked processes ([`max_tracked`](super::MemProbeBuilder::max_tracked))
///   makes the sum too low; this is counted as the loss `track_table_full`.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
#[cfg_attr(feature = "serde", derive(serde::Serialize, serde::Deserialize), serde(default))]
#[non_exhaustive]
pub struct FilteredMemory {
    /// In the window.
    pub resident_sum_peak_bytes: u64,
    /// Since the probe was loaded.
    pub resident_sum_high_water_bytes: u64,
}

/// Memory and swap of the machine, from `/proc/meminfo`.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
#[cfg_attr(feature = "serde", derive(serde::Serialize, serde::Deserialize), serde(default))]
#[non_exhaustive]
pub struct MachineMemory {
    /// Memory that the kernel manages. `MemTotal`.
    #[doc(alias = "MemTotal")]
    pub total_bytes: u64,
    /// Memory that nothing uses. `MemFree`.
    #[doc(alias = "MemFree")]
    pub free_bytes: u64,
    /// The kernel's estimate of what new processes can have without swapping. `MemAvailable`.
    #[doc(alias = "MemAvailable")]
    pub available_bytes: Option<u64>,
    /// Raw blocks of devices. `Buffers`.
    #[doc(alias = "Buffers")]
    pub buffers_bytes: u64,
    /// Page cache, with tmpfs and shared memory. `Cached`.
    #[doc(alias = "Cached")]
    pub cached_bytes: u64,
    /// `SwapTotal`
    #[doc(alias = "SwapTotal")]
    pub swap_total_bytes: u64,
    /// `SwapFree`
    #[doc(alias = "SwapFree")]
    pub swap_free_bytes: u64,
}

impl MachineMemory {
    pub(super) fn read() -> Option<Self> {
        let info = Meminfo::current().ok()?;
        Some(Self {
            total_bytes: info.mem_total,
            free_bytes: info.mem_free,
            available_bytes: info.mem_available,
            buffers_bytes: info.buffers,
            cached_bytes: info.cached,
            swap_total_bytes: info.swap_total,
            swap_free_bytes: info.swap_free,
        })
    }
}
