use bytemuck::{Pod, Zeroable};

use super::{
    MemPeaks, MemProbeBuilder, MemSystem, MemUsage,
    decode::{Context, Parts, faults, guests, share_unfolded},
    fallback::from_procfs,
    gauges::MemGauges,
    sum::FilterSum,
    system::MachineMemory,
};
use crate::{
    collect::{
        Loading, WalkPart,
        collector::{Collector, Ended, Read, Reading, Readings, Record, Span, Task, WalkTimes},
        counters,
    },
    error::Result,
    kernel::{Kernel, Requirements, in_initial_pid_namespace, possible_cpus},
    object::Object,
    probe::Degraded,
    process::ProcessId,
    record::{MemLoss, ProcessOverflowRecord, ProcessPartRecord, section_number},
    snapshot::{LossCause, LossScope, Source, Window},
};

/// The memory probe: what [`MemProbe`](super::MemProbe) measures, alone or in a set.
pub struct Mem {
    object: Object,
    peaks: MemPeaks,
    wants_exact: bool,
    /// Page counts are plain numbers (before 6.2), not per-CPU counters.
    plain_counts: bool,
    hook: SpaceHook,
    asked_for_space: bool,
    possible_cpus: u32,
    context: Context,
    /// What the kernel side marks peaks with now.
    epoch: u64,
    /// When the window began, `CLOCK_BOOTTIME`.
    window_start_ns: u64,
    /// Records of the walk that is under way, by the place of the process.
    parts: Vec<Parts>,
    reads_procfs: bool,
    /// Of the processes in the filter, if there is one.
    sum: Option<FilterSum>,
    has_filter: bool,
    caller: Option<u32>,
    machine: Option<MachineMemory>,
}

/// Counters of a process since its start.
#[repr(C)]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Pod, Zeroable)]
pub struct MemCounters {
    pub(super) minor_faults: u64,
    pub(super) major_faults: u64,
    pub(super) allocations: u64,
    pub(super) allocated_bytes: u64,
    pub(super) deallocations: u64,
    pub(super) deallocated_bytes: u64,
    /// 1 once the kernel has chosen it.
    pub(super) oom_kills: u64,
}

/// Which programs follow the address space on this kernel.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum SpaceHook {
    /// `mmap_lock_released`, whose arguments cost nothing.
    LockReleased,
    /// The same, but the kernel looks up the path of the cgroup each time.
    LockReleasedWithPath,
    /// The end of the system calls that change it.
    SystemCalls,
}

impl SpaceHook {
    fn of(kernel: &Kernel) -> Self {
        match kernel.tracepoint_arguments("mmap_lock_released") {
            Some(2) => Self::LockReleased,
            Some(_) => Self::LockReleasedWithPath,
            None => Self::SystemCalls,
        }
    }

    fn source(self) -> &'static str {
        match self {
            Self::LockReleased | Self::LockReleasedWithPath => {
                "tp_btf/mmap_lock_released: mm->total_vm"
            }
            Self::SystemCalls => "syscalls:sys_exit_{mmap,munmap,brk,mremap}: mm->total_vm",
        }
    }
}

impl Mem {
    fn follow_address_space(&mut self, kernel: &Kernel) -> Result<()> {
        if self.hook != SpaceHook::SystemCalls {
            return self.object.attach("mem_space", "mmap_lock_released", kernel);
        }
        for (program, call) in [
            ("mem_after_mmap", "sys_exit_mmap"),
            ("mem_after_munmap", "sys_exit_munmap"),
            ("mem_after_brk", "sys_exit_brk"),
            ("mem_after_mremap", "sys_exit_mremap"),
        ] {
            self.object.attach_tracepoint(program, "syscalls", call)?;
        }
        Ok(())
    }

    /// Whether a process began before the window.
    fn is_older(&self, process: ProcessId) -> bool {
        process.start_time_ns < self.window_start_ns
    }
}

impl Collector for Mem {
    const NAME: &'static str = "mem";
    const SECTION: Option<u16> = Some(section_number::MEM as u16);

    type Options = MemProbeBuilder;
    type Counters = MemCounters;
    type Gauges = MemGauges;
    type Usage = MemUsage;
    type System = MemSystem;
    type Loss = MemLoss;

