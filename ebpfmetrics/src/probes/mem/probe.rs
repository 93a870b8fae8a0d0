//! The driver: loads, attaches, reads.

use std::sync::Arc;

use super::{
    MemFolded, MemProcess, MemSnapshot, MemUsage,
    decode::{Context, Totals},
    fallback::Fallback,
    record::{self, EndedRecord, FoldedRecord},
};
use crate::{
    Cost, Degraded, Health, Kernel, Probe, ProcessId, Provenance, Requirements,
    Result, Source, Watch,
    error::{MAX_EXITED, check_option},
    ledger::{Decode, Known, Ledger},
    loader::{Loader, Object},
    preflight::in_initial_pid_namespace,
    sys,
    task::ProcessKey,
    walk::{Read, TaskProbe, Walk, Windows, read_alone},
};

/// How the peak of the resident set is followed.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash)]
#[non_exhaustive]
pub enum MemPeaks {
    /// Not at all: known only where a process held more than ever before.
    Off,
    /// Whenever a CPU (before 6.2: a thread) hands in its page counts, every 32 to
    /// 64 pages: that much low per CPU at most.
    #[default]
    Folded,
    /// At every change of a page count, with what this CPU has not handed in yet.
    /// To the page for a process with one thread; costs three times as much per page.
    /// Linux 6.2.
    PageExact,
}

/// Measures the memory of every process in the kernel: what it holds, its peaks
/// between two reads, what it takes and gives back.
///
/// * **Where it comes from**: a BPF iterator over all tasks (`iter/task`) at the
///   snapshot, for gauges and faults; the tracepoint `rss_stat` for peaks of the
///   resident set, `mmap_lock_released` and `sched_process_fork` for the address
///   space; `sched_process_exit` and `sched_process_free` for processes that end.
///   The metrics name their kernel fields.
/// * **Units**: bytes; gauges are exact to the page.
/// * **Kernel**: Linux 5.10 with BTF. The address space is followed by default
///   where that is cheap, see
///   [`address_space`](MemProbeBuilder::address_space).
/// * **Capabilities**: `CAP_BPF` and `CAP_PERFMON`, or root.
/// * **Errors**: as [`preflight`](crate::preflight()) tells beforehand.
/// * **Scope**: all processes of the machine, if the reader is in the initial PID
///   namespace. Where the iterator does not show a process, its figures come from
///   `/proc/PID/status`, and its row says so ([`MemSource`](super::MemSource)).
///
/// Dropping the probe detaches its programs and frees its maps.
///
/// ```no_run
/// use std::{thread::sleep, time::Duration};
/// use ebpfmetrics::{MemProbe, Probe};
///
/// let mut probe = MemProbe::builder().load()?;
/// loop {
///     sleep(Duration::from_secs(1));
///     for process in &probe.reset()?.processes {
///         let (now, peak) = (process.usage.resident_bytes, process.usage.resident_peak_bytes);
///         println!("{:>7} {:<15} {now:?} now, {peak:?} at most", process.id, process.info.comm);
///     }
/// }
/// # Ok::<(), ebpfmetrics::Error>(())
/// ```
#[must_use = "dropping it detaches the probe"]
pub struct MemProbe {
    object: Object,
    iterator: &'static str,
    context: Context,
    /// What the kernel side marks peaks with now.
    epoch: u64,
    sees_all: bool,
    fallback: Fallback,
    windows: Windows,
    ledger: Ledger<Totals>,
    provenance: Arc<Provenance>,
    degraded: Vec<Degraded>,
}

/// Options of a [`MemProbe`].
#[derive(Clone, Debug)]
#[must_use = "nothing is loaded until load()"]
pub struct MemProbeBuilder {
    peaks: MemPeaks,
    address_space: Option<bool>,
    max_exited: u32,
    watch: Watch,
    max_tracked: u32,
}

/// Which programs follow the address space on this kernel.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum SpaceHook {
    /// `mmap_lock_released`, whose arguments cost nothing to make.
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

impl MemProbeBuilder {
    /// How the peak of the resident set is followed; [`MemPeaks::Folded`] unless
    /// set.
    pub fn peaks(mut self, peaks: MemPeaks) -> Self {
        self.peaks = peaks;
        self
    }

