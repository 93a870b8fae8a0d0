//! From the kernel side's records to processes. Pure: no system access.

use super::record::{CountersRecord, FoldedRecord, ProcessRecord, RECORD_PROCESS, TallyRecord};
use crate::{
    Result,
    ledger::{Ending, Folded, Reading, Totals as _},
    records::{Records, cast, invalid},
};

/// Counters since the probe was loaded.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(super) struct Totals {
    pub(super) allocations: u64,
    pub(super) allocated_bytes: u64,
    pub(super) frees: u64,
    pub(super) freed_bytes: u64,
    pub(super) unknown_frees: u64,
    pub(super) cross_process_frees: u64,
    pub(super) released_bytes: u64,
    pub(super) freed_by_others: u64,
    pub(super) unseen_frees: u64,
    pub(super) untracked_bytes: u64,
}

/// Allocated since the probe was loaded, and not freed yet.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(super) struct Outstanding {
    pub(super) bytes: u64,
}

impl crate::ledger::Totals for Totals {
    type Gauges = Outstanding;

    fn zip(&self, other: &Self, f: impl Fn(u64, u64) -> u64) -> Self {
        Self {
            allocations: f(self.allocations, other.allocations),
            allocated_bytes: f(self.allocated_bytes, other.allocated_bytes),
            frees: f(self.frees, other.frees),
            freed_bytes: f(self.freed_bytes, other.freed_bytes),
            unknown_frees: f(self.unknown_frees, other.unknown_frees),
            cross_process_frees: f(self.cross_process_frees, other.cross_process_frees),
            released_bytes: f(self.released_bytes, other.released_bytes),
            freed_by_others: f(self.freed_by_others, other.freed_by_others),
            unseen_frees: f(self.unseen_frees, other.unseen_frees),
            untracked_bytes: f(self.untracked_bytes, other.untracked_bytes),
        }
    }
}

impl From<&CountersRecord> for Totals {
    fn from(record: &CountersRecord) -> Self {
        Self {
            allocations: record.allocations,
            allocated_bytes: record.allocated_bytes,
            frees: record.frees,
            freed_bytes: record.freed_bytes,
            unknown_frees: record.unknown_frees,
            cross_process_frees: record.cross_process_frees,
            released_bytes: record.released_bytes,
            freed_by_others: record.freed_by_others,
            unseen_frees: record.unseen_frees,
            untracked_bytes: record.untracked_bytes,
        }
    }
}

impl Totals {
    /// Of what the address map knows.
    fn outstanding(&self) -> Outstanding {
        // Counters are read one after another: what is freed meanwhile may be ahead.
        let gone = self.released_bytes.saturating_add(self.untracked_bytes);
        Outstanding { bytes: self.allocated_bytes.saturating_sub(gone) }
    }
}

/// Reads what a walk wrote: the processes in ascending order of id.
pub(super) fn decode(records: Records<'_>) -> Result<Vec<Reading<Totals>>> {
    let mut processes = Vec::with_capacity(records.len());
    for record in records {
        match record {
            (RECORD_PROCESS, record) => processes.push(reading(cast(record)?)),
            _ => return Err(invalid("of unknown kind")),
        }
    }
    // The kernel walks in the order of pids.
    if !processes.is_sorted_by_key(|process| process.id) {
        processes.sort_by_key(|process| process.id);
    }
    Ok(processes)
}

/// A process, or the final record of one.
pub(super) fn reading(record: &ProcessRecord) -> Reading<Totals> {
    let totals = Totals::from(&record.counters);
    Reading {
        id: record.about.process(),
        info: record.about.info(),
        totals,
        gauges: totals.outstanding(),
    }
}

/// The state at the last thread's exit.
pub(super) fn ending(record: &ProcessRecord) -> Ending<Totals> {
    Ending { ended_ns: record.ended_ns, last: reading(record) }
}

/// What one CPU folded of the processes that found no room.
pub(super) fn folded(record: &FoldedRecord) -> Folded<Totals> {
    Folded { processes: record.processes, totals: Totals::from(&record.counters) }
}

