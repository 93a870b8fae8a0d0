//! The engine of a set: loads the object `process`, walks, and keeps the table.

use super::{
    assemble::assemble,
    cgroups::{MAX_REMOVED, RemovedCgroups},
    clocks::scheduler_offset,
    collector::{Collector, Read, WalkTimes},
    column::{Columns, is_system_record, program_costs},
    filter::{Filter, SharedFilter},
    handlers::{
        HANDLERS, exchange, hierarchy, load_handlers, require, walk_program, without_probe_maps,
    },
    hidden::Hidden,
    loading::Loading,
    moves::{MAX_MOVED, Moves, place_threads},
    table::{Observed, ProcessTable},
    typed_column::TypedColumn,
    walk::{End, RecordBuffer, Walked, read_ends},
};
use crate::{
    error::{Error, ErrorKind, Result},
    kernel::{Kernel, Requirements, in_initial_pid_namespace},
    object::{Object, ObjectLoader},
    options::check_option,
    probe::{Cost, Degraded, Health},
    process::{CgroupHierarchy, ProcessId},
    record::{
        ProcessCreatorRecord, ProcessEndedRecord, ProcessKey, ProcessLoss, ProcessOverflowRecord,
        ended_flags, process_change, section_number,
    },
    snapshot::{Handle, Loss, LossScope, Losses, Snapshot, Window},
};

/// The kernel follows 33 tail calls from one program; the walk itself is the first program.
pub(crate) const MAX_PROBES: usize = 33;

/// Name of the object and of the set's own losses.
pub(crate) const PROCESS: &str = "process";

/// Options of a set.
#[derive(Clone, Debug)]
pub(crate) struct Options {
    pub(crate) filter: Filter,
    pub(crate) cgroup_hierarchy: Option<CgroupHierarchy>,
    pub(crate) max_exited: u32,
    pub(crate) max_ended: u32,
    /// Fewer than usual, in tests.
    pub(crate) max_filtered: u32,
    /// The process that starts what a job measures.
    pub(crate) caller: Option<u32>,
    pub(crate) max_removed: u32,
    pub(crate) max_moved: u32,
}

impl Default for Options {
    fn default() -> Self {
        Self {
            filter: Filter::All,
            cgroup_hierarchy: None,
            max_exited: 8192,
            max_ended: 32_768,
            max_filtered: super::filter::MAX_PROCESSES,
            caller: None,
            max_removed: MAX_REMOVED,
            max_moved: MAX_MOVED,
        }
    }
}

/// What a set needs of a machine, whatever its probes.
pub(crate) fn requirements() -> Requirements {
    Requirements {
        tracepoints: (HANDLERS.iter().map(|(_, tracepoint, ..)| *tracepoint))
            .chain(["cgroup_attach_task", "cgroup_rmdir"])
            .collect(),
        iterators: ["bpf_map_elem", "task"].into(),
    }
}

/// A set of probes in the kernel.
pub(crate) struct Engine {
    /// Maps and dispatchers.
    pub(super) base: Object,
    /// The walk and the handlers of the present probes.
    handlers: Object,
    walk_program: &'static str,
    options: Options,
    cgroup_hierarchy: CgroupHierarchy,
    cgroup_number: i32,
    pub(super) removed_cgroups: RemovedCgroups,
    shared_filter: SharedFilter,
    /// Threads were in another cgroup than their process when the set was loaded.
    has_places: bool,
    sees_all: bool,
    hidden: Hidden,
    pub(super) table: ProcessTable,
    pub(super) columns: Columns,
    buffer: RecordBuffer,
    walked: Walked,
    window_start_ns: u64,
    pub(super) losses: Vec<u64>,
    losses_before: Vec<u64>,
    pub(super) walk: WalkTimes,
    ends: Ends,
    /// Processes that were started in the filter since loading, as far as `creators` had room.
    /// They began before the last walk.
    pub(super) forks: u64,
    /// Those that began after the last walk and were seen.
    forks_after_walk: u64,
}