    /// Whether the address space is followed: allocations, deallocations and the
    /// peak of the virtual size.
    ///
    /// Unless set it is, if the kernel's tracepoint `mmap_lock_released` has two
    /// arguments. With three (some kernels before 6.18) the kernel builds the path
    /// of a cgroup at each event; without the tracepoint (5.10) the ends of four
    /// system calls are used, which slows down every system call of the machine.
    pub fn address_space(mut self, follow: bool) -> Self {
        self.address_space = Some(follow);
        self
    }

    /// How many exited processes are listed one by one between two snapshots,
    /// and in a window; those beyond are counted together. 8,192 unless set.
    ///
    /// Kernel memory is taken as they exit: some 400 bytes each.
    pub fn max_exited(mut self, processes: u32) -> Self {
        self.max_exited = processes;
        self
    }

    /// How many processes have their peaks and address space followed at a time;
    /// those beyond are counted as lost. 32,768 unless set.
    ///
    /// Kernel memory is taken as they come: some 250 bytes each.
    pub fn max_tracked(mut self, processes: u32) -> Self {
        self.max_tracked = processes;
        self
    }

    /// Whom it watches; every process unless set.
    pub fn watch(mut self, watch: Watch) -> Self {
        self.watch = watch;
        self
    }

    /// Loads and attaches the probe. Its first window starts here.
    ///
    /// # Errors
    /// What is missing, by [`ErrorKind`](crate::ErrorKind), and what to do about it, in the text.
    pub fn load(self) -> Result<MemProbe> {
        let kernel = Loader::kernel(MemProbe::NAME, MemProbe::requirements())?;
        self.load_on(&kernel)
    }

    /// As [`load`](Self::load), with the description of the kernel at hand.
    ///
    /// # Errors
    /// As [`load`](Self::load).
    pub fn load_on(self, kernel: &Kernel) -> Result<MemProbe> {
        self.check()?;
        // The change that took the third argument made page counts per-CPU counters.
        let plain_counts = kernel.tracepoint_arguments("rss_stat") == Some(3);
        let hook = SpaceHook::of(kernel);
        let follow_space = self.address_space.unwrap_or(hook == SpaceHook::LockReleased);
        let possible_cpus = sys::possible_cpus()?;
        let loader = Loader::new(MemProbe::NAME, MemProbe::requirements(), ebpf_probes::MEM)
            .global("track_address_space", u8::from(follow_space))
            .global("possible_cpus", possible_cpus)
            .entries("cpu_offsets", possible_cpus)
            .entries("tracked", self.max_tracked)
            .entries("exited", self.max_exited.max(1));
        let mut object = self.watch.configure(loader).load(kernel)?;
        let iterator = if plain_counts { "mem_tasks_plain" } else { "mem_tasks" };
        object.load_iterator(iterator, "task", kernel)?;
        if !plain_counts {
            object.load_callable("mem_cpu_offsets")?;
            object.call("mem_cpu_offsets")?;
        }
        // Ends of processes first: who is seen alive below is not missed later.
        object.attach("mem_free", "sched_process_free", kernel)?;
        object.attach("mem_exit", "sched_process_exit", kernel)?;
        self.watch.begin(&mut object, kernel)?;
        let mut degraded = Vec::new();
        let peaks = match (self.peaks, plain_counts) {
            (MemPeaks::PageExact, true) => {
                degraded.push(Degraded {
                    feature: "page-exact peaks",
                    reason: "this kernel tells of page counts every 64 pages only (6.2 or newer \
                             does of each)"
                        .into(),
                });
                MemPeaks::Folded
            }
            (peaks, _) => peaks,
        };
        match peaks {
            MemPeaks::Off => {}
            MemPeaks::Folded => object.attach("mem_resident", "rss_stat", kernel)?,
            MemPeaks::PageExact => object.attach("mem_resident_exact", "rss_stat", kernel)?,
        }
        if follow_space {
            follow_address_space(&mut object, hook, kernel)?;
        } else if self.address_space.is_none() {
            degraded.push(Degraded {
                feature: "allocations, deallocations, virtual peak",
                reason: "not followed unless asked for (MemProbeBuilder::address_space): the \
                         hooks of this kernel are dear"
                    .into(),
            });
        }
        let context = Context {
            page_bytes: rustix::param::page_size() as u64,
            first_epoch: 0,
            last_epoch: 0,
            tracks_resident: peaks != MemPeaks::Off,
            tracks_space: follow_space,
        };
        MemProbe::start(object, iterator, context, hook, &self, degraded)
    }

