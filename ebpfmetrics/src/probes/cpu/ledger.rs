//! From passes of the iterator and final records to counters of a window. Pure:
//! no system access.

use std::collections::HashSet;

use super::{
    decode::{LiveProcess, LiveThread, Totals},
    record::{EndingRecord, FoldedRecord, ProcessKey, TaskRecord, task_flags},
};
use crate::{Comm, ProcessId, ThreadId};

/// A process is released an RCU grace period after it disappears: 16 ms at the
/// median, 150 ms at most where measured. Past this the record is not coming.
pub(super) const RELEASE_TIMEOUT_NS: u64 = 2_000_000_000;

/// What is known of every process and thread since the window began.
#[derive(Debug, Default)]
pub(super) struct Ledger {
    /// In ascending order of id: alive, or gone and not settled yet.
    known: Vec<Known>,
    threads: Vec<KnownThread>,
    /// Ended and settled in this window.
    exited: Vec<Known>,
    folded: Folded,
    kernel_folded: Folded,
    max_exited: usize,
    /// When the probe first looked, `CLOCK_BOOTTIME`. Who started before and was
    /// not alive then has ended before.
    began_ns: u64,
    pub(super) exit_record_missing: u64,
}

/// A process with its counters since its start.
#[derive(Clone, Debug)]
pub(super) struct Known {
    pub(super) id: ProcessId,
    pub(super) about: About,
    pub(super) exited: bool,
    /// As of the last snapshot: what has been told is never taken back.
    last: Totals,
    baseline: Totals,
    vanished_ns: Option<u64>,
}

#[derive(Clone, Debug)]
pub(super) struct KnownThread {
    pub(super) id: ThreadId,
    pub(super) process: ProcessId,
    pub(super) comm: Comm,
    pub(super) running_at_ns: Option<u64>,
    last: Totals,
    baseline: Totals,
}

/// Gauges of a process.
#[derive(Clone, Copy, Debug)]
pub(super) struct About {
    pub(super) comm: Comm,
    pub(super) parent: Option<ProcessId>,
    pub(super) namespace_pid: u32,
    pub(super) uid: u32,
    pub(super) cgroup_id: Option<u64>,
    pub(super) threads: u32,
    pub(super) kernel_thread: bool,
}

impl About {
    fn new(record: &TaskRecord) -> Self {
        Self {
            comm: Comm::from_bytes(record.comm),
            parent: (record.parent_tgid != 0).then_some(ProcessId {
                pid: record.parent_tgid,
                start_time_ns: record.parent_start_ns,
            }),
            namespace_pid: record.namespace_pid,
            uid: record.uid,
            cgroup_id: (record.cgroup_id != 0).then_some(record.cgroup_id),
            threads: record.threads,
            kernel_thread: record.has(task_flags::KERNEL_THREAD),
        }
    }
}

/// Processes that are only counted together.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(super) struct Folded {
    pub(super) processes: u64,
    pub(super) totals: Totals,
}

impl Folded {
    pub(super) fn sum(records: &[FoldedRecord]) -> Self {
        records.iter().fold(Self::default(), |sum, record| Self {
            processes: sum.processes + record.processes,
            totals: sum.totals.plus(&Totals {
                ledger_ns: record.sum_exec_ns,
                charged_ns: record.charged_ns,
                user_ns: record.user_ns,
                system_ns: record.system_ns,
                voluntary_switches: record.voluntary_switches,
                involuntary_switches: record.involuntary_switches,
                run_queue_wait_ns: record.run_queue_wait_ns,
                migrations: record.migrations,
            }),
        })
    }
}

impl Known {
    fn new(id: ProcessId, about: About) -> Self {
        Self {
            id,
            about,
            exited: false,
            last: Totals::default(),
            baseline: Totals::default(),
            vanished_ns: None,
        }
    }

    /// Counters since the window began.
    pub(super) fn counters(&self) -> Totals {
        self.last.minus(&self.baseline)
    }

    fn end(mut self, record: &TaskRecord) -> Self {
        let comm = self.about.comm;
        let about = About::new(record);
        // Records of processes whose exit was not seen say little.
        if about.parent.is_some() {
            self.about = about;
        }
        if self.about.comm.as_bytes().is_empty() {
            self.about.comm = comm;
        }
        self.last = advance(&self.last, &Totals::dead(record));
        self.exited = true;
        self
    }
}

