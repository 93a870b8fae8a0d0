//! One walk over all tasks, for one probe or for several together.

use std::any::Any;

use crate::{
    Cost, Health, Losses, Probe, ProcessId, ProcessRow, ProcessRows, Result, Window,
    loader::Object,
    records::{RecordBuffer, Records},
    sys,
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
///
/// A read goes through [`before_walk`](Self::before_walk), the walk and
/// [`after_walk`](Self::after_walk). Any of them can fail, here or in a probe that shares
/// the walk: then the window goes on. Only when all have succeeded does a reset end the
/// windows of all, by [`end_window`](Self::end_window).
pub trait TaskProbe: Probe {
    /// The program of its iterator, which hands each task on (`HAND_ON`).
    fn iterator(&self) -> &'static str;

    /// The object that the iterator is in.
    fn object(&self) -> &Object;

    /// The same; the walk keeps its memory there, and joins it with others.
    fn object_mut(&mut self) -> &mut Object;

    /// What has to be done right before the walk, such as reading a clock that records are
    /// to be set against. Most probes have nothing to do.
    ///
    /// # Errors
    /// Where the kernel refuses; the window then goes on.
    fn before_walk(&mut self, _read: Read) -> Result<()> {
        Ok(())
    }

    /// Makes the snapshot of what the walk showed: the [`records`](Walk::records) of the
    /// probe's object, and whatever it keeps in maps, up to [`Walk::end_ns`].
    ///
    /// # Errors
    /// Where the kernel refuses to be read; the window then goes on.
    fn after_walk(&mut self, walk: &Walk<'_>) -> Result<Self::Snapshot>;

    /// Ends the window where the last walk found it, and begins the next: what was taken
    /// in then is the baseline from here on.
    fn end_window(&mut self);

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

/// What the rows of a probe say that a process did: the type of their `usage`.
pub type UsageOf<P> = <<<P as Probe>::Snapshot as ProcessRows>::Row as ProcessRow>::Usage;

/// A [`TaskProbe`] of any type: all of it that does not name its types.
pub trait Member: Any + Send {
    /// [`Probe::NAME`]
    fn name(&self) -> &'static str;
    /// [`TaskProbe::iterator`]
    fn iterator(&self) -> &'static str;
    /// [`TaskProbe::object`]
    fn object(&self) -> &Object;
    /// [`TaskProbe::object_mut`]
    fn object_mut(&mut self) -> &mut Object;
    /// [`TaskProbe::before_walk`]
    fn before_walk(&mut self, read: Read) -> Result<()>;
    /// [`TaskProbe::end_window`]
    fn end_window(&mut self);
    /// [`Probe::health`]
    fn health(&self) -> Result<Health>;
    /// [`Probe::cost`]
    fn cost(&self) -> Result<Cost>;
}

impl<P: TaskProbe> Member for P {
    fn name(&self) -> &'static str {
        P::NAME
    }

    fn iterator(&self) -> &'static str {
        TaskProbe::iterator(self)
    }

    fn object(&self) -> &Object {
        TaskProbe::object(self)
    }

    fn object_mut(&mut self) -> &mut Object {
        TaskProbe::object_mut(self)
    }

    fn before_walk(&mut self, read: Read) -> Result<()> {
        TaskProbe::before_walk(self, read)
    }

    fn end_window(&mut self) {
        TaskProbe::end_window(self);
    }

    fn health(&self) -> Result<Health> {
        Probe::health(self)
    }

    fn cost(&self) -> Result<Cost> {
        Probe::cost(self)
    }
}

/// A walk that has been made.
pub struct Walk<'a> {
    /// The moment that the figures are of, `CLOCK_MONOTONIC`.
    pub end_ns: u64,
    records: &'a RecordBuffer,
}

