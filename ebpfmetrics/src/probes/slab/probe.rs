//! The driver: loads, attaches, reads.

use std::sync::Arc;

use super::{
    SlabFolded, SlabProcess, SlabSnapshot, SlabUsage,
    decode::{self, Totals},
    record::{self, FoldedRecord, ProcessRecord, TallyRecord, size_told},
};
use crate::{
    Cost, Degraded, ErrorKind, Health, Kernel, Probe, ProcessId, Provenance, Requirements,
    Result, Source, Watch,
    error::{MAX_EXITED, check_option},
    ledger::{Decode, Known, Ledger, Totals as _},
    loader::{Loader, Object},
    preflight::in_initial_pid_namespace,
    task::ProcessKey,
    walk::{Read, TaskProbe, Walk, Windows, read_alone},
};

/// Counts the kernel slab memory that is allocated and freed on behalf of every
/// process.
///
/// This is the kernel's own memory, not that of the process, and it is counted
/// where it happens: **50 to 120 ns at every allocation and free of the whole
/// machine**, 170 to 280 ns with the address map. A program that does nothing but
/// system calls that allocate takes 13 to 26 % more CPU time, with the address
/// map 49 to 83 %. Load it for a question, not for good.
///
/// * **Where it comes from**: the tracepoints `kmalloc`, `kmem_cache_alloc`,
///   `kfree` and `kmem_cache_free`, before 6.1 also `kmalloc_node` and
///   `kmem_cache_alloc_node`; `sched_process_exit` and `sched_process_free` for
///   processes that end; a BPF iterator over all tasks (`iter/task`) for who is
///   there at the snapshot.
/// * **Who is charged**: the process that runs. The kernel has no other name for
///   an allocation: what an interrupt does is charged to the process that it
///   interrupts, what a kernel thread does for others to the kernel thread, what
///   happens on an idle CPU to nobody ([`SlabSnapshot::idle`]).
/// * **Units**: counts and bytes; what happened before the probe was loaded is not
///   known.
/// * **Kernel**: Linux 5.10 with BTF.
/// * **Capabilities**: `CAP_BPF` and `CAP_PERFMON`, or root.
/// * **Errors**: as [`preflight`](crate::preflight()) tells beforehand.
/// * **Kernel memory**: 6.4 MiB, all of it taken at loading, for nothing may
///   allocate inside of the allocator. The
///   [address map](SlabProbeBuilder::address_map) comes on top.
/// * **Losses**: `process_table_full`, `address_map_full`, `address_map_busy` (an
///   interrupt came while the map was written), `exit_state_full`,
///   `exit_record_missing`, and `run_skipped`: since 6.2 the kernel skips a
///   program for events of interrupts that hit it while it runs.
/// * **Scope**: all processes of the machine, if the reader is in the initial PID
///   namespace; else those of its own namespace, and of the others those that
///   exit while the probe is there.
///
/// Dropping the probe detaches its programs and frees its maps.
///
/// ```no_run
/// use std::{thread::sleep, time::Duration};
/// use ebpfmetrics::{Probe, SlabProbe};
///
/// let mut probe = SlabProbe::builder().address_map(200_000).load()?;
/// sleep(Duration::from_secs(1));
/// let second = probe.reset()?;
/// for process in &second.processes {
///     println!(
///         "{:>7} {:<15} {:8} allocations, {:10} bytes, of all {:10} bytes outstanding",
///         process.id.pid,
///         process.info.comm,
///         process.usage.allocations,
///         process.usage.allocated_bytes,
///         process.outstanding_bytes.unwrap_or_default(),
///     );
/// }
/// # Ok::<(), ebpfmetrics::Error>(())
/// ```
#[must_use = "dropping it detaches the probe"]
pub struct SlabProbe {
    object: Object,
    addresses: bool,
    sees_all: bool,
    windows: Windows,
    ledger: Ledger<Totals>,
    idle: Totals,
    idle_baseline: Totals,
    provenance: Arc<Provenance>,
    degraded: Vec<Degraded>,
}

