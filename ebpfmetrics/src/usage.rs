//! What rows have in common: sums, differences and rates.

use crate::{ProcessId, ProcessInfo, Snapshot, Window};

/// What a process did in a window, as figures that add up.
pub trait Usage: Clone + Default {
    /// The sum of both.
    #[must_use]
    fn plus(&self, other: &Self) -> Self;

    /// What was added since `earlier`, a reading of the same window. Counters are
    /// subtracted, never below zero; gauges stay as they are.
    #[must_use]
    fn since(&self, earlier: &Self) -> Self;
}

/// A row of a snapshot that is about a process.
pub trait ProcessRow: Clone + 'static {
    /// What it says the process did.
    type Usage: Usage;

    /// Who it is.
    fn id(&self) -> ProcessId;

    /// Its name, its parent and more.
    fn info(&self) -> &ProcessInfo;

    /// What it did in the window.
    fn usage(&self) -> &Self::Usage;

    /// The same process with another usage.
    #[must_use]
    fn with_usage(self, usage: Self::Usage) -> Self;
}

/// A snapshot with a row per process.
pub trait ProcessRows: Snapshot {
    /// The type of a row.
    type Row: ProcessRow;

    /// The rows in ascending order of [`ProcessId`].
    fn rows(&self) -> &[Self::Row];

    /// What processes did that have no row of their own: see `folded`.
    fn folded_usage(&self) -> <Self::Row as ProcessRow>::Usage;
}

/// Implements [`Snapshot`], [`ProcessRows`] and [`ProcessRow`] for structs with the usual
/// fields: `process_rows!(SNAPSHOT: ROW: USAGE)`. The snapshot gets a method
/// `process(pid)` too.
///
/// A snapshot has `window`, `losses` and `provenance` ([`Window`], [`Losses`](crate::Losses),
/// `Arc` of [`Provenance`](crate::Provenance)), `processes` (a `Vec<ROW>`, in ascending order
/// of id) and `folded`, with a `usage`; a row has `id`, `info` and `usage` ([`ProcessId`],
/// [`ProcessInfo`], `USAGE`).
#[macro_export]
macro_rules! process_rows {
    ($snapshot:ty: $row:ty: $usage:ty) => {
        impl $crate::ProcessRow for $row {
            type Usage = $usage;

            fn id(&self) -> $crate::ProcessId {
                self.id
            }

            fn info(&self) -> &$crate::ProcessInfo {
                &self.info
            }

            fn usage(&self) -> &$usage {
                &self.usage
            }

            fn with_usage(self, usage: $usage) -> Self {
                Self { usage, ..self }
            }
        }

        impl $snapshot {
            /// The row of a process; the one that started last if a pid came back.
            pub fn process(&self, pid: u32) -> Option<&$row> {
                let after = self.processes.partition_point(|process| process.id.pid <= pid);
                self.processes[..after].last().filter(|process| process.id.pid == pid)
            }
        }

        impl $crate::Snapshot for $snapshot {
            fn window(&self) -> $crate::Window {
                self.window
            }

            fn losses(&self) -> &$crate::Losses {
                &self.losses
            }

            fn provenance(&self) -> &std::sync::Arc<$crate::Provenance> {
                &self.provenance
            }
        }

        impl $crate::ProcessRows for $snapshot {
            type Row = $row;

            fn rows(&self) -> &[$row] {
                &self.processes
            }

            fn folded_usage(&self) -> $usage {
                self.folded.usage.clone()
            }
        }
    };
}

/// What happened between two snapshots of one window.
#[derive(Clone, Debug)]
#[non_exhaustive]
pub struct Delta<R> {
    /// From the end of the earlier to the end of the later.
    pub window: Window,
    /// The rows of the later snapshot, in ascending order of [`ProcessId`], each with
    /// what came since the earlier. Processes that had ended by then are left out.
    pub processes: Vec<R>,
}

/// What came between two snapshots, without a [`reset`](crate::Probe::reset): a pure
/// function, for readers that share a probe.
///
/// If the window was reset in between, the earlier snapshot says nothing of the later
/// one's counters: then the result is the later's window, all of it.
///
/// ```no_run
/// use ebpfmetrics::{CpuProbe, Probe, delta};
///
/// let mut probe = CpuProbe::builder().load()?;
/// let earlier = probe.snapshot()?;
/// std::thread::sleep(std::time::Duration::from_secs(1));
/// let second = delta(&earlier, &probe.snapshot()?);
/// for process in &second.processes {
///     let switches = process.usage.voluntary_switches;
///     println!("{} {} per second", process.id, second.window.per_second(switches));
/// }
/// # Ok::<(), ebpfmetrics::Error>(())
/// ```
pub fn delta<S: ProcessRows>(earlier: &S, later: &S) -> Delta<S::Row> {
    let (before, now) = (earlier.window(), later.window());
    if before.start_ns != now.start_ns || before.end_ns > now.end_ns {
        return Delta { window: now, processes: later.rows().to_vec() };
    }
    let mut known = earlier.rows();
    let mut processes = Vec::with_capacity(later.rows().len());
    for row in later.rows() {
        while let Some((first, rest)) = known.split_first()
            && first.id() < row.id()
        {
            known = rest;
        }
        match known.first().filter(|known| known.id() == row.id()) {
            Some(known) if known.info().exited => {}
            Some(known) => {
                let usage = row.usage().since(known.usage());
                processes.push(row.clone().with_usage(usage));
            }
            None => processes.push(row.clone()),
        }
    }
    Delta { window: Window { start_ns: before.end_ns, end_ns: now.end_ns }, processes }
}

