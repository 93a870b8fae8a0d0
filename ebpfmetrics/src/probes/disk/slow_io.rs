use std::time::Duration;

use super::{
    class::{DiskClass, DiskOperation},
    device::DiskDeviceId,
};
use crate::record::EventsSlowIoRecord;

/// An operation of a block device that took long.
///
/// The snapshot of the probe counts it like any other operation.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
#[cfg_attr(feature = "serde", derive(serde::Serialize, serde::Deserialize))]
#[non_exhaustive]
pub struct SlowIo {
    /// When it was submitted, in ns of `CLOCK_MONOTONIC`. It completed
    /// [`queue_time`](SlowIo::queue_time) and [`device_time`](SlowIo::device_time) later.
    pub submitted_ns: u64,
    /// The disk or partition.
    #[cfg_attr(feature = "serde", serde(flatten))]
    pub device: DiskDeviceId,
    /// The kind of operation.
    pub operation: DiskOperation,
    /// Why it is charged to its process; `None` if it is charged to none because the table of
    /// rows was full.
    pub class: Option<DiskClass>,
    /// Bytes requested from the device.
    pub bytes: u64,
    /// Time in the queue, see [`DiskLatency::queue`](super::DiskLatency::queue).
    #[cfg_attr(
        feature = "serde",
        serde(rename = "queue_time_ns", with = "crate::snapshot::duration_ns")
    )]
    pub queue_time: Duration,
    /// Time in the device, see [`DiskLatency::device`](super::DiskLatency::device).
    #[cfg_attr(
        feature = "serde",
        serde(rename = "device_time_ns", with = "crate::snapshot::duration_ns")
    )]
    pub device_time: Duration,
}

impl SlowIo {
    /// Time from its submission to its completion, which is compared with the limit.
    pub fn time(&self) -> Duration {
        self.queue_time.saturating_add(self.device_time)
    }

    #[allow(dead_code, reason = "for the events")]
    pub(crate) fn from_record(record: &EventsSlowIoRecord) -> Self {
        Self {
            submitted_ns: (record.event.time_ns)
                .saturating_sub(record.queue_ns.saturating_add(record.device_ns)),
            device: DiskDeviceId::from_record(record.device),
            operation: DiskOperation::from_record(record.operation),
            class: DiskClass::from_record(record.class),
            bytes: record.bytes,
            queue_time: Duration::from_nanos(record.queue_ns),
            device_time: Duration::from_nanos(record.device_ns),
        }
    }
}

#[cfg(test)]
mod tests {
    use bytemuck::Zeroable;

    use super::*;

    #[test]
    fn times_that_cannot_be_do_not_overflow() {
        let mut record = EventsSlowIoRecord::zeroed();
        (record.queue_ns, record.device_ns, record.class) = (u64::MAX, u64::MAX, 6);
        let io = SlowIo::from_record(&record);
        assert_eq!((io.submitted_ns, io.class), (0, None));
        assert_eq!(io.time(), Duration::from_nanos(u64::MAX) * 2);
        (record.queue_ns, record.device_ns, record.event.time_ns) = (3, 4, 10);
        assert_eq!(SlowIo::from_record(&record).submitted_ns, 3);
    }
}
