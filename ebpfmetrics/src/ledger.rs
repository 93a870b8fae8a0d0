//! From walks over all tasks and final records to counters of a window, for every
//! probe. Pure but for `Ledger::begin` and `Ledger::read`.

use std::collections::HashSet;

use bytemuck::Pod;

use crate::{ProcessId, ProcessInfo, Result, loader::Object, sys, task::ProcessKey};

/// A process is released an RCU grace period after it disappears: 16 ms at the
/// median, 150 ms at most where measured. Past this the record is not coming.
const RELEASE_TIMEOUT_NS: u64 = 2_000_000_000;

/// Counters of a task or process since its start, and gauges if it has any: what a
/// [`Ledger`] keeps of each.
///
/// Counters only grow, and are `u64`s to the ledger: [`zip`](Self::zip) is all that has to
/// be written. Without gauges, `Gauges` is `()`.
pub trait Totals: Copy + Default {
    /// What a process has beside counters.
    type Gauges: Clone + Default + std::fmt::Debug;

    /// Applies an operation to each counter and its counterpart.
    fn zip(&self, other: &Self, f: impl Fn(u64, u64) -> u64) -> Self;

    /// The gauges after those of the last walk, with what is to be kept of them.
    fn follow(_before: &Self::Gauges, now: Self::Gauges) -> Self::Gauges {
        now
    }

    /// A new window begins: what gauges keep of it begins too.
    fn rebase(_gauges: &mut Self::Gauges) {}

    /// The next counters after these: never less.
    fn advance(&self, now: &Self) -> Self {
        self.max(now)
    }

    /// The sum of both.
    fn plus(&self, other: &Self) -> Self {
        self.zip(other, u64::saturating_add)
    }

    /// The difference, never below zero.
    fn minus(&self, other: &Self) -> Self {
        self.zip(other, u64::saturating_sub)
    }

    /// The larger of each counter.
    fn max(&self, other: &Self) -> Self {
        self.zip(other, u64::max)
    }
}

/// A process as it was just read: alive, or at its end.
#[derive(Clone, Debug)]
pub struct Reading<T: Totals> {
    /// Who it is.
    pub id: ProcessId,
    /// Its name, its parent and more.
    pub info: ProcessInfo,
    /// Its counters since its start.
    pub totals: T,
    /// What it has beside.
    pub gauges: T::Gauges,
}

/// Counters of one task, and of the threads of its process that were gone when it
/// was read: for [`sum_up`].
pub struct TaskTotals<T> {
    /// The process that it belongs to.
    pub process: ProcessId,
    /// Whether it stands for it.
    pub is_leader: bool,
    /// Its own.
    pub own: T,
    /// Those of the dead threads.
    pub dead: T,
}

/// Sums up tasks to the processes that their leaders stand for; tells which tasks
/// have one.
///
/// Threads exit while a walk goes from one to the next. Their counts are then in
/// the dead totals of the tasks read later but not of those read before: adding
/// any one of them to all tasks could count a thread twice. Each of them with the
/// tasks read from there on never does, and the largest of these sums is the best.
pub fn sum_up<T: Totals>(
    processes: &mut [Reading<T>],
    tasks: impl Iterator<Item = TaskTotals<T>>,
) -> Vec<bool> {
    // The kernel walks in the order of pids, so leaders come sorted; threads may
    // come before their leader where pids have wrapped around.
    if !processes.is_sorted_by_key(|process| process.id) {
        processes.sort_by_key(|process| process.id);
    }
    let mut next = 0;
    tasks
        .map(|task| {
            let index = match processes.get(next) {
                Some(process) if task.is_leader && process.id == task.process => next,
                _ => match processes.binary_search_by_key(&task.process, |process| process.id) {
                    Ok(index) => index,
                    Err(_) => return false, // the leader is gone: the process is being released
                },
            };
            if task.is_leader {
                next = index + 1;
            }
            let totals = &mut processes[index].totals;
            *totals = totals.max(&task.dead).plus(&task.own);
            true
        })
        .collect()
}

