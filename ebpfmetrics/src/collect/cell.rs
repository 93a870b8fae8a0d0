//! What a probe knows of one process.

use std::collections::BTreeMap;

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
    /// The parts of these counters in other cgroups than the present one.
    pub(super) parts: Vec<Part<C::Counters>>,
    /// Nothing has been taken in yet.
    pub(super) is_new: bool,
    /// It was gone when the probe was added: what its final record says is of before.
    pub(super) starts_late: bool,
}

/// What a process used in a cgroup where it is not, or not with all threads.
#[derive(Clone, Copy, Debug)]
pub(super) struct Part<T> {
    pub(super) cgroup_id: u64,
    pub(super) last: T,
    pub(super) baseline: T,
}

impl<C: Collector> Default for Cell<C> {
    fn default() -> Self {
        Self {
            last: C::Counters::zeroed(),
            baseline: C::Counters::zeroed(),
            gauges: C::Gauges::default(),
            parts: Vec::new(),
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

    /// Divides the counters. `before` is the cgroup that had the rest until now, `present` the
    /// one that has it from now on. `parts` are signed sums since the process began.
    pub(super) fn split(&mut self, before: u64, present: u64, parts: &BTreeMap<u64, C::Counters>) {
        if before != present {
            let others = self.parts.iter().map(|part| &part.baseline);
            let others = others.fold(C::Counters::zeroed(), |sum, it| counters::add(&sum, it));
            let baseline = counters::subtract(&self.baseline, &others);
            self.parts.push(Part { cgroup_id: before, last: baseline, baseline });
            self.parts.retain(|part| part.cgroup_id != present);
        }
        for (&cgroup_id, sum) in parts.iter().filter(|(id, _)| **id != present) {
            let at = self.parts.iter().position(|part| part.cgroup_id == cgroup_id);
            let at = at.unwrap_or_else(|| {
                let none = C::Counters::zeroed();
                self.parts.push(Part { cgroup_id, last: none, baseline: none });
                self.parts.len() - 1
            });
            let part = &mut self.parts[at];
            let now = C::complete_part(&counters::unsigned(sum), &part.baseline);
            part.last = counters::max(&part.last, &now);
        }
    }

    /// The parts in the window and since the start: together no more than the whole.
    pub(super) fn divided(&self) -> impl Iterator<Item = (u64, C::Counters, C::Counters)> + '_ {
        let (mut in_window, mut last) = (self.in_window(), self.last);
        let take = |rest: &mut C::Counters, part: &C::Counters| {
            let taken = counters::min(rest, part);
            *rest = counters::subtract(rest, &taken);
            taken
        };
        self.parts.iter().map(move |part| {
            let of_window = take(&mut in_window, &counters::subtract(&part.last, &part.baseline));
            (part.cgroup_id, of_window, take(&mut last, &part.last))
        })
    }

    /// Starts the counters at those that have been taken in.
    pub(super) fn rebase(&mut self) {
        self.baseline = self.last;
        self.parts.iter_mut().for_each(|part| part.baseline = part.last);
    }
}
