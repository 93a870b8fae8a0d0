use crate::Histogram;

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
pub struct DiskUsage {
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

impl DiskUsage {
    /// The sum of both.
    #[must_use]
    pub fn plus(&self, other: &Self) -> Self {
        Self {
            reads: self.reads + other.reads,
            writes: self.writes + other.writes,
            read_bytes: self.read_bytes + other.read_bytes,
            written_bytes: self.written_bytes + other.written_bytes,
            flushes: self.flushes + other.flushes,
            discards: self.discards + other.discards,
            discarded_bytes: self.discarded_bytes + other.discarded_bytes,
            errors: self.errors + other.errors,
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

/// Operations by class.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
#[non_exhaustive]
pub struct DiskByClass {
    /// [`DiskClass::Direct`]
    pub direct: DiskUsage,
    /// [`DiskClass::WriteBack`]
    pub write_back: DiskUsage,
    /// [`DiskClass::Metadata`]
    pub metadata: DiskUsage,
    /// [`DiskClass::Swap`]
    pub swap: DiskUsage,
    /// [`DiskClass::Journal`]
    pub journal: DiskUsage,
    /// [`DiskClass::Kernel`]
    pub kernel: DiskUsage,
}

impl DiskByClass {
    /// What was done in a class.
    pub fn get(&self, class: DiskClass) -> &DiskUsage {
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
    pub fn iter(&self) -> impl Iterator<Item = (DiskClass, &DiskUsage)> {
        DiskClass::ALL.into_iter().map(|class| (class, self.get(class)))
    }

    /// The part whose cause is known: of a process, what it did itself.
    pub fn caused(&self) -> DiskUsage {
        let known = self.iter().filter(|(class, _)| class.names_the_cause());
        known.fold(DiskUsage::default(), |sum, (_, usage)| sum.plus(usage))
    }

    pub(super) fn add(&mut self, class: DiskClass, usage: &DiskUsage) {
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
        serializer.collect_map(self.iter().filter(|(_, usage)| **usage != DiskUsage::default()))
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
            by_class.add(class, &DiskUsage { reads: 1 << number, ..DiskUsage::default() });
        }
        for (number, (_, usage)) in by_class.iter().enumerate() {
            assert_eq!(usage.reads, 1 << number);
        }
        assert_eq!(by_class.caused().reads, 0b11);
    }
}
