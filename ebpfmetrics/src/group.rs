//! Processes taken together: by cgroup, by tree, by user, by the caller's key.

use std::collections::{BTreeMap, HashMap};

use crate::{ProcessId, ProcessRow, ProcessRows, Usage};

/// The rows of a snapshot, summed up by a key.
///
/// Nothing is left out: [`total`](Groups::total) is the sum over all processes of the
/// snapshot, in whatever groups they are.
#[derive(Clone, Debug)]
#[non_exhaustive]
pub struct Groups<K, U> {
    /// The groups by key.
    pub groups: BTreeMap<K, Group<U>>,
    /// Processes without a key.
    pub rest: Group<U>,
    /// Processes that exited beyond the bound of the probe: who they were is not known.
    pub folded: U,
}

/// Processes taken together.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
#[non_exhaustive]
pub struct Group<U> {
    /// How many are alive.
    pub alive: usize,
    /// How many have exited in the window.
    pub exited: usize,
    /// What they did together.
    pub usage: U,
}

impl<U: Usage> Group<U> {
    fn add<R: ProcessRow<Usage = U>>(&mut self, row: &R) {
        match row.info().exited {
            true => self.exited += 1,
            false => self.alive += 1,
        }
        self.usage = self.usage.plus(row.usage());
    }
}

impl<K, U: Usage> Groups<K, U> {
    /// The sum over all groups, the rest and the folded.
    pub fn total(&self) -> U {
        let groups = self.groups.values().chain([&self.rest]);
        groups.fold(self.folded.clone(), |sum, group| sum.plus(&group.usage))
    }
}

/// Sums up the rows of a snapshot by a key of the caller's.
///
/// ```no_run
/// use ebpfmetrics::{CpuProbe, Probe, group_by};
///
/// let mut probe = CpuProbe::builder().load()?;
/// let snapshot = probe.reset()?;
/// let by_user = group_by(&snapshot, |row| Some(row.info.uid));
/// let by_cgroup = group_by(&snapshot, |row| row.info.cgroup_id);
/// # Ok::<(), ebpfmetrics::Error>(())
/// ```
pub fn group_by<S: ProcessRows, K: Ord>(
    snapshot: &S,
    mut key: impl FnMut(&S::Row) -> Option<K>,
) -> Groups<K, <S::Row as ProcessRow>::Usage> {
    let mut groups =
        Groups { groups: BTreeMap::new(), rest: Group::default(), folded: snapshot.folded_usage() };
    for row in snapshot.rows() {
        let group = match key(row) {
            Some(key) => groups.groups.entry(key).or_default(),
            None => &mut groups.rest,
        };
        group.add(row);
    }
    groups
}

/// A process and all that it started, and they in turn, as far as snapshots show.
///
/// Keeps who belongs to it from one snapshot to the next, for parents end and their
/// children get others. To miss nobody, begin when the root has no children yet, and
/// feed it every snapshot: a process whose parent came and went between two snapshots
/// is found by that parent's final row. Who ended is remembered for two minutes: what it
/// left to be written back reaches a disk half a minute later.
///
/// ```no_run
/// use ebpfmetrics::{CpuProbe, Probe, ProcessTree};
///
/// let mut probe = CpuProbe::builder().load()?;
/// let mut build = std::process::Command::new("make").spawn().expect("make is there");
/// let mut tree = ProcessTree::of(build.id());
/// while build.try_wait().expect("it is our child").is_none() {
///     std::thread::sleep(std::time::Duration::from_secs(1));
///     println!("{:?}", tree.group(&probe.reset()?).usage.cpu_time);
/// }
/// # Ok::<(), ebpfmetrics::Error>(())
/// ```
#[derive(Clone, Debug)]
pub struct ProcessTree {
    root: u32,
    /// With the end of the last window that had each, `CLOCK_MONOTONIC`.
    members: HashMap<ProcessId, u64>,
}

/// Nothing refers any more to a process that has not been seen for so long.
const FORGET_AFTER_NS: u64 = 120_000_000_000;

impl ProcessTree {
    /// The tree of a pid: of the process that has it when the first snapshot comes.
    pub fn of(root: u32) -> Self {
        Self { root, members: HashMap::new() }
    }

    /// Whether a process belongs to it, by the snapshots so far.
    pub fn contains(&self, id: ProcessId) -> bool {
        self.members.contains_key(&id)
    }

    /// Takes in who belongs to it, and sums them up.
    pub fn group<S: ProcessRows>(&mut self, snapshot: &S) -> Group<<S::Row as ProcessRow>::Usage> {
        self.update(snapshot);
        let mut group = Group::default();
        for row in snapshot.rows().iter().filter(|row| self.contains(row.id())) {
            group.add(row);
        }
        group
    }

