use std::ops::AddAssign;

use super::{
    counters::{DiskByClass, DiskCounters},
    device::DiskDeviceId,
    latency::DiskLatency,
};
use crate::snapshot::{Usage, add_known, known_since};

/// Disk usage of a process over a window. Usages can be added.
///
/// Operations count when they complete at a device. Dirtied bytes are separate: dirty pages
/// are written later, more than once, or never if their file is removed first.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
#[cfg_attr(feature = "serde", derive(serde::Serialize, serde::Deserialize), serde(default))]
#[non_exhaustive]
pub struct DiskUsage {
    /// Operations charged to the process. If devices lie on one another, those of the topmost
    /// device.
    #[cfg_attr(feature = "serde", serde(flatten))]
    pub total: DiskCounters,
    /// The same by class.
    pub by_class: DiskByClass,
    /// Bytes of pages that its threads made dirty, and of writes that bypass the page cache:
    /// `task_io_accounting::write_bytes`. Unlike `write_bytes` in `/proc/PID/io` it does not
    /// include children that the process has waited for. `None` on kernels without
    /// `CONFIG_TASK_IO_ACCOUNTING`.
    #[doc(alias = "write_bytes")]
    pub dirtied_bytes: Option<u64>,
    /// Dirty bytes that its threads discarded before they were written, by removing or
    /// truncating a file, whichever process made them dirty:
    /// `task_io_accounting::cancelled_write_bytes`.
    #[doc(alias = "cancelled_write_bytes")]
    pub cancelled_bytes: Option<u64>,
    /// Bytes that its threads read by `read`, `readv`, `sendfile` and similar system calls, from
    /// anything: files in the page cache, pipes, terminals, most sockets. `rchar` of
    /// `task_io_accounting`, without children that the process has waited for. `None` on kernels
    /// without `CONFIG_TASK_XACCT`.
    #[doc(alias = "rchar")]
    pub read_chars: Option<u64>,
    /// Bytes that its threads wrote in the same ways: `wchar`.
    #[doc(alias = "wchar")]
    pub written_chars: Option<u64>,
    /// Number of system calls that read: `syscr`.
    #[doc(alias = "syscr")]
    pub read_calls: Option<u64>,
    /// Number of system calls that write: `syscw`.
    #[doc(alias = "syscw")]
    pub write_calls: Option<u64>,
    /// Operations and latencies by device, for all devices that it used.
    pub devices: Vec<DiskDeviceUsage>,
}

/// Disk usage of a process on one device.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
#[cfg_attr(feature = "serde", derive(serde::Serialize, serde::Deserialize))]
#[non_exhaustive]
pub struct DiskDeviceUsage {
    /// The disk or partition.
    #[cfg_attr(feature = "serde", serde(flatten))]
    pub device: DiskDeviceId,
    /// Operations charged to the process.
    #[cfg_attr(feature = "serde", serde(flatten))]
    pub total: DiskCounters,
    /// Latencies of the operations that occurred.
    pub latencies: Vec<DiskLatency>,
}

impl DiskUsage {
    /// The usage of a device, added if there is none.
    pub(super) fn on(&mut self, device: DiskDeviceId) -> &mut DiskDeviceUsage {
        let index = self.devices.binary_search_by_key(&device, |on| on.device);
        let index = index.unwrap_or_else(|index| {
            self.devices.insert(index, DiskDeviceUsage { device, ..DiskDeviceUsage::default() });
            index
        });
        &mut self.devices[index]
    }
}

impl AddAssign<&Self> for DiskUsage {
    fn add_assign(&mut self, more: &Self) {
        self.total += &more.total;
        self.by_class += &more.by_class;
        add_known(&mut self.dirtied_bytes, more.dirtied_bytes);
        add_known(&mut self.cancelled_bytes, more.cancelled_bytes);
        add_known(&mut self.read_chars, more.read_chars);
        add_known(&mut self.written_chars, more.written_chars);
        add_known(&mut self.read_calls, more.read_calls);
        add_known(&mut self.write_calls, more.write_calls);
        for more in &more.devices {
            let on = self.on(more.device);
            on.total += &more.total;
            more.latencies.iter().for_each(|it| DiskLatency::merge(&mut on.latencies, it));
        }
    }
}

