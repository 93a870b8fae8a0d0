use super::snapshot::DiskDeviceId;
use crate::{Histogram, Usage};

/// What a request asks of a device.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
#[cfg_attr(feature = "serde", derive(serde::Serialize), serde(rename_all = "snake_case"))]
#[non_exhaustive]
pub enum DiskOperation {
    /// `REQ_OP_READ`
    Read,
    /// `REQ_OP_WRITE` and whatever else `/proc/diskstats` counts as a write, but for
    /// flushes.
    Write,
    /// The flush that `fsync` asks for: a write of no bytes, which `/proc/diskstats`
    /// has among the writes. A device that needs no flushes never sees one.
    Flush,
    /// `REQ_OP_DISCARD`
    Discard,
}

/// How it is known who an operation is charged to.
///
/// [`Direct`](DiskClass::Direct) and [`WriteBack`](DiskClass::WriteBack) name who
/// caused it; the others are a hint, see [`names_the_cause`](DiskClass::names_the_cause).
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
#[cfg_attr(feature = "serde", derive(serde::Serialize), serde(rename_all = "snake_case"))]
#[non_exhaustive]
pub enum DiskClass {
    /// Submitted by the process itself: reads, read-ahead for it included, and
    /// writes past the page cache (`O_DIRECT`).
    Direct,
    /// Pages of a file written back, whoever did that and when: charged to the
    /// process that dirtied them, also after its end. Of a file that several wrote
    /// at the same time, to the last of them that still has pages to be written; a
    /// request goes to one of them as a whole. What is dirty already is charged to
    /// who dirtied it first, and newer kernels keep up to 2 MiB of a file dirty as
    /// one.
    WriteBack,
    /// Blocks of a file system's own: written for whoever dirtied the block last,
    /// read for whoever needed it. Many processes share a block.
    Metadata,
    /// Written to swap, charged to who needs memory and not to whose pages they are.
    /// Reading them again is [`Direct`](DiskClass::Direct), for who needs them.
    Swap,
    /// The journal, charged to its thread in the kernel (`jbd2`). It writes for all.
    Journal,
    /// By another thread of the kernel, for whom is not known: checksums and
    /// compressed data of btrfs, the log of xfs, encryption.
    Kernel,
}

impl DiskClass {
    /// All of them.
    pub const ALL: [Self; 6] = [
        Self::Direct,
        Self::WriteBack,
        Self::Metadata,
        Self::Swap,
        Self::Journal,
        Self::Kernel,
    ];

    /// Whether the process that is charged is the one that caused the operation;
    /// else it is a hint.
    pub fn names_the_cause(self) -> bool {
        matches!(self, Self::Direct | Self::WriteBack)
    }

    /// `enum disk_class`; `None` for what is charged to nobody.
    pub(super) fn from_record(class: u32) -> Option<Self> {
        Self::ALL.get(class as usize).copied()
    }
}

impl DiskOperation {
    /// `enum disk_operation`
    pub(super) fn from_record(operation: u32) -> Self {
        match operation {
            0 => Self::Read,
            1 => Self::Write,
            2 => Self::Flush,
            _ => Self::Discard,
        }
    }
}

/// Operations that completed in a window.
///
/// A request counts once, with all the bios that were merged into it, when it is
/// done, and with its bytes even if it failed: all as `/proc/diskstats` does, which
/// has `writes` and `flushes` together.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
#[cfg_attr(feature = "serde", derive(serde::Serialize))]
#[non_exhaustive]
pub struct DiskCounters {
    /// [`DiskOperation::Read`]
    pub reads: u64,
    /// [`DiskOperation::Write`]
    pub writes: u64,
    /// Bytes that the device was asked for.
    pub read_bytes: u64,
    /// Bytes that reached the device.
    pub written_bytes: u64,
    /// [`DiskOperation::Flush`]
    pub flushes: u64,
    /// [`DiskOperation::Discard`]
    pub discards: u64,
    /// Bytes that the device was told to forget.
    pub discarded_bytes: u64,
    /// Operations that failed, or parts of them where the device reports parts.
    pub errors: u64,
}