impl<'a> Walk<'a> {
    /// Walks with the iterator of a probe and those that it hands on to; of none, nothing
    /// is written.
    pub(crate) fn make(
        first: Option<&mut (impl Member + ?Sized)>,
        buffer: &'a mut RecordBuffer,
    ) -> Result<Self> {
        let end_ns = sys::monotonic_ns();
        if let Some(probe) = first {
            let iterator = probe.iterator();
            probe.object_mut().iterate(iterator, buffer)?;
        }
        Ok(Self { end_ns, records: buffer })
    }

    /// What the iterator of an object wrote.
    pub fn records(&self, object: &Object) -> Records<'a> {
        self.records.of(object.stream())
    }
}

/// The windows of a probe, one after the other without a gap, with the kernel side's
/// losses when each began.
#[derive(Debug)]
pub struct Windows {
    start_ns: u64,
    losses: Vec<(&'static str, u64)>,
    /// As of the last walk.
    end_ns: u64,
    losses_now: Vec<(&'static str, u64)>,
}

impl Windows {
    /// The first begins here.
    pub fn begin() -> Self {
        let now = sys::monotonic_ns();
        Self { start_ns: now, losses: Vec::new(), end_ns: now, losses_now: Vec::new() }
    }

    /// The window as a walk found it.
    pub fn at(&mut self, walk: &Walk<'_>) -> Window {
        self.end_ns = walk.end_ns;
        Window { start_ns: self.start_ns, end_ns: self.end_ns }
    }

    /// What was lost in the window: `now` is what the kernel side has lost since it was
    /// loaded ([`Object::losses`]), always in the same order; `own` what user space has
    /// lost in this window.
    pub fn losses(
        &mut self,
        now: Vec<(&'static str, u64)>,
        own: impl IntoIterator<Item = (&'static str, u64)>,
    ) -> Losses {
        self.losses_now = now;
        let before = self.losses.iter().map(|(_, count)| *count).chain(std::iter::repeat(0));
        let kernel = self.losses_now.iter().zip(before);
        let kernel = kernel.map(|((cause, now), before)| (*cause, now.saturating_sub(before)));
        Losses::new(kernel.chain(own))
    }

    /// The window ends where the last walk found it; the next begins there.
    pub fn end(&mut self) {
        self.start_ns = self.end_ns;
        self.losses.clone_from(&self.losses_now);
    }
}

/// A read of one probe by itself.
///
/// # Errors
/// Where the kernel refuses to be read; the window then goes on.
pub fn read_alone<P: TaskProbe>(probe: &mut P, read: Read) -> Result<P::Snapshot> {
    TaskProbe::before_walk(probe, read)?;
    // The memory of a walk is some 300 bytes per task: kept from walk to walk.
    let mut buffer = std::mem::take(TaskProbe::object_mut(probe).buffer());
    let walk = Walk::make(Some(probe), &mut buffer);
    let snapshot = walk.and_then(|walk| probe.after_walk(&walk));
    *TaskProbe::object_mut(probe).buffer() = buffer;
    if read == Read::Reset && snapshot.is_ok() {
        TaskProbe::end_window(probe);
    }
    snapshot
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_window_goes_on_until_it_is_ended() {
        let buffer = RecordBuffer::default();
        let walk = |end_ns| Walk { end_ns, records: &buffer };
        let mut windows = Windows { start_ns: 10, losses: vec![], end_ns: 10, losses_now: vec![] };
        let window = |start_ns, end_ns| Window { start_ns, end_ns };
        assert_eq!(windows.at(&walk(20)), window(10, 20));
        assert_eq!(windows.losses(vec![("full", 3)], [("own", 1)]).total(), 4);
        assert_eq!(windows.at(&walk(30)), window(10, 30));
        assert_eq!(windows.losses(vec![("full", 5)], []).get("full"), Some(5));
        windows.end();
        assert_eq!(windows.at(&walk(40)), window(30, 40));
        assert_eq!(windows.losses(vec![("full", 6)], []).get("full"), Some(1));
    }
}
