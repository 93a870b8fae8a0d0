use super::{Process, Row, Rows, Usage, Window};

/// Usage between two snapshots of one window.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
#[cfg_attr(feature = "serde", derive(serde::Serialize, serde::Deserialize))]
#[non_exhaustive]
pub struct Delta<U> {
    /// From the end of the earlier snapshot to the end of the later one.
    pub window: Window,
    /// The rows of the later snapshot in ascending order of
    /// [`ProcessId`](crate::process::ProcessId). Their usage is the one since the earlier
    /// snapshot; `info` and `total` are those of the later. Processes that had already
    /// exited in the earlier snapshot are left out.
    pub processes: Vec<Process<U>>,
}

/// Computes the usage between two snapshots without a reset. Use it when several readers
/// share a probe.
///
/// If the window was reset in between, the earlier snapshot cannot be subtracted. The
/// result then covers the whole window of the later snapshot.
///
/// Processes without a row (the [overflow](super::Overflow)) are not in the result: their
/// usage may include usage that the earlier snapshot has in rows.
///
/// ```
/// use std::time::Duration;
/// use ebpfmetrics::{
///     DiskUsage,
///     snapshot::{ProbeSnapshot, Window, delta},
/// };
///
/// let mut earlier = ProbeSnapshot::<DiskUsage, ()>::default();
/// earlier.window = Window { start_ns: 0, end_ns: 1_000_000_000 };
/// let mut later = earlier.clone();
/// later.window.end_ns = 3_000_000_000;
/// assert_eq!(delta(&earlier, &later).window.duration(), Duration::from_secs(2));
/// ```
pub fn delta<S: Rows>(earlier: &S, later: &S) -> Delta<S::Usage> {
    let (before, now) = (earlier.window(), later.window());
    if before.start_ns != now.start_ns || before.end_ns > now.end_ns {
        return Delta {
            window: now,
            processes: later.rows().map(|row| row.to_process()).collect(),
        };
    }
    // both are in the order of ids
    let mut known = earlier.rows().peekable();
    let mut processes = Vec::new();
    for row in later.rows() {
        while known.next_if(|known| known.id < row.id).is_some() {}
        let mut process = row.to_process();
        if let Some(known) = known.peek().filter(|known| known.id == row.id) {
            if known.info.exited {
                continue;
            }
            process.usage = row.usage.since(known.usage);
            for part in &mut process.other_cgroups {
                let mut before = known.by_cgroup();
                if let Some((_, usage, _)) = before.find(|(id, ..)| *id == Some(part.cgroup_id)) {
                    part.usage = part.usage.since(&usage);
                }
            }
        }
        processes.push(process);
    }
    Delta { window: Window { start_ns: before.end_ns, end_ns: now.end_ns }, processes }
}

impl<U: Usage> Rows for Delta<U> {
    type Usage = U;

    fn window(&self) -> Window {
        self.window
    }

    fn rows(&self) -> impl Iterator<Item = Row<'_, U>> + '_ {
        self.processes.iter().map(Process::as_row)
    }

    fn overflow_usage(&self) -> U {
        U::default()
    }
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeMap;

    use proptest::prelude::*;

    use super::{
        super::{
            CgroupUsage,
            testing::{Counter, Row, Sample, row, sample},
        },
        *,
    };
    use crate::process::ProcessId;

    /// What happens in a step: a process uses something, ends or begins, or the window is
    /// reset. Pids are reused.
    #[derive(Clone, Copy, Debug)]
    enum Event {
        Work(u32, u64),
        End(u32),
        Begin(u32),
        Reset,
    }

    fn event() -> impl Strategy<Value = Event> {
        prop_oneof![
            6 => (1_u32..6, 0_u64..100).prop_map(|(pid, count)| Event::Work(pid, count)),
            1 => (1_u32..6).prop_map(Event::End),
            2 => (1_u32..6).prop_map(Event::Begin),
            1 => Just(Event::Reset),
        ]
    }

    /// Takes snapshots of a history as a probe would.
    #[derive(Default)]
    struct Model {
        rows: BTreeMap<ProcessId, Row>,
        alive: BTreeMap<u32, ProcessId>,
        now: u64,
        window_start: u64,
        worked: u64,
    }

