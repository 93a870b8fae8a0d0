//! The trait of all probes, and what they report about themselves.

mod health;
mod statistics;

use std::time::Duration;

pub use health::{Cost, Degraded, Health, ProgramCost};
pub use statistics::Statistics;

#[cfg(feature = "tokio")]
use crate::intervals::IntervalStream;
use crate::{
    error::Result,
    intervals::{EndWindow, Intervals},
};

/// A loaded probe: BPF programs that count in the kernel, and access to their counters.
///
/// A probe is loaded and attached when it is built. That blocks the calling thread, for
/// example while the verifier checks the programs; in async code use
/// `tokio::task::spawn_blocking`. Dropping the probe detaches the programs and frees
/// their maps. A probe starts no threads and no timers. Probes of the same kind, in one
/// process or in several, do not affect each other.
///
/// Other crates can implement this trait.
pub trait Probe: Send + 'static {
    /// What the probe returns, see [`ProbeSnapshot`](crate::snapshot::ProbeSnapshot).
    type Snapshot: Send + 'static;

    /// Returns the counters since the window began, and gauges as of now.
    ///
    /// The window stays open. A counter of a process never decreases between two
    /// snapshots of one window.
    ///
    /// # Errors
    /// Fails if the kernel cannot be read. Nothing is lost; the next snapshot has all
    /// counters.
    fn snapshot(&mut self) -> Result<Self::Snapshot>;

    /// Takes a final snapshot of the current window and starts a new one at the same
    /// instant.
    ///
    /// The counters in the kernel are not set to zero: the probe stores a baseline. So
    /// every event is counted in exactly one window. Processes that have exited have no
    /// row in the new window.
    ///
    /// # Errors
    /// Fails if the kernel cannot be read; the current window stays open.
    fn reset(&mut self) -> Result<Self::Snapshot>;

    /// Returns a blocking iterator that resets the probe once per interval.
    ///
    /// # Panics
    /// If the interval is zero.
    fn intervals(self, every: Duration) -> Intervals<Self>
    where
        Self: Sized,
    {
        Intervals::new(self, every)
    }

    /// Returns a `Stream` that resets the probe once per interval (feature `tokio`).
    ///
    /// # Panics
    /// If the interval is zero, or outside of a tokio runtime with time enabled.
    #[cfg(feature = "tokio")]
    #[cfg_attr(docsrs, doc(cfg(feature = "tokio")))]
    fn stream(self, every: Duration) -> IntervalStream<Self>
    where
        Self: Sized,
    {
        IntervalStream::new(self, every)
    }

    /// Reports the resources that the probe uses, and features that are unavailable on
    /// this machine.
    ///
    /// # Errors
    /// Fails if the kernel does not report them.
    fn health(&self) -> Result<Health>;

    /// Reports how often the probe's programs ran and how long they took.
    ///
    /// The kernel counts this only while a [`Statistics`] guard exists or
    /// `kernel.bpf_stats_enabled` is 1.
    ///
    /// # Errors
    /// Fails if the kernel does not report it.
    fn cost(&self) -> Result<Cost>;
}

impl<P: Probe> EndWindow for P {
    type Snapshot = P::Snapshot;

    fn end_window(&mut self) -> Result<P::Snapshot> {
        self.reset()
    }
}
