//! From rows as the kernel side counts them to counters of a window, and which rows
//! can be given to others. Pure: no system access.

use std::collections::BTreeMap;

use super::{
    record::{RowKey, RowRecord},
    usage::{DiskClass, DiskLatency, DiskOperation, DiskCounters},
};
use crate::{Histogram, ProcessId};

/// Rows kept back for what finds no other, ahead of the rest: one per device and
/// operation.
pub(super) const SPARE_ROWS: u32 = 128;

/// All rows in the kernel, and what came to them since the window began.
#[derive(Debug, Default)]
pub(super) struct RowBook {
    /// By the row's place in the kernel's table.
    known: Vec<Option<KnownRow>>,
    window: BTreeMap<RowKey, Counted>,
}

#[derive(Clone, Debug)]
struct KnownRow {
    last: RowRecord,
    /// Reads since it last changed.
    unchanged: u32,
    retired: bool,
}

/// What was counted in a window by one key.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Counted {
    pub(super) usage: DiskCounters,
    pub(super) latency: DiskLatency,
    /// The device carries another device, where the same I/O is counted too.
    pub(super) carries: bool,
}

/// What to tell the kernel side about rows of processes that are gone.
#[derive(Debug, Default, PartialEq, Eq)]
pub(super) struct Retired {
    /// Keys under which no operation is to find its row any more.
    pub(super) keys: Vec<RowKey>,
    /// Places that nobody has written to since, free for other rows.
    pub(super) places: Vec<u32>,
}

impl RowKey {
    /// A row that nobody has taken yet has no device.
    pub(super) fn is_taken(&self) -> bool {
        self.device != 0
    }

    /// Who is charged; `None` if nobody is.
    pub(super) fn process(&self) -> Option<ProcessId> {
        let process = ProcessId { pid: self.tgid, start_time_ns: self.start_ns };
        (self.tgid != 0 && self.class().is_some()).then_some(process)
    }

    pub(super) fn class(&self) -> Option<DiskClass> {
        DiskClass::from_record(self.class)
    }

    fn operation(&self) -> DiskOperation {
        DiskOperation::from_record(self.operation)
    }
}

impl RowRecord {
    /// What came to it. Buckets and errors are counted with 32 bits: right unless
    /// 4 billion operations passed between two reads.
    fn since(&self, before: &Self) -> (DiskCounters, DiskLatency) {
        let buckets = |now: &[u32; Histogram::BUCKETS], before: &[u32; Histogram::BUCKETS]| {
            std::array::from_fn(|bucket| u64::from(now[bucket].wrapping_sub(before[bucket])))
        };
        let operation = self.key.operation();
        let queue = Histogram::from_counts(
            buckets(&self.queue_buckets, &before.queue_buckets),
            self.queue_ns.wrapping_sub(before.queue_ns),
        );
        let device = Histogram::from_counts(
            buckets(&self.device_buckets, &before.device_buckets),
            self.device_ns.wrapping_sub(before.device_ns),
        );
        let unseen = u64::from(self.unseen.wrapping_sub(before.unseen));
        let usage = DiskCounters::of(
            operation,
            device.count() + unseen,
            self.bytes.wrapping_sub(before.bytes),
            u64::from(self.errors.wrapping_sub(before.errors)),
        );
        (usage, DiskLatency { operation, queue, device })
    }
}

impl RowBook {
    /// How many places have ever been seen taken.
    pub(super) fn places(&self) -> usize {
        self.known.len()
    }

    /// Takes in rows that stand side by side from a place on; tells whether one of
    /// them is taken.
    pub(super) fn take_in(
        &mut self,
        first: u32,
        rows: &[RowRecord],
        carries: impl Fn(u32) -> bool,
    ) -> bool {
        let mut any = false;
        for (place, row) in (first as usize..).zip(rows) {
            if !row.key.is_taken() {
                continue;
            }
            any = true;
            if self.known.len() <= place {
                self.known.resize(place + 1, None);
            }
            let known = self.known[place].get_or_insert_with(|| KnownRow::new(row.key));
            if known.last.key != row.key {
                *known = KnownRow::new(row.key);
            }
            let (usage, latency) = row.since(&known.last);
            known.last = *row;
            if usage == DiskCounters::default() && latency.device.is_empty() {
                known.unchanged = known.unchanged.saturating_add(1);
                continue;
            }
            known.unchanged = 0;
            self.window
                .entry(row.key)
                .and_modify(|counted| counted.add(&usage, &latency))
                .or_insert_with(|| Counted { usage, latency, carries: carries(row.key.device) });
        }
        any
    }

    /// What was counted since the window began.
    pub(super) fn window(&self) -> impl Iterator<Item = (&RowKey, &Counted)> {
        self.window.iter()
    }

    /// Starts a new window.
    pub(super) fn rebase(&mut self) {
        self.window.clear();
    }