/// Options of a [`SlabProbe`].
#[derive(Clone, Debug)]
#[must_use = "nothing is loaded until load()"]
pub struct SlabProbeBuilder {
    addresses: Option<u32>,
    max_exited: u32,
    table_entries: u32,
    watch: Watch,
}

const SLOTS: u32 = 16_384;

impl SlabProbeBuilder {
    /// Remembers of up to so many allocations at a time who made them and how large
    /// they are, so that frees can be told in bytes and by whose memory they free;
    /// not done unless set.
    ///
    /// It makes each hook two to three times as expensive, and takes 80 bytes of
    /// kernel memory per entry and 16 more per entry rounded up to a power of two:
    /// 9.6 MiB for 100,000, taken at loading. What is allocated when it is full is
    /// counted, as the loss `address_map_full` and in
    /// [`SlabUsage::untracked_bytes`]. A machine can have millions of slab objects,
    /// but only those allocated while the probe is there take an entry.
    pub fn address_map(mut self, entries: u32) -> Self {
        self.addresses = Some(entries);
        self
    }

    /// How many exited processes are listed one by one between two snapshots,
    /// and in a window; those beyond are counted together. 8,192 unless set.
    ///
    /// Kernel memory is taken at loading: some 250 bytes each.
    pub fn max_exited(mut self, processes: u32) -> Self {
        self.max_exited = processes;
        self
    }

    /// The size of the table of processes, rounded up to a power of two; a quarter
    /// as many again may share a place. 16,384 unless set, which takes 2.5 MiB of
    /// kernel memory.
    pub fn table_entries(mut self, entries: u32) -> Self {
        self.table_entries = entries;
        self
    }

    /// Whom it watches; every process unless set.
    ///
    /// What others allocate and free is not counted, but for what happens on idle CPUs.
    /// With the [address map](Self::address_map), frees by others are still looked up
    /// there: they may free what a watched process allocated.
    pub fn watch(mut self, watch: Watch) -> Self {
        self.watch = watch;
        self
    }

    /// Loads and attaches the probe. Its first window starts here.
    ///
    /// # Errors
    /// What is missing, by [`ErrorKind`], and what to do about it, in the text.
    pub fn load(self) -> Result<SlabProbe> {
        let kernel = Loader::kernel(SlabProbe::NAME, SlabProbe::requirements())?;
        self.load_on(&kernel)
    }

    /// As [`load`](Self::load), with the description of the kernel at hand.
    ///
    /// # Errors
    /// As [`load`](Self::load).
    pub fn load_on(self, kernel: &Kernel) -> Result<SlabProbe> {
        let slots = self.slots()?;
        let loader =
            Loader::new(SlabProbe::NAME, SlabProbe::requirements(), ebpf_probes::SLAB)
                .global("track_addresses", u8::from(self.addresses.is_some()))
                .global("size_told", size_told(kernel))
                .global("slot_mask", slots - 1)
                .entries("slots", slots)
                .entries("overflow", (slots / 4).max(1))
                .entries("addresses", self.addresses.unwrap_or(1))
                .entries("exited", self.max_exited.max(1));
        let mut object = self.watch.configure(loader).load(kernel)?;
        object.load_iterator("slab_tasks", "task", kernel)?;
        // Ends of processes first: whoever is counted is forgotten in the end.
        object.attach("slab_release", "sched_process_free", kernel)?;
        object.attach("slab_exit", "sched_process_exit", kernel)?;
        self.watch.begin(&mut object, kernel)?;
        // Frees first: what is known to be allocated is not to be freed unseen.
        for (program, tracepoint) in FREES.iter().chain(ALLOCATIONS) {
            if kernel.has_tracepoint(tracepoint) {
                object.attach_raw(program, tracepoint)?;
            }
        }
        attach_cache_alloc(&mut object, kernel)?;
        SlabProbe::start(object, &self, kernel)
    }

