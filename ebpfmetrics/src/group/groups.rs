use std::collections::{BTreeMap, btree_map::Entry};

use crate::snapshot::{Row, Rows, Usage, sum_of};

/// The rows of a snapshot, summed by a key.
///
/// Nothing is left out: [`sum`](Groups::sum) is the usage of all processes in the
/// snapshot.
#[derive(Clone, Debug, PartialEq, Eq)]
#[cfg_attr(
    feature = "serde",
    derive(serde::Serialize, serde::Deserialize),
    serde(bound(
        serialize = "K: serde::Serialize, U: serde::Serialize",
        deserialize = "K: serde::Deserialize<'de> + Ord, U: serde::Deserialize<'de>"
    ))
)]
#[non_exhaustive]
pub struct Groups<K, U> {
    /// The groups by key.
    pub groups: BTreeMap<K, Group<U>>,
    /// Processes without a key.
    pub rest: Group<U>,
    /// Usage of processes without a row, see [`Overflow`](crate::snapshot::Overflow).
    pub overflow: U,
}

/// Several processes together.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
#[cfg_attr(feature = "serde", derive(serde::Serialize, serde::Deserialize))]
#[non_exhaustive]
pub struct Group<U> {
    /// Number of live processes.
    pub alive: usize,
    /// Number of processes that exited in the window.
    pub exited: usize,
    /// Usage of all members in the window.
    pub usage: U,
    /// Sum of the members' [totals](crate::snapshot::Process::total). It decreases when a
    /// member leaves the group, for example after its exit.
    pub total: U,
}

impl<U: Usage> Group<U> {
    /// Adds a process.
    pub(super) fn add(&mut self, row: Row<'_, U>) {
        let is_empty = self.members() == 0;
        self.add_usage(row.usage, row.total, is_empty);
        self.count(row);
    }

    fn add_usage(&mut self, usage: &U, total: &U, is_empty: bool) {
        if is_empty {
            // the default of a usage may lack values that the row has
            self.usage = usage.clone();
            self.total = total.clone();
        } else {
            self.usage += usage;
            self.total += total;
        }
    }

    fn count(&mut self, row: Row<'_, U>) {
        match row.info.exited {
            true => self.exited += 1,
            false => self.alive += 1,
        }
    }
}

impl<U> Group<U> {
    /// Number of processes, live and exited.
    pub fn members(&self) -> usize {
        self.alive + self.exited
    }
}

impl<K, U: Default> Default for Groups<K, U> {
    fn default() -> Self {
        Self { groups: BTreeMap::new(), rest: Group::default(), overflow: U::default() }
    }
}

impl<K, U: Usage> Groups<K, U> {
    /// Usage of all groups together, including the rest and the overflow.
    pub fn sum(&self) -> U {
        // the default of a usage may lack values that a row has
        let rest = (self.rest.members() > 0).then_some(&self.rest);
        let usages = self.groups.values().chain(rest).map(|group| &group.usage);
        sum_of(usages.chain([&self.overflow]))
    }
}

/// Sums the rows of a snapshot by a key. Rows whose key is `None` are summed in
/// [`rest`](Groups::rest).
///
/// ```
/// use ebpfmetrics::{DiskUsage, group::group_by, snapshot::ProbeSnapshot};
///
/// let snapshot = ProbeSnapshot::<DiskUsage, ()>::default();
/// let by_user = group_by(&snapshot, |row| row.info.uid);
/// let by_cgroup = group_by(&snapshot, |row| row.info.cgroup_id);
/// assert_eq!(by_user.sum(), by_cgroup.sum());
/// ```
pub fn group_by<'a, S: Rows, K: Ord>(
    snapshot: &'a S,
    mut key: impl FnMut(Row<'a, S::Usage>) -> Option<K>,
) -> Groups<K, S::Usage> {
    let mut groups = Groups { overflow: snapshot.overflow_usage(), ..Groups::default() };
    for row in snapshot.rows() {
        let group = match key(row) {
            Some(key) => groups.groups.entry(key).or_default(),
            None => &mut groups.rest,
        };
        group.add(row);
    }
    groups
}