/// A process between its exit and its release, as its last thread left it.
pub struct Ending<T: Totals> {
    /// When its last thread exited, `CLOCK_MONOTONIC`.
    pub ended_ns: u64,
    /// What it had used then.
    pub last: Reading<T>,
}

/// Processes that are only counted together.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Folded<T> {
    /// How many.
    pub processes: u64,
    /// Their counters together.
    pub totals: T,
}

impl<T: Totals> std::iter::Sum for Folded<T> {
    fn sum<I: Iterator<Item = Self>>(parts: I) -> Self {
        parts.fold(Self::default(), |sum, part| Self {
            processes: sum.processes + part.processes,
            totals: sum.totals.plus(&part.totals),
        })
    }
}

/// A process with its counters since its start.
#[derive(Clone, Debug)]
pub struct Known<T: Totals> {
    /// Who it is.
    pub id: ProcessId,
    /// Its name, its parent and more.
    pub info: ProcessInfo,
    /// What it has beside counters.
    pub gauges: T::Gauges,
    /// As of the last snapshot: what has been told is never taken back.
    last: T,
    baseline: T,
    vanished_ns: Option<u64>,
}

impl<T: Totals> Known<T> {
    fn new(reading: Reading<T>) -> Self {
        Self {
            id: reading.id,
            info: reading.info,
            gauges: reading.gauges,
            last: T::default(),
            baseline: T::default(),
            vanished_ns: None,
        }
    }

    /// A process that has ended, with all its counters since its start.
    pub fn since_start(reading: Reading<T>) -> Self {
        Self::new(reading.clone()).end(reading)
    }

    /// Counters since the window began.
    pub fn counters(&self) -> T {
        self.last.minus(&self.baseline)
    }

    fn end(mut self, last: Reading<T>) -> Self {
        let comm = self.info.comm;
        // Records of processes whose exit was not seen say little.
        if last.info.parent.is_some() {
            self.info = last.info;
        }
        if self.info.comm.as_bytes().is_empty() {
            self.info.comm = comm;
        }
        self.last = self.last.advance(&last.totals);
        self.gauges = T::follow(&self.gauges, last.gauges);
        self.info.exited = true;
        self
    }
}

/// How a probe reads its records of processes that have ended: the types are those of the
/// values of the maps that [`Ledger::read`] names.
pub struct Decode<'a, T: Totals, E, X, F> {
    /// A process between its exit and its release; `None` if threads of it are left.
    pub ending: &'a dyn Fn(&E) -> Option<Ending<T>>,
    /// The final record of a process.
    pub ended: &'a dyn Fn(&X) -> Reading<T>,
    /// What one CPU folded.
    pub folded: &'a dyn Fn(&F) -> Folded<T>,
}

/// What is known of every process since the window began: from what is read of the living
/// and of those that have ended, the rows of a window.
///
/// A probe hands it all that a walk showed with [`read`](Self::read), makes rows of
/// [`processes`](Self::processes) and [`folded`](Self::folded), and ends the window with
/// [`rebase`](Self::rebase). The other functions are what `read` consists of, for probes
/// that keep their records elsewhere.
#[derive(Debug)]
pub struct Ledger<T: Totals> {
    /// In ascending order of id: alive, or gone and not settled yet.
    known: Vec<Known<T>>,
    /// Ended and settled in this window.
    exited: Vec<Known<T>>,
    folded: Folded<T>,
    kernel_folded: Folded<T>,
    max_exited: usize,
    /// When the probe first looked, `CLOCK_BOOTTIME`. Who started before and was
    /// not alive then has ended before.
    began_ns: u64,
    /// Whether processes come in that have been there before: what they did until they
    /// are first seen is then no part of the window.
    pub(crate) admits_late: bool,
    /// The last walk, on the same clock.
    looked_ns: u64,
    /// How far `CLOCK_BOOTTIME` is ahead of `CLOCK_MONOTONIC`, at least.
    boottime_ahead_ns: u64,
    /// Processes of the window that ended without a final record: a loss.
    pub exit_record_missing: u64,
}