#[cfg(test)]
pub(crate) mod testing {
    //! A probe's snapshot with one counter.

    use std::sync::Arc;

    use super::*;
    use crate::{Losses, Provenance};

    #[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
    pub(crate) struct Counter(pub(crate) u64);

    impl Usage for Counter {
        fn plus(&self, other: &Self) -> Self {
            Self(self.0 + other.0)
        }

        fn since(&self, earlier: &Self) -> Self {
            Self(self.0.saturating_sub(earlier.0))
        }
    }

    #[derive(Clone, Debug, PartialEq)]
    pub(crate) struct Row {
        pub(crate) id: ProcessId,
        pub(crate) info: ProcessInfo,
        pub(crate) usage: Counter,
    }

    pub(crate) fn row(pid: u32, start_time_ns: u64, count: u64) -> Row {
        let id = ProcessId { pid, start_time_ns };
        Row { id, info: ProcessInfo::default(), usage: Counter(count) }
    }

    #[derive(Clone, Debug)]
    pub(crate) struct Sample {
        pub(crate) window: Window,
        pub(crate) rows: Vec<Row>,
        pub(crate) folded: u64,
        pub(crate) losses: Losses,
        pub(crate) provenance: Arc<Provenance>,
    }

    impl Default for Sample {
        fn default() -> Self {
            Self {
                window: Window { start_ns: 0, end_ns: 0 },
                rows: Vec::new(),
                folded: 0,
                losses: Losses::default(),
                provenance: Arc::new(Provenance::new("test", Vec::new())),
            }
        }
    }

    impl Sample {
        pub(crate) fn of(rows: impl IntoIterator<Item = Row>) -> Self {
            Self { rows: rows.into_iter().collect(), ..Self::default() }
        }
    }

    impl Snapshot for Sample {
        fn window(&self) -> Window {
            self.window
        }

        fn losses(&self) -> &Losses {
            &self.losses
        }

        fn provenance(&self) -> &Arc<Provenance> {
            &self.provenance
        }
    }

    impl ProcessRow for Row {
        type Usage = Counter;

        fn id(&self) -> ProcessId {
            self.id
        }

        fn info(&self) -> &ProcessInfo {
            &self.info
        }

        fn usage(&self) -> &Counter {
            &self.usage
        }

        fn with_usage(self, usage: Counter) -> Self {
            Self { usage, ..self }
        }
    }

    impl ProcessRows for Sample {
        type Row = Row;

        fn rows(&self) -> &[Row] {
            &self.rows
        }

        fn folded_usage(&self) -> Counter {
            Counter(self.folded)
        }
    }
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeMap;

    use proptest::prelude::*;

    use super::{testing::*, *};

    /// What happens to one process in a step: it works, it ends, or its pid comes back.
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
                        self.rows.get_mut(id).unwrap().usage.0 += count;
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
                    self.rows.values_mut().for_each(|row| row.usage.0 = 0);
                }
            }
        }

        fn snapshot(&mut self) -> Sample {
            self.now += 1;
            let window = Window { start_ns: self.window_start, end_ns: self.now };
            Sample { window, ..Sample::of(self.rows.values().cloned()) }
        }
    }

    proptest! {
        /// Between snapshots without a reset, deltas add up to all that was done, no
        /// matter who ends and whose pid comes back, and none is ever below zero.
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
                let sum: u64 = delta.processes.iter().map(|row| row.usage.0).sum();
                prop_assert_eq!(sum, model.worked - reset.unwrap_or(worked));
                let start = if reset.is_some() { later.window.start_ns } else { earlier.window.end_ns };
                prop_assert_eq!(delta.window, Window { start_ns: start, end_ns: later.window.end_ns });
                prop_assert!(delta.processes.is_sorted_by_key(|row| row.id));
                earlier = later;
            }
        }
    }

    #[test]
    fn one_that_had_ended_before_is_left_out() {
        let mut ended = row(5, 1, 7);
        ended.info.exited = true;
        let earlier = Sample::of([ended.clone(), row(6, 1, 1)]);
        let later = Sample::of([ended, row(6, 1, 4)]);
        assert_eq!(delta(&earlier, &later).processes, [row(6, 1, 3)]);
    }
}
