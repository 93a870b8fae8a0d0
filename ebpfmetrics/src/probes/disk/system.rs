use super::{counters::DiskCounters, device::DiskDevice, usage::DiskUsage};
use crate::snapshot::ProbeSnapshot;

/// Disk figures of the whole machine in a window.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
#[cfg_attr(feature = "serde", derive(serde::Serialize, serde::Deserialize), serde(default))]
#[non_exhaustive]
pub struct DiskSystem {
    /// Block devices that have been used since the machine started, by number: disks and
    /// partitions.
    pub devices: Vec<DiskDevice>,
    /// Operations that are charged to no process: of pages that became dirty before the probe
    /// was loaded or whose owner was forgotten, of requests whose start was not seen, and
    /// those that found the table of rows full. The losses say how many of each. With a
    /// [`Filter`](crate::Filter) also the operations of processes outside it.
    pub unattributed: DiskCounters,
}

impl DiskSystem {
    /// I/O of the machine's disks, each byte once: the whole disks that do not lie on others.
    /// I/O of a loop device or an LVM volume is included in that of the disk below.
    pub fn total(&self) -> DiskCounters {
        let disks = self.devices.iter().filter(|d| !d.stacked && d.partition_of.is_none());
        disks.map(|device| &device.usage).sum()
    }

    /// A device by its name, such as `sda` or `nvme0n1p1`.
    pub fn device(&self, name: &str) -> Option<&DiskDevice> {
        self.devices.iter().find(|device| device.name == name)
    }
}

impl ProbeSnapshot<DiskUsage, DiskSystem> {
    /// I/O of the machine's disks, see [`DiskSystem::total`].
    pub fn total(&self) -> DiskCounters {
        self.system.total()
    }

    /// A device by its name, such as `sda` or `nvme0n1p1`.
    pub fn device(&self, name: &str) -> Option<&DiskDevice> {
        self.system.device(name)
    }
}

#[cfg(test)]
mod tests {
    use super::{super::device::DiskDeviceId, *};

    #[test]
    fn the_total_has_each_byte_once() {
        let device = |name: &str, reads| {
            let mut device = DiskDevice { name: name.into(), ..DiskDevice::default() };
            device.usage.reads = reads;
            device
        };
        let partition =
            DiskDevice { partition_of: Some(DiskDeviceId::default()), ..device("sda1", 4) };
        let stacked = DiskDevice { stacked: true, ..device("loop0", 2) };
        let devices = vec![device("sda", 5), partition, stacked, device("sdb", 10)];
        let snapshot = ProbeSnapshot::<DiskUsage, DiskSystem> {
            system: DiskSystem { devices, ..DiskSystem::default() },
            ..ProbeSnapshot::default()
        };
        assert_eq!(snapshot.total().reads, 15);
        assert_eq!(snapshot.device("sda1").map(|device| device.usage.reads), Some(4));
        assert_eq!(snapshot.device("sdc"), None);
    }
}
