//! The records of `ebpf-probes/bpf/events.bpf.c`.

use crate::{record, task::TaskAbout};

/// `enum events_loss`, in its order and by its names.
pub(super) const LOSSES: &[&str] = &[
    "exit_state_missing",
    "above_table_full",
];

/// `enum event_kind`, in its order and by its names.
pub(super) const KINDS: &[&str] =
    &["started", "executed", "exited", "memory_threshold", "oom_killed", "slow_io"];

/// What [`KINDS`] are numbered.
pub(super) mod kind {
    pub(in super::super) const STARTED: u32 = 0;
    pub(in super::super) const EXECUTED: u32 = 1;
    pub(in super::super) const EXITED: u32 = 2;
    pub(in super::super) const MEMORY_THRESHOLD: u32 = 3;
    pub(in super::super) const OOM_KILLED: u32 = 4;
    pub(in super::super) const SLOW_IO: u32 = 5;
}

record! {
    /// What every event begins with, and all that most have.
    pub(in crate::probes) struct EventRecord = "events_event_record" {
        time_ns: u64,
        lost_before: u64,
        about: TaskAbout,
        resident_pages: u64,
        kind: u32,
        exit_status: i32,
    }
}

record! {
    /// An operation that took long.
    pub(in crate::probes) struct SlowIoRecord = "events_slow_io_record" {
        event: EventRecord,
        queue_ns: u64,
        device_ns: u64,
        bytes: u64,
        device: u32,
        class: u32,
        operation: u32,
        padding: u32,
    }
}

record! {
    /// Events that found no room.
    pub(in crate::probes) struct LostRecord = "events_lost_record" {
        all: u64,
        by_kind: [u64; KINDS.len()],
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
    use crate::task::ProcessKey;

    crate::record::layout_test!(
        ebpf_probes::EVENTS,
        [TaskAbout, ProcessKey, EventRecord, LostRecord, EndingRecord]
    );
    crate::record::losses_test!(ebpf_probes::EVENTS, "events_loss", LOSSES);

    #[test]
    fn kinds_match_the_object() {
        crate::kit::conformance::check_losses(ebpf_probes::EVENTS, "event_kind", KINDS);
    }
}
