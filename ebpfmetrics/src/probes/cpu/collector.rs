//! From the records of tasks to CPU counters.

use procfs::process::Process;

use super::{
    CpuAccounting, CpuProbeBuilder, CpuSystem, CpuThread, CpuUsage,
    counters::{CpuCounters, Longest, advance, ran_after_window_ns},
    cpus::Cpus,
    threads::Threads,
};
use crate::{
    collect::{
        Loading, WalkPart,
        collector::{
            Collector, Ended, Progress, Reading, Readings, Record, Span, Task, WalkTimes,
            invalid_record,
        },
        counters,
    },
    error::Result,
    kernel::{Kernel, OnlineCpus, Requirements, possible_cpus},
    object::Object,
    probe::Degraded,
    process::{ProcessId, TICK_NS},
    record::{
        CpuLoss, CpuTaskRecord, ProcessOverflowRecord, ProcessPartRecord, cpu_kind, cpu_task_flags,
        section_number,
    },
    snapshot::{LossCause, LossScope, Source, Window},
};

/// The CPU probe: what [`CpuProbe`](super::CpuProbe) measures, alone or in a set.
pub struct Cpu {
    /// Present with SchedSwitch.
    object: Option<Object>,
    accounting: CpuAccounting,
    list_threads: bool,
    /// Where per-CPU variables of the kernel lie: run queues, cpuacct, stolen time, times by tick.
    per_cpu_offsets: [u64; 4],
    slots: u32,
    has_wait: bool,
    online_cpus: usize,
    cpus: Cpus,
    threads: Threads,
    /// Start of the first walk, `CLOCK_BOOTTIME`. All switches of processes that began later have
    /// been charged.
    first_walk_ns: Option<u64>,
}

/// What bounds the CPU time of a process.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct CpuGauges {
    threads: u64,
    /// It has one thread and never had another: it cannot run on two CPUs at once.
    is_single: bool,
}

impl Cpu {
    /// As with the default options, for walks from memory.
    #[cfg(feature = "__bench")]
    pub(crate) fn without_kernel() -> Self {
        Self {
            object: None,
            accounting: CpuAccounting::Ledger,
            list_threads: false,
            per_cpu_offsets: [0; 4],
            slots: 1,
            has_wait: false,
            online_cpus: 1,
            cpus: Cpus::default(),
            threads: Threads::default(),
            first_walk_ns: None,
        }
    }

    fn switches(&self) -> bool {
        self.accounting == CpuAccounting::SchedSwitch
    }
}

/// CPU time of a process that eBPF does not show, from `/proc`; `None` if it is gone.
fn from_procfs(pid: u32) -> Option<CpuCounters> {
    let process = Process::new(i32::try_from(pid).ok()?).ok()?;
    let stat = process.stat().ok()?;
    let mut sum = CpuCounters {
        user_ns: stat.utime * TICK_NS,
        system_ns: stat.stime * TICK_NS,
        ..CpuCounters::default()
    };
    for task in process.tasks().ok()?.flatten() {
        if let Ok(times) = task.schedstat() {
            sum.ledger_ns += times.sum_exec_runtime;
            sum.run_queue_wait_ns += times.run_delay;
        }
        if let Ok(status) = task.status() {
            sum.voluntary_switches += status.voluntary_ctxt_switches.unwrap_or(0);
            sum.involuntary_switches += status.nonvoluntary_ctxt_switches.unwrap_or(0);
        }
    }
    if sum.ledger_ns == 0 {
        sum.ledger_ns = sum.user_ns + sum.system_ns;
    }
    sum.charged_ns = sum.ledger_ns;
    Some(sum)
}

impl Collector for Cpu {
    const NAME: &'static str = "cpu";
    const SECTION: Option<u16> = Some(section_number::CPU as u16);
    const NEEDS_SCHEDULER_CLOCK: bool = true;

    type Options = CpuProbeBuilder;
    type Counters = CpuCounters;
    type Gauges = CpuGauges;
    type Usage = CpuUsage;
    type System = CpuSystem;
    type Loss = CpuLoss;

