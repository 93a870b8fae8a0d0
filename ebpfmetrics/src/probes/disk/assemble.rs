//! From the books to the rows of a snapshot. Pure: no system access.

use std::{collections::BTreeMap, time::Duration};

use super::{
    books::{Counted, RowBook},
    decode::Totals,
    devices::DeviceBook,
    record::RowKey,
    snapshot::{DiskDevice, DiskDeviceId, DiskProcess, DiskProcessDevice},
    usage::{DiskByClass, DiskLatency, DiskUsage},
};
use crate::{ProcessId, ProcessInfo, ledger::Known};

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
        for process in &mut processes {
            (process.dirtied_bytes, process.cancelled_bytes) = (None, None);
        }
    }
    processes
}

fn process(
    id: ProcessId,
    info: ProcessInfo,
    totals: Option<Totals>,
    rows: &[(&RowKey, &Counted)],
) -> DiskProcess {
    let totals = totals.unwrap_or_default();
    let mut process = DiskProcess {
        id,
        info,
        usage: DiskUsage::default(),
        by_class: DiskByClass::default(),
        dirtied_bytes: Some(totals.dirtied_bytes),
        cancelled_bytes: Some(totals.cancelled_bytes),
        devices: Vec::new(),
    };
    for (key, counted) in rows {
        if !counted.carries {
            process.usage = process.usage.plus(&counted.usage);
            if let Some(class) = key.class() {
                process.by_class.add(class, &counted.usage);
            }
        }
        let id = DiskDeviceId::from_record(key.device);
        // by process the rows come in the order of devices
        if process.devices.last().is_none_or(|last| last.device != id) {
            process.devices.push(DiskProcessDevice {
                device: id,
                usage: DiskUsage::default(),
                latencies: Vec::new(),
            });
        }
        if let Some(device) = process.devices.last_mut() {
            device.usage = device.usage.plus(&counted.usage);
            DiskLatency::merge(&mut device.latencies, &counted.latency);
        }
    }
    process
}

/// What no process is charged with, on devices that carry no others.
pub(super) fn unattributed(rows: &RowBook) -> DiskUsage {
    let rows = rows.window().filter(|(key, row)| key.process().is_none() && !row.carries);
    rows.fold(DiskUsage::default(), |sum, (_, row)| sum.plus(&row.usage))
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
                usage: DiskUsage::default(),
                by_class: DiskByClass::default(),
                unattributed: DiskUsage::default(),
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
        match key.class() {
            Some(class) => self.by_class.add(class, &counted.usage),
            None => self.unattributed = self.unattributed.plus(&counted.usage),
        }
        if !counted.latency.device.is_empty() {
            DiskLatency::merge(&mut self.latencies, &counted.latency);
        }
    }
}
