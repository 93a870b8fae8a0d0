//! The driver: loads, attaches, reads.

use std::sync::Arc;

use super::{
    CpuFolded, CpuProcess, CpuSnapshot, CpuThread, CpuTime, CpuUsage,
    decode::{self, CpuReading, Totals, decode},
    record::{self, ClocksRecord, EndingRecord, FoldedRecord, TaskRecord},
    threads::Threads,
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

/// How the CPU time of a process is measured. Both ways give the same figures.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash)]
#[cfg_attr(feature = "serde", derive(serde::Serialize), serde(rename_all = "kebab-case"))]
#[non_exhaustive]
pub enum CpuAccounting {
    /// Reads the scheduler's own books at the snapshot. Costs nothing per context
    /// switch.
    #[default]
    Ledger,
    /// Charges the process that leaves a CPU at every context switch. Costs tens
    /// of ns per switch; for who wants an independent measurement.
    SchedSwitch,
}

/// Measures the CPU time of every process in the kernel.
///
/// * **Where it comes from**: a BPF iterator over all tasks (`iter/task`) at the
///   snapshot; the tracepoints `sched_process_exit` and `sched_process_free` for
///   processes that end in between; with [`CpuAccounting::SchedSwitch`] also
///   `sched_switch`. The metrics name their kernel fields.
/// * **Units**: times are [`Duration`](std::time::Duration)s, exact to the ns.
/// * **Kernel**: Linux 5.10 with BTF.
/// * **Capabilities**: `CAP_BPF` and `CAP_PERFMON`, or root.
/// * **Errors**: as [`preflight`](crate::preflight()) tells beforehand.
/// * **Scope**: all processes of the machine, if the reader is in the initial PID
///   namespace; else those of its own namespace, and of the others those that
///   start and exit while the probe is there.
///
/// Dropping the probe detaches its programs and frees its maps.
///
/// ```no_run
/// use std::{thread::sleep, time::Duration};
/// use ebpfmetrics::{CpuProbe, Probe};
///
/// let mut probe = CpuProbe::builder().load()?;
/// loop {
///     sleep(Duration::from_secs(1));
///     let second = probe.reset()?;
///     for process in &second.processes {
///         let percent = process.usage.percent_of_one_cpu(second.window);
///         println!("{:>7} {:<15} {percent:6.1} %", process.id.pid, process.info.comm);
///     }
/// }
/// # Ok::<(), ebpfmetrics::Error>(())
/// ```
#[must_use = "dropping it detaches the probe"]
pub struct CpuProbe {
    object: Object,
    accounting: CpuAccounting,
    threads: bool,
    has_wait: bool,
    sees_all: bool,
    online_cpus: usize,
    windows: Windows,
    clock_offset_ns: Option<u64>,
    ledger: Ledger<Totals>,
    known_threads: Threads,
    cpus: Vec<KnownCpu>,
    provenance: Arc<Provenance>,
    degraded: Vec<Degraded>,
}

/// Options of a [`CpuProbe`].
#[derive(Clone, Debug)]
#[must_use = "nothing is loaded until load()"]
pub struct CpuProbeBuilder {
    accounting: CpuAccounting,
    threads: bool,
    max_exited: u32,
    watch: Watch,
    switch_table_entries: u32,
}

/// A CPU with its counters since boot, never taken back.
#[derive(Clone, Copy, Debug)]
struct KnownCpu {
    last: CpuReading,
    baseline: CpuReading,
}

const SLOTS: u32 = 32_768;

impl CpuProbeBuilder {
    /// How CPU time is measured; [`CpuAccounting::Ledger`] unless set.
    pub fn accounting(mut self, accounting: CpuAccounting) -> Self {
        self.accounting = accounting;
        self
    }

    /// Whether snapshots list threads too; they do not unless set.
    pub fn threads(mut self, threads: bool) -> Self {
        self.threads = threads;
        self
    }

    /// How many exited processes are listed one by one between two snapshots,
    /// and in a window; those beyond are counted together. 8,192 unless set.
    ///
    /// Kernel memory is taken as they exit: some 350 bytes each.
    pub fn max_exited(mut self, processes: u32) -> Self {
        self.max_exited = processes;
        self
    }

    /// With [`CpuAccounting::SchedSwitch`], the size of the table of processes,
    /// rounded up to a power of two; a quarter as many again may share a place.
    /// 32,768 unless set, which takes 1.5 MiB of kernel memory.
    pub fn switch_table_entries(mut self, entries: u32) -> Self {
        self.switch_table_entries = entries;
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
    pub fn load(self) -> Result<CpuProbe> {
        let kernel = Loader::kernel(CpuProbe::NAME, CpuProbe::requirements())?;
        self.load_on(&kernel)
    }

    /// As [`load`](Self::load), with the description of the kernel at hand.
    ///
    /// # Errors
    /// As [`load`](Self::load).
    pub fn load_on(self, kernel: &Kernel) -> Result<CpuProbe> {
        let slots = self.slots()?;
        let switches = self.accounting == CpuAccounting::SchedSwitch;
        let online_cpus = sys::online_cpus()?;
        let mut loader = Loader::new(CpuProbe::NAME, CpuProbe::requirements(), ebpf_probes::CPU)
            .global("account_switches", u8::from(switches))
            .entries("exited", self.max_exited.max(1));
        let [run_queues, cpuacct, steal] =
            kernel.per_cpu_offsets(["runqueues", "root_cpuacct_cpuusage", "steal_time"]);
        if let Some(run_queues) = run_queues {
            loader = loader
                .global("runqueues_offset", run_queues)
                .global("cpuacct_offset", cpuacct.unwrap_or_default())
                .global("steal_time_offset", steal.unwrap_or_default());
        }
        if switches {
            loader = loader
                .global("slot_mask", slots - 1)
                .entries("slots", slots)
                .entries("overflow", (slots / 4).max(1))
                .entries("current_tasks", sys::possible_cpus()?);
        }
        let mut object = self.watch.configure(loader).load(kernel)?;
        object.load_iterator("cpu_tasks", "task", kernel)?;
        object.load_callable("cpu_clocks")?;
        // Ends of processes first: who is seen alive below is not missed later.
        object.attach("cpu_free", "sched_process_free", kernel)?;
        object.attach("cpu_exit", "sched_process_exit", kernel)?;
        self.watch.begin(&mut object, kernel)?;
        if switches {
            object.attach("cpu_switch", "sched_switch", kernel)?;
        }
        CpuProbe::start(object, &self, online_cpus)
    }

    fn slots(&self) -> Result<u32> {
        check_option(CpuProbe::NAME, "max_exited", self.max_exited, MAX_EXITED)?;
        let entries = self.switch_table_entries;
        check_option(CpuProbe::NAME, "switch_table_entries", entries, 1..=1 << 22)?;
        Ok(entries.next_power_of_two())
    }
}

impl CpuProbe {
    /// The options of a probe, with the ledger and without threads at first.
    pub fn builder() -> CpuProbeBuilder {
        CpuProbeBuilder {
            accounting: CpuAccounting::default(),
            threads: false,
            max_exited: 8192,
            watch: Watch::All,
            switch_table_entries: SLOTS,
        }
    }

    fn start(object: Object, options: &CpuProbeBuilder, online_cpus: usize) -> Result<Self> {
        let mut probe = Self {
            object,
            accounting: options.accounting,
            threads: options.threads,
            has_wait: false,
            sees_all: in_initial_pid_namespace(),
            online_cpus,
            windows: Windows::begin(),
            clock_offset_ns: None,
            ledger: options.watch.ledger(options.max_exited),
            known_threads: Threads::default(),
            cpus: Vec::new(),
            provenance: Arc::new(Provenance::new(Self::NAME, Vec::new())),
            degraded: Vec::new(),
        };
        read_alone(&mut probe, Read::Reset)?;
        probe.describe();
        Ok(probe)
    }

    /// Brings the books up to date.
    fn read(&mut self, walk: &Walk<'_>) -> Result<()> {
        let walked = decode(walk.records(&self.object), self.clock_offset_ns, self.threads)?;
        self.has_wait |= walked.has_wait;
        let decode = Decode::<_, EndingRecord, TaskRecord, FoldedRecord> {
            ending: &decode::ending,
            ended: &decode::ended,
            folded: &decode::folded,
        };
        let live = (walked.processes, walk.end_ns);
        self.ledger.read(&self.object, live, self.sees_all, decode)?;
        self.known_threads.live(walked.threads);
        self.update_cpus(walked.cpus);
        Ok(())
    }

    /// How far the clock of BPF is ahead of the scheduler's.
    ///
    /// Asking for one's own CPU time makes the scheduler update itself between
    /// the two readings of our clock. A tick that comes before its clock is read
    /// makes the difference too small, never too large: take the largest.
    fn clock_offset(&mut self) -> Result<Option<u64>> {
        let mut offset = None;
        for _ in 0..8 {
            let before = sys::monotonic_ns();
            sys::thread_cpu_time_ns();
            let after = sys::monotonic_ns();
            self.object.call("cpu_clocks")?;
            let clocks: ClocksRecord = self.object.element("clocks", 0)?;
            if clocks.set == 0 {
                return Ok(None);
            }
            let difference = (before + (after - before) / 2).wrapping_sub(clocks.scheduler_ns);
            // compared as signed: either clock may be ahead
            offset = offset.max(Some(difference as i64));
        }
        Ok(offset.map(|offset| offset as u64))
    }

    fn update_cpus(&mut self, readings: Vec<CpuReading>) {
        for now in readings {
            match self.cpus.binary_search_by_key(&now.cpu, |known| known.last.cpu) {
                Ok(index) => {
                    let last = &mut self.cpus[index].last;
                    // absent while a CPU was just switching
                    last.idle_ns = last.idle_ns.max(now.idle_ns);
                    last.interrupted_ns = last.interrupted_ns.max(now.interrupted_ns);
                }
                Err(index) => self.cpus.insert(index, KnownCpu { last: now, baseline: now }),
            }
        }
    }

    /// Writes down where the figures come from, and what does not.
    fn describe(&mut self) {
        let switches = self.accounting == CpuAccounting::SchedSwitch;
        let wait = self.has_wait.then_some("iter/task: task->sched_info.run_delay");
        let idle = self.cpus.iter().all(|cpu| cpu.last.idle_ns.is_some()) && !self.cpus.is_empty();
        let source = |metric, source| Source { metric, source };
        let sources = vec![
            source(
                "cpu_time",
                Some(match switches {
                    false => "iter/task: task->se.sum_exec_runtime",
                    true => "tp_btf/sched_switch: growth of prev->se.sum_exec_runtime",
                }),
            ),
            source("user", Some("iter/task: task->utime, scaled to the CPU time")),
            source("system", Some("iter/task: task->stime, scaled to the CPU time")),
            source("voluntary_switches", Some("iter/task: task->nvcsw")),
            source("involuntary_switches", Some("iter/task: task->nivcsw")),
            source("run_queue_wait", wait),
            source("migrations", Some("iter/task: task->se.nr_migrations")),
            source("idle", idle.then_some("iter/task: rq->rq_cpu_time, or root_cpuacct_cpuusage")),
            source("exited", Some("tp_btf/sched_process_free: task->signal")),
        ];
        self.provenance = Arc::new(Provenance::new(Self::NAME, sources));

        let degraded = [
            Degraded::when(
                !self.has_wait,
                "run_queue_wait",
                "the kernel lacks CONFIG_SCHED_INFO",
            ),
            Degraded::when(
                !idle && self.sees_all,
                "idle",
                "the kernel lacks CONFIG_SCHEDSTATS, and CONFIG_CGROUP_CPUACCT or per-CPU \
                 variables in BTF",
            ),
            Degraded::unless_all_seen(self.sees_all),
        ];
        self.degraded = degraded.into_iter().flatten().collect();
    }
}

impl KnownCpu {
    fn in_window(&self) -> CpuTime {
        let ns = |now: u64, before: u64| std::time::Duration::from_nanos(now.saturating_sub(before));
        CpuTime {
            cpu: self.last.cpu,
            idle: self.last.idle_ns.zip(self.baseline.idle_ns).map(|(now, before)| ns(now, before)),
            interrupted: ns(self.last.interrupted_ns, self.baseline.interrupted_ns),
        }
    }
}

impl Probe for CpuProbe {
    type Snapshot = CpuSnapshot;

    const NAME: &'static str = "cpu";

    fn requirements() -> Requirements {
        Requirements {
            tracepoints: ["sched_process_exit", "sched_process_free", "sched_switch"].into(),
            iterators: ["task"].into(),
        }
    }

    fn snapshot(&mut self) -> Result<CpuSnapshot> {
        read_alone(self, Read::Snapshot)
    }

    fn reset(&mut self) -> Result<CpuSnapshot> {
        read_alone(self, Read::Reset)
    }

    fn health(&self) -> Result<Health> {
        Ok(Health { degraded: self.degraded.clone(), ..self.object.health()? })
    }

    fn cost(&self) -> Result<Cost> {
        self.object.cost()
    }
}

impl TaskProbe for CpuProbe {
    fn iterator(&self) -> &'static str {
        "cpu_tasks"
    }

    fn object(&self) -> &Object {
        &self.object
    }

    fn object_mut(&mut self) -> &mut Object {
        &mut self.object
    }

    fn before_walk(&mut self, _: Read) -> Result<()> {
        self.clock_offset_ns = self.clock_offset()?;
        Ok(())
    }

    fn after_walk(&mut self, walk: &Walk<'_>) -> Result<CpuSnapshot> {
        self.read(walk)?;
        let lost = self.object.losses(record::LOSSES)?;
        let missing = ("exit_record_missing", self.ledger.exit_record_missing);
        let row = |known| CpuProcess::new(known, self.accounting, self.has_wait);
        let folded = self.ledger.folded();
        Ok(CpuSnapshot {
            window: self.windows.at(walk),
            accounting: self.accounting,
            processes: self.ledger.processes().into_iter().map(row).collect(),
            threads: (self.known_threads.iter())
                .map(|thread| CpuThread::new(thread, self.has_wait))
                .collect(),
            folded: CpuFolded {
                processes: folded.processes,
                usage: CpuUsage::new(&folded.totals.split(), self.accounting, self.has_wait),
            },
            cpus: self.cpus.iter().map(KnownCpu::in_window).collect(),
            online_cpus: self.online_cpus,
            losses: self.windows.losses(lost, [missing]),
            provenance: Arc::clone(&self.provenance),
        })
    }

    fn end_window(&mut self) {
        self.windows.end();
        self.ledger.rebase();
        self.known_threads.rebase();
        for cpu in &mut self.cpus {
            cpu.baseline = cpu.last;
        }
    }

    fn final_usage(&self, process: ProcessId) -> Result<Option<CpuUsage>> {
        let record: Option<TaskRecord> = self.object.lookup("exited", &ProcessKey::from(process))?;
        Ok(record.map(|record| {
            let known = Known::since_start(decode::ended(&record));
            CpuProcess::new(&known, self.accounting, self.has_wait).usage
        }))
    }
}

impl std::fmt::Debug for CpuProbe {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("CpuProbe").field("accounting", &self.accounting).finish_non_exhaustive()
    }
}