    fn requirements() -> Requirements {
        Requirements { tracepoints: ["rss_stat"].into(), iterators: ["task"].into() }
    }

    fn load(options: MemProbeBuilder, loading: &Loading<'_>) -> Result<Self> {
        options.check()?;
        let kernel = loading.kernel;
        // The change that took the third argument made page counts per-CPU counters.
        let plain_counts = kernel.tracepoint_arguments("rss_stat") == Some(3);
        let hook = SpaceHook::of(kernel);
        let tracks_space = options.address_space.unwrap_or(hook == SpaceHook::LockReleased);
        let peaks = match options.peaks {
            MemPeaks::PageExact if plain_counts => MemPeaks::Folded,
            peaks => peaks,
        };
        let possible_cpus = possible_cpus()?;
        let sums = loading.has_filter() && peaks != MemPeaks::Off;
        let mut object = loading
            .object(Self::NAME, ebpf_probes::MEM)
            .override_global("mem_track_address_space", u8::from(tracks_space))
            .override_global("mem_possible_cpus", possible_cpus)
            .override_global("mem_sum_on", u8::from(sums))
            .override_global("mem_not_counted", loading.caller().unwrap_or_default())
            .map_max_entries("mem_cpu_offsets", possible_cpus)
            .map_max_entries("mem_tracked", options.max_tracked)
            .load(kernel)?;
        if !plain_counts {
            object.load_callable("mem_find_cpu_offsets")?;
            object.test_run("mem_find_cpu_offsets")?;
        }
        Ok(Self {
            object,
            peaks,
            wants_exact: options.peaks == MemPeaks::PageExact,
            plain_counts,
            hook,
            asked_for_space: options.address_space.is_some(),
            possible_cpus,
            context: Context {
                page_bytes: rustix::param::page_size() as u64,
                first_epoch: 0,
                last_epoch: 0,
                tracks_resident: peaks != MemPeaks::Off,
                tracks_space,
            },
            epoch: 0,
            window_start_ns: 0,
            parts: Vec::new(),
            reads_procfs: false,
            sum: sums.then(FilterSum::default),
            has_filter: loading.has_filter(),
            caller: loading.caller(),
            machine: None,
        })
    }

    fn attach(&mut self, kernel: &Kernel) -> Result<()> {
        match self.peaks {
            MemPeaks::Off => {}
            MemPeaks::Folded => {
                let program = if self.plain_counts { "mem_resident_plain" } else { "mem_resident" };
                self.object.attach(program, "rss_stat", kernel)?;
            }
            MemPeaks::PageExact => self.object.attach("mem_resident_exact", "rss_stat", kernel)?,
        }
        match self.context.tracks_space {
            true => self.follow_address_space(kernel),
            false => Ok(()),
        }
    }

    fn object(&self) -> Option<&Object> {
        Some(&self.object)
    }

    fn object_mut(&mut self) -> Option<&mut Object> {
        Some(&mut self.object)
    }

    fn walk_part(&self) -> Result<WalkPart> {
        Ok(WalkPart::built_in("mem_on")
            .with("mem_track_address_space", u8::from(self.context.tracks_space))
            .with("mem_possible_cpus", self.possible_cpus)
            .with("mem_sum_on", u8::from(self.sum.is_some()))
            .with("mem_not_counted", self.caller.unwrap_or_default())
            .sharing(self.object.map_handles()))
    }

    /// At a reset, events from here on are of the next window.
    fn begin_walk(&mut self, read: Read) -> Result<()> {
        self.parts.clear();
        self.context.last_epoch = self.epoch;
        if read == Read::Reset {
            self.object.set_array_element("mem_epoch", 0, self.epoch + 1)?;
            self.epoch += 1;
        }
        Ok(())
    }

    fn task_record(
        &mut self,
        task: &Task,
        record: Record<'_>,
        _: &WalkTimes,
        reading: &mut Reading<Self>,
    ) -> Result<()> {
        if self.parts.len() <= task.index {
            self.parts.resize(task.index + 1, Parts::default());
        }
        if let Some(record) = self.parts[task.index].add(record)? {
            let (own, dead) = faults(&record.faults);
            reading.add_task(&own, &dead);
            reading.counters.oom_kills = reading.counters.oom_kills.max(record.oom_kills);
        }
        Ok(())
    }

