use std::{sync::Arc, time::Duration};

use super::{
    CpuAccounting,
    decode::Totals,
    threads::KnownThread,
};
use crate::{Comm, Losses, ProcessId, ProcessInfo, Provenance, ThreadId, Window, ledger::Known};

/// What every process did with the CPUs in a window.
///
/// All counters are of [`window`](CpuSnapshot::window); gauges are as of its end.
/// Nothing is left out: the CPU time of [`processes`](CpuSnapshot::processes) and
/// [`folded`](CpuSnapshot::folded) together with the idle time and the
/// interruptions of [`cpus`](CpuSnapshot::cpus) is the length of the window times
/// the number of CPUs.
#[derive(Clone, Debug)]
#[non_exhaustive]
pub struct CpuSnapshot {
    /// The time that the counters are of.
    pub window: Window,
    /// How the CPU time was measured.
    pub accounting: CpuAccounting,
    /// Processes in ascending order of [`ProcessId`], exited ones included.
    /// Those that lived and died between two snapshots are there too.
    pub processes: Vec<CpuProcess>,
    /// Threads alive at the end of the window, in ascending order of
    /// [`ThreadId`]; empty unless
    /// [`CpuProbeBuilder::threads`](super::CpuProbeBuilder::threads) asked for
    /// them. The time of threads that ended is in their process.
    pub threads: Vec<CpuThread>,
    /// Processes that exited beyond the bound of
    /// [`CpuProbeBuilder::max_exited`](super::CpuProbeBuilder::max_exited),
    /// together.
    pub folded: CpuFolded,
    /// The CPUs themselves, by number. Empty where the reader's PID namespace
    /// hides the kernel's threads.
    pub cpus: Vec<CpuTime>,
    /// CPUs online.
    pub online_cpus: usize,
    /// What could not be counted.
    pub losses: Losses,
    /// Where the figures come from on this kernel.
    pub provenance: Arc<Provenance>,
}

impl CpuSnapshot {
    /// The sum over all processes, with those that have exited.
    pub fn total(&self) -> CpuUsage {
        let rows = self.processes.iter().map(|process| process.usage);
        rows.fold(self.folded.usage, |sum, usage| sum.plus(&usage))
    }

    /// The idle time of all CPUs; `None` unless it is known of each.
    pub fn idle(&self) -> Option<Duration> {
        if self.cpus.is_empty() {
            return None;
        }
        self.cpus.iter().map(|cpu| cpu.idle).sum()
    }

    /// The time of all CPUs that went to interrupts and to a hypervisor.
    pub fn interrupted(&self) -> Duration {
        self.cpus.iter().map(|cpu| cpu.interrupted).sum()
    }
}

crate::process_rows!(CpuSnapshot: CpuProcess: CpuUsage);

/// One process.
#[derive(Clone, Debug, PartialEq)]
#[cfg_attr(feature = "serde", derive(serde::Serialize))]
#[non_exhaustive]
pub struct CpuProcess {
    /// Who it is, for all time.
    #[cfg_attr(feature = "serde", serde(flatten))]
    pub id: ProcessId,
    /// Its name, its parent, whether it has exited and more.
    #[cfg_attr(feature = "serde", serde(flatten))]
    pub info: ProcessInfo,
    /// What it did with the CPUs in the window.
    #[cfg_attr(feature = "serde", serde(flatten))]
    pub usage: CpuUsage,
}

impl CpuProcess {
    pub(super) fn new(known: &Known<Totals>, accounting: CpuAccounting, has_wait: bool) -> Self {
        Self {
            id: known.id,
            info: known.info,
            usage: CpuUsage::new(&known.counters(), accounting, has_wait),
        }
    }
}

/// One thread.
#[derive(Clone, Debug, PartialEq)]
#[cfg_attr(feature = "serde", derive(serde::Serialize))]
#[non_exhaustive]
pub struct CpuThread {
    /// Who it is, for all time.
    #[cfg_attr(feature = "serde", serde(flatten))]
    pub id: ThreadId,
    /// The process it belongs to.
    pub process: ProcessId,
    /// Its name.
    pub comm: Comm,
    /// If it was on a CPU: the moment that its counters are of, in ns of
    /// `CLOCK_MONOTONIC`. `None` if it was not, its counters stood still then.
    pub running_at_ns: Option<u64>,
    /// What it did with the CPUs in the window. Always by the ledger: switches
    /// are charged to processes.
    #[cfg_attr(feature = "serde", serde(flatten))]
    pub usage: CpuUsage,
}

