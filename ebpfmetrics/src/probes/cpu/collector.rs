//! From the records of tasks to CPU counters.

use std::time::Duration;

use bytemuck::{Pod, Zeroable};
use procfs::process::Process;

use super::{CpuAccounting, CpuProbeBuilder, CpuSystem, CpuThread, CpuTime, CpuUsage, threads::Threads};
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
    kernel::{Kernel, Requirements, online_cpus, possible_cpus},
    object::Object,
    probe::Degraded,
    process::ProcessId,
    record::{
        CpuCpuRecord, CpuLoss, CpuTaskRecord, CpuTotalsRecord, ProcessOverflowRecord, cpu_cpu_flags,
        cpu_kind, cpu_task_flags, section_number,
    },
    snapshot::{LossCause, LossScope, Source, Window},
};

/// The CPU probe: what [`CpuProbe`](super::CpuProbe) measures, alone or in a set.
pub struct Cpu {
    /// Present with SchedSwitch.
    object: Option<Object>,
    accounting: CpuAccounting,
    list_threads: bool,
    /// Where per-CPU variables of the kernel lie: run queues, cpuacct, stolen time.
    per_cpu_offsets: [u64; 3],
    slots: u32,
    has_wait: bool,
    online_cpus: usize,
    cpus: Vec<KnownCpu>,
    threads: Threads,
}

/// Counters of a process or thread since its start.
#[repr(C)]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Pod, Zeroable)]
pub struct CpuCounters {
    /// What the scheduler has counted, with the time of tasks that run now.
    pub(super) ledger_ns: u64,
    /// What was charged at switches, with the time since the last of them.
    pub(super) charged_ns: u64,
    pub(super) user_ns: u64,
    pub(super) system_ns: u64,
    pub(super) voluntary_switches: u64,
    pub(super) involuntary_switches: u64,
    pub(super) run_queue_wait_ns: u64,
    pub(super) migrations: u64,
}

/// What bounds the CPU time of a process.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct CpuGauges {
    threads: u64,
    /// It has one thread and never had another: it cannot run on two CPUs at once.
    is_single: bool,
}

/// A CPU with its counters since boot, never taken back.
#[derive(Clone, Copy, Debug)]
struct KnownCpu {
    last: CpuReading,
    baseline: CpuReading,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct CpuReading {
    cpu: u32,
    idle_ns: Option<u64>,
    interrupted_ns: u64,
}

/// The scheduler updates a running task at least at every tick, with `nohz_full` once a
/// second.
const MAX_RUNNING_NS: u64 = 4_000_000_000;

impl CpuCounters {
    fn of(totals: &CpuTotalsRecord) -> Self {
        Self {
            ledger_ns: totals.sum_exec_ns,
            charged_ns: totals.charged_ns,
            user_ns: totals.user_ns,
            system_ns: totals.system_ns,
            voluntary_switches: totals.voluntary_switches,
            involuntary_switches: totals.involuntary_switches,
            run_queue_wait_ns: totals.run_queue_wait_ns,
            migrations: totals.migrations,
        }
    }

    /// With user and system time that add up to the CPU time.
    fn divided(mut self) -> Self {
        (self.user_ns, self.system_ns) =
            split(self.ledger_ns, (self.user_ns, self.system_ns), (0, 0));
        self
    }

