//! Intervals one after another: as a blocking iterator here, as a `Stream` with the
//! feature `tokio`.

use std::{
    iter::FusedIterator,
    thread,
    time::{Duration, Instant},
};

use crate::{Probe, Result};

/// What a probe read in one interval.
#[derive(Clone, Debug)]
#[non_exhaustive]
pub struct Interval<S> {
    /// The counters of the interval. Its window is the interval as it really was: it
    /// begins where the one before ended.
    pub snapshot: S,
    /// Ticks that passed while nobody asked: this interval is that many longer.
    pub missed_ticks: u64,
}

/// When intervals end: at whole multiples from the start on, so that lateness does not
/// add up.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Ticks<T> {
    next: T,
    every: Duration,
}

impl<T> Ticks<T>
where
    T: Copy + Ord + std::ops::Add<Duration, Output = T> + std::ops::Sub<T, Output = Duration>,
{
    /// # Panics
    /// If the interval is zero.
    pub(crate) fn new(now: T, every: Duration) -> Self {
        assert!(!every.is_zero(), "an interval is longer than nothing");
        Self { next: now + every, every }
    }

    pub(crate) fn next(&self) -> T {
        self.next
    }

    /// A tick is being served; returns how many more have passed by now.
    pub(crate) fn serve(&mut self, now: T) -> u64 {
        let late = if now > self.next { now - self.next } else { Duration::ZERO };
        let missed = late.as_nanos() / self.every.as_nanos();
        let intervals = u32::try_from(missed + 1).unwrap_or(u32::MAX);
        self.next = self.next + self.every.saturating_mul(intervals);
        missed as u64
    }
}

/// The intervals of a probe, as a blocking iterator without end.
///
/// Each call of [`next`](Iterator::next) sleeps until the interval is over, in the
/// thread of the caller, and resets the probe. A consumer that comes late gets one
/// longer interval: nothing is lost and nothing counted twice. An error is an item;
/// the interval then goes on.
///
/// Dropping it detaches the probe; [`into_inner`](Intervals::into_inner) gives it back.
///
/// ```no_run
/// use std::time::Duration;
/// use ebpfmetrics::{CpuProbe, Probe};
///
/// for interval in CpuProbe::builder().load()?.intervals(Duration::from_secs(1)).take(10) {
///     let second = interval?.snapshot;
///     println!("{:?}: {:?} of CPU time", second.window.duration(), second.total().cpu_time);
/// }
/// # Ok::<(), ebpfmetrics::Error>(())
/// ```
#[derive(Debug)]
#[must_use = "dropping it detaches the probe"]
pub struct Intervals<P> {
    probe: P,
    ticks: Ticks<Instant>,
}

impl<P: Probe> Intervals<P> {
    pub(crate) fn new(probe: P, every: Duration) -> Self {
        Self { probe, ticks: Ticks::new(Instant::now(), every) }
    }

    /// The probe, in the interval that has begun.
    pub fn into_inner(self) -> P {
        self.probe
    }

    /// The probe, to ask for its health and cost, or for how far the interval is.
    pub fn probe(&mut self) -> &mut P {
        &mut self.probe
    }
}

impl<P: Probe> Iterator for Intervals<P> {
    type Item = Result<Interval<P::Snapshot>>;

    fn next(&mut self) -> Option<Self::Item> {
        thread::sleep(self.ticks.next().saturating_duration_since(Instant::now()));
        let missed_ticks = self.ticks.serve(Instant::now());
        let snapshot = self.probe.reset();
        Some(snapshot.map(|snapshot| Interval { snapshot, missed_ticks }))
    }
}

impl<P: Probe> FusedIterator for Intervals<P> {}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ticks_come_at_multiples_and_the_missed_are_told() {
        let start = Instant::now();
        let at = |ms| start + Duration::from_millis(ms);
        let mut ticks = Ticks::new(start, Duration::from_millis(100));
        assert_eq!(ticks.next(), at(100));
        assert_eq!(ticks.serve(at(100)), 0);
        assert_eq!((ticks.serve(at(230)), ticks.next()), (0, at(300)));
        // slept through 400, 500 and 600
        assert_eq!((ticks.serve(at(699)), ticks.next()), (3, at(700)));
        // early is no tick less
        assert_eq!((ticks.serve(at(650)), ticks.next()), (0, at(800)));
    }

    #[test]
    #[should_panic(expected = "longer than nothing")]
    fn an_interval_of_nothing_is_refused() {
        let _ = Ticks::new(Instant::now(), Duration::ZERO);
    }
}