impl<T: Totals> Ledger<T> {
    /// As [`begin`](Self::begin), at a moment of `CLOCK_BOOTTIME`.
    pub(crate) fn new(max_exited: usize, began_ns: u64) -> Self {
        Self {
            known: Vec::new(),
            exited: Vec::new(),
            folded: Folded::default(),
            kernel_folded: Folded::default(),
            max_exited,
            began_ns,
            admits_late: false,
            looked_ns: began_ns,
            boottime_ahead_ns: 0,
            exit_record_missing: 0,
        }
    }

    /// With at most so many exited processes one by one, beginning now.
    pub fn begin(max_exited: usize) -> Self {
        let boottime_ahead_ns = sys::boottime_ns().saturating_sub(sys::monotonic_ns());
        Self { boottime_ahead_ns, ..Self::new(max_exited, sys::boottime_ns()) }
    }

    /// Starts a new window with what is known now; who has exited is forgotten.
    pub fn rebase(&mut self) {
        for process in &mut self.known {
            process.baseline = process.last;
            T::rebase(&mut process.gauges);
        }
        self.exited.clear();
        self.folded = Folded::default();
        self.exit_record_missing = 0;
    }

    /// Processes of the window in ascending order of id.
    pub fn processes(&self) -> Vec<&Known<T>> {
        let mut all: Vec<_> = self.known.iter().chain(&self.exited).collect();
        if !self.exited.is_empty() {
            all.sort_by_key(|process| process.id);
        }
        all
    }

    /// The exited beyond the bound.
    pub fn folded(&self) -> Folded<T> {
        self.folded
    }

    /// Takes in all that a read showed: who is alive, in ascending order of id, and from
    /// three maps of the object by the names that all probes use who is not.
    ///
    /// * `ending`, a hash of `E` by process: written at the exit of the last thread,
    ///   deleted at the release;
    /// * `exited`, a hash of `X` by process: the final records, written at the release;
    /// * `folded`, one `F` per CPU: the sum of those that `exited` had no room for.
    ///
    /// `sees_all` is whether the walk shows every process of the machine: in another PID
    /// namespace a zombie cannot be told from the gone.
    ///
    /// # Errors
    /// Where the kernel refuses to be read.
    pub fn read<E: Pod, X: Pod, F: Pod>(
        &mut self,
        object: &Object,
        (live, end_ns): (Vec<Reading<T>>, u64),
        sees_all: bool,
        decode: Decode<'_, T, E, X, F>,
    ) -> Result<()> {
        // In the order of a process's end, and after the walk: who is gone by now is in
        // one of these, or will be.
        let mut ending = object.read_all::<ProcessKey, E>("ending")?;
        let ended = object.take_all::<ProcessKey, X>("exited")?;
        let folded = object.per_cpu::<F>("folded", 0);
        let released: HashSet<_> = ended.iter().map(|(key, _)| key.process()).collect();
        ending.retain(|(key, _)| !released.contains(&key.process()));

        self.live(live, end_ns);
        // before anything fails: these have been taken out of the map
        self.ended(ended.iter().map(|(_, record)| (decode.ended)(record)));
        self.kernel_folded(
            folded?.iter().map(decode.folded).sum(),
            &ending.iter().map(|(key, _)| key.process()).collect(),
        );
        if sees_all {
            let ending = ending.iter().filter_map(|(_, record)| (decode.ending)(record));
            let taken = self.overdue(ending, end_ns);
            let taken: Vec<_> = taken.into_iter().map(ProcessKey::from).collect();
            object.delete("ending", &taken)?;
        }
        Ok(())
    }

    /// Takes in who is alive, in ascending order of id.
    pub(crate) fn live(&mut self, processes: Vec<Reading<T>>, now_ns: u64) {
        let before = std::mem::take(&mut self.known);
        self.known.reserve(processes.len());
        let mut before = before.into_iter().peekable();
        for process in processes {
            while let Some(gone) = before.next_if(|known| known.id < process.id) {
                self.known.push(vanished(gone, now_ns));
            }
            let totals = process.totals;
            let mut known = Known::new(process);
            let before = before.next_if(|before| before.id == known.id);
            let gauges = before.as_ref().map(|before| before.gauges.clone()).unwrap_or_default();
            known.gauges = T::follow(&gauges, known.gauges);
            if let Some(before) = before {
                (known.last, known.baseline) = (before.last, before.baseline);
            } else if self.came_late(known.id) {
                known.baseline = totals;
            }
            known.last = known.last.advance(&totals);
            self.known.push(known);
        }
        self.known.extend(before.map(|gone| vanished(gone, now_ns)));
        self.looked_ns = now_ns + self.boottime_ahead_ns;
    }

