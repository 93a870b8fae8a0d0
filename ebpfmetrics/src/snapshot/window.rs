use std::time::Duration;

/// Time span of the counters in a snapshot, on `CLOCK_MONOTONIC`.
///
/// A window starts when the probe is loaded or reset. The windows of consecutive resets
/// touch: one ends at the instant when the next starts.
///
/// ```
/// use std::time::Duration;
/// use ebpfmetrics::snapshot::Window;
///
/// let window = Window { start_ns: 0, end_ns: 2_000_000_000 };
/// assert_eq!(window.per_second(10), 5.0);
/// assert_eq!(window.percent(Duration::from_millis(500)), 25.0);
/// ```
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
#[cfg_attr(feature = "serde", derive(serde::Serialize, serde::Deserialize))]
pub struct Window {
    /// Start in ns.
    pub start_ns: u64,
    /// End in ns.
    pub end_ns: u64,
}

impl Window {
    /// Length of the window.
    pub fn duration(&self) -> Duration {
        Duration::from_nanos(self.end_ns.saturating_sub(self.start_ns))
    }

    /// Converts a count to a rate per second. 0 if the window is empty.
    pub fn per_second(&self, count: u64) -> f64 {
        let window = self.duration().as_secs_f64();
        if window > 0.0 { count as f64 / window } else { 0.0 }
    }

    /// Converts a time to percent of the window. For a CPU time the result is in percent
    /// of one CPU. 0 if the window is empty.
    pub fn percent(&self, of: Duration) -> f64 {
        let window = self.duration().as_secs_f64();
        if window > 0.0 { of.as_secs_f64() / window * 100.0 } else { 0.0 }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_empty_window_has_rates_of_zero() {
        for window in [Window::default(), Window { start_ns: 5, end_ns: 4 }] {
            assert_eq!(window.duration(), Duration::ZERO);
            assert_eq!(window.per_second(7), 0.0);
            assert_eq!(window.percent(Duration::from_secs(1)), 0.0);
        }
    }

    #[cfg(feature = "serde")]
    #[test]
    fn windows_round_trip_through_json() {
        let window = Window { start_ns: 1, end_ns: u64::MAX };
        let json = serde_json::to_string(&window).unwrap();
        assert_eq!(serde_json::from_str::<Window>(&json).unwrap(), window);
    }
}
