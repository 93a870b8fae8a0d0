//! The records of `ebpf-probes/bpf/mem.bpf.c`.

use crate::{
    ProcessId,
    record,
    task::{RecordHead, TaskAbout},
};

/// `enum mem_loss`, in its order and by its names.
pub(super) const LOSSES: &[&str] = &["track_table_full", "exit_state_full", "watch_table_full"];

pub(super) const RECORD_PROCESS: u16 = 1;
pub(super) const RECORD_THREAD: u16 = 2;
pub(super) const RECORD_HELD: u16 = 3;
pub(super) const RECORD_TRACKED: u16 = 4;

/// `enum process_flags`
pub(super) const OOM_VICTIM: u32 = 1 << 0;

/// `enum held_flags`
pub(super) mod held_flags {
    pub(in super::super) const HAS_HUGETLB: u32 = 1 << 0;
    pub(in super::super) const CHANGING: u32 = 1 << 1;
}

/// File, anonymous, swapped out, shared: `MM_FILEPAGES` and so on.
pub(super) const PAGE_KINDS: usize = 4;
pub(super) const FILE: usize = 0;
pub(super) const ANON: usize = 1;
pub(super) const SWAP: usize = 2;
pub(super) const SHMEM: usize = 3;

record! {
    /// Page faults of a thread, and of those of its process that are gone.
    pub(super) struct FaultsRecord = "mem_faults_record" {
        minor: u64,
        major: u64,
        dead_minor: u64,
        dead_major: u64,
    }
}

record! {
    /// A process, told by its leader.
    pub(super) struct ProcessRecord = "mem_process_record" {
        head: RecordHead,
        about: TaskAbout,
        faults: FaultsRecord,
        unfolded_pages: [i32; PAGE_KINDS],
        flags: u32,
        padding: u32,
    }
}

record! {
    /// A thread that is not the leader of its process.
    pub(super) struct ThreadRecord = "mem_thread_record" {
        head: RecordHead,
        process_start_ns: u64,
        tgid: u32,
        tid: u32,
        faults: FaultsRecord,
        unfolded_pages: [i32; PAGE_KINDS],
    }
}

impl ThreadRecord {
    pub(super) fn process(&self) -> ProcessId {
        ProcessId { pid: self.tgid, start_time_ns: self.process_start_ns }
    }
}

record! {
    /// What a process holds.
    pub(super) struct HeldRecord = "mem_held_record" {
        head: RecordHead,
        process_start_ns: u64,
        tgid: u32,
        flags: u32,
        virtual_pages: u64,
        virtual_high_water_pages: u64,
        resident_pages: [i64; PAGE_KINDS],
        resident_high_water_pages: u64,
        page_table_bytes: u64,
        locked_pages: u64,
        hugetlb_pages: u64,
        owner_start_ns: u64,
        owner_tgid: u32,
        padding: u32,
    }
}

impl HeldRecord {
    pub(super) fn process(&self) -> ProcessId {
        ProcessId { pid: self.tgid, start_time_ns: self.process_start_ns }
    }
}

record! {
    /// The highest of something in a window.
    pub(super) struct PeakRecord = "mem_peak_record" {
        epoch: u64,
        pages: u64,
        previous_pages: u64,
    }
}

record! {
    /// What events have told of a process.
    pub(super) struct TrackedRecord = "mem_tracked_record" {
        head: RecordHead,
        process_start_ns: u64,
        tgid: u32,
        padding: u32,
        resident_set: PeakRecord,
        virtual_space: PeakRecord,
        space: u64,
        virtual_pages: u64,
        allocations: u64,
        allocated_pages: u64,
        deallocations: u64,
        deallocated_pages: u64,
    }
}

impl TrackedRecord {
    pub(super) fn process(&self) -> ProcessId {
        ProcessId { pid: self.tgid, start_time_ns: self.process_start_ns }
    }
}

record! {
    /// A process that has exited.
    pub(super) struct EndedRecord = "mem_ended_record" {
        about: TaskAbout,
        faults: FaultsRecord,
        tracked: TrackedRecord,
        resident_high_water_pages: u64,
        virtual_high_water_pages: u64,
        ended_ns: u64,
        flags: u32,
        padding: u32,
    }
}

record! {
    /// The sum of the ended processes that found no room.
    pub(super) struct FoldedRecord = "mem_folded_record" {
        processes: u64,
        minor_faults: u64,
        major_faults: u64,
        allocations: u64,
        allocated_pages: u64,
        deallocations: u64,
        deallocated_pages: u64,
        oom_kills: u64,
    }
}

record! {
    /// What a CPU saw last.
    pub(super) struct SeenRecord = "mem_seen_record" {
        owner_start_ns: u64,
        epoch: u64,
        pages: u64,
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::task::ProcessKey;

    crate::record::layout_test!(
        ebpf_probes::MEM,
        [
            RecordHead,
            TaskAbout,
            crate::watch::WatchProcessRecord,
            ProcessKey,
            FaultsRecord,
            ProcessRecord,
            ThreadRecord,
            HeldRecord,
            PeakRecord,
            TrackedRecord,
            EndedRecord,
            FoldedRecord,
            SeenRecord,
        ]
    );
    crate::record::losses_test!(ebpf_probes::MEM, "mem_loss", LOSSES);
}
