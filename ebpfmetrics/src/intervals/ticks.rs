use std::{
    ops::{Add, Sub},
    time::Duration,
};

/// The ends of the intervals. They are whole multiples of the interval after the start, so
/// delays do not add up.
#[derive(Clone, Copy, Debug)]
pub(super) struct Ticks<T> {
    next: T,
    every: Duration,
}

impl<T> Ticks<T>
where
    T: Copy + Ord + Add<Duration, Output = T> + Sub<T, Output = Duration>,
{
    /// # Panics
    /// If the interval is zero.
    pub(super) fn new(now: T, every: Duration) -> Self {
        assert!(!every.is_zero(), "the interval must be longer than zero");
        Self { next: now + every, every }
    }

    pub(super) fn next(&self) -> T {
        self.next
    }

    /// Moves on to the next tick in the future. Returns the number of ticks skipped.
    pub(super) fn advance(&mut self, now: T) -> u64 {
        let late = if now > self.next { now - self.next } else { Duration::ZERO };
        let missed = late.as_nanos() / self.every.as_nanos();
        let intervals = u32::try_from(missed + 1).unwrap_or(u32::MAX);
        self.next = self.next + self.every.saturating_mul(intervals);
        u64::try_from(missed).unwrap_or(u64::MAX)
    }
}

#[cfg(test)]
mod tests {
    use std::time::Instant;

    use super::*;

    #[test]
    fn ticks_are_multiples_and_missed_ones_are_counted() {
        let start = Instant::now();
        let at = |ms| start + Duration::from_millis(ms);
        let mut ticks = Ticks::new(start, Duration::from_millis(100));
        assert_eq!(ticks.next(), at(100));
        assert_eq!(ticks.advance(at(100)), 0);
        assert_eq!((ticks.advance(at(230)), ticks.next()), (0, at(300)));
        // 400, 500 and 600 have passed
        assert_eq!((ticks.advance(at(699)), ticks.next()), (3, at(700)));
        // an early call does not skip a tick
        assert_eq!((ticks.advance(at(650)), ticks.next()), (0, at(800)));
    }

    #[test]
    #[should_panic(expected = "longer than zero")]
    fn an_interval_of_zero_is_rejected() {
        let _ = Ticks::new(Instant::now(), Duration::ZERO);
    }
}
