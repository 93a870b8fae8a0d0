//! Processes that move from one cgroup to another, with all their threads or some of them.

use bytemuck::Zeroable as _;

use super::{
    super::{
        collector::{Task, WalkTimes},
        column::Column,
        counters,
        moves::{Moves, Place},
    },
    ProcessTable,
    entry::{Entry, Phase, Shown},
};
use crate::record::ProcessPartRecord;

impl Entry {
    /// The cgroup of a place; `None` if it is outside the filter or not known.
    fn cgroup_of(&self, place: Place) -> Option<u64> {
        match place {
            Place::First => self.first_cgroup,
            Place::Outside => None,
            Place::Cgroup(id) => Some(id),
        }
    }

    /// Takes in where the kernel side has the process.
    fn follow_move(&mut self, place: Option<Place>) {
        let walked = self.info.cgroup_id;
        if self.first_cgroup.is_none() && place.is_none() {
            self.first_cgroup = walked;
        }
        let known = place.map_or(self.first_cgroup, |place| self.cgroup_of(place));
        if known.is_none() || known == walked {
            self.is_unconfirmed = false;
        } else if self.is_unconfirmed {
            // the move was not seen: it found no room, or exec made another thread the leader
            (self.is_undivided, self.cgroup) = (true, walked);
        } else {
            // The task has moved, and the program that follows has not run yet, or it moved
            // after it was walked.
            self.is_unconfirmed = true;
            self.info.cgroup_id = known;
        }
    }
}

impl ProcessTable {
    /// Finds out where processes are, and what does not count because it was used outside the
    /// filter's cgroup.
    pub(super) fn follow_moves(
        &mut self,
        moves: &Moves,
        seen: &[bool],
        columns: &mut [(u64, Box<dyn Column>)],
    ) {
        for (entry, _) in self.entries.iter_mut().zip(seen).filter(|(_, seen)| **seen) {
            entry.follow_move(moves.process(entry.id));
            entry.is_away = false;
        }
        if !self.admits_late {
            return;
        }
        for id in moves.parts.keys() {
            let Ok(index) = self.ids.binary_search(id) else { continue };
            let outside = self.sum(moves, index, |place| place.is_none());
            columns.iter_mut().for_each(|(_, column)| column.outside(index, &outside));
        }
    }

    /// Sums the parts of a process in some places.
    fn sum(
        &self,
        moves: &Moves,
        index: usize,
        is_part: impl Fn(Option<u64>) -> bool,
    ) -> ProcessPartRecord {
        let entry = &self.entries[index];
        let parts = moves.parts.get(&entry.id).into_iter().flatten();
        let parts = parts.filter(|(place, _)| is_part(entry.cgroup_of(*place)));
        parts.fold(ProcessPartRecord::zeroed(), |sum, (_, part)| counters::wrapping_add(&sum, part))
    }

    /// The cgroup of a thread, if it is not that of its process.
    pub(super) fn is_elsewhere(&self, moves: &Moves, task: &Task) -> Option<u64> {
        let entry = &self.entries[task.index];
        let place = if task.is_leader { None } else { moves.thread(task.thread) };
        place
            .and_then(|place| entry.cgroup_of(place))
            .filter(|id| Some(*id) != entry.info.cgroup_id)
    }

    /// Processes that have left the filter's cgroup: their counters are known to the last.
    pub(super) fn take_away(
        &mut self,
        moves: &Moves,
        seen: &[bool],
        walk: &WalkTimes,
        columns: &mut [(u64, Box<dyn Column>)],
    ) {
        if !self.admits_late {
            return;
        }
        for index in (0..self.entries.len()).filter(|index| !seen[*index]) {
            let Entry { id, phase, is_away, .. } = self.entries[index];
            let is_outside = moves.process(id) == Some(Place::Outside);
            match phase {
                Phase::Ended { since_ns, shown, is_complete, .. } if is_away && !is_outside => {
                    // it has been released
                    self.entries[index].phase =
                        Phase::Ended { since_ns, shown, is_complete, is_final: true };
                }
                Phase::Vanished { since_ns } if is_outside => {
                    let inside = self.sum(moves, index, |place| place.is_some());
                    let columns_of = columns.iter_mut();
                    columns_of.for_each(|(_, column)| column.away(index, id, &inside, walk));
                    let entry = &mut self.entries[index];
                    (entry.is_away, entry.info.exited) = (true, true);
                    entry.phase = Phase::Ended {
                        since_ns,
                        shown: Shown::Nowhere,
                        is_complete: true,
                        is_final: false,
                    };
                    self.show_ended(index, columns);
                }
                _ => {}
            }
        }
    }

    /// Divides the counters of processes that have moved.
    pub(super) fn divide(&mut self, moves: &Moves, columns: &mut [(u64, Box<dyn Column>)]) {
        let mut parts = Vec::new();
        for (index, entry) in self.entries.iter_mut().enumerate() {
            let Some(present) = entry.info.cgroup_id else { continue };
            let before = entry.cgroup.replace(present).or(entry.first_cgroup).unwrap_or(present);
            if entry.is_undivided {
                columns.iter_mut().for_each(|(_, column)| column.unite(index));
                continue;
            }
            let counted = moves.parts.get(&entry.id);
            if counted.is_none() && moves.process(entry.id).is_none() {
                continue; // it has not moved
            }
            parts.clear();
            let counted = counted.into_iter().flatten();
            parts.extend(
                counted.filter_map(|(place, part)| Some((entry.cgroup_of(*place)?, *part))),
            );
            columns.iter_mut().for_each(|(_, column)| column.split(index, before, present, &parts));
        }
    }
}
