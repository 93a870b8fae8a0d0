//! Live threads, with the baselines of their counters. Pure: no system access.

use std::collections::HashMap;

use super::collector::{CpuCounters, Longest, advance};
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
    /// Of the walk that is under way.
    walked: Vec<(Task, CpuCounters, Option<u64>)>,
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
}

impl KnownThread {
    /// Counters since the window began.
    pub(super) fn in_window(&self) -> CpuCounters {
        counters::subtract(&self.last, &self.baseline)
    }
}

impl Threads {
    pub(super) fn begin_walk(&mut self) {
        self.walked.clear();
    }

    pub(super) fn add(&mut self, task: &Task, counters: CpuCounters, running_at_ns: Option<u64>) {
        self.walked.push((*task, counters, running_at_ns));
    }

    pub(super) fn iter(&self) -> impl Iterator<Item = &KnownThread> {
        self.known.iter()
    }

    pub(super) fn rebase(&mut self) {
        for thread in &mut self.known {
            thread.baseline = thread.last;
        }
    }

    /// Takes in the threads of a walk.
    pub(super) fn end_walk(&mut self, walk: &WalkTimes) {
        let before: HashMap<u64, &KnownThread> =
            self.known.iter().map(|thread| (thread.address, thread)).collect();
        let mut known: Vec<_> = (self.walked.iter())
            .map(|(task, counters, running_at_ns)| {
                let before = before.get(&task.address).filter(|before| {
                    // the same thread, or one that became the leader by exec
                    let renamed = task.is_leader && before.process == task.process;
                    before.id == task.thread || renamed
                });
                let (last, baseline) = before.map(|it| (it.last, it.baseline)).unwrap_or_default();
                let window_ns = walk.monotonic_ns.saturating_sub(walk.window_start_ns);
                // What it used before it was first seen may be of any time of its life.
                let age_ns = walk.boottime_ns.saturating_sub(task.thread.start_time_ns);
                let time_ns = if before.is_some() { window_ns } else { age_ns };
                let longest = Longest { running_ns: time_ns, waiting_ns: time_ns };
                KnownThread {
                    id: task.thread,
                    process: task.process,
                    comm: task.comm,
                    cgroup_id: task.cgroup_id,
                    running_at_ns: *running_at_ns,
                    address: task.address,
                    last: advance(&last, counters, &baseline, longest),
                    baseline,
                }
            })
            .collect();
        known.sort_by_key(|thread| thread.id);
        self.known = known;
    }
}
