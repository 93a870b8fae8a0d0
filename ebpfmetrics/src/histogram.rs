//! Distributions of durations.

use std::{fmt, ops::AddAssign, time::Duration};

use crate::snapshot::Usage;

/// Distribution of durations in buckets that double in width.
///
/// The first bucket counts durations below 1,024 ns, the next those below 2,048 ns, and
/// so on. The last counts everything from 4.29 s. A quantile is known to within its
/// bucket, that is, to a factor of two. The [`total`](Histogram::total) and the
/// [`mean`](Histogram::mean) are exact.
///
/// ```
/// use std::time::Duration;
/// use ebpfmetrics::histogram::Histogram;
///
/// let mut histogram = Histogram::default();
/// for ms in [1, 1, 1, 20] {
///     histogram.record(Duration::from_millis(ms));
/// }
/// assert_eq!(histogram.count(), 4);
/// assert_eq!(histogram.mean(), Some(Duration::from_micros(5750)));
/// let half = histogram.quantile(0.5).unwrap();
/// assert!(half.from <= Duration::from_millis(1) && half.below.unwrap() > Duration::from_millis(1));
/// ```
#[derive(Clone, Copy, PartialEq, Eq)]
pub struct Histogram {
    counts: [u64; Self::BUCKETS],
    total_ns: u64,
}

/// One bucket of a [`Histogram`].
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
#[cfg_attr(feature = "serde", derive(serde::Serialize, serde::Deserialize))]
pub struct Bucket {
    /// Lower bound. It belongs to the bucket.
    #[cfg_attr(
        feature = "serde",
        serde(rename = "from_ns", with = "crate::snapshot::duration_ns")
    )]
    pub from: Duration,
    /// Upper bound. It belongs to the next bucket. `None` for the last bucket.
    #[cfg_attr(
        feature = "serde",
        serde(rename = "below_ns", with = "crate::snapshot::duration_ns::option")
    )]
    pub below: Option<Duration>,
    /// Number of durations.
    pub count: u64,
}

impl Histogram {
    /// Number of buckets.
    pub const BUCKETS: usize = 24;

    /// The first bucket ends at 2 to the power of this, in ns.
    const FIRST_END_LOG2: usize = 10;

    /// Creates a histogram from the counts of the buckets and the sum of the durations.
    pub fn from_counts(counts: [u64; Self::BUCKETS], total: Duration) -> Self {
        Self { counts, total_ns: u64::try_from(total.as_nanos()).unwrap_or(u64::MAX) }
    }

    /// Adds one duration.
    pub fn record(&mut self, duration: Duration) {
        let ns = u64::try_from(duration.as_nanos()).unwrap_or(u64::MAX);
        let bits = (u64::BITS - (ns >> Self::FIRST_END_LOG2).leading_zeros()) as usize;
        let count = &mut self.counts[bits.min(Self::BUCKETS - 1)];
        *count = count.saturating_add(1);
        self.total_ns = self.total_ns.saturating_add(ns);
    }

    /// Number of durations.
    pub fn count(&self) -> u64 {
        self.counts.iter().fold(0, |sum, &count| sum.saturating_add(count))
    }

    /// Whether the histogram has no durations.
    pub fn is_empty(&self) -> bool {
        self.counts.iter().all(|&count| count == 0)
    }

    /// Sum of all durations.
    pub fn total(&self) -> Duration {
        Duration::from_nanos(self.total_ns)
    }

    /// Mean of all durations. `None` if there are none.
    pub fn mean(&self) -> Option<Duration> {
        (!self.is_empty()).then(|| Duration::from_nanos(self.total_ns / self.count()))
    }

    /// End of a bucket in ns. `None` for the last one.
    fn end_ns(index: usize) -> Option<u64> {
        (index + 1 < Self::BUCKETS).then(|| 1 << (Self::FIRST_END_LOG2 + index))
    }

    /// All buckets, shortest durations first.
    pub fn buckets(&self) -> impl Iterator<Item = Bucket> {
        let end = |index| Self::end_ns(index).map(Duration::from_nanos);
        self.counts.iter().enumerate().map(move |(index, &count)| Bucket {
            from: index.checked_sub(1).and_then(end).unwrap_or_default(),
            below: end(index),
            count,
        })
    }

