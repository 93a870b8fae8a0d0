use std::time::Duration;

use super::class::DiskOperation;
use crate::histogram::Histogram;

/// How long operations of one kind took.
///
/// Both histograms contain every operation whose start and completion were seen.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
#[cfg_attr(feature = "serde", derive(serde::Serialize, serde::Deserialize))]
#[non_exhaustive]
pub struct DiskLatency {
    /// The kind of operation.
    pub operation: DiskOperation,
    /// Time from the submission of a request to its first issue to the driver: plugging, the
    /// I/O scheduler, a full device. Zero for devices without a queue.
    pub queue: Histogram,
    /// Time from the first issue to the completion, including retries. For devices without a
    /// queue, time from the submission.
    pub device: Histogram,
}

impl DiskLatency {
    /// Mean time from the submission of an operation to its completion, queue and device together:
    /// `await` of `iostat`. `None` without operations.
    #[doc(alias = "await")]
    pub fn mean(&self) -> Option<Duration> {
        Some(self.queue.mean()? + self.device.mean()?)
    }

    /// Adds the latency of operations to a list in the order of operations.
    pub(super) fn merge(into: &mut Vec<Self>, more: &Self) {
        if more.device.is_empty() {
            return;
        }
        match into.binary_search_by_key(&more.operation, |latency| latency.operation) {
            Ok(index) => {
                into[index].queue += &more.queue;
                into[index].device += &more.device;
            }
            Err(index) => into.insert(index, *more),
        }
    }

    /// The latencies of a list since an earlier reading of it. Those without operations are
    /// left out.
    pub(super) fn since(now: &[Self], earlier: &[Self]) -> Vec<Self> {
        let since = |now: &Self| {
            let earlier = earlier.iter().find(|earlier| earlier.operation == now.operation);
            let earlier = earlier.copied().unwrap_or_default();
            Self {
                operation: now.operation,
                queue: now.queue.since(&earlier.queue),
                device: now.device.since(&earlier.device),
            }
        };
        now.iter().map(since).filter(|latency| !latency.device.is_empty()).collect()
    }
}