/// The final records in the kernel after a read: without any, and until something changes,
/// they need not be read.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
struct Ends {
    /// The kernel's count of exits and releases.
    changes: u64,
    left: usize,
}

impl Engine {
    pub(crate) fn load(options: Options, kernel: &Kernel) -> Result<Self> {
        check_option("set", "max_exited", options.max_exited, 0..=1 << 24)?;
        check_option("set", "max_ended", options.max_ended, 1..=1 << 24)?;
        require(PROCESS, &requirements(), kernel)?;
        let (cgroup_hierarchy, cgroup_number) =
            hierarchy(options.cgroup_hierarchy.as_ref(), kernel)?;
        let filter = &options.filter;
        let loader = ObjectLoader::new(PROCESS, ebpf_probes::PROCESS)
            .override_global("cgroup_hierarchy", cgroup_number)
            .map_max_entries("ended", options.max_ended)
            .map_max_entries("removed_cgroups", options.max_removed)
            .map_max_entries("cgroup_parts", options.max_moved)
            .map_max_entries("cgroup_places", options.max_moved);
        let loader = filter.size_maps(filter.configure(loader), options.max_filtered);
        let mut base = without_probe_maps(loader).load(kernel)?;
        let walk_program = walk_program(kernel);
        let handlers = load_handlers(&base, filter, cgroup_number, walk_program, &[], kernel)?;
        exchange(&base, &handlers)?;
        for (dispatcher, tracepoint, ..) in HANDLERS {
            base.attach(dispatcher, tracepoint, kernel)?;
        }
        base.attach("process_on_cgroup_removal", "cgroup_rmdir", kernel)?;
        base.attach("process_on_move", "cgroup_attach_task", kernel)?;
        base.load_iterator("process_parents", "task", kernel)?;
        base.load_callable("process_read_clocks")?;
        filter.begin(&base)?;
        let caller = match options.caller {
            Some(pid) => super::filter::process_of(pid, &base)?,
            None => None,
        };
        let shared_filter = SharedFilter {
            filter: filter.clone(),
            cgroup_hierarchy: cgroup_number,
            maps: vec![base.map_handle("filtered")?, base.map_handle("known_cgroups")?],
            caller: caller.map(|id| id.pid),
        };
        let sees_all = in_initial_pid_namespace();
        let table = ProcessTable::new(options.max_exited as usize, filter.admits_late(), sees_all);
        let mut engine = Self {
            base,
            handlers,
            walk_program,
            cgroup_hierarchy,
            cgroup_number,
            removed_cgroups: RemovedCgroups::new(options.max_removed as usize),
            shared_filter,
            has_places: false,
            sees_all,
            hidden: Hidden::None,
            table,
            columns: Vec::new(),
            buffer: RecordBuffer::default(),
            walked: Walked::default(),
            window_start_ns: 0,
            losses: Vec::new(),
            losses_before: Vec::new(),
            walk: WalkTimes::default(),
            ends: Ends { changes: 0, left: usize::MAX },
            forks: 0,
            forks_after_walk: 0,
            options,
        };
        engine.read(Read::Reset)?;
        engine.has_places = place_threads(&engine.base, &engine.walked)?;
        if engine.has_places {
            engine.read(Read::Reset)?;
        }
        if engine.options.filter == Filter::All {
            let shows_first = engine.table.ids().first().is_some_and(|id| id.pid == 1);
            engine.hidden = Hidden::needed(sees_all, shows_first);
        }
        engine.end_window();
        Ok(engine)
    }

    #[cfg(test)]
    pub(super) fn base(&self) -> &Object {
        &self.base
    }

    pub(crate) fn cgroup_hierarchy(&self) -> &CgroupHierarchy {
        &self.cgroup_hierarchy
    }

    /// The filter, for objects outside of the set.
    pub(crate) fn shared_filter(&self) -> &SharedFilter {
        &self.shared_filter
    }