    fn update<S: ProcessRows>(&mut self, snapshot: &S) {
        let (rows, now) = (snapshot.rows(), snapshot.window().end_ns);
        if self.members.is_empty() {
            let root = rows.iter().rev().find(|row| row.id().pid == self.root);
            self.members.extend(root.map(|row| (row.id(), now)));
        }
        self.members.retain(|_, &mut seen| now.saturating_sub(seen) <= FORGET_AFTER_NS);
        // A child is started after its parent, but rows are in the order of pids, which
        // wrap around: go by parent, not by place.
        let mut children: HashMap<ProcessId, Vec<ProcessId>> = HashMap::new();
        for row in rows {
            if let Some(parent) = row.info().parent {
                children.entry(parent).or_default().push(row.id());
            }
        }
        let mut open: Vec<ProcessId> = self.members.keys().copied().collect();
        while let Some(parent) = open.pop() {
            for &child in children.get(&parent).into_iter().flatten() {
                if self.members.insert(child, now).is_none() {
                    open.push(child);
                }
            }
        }
        for row in rows {
            if let Some(seen) = self.members.get_mut(&row.id()) {
                *seen = now;
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;
    use crate::usage::testing::{Counter, Sample, row};

    /// A row with a parent.
    fn child(pid: u32, parent: u32, exited: bool, count: u64) -> crate::usage::testing::Row {
        let mut row = row(pid, 1, count);
        row.info.parent = Some(ProcessId { pid: parent, start_time_ns: 1 });
        row.info.exited = exited;
        row
    }

    proptest! {
        #[test]
        fn groups_conserve_the_total(
            rows in prop::collection::vec((1_u32..50, 0_u64..1000, 0_u32..4), 0..40),
            folded in 0_u64..1000,
        ) {
            let mut all: Vec<_> = rows.iter().map(|&(pid, count, user)| {
                let mut row = row(pid, 1, count);
                row.info.uid = user;
                row
            }).collect();
            all.sort_by_key(|row| row.id);
            all.dedup_by_key(|row| row.id);
            let total: u64 = all.iter().map(|row| row.usage.0).sum::<u64>() + folded;
            let snapshot = Sample { rows: all, folded, ..Sample::default() };
            let by_user = group_by(&snapshot, |row| (row.info.uid != 0).then_some(row.info.uid));
            prop_assert_eq!(by_user.total(), Counter(total));
            let members = by_user.groups.values().map(|group| group.alive).sum::<usize>();
            prop_assert_eq!(members + by_user.rest.alive, snapshot.rows.len());
        }
    }

    #[test]
    fn a_tree_has_children_of_children_and_those_that_exited() {
        let mut tree = ProcessTree::of(10);
        let first = [child(2, 12, false, 1), child(10, 1, false, 10), child(12, 10, true, 100)];
        // 2 came after 12, in numbers that wrapped around
        assert_eq!(tree.group(&Sample::of(first)).usage, Counter(111));
        // 12 is gone, 2 has another parent now; 3 is its child; 20 is a stranger
        let second = [child(2, 1, false, 1), child(3, 2, false, 5), child(20, 1, false, 9)];
        let group = tree.group(&Sample::of(second));
        assert_eq!((group.usage, group.alive, group.exited), (Counter(6), 2, 0));
    }

    #[test]
    fn a_root_that_is_not_there_is_looked_for_again() {
        let mut tree = ProcessTree::of(10);
        assert_eq!(tree.group(&Sample::of([child(5, 1, false, 1)])).usage, Counter(0));
        assert_eq!(tree.group(&Sample::of([child(10, 1, false, 7)])).usage, Counter(7));
        // its pid comes back: another process
        let mut again = row(10, 2, 3);
        again.info.parent = Some(ProcessId { pid: 1, start_time_ns: 1 });
        assert_eq!(tree.group(&Sample::of([again])).usage, Counter(0));
    }

    #[test]
    fn who_has_not_been_seen_for_long_is_forgotten() {
        let mut tree = ProcessTree::of(10);
        tree.group(&Sample::of([child(10, 1, false, 1), child(11, 10, true, 1)]));
        let mut at = |end_ns: u64| {
            let window = crate::Window { start_ns: 0, end_ns };
            tree.group(&Sample { window, ..Sample::of([child(10, 1, false, 1)]) });
            tree.contains(ProcessId { pid: 11, start_time_ns: 1 })
        };
        assert!(at(FORGET_AFTER_NS));
        assert!(!at(FORGET_AFTER_NS + 1));
        assert!(tree.contains(ProcessId { pid: 10, start_time_ns: 1 }));
    }
}
