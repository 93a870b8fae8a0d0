use std::{
    collections::{BTreeMap, HashMap, HashSet, VecDeque},
    sync::Arc,
    time::Duration,
};

use super::{
    DiskDeviceId, DiskFolded, DiskSnapshot, DiskUsage, assemble,
    books::{RowBook, SPARE_ROWS},
    decode::{Totals, decode},
    devices::{DeviceBook, any_without_requests},
    record::{self, ControlRecord, ProcessRecord, RowKey, RowRecord},
};
use crate::{
    Cost, Degraded, Error, ErrorKind, Health, Kernel, Probe, ProcessId, ProcessInfo,
    Provenance, Requirements, Result, Source, Watch,
    error::{MAX_EXITED, check_option},
    ledger::Ledger,
    loader::{Loader, Object, SharedMaps},
    preflight::in_initial_pid_namespace,
    probes::events,
    sys,
    task::ProcessKey,
    walk::{Read, TaskProbe, Walk, Windows, read_alone},
};

/// Measures what every process does with the disks: operations, bytes and latency,
/// per process and device, with buffered writes charged to who dirtied the pages.
///
/// * **What**: [`DiskSnapshot`], one row per process and one per block device.
/// * **From**: the tracepoints `block_io_start` (before Linux 6.5 `block_getrq`),
///   `block_rq_issue`, `block_rq_merge`, `block_rq_complete`, `writeback_dirty_folio`
///   (before 5.16 `writeback_dirty_page`), `sched_process_exit` and
///   `sched_process_free`; where there are devices without requests (zram, LVM,
///   RAID), `block_bio_queue` and `block_bio_complete`; `iter/task` for what was
///   dirtied; `/proc/diskstats` and `/sys` for names and busy time.
/// * **Exact**: operations and bytes per device equal the growth of
///   `/proc/diskstats`; what a process reads, and writes past the page cache, equals
///   its own account. Of written pages the class tells how sure the process is, see
///   [`DiskClass`](super::DiskClass).
/// * **Units**: bytes and counts; times are [`Duration`](std::time::Duration)s, in
///   [`Histogram`](crate::Histogram)s of times doubling from 1,024 ns on.
/// * **Kernel**: Linux 5.10 with BTF.
/// * **Capabilities**: `CAP_BPF` and `CAP_PERFMON`, or root.
/// * **Errors**: as [`preflight`](crate::preflight()) tells beforehand.
/// * **Scope**: all processes and devices of the machine. In a PID namespace other
///   than the initial one, processes outside of it have no dirtied bytes while they
///   live.
///
/// Dropping the probe detaches its programs and frees its maps.
///
/// ```no_run
/// use std::{thread::sleep, time::Duration};
/// use ebpfmetrics::{DiskProbe, Probe};
///
/// let mut probe = DiskProbe::builder().load()?;
/// loop {
///     sleep(Duration::from_secs(1));
///     let second = probe.reset()?;
///     for process in second.processes.iter().filter(|p| p.usage.total.operations() > 0) {
///         let (read, written) = (process.usage.total.read_bytes, process.usage.total.written_bytes);
///         println!("{:>7} {:<15} {read:>12} {written:>12}", process.id.pid, process.info.comm);
///     }
/// }
/// # Ok::<(), ebpfmetrics::Error>(())
/// ```
#[must_use = "dropping it detaches the probe"]
pub struct DiskProbe {
    object: Object,
    hooks: Hooks,
    sees_all: bool,
    has_io_accounting: bool,
    windows: Windows,
    ledger: Ledger<Totals>,
    rows: RowBook,
    row_count: u32,
    devices: DeviceBook,
    /// Busy time of each device when the window began.
    busy_before: BTreeMap<DiskDeviceId, u64>,
    /// Who is gone and may still have pages to be written.
    names: Names,
    /// Who is neither walked past nor settled.
    leaving: HashMap<ProcessId, ProcessInfo>,
    provenance: Arc<Provenance>,
    degraded: Vec<Degraded>,
    /// The buffer for slow I/O; its reader has it too.
    events: Option<Arc<SharedMaps>>,
}

/// Options of a [`DiskProbe`].
#[derive(Clone, Debug)]
#[must_use = "nothing is loaded until load()"]
pub struct DiskProbeBuilder {
    rows: u32,
    in_flight: u32,
    dirty_files: u32,
    max_processes: u32,
    max_exited: u32,
    slow_io: Option<Duration>,
    slow_io_buffer_bytes: u32,
    watch: Watch,
}

