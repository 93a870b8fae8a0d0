//! Probes whose types are not known to the program that joins them.

use std::{any::Any, sync::Arc};

use crate::{
    JoinedProcess, JoinedSnapshot, Losses, ProcessId, ProcessInfo, ProcessRow, ProcessRows,
    Provenance, Result, Snapshot, Window,
    join::MOST_PROBES,
    walk::{Member, TaskProbe, Walk},
};

/// A probe of any kind, for a set that is chosen at run time: [`Joined`](crate::Joined)
/// takes a `Vec` of them.
///
/// The set is a probe as any other, with windows, intervals and streams. It can hold the
/// probes of this library and of other crates, several of a kind, or none (then it has
/// windows, and no processes in them).
///
/// ```no_run
/// use std::time::Duration;
/// use ebpfmetrics::{
///     AnyProbe, CpuProbe, CpuProcess, Joined, Kernel, MemProbe, MemProcess, Probe,
/// };
///
/// let kernel = Kernel::read()?;
/// let mut probes = Vec::new();
/// for name in std::env::args().skip(1) {
///     probes.push(match name.as_str() {
///         "cpu" => AnyProbe::new(CpuProbe::builder().load_on(&kernel)?),
///         "mem" => AnyProbe::new(MemProbe::builder().load_on(&kernel)?),
///         _ => continue,
///     });
/// }
/// for interval in Joined::new(probes)?.intervals(Duration::from_secs(1)) {
///     for process in interval?.snapshot.processes() {
///         let cpu_time = process.rows.get::<CpuProcess>().map(|row| row.usage.cpu_time);
///         let resident = process.rows.get::<MemProcess>().map(|row| row.usage.resident_bytes);
///         println!("{} {}: {cpu_time:?} {resident:?}", process.id, process.info.comm);
///     }
/// }
/// # Ok::<(), ebpfmetrics::Error>(())
/// ```
#[must_use = "dropping it detaches the probe"]
pub struct AnyProbe(Box<dyn MemberWithRows>);

impl AnyProbe {
    /// Hides what kind of probe it is.
    pub fn new(probe: impl TaskProbe<Snapshot: ProcessRows>) -> Self {
        Self(Box::new(probe))
    }

    /// [`Probe::NAME`](crate::Probe::NAME)
    pub fn name(&self) -> &'static str {
        self.0.name()
    }

    /// The probe, if it is of this type.
    pub fn downcast_ref<P: TaskProbe>(&self) -> Option<&P> {
        (&*self.0 as &dyn Any).downcast_ref()
    }

    /// The probe, if it is of this type.
    ///
    /// # Errors
    /// The same as it was, if it is of another.
    pub fn downcast<P: TaskProbe>(self) -> Result<P, Self> {
        if self.downcast_ref::<P>().is_none() {
            return Err(self);
        }
        let probe: Box<dyn Any> = self.0;
        Ok(*probe.downcast().expect("it has just been asked"))
    }

    pub(crate) fn member(&self) -> &dyn Member {
        &*self.0
    }

    pub(crate) fn member_mut(&mut self) -> &mut dyn Member {
        &mut *self.0
    }

    pub(crate) fn after_walk(&mut self, walk: &Walk<'_>) -> Result<AnySnapshot> {
        self.0.after_walk(walk)
    }
}

impl std::fmt::Debug for AnyProbe {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_tuple("AnyProbe").field(&self.name()).finish()
    }
}

/// A [`TaskProbe`] of any type whose snapshots have rows.
trait MemberWithRows: Member {
    fn after_walk(&mut self, walk: &Walk<'_>) -> Result<AnySnapshot>;
}

impl<P: TaskProbe<Snapshot: ProcessRows>> MemberWithRows for P {
    fn after_walk(&mut self, walk: &Walk<'_>) -> Result<AnySnapshot> {
        Ok(AnySnapshot(Box::new(TaskProbe::after_walk(self, walk)?)))
    }
}

/// The snapshot of an [`AnyProbe`].
pub struct AnySnapshot(Box<dyn SnapshotWithRows>);

impl AnySnapshot {
    /// [`Probe::NAME`](crate::Probe::NAME)
    pub fn name(&self) -> &'static str {
        self.provenance().probe
    }

