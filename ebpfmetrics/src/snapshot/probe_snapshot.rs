use std::sync::Arc;

use super::{Losses, Process, Provenance, Row, Rows, Usage, Window};
use crate::process::ProcessId;

/// What one probe measured in a window.
///
/// Nothing is left out: processes that began and ended within the window have a row too,
/// or are counted in [`overflow`](Self::overflow).
///
/// A snapshot for a unit test starts from the default:
///
/// ```
/// use ebpfmetrics::{
///     DiskUsage,
///     snapshot::{ProbeSnapshot, Window},
/// };
///
/// let mut snapshot = ProbeSnapshot::<DiskUsage, ()>::default();
/// snapshot.window = Window { start_ns: 0, end_ns: 1_000_000_000 };
/// assert!(snapshot.process(1).is_none());
/// ```
#[derive(Clone, Debug, Default, PartialEq, Eq)]
#[cfg_attr(feature = "serde", derive(serde::Serialize, serde::Deserialize), serde(default))]
#[non_exhaustive]
pub struct ProbeSnapshot<U, S> {
    /// Time span of the counters. Gauges are as of its end.
    pub window: Window,
    /// The processes in ascending order of [`ProcessId`],
    /// including those that exited in the window.
    pub processes: Vec<Process<U>>,
    /// Processes that exited in the window and have no row, because there were too many.
    pub overflow: Overflow<U>,
    /// Figures of the whole machine.
    pub system: S,
    /// What could not be counted.
    pub losses: Losses,
    /// Where the figures come from on this kernel.
    pub provenance: Arc<Provenance>,
}

/// Processes that exited after the bound on rows of exited processes was reached. They
/// are counted together.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
#[cfg_attr(feature = "serde", derive(serde::Serialize, serde::Deserialize))]
#[non_exhaustive]
pub struct Overflow<U> {
    /// Number of processes.
    pub processes: u64,
    /// Their usage in the window.
    pub usage: U,
}

impl<U> Overflow<U> {
    /// Counts processes together.
    pub fn new(processes: u64, usage: U) -> Self {
        Self { processes, usage }
    }
}

impl<U, S> ProbeSnapshot<U, S> {
    /// The rows in ascending order of [`ProcessId`].
    pub fn processes(&self) -> &[Process<U>] {
        &self.processes
    }

    /// The row of this process.
    pub fn row(&self, id: ProcessId) -> Option<&Process<U>> {
        let index = self.processes.binary_search_by_key(&id, |process| process.id).ok()?;
        Some(&self.processes[index])
    }

    /// The row of a process by its pid in the initial PID namespace. If the pid was reused, the
    /// process that started last. A caller in another namespace knows other pids:
    /// [`ProbeSet::process_id`](crate::ProbeSet::process_id) finds a process by those.
    pub fn process(&self, pid: u32) -> Option<&Process<U>> {
        let after = self.processes.partition_point(|process| process.id.pid <= pid);
        self.processes[..after].last().filter(|process| process.id.pid == pid)
    }
}

impl<U: Usage, S> ProbeSnapshot<U, S> {
    /// Usage of all processes together, including the overflow.
    pub fn sum(&self) -> U {
        let usages = self.processes.iter().map(|process| &process.usage);
        super::sum_of(usages.chain((self.overflow.processes > 0).then_some(&self.overflow.usage)))
    }
}

impl<U: Usage, S> Rows for ProbeSnapshot<U, S> {
    type Usage = U;

    fn window(&self) -> Window {
        self.window
    }

    fn rows(&self) -> impl Iterator<Item = Row<'_, U>> + '_ {
        self.processes.iter().map(Process::as_row)
    }

    fn overflow_usage(&self) -> U {
        self.overflow.usage.clone()
    }
}

#[cfg(test)]
mod tests {
    use super::{
        super::testing::{Counter, Sample, row, sample},
        *,
    };

    #[test]
    fn the_latest_process_of_a_pid_is_found() {
        let sample = sample([row(4, 1, 1), row(5, 1, 2), row(5, 9, 3), row(7, 1, 4)]);
        assert_eq!(sample.process(5).unwrap().usage.count, 3);
        assert_eq!(sample.process(4).unwrap().usage.count, 1);
        for pid in [0, 6, 8] {
            assert_eq!(sample.process(pid), None);
        }
    }

    #[test]
    fn the_sum_has_all_processes_and_the_overflow() {
        let mut sample = sample([row(4, 1, 1), row(5, 1, 2)]);
        assert_eq!(sample.sum(), Counter::of(3));
        sample.overflow = Overflow::new(2, Counter { count: 10, known: Some(1) });
        assert_eq!(sample.sum(), Counter { count: 13, known: Some(1) });
        assert_eq!(Sample::default().sum(), Counter::default());
    }

    #[cfg(feature = "serde")]
    #[test]
    fn snapshots_round_trip_through_json() {
        use super::super::{Loss, LossScope};

        let mut snapshot = sample([row(4, 1, u64::MAX), row(5, 1, 2)]);
        snapshot.window.end_ns = 7;
        snapshot.processes[0].usage.known = Some(3);
        snapshot.processes[0].total.count = 100;
        snapshot.processes[0].info.comm = "a\nb".into();
        snapshot.overflow = Overflow::new(2, Counter::of(3));
        snapshot.losses = Losses::new([Loss::new("test", "x", 1, LossScope::Processes)]);
        snapshot.provenance = Arc::new(Provenance::new("test", Vec::new()));
        let json = serde_json::to_value(&snapshot).unwrap();
        let process = &json["processes"][0];
        assert_eq!(process["pid"], 4);
        assert_eq!(process["comm"], "a\nb");
        assert_eq!(process["count"], u64::MAX);
        assert_eq!(process["total"]["count"], 100);
        assert_eq!(serde_json::from_value::<Sample>(json).unwrap(), snapshot);
        let text = serde_json::to_string(&snapshot).unwrap();
        assert_eq!(serde_json::from_str::<Sample>(&text).unwrap(), snapshot);
        assert_eq!(serde_json::from_str::<Sample>("{}").unwrap(), Sample::default());
    }
}