    fn requirements() -> Requirements {
        Requirements { tracepoints: ["sched_switch"].into(), iterators: ["task"].into() }
    }

    fn load(options: CpuProbeBuilder, loading: &Loading<'_>) -> Result<Self> {
        let slots = options.slots()?;
        let kernel = loading.kernel;
        let names = ["runqueues", "root_cpuacct_cpuusage", "steal_time", "kernel_cpustat"];
        let offsets = kernel.per_cpu_offsets(names);
        let per_cpu_offsets = match offsets {
            [Some(run_queues), others @ ..] => {
                let [cpuacct, steal, ticks] = others.map(Option::unwrap_or_default);
                [run_queues, cpuacct, steal, ticks]
            }
            _ => [0; 4],
        };
        let object = match options.accounting {
            CpuAccounting::Ledger => None,
            CpuAccounting::SchedSwitch => Some(
                loading
                    .object(Self::NAME, ebpf_probes::CPU)
                    .override_global("cpu_slot_mask", slots - 1)
                    .map_max_entries("cpu_slots", slots)
                    .map_max_entries("cpu_overflow", (slots / 4).max(1))
                    .map_max_entries("cpu_current_tasks", possible_cpus()?)
                    .load(kernel)?,
            ),
        };
        Ok(Self {
            object,
            accounting: options.accounting,
            list_threads: options.threads,
            per_cpu_offsets,
            slots,
            has_wait: false,
            online_cpus: OnlineCpus::read()?.count(),
            cpus: Cpus::default(),
            threads: Threads::default(),
            first_walk_ns: None,
        })
    }

    fn attach(&mut self, kernel: &Kernel) -> Result<()> {
        match &mut self.object {
            Some(object) => object.attach("cpu_switch", "sched_switch", kernel),
            None => Ok(()),
        }
    }

    fn object(&self) -> Option<&Object> {
        self.object.as_ref()
    }

    fn object_mut(&mut self) -> Option<&mut Object> {
        self.object.as_mut()
    }

    fn walk_part(&self) -> Result<WalkPart> {
        let [run_queues, cpuacct, steal, ticks] = self.per_cpu_offsets;
        Ok(WalkPart::built_in("cpu_on")
            .with("cpu_account_switches", u8::from(self.switches()))
            .with("cpu_slot_mask", self.slots - 1)
            .with("cpu_runqueues_offset", run_queues)
            .with("cpu_cpuacct_offset", cpuacct)
            .with("cpu_steal_time_offset", steal)
            .with("cpu_ticks_offset", ticks)
            .sharing(self.object.as_ref().map(Object::map_handles).unwrap_or_default()))
    }

    fn begin_walk(&mut self, _: crate::collect::collector::Read) -> Result<()> {
        self.threads.begin_walk();
        self.cpus.begin_walk();
        Ok(())
    }

    fn is_system_record(kind: u16) -> bool {
        u32::from(kind) == cpu_kind::CPU
    }

    fn system_record(&mut self, _: u16, record: &[u8], walk: &WalkTimes) -> Result<()> {
        let record = Record { kind: 0, bytes: record }.get()?;
        self.cpus.walked(record, walk);
        Ok(())
    }

    fn task_record(
        &mut self,
        task: &Task,
        record: Record<'_>,
        walk: &WalkTimes,
        reading: &mut Reading<Self>,
    ) -> Result<()> {
        if u32::from(record.kind) != cpu_kind::TASK {
            return Err(invalid_record("of unknown kind"));
        }
        let record: &CpuTaskRecord = record.get()?;
        self.has_wait |= record.flags & cpu_task_flags::HAS_RUN_QUEUE_WAIT != 0;
        let mut own = CpuCounters::of_task(record, walk);
        if self.list_threads {
            let running = record.flags & cpu_task_flags::RUNNING != 0;
            let counted_at_ns = record.read_at_ns - ran_after_window_ns(record, walk);
            let thread = self.threads.add(task, &own, running.then_some(counted_at_ns), walk);
            // The same in both, so that threads add up to no more than their process.
            own.ledger_ns = thread.ledger_ns;
            own.run_queue_wait_ns = thread.run_queue_wait_ns;
        }
        reading.add_task(&own, &CpuCounters::of(&record.dead));
        reading.gauges.threads += 1;
        reading.gauges.is_single = reading.gauges.threads == 1 && record.dead.sum_exec_ns == 0;
        Ok(())
    }

