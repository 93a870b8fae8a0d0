//! The table of rows in the kernel: what came to each row since the last read, and which rows
//! can be reused. Pure: no system access.

use std::time::Duration;

use super::{
    class::{DiskClass, DiskOperation},
    counters::DiskCounters,
    latency::DiskLatency,
};
use crate::{
    histogram::Histogram,
    process::ProcessId,
    record::{DiskRowKey, DiskRowRecord},
};

/// Rows reserved for unattributed operations, one per device and kind of operation. They come
/// first in the table.
pub(super) const SPARE_ROWS: u32 = 128;

/// All rows as of the last read, by their place in the kernel's table.
#[derive(Debug, Default)]
pub(super) struct RowTable {
    places: Vec<Option<KnownRow>>,
}

#[derive(Clone, Debug)]
struct KnownRow {
    last: DiskRowRecord,
    /// Reads since it last changed.
    unchanged: u32,
    retired: bool,
}

/// Operations of one row.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(super) struct Figures {
    pub(super) counters: DiskCounters,
    pub(super) latency: DiskLatency,
}

/// What the kernel has to change for rows of processes that are gone.
#[derive(Debug, Default, PartialEq, Eq)]
pub(super) struct Retired {
    /// Keys to delete from the index, so that no further operation finds their rows.
    pub(super) keys: Vec<DiskRowKey>,
    /// Places that have not changed since their key was deleted: free for other rows.
    pub(super) places: Vec<u32>,
}

impl DiskRowKey {
    /// Rows that have never been used have no device.
    fn is_taken(&self) -> bool {
        self.device != 0
    }

    /// The process that is charged; `None` for none.
    pub(super) fn process(&self) -> Option<ProcessId> {
        let process = ProcessId { pid: self.tgid, start_time_ns: self.start_ns };
        (self.tgid != 0 && self.class().is_some()).then_some(process)
    }

    pub(super) fn class(&self) -> Option<DiskClass> {
        DiskClass::from_record(self.class)
    }
}

impl DiskRowRecord {
    /// Operations since an earlier reading. Buckets and errors have 32 bits: correct unless
    /// 4 billion operations complete between two reads.
    pub(super) fn since(&self, before: &Self) -> Figures {
        let histogram =
            |now: &[u32; Histogram::BUCKETS], before: &[u32; Histogram::BUCKETS], ns| {
                let counts = std::array::from_fn(|i| u64::from(now[i].wrapping_sub(before[i])));
                Histogram::from_counts(counts, Duration::from_nanos(ns))
            };
        let operation = DiskOperation::from_record(self.key.operation);
        let queue_ns = self.queue_ns.wrapping_sub(before.queue_ns);
        let device_ns = self.device_ns.wrapping_sub(before.device_ns);
        let queue = histogram(&self.queue_buckets, &before.queue_buckets, queue_ns);
        let device = histogram(&self.device_buckets, &before.device_buckets, device_ns);
        let unseen = u64::from(self.unseen.wrapping_sub(before.unseen));
        let counters = DiskCounters::of(
            operation,
            device.count() + unseen,
            self.bytes.wrapping_sub(before.bytes),
            u64::from(self.errors.wrapping_sub(before.errors)),
        );
        Figures { counters, latency: DiskLatency { operation, queue, device } }
    }
}

impl Figures {
    fn is_empty(&self) -> bool {
        self.counters.is_zero() && self.latency.device.is_empty()
    }

    pub(super) fn add(&mut self, more: &Self) {
        self.counters += &more.counters;
        self.latency.queue += &more.latency.queue;
        self.latency.device += &more.latency.device;
    }
}

impl RowTable {
    /// Number of places up to the last that has been used.
    pub(super) fn len(&self) -> usize {
        self.places.len()
    }

    /// Takes in adjacent rows that begin at a place, and passes on what came to each. Returns
    /// whether any of them is in use.
    pub(super) fn take_in(
        &mut self,
        first: u32,
        rows: &[DiskRowRecord],
        mut grown: impl FnMut(&DiskRowKey, &Figures),
    ) -> bool {
        let mut any = false;
        for (place, row) in (first as usize..).zip(rows) {
            if !row.key.is_taken() {
                continue;
            }
            any = true;
            if self.places.len() <= place {
                self.places.resize(place + 1, None);
            }
            let known = self.places[place].get_or_insert_with(|| KnownRow::new(row.key));
            if known.last.key != row.key {
                *known = KnownRow::new(row.key);
            }
            let figures = row.since(&known.last);
            known.last = *row;
            if figures.is_empty() {
                known.unchanged = known.unchanged.saturating_add(1);
            } else {
                known.unchanged = 0;
                grown(&row.key, &figures);
            }
        }
        any
    }

    /// What came to a row since it was taken in.
    pub(super) fn since_taken_in(&self, place: u32, row: &DiskRowRecord) -> Figures {
        let known = self.places.get(place as usize).and_then(Option::as_ref);
        match known.filter(|known| known.last.key == row.key) {
            Some(known) => row.since(&known.last),
            None => row.since(&KnownRow::new(row.key).last),
        }
    }

