//! From the books to the rows of a snapshot. Pure: no system access.

use std::{collections::BTreeMap, time::Duration};

use super::{
    books::{Counted, RowBook},
    decode::Totals,
    devices::DeviceBook,
    record::RowKey,
    snapshot::{DiskDevice, DiskDeviceId, DiskProcess},
    usage::{DiskByClass, DiskCounters, DiskLatency, DiskUsage},
};
use crate::{
    ProcessId, ProcessInfo,
    ledger::{Known, Reading},
};

/// Processes with their rows: those of the ledger, and those only charged now, of
/// whom `name` is asked.
pub(super) fn processes(
    ledger: &[&Known<Totals>],
    rows: &RowBook,
    has_io_accounting: bool,
    name: impl Fn(&ProcessId) -> ProcessInfo,
) -> Vec<DiskProcess> {
    let mut charged: BTreeMap<ProcessId, Vec<(&RowKey, &Counted)>> = BTreeMap::new();
    for (key, counted) in rows.window() {
        if let Some(process) = key.process() {
            charged.entry(process).or_default().push((key, counted));
        }
    }
    let mut processes: Vec<_> = (ledger.iter())
        .map(|known| {
            let rows = charged.remove(&known.id).unwrap_or_default();
            process(known.id, known.info, Some(known.counters()), &rows)
        })
        .collect();
    processes.extend(charged.iter().map(|(&id, rows)| {
        // it is not known to have dirtied more
        process(id, name(&id), None, rows)
    }));
    if !processes.is_sorted_by_key(|process| process.id) {
        processes.sort_by_key(|process| process.id);
    }
    if !has_io_accounting {
        processes.iter_mut().for_each(|process| forget_dirtied(&mut process.usage));
    }
    processes
}

/// What a process did that has ended, from all of its rows.
pub(super) fn final_usage(
    ended: Reading<Totals>,
    rows: &RowBook,
    has_io_accounting: bool,
) -> DiskUsage {
    let known = Known::since_start(ended);
    let rows: Vec<_> = rows.window().collect();
    let mut usage = process(known.id, known.info, Some(known.counters()), &rows).usage;
    if !has_io_accounting {
        forget_dirtied(&mut usage);
    }
    usage
}

fn forget_dirtied(usage: &mut DiskUsage) {
    usage.dirtied_bytes = None;
    usage.cancelled_bytes = None;
}

fn process(
    id: ProcessId,
    info: ProcessInfo,
    totals: Option<Totals>,
    rows: &[(&RowKey, &Counted)],
) -> DiskProcess {
    let totals = totals.unwrap_or_default();
    let mut usage = DiskUsage {
        dirtied_bytes: Some(totals.dirtied_bytes),
        cancelled_bytes: Some(totals.cancelled_bytes),
        ..DiskUsage::default()
    };
    for (key, counted) in rows {
        if !counted.carries {
            usage.total = usage.total.plus(&counted.usage);
            if let Some(class) = key.class() {
                usage.by_class.add(class, &counted.usage);
            }
        }
        let on = usage.on(DiskDeviceId::from_record(key.device));
        on.total = on.total.plus(&counted.usage);
        if !counted.latency.device.is_empty() {
            DiskLatency::merge(&mut on.latencies, &counted.latency);
        }
    }
    DiskProcess { id, info, usage }
}

/// What no process is charged with, on devices that carry no others.
pub(super) fn unattributed(rows: &RowBook) -> DiskCounters {
    let rows = rows.window().filter(|(key, row)| key.process().is_none() && !row.carries);
    rows.fold(DiskCounters::default(), |sum, (_, row)| sum.plus(&row.usage))
}

/// Devices with the sums of their rows; a disk has those of its partitions.
pub(super) fn devices(
    book: &DeviceBook,
    rows: &RowBook,
    busy_before: &BTreeMap<DiskDeviceId, u64>,
) -> Vec<DiskDevice> {
    let mut devices: BTreeMap<_, _> = book
        .iter()
        .map(|known| {
            let busy_ms = known.since(busy_before);
            let device = DiskDevice {
                name: known.name.clone(),
                id: known.id(),
                partition_of: known.partition_of,
                stacked: known.stacked,
                carries_others: known.carries,
                removed: known.removed,
                usage: DiskCounters::default(),
                by_class: DiskByClass::default(),
                unattributed: DiskCounters::default(),
                latencies: Vec::new(),
                busy: (!known.removed).then(|| Duration::from_millis(busy_ms)),
            };
            (known.id(), device)
        })
        .collect();
    for (key, counted) in rows.window() {
        let id = DiskDeviceId::from_record(key.device);
        let whole = devices.get(&id).and_then(|device| device.partition_of);
        for id in [Some(id), whole].into_iter().flatten() {
            if let Some(device) = devices.get_mut(&id) {
                device.add(key, counted);
            }
        }
    }
    devices.into_values().collect()
}

