//! The snapshot of a set of probes.

use std::{
    any::Any,
    borrow::Cow,
    collections::BTreeMap,
    fmt,
    marker::PhantomData,
    ops::Index,
    sync::{
        Arc,
        atomic::{AtomicU64, Ordering},
    },
};

use super::{
    CgroupUsage, Losses, Overflow, ProbeSnapshot, Process, Provenance, Row, Rows, Usage, Window,
};
use crate::process::{ProcessId, ProcessInfo};

/// Identifies a probe of a set. `U` is the probe's usage type, `S` the type of its machine-wide
/// figures.
///
/// A handle is a number and `Copy`. It is valid until the probe is removed from the set.
pub struct Handle<U, S> {
    id: u64,
    types: PhantomData<fn() -> (U, S)>,
}

impl<U, S> Handle<U, S> {
    pub(crate) fn new() -> Self {
        static NEXT: AtomicU64 = AtomicU64::new(1);
        Self { id: NEXT.fetch_add(1, Ordering::Relaxed), types: PhantomData }
    }

    pub(crate) fn id(self) -> u64 {
        self.id
    }
}

impl<U, S> Clone for Handle<U, S> {
    fn clone(&self) -> Self {
        *self
    }
}

impl<U, S> Copy for Handle<U, S> {}

impl<U, S> PartialEq for Handle<U, S> {
    fn eq(&self, other: &Self) -> bool {
        self.id == other.id
    }
}

impl<U, S> Eq for Handle<U, S> {}

impl<U, S> fmt::Debug for Handle<U, S> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_tuple("Handle").field(&self.id).finish()
    }
}

/// What a set of probes measured in a window: one row per process, with the usage from
/// every probe.
///
/// Index a row with the handle of a probe to get the usage of the process. Index the snapshot to
/// get machine-wide figures.
///
/// ```no_run
/// use ebpfmetrics::{CpuProbe, DiskProbe, Probe, ProbeSet};
///
/// let mut probes = ProbeSet::new()?;
/// let cpu = probes.add(CpuProbe::builder())?;
/// let disk = probes.add(DiskProbe::builder())?;
/// let snapshot = probes.reset()?;
/// for process in snapshot.processes() {
///     println!("{} {:?} {}", process.id, process[cpu].cpu_time, process[disk].total.read_bytes);
/// }
/// println!("{} CPUs, {} devices", snapshot[cpu].cpus.len(), snapshot[disk].devices.len());
/// # Ok::<(), ebpfmetrics::Error>(())
/// ```
///
/// A snapshot for a unit test is made of [`ProbeSnapshot`]s, see [`insert`](Self::insert).
#[derive(Default)]
pub struct Snapshot {
    /// Time span of the counters. A probe that was added during the window has a shorter one,
    /// see [`of`](Self::of).
    pub window: Window,
    /// What could not be counted, by the set and by all probes.
    pub losses: Losses,
    rows: Vec<(ProcessId, ProcessInfo)>,
    overflow_processes: u64,
    parts: Vec<(u64, Box<dyn Part>)>,
}

/// One probe's figures for the rows of a snapshot.
pub(crate) trait Part: Any + Send + Sync {
    fn probe(&self) -> &str;
    fn provenance(&self) -> &Arc<Provenance>;
    /// Rearranges the rows: `from` has the previous index of each row, or `None` for a row that
    /// this probe does not have.
    fn place(&mut self, from: &[Option<usize>]);
    fn as_any(&self) -> &dyn Any;
    fn into_any(self: Box<Self>) -> Box<dyn Any>;
    #[cfg(feature = "serde")]
    fn usage(&self, row: usize) -> Option<Box<dyn erased_serde::Serialize + '_>>;
    #[cfg(feature = "serde")]
    fn system(&self) -> Option<Box<dyn erased_serde::Serialize + '_>>;
}

pub(crate) struct TypedPart<U, S> {
    pub(crate) probe: Cow<'static, str>,
    pub(crate) window: Window,
    /// One per row: usage in the window, and since the process began.
    pub(crate) usages: Vec<(U, U)>,
    /// Parts in other cgroups, by row; most rows have none.
    pub(crate) other_cgroups: BTreeMap<usize, Vec<CgroupUsage<U>>>,
    pub(crate) overflow: U,
    pub(crate) system: S,
    pub(crate) losses: Losses,
    pub(crate) provenance: Arc<Provenance>,
    #[cfg(feature = "serde")]
    pub(crate) json: Option<Json<U, S>>,
}