    fn slots(&self) -> Result<u32> {
        check_option(SlabProbe::NAME, "max_exited", self.max_exited, MAX_EXITED)?;
        if let Some(entries) = self.addresses {
            check_option(SlabProbe::NAME, "address_map", entries, 1..=1 << 26)?;
        }
        check_option(SlabProbe::NAME, "table_entries", self.table_entries, 1..=1 << 22)?;
        Ok(self.table_entries.next_power_of_two())
    }
}

const FREES: &[(&str, &str)] =
    &[("slab_kfree", "kfree"), ("slab_cache_free", "kmem_cache_free")];

const ALLOCATIONS: &[(&str, &str)] = &[
    ("slab_kmalloc", "kmalloc"),
    ("slab_kmalloc_node", NODE_OF_KMALLOC),
    ("slab_cache_node", NODE_OF_CACHE),
];

/// These were merged into the others in 6.1.
const NODE_OF_KMALLOC: &str = "kmalloc_node";
const NODE_OF_CACHE: &str = "kmem_cache_alloc_node";

/// By the program that is cheaper where the kernel takes it: the verifier's rules
/// for it changed in 6.16, and nothing but the verifier tells.
fn attach_cache_alloc(object: &mut Object, kernel: &Kernel) -> Result<()> {
    const TRACEPOINT: &str = "kmem_cache_alloc";
    if size_told(kernel) == size_told::OF_CACHE {
        match object.attach("slab_cache_btf", TRACEPOINT, kernel) {
            Err(error) if error.kind() == ErrorKind::VerifierRejected => {}
            result => return result,
        }
    }
    object.attach_raw("slab_cache_alloc", TRACEPOINT)
}

/// Where the tracepoints of this kernel tell the size.
fn size_told(kernel: &Kernel) -> u32 {
    match (kernel.has_tracepoint(NODE_OF_CACHE), kernel.tracepoint_arguments("kmalloc")) {
        (false, _) => size_told::OF_CACHE,
        (true, Some(..=5)) => size_told::FOURTH,
        (true, _) => size_told::FIFTH,
    }
}

impl SlabProbe {
    /// The options of a probe, without the address map at first.
    pub fn builder() -> SlabProbeBuilder {
        SlabProbeBuilder {
            addresses: None,
            max_exited: 8192,
            table_entries: SLOTS,
            watch: Watch::All,
        }
    }

    fn start(object: Object, options: &SlabProbeBuilder, kernel: &Kernel) -> Result<Self> {
        let mut probe = Self {
            object,
            addresses: options.addresses.is_some(),
            sees_all: in_initial_pid_namespace(),
            windows: Windows::begin(),
            ledger: options.watch.ledger(options.max_exited),
            idle: Totals::default(),
            idle_baseline: Totals::default(),
            provenance: Arc::new(Provenance::new(Self::NAME, Vec::new())),
            degraded: Vec::new(),
        };
        read_alone(&mut probe, Read::Reset)?;
        probe.describe(kernel);
        Ok(probe)
    }

    /// Brings the books up to date.
    fn read(&mut self, walk: &Walk<'_>) -> Result<()> {
        let live = decode::decode(walk.records(&self.object))?;
        let decode = Decode::<_, ProcessRecord, ProcessRecord, FoldedRecord> {
            ending: &|record| Some(decode::ending(record)),
            ended: &decode::reading,
            folded: &decode::folded,
        };
        self.ledger.read(&self.object, (live, walk.end_ns), self.sees_all, decode)?;
        self.idle = self.idle.max(&decode::idle(&self.object.per_cpu::<TallyRecord>("idle", 0)?));
        Ok(())
    }