impl CpuThread {
    pub(super) fn new(known: &KnownThread, has_wait: bool) -> Self {
        Self {
            id: known.id,
            process: known.process,
            comm: known.comm,
            running_at_ns: known.running_at_ns,
            usage: CpuUsage::new(&known.counters(), CpuAccounting::Ledger, has_wait),
        }
    }
}

/// Processes that exited, counted together.
#[derive(Clone, Debug, Default, PartialEq)]
#[cfg_attr(feature = "serde", derive(serde::Serialize))]
#[non_exhaustive]
pub struct CpuFolded {
    /// How many.
    pub processes: u64,
    /// What they did with the CPUs in the window.
    #[cfg_attr(feature = "serde", serde(flatten))]
    pub usage: CpuUsage,
}

/// One CPU.
#[derive(Clone, Copy, Debug, PartialEq)]
#[cfg_attr(feature = "serde", derive(serde::Serialize))]
#[non_exhaustive]
pub struct CpuTime {
    /// Its number.
    pub cpu: u32,
    /// Time without a task, waiting for I/O included. The window without
    /// the time of tasks: by `rq::rq_cpu_time` (kernels with
    /// `CONFIG_SCHEDSTATS`), or else by `root_cpuacct_cpuusage` and without
    /// interruptions; `None` where the kernel has neither.
    #[cfg_attr(feature = "serde", serde(rename = "idle_ns", serialize_with = "ns_option"))]
    pub idle: Option<Duration>,
    /// Time in which the scheduler's task clock stood still: stolen by a
    /// hypervisor, or spent in interrupts where the kernel accounts for them
    /// (`rq::clock` less `rq::clock_task`). It is nobody's CPU time.
    #[cfg_attr(feature = "serde", serde(rename = "interrupted_ns", serialize_with = "ns"))]
    pub interrupted: Duration,
}

/// What was done with the CPUs in a window.
///
/// ```
/// use std::time::Duration;
/// use ebpfmetrics::{CpuUsage, Window};
///
/// let window = Window { start_ns: 0, end_ns: 1_000_000_000 };
/// let usage = CpuUsage { cpu_time: Duration::from_millis(1500), ..CpuUsage::default() };
/// assert_eq!(usage.percent_of_one_cpu(window), 150.0);
/// assert_eq!(usage.percent_of_machine(window, 4), 37.5);
/// ```
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
#[cfg_attr(feature = "serde", derive(serde::Serialize))]
pub struct CpuUsage {
    /// Time on a CPU, exact to the ns, and up to this very moment for what is
    /// running. Time stolen by a hypervisor is not in it.
    ///
    /// Ledger: `sched_entity::sum_exec_runtime`, the first figure of
    /// `/proc/PID/schedstat`. SchedSwitch: its growth from switch to switch.
    #[cfg_attr(feature = "serde", serde(rename = "cpu_time_ns", serialize_with = "ns"))]
    #[doc(alias = "sum_exec_runtime")]
    pub cpu_time: Duration,
    /// The part in user mode. `task_struct::utime`, which most kernels sample at
    /// the tick, in proportion to the CPU time as `/proc/PID/stat` has it;
    /// user and system make up the CPU time of the ledger.
    #[cfg_attr(feature = "serde", serde(rename = "user_ns", serialize_with = "ns"))]
    #[doc(alias = "utime")]
    pub user: Duration,
    /// The part in the kernel. `task_struct::stime`, as `user`.
    #[cfg_attr(feature = "serde", serde(rename = "system_ns", serialize_with = "ns"))]
    #[doc(alias = "stime")]
    pub system: Duration,
    /// Times it gave up a CPU by itself. `task_struct::nvcsw`.
    #[doc(alias = "nvcsw")]
    pub voluntary_switches: u64,
    /// Times a CPU was taken from it. `task_struct::nivcsw`.
    #[doc(alias = "nivcsw")]
    pub involuntary_switches: u64,
    /// Time ready to run but waiting for a CPU, the run queue latency in total.
    /// `sched_info::run_delay`, the second figure of `/proc/PID/schedstat`, with
    /// threads that have exited; `None` on kernels without `CONFIG_SCHED_INFO`.
    #[cfg_attr(feature = "serde", serde(rename = "run_queue_wait_ns", serialize_with = "ns_option"))]
    #[doc(alias = "run_delay")]
    pub run_queue_wait: Option<Duration>,
    /// Times it moved from one CPU to another. `sched_entity::nr_migrations`.
    #[doc(alias = "nr_migrations")]
    pub migrations: u64,
}