    impl Model {
        fn step(&mut self, event: Event) {
            self.now += 1;
            match event {
                Event::Work(pid, count) => {
                    if let Some(id) = self.alive.get(&pid) {
                        let row = self.rows.get_mut(id).unwrap();
                        row.usage += Counter::of(count);
                        row.total += Counter::of(count);
                        self.worked += count;
                    }
                }
                Event::End(pid) => {
                    if let Some(id) = self.alive.remove(&pid) {
                        self.rows.get_mut(&id).unwrap().info.exited = true;
                    }
                }
                Event::Begin(pid) => {
                    if !self.alive.contains_key(&pid) {
                        let row = row(pid, self.now, 0);
                        self.alive.insert(pid, row.id);
                        self.rows.insert(row.id, row);
                    }
                }
                Event::Reset => {
                    self.window_start = self.now;
                    self.rows.retain(|_, row| !row.info.exited);
                    self.rows.values_mut().for_each(|row| row.usage = Counter::default());
                }
            }
        }

        fn snapshot(&mut self) -> Sample {
            self.now += 1;
            let window = Window { start_ns: self.window_start, end_ns: self.now };
            Sample { window, ..sample(self.rows.values().cloned()) }
        }
    }

    proptest! {
        /// Deltas between snapshots add up to everything that was used, whichever processes
        /// end and whichever pids are reused. None is below zero, and totals are those of
        /// the later snapshot.
        #[test]
        fn deltas_add_up(
            steps in prop::collection::vec(prop::collection::vec(event(), 0..20), 1..10),
        ) {
            let mut model = Model::default();
            let mut earlier = model.snapshot();
            for events in steps {
                let worked = model.worked;
                let mut reset = None;
                for event in events {
                    if let Event::Reset = event {
                        reset = Some(model.worked);
                    }
                    model.step(event);
                }
                let later = model.snapshot();
                let delta = delta(&earlier, &later);
                let sum: u64 = delta.processes.iter().map(|row| row.usage.count).sum();
                prop_assert_eq!(sum, model.worked - reset.unwrap_or(worked));
                let start = if reset.is_some() { later.window.start_ns } else { earlier.window.end_ns };
                prop_assert_eq!(delta.window, Window { start_ns: start, end_ns: later.window.end_ns });
                prop_assert!(delta.processes.is_sorted_by_key(|row| row.id));
                for row in &delta.processes {
                    prop_assert_eq!(&row.total, &model.rows[&row.id].total);
                }
                earlier = later;
            }
        }
    }

    #[test]
    fn a_process_that_had_exited_before_is_left_out() {
        let mut ended = row(5, 1, 7);
        ended.info.exited = true;
        let earlier = sample([ended.clone(), row(6, 1, 1)]);
        let later = sample([ended, row(6, 1, 4)]);
        let delta = delta(&earlier, &later);
        let [process] = &delta.processes[..] else { panic!("{delta:?}") };
        assert_eq!((process.usage.count, process.total.count), (3, 4));
        assert!(delta.rows().map(|row| row.id.pid).eq([6]));
    }

    /// A process used 7 in cgroup 1, moved to 2 and used 5, and then 1 more in 1 again.
    #[test]
    fn parts_in_other_cgroups_are_subtracted_by_cgroup() {
        let at = |cgroup_id, count, parts: &[(u64, u64)]| {
            let mut row = row(5, 1, count);
            row.info.cgroup_id = Some(cgroup_id);
            let part = |&(id, count)| CgroupUsage::new(id, Counter::of(count), Counter::of(count));
            row.other_cgroups = parts.iter().map(part).collect();
            sample([row])
        };
        let steps = [at(1, 6, &[]), at(2, 10, &[(1, 7)]), at(1, 13, &[(2, 5)])];
        let by_cgroup = |from: usize, to: usize| {
            let delta = delta(&steps[from], &steps[to]);
            let parts = delta.processes[0].as_row();
            parts.by_cgroup().map(|(id, usage, _)| (id.unwrap(), usage.count)).collect::<Vec<_>>()
        };
        assert_eq!(by_cgroup(0, 1), [(2, 3), (1, 1)]);
        assert_eq!(by_cgroup(1, 2), [(1, 1), (2, 2)]);
        assert_eq!(by_cgroup(0, 2), [(1, 2), (2, 5)]);
    }

    #[cfg(feature = "serde")]
    #[test]
    fn deltas_round_trip_through_json() {
        let delta = delta(&Sample::default(), &sample([row(5, 1, 7)]));
        let json = serde_json::to_string(&delta).unwrap();
        assert_eq!(serde_json::from_str::<Delta<Counter>>(&json).unwrap(), delta);
    }
}