impl<U: Usage + Send + Sync, S: Send + Sync + 'static> Part for TypedPart<U, S> {
    fn probe(&self) -> &str {
        &self.probe
    }

    fn provenance(&self) -> &Arc<Provenance> {
        &self.provenance
    }

    fn place(&mut self, from: &[Option<usize>]) {
        let usages = |from: &Option<usize>| from.map(|from| self.usages[from].clone());
        self.usages = from.iter().map(|from| usages(from).unwrap_or_default()).collect();
        let rows = from.iter().enumerate().filter_map(|(row, from)| Some((row, (*from)?)));
        let parts = |(row, from): (usize, usize)| Some((row, self.other_cgroups.remove(&from)?));
        self.other_cgroups = rows.filter_map(parts).collect();
    }

    fn as_any(&self) -> &dyn Any {
        self
    }

    fn into_any(self: Box<Self>) -> Box<dyn Any> {
        self
    }

    #[cfg(feature = "serde")]
    fn usage(&self, row: usize) -> Option<Box<dyn erased_serde::Serialize + '_>> {
        let (usage, total) = &self.usages[row];
        Some((self.json?.usage)(usage, total, self.others(row)))
    }

    #[cfg(feature = "serde")]
    fn system(&self) -> Option<Box<dyn erased_serde::Serialize + '_>> {
        Some((self.json?.system)(&self.system))
    }
}

impl<U, S> TypedPart<U, S> {
    fn others(&self, row: usize) -> &[CgroupUsage<U>] {
        self.other_cgroups.get(&row).map(Vec::as_slice).unwrap_or_default()
    }
}

impl Snapshot {
    pub(crate) fn from_parts(
        window: Window,
        losses: Losses,
        rows: Vec<(ProcessId, ProcessInfo)>,
        overflow_processes: u64,
        parts: Vec<(u64, Box<dyn Part>)>,
    ) -> Self {
        Self { window, losses, rows, overflow_processes, parts }
    }

    /// The processes in ascending order of id, including those that exited in the window.
    pub fn processes(&self) -> impl ExactSizeIterator<Item = SetProcess<'_>> {
        let row = |(index, (id, info)): (usize, &'_ (ProcessId, ProcessInfo))| (index, *id, *info);
        self.rows.iter().enumerate().map(row).map(|(index, id, info)| SetProcess {
            id,
            info,
            snapshot: self,
            index,
        })
    }

