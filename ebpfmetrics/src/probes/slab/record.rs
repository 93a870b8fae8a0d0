//! The records of `ebpf-probes/bpf/slab.bpf.c`.

use crate::{
    record,
    task::{RecordHead, TaskAbout},
};

/// `enum slab_loss`, in its order and by its names.
pub(super) const LOSSES: &[&str] =
    &["process_table_full", "address_map_full", "address_map_busy", "exit_state_full", "watch_table_full"];

pub(super) const RECORD_PROCESS: u16 = 1;

/// `enum size_told`
pub(super) mod size_told {
    pub(in super::super) const FOURTH: u32 = 0;
    pub(in super::super) const FIFTH: u32 = 1;
    pub(in super::super) const OF_CACHE: u32 = 2;
}

record! {
    /// What was counted.
    pub(super) struct CountersRecord = "slab_counters_record" {
        allocations: u64,
        allocated_bytes: u64,
        frees: u64,
        freed_bytes: u64,
        unknown_frees: u64,
        cross_process_frees: u64,
        released_bytes: u64,
        freed_by_others: u64,
        unseen_frees: u64,
        untracked_bytes: u64,
    }
}

record! {
    /// A process: alive, at its exit, or ended.
    pub(super) struct ProcessRecord = "slab_process_record" {
        head: RecordHead,
        about: TaskAbout,
        counters: CountersRecord,
        ended_ns: u64,
    }
}

record! {
    /// What is counted of one process.
    pub(super) struct TallyRecord = "slab_tally_record" {
        counters: CountersRecord,
        born: u32,
        ended_threads: u32,
    }
}

record! {
    /// The sum of the ended processes that found no room.
    pub(super) struct FoldedRecord = "slab_folded_record" {
        processes: u64,
        counters: CountersRecord,
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::task::ProcessKey;

    crate::record::layout_test!(
        ebpf_probes::SLAB,
        [
            RecordHead,
            TaskAbout,
            crate::watch::WatchProcessRecord,
            ProcessKey,
            CountersRecord,
            ProcessRecord,
            TallyRecord,
            FoldedRecord
        ]
    );
    crate::record::losses_test!(ebpf_probes::SLAB, "slab_loss", LOSSES);
}
