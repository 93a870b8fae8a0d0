//! The devices of a snapshot. Pure: no system access.

use std::collections::BTreeMap;

use super::{
    charges::{Charges, Counted},
    device::{DiskDevice, DiskDeviceId},
    devices::DeviceBook,
    latency::DiskLatency,
};
use crate::record::DiskRowKey;

/// Devices with the sums of their rows; a disk includes those of its partitions.
pub(super) fn devices(book: &DeviceBook, charges: &Charges) -> Vec<DiskDevice> {
    let mut devices: BTreeMap<_, _> = (book.iter())
        .map(|known| {
            let device = DiskDevice {
                name: known.name.clone(),
                id: known.id(),
                partition_of: known.partition_of,
                stacked: known.stacked,
                carries_others: known.carries,
                removed: known.removed,
                busy: known.busy(),
                ..DiskDevice::default()
            };
            (known.id(), device)
        })
        .collect();
    for (key, counted) in charges.window() {
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
    fn add(&mut self, key: &DiskRowKey, Counted { figures, .. }: &Counted) {
        self.usage += &figures.counters;
        if let Some(class) = key.class() {
            *self.by_class.get_mut(class) += &figures.counters;
        }
        if key.process().is_none() {
            self.unattributed += &figures.counters;
        }
        DiskLatency::merge(&mut self.latencies, &figures.latency);
    }
}

#[cfg(test)]
mod tests {
    use super::{
        super::{counters::DiskCounters, rows::testing::row},
        *,
    };
    use crate::process::ProcessId;

    const VDA: u32 = 254 << 20;
    const VDA1: u32 = VDA | 1;
    const DM: u32 = 253 << 20;

    /// Rows as (pid, device, class, operations of 100 bytes read each).
    fn charges(rows: &[(u32, u32, u32, u32)], carries: u32) -> Charges {
        let mut charges = Charges::default();
        for &(tgid, device, class, reads) in rows {
            let key = DiskRowKey { start_ns: 1, tgid, device, class, operation: 0 };
            let figures = row(key, reads, u64::from(reads) * 100).since(&row(key, 0, 0));
            charges.add(&key, &figures, || device == carries);
        }
        charges
    }

    fn devices_of(charges: &Charges) -> Vec<DiskDevice> {
        let mut devices = DeviceBook::default();
        for (key, _) in charges.window() {
            devices.add_unknown(DiskDeviceId::from_record(key.device));
        }
        devices.partition(DiskDeviceId::from_record(VDA1), DiskDeviceId::from_record(VDA));
        devices.add_unknown(DiskDeviceId::from_record(VDA));
        devices.add_unknown(DiskDeviceId::from_record(VDA1));
        super::devices(&devices, charges)
    }

    fn id(pid: u32) -> ProcessId {
        ProcessId { pid, start_time_ns: 1 }
    }

    #[test]
    fn a_disk_has_what_its_partitions_have() {
        let charges = charges(&[(5, VDA1, 0, 2), (5, VDA, 0, 3), (6, VDA1, 4, 1)], 0);
        let devices = devices_of(&charges);
        let reads: Vec<_> = devices.iter().map(|d| (d.id.minor, d.usage.reads)).collect();
        assert_eq!(reads, [(0, 6), (1, 3)]);
        let by_class = &devices[0].by_class;
        assert_eq!((by_class.foreground.reads, by_class.journal.reads), (5, 1));
        assert_eq!(devices[0].latencies[0].device.count(), 6);
        // a process has each once
        assert_eq!([5, 6].map(|pid| charges.in_window(id(pid)).total.reads), [5, 1]);
    }

    #[test]
    fn a_process_has_the_topmost_of_stacked_devices() {
        let charges = charges(&[(5, DM, 0, 2), (5, VDA1, 0, 2)], VDA1);
        let usage = charges.in_window(id(5));
        assert_eq!((usage.total.reads, usage.by_class.foreground.reads), (2, 2));
        assert_eq!(usage.devices.len(), 2);
        assert_eq!(charges.unattributed(), DiskCounters::default());
    }

    #[test]
    fn what_no_process_is_charged_with_is_counted_for_the_device() {
        // an unknown owner, no row left
        let charges = charges(&[(0, VDA, 1, 2), (0, VDA, 6, 3), (5, VDA, 0, 1)], 0);
        let devices = devices_of(&charges);
        let disk = &devices[0];
        assert_eq!((disk.usage.reads, disk.unattributed.reads), (6, 5));
        assert_eq!((disk.by_class.write_back.reads, disk.by_class.foreground.reads), (2, 1));
        assert_eq!(charges.unattributed().reads, 5);
        assert_eq!(charges.active().count(), 1);
    }
}
