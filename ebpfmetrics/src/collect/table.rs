//! The processes of a set from one walk to the next: the rules of their life.
//!
//! | phase | row in the window | leaves the table |
//! |---|---|---|
//! | alive | yes | |
//! | vanished: not in the walk, no final record yet | yes, with what is known | settled after 2 s at most, counted as `exit_record_missing` |
//! | ended | in the window of its end; later only if something is added | at the reset after its final record has been read; without a release, after 2 s, counted as `exit_record_missing` unless its final counters were read before |
//!
//! A process has exited when its last thread has, and it is not in the walk any more. Its row
//! then says so, although the kernel releases it later: what the release will say can be read
//! before. Counters are never reported twice, because the entry stays until the kernel has
//! nothing more to say about the process.

use std::collections::HashMap;

use self::{
    entry::{Entry, Phase, Shown},
    overflow::HeldOverflow,
};
use super::{
    collector::{Record, Task, WalkTimes},
    column::{Column, Places, WalkView},
    moves::Moves,
    recent::Recent,
    walk::{End, RecordBuffer, Walked},
};
use crate::{
    error::Result,
    process::{ProcessId, ProcessInfo},
    record::{ProcessCreatorRecord, ProcessKey, ProcessOverflowRecord},
};

/// A new process has its start time before a walk can see it.
pub(super) const STARTING_NS: u64 = 100_000_000;

/// What a read of the kernel showed.
pub(super) struct Observed<'a> {
    pub(super) walked: &'a Walked,
    pub(super) buffer: &'a RecordBuffer,
    /// In ascending order of id.
    pub(super) ends: &'a [End],
    /// Processes that were started since the last read, with their creators.
    pub(super) creators: Vec<(ProcessKey, ProcessCreatorRecord)>,
    /// Moves between cgroups so far.
    pub(super) moves: &'a Moves,
    pub(super) overflow: &'a [ProcessOverflowRecord],
    /// Processes of the walk that come from `/proc`.
    pub(super) hidden: &'a [ProcessId],
}

/// The process table of a set.
#[derive(Debug)]
pub(super) struct ProcessTable {
    /// In ascending order of id, as the cells of every column.
    entries: Vec<Entry>,
    /// The ids alone, for the columns.
    ids: Vec<ProcessId>,
    /// What is known of them, for the columns; its memory is kept from walk to walk.
    infos: Vec<ProcessInfo>,
    max_exited: usize,
    /// Rows of ended processes in this window.
    exited_rows: usize,
    /// Whether processes come in that existed before.
    admits_late: bool,
    /// Whether the walk shows every process of the machine.
    sees_all: bool,
    /// The first walk, `CLOCK_BOOTTIME`: what ended before is in no window.
    began_ns: Option<u64>,
    /// The last walk, `CLOCK_BOOTTIME`.
    walked_ns: u64,
    /// Of processes that are not in the table yet, with the number of reads since.
    creators: HashMap<ProcessId, (ProcessCreatorRecord, u8)>,
    /// Processes that are only counted together: in this window.
    overflow: u64,
    /// The kernel's own count since loading.
    kernel_overflow: u64,
    held: HeldOverflow,
    exit_record_missing: u64,
    recent: Recent<ProcessInfo>,
}

impl ProcessTable {
    /// A table with at most this many rows of ended processes per window.
    pub(super) fn new(max_exited: usize, admits_late: bool, sees_all: bool) -> Self {
        Self {
            entries: Vec::new(),
            ids: Vec::new(),
            infos: Vec::new(),
            max_exited,
            exited_rows: 0,
            admits_late,
            sees_all,
            began_ns: None,
            walked_ns: 0,
            creators: HashMap::new(),
            overflow: 0,
            kernel_overflow: 0,
            held: HeldOverflow::default(),
            exit_record_missing: 0,
            recent: Recent::default(),
        }
    }

    /// The places of the processes in every column.
    pub(super) fn ids(&self) -> &[ProcessId] {
        &self.ids
    }

