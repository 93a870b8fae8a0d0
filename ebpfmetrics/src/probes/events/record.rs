//! The records of `ebpf-probes/bpf/events.bpf.c`.

use crate::{record, task::TaskAbout};

/// `enum events_loss`, in its order and by its names.
pub(super) const LOSSES: &[&str] = &[
    "started",
    "executed",
    "exited",
    "memory_threshold",
    "oom_killed",
    "exit_state_missing",
    "above_table_full",
];

/// `enum event_kind`
pub(super) mod kind {
    pub(in super::super) const STARTED: u32 = 0;
    pub(in super::super) const EXECUTED: u32 = 1;
    pub(in super::super) const EXITED: u32 = 2;
    pub(in super::super) const MEMORY_THRESHOLD: u32 = 3;
    pub(in super::super) const OOM_KILLED: u32 = 4;
}

record! {
    /// One event.
    pub(super) struct EventRecord = "events_event_record" {
        time_ns: u64,
        lost_before: u64,
        about: TaskAbout,
        resident_pages: u64,
        kind: u32,
        exit_status: i32,
    }
}

record! {
    /// What the exit of a process knows and its release does not.
    pub(super) struct EndingRecord = "events_ending_record" {
        about: TaskAbout,
        ended_ns: u64,
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::task::{ProcessKey, RecordHead};

    crate::record::layout_test!(
        ebpf_probes::EVENTS,
        [RecordHead, TaskAbout, ProcessKey, EventRecord, EndingRecord]
    );
    crate::record::losses_test!(ebpf_probes::EVENTS, "events_loss", LOSSES);
}
