//! The records of `bpf/syscalls.bpf.c`.

use ebpfmetrics::{
    kit::{RecordHead, TaskAbout},
    record,
};

/// `enum syscalls_loss`, in its order and by its names.
pub(crate) const LOSSES: &[&str] = &["process_table_full", "exit_state_full"];

pub(crate) const RECORD_PROCESS: u16 = 1;

record! {
    /// A process: alive, at its exit, or ended.
    pub(crate) struct ProcessRecord = "syscalls_process_record" {
        head: RecordHead,
        about: TaskAbout,
        calls: u64,
        errors: u64,
        ended_ns: u64,
    }
}

record! {
    /// The sum of the ended processes that found no room.
    pub(crate) struct FoldedRecord = "syscalls_folded_record" {
        processes: u64,
        calls: u64,
        errors: u64,
    }
}

#[cfg(test)]
mod tests {
    use ebpfmetrics::kit::{
        ProcessKey,
        conformance::{check_layout, check_losses},
    };

    use super::*;
    use crate::OBJECT;

    #[test]
    fn both_sides_agree() {
        check_layout::<RecordHead>(OBJECT);
        check_layout::<TaskAbout>(OBJECT);
        check_layout::<ProcessKey>(OBJECT);
        check_layout::<ProcessRecord>(OBJECT);
        check_layout::<FoldedRecord>(OBJECT);
        check_losses(OBJECT, "syscalls_loss", LOSSES);
    }
}
