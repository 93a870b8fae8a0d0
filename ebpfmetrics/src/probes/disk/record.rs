//! The records of `ebpf-probes/bpf/disk.bpf.c`.

use crate::{
    Histogram,
    record,
    task::{RecordHead, TaskAbout},
};

/// `enum disk_loss`, in its order and by its names.
pub(super) const LOSSES: &[&str] = &[
    "row_table_full",
    "process_table_full",
    "in_flight_table_full",
    "start_late",
    "start_unseen",
    "completion_unseen",
    "owner_unseen",
    "watch_table_full",
];

pub(super) const RECORD_TASK: u16 = 1;

/// `enum disk_task_flags`
pub(super) const HAS_IO_ACCOUNTING: u64 = 1 << 0;

/// `enum disk_process_flags`
pub(super) mod process_flags {
    pub(in super::super) const EXITED: u64 = 1 << 0;
    pub(in super::super) const RELEASED: u64 = 1 << 1;
}

record! {
    /// One task.
    pub(super) struct TaskRecord = "disk_task_record" {
        head: RecordHead,
        about: TaskAbout,
        dirtied_bytes: u64,
        cancelled_bytes: u64,
        dead_dirtied_bytes: u64,
        dead_cancelled_bytes: u64,
        flags: u64,
    }
}

record! {
    /// A process that did I/O.
    pub(super) struct ProcessRecord = "disk_process_record" {
        about: TaskAbout,
        dirtied_bytes: u64,
        cancelled_bytes: u64,
        ended_ns: u64,
        flags: u64,
    }
}

record! {
    /// What a row is of.
    #[derive(PartialEq, Eq, PartialOrd, Ord, Hash)]
    pub(super) struct RowKey = "disk_row_key" {
        start_ns: u64,
        tgid: u32,
        device: u32,
        class: u32,
        operation: u32,
    }
}

record! {
    /// What a process did on a device in one class and by one operation.
    pub(super) struct RowRecord = "disk_row_record" {
        key: RowKey,
        bytes: u64,
        queue_ns: u64,
        device_ns: u64,
        errors: u32,
        unseen: u32,
        queue_buckets: [u32; Histogram::BUCKETS],
        device_buckets: [u32; Histogram::BUCKETS],
    }
}

record! {
    /// What user space tells the kernel side.
    pub(super) struct ControlRecord = "disk_control_record" {
        attached_ns: u64,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    crate::record::layout_test!(
        ebpf_probes::DISK,
        [
            RecordHead,
            TaskAbout,
            crate::task::ProcessKey,
            crate::watch::WatchProcessRecord,
            TaskRecord,
            ProcessRecord,
            RowKey,
            RowRecord,
            ControlRecord,
            crate::probes::events::EventRecord,
            crate::probes::events::SlowIoRecord,
            crate::probes::events::LostRecord
        ]
    );
    crate::record::losses_test!(ebpf_probes::DISK, "disk_loss", LOSSES);
}
