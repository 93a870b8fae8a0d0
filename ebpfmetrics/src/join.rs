//! Several probes as one.

use std::sync::Arc;

use crate::{
    AnyProbe, AnySnapshot, Cost, Error, ErrorKind, Health, Losses, Probe, ProcessId, ProcessInfo,
    ProcessRow, ProcessRows, Provenance, Requirements, Result, Snapshot, Window,
    records::RecordBuffer,
    walk::{Member, Read, TaskProbe, Walk, Windows},
};

/// Several probes read together: one window, one walk over all tasks.
///
/// Each probe's iterator hands every task on to the next probe's (a tail call), so
/// that the kernel goes over its tasks once, and the figures of a process are of
/// the same moment. A reset ends the windows of all probes or, if one of them cannot be
/// read, of none.
///
/// Which probes: a tuple of two to four, of any kinds, where the program knows them;
/// else a `Vec` of [`AnyProbe`], of none to 33.
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
    windows: Windows,
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

/// How many probes can share a walk: the kernel follows 33 tail calls from one program,
/// before 5.17 on some machines 32.
pub(crate) const MOST_PROBES: usize = 33;

/// Probes that can be joined: tuples of two to four
/// [`TaskProbe`](crate::kit::TaskProbe)s, and a `Vec` of [`AnyProbe`]s.
///
/// It is implemented here alone.
pub trait Join: Send + 'static {
    /// The snapshots of all, in the order of the probes.
    type Snapshots: Send + 'static;

    /// What all of them need, as far as their types say.
    #[doc(hidden)]
    fn requirements() -> Requirements;

    #[doc(hidden)]
    fn members(&self) -> Vec<&dyn Member>;

    #[doc(hidden)]
    fn members_mut(&mut self) -> Vec<&mut dyn Member>;

    /// Has each take in a walk.
    #[doc(hidden)]
    fn after_walk(&mut self, walk: &Walk<'_>) -> Result<Self::Snapshots>;

    /// The snapshots one by one.
    #[doc(hidden)]
    fn parts(snapshots: &Self::Snapshots) -> Vec<&dyn Snapshot>;
}

impl<P: Join> Joined<P> {
    /// Joins probes. The first window of all of them starts here.
    ///
    /// # Errors
    /// [`ErrorKind::InvalidOption`] for more than 33 probes; where the kernel refuses. The
    /// probes are detached then.
    pub fn new(probes: P) -> Result<Self> {
        let (windows, buffer) = (Windows::begin(), RecordBuffer::default());
        let mut joined = Self { probes, windows, buffer };
        let mut members = joined.probes.members_mut();
        if members.len() > MOST_PROBES {
            let text = format!("{} probes joined, {MOST_PROBES} is the most", members.len());
            return Err(Error::new(ErrorKind::InvalidOption, text));
        }
        for second in 1..members.len() {
            if let [from, to] = &mut members[second - 1..=second] {
                let iterator = to.iterator();
                from.object_mut().hand_on_to(to.object(), iterator)?;
            }
        }
        joined.read(Read::Reset)?;
        Ok(joined)
    }

    /// Gives the probes back, each by itself again, in the window it is in.
    pub fn into_inner(mut self) -> P {
        for probe in self.probes.members_mut() {
            probe.object_mut().hand_on_to_none();
        }
        self.probes
    }

    fn read(&mut self, read: Read) -> Result<JoinedSnapshot<P::Snapshots>> {
        let mut members = self.probes.members_mut();
        members.iter_mut().try_for_each(|probe| probe.before_walk(read))?;
        let walk = Walk::make(members.into_iter().next(), &mut self.buffer)?;
        let snapshots = self.probes.after_walk(&walk)?;
        let window = self.windows.at(&walk);
        if read == Read::Reset {
            self.windows.end();
            self.probes.members_mut().into_iter().for_each(Member::end_window);
        }
        let parts = P::parts(&snapshots);
        let losses = Losses::sum(parts.iter().map(|part| part.losses()));
        let provenance = Provenance::of_all(Self::NAME, parts.iter().map(|part| part.provenance()));
        Ok(JoinedSnapshot { window, losses, provenance: Arc::new(provenance), parts: snapshots })
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

impl<P: Join> Probe for Joined<P> {
    type Snapshot = JoinedSnapshot<P::Snapshots>;

    const NAME: &'static str = "joined";

    /// What all of them need; nothing for [`AnyProbe`]s, each of which has found what it
    /// needs when it was loaded.
    fn requirements() -> Requirements {
        P::requirements()
    }

    fn snapshot(&mut self) -> Result<Self::Snapshot> {
        self.read(Read::Snapshot)
    }

    fn reset(&mut self) -> Result<Self::Snapshot> {
        self.read(Read::Reset)
    }

    fn health(&self) -> Result<Health> {
        let parts = self.probes.members().into_iter().map(Member::health);
        Ok(Health::sum(parts.collect::<Result<Vec<_>>>()?))
    }

    fn cost(&self) -> Result<Cost> {
        let parts = self.probes.members().into_iter().map(Member::cost);
        let parts = parts.collect::<Result<Vec<_>>>()?;
        Ok(Cost { programs: parts.into_iter().flat_map(|cost| cost.programs).collect() })
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

macro_rules! tuple {
    ($($probe:ident $index:tt),*) => {
        impl<$($probe: TaskProbe),*> Join for ($($probe,)*) {
            type Snapshots = ($($probe::Snapshot,)*);

            fn requirements() -> Requirements {
                Requirements::all([$($probe::requirements(),)*])
            }

            fn members(&self) -> Vec<&dyn Member> {
                vec![$(&self.$index,)*]
            }

            fn members_mut(&mut self) -> Vec<&mut dyn Member> {
                vec![$(&mut self.$index,)*]
            }

            fn after_walk(&mut self, walk: &Walk<'_>) -> Result<Self::Snapshots> {
                Ok(($(self.$index.after_walk(walk)?,)*))
            }

            fn parts(snapshots: &Self::Snapshots) -> Vec<&dyn Snapshot> {
                vec![$(&snapshots.$index,)*]
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

tuple!(A 0, B 1);
tuple!(A 0, B 1, C 2);
tuple!(A 0, B 1, C 2, D 3);

impl Join for Vec<AnyProbe> {
    type Snapshots = Vec<AnySnapshot>;

    fn requirements() -> Requirements {
        Requirements::default()
    }

    fn members(&self) -> Vec<&dyn Member> {
        self.iter().map(AnyProbe::member).collect()
    }

    fn members_mut(&mut self) -> Vec<&mut dyn Member> {
        self.iter_mut().map(AnyProbe::member_mut).collect()
    }

    fn after_walk(&mut self, walk: &Walk<'_>) -> Result<Self::Snapshots> {
        self.iter_mut().map(|probe| probe.after_walk(walk)).collect()
    }

    fn parts(snapshots: &Self::Snapshots) -> Vec<&dyn Snapshot> {
        snapshots.iter().map(|snapshot| snapshot as &dyn Snapshot).collect()
    }
}