    /// Processes of the window that ended without a final record: a loss.
    pub(super) fn exit_record_missing(&self) -> u64 {
        self.exit_record_missing
    }

    /// Ended processes of the window without a row.
    pub(super) fn overflow(&self) -> u64 {
        self.overflow
    }

    /// Processes with a row in the window, by their place, in ascending order of id.
    pub(super) fn rows(&self) -> impl Iterator<Item = (usize, ProcessId, ProcessInfo)> + '_ {
        let has_row = |entry: &Entry| match entry.phase {
            Phase::Ended { shown, .. } => shown == Shown::InRow,
            Phase::Alive | Phase::Vanished { .. } => true,
        };
        let rows = self.entries.iter().enumerate().filter(move |(_, entry)| has_row(entry));
        rows.map(|(index, entry)| (index, entry.id, entry.info))
    }

    /// What is known of a process that may have ended a while ago.
    pub(super) fn info(&self, id: ProcessId) -> ProcessInfo {
        match self.ids.binary_search(&id) {
            Ok(index) => self.entries[index].info,
            Err(_) => {
                let unknown = ProcessInfo { exited: true, ..ProcessInfo::default() };
                self.recent.get(id).copied().unwrap_or(unknown)
            }
        }
    }

    /// Takes in a read; returns the final records that the kernel can delete.
    ///
    /// # Errors
    /// A record is invalid. Counters that were reported stay as they are.
    pub(super) fn update(
        &mut self,
        observed: Observed<'_>,
        walk: &WalkTimes,
        columns: &mut [(u64, Box<dyn Column>)],
    ) -> Result<Vec<ProcessKey>> {
        let began_ns = *self.began_ns.get_or_insert(walk.boottime_ns);
        for &(process, creator) in &observed.creators {
            self.creators.insert(process.id(), (creator, 0));
        }
        let is_first = self.walked_ns == 0;
        // What began after the walk did is of the next window.
        let in_time = |id: &ProcessId| id.start_time_ns <= walk.boottime_ns;
        let ends = || {
            let ends = observed.ends.iter().filter(|end| in_time(&end.id));
            // or it has come into the filter's cgroup since
            let is_in_time = |id: ProcessId| {
                id.start_time_ns >= began_ns || self.admits_late && observed.moves.has(id)
            };
            let is_of_a_window =
                |end: &&End| !is_first && is_in_time(end.id) && !self.has_left(end.id);
            ends.filter(is_of_a_window).map(|end| end.id).collect::<Vec<_>>()
        };
        let walked = observed.walked.processes.iter().filter(|(id, _)| in_time(id)).copied();
        let (places, seen) = self.merge(walked, ends().into_iter(), walk.monotonic_ns);
        let came_late = |id: &ProcessId, walked_ns| {
            self.admits_late && !is_first && id.start_time_ns + STARTING_NS < walked_ns
        };
        for (from, index) in places.from.iter().zip(places.kept..) {
            let id = self.ids[index];
            self.entries[index].is_late |=
                from.is_none() && came_late(&id, self.walked_ns) && !observed.moves.has(id);
        }
        // also of an earlier read that failed
        let late: Vec<usize> =
            (0..self.entries.len()).filter(|index| self.entries[*index].is_late).collect();
        columns.iter_mut().for_each(|(_, column)| column.place(&places));
        self.follow_moves(observed.moves, &seen, columns);

        self.dispatch(&observed, walk, columns)?;
        self.infos.clear();
        self.infos.extend(self.entries.iter().map(|entry| entry.info));
        let hidden = observed.hidden.iter().filter_map(|id| self.ids.binary_search(id).ok());
        let hidden: Vec<_> = hidden.collect();
        let settled =
            observed.walked.settled.iter().filter_map(|id| self.ids.binary_search(id).ok());
        let settled: Vec<_> = settled.collect();
        let view = WalkView {
            ids: &self.ids,
            infos: &self.infos,
            seen: &seen,
            hidden: &hidden,
            settled: &settled,
            sees_all: self.sees_all,
        };
        let mut held_back = Vec::new();
        for (_, column) in &mut *columns {
            held_back.extend(column.end_walk(walk, &view)?);
        }
        for &index in settled.iter().filter(|index| !held_back.contains(index)) {
            self.entries[index].is_settled = true;
        }
        for &index in late.iter().filter(|&&index| seen[index]) {
            columns.iter_mut().for_each(|(_, column)| column.start_here(index));
        }

        let mut gone = self.take_ends(observed.ends, began_ns, &seen, &late, walk, columns);
        self.take_overflow(observed.overflow, walk.monotonic_ns, columns);
        self.take_away(observed.moves, &seen, walk, columns);
        gone.extend(self.time_out(observed.ends, walk.monotonic_ns, columns));
        self.divide(observed.moves, columns);
        self.release_overflow(observed.ends, walk.monotonic_ns, columns);
        late.iter().for_each(|index| self.entries[*index].is_late = false);
        self.walked_ns = walk.boottime_ns;
        self.creators.retain(|_, (_, reads)| {
            *reads += 1;
            *reads < 3
        });
        Ok(gone)
    }

    /// Makes an entry for every process of the walk, of the table and of the final records.
    /// Returns where the cells come from, and which entries the walk showed.
    fn merge(
        &mut self,
        walked: impl Iterator<Item = (ProcessId, ProcessInfo)>,
        ends: impl Iterator<Item = ProcessId>,
        now_ns: u64,
    ) -> (Places, Vec<bool>) {
        let (mut walked, mut ends) = (walked.peekable(), ends.peekable());
        let mut seen = Vec::with_capacity(self.entries.len());
        // Up to the first new process every entry stays in its place.
        for entry in &mut self.entries {
            let is_new = walked.peek().is_some_and(|(id, _)| *id < entry.id)
                || ends.peek().is_some_and(|end| *end < entry.id);
            if is_new {
                break;
            }
            let alive = walked.next_if(|(id, _)| *id == entry.id);
            while ends.next_if(|end| *end == entry.id).is_some() {}
            seen.push(alive.is_some());
            entry.follow(alive.map(|(_, info)| info), now_ns);
            entry.begin(self.creators.remove(&entry.id));
        }
        let kept = seen.len();
        let before = self.entries.split_off(kept);
        let mut before = before.into_iter().zip(kept..).peekable();
        let mut from = Vec::new();
        loop {
            let ids = [
                before.peek().map(|(entry, _)| entry.id),
                walked.peek().map(|(id, _)| *id),
                ends.peek().copied(),
            ];
            let Some(id) = ids.into_iter().flatten().min() else { break };
            let known = before.next_if(|(entry, _)| entry.id == id);
            let alive = walked.next_if(|(walked, _)| *walked == id);
            while ends.next_if(|end| *end == id).is_some() {}
            from.push(known.as_ref().map(|(_, index)| *index));
            seen.push(alive.is_some());
            let mut entry = known.map_or_else(|| Entry::new(id, now_ns), |(entry, _)| entry);
            entry.follow(alive.map(|(_, info)| info), now_ns);
            entry.begin(self.creators.remove(&id));
            self.entries.push(entry);
        }
        self.ids.truncate(kept);
        self.ids.extend(self.entries[kept..].iter().map(|entry| entry.id));
        (Places { kept, from }, seen)
    }

    /// Gives the records of a walk to the columns.
    fn dispatch(
        &self,
        observed: &Observed<'_>,
        walk: &WalkTimes,
        columns: &mut [(u64, Box<dyn Column>)],
    ) -> Result<()> {
        let (walked, buffer) = (observed.walked, observed.buffer);
        for &record in &walked.system {
            if let Some(column) = find(columns, record.head.section) {
                column.system_record(record.head, buffer.get(record), walk)?;
            }
        }
        let mut next = 0;
        for task in &walked.tasks {
            let index = match self.ids.get(next) {
                Some(id) if task.is_leader && *id == task.process => next,
                _ => match self.ids.binary_search(&task.process) {
                    Ok(index) => index,
                    Err(_) => continue, // its leader is gone: it is being released
                },
            };
            if task.is_leader {
                next = index + 1;
            }
            let about = Task {
                process: task.process,
                index,
                is_leader: task.is_leader,
                thread: task.thread,
                address: task.address,
                comm: task.comm,
                cgroup_id: task.cgroup_id,
            };
            let elsewhere = self.is_elsewhere(observed.moves, &about);
            for &record in &walked.records[task.records.clone()] {
                if let Some(column) = find(columns, record.head.section) {
                    let (kind, bytes) = (record.head.kind, buffer.get(record));
                    if let Some(cgroup_id) = elsewhere {
                        column.elsewhere(index, cgroup_id, Record { kind, bytes }, walk)?;
                    }
                    column.task_record(&about, record.head, bytes, walk)?;
                }
            }
        }
        Ok(())
    }

    /// Whether a process has been settled and is not in the table any more.
    fn has_left(&self, id: ProcessId) -> bool {
        self.recent.get(id).is_some()
    }

    /// Starts a new window. Returns the processes that have left the table.
    pub(super) fn rebase(&mut self, columns: &mut [(u64, Box<dyn Column>)]) -> Vec<ProcessKey> {
        self.exited_rows = 0;
        self.overflow = 0;
        self.exit_record_missing = 0;
        self.retain(columns, |recent, columns, at, entry| match &mut entry.phase {
            Phase::Ended { is_final: true, .. } => {
                recent.keep(entry.id, entry.info);
                columns.iter_mut().for_each(|(_, column)| column.leave(at, entry.id));
                false
            }
            Phase::Ended { shown, .. } => {
                *shown = Shown::Nowhere;
                true
            }
            Phase::Alive | Phase::Vanished { .. } => true,
        })
    }

    /// Removes processes that the set does not measure any more. Returns those that it had.
    pub(super) fn remove(
        &mut self,
        processes: &[ProcessId],
        columns: &mut [(u64, Box<dyn Column>)],
    ) -> Vec<ProcessKey> {
        self.retain(columns, |_, _, _, entry| !processes.contains(&entry.id))
    }

    /// Keeps some entries, with their cells. Returns the processes of the others.
    fn retain(
        &mut self,
        columns: &mut [(u64, Box<dyn Column>)],
        mut keeps: impl FnMut(
            &mut Recent<ProcessInfo>,
            &mut [(u64, Box<dyn Column>)],
            usize,
            &mut Entry,
        ) -> bool,
    ) -> Vec<ProcessKey> {
        let (mut from, mut gone) = (Vec::with_capacity(self.entries.len()), Vec::new());
        let mut index = 0;
        self.entries.retain_mut(|entry| {
            let at = index;
            index += 1;
            let is_kept = keeps(&mut self.recent, columns, at, entry);
            match is_kept {
                true => from.push(Some(at)),
                false => gone.push(entry.id.into()),
            }
            is_kept
        });
        if !gone.is_empty() {
            self.ids.clear();
            self.ids.extend(self.entries.iter().map(|entry| entry.id));
            let places = Places { kept: 0, from };
            columns.iter_mut().for_each(|(_, column)| column.place(&places));
        }
        gone
    }
}

fn has_end(ends: &[End], id: ProcessId) -> bool {
    ends.binary_search_by_key(&id, |end| end.id).is_ok()
}

fn find(columns: &mut [(u64, Box<dyn Column>)], section: u16) -> Option<&mut dyn Column> {
    let column = columns.iter_mut().find(|(_, column)| column.section() == section)?;
    Some(&mut *column.1)
}

mod ending;
mod entry;
mod moved;
mod overflow;
#[cfg(test)]
mod places;
#[cfg(test)]
mod tests;
