//! Reading a probe at regular intervals: with a blocking iterator, or with a `Stream`
//! (feature `tokio`).

mod blocking;
mod ticks;
#[cfg(feature = "tokio")]
mod tokio;

#[cfg(feature = "tokio")]
pub use self::tokio::IntervalStream;
use crate::error::Result;
pub use blocking::Intervals;

/// Something that measures in windows. Every [`Probe`](crate::Probe) implements it.
pub trait EndWindow: Send + 'static {
    /// What a window contains.
    type Snapshot: Send + 'static;

    /// Takes a final snapshot of the current window and starts a new one at the same
    /// instant.
    ///
    /// # Errors
    /// Fails if the window cannot be read; it then stays open.
    fn end_window(&mut self) -> Result<Self::Snapshot>;
}

/// Snapshot of one interval.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
#[cfg_attr(feature = "serde", derive(serde::Serialize, serde::Deserialize))]
#[non_exhaustive]
pub struct Interval<S> {
    /// The snapshot. Its window is the exact interval, which begins where the previous
    /// one ended.
    pub snapshot: S,
    /// Number of ticks that passed before the consumer asked again. The interval is longer
    /// by as many ticks.
    pub missed_ticks: u64,
}

#[cfg(test)]
mod tests {
    #[cfg(feature = "serde")]
    #[test]
    fn intervals_round_trip_through_json() {
        use super::Interval;
        use crate::snapshot::Window;

        let snapshot = Window { start_ns: 1, end_ns: 2 };
        let interval = Interval { snapshot, missed_ticks: 3 };
        let json = serde_json::to_string(&interval).unwrap();
        assert_eq!(json, r#"{"snapshot":{"start_ns":1,"end_ns":2},"missed_ticks":3}"#);
        assert_eq!(serde_json::from_str::<Interval<Window>>(&json).unwrap(), interval);
    }
}
