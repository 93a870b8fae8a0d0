use crate::record::{disk_class, disk_operation};

/// What a request asks of a device.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash)]
#[cfg_attr(
    feature = "serde",
    derive(serde::Serialize, serde::Deserialize),
    serde(rename_all = "snake_case")
)]
#[non_exhaustive]
pub enum DiskOperation {
    /// `REQ_OP_READ`.
    #[default]
    Read,
    /// `REQ_OP_WRITE`, and all else that `/proc/diskstats` counts as a write, except flushes.
    Write,
    /// The flush that `fsync` requests: a write of no bytes, which `/proc/diskstats` counts as
    /// a write. A device that needs no flushes never gets one.
    Flush,
    /// `REQ_OP_DISCARD`.
    Discard,
}

/// Why an operation is charged to its process, and how certain that is.
///
/// With [`Foreground`](DiskClass::Foreground) and [`WriteBack`](DiskClass::WriteBack) the
/// process caused the operation. With the others it is a hint, see
/// [`names_the_cause`](DiskClass::names_the_cause).
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
#[cfg_attr(
    feature = "serde",
    derive(serde::Serialize, serde::Deserialize),
    serde(rename_all = "snake_case")
)]
#[non_exhaustive]
pub enum DiskClass {
    /// Submitted by the process itself: all reads, including read-ahead and pages of programs
    /// that it starts, and writes that bypass the page cache (`O_DIRECT`). Also direct I/O
    /// that a kernel thread submits for it, such as when a cgroup throttles it.
    Foreground,
    /// Pages of a file, written back by anyone at any time. Charged to the process that
    /// dirtied them, page by page, even after it has ended. A request with pages of several
    /// processes counts as one operation, of the process with its first page. Pages that are
    /// already dirty stay with the process that dirtied them first; newer kernels keep up to
    /// 2 MiB of a file dirty as a unit. Pages of an unknown owner are charged to no process and
    /// counted as the loss [`OwnerUnseen`](super::DiskLoss::OwnerUnseen).
    WriteBack,
    /// Blocks of the file system itself. A write is charged to the task that dirtied the block
    /// first, a read to the process that needed it. On ext4 and xfs writes are those of
    /// kernel threads, on btrfs mostly those of the process that changed files.
    Metadata,
    /// Writes to swap, charged to the process that needed memory, which may not be the owner
    /// of the pages. Reading the pages again is [`Foreground`](DiskClass::Foreground) of the
    /// process that needs them.
    Swap,
    /// The journal, charged to its kernel thread (`jbd2`). It writes for all processes.
    Journal,
    /// Submitted by another kernel thread for an unknown process: checksums and compressed
    /// data of btrfs, the log of xfs, encryption.
    Kernel,
}

impl DiskClass {
    /// All classes.
    pub const ALL: [Self; 6] = [
        Self::Foreground,
        Self::WriteBack,
        Self::Metadata,
        Self::Swap,
        Self::Journal,
        Self::Kernel,
    ];

    /// Whether the process that is charged caused the operation; otherwise it is a hint.
    pub fn names_the_cause(self) -> bool {
        matches!(self, Self::Foreground | Self::WriteBack)
    }

    /// `enum disk_class`; `None` for operations that are charged to no process.
    pub(super) fn from_record(class: u32) -> Option<Self> {
        match class {
            disk_class::FOREGROUND => Some(Self::Foreground),
            disk_class::WRITE_BACK => Some(Self::WriteBack),
            disk_class::METADATA => Some(Self::Metadata),
            disk_class::SWAP => Some(Self::Swap),
            disk_class::JOURNAL => Some(Self::Journal),
            disk_class::KERNEL => Some(Self::Kernel),
            _ => None,
        }
    }
}

impl DiskOperation {
    /// `enum disk_operation`.
    pub(super) fn from_record(operation: u32) -> Self {
        match operation {
            disk_operation::READ => Self::Read,
            disk_operation::WRITE => Self::Write,
            disk_operation::FLUSH => Self::Flush,
            _ => Self::Discard,
        }
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
        assert_eq!(DiskClass::from_record(disk_class::UNATTRIBUTED), None);
        let operations = [0, 1, 2, 3].map(DiskOperation::from_record);
        assert!(operations.is_sorted() && operations[3] == DiskOperation::Discard);
    }

    #[cfg(feature = "serde")]
    #[test]
    fn names_in_json() {
        let names = serde_json::to_string(&DiskClass::ALL).unwrap();
        let expected = r#"["foreground","write_back","metadata","swap","journal","kernel"]"#;
        assert_eq!(names, expected);
        assert_eq!(serde_json::from_str::<[DiskClass; 6]>(&names).unwrap(), DiskClass::ALL);
    }
}
