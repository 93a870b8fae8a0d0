use std::{
    iter::FusedIterator,
    thread,
    time::{Duration, Instant},
};

use super::{EndWindow, Interval, ticks::Ticks};
use crate::error::Result;

/// Intervals of a probe, as a blocking iterator that never ends.
///
/// [`next`](Iterator::next) sleeps in the calling thread until the interval is over, and
/// resets the probe. A consumer that is late gets one longer interval: nothing is lost and
/// nothing is counted twice. If a read fails, the item is an error and the window stays
/// open until the next tick.
///
/// Dropping the iterator detaches the probe. [`into_inner`](Intervals::into_inner) returns
/// it.
///
/// ```no_run
/// use std::time::Duration;
/// use ebpfmetrics::Probe;
///
/// fn print_health(probe: impl Probe) -> ebpfmetrics::Result<()> {
///     let mut intervals = probe.intervals(Duration::from_secs(1));
///     while let Some(interval) = intervals.next() {
///         println!("{} ticks missed", interval?.missed_ticks);
///         println!("{:?}", intervals.probe().health()?);
///     }
///     Ok(())
/// }
/// ```
#[derive(Debug)]
#[must_use = "dropping it detaches the probe"]
pub struct Intervals<P> {
    probe: P,
    ticks: Ticks<Instant>,
}

impl<P: EndWindow> Intervals<P> {
    /// Starts the first interval.
    ///
    /// # Panics
    /// If the interval is zero.
    pub fn new(probe: P, every: Duration) -> Self {
        Self { probe, ticks: Ticks::new(Instant::now(), every) }
    }

    /// Returns the probe. Its current window stays open.
    pub fn into_inner(self) -> P {
        self.probe
    }

    /// Gives access to the probe, for example to its health and cost, or to take a
    /// snapshot within the interval.
    pub fn probe(&mut self) -> &mut P {
        &mut self.probe
    }
}

impl<P: EndWindow> Iterator for Intervals<P> {
    type Item = Result<Interval<P::Snapshot>>;

    fn next(&mut self) -> Option<Self::Item> {
        thread::sleep(self.ticks.next().saturating_duration_since(Instant::now()));
        let missed_ticks = self.ticks.advance(Instant::now());
        let snapshot = self.probe.end_window();
        Some(snapshot.map(|snapshot| Interval { snapshot, missed_ticks }))
    }
}

impl<P: EndWindow> FusedIterator for Intervals<P> {}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{
        error::{Error, ErrorKind},
        probe::{Cost, Health, Probe},
    };

    #[derive(Debug)]
    struct Resets(u32);

    impl Probe for Resets {
        type Snapshot = u32;

        fn snapshot(&mut self) -> Result<u32> {
            Ok(self.0)
        }

        fn reset(&mut self) -> Result<u32> {
            self.0 += 1;
            match self.0 {
                2 => Err(Error::new(ErrorKind::System, "busy")),
                count => Ok(count),
            }
        }

        fn health(&self) -> Result<Health> {
            Ok(Health::default())
        }

        fn cost(&self) -> Result<Cost> {
            Ok(Cost::default())
        }
    }

    #[test]
    fn each_interval_resets_the_probe() {
        let mut intervals = Resets(0).intervals(Duration::from_millis(5));
        assert_eq!(intervals.next().unwrap().unwrap().snapshot, 1);
        assert!(intervals.next().unwrap().is_err());
        thread::sleep(Duration::from_millis(20));
        let interval = intervals.next().unwrap().unwrap();
        assert!(interval.snapshot == 3 && interval.missed_ticks >= 1, "{interval:?}");
        assert_eq!(intervals.probe().snapshot().unwrap(), 3);
        assert_eq!(intervals.into_inner().0, 3);
    }
}