/// What this kernel has to attach to.
#[derive(Clone, Debug)]
struct Hooks {
    /// Program and tracepoint where a request begins.
    start: Option<(&'static str, &'static str)>,
    issue: &'static str,
    merge: &'static str,
    dirty: Option<(&'static str, &'static str)>,
    queue_bio: &'static str,
    bios_attached: bool,
}

/// What was known of processes when they ended, of those that ended last.
#[derive(Debug, Default)]
struct Names {
    of: HashMap<ProcessId, ProcessInfo>,
    order: VecDeque<ProcessId>,
}

impl DiskProbeBuilder {
    /// How many rows there is room for: one per process, device, class and kind of
    /// operation. Those of processes that ended make room a few reads later. Past
    /// this operations are counted for their device alone
    /// ([`unattributed`](DiskSnapshot::unattributed), loss `row_table_full`).
    /// 8,192 unless set, at 256 bytes of kernel memory each.
    pub fn rows(mut self, rows: u32) -> Self {
        self.rows = rows;
        self
    }

    /// Slots for requests under way, rounded up to a power of two; 1,024 more may
    /// share a slot. 8,192 unless set, at 64 bytes each.
    pub fn in_flight(mut self, requests: u32) -> Self {
        self.in_flight = requests;
        self
    }

    /// How many files can have pages to be written and their owners known; past
    /// this the owners of the file that was dirtied longest ago are forgotten (loss
    /// `owner_unseen` once it is written). 32,768 unless set, at 130 bytes each.
    pub fn dirty_files(mut self, files: u32) -> Self {
        self.dirty_files = files;
        self
    }

    /// How many processes that did I/O can be known by name at a time when they end.
    /// 8,192 unless set, at some 200 bytes for each that there is.
    pub fn max_processes(mut self, processes: u32) -> Self {
        self.max_processes = processes;
        self
    }

    /// How many exited processes are listed one by one in a window; of those
    /// beyond, what they dirtied is counted together. 8,192 unless set.
    pub fn max_exited(mut self, processes: u32) -> Self {
        self.max_exited = processes;
        self
    }

    /// Tells every operation that takes at least so long, from its submission until it is
    /// done (queue and device together), to who reads
    /// [`Events::slow_io`](crate::EventsBuilder::slow_io): as
    /// [`Event::SlowIo`](crate::Event::SlowIo).
    ///
    /// An operation whose start was not seen is not told; it is counted as a loss
    /// (`start_unseen`, `completion_unseen`). What is told before there is a reader waits
    /// in the buffer. Without this, no code runs for it and the buffer is not there; with
    /// it, a program at `sched_process_exec` keeps the names of processes.
    pub fn slow_io(mut self, limit: Duration) -> Self {
        self.slow_io = Some(limit);
        self
    }

    /// The size of the buffer for [`slow_io`](Self::slow_io) and all other events of its
    /// reader, rounded up to a power of two of whole pages; 1 MiB unless set. An event
    /// takes up to 176 bytes. What finds no room is counted
    /// ([`Events::losses`](crate::Events::losses)).
    pub fn slow_io_buffer_bytes(mut self, bytes: u32) -> Self {
        self.slow_io_buffer_bytes = bytes;
        self
    }

    /// Whom it watches; every process unless set.
    ///
    /// Devices stay those of the machine: what others do with them is in
    /// [`unattributed`](DiskSnapshot::unattributed), by its class, so that processes and
    /// it together still are the devices. Each operation is looked at as before, and costs
    /// about the same.
    pub fn watch(mut self, watch: Watch) -> Self {
        self.watch = watch;
        self
    }

    /// Loads and attaches the probe. Its first window starts here.
    ///
    /// # Errors
    /// What is missing, by [`ErrorKind`](crate::ErrorKind), and what to do about it, in the text.
    pub fn load(self) -> Result<DiskProbe> {
        let kernel = Loader::kernel(DiskProbe::NAME, DiskProbe::requirements())?;
        self.load_on(&kernel)
    }

