use std::{fmt, str::FromStr, sync::Arc, time::Duration};

use super::usage::{DiskByClass, DiskCounters, DiskLatency, DiskUsage};
use crate::{Losses, ProcessId, ProcessInfo, Provenance, Window, process_rows};

/// What every process did with the disks in a window.
///
/// All counters are of [`window`](DiskSnapshot::window): of operations that were done
/// in it. The same operations stand twice, by process and by device:
/// [`processes`](DiskSnapshot::processes) and
/// [`unattributed`](DiskSnapshot::unattributed) together are what
/// [`devices`](DiskSnapshot::devices) have that carry no other device.
#[derive(Clone, Debug)]
#[cfg_attr(feature = "serde", derive(serde::Serialize))]
#[non_exhaustive]
pub struct DiskSnapshot {
    /// The time that the counters are of.
    pub window: Window,
    /// Processes in ascending order of [`ProcessId`]: those alive, those that exited
    /// in the window, and those gone before whose pages were written in it.
    pub processes: Vec<DiskProcess>,
    /// Block devices that ever did anything, by number: disks and partitions.
    pub devices: Vec<DiskDevice>,
    /// Operations that no process is charged with: pages that became dirty before
    /// the probe was there, or whose owner was forgotten; what began unseen; what
    /// found the table of rows full. The [`losses`](DiskSnapshot::losses) tell them
    /// apart. With [`DiskProbeBuilder::watch`](super::DiskProbeBuilder::watch) also those
    /// of processes that are not watched.
    pub unattributed: DiskCounters,
    /// Processes that exited beyond the bound of
    /// [`DiskProbeBuilder::max_exited`](super::DiskProbeBuilder::max_exited),
    /// together. Their operations are listed all the same.
    pub folded: DiskFolded,
    /// What could not be counted, or not be charged.
    pub losses: Losses,
    /// Where the figures come from on this kernel.
    #[cfg_attr(feature = "serde", serde(skip))]
    pub provenance: Arc<Provenance>,
}

impl DiskSnapshot {
    /// What the machine's disks did, each byte once: whole disks that do not lie on
    /// others. What reached a loop device or an LVM volume is in the disk below.
    pub fn total(&self) -> DiskCounters {
        let disks = self.devices.iter().filter(|d| !d.stacked && d.partition_of.is_none());
        disks.fold(DiskCounters::default(), |sum, device| sum.plus(&device.usage))
    }

    /// The row of a device by its name, such as `sda` or `nvme0n1p1`.
    pub fn device(&self, name: &str) -> Option<&DiskDevice> {
        self.devices.iter().find(|device| device.name == name)
    }
}

/// One process.
#[derive(Clone, Debug, PartialEq)]
#[cfg_attr(feature = "serde", derive(serde::Serialize))]
#[non_exhaustive]
pub struct DiskProcess {
    /// Who it is, for all time.
    #[cfg_attr(feature = "serde", serde(flatten))]
    pub id: ProcessId,
    /// Its name and the rest. Of a process that ended before the window, as it was
    /// then; of one that could not be looked at any more, empty.
    #[cfg_attr(feature = "serde", serde(flatten))]
    pub info: ProcessInfo,
    /// What it did with the disks in the window.
    #[cfg_attr(feature = "serde", serde(flatten))]
    pub usage: DiskUsage,
}

process_rows!(DiskSnapshot: DiskProcess: DiskUsage);

/// Processes that exited, counted together.
#[derive(Clone, Debug, Default, PartialEq)]
#[cfg_attr(feature = "serde", derive(serde::Serialize))]
#[non_exhaustive]
pub struct DiskFolded {
    /// How many.
    pub processes: u64,
    /// What they dirtied; their operations are in rows of their own.
    #[cfg_attr(feature = "serde", serde(flatten))]
    pub usage: DiskUsage,
}

