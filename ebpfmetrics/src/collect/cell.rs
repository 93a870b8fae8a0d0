//! What a probe knows of one process.

use bytemuck::Zeroable as _;

use super::{
    collector::{Collector, Progress, Reading, WalkTimes},
    counters,
};
use crate::process::ProcessId;

/// What is known of a process: counters since its start, and how far they were reported.
pub(super) struct Cell<C: Collector> {
    pub(super) last: C::Counters,
    pub(super) baseline: C::Counters,
    pub(super) gauges: C::Gauges,
    /// Nothing has been taken in yet.
    pub(super) is_new: bool,
    /// It was gone when the probe was added: what its final record says is of before.
    pub(super) starts_late: bool,
}

impl<C: Collector> Default for Cell<C> {
    fn default() -> Self {
        Self {
            last: C::Counters::zeroed(),
            baseline: C::Counters::zeroed(),
            gauges: C::Gauges::default(),
            is_new: true,
            starts_late: false,
        }
    }
}

impl<C: Collector> Cell<C> {
    pub(super) fn take_in(
        &mut self,
        collector: &C,
        id: ProcessId,
        now: Reading<C>,
        walk: &WalkTimes,
    ) {
        let progress = Progress {
            start_time_ns: id.start_time_ns,
            last: &self.last,
            baseline: &self.baseline,
            is_new: std::mem::take(&mut self.is_new),
            walk,
        };
        self.last = collector.advance(&progress, &now);
        if std::mem::take(&mut self.starts_late) {
            self.baseline = self.last;
        }
        let before = std::mem::take(&mut self.gauges);
        self.gauges = C::follow(&before, now.gauges);
    }

    pub(super) fn in_window(&self) -> C::Counters {
        counters::subtract(&self.last, &self.baseline)
    }
}
