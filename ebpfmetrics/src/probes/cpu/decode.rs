//! From the iterator's records to processes, threads and CPUs. Pure: no system
//! access.

use super::record::{
    CpuRecord, EndingRecord, FoldedRecord, RECORD_CPU, RECORD_TASK, TaskRecord, cpu_flags,
    task_flags,
};
use crate::{
    Result,
    ledger::{Ending, Folded, Reading, TaskTotals, sum_up},
    records::{Records, cast, invalid},
};

/// Everything that one walk showed.
#[derive(Debug, Default)]
pub(super) struct Walked {
    /// Processes in ascending order of id.
    pub(super) processes: Vec<Reading<Totals>>,
    /// Threads in ascending order of tid, if they are wanted.
    pub(super) threads: Vec<LiveThread>,
    /// CPUs in no order.
    pub(super) cpus: Vec<CpuReading>,
    /// Whether the kernel tells how long tasks wait.
    pub(super) has_wait: bool,
}

#[derive(Clone, Debug)]
pub(super) struct LiveThread {
    pub(super) record: TaskRecord,
    pub(super) totals: Totals,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct CpuReading {
    pub(super) cpu: u32,
    pub(super) idle_ns: Option<u64>,
    pub(super) interrupted_ns: u64,
}

/// Counters since the start of a task or process.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(super) struct Totals {
    /// What the kernel's ledger says, with the time of tasks running now.
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

impl crate::ledger::Totals for Totals {
    type Gauges = ();

    fn zip(&self, other: &Self, f: impl Fn(u64, u64) -> u64) -> Self {
        Self {
            ledger_ns: f(self.ledger_ns, other.ledger_ns),
            charged_ns: f(self.charged_ns, other.charged_ns),
            user_ns: f(self.user_ns, other.user_ns),
            system_ns: f(self.system_ns, other.system_ns),
            voluntary_switches: f(self.voluntary_switches, other.voluntary_switches),
            involuntary_switches: f(self.involuntary_switches, other.involuntary_switches),
            run_queue_wait_ns: f(self.run_queue_wait_ns, other.run_queue_wait_ns),
            migrations: f(self.migrations, other.migrations),
        }
    }

    /// User and system time stay in the proportion that the kernel sampled.
    fn advance(&self, now: &Self) -> Self {
        let mut next = self.max(now);
        (next.user_ns, next.system_ns) =
            split(next.ledger_ns, (now.user_ns, now.system_ns), (self.user_ns, self.system_ns));
        next
    }
}

impl Totals {
    /// Of one task alone.
    fn own(record: &TaskRecord, clock_offset_ns: Option<u64>) -> Self {
        // Without the offset of the clocks a running task is at most a tick behind.
        let running_ns = match clock_offset_ns {
            Some(offset) if record.has(task_flags::RUNNING_NOW) => {
                let ns = record.running_raw_ns.wrapping_sub(offset) as i64;
                // A start on another clock, or one that is just being set.
                if (0..MAX_RUNNING_NS).contains(&ns) { ns as u64 } else { 0 }
            }
            _ => 0,
        };
        let ledger_ns = record.sum_exec_ns + running_ns;
        let charged_ns = if record.has(task_flags::SWITCHED_IN) {
            ledger_ns.saturating_sub(record.switched_in_ns)
        } else {
            0
        };
        Self {
            ledger_ns,
            charged_ns,
            user_ns: record.user_ns,
            system_ns: record.system_ns,
            voluntary_switches: record.voluntary_switches,
            involuntary_switches: record.involuntary_switches,
            run_queue_wait_ns: record.run_queue_wait_ns,
            migrations: record.migrations,
        }
    }

    /// With user and system time that make up the CPU time.
    pub(super) fn split(mut self) -> Self {
        (self.user_ns, self.system_ns) =
            split(self.ledger_ns, (self.user_ns, self.system_ns), (0, 0));
        self
    }

