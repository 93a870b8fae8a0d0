//! CPU counters of a task or process, and the rules by which they grow.

use bytemuck::{Pod, Zeroable};

use crate::{
    collect::{collector::WalkTimes, counters},
    record::{CpuTaskRecord, CpuTotalsRecord, cpu_task_flags},
};

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

/// The scheduler updates a running task at least at every tick, with `nohz_full` once a
/// second.
const MAX_RUNNING_NS: u64 = 4_000_000_000;

impl CpuCounters {
    pub(super) fn of(totals: &CpuTotalsRecord) -> Self {
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
    pub(super) fn divided(mut self) -> Self {
        (self.user_ns, self.system_ns) =
            split(self.ledger_ns, (self.user_ns, self.system_ns), (0, 0));
        self
    }

    /// Of one task alone, as of the end of the window.
    pub(super) fn of_task(record: &CpuTaskRecord, walk: &WalkTimes) -> Self {
        let has = |flag| record.flags & flag != 0;
        // The task was read after the window ended; the reader may have been preempted.
        let late_ns = record.read_at_ns.saturating_sub(walk.monotonic_ns);
        let since = |raw_ns| since(raw_ns, walk);
        let mut counters = Self { charged_ns: 0, ..Self::of(&record.own) };
        if has(cpu_task_flags::RUNNING) {
            let running_ns =
                since(record.running_raw_ns).filter(|ns| *ns < MAX_RUNNING_NS).unwrap_or(0);
            counters.ledger_ns += running_ns;
            if has(cpu_task_flags::SWITCHED_IN) {
                counters.charged_ns = counters.ledger_ns.saturating_sub(record.switched_in_ns);
            }
            let after_ns = ran_after_window_ns(record, walk);
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

/// Time since a moment on the scheduler's clock. Without the offset of the clocks a running
/// task is at most a tick behind.
fn since(raw_ns: u64, walk: &WalkTimes) -> Option<u64> {
    let ns = raw_ns.wrapping_sub(walk.scheduler_offset_ns?);
    // a start on another clock, or one that is being set
    Some(ns).filter(|ns| *ns <= i64::MAX as u64)
}

/// How long a running task has run since the end of the window: not before it was switched
/// in.
pub(super) fn ran_after_window_ns(record: &CpuTaskRecord, walk: &WalkTimes) -> u64 {
    let late_ns = record.read_at_ns.saturating_sub(walk.monotonic_ns);
    let arrived_ns = match record.arrived_raw_ns {
        0 => None,
        raw_ns => since(raw_ns, walk),
    };
    late_ns.min(arrived_ns.unwrap_or(0))
}

/// Divides CPU time into user and system time as the kernel's `cputime_adjust()` does for
/// `/proc/PID/stat`: the time is exact, the proportion is sampled by ticks, and neither part
/// ever decreases.
pub(super) fn split(cpu_ns: u64, sampled: (u64, u64), last: (u64, u64)) -> (u64, u64) {
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

/// The most time that a process or thread can have since its baseline.
#[derive(Clone, Copy, Debug)]
pub(super) struct Longest {
    pub(super) running_ns: u64,
    pub(super) waiting_ns: u64,
}

/// The next counters after `last`: never less, and no more time than `longest` since
/// `baseline`. What exceeds that is reported in the next window.
pub(super) fn advance(
    last: &CpuCounters,
    now: &CpuCounters,
    baseline: &CpuCounters,
    longest: Longest,
) -> CpuCounters {
    let bound = |now: u64, last: u64, baseline: u64, longest_ns: u64| {
        now.min(baseline.saturating_add(longest_ns)).max(last)
    };
    let Longest { running_ns, waiting_ns } = longest;
    let mut next = counters::max(last, now);
    next.ledger_ns = bound(now.ledger_ns, last.ledger_ns, baseline.ledger_ns, running_ns);
    next.charged_ns = bound(now.charged_ns, last.charged_ns, baseline.charged_ns, running_ns);
    next.run_queue_wait_ns = bound(
        now.run_queue_wait_ns,
        last.run_queue_wait_ns,
        baseline.run_queue_wait_ns,
        waiting_ns,
    );
    (next.user_ns, next.system_ns) =
        split(next.ledger_ns, (now.user_ns, now.system_ns), (last.user_ns, last.system_ns));
    next
}