    /// Whether a process that is not known was there at the last walk all the same.
    fn came_late(&self, process: ProcessId) -> bool {
        /// Being started, it has a start time before the walk can see it.
        const STARTING_NS: u64 = 100_000_000;
        self.admits_late && process.start_time_ns + STARTING_NS < self.looked_ns
    }

    /// Takes in final records of processes.
    pub(crate) fn ended(&mut self, records: impl IntoIterator<Item = Reading<T>>) {
        let mut settled = Vec::new();
        for record in records {
            let known = match self.known.binary_search_by_key(&record.id, |known| known.id) {
                Ok(index) => {
                    settled.push(index);
                    self.known[index].clone()
                }
                // ended before, but is released only now
                Err(_) if record.id.start_time_ns < self.began_ns => continue,
                Err(_) => {
                    let baseline = match self.came_late(record.id) {
                        true => record.totals,
                        false => T::default(),
                    };
                    Known { baseline, ..Known::new(record.clone()) }
                }
            };
            self.settle(known.end(record));
        }
        settled.sort_unstable();
        self.forget(&settled);
    }

    /// Takes in the sums of the processes that the kernel side had no room for.
    ///
    /// A process known before is among them if it is gone without a final record
    /// and no longer `ending`. What is known of it keeps its own row and leaves
    /// the sum, which has all that it ever used.
    pub(crate) fn kernel_folded(&mut self, now: Folded<T>, ending: &HashSet<ProcessId>) {
        let mut unmatched = now.processes - self.kernel_folded.processes;
        self.folded.processes += unmatched;
        let totals = now.totals.minus(&self.kernel_folded.totals);
        self.folded.totals = self.folded.totals.plus(&totals);
        self.kernel_folded = now;
        if unmatched == 0 {
            return;
        }
        let mut settled = Vec::new();
        for index in 0..self.known.len() {
            let known = &self.known[index];
            if unmatched == 0 || known.vanished_ns.is_none() || ending.contains(&known.id) {
                continue;
            }
            unmatched -= 1;
            self.folded.processes -= 1;
            self.folded.totals = self.folded.totals.minus(&known.last);
            self.settle(exited(known.clone()));
            settled.push(index);
        }
        self.forget(&settled);
    }

    /// Settles processes that are gone and of which no record is to come, for probes
    /// whose kernel side only keeps records of some.
    pub(crate) fn ended_without_record(&mut self, awaited: &HashSet<ProcessId>) {
        let mut settled = Vec::new();
        for index in 0..self.known.len() {
            let known = &self.known[index];
            if known.vanished_ns.is_some() && !awaited.contains(&known.id) {
                self.settle(exited(known.clone()));
                settled.push(index);
            }
        }
        self.forget(&settled);
    }

    /// Settles processes whose final record never came, with the best that is
    /// known. Returns those to be taken out of the kernel's map.
    pub(crate) fn overdue(
        &mut self,
        ending: impl IntoIterator<Item = Ending<T>>,
        now_ns: u64,
    ) -> Vec<ProcessId> {
        let overdue = |since: u64| now_ns.saturating_sub(since) > RELEASE_TIMEOUT_NS;
        let mut settled = Vec::new();
        let mut taken = Vec::new();
        for Ending { ended_ns, last } in ending {
            if !overdue(ended_ns) {
                continue;
            }
            let known = match self.known.binary_search_by_key(&last.id, |known| known.id) {
                // a zombie: nobody has waited for it yet
                Ok(index) if self.known[index].vanished_ns.is_none() => continue,
                Ok(index) => {
                    settled.push(index);
                    self.known[index].clone()
                }
                // ended while the probe was being attached
                Err(_) if last.id.start_time_ns < self.began_ns => {
                    taken.push(last.id);
                    continue;
                }
                Err(_) => Known::new(last.clone()),
            };
            taken.push(last.id);
            self.exit_record_missing += 1;
            self.settle(known.end(last));
        }
        settled.sort_unstable();
        self.forget(&settled);

        // Nothing came of these at all.
        settled.clear();
        for index in 0..self.known.len() {
            let known = &self.known[index];
            if known.vanished_ns.is_some_and(overdue) {
                self.exit_record_missing += 1;
                self.settle(exited(known.clone()));
                settled.push(index);
            }
        }
        self.forget(&settled);
        taken
    }