/// The number of a block device, `MAJOR:MINOR` in the kernel's files.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash)]
#[cfg_attr(feature = "serde", derive(serde::Serialize))]
pub struct DiskDeviceId {
    /// Which driver.
    pub major: u32,
    /// Which of its devices.
    pub minor: u32,
}

impl DiskDeviceId {
    const MINOR_BITS: u32 = 20;

    /// From the kernel's own `dev_t`.
    pub(super) fn from_record(device: u32) -> Self {
        Self {
            major: device >> Self::MINOR_BITS,
            minor: device & ((1 << Self::MINOR_BITS) - 1),
        }
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

/// One block device.
#[derive(Clone, Debug, PartialEq)]
#[cfg_attr(feature = "serde", derive(serde::Serialize))]
#[non_exhaustive]
pub struct DiskDevice {
    /// Its name, as in `/proc/diskstats`; the number if it was gone before it could
    /// be asked.
    pub name: String,
    /// Its number.
    #[cfg_attr(feature = "serde", serde(flatten))]
    pub id: DiskDeviceId,
    /// The disk that it is a partition of; `None` for whole disks, whose figures
    /// have those of their partitions in them.
    pub partition_of: Option<DiskDeviceId>,
    /// It lies on other devices or on a file (dm, md, loop): what it does is done
    /// again below.
    pub stacked: bool,
    /// Devices of [`stacked`](DiskDevice::stacked) kind lie on it
    /// (`/sys/block/NAME/holders`): what it does was done above before. A loop
    /// device does not show here.
    pub carries_others: bool,
    /// It is no longer there.
    pub removed: bool,
    /// What it did.
    #[cfg_attr(feature = "serde", serde(flatten))]
    pub usage: DiskCounters,
    /// The same by class.
    pub by_class: DiskByClass,
    /// The part of it that no process is charged with.
    pub unattributed: DiskCounters,
    /// How long it took, by operation; those that occurred.
    pub latencies: Vec<DiskLatency>,
    /// Time in which it had anything to do, as the kernel estimates it: `io_ticks` of
    /// `/proc/diskstats`, to a tick at best. A device that works on many requests at
    /// a time may be busy always and far from its limit. `None` if it was gone, or
    /// `/proc` is not there.
    #[cfg_attr(feature = "serde", serde(rename = "busy_ns", serialize_with = "ns_option"))]
    #[doc(alias = "io_ticks")]
    pub busy: Option<Duration>,
}

impl DiskDevice {
    /// The mean number of operations that were queued or under way at a time: the
    /// sum of their times by the length of the window. Of the operations done in the
    /// window, so one that takes longer than the window shows at its end.
    pub fn average_depth(&self, window: Window) -> f64 {
        let times = self.latencies.iter().map(|l| l.queue.total() + l.device.total());
        window.percent(times.sum()) / 100.0
    }

    /// [`busy`](DiskDevice::busy) in percent of the window.
    pub fn busy_percent(&self, window: Window) -> Option<f64> {
        self.busy.map(|busy| window.percent(busy))
    }
}

#[cfg(feature = "serde")]
fn ns_option<S: serde::Serializer>(
    time: &Option<Duration>,
    serializer: S,
) -> Result<S::Ok, S::Error> {
    serde::Serialize::serialize(&time.map(|time| time.as_nanos() as u64), serializer)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::Histogram;

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
        let latency =
            DiskLatency { operation: super::super::DiskOperation::Read, queue, device };
        let disk = DiskDevice {
            name: String::new(),
            id: DiskDeviceId::default(),
            partition_of: None,
            stacked: false,
            carries_others: false,
            removed: false,
            usage: DiskCounters::default(),
            by_class: DiskByClass::default(),
            unattributed: DiskCounters::default(),
            latencies: vec![latency],
            busy: Some(Duration::from_millis(250)),
        };
        assert!((disk.average_depth(window) - 2.5).abs() < 1e-9);
        assert_eq!(disk.busy_percent(window), Some(25.0));
    }
}