    fn check(&self) -> Result<()> {
        check_option(MemProbe::NAME, "max_exited", self.max_exited, MAX_EXITED)?;
        check_option(MemProbe::NAME, "max_tracked", self.max_tracked, 1..=1 << 24)
    }
}

fn follow_address_space(object: &mut Object, hook: SpaceHook, kernel: &Kernel) -> Result<()> {
    object.attach("mem_fork", "sched_process_fork", kernel)?;
    if hook != SpaceHook::SystemCalls {
        return object.attach("mem_space", "mmap_lock_released", kernel);
    }
    for (program, call) in [
        ("mem_after_mmap", "sys_exit_mmap"),
        ("mem_after_munmap", "sys_exit_munmap"),
        ("mem_after_brk", "sys_exit_brk"),
        ("mem_after_mremap", "sys_exit_mremap"),
    ] {
        object.attach_classic(program, "syscalls", call)?;
    }
    Ok(())
}

impl MemProbe {
    /// The options of a probe.
    pub fn builder() -> MemProbeBuilder {
        MemProbeBuilder {
            peaks: MemPeaks::default(),
            address_space: None,
            max_exited: 8192,
            watch: Watch::All,
            max_tracked: 32_768,
        }
    }

    fn start(
        object: Object,
        iterator: &'static str,
        context: Context,
        hook: SpaceHook,
        options: &MemProbeBuilder,
        degraded: Vec<Degraded>,
    ) -> Result<Self> {
        let mut probe = Self {
            object,
            iterator,
            context,
            epoch: 0,
            sees_all: in_initial_pid_namespace(),
            fallback: Fallback::None,
            windows: Windows::begin(),
            ledger: options.watch.ledger(options.max_exited),
            provenance: Arc::new(Provenance::new(Self::NAME, Vec::new())),
            degraded,
        };
        let first = read_alone(&mut probe, Read::Snapshot)?;
        if options.watch == Watch::All {
            probe.fallback = Fallback::needed(probe.sees_all, first.process(1).is_some());
        }
        read_alone(&mut probe, Read::Reset)?;
        probe.describe(hook);
        Ok(probe)
    }

    /// Brings the books up to date.
    fn read(&mut self, walk: &Walk<'_>) -> Result<()> {
        let context = self.context;
        let mut processes = context.decode(walk.records(&self.object))?;
        self.fallback.complete(&mut processes);
        let decode = Decode::<_, EndedRecord, EndedRecord, FoldedRecord> {
            ending: &|record| Some(context.ending(record)),
            ended: &|record| context.ended(record),
            folded: &|record| context.folded(record),
        };
        self.ledger.read(&self.object, (processes, walk.end_ns), self.sees_all, decode)
    }