    /// Of the threads of its process that were gone when the task was read.
    pub(super) fn dead(record: &TaskRecord) -> Self {
        Self {
            ledger_ns: record.dead_sum_exec_ns,
            charged_ns: record.charged_ns,
            user_ns: record.dead_user_ns,
            system_ns: record.dead_system_ns,
            voluntary_switches: record.dead_voluntary_switches,
            involuntary_switches: record.dead_involuntary_switches,
            run_queue_wait_ns: record.dead_run_queue_wait_ns,
            migrations: record.dead_migrations,
        }
    }
}

/// The scheduler updates a running task at least at every tick, and with
/// `nohz_full` once a second.
const MAX_RUNNING_NS: i64 = 4_000_000_000;

/// Divides CPU time into user and system as `cputime_adjust()` of the kernel does
/// for `/proc/PID/stat`: the time is exact, the proportion is sampled by ticks,
/// and neither part ever goes back.
fn split(cpu_ns: u64, sampled: (u64, u64), last: (u64, u64)) -> (u64, u64) {
    if last.0 + last.1 >= cpu_ns {
        return last;
    }
    let system = match sampled {
        (_, 0) => 0,
        (0, _) => cpu_ns,
        (user, system) => {
            (u128::from(system) * u128::from(cpu_ns) / (u128::from(user) + u128::from(system)))
                as u64
        }
    };
    // at most one of the two bounds can be hit
    let system = system.clamp(last.1, cpu_ns - last.0);
    (cpu_ns - system, system)
}

/// Reads what a walk wrote.
///
/// `clock_offset_ns` is how far the clock of BPF is ahead of the scheduler's.
pub(super) fn decode(
    records: Records<'_>,
    clock_offset_ns: Option<u64>,
    threads: bool,
) -> Result<Walked> {
    let mut walked = Walked::default();
    let mut tasks: Vec<&TaskRecord> = Vec::with_capacity(records.len());
    for record in records {
        match record {
            (RECORD_TASK, record) => tasks.push(cast(record)?),
            (RECORD_CPU, record) => walked.cpus.push(cpu(cast(record)?, clock_offset_ns)),
            _ => return Err(invalid("of unknown kind")),
        }
    }
    walked.has_wait = tasks.first().is_some_and(|task| task.has(task_flags::HAS_RUN_QUEUE_WAIT));
    let leaders = tasks.iter().filter(|task| task.about.is_leader());
    walked.processes = leaders.map(|leader| reading(leader, Totals::default())).collect();
    let placed = sum_up(
        &mut walked.processes,
        tasks.iter().map(|task| TaskTotals {
            process: task.about.process(),
            is_leader: task.about.is_leader(),
            own: Totals::own(task, clock_offset_ns),
            dead: Totals::dead(task),
        }),
    );
    if threads {
        let of_live_processes = tasks.iter().zip(placed).filter(|(_, placed)| *placed);
        walked.threads = of_live_processes
            .map(|(&&record, _)| LiveThread { record, totals: Totals::own(&record, clock_offset_ns) })
            .collect();
    }
    Ok(walked)
}

fn reading(record: &TaskRecord, totals: Totals) -> Reading<Totals> {
    Reading { id: record.about.process(), info: record.about.info(), totals, gauges: () }
}

/// The final record of a process.
pub(super) fn ended(record: &TaskRecord) -> Reading<Totals> {
    reading(record, Totals::dead(record))
}

/// The state at the last thread's exit; `None` if threads are left.
pub(super) fn ending(record: &EndingRecord) -> Option<Ending<Totals>> {
    let last = &record.last;
    let totals = Totals {
        ledger_ns: last.dead_sum_exec_ns + last.sum_exec_ns,
        charged_ns: last.charged_ns,
        user_ns: last.dead_user_ns + last.user_ns,
        system_ns: last.dead_system_ns + last.system_ns,
        voluntary_switches: last.dead_voluntary_switches + last.voluntary_switches,
        involuntary_switches: last.dead_involuntary_switches + last.involuntary_switches,
        run_queue_wait_ns: record.run_queue_wait_ns,
        migrations: record.migrations,
    };
    let ending = Ending { ended_ns: last.ended_ns, last: reading(last, totals) };
    (record.last_is_set != 0).then_some(ending)
}

/// What one CPU folded of the processes that found no room.
pub(super) fn folded(record: &FoldedRecord) -> Folded<Totals> {
    let totals = Totals {
        ledger_ns: record.sum_exec_ns,
        charged_ns: record.charged_ns,
        user_ns: record.user_ns,
        system_ns: record.system_ns,
        voluntary_switches: record.voluntary_switches,
        involuntary_switches: record.involuntary_switches,
        run_queue_wait_ns: record.run_queue_wait_ns,
        migrations: record.migrations,
    };
    Folded { processes: record.processes, totals }
}

fn cpu(record: &CpuRecord, clock_offset_ns: Option<u64>) -> CpuReading {
    let has = |flag| record.flags & flag != 0;
    let idle_ns = match clock_offset_ns {
        _ if !has(cpu_flags::HAS_IDLE) => None,
        _ if !has(cpu_flags::IDLE_LACKS_CLOCK_OFFSET) => Some(record.idle_ns),
        // Without the offset, this CPU's idle time shows once it is idle again.
        offset => offset.map(|offset| record.idle_ns.wrapping_add(offset)),
    };
    let idle_ns = match has(cpu_flags::IDLE_HOLDS_INTERRUPTED) {
        true => idle_ns.map(|ns| ns.wrapping_sub(record.interrupted_ns)),
        false => idle_ns,
    };
    CpuReading { cpu: record.cpu, idle_ns, interrupted_ns: record.interrupted_ns }
}

#[cfg(test)]
mod tests {
    use bytemuck::Zeroable;

