use std::collections::HashMap;

use super::Group;
use crate::{process::ProcessId, snapshot::Rows};

/// A process and all its descendants, followed over a series of snapshots.
///
/// The tree remembers its members, because a process gets another parent when its own
/// exits. A process belongs to the tree if the process that created it does. Where the
/// creator is not known, the current parent is used.
///
/// To find all descendants, begin before the root has children and pass every snapshot.
/// A process whose parent began and ended between two snapshots is found through the
/// final row of that parent. The tree forgets a member two minutes after its last row.
/// That is long enough for the data it wrote to reach a disk.
///
/// ```
/// use ebpfmetrics::{DiskUsage, group::ProcessTree, snapshot::ProbeSnapshot};
///
/// let mut tree = ProcessTree::of(std::process::id());
/// for snapshot in [ProbeSnapshot::<DiskUsage, ()>::default()] {
///     println!("{:?}", tree.group(&snapshot).usage);
/// }
/// ```
#[derive(Clone, Debug, PartialEq, Eq)]
#[cfg_attr(feature = "serde", derive(serde::Serialize, serde::Deserialize))]
pub struct ProcessTree {
    root_pid: u32,
    /// Known once a snapshot had a row of the root: its pid may be reused after it has ended.
    root_start_ns: Option<u64>,
    /// The members, each with the end of the last window that had a row for it.
    #[cfg_attr(feature = "serde", serde(with = "as_list"))]
    members: HashMap<ProcessId, u64>,
}

/// No process refers to a member that has not been seen for this long.
const FORGET_AFTER_NS: u64 = 120_000_000_000;

impl ProcessTree {
    /// Tree of the process that has this pid (in the initial PID namespace) in the first
    /// snapshot that has a row of such a process.
    pub fn of(root: u32) -> Self {
        Self { root_pid: root, root_start_ns: None, members: HashMap::new() }
    }

    /// Tree of this process. [`ProbeSet::process_id`](crate::ProbeSet::process_id) finds it by the
    /// pid that the caller knows.
    pub fn of_process(root: ProcessId) -> Self {
        Self { root_start_ns: Some(root.start_time_ns), ..Self::of(root.pid) }
    }

    /// Whether the process belongs to the tree, as far as the snapshots so far show.
    pub fn contains(&self, id: ProcessId) -> bool {
        self.members.contains_key(&id)
    }

    /// Adds new members from the snapshot and sums the rows of all members.
    pub fn group<S: Rows>(&mut self, snapshot: &S) -> Group<S::Usage> {
        self.update(snapshot);
        let mut group = Group::default();
        for row in snapshot.rows().filter(|row| self.contains(row.id)) {
            group.add(row);
        }
        group
    }

    fn update<S: Rows>(&mut self, snapshot: &S) {
        let now = snapshot.window().end_ns;
        if self.members.is_empty() {
            let is_root = |id: ProcessId| {
                id.pid == self.root_pid
                    && self.root_start_ns.is_none_or(|start_ns| start_ns == id.start_time_ns)
            };
            // the last row of a pid is the process that started last
            if let Some(root) = snapshot.rows().filter(|row| is_root(row.id)).last() {
                self.root_start_ns = Some(root.id.start_time_ns);
                self.members.insert(root.id, now);
            }
        }
        self.members.retain(|_, &mut seen| now.saturating_sub(seen) <= FORGET_AFTER_NS);
        // Pids wrap around, so a child can come before its parent.
        let mut children: HashMap<ProcessId, Vec<ProcessId>> = HashMap::new();
        for row in snapshot.rows() {
            if let Some(creator) = row.info.creator.or(row.info.parent) {
                children.entry(creator).or_default().push(row.id);
            }
        }
        let mut open: Vec<ProcessId> = self.members.keys().copied().collect();
        while let Some(creator) = open.pop() {
            for &child in children.get(&creator).into_iter().flatten() {
                if self.members.insert(child, now).is_none() {
                    open.push(child);
                }
            }
        }
        for row in snapshot.rows() {
            if let Some(seen) = self.members.get_mut(&row.id) {
                *seen = now;
            }
        }
    }
}

/// A map whose keys are structs, which JSON cannot have.
#[cfg(feature = "serde")]
mod as_list {
    use std::collections::HashMap;

    use serde::{Deserialize, Deserializer, Serializer};

    use crate::process::ProcessId;

    pub(super) fn serialize<S: Serializer>(
        members: &HashMap<ProcessId, u64>,
        serializer: S,
    ) -> Result<S::Ok, S::Error> {
        serializer.collect_seq(members)
    }

