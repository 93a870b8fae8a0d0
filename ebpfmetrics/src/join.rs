//! Several probes as one.

use std::sync::Arc;

use crate::{
    Cost, Health, Losses, Probe, ProcessId, ProcessInfo, ProcessRow, ProcessRows, Provenance,
    Requirements, Result, Snapshot, Window,
    loader::{Object, RecordBuffer},
    walk::{Read, TaskProbe, Walk},
};

/// Several probes read together: one window, one walk over all tasks.
///
/// Each probe's iterator hands every task on to the next probe's (a tail call), so
/// that the kernel goes over its tasks once, and the figures of a process are of
/// the same moment. Tuples of two to four probes of any kind can be joined, one of a
/// kind or several.
///
/// ```no_run
/// use ebpfmetrics::{CpuProbe, Joined, Kernel, MemProbe, Probe};
///
/// let kernel = Kernel::read()?;
/// let probes =
///     (CpuProbe::builder().load_on(&kernel)?, MemProbe::builder().load_on(&kernel)?);
/// drop(kernel);
/// let mut joined = Joined::new(probes)?;
/// std::thread::sleep(std::time::Duration::from_secs(1));
/// let second = joined.reset()?;
/// for process in second.processes() {
///     let (cpu, memory) = process.rows;
///     let busy = cpu.map(|row| row.usage.cpu_time);
///     let resident = memory.and_then(|row| row.usage.resident_bytes);
///     println!("{} {}: {busy:?}, {resident:?} bytes", process.id, process.info.comm);
/// }
/// # Ok::<(), ebpfmetrics::Error>(())
/// ```
#[must_use = "dropping it detaches the probes"]
pub struct Joined<P> {
    probes: P,
    buffer: RecordBuffer,
}

/// What joined probes read: the snapshot of each, of one window.
#[derive(Clone, Debug)]
#[non_exhaustive]
pub struct JoinedSnapshot<S> {
    /// The time that all counters are of.
    pub window: Window,
    /// The snapshots, in the order of the probes.
    pub parts: S,
    /// The losses of all of them.
    pub losses: Losses,
    /// The sources of all of them.
    pub provenance: Arc<Provenance>,
}

/// A process in the rows of several snapshots; a row is `None` if that probe does
/// not have the process (it may begin or end between their looks).
#[derive(Clone, Copy, Debug)]
#[non_exhaustive]
pub struct JoinedProcess<'a, R> {
    /// Who it is, for all time.
    pub id: ProcessId,
    /// Its name, its parent and more, from the first probe that has it.
    pub info: &'a ProcessInfo,
    /// Its rows, in the order of the probes.
    pub rows: R,
}

impl<S: Send + 'static> Snapshot for JoinedSnapshot<S> {
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

/// Tuples of probes that can be joined: those that walk over all tasks
/// ([`TaskProbe`]).
pub trait Join: Sized {
    /// [`Joined::new`]
    ///
    /// # Errors
    /// Where the kernel refuses; the probes are detached then.
    fn join(self) -> Result<Joined<Self>>;

    /// [`Joined::into_inner`]
    fn part(joined: Joined<Self>) -> Self;
}

impl<P: Join> Joined<P> {
    /// Joins probes. The first window of all of them starts here.
    ///
    /// # Errors
    /// Where the kernel refuses; the probes are detached then.
    pub fn new(probes: P) -> Result<Self> {
        probes.join()
    }

    /// Gives the probes back, each by itself again, in the window it is in.
    pub fn into_inner(self) -> P {
        P::part(self)
    }
}

impl<P> Joined<P> {
    /// The probes themselves.
    pub fn probes(&self) -> &P {
        &self.probes
    }
}

impl<P: std::fmt::Debug> std::fmt::Debug for Joined<P> {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_tuple("Joined").field(&self.probes).finish()
    }
}

/// The rows of a process in one snapshot, walked in step with others.
struct Rows<'a, R>(&'a [R]);