    /// As [`load`](Self::load), with the description of the kernel at hand.
    ///
    /// # Errors
    /// As [`load`](Self::load).
    pub fn load_on(self, kernel: &Kernel) -> Result<DiskProbe> {
        self.check()?;
        let hooks = Hooks::of(kernel);
        // two at least: the slot is in the upper bits of a product
        let slots = self.in_flight.next_power_of_two().max(2);
        // place 0 stands for none
        let row_count = 1 + SPARE_ROWS + self.rows;
        let slow_io_ns = self.slow_io.map_or(0, |limit| limit.as_nanos() as u64);
        let loader = Loader::new(DiskProbe::NAME, DiskProbe::requirements(), ebpf_probes::DISK)
            .global("has_io_start", u8::from(hooks.start_is_request()))
            .global("in_flight_bits", slots.ilog2())
            .entries("in_flight", slots)
            .entries("rows", row_count)
            .entries("row_of", row_count)
            .entries("free_rows", self.rows)
            .entries("spare_rows", SPARE_ROWS)
            .entries("files", self.dirty_files)
            .entries("processes", self.max_processes)
            .global("slow_io_ns", slow_io_ns);
        let loader = match self.slow_io {
            Some(_) => {
                loader.entries("ring", events::buffer_bytes(self.slow_io_buffer_bytes)?)
            }
            None => events::BUFFER.iter().copied().fold(loader, Loader::leave_out),
        };
        let mut object = self.watch.configure(loader).load(kernel)?;
        // taken from the top: low places first, so that reads stay short
        for place in (1..=SPARE_ROWS).rev() {
            object.push("spare_rows", place)?;
        }
        for place in (1 + SPARE_ROWS..row_count).rev() {
            object.push("free_rows", place)?;
        }
        object.load_iterator("disk_tasks", "task", kernel)?;
        let mut probe = DiskProbe::new(object, hooks, &self, row_count);
        if self.slow_io.is_some() {
            probe.events = Some(probe.object.share(events::BUFFER)?);
            probe.object.attach("disk_exec", "sched_process_exec", kernel)?;
        }
        probe.attach(kernel, &self.watch)?;
        read_alone(&mut probe, Read::Reset)?;
        probe.describe();
        Ok(probe)
    }

    fn check(&self) -> Result<()> {
        for (what, entries) in [
            ("rows", self.rows),
            ("in_flight", self.in_flight),
            ("dirty_files", self.dirty_files),
            ("max_processes", self.max_processes),
        ] {
            check_option(DiskProbe::NAME, what, entries, 1..=1 << 22)?;
        }
        if self.slow_io.is_some_and(|limit| limit.is_zero()) {
            let text = "probe disk: slow_io is more than 0";
            return Err(Error::new(ErrorKind::InvalidOption, text));
        }
        check_option(DiskProbe::NAME, "max_exited", self.max_exited, MAX_EXITED)
    }
}

impl Hooks {
    fn of(kernel: &Kernel) -> Self {
        let arguments = |tracepoint: &str| kernel.tracepoint_arguments(tracepoint);
        // before 5.11 to 5.13 the queue came first
        let of = |tracepoint, now: usize, program, program_of_queue| {
            if arguments(tracepoint).is_none_or(|n| n <= now) { program } else { program_of_queue }
        };
        let start = if kernel.has_tracepoint("block_io_start") {
            Some(("disk_start", "block_io_start"))
        } else if kernel.has_tracepoint("block_getrq") {
            let program =
                of("block_getrq", 1, "disk_get_request", "disk_get_request_of_queue");
            Some((program, "block_getrq"))
        } else {
            None
        };
        let dirty = if kernel.has_tracepoint("writeback_dirty_folio") {
            Some(("disk_dirty_folio", "writeback_dirty_folio"))
        } else if kernel.has_tracepoint("writeback_dirty_page") {
            Some(("disk_dirty_page", "writeback_dirty_page"))
        } else {
            None
        };
        Self {
            start,
            issue: of("block_rq_issue", 1, "disk_issue", "disk_issue_of_queue"),
            merge: of("block_rq_merge", 1, "disk_merge", "disk_merge_of_queue"),
            dirty,
            queue_bio: of("block_bio_queue", 1, "disk_queue_bio", "disk_queue_bio_of_queue"),
            bios_attached: false,
        }
    }

    /// Whether a request is known from its start on.
    fn start_is_request(&self) -> bool {
        self.start.is_some_and(|(_, tracepoint)| tracepoint == "block_io_start")
    }
}

impl DiskProbe {
    /// The options of a probe.
    pub fn builder() -> DiskProbeBuilder {
        DiskProbeBuilder {
            rows: 8192,
            in_flight: 8192,
            dirty_files: 32_768,
            max_processes: 8192,
            max_exited: 8192,
            slow_io: None,
            slow_io_buffer_bytes: events::BUFFER_BYTES,
            watch: Watch::All,
        }
    }