    /// Finds the rows to remove: those of processes that are gone, if they have not changed
    /// for two reads.
    ///
    /// A row first leaves the kernel's index. If it still has not changed at a later read, its
    /// place is reused. An operation that found the row before it left the index is counted.
    pub(super) fn retire(&mut self, is_alive: impl Fn(&ProcessId) -> bool) -> Retired {
        const UNCHANGED: u32 = 2;
        let mut retired = Retired::default();
        for (place, entry) in self.places.iter_mut().enumerate() {
            let Some(row) = entry.as_mut().filter(|row| row.unchanged >= UNCHANGED) else {
                continue;
            };
            if row.last.key.process().is_none_or(|process| is_alive(&process)) {
                continue;
            }
            if row.retired {
                retired.places.push(place as u32);
                *entry = None;
            } else {
                row.retired = true;
                row.unchanged = 0;
                retired.keys.push(row.last.key);
            }
        }
        retired
    }
}

impl KnownRow {
    fn new(key: DiskRowKey) -> Self {
        let last = DiskRowRecord { key, ..bytemuck::Zeroable::zeroed() };
        Self { last, unchanged: 0, retired: false }
    }
}

#[cfg(test)]
pub(super) mod testing {
    use bytemuck::Zeroable;

    use super::*;

    pub(in super::super) fn key(pid: u32, device: u32) -> DiskRowKey {
        DiskRowKey { start_ns: u64::from(pid) * 10, tgid: pid, device, class: 0, operation: 0 }
    }

    pub(in super::super) fn row(key: DiskRowKey, reads: u32, bytes: u64) -> DiskRowRecord {
        let mut row = DiskRowRecord { key, bytes, ..DiskRowRecord::zeroed() };
        row.device_buckets[3] = reads;
        row.queue_buckets[0] = reads;
        row
    }
}

#[cfg(test)]
mod tests {
    use bytemuck::Zeroable;

    use super::{
        testing::{key, row},
        *,
    };

    fn take_in(table: &mut RowTable, rows: &[DiskRowRecord]) -> Vec<(u32, u64, u64)> {
        let mut grown = Vec::new();
        table.take_in(1, rows, |key, figures| {
            grown.push((key.tgid, figures.counters.reads, figures.counters.read_bytes));
        });
        grown
    }

    #[test]
    fn a_read_has_what_came_since_the_last() {
        let mut table = RowTable::default();
        let grown = take_in(&mut table, &[row(key(5, 8), 2, 100), DiskRowRecord::zeroed()]);
        assert_eq!(grown, [(5, 2, 100)]);
        let grown = take_in(&mut table, &[row(key(5, 8), 3, 150), row(key(6, 8), 1, 7)]);
        assert_eq!(grown, [(5, 1, 50), (6, 1, 7)]);
        let later = row(key(6, 8), 5, 8);
        assert_eq!(table.since_taken_in(2, &later).counters.reads, 4);
        assert_eq!(table.since_taken_in(9, &later).counters.reads, 5);
        let grown = take_in(&mut table, &[row(key(5, 8), 3, 150), later]);
        assert_eq!(grown, [(6, 4, 1)]);
        assert_eq!(table.len(), 3);
    }

    #[test]
    fn every_counter_is_its_own() {
        let mut of = DiskRowRecord {
            bytes: 1,
            queue_ns: 2,
            device_ns: 3,
            errors: 4,
            unseen: 5,
            ..row(key(5, 8), 0, 0)
        };
        of.queue_buckets[7] = 6;
        of.device_buckets[8] = 70;
        let Figures { counters, latency } = of.since(&DiskRowRecord::zeroed());
        assert_eq!((counters.reads, counters.read_bytes, counters.errors), (75, 1, 4));
        assert_eq!((latency.queue.count(), latency.queue.total().as_nanos()), (6, 2));
        assert_eq!((latency.device.count(), latency.device.total().as_nanos()), (70, 3));
        let quantile = |histogram: &Histogram| histogram.quantile(0.5).unwrap().from.as_nanos();
        assert_eq!((quantile(&latency.queue), quantile(&latency.device)), (1 << 16, 1 << 17));
    }

    #[test]
    fn counters_of_32_bits_may_wrap() {
        let mut table = RowTable::default();
        take_in(&mut table, &[row(key(5, 8), u32::MAX - 1, 0)]);
        assert_eq!(take_in(&mut table, &[row(key(5, 8), 3, 40)]), [(5, 5, 40)]);
    }

    #[test]
    fn a_place_that_is_reused_starts_from_nothing() {
        let mut table = RowTable::default();
        assert_eq!(take_in(&mut table, &[row(key(5, 8), 9, 90)]), [(5, 9, 90)]);
        assert_eq!(take_in(&mut table, &[row(key(6, 8), 2, 20)]), [(6, 2, 20)]);
    }

    #[test]
    fn rows_of_ended_processes_go_in_two_steps_and_only_while_they_do_not_change() {
        let mut table = RowTable::default();
        let mut read = |reads: u32| {
            take_in(&mut table, &[row(key(5, 8), reads, 0), row(key(6, 8), 1, 0)]);
            table.retire(|process| process.pid == 6)
        };
        assert_eq!([read(1), read(1)], [Retired::default(), Retired::default()]);
        assert_eq!(read(1), Retired { keys: vec![key(5, 8)], places: vec![] });
        assert_eq!([read(1), read(2), read(2)].map(|r| r.places.len()), [0; 3]);
        assert_eq!(read(2), Retired { keys: vec![], places: vec![1] });
        // from here on it is another row
        assert_eq!(read(7), Retired::default());
    }

    #[test]
    fn rows_of_no_process_stay() {
        let mut table = RowTable::default();
        let nobody = DiskRowKey { class: 6, ..key(0, 8) };
        assert_eq!(nobody.process(), None);
        for _ in 0..9 {
            take_in(&mut table, &[row(nobody, 1, 0)]);
            assert_eq!(table.retire(|_| false), Retired::default());
        }
    }
}