    /// The snapshot, if it is of this type.
    pub fn downcast_ref<S: Snapshot>(&self) -> Option<&S> {
        (&*self.0 as &dyn Any).downcast_ref()
    }
}

impl Snapshot for AnySnapshot {
    fn window(&self) -> Window {
        self.0.window()
    }

    fn losses(&self) -> &Losses {
        self.0.losses()
    }

    fn provenance(&self) -> &Arc<Provenance> {
        self.0.provenance()
    }
}

impl std::fmt::Debug for AnySnapshot {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_tuple("AnySnapshot").field(&self.name()).finish()
    }
}

/// Rows of any type, by their place.
trait SnapshotWithRows: Snapshot {
    fn id(&self, place: usize) -> Option<ProcessId>;
    fn info(&self, place: usize) -> Option<&ProcessInfo>;
    fn row(&self, place: usize) -> Option<&dyn Any>;
}

impl<S: ProcessRows> SnapshotWithRows for S {
    fn id(&self, place: usize) -> Option<ProcessId> {
        self.rows().get(place).map(ProcessRow::id)
    }

    fn info(&self, place: usize) -> Option<&ProcessInfo> {
        self.rows().get(place).map(ProcessRow::info)
    }

    fn row(&self, place: usize) -> Option<&dyn Any> {
        self.rows().get(place).map(|row| row as &dyn Any)
    }
}

/// The rows of one process in the snapshots of [`AnyProbe`]s.
#[derive(Clone, Copy, Debug)]
pub struct AnyRows<'a> {
    parts: &'a [AnySnapshot],
    places: [Option<u32>; MOST_PROBES],
}

impl<'a> AnyRows<'a> {
    /// The row of this type, such as [`CpuProcess`](crate::CpuProcess); that of the first
    /// probe which has one, if there are several of a kind.
    pub fn get<R: ProcessRow>(&self) -> Option<&'a R> {
        (0..self.parts.len()).find_map(|probe| self.of(probe)?.downcast_ref())
    }

    /// The row of a probe, by its place in the set.
    pub fn of(&self, probe: usize) -> Option<&'a dyn Any> {
        let place = self.places.get(probe).copied().flatten()?;
        self.parts.get(probe)?.0.row(place as usize)
    }
}

impl JoinedSnapshot<Vec<AnySnapshot>> {
    /// The snapshot of this type, such as [`CpuSnapshot`](crate::CpuSnapshot); that of the
    /// first probe, if there are several of a kind.
    pub fn part<S: Snapshot>(&self) -> Option<&S> {
        self.parts.iter().find_map(AnySnapshot::downcast_ref)
    }

    /// Processes in ascending order of id, each with its rows.
    pub fn processes(&self) -> impl Iterator<Item = JoinedProcess<'_, AnyRows<'_>>> {
        let mut next = [0_u32; MOST_PROBES];
        std::iter::from_fn(move || {
            let of = |(part, place): (&'_ AnySnapshot, &u32)| part.0.id(*place as usize);
            let id = self.parts.iter().zip(&next).filter_map(of).min()?;
            let mut info = None;
            let mut places = [None; MOST_PROBES];
            for ((part, next), place) in self.parts.iter().zip(&mut next).zip(&mut places) {
                if part.0.id(*next as usize) == Some(id) {
                    info = info.or(part.0.info(*next as usize));
                    *place = Some(*next);
                    *next += 1;
                }
            }
            let rows = AnyRows { parts: &self.parts, places };
            Some(JoinedProcess { id, info: info?, rows })
        })
    }
}
