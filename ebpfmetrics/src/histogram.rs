use std::{fmt, time::Duration};

/// How long things took: counts in buckets that double in width.
///
/// The first bucket is of what took less than 1,024 ns, the next under 2,048 ns, and
/// so on; the last is of all above 4.29 s. A quantile is known to within its bucket,
/// so to a factor of two at worst; [`total`](Histogram::total), and with it the
/// [`mean`](Histogram::mean), is exact.
///
/// ```
/// use std::time::Duration;
/// use ebpfmetrics::Histogram;
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
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Bucket {
    /// The shortest time that belongs here.
    pub from: Duration,
    /// Times from here on belong to the next; `None` in the last bucket.
    pub below: Option<Duration>,
    /// How many.
    pub count: u64,
}

impl Histogram {
    /// How many buckets there are.
    pub const BUCKETS: usize = 24;

    /// The first bucket ends at 2 to the power of this, in ns.
    const FIRST_END_LOG2: usize = 10;

    /// Counts by bucket, with the sum of the times that they are of.
    pub(crate) fn from_counts(counts: [u64; Self::BUCKETS], total_ns: u64) -> Self {
        Self { counts, total_ns }
    }

    /// Adds one time.
    pub fn record(&mut self, time: Duration) {
        let ns = u64::try_from(time.as_nanos()).unwrap_or(u64::MAX);
        let bits = (u64::BITS - (ns >> Self::FIRST_END_LOG2).leading_zeros()) as usize;
        self.counts[bits.min(Self::BUCKETS - 1)] += 1;
        self.total_ns = self.total_ns.saturating_add(ns);
    }

    /// How many times are in it.
    pub fn count(&self) -> u64 {
        self.counts.iter().sum()
    }

    /// Whether there is none.
    pub fn is_empty(&self) -> bool {
        self.counts.iter().all(|&count| count == 0)
    }

    /// The sum of all times.
    pub fn total(&self) -> Duration {
        Duration::from_nanos(self.total_ns)
    }

    /// The mean of all times; `None` if there are none.
    pub fn mean(&self) -> Option<Duration> {
        (!self.is_empty()).then(|| Duration::from_nanos(self.total_ns / self.count()))
    }

    /// All buckets, shortest times first.
    pub fn buckets(&self) -> impl Iterator<Item = Bucket> {
        let end = |index: usize| Duration::from_nanos(1 << (Self::FIRST_END_LOG2 + index));
        self.counts.iter().enumerate().map(move |(index, &count)| Bucket {
            from: if index == 0 { Duration::ZERO } else { end(index - 1) },
            below: (index + 1 < Self::BUCKETS).then(|| end(index)),
            count,
        })
    }

    /// The bucket that a quantile lies in: with 0.99, at least 99 % of the times are
    /// [`below`](Bucket::below) its end, and it is the first of which that is so.
    /// `None` if there are no times.
    ///
    /// # Panics
    /// Unless the quantile is between 0 and 1.
    pub fn quantile(&self, quantile: f64) -> Option<Bucket> {
        assert!((0.0..=1.0).contains(&quantile), "{quantile} is no quantile");
        let count = self.count();
        // at least the first of them, at most the last
        let rank = ((quantile * count as f64).ceil() as u64).clamp(1, count.max(1));
        let mut seen = 0;
        self.buckets().find(|bucket| {
            seen += bucket.count;
            seen >= rank && bucket.count > 0
        })
    }

    /// The times of both.
    #[must_use]
    pub fn merge(&self, other: &Self) -> Self {
        let mut merged = *self;
        for (count, more) in merged.counts.iter_mut().zip(other.counts) {
            *count += more;
        }
        merged.total_ns = merged.total_ns.saturating_add(other.total_ns);
        merged
    }

    /// What came since an earlier reading of the same histogram.
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
impl serde::Serialize for Histogram {
    /// `{"count":3,"total_ns":..,"below_ns":{"1024":1,"4096":2}}`; the last bucket
    /// is `"inf"`.
    fn serialize<S: serde::Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        use serde::ser::SerializeStruct;

        let name = |below: Option<Duration>| {
            below.map_or_else(|| "inf".to_owned(), |below| below.as_nanos().to_string())
        };
        let filled = self.buckets().filter(|bucket| bucket.count > 0);
        let below: std::collections::BTreeMap<_, _> =
            filled.map(|bucket| (name(bucket.below), bucket.count)).collect();
        let mut json = serializer.serialize_struct("Histogram", 3)?;
        json.serialize_field("count", &self.count())?;
        json.serialize_field("total_ns", &self.total_ns)?;
        json.serialize_field("below_ns", &below)?;
        json.end()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Numbers without pattern, the same each time.
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

    /// Times of all magnitudes.
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
    fn merging_is_as_recording_all_in_one() {
        for seed in 0..100 {
            let (some, more) = (times(seed, 50), times(seed + 1000, 70));
            let all: Vec<_> = some.iter().chain(&more).copied().collect();
            assert_eq!(of(&some).merge(&of(&more)), of(&all));
            assert_eq!(of(&more).merge(&of(&some)), of(&all));
            assert_eq!(of(&some).merge(&Histogram::default()), of(&some));
            assert_eq!(of(&all).since(&of(&some)), of(&more));
        }
    }

    #[test]
    fn nothing_has_no_quantile_and_no_mean() {
        let nothing = Histogram::default();
        assert_eq!((nothing.quantile(0.5), nothing.mean()), (None, None));
        assert!(nothing.is_empty());
    }

    #[test]
    fn the_mean_is_exact() {
        let times = times(7, 1000);
        let sum: Duration = times.iter().sum();
        assert_eq!(of(&times).mean(), Some(Duration::from_nanos(sum.as_nanos() as u64 / 1000)));
    }
}