    /// Of one task alone, as of the end of the window.
    fn of_task(record: &CpuTaskRecord, walk: &WalkTimes) -> Self {
        let has = |flag| record.flags & flag != 0;
        // The task was read after the window ended; the reader may have been preempted.
        let late_ns = record.read_at_ns.saturating_sub(walk.monotonic_ns);
        // Without the offset of the clocks a running task is at most a tick behind.
        let since = |raw_ns: u64| {
            let ns = raw_ns.wrapping_sub(walk.scheduler_offset_ns?);
            // a start on another clock, or one that is being set
            Some(ns).filter(|ns| *ns <= i64::MAX as u64)
        };
        let mut counters = Self { charged_ns: 0, ..Self::of(&record.own) };
        if has(cpu_task_flags::RUNNING) {
            let running_ns =
                since(record.running_raw_ns).filter(|ns| *ns < MAX_RUNNING_NS).unwrap_or(0);
            counters.ledger_ns += running_ns;
            if has(cpu_task_flags::SWITCHED_IN) {
                counters.charged_ns = counters.ledger_ns.saturating_sub(record.switched_in_ns);
            }
            // It ran on after the end of the window, but not before it was switched in.
            let arrived_ns = match record.arrived_raw_ns {
                0 => Some(0),
                raw_ns => since(raw_ns),
            };
            let after_ns = late_ns.min(arrived_ns.unwrap_or(0));
            counters.ledger_ns = counters.ledger_ns.saturating_sub(after_ns);
            counters.charged_ns = counters.charged_ns.saturating_sub(after_ns);
        }
        if has(cpu_task_flags::WAITING)
            && let Some(waiting_ns) = since(record.queued_raw_ns)
        {
            counters.run_queue_wait_ns += waiting_ns.saturating_sub(late_ns);
        }
        counters
    }
}

/// Divides CPU time into user and system time as the kernel's `cputime_adjust()` does for
/// `/proc/PID/stat`: the time is exact, the proportion is sampled by ticks, and neither part
/// ever decreases.
fn split(cpu_ns: u64, sampled: (u64, u64), last: (u64, u64)) -> (u64, u64) {
    if last.0 + last.1 >= cpu_ns {
        return last;
    }
    let system = match sampled {
        (_, 0) => 0,
        (0, _) => cpu_ns,
        (user, system) => {
            let sum = u128::from(user) + u128::from(system);
            (u128::from(system) * u128::from(cpu_ns) / sum) as u64
        }
    };
    // at most one of the two bounds can be hit
    let system = system.clamp(last.1, cpu_ns - last.0);
    (cpu_ns - system, system)
}

/// The next counters after `last`: never less, and no more time than `longest_ns` since
/// `baseline`. What exceeds that is reported in the next window.
pub(super) fn advance(
    last: &CpuCounters,
    now: &CpuCounters,
    baseline: &CpuCounters,
    longest_ns: u64,
) -> CpuCounters {
    let bound = |now: u64, last: u64, baseline: u64| {
        now.min(baseline.saturating_add(longest_ns)).max(last)
    };
    let mut next = counters::max(last, now);
    next.ledger_ns = bound(now.ledger_ns, last.ledger_ns, baseline.ledger_ns);
    next.charged_ns = bound(now.charged_ns, last.charged_ns, baseline.charged_ns);
    next.run_queue_wait_ns =
        bound(now.run_queue_wait_ns, last.run_queue_wait_ns, baseline.run_queue_wait_ns);
    (next.user_ns, next.system_ns) =
        split(next.ledger_ns, (now.user_ns, now.system_ns), (last.user_ns, last.system_ns));
    next
}

impl CpuReading {
    fn new(record: &CpuCpuRecord, walk: &WalkTimes) -> Self {
        let has = |flag| record.flags & flag != 0;
        let idle_ns = match walk.scheduler_offset_ns {
            _ if !has(cpu_cpu_flags::HAS_IDLE) => None,
            _ if !has(cpu_cpu_flags::IDLE_LACKS_CLOCK_OFFSET) => Some(record.idle_ns),
            // Without the offset, this CPU's idle time shows once it is idle again.
            offset => offset.map(|offset| record.idle_ns.wrapping_add(offset)),
        };
        let idle_ns = match has(cpu_cpu_flags::IDLE_HOLDS_INTERRUPTED) {
            true => idle_ns.map(|ns| ns.wrapping_sub(record.interrupted_ns)),
            false => idle_ns,
        };
        Self { cpu: record.cpu, idle_ns, interrupted_ns: record.interrupted_ns }
    }
}

impl KnownCpu {
    fn in_window(&self) -> CpuTime {
        let ns = |now: u64, before: u64| Duration::from_nanos(now.saturating_sub(before));
        CpuTime {
            cpu: self.last.cpu,
            idle: self.last.idle_ns.zip(self.baseline.idle_ns).map(|(now, before)| ns(now, before)),
            interrupted: ns(self.last.interrupted_ns, self.baseline.interrupted_ns),
        }
    }
}

impl Cpu {
    /// As with the default options, for walks from memory.
    #[cfg(feature = "__bench")]
    pub(crate) fn without_kernel() -> Self {
        Self {
            object: None,
            accounting: CpuAccounting::Ledger,
            list_threads: false,
            per_cpu_offsets: [0; 3],
            slots: 1,
            has_wait: false,
            online_cpus: 1,
            cpus: Vec::new(),
            threads: Threads::default(),
        }
    }

