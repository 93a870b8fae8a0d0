//! What is charged to each process: in the window, and since the probe was loaded. Pure: no
//! system access.

use std::collections::{BTreeMap, HashMap, VecDeque, hash_map::Entry};

use super::{
    counters::DiskCounters,
    device::DiskDeviceId,
    latency::DiskLatency,
    rows::Figures,
    totals::{DiskTotals, IoAccounting},
    usage::DiskUsage,
};
use crate::{process::ProcessId, record::DiskRowKey};

/// The rows of all processes, and those of none.
#[derive(Debug, Default)]
pub(super) struct Charges {
    processes: HashMap<ProcessId, Charged>,
    unattributed: BTreeMap<DiskRowKey, Counted>,
    /// Processes that have ended, the longest ago first.
    ended: VecDeque<ProcessId>,
}

#[derive(Debug, Default)]
struct Charged {
    window: BTreeMap<DiskRowKey, Counted>,
    /// Up to the start of the window.
    before: DiskUsage,
    has_ended: bool,
}

/// Operations of one key in a window.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Counted {
    pub(super) figures: Figures,
    /// The device carries another device, where the same I/O is counted too. Fixed for a
    /// window.
    pub(super) carries: bool,
}

/// Totals of this many ended processes are kept: their pages may be written later.
const MAX_ENDED: usize = 4096;

impl Charges {
    /// Adds operations of a key. `carries` says whether its device carries others.
    pub(super) fn add(&mut self, key: &DiskRowKey, figures: &Figures, carries: impl Fn() -> bool) {
        let rows = match key.process() {
            Some(process) => &mut self.processes.entry(process).or_default().window,
            None => &mut self.unattributed,
        };
        rows.entry(*key)
            .and_modify(|counted| counted.figures.add(figures))
            .or_insert_with(|| Counted { figures: *figures, carries: carries() });
    }

    /// All operations of the window by key.
    pub(super) fn window(&self) -> impl Iterator<Item = (&DiskRowKey, &Counted)> {
        self.processes.values().flat_map(|charged| &charged.window).chain(&self.unattributed)
    }

    /// Processes that are charged with something in the window.
    pub(super) fn active(&self) -> impl Iterator<Item = ProcessId> + '_ {
        let active = self.processes.iter().filter(|(_, charged)| !charged.window.is_empty());
        active.map(|(id, _)| *id)
    }

    /// I/O of a process in the window.
    pub(super) fn in_window(&self, process: ProcessId) -> DiskUsage {
        self.processes.get(&process).map(Charged::in_window).unwrap_or_default()
    }

    /// I/O of a process since the probe was loaded.
    pub(super) fn total(&self, process: ProcessId) -> DiskUsage {
        self.processes.get(&process).map(Charged::total).unwrap_or_default()
    }

    /// I/O of no process, on devices that carry no others.
    pub(super) fn unattributed(&self) -> DiskCounters {
        let rows = self.unattributed.values().filter(|counted| !counted.carries);
        rows.map(|counted| &counted.figures.counters).sum()
    }

    /// A process has left the process table: keeps its final counters, for pages of it that
    /// are written later.
    pub(super) fn left(&mut self, process: ProcessId, totals: &DiskTotals) {
        let charged = match self.processes.entry(process) {
            Entry::Occupied(entry) => entry.into_mut(),
            Entry::Vacant(_) if totals.is_zero() => return,
            Entry::Vacant(entry) => entry.insert(Charged::default()),
        };
        // what the kernel does not count is left out when a usage is made of it
        IoAccounting::ALL.complete(&mut charged.before, totals);
    }

    /// Forgets processes that ended longest ago, so that their number stays bounded.
    pub(super) fn forget_ended(&mut self, is_alive: impl Fn(&ProcessId) -> bool) {
        for (process, charged) in &mut self.processes {
            if !charged.has_ended && !is_alive(process) {
                charged.has_ended = true;
                self.ended.push_back(*process);
            }
        }
        for _ in 0..self.ended.len().saturating_sub(MAX_ENDED) {
            let Some(process) = self.ended.pop_front() else { return };
            match self.processes.get(&process) {
                // its pages are being written
                Some(charged) if !charged.window.is_empty() => self.ended.push_back(process),
                _ => drop(self.processes.remove(&process)),
            }
        }
    }

    /// Starts a new window.
    pub(super) fn end_window(&mut self) {
        for charged in self.processes.values_mut() {
            if !charged.window.is_empty() {
                charged.before += charged.in_window();
                charged.window.clear();
            }
        }
        self.unattributed.clear();
    }
}

impl Charged {
    fn in_window(&self) -> DiskUsage {
        let mut usage = DiskUsage::default();
        for (key, counted) in &self.window {
            usage.charge(key, &counted.figures, counted.carries);
        }
        usage
    }