impl<'a, R: ProcessRow> Rows<'a, R> {
    fn next_id(&self) -> Option<ProcessId> {
        self.0.first().map(ProcessRow::id)
    }

    fn take(&mut self, id: ProcessId) -> Option<&'a R> {
        let (first, rest) = self.0.split_first()?;
        (first.id() == id).then(|| {
            self.0 = rest;
            first
        })
    }
}

macro_rules! joined {
    ($($probe:ident $index:tt),*; head $head:tt; links $($from:tt $to:tt),*) => {
        impl<$($probe: TaskProbe),*> Join for ($($probe,)*) {
            fn join(self) -> Result<Joined<Self>> {
                let mut joined = Joined { probes: self, buffer: RecordBuffer::default() };
                $(
                    let iterator = joined.probes.$to.iterator();
                    let (from, to) = (&mut joined.probes.$from, &joined.probes.$to);
                    from.object_mut().hand_on_to(to.object(), iterator)?;
                )*
                joined.read(Read::Reset)?;
                Ok(joined)
            }

            fn part(mut joined: Joined<Self>) -> Self {
                $(joined.probes.$index.object_mut().hand_on_to_none();)*
                joined.probes
            }
        }

        impl<$($probe: TaskProbe),*> Joined<($($probe,)*)> {
            fn read(&mut self, read: Read) -> Result<JoinedSnapshot<($($probe::Snapshot,)*)>> {
                $(self.probes.$index.before_walk(read)?;)*
                let iterator = self.probes.$head.iterator();
                let object: &mut Object = self.probes.$head.object_mut();
                let walk = Walk::make(read, object, iterator, &mut self.buffer)?;
                let parts = ($(self.probes.$index.after_walk(&walk)?,)*);
                Ok(JoinedSnapshot {
                    window: parts.$head.window(),
                    losses: Losses::sum([$(parts.$index.losses(),)*]),
                    provenance: Arc::new(Provenance::of_all(
                        "joined",
                        [$(parts.$index.provenance(),)*],
                    )),
                    parts,
                })
            }
        }

        impl<$($probe: TaskProbe),*> Probe for Joined<($($probe,)*)> {
            type Snapshot = JoinedSnapshot<($($probe::Snapshot,)*)>;

            const NAME: &'static str = "joined";

            fn requirements() -> Requirements {
                Requirements::all([$($probe::requirements(),)*])
            }

            fn snapshot(&mut self) -> Result<Self::Snapshot> {
                self.read(Read::Snapshot)
            }

            fn reset(&mut self) -> Result<Self::Snapshot> {
                self.read(Read::Reset)
            }

            fn health(&self) -> Result<Health> {
                Ok(Health::sum([$(self.probes.$index.health()?,)*]))
            }

            fn cost(&self) -> Result<Cost> {
                let parts = [$(self.probes.$index.cost()?,)*];
                Ok(Cost { programs: parts.into_iter().flat_map(|cost| cost.programs).collect() })
            }
        }

        #[allow(non_snake_case, reason = "a snapshot is named as the type it is of")]
        impl<$($probe: ProcessRows),*> JoinedSnapshot<($($probe,)*)> {
            /// Processes in ascending order of id, each with its rows.
            pub fn processes(
                &self,
            ) -> impl Iterator<Item = JoinedProcess<'_, ($(Option<&$probe::Row>,)*)>> {
                $(let mut $probe = Rows(self.parts.$index.rows());)*
                std::iter::from_fn(move || {
                    let id = [$($probe.next_id(),)*].into_iter().flatten().min()?;
                    let rows = ($($probe.take(id),)*);
                    let info = [$(rows.$index.map(ProcessRow::info),)*].into_iter().flatten().next()?;
                    Some(JoinedProcess { id, info, rows })
                })
            }
        }
    };
}

joined!(A 0, B 1; head 0; links 0 1);
joined!(A 0, B 1, C 2; head 0; links 0 1, 1 2);
joined!(A 0, B 1, C 2, D 3; head 0; links 0 1, 1 2, 2 3);
