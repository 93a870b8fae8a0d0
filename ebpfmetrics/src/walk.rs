//! One walk over all tasks, for one probe or for several together.

use crate::{
    Probe, ProcessId, ProcessRow, ProcessRows, Result, Window,
    loader::{Object, RecordBuffer},
    sys,
    task::Records,
};

/// What a read does with the window.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Read {
    /// It goes on.
    Snapshot,
    /// It ends, and the next begins.
    Reset,
}

/// A probe that reads by a walk over all tasks, alone or joined with others.
///
/// [`Probe::snapshot`] and [`Probe::reset`] of such a probe are [`read_alone`].
pub trait TaskProbe: Probe {
    /// The program of its iterator, which hands each task on (`HAND_ON`).
    fn iterator(&self) -> &'static str;

    /// What the iterator is in.
    fn object(&self) -> &Object;

    /// What the iterator is in.
    fn object_mut(&mut self) -> &mut Object;

    /// What has to be done right before the walk.
    ///
    /// # Errors
    /// Where the kernel refuses; the window then goes on.
    fn before_walk(&mut self, read: Read) -> Result<()>;

    /// Takes in what the walk showed: what is [`records`](Walk::records) of the probe's
    /// object. Ends the window if [`Walk::read`] says so.
    ///
    /// # Errors
    /// Where the kernel refuses to be read.
    fn after_walk(&mut self, walk: &Walk<'_>) -> Result<Self::Snapshot>;

    /// What a process used from its start (of the probe's own figures: from when the
    /// probe was loaded) to its end: for who is told by
    /// [`Events`](crate::Events) that it has exited.
    ///
    /// `None` if it has not, if a snapshot has been taken since (whose row has it then),
    /// if it was beyond the bound of exited processes, and for probes that do not know.
    /// [`DiskProbe`](crate::DiskProbe) keeps none of who did no I/O, and what is written
    /// of its pages after its end is only in later snapshots.
    ///
    /// # Errors
    /// Where the kernel refuses to be read.
    fn final_usage(&self, _process: ProcessId) -> Result<Option<UsageOf<Self>>>
    where
        Self::Snapshot: ProcessRows,
    {
        Ok(None)
    }
}

/// What the rows of a probe say that a process did.
pub type UsageOf<P> = <<<P as Probe>::Snapshot as ProcessRows>::Row as ProcessRow>::Usage;

/// A walk that has been made.
pub struct Walk<'a> {
    /// Whether it ends the window.
    pub read: Read,
    /// The moment that the figures are of, `CLOCK_MONOTONIC`.
    pub end_ns: u64,
    bytes: &'a [u8],
}

impl<'a> Walk<'a> {
    /// Walks with the iterator of an object, and those that it hands on to.
    pub(crate) fn make(
        read: Read,
        object: &mut Object,
        iterator: &'static str,
        buffer: &'a mut RecordBuffer,
    ) -> Result<Self> {
        let end_ns = sys::monotonic_ns();
        object.iterate(iterator, buffer)?;
        Ok(Self { read, end_ns, bytes: buffer.bytes() })
    }

    /// What the iterator of an object wrote.
    pub fn records(&self, object: &Object) -> Records<'a> {
        Records::new(self.bytes, object.stream())
    }
}

/// The window of a probe, and what it keeps between walks.
#[derive(Debug)]
pub struct Windows {
    start_ns: u64,
}

impl Windows {
    /// The first begins here.
    pub fn begin() -> Self {
        Self { start_ns: sys::monotonic_ns() }
    }

    /// The window as a walk found it; the next begins there if the read ends it.
    pub fn at(&mut self, walk: &Walk<'_>) -> Window {
        let window = Window { start_ns: self.start_ns, end_ns: walk.end_ns };
        if walk.read == Read::Reset {
            self.start_ns = walk.end_ns;
        }
        window
    }
}

/// A read of one probe by itself.
///
/// # Errors
/// Where the kernel refuses to be read.
pub fn read_alone<P: TaskProbe>(probe: &mut P, read: Read) -> Result<P::Snapshot> {
    probe.before_walk(read)?;
    let iterator = probe.iterator();
    // The memory of a walk is some 300 bytes per task: kept from walk to walk.
    let mut buffer = std::mem::take(probe.object_mut().buffer());
    let walk = Walk::make(read, probe.object_mut(), iterator, &mut buffer);
    let snapshot = walk.and_then(|walk| probe.after_walk(&walk));
    *probe.object_mut().buffer() = buffer;
    snapshot
}
