//! What the processes in the filter hold together.

use super::{decode::Context, system::FilteredMemory};
use crate::{
    error::Result,
    object::Object,
    record::{MemPeakRecord, MemSumRecord},
};

/// The sum of the resident sets of the processes in the filter, which the kernel side keeps.
#[derive(Debug, Default)]
pub(super) struct FilterSum {
    /// At the start of the window, in bytes.
    start: u64,
    /// At the last walk.
    now: u64,
    /// The highest in the window.
    peak: u64,
    /// The highest since loading.
    high_water: u64,
}

impl FilterSum {
    /// Reads the sum after a walk.
    pub(super) fn read(&mut self, object: &Object, context: &Context) -> Result<()> {
        let sum: MemSumRecord = object.array_element("mem_sum", 0)?;
        let of_cpus: Vec<MemPeakRecord> = object.per_cpu_element("mem_sum_peak", 0)?;
        let pages = sum.pages[(sum.live & 1) as usize] as i64;
        self.now = pages.max(0) as u64 * context.page_bytes;
        let seen = of_cpus.iter().map(|peak| context.peak(peak)).max();
        self.peak = self.start.max(self.now).max(seen.unwrap_or_default());
        self.high_water = self.high_water.max(self.peak);
        Ok(())
    }

    pub(super) fn end_window(&mut self) {
        self.start = self.now;
    }

    pub(super) fn figures(&self) -> FilteredMemory {
        FilteredMemory {
            resident_sum_peak_bytes: self.peak,
            resident_sum_high_water_bytes: self.high_water,
        }
    }
}
