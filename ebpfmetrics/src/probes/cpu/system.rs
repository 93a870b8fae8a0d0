use std::time::Duration;

use super::{CpuAccounting, CpuSnapshot, CpuUsage, threads::KnownThread};
use crate::process::{Comm, ProcessId, ThreadId};
#[cfg(feature = "serde")]
use crate::snapshot::duration_ns;

/// CPU figures of the whole machine in a window.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
#[cfg_attr(feature = "serde", derive(serde::Serialize, serde::Deserialize), serde(default))]
#[non_exhaustive]
pub struct CpuSystem {
    /// How the CPU time of processes was measured.
    pub accounting: CpuAccounting,
    /// The CPUs by number. Empty where the reader's PID namespace hides kernel threads.
    pub cpus: Vec<CpuTime>,
    /// Number of CPUs online at the end of the window.
    pub online_cpus: usize,
    /// Live threads in ascending order of [`ThreadId`]; empty unless
    /// [`CpuProbeBuilder::threads`](super::CpuProbeBuilder::threads) asks for them. The time
    /// of threads that ended is in their process.
    pub threads: Vec<CpuThread>,
}

impl CpuSystem {
    /// Idle time of all CPUs; `None` unless it is known for each.
    pub fn idle(&self) -> Option<Duration> {
        if self.cpus.is_empty() {
            return None;
        }
        self.cpus.iter().map(|cpu| cpu.idle).sum()
    }

    /// Time of all CPUs that went to interrupts and to a hypervisor.
    pub fn interrupted(&self) -> Duration {
        self.cpus.iter().map(|cpu| cpu.interrupted).sum()
    }
}

impl CpuSnapshot {
    /// Idle time of all CPUs, see [`CpuSystem::idle`].
    pub fn idle(&self) -> Option<Duration> {
        self.system.idle()
    }

    /// Time of all CPUs that went to interrupts and to a hypervisor.
    pub fn interrupted(&self) -> Duration {
        self.system.interrupted()
    }
}

/// One CPU.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
#[cfg_attr(feature = "serde", derive(serde::Serialize, serde::Deserialize))]
#[non_exhaustive]
pub struct CpuTime {
    /// Its number.
    pub cpu: u32,
    /// Time without a task, waiting for I/O included: the window without the time of tasks,
    /// by `rq::rq_cpu_time` (kernels with `CONFIG_SCHEDSTATS`) or by `root_cpuacct_cpuusage`
    /// and without interruptions. `None` where the kernel has neither.
    #[cfg_attr(feature = "serde", serde(rename = "idle_ns", with = "duration_ns::option"))]
    pub idle: Option<Duration>,
    /// Time in which the scheduler's task clock stood still: stolen by a hypervisor, or spent
    /// in interrupts where the kernel accounts for them (`rq::clock` less `rq::clock_task`).
    /// It is not part of any process's CPU time.
    #[cfg_attr(feature = "serde", serde(rename = "interrupted_ns", with = "duration_ns"))]
    pub interrupted: Duration,
    /// Time in hardware interrupts, by `kernel_cpustat` as in `/proc/stat`: measured where the
    /// kernel has `CONFIG_IRQ_TIME_ACCOUNTING`, else one timer tick per tick that hits one.
    /// `None` where the BTF does not have the variable.
    ///
    /// The kernel adds this and the next three up at timer ticks, and on an idle CPU when it
    /// wakes up. They are late by that much, and never more than the window.
    #[cfg_attr(feature = "serde", serde(rename = "irq_ns", with = "duration_ns::option"))]
    pub irq: Option<Duration>,
    /// Time in software interrupts. As `irq`.
    #[cfg_attr(feature = "serde", serde(rename = "softirq_ns", with = "duration_ns::option"))]
    pub softirq: Option<Duration>,
    /// Time that the hypervisor gave to others while this CPU had work. As `irq`; zero where
    /// the hypervisor does not report it.
    #[cfg_attr(feature = "serde", serde(rename = "steal_ns", with = "duration_ns::option"))]
    pub steal: Option<Duration>,
    /// Time that virtual CPUs ran on this one, nice ones included. It is also in the CPU time
    /// of their threads. As `irq`.
    #[cfg_attr(feature = "serde", serde(rename = "guest_ns", with = "duration_ns::option"))]
    pub guest: Option<Duration>,
}

/// One thread.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
#[cfg_attr(feature = "serde", derive(serde::Serialize, serde::Deserialize))]
#[non_exhaustive]
pub struct CpuThread {
    /// Identity of the thread.
    #[cfg_attr(feature = "serde", serde(flatten))]
    pub id: ThreadId,
    /// The process that it belongs to.
    pub process: ProcessId,
    /// Its name.
    pub comm: Comm,
    /// Cgroup of the thread, which may differ from that of its process.
    pub cgroup_id: Option<u64>,
    /// If it was on a CPU: the moment that its counters are of, in ns of `CLOCK_MONOTONIC`.
    /// `None` if it was not, because its counters stood still then.
    pub running_at_ns: Option<u64>,
    /// Its usage in the window. Always by the ledger: switches are charged to processes.
    #[cfg_attr(feature = "serde", serde(flatten))]
    pub usage: CpuUsage,
}

impl CpuThread {
    pub(super) fn new(known: &KnownThread, has_wait: bool) -> Self {
        Self {
            id: known.id,
            process: known.process,
            comm: known.comm,
            cgroup_id: (known.cgroup_id != 0).then_some(known.cgroup_id),
            running_at_ns: known.running_at_ns,
            usage: CpuUsage::new(&known.in_window(), CpuAccounting::Ledger, has_wait),
        }
    }
}