    /// Finds the rows that can go: of processes that are gone, and that stood still
    /// for two reads.
    ///
    /// First a row leaves the kernel's index, and only at a later read, if it stood
    /// still even so, its place goes to others: an operation that was on its way
    /// between is still counted.
    pub(super) fn retire(&mut self, is_alive: impl Fn(&ProcessId) -> bool) -> Retired {
        const STILL: u32 = 2;
        let mut retired = Retired::default();
        for (place, entry) in self.known.iter_mut().enumerate() {
            let Some(row) = entry.as_mut().filter(|row| row.unchanged >= STILL) else { continue };
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
    fn new(key: RowKey) -> Self {
        let last = RowRecord { key, ..bytemuck::Zeroable::zeroed() };
        Self { last, unchanged: 0, retired: false }
    }
}

impl Counted {
    fn add(&mut self, usage: &DiskCounters, latency: &DiskLatency) {
        self.usage = self.usage.plus(usage);
        self.latency.queue = self.latency.queue.merge(&latency.queue);
        self.latency.device = self.latency.device.merge(&latency.device);
    }
}

#[cfg(test)]
mod tests {
    use bytemuck::Zeroable;

    use super::*;

    fn key(pid: u32, device: u32) -> RowKey {
        RowKey { start_ns: u64::from(pid) * 10, tgid: pid, device, class: 0, operation: 0 }
    }

    fn row(key: RowKey, reads: u32, bytes: u64) -> RowRecord {
        let mut row = RowRecord { key, bytes, ..RowRecord::zeroed() };
        row.device_buckets[3] = reads;
        row.queue_buckets[0] = reads;
        row
    }

    fn counted(book: &RowBook) -> Vec<(u32, u64, u64)> {
        let row = |(key, counted): (&RowKey, &Counted)| {
            (key.tgid, counted.usage.reads, counted.usage.read_bytes)
        };
        book.window().map(row).collect()
    }

    #[test]
    fn a_window_has_what_came_since() {
        let mut book = RowBook::default();
        book.take_in(1, &[row(key(5, 8), 2, 100), RowRecord::zeroed()], |_| false);
        assert_eq!(counted(&book), [(5, 2, 100)]);
        book.take_in(1, &[row(key(5, 8), 3, 150), row(key(6, 8), 1, 7)], |_| false);
        assert_eq!(counted(&book), [(5, 3, 150), (6, 1, 7)]);
        book.rebase();
        assert_eq!(counted(&book), []);
        book.take_in(1, &[row(key(5, 8), 3, 150), row(key(6, 8), 5, 8)], |_| false);
        assert_eq!(counted(&book), [(6, 4, 1)]);
        assert_eq!(book.places(), 3);
    }

    #[test]
    fn every_counter_is_its_own() {
        let mut of = RowRecord {
            bytes: 1,
            queue_ns: 2,
            device_ns: 3,
            errors: 4,
            unseen: 5,
            ..row(key(5, 8), 0, 0)
        };
        of.queue_buckets[7] = 6;
        of.device_buckets[8] = 70;
        let (usage, latency) = of.since(&RowRecord::zeroed());
        assert_eq!((usage.reads, usage.read_bytes, usage.errors), (75, 1, 4));
        assert_eq!((latency.queue.count(), latency.queue.total().as_nanos()), (6, 2));
        assert_eq!((latency.device.count(), latency.device.total().as_nanos()), (70, 3));
        let quantile = |histogram: &Histogram| histogram.quantile(0.5).unwrap().from.as_nanos();
        assert_eq!((quantile(&latency.queue), quantile(&latency.device)), (1 << 16, 1 << 17));
    }

    #[test]
    fn counters_of_32_bits_may_wrap() {
        let mut book = RowBook::default();
        book.take_in(1, &[row(key(5, 8), u32::MAX - 1, 0)], |_| false);
        book.rebase();
        book.take_in(1, &[row(key(5, 8), 3, 40)], |_| false);
        assert_eq!(counted(&book), [(5, 5, 40)]);
    }

    #[test]
    fn a_place_given_to_another_starts_from_nothing() {
        let mut book = RowBook::default();
        book.take_in(1, &[row(key(5, 8), 9, 90)], |_| false);
        book.take_in(1, &[row(key(6, 8), 2, 20)], |_| false);
        assert_eq!(counted(&book), [(5, 9, 90), (6, 2, 20)]);
    }

    #[test]
    fn rows_of_the_dead_go_in_two_steps_and_only_while_they_stand_still() {
        let mut book = RowBook::default();
        let mut read = |reads: u32| {
            book.take_in(1, &[row(key(5, 8), reads, 0), row(key(6, 8), 1, 0)], |_| false);
            book.retire(|process| process.pid == 6)
        };
        let still = Retired::default();
        assert_eq!([read(1), read(1)], [still, Retired::default()]);
        assert_eq!(read(1), Retired { keys: vec![key(5, 8)], places: vec![] });
        assert_eq!([read(1), read(2), read(2)].map(|r| r.places.len()), [0; 3]);
        assert_eq!(read(2), Retired { keys: vec![], places: vec![1] });
        // what is there of it now is another row
        assert_eq!(read(7), Retired::default());
    }

    #[test]
    fn what_is_charged_to_nobody_stays() {
        let mut book = RowBook::default();
        let nobody = RowKey { class: 6, ..key(0, 8) };
        assert_eq!(nobody.process(), None);
        for _ in 0..9 {
            book.take_in(1, &[row(nobody, 1, 0)], |_| false);
            assert_eq!(book.retire(|_| false), Retired::default());
        }
    }

    #[test]
    fn whether_a_device_carries_another_is_settled_for_a_window() {
        let mut book = RowBook::default();
        let mut carries = |reads, now: bool| {
            book.take_in(1, &[row(key(5, 8), reads, 0)], |device| device == 8 && now);
            book.window().next().unwrap().1.carries
        };
        assert!(carries(1, true));
        assert!(carries(2, false));
    }
}