impl DiskCounters {
    /// The sum of both.
    #[must_use]
    pub fn plus(&self, other: &Self) -> Self {
        self.zip(other, u64::saturating_add)
    }

    /// What came since an earlier reading, never below zero.
    #[must_use]
    pub fn since(&self, earlier: &Self) -> Self {
        self.zip(earlier, u64::saturating_sub)
    }

    fn zip(&self, other: &Self, f: impl Fn(u64, u64) -> u64) -> Self {
        Self {
            reads: f(self.reads, other.reads),
            writes: f(self.writes, other.writes),
            read_bytes: f(self.read_bytes, other.read_bytes),
            written_bytes: f(self.written_bytes, other.written_bytes),
            flushes: f(self.flushes, other.flushes),
            discards: f(self.discards, other.discards),
            discarded_bytes: f(self.discarded_bytes, other.discarded_bytes),
            errors: f(self.errors, other.errors),
        }
    }

    /// All operations.
    pub fn operations(&self) -> u64 {
        self.reads + self.writes + self.flushes + self.discards
    }

    pub(super) fn of(operation: DiskOperation, count: u64, bytes: u64, errors: u64) -> Self {
        let none = Self { errors, ..Self::default() };
        match operation {
            DiskOperation::Read => Self { reads: count, read_bytes: bytes, ..none },
            DiskOperation::Write => Self { writes: count, written_bytes: bytes, ..none },
            DiskOperation::Flush => Self { flushes: count, ..none },
            DiskOperation::Discard => Self { discards: count, discarded_bytes: bytes, ..none },
        }
    }
}

/// What a process did with the disks in a window.
///
/// Its operations are those that reached a device, at the time they did. What it
/// dirtied stands beside them and is never mixed in: dirty pages are written later,
/// more than once, or, if their file is removed first, never.
#[derive(Clone, Debug, Default, PartialEq)]
#[cfg_attr(feature = "serde", derive(serde::Serialize))]
#[non_exhaustive]
pub struct DiskUsage {
    /// What it is charged with, on the topmost device where devices lie on one
    /// another.
    #[cfg_attr(feature = "serde", serde(flatten))]
    pub total: DiskCounters,
    /// The same by how it is known.
    pub by_class: DiskByClass,
    /// Bytes of pages that it made dirty, and of its writes past the page cache:
    /// `task_io_accounting::write_bytes`, `write_bytes` in `/proc/PID/io`, with
    /// threads that have exited. `None` on kernels without
    /// `CONFIG_TASK_IO_ACCOUNTING`.
    #[doc(alias = "write_bytes")]
    pub dirtied_bytes: Option<u64>,
    /// Of dirty bytes those that it took back before they were written, by removing
    /// or cutting a file, whoever made them dirty:
    /// `task_io_accounting::cancelled_write_bytes`.
    #[doc(alias = "cancelled_write_bytes")]
    pub cancelled_bytes: Option<u64>,
    /// The same operations by device, all devices, with their latencies.
    pub devices: Vec<DiskDeviceUsage>,
}

/// What a process did on one device.
#[derive(Clone, Debug, PartialEq)]
#[cfg_attr(feature = "serde", derive(serde::Serialize))]
#[non_exhaustive]
pub struct DiskDeviceUsage {
    /// The disk or partition that was asked.
    #[cfg_attr(feature = "serde", serde(flatten))]
    pub device: DiskDeviceId,
    /// What it is charged with there.
    #[cfg_attr(feature = "serde", serde(flatten))]
    pub total: DiskCounters,
    /// How long it took, by operation; those that occurred.
    pub latencies: Vec<DiskLatency>,
}

impl DiskDeviceUsage {
    pub(super) fn none(device: DiskDeviceId) -> Self {
        Self { device, total: DiskCounters::default(), latencies: Vec::new() }
    }
}