impl DiskDevice {
    fn add(&mut self, key: &RowKey, counted: &Counted) {
        self.usage = self.usage.plus(&counted.usage);
        if let Some(class) = key.class() {
            self.by_class.add(class, &counted.usage);
        }
        if key.process().is_none() {
            self.unattributed = self.unattributed.plus(&counted.usage);
        }
        if !counted.latency.device.is_empty() {
            DiskLatency::merge(&mut self.latencies, &counted.latency);
        }
    }
}

#[cfg(test)]
mod tests {
    use bytemuck::Zeroable;

    use super::*;
    use crate::probes::disk::record::RowRecord;

    const VDA: u32 = 254 << 20;
    const VDA1: u32 = VDA | 1;
    const DM: u32 = 253 << 20;

    /// Rows as (pid, device, class, operations of 100 bytes read each).
    fn book(rows: &[(u32, u32, u32, u32)], carries: u32) -> RowBook {
        let row = |&(tgid, device, class, reads): &(u32, u32, u32, u32)| {
            let key = RowKey { start_ns: 1, tgid, device, class, operation: 0 };
            let mut row =
                RowRecord { key, bytes: u64::from(reads) * 100, ..RowRecord::zeroed() };
            row.device_buckets[0] = reads;
            row.queue_buckets[0] = reads;
            row
        };
        let mut book = RowBook::default();
        let rows: Vec<_> = rows.iter().map(row).collect();
        book.take_in(1, &rows, |device| device == carries);
        book
    }

    fn devices_of(rows: &RowBook) -> Vec<DiskDevice> {
        let mut devices = DeviceBook::default();
        for (key, _) in rows.window() {
            devices.add(DiskDeviceId::from_record(key.device));
        }
        devices.partition(DiskDeviceId::from_record(VDA1), DiskDeviceId::from_record(VDA));
        devices.add(DiskDeviceId::from_record(VDA));
        super::devices(&devices, rows, &BTreeMap::new())
    }

    fn processes_of(rows: &RowBook) -> Vec<DiskProcess> {
        processes(&[], rows, true, |_| ProcessInfo::default())
    }

    #[test]
    fn a_disk_has_what_its_partitions_have() {
        let rows = book(&[(5, VDA1, 0, 2), (5, VDA, 0, 3), (6, VDA1, 4, 1)], 0);
        let devices = devices_of(&rows);
        let reads: Vec<_> = devices.iter().map(|d| (d.id.minor, d.usage.reads)).collect();
        assert_eq!(reads, [(0, 6), (1, 3)]);
        assert_eq!((devices[0].by_class.direct.reads, devices[0].by_class.journal.reads), (5, 1));
        assert_eq!(devices[0].latencies[0].device.count(), 6);
        // a process has each once
        let rows: Vec<_> = processes_of(&rows).iter().map(|p| (p.id.pid, p.usage.total.reads)).collect();
        assert_eq!(rows, [(5, 5), (6, 1)]);
    }

    #[test]
    fn a_process_has_the_topmost_of_stacked_devices() {
        let rows = book(&[(5, DM, 0, 2), (5, VDA1, 0, 2)], VDA1);
        let process = &processes_of(&rows)[0];
        assert_eq!((process.usage.total.reads, process.usage.by_class.direct.reads), (2, 2));
        assert_eq!(process.usage.devices.len(), 2);
        assert_eq!(unattributed(&rows), DiskCounters::default());
    }

    #[test]
    fn what_nobody_is_charged_with_stands_with_the_device() {
        // no note of who dirtied, no row left
        let rows = book(&[(0, VDA, 1, 2), (0, VDA, 6, 3), (5, VDA, 0, 1)], 0);
        let devices = devices_of(&rows);
        let disk = &devices[0];
        assert_eq!((disk.usage.reads, disk.unattributed.reads), (6, 5));
        assert_eq!((disk.by_class.write_back.reads, disk.by_class.direct.reads), (2, 1));
        assert_eq!(unattributed(&rows).reads, 5);
        assert_eq!(processes_of(&rows).len(), 1);
    }

    #[test]
    fn without_accounting_nothing_is_said_to_be_dirtied() {
        let rows = book(&[(5, VDA, 0, 2)], 0);
        let processes = processes(&[], &rows, false, |_| ProcessInfo::default());
        assert_eq!((processes[0].usage.dirtied_bytes, processes[0].usage.cancelled_bytes), (None, None));
    }
}