    fn end_walk(&mut self, walk: &WalkTimes, processes: &mut Readings<'_, Self>) -> Result<()> {
        let window_ns = walk.monotonic_ns.saturating_sub(walk.window_start_ns);
        self.window_start_ns = walk.boottime_ns.saturating_sub(window_ns);
        self.parts.resize(processes.ids.len(), Parts::default());
        let guests = guests(processes.ids, &self.parts);
        share_unfolded(&guests, &mut self.parts);
        let mut guests = guests.into_iter().peekable();
        for (index, reading) in processes.readings.iter_mut().enumerate() {
            let owner = guests.next_if(|(guest, _)| *guest == index);
            if !processes.seen[index] {
                continue;
            }
            let parts = &self.parts[index];
            let owner = owner.map(|(_, owner)| &self.parts[owner]);
            let is_older = self.is_older(processes.ids[index]);
            let kernel_thread = processes.infos[index].kernel_thread;
            reading.gauges = self.context.gauges(parts, owner, kernel_thread, is_older);
            if let Some(tracked) = &parts.tracked {
                let more = self.context.tracked_counters(tracked);
                reading.counters = counters::add(&reading.counters, &more);
            }
        }
        for &index in processes.hidden {
            if let Some((counters, mut gauges)) = from_procfs(processes.ids[index].pid) {
                gauges.may_be_older = self.is_older(processes.ids[index]);
                processes.readings[index] = Reading { counters, gauges };
                self.reads_procfs = true;
            }
        }
        if let Some(sum) = &mut self.sum {
            sum.read(&self.object, &self.context)?;
        }
        self.machine = MachineMemory::read();
        Ok(())
    }

    fn follow(before: &MemGauges, now: MemGauges) -> MemGauges {
        MemGauges::follow(before, now)
    }

    fn rebase(gauges: &mut MemGauges) {
        gauges.rebase();
    }

    fn ended(&self, ended: &Ended<'_>) -> Option<Reading<Self>> {
        let record = &ended.record.mem;
        // 0 if it was not tracked
        let start_ns = ended.record.info.process_start_ns;
        let tracked = Some(&record.tracked).filter(|it| it.process_start_ns == start_ns);
        let (own, dead) = faults(&record.faults);
        let mut counters = counters::add(&own, &dead);
        if let Some(settled) = ended.settled {
            counters.minor_faults = counters.minor_faults.max(settled.minor_faults);
            counters.major_faults = counters.major_faults.max(settled.major_faults);
        }
        counters.oom_kills = record.oom_kills;
        if let Some(tracked) = tracked {
            counters = counters::add(&counters, &self.context.tracked_counters(tracked));
        }
        let gauges = self.context.gauges_at_end(record, tracked, self.is_older(ended.id));
        Some(Reading { counters, gauges })
    }

    fn part(record: &ProcessPartRecord) -> Option<MemCounters> {
        let &ProcessPartRecord { minor_faults, major_faults, .. } = record;
        Some(MemCounters { minor_faults, major_faults, ..MemCounters::default() })
    }

    fn own(record: Record<'_>, _: &WalkTimes) -> Result<Option<MemCounters>> {
        let task = Parts::default().add(record)?;
        Ok(task.map(|record| faults(&record.faults).0))
    }

    fn overflow(record: &ProcessOverflowRecord) -> MemCounters {
        let page_bytes = rustix::param::page_size() as u64;
        MemCounters {
            minor_faults: record.mem.minor_faults,
            major_faults: record.mem.major_faults,
            allocations: record.mem.allocations,
            allocated_bytes: record.mem.allocated_pages * page_bytes,
            deallocations: record.mem.deallocations,
            deallocated_bytes: record.mem.deallocated_pages * page_bytes,
            oom_kills: record.mem.oom_kills,
        }
    }

    fn usage(
        &self,
        process: ProcessId,
        counters: &MemCounters,
        gauges: Option<&MemGauges>,
        span: Span,
    ) -> MemUsage {
        let from_procfs = gauges.is_some_and(|gauges| gauges.from_procfs);
        let follows_space = self.context.tracks_space && !from_procfs;
        let mut usage = MemUsage::of_counters(counters, follows_space);
        let Some(gauges) = gauges else { return usage };
        usage.add_gauges(process, gauges, span);
        usage
    }

