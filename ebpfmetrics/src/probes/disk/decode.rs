//! From the kernel side's records about tasks to processes. Pure: no system access.

use super::record::{HAS_IO_ACCOUNTING, ProcessRecord, RECORD_TASK, TaskRecord, process_flags};
use crate::{
    Result,
    ledger::{Ending, Reading, TaskTotals, sum_up},
    records::{Records, cast, invalid},
    task::TaskAbout,
};

/// Everything that one walk showed.
#[derive(Debug, Default)]
pub(super) struct Walked {
    /// Processes in ascending order of id.
    pub(super) processes: Vec<Reading<Totals>>,
    /// Whether the kernel accounts for what tasks dirty.
    pub(super) has_io_accounting: bool,
}

/// Counters since the start of a task or process.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(super) struct Totals {
    pub(super) dirtied_bytes: u64,
    pub(super) cancelled_bytes: u64,
}

impl crate::ledger::Totals for Totals {
    type Gauges = ();

    fn zip(&self, other: &Self, f: impl Fn(u64, u64) -> u64) -> Self {
        Self {
            dirtied_bytes: f(self.dirtied_bytes, other.dirtied_bytes),
            cancelled_bytes: f(self.cancelled_bytes, other.cancelled_bytes),
        }
    }
}

pub(super) fn decode(records: Records<'_>) -> Result<Walked> {
    let mut tasks: Vec<&TaskRecord> = Vec::with_capacity(records.len());
    for record in records {
        match record {
            (RECORD_TASK, record) => tasks.push(cast(record)?),
            _ => return Err(invalid("of unknown kind")),
        }
    }
    let leaders = tasks.iter().filter(|task| task.about.is_leader());
    let mut processes: Vec<_> =
        leaders.map(|leader| reading(&leader.about, Totals::default())).collect();
    sum_up(
        &mut processes,
        tasks.iter().map(|task| TaskTotals {
            process: task.about.process(),
            is_leader: task.about.is_leader(),
            own: Totals {
                dirtied_bytes: task.dirtied_bytes,
                cancelled_bytes: task.cancelled_bytes,
            },
            dead: Totals {
                dirtied_bytes: task.dead_dirtied_bytes,
                cancelled_bytes: task.dead_cancelled_bytes,
            },
        }),
    );
    let has_io_accounting = tasks.first().is_some_and(|task| task.flags & HAS_IO_ACCOUNTING != 0);
    Ok(Walked { processes, has_io_accounting })
}

fn reading(about: &TaskAbout, totals: Totals) -> Reading<Totals> {
    Reading { id: about.process(), info: about.info(), totals, gauges: () }
}

impl ProcessRecord {
    /// These are its final counters.
    pub(super) fn is_final(&self) -> bool {
        self.flags & process_flags::RELEASED != 0
    }

    pub(super) fn ended(&self) -> Reading<Totals> {
        let totals = Totals {
            dirtied_bytes: self.dirtied_bytes,
            cancelled_bytes: self.cancelled_bytes,
        };
        reading(&self.about, totals)
    }

    /// Its exit, if that was seen; the counters of before it are what is known.
    pub(super) fn ending(&self) -> Option<Ending<Totals>> {
        let ending = Ending { ended_ns: self.ended_ns, last: reading(&self.about, Totals::default()) };
        (self.flags & process_flags::EXITED != 0).then_some(ending)
    }
}

#[cfg(test)]
mod tests {
    use bytemuck::Zeroable;

    use super::*;
    use crate::{records::filled, task::RecordHead};

    fn task(tgid: u32, tid: u32, figures: [u64; 4]) -> TaskRecord {
        let [dirtied_bytes, cancelled_bytes, dead_dirtied_bytes, dead_cancelled_bytes] = figures;
        TaskRecord {
            head: RecordHead { kind: RECORD_TASK, stream: 0, size: size_of::<TaskRecord>() as u32 },
            about: TaskAbout { tgid, tid, ..TaskAbout::zeroed() },
            dirtied_bytes,
            cancelled_bytes,
            dead_dirtied_bytes,
            dead_cancelled_bytes,
            flags: HAS_IO_ACCOUNTING,
        }
    }

    #[test]
    fn threads_and_the_dead_add_up_each_in_its_own_counter() {
        let tasks = [task(7, 7, [1, 20, 300, 4000]), task(7, 8, [2, 30, 300, 4000])];
        let walked = decode(filled(bytemuck::cast_slice(&tasks)).unwrap().of(0)).unwrap();
        assert!(walked.has_io_accounting);
        let [process] = walked.processes.as_slice() else { panic!("{walked:?}") };
        assert_eq!(process.totals, Totals { dirtied_bytes: 303, cancelled_bytes: 4050 });
    }

    #[test]
    fn an_unknown_kind_is_an_error() {
        let mut other = task(7, 7, [0; 4]);
        other.head.kind = 9;
        assert!(decode(filled(bytemuck::bytes_of(&other)).unwrap().of(0)).is_err());
    }

    #[test]
    fn only_a_release_is_final_and_only_an_exit_is_an_end() {
        let with = |flags| ProcessRecord { flags, ..ProcessRecord::zeroed() };
        assert!(!with(0).is_final() && with(0).ending().is_none());
        let exited = with(process_flags::EXITED);
        assert!(!exited.is_final() && exited.ending().is_some());
        assert!(with(process_flags::EXITED | process_flags::RELEASED).is_final());
    }
}
