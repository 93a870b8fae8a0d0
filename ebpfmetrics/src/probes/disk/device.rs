use std::{fmt, str::FromStr, time::Duration};

use super::{
    counters::{DiskByClass, DiskCounters},
    latency::DiskLatency,
};
use crate::snapshot::Window;

/// The number of a block device, `MAJOR:MINOR` in the files of the kernel.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash)]
#[cfg_attr(feature = "serde", derive(serde::Serialize, serde::Deserialize))]
pub struct DiskDeviceId {
    /// The driver.
    pub major: u32,
    /// The device of this driver.
    pub minor: u32,
}

impl DiskDeviceId {
    const MINOR_BITS: u32 = 20;

    /// From the kernel's own `dev_t`.
    pub(super) fn from_record(device: u32) -> Self {
        Self { major: device >> Self::MINOR_BITS, minor: device & ((1 << Self::MINOR_BITS) - 1) }
    }
}

impl fmt::Display for DiskDeviceId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}:{}", self.major, self.minor)
    }
}

impl FromStr for DiskDeviceId {
    type Err = std::num::ParseIntError;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        let (major, minor) = text.trim().split_once(':').unwrap_or((text, ""));
        Ok(Self { major: major.parse()?, minor: minor.parse()? })
    }
}

/// One block device in a window.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
#[cfg_attr(feature = "serde", derive(serde::Serialize, serde::Deserialize), serde(default))]
#[non_exhaustive]
pub struct DiskDevice {
    /// Its name, as in `/proc/diskstats`; its number if it was removed before its name could
    /// be read.
    pub name: String,
    /// Its number.
    #[cfg_attr(feature = "serde", serde(flatten))]
    pub id: DiskDeviceId,
    /// The disk that it is a partition of; `None` for whole disks, whose figures include those
    /// of their partitions.
    pub partition_of: Option<DiskDeviceId>,
    /// It lies on other devices or on a file (dm, md, loop): its I/O is repeated below.
    pub stacked: bool,
    /// Devices of the [`stacked`](DiskDevice::stacked) kind lie on it
    /// (`/sys/block/NAME/holders`): its I/O repeats theirs. Loop devices are not listed there.
    pub carries_others: bool,
    /// It does not exist any more.
    pub removed: bool,
    /// Its operations.
    #[cfg_attr(feature = "serde", serde(flatten))]
    pub usage: DiskCounters,
    /// The same by class.
    pub by_class: DiskByClass,
    /// The operations among them that are charged to no process.
    pub unattributed: DiskCounters,
    /// Latencies of the operations that occurred.
    pub latencies: Vec<DiskLatency>,
    /// Time during which the device had any operation, never more than the window. This is
    /// the kernel's estimate: `io_ticks` of `/proc/diskstats`, with a resolution of one tick.
    /// A device that serves many requests at once may be busy all the time and far from its
    /// limit. `None` if the device was removed, if its statistics were off
    /// (`/sys/block/NAME/queue/iostats`) at a snapshot in the window or at its start, or if
    /// there is no `/proc`.
    #[cfg_attr(
        feature = "serde",
        serde(rename = "busy_ns", with = "crate::snapshot::duration_ns::option")
    )]
    #[doc(alias = "io_ticks")]
    pub busy: Option<Duration>,
}

impl DiskDevice {
    /// Mean number of operations that were queued or in progress: the sum of their times
    /// divided by the window. It covers the operations that completed in the window, so an
    /// operation longer than the window counts in the window of its end.
    pub fn average_depth(&self, window: Window) -> f64 {
        let times = self.latencies.iter().map(|l| l.queue.total().saturating_add(l.device.total()));
        window.percent(times.fold(Duration::ZERO, Duration::saturating_add)) / 100.0
    }

    /// [`busy`](DiskDevice::busy) in percent of the window.
    pub fn busy_percent(&self, window: Window) -> Option<f64> {
        self.busy.map(|busy| window.percent(busy))
    }
}

#[cfg(test)]
mod tests {
    use super::{super::class::DiskOperation, *};
    use crate::histogram::Histogram;

    #[test]
    fn device_numbers_are_as_the_kernel_writes_them() {
        let device = DiskDeviceId::from_record(259 << 20 | 3);
        assert_eq!(device, DiskDeviceId { major: 259, minor: 3 });
        assert_eq!(device.to_string().parse(), Ok(device));
        assert!("8".parse::<DiskDeviceId>().is_err());
    }

    #[test]
    fn depth_is_time_in_operations_by_time() {
        let window = Window { start_ns: 0, end_ns: 1_000_000_000 };
        let mut queue = Histogram::default();
        let mut device = Histogram::default();
        queue.record(Duration::from_millis(500));
        device.record(Duration::from_secs(2));
        let latency = DiskLatency { operation: DiskOperation::Read, queue, device };
        assert_eq!(latency.mean(), Some(Duration::from_millis(2500)));
        assert_eq!(
            DiskLatency { operation: DiskOperation::Read, ..Default::default() }.mean(),
            None
        );
        let disk = DiskDevice {
            latencies: vec![latency],
            busy: Some(Duration::from_millis(250)),
            ..DiskDevice::default()
        };
        assert!((disk.average_depth(window) - 2.5).abs() < 1e-9);
        assert_eq!(disk.busy_percent(window), Some(25.0));
    }

    #[cfg(feature = "serde")]
    #[test]
    fn devices_round_trip_through_json() {
        let mut device = DiskDevice {
            name: "sda1".into(),
            id: DiskDeviceId { major: 8, minor: 1 },
            partition_of: Some(DiskDeviceId { major: 8, minor: 0 }),
            busy: Some(Duration::from_millis(3)),
            ..DiskDevice::default()
        };
        device.usage.reads = 7;
        let json = serde_json::to_value(&device).unwrap();
        assert_eq!((&json["minor"], &json["reads"]), (&1.into(), &7.into()));
        assert_eq!(json["busy_ns"], 3_000_000);
        assert_eq!(serde_json::from_value::<DiskDevice>(json).unwrap(), device);
    }
}
