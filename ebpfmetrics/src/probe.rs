use std::{os::fd::OwnedFd, time::Duration};

#[cfg(feature = "tokio")]
use crate::IntervalStream;
use crate::{Error, Intervals, Requirements, Result, Snapshot};

/// A probe: programs in the kernel that count, and the way to their counts.
///
/// Loading and attaching happen when the probe is built, in the thread of the
/// caller; dropping it detaches its programs and frees its maps. A probe starts
/// no thread and no timer: the reader sets the pace. Several probes of one kind,
/// in one process or in many, do not disturb each other.
///
/// The trait is open to other crates. It is `Send` and owned; for a set of probes
/// of different kinds, chosen at run time, see [`AnyProbe`](crate::AnyProbe).
pub trait Probe: Send + 'static {
    /// The typed snapshot.
    type Snapshot: Snapshot;

    /// A short name such as `cpu`, the stem of the probe's source files.
    const NAME: &'static str;

    /// What the probe needs of a machine.
    fn requirements() -> Requirements
    where
        Self: Sized;

    /// All counters since the window began, and gauges as of now.
    ///
    /// A counter of a process never goes down between two snapshots of one
    /// window.
    ///
    /// # Errors
    /// Where the kernel refuses to be read; the counters go on and the next
    /// snapshot has them.
    fn snapshot(&mut self) -> Result<Self::Snapshot>;

    /// Ends the window with a last snapshot, and starts the next where it ends.
    ///
    /// The probe remembers a baseline; nothing in the kernel is set to zero, so
    /// what happens in between is in one window or the other. Processes that have
    /// exited leave the rows.
    ///
    /// # Errors
    /// As [`snapshot`](Probe::snapshot); the window then goes on.
    fn reset(&mut self) -> Result<Self::Snapshot>;

    /// The probe's intervals from here on, as a blocking iterator.
    ///
    /// # Panics
    /// If the interval is zero.
    fn intervals(self, every: Duration) -> Intervals<Self>
    where
        Self: Sized,
    {
        Intervals::new(self, every)
    }

    /// The probe's intervals from here on, as a `Stream` (feature `tokio`).
    ///
    /// # Panics
    /// If the interval is zero, and outside of a tokio runtime with time enabled.
    #[cfg(feature = "tokio")]
    #[cfg_attr(docsrs, doc(cfg(feature = "tokio")))]
    fn stream(self, every: Duration) -> IntervalStream<Self>
    where
        Self: Sized,
    {
        IntervalStream::new(self, every)
    }

    /// What the probe takes, and what it cannot do on this machine.
    ///
    /// # Errors
    /// Where the kernel does not tell.
    fn health(&self) -> Result<Health>;

    /// How often the probe's programs ran and how long they took.
    ///
    /// The kernel counts this only while [`Statistics`] or
    /// `kernel.bpf_stats_enabled` is on.
    ///
    /// # Errors
    /// Where the kernel does not tell.
    fn cost(&self) -> Result<Cost>;
}

/// What a probe takes, and what it cannot do on this machine.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
#[cfg_attr(feature = "serde", derive(serde::Serialize))]
#[non_exhaustive]
pub struct Health {
    /// Kernel memory of the maps in bytes, as the kernel accounts it
    /// (`memlock` in `/proc/self/fdinfo`).
    pub map_bytes: u64,
    /// Programs in the kernel.
    pub programs: usize,
    /// What this machine does not let the probe do.
    pub degraded: Vec<Degraded>,
}

impl Health {
    /// That of several probes together.
    pub(crate) fn sum(parts: impl IntoIterator<Item = Self>) -> Self {
        parts.into_iter().fold(Self::default(), |mut sum, part| {
            sum.map_bytes += part.map_bytes;
            sum.programs += part.programs;
            sum.degraded.extend(part.degraded);
            sum
        })
    }
}

/// One thing that a machine does not let a probe do.
#[derive(Clone, Debug, PartialEq, Eq)]
#[cfg_attr(feature = "serde", derive(serde::Serialize))]
pub struct Degraded {
    /// What is missing, in terms of what the snapshot shows.
    pub feature: &'static str,
    /// Why.
    pub reason: String,
}

impl Degraded {
    /// One entry if the feature is missing, else none.
    pub fn when(missing: bool, feature: &'static str, reason: &str) -> Option<Self> {
        missing.then(|| Self { feature, reason: reason.to_owned() })
    }

    /// What is missing where a walk does not show every process of the machine, as
    /// [`in_initial_pid_namespace`](crate::kit::in_initial_pid_namespace) tells.
    pub fn unless_all_seen(sees_all: bool) -> Option<Self> {
        Self::when(
            !sees_all,
            "processes of other PID namespaces",
            "not in the initial PID namespace: they show when they exit, not while they live",
        )
    }
}

/// How often the programs of a probe ran and how long they took, since loading.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
#[cfg_attr(feature = "serde", derive(serde::Serialize))]
#[non_exhaustive]
pub struct Cost {
    /// One entry per program in the kernel.
    pub programs: Vec<ProgramCost>,
}

/// How often one program ran and how long it took, since loading.
#[derive(Clone, Debug, PartialEq, Eq)]
#[cfg_attr(feature = "serde", derive(serde::Serialize))]
#[non_exhaustive]
pub struct ProgramCost {
    /// The program.
    pub program: String,
    /// Runs while statistics were on.
    pub run_count: u64,
    /// Time in the program while statistics were on, with the 10 to 20 ns that
    /// the kernel takes to measure each run.
    pub run_time: Duration,
}

impl ProgramCost {
    /// ns per run; `None` before the first run.
    pub fn ns_per_run(&self) -> Option<f64> {
        (self.run_count > 0).then(|| self.run_time.as_nanos() as f64 / self.run_count as f64)
    }
}

/// Lets the kernel count runs and run time of all eBPF programs, while it lives.
///
/// It costs every program of the machine two clock readings per run. Needs
/// `CAP_SYS_ADMIN`, Linux 5.8.
#[must_use = "dropping it turns the statistics off"]
#[derive(Debug)]
pub struct Statistics {
    _guard: OwnedFd,
}

impl Statistics {
    /// Turns the statistics on.
    ///
    /// # Errors
    /// [`PermissionDenied`](crate::ErrorKind::PermissionDenied) without
    /// `CAP_SYS_ADMIN`.
    pub fn enable() -> Result<Self, Error> {
        Ok(Self { _guard: crate::loader::enable_statistics()? })
    }
}