/// Sums a snapshot by cgroup. Unlike `group_by` with the cgroup of each row, usage of a process
/// before it moved counts in the cgroup where it was used, and so does usage of threads in a
/// cgroup of their own, see [`Process::other_cgroups`](crate::snapshot::Process::other_cgroups).
///
/// A process is a member of the cgroup where it is at the end of the window, or was at its
/// exit. A group without members has usage of processes that have left it.
pub fn group_by_cgroup<S: Rows>(snapshot: &S) -> Groups<u64, S::Usage> {
    let mut groups = Groups { overflow: snapshot.overflow_usage(), ..Groups::default() };
    let mut has_rest = false;
    for row in snapshot.rows() {
        for (part, (cgroup_id, usage, total)) in row.by_cgroup().enumerate() {
            let (group, is_empty) = match cgroup_id.map(|id| groups.groups.entry(id)) {
                Some(Entry::Vacant(entry)) => (entry.insert(Group::default()), true),
                Some(Entry::Occupied(entry)) => (entry.into_mut(), false),
                None => (&mut groups.rest, !std::mem::replace(&mut has_rest, true)),
            };
            group.add_usage(&usage, &total, is_empty);
            if part == 0 {
                group.count(row);
            }
        }
    }
    groups
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;
    use crate::snapshot::{
        CgroupUsage, Overflow,
        testing::{Counter, row, sample},
    };

    proptest! {
        #[test]
        fn groups_conserve_the_total(
            rows in prop::collection::vec((1_u32..50, 0_u64..1000, 0_u32..4), 0..40),
            overflow in 0_u64..1000,
        ) {
            let mut all: Vec<_> = rows.iter().map(|&(pid, count, user)| {
                let mut row = row(pid, 1, count);
                row.info.uid = (user != 0).then_some(user);
                row.total += Counter::of(5);
                row
            }).collect();
            all.sort_by_key(|row| row.id);
            all.dedup_by_key(|row| row.id);
            let rows: u64 = all.iter().map(|row| row.usage.count).sum();
            let mut snapshot = sample(all);
            snapshot.overflow = Overflow::new(1, Counter::of(overflow));
            let by_user = group_by(&snapshot, |row| row.info.uid);
            prop_assert_eq!(by_user.sum(), Counter::of(rows + overflow));
            prop_assert_eq!(by_user.sum(), snapshot.sum());
            let groups = || by_user.groups.values().chain([&by_user.rest]);
            let members = groups().map(|group| group.alive).sum::<usize>();
            prop_assert_eq!(members, snapshot.processes.len());
            let total: u64 = groups().map(|group| group.total.count).sum();
            prop_assert_eq!(total, rows + 5 * members as u64);
        }
    }

    #[test]
    fn a_sum_keeps_the_values_that_one_member_has() {
        let mut rows = [row(1, 1, 1), row(2, 1, 2), row(3, 1, 3)];
        rows[0].usage.known = Some(7);
        rows[2].total.known = Some(8);
        let snapshot = sample(rows);
        // keys can borrow from the snapshot
        let groups = group_by(&snapshot, |row| Some(&row.info.comm));
        let group = groups.groups.values().next().unwrap();
        assert_eq!(group.usage, Counter { count: 6, known: Some(7) });
        assert_eq!(group.total, Counter { count: 6, known: Some(8) });
        assert_eq!(groups.sum().known, Some(7));
    }

    #[test]
    fn usage_before_a_move_counts_where_it_was_used() {
        let mut rows = [row(1, 1, 10), row(2, 1, 2), row(3, 1, 1)];
        rows[0].info.cgroup_id = Some(8);
        rows[0].other_cgroups = vec![
            CgroupUsage::new(7, Counter::of(6), Counter::of(6)),
            CgroupUsage::new(9, Counter::of(1), Counter::of(1)),
        ];
        rows[0].usage.known = Some(5);
        rows[1].info.cgroup_id = Some(7);
        rows[1].info.exited = true;
        let snapshot = sample(rows);
        let groups = group_by_cgroup(&snapshot);
        let of = |id| {
            let group: &Group<Counter> = &groups.groups[&id];
            (group.alive, group.exited, group.usage.count)
        };
        assert_eq!((of(7), of(8), of(9)), ((0, 1, 8), (1, 0, 3), (0, 0, 1)));
        assert_eq!((groups.rest.alive, groups.rest.usage.count), (1, 1));
        assert_eq!(groups.sum(), snapshot.sum());
        assert_eq!(groups.sum().known, Some(5));
    }

    #[cfg(feature = "serde")]
    #[test]
    fn groups_round_trip_through_json() {
        let mut rows = [row(1, 1, 1), row(2, 1, 2)];
        rows[0].info.uid = Some(1000);
        rows[1].info.exited = true;
        let groups = group_by(&sample(rows), |row| row.info.uid);
        let json = serde_json::to_string(&groups).unwrap();
        assert!(json.starts_with(r#"{"groups":{"1000":{"alive":1,"exited":0,"usage":"#), "{json}");
        assert_eq!(serde_json::from_str::<Groups<u32, Counter>>(&json).unwrap(), groups);
    }
}