    fn add_cpu(&mut self, now: CpuReading) {
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

    fn has_idle(&self) -> bool {
        !self.cpus.is_empty() && self.cpus.iter().all(|cpu| cpu.last.idle_ns.is_some())
    }

    fn switches(&self) -> bool {
        self.accounting == CpuAccounting::SchedSwitch
    }
}

/// CPU time of a process that eBPF does not show, from `/proc`; `None` if it is gone.
fn from_procfs(pid: u32) -> Option<CpuCounters> {
    let process = Process::new(i32::try_from(pid).ok()?).ok()?;
    let stat = process.stat().ok()?;
    let tick_ns = 1_000_000_000 / procfs::ticks_per_second();
    let mut sum = CpuCounters {
        user_ns: stat.utime * tick_ns,
        system_ns: stat.stime * tick_ns,
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
        let offsets = kernel.per_cpu_offsets(["runqueues", "root_cpuacct_cpuusage", "steal_time"]);
        let per_cpu_offsets = match offsets {
            [Some(run_queues), cpuacct, steal] => {
                [run_queues, cpuacct.unwrap_or_default(), steal.unwrap_or_default()]
            }
            _ => [0; 3],
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
            online_cpus: online_cpus()?,
            cpus: Vec::new(),
            threads: Threads::default(),
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
        let [run_queues, cpuacct, steal] = self.per_cpu_offsets;
        Ok(WalkPart::built_in("cpu_on")
            .with("cpu_account_switches", u8::from(self.switches()))
            .with("cpu_slot_mask", self.slots - 1)
            .with("cpu_runqueues_offset", run_queues)
            .with("cpu_cpuacct_offset", cpuacct)
            .with("cpu_steal_time_offset", steal)
            .sharing(self.object.as_ref().map(Object::map_handles).unwrap_or_default()))
    }

    fn begin_walk(&mut self, _: crate::collect::collector::Read) -> Result<()> {
        self.threads.begin_walk();
        Ok(())
    }

    fn is_system_record(kind: u16) -> bool {
        u32::from(kind) == cpu_kind::CPU
    }

    fn system_record(&mut self, _: u16, record: &[u8], walk: &WalkTimes) -> Result<()> {
        let record = Record { kind: 0, bytes: record }.get()?;
        self.add_cpu(CpuReading::new(record, walk));
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
        let own = CpuCounters::of_task(record, walk);
        reading.add_task(&own, &CpuCounters::of(&record.dead));
        reading.gauges.threads += 1;
        reading.gauges.is_single = reading.gauges.threads == 1 && record.dead.sum_exec_ns == 0;
        if self.list_threads {
            let running = record.flags & cpu_task_flags::RUNNING != 0;
            self.threads.add(task, own, running.then_some(record.read_at_ns));
        }
        Ok(())
    }

    fn end_walk(&mut self, walk: &WalkTimes, processes: &mut Readings<'_, Self>) -> Result<()> {
        for &index in processes.hidden {
            if let Some(counters) = from_procfs(processes.ids[index].pid) {
                processes.readings[index].counters = counters;
            }
        }
        if self.list_threads {
            self.threads.end_walk(walk);
        }
        // CPUs come and go
        self.online_cpus = online_cpus()?;
        Ok(())
    }

    fn advance(&self, progress: &Progress<'_, Self>, now: &Reading<Self>) -> CpuCounters {
        let walk = progress.walk;
        let window_ns = walk.monotonic_ns.saturating_sub(walk.window_start_ns);
        let age_ns = walk.boottime_ns.saturating_sub(progress.start_time_ns);
        let parallel = match now.gauges.is_single {
            true => 1,
            false => self.online_cpus as u64,
        };
        // What a process used before it was first seen may be of any time of its life.
        let time_ns = if progress.is_new { age_ns } else { window_ns.min(age_ns) };
        let longest_ns = time_ns.saturating_mul(parallel);
        advance(progress.last, &now.counters, progress.baseline, longest_ns)
    }

    fn ended(&self, ended: &Ended<'_>) -> Option<Reading<Self>> {
        let mut counters = CpuCounters::of(&ended.record.cpu.totals);
        if let Some(settled) = ended.settled {
            let mut now = CpuCounters::of(&settled.cpu);
            now.charged_ns = counters.charged_ns;
            counters = counters::max(&counters, &now);
        }
        counters = counters.divided();
        let is_single = ended.record.threads == 1;
        Some(Reading { counters, gauges: CpuGauges { threads: 0, is_single } })
    }

    fn is_reported(reported: &CpuCounters, all: &CpuCounters) -> bool {
        // user and system time were divided before: one of them may never reach the final figure
        let (user_ns, system_ns) = (reported.user_ns, reported.system_ns);
        counters::is_zero(&counters::subtract(&CpuCounters { user_ns, system_ns, ..*all }, reported))
    }

    fn overflow(record: &ProcessOverflowRecord) -> CpuCounters {
        CpuCounters::of(&record.cpu).divided()
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
            cpus: self.cpus.iter().map(KnownCpu::in_window).collect(),
            online_cpus: self.online_cpus,
            threads: self.threads.iter().map(|it| CpuThread::new(it, self.has_wait)).collect(),
        }
    }

    fn end_window(&mut self) {
        self.threads.rebase();
        for cpu in &mut self.cpus {
            cpu.baseline = cpu.last;
        }
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
                self.has_idle(),
                "idle",
                "iter/task: rq->rq_cpu_time, or root_cpuacct_cpuusage",
            ),
            Source::new("exited", "tp_btf/sched_process_free: task->signal"),
        ]
    }

