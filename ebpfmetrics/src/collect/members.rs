//! Which processes are in the filter of a set while it runs: for jobs, which start with the
//! caller in the filter and go on without it.

use super::{engine::Engine, filter, table::STARTING_NS};
use crate::{
    error::Result,
    process::ProcessId,
    record::{ProcessCreatorRecord, ProcessEndedRecord, ProcessKey, ProcessLoss},
};

impl Engine {
    /// Takes processes out of the filter, and their rows out of the window. Their children stay
    /// in the filter; those that they start from now on are not added.
    pub(crate) fn exclude(&mut self, processes: &[ProcessId]) -> Result<()> {
        for process in processes {
            // the pid may belong to another process by now
            let listed: Option<u64> = self.base.lookup("filtered", &process.pid)?;
            if listed == Some(process.start_time_ns) {
                self.base.delete("filtered", &process.pid)?;
            }
        }
        let gone = self.table.remove(processes, &mut self.columns);
        self.base.delete_batch("ended", &gone)?;
        self.columns.iter_mut().try_for_each(|(_, column)| column.forget(&gone))
    }

    /// A process that has not been reaped, by its pid in the caller's PID namespace.
    pub(crate) fn process_of(&self, pid: u32) -> Result<Option<ProcessId>> {
        filter::process_of(pid, &self.base)
    }

    /// Processes that were started in the filter since the last read, each with its creator.
    pub(crate) fn creators(&self) -> Result<Vec<(ProcessId, ProcessId)>> {
        let creators: Vec<(ProcessKey, ProcessCreatorRecord)> =
            self.base.lookup_batch("creators")?;
        let ids =
            |(process, at): (ProcessKey, ProcessCreatorRecord)| (process.id(), at.creator.id());
        Ok(creators.into_iter().map(ids).collect())
    }

    /// Start of the last walk, `CLOCK_BOOTTIME`.
    pub(crate) fn walked_ns(&self) -> u64 {
        self.walk.boottime_ns
    }

    /// Number of processes that were started in the filter, from loading to the last walk.
    pub(crate) fn started(&self) -> u64 {
        let full = ProcessLoss::ALL.iter().position(|it| *it == ProcessLoss::CreatorTableFull);
        let unlisted = full.and_then(|at| self.losses.get(at)).copied();
        self.forks + unlisted.unwrap_or_default()
    }

    /// How long after its start a process ended. `None` if it has not ended, or if a read has
    /// already taken its final record.
    pub(crate) fn lifetime_ns(&self, process: ProcessId) -> Result<Option<u64>> {
        let record: Option<ProcessEndedRecord> =
            self.base.lookup("ended", &ProcessKey::from(process))?;
        // the start is on CLOCK_BOOTTIME, the end on CLOCK_MONOTONIC
        let suspended_ns = self.walk.boottime_ns.saturating_sub(self.walk.monotonic_ns);
        let ended_ns = record.map(|record| record.ended_ns).filter(|ended_ns| *ended_ns > 0);
        Ok(ended_ns.map(|ended_ns| (ended_ns + suspended_ns).saturating_sub(process.start_time_ns)))
    }

    /// Whether after a reset all processes in the filter have ended and nothing more will come
    /// of them.
    pub(crate) fn is_settled(&self) -> Result<bool> {
        if !self.table.ids().is_empty() {
            return Ok(false);
        }
        // Anything else in the map is a process whose release was not seen, or one that began
        // after the walk.
        let filtered: Vec<(u32, u64)> = self.base.lookup_batch("filtered")?;
        let is_new = |start_ns: u64| start_ns + STARTING_NS > self.walk.boottime_ns;
        Ok(!filtered.into_iter().any(|(_, start_ns)| is_new(start_ns)))
    }
}