    fn settle(&mut self, process: Known<T>) {
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

fn vanished<T: Totals>(mut process: Known<T>, now_ns: u64) -> Known<T> {
    process.vanished_ns.get_or_insert(now_ns);
    process
}

fn exited<T: Totals>(mut process: Known<T>) -> Known<T> {
    process.info.exited = true;
    process
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::Comm;

    #[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
    struct Ns(u64);

    impl Totals for Ns {
        type Gauges = ();

        fn zip(&self, other: &Self, f: impl Fn(u64, u64) -> u64) -> Self {
            Self(f(self.0, other.0))
        }
    }

    fn reading(pid: u32, start_time_ns: u64, ns: u64) -> Reading<Ns> {
        let info = ProcessInfo {
            comm: Comm::from_bytes(*b"task\0\0\0\0\0\0\0\0\0\0\0\0"),
            parent: Some(ProcessId { pid: 1, start_time_ns: 0 }),
            ..ProcessInfo::default()
        };
        Reading { id: ProcessId { pid, start_time_ns }, info, totals: Ns(ns), gauges: () }
    }

    fn ending(pid: u32, start: u64, ns: u64, ended_ns: u64) -> Ending<Ns> {
        Ending { ended_ns, last: reading(pid, start, ns) }
    }

    fn rows(ledger: &Ledger<Ns>) -> Vec<(u32, u64, u64, bool)> {
        let row = |p: &&Known<Ns>| (p.id.pid, p.id.start_time_ns, p.counters().0, p.info.exited);
        ledger.processes().iter().map(row).collect()
    }

    /// Tasks as (tgid, tid, own, dead); starts are tgid * 1000.
    fn sums(tasks: &[(u32, u32, u64, u64)]) -> (Vec<(u32, u64)>, Vec<bool>) {
        let start = |tgid: u32| u64::from(tgid) * 1000;
        let leaders = tasks.iter().filter(|(tgid, tid, ..)| tgid == tid);
        let mut processes: Vec<_> =
            leaders.map(|&(tgid, ..)| reading(tgid, start(tgid), 0)).collect();
        let placed = sum_up(
            &mut processes,
            tasks.iter().map(|&(tgid, tid, own, dead)| TaskTotals {
                process: ProcessId { pid: tgid, start_time_ns: start(tgid) },
                is_leader: tgid == tid,
                own: Ns(own),
                dead: Ns(dead),
            }),
        );
        (processes.iter().map(|p| (p.id.pid, p.totals.0)).collect(), placed)
    }

    #[test]
    fn threads_and_dead_threads_add_up() {
        let (sums, placed) =
            sums(&[(10, 10, 5, 100), (11, 11, 7, 0), (10, 12, 20, 100), (10, 13, 30, 100)]);
        assert_eq!(sums, [(10, 155), (11, 7)]);
        assert_eq!(placed, [true; 4]);
    }

    #[test]
    fn a_thread_that_exits_during_the_walk_counts_once_at_most() {
        // 12 (20 ns) was read, exited, and its time joined the dead of 13.
        assert_eq!(sums(&[(10, 10, 5, 0), (10, 12, 20, 0), (10, 13, 30, 20)]).0, [(10, 55)]);
        // 12 exited before it was read.
        assert_eq!(sums(&[(10, 10, 5, 0), (10, 13, 30, 20)]).0, [(10, 50)]);
    }

    #[test]
    fn a_thread_may_come_before_its_leader() {
        assert_eq!(sums(&[(10, 3, 20, 0), (5, 5, 1, 0), (10, 10, 5, 0)]).0, [(5, 1), (10, 25)]);
    }

    #[test]
    fn a_thread_without_leader_is_left_out() {
        assert_eq!(sums(&[(10, 12, 20, 0)]), (vec![], vec![false]));
    }

    #[test]
    fn counters_start_at_the_baseline_and_never_go_back() {
        let mut ledger = Ledger::new(9, 0);
        ledger.live(vec![reading(1, 10, 100), reading(5, 50, 7)], 0);
        ledger.rebase();
        ledger.live(vec![reading(1, 10, 130), reading(5, 50, 7), reading(9, 90, 4)], 1);
        assert_eq!(rows(&ledger), [(1, 10, 30, false), (5, 50, 0, false), (9, 90, 4, false)]);
        ledger.live(vec![reading(1, 10, 120), reading(5, 50, 9), reading(9, 90, 4)], 2);
        assert_eq!(rows(&ledger), [(1, 10, 30, false), (5, 50, 2, false), (9, 90, 4, false)]);
    }

    #[test]
    fn who_comes_late_counts_from_then_on() {
        const SECOND: u64 = 1_000_000_000;
        let mut ledger = Ledger::new(9, 0);
        ledger.admits_late = true;
        ledger.live(vec![reading(1, 10, 100)], 10 * SECOND);
        // 2 was there before; 3 had just begun to start
        let just = 10 * SECOND - 1_000_000;
        ledger
            .live(vec![reading(1, 10, 110), reading(2, 20, 70), reading(3, just, 5)], 11 * SECOND);
        let counters: Vec<_> = rows(&ledger).into_iter().map(|row| (row.0, row.2)).collect();
        assert_eq!(counters, [(1, 110), (2, 0), (3, 5)]);
        ledger.live(vec![reading(1, 10, 110), reading(2, 20, 75)], 12 * SECOND);
        assert_eq!(rows(&ledger)[1], (2, 20, 5, false));
        // and ended before the next walk
        ledger.ended([reading(5, 50, 1000)]);
        assert_eq!(rows(&ledger).last(), Some(&(5, 50, 0, true)));
    }

    #[test]
    fn a_reused_pid_is_another_process() {
        let mut ledger = Ledger::new(9, 0);
        ledger.live(vec![reading(5, 50, 7)], 0);
        ledger.live(vec![reading(5, 60, 1)], 1);
        ledger.ended([reading(5, 50, 8)]);
        assert_eq!(rows(&ledger), [(5, 50, 8, true), (5, 60, 1, false)]);
    }

    #[test]
    fn a_process_that_vanished_keeps_its_row_until_its_record_comes() {
        let mut ledger = Ledger::new(9, 0);
        ledger.live(vec![reading(5, 50, 7)], 0);
        ledger.live(vec![], 1);
        assert_eq!(rows(&ledger), [(5, 50, 7, false)]);
        ledger.rebase();
        ledger.ended([reading(5, 50, 11)]);
        assert_eq!(rows(&ledger), [(5, 50, 4, true)]);
        ledger.rebase();
        assert_eq!(rows(&ledger), []);
    }

    #[test]
    fn a_process_between_two_reads_shows_in_full() {
        let mut ledger = Ledger::new(9, 0);
        ledger.ended([reading(5, 50, 11), reading(4, 40, 1)]);
        assert_eq!(rows(&ledger), [(4, 40, 1, true), (5, 50, 11, true)]);
    }

    #[test]
    fn a_process_that_ended_before_the_probe_looked_is_not_of_the_window() {
        let mut ledger = Ledger::new(9, 55);
        ledger.live(vec![reading(4, 40, 7)], 0);
        ledger.ended([reading(4, 40, 9), reading(5, 50, 11), reading(6, 60, 13)]);
        assert_eq!(rows(&ledger), [(4, 40, 9, true), (6, 60, 13, true)]);
    }

    #[test]
    fn past_the_bound_the_exited_are_folded_and_counted() {
        for (bound, listed, folded) in [(0, 0, 3), (1, 1, 2), (2, 2, 1), (3, 3, 0), (100, 3, 0)] {
            let mut ledger = Ledger::new(bound, 0);
            ledger.ended([reading(1, 10, 100), reading(2, 20, 100), reading(3, 30, 100)]);
            assert_eq!(ledger.processes().len(), listed);
            assert_eq!(ledger.folded().processes, folded);
            let in_rows: u64 = rows(&ledger).iter().map(|row| row.2).sum();
            assert_eq!(in_rows + ledger.folded().totals.0, 300);
        }
    }

    #[test]
    fn folding_in_the_kernel_does_not_count_the_known_twice() {
        let mut ledger = Ledger::new(9, 0);
        let none = HashSet::new();
        ledger.live(vec![reading(5, 50, 1000)], 0);
        ledger.rebase();
        ledger.live(vec![reading(5, 50, 1010)], 1);
        // 5 ends at 1020, beside two that nobody saw, of 3 ns each
        ledger.live(vec![], 2);
        let totals = Ns(1026);
        ledger.kernel_folded(Folded { processes: 3, totals }, &none);
        assert_eq!(rows(&ledger), [(5, 50, 10, true)]);
        assert_eq!(ledger.folded(), Folded { processes: 2, totals: Ns(16) });
        assert_eq!(ledger.exit_record_missing, 0);
        // the next window has neither, and nothing is left to match
        ledger.rebase();
        ledger.live(vec![], 3);
        ledger.kernel_folded(Folded { processes: 3, totals }, &none);
        assert!(ledger.overdue([], 3 + RELEASE_TIMEOUT_NS).is_empty());
        assert_eq!((rows(&ledger), ledger.folded()), (vec![], Folded::default()));
    }

    #[test]
    fn a_process_that_is_still_ending_is_not_among_the_folded() {
        let mut ledger = Ledger::new(9, 0);
        ledger.live(vec![reading(5, 50, 10)], 0);
        ledger.live(vec![], 1);
        let ending = HashSet::from([ProcessId { pid: 5, start_time_ns: 50 }]);
        ledger.kernel_folded(Folded { processes: 1, totals: Ns(3) }, &ending);
        assert_eq!(rows(&ledger), [(5, 50, 10, false)]);
        assert_eq!(ledger.folded(), Folded { processes: 1, totals: Ns(3) });
    }

    #[test]
    fn a_record_that_never_comes_is_replaced_and_counted() {
        let mut ledger = Ledger::new(9, 0);
        ledger.live(vec![reading(5, 50, 7), reading(6, 60, 7)], 0);
        ledger.live(vec![reading(6, 60, 8)], 1);
        let states = || [ending(5, 50, 9, 1), ending(6, 60, 9, 1), ending(7, 70, 3, 1)];
        assert!(ledger.overdue(states(), RELEASE_TIMEOUT_NS).is_empty());
        let taken = ledger.overdue(states(), 2 + RELEASE_TIMEOUT_NS);
        // 6 is a zombie and stays
        assert_eq!(taken.iter().map(|id| id.pid).collect::<Vec<_>>(), [5, 7]);
        assert_eq!(rows(&ledger), [(5, 50, 9, true), (6, 60, 8, false), (7, 70, 3, true)]);
        assert_eq!(ledger.exit_record_missing, 2);
    }

    #[test]
    fn a_process_of_which_nothing_comes_ends_with_what_was_known() {
        let mut ledger = Ledger::new(9, 0);
        ledger.live(vec![reading(5, 50, 7)], 0);
        ledger.live(vec![], 1);
        ledger.overdue([], 2 + RELEASE_TIMEOUT_NS);
        assert_eq!(rows(&ledger), [(5, 50, 7, true)]);
        assert_eq!(ledger.exit_record_missing, 1);
    }

    #[test]
    fn a_process_without_a_record_to_come_ends_at_once() {
        let mut ledger = Ledger::new(9, 0);
        ledger.live(vec![reading(5, 50, 7), reading(6, 60, 8)], 0);
        ledger.live(vec![], 1);
        ledger.ended_without_record(&HashSet::from([ProcessId { pid: 6, start_time_ns: 60 }]));
        assert_eq!(rows(&ledger), [(5, 50, 7, true), (6, 60, 8, false)]);
        assert_eq!(ledger.exit_record_missing, 0);
    }
}
