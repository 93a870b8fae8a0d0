//! Live threads, with the baselines of their counters. Pure: no system access.

use std::collections::HashMap;

use super::counters::{CpuCounters, Longest, advance};
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
    /// Whether this is the same thread, or one that became the leader by exec.
    fn is(&self, task: &Task) -> bool {
        let renamed = task.is_leader && self.process == task.process;
        self.address == task.address && (self.id == task.thread || renamed)
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
    }

    /// Replaces the threads of the previous walk.
    pub(super) fn end_walk(&mut self) {
        self.known = std::mem::take(&mut self.walked);
        self.known.sort_by_key(|thread| thread.id);
        self.places.clear();
        let places = self.known.iter().enumerate();
        self.places.extend(places.map(|(place, known)| (known.address, place)));
    }
}