    fn system(&self, _: Window) -> MemSystem {
        MemSystem { machine: self.machine, filtered: self.sum.as_ref().map(FilterSum::figures) }
    }

    fn end_window(&mut self) {
        if let Some(sum) = &mut self.sum {
            sum.end_window();
        }
        (self.context.first_epoch, self.context.last_epoch) = (self.epoch, self.epoch);
    }

    #[cfg(feature = "serde")]
    fn json() -> Option<crate::snapshot::Json<MemUsage, MemSystem>> {
        Some(crate::snapshot::Json::new())
    }

    fn sources(&self) -> Vec<Source> {
        let when = |known, metric, source| match known {
            true => Source::new(metric, source),
            false => Source::missing(metric),
        };
        let Context { tracks_resident, tracks_space, .. } = self.context;
        let pages = match self.plain_counts {
            false => "iter/task: mm->rss_stat[], including the parts of all CPUs",
            true => "iter/task: mm->rss_stat, including the parts of all threads",
        };
        let space = self.hook.source();
        let mut sources = vec![
            Source::new("virtual_bytes", "iter/task: mm->total_vm"),
            when(tracks_space, "virtual_peak_bytes", space),
            Source::new("virtual_high_water_bytes", "iter/task: mm->hiwater_vm, mm->total_vm"),
            Source::new("resident_bytes", pages),
            Source::new("resident_anon_bytes", pages),
            Source::new("resident_file_bytes", pages),
            Source::new("resident_shmem_bytes", pages),
            when(
                tracks_resident,
                "resident_peak_bytes",
                "tp_btf/rss_stat: mm->rss_stat, mm->hiwater_rss",
            ),
            Source::new("resident_high_water_bytes", "iter/task: mm->hiwater_rss, mm->rss_stat"),
            Source::new("swap_bytes", pages),
            Source::new("page_table_bytes", "iter/task: mm->pgtables_bytes"),
            Source::new("locked_bytes", "iter/task: mm->locked_vm"),
            Source::new("hugetlb_bytes", "iter/task: mm->hugetlb_usage"),
            Source::new("minor_faults", "iter/task: task->min_flt, signal->min_flt"),
            Source::new("major_faults", "iter/task: task->maj_flt, signal->maj_flt"),
            when(tracks_space, "allocations", space),
            when(tracks_space, "allocated_bytes", space),
            when(tracks_space, "deallocations", space),
            when(tracks_space, "deallocated_bytes", space),
            Source::new("oom_kills", "iter/task: signal->oom_mm"),
            Source::new("exited", "tp_btf/sched_process_free: task->signal"),
            Source::new("memory of the machine", "/proc/meminfo"),
        ];
        if self.has_filter {
            sources.push(when(
                self.sum.is_some(),
                "peak of the filter",
                "tp_btf/rss_stat, iter/task: mm->rss_stat, summed in the kernel",
            ));
        }
        match (self.reads_procfs, in_initial_pid_namespace()) {
            (false, _) => {}
            (true, true) => sources
                .push(Source::new("process 1", "/proc/1/status: this machine hides it from eBPF")),
            (true, false) => sources.push(Source::new(
                "processes of other PID namespaces",
                "/proc/PID/status: the walk shows the reader's namespace",
            )),
        }
        sources
    }

    fn degraded(&self) -> Vec<Degraded> {
        let exact = Degraded::when(
            self.wants_exact && self.plain_counts,
            "page-exact peaks",
            "this kernel reports page counts only every 64 pages; Linux 6.2 reports each change",
        );
        let space = Degraded::when(
            !self.context.tracks_space && !self.asked_for_space,
            "allocations, deallocations, virtual peak",
            "the hooks of this kernel are expensive: followed only with \
             MemProbeBuilder::address_space(true)",
        );
        exact.into_iter().chain(space).collect()
    }
}

impl LossCause for MemLoss {
    const PROBE: &'static str = "mem";
    const ALL: &'static [Self] = Self::ALL;

    fn scope(self) -> LossScope {
        LossScope::Processes
    }
}
