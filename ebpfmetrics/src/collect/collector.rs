//! The description of a probe.

use bytemuck::{AnyBitPattern, Zeroable as _};

use super::{
    counters::{self, Counters},
    loading::{Loading, WalkPart},
};
use crate::{
    error::{Error, ErrorKind, Result},
    kernel::{Kernel, Requirements},
    object::Object,
    probe::Degraded,
    process::{Comm, ProcessId, ProcessInfo, ThreadId},
    record::{ProcessEndedRecord, ProcessOverflowRecord, ProcessPartRecord, ProcessSettledRecord},
    snapshot::{LossCause, Source, Usage, Window},
};

/// What a probe is: its object, its counters, and how records become a public usage.
///
/// The identity of processes, their start and end, windows, baselines and the filter belong
/// to the [set](crate::ProbeSet) and are the same for all probes. A collector only says what
/// it counts. Most methods have a default; a probe that sums events by process in a map
/// needs [`COUNTS`](Self::COUNTS), [`load`](Self::load), [`attach`](Self::attach),
/// [`object`](Self::object) and [`usage`](Self::usage).
pub trait Collector: Sized + Send + 'static {
    /// Name of the probe, such as `cpu`. The object's map of losses is `NAME_losses`.
    const NAME: &'static str;

    /// Map of the object with the counters by process: a hash from `process_key` to
    /// [`Counters`](Self::Counters). A process without an entry counts as zero. The set
    /// deletes the entries of processes that have left the process table; what is left of
    /// processes that never had a row is added to the overflow.
    const COUNTS: Option<&'static str> = None;

    /// Number of the section of a built-in probe; others get one from the set.
    #[doc(hidden)]
    const SECTION: Option<u16> = None;

    /// Whether the probe uses [`WalkTimes::scheduler_offset_ns`].
    const NEEDS_SCHEDULER_CLOCK: bool = false;

    /// Options, usually a builder.
    type Options: Send;
    /// Counters since the start of a process.
    type Counters: Counters;
    /// What a process has beside counters; `()` for most probes.
    type Gauges: Clone + Default + Send;
    /// The public figures of a process in a window.
    type Usage: Usage + Send + Sync + 'static;
    /// The public figures of the machine in a window; `()` for most probes.
    type System: Clone + Default + Send + Sync + 'static;
    /// Causes of losses, in the order of the object's `enum NAME_loss`.
    type Loss: LossCause;

    /// Hooks that the probe needs with any options.
    fn requirements() -> Requirements;

    /// Loads the probe's object. Nothing is attached yet.
    ///
    /// # Errors
    /// The options are invalid, or the kernel refuses the object.
    fn load(options: Self::Options, loading: &Loading<'_>) -> Result<Self>;

    /// Attaches the probe's hooks. The set already follows exits for this probe.
    ///
    /// # Errors
    /// The kernel refuses a program.
    fn attach(&mut self, kernel: &Kernel) -> Result<()>;

    /// The probe's object; `None` for a probe without hooks or maps.
    fn object(&self) -> Option<&Object>;

    /// The same, to change it.
    fn object_mut(&mut self) -> Option<&mut Object>;

    /// What the probe adds to the walk and to final records.
    ///
    /// # Errors
    /// A map cannot be shared.
    fn walk_part(&self) -> Result<WalkPart> {
        Ok(WalkPart::default())
    }

    /// Prepares for a walk, for example by reading a clock.
    ///
    /// # Errors
    /// The kernel cannot be read; the window stays open.
    fn begin_walk(&mut self, _read: Read) -> Result<()> {
        Ok(())
    }

    /// Whether records of this kind are about the machine and not about a task.
    fn is_system_record(_kind: u16) -> bool {
        false
    }

    /// Takes a record about the machine.
    ///
    /// # Errors
    /// The record is invalid.
    fn system_record(&mut self, _kind: u16, _record: &[u8], _walk: &WalkTimes) -> Result<()> {
        Ok(())
    }

    /// Adds a record about a task to the reading of its process.
    ///
    /// # Errors
    /// The record is invalid.
    fn task_record(
        &mut self,
        _task: &Task,
        _record: Record<'_>,
        _walk: &WalkTimes,
        _reading: &mut Reading<Self>,
    ) -> Result<()> {
        Err(invalid_record("of unknown kind"))
    }

    /// Completes the readings once the walk is over, and reads the probe's own maps.
    ///
    /// # Errors
    /// The kernel cannot be read; the window stays open.
    fn end_walk(&mut self, _walk: &WalkTimes, _processes: &mut Readings<'_, Self>) -> Result<()> {
        Ok(())
    }

    /// Signed counters of a part of a process's usage, from the kernel's counts at moves between
    /// cgroups. Built-in probes only; without it everything is in the present cgroup.
    #[doc(hidden)]
    fn part(_record: &ProcessPartRecord) -> Option<Self::Counters> {
        None
    }

    /// The counters of a thread alone, for the same purpose.
    #[doc(hidden)]
    fn own(_record: Record<'_>, _walk: &WalkTimes) -> Result<Option<Self::Counters>> {
        Ok(None)
    }

    /// Completes the counters of a part that began the window with `baseline`.
    #[doc(hidden)]
    fn complete_part(part: &Self::Counters, _baseline: &Self::Counters) -> Self::Counters {
        *part
    }

    /// The next counters after `last`, which have been reported: never less.
    fn advance(&self, progress: &Progress<'_, Self>, now: &Reading<Self>) -> Self::Counters {
        counters::max(progress.last, &now.counters)
    }

    /// The gauges after those of the previous walk.
    fn follow(_before: &Self::Gauges, now: Self::Gauges) -> Self::Gauges {
        now
    }

    /// Starts a new window for the gauges of a process.
    fn rebase(_gauges: &mut Self::Gauges) {}

    /// What the final record of a process says; `None` if nothing. Built-in probes only: the
    /// final record has no room for others.
    #[doc(hidden)]
    fn ended(&self, _ended: &Ended<'_>) -> Option<Reading<Self>> {
        None
    }

    /// Whether counters that have been reported include all of a final record.
    #[doc(hidden)]
    fn is_reported(reported: &Self::Counters, all: &Self::Counters) -> bool {
        counters::is_zero(&counters::subtract(all, reported))
    }

    /// A process leaves the table. These are its final counters.
    fn left(&mut self, _process: ProcessId, _counters: &Self::Counters) {}

    /// Counters of processes that `ended` had no room for, on one CPU.
    #[doc(hidden)]
    fn overflow(_record: &ProcessOverflowRecord) -> Self::Counters {
        Self::Counters::zeroed()
    }

    /// Completes the growth of the sum of [`overflow`](Self::overflow) over all CPUs.
    fn complete_overflow(grown: &Self::Counters) -> Self::Counters {
        *grown
    }

    /// The public figures of a process. `gauges` is `None` for processes that are only
    /// counted together.
    fn usage(
        &self,
        process: ProcessId,
        counters: &Self::Counters,
        gauges: Option<&Self::Gauges>,
        span: Span,
    ) -> Self::Usage;

    /// The public figures of a process that has ended since the last walk, from its start to
    /// its end.
    ///
    /// # Errors
    /// The kernel cannot be read.
    fn final_usage(&self, process: ProcessId, ended: &Reading<Self>) -> Result<Self::Usage> {
        Ok(self.usage(process, &ended.counters, Some(&ended.gauges), Span::Total))
    }

    /// The public figures of the machine in a window.
    fn system(&self, _window: Window) -> Self::System {
        Self::System::default()
    }

    /// Processes with figures in the window. Those that ended before it get a row too.
    fn late_processes(&self) -> Vec<ProcessId> {
        Vec::new()
    }

    /// Ends the window at the last walk.
    fn end_window(&mut self) {}

    /// Losses in this window that user space noticed, beside those of the object.
    fn own_losses(&self) -> Vec<(&'static str, u64)> {
        Vec::new()
    }

    /// How to serialize the figures in the snapshot of a set; by default they are left out.
    /// A probe whose usage implements `Serialize` returns `Some(Json::new())`.
    #[cfg(feature = "serde")]
    fn json() -> Option<crate::snapshot::Json<Self::Usage, Self::System>> {
        None
    }

    /// The source of each figure on this kernel.
    fn sources(&self) -> Vec<Source>;

    /// Figures that this machine does not give.
    fn degraded(&self) -> Vec<Degraded> {
        Vec::new()
    }
}