    fn degraded(&self) -> Vec<Degraded> {
        let wait = Degraded::when(
            !self.has_wait,
            "run_queue_wait",
            "the kernel lacks CONFIG_SCHED_INFO",
        );
        let idle = Degraded::when(
            !self.has_idle(),
            "idle",
            "the kernel lacks CONFIG_SCHEDSTATS, and CONFIG_CGROUP_CPUACCT or per-CPU variables \
             in BTF; or the reader's PID namespace hides kernel threads",
        );
        wait.into_iter().chain(idle).collect()
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
mod tests {
    use super::*;

    #[test]
    fn a_time_that_was_divided_differently_before_is_reported() {
        let of = |user_ns, system_ns, ledger_ns| CpuCounters {
            ledger_ns,
            user_ns,
            system_ns,
            ..CpuCounters::default()
        };
        // all in user mode so far; by the final record most was in the kernel
        let (last, all) = (of(80, 0, 80), of(10, 90, 100));
        let next = advance(&last, &all, &CpuCounters::default(), 1000);
        assert_eq!(next, of(80, 20, 100));
        assert!(Cpu::is_reported(&next, &all));
        let bounded = advance(&last, &all, &CpuCounters::default(), 90);
        assert!(!Cpu::is_reported(&bounded, &all));
    }
}