    use super::*;
    use crate::{
        ledger::Totals as _,
        records::filled,
        task::{RecordHead, TaskAbout},
    };

    const STREAM: u16 = 4;

    fn head<T>(kind: u16) -> RecordHead {
        RecordHead { kind, stream: STREAM, size: size_of::<T>() as u32 }
    }

    fn task(tgid: u32, tid: u32, own: u64, dead: u64) -> TaskRecord {
        TaskRecord {
            head: head::<TaskRecord>(RECORD_TASK),
            about: TaskAbout {
                tgid,
                tid,
                process_start_ns: u64::from(tgid) * 1000,
                ..TaskAbout::zeroed()
            },
            sum_exec_ns: own,
            dead_sum_exec_ns: dead,
            ..TaskRecord::zeroed()
        }
    }

    fn decode(bytes: &[u8], clock_offset_ns: Option<u64>) -> Result<Walked> {
        super::decode(filled(bytes)?.of(STREAM), clock_offset_ns, true)
    }

    #[test]
    fn processes_have_sums_and_threads_their_own() {
        let tasks = [task(10, 10, 5, 100), task(11, 11, 7, 0), task(10, 12, 20, 100), task(9, 13, 1, 0)];
        let walked = decode(bytemuck::cast_slice(&tasks), None).unwrap();
        let sums: Vec<_> = walked.processes.iter().map(|p| (p.id.pid, p.totals.ledger_ns)).collect();
        assert_eq!(sums, [(10, 125), (11, 7)]);
        // 13 has no leader any more
        let threads: Vec<_> = (walked.threads.iter())
            .map(|thread| (thread.record.about.tid, thread.totals.ledger_ns))
            .collect();
        assert_eq!(threads, [(10, 5), (11, 7), (12, 20)]);
    }

