//! What the kernel counted of processes without a final record.

use super::{
    super::{column::Column, walk::End},
    ProcessTable,
    entry::{Entry, Phase},
    has_end,
};
use crate::record::ProcessOverflowRecord;

/// Processes of the kernel's overflow that are not reported yet. The columns hold back their
/// counters.
#[derive(Debug, Default)]
pub(super) struct HeldOverflow {
    /// Complete since this moment; `None` if there are none.
    pub(super) since_ns: Option<u64>,
    pub(super) older: u64,
    /// That came since then.
    pub(super) newer: u64,
    /// Of all of these, those that have a row of their own.
    pub(super) known: u64,
}

impl ProcessTable {
    /// Takes in what the kernel counted of processes that `ended` had no room for.
    ///
    /// A process known before may be among them: one that is gone without a final record. The
    /// kernel counted all that it ever used, of which a part has been reported. It is in the
    /// kernel's sum after a release, at most [`RELEASE_TIMEOUT_NS`] after it vanished; which
    /// part of the sum is its own is not known. So a sum is held back until every process
    /// that could be in it has been settled, and what these had is subtracted.
    pub(super) fn take_overflow(
        &mut self,
        overflow: &[ProcessOverflowRecord],
        now_ns: u64,
        columns: &mut [(u64, Box<dyn Column>)],
    ) {
        let now: u64 = overflow.iter().map(|record| record.processes).sum();
        let grown = now.saturating_sub(self.kernel_overflow);
        self.kernel_overflow = now;
        columns.iter_mut().for_each(|(_, column)| column.overflow(overflow));
        self.held.newer += grown;
        if self.held.since_ns.is_none() {
            self.hold_newer(now_ns, columns);
        }
    }

    /// Waits for the processes that could be in the sum so far.
    fn hold_newer(&mut self, now_ns: u64, columns: &mut [(u64, Box<dyn Column>)]) {
        let newer = std::mem::take(&mut self.held.newer);
        if newer == 0 {
            return;
        }
        self.held.older = newer;
        self.held.since_ns = Some(now_ns);
        columns.iter_mut().for_each(|(_, column)| column.hold_overflow());
    }

    /// Reports the sums that no process without a final record can be in any more.
    pub(super) fn release_overflow(
        &mut self,
        ends: &[End],
        now_ns: u64,
        columns: &mut [(u64, Box<dyn Column>)],
    ) {
        while let Some(held_ns) = self.held.since_ns {
            let could_be_in_it = |entry: &Entry| match entry.phase {
                Phase::Vanished { since_ns } => since_ns <= held_ns && !has_end(ends, entry.id),
                Phase::Alive | Phase::Ended { .. } => false,
            };
            if self.entries.iter().any(could_be_in_it) {
                return;
            }
            self.held.since_ns = None;
            let known = self.held.known.min(self.held.older);
            self.held.known -= known;
            self.overflow += self.held.older - known;
            let is_last = self.held.newer == 0;
            if is_last {
                self.held.known = 0;
            }
            columns.iter_mut().for_each(|(_, column)| column.release_overflow(is_last));
            self.hold_newer(now_ns, columns);
        }
    }
}
