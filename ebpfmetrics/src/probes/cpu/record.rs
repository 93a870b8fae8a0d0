//! The records of `ebpf-probes/bpf/cpu.bpf.c`.

use crate::{
    record,
    task::{RecordHead, TaskAbout},
};

/// `enum cpu_loss`, in its order and by its names.
pub(super) const LOSSES: &[&str] = &["exit_state_full", "switch_unmatched", "switch_table_full", "watch_table_full"];

pub(super) const RECORD_TASK: u16 = 1;
pub(super) const RECORD_CPU: u16 = 2;

/// `enum task_flags`
pub(super) mod task_flags {
    pub(in super::super) const RUNNING_NOW: u32 = 1 << 0;
    pub(in super::super) const SWITCHED_IN: u32 = 1 << 1;
    pub(in super::super) const HAS_RUN_QUEUE_WAIT: u32 = 1 << 2;
}

/// `enum cpu_flags`
pub(super) mod cpu_flags {
    pub(in super::super) const HAS_IDLE: u32 = 1 << 0;
    pub(in super::super) const IDLE_LACKS_CLOCK_OFFSET: u32 = 1 << 1;
    pub(in super::super) const IDLE_HOLDS_INTERRUPTED: u32 = 1 << 2;
}

record! {
    /// One task, or a process that has ended.
    pub(super) struct TaskRecord = "cpu_task_record" {
        head: RecordHead,
        about: TaskAbout,
        sum_exec_ns: u64,
        dead_sum_exec_ns: u64,
        running_raw_ns: u64,
        running_at_ns: u64,
        charged_ns: u64,
        switched_in_ns: u64,
        user_ns: u64,
        system_ns: u64,
        dead_user_ns: u64,
        dead_system_ns: u64,
        voluntary_switches: u64,
        involuntary_switches: u64,
        dead_voluntary_switches: u64,
        dead_involuntary_switches: u64,
        run_queue_wait_ns: u64,
        migrations: u64,
        dead_run_queue_wait_ns: u64,
        dead_migrations: u64,
        ended_ns: u64,
        cpu: u32,
        flags: u32,
    }
}

impl TaskRecord {
    pub(super) fn has(&self, flag: u32) -> bool {
        self.flags & flag != 0
    }
}

record! {
    /// One CPU.
    pub(super) struct CpuRecord = "cpu_cpu_record" {
        head: RecordHead,
        cpu: u32,
        flags: u32,
        now_ns: u64,
        idle_ns: u64,
        interrupted_ns: u64,
    }
}

record! {
    /// A process between its first exiting thread and its release.
    pub(super) struct EndingRecord = "cpu_ending_record" {
        run_queue_wait_ns: u64,
        migrations: u64,
        threads: u32,
        last_is_set: u32,
        last: TaskRecord,
    }
}

record! {
    /// The sum of the ended processes that found no room.
    pub(super) struct FoldedRecord = "cpu_folded_record" {
        processes: u64,
        sum_exec_ns: u64,
        charged_ns: u64,
        user_ns: u64,
        system_ns: u64,
        voluntary_switches: u64,
        involuntary_switches: u64,
        run_queue_wait_ns: u64,
        migrations: u64,
    }
}

record! {
    /// The scheduler's clock as the caller found it.
    pub(super) struct ClocksRecord = "cpu_clocks_record" {
        scheduler_ns: u64,
        set: u64,
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::task::ProcessKey;

    crate::record::layout_test!(
        ebpf_probes::CPU,
        [
            RecordHead,
            TaskAbout,
            TaskRecord,
            CpuRecord,
            crate::watch::WatchProcessRecord,
            ProcessKey,
            EndingRecord,
            FoldedRecord,
            ClocksRecord
        ]
    );
    crate::record::losses_test!(ebpf_probes::CPU, "cpu_loss", LOSSES);
}
