use std::{ops::AddAssign, time::Duration};

use super::{CpuAccounting, counters::CpuCounters};
#[cfg(feature = "serde")]
use crate::snapshot::duration_ns;
use crate::snapshot::{Usage, Window, add_known_duration, known_duration_since};

/// CPU usage over a window. Usages can be added.
///
/// ```
/// use std::time::Duration;
/// use ebpfmetrics::{CpuUsage, Window};
///
/// let window = Window { start_ns: 0, end_ns: 1_000_000_000 };
/// let mut usage = CpuUsage::default();
/// usage.cpu_time = Duration::from_millis(1500);
/// assert_eq!(usage.percent_of_one_cpu(window), 150.0);
/// assert_eq!(usage.percent_of_machine(window, 4), 37.5);
/// ```
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
#[cfg_attr(feature = "serde", derive(serde::Serialize, serde::Deserialize), serde(default))]
#[non_exhaustive]
pub struct CpuUsage {
    /// Time on a CPU, exact to the ns and up to the end of the window, including the time
    /// that a running task has not been charged for yet. Time stolen by a hypervisor is not
    /// included.
    ///
    /// Ledger: `sched_entity::sum_exec_runtime`, the first figure of `/proc/PID/schedstat`.
    /// SchedSwitch: its growth from switch to switch.
    #[cfg_attr(feature = "serde", serde(rename = "cpu_time_ns", with = "duration_ns"))]
    #[doc(alias = "sum_exec_runtime")]
    pub cpu_time: Duration,
    /// The part in user mode. `task_struct::utime`, which most kernels sample at the tick,
    /// scaled to the CPU time as `/proc/PID/stat` does; user and system time add up to the
    /// CPU time of the ledger.
    #[cfg_attr(feature = "serde", serde(rename = "user_ns", with = "duration_ns"))]
    #[doc(alias = "utime")]
    pub user: Duration,
    /// The part in the kernel. `task_struct::stime`, as `user`.
    #[cfg_attr(feature = "serde", serde(rename = "system_ns", with = "duration_ns"))]
    #[doc(alias = "stime")]
    pub system: Duration,
    /// Times that it gave up a CPU by itself. `task_struct::nvcsw`.
    #[doc(alias = "nvcsw")]
    pub voluntary_switches: u64,
    /// Times that a CPU was taken from it. `task_struct::nivcsw`.
    #[doc(alias = "nivcsw")]
    pub involuntary_switches: u64,
    /// Time that it was ready to run and waited for a CPU, including a wait in progress.
    /// `sched_info::run_delay`, the second figure of `/proc/PID/schedstat`, with threads that
    /// have exited. `None` on kernels without `CONFIG_SCHED_INFO`.
    #[cfg_attr(
        feature = "serde",
        serde(rename = "run_queue_wait_ns", with = "duration_ns::option")
    )]
    #[doc(alias = "run_delay")]
    pub run_queue_wait: Option<Duration>,
    /// Times that it moved from one CPU to another. `sched_entity::nr_migrations`.
    #[doc(alias = "nr_migrations")]
    pub migrations: u64,
}

impl CpuUsage {
    pub(super) fn new(counters: &CpuCounters, accounting: CpuAccounting, has_wait: bool) -> Self {
        Self {
            cpu_time: Duration::from_nanos(match accounting {
                CpuAccounting::Ledger => counters.ledger_ns,
                CpuAccounting::SchedSwitch => counters.charged_ns,
            }),
            user: Duration::from_nanos(counters.user_ns),
            system: Duration::from_nanos(counters.system_ns),
            voluntary_switches: counters.voluntary_switches,
            involuntary_switches: counters.involuntary_switches,
            run_queue_wait: has_wait.then(|| Duration::from_nanos(counters.run_queue_wait_ns)),
            migrations: counters.migrations,
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
}

impl AddAssign<&Self> for CpuUsage {
    fn add_assign(&mut self, more: &Self) {
        self.cpu_time += more.cpu_time;
        self.user += more.user;
        self.system += more.system;
        self.voluntary_switches += more.voluntary_switches;
        self.involuntary_switches += more.involuntary_switches;
        add_known_duration(&mut self.run_queue_wait, more.run_queue_wait);
        self.migrations += more.migrations;
    }
}

impl Usage for CpuUsage {
    fn since(&self, earlier: &Self) -> Self {
        let count = u64::saturating_sub;
        Self {
            cpu_time: self.cpu_time.saturating_sub(earlier.cpu_time),
            user: self.user.saturating_sub(earlier.user),
            system: self.system.saturating_sub(earlier.system),
            voluntary_switches: count(self.voluntary_switches, earlier.voluntary_switches),
            involuntary_switches: count(self.involuntary_switches, earlier.involuntary_switches),
            run_queue_wait: known_duration_since(self.run_queue_wait, earlier.run_queue_wait),
            migrations: count(self.migrations, earlier.migrations),
        }
    }
}

crate::usage_operators!(CpuUsage);