    /// Adds a probe. On an error the set is as before.
    pub(crate) fn add<C: Collector>(
        &mut self,
        options: C::Options,
        kernel: &Kernel,
    ) -> Result<Handle<C::Usage, C::System>> {
        require(C::NAME, &C::requirements(), kernel)?;
        if self.columns.len() >= MAX_PROBES {
            let text =
                format!("a set holds at most {MAX_PROBES} probes, got one more: {}", C::NAME);
            return Err(Error::new(ErrorKind::InvalidOption, text));
        }
        let handle = Handle::new();
        let section = self.section::<C>(handle.id())?;
        let loading = Loading { kernel, filter: &self.shared_filter, section };
        let collector = C::load(options, &loading)?;
        let column = TypedColumn::new(collector, section);
        self.columns.push((handle.id(), Box::new(column)));
        if let Err(error) = self.start(kernel) {
            let column = self.columns.pop();
            // the previous handlers, which this kernel has taken before
            let restored = self.reload(kernel);
            drop(column);
            restored?;
            return Err(error);
        }
        Ok(handle)
    }

    /// Starts the last probe: follows ends for it, attaches its hooks, takes its baseline.
    fn start(&mut self, kernel: &Kernel) -> Result<()> {
        self.reload(kernel)?;
        if let Some((_, column)) = self.columns.last_mut() {
            column.attach(kernel)?;
        }
        self.read(Read::Snapshot)?;
        let end_ns = self.walk.monotonic_ns;
        if let Some((_, column)) = self.columns.last_mut() {
            column.rebase(end_ns);
            column.describe();
        }
        Ok(())
    }

    /// Removes a probe and detaches its hooks. Nothing of the others changes.
    pub(crate) fn remove(&mut self, id: u64, kernel: &Kernel) -> Result<()> {
        let Some(at) = self.columns.iter().position(|(column, _)| *column == id) else {
            let text = "the probe is not in this set";
            return Err(Error::new(ErrorKind::InvalidOption, text));
        };
        let column = self.columns.remove(at);
        let result = self.reload(kernel);
        if result.is_err() {
            self.columns.insert(at, column); // the old handlers are still at work
        }
        result
    }

    /// Loads the handlers for the present probes and puts them in place of the old ones.
    fn reload(&mut self, kernel: &Kernel) -> Result<()> {
        let (filter, number) = (&self.options.filter, self.cgroup_number);
        let handlers =
            load_handlers(&self.base, filter, number, self.walk_program, &self.columns, kernel)?;
        exchange(&self.base, &handlers)?;
        self.handlers = handlers;
        self.chain()
    }

    /// Leads the walk through the programs of probes from other crates.
    fn chain(&self) -> Result<()> {
        let mut last = &self.handlers;
        for (_, column) in &self.columns {
            let (Some(program), Some(object)) = (column.walk_part()?.program, column.object())
            else {
                continue;
            };
            last.set_tail_call("next_program", 0, object, program)?;
            last = object;
        }
        last.clear_tail_call("next_program", 0)
    }

    fn section<C: Collector>(&self, id: u64) -> Result<u16> {
        let section = match C::SECTION {
            Some(section) => section,
            None => section_number::OTHERS as u16 + (id % 32_768) as u16,
        };
        match self.columns.iter().any(|(_, column)| column.section() == section) {
            false => Ok(section),
            true => {
                let text = format!("the set already has a probe {}", C::NAME);
                Err(Error::new(ErrorKind::InvalidOption, text))
            }
        }
    }