/// What a read does with the window.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Read {
    /// The window stays open.
    Snapshot,
    /// The window ends, and the next one begins.
    Reset,
}

/// What the counters passed to [`Collector::usage`] are of.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Span {
    /// The window.
    Window,
    /// All time since the process began.
    Total,
}

/// When a walk was made, by the kernel's own clocks: those of the host, whatever time
/// namespace the reader is in.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct WalkTimes {
    /// Start of the window, `CLOCK_MONOTONIC`.
    pub window_start_ns: u64,
    /// Start of the walk and end of the window, `CLOCK_MONOTONIC`.
    pub monotonic_ns: u64,
    /// The same moment on `CLOCK_BOOTTIME`, the clock of start times.
    pub boottime_ns: u64,
    /// How far `CLOCK_MONOTONIC` is ahead of the scheduler's clock, if a probe asks for it
    /// and the kernel lets it be known.
    pub scheduler_offset_ns: Option<u64>,
}

/// A task that a record is about.
#[derive(Clone, Copy, Debug)]
pub struct Task {
    /// Its process.
    pub process: ProcessId,
    /// Place of the process among the [`Readings`] of this walk.
    pub index: usize,
    /// Whether it is the leader: the main thread, whose id is that of the process.
    pub is_leader: bool,
    /// The thread.
    pub thread: ThreadId,
    /// Address of its `task_struct`, which stays the same when exec renames a thread.
    pub address: u64,
    /// Name of the thread.
    pub comm: Comm,
    /// Cgroup of the thread.
    pub cgroup_id: u64,
}

