//! Threads alive, with the baselines of their counters. Pure: no system access.

use super::{
    decode::{LiveThread, Totals},
    record::task_flags,
};
use crate::{Comm, ProcessId, ThreadId, ledger::Totals as _};

/// Those gone leave their time to their process.
#[derive(Debug, Default)]
pub(super) struct Threads(Vec<KnownThread>);

#[derive(Clone, Debug)]
pub(super) struct KnownThread {
    pub(super) id: ThreadId,
    pub(super) process: ProcessId,
    pub(super) comm: Comm,
    pub(super) running_at_ns: Option<u64>,
    last: Totals,
    baseline: Totals,
}

impl KnownThread {
    /// Counters since the window began.
    pub(super) fn counters(&self) -> Totals {
        self.last.minus(&self.baseline)
    }
}

impl Threads {
    pub(super) fn rebase(&mut self) {
        for thread in &mut self.0 {
            thread.baseline = thread.last;
        }
    }

    pub(super) fn iter(&self) -> impl Iterator<Item = &KnownThread> {
        self.0.iter()
    }

    /// Takes in who is alive, in ascending order of tid.
    pub(super) fn live(&mut self, threads: Vec<LiveThread>) {
        let before = std::mem::take(&mut self.0);
        let mut before = before.into_iter().peekable();
        for LiveThread { record, totals } in threads {
            let id = record.about.thread();
            while before.next_if(|known| known.id < id).is_some() {}
            let (last, baseline) = (before.next_if(|known| known.id == id))
                .map_or_else(Default::default, |known| (known.last, known.baseline));
            let running = record.has(task_flags::RUNNING_NOW);
            self.0.push(KnownThread {
                id,
                process: record.about.process(),
                comm: record.about.comm(),
                running_at_ns: running.then_some(record.running_at_ns),
                last: last.advance(&totals),
                baseline,
            });
        }
    }
}
