use std::time::Duration;

use super::{DiskClass, DiskDeviceId, DiskOperation};
use crate::probes::events::SlowIoRecord;

/// An operation of a block device that took long.
///
/// It is counted in the [`DiskSnapshot`](super::DiskSnapshot) as any other.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[cfg_attr(feature = "serde", derive(serde::Serialize))]
#[non_exhaustive]
pub struct SlowIo {
    /// When it was submitted, in ns of `CLOCK_MONOTONIC`. It was done
    /// [`queue_time`](SlowIo::queue_time) and [`device_time`](SlowIo::device_time) later.
    pub submitted_ns: u64,
    /// The disk or partition that was asked.
    #[cfg_attr(feature = "serde", serde(flatten))]
    pub device: DiskDeviceId,
    /// What of.
    pub operation: DiskOperation,
    /// How it is known who is charged; `None` where nobody is, for the table of rows was
    /// full.
    pub class: Option<DiskClass>,
    /// Bytes that the device was asked for.
    pub bytes: u64,
    /// [`DiskLatency::queue`](super::DiskLatency::queue)
    #[cfg_attr(feature = "serde", serde(rename = "queue_time_ns", serialize_with = "ns"))]
    pub queue_time: Duration,
    /// [`DiskLatency::device`](super::DiskLatency::device)
    #[cfg_attr(feature = "serde", serde(rename = "device_time_ns", serialize_with = "ns"))]
    pub device_time: Duration,
}

impl SlowIo {
    /// From its submission until it was done: what the limit is for.
    pub fn time(&self) -> Duration {
        self.queue_time + self.device_time
    }

    pub(in crate::probes) fn from_record(record: &SlowIoRecord) -> Self {
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

#[cfg(feature = "serde")]
fn ns<S: serde::Serializer>(time: &Duration, serializer: S) -> Result<S::Ok, S::Error> {
    serde::Serialize::serialize(&(time.as_nanos() as u64), serializer)
}