    /// The row of this process.
    pub fn row(&self, id: ProcessId) -> Option<SetProcess<'_>> {
        let index = self.rows.binary_search_by_key(&id, |(id, _)| *id).ok()?;
        let (id, info) = self.rows[index];
        Some(SetProcess { id, info, snapshot: self, index })
    }

    /// The row of a process by its pid in the initial PID namespace. If the pid was reused, the
    /// process that started last. A caller in another namespace knows other pids:
    /// [`ProbeSet::process_id`](crate::ProbeSet::process_id) finds a process by those.
    pub fn process(&self, pid: u32) -> Option<SetProcess<'_>> {
        let after = self.rows.partition_point(|(id, _)| id.pid <= pid);
        let index = after.checked_sub(1)?;
        let (id, info) = self.rows[index];
        (id.pid == pid).then_some(SetProcess { id, info, snapshot: self, index })
    }

    /// Processes that exited in the window and have no row, because there were too many.
    /// Each probe has their usage, see [`ProbeView::overflow`].
    pub fn overflow_processes(&self) -> u64 {
        self.overflow_processes
    }

    /// The part of one probe: its window, rows and losses. It can be passed to
    /// [`delta`](super::delta), [`group_by`](crate::group::group_by) and
    /// [`ProcessTree`](crate::group::ProcessTree).
    ///
    /// # Panics
    /// If the probe was not in the set.
    pub fn of<U: Usage, S: 'static>(&self, probe: Handle<U, S>) -> ProbeView<'_, U, S> {
        self.get(probe).expect("the probe is not in this snapshot")
    }

    /// As [`of`](Self::of); `None` if the probe was not in the set.
    pub fn get<U: Usage, S: 'static>(&self, probe: Handle<U, S>) -> Option<ProbeView<'_, U, S>> {
        let part = self.part(probe)?;
        Some(ProbeView { part, rows: &self.rows, overflow_processes: self.overflow_processes })
    }

    fn part<U: Usage, S: 'static>(&self, probe: Handle<U, S>) -> Option<&TypedPart<U, S>> {
        let (_, part) = self.parts.iter().find(|(id, _)| *id == probe.id())?;
        part.as_any().downcast_ref()
    }

    /// The source of each figure, by probe.
    pub fn provenance(&self) -> impl Iterator<Item = &Provenance> {
        self.parts.iter().map(|(_, part)| &**part.provenance())
    }

    /// Names of the probes, in the order in which they were added.
    pub fn probes(&self) -> impl Iterator<Item = &str> {
        self.parts.iter().map(|(_, part)| part.probe())
    }

    /// Adds the snapshot of one probe, for example in a unit test. Rows are matched by process.
    ///
    /// ```
    /// use ebpfmetrics::{CpuUsage, Process, ProcessId, snapshot::{ProbeSnapshot, Snapshot}};
    ///
    /// let id = ProcessId { pid: 7, start_time_ns: 1 };
    /// let mut usage = CpuUsage::default();
    /// usage.migrations = 3;
    /// let mut part = ProbeSnapshot::<CpuUsage, ()>::default();
    /// part.processes = vec![Process::new(id, Default::default(), usage, usage)];
    /// let mut snapshot = Snapshot::default();
    /// let cpu = snapshot.insert("cpu", part);
    /// assert_eq!(snapshot.process(7).unwrap()[cpu].migrations, 3);
    /// ```
    pub fn insert<U, S>(
        &mut self,
        name: impl Into<Cow<'static, str>>,
        probe: ProbeSnapshot<U, S>,
    ) -> Handle<U, S>
    where
        U: Usage + Send + Sync,
        S: Send + Sync + 'static,
    {
        let handle = Handle::new();
        let before = std::mem::take(&mut self.rows);
        let more = probe.processes.iter().map(|process| (process.id, process.info));
        self.rows = before.iter().copied().chain(more).collect();
        self.rows.sort_by_key(|(id, _)| *id);
        self.rows.dedup_by_key(|(id, _)| *id);
        let place = |ids: &dyn Fn(ProcessId) -> Option<usize>| -> Vec<Option<usize>> {
            self.rows.iter().map(|(id, _)| ids(*id)).collect()
        };
        let of_others = place(&|id| before.binary_search_by_key(&id, |(id, _)| *id).ok());
        let of_this = place(&|id| probe.processes.binary_search_by_key(&id, |row| row.id).ok());
        self.parts.iter_mut().for_each(|(_, part)| part.place(&of_others));
        if self.parts.is_empty() {
            self.window = probe.window;
        }
        self.losses += &probe.losses;
        self.overflow_processes = self.overflow_processes.max(probe.overflow.processes);
        let (mut usages, mut other_cgroups) = (Vec::new(), BTreeMap::new());
        for (row, process) in probe.processes.into_iter().enumerate() {
            usages.push((process.usage, process.total));
            if !process.other_cgroups.is_empty() {
                other_cgroups.insert(row, process.other_cgroups);
            }
        }
        let mut part = TypedPart {
            probe: name.into(),
            window: probe.window,
            usages,
            other_cgroups,
            overflow: probe.overflow.usage,
            system: probe.system,
            losses: probe.losses,
            provenance: probe.provenance,
            #[cfg(feature = "serde")]
            json: None,
        };
        part.place(&of_this);
        self.parts.push((handle.id(), Box::new(part)));
        handle
    }

    /// Keeps the rows of some processes.
    pub(crate) fn retain(&mut self, keeps: impl Fn(ProcessId) -> bool) {
        let kept: Vec<_> = (0..self.rows.len()).filter(|row| keeps(self.rows[*row].0)).collect();
        if kept.len() == self.rows.len() {
            return;
        }
        let from: Vec<_> = kept.iter().copied().map(Some).collect();
        self.parts.iter_mut().for_each(|(_, part)| part.place(&from));
        self.rows.retain(|(id, _)| keeps(*id));
    }

    /// The snapshot of its only probe, with the losses of the set.
    ///
    /// # Panics
    /// If the probe was not in the set.
    pub(crate) fn into_single<U: Usage, S: Send + Sync + 'static>(
        mut self,
        probe: Handle<U, S>,
    ) -> ProbeSnapshot<U, S> {
        let part = self.parts.iter().position(|(id, _)| *id == probe.id());
        let part = part.and_then(|at| self.parts.swap_remove(at).1.into_any().downcast().ok());
        let mut part: TypedPart<U, S> = *part.expect("the probe is not in this snapshot");
        let rows = self.rows.into_iter().zip(part.usages).enumerate();
        let process = |(row, ((id, info), (usage, total)))| {
            let mut process = Process::new(id, info, usage, total);
            process.other_cgroups = part.other_cgroups.remove(&row).unwrap_or_default();
            process
        };
        ProbeSnapshot {
            window: part.window,
            processes: rows.map(process).collect(),
            overflow: Overflow::new(self.overflow_processes, part.overflow),
            system: part.system,
            losses: self.losses,
            provenance: part.provenance,
        }
    }
}

