//! The counters of one probe for every process of the table.

use std::{any::Any, collections::BTreeMap, sync::Arc};

use bytemuck::Zeroable as _;

use super::{
    cell::Cell,
    collector::{Collector, Ended, Read, Reading, Readings, Record, Span, Task, WalkTimes},
    column::{Column, Places, RowSource, WalkView, program_costs},
    counters::{self, Counters},
    loading::WalkPart,
    recent::Recent,
    table::STARTING_NS,
    walk::End,
};
use crate::{
    error::Result,
    kernel::Kernel,
    object::Object,
    probe::{Cost, Degraded},
    process::ProcessId,
    record::{ProcessKey, ProcessOverflowRecord, ProcessPartRecord, RecordHead},
    snapshot::{
        CgroupUsage, Loss, LossCause, LossScope, Losses, Part, Provenance, TypedPart, Window,
    },
};

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
    /// Counters of threads that are in another cgroup than their process, by the place of the
    /// process and the cgroup, and of processes outside the filter's cgroup.
    elsewhere: BTreeMap<(usize, u64), C::Counters>,
    outside: BTreeMap<usize, C::Counters>,
    /// Totals of processes that have left the table.
    left: Recent<C::Counters>,
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
            elsewhere: BTreeMap::new(),
            outside: BTreeMap::new(),
            left: Recent::default(),
        }
    }

    /// Counters without what was used outside the filter's cgroup.
    fn inside(&self, index: usize, counters: &C::Counters) -> C::Counters {
        match self.outside.get(&index) {
            Some(outside) => counters::subtract_signed(counters, outside),
            None => *counters,
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

    fn parts_of(&self, id: ProcessId, cell: &Cell<C>) -> Vec<CgroupUsage<C::Usage>> {
        let used = cell.divided().filter(|(.., total)| !counters::is_zero(total));
        let usage = |counters: &C::Counters, span| self.collector.usage(id, counters, None, span);
        used.map(|(cgroup_id, in_window, total)| {
            let total = usage(&total, Span::Total);
            CgroupUsage::new(cgroup_id, usage(&in_window, Span::Window), total)
        })
        .collect()
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
        self.elsewhere.clear();
        self.outside.clear();
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

    fn elsewhere(
        &mut self,
        index: usize,
        cgroup_id: u64,
        record: Record<'_>,
        walk: &WalkTimes,
    ) -> Result<()> {
        if let Some(own) = C::own(record, &self.walk(walk))? {
            let sum = self.elsewhere.entry((index, cgroup_id)).or_insert(C::Counters::zeroed());
            *sum = counters::add(sum, &own);
        }
        Ok(())
    }

    fn outside(&mut self, index: usize, part: &ProcessPartRecord) {
        if let Some(outside) = C::part(part) {
            self.outside.insert(index, outside);
        }
    }

    fn away(&mut self, index: usize, id: ProcessId, inside: &ProcessPartRecord, walk: &WalkTimes) {
        if let Some(inside) = C::part(inside) {
            let gauges = self.cells[index].gauges.clone();
            let now = Reading { counters: counters::unsigned(&inside), gauges };
            let walk = self.walk(walk);
            self.cells[index].take_in(&self.collector, id, now, &walk);
        }
    }

    fn split(
        &mut self,
        index: usize,
        before: u64,
        present: u64,
        parts: &[(u64, ProcessPartRecord)],
    ) {
        let mut sums = BTreeMap::new();
        let counted = parts.iter().filter_map(|(id, part)| Some((*id, C::part(part)?)));
        let live = self.elsewhere.range((index, 0)..=(index, u64::MAX));
        for (id, counters) in counted.chain(live.map(|((_, id), counters)| (*id, *counters))) {
            let sum = sums.entry(id).or_insert(C::Counters::zeroed());
            *sum = counters::wrapping_add(sum, &counters);
        }
        if !sums.is_empty() || !self.cells[index].parts.is_empty() {
            self.cells[index].split(before, present, &sums);
        }
    }

    fn unite(&mut self, index: usize) {
        self.cells[index].parts.clear();
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
        for (&index, outside) in self.outside.iter().filter(|(index, _)| view.seen[**index]) {
            let counters = &mut self.readings[index].counters;
            *counters = counters::subtract_signed(counters, outside);
        }
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
        let Some(mut reading) = self.reading_at_end(end) else { return true };
        reading.counters = self.inside(index, &reading.counters);
        let (walk, all) = (self.walk(walk), reading.counters);
        let cell = &mut self.cells[index];
        cell.take_in(&self.collector, end.id, reading, &walk);
        C::is_reported(&cell.last, &all)
    }

    fn start_here(&mut self, index: usize) {
        if C::COUNTS.is_some() {
            return; // its hooks count from here on anyway
        }
        self.cells[index].rebase();
    }

    fn has_usage(&self, index: usize) -> bool {
        !counters::is_zero(&self.cells[index].in_window())
    }

    fn fold(&mut self, index: usize) {
        let cell = &mut self.cells[index];
        self.overflow = counters::add(&self.overflow, &cell.in_window());
        cell.rebase();
    }

    fn leave(&mut self, index: usize, id: ProcessId) {
        let last = self.cells[index].last;
        self.collector.left(id, &last);
        self.left.keep(id, last);
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
        let mut other_cgroups = BTreeMap::new();
        for (place, row) in rows.iter().enumerate() {
            let (id, in_window, last, gauges) = match *row {
                RowSource::Entry(index) => {
                    let cell = &self.cells[index];
                    if !cell.parts.is_empty() {
                        other_cgroups.insert(place, self.parts_of(ids[index], cell));
                    }
                    (ids[index], cell.in_window(), cell.last, &cell.gauges)
                }
                RowSource::Late(id) => {
                    // it may still be in the table, without a row of its own
                    let index = ids.binary_search(&id);
                    let last = index.ok().map(|index| &self.cells[index].last);
                    let last = *last.or_else(|| self.left.get(id)).unwrap_or(&none.0);
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
            other_cgroups,
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
            cell.rebase();
            cell.starts_late = cell.is_new;
            C::rebase(&mut cell.gauges);
        }
        self.collector.end_window();
    }

    fn as_any(&self) -> &dyn Any {
        self
    }
}