    pub(super) fn deserialize<'de, D: Deserializer<'de>>(
        deserializer: D,
    ) -> Result<HashMap<ProcessId, u64>, D::Error> {
        Ok(Vec::deserialize(deserializer)?.into_iter().collect())
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::snapshot::{
        Window,
        testing::{Counter, Row, Sample, row, sample},
    };

    /// A row with a parent.
    fn child(pid: u32, parent: u32, exited: bool, count: u64) -> Row {
        let mut row = row(pid, 1, count);
        row.info.parent = Some(ProcessId { pid: parent, start_time_ns: 1 });
        row.info.exited = exited;
        row
    }

    /// A row with a creator and another parent.
    fn orphan(pid: u32, creator: u32, count: u64) -> Row {
        let mut row = child(pid, 1, false, count);
        row.info.creator = Some(ProcessId { pid: creator, start_time_ns: 1 });
        row
    }

    #[test]
    fn a_process_that_reuses_the_pid_of_the_root_is_not_in_the_tree() {
        let at = |end_ns, rows: &[Row]| {
            let mut sample = sample(rows.iter().cloned());
            sample.window = Window { start_ns: 0, end_ns };
            sample
        };
        let mut tree = ProcessTree::of(10);
        assert_eq!(tree.group(&at(1, &[row(10, 1, 5)])).usage.count, 5);
        let later = 2 * FORGET_AFTER_NS;
        assert_eq!(tree.group(&at(later, &[])).usage.count, 0);
        assert_eq!(tree.group(&at(later + 1, &[row(10, 2, 7)])).usage.count, 0);

        let mut tree = ProcessTree::of_process(ProcessId { pid: 10, start_time_ns: 1 });
        let rows = [row(10, 1, 5), row(10, 2, 7)];
        assert_eq!(tree.group(&at(1, &rows)).usage.count, 5, "the first of the two");
    }

    #[test]
    fn a_tree_has_children_of_children_and_those_that_exited() {
        let mut tree = ProcessTree::of(10);
        let first = [child(2, 12, false, 1), child(10, 1, false, 10), child(12, 10, true, 100)];
        // 2 started after 12: pids wrapped around
        assert_eq!(tree.group(&sample(first)).usage, Counter::of(111));
        // 12 is gone and 2 has another parent now; 3 is its child; 20 is unrelated
        let second = [child(2, 1, false, 1), child(3, 2, false, 5), child(20, 1, false, 9)];
        let group = tree.group(&sample(second));
        assert_eq!((group.usage, group.alive, group.exited), (Counter::of(6), 2, 0));
        assert_eq!(group.total, Counter::of(6));
    }

    #[test]
    fn a_double_fork_stays_in_the_tree() {
        let mut tree = ProcessTree::of(10);
        // 11 forked 12 and exited before the first snapshot; its final row is there
        let rows = [child(10, 1, false, 1), child(11, 10, true, 10), orphan(12, 11, 100)];
        assert_eq!(tree.group(&sample(rows)).usage, Counter::of(111));
        assert_eq!(tree.group(&sample([orphan(12, 11, 5)])).usage, Counter::of(5));
    }

    #[test]
    fn an_adopted_process_is_not_a_descendant() {
        let mut tree = ProcessTree::of(10);
        let mut adopted = orphan(12, 99, 100);
        adopted.info.parent = Some(ProcessId { pid: 10, start_time_ns: 1 });
        assert_eq!(tree.group(&sample([child(10, 1, false, 1), adopted])).usage, Counter::of(1));
    }

    #[test]
    fn a_missing_root_is_looked_for_again() {
        let mut tree = ProcessTree::of(10);
        assert_eq!(tree.group(&sample([child(5, 1, false, 1)])).usage, Counter::of(0));
        assert_eq!(tree.group(&sample([child(10, 1, false, 7)])).usage, Counter::of(7));
        // the pid is reused by another process
        let mut again = row(10, 2, 3);
        again.info.parent = Some(ProcessId { pid: 1, start_time_ns: 1 });
        assert_eq!(tree.group(&sample([again])).usage, Counter::of(0));
    }

    #[test]
    fn a_process_that_has_not_been_seen_for_long_is_forgotten() {
        let mut tree = ProcessTree::of(10);
        tree.group(&sample([child(10, 1, false, 1), child(11, 10, true, 1)]));
        let mut at = |end_ns: u64| {
            let window = Window { start_ns: 0, end_ns };
            tree.group(&Sample { window, ..sample([child(10, 1, false, 1)]) });
            tree.contains(ProcessId { pid: 11, start_time_ns: 1 })
        };
        assert!(at(FORGET_AFTER_NS));
        assert!(!at(FORGET_AFTER_NS + 1));
        assert!(tree.contains(ProcessId { pid: 10, start_time_ns: 1 }));
    }

    #[cfg(feature = "serde")]
    #[test]
    fn trees_round_trip_through_json() {
        let mut tree = ProcessTree::of(10);
        tree.group(&sample([child(10, 1, false, 1), child(11, 10, true, 1)]));
        let json = serde_json::to_string(&tree).unwrap();
        assert_eq!(serde_json::from_str::<ProcessTree>(&json).unwrap(), tree);
    }
}
