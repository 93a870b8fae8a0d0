//! From the kernel side's records to processes. Pure: no system access.

use ebpfmetrics::{
    Result,
    kit::{Ending, Folded, Reading, Records, cast, invalid},
};

use crate::{
    SyscallUsage,
    record::{FoldedRecord, ProcessRecord, RECORD_PROCESS},
};

/// Reads what a walk wrote: the processes in ascending order of id.
pub(crate) fn decode(records: Records<'_>) -> Result<Vec<Reading<SyscallUsage>>> {
    let mut processes = Vec::with_capacity(records.len());
    for record in records {
        match record {
            (RECORD_PROCESS, record) => processes.push(reading(cast(record)?)),
            _ => return Err(invalid("of unknown kind")),
        }
    }
    processes.sort_by_key(|process| process.id);
    Ok(processes)
}

/// A process, or the final record of one.
pub(crate) fn reading(record: &ProcessRecord) -> Reading<SyscallUsage> {
    Reading {
        id: record.about.process(),
        info: record.about.info(),
        totals: SyscallUsage { calls: record.calls, errors: record.errors },
        gauges: (),
    }
}

/// The state at the last thread's exit.
pub(crate) fn ending(record: &ProcessRecord) -> Option<Ending<SyscallUsage>> {
    Some(Ending { ended_ns: record.ended_ns, last: reading(record) })
}

/// What one CPU folded of the processes that found no room.
pub(crate) fn folded(record: &FoldedRecord) -> Folded<SyscallUsage> {
    let totals = SyscallUsage { calls: record.calls, errors: record.errors };
    Folded { processes: record.processes, totals }
}
