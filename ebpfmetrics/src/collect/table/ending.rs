//! The end of a process: its final record, or a time-out.

use super::{
    super::{collector::WalkTimes, column::Column, walk::End},
    ProcessTable,
    entry::{Entry, Phase, Shown, info_at_end},
    has_end,
};
use crate::record::{ProcessKey, ended_flags};

/// A process is released an RCU grace period after it disappears: 16 ms at the median, 150 ms
/// at most where measured. After this the record is not coming.
pub(super) const RELEASE_TIMEOUT_NS: u64 = 2_000_000_000;

impl ProcessTable {
    /// Takes in final records; returns those that are done with.
    pub(super) fn take_ends(
        &mut self,
        ends: &[End],
        began_ns: u64,
        seen: &[bool],
        late: &[usize],
        walk: &WalkTimes,
        columns: &mut [(u64, Box<dyn Column>)],
    ) -> Vec<ProcessKey> {
        let mut gone = Vec::new();
        for end in ends {
            let is_released = end.record.flags & ended_flags::RELEASED != 0;
            let Ok(index) = self.ids.binary_search(&end.id) else {
                // It ended before the first walk, was settled without this record, or began
                // after this walk.
                let is_of_no_window =
                    end.id.start_time_ns < began_ns || self.walked_ns == 0 || self.has_left(end.id);
                if is_released && is_of_no_window {
                    gone.push(end.key);
                }
                continue;
            };
            if seen[index] {
                continue; // a zombie, or it ended after the walk had passed
            }
            let before = self.entries[index].phase;
            // beyond the rows of this window: nothing more is shown of it
            let mut is_complete = true;
            for (_, column) in columns.iter_mut() {
                is_complete &= column.ended(index, end, walk);
                if late.contains(&index) {
                    column.start_here(index);
                }
            }
            let is_final = is_released && is_complete;
            let entry = &mut self.entries[index];
            entry.info = info_at_end(&entry.info, end);
            let since_ns = match before {
                Phase::Vanished { since_ns } | Phase::Ended { since_ns, .. } => since_ns,
                Phase::Alive => walk.monotonic_ns,
            };
            let shown = match before {
                Phase::Ended { shown, .. } => Some(shown),
                Phase::Alive | Phase::Vanished { .. } => None,
            };
            let phase_shown = shown.unwrap_or(Shown::Nowhere);
            entry.is_settled |= is_complete && end.settled.is_some_and(|it| it.threads == 0);
            entry.phase = Phase::Ended { since_ns, shown: phase_shown, is_complete, is_final };
            let has_usage = columns.iter().any(|(_, column)| column.has_usage(index));
            match shown {
                Some(Shown::InRow) => {}
                Some(Shown::InOverflow) => {
                    columns.iter_mut().for_each(|(_, column)| column.fold(index));
                }
                Some(Shown::Nowhere) if !has_usage => {}
                Some(Shown::Nowhere) | None => self.show_ended(index, columns),
            }
            if is_final {
                gone.push(end.key);
            }
        }
        gone
    }

    /// Gives an ended process a row, if there is room; else it is counted with others.
    pub(super) fn show_ended(&mut self, index: usize, columns: &mut [(u64, Box<dyn Column>)]) {
        let place = if self.exited_rows < self.max_exited {
            self.exited_rows += 1;
            Shown::InRow
        } else {
            self.overflow += 1;
            columns.iter_mut().for_each(|(_, column)| column.fold(index));
            Shown::InOverflow
        };
        if let Phase::Ended { shown, .. } = &mut self.entries[index].phase {
            *shown = place;
        }
    }

    /// Settles processes of which nothing more will come, with the best that is known.
    /// Returns final records to be deleted.
    pub(super) fn time_out(
        &mut self,
        ends: &[End],
        now_ns: u64,
        columns: &mut [(u64, Box<dyn Column>)],
    ) -> Vec<ProcessKey> {
        let mut gone = Vec::new();
        for index in 0..self.entries.len() {
            let Entry { id, phase, .. } = self.entries[index];
            match phase {
                Phase::Vanished { since_ns } if is_overdue(since_ns, now_ns) => {
                    let held = self.held.older + self.held.newer;
                    let may_be_held = held > 0 && !has_end(ends, id);
                    if may_be_held {
                        // Too much is subtracted if its release was not seen: better a counted
                        // loss than figures that are reported twice.
                        columns
                            .iter_mut()
                            .for_each(|(_, column)| column.subtract_from_overflow(index));
                    }
                    if may_be_held && self.held.known < held {
                        self.held.known += 1;
                    } else {
                        self.exit_record_missing += 1;
                    }
                    self.settle(index, since_ns, columns);
                }
                Phase::Ended { since_ns, shown, is_complete: true, is_final: false }
                    if is_overdue(since_ns, now_ns) =>
                {
                    let end = ends.binary_search_by_key(&id, |end| end.id).map(|at| &ends[at]);
                    if self.entries[index].is_away {
                        continue;
                    }
                    // In another PID namespace it may still wait to be reaped.
                    let is_waiting = end.is_ok_and(|end| {
                        end.record.flags & ended_flags::RELEASED != 0
                            || end.settled.is_some_and(|settled| settled.threads > 0)
                    });
                    if is_waiting || !self.sees_all {
                        continue;
                    }
                    // Its release was not seen. If its counters were read after it had run for
                    // the last time, they are complete all the same.
                    if !self.entries[index].is_settled {
                        self.exit_record_missing += 1;
                    }
                    self.entries[index].phase =
                        Phase::Ended { since_ns, shown, is_complete: true, is_final: true };
                    gone.push(end.map_or(id.into(), |end| end.key));
                }
                _ => {}
            }
        }
        gone
    }

    fn settle(&mut self, index: usize, since_ns: u64, columns: &mut [(u64, Box<dyn Column>)]) {
        let entry = &mut self.entries[index];
        entry.info.exited = true;
        entry.phase =
            Phase::Ended { since_ns, shown: Shown::Nowhere, is_complete: true, is_final: true };
        self.show_ended(index, columns);
    }
}

fn is_overdue(since_ns: u64, now_ns: u64) -> bool {
    now_ns.saturating_sub(since_ns) > RELEASE_TIMEOUT_NS
}