    fn new(object: Object, hooks: Hooks, options: &DiskProbeBuilder, row_count: u32) -> Self {
        Self {
            object,
            hooks,
            sees_all: in_initial_pid_namespace(),
            has_io_accounting: false,
            windows: Windows::begin(),
            ledger: options.watch.ledger(options.max_exited),
            rows: RowBook::default(),
            row_count,
            devices: DeviceBook::default(),
            busy_before: BTreeMap::new(),
            names: Names::default(),
            leaving: HashMap::new(),
            provenance: Arc::new(Provenance::new(Self::NAME, Vec::new())),
            degraded: Vec::new(),
            events: None,
        }
    }

    /// The buffer that slow I/O is told into, for its one reader.
    pub(in crate::probes) fn events(&self) -> Result<Arc<SharedMaps>> {
        let invalid = |what| Error::new(ErrorKind::InvalidOption, format!("slow_io: {what}"));
        let events = self.events.as_ref();
        let events = events.ok_or_else(|| invalid("the disk probe was loaded without it"))?;
        match Arc::strong_count(events) {
            1 => Ok(Arc::clone(events)),
            _ => Err(invalid("other events read the buffer of this disk probe")),
        }
    }

    fn attach(&mut self, kernel: &Kernel, watch: &Watch) -> Result<()> {
        let object = &mut self.object;
        object.attach("disk_free", "sched_process_free", kernel)?;
        object.attach("disk_exit", "sched_process_exit", kernel)?;
        watch.begin(object, kernel)?;
        if let Some((program, tracepoint)) = self.hooks.dirty {
            object.attach(program, tracepoint, kernel)?;
        }
        // Ends first: what begins from here on is also seen to end.
        object.attach("disk_complete", "block_rq_complete", kernel)?;
        object.attach(self.hooks.merge, "block_rq_merge", kernel)?;
        object.attach(self.hooks.issue, "block_rq_issue", kernel)?;
        if let Some((program, tracepoint)) = self.hooks.start {
            object.attach(program, tracepoint, kernel)?;
        }
        object.load_hook("disk_complete_bio", "block_bio_complete", kernel)?;
        object.load_hook(self.hooks.queue_bio, "block_bio_queue", kernel)?;
        self.attach_bios()?;
        self.object.set_element("control", 0, ControlRecord { attached_ns: sys::monotonic_ns() })
    }

    /// Attaches to bios once there is a device without requests: these programs run
    /// for those of all devices.
    fn attach_bios(&mut self) -> Result<()> {
        // without /sys, as if there were
        if !self.hooks.bios_attached && any_without_requests().unwrap_or(true) {
            self.object.attach_hook("disk_complete_bio")?;
            self.object.attach_hook(self.hooks.queue_bio)?;
            self.hooks.bios_attached = true;
        }
        Ok(())
    }

    /// Brings the books up to date.
    fn read(&mut self, walk: &Walk<'_>) -> Result<()> {
        let walked = decode(walk.records(&self.object))?;
        self.has_io_accounting = walked.has_io_accounting;
        // after the walk: who is gone by now is in here, if it did any I/O
        let mut processes = self.object.read_all::<ProcessKey, ProcessRecord>("processes")?;
        self.attach_bios()?;
        self.devices.refresh();
        self.read_rows()?;

        self.ledger.live(walked.processes, walk.end_ns);
        let ended: Vec<_> = processes.extract_if(.., |(_, process)| process.is_final()).collect();
        let keys: Vec<_> = ended.iter().map(|(key, _)| *key).collect();
        self.object.delete("processes", &keys)?;
        self.ledger.ended(ended.iter().map(|(_, process)| process.ended()));
        let awaited: HashSet<_> = processes.iter().map(|(key, _)| key.process()).collect();
        self.ledger.ended_without_record(&awaited);
        if self.sees_all {
            // In another PID namespace a zombie cannot be told from the gone.
            let ending = processes.iter().filter_map(|(_, process)| process.ending());
            let taken = self.ledger.overdue(ending, walk.end_ns);
            let taken: Vec<_> = taken.into_iter().map(ProcessKey::from).collect();
            self.object.delete("processes", &taken)?;
        }
        let known = self.ledger.processes();
        self.names.keep(known.iter().filter(|p| p.info.exited).map(|p| (p.id, p.info)));
        let alive: HashSet<_> =
            known.iter().filter(|process| !process.info.exited).map(|process| process.id).collect();
        self.leaving = processes
            .iter()
            .filter(|(key, _)| !alive.contains(&key.process()))
            .map(|(key, process)| (key.process(), process.about.info()))
            .collect();
        self.free_rows(&alive)
    }