/// A record of a probe in a walk.
#[derive(Clone, Copy, Debug)]
pub struct Record<'a> {
    /// Numbered by the probe.
    pub kind: u16,
    /// All of it, head included.
    pub bytes: &'a [u8],
}

impl<'a> Record<'a> {
    /// The record as the struct that it is.
    ///
    /// # Errors
    /// [`ErrorKind::InvalidRecord`] if the size differs.
    pub fn get<T: AnyBitPattern>(self) -> Result<&'a T> {
        bytemuck::try_from_bytes(self.bytes).map_err(|_| invalid_record("of unexpected size"))
    }
}

/// The error for a record that a probe does not understand.
pub fn invalid_record(what: &str) -> Error {
    Error::new(ErrorKind::InvalidRecord, format!("the BPF program wrote a record {what}"))
}

/// A process as a walk or a final record shows it, counted since its start.
#[derive(Clone, Debug)]
pub struct Reading<C: Collector> {
    /// Counters.
    pub counters: C::Counters,
    /// What it has beside counters.
    pub gauges: C::Gauges,
}

impl<C: Collector> Default for Reading<C> {
    fn default() -> Self {
        Self { counters: C::Counters::zeroed(), gauges: C::Gauges::default() }
    }
}

impl<C: Collector> Reading<C> {
    /// Adds the counters of a task, and those of the threads of its process that were gone
    /// when it was read.
    ///
    /// Threads exit while a walk goes from one to the next. Their counters are then in the
    /// dead totals of tasks read later but not of those read before: adding any one dead
    /// total to all tasks could count a thread twice. Each dead total with the tasks read
    /// from there on never does, and the largest of these sums is the best.
    pub fn add_task(&mut self, own: &C::Counters, dead: &C::Counters) {
        self.counters = counters::add(&counters::max(&self.counters, dead), own);
    }
}

/// All processes of a walk.
pub struct Readings<'a, C: Collector> {
    /// Their ids in ascending order.
    pub ids: &'a [ProcessId],
    /// What is known of them beside the probe.
    pub infos: &'a [ProcessInfo],
    /// Whether the walk showed the process; others keep their previous reading.
    pub seen: &'a [bool],
    /// Places of processes that the walk does not show but `/proc` does; no record comes of
    /// them.
    pub hidden: &'a [usize],
    /// Their readings.
    pub readings: &'a mut [Reading<C>],
}

/// How far the counters of a process have been reported.
pub struct Progress<'a, C: Collector> {
    /// When the process began, `CLOCK_BOOTTIME`.
    pub start_time_ns: u64,
    /// As of the last snapshot: what was reported is never taken back.
    pub last: &'a C::Counters,
    /// At the start of the window.
    pub baseline: &'a C::Counters,
    /// Nothing of the process has been taken in before.
    pub is_new: bool,
    /// The walk that is being taken in.
    pub walk: &'a WalkTimes,
}

/// The end of a process, for [`Collector::ended`].
#[derive(Clone, Copy, Debug)]
pub struct Ended<'a> {
    /// The process.
    pub id: ProcessId,
    /// What the kernel side recorded at its exit and, if it is final, at its release.
    pub record: &'a ProcessEndedRecord,
    /// Its counters now, if it has not been released yet.
    pub settled: Option<&'a ProcessSettledRecord>,
}