    fn end_walk(&mut self, walk: &WalkTimes, processes: &mut Readings<'_, Self>) -> Result<()> {
        self.first_walk_ns.get_or_insert(walk.boottime_ns);
        for &index in processes.hidden {
            if let Some(counters) = from_procfs(processes.ids[index].pid) {
                processes.readings[index].counters = counters;
            }
        }
        let online = OnlineCpus::read()?;
        self.online_cpus = online.count();
        if self.list_threads {
            let window_ns = walk.monotonic_ns.saturating_sub(walk.window_start_ns);
            let cpus = self.online_cpus as u64;
            let seen = processes.ids.iter().zip(processes.readings.iter_mut());
            self.threads.end_walk(seen.map(|(id, reading)| {
                let age_ns = walk.boottime_ns.saturating_sub(id.start_time_ns);
                let capacity_ns = window_ns.min(age_ns).saturating_mul(cpus);
                (*id, &mut reading.counters.ledger_ns, capacity_ns)
            }));
        }
        self.cpus.end_walk(&online, walk);
        Ok(())
    }

    fn advance(&self, progress: &Progress<'_, Self>, now: &Reading<Self>) -> CpuCounters {
        let walk = progress.walk;
        let window_ns = walk.monotonic_ns.saturating_sub(walk.window_start_ns);
        let age_ns = walk.boottime_ns.saturating_sub(progress.start_time_ns);
        // What a process used before it was first seen may be of any time of its life.
        let time_ns = if progress.is_new { age_ns } else { window_ns.min(age_ns) };
        let longest = match now.gauges.is_single {
            true => Longest { running_ns: time_ns, waiting_ns: time_ns },
            // any number of threads can wait at once
            false => Longest {
                running_ns: time_ns.saturating_mul(self.online_cpus as u64),
                waiting_ns: u64::MAX,
            },
        };
        advance(progress.last, &now.counters, progress.baseline, longest)
    }

    fn ended(&self, ended: &Ended<'_>) -> Option<Reading<Self>> {
        let mut counters = CpuCounters::of(&ended.record.cpu.totals);
        if let Some(settled) = ended.settled {
            counters = counters::max(&counters, &CpuCounters::of(&settled.cpu));
        }
        // switches are charged with the growth of the ledger: less means that one was missed
        if self.first_walk_ns.is_some_and(|first_ns| ended.id.start_time_ns > first_ns) {
            counters.charged_ns = counters.charged_ns.max(counters.ledger_ns);
        }
        counters = counters.divided();
        let is_single = ended.record.threads == 1;
        Some(Reading { counters, gauges: CpuGauges { threads: 0, is_single } })
    }

    fn is_reported(reported: &CpuCounters, all: &CpuCounters) -> bool {
        // user and system time were divided before: one of them may never reach the final figure
        let (user_ns, system_ns) = (reported.user_ns, reported.system_ns);
        counters::is_zero(&counters::subtract(
            &CpuCounters { user_ns, system_ns, ..*all },
            reported,
        ))
    }

    fn part(record: &ProcessPartRecord) -> Option<CpuCounters> {
        Some(CpuCounters::of(&record.cpu))
    }

    fn own(record: Record<'_>, walk: &WalkTimes) -> Result<Option<CpuCounters>> {
        let record: &CpuTaskRecord = record.get()?;
        Ok(Some(CpuCounters { charged_ns: 0, ..CpuCounters::of_task(record, walk) }))
    }