    fn read_rows(&mut self) -> Result<()> {
        let mut book = std::mem::take(&mut self.rows);
        let carries = |device| self.devices.carries(DiskDeviceId::from_record(device));
        let places = book.places();
        let read = self.each_rows(places, |first, rows| book.take_in(first, rows, carries));
        self.rows = book;
        read?;
        for (key, _) in self.rows.window() {
            self.devices.add(DiskDeviceId::from_record(key.device));
        }
        Ok(())
    }

    /// Has pieces of the kernel's table taken, with the place that each begins at, until
    /// one has no row that is taken and no `places` are left that were.
    fn each_rows(
        &self,
        places: usize,
        mut take: impl FnMut(u32, &[RowRecord]) -> bool,
    ) -> Result<()> {
        const AT_ONCE: usize = 512;
        let mut first = 1;
        while first < self.row_count {
            let rows: Vec<RowRecord> = self.object.elements("rows", first, AT_ONCE)?;
            let any = take(first, &rows);
            first += rows.len().max(1) as u32;
            if !any && first as usize >= places && first > SPARE_ROWS + 1 {
                break;
            }
        }
        Ok(())
    }

    /// All that was counted of a process since the probe was loaded.
    fn rows_of(&self, process: ProcessId) -> Result<RowBook> {
        let mut mine = Vec::new();
        self.each_rows(self.rows.places(), |_, rows| {
            mine.extend(rows.iter().filter(|row| row.key.process() == Some(process)).copied());
            rows.iter().any(|row| row.key.is_taken())
        })?;
        // of devices that no snapshot has seen yet, what lies on them is not known
        let mut fresh = DeviceBook::default();
        let devices = mine.iter().map(|row| DiskDeviceId::from_record(row.key.device));
        let devices = match devices.into_iter().all(|device| self.devices.get(device).is_some()) {
            true => &self.devices,
            false => {
                fresh.refresh();
                &fresh
            }
        };
        let mut book = RowBook::default();
        book.take_in(0, &mine, |device| devices.carries(DiskDeviceId::from_record(device)));
        Ok(book)
    }

    /// Gives rows of processes that are gone to others.
    fn free_rows(&mut self, alive: &HashSet<ProcessId>) -> Result<()> {
        let retired = self.rows.retire(|process| alive.contains(process));
        self.object.delete::<RowKey>("row_of", &retired.keys)?;
        let free: RowRecord = bytemuck::Zeroable::zeroed();
        for place in retired.places {
            self.object.set_element("rows", place, free)?;
            self.object.push("free_rows", place)?;
        }
        Ok(())
    }

    fn name(&self, process: &ProcessId) -> ProcessInfo {
        let unknown = ProcessInfo { exited: true, ..ProcessInfo::default() };
        let leaving = self.leaving.get(process);
        *self.names.of.get(process).or(leaving).unwrap_or(&unknown)
    }

    /// Writes down where the figures come from, and what does not.
    fn describe(&mut self) {
        let source = |metric, source| Source { metric, source };
        let start = match self.hooks.start {
            Some((_, "block_io_start")) => "tp_btf/block_io_start",
            Some(_) => "tp_btf/block_getrq",
            None => "tp_btf/block_rq_issue",
        };
        let owner = self.hooks.dirty.map(|(_, tracepoint)| match tracepoint {
            "writeback_dirty_folio" => "tp_btf/writeback_dirty_folio",
            _ => "tp_btf/writeback_dirty_page",
        });
        let accounting =
            |text| if self.has_io_accounting { Some(text) } else { None::<&'static str> };
        let sources = vec![
            source("operations", Some("tp_btf/block_rq_complete, block_bio_complete")),
            source("bytes", Some("tp_btf/block_rq_complete, block_bio_complete")),
            source("errors", Some("tp_btf/block_rq_complete, block_bio_complete")),
            source("direct", Some(start)),
            source("write_back", owner),
            source("queue", Some("own clock, from the start to block_rq_issue")),
            source("device", Some("own clock, from block_rq_issue to block_rq_complete")),
            source("dirtied_bytes", accounting("iter/task: task->ioac.write_bytes")),
            source("cancelled_bytes", accounting("iter/task: task->ioac.cancelled_write_bytes")),
            source("busy", Some("/proc/diskstats: io_ticks")),
        ];
        self.provenance = Arc::new(Provenance::new(Self::NAME, sources));

        let degraded = [
            Degraded::when(
                !self.has_io_accounting,
                "dirtied_bytes",
                "the kernel lacks CONFIG_TASK_IO_ACCOUNTING",
            ),
            Degraded::when(
                self.hooks.dirty.is_none(),
                "write_back",
                "the kernel has no tracepoint for pages that become dirty: write-back is charged \
                 to the kernel's threads",
            ),
            Degraded::when(
                self.hooks.start.is_none(),
                "direct",
                "the kernel has neither block_io_start nor block_getrq: operations are charged to \
                 who issues them, which is another for 1 to 2 % of them",
            ),
            Degraded::when(
                !self.sees_all,
                "dirtied_bytes of other PID namespaces",
                "not in the initial PID namespace: they show when a process exits, not while it \
                 lives",
            ),
        ];
        self.degraded = degraded.into_iter().flatten().collect();
    }
}

impl Names {
    const MOST: usize = 8192;