impl CpuUsage {
    pub(super) fn new(totals: &Totals, accounting: CpuAccounting, has_wait: bool) -> Self {
        Self {
            cpu_time: Duration::from_nanos(match accounting {
                CpuAccounting::Ledger => totals.ledger_ns,
                CpuAccounting::SchedSwitch => totals.charged_ns,
            }),
            user: Duration::from_nanos(totals.user_ns),
            system: Duration::from_nanos(totals.system_ns),
            voluntary_switches: totals.voluntary_switches,
            involuntary_switches: totals.involuntary_switches,
            run_queue_wait: has_wait.then(|| Duration::from_nanos(totals.run_queue_wait_ns)),
            migrations: totals.migrations,
        }
    }

    /// CPU time in percent of one CPU: 100 for one busy thread, more for several.
    pub fn percent_of_one_cpu(&self, window: Window) -> f64 {
        window.percent(self.cpu_time)
    }

    /// CPU time in percent of all CPUs of the machine: at most 100.
    pub fn percent_of_machine(&self, window: Window, online_cpus: usize) -> f64 {
        self.percent_of_one_cpu(window) / online_cpus.max(1) as f64
    }

    /// The sum of both; a wait that only one of them has is taken as it is.
    #[must_use]
    pub fn plus(&self, other: &Self) -> Self {
        Self {
            cpu_time: self.cpu_time + other.cpu_time,
            user: self.user + other.user,
            system: self.system + other.system,
            voluntary_switches: self.voluntary_switches + other.voluntary_switches,
            involuntary_switches: self.involuntary_switches + other.involuntary_switches,
            run_queue_wait: match (self.run_queue_wait, other.run_queue_wait) {
                (Some(a), Some(b)) => Some(a + b),
                (a, b) => a.or(b),
            },
            migrations: self.migrations + other.migrations,
        }
    }
}

impl crate::Usage for CpuUsage {
    fn plus(&self, other: &Self) -> Self {
        CpuUsage::plus(self, other)
    }

    fn since(&self, earlier: &Self) -> Self {
        let time = |now: Duration, before| now.saturating_sub(before);
        Self {
            cpu_time: time(self.cpu_time, earlier.cpu_time),
            user: time(self.user, earlier.user),
            system: time(self.system, earlier.system),
            voluntary_switches: self.voluntary_switches.saturating_sub(earlier.voluntary_switches),
            involuntary_switches: (self.involuntary_switches)
                .saturating_sub(earlier.involuntary_switches),
            run_queue_wait: (self.run_queue_wait)
                .map(|now| time(now, earlier.run_queue_wait.unwrap_or_default())),
            migrations: self.migrations.saturating_sub(earlier.migrations),
        }
    }
}

#[cfg(feature = "serde")]
mod serialize {
    use std::time::Duration;

    use serde::{Serialize, Serializer, ser::SerializeStruct};

    use super::{CpuSnapshot, CpuTime};

    pub(super) fn ns<S: Serializer>(time: &Duration, serializer: S) -> Result<S::Ok, S::Error> {
        nanoseconds(time).serialize(serializer)
    }

    pub(super) fn ns_option<S: Serializer>(
        time: &Option<Duration>,
        serializer: S,
    ) -> Result<S::Ok, S::Error> {
        time.as_ref().map(nanoseconds).serialize(serializer)
    }

    /// 584 years fit.
    fn nanoseconds(time: &Duration) -> u64 {
        time.as_nanos() as u64
    }

    impl Serialize for CpuSnapshot {
        fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
            let idle = |cpu: &CpuTime| cpu.idle.as_ref().map(nanoseconds);
            let interrupted = |cpu: &CpuTime| nanoseconds(&cpu.interrupted);
            let mut json = serializer.serialize_struct("CpuSnapshot", 9)?;
            json.serialize_field("window", &self.window)?;
            json.serialize_field("accounting", &self.accounting)?;
            json.serialize_field("processes", &self.processes)?;
            json.serialize_field("threads", &self.threads)?;
            json.serialize_field("folded", &self.folded)?;
            json.serialize_field("online_cpus", &self.online_cpus)?;
            json.serialize_field("idle_ns", &self.cpus.iter().map(idle).collect::<Vec<_>>())?;
            json.serialize_field(
                "interrupted_ns",
                &self.cpus.iter().map(interrupted).collect::<Vec<_>>(),
            )?;
            json.serialize_field("losses", &self.losses)?;
            json.end()
        }
    }
}

#[cfg(feature = "serde")]
use serialize::{ns, ns_option};