impl KnownThread {
    /// Counters since the window began.
    pub(super) fn counters(&self) -> Totals {
        self.last.minus(&self.baseline)
    }
}

/// The next counters of a task: never less than the last, user and system time
/// in the proportion that the kernel sampled.
fn advance(last: &Totals, now: &Totals) -> Totals {
    let mut next = last.max(now);
    (next.user_ns, next.system_ns) =
        split(next.ledger_ns, (now.user_ns, now.system_ns), (last.user_ns, last.system_ns));
    next
}

/// Divides CPU time into user and system as `cputime_adjust()` of the kernel does
/// for `/proc/PID/stat`: the time is exact, the proportion is sampled by ticks,
/// and neither part ever goes back.
pub(super) fn split(cpu_ns: u64, sampled: (u64, u64), last: (u64, u64)) -> (u64, u64) {
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

impl Ledger {
    pub(super) fn new(max_exited: usize, began_ns: u64) -> Self {
        Self { max_exited, began_ns, ..Self::default() }
    }

    /// Starts a new window with what is known now.
    pub(super) fn rebase(&mut self) {
        for process in &mut self.known {
            process.baseline = process.last;
        }
        for thread in &mut self.threads {
            thread.baseline = thread.last;
        }
        self.exited.clear();
        self.folded = Folded::default();
        self.exit_record_missing = 0;
    }

    /// Processes of the window in ascending order of id.
    pub(super) fn processes(&self) -> Vec<&Known> {
        let mut all: Vec<_> = self.known.iter().chain(&self.exited).collect();
        if !self.exited.is_empty() {
            all.sort_by_key(|process| process.id);
        }
        all
    }

    pub(super) fn threads(&self) -> &[KnownThread] {
        &self.threads
    }

    pub(super) fn folded(&self) -> Folded {
        let mut folded = self.folded;
        let sampled = (folded.totals.user_ns, folded.totals.system_ns);
        (folded.totals.user_ns, folded.totals.system_ns) =
            split(folded.totals.ledger_ns, sampled, (0, 0));
        folded
    }

    /// Takes in who is alive.
    pub(super) fn live(&mut self, processes: Vec<LiveProcess>, now_ns: u64) {
        let before = std::mem::take(&mut self.known);
        self.known.reserve(processes.len());
        let mut before = before.into_iter().peekable();
        for process in processes {
            let id = process.leader.process();
            while let Some(gone) = before.next_if(|known| known.id < id) {
                self.known.push(vanished(gone, now_ns));
            }
            let about = About::new(&process.leader);
            let mut known = before
                .next_if(|known| known.id == id)
                .unwrap_or_else(|| Known::new(id, about));
            known.about = about;
            known.vanished_ns = None;
            known.last = advance(&known.last, &process.totals);
            self.known.push(known);
        }
        self.known.extend(before.map(|gone| vanished(gone, now_ns)));
    }

    /// Takes in the threads alive. Those gone leave their time to their process.
    pub(super) fn live_threads(&mut self, threads: Vec<LiveThread>) {
        let before = std::mem::take(&mut self.threads);
        let mut before = before.into_iter().peekable();
        for thread in threads {
            let id = thread.record.thread();
            while before.next_if(|known| known.id < id).is_some() {}
            let mut known = before.next_if(|known| known.id == id).unwrap_or(KnownThread {
                id,
                process: thread.record.process(),
                comm: Comm::from_bytes(thread.record.comm),
                running_at_ns: None,
                last: Totals::default(),
                baseline: Totals::default(),
            });
            known.comm = Comm::from_bytes(thread.record.comm);
            let running = thread.record.has(task_flags::RUNNING_NOW);
            known.running_at_ns = running.then_some(thread.record.running_at_ns);
            known.last = advance(&known.last, &thread.totals);
            self.threads.push(known);
        }
    }

    /// Takes in final records of processes.
    pub(super) fn ended(&mut self, records: impl IntoIterator<Item = TaskRecord>) {
        let mut settled = Vec::new();
        for record in records {
            let id = record.process();
            let known = match self.known.binary_search_by_key(&id, |known| known.id) {
                Ok(index) => {
                    settled.push(index);
                    self.known[index].clone()
                }
                // ended before, but is released only now
                Err(_) if id.start_time_ns < self.began_ns => continue,
                Err(_) => Known::new(id, About::new(&record)),
            };
            self.settle(known.end(&record));
        }
        settled.sort_unstable();
        self.forget(&settled);
    }

    /// Takes in the sums of the processes that the kernel side had no room for.
    ///
    /// A process known before is among them if it is gone without a final record
    /// and no longer `ending`. What is known of it keeps its own row and leaves
    /// the sum, which has all that it ever used.
    pub(super) fn kernel_folded(&mut self, now: Folded, ending: &[(ProcessKey, EndingRecord)]) {
        let mut unmatched = now.processes - self.kernel_folded.processes;
        self.folded.processes += unmatched;
        let totals = now.totals.minus(&self.kernel_folded.totals);
        self.folded.totals = self.folded.totals.plus(&totals);
        self.kernel_folded = now;
        if unmatched == 0 {
            return;
        }
        let ending: HashSet<ProcessId> = ending.iter().map(|(key, _)| key.process()).collect();
        let mut settled = Vec::new();
        for index in 0..self.known.len() {
            let known = &self.known[index];
            if unmatched == 0 || known.vanished_ns.is_none() || ending.contains(&known.id) {
                continue;
            }
            unmatched -= 1;
            self.folded.processes -= 1;
            self.folded.totals = self.folded.totals.minus(&known.last);
            self.settle(Known { exited: true, ..known.clone() });
            settled.push(index);
        }
        self.forget(&settled);
    }

    /// Settles processes whose final record never came, with the best that is
    /// known. Returns those to be taken out of the kernel's map.
    pub(super) fn overdue(
        &mut self,
        ending: &[(ProcessKey, EndingRecord)],
        now_ns: u64,
    ) -> Vec<ProcessKey> {
        let overdue = |since: u64| now_ns.saturating_sub(since) > RELEASE_TIMEOUT_NS;
        let mut settled = Vec::new();
        let mut taken = Vec::new();
        for (key, record) in ending {
            if record.last_is_set == 0 || !overdue(record.last.ended_ns) {
                continue;
            }
            let id = key.process();
            let known = match self.known.binary_search_by_key(&id, |known| known.id) {
                // a zombie: nobody has waited for it yet
                Ok(index) if self.known[index].vanished_ns.is_none() => continue,
                Ok(index) => {
                    settled.push(index);
                    self.known[index].clone()
                }
                // ended while the probe was being attached
                Err(_) if id.start_time_ns < self.began_ns => {
                    taken.push(*key);
                    continue;
                }
                Err(_) => Known::new(id, About::new(&record.last)),
            };
            taken.push(*key);
            self.exit_record_missing += 1;
            self.settle(known.end(&as_final(record)));
        }
        settled.sort_unstable();
        self.forget(&settled);

        // Nothing came of these at all.
        settled.clear();
        for index in 0..self.known.len() {
            let known = &self.known[index];
            if known.vanished_ns.is_some_and(overdue) {
                self.exit_record_missing += 1;
                self.settle(Known { exited: true, ..known.clone() });
                settled.push(index);
            }
        }
        self.forget(&settled);
        taken
    }

    fn settle(&mut self, process: Known) {
        if self.exited.len() < self.max_exited {
            self.exited.push(process);
        } else {
            self.folded.processes += 1;
            self.folded.totals = self.folded.totals.plus(&process.counters());
        }
    }

    /// Drops what stands at these places, in ascending order.
    fn forget(&mut self, indices: &[usize]) {
        if indices.is_empty() {
            return;
        }
        let mut index = 0;
        self.known.retain(|_| {
            index += 1;
            indices.binary_search(&(index - 1)).is_err()
        });
    }
}

fn vanished(mut process: Known, now_ns: u64) -> Known {
    process.vanished_ns.get_or_insert(now_ns);
    process
}

/// The state at the last thread's exit in place of the final record.
fn as_final(record: &EndingRecord) -> TaskRecord {
    let last = &record.last;
    TaskRecord {
        dead_sum_exec_ns: last.dead_sum_exec_ns + last.sum_exec_ns,
        dead_user_ns: last.dead_user_ns + last.user_ns,
        dead_system_ns: last.dead_system_ns + last.system_ns,
        dead_voluntary_switches: last.dead_voluntary_switches + last.voluntary_switches,
        dead_involuntary_switches: last.dead_involuntary_switches + last.involuntary_switches,
        dead_run_queue_wait_ns: record.run_queue_wait_ns,
        dead_migrations: record.migrations,
        ..*last
    }
}

#[cfg(test)]
mod tests {
    use bytemuck::Zeroable;

    use super::*;

    fn record(pid: u32, start: u64, ns: u64) -> TaskRecord {
        TaskRecord {
            tgid: pid,
            tid: pid,
            process_start_ns: start,
            dead_sum_exec_ns: ns,
            parent_tgid: 1,
            comm: *b"task\0\0\0\0\0\0\0\0\0\0\0\0",
            ..TaskRecord::zeroed()
        }
    }

    fn live(pid: u32, start: u64, ns: u64) -> LiveProcess {
        let totals = Totals { ledger_ns: ns, ..Totals::default() };
        LiveProcess { leader: record(pid, start, 0), totals }
    }

    fn ending(pid: u32, start: u64, ns: u64, ended_ns: u64) -> (ProcessKey, EndingRecord) {
        let last = TaskRecord { ended_ns, ..record(pid, start, ns) };
        let key = ProcessKey { start_ns: start, tgid: pid, padding: 0 };
        (key, EndingRecord { last_is_set: 1, last, ..EndingRecord::zeroed() })
    }

    fn rows(ledger: &Ledger) -> Vec<(u32, u64, u64, bool)> {
        let row = |p: &&Known| (p.id.pid, p.id.start_time_ns, p.counters().ledger_ns, p.exited);
        ledger.processes().iter().map(row).collect()
    }

    #[test]
    fn counters_start_at_the_baseline_and_never_go_back() {
        let mut ledger = Ledger::new(9, 0);
        ledger.live(vec![live(1, 10, 100), live(5, 50, 7)], 0);
        ledger.rebase();
        ledger.live(vec![live(1, 10, 130), live(5, 50, 7), live(9, 90, 4)], 1);
        assert_eq!(rows(&ledger), [(1, 10, 30, false), (5, 50, 0, false), (9, 90, 4, false)]);
        ledger.live(vec![live(1, 10, 120), live(5, 50, 9), live(9, 90, 4)], 2);
        assert_eq!(rows(&ledger), [(1, 10, 30, false), (5, 50, 2, false), (9, 90, 4, false)]);
    }

    #[test]
    fn a_reused_pid_is_another_process() {
        let mut ledger = Ledger::new(9, 0);
        ledger.live(vec![live(5, 50, 7)], 0);
        ledger.live(vec![live(5, 60, 1)], 1);
        ledger.ended([record(5, 50, 8)]);
        assert_eq!(rows(&ledger), [(5, 50, 8, true), (5, 60, 1, false)]);
    }

    #[test]
    fn a_process_that_vanished_keeps_its_row_until_its_record_comes() {
        let mut ledger = Ledger::new(9, 0);
        ledger.live(vec![live(5, 50, 7)], 0);
        ledger.live(vec![], 1);
        assert_eq!(rows(&ledger), [(5, 50, 7, false)]);
        ledger.rebase();
        ledger.ended([record(5, 50, 11)]);
        assert_eq!(rows(&ledger), [(5, 50, 4, true)]);
        ledger.rebase();
        assert_eq!(rows(&ledger), []);
    }

    #[test]
    fn a_process_between_two_reads_shows_in_full() {
        let mut ledger = Ledger::new(9, 0);
        ledger.ended([record(5, 50, 11), record(4, 40, 1)]);
        assert_eq!(rows(&ledger), [(4, 40, 1, true), (5, 50, 11, true)]);
    }

    #[test]
    fn a_process_that_ended_before_the_probe_looked_is_not_of_the_window() {
        let mut ledger = Ledger::new(9, 55);
        ledger.live(vec![live(4, 40, 7)], 0);
        ledger.ended([record(4, 40, 9), record(5, 50, 11), record(6, 60, 13)]);
        assert_eq!(rows(&ledger), [(4, 40, 9, true), (6, 60, 13, true)]);
    }

    #[test]
    fn past_the_bound_the_exited_are_folded_and_counted() {
        for (bound, listed, folded) in [(0, 0, 3), (1, 1, 2), (2, 2, 1), (3, 3, 0), (100, 3, 0)] {
            let mut ledger = Ledger::new(bound, 0);
            ledger.ended([record(1, 10, 100), record(2, 20, 100), record(3, 30, 100)]);
            assert_eq!(ledger.processes().len(), listed);
            assert_eq!(ledger.folded().processes, folded);
            let in_rows: u64 = rows(&ledger).iter().map(|row| row.2).sum();
            assert_eq!(in_rows + ledger.folded().totals.ledger_ns, 300);
        }
    }

    #[test]
    fn folding_in_the_kernel_does_not_count_the_known_twice() {
        let mut ledger = Ledger::new(9, 0);
        ledger.live(vec![live(5, 50, 1000)], 0);
        ledger.rebase();
        ledger.live(vec![live(5, 50, 1010)], 1);
        // 5 ends at 1020, beside two that nobody saw, of 3 ns each
        ledger.live(vec![], 2);
        let totals = Totals { ledger_ns: 1026, ..Totals::default() };
        ledger.kernel_folded(Folded { processes: 3, totals }, &[]);
        assert_eq!(rows(&ledger), [(5, 50, 10, true)]);
        assert_eq!(ledger.folded().processes, 2);
        assert_eq!(ledger.folded().totals.ledger_ns, 16);
        assert_eq!(ledger.exit_record_missing, 0);
        // the next window has neither, and nothing is left to match
        ledger.rebase();
        ledger.live(vec![], 3);
        ledger.kernel_folded(Folded { processes: 3, totals }, &[]);
        assert!(ledger.overdue(&[], 3 + RELEASE_TIMEOUT_NS).is_empty());
        assert_eq!((rows(&ledger), ledger.folded()), (vec![], Folded::default()));
    }

    #[test]
    fn a_process_that_is_still_ending_is_not_among_the_folded() {
        let mut ledger = Ledger::new(9, 0);
        ledger.live(vec![live(5, 50, 10)], 0);
        ledger.live(vec![], 1);
        let totals = Totals { ledger_ns: 3, ..Totals::default() };
        ledger.kernel_folded(Folded { processes: 1, totals }, &[ending(5, 50, 11, 1)]);
        assert_eq!(rows(&ledger), [(5, 50, 10, false)]);
        assert_eq!((ledger.folded().processes, ledger.folded().totals.ledger_ns), (1, 3));
    }

    #[test]
    fn a_record_that_never_comes_is_replaced_and_counted() {
        let mut ledger = Ledger::new(9, 0);
        ledger.live(vec![live(5, 50, 7), live(6, 60, 7)], 0);
        ledger.live(vec![live(6, 60, 8)], 1);
        let states = [ending(5, 50, 9, 1), ending(6, 60, 9, 1), ending(7, 70, 3, 1)];
        assert!(ledger.overdue(&states, RELEASE_TIMEOUT_NS).is_empty());
        let taken = ledger.overdue(&states, 2 + RELEASE_TIMEOUT_NS);
        // 6 is a zombie and stays
        assert_eq!(taken.iter().map(|key| key.tgid).collect::<Vec<_>>(), [5, 7]);
        assert_eq!(rows(&ledger), [(5, 50, 9, true), (6, 60, 8, false), (7, 70, 3, true)]);
        assert_eq!(ledger.exit_record_missing, 2);
    }

    #[test]
    fn a_process_of_which_nothing_comes_ends_with_what_was_known() {
        let mut ledger = Ledger::new(9, 0);
        ledger.live(vec![live(5, 50, 7)], 0);
        ledger.live(vec![], 1);
        ledger.overdue(&[], 2 + RELEASE_TIMEOUT_NS);
        assert_eq!(rows(&ledger), [(5, 50, 7, true)]);
        assert_eq!(ledger.exit_record_missing, 1);
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
    }
}