/// The sum of what happened on each CPU while it was idle.
pub(super) fn idle(cpus: &[TallyRecord]) -> Totals {
    let of_cpu = cpus.iter().map(|cpu| Totals::from(&cpu.counters));
    of_cpu.fold(Totals::default(), |sum, cpu| sum.plus(&cpu))
}

#[cfg(test)]
mod tests {
    use bytemuck::Zeroable;

    use super::*;
    use crate::{
        records::filled,
        task::{RecordHead, TaskAbout},
    };

    const STREAM: u16 = 4;

    fn counters(first: u64) -> CountersRecord {
        CountersRecord {
            allocations: first,
            allocated_bytes: first + 1,
            frees: first + 2,
            freed_bytes: first + 3,
            unknown_frees: first + 4,
            cross_process_frees: first + 5,
            released_bytes: first + 6,
            freed_by_others: first + 7,
            unseen_frees: first + 8,
            untracked_bytes: first + 9,
        }
    }

    fn totals(first: u64) -> Totals {
        Totals {
            allocations: first,
            allocated_bytes: first + 1,
            frees: first + 2,
            freed_bytes: first + 3,
            unknown_frees: first + 4,
            cross_process_frees: first + 5,
            released_bytes: first + 6,
            freed_by_others: first + 7,
            unseen_frees: first + 8,
            untracked_bytes: first + 9,
        }
    }

    fn process(kind: u16, tgid: u32) -> ProcessRecord {
        let size = size_of::<ProcessRecord>() as u32;
        ProcessRecord {
            head: RecordHead { kind, stream: STREAM, size },
            about: TaskAbout {
                tgid,
                tid: tgid,
                process_start_ns: u64::from(tgid) * 1000,
                ..TaskAbout::zeroed()
            },
            counters: counters(u64::from(tgid)),
            ended_ns: 77,
        }
    }

    fn decode(bytes: &[u8]) -> Result<Vec<Reading<Totals>>> {
        super::decode(filled(bytes)?.of(STREAM))
    }

    #[test]
    fn every_counter_is_its_own_and_processes_are_in_order() {
        let records = [process(RECORD_PROCESS, 20), process(RECORD_PROCESS, 10)];
        let processes = decode(bytemuck::cast_slice(&records)).unwrap();
        let read: Vec<_> = processes.iter().map(|p| (p.id.pid, p.totals)).collect();
        assert_eq!(read, [(10, totals(10)), (20, totals(20))]);
        assert_eq!(ending(&records[0]).ended_ns, 77);
        assert_eq!(ending(&records[0]).last.totals, totals(20));
        let sum = folded(&FoldedRecord { processes: 3, counters: counters(30) });
        assert_eq!(sum, Folded { processes: 3, totals: totals(30) });
    }

    #[test]
    fn outstanding_is_what_was_neither_released_nor_untracked() {
        let outstanding = |allocated_bytes, released_bytes, untracked_bytes| {
            let totals = Totals {
                allocated_bytes,
                released_bytes,
                untracked_bytes,
                ..Totals::default()
            };
            totals.outstanding().bytes
        };
        assert_eq!(outstanding(1000, 300, 20), 680);
        assert_eq!(outstanding(1000, 1000, 0), 0);
        assert_eq!(outstanding(1000, 1064, 0), 0);
    }

    #[test]
    fn idle_is_the_sum_over_cpus() {
        let cpu = |first| TallyRecord { counters: counters(first), born: 0, ended_threads: 0 };
        assert_eq!(idle(&[]), Totals::default());
        let sum = idle(&[cpu(100), cpu(1000)]);
        assert_eq!((sum.allocations, sum.untracked_bytes), (1100, 1118));
    }

    #[test]
    fn records_of_unexpected_kind_and_size_are_errors() {
        assert!(decode(bytemuck::bytes_of(&process(9, 1))).is_err());
        let size = size_of::<RecordHead>() as u32;
        let short = RecordHead { kind: RECORD_PROCESS, stream: STREAM, size };
        assert!(decode(bytemuck::bytes_of(&short)).is_err());
    }
}
