//! One probe's counters for every process of the table.

use std::{any::Any, sync::Arc};

use bytemuck::Zeroable as _;

use super::{
    cell::Cell,
    collector::{Collector, Ended, Read, Reading, Readings, Record, Span, Task, WalkTimes},
    counters::{self, Counters},
    loading::WalkPart,
    table::STARTING_NS,
    walk::End,
};
use crate::{
    error::Result,
    kernel::Kernel,
    object::Object,
    probe::{Cost, Degraded, ProgramCost},
    process::{ProcessId, ProcessInfo},
    record::{ProcessKey, ProcessOverflowRecord, RecordHead},
    snapshot::{Loss, LossCause, LossScope, Losses, Part, Provenance, TypedPart, Window},
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
    /// Takes in the readings. Returns which of the settled zombies have time that is only
    /// reported later.
    fn end_walk(&mut self, walk: &WalkTimes, view: &WalkView<'_>) -> Result<Vec<usize>>;
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

/// The kernel's overflow that is not reported yet, see
/// [`ProcessTable`](super::table::ProcessTable).
struct HeldOverflow<C> {
    older: C,
    newer: C,
    /// What processes with a row of their own had used, to be subtracted.
    known: C,
}

impl<C: Counters> HeldOverflow<C> {
    fn none() -> Self {
        Self { older: C::zeroed(), newer: C::zeroed(), known: C::zeroed() }
    }
}

/// The column of a collector.
pub(crate) struct TypedColumn<C: Collector> {
    pub(crate) collector: C,
    section: u16,
    cells: Vec<Cell<C>>,
    readings: Vec<Reading<C>>,
    /// Counters in the window of processes that are only counted together.
    overflow: C::Counters,
    /// The kernel's overflow since loading.
    kernel_overflow: C::Counters,
    /// Of this, what is not reported yet.
    held: HeldOverflow<C::Counters>,
    window_start_ns: u64,
    /// Losses since loading: now, and at the start of the window.
    losses: Vec<u64>,
    losses_before: Vec<u64>,
    provenance: Arc<Provenance>,
    /// Processes whose key in [`Collector::COUNTS`] is not their id, which is rounded.
    rounded: Vec<(ProcessId, ProcessKey)>,
}

impl<C: Collector> TypedColumn<C> {
    pub(crate) fn new(collector: C, section: u16) -> Self {
        Self {
            collector,
            section,
            cells: Vec::new(),
            readings: Vec::new(),
            overflow: C::Counters::zeroed(),
            kernel_overflow: C::Counters::zeroed(),
            held: HeldOverflow::none(),
            window_start_ns: 0,
            losses: Vec::new(),
            losses_before: Vec::new(),
            provenance: Arc::default(),
            rounded: Vec::new(),
        }
    }

    /// Reads [`Collector::COUNTS`]. An entry of a process that is not in the table and is too
    /// old to come into it is never asked for again: its process found no room among the
    /// final records, or a hook was still running for it when its entry was deleted. Such
    /// entries are moved to the overflow.
    fn read_counts(&mut self, walk: &WalkTimes, view: &WalkView<'_>) -> Result<()> {
        let (Some(map), Some(object)) = (C::COUNTS, self.collector.object()) else {
            return Ok(());
        };
        let counts: Vec<(ProcessKey, C::Counters)> = object.lookup_batch(map)?;
        let (mut left, mut sum) = (Vec::new(), C::Counters::zeroed());
        self.rounded.clear();
        for (key, counts) in counts {
            let (id, rounded) = (key.id(), key.id().rounded_to_ticks());
            if let Ok(index) = view.ids.binary_search(&id) {
                self.readings[index].counters = counts;
            } else if let Ok(index) = view.ids.binary_search(&rounded) {
                self.readings[index].counters = counts;
                self.rounded.push((rounded, key));
            } else if view.sees_all && id.start_time_ns + STARTING_NS < walk.boottime_ns {
                sum = counters::add(&sum, &counts);
                left.push(key);
            }
        }
        object.delete_batch(map, &left)?;
        self.overflow = counters::add(&self.overflow, &sum);
        Ok(())
    }

    fn walk(&self, walk: &WalkTimes) -> WalkTimes {
        WalkTimes { window_start_ns: self.window_start_ns, ..*walk }
    }

    fn reading_at_end(&self, end: &End) -> Option<Reading<C>> {
        let ended = Ended { id: end.id, record: &end.record, settled: end.settled.as_ref() };
        self.collector.ended(&ended)
    }
}

impl<C: Collector> Column for TypedColumn<C> {
    fn name(&self) -> &'static str {
        C::NAME
    }

    fn section(&self) -> u16 {
        self.section
    }

    fn object(&self) -> Option<&Object> {
        self.collector.object()
    }

    fn walk_part(&self) -> Result<WalkPart> {
        self.collector.walk_part()
    }

    fn attach(&mut self, kernel: &Kernel) -> Result<()> {
        self.collector.attach(kernel)
    }

    fn is_system_record(&self, kind: u16) -> bool {
        C::is_system_record(kind)
    }

    fn needs_scheduler_clock(&self) -> bool {
        C::NEEDS_SCHEDULER_CLOCK
    }

    fn begin_walk(&mut self, read: Read) -> Result<()> {
        self.collector.begin_walk(read)
    }

    fn place(&mut self, places: &Places) {
        // a probe that was just added has no cells yet
        let mut before: Vec<_> =
            self.cells.drain(places.kept.min(self.cells.len())..).map(Some).collect();
        self.cells.resize_with(places.kept, Cell::default);
        let mut cell = |from: &Option<usize>| before.get_mut((*from)? - places.kept)?.take();
        self.cells.extend(places.from.iter().map(|from| cell(from).unwrap_or_default()));
        self.readings.clear();
        self.readings.resize_with(self.cells.len(), Reading::default);
    }

    fn system_record(&mut self, head: RecordHead, bytes: &[u8], walk: &WalkTimes) -> Result<()> {
        self.collector.system_record(head.kind, bytes, &self.walk(walk))
    }

    fn task_record(
        &mut self,
        task: &Task,
        head: RecordHead,
        bytes: &[u8],
        walk: &WalkTimes,
    ) -> Result<()> {
        let record = Record { kind: head.kind, bytes };
        let walk = self.walk(walk);
        self.collector.task_record(task, record, &walk, &mut self.readings[task.index])
    }

    fn end_walk(&mut self, walk: &WalkTimes, view: &WalkView<'_>) -> Result<Vec<usize>> {
        let walk = self.walk(walk);
        self.read_counts(&walk, view)?;
        let mut readings = Readings {
            ids: view.ids,
            infos: view.infos,
            seen: view.seen,
            hidden: view.hidden,
            readings: &mut self.readings,
        };
        self.collector.end_walk(&walk, &mut readings)?;
        let settled = view.settled.iter().map(|&index| (index, self.readings[index].counters));
        let mut held_back: Vec<_> = settled.collect();
        let cells = self.cells.iter_mut().zip(&mut self.readings).zip(view.ids);
        for (((cell, reading), &id), &seen) in cells.zip(view.seen) {
            let mut now = std::mem::take(reading);
            if !seen {
                if C::COUNTS.is_none() {
                    continue;
                }
                now.gauges = cell.gauges.clone(); // those of the last walk that showed it
            }
            cell.take_in(&self.collector, id, now, &walk);
        }
        held_back.retain(|(index, all)| !C::is_reported(&self.cells[*index].last, all));
        Ok(held_back.into_iter().map(|(index, _)| index).collect())
    }

    fn ended(&mut self, index: usize, end: &End, walk: &WalkTimes) -> bool {
        let Some(reading) = self.reading_at_end(end) else { return true };
        let (walk, all) = (self.walk(walk), reading.counters);
        let cell = &mut self.cells[index];
        cell.take_in(&self.collector, end.id, reading, &walk);
        C::is_reported(&cell.last, &all)
    }

    fn start_here(&mut self, index: usize) {
        if C::COUNTS.is_some() {
            return; // its hooks count from here on anyway
        }
        let cell = &mut self.cells[index];
        cell.baseline = cell.last;
    }

    fn has_usage(&self, index: usize) -> bool {
        !counters::is_zero(&self.cells[index].in_window())
    }

    fn fold(&mut self, index: usize) {
        let cell = &mut self.cells[index];
        self.overflow = counters::add(&self.overflow, &cell.in_window());
        cell.baseline = cell.last;
    }

    fn leave(&mut self, index: usize, id: ProcessId) {
        self.collector.left(id, &self.cells[index].last);
    }

    fn overflow(&mut self, records: &[ProcessOverflowRecord]) {
        let now = records
            .iter()
            .map(C::overflow)
            .fold(C::Counters::zeroed(), |sum, of_cpu| counters::add(&sum, &of_cpu));
        let grown = counters::subtract(&now, &self.kernel_overflow);
        self.held.newer = counters::add(&self.held.newer, &grown);
        self.kernel_overflow = now;
    }

    fn hold_overflow(&mut self) {
        self.held.older = std::mem::replace(&mut self.held.newer, C::Counters::zeroed());
    }

    fn subtract_from_overflow(&mut self, index: usize) {
        if C::COUNTS.is_some() {
            return; // the kernel's overflow has nothing of this probe
        }
        self.held.known = counters::add(&self.held.known, &self.cells[index].last);
    }

    fn release_overflow(&mut self, is_last: bool) {
        let held = std::mem::replace(&mut self.held.older, C::Counters::zeroed());
        let released = C::complete_overflow(&counters::subtract(&held, &self.held.known));
        self.held.known = match is_last {
            true => C::Counters::zeroed(),
            false => counters::subtract(&self.held.known, &held),
        };
        self.overflow = counters::add(&self.overflow, &released);
    }

    fn forget(&mut self, gone: &[ProcessKey]) -> Result<()> {
        let (Some(map), Some(object)) = (C::COUNTS, self.collector.object()) else {
            return Ok(());
        };
        let rounded = self.rounded.iter().filter(|(id, _)| gone.iter().any(|it| it.id() == *id));
        let rounded: Vec<_> = rounded.map(|(_, key)| *key).collect();
        object.delete_batch(map, gone)?;
        object.delete_batch(map, &rounded)
    }

    fn late_processes(&self) -> Vec<ProcessId> {
        self.collector.late_processes()
    }

    fn read_losses(&mut self) -> Result<()> {
        let Some(object) = self.collector.object() else { return Ok(()) };
        let mut losses = match C::Loss::ALL.len() {
            0 => Vec::new(),
            causes => object.losses(&format!("{}_losses", C::NAME), causes)?,
        };
        losses.push(object.recursion_misses()?);
        self.losses = losses;
        Ok(())
    }

    fn losses(&self) -> Losses {
        let before = self.losses_before.iter().copied().chain(std::iter::repeat(0));
        let grown = self.losses.iter().zip(before).map(|(now, before)| now.saturating_sub(before));
        let causes = C::Loss::ALL.iter().map(|cause| (cause.as_ref().to_owned(), cause.scope()));
        let causes = causes.chain([("run_skipped".to_owned(), LossScope::Machine)]);
        let kernel = causes
            .zip(grown)
            .map(|((cause, scope), count)| Loss::new(C::NAME, cause, count, scope));
        let own = self.collector.own_losses().into_iter();
        let own = own.map(|(cause, count)| Loss::new(C::NAME, cause, count, LossScope::Processes));
        Losses::new(kernel.chain(own))
    }

    fn part(&self, rows: &[RowSource], ids: &[ProcessId], end_ns: u64) -> Box<dyn Part> {
        let window = Window { start_ns: self.window_start_ns, end_ns };
        let none = (C::Counters::zeroed(), C::Gauges::default());
        let mut usages = Vec::with_capacity(rows.len());
        for row in rows {
            let (id, in_window, last, gauges) = match *row {
                RowSource::Entry(index) => {
                    let cell = &self.cells[index];
                    (ids[index], cell.in_window(), cell.last, &cell.gauges)
                }
                RowSource::Late(id) => {
                    // it may still be in the table, without a row of its own
                    let index = ids.binary_search(&id);
                    let last = index.map_or(none.0, |index| self.cells[index].last);
                    (id, none.0, last, &none.1)
                }
            };
            usages.push((
                self.collector.usage(id, &in_window, Some(gauges), Span::Window),
                self.collector.usage(id, &last, Some(gauges), Span::Total),
            ));
        }
        let together =
            self.collector.usage(ProcessId::default(), &self.overflow, None, Span::Window);
        Box::new(TypedPart {
            probe: C::NAME.into(),
            window,
            usages,
            overflow: together,
            system: self.collector.system(window),
            losses: self.losses(),
            provenance: Arc::clone(&self.provenance),
            #[cfg(feature = "serde")]
            json: C::json(),
        })
    }

    fn describe(&mut self) {
        self.provenance = Arc::new(Provenance::new(C::NAME, self.collector.sources()));
    }

    fn degraded(&self) -> Vec<Degraded> {
        self.collector.degraded()
    }

    fn cost(&self) -> Result<Cost> {
        let mut cost = Cost::default();
        if let Some(object) = self.collector.object() {
            cost.programs = program_costs(object)?;
        }
        Ok(cost)
    }

    fn final_usage(&self, end: &End) -> Result<Option<Box<dyn Any>>> {
        let reading = match (C::COUNTS, self.collector.object()) {
            (Some(map), Some(object)) => {
                let counters = object.lookup(map, &ProcessKey::from(end.id))?;
                let counters = counters.unwrap_or_else(C::Counters::zeroed);
                Some(Reading { counters, ..Reading::default() })
            }
            // by the same rules as the row of a process that no walk has shown
            _ => self.reading_at_end(end).map(|mut reading| {
                reading.gauges = C::follow(&C::Gauges::default(), reading.gauges);
                reading
            }),
        };
        let usage = reading.map(|reading| self.collector.final_usage(end.id, &reading));
        Ok(usage.transpose()?.map(|usage| Box::new(usage) as Box<dyn Any>))
    }

    fn rebase(&mut self, end_ns: u64) {
        self.window_start_ns = end_ns;
        self.losses_before.clone_from(&self.losses);
        self.overflow = C::Counters::zeroed();
        for cell in &mut self.cells {
            cell.baseline = cell.last;
            cell.starts_late = cell.is_new;
            C::rebase(&mut cell.gauges);
        }
        self.collector.end_window();
    }

    fn as_any(&self) -> &dyn Any {
        self
    }
}

/// How often the programs of an object ran.
pub(crate) fn program_costs(object: &Object) -> Result<Vec<ProgramCost>> {
    let costs = object.program_costs()?.into_iter();
    Ok(costs.map(|(program, runs, time)| ProgramCost::new(program, runs, time)).collect())
}
