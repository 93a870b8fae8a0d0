use super::Mem;
use crate::{error::Result, options::check_option, set::SetOptions};

/// How peaks of the resident set are measured.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash)]
#[cfg_attr(
    feature = "serde",
    derive(serde::Serialize, serde::Deserialize),
    serde(rename_all = "kebab-case")
)]
#[non_exhaustive]
pub enum MemPeaks {
    /// Not at all. A peak is known only if it was the highest since exec.
    Off,
    /// Whenever the kernel adds the page counts of a CPU (before 6.2: of a thread) to the
    /// common ones, every 32 to 64 pages. Too low by at most that much per CPU.
    #[default]
    Folded,
    /// At every change of a page count, including what this CPU has not added yet. Exact to
    /// the page for a process with one thread. Costs three times as much per page. Linux 6.2.
    PageExact,
}

/// Options of a [`MemProbe`](super::MemProbe).
#[derive(Clone, Debug)]
#[must_use = "nothing is loaded until load()"]
pub struct MemProbeBuilder {
    pub(super) peaks: MemPeaks,
    pub(super) address_space: Option<bool>,
    pub(super) max_tracked: u32,
    set: SetOptions,
}

impl MemProbeBuilder {
    /// How peaks of the resident set are measured; [`MemPeaks::Folded`] by default.
    pub fn peaks(mut self, peaks: MemPeaks) -> Self {
        self.peaks = peaks;
        self
    }

    /// Whether to follow the address space: allocations, deallocations and the peak of the
    /// virtual size.
    ///
    /// By default it is followed if the kernel's tracepoint `mmap_lock_released` has two
    /// arguments. With three (some kernels before 6.18) the kernel builds the path of a cgroup
    /// at each event. Without the tracepoint (5.10) the probe uses the ends of four system
    /// calls, which slows down every system call of the machine.
    pub fn address_space(mut self, follow: bool) -> Self {
        self.address_space = Some(follow);
        self
    }

    /// How many processes can have their peaks and address space followed at a time. Those
    /// beyond are counted as the loss [`MemLoss::TrackTableFull`](super::MemLoss). 32,768 by
    /// default.
    ///
    /// Kernel memory is allocated as processes come: about 250 bytes each.
    pub fn max_tracked(mut self, processes: u32) -> Self {
        self.max_tracked = processes;
        self
    }

    pub(super) fn check(&self) -> Result<()> {
        check_option("mem", "max_tracked", self.max_tracked, 1..=1 << 24)
    }
}

impl Default for MemProbeBuilder {
    fn default() -> Self {
        Self {
            peaks: MemPeaks::default(),
            address_space: None,
            max_tracked: 32_768,
            set: SetOptions::default(),
        }
    }
}

crate::probe_builder!(MemProbeBuilder, Mem);