    /// Writes down where the figures come from, and what does not.
    fn describe(&mut self, kernel: &Kernel) {
        let bytes = match size_told(kernel) {
            size_told::OF_CACHE => "bytes_alloc of kmalloc, cache->size of kmem_cache_alloc",
            _ => "bytes_alloc of kmalloc(_node), kmem_cache_alloc(_node)",
        };
        let allocations = match kernel.has_tracepoint(NODE_OF_CACHE) {
            true => "raw_tp/kmalloc(_node), kmem_cache_alloc(_node)",
            false => "raw_tp/kmalloc, kmem_cache_alloc",
        };
        let source = |metric, source| Source { metric, source: Some(source) };
        // Since 6.1 kmem_cache_free hands over the cache and with it a size, but
        // kfree does not: half of the bytes would be no figure.
        let mapped = |metric, text| Source { metric, source: self.addresses.then_some(text) };
        let sources = vec![
            source("allocations", allocations),
            source("allocated_bytes", bytes),
            source("frees", "raw_tp/kfree, kmem_cache_free"),
            mapped("freed_bytes", "bytes of the allocation, by its address"),
            mapped("unknown_frees", "frees of addresses that are not in the map"),
            mapped("cross_process_frees", "frees of what another process allocated"),
            mapped("released_bytes", "frees by anyone, by the address of the allocation"),
            mapped("freed_by_others", "frees by another process"),
            mapped("unseen_frees", "allocations at an address that was not freed"),
            mapped("untracked_bytes", "allocations that the map had no room for"),
            mapped("outstanding_bytes", "allocated_bytes - released_bytes - untracked_bytes"),
            source("idle", "current is the idle task: interrupts"),
            source("exited", "tp_btf/sched_process_free"),
        ];
        self.provenance = Arc::new(Provenance::new(Self::NAME, sources));
        self.degraded.extend(Degraded::unless_all_seen(self.sees_all));
    }
}

impl Probe for SlabProbe {
    type Snapshot = SlabSnapshot;

    const NAME: &'static str = "slab";

    fn requirements() -> Requirements {
        Requirements {
            tracepoints: [
                "kfree",
                "kmalloc",
                "kmem_cache_alloc",
                "kmem_cache_free",
                "sched_process_exit",
                "sched_process_free",
            ]
            .into(),
            iterators: ["task"].into(),
        }
    }

    fn snapshot(&mut self) -> Result<SlabSnapshot> {
        read_alone(self, Read::Snapshot)
    }

    fn reset(&mut self) -> Result<SlabSnapshot> {
        read_alone(self, Read::Reset)
    }

    fn health(&self) -> Result<Health> {
        Ok(Health { degraded: self.degraded.clone(), ..self.object.health()? })
    }

    fn cost(&self) -> Result<Cost> {
        self.object.cost()
    }
}

impl TaskProbe for SlabProbe {
    fn iterator(&self) -> &'static str {
        "slab_tasks"
    }

    fn object(&self) -> &Object {
        &self.object
    }

    fn object_mut(&mut self) -> &mut Object {
        &mut self.object
    }

    fn after_walk(&mut self, walk: &Walk<'_>) -> Result<SlabSnapshot> {
        self.read(walk)?;
        let lost = self.object.losses(record::LOSSES)?;
        let missing = ("exit_record_missing", self.ledger.exit_record_missing);
        let row = |known| SlabProcess::new(known, self.addresses);
        Ok(SlabSnapshot {
            window: self.windows.at(walk),
            processes: self.ledger.processes().into_iter().map(row).collect(),
            folded: SlabFolded::new(&self.ledger.folded(), self.addresses),
            idle: SlabUsage::new(&self.idle.minus(&self.idle_baseline), self.addresses),
            losses: self.windows.losses(lost, [missing]),
            provenance: Arc::clone(&self.provenance),
        })
    }

    fn end_window(&mut self) {
        self.windows.end();
        self.ledger.rebase();
        self.idle_baseline = self.idle;
    }

    fn final_usage(&self, process: ProcessId) -> Result<Option<SlabUsage>> {
        let record: Option<ProcessRecord> = self.object.lookup("exited", &ProcessKey::from(process))?;
        Ok(record.map(|record| {
            let known = Known::since_start(decode::reading(&record));
            SlabProcess::new(&known, self.addresses).usage
        }))
    }
}

impl std::fmt::Debug for SlabProbe {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("SlabProbe").field("addresses", &self.addresses).finish_non_exhaustive()
    }
}