    #[test]
    fn every_counter_is_its_own() {
        let record = TaskRecord {
            sum_exec_ns: 1,
            user_ns: 2,
            system_ns: 3,
            voluntary_switches: 4,
            involuntary_switches: 5,
            run_queue_wait_ns: 6,
            migrations: 7,
            dead_sum_exec_ns: 10,
            charged_ns: 80,
            dead_user_ns: 20,
            dead_system_ns: 30,
            dead_voluntary_switches: 40,
            dead_involuntary_switches: 50,
            dead_run_queue_wait_ns: 60,
            dead_migrations: 70,
            ..task(10, 10, 0, 0)
        };
        let expected = Totals {
            ledger_ns: 11,
            charged_ns: 80,
            user_ns: 22,
            system_ns: 33,
            voluntary_switches: 44,
            involuntary_switches: 55,
            run_queue_wait_ns: 66,
            migrations: 77,
        };
        let walked = decode(bytemuck::bytes_of(&record), None).unwrap();
        assert_eq!(walked.processes[0].totals, expected);
    }

    #[test]
    fn a_running_task_gets_the_time_since_the_last_update() {
        let record = TaskRecord {
            flags: task_flags::RUNNING_NOW | task_flags::SWITCHED_IN,
            running_raw_ns: 1_000_300,
            switched_in_ns: 40,
            charged_ns: 1000,
            ..task(10, 10, 50, 0)
        };
        let totals =
            |offset| decode(bytemuck::bytes_of(&record), offset).unwrap().processes[0].totals;
        assert_eq!(totals(Some(1_000_000)).ledger_ns, 350);
        assert_eq!(totals(Some(1_000_000)).charged_ns, 1310);
        assert_eq!(totals(None).ledger_ns, 50);
        // a start after now is a race of 0.1 us, not 584 years
        assert_eq!(totals(Some(1_000_400)).ledger_ns, 50);
    }

    #[test]
    fn idle_time_of_a_busy_cpu_needs_the_offset() {
        let record = |flags| CpuRecord {
            head: head::<CpuRecord>(RECORD_CPU),
            cpu: 3,
            flags,
            idle_ns: 70,
            interrupted_ns: 9,
            ..CpuRecord::zeroed()
        };
        let idle = |flags, offset| {
            let walked = decode(bytemuck::bytes_of(&record(flags)), offset).unwrap();
            assert_eq!((walked.cpus[0].cpu, walked.cpus[0].interrupted_ns), (3, 9));
            walked.cpus[0].idle_ns
        };
        let busy = cpu_flags::HAS_IDLE | cpu_flags::IDLE_LACKS_CLOCK_OFFSET;
        assert_eq!(idle(0, Some(5)), None);
        assert_eq!(idle(cpu_flags::HAS_IDLE, None), Some(70));
        assert_eq!(idle(busy, Some(5)), Some(75));
        assert_eq!(idle(busy | cpu_flags::IDLE_HOLDS_INTERRUPTED, Some(5)), Some(66));
        assert_eq!(idle(busy, None), None);
    }

    #[test]
    fn records_of_unexpected_kind_and_size_are_errors() {
        let unknown =
            TaskRecord { head: head::<TaskRecord>(9), ..task(1, 1, 0, 0) };
        assert!(decode(bytemuck::bytes_of(&unknown), None).is_err());
        let short = head::<RecordHead>(RECORD_TASK);
        assert!(decode(bytemuck::bytes_of(&short), None).is_err());
    }

    #[test]
    fn user_and_system_time_make_up_the_cpu_time() {
        assert_eq!(split(1000, (0, 0), (0, 0)), (1000, 0));
        assert_eq!(split(1000, (0, 4), (0, 0)), (0, 1000));
        assert_eq!(split(1000, (3, 1), (0, 0)), (750, 250));
        // samples moved towards user: system stays where it was
        assert_eq!(split(1100, (30, 1), (750, 250)), (850, 250));
        assert_eq!(split(1100, (1, 30), (750, 250)), (750, 350));
        assert_eq!(split(900, (3, 1), (750, 250)), (750, 250));
        let totals = |ledger_ns, user_ns, system_ns| Totals {
            ledger_ns,
            user_ns,
            system_ns,
            ..Totals::default()
        };
        assert_eq!(totals(1000, 750, 250).advance(&totals(1100, 1, 30)), totals(1100, 750, 350));
    }
}