    fn total(&self) -> DiskUsage {
        let mut total = self.before.clone();
        if !self.window.is_empty() {
            total += self.in_window();
        }
        total
    }
}

impl DiskUsage {
    /// Adds operations of one key.
    pub(super) fn charge(&mut self, key: &DiskRowKey, figures: &Figures, carries: bool) {
        if !carries {
            self.total += &figures.counters;
            if let Some(class) = key.class() {
                *self.by_class.get_mut(class) += &figures.counters;
            }
        }
        let on = self.on(DiskDeviceId::from_record(key.device));
        on.total += &figures.counters;
        DiskLatency::merge(&mut on.latencies, &figures.latency);
    }
}

#[cfg(test)]
mod tests {
    use super::{
        super::rows::{
            RowTable,
            testing::{key, row},
        },
        *,
    };

    fn figures(key: &DiskRowKey, reads: u32) -> Figures {
        row(*key, reads, u64::from(reads) * 100).since(&row(*key, 0, 0))
    }

    fn id(pid: u32) -> ProcessId {
        ProcessId { pid, start_time_ns: u64::from(pid) * 10 }
    }

    #[test]
    fn a_window_and_the_total_have_what_came_in_them() {
        let mut charges = Charges::default();
        let reads = |charges: &Charges, pid| {
            (charges.in_window(id(pid)).total.reads, charges.total(id(pid)).total.reads)
        };
        charges.add(&key(5, 8), &figures(&key(5, 8), 2), || false);
        charges.add(&key(5, 8), &figures(&key(5, 8), 1), || false);
        charges.add(&key(6, 8), &figures(&key(6, 8), 7), || false);
        assert_eq!([5, 6, 7].map(|pid| reads(&charges, pid)), [(3, 3), (7, 7), (0, 0)]);
        charges.end_window();
        charges.add(&key(6, 8), &figures(&key(6, 8), 4), || false);
        assert_eq!([5, 6].map(|pid| reads(&charges, pid)), [(0, 3), (4, 11)]);
        assert_eq!(charges.active().collect::<Vec<_>>(), [id(6)]);
        assert_eq!(charges.total(id(6)).devices[0].latencies[0].device.count(), 11);
    }

    #[test]
    fn totals_are_those_of_all_windows_whatever_a_device_carried() {
        let mut charges = Charges::default();
        for (reads, carries, total) in [(1, true, 0), (2, false, 2), (4, true, 2)] {
            charges.add(&key(5, 8), &figures(&key(5, 8), reads), || carries);
            assert_eq!(charges.total(id(5)).total.reads, total);
            charges.end_window();
        }
        assert_eq!(charges.total(id(5)).devices[0].total.reads, 7);
    }

    #[test]
    fn whether_a_device_carries_another_is_fixed_for_a_window() {
        let mut charges = Charges::default();
        for now in [true, false] {
            charges.add(&key(5, 8), &figures(&key(5, 8), 1), || now);
            assert!(charges.window().next().unwrap().1.carries);
        }
    }

    #[test]
    fn ended_processes_keep_their_totals_until_there_are_too_many() {
        let mut charges = Charges::default();
        let dirtied = DiskTotals { dirtied_bytes: 7, cancelled_bytes: 3, ..DiskTotals::default() };
        charges.left(id(1), &dirtied);
        charges.left(id(2), &DiskTotals::default());
        charges.forget_ended(|_| false);
        assert_eq!(charges.total(id(1)).dirtied_bytes, Some(7));
        assert_eq!(charges.total(id(2)), DiskUsage::default());
        charges.add(&key(1, 8), &figures(&key(1, 8), 1), || false);
        charges.end_window();
        charges.add(&key(3, 8), &figures(&key(3, 8), 1), || false);
        charges.forget_ended(|process| process.pid == 4);
        for pid in 10..10 + MAX_ENDED as u32 {
            charges.left(id(pid), &dirtied);
        }
        charges.left(id(4), &dirtied);
        charges.forget_ended(|process| process.pid == 4);
        // forgotten, in use, alive
        let totals = [1, 3, 4].map(|pid| charges.total(id(pid)));
        assert_eq!(totals[0], DiskUsage::default());
        assert_eq!((totals[1].total.reads, totals[2].dirtied_bytes), (1, Some(7)));
        assert_eq!(charges.ended.len(), MAX_ENDED + 1);
    }

    #[test]
    fn a_table_and_its_charges_agree() {
        let (mut table, mut charges) = (RowTable::default(), Charges::default());
        for reads in [3, 5, 5] {
            table.take_in(1, &[row(key(5, 8), reads, 0)], |key, figures| {
                charges.add(key, figures, || false);
            });
        }
        assert_eq!(charges.in_window(id(5)).total.reads, 5);
    }
}