impl DiskUsage {
    /// The row of a device; made if it is not there.
    pub(super) fn on(&mut self, device: DiskDeviceId) -> &mut DiskDeviceUsage {
        let index = self.devices.binary_search_by_key(&device, |on| on.device);
        let index = index.unwrap_or_else(|index| {
            self.devices.insert(index, DiskDeviceUsage::none(device));
            index
        });
        &mut self.devices[index]
    }
}

impl Usage for DiskUsage {
    fn plus(&self, other: &Self) -> Self {
        let both = |one: Option<u64>, other: Option<u64>| one.zip(other).map(|(a, b)| a + b);
        let mut sum = Self {
            total: self.total.plus(&other.total),
            by_class: self.by_class.zip(&other.by_class, DiskCounters::plus),
            dirtied_bytes: both(self.dirtied_bytes, other.dirtied_bytes),
            cancelled_bytes: both(self.cancelled_bytes, other.cancelled_bytes),
            devices: self.devices.clone(),
        };
        for more in &other.devices {
            let on = sum.on(more.device);
            on.total = on.total.plus(&more.total);
            for latency in &more.latencies {
                DiskLatency::merge(&mut on.latencies, latency);
            }
        }
        sum
    }

    fn since(&self, earlier: &Self) -> Self {
        let grown = |now: Option<u64>, before: Option<u64>| {
            now.map(|now| now.saturating_sub(before.unwrap_or_default()))
        };
        let mut since = Self {
            total: self.total.since(&earlier.total),
            by_class: self.by_class.zip(&earlier.by_class, DiskCounters::since),
            dirtied_bytes: grown(self.dirtied_bytes, earlier.dirtied_bytes),
            cancelled_bytes: grown(self.cancelled_bytes, earlier.cancelled_bytes),
            devices: self.devices.clone(),
        };
        for before in &earlier.devices {
            let on = since.on(before.device);
            on.total = on.total.since(&before.total);
            for latency in &before.latencies {
                let same = on.latencies.iter_mut().find(|l| l.operation == latency.operation);
                if let Some(now) = same {
                    now.queue = now.queue.since(&latency.queue);
                    now.device = now.device.since(&latency.device);
                }
            }
        }
        for on in &mut since.devices {
            on.latencies.retain(|latency| !latency.device.is_empty());
        }
        since.devices.retain(|on| on.total != DiskCounters::default());
        since
    }
}

/// Operations by class.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
#[non_exhaustive]
pub struct DiskByClass {
    /// [`DiskClass::Direct`]
    pub direct: DiskCounters,
    /// [`DiskClass::WriteBack`]
    pub write_back: DiskCounters,
    /// [`DiskClass::Metadata`]
    pub metadata: DiskCounters,
    /// [`DiskClass::Swap`]
    pub swap: DiskCounters,
    /// [`DiskClass::Journal`]
    pub journal: DiskCounters,
    /// [`DiskClass::Kernel`]
    pub kernel: DiskCounters,
}

impl DiskByClass {
    /// What was done in a class.
    pub fn get(&self, class: DiskClass) -> &DiskCounters {
        match class {
            DiskClass::Direct => &self.direct,
            DiskClass::WriteBack => &self.write_back,
            DiskClass::Metadata => &self.metadata,
            DiskClass::Swap => &self.swap,
            DiskClass::Journal => &self.journal,
            DiskClass::Kernel => &self.kernel,
        }
    }

    /// Every class with what was done in it.
    pub fn iter(&self) -> impl Iterator<Item = (DiskClass, &DiskCounters)> {
        DiskClass::ALL.into_iter().map(|class| (class, self.get(class)))
    }

    /// The part whose cause is known: of a process, what it did itself.
    pub fn caused(&self) -> DiskCounters {
        let known = self.iter().filter(|(class, _)| class.names_the_cause());
        known.fold(DiskCounters::default(), |sum, (_, usage)| sum.plus(usage))
    }

    fn zip(&self, other: &Self, f: impl Fn(&DiskCounters, &DiskCounters) -> DiskCounters) -> Self {
        Self {
            direct: f(&self.direct, &other.direct),
            write_back: f(&self.write_back, &other.write_back),
            metadata: f(&self.metadata, &other.metadata),
            swap: f(&self.swap, &other.swap),
            journal: f(&self.journal, &other.journal),
            kernel: f(&self.kernel, &other.kernel),
        }
    }

