//! Cells follow their processes from walk to walk.

use std::collections::BTreeSet;

use proptest::prelude::*;

use super::*;

fn id(pid: u32) -> ProcessId {
    ProcessId { pid, start_time_ns: 1 }
}

fn pids() -> impl Strategy<Value = BTreeSet<u32>> {
    prop::collection::btree_set(1_u32..30, 0..30)
}

proptest! {
    /// Whichever processes come and go, every process has one entry, and its cell stays
    /// its own.
    #[test]
    fn cells_follow_their_process(
        walks in prop::collection::vec((pids(), pids()), 1..6),
    ) {
        let mut table = ProcessTable::new(8, false, true);
        let mut known = BTreeSet::new();
        for (walked, ended) in walks {
            let before = table.ids.clone();
            let infos = walked.iter().map(|&pid| {
                let info = ProcessInfo { namespace_pid: pid, ..ProcessInfo::default() };
                (id(pid), info)
            });
            let (places, seen) = table.merge(infos, ended.iter().map(|&pid| id(pid)), 1);
            known.extend(walked.iter().chain(&ended).copied());
            prop_assert!(table.ids.iter().map(|id| id.pid).eq(known.iter().copied()));
            prop_assert!(table.ids.iter().eq(table.entries.iter().map(|entry| &entry.id)));
            let kept = (0..places.kept).map(Some);
            let from: Vec<_> = kept.chain(places.from.iter().copied()).collect();
            prop_assert_eq!(from.len(), table.ids.len());
            for (index, entry) in table.entries.iter().enumerate() {
                let place = before.binary_search(&entry.id).ok();
                prop_assert_eq!(from[index], place);
                let alive = walked.contains(&entry.id.pid);
                prop_assert_eq!((seen[index], entry.phase == Phase::Alive), (alive, alive));
                prop_assert!(!alive || entry.info.namespace_pid == entry.id.pid);
            }
        }
    }
}