    /// Reads the kernel; then the table and the columns are up to date.
    fn read(&mut self, read: Read) -> Result<()> {
        self.columns.iter_mut().try_for_each(|(_, column)| column.begin_walk(read))?;
        let scheduler_offset_ns =
            match self.columns.iter().any(|(_, column)| column.needs_scheduler_clock()) {
                true => scheduler_offset(&self.base)?,
                false => None,
            };
        // Before the walk: what is in here has left the walk.
        let overflow = self.base.per_cpu_element::<ProcessOverflowRecord>("overflow", 0)?;
        self.buffer.fill(&mut self.handlers.iterate(self.walk_program)?)?;
        let columns = &self.columns;
        self.walked.read(&self.buffer, |head| is_system_record(columns, head))?;
        let hidden = self.hidden.complete(&mut self.walked.processes);
        // After the walk: a process that is gone by now is here, or will be.
        let changes = changes(&self.base, process_change::ENDED)?;
        let moves = Moves::read(&self.base, self.has_places)?;
        let mut ends = match self.ends == (Ends { changes, left: 0 }) {
            true => Vec::new(),
            false => self.read_ends()?,
        };
        if !self.sees_all {
            match_rounded(&mut ends, self.table.ids());
        }
        let walk = WalkTimes {
            window_start_ns: self.window_start_ns,
            monotonic_ns: self.walked.monotonic_ns,
            boottime_ns: self.walked.boottime_ns,
            scheduler_offset_ns,
        };
        let creators = self.base.lookup_and_delete_batch("creators")?;
        let is_after =
            |(child, _): &&(ProcessKey, ProcessCreatorRecord)| child.start_ns > walk.boottime_ns;
        let after_walk = creators.iter().filter(is_after).count() as u64;
        self.forks += self.forks_after_walk + creators.len() as u64 - after_walk;
        self.forks_after_walk = after_walk;
        let observed = Observed {
            walked: &self.walked,
            buffer: &self.buffer,
            ends: &ends,
            creators,
            moves: &moves,
            overflow: &overflow,
            hidden: &hidden,
        };
        let gone = self.table.update(observed, &walk, &mut self.columns)?;
        self.base.delete_batch::<ProcessKey>("ended", &gone)?;
        let deleted =
            |key: &&ProcessKey| ends.binary_search_by_key(&key.id(), |end| end.id).is_ok();
        self.ends = Ends { changes, left: ends.len() - gone.iter().filter(deleted).count() };
        let ids = self.table.ids();
        moves.delete_ended(&self.base, |id| ids.binary_search(&id).is_ok())?;
        // they ended without a row in any window
        let is_unlisted = |key: &ProcessKey| {
            let id = key.id();
            [id, id.rounded_to_ticks()].iter().all(|id| ids.binary_search(id).is_err())
        };
        let unlisted: Vec<_> = gone.into_iter().filter(is_unlisted).collect();
        self.columns.iter_mut().try_for_each(|(_, column)| column.forget(&unlisted))?;
        self.removed_cgroups.read(&self.base)?;
        self.read_losses()?;
        self.walk = walk;
        Ok(())
    }

    fn read_ends(&self) -> Result<Vec<End>> {
        let mut buffer = RecordBuffer::default();
        buffer.fill(&mut self.handlers.iterate_map("process_ends", "ended")?)?;
        read_ends(&buffer)
    }

    fn read_losses(&mut self) -> Result<()> {
        let mut losses = self.base.losses("process_losses", ProcessLoss::ALL.len())?;
        losses.push(self.base.recursion_misses()?);
        self.losses = losses;
        self.columns.iter_mut().try_for_each(|(_, column)| column.read_losses())
    }

    /// Reads the kernel and makes a snapshot; a reset then ends the window.
    pub(crate) fn snapshot(&mut self, read: Read) -> Result<Snapshot> {
        self.read(read)?;
        let window = Window { start_ns: self.window_start_ns, end_ns: self.walk.monotonic_ns };
        let snapshot = assemble(window, &self.table, &self.columns, self.losses());
        if read == Read::Reset {
            self.end_window();
        }
        Ok(snapshot)
    }

    fn end_window(&mut self) {
        let end_ns = self.walk.monotonic_ns;
        let gone = self.table.rebase(&mut self.columns);
        // also where a machine hides releases
        let _ = self.base.delete_batch("cgroup_places", &gone);
        for (_, column) in &mut self.columns {
            // What cannot be deleted now is deleted when its key comes up again.
            let _ = column.forget(&gone);
            column.rebase(end_ns);
        }
        self.losses_before.clone_from(&self.losses);
        self.removed_cgroups.end_window();
        self.window_start_ns = end_ns;
    }