impl<U: Usage, S: 'static> Index<Handle<U, S>> for Snapshot {
    type Output = S;

    /// The probe's machine-wide figures.
    ///
    /// # Panics
    /// If the probe was not in the set.
    fn index(&self, probe: Handle<U, S>) -> &S {
        &self.part(probe).expect("the probe is not in this snapshot").system
    }
}

impl fmt::Debug for Snapshot {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Snapshot")
            .field("window", &self.window)
            .field("probes", &self.probes().collect::<Vec<_>>())
            .field("processes", &self.rows.len())
            .finish_non_exhaustive()
    }
}

/// One process in the snapshot of a set. Index it with the handle of a probe.
#[derive(Clone, Copy, Debug)]
#[non_exhaustive]
pub struct SetProcess<'a> {
    /// Identity of the process.
    pub id: ProcessId,
    /// Name, parent, state and other attributes.
    pub info: ProcessInfo,
    snapshot: &'a Snapshot,
    index: usize,
}

impl<'a> SetProcess<'a> {
    /// The usage in the window, from one probe; `None` if the probe was not in the set.
    pub fn get<U: Usage, S: 'static>(&self, probe: Handle<U, S>) -> Option<&'a U> {
        self.snapshot.part(probe).map(|part| &part.usages[self.index].0)
    }

    /// The usage since the process began, see [`Process::total`].
    ///
    /// # Panics
    /// If the probe was not in the set.
    pub fn total<U: Usage, S: 'static>(&self, probe: Handle<U, S>) -> &'a U {
        let part = self.snapshot.part(probe).expect("the probe is not in this snapshot");
        &part.usages[self.index].1
    }

    /// Parts that were used in other cgroups, see [`Process::other_cgroups`].
    ///
    /// # Panics
    /// If the probe was not in the set.
    pub fn other_cgroups<U: Usage, S: 'static>(&self, probe: Handle<U, S>) -> &'a [CgroupUsage<U>] {
        let part = self.snapshot.part(probe).expect("the probe is not in this snapshot");
        part.others(self.index)
    }
}

impl<U: Usage, S: 'static> Index<Handle<U, S>> for SetProcess<'_> {
    type Output = U;

    fn index(&self, probe: Handle<U, S>) -> &U {
        self.get(probe).expect("the probe is not in this snapshot")
    }
}

/// One probe's part of the snapshot of a set.
pub struct ProbeView<'a, U, S> {
    part: &'a TypedPart<U, S>,
    rows: &'a [(ProcessId, ProcessInfo)],
    overflow_processes: u64,
}

impl<'a, U: Usage, S> ProbeView<'a, U, S> {
    /// Figures of the whole machine.
    pub fn system(&self) -> &'a S {
        &self.part.system
    }

    /// What this probe could not count.
    pub fn losses(&self) -> &'a Losses {
        &self.part.losses
    }

    /// Where the figures of this probe come from on this kernel.
    pub fn provenance(&self) -> &'a Arc<Provenance> {
        &self.part.provenance
    }

    /// Processes without a row, counted together.
    pub fn overflow(&self) -> Overflow<U> {
        Overflow::new(self.overflow_processes, self.part.overflow.clone())
    }

    /// Copies the snapshot of this probe.
    pub fn to_snapshot(&self) -> ProbeSnapshot<U, S>
    where
        S: Clone + Default,
    {
        ProbeSnapshot {
            window: self.part.window,
            processes: self.rows().map(|row| row.to_process()).collect(),
            overflow: self.overflow(),
            system: self.part.system.clone(),
            losses: self.part.losses.clone(),
            provenance: Arc::clone(&self.part.provenance),
        }
    }
}

impl<U: Usage, S> Rows for ProbeView<'_, U, S> {
    type Usage = U;

    fn window(&self) -> Window {
        self.part.window
    }

    fn rows(&self) -> impl Iterator<Item = Row<'_, U>> + '_ {
        let rows = self.rows.iter().zip(&self.part.usages).enumerate();
        rows.map(|(row, ((id, info), (usage, total)))| Row {
            id: *id,
            info,
            usage,
            total,
            other_cgroups: self.part.others(row),
        })
    }

    fn overflow_usage(&self) -> U {
        self.part.overflow.clone()
    }
}

impl<U: fmt::Debug, S: fmt::Debug> fmt::Debug for ProbeView<'_, U, S> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("ProbeView")
            .field("probe", &self.part.probe)
            .field("window", &self.part.window)
            .field("processes", &self.rows.len())
            .field("system", &self.part.system)
            .finish_non_exhaustive()
    }
}

#[cfg(feature = "serde")]
mod json;
#[cfg(feature = "serde")]
pub use json::Json;