    pub(super) fn add(&mut self, class: DiskClass, usage: &DiskCounters) {
        let sum = match class {
            DiskClass::Direct => &mut self.direct,
            DiskClass::WriteBack => &mut self.write_back,
            DiskClass::Metadata => &mut self.metadata,
            DiskClass::Swap => &mut self.swap,
            DiskClass::Journal => &mut self.journal,
            DiskClass::Kernel => &mut self.kernel,
        };
        *sum = sum.plus(usage);
    }
}

/// How long operations of a kind took.
///
/// Both histograms have every operation whose start and end were seen.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[cfg_attr(feature = "serde", derive(serde::Serialize))]
#[non_exhaustive]
pub struct DiskLatency {
    /// Of which operations.
    pub operation: DiskOperation,
    /// From the submission of a request to its first issue to the driver: plugging,
    /// the I/O scheduler, a full device. Zero on devices without a queue.
    pub queue: Histogram,
    /// From the first issue to the completion, retries included. For devices
    /// without a queue from submission on.
    pub device: Histogram,
}

impl DiskLatency {
    pub(super) fn merge(into: &mut Vec<Self>, other: &Self) {
        match into.iter_mut().find(|latency| latency.operation == other.operation) {
            Some(latency) => {
                latency.queue = latency.queue.merge(&other.queue);
                latency.device = latency.device.merge(&other.device);
            }
            None => {
                into.push(*other);
                into.sort_by_key(|latency| latency.operation);
            }
        }
    }
}

#[cfg(feature = "serde")]
impl serde::Serialize for DiskByClass {
    /// Those classes in which something was done.
    fn serialize<S: serde::Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.collect_map(self.iter().filter(|(_, usage)| **usage != DiskCounters::default()))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn classes_and_operations_are_numbered_as_in_the_record() {
        for (number, class) in DiskClass::ALL.into_iter().enumerate() {
            assert_eq!(DiskClass::from_record(number as u32), Some(class));
        }
        assert_eq!(DiskClass::from_record(6), None);
        let operations = [0, 1, 2, 3].map(DiskOperation::from_record);
        assert!(operations.is_sorted());
    }

    #[test]
    fn each_class_has_its_own_sum() {
        let mut by_class = DiskByClass::default();
        for (number, class) in DiskClass::ALL.into_iter().enumerate() {
            by_class.add(class, &DiskCounters { reads: 1 << number, ..DiskCounters::default() });
        }
        for (number, (_, usage)) in by_class.iter().enumerate() {
            assert_eq!(usage.reads, 1 << number);
        }
        assert_eq!(by_class.caused().reads, 0b11);
    }

    #[test]
    fn what_came_since_and_what_was_before_add_up() {
        let device = DiskDeviceId { major: 8, minor: 0 };
        let other = DiskDeviceId { major: 9, minor: 0 };
        let usage = |reads: u64, device: DiskDeviceId| {
            let mut usage = DiskUsage { dirtied_bytes: Some(reads * 7), ..DiskUsage::default() };
            let counters = DiskCounters { reads, ..DiskCounters::default() };
            usage.total = counters;
            usage.by_class.direct = counters;
            let mut queue = Histogram::default();
            (0..reads).for_each(|n| queue.record(std::time::Duration::from_micros(n)));
            let latency = DiskLatency { operation: DiskOperation::Read, queue, device: queue };
            *usage.on(device) = DiskDeviceUsage { device, total: counters, latencies: vec![latency] };
            usage
        };
        let before = usage(3, device);
        let later = Usage::plus(&before, &usage(5, other));
        assert_eq!(Usage::since(&later, &before).devices, usage(5, other).devices);
        assert_eq!(Usage::since(&later, &before).total.reads, 5);
        let grown = Usage::since(&usage(8, device), &before);
        assert_eq!(Usage::plus(&before, &grown), usage(8, device));
        assert_eq!(Usage::since(&before, &before).devices, []);
    }
}
