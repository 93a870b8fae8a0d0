//! Live threads, with the baselines of their counters. Pure: no system access.

use std::collections::HashMap;

use super::counters::{CpuCounters, Longest, advance, split};
use crate::{
    collect::{
        collector::{Task, WalkTimes},
        counters,
    },
    process::{Comm, ProcessId, ThreadId},
};

/// Threads that end leave their time to their process.
#[derive(Debug, Default)]
pub(super) struct Threads {
    known: Vec<KnownThread>,
    /// Places in `known`, by address.
    places: HashMap<u64, usize>,
    /// Of the walk that is under way.
    walked: Vec<KnownThread>,
    processes: HashMap<ProcessId, KnownProcess>,
}

/// CPU time of a process as it is reported.
#[derive(Clone, Copy, Debug, Default)]
struct KnownProcess {
    last_ns: u64,
    baseline_ns: u64,
}

#[derive(Clone, Debug)]
pub(super) struct KnownThread {
    pub(super) id: ThreadId,
    pub(super) process: ProcessId,
    pub(super) comm: Comm,
    pub(super) cgroup_id: u64,
    pub(super) running_at_ns: Option<u64>,
    /// Of its `task_struct`: exec gives the thread that calls it the leader's id, but its
    /// counters go on.
    address: u64,
    last: CpuCounters,
    baseline: CpuCounters,
    /// As they were reported before this walk.
    reported: CpuCounters,
    /// What it used may be of a time before the window.
    is_older: bool,
}

impl KnownThread {
    /// Whether this is the same thread, or one that became the leader by exec.
    fn is(&self, task: &Task) -> bool {
        let renamed = task.is_leader && self.process == task.process;
        self.address == task.address && (self.id == task.thread || renamed)
    }

    /// Leaves time that was not reported yet to a later window; returns how much.
    fn cut(&mut self, excess_ns: u64) -> u64 {
        let cut_ns = excess_ns.min(self.last.ledger_ns - self.reported.ledger_ns);
        self.last.ledger_ns -= cut_ns;
        let (now, before) = (&self.last, &self.reported);
        (self.last.user_ns, self.last.system_ns) =
            split(now.ledger_ns, (now.user_ns, now.system_ns), (before.user_ns, before.system_ns));
        cut_ns
    }

    /// Counters since the window began.
    pub(super) fn in_window(&self) -> CpuCounters {
        counters::subtract(&self.last, &self.baseline)
    }
}

impl Threads {
    pub(super) fn begin_walk(&mut self) {
        self.walked.clear();
    }

    fn find(&self, task: &Task) -> Option<&KnownThread> {
        let place = *self.places.get(&task.address)?;
        self.known.get(place).filter(|known| known.is(task))
    }

    /// Takes in a thread of a walk; returns its counters as they are reported.
    pub(super) fn add(
        &mut self,
        task: &Task,
        counters: &CpuCounters,
        running_at_ns: Option<u64>,
        walk: &WalkTimes,
    ) -> CpuCounters {
        let before = self.find(task);
        let (last, baseline) = before.map(|it| (it.last, it.baseline)).unwrap_or_default();
        let window_ns = walk.monotonic_ns.saturating_sub(walk.window_start_ns);
        let age_ns = walk.boottime_ns.saturating_sub(task.thread.start_time_ns);
        // What it used before it was first seen may be of any time of its life.
        let time_ns = if before.is_some() { window_ns.min(age_ns) } else { age_ns };
        let longest = Longest { running_ns: time_ns, waiting_ns: time_ns };
        let last = advance(&last, counters, &baseline, longest);
        self.walked.push(KnownThread {
            id: task.thread,
            process: task.process,
            comm: task.comm,
            cgroup_id: task.cgroup_id,
            running_at_ns,
            address: task.address,
            last,
            baseline,
            reported: before.map(|it| it.last).unwrap_or_default(),
            is_older: before.is_none() && age_ns > window_ns,
        });
        last
    }

    pub(super) fn iter(&self) -> impl Iterator<Item = &KnownThread> {
        self.known.iter()
    }

    pub(super) fn rebase(&mut self) {
        for thread in &mut self.known {
            thread.baseline = thread.last;
        }
        for process in self.processes.values_mut() {
            process.baseline_ns = process.last_ns;
        }
    }

    /// Replaces the threads of the previous walk, and makes them fit into their processes.
    /// `process` is a process with the CPU time of this walk, which may be lowered, and the
    /// most that it can have used in the window.
    pub(super) fn end_walk<'a>(
        &mut self,
        processes: impl Iterator<Item = (ProcessId, &'a mut u64, u64)>,
    ) {
        self.known = std::mem::take(&mut self.walked);
        self.known.sort_by_key(|thread| (thread.process, thread.id));
        let mut before = std::mem::take(&mut self.processes);
        let mut rest = &mut self.known[..];
        for (id, ledger_ns, capacity_ns) in processes {
            let others = rest.partition_point(|thread| thread.process < id);
            let own = others + rest[others..].partition_point(|thread| thread.process == id);
            let (head, tail) = std::mem::take(&mut rest).split_at_mut(own);
            rest = tail;
            let threads = &mut head[others..];
            if threads.is_empty() {
                continue;
            }
            let mut process = before.remove(&id).unwrap_or_default();
            if threads.iter().any(|thread| thread.is_older) {
                process.last_ns = *ledger_ns;
            } else {
                // Each may have time left from earlier windows, and all together then more
                // than the CPUs have in this one.
                *ledger_ns -= fit(threads, capacity_ns);
                let most_ns = process.baseline_ns.saturating_add(capacity_ns);
                process.last_ns = process.last_ns.max((*ledger_ns).min(most_ns));
                // A thread that was released in the middle of the walk is in no figure of its
                // process now. Until it is, the process shows less than its other threads.
                fit(threads, process.last_ns - process.baseline_ns);
            }
            self.processes.insert(id, process);
        }
        self.known.sort_by_key(|thread| thread.id);
        self.places.clear();
        let places = self.known.iter().enumerate();
        self.places.extend(places.map(|(place, known)| (known.address, place)));
    }
}

/// Leaves what exceeds `most_ns` in the window to later windows; returns how much.
fn fit(threads: &mut [KnownThread], most_ns: u64) -> u64 {
    let sum_ns: u64 = threads.iter().map(|thread| thread.in_window().ledger_ns).sum();
    let excess_ns = sum_ns.saturating_sub(most_ns);
    let mut left_ns = excess_ns;
    for thread in threads.iter_mut().take_while(|_| excess_ns > 0) {
        left_ns -= thread.cut(left_ns);
    }
    excess_ns - left_ns
}