    /// Bucket that contains a quantile. For 0.99 it is the first bucket with at least 99 %
    /// of the durations [`below`](Bucket::below) its end. `None` if the histogram is empty.
    ///
    /// # Panics
    /// If the quantile is not between 0 and 1.
    pub fn quantile(&self, quantile: f64) -> Option<Bucket> {
        assert!((0.0..=1.0).contains(&quantile), "a quantile is between 0 and 1, got {quantile}");
        let count = self.count();
        // rounding must not leave the range of ranks
        let rank = ((quantile * count as f64).ceil() as u64).clamp(1, count.max(1));
        let mut seen = 0_u64;
        self.buckets().find(|bucket| {
            seen = seen.saturating_add(bucket.count);
            seen >= rank && bucket.count > 0
        })
    }

    /// Durations added since an earlier reading of the same histogram.
    #[must_use]
    pub fn since(&self, earlier: &Self) -> Self {
        let mut since = *self;
        for (count, before) in since.counts.iter_mut().zip(earlier.counts) {
            *count = count.saturating_sub(before);
        }
        since.total_ns = since.total_ns.saturating_sub(earlier.total_ns);
        since
    }
}

impl AddAssign<&Self> for Histogram {
    fn add_assign(&mut self, more: &Self) {
        for (count, more) in self.counts.iter_mut().zip(more.counts) {
            *count = count.saturating_add(more);
        }
        self.total_ns = self.total_ns.saturating_add(more.total_ns);
    }
}

impl Usage for Histogram {
    fn since(&self, earlier: &Self) -> Self {
        self.since(earlier)
    }
}

crate::usage_operators!(Histogram);

impl Default for Histogram {
    fn default() -> Self {
        Self { counts: [0; Self::BUCKETS], total_ns: 0 }
    }
}

impl fmt::Debug for Histogram {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let filled = self.buckets().filter(|bucket| bucket.count > 0);
        f.debug_map().entries(filled.map(|bucket| (bucket.from, bucket.count))).finish()
    }
}

#[cfg(feature = "serde")]
mod json {
    use std::{borrow::Cow, collections::BTreeMap};

    use serde::{Deserialize, Deserializer, Serialize, Serializer, de::Error as _};

    use super::Histogram;

    #[derive(Serialize, Deserialize)]
    struct Fields {
        count: u64,
        total_ns: u64,
        below_ns: BTreeMap<Cow<'static, str>, u64>,
    }