    fn keep(&mut self, processes: impl Iterator<Item = (ProcessId, ProcessInfo)>) {
        for (id, info) in processes {
            if self.of.insert(id, info).is_none() {
                self.order.push_back(id);
            }
        }
        while self.order.len() > Self::MOST {
            if let Some(oldest) = self.order.pop_front() {
                self.of.remove(&oldest);
            }
        }
    }
}

impl Probe for DiskProbe {
    type Snapshot = DiskSnapshot;

    const NAME: &'static str = "disk";

    fn requirements() -> Requirements {
        Requirements {
            tracepoints: [
                "block_rq_complete",
                "block_rq_issue",
                "block_rq_merge",
                "sched_process_exit",
                "sched_process_free",
            ]
            .into(),
            iterators: ["task"].into(),
        }
    }

    fn snapshot(&mut self) -> Result<DiskSnapshot> {
        read_alone(self, Read::Snapshot)
    }

    fn reset(&mut self) -> Result<DiskSnapshot> {
        read_alone(self, Read::Reset)
    }

    fn health(&self) -> Result<Health> {
        Ok(Health { degraded: self.degraded.clone(), ..self.object.health()? })
    }

    fn cost(&self) -> Result<Cost> {
        self.object.cost()
    }
}

impl TaskProbe for DiskProbe {
    fn iterator(&self) -> &'static str {
        "disk_tasks"
    }

    fn object(&self) -> &Object {
        &self.object
    }

    fn object_mut(&mut self) -> &mut Object {
        &mut self.object
    }

    fn after_walk(&mut self, walk: &Walk<'_>) -> Result<DiskSnapshot> {
        self.read(walk)?;
        let lost = self.object.losses(record::LOSSES)?;
        let missing = ("exit_record_missing", self.ledger.exit_record_missing);
        let folded = self.ledger.folded();
        let accounted = self.has_io_accounting;
        Ok(DiskSnapshot {
            window: self.windows.at(walk),
            processes: assemble::processes(
                &self.ledger.processes(),
                &self.rows,
                self.has_io_accounting,
                |process| self.name(process),
            ),
            devices: assemble::devices(&self.devices, &self.rows, &self.busy_before),
            unattributed: assemble::unattributed(&self.rows),
            folded: DiskFolded {
                processes: folded.processes,
                usage: DiskUsage {
                    dirtied_bytes: accounted.then_some(folded.totals.dirtied_bytes),
                    cancelled_bytes: accounted.then_some(folded.totals.cancelled_bytes),
                    ..DiskUsage::default()
                },
            },
            losses: self.windows.losses(lost, [missing]),
            provenance: Arc::clone(&self.provenance),
        })
    }

    fn end_window(&mut self) {
        self.windows.end();
        self.ledger.rebase();
        self.rows.rebase();
        self.devices.rebase();
        self.busy_before = self.devices.busy_ms();
    }

    fn final_usage(&self, process: ProcessId) -> Result<Option<DiskUsage>> {
        let key = ProcessKey::from(process);
        let record: Option<ProcessRecord> = self.object.lookup("processes", &key)?;
        let Some(record) = record.filter(ProcessRecord::is_final) else { return Ok(None) };
        let (ended, rows) = (record.ended(), self.rows_of(process)?);
        Ok(Some(assemble::final_usage(ended, &rows, self.has_io_accounting)))
    }
}

impl std::fmt::Debug for DiskProbe {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("DiskProbe").finish_non_exhaustive()
    }
}
