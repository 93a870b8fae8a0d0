//! The counters of one probe of any kind, as the process table uses them.

use std::any::Any;

use super::{
    collector::{Read, Record, Task, WalkTimes},
    loading::WalkPart,
    walk::End,
};
use crate::{
    error::Result,
    kernel::Kernel,
    object::Object,
    probe::{Cost, Degraded, ProgramCost},
    process::{ProcessId, ProcessInfo},
    record::{ProcessKey, ProcessOverflowRecord, ProcessPartRecord, RecordHead},
    snapshot::{Losses, Part},
};

/// A probe in a set, of any kind.
pub(crate) trait Column: Any + Send {
    fn name(&self) -> &'static str;
    /// Number of its records in a walk.
    fn section(&self) -> u16;
    fn object(&self) -> Option<&Object>;
    fn walk_part(&self) -> Result<WalkPart>;
    fn attach(&mut self, kernel: &Kernel) -> Result<()>;
    fn is_system_record(&self, kind: u16) -> bool;
    fn needs_scheduler_clock(&self) -> bool;

    fn begin_walk(&mut self, read: Read) -> Result<()>;
    /// Makes the cells match the table again.
    fn place(&mut self, places: &Places);
    fn system_record(&mut self, head: RecordHead, bytes: &[u8], walk: &WalkTimes) -> Result<()>;
    fn task_record(
        &mut self,
        task: &Task,
        head: RecordHead,
        bytes: &[u8],
        walk: &WalkTimes,
    ) -> Result<()>;
    /// A record of a thread that is in another cgroup than its process.
    fn elsewhere(
        &mut self,
        index: usize,
        cgroup_id: u64,
        record: Record<'_>,
        walk: &WalkTimes,
    ) -> Result<()>;
    /// What a process used outside the filter's cgroup: not part of its counters.
    fn outside(&mut self, index: usize, part: &ProcessPartRecord);
    /// Takes in the readings. Returns which of the settled zombies have time that is only
    /// reported later.
    fn end_walk(&mut self, walk: &WalkTimes, view: &WalkView<'_>) -> Result<Vec<usize>>;
    /// Takes in the counters of a process that has left the filter's cgroup.
    fn away(&mut self, index: usize, id: ProcessId, inside: &ProcessPartRecord, walk: &WalkTimes);
    /// Divides the counters of a process by cgroup. `before` is where it was, `present` where
    /// it is.
    fn split(
        &mut self,
        index: usize,
        before: u64,
        present: u64,
        parts: &[(u64, ProcessPartRecord)],
    );
    /// Leaves the counters of a process undivided.
    fn unite(&mut self, index: usize);
    /// Takes in a final record; whether all of it has been reported.
    fn ended(&mut self, index: usize, end: &End, walk: &WalkTimes) -> bool;
    /// Starts the counters of a process here: what came before is not part of the window.
    fn start_here(&mut self, index: usize);
    /// Whether the process has used anything in the window.
    fn has_usage(&self, index: usize) -> bool;
    /// Moves the counters of a process in the window to the overflow.
    fn fold(&mut self, index: usize);
    /// A process leaves the table.
    fn leave(&mut self, index: usize, id: ProcessId);
    /// Takes in the kernel's own overflow since loading. It is not reported yet.
    fn overflow(&mut self, records: &[ProcessOverflowRecord]);
    /// Separates the kernel's overflow so far from what comes later.
    fn hold_overflow(&mut self);
    /// Takes the counters of a process since its start out of the kernel's overflow.
    fn subtract_from_overflow(&mut self, index: usize);
    /// Reports what was separated by `hold_overflow`; whether nothing came later.
    fn release_overflow(&mut self, is_last: bool);
    /// Deletes what the probe keeps of processes that have left the table.
    fn forget(&mut self, gone: &[ProcessKey]) -> Result<()>;

    fn late_processes(&self) -> Vec<ProcessId>;
    fn read_losses(&mut self) -> Result<()>;
    fn part(&self, rows: &[RowSource], ids: &[ProcessId], end_ns: u64) -> Box<dyn Part>;
    fn losses(&self) -> Losses;
    /// Asks the probe for its sources, once it has seen a walk.
    fn describe(&mut self);
    fn degraded(&self) -> Vec<Degraded>;
    fn cost(&self) -> Result<Cost>;
    fn final_usage(&self, end: &End) -> Result<Option<Box<dyn Any>>>;
    /// Ends the window at the last walk.
    fn rebase(&mut self, end_ns: u64);
    fn as_any(&self) -> &dyn Any;
}

/// The probes of a set by the number of their handle, in the order in which they were added.
pub(crate) type Columns = Vec<(u64, Box<dyn Column>)>;

/// Whether a record is about the machine and not about a task.
pub(super) fn is_system_record(columns: &Columns, head: RecordHead) -> bool {
    let column = columns.iter().find(|(_, column)| column.section() == head.section);
    column.is_some_and(|(_, column)| column.is_system_record(head.kind))
}

/// Where the cells of a column come from when entries of the table come and go.
#[derive(Debug, Default)]
pub(crate) struct Places {
    /// So many cells at the start stay where they are.
    pub(super) kept: usize,
    /// Each of the others comes from another place, never one of the kept, or is new.
    pub(super) from: Vec<Option<usize>>,
}

/// Where a row of a snapshot comes from.
#[derive(Clone, Copy, Debug)]
pub(crate) enum RowSource {
    /// An entry of the table.
    Entry(usize),
    /// A process that ended before the window and has figures in it all the same.
    Late(ProcessId),
}

/// The processes of a walk, in the order of the cells.
pub(crate) struct WalkView<'a> {
    pub(super) ids: &'a [ProcessId],
    pub(super) infos: &'a [ProcessInfo],
    pub(super) seen: &'a [bool],
    /// Places of processes that the walk does not show but `/proc` does.
    pub(super) hidden: &'a [usize],
    /// Places of zombies whose counters will not change any more.
    pub(super) settled: &'a [usize],
    /// Whether every living process that passes the filter is among them.
    pub(super) sees_all: bool,
}

/// How often the programs of an object ran.
pub(crate) fn program_costs(object: &Object) -> Result<Vec<ProgramCost>> {
    let costs = object.program_costs()?.into_iter();
    Ok(costs.map(|(program, runs, time)| ProgramCost::new(program, runs, time)).collect())
}