crate::usage_operators!(DiskUsage);

impl Usage for DiskUsage {
    fn since(&self, earlier: &Self) -> Self {
        let devices = self.devices.iter().map(|now| {
            let index = earlier.devices.binary_search_by_key(&now.device, |on| on.device);
            let none = DiskDeviceUsage::default();
            let before = index.map_or(&none, |index| &earlier.devices[index]);
            DiskDeviceUsage {
                device: now.device,
                total: now.total.since(&before.total),
                latencies: DiskLatency::since(&now.latencies, &before.latencies),
            }
        });
        Self {
            total: self.total.since(&earlier.total),
            by_class: self.by_class.since(&earlier.by_class),
            dirtied_bytes: known_since(self.dirtied_bytes, earlier.dirtied_bytes),
            cancelled_bytes: known_since(self.cancelled_bytes, earlier.cancelled_bytes),
            read_chars: known_since(self.read_chars, earlier.read_chars),
            written_chars: known_since(self.written_chars, earlier.written_chars),
            read_calls: known_since(self.read_calls, earlier.read_calls),
            write_calls: known_since(self.write_calls, earlier.write_calls),
            devices: devices.filter(|on| !on.total.is_zero()).collect(),
        }
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::{super::class::DiskOperation, *};
    use crate::histogram::Histogram;

    const DEVICE: DiskDeviceId = DiskDeviceId { major: 8, minor: 0 };

    fn usage(reads: u64, device: DiskDeviceId) -> DiskUsage {
        let mut usage = DiskUsage { dirtied_bytes: Some(reads * 7), ..DiskUsage::default() };
        let counters = DiskCounters { reads, ..DiskCounters::default() };
        usage.total = counters;
        usage.by_class.foreground = counters;
        let mut queue = Histogram::default();
        (0..reads).for_each(|n| queue.record(Duration::from_micros(n)));
        let latency = DiskLatency { operation: DiskOperation::Read, queue, device: queue };
        *usage.on(device) = DiskDeviceUsage { device, total: counters, latencies: vec![latency] };
        usage
    }

    #[test]
    fn what_came_since_and_what_was_before_add_up() {
        let other = DiskDeviceId { major: 9, minor: 0 };
        let before = usage(3, DEVICE);
        let later = before.clone() + usage(5, other);
        assert_eq!(later.since(&before).devices, usage(5, other).devices);
        assert_eq!(later.since(&before).total.reads, 5);
        let grown = usage(8, DEVICE).since(&before);
        assert_eq!(before.clone() + grown, usage(8, DEVICE));
        assert_eq!(before.since(&before).devices, []);
    }

    #[test]
    fn sums_keep_known_bytes() {
        let unknown = DiskUsage { dirtied_bytes: None, ..usage(1, DEVICE) };
        let sum: DiskUsage = [unknown.clone(), usage(2, DEVICE), unknown].iter().sum();
        assert_eq!((sum.total.reads, sum.dirtied_bytes), (4, Some(14)));
        assert_eq!(DiskUsage::default() + usage(2, DEVICE), usage(2, DEVICE));
    }

    #[cfg(feature = "serde")]
    #[test]
    fn usages_round_trip_through_json() {
        let usage = usage(3, DEVICE);
        let json = serde_json::to_value(&usage).unwrap();
        assert_eq!((&json["reads"], &json["dirtied_bytes"]), (&3.into(), &21.into()));
        assert_eq!(json["devices"][0]["major"], 8);
        assert_eq!(serde_json::from_value::<DiskUsage>(json).unwrap(), usage);
    }
}