    fn complete_part(part: &CpuCounters, baseline: &CpuCounters) -> CpuCounters {
        // switches are charged by process; the time of its threads is the same
        let in_window_ns = part.ledger_ns.saturating_sub(baseline.ledger_ns);
        let charged_ns = baseline.charged_ns.saturating_add(in_window_ns);
        CpuCounters { charged_ns, ..part.divided() }
    }

    fn overflow(record: &ProcessOverflowRecord) -> CpuCounters {
        CpuCounters::of(&record.cpu)
    }

    fn complete_overflow(grown: &CpuCounters) -> CpuCounters {
        grown.divided()
    }

    fn usage(
        &self,
        _: ProcessId,
        counters: &CpuCounters,
        _: Option<&CpuGauges>,
        _: Span,
    ) -> CpuUsage {
        CpuUsage::new(counters, self.accounting, self.has_wait)
    }

    fn system(&self, _: Window) -> CpuSystem {
        CpuSystem {
            accounting: self.accounting,
            cpus: self.cpus.in_window(),
            online_cpus: self.online_cpus,
            threads: self.threads.iter().map(|it| CpuThread::new(it, self.has_wait)).collect(),
        }
    }

    fn end_window(&mut self) {
        self.threads.rebase();
        self.cpus.rebase();
    }

    #[cfg(feature = "serde")]
    fn json() -> Option<crate::snapshot::Json<CpuUsage, CpuSystem>> {
        Some(crate::snapshot::Json::new())
    }

    fn sources(&self) -> Vec<Source> {
        let cpu_time = match self.switches() {
            false => "iter/task: task->se.sum_exec_runtime",
            true => "tp_btf/sched_switch: growth of prev->se.sum_exec_runtime",
        };
        let when = |known, metric, source| match known {
            true => Source::new(metric, source),
            false => Source::missing(metric),
        };
        let ticks = |metric| {
            when(self.cpus.has_ticks(), metric, "iter/task: kernel_cpustat, as in /proc/stat")
        };
        vec![
            Source::new("cpu_time", cpu_time),
            Source::new("user", "iter/task: task->utime, scaled to the CPU time"),
            Source::new("system", "iter/task: task->stime, scaled to the CPU time"),
            Source::new("voluntary_switches", "iter/task: task->nvcsw"),
            Source::new("involuntary_switches", "iter/task: task->nivcsw"),
            when(
                self.has_wait,
                "run_queue_wait",
                "iter/task: task->sched_info.run_delay, last_queued",
            ),
            Source::new("migrations", "iter/task: task->se.nr_migrations"),
            when(
                self.cpus.has_idle(),
                "idle",
                "iter/task: rq->rq_cpu_time, or root_cpuacct_cpuusage",
            ),
            ticks("irq"),
            ticks("softirq"),
            ticks("steal"),
            ticks("guest"),
            Source::new("exited", "tp_btf/sched_process_free: task->signal"),
        ]
    }

    fn degraded(&self) -> Vec<Degraded> {
        let wait =
            Degraded::when(!self.has_wait, "run_queue_wait", "the kernel lacks CONFIG_SCHED_INFO");
        let idle = Degraded::when(
            !self.cpus.has_idle(),
            "idle",
            "the kernel lacks CONFIG_SCHEDSTATS, and CONFIG_CGROUP_CPUACCT or per-CPU variables \
             in BTF; or the reader's PID namespace hides kernel threads",
        );
        let ticks = Degraded::when(
            !self.cpus.has_ticks(),
            "irq, softirq, steal, guest",
            "the kernel's BTF lacks per-CPU variables, or the reader's PID namespace hides \
             kernel threads",
        );
        wait.into_iter().chain(idle).chain(ticks).collect()
    }
}

impl LossCause for CpuLoss {
    const PROBE: &'static str = "cpu";
    const ALL: &'static [Self] = Self::ALL;

    fn scope(self) -> LossScope {
        LossScope::Processes
    }
}

#[cfg(test)]
mod tests;