    /// Writes down where the figures come from, and what does not.
    fn describe(&mut self, hook: SpaceHook) {
        let source = |metric, source| Source { metric, source: Some(source) };
        let when = |on: bool, metric, from| Source { metric, source: on.then_some(from) };
        let Context { tracks_resident, tracks_space, .. } = self.context;
        let pages = match self.iterator {
            "mem_tasks" => "iter/task: mm->rss_stat[], with the parts of all CPUs",
            _ => "iter/task: mm->rss_stat, with the parts of all threads",
        };
        let mut sources = vec![
            source("virtual_bytes", "iter/task: mm->total_vm"),
            when(tracks_space, "virtual_peak_bytes", hook.source()),
            source("virtual_high_water_bytes", "iter/task: mm->hiwater_vm, mm->total_vm"),
            source("resident_bytes", pages),
            source("resident_anon_bytes", pages),
            source("resident_file_bytes", pages),
            source("resident_shmem_bytes", pages),
            when(tracks_resident, "resident_peak_bytes", "tp_btf/rss_stat: mm->rss_stat, mm->hiwater_rss"),
            source("resident_high_water_bytes", "iter/task: mm->hiwater_rss, mm->rss_stat"),
            source("swap_bytes", pages),
            source("page_table_bytes", "iter/task: mm->pgtables_bytes"),
            source("locked_bytes", "iter/task: mm->locked_vm"),
            source("hugetlb_bytes", "iter/task: mm->hugetlb_usage"),
            source("minor_faults", "iter/task: task->min_flt, signal->min_flt"),
            source("major_faults", "iter/task: task->maj_flt, signal->maj_flt"),
            when(tracks_space, "allocations", hook.source()),
            when(tracks_space, "allocated_bytes", hook.source()),
            when(tracks_space, "deallocations", hook.source()),
            when(tracks_space, "deallocated_bytes", hook.source()),
            source("oom_kills", "iter/task: signal->oom_mm"),
            source("exited", "tp_btf/sched_process_free: task->signal"),
        ];
        match self.fallback {
            Fallback::None => {}
            Fallback::First => sources
                .push(source("process 1", "/proc/1/status: eBPF does not show it on this machine")),
            Fallback::Outside => sources.push(source(
                "processes of other PID namespaces",
                "/proc/PID/status: the iterator shows the reader's namespace",
            )),
        }
        self.provenance = Arc::new(Provenance::new(Self::NAME, sources));
        let all_shown = self.sees_all || self.fallback != Fallback::None;
        self.degraded.extend(Degraded::unless_all_seen(all_shown));
    }
}

impl Probe for MemProbe {
    type Snapshot = MemSnapshot;

    const NAME: &'static str = "mem";

    fn requirements() -> Requirements {
        Requirements {
            tracepoints: [
                "rss_stat",
                "sched_process_exit",
                "sched_process_fork",
                "sched_process_free",
            ].into(),
            iterators: ["task"].into(),
        }
    }

    fn snapshot(&mut self) -> Result<MemSnapshot> {
        read_alone(self, Read::Snapshot)
    }

    fn reset(&mut self) -> Result<MemSnapshot> {
        read_alone(self, Read::Reset)
    }

    fn health(&self) -> Result<Health> {
        Ok(Health { degraded: self.degraded.clone(), ..self.object.health()? })
    }

    fn cost(&self) -> Result<Cost> {
        self.object.cost()
    }
}

impl TaskProbe for MemProbe {
    fn iterator(&self) -> &'static str {
        self.iterator
    }

    fn object(&self) -> &Object {
        &self.object
    }

    fn object_mut(&mut self) -> &mut Object {
        &mut self.object
    }

    /// At a reset, events from here on are of the next window.
    fn before_walk(&mut self, read: Read) -> Result<()> {
        self.context.last_epoch = self.epoch;
        if read == Read::Reset {
            self.object.set_element("epoch", 0, self.epoch + 1)?;
            self.epoch += 1;
        }
        Ok(())
    }

    fn after_walk(&mut self, walk: &Walk<'_>) -> Result<MemSnapshot> {
        self.read(walk)?;
        let lost = self.object.losses(record::LOSSES)?;
        let missing = ("exit_record_missing", self.ledger.exit_record_missing);
        let follows_space = self.context.tracks_space;
        let rows = self.ledger.processes().into_iter();
        Ok(MemSnapshot {
            window: self.windows.at(walk),
            processes: rows.map(|known| MemProcess::new(known, follows_space)).collect(),
            folded: MemFolded::new(&self.ledger.folded(), follows_space),
            losses: self.windows.losses(lost, [missing]),
            provenance: Arc::clone(&self.provenance),
        })
    }

    fn end_window(&mut self) {
        self.windows.end();
        self.ledger.rebase();
        (self.context.first_epoch, self.context.last_epoch) = (self.epoch, self.epoch);
    }

    fn final_usage(&self, process: ProcessId) -> Result<Option<MemUsage>> {
        let record: Option<EndedRecord> = self.object.lookup("exited", &ProcessKey::from(process))?;
        Ok(record.map(|record| {
            let known = Known::since_start(self.context.ended(&record));
            MemProcess::new(&known, self.context.tracks_space).usage
        }))
    }
}

impl std::fmt::Debug for MemProbe {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("MemProbe").field("context", &self.context).finish_non_exhaustive()
    }
}
