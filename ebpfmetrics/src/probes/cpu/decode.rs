//! From the iterator's bytes to processes and CPUs. Pure: no system access.

use super::record::{CpuRecord, RECORD_CPU, RECORD_TASK, TaskRecord, cpu_flags, task_flags};
use crate::{Error, ErrorKind, Result};

/// Everything that one pass of the iterator showed.
#[derive(Debug, Default)]
pub(super) struct Pass {
    /// Processes in ascending order of pid.
    pub(super) processes: Vec<LiveProcess>,
    /// Threads in ascending order of tid, if they are wanted.
    pub(super) threads: Vec<LiveThread>,
    /// CPUs in no order.
    pub(super) cpus: Vec<CpuReading>,
}

#[derive(Clone, Debug)]
pub(super) struct LiveProcess {
    pub(super) leader: TaskRecord,
    pub(super) totals: Totals,
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

impl Totals {
    /// Applies an operation to each counter.
    pub(super) fn zip(&self, other: &Self, f: impl Fn(u64, u64) -> u64) -> Self {
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

    pub(super) fn plus(&self, other: &Self) -> Self {
        self.zip(other, u64::saturating_add)
    }

    pub(super) fn minus(&self, other: &Self) -> Self {
        self.zip(other, u64::saturating_sub)
    }

    pub(super) fn max(&self, other: &Self) -> Self {
        self.zip(other, u64::max)
    }

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

    /// Adds a task to its process.
    ///
    /// Threads exit while the iterator goes from one to the next. Their time is
    /// then in the dead totals of the tasks read later but not of those read
    /// before: adding any one of them to all tasks could count a thread twice.
    /// Each of them with the tasks read from there on never does, and the
    /// largest of these sums is the best.
    fn join(&self, record: &TaskRecord, own: &Self) -> Self {
        self.max(&Self::dead(record)).plus(own)
    }
}

/// The scheduler updates a running task at least at every tick, and with
/// `nohz_full` once a second.
const MAX_RUNNING_NS: i64 = 4_000_000_000;

/// Reads the output of the iterator.
///
/// `clock_offset_ns` is how far the clock of BPF is ahead of the scheduler's.
pub(super) fn decode(bytes: &[u8], clock_offset_ns: Option<u64>, threads: bool) -> Result<Pass> {
    let mut pass = Pass::default();
    let mut tasks: Vec<&TaskRecord> = Vec::with_capacity(bytes.len() / size_of::<TaskRecord>());
    let mut rest = bytes;
    while !rest.is_empty() {
        let (kind, size) = header(rest)?;
        let (record, after) = rest.split_at_checked(size).ok_or_else(|| invalid("cut short"))?;
        match kind {
            RECORD_TASK => tasks.push(cast(record)?),
            RECORD_CPU => pass.cpus.push(cpu(cast(record)?, clock_offset_ns)),
            _ => return Err(invalid("of unknown kind")),
        }
        rest = after;
    }
    // The kernel iterates in the order of pids, so leaders come sorted; threads
    // may come before their leader where pids have wrapped around.
    let leaders = tasks.iter().filter(|task| task.is_leader());
    pass.processes = leaders
        .map(|&&leader| LiveProcess { leader, totals: Totals::default() })
        .collect();
    if !pass.processes.is_sorted_by_key(|process| process.leader.tgid) {
        pass.processes.sort_by_key(|process| process.leader.tgid);
    }
    let mut next = 0;
    for task in tasks {
        let own = Totals::own(task, clock_offset_ns);
        let index = if task.is_leader() && pass.processes[next].leader.tgid == task.tgid {
            next
        } else {
            match pass.processes.binary_search_by_key(&task.tgid, |process| process.leader.tgid) {
                Ok(index) => index,
                Err(_) => continue, // the leader is gone: the process is being released
            }
        };
        if task.is_leader() {
            next = (index + 1).min(pass.processes.len() - 1);
        }
        let process = &mut pass.processes[index];
        if process.leader.process_start_ns == task.process_start_ns {
            process.totals = process.totals.join(task, &own);
            if threads {
                pass.threads.push(LiveThread { record: *task, totals: own });
            }
        }
    }
    Ok(pass)
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

fn header(bytes: &[u8]) -> Result<(u32, usize)> {
    let word = |at: usize| {
        let bytes = bytes.get(at..at + 4)?;
        Some(u32::from_ne_bytes(bytes.try_into().ok()?))
    };
    match (word(0), word(4)) {
        (Some(kind), Some(size)) if size >= 8 => Ok((kind, size as usize)),
        _ => Err(invalid("without header")),
    }
}

fn cast<T: bytemuck::AnyBitPattern>(record: &[u8]) -> Result<&T> {
    bytemuck::try_from_bytes(record).map_err(|_| invalid("of unexpected size"))
}

fn invalid(what: &str) -> Error {
    Error::new(ErrorKind::InvalidRecord, format!("probe cpu: record {what}"))
}

#[cfg(test)]
mod tests {
    use bytemuck::Zeroable;

    use super::*;

    fn task(tgid: u32, tid: u32, own: u64, dead: u64) -> TaskRecord {
        TaskRecord {
            kind: RECORD_TASK,
            size: size_of::<TaskRecord>() as u32,
            tgid,
            tid,
            process_start_ns: u64::from(tgid) * 1000,
            sum_exec_ns: own,
            dead_sum_exec_ns: dead,
            ..TaskRecord::zeroed()
        }
    }

    fn decode_tasks(tasks: &[TaskRecord]) -> Pass {
        decode(bytemuck::cast_slice(tasks), None, true).unwrap()
    }

    fn ledger(pass: &Pass) -> Vec<(u32, u64)> {
        pass.processes.iter().map(|p| (p.leader.tgid, p.totals.ledger_ns)).collect()
    }

    #[test]
    fn threads_and_dead_threads_add_up() {
        let pass = decode_tasks(&[
            task(10, 10, 5, 100),
            task(11, 11, 7, 0),
            task(10, 12, 20, 100),
            task(10, 13, 30, 100),
        ]);
        assert_eq!(ledger(&pass), [(10, 155), (11, 7)]);
        assert_eq!(pass.threads.len(), 4);
    }

    #[test]
    fn a_thread_that_exits_during_the_pass_counts_once_at_most() {
        // 12 (20 ns) was read, exited, and its time joined the dead of 13.
        let after = decode_tasks(&[task(10, 10, 5, 0), task(10, 12, 20, 0), task(10, 13, 30, 20)]);
        assert_eq!(ledger(&after), [(10, 55)]);
        // 12 exited before it was read.
        let before = decode_tasks(&[task(10, 10, 5, 0), task(10, 13, 30, 20)]);
        assert_eq!(ledger(&before), [(10, 50)]);
    }

    #[test]
    fn a_thread_may_come_before_its_leader() {
        let pass = decode_tasks(&[task(10, 3, 20, 0), task(5, 5, 1, 0), task(10, 10, 5, 0)]);
        assert_eq!(ledger(&pass), [(5, 1), (10, 25)]);
    }

    #[test]
    fn a_thread_without_leader_is_left_out() {
        assert_eq!(ledger(&decode_tasks(&[task(10, 12, 20, 0)])), []);
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
        assert_eq!(decode_tasks(&[record]).processes[0].totals, expected);
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
        let totals = |offset| {
            decode(bytemuck::bytes_of(&record), offset, false).unwrap().processes[0].totals
        };
        assert_eq!(totals(Some(1_000_000)).ledger_ns, 350);
        assert_eq!(totals(Some(1_000_000)).charged_ns, 1310);
        assert_eq!(totals(None).ledger_ns, 50);
        // a start after now is a race of 0.1 us, not 584 years
        assert_eq!(totals(Some(1_000_400)).ledger_ns, 50);
    }

    #[test]
    fn idle_time_of_a_busy_cpu_needs_the_offset() {
        let record = |flags| CpuRecord {
            kind: RECORD_CPU,
            size: size_of::<CpuRecord>() as u32,
            cpu: 3,
            flags,
            idle_ns: 70,
            interrupted_ns: 9,
            ..CpuRecord::zeroed()
        };
        let idle = |flags, offset| {
            let pass = decode(bytemuck::bytes_of(&record(flags)), offset, false).unwrap();
            assert_eq!((pass.cpus[0].cpu, pass.cpus[0].interrupted_ns), (3, 9));
            pass.cpus[0].idle_ns
        };
        let busy = cpu_flags::HAS_IDLE | cpu_flags::IDLE_LACKS_CLOCK_OFFSET;
        assert_eq!(idle(0, Some(5)), None);
        assert_eq!(idle(cpu_flags::HAS_IDLE, None), Some(70));
        assert_eq!(idle(busy, Some(5)), Some(75));
        assert_eq!(idle(busy | cpu_flags::IDLE_HOLDS_INTERRUPTED, Some(5)), Some(66));
        assert_eq!(idle(busy, None), None);
    }

    #[test]
    fn garbage_is_an_error() {
        let whole = task(10, 10, 5, 0);
        let whole = bytemuck::bytes_of(&whole);
        for length in 1..whole.len() {
            assert!(decode(&whole[..length], None, false).is_err(), "{length}");
        }
        let unknown = TaskRecord { kind: 9, ..task(1, 1, 0, 0) };
        assert!(decode(bytemuck::bytes_of(&unknown), None, false).is_err());
        let endless = TaskRecord { size: 0, ..task(1, 1, 0, 0) };
        assert!(decode(bytemuck::bytes_of(&endless), None, false).is_err());
    }
}