    /// What the set itself could not see in the window.
    fn losses(&self) -> Losses {
        let before = self.losses_before.iter().copied().chain(std::iter::repeat(0));
        let grown = self.losses.iter().zip(before).map(|(now, before)| now.saturating_sub(before));
        let causes = ProcessLoss::ALL.iter().map(|cause| cause.as_ref().to_owned());
        let causes = causes.chain(["run_skipped".to_owned()]);
        let missing = self.table.exit_record_missing();
        let missing = [
            ("exit_record_missing".to_owned(), missing),
            (ProcessLoss::CgroupPathMissing.to_string(), self.removed_cgroups.forgotten()),
        ];
        let all = causes.zip(grown).chain(missing);
        Losses::new(
            all.map(|(cause, count)| Loss::new(PROCESS, cause, count, LossScope::Processes)),
        )
    }

    /// The usage of a process from its start to its release, unless a snapshot has been taken
    /// since.
    pub(crate) fn final_usage<U: 'static>(&self, id: u64, process: ProcessId) -> Result<Option<U>> {
        let record: Option<ProcessEndedRecord> =
            self.base.lookup("ended", &ProcessKey::from(process))?;
        let Some(record) = record.filter(|it| it.flags & ended_flags::RELEASED != 0) else {
            return Ok(None);
        };
        let end = End { id: process, key: process.into(), record: Box::new(record), settled: None };
        let column = self.columns.iter().find(|(column, _)| *column == id);
        let Some((_, column)) = column else { return Ok(None) };
        let usage = column.final_usage(&end)?;
        Ok(usage.and_then(|usage| usage.downcast().ok()).map(|usage| *usage))
    }

    pub(crate) fn collector<C: Collector>(&self, id: u64) -> Option<&C> {
        let (_, column) = self.columns.iter().find(|(column, _)| *column == id)?;
        let column: &TypedColumn<C> = column.as_any().downcast_ref()?;
        Some(&column.collector)
    }

    pub(crate) fn probes(&self) -> impl Iterator<Item = &'static str> + '_ {
        self.columns.iter().map(|(_, column)| column.name())
    }

    pub(crate) fn health(&self) -> Result<Health> {
        let mut health = Health::default();
        let objects = self.columns.iter().filter_map(|(_, column)| column.object());
        for object in [&self.base, &self.handlers].into_iter().chain(objects) {
            health.map_bytes += object.map_bytes()?;
            health.programs += object.program_count();
        }
        let of_probes = self.columns.iter().flat_map(|(_, column)| column.degraded());
        let of_set = Degraded::unless_all_seen(self.sees_all || self.hidden != Hidden::None);
        let first = Degraded::when(
            self.hidden == Hidden::First,
            "process 1",
            "this machine hides process 1 from eBPF: its figures come from /proc",
        );
        health.degraded = of_set.into_iter().chain(first).chain(of_probes).collect();
        Ok(health)
    }

    pub(crate) fn cost(&self) -> Result<Cost> {
        let mut cost = Cost { programs: program_costs(&self.base)? };
        cost.programs.extend(program_costs(&self.handlers)?);
        for (_, column) in &self.columns {
            cost.programs.extend(column.cost()?.programs);
        }
        Ok(cost)
    }
}

/// How often something has changed in the kernel, see `enum process_change`.
pub(super) fn changes(base: &Object, change: u32) -> Result<u64> {
    Ok(base.per_cpu_element::<u64>("changes", change)?.iter().sum())
}

/// In another PID namespace start times of hidden processes come from `/proc`, in units of
/// 10 ms: their final records have the same process by another id.
fn match_rounded(ends: &mut [End], ids: &[ProcessId]) {
    for end in ends {
        let rounded = end.id.rounded_to_ticks();
        if ids.binary_search(&end.id).is_err() && ids.binary_search(&rounded).is_ok() {
            end.id = rounded;
        }
    }
}
