//! One probe's counters for every process of the table.

use std::{any::Any, sync::Arc};

use super::{
    collector::{Collector, Ended, Progress, Read, Reading, Readings, Record, Span, Task, WalkTimes},
    counters,
    loading::WalkPart,
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
    /// The cell at each place comes from another place of the previous walk, or is new.
    fn place(&mut self, from: &[Option<usize>]);
    fn system_record(&mut self, head: RecordHead, bytes: &[u8], walk: &WalkTimes) -> Result<()>;
    fn task_record(&mut self, task: &Task, head: RecordHead, bytes: &[u8], walk: &WalkTimes)
    -> Result<()>;
    fn end_walk(&mut self, walk: &WalkTimes, view: &WalkView<'_>) -> Result<()>;
    /// Takes in a final record; whether all of it has been reported.
    fn ended(&mut self, index: usize, end: &End, walk: &WalkTimes) -> bool;
    /// Starts the counters of a process here: what came before is not part of the window.
    fn start_here(&mut self, index: usize);
    /// Whether the process has used anything in the window.
    fn has_usage(&self, index: usize) -> bool;
    /// Moves the counters of a process in the window to the overflow.
    fn fold(&mut self, index: usize);
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
    fn final_usage(&self, end: &End) -> Option<Box<dyn Any>>;
    /// Ends the window at the last walk.
    fn rebase(&mut self, end_ns: u64);
    fn as_any(&self) -> &dyn Any;
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
}

/// What is known of a process: counters since its start, and how far they were reported.
struct Cell<C: Collector> {
    last: C::Counters,
    baseline: C::Counters,
    gauges: C::Gauges,
    /// Nothing has been taken in yet.
    is_new: bool,
    /// It was gone when the probe was added: what its final record says is of before.
    starts_late: bool,
}

impl<C: Collector> Default for Cell<C> {
    fn default() -> Self {
        Self {
            last: C::Counters::default(),
            baseline: C::Counters::default(),
            gauges: C::Gauges::default(),
            is_new: true,
            starts_late: false,
        }
    }
}

impl<C: Collector> Cell<C> {
    fn take_in(&mut self, collector: &C, id: ProcessId, now: Reading<C>, walk: &WalkTimes) {
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

    fn in_window(&self) -> C::Counters {
        counters::subtract(&self.last, &self.baseline)
    }
}

/// The kernel's overflow that is not reported yet, see
/// [`ProcessTable`](super::table::ProcessTable).
#[derive(Default)]
struct HeldOverflow<C> {
    older: C,
    newer: C,
    /// What processes with a row of their own had used, to be subtracted.
    known: C,
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
}

impl<C: Collector> TypedColumn<C> {
    pub(crate) fn new(collector: C, section: u16) -> Self {
        Self {
            collector,
            section,
            cells: Vec::new(),
            readings: Vec::new(),
            overflow: C::Counters::default(),
            kernel_overflow: C::Counters::default(),
            held: HeldOverflow::default(),
            window_start_ns: 0,
            losses: Vec::new(),
            losses_before: Vec::new(),
            provenance: Arc::default(),
        }
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

    fn place(&mut self, from: &[Option<usize>]) {
        let mut before: Vec<_> = std::mem::take(&mut self.cells).into_iter().map(Some).collect();
        // a probe that was just added has no cells yet
        let mut cell = |from: &Option<usize>| before.get_mut((*from)?)?.take();
        self.cells = from.iter().map(|from| cell(from).unwrap_or_default()).collect();
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

    fn end_walk(&mut self, walk: &WalkTimes, view: &WalkView<'_>) -> Result<()> {
        let walk = self.walk(walk);
        if let (Some(map), Some(object)) = (C::COUNTS, self.collector.object()) {
            let counts: Vec<(ProcessKey, C::Counters)> = object.lookup_batch(map)?;
            for (key, counts) in counts {
                if let Ok(index) = view.ids.binary_search(&key.id()) {
                    self.readings[index].counters = counts;
                }
            }
        }
        let mut readings = Readings {
            ids: view.ids,
            infos: view.infos,
            seen: view.seen,
            hidden: view.hidden,
            readings: &mut self.readings,
        };
        self.collector.end_walk(&walk, &mut readings)?;
        let cells = self.cells.iter_mut().zip(&mut self.readings).zip(view.ids);
        for (((cell, reading), &id), &seen) in cells.zip(view.seen) {
            if seen || C::COUNTS.is_some() {
                cell.take_in(&self.collector, id, std::mem::take(reading), &walk);
            }
        }
        Ok(())
    }

    fn ended(&mut self, index: usize, end: &End, walk: &WalkTimes) -> bool {
        let Some(reading) = self.reading_at_end(end) else { return true };
        let (walk, all) = (self.walk(walk), reading.counters);
        let cell = &mut self.cells[index];
        cell.take_in(&self.collector, end.id, reading, &walk);
        counters::is_zero(&counters::subtract(&all, &cell.last))
    }

    fn start_here(&mut self, index: usize) {
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

    fn overflow(&mut self, records: &[ProcessOverflowRecord]) {
        let now = records.iter().map(C::overflow).fold(C::Counters::default(), |sum, of_cpu| {
            counters::add(&sum, &of_cpu)
        });
        let grown = counters::subtract(&now, &self.kernel_overflow);
        self.held.newer = counters::add(&self.held.newer, &grown);
        self.kernel_overflow = now;
    }

    fn hold_overflow(&mut self) {
        self.held.older = std::mem::take(&mut self.held.newer);
    }

    fn subtract_from_overflow(&mut self, index: usize) {
        self.held.known = counters::add(&self.held.known, &self.cells[index].last);
    }

    fn release_overflow(&mut self, is_last: bool) {
        let held = std::mem::take(&mut self.held.older);
        let released = C::complete_overflow(&counters::subtract(&held, &self.held.known));
        self.held.known = match is_last {
            true => C::Counters::default(),
            false => counters::subtract(&self.held.known, &held),
        };
        self.overflow = counters::add(&self.overflow, &released);
    }

    fn forget(&mut self, gone: &[ProcessKey]) -> Result<()> {
        match (C::COUNTS, self.collector.object()) {
            (Some(map), Some(object)) => object.delete_batch(map, gone),
            _ => Ok(()),
        }
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
        let kernel =
            causes.zip(grown).map(|((cause, scope), count)| Loss::new(C::NAME, cause, count, scope));
        let own = self.collector.own_losses().into_iter();
        let own = own.map(|(cause, count)| Loss::new(C::NAME, cause, count, LossScope::Processes));
        Losses::new(kernel.chain(own))
    }

    fn part(&self, rows: &[RowSource], ids: &[ProcessId], end_ns: u64) -> Box<dyn Part> {
        let window = Window { start_ns: self.window_start_ns, end_ns };
        let none = (C::Counters::default(), C::Gauges::default());
        let (mut usage, mut total) = (Vec::with_capacity(rows.len()), Vec::with_capacity(rows.len()));
        for row in rows {
            let (id, in_window, last, gauges) = match *row {
                RowSource::Entry(index) => {
                    let cell = &self.cells[index];
                    (ids[index], cell.in_window(), cell.last, &cell.gauges)
                }
                RowSource::Late(id) => (id, none.0, none.0, &none.1),
            };
            usage.push(self.collector.usage(id, &in_window, Some(gauges), Span::Window));
            total.push(self.collector.usage(id, &last, Some(gauges), Span::Total));
        }
        let together =
            self.collector.usage(ProcessId::default(), &self.overflow, None, Span::Window);
        Box::new(TypedPart {
            probe: C::NAME.into(),
            window,
            usage,
            total,
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

    fn final_usage(&self, end: &End) -> Option<Box<dyn Any>> {
        let reading = match (C::COUNTS, self.collector.object()) {
            (Some(map), Some(object)) => {
                let counters = object.lookup(map, &ProcessKey::from(end.id)).ok()??;
                Reading { counters, ..Reading::default() }
            }
            _ => self.reading_at_end(end)?,
        };
        let (counters, gauges) = (&reading.counters, Some(&reading.gauges));
        Some(Box::new(self.collector.usage(end.id, counters, gauges, Span::Total)))
    }

    fn rebase(&mut self, end_ns: u64) {
        self.window_start_ns = end_ns;
        self.losses_before.clone_from(&self.losses);
        self.overflow = C::Counters::default();
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
pub(super) fn program_costs(object: &Object) -> Result<Vec<ProgramCost>> {
    let costs = object.program_costs()?.into_iter();
    Ok(costs.map(|(program, runs, time)| ProgramCost::new(program, runs, time)).collect())
}

