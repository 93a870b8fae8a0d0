use std::{ops::AddAssign, time::Duration};

/// Resource usage of a process over a window. Usages can be added.
///
/// `+=` adds the other usage. A field that only one of them has keeps its value: adding
/// never turns a known value into `None`. [`add_known`] does this for one field, and
/// [`usage_operators!`](crate::usage_operators) implements `+` and `sum()` with it.
///
/// ```
/// use std::ops::AddAssign;
/// use ebpfmetrics::snapshot::{Usage, add_known, known_since};
///
/// #[derive(Clone, Debug, Default, PartialEq)]
/// struct NetUsage {
///     packets: u64,
///     drops: Option<u64>,
/// }
///
/// impl AddAssign<&Self> for NetUsage {
///     fn add_assign(&mut self, more: &Self) {
///         self.packets += more.packets;
///         add_known(&mut self.drops, more.drops);
///     }
/// }
///
/// impl Usage for NetUsage {
///     fn since(&self, earlier: &Self) -> Self {
///         Self {
///             packets: self.packets.saturating_sub(earlier.packets),
///             drops: known_since(self.drops, earlier.drops),
///         }
///     }
/// }
///
/// ebpfmetrics::usage_operators!(NetUsage);
///
/// let usages = [NetUsage { packets: 1, drops: None }, NetUsage { packets: 2, drops: Some(7) }];
/// assert_eq!(usages.iter().sum::<NetUsage>(), NetUsage { packets: 3, drops: Some(7) });
/// ```
pub trait Usage: Clone + Default + for<'a> AddAssign<&'a Self> + 'static {
    /// Usage since an earlier reading of the same window. Counters are subtracted and
    /// never go below zero. Gauges keep their value.
    #[must_use]
    fn since(&self, earlier: &Self) -> Self;
}

/// Adds a value that may not be known. The sum is known if one of them is.
pub fn add_known(sum: &mut Option<u64>, more: Option<u64>) {
    *sum = match (*sum, more) {
        (Some(sum), Some(more)) => Some(sum.saturating_add(more)),
        (sum, more) => sum.or(more),
    };
}

/// Adds a duration that may not be known. The sum is known if one of them is.
pub fn add_known_duration(sum: &mut Option<Duration>, more: Option<Duration>) {
    *sum = match (*sum, more) {
        (Some(sum), Some(more)) => Some(sum.saturating_add(more)),
        (sum, more) => sum.or(more),
    };
}

/// Difference of two readings of a counter that may not be known. An unknown earlier
/// reading counts as 0.
pub fn known_since(later: Option<u64>, earlier: Option<u64>) -> Option<u64> {
    later.map(|later| later.saturating_sub(earlier.unwrap_or_default()))
}

/// Difference of two readings of a duration that may not be known. An unknown earlier
/// reading counts as 0.
pub fn known_duration_since(
    later: Option<Duration>,
    earlier: Option<Duration>,
) -> Option<Duration> {
    later.map(|later| later.saturating_sub(earlier.unwrap_or_default()))
}

/// Adds usages. The sum starts from the first of them, so that it has every value that
/// one of them has. Only an empty sum is the default.
pub(crate) fn sum_of<'a, U: Usage>(usages: impl IntoIterator<Item = &'a U>) -> U {
    let mut usages = usages.into_iter();
    let mut sum = usages.next().cloned().unwrap_or_default();
    usages.for_each(|usage| sum += usage);
    sum
}

/// Implements `+`, `+=` with a value, and [`Sum`](std::iter::Sum) for a type that is
/// [`Clone`], [`Default`] and [`AddAssign`] with a reference.
///
/// A sum starts from its first member. Only an empty sum is the default.
#[macro_export]
macro_rules! usage_operators {
    ($($usage:ty),+ $(,)?) => {$(
        impl ::std::ops::AddAssign for $usage {
            fn add_assign(&mut self, more: Self) {
                *self += &more;
            }
        }

        impl ::std::ops::Add for $usage {
            type Output = Self;

            fn add(mut self, more: Self) -> Self {
                self += &more;
                self
            }
        }

        impl ::std::ops::Add<&Self> for $usage {
            type Output = Self;

            fn add(mut self, more: &Self) -> Self {
                self += more;
                self
            }
        }

        impl ::std::iter::Sum for $usage {
            fn sum<I: ::std::iter::Iterator<Item = Self>>(usages: I) -> Self {
                usages.reduce(|sum, more| sum + &more).unwrap_or_default()
            }
        }

        impl<'a> ::std::iter::Sum<&'a $usage> for $usage {
            fn sum<I: ::std::iter::Iterator<Item = &'a $usage>>(mut usages: I) -> Self {
                let first = usages.next().cloned().unwrap_or_default();
                usages.fold(first, |sum, more| sum + more)
            }
        }
    )+};
}

#[cfg(test)]
mod tests {
    use super::{super::testing::Counter, *};

    #[test]
    fn adding_keeps_known_values() {
        let sum = |mut sum, more| {
            add_known(&mut sum, more);
            sum
        };
        assert_eq!(sum(None, None), None);
        assert_eq!(sum(Some(1), None), Some(1));
        assert_eq!(sum(None, Some(2)), Some(2));
        assert_eq!(sum(Some(1), Some(2)), Some(3));
        assert_eq!(sum(Some(u64::MAX), Some(2)), Some(u64::MAX));
        let mut time = None;
        add_known_duration(&mut time, Some(Duration::from_secs(1)));
        add_known_duration(&mut time, None);
        add_known_duration(&mut time, Some(Duration::from_secs(2)));
        assert_eq!(time, Some(Duration::from_secs(3)));
    }

    #[test]
    fn differences_are_known_when_the_later_value_is() {
        assert_eq!(known_since(Some(5), Some(3)), Some(2));
        assert_eq!(known_since(Some(5), None), Some(5));
        assert_eq!(known_since(Some(3), Some(5)), Some(0));
        assert_eq!(known_since(None, Some(5)), None);
        let s = |s| Some(Duration::from_secs(s));
        assert_eq!(known_duration_since(s(5), s(3)), s(2));
        assert_eq!(known_duration_since(s(3), s(5)), s(0));
        assert_eq!(known_duration_since(None, s(5)), None);
    }

    #[test]
    fn operators_agree() {
        let (one, two) = (Counter::of(1), Counter { count: 2, known: Some(4) });
        let sum = Counter { count: 3, known: Some(4) };
        assert_eq!(one.clone() + two.clone(), sum);
        assert_eq!(one.clone() + &two, sum);
        let mut assigned = one.clone();
        assigned += two.clone();
        assert_eq!(assigned, sum);
        assert_eq!([&one, &two].into_iter().sum::<Counter>(), sum);
        assert_eq!([one, two].into_iter().sum::<Counter>(), sum);
        assert_eq!(Vec::<Counter>::new().iter().sum::<Counter>(), Counter::default());
    }
}