    fn name(index: usize) -> Cow<'static, str> {
        Histogram::end_ns(index).map_or("inf".into(), |end| end.to_string().into())
    }

    /// `{"count":3,"total_ns":..,"below_ns":{"1024":1,"4096":2}}`, without empty buckets.
    /// The last bucket is `"inf"`.
    impl Serialize for Histogram {
        fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
            let filled = self.counts.iter().enumerate().filter(|(_, count)| **count > 0);
            let below_ns = filled.map(|(index, &count)| (name(index), count)).collect();
            let fields = Fields { count: self.count(), total_ns: self.total_ns, below_ns };
            fields.serialize(serializer)
        }
    }

    impl<'de> Deserialize<'de> for Histogram {
        fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
            let fields = Fields::deserialize(deserializer)?;
            let mut histogram = Self { total_ns: fields.total_ns, ..Self::default() };
            for (below, count) in fields.below_ns {
                let index = (0..Self::BUCKETS).find(|&index| name(index) == below);
                let index = index.ok_or_else(|| {
                    D::Error::custom(format_args!("no bucket of a histogram ends at {below:?} ns"))
                })?;
                histogram.counts[index] = count;
            }
            Ok(histogram)
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Pseudo-random numbers, the same on each run.
    fn noise(seed: u64) -> impl Iterator<Item = u64> {
        let mut state = seed;
        std::iter::repeat_with(move || {
            // splitmix64
            state = state.wrapping_add(0x9E37_79B9_7F4A_7C15);
            let mixed = (state ^ state >> 30).wrapping_mul(0xBF58_476D_1CE4_E5B9);
            let mixed = (mixed ^ mixed >> 27).wrapping_mul(0x94D0_49BB_1331_11EB);
            mixed ^ mixed >> 31
        })
    }

    /// Durations of all magnitudes.
    fn times(seed: u64, count: usize) -> Vec<Duration> {
        let time = |n: u64| Duration::from_nanos(n >> 20 >> (n % 40));
        noise(seed).take(count).map(time).collect()
    }

    fn of(times: &[Duration]) -> Histogram {
        let mut histogram = Histogram::default();
        times.iter().for_each(|&time| histogram.record(time));
        histogram
    }

    #[test]
    fn a_time_is_in_the_bucket_that_says_so() {
        let ends = (10..34).flat_map(|log2| [(1_u64 << log2) - 1, 1 << log2]);
        for ns in ends.chain([0, 1, u64::MAX]) {
            let time = Duration::from_nanos(ns);
            let histogram = of(&[time]);
            let bucket = histogram.buckets().find(|bucket| bucket.count == 1).unwrap();
            assert!(bucket.from <= time, "{ns}: {bucket:?}");
            assert!(bucket.below.is_none_or(|below| time < below), "{ns}: {bucket:?}");
            assert_eq!((histogram.count(), histogram.total()), (1, time));
        }
    }

    #[test]
    fn buckets_touch_and_cover_all_times() {
        let buckets: Vec<_> = Histogram::default().buckets().collect();
        assert_eq!(buckets.len(), Histogram::BUCKETS);
        assert_eq!(buckets[0].from, Duration::ZERO);
        for pair in buckets.windows(2) {
            assert_eq!(pair[0].below, Some(pair[1].from));
        }
        assert_eq!(buckets.last().unwrap().below, None);
    }

    #[test]
    fn quantiles_hold_the_sorted_times() {
        for seed in 0..200 {
            let mut times = times(seed, 1 + seed as usize * 7 % 500);
            let histogram = of(&times);
            times.sort();
            for quantile in [0.0, 0.01, 0.25, 0.5, 0.9, 0.99, 0.999, 1.0] {
                let rank = ((quantile * times.len() as f64).ceil() as usize).max(1);
                let exact = times[rank - 1];
                let bucket = histogram.quantile(quantile).unwrap();
                assert!(
                    bucket.from <= exact && bucket.below.is_none_or(|below| exact < below),
                    "seed {seed}, {quantile}: {exact:?} is not in {bucket:?}"
                );
            }
        }
    }

    #[test]
    fn adding_is_the_same_as_recording_all_in_one() {
        for seed in 0..100 {
            let (some, more) = (times(seed, 50), times(seed + 1000, 70));
            let all: Vec<_> = some.iter().chain(&more).copied().collect();
            assert_eq!(of(&some) + of(&more), of(&all));
            assert_eq!(of(&more) + of(&some), of(&all));
            assert_eq!(of(&some) + Histogram::default(), of(&some));
            assert_eq!(of(&all).since(&of(&some)), of(&more));
        }
    }

    #[test]
    fn an_empty_histogram_has_no_quantile_and_no_mean() {
        let empty = Histogram::default();
        assert_eq!((empty.quantile(0.5), empty.mean()), (None, None));
        assert!(empty.is_empty());
    }

    #[test]
    fn the_mean_is_exact() {
        let times = times(7, 1000);
        let sum: Duration = times.iter().sum();
        assert_eq!(of(&times).mean(), Some(Duration::from_nanos(sum.as_nanos() as u64 / 1000)));
    }

    #[test]
    fn sums_saturate() {
        let most = Histogram::from_counts([u64::MAX; Histogram::BUCKETS], Duration::MAX);
        assert_eq!(most + of(&times(1, 10)), most);
        assert_eq!([most, of(&times(1, 10))].iter().sum::<Histogram>(), most);
        assert!(most.quantile(1.0).is_some());
    }

    #[cfg(feature = "serde")]
    #[test]
    fn histograms_round_trip_through_json() {
        for histogram in [of(&times(3, 500)), Histogram::default()] {
            let json = serde_json::to_string(&histogram).unwrap();
            assert_eq!(serde_json::from_str::<Histogram>(&json).unwrap(), histogram);
        }
        let histogram = of(&[Duration::from_nanos(1500), Duration::from_secs(9)]);
        let json = r#"{"count":2,"total_ns":9000001500,"below_ns":{"2048":1,"inf":1}}"#;
        assert_eq!(serde_json::to_string(&histogram).unwrap(), json);
        let bad = r#"{"count":1,"total_ns":1,"below_ns":{"2000":1}}"#;
        let error = serde_json::from_str::<Histogram>(bad).unwrap_err().to_string();
        assert!(error.starts_with("no bucket of a histogram ends at \"2000\" ns"), "{error}");
        for bucket in histogram.buckets() {
            let json = serde_json::to_string(&bucket).unwrap();
            assert_eq!(serde_json::from_str::<Bucket>(&json).unwrap(), bucket);
        }
    }
}
