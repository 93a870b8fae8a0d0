use std::{borrow::Cow, ops::AddAssign};

use crate::error::{Error, ErrorKind, Result};

/// Events and processes that could not be counted in a window, by probe and cause.
///
/// Every cause that a probe knows is listed, usually with 0. A figure is too low only if
/// one of the counts here is not 0.
///
/// ```
/// use ebpfmetrics::snapshot::{Loss, LossScope, Losses};
///
/// let losses = Losses::new([
///     Loss::new("cpu", "exit_state_full", 3, LossScope::Processes),
///     Loss::new("disk", "requests_full", 0, LossScope::Machine),
/// ]);
/// assert_eq!(losses.get("exit_state_full"), Some(3));
/// assert_eq!(losses.get("no_such_cause"), None);
/// assert_eq!((losses.of_processes(), losses.of_machine()), (3, 0));
/// ```
#[derive(Clone, Debug, Default, PartialEq, Eq)]
#[cfg_attr(feature = "serde", derive(serde::Serialize, serde::Deserialize), serde(transparent))]
pub struct Losses(Vec<Loss>);

/// Number of events that a probe could not count for one cause.
#[derive(Clone, Debug, PartialEq, Eq)]
#[cfg_attr(feature = "serde", derive(serde::Serialize, serde::Deserialize))]
#[non_exhaustive]
pub struct Loss {
    /// Name of the probe.
    pub probe: Cow<'static, str>,
    /// Name of the cause.
    pub cause: Cow<'static, str>,
    /// Number of events.
    pub count: u64,
    /// Which figures are too low because of it.
    pub scope: LossScope,
}

/// Which figures a loss affects.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
#[cfg_attr(
    feature = "serde",
    derive(serde::Serialize, serde::Deserialize),
    serde(rename_all = "snake_case")
)]
#[non_exhaustive]
pub enum LossScope {
    /// Figures of processes.
    Processes,
    /// Figures of the whole machine, such as those of CPUs and devices.
    Machine,
}

/// The causes of losses that one probe knows.
///
/// The enums of the built-in probes are generated from their BPF objects.
/// [`AsRef<str>`] returns the stable name of a cause, without the name of the probe.
pub trait LossCause: Copy + AsRef<str> + 'static {
    /// Name of the probe.
    const PROBE: &'static str;

    /// All causes, in the order of the kernel's counters.
    const ALL: &'static [Self];

    /// Which figures are too low because of it.
    fn scope(self) -> LossScope;
}

/// The causes of a probe that cannot lose anything: none.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum NoLoss {}

impl AsRef<str> for NoLoss {
    fn as_ref(&self) -> &str {
        match *self {}
    }
}

impl LossCause for NoLoss {
    const PROBE: &'static str = "";
    const ALL: &'static [Self] = &[];

    fn scope(self) -> LossScope {
        match self {}
    }
}

impl Loss {
    /// Creates a loss from the names of the probe and of the cause.
    pub fn new(
        probe: impl Into<Cow<'static, str>>,
        cause: impl Into<Cow<'static, str>>,
        count: u64,
        scope: LossScope,
    ) -> Self {
        Self { probe: probe.into(), cause: cause.into(), count, scope }
    }
}

impl Losses {
    /// Collects losses. They keep their order, and losses of one probe and cause are
    /// added.
    pub fn new(losses: impl IntoIterator<Item = Loss>) -> Self {
        let mut sum = Self::default();
        losses.into_iter().for_each(|loss| sum.add(loss));
        sum
    }

    /// Lists all causes of a probe, each with its count.
    pub fn of<C: LossCause>(mut count: impl FnMut(C) -> u64) -> Self {
        Self::new(C::ALL.iter().map(|&cause| {
            let name = Cow::Owned(cause.as_ref().to_owned());
            Loss { probe: C::PROBE.into(), cause: name, count: count(cause), scope: cause.scope() }
        }))
    }

    fn add(&mut self, loss: Loss) {
        let same = |known: &&mut Loss| known.probe == loss.probe && known.cause == loss.cause;
        match self.0.iter_mut().find(same) {
            Some(known) => known.count = known.count.saturating_add(loss.count),
            None => self.0.push(loss),
        }
    }

    /// All losses, including those with a count of 0.
    pub fn iter(&self) -> std::slice::Iter<'_, Loss> {
        self.0.iter()
    }

    /// Count of one cause, summed over all probes that know it. `None` if no probe does.
    pub fn get(&self, cause: impl AsRef<str>) -> Option<u64> {
        let cause = cause.as_ref();
        let counts = self.iter().filter(|loss| loss.cause == cause).map(|loss| loss.count);
        counts.reduce(u64::saturating_add)
    }

    /// Sum of the losses that affect figures of processes.
    pub fn of_processes(&self) -> u64 {
        self.sum(|loss| loss.scope == LossScope::Processes)
    }

    /// Sum of the losses that affect figures of the whole machine.
    pub fn of_machine(&self) -> u64 {
        self.sum(|loss| loss.scope == LossScope::Machine)
    }

    /// Sum of all losses.
    pub fn total(&self) -> u64 {
        self.sum(|_| true)
    }

    fn sum(&self, of: impl Fn(&Loss) -> bool) -> u64 {
        let counts = self.iter().filter(|loss| of(loss)).map(|loss| loss.count);
        counts.fold(0, u64::saturating_add)
    }

    /// Fails if anything was lost. Use it when a figure that may be too low is worse than
    /// no figure.
    ///
    /// # Errors
    /// [`ErrorKind::MapFull`] if a kernel map was full (the name of the cause ends in
    /// `_full`), otherwise [`ErrorKind::EventsLost`].
    ///
    /// ```
    /// use ebpfmetrics::{ErrorKind, snapshot::{Loss, LossScope, Losses}};
    ///
    /// let loss = |count| Loss::new("cpu", "exit_state_full", count, LossScope::Processes);
    /// assert_eq!(Losses::new([loss(3)]).check().unwrap_err().kind(), ErrorKind::MapFull);
    /// assert!(Losses::new([loss(0)]).check().is_ok());
    /// ```
    pub fn check(&self) -> Result<()> {
        if self.total() == 0 {
            return Ok(());
        }
        let lost: Vec<_> = self.iter().filter(|loss| loss.count > 0).collect();
        let full = lost.iter().any(|loss| loss.cause.ends_with("_full"));
        let (kind, remedy) = match full {
            true => (
                ErrorKind::MapFull,
                "; a cause that ends in _full means that a kernel map was full: \
                 raise its limit in the builder",
            ),
            false => (ErrorKind::EventsLost, ""),
        };
        let text: Vec<_> = lost
            .iter()
            .map(|Loss { probe, cause, count, .. }| format!("{probe}: {cause} {count} times"))
            .collect();
        let text = text.join(", ");
        Err(Error::new(kind, format!("figures of this window are too low ({text}){remedy}")))
    }
}

impl<'a> IntoIterator for &'a Losses {
    type Item = &'a Loss;
    type IntoIter = std::slice::Iter<'a, Loss>;

    fn into_iter(self) -> Self::IntoIter {
        self.iter()
    }
}

impl FromIterator<Loss> for Losses {
    fn from_iter<I: IntoIterator<Item = Loss>>(losses: I) -> Self {
        Self::new(losses)
    }
}

/// Adds the counts of the same probe and cause. Other losses are appended.
impl AddAssign<&Self> for Losses {
    fn add_assign(&mut self, more: &Self) {
        more.iter().for_each(|loss| self.add(loss.clone()));
    }
}

impl AddAssign for Losses {
    fn add_assign(&mut self, more: Self) {
        more.0.into_iter().for_each(|loss| self.add(loss));
    }
}

#[cfg(test)]
mod tests {
    use super::{super::testing::TestLoss, *};

    fn losses() -> Losses {
        Losses::of(|cause| match cause {
            TestLoss::TableFull => 3,
            TestLoss::Unmatched => 4,
        })
    }

    #[test]
    fn causes_are_found_by_enum_and_by_name() {
        let losses = losses();
        assert_eq!(losses.get(TestLoss::TableFull), Some(3));
        assert_eq!(losses.get("unmatched"), Some(4));
        assert_eq!(losses.get(String::from("other")), None);
        assert_eq!((losses.of_processes(), losses.of_machine(), losses.total()), (3, 4, 7));
    }

    #[test]
    fn losses_add_by_probe_and_cause() {
        let mut sum = losses();
        sum += &losses();
        sum += Losses::new([Loss::new("other", "table_full", 10, LossScope::Machine)]);
        assert_eq!(sum.iter().count(), 3);
        assert_eq!(sum.get(TestLoss::TableFull), Some(16));
        assert_eq!((sum.of_processes(), sum.of_machine()), (6, 18));
        let max = Loss::new("test", "unmatched", u64::MAX, LossScope::Machine);
        sum += Losses::new([max]);
        assert_eq!(sum.total(), u64::MAX);
    }

    #[test]
    fn check_names_what_was_lost() {
        assert!(Losses::of(|_: TestLoss| 0).check().is_ok());
        let error = losses().check().unwrap_err();
        assert_eq!(error.kind(), ErrorKind::MapFull);
        assert!(error.to_string().contains("(test: table_full 3 times, test: unmatched 4 times)"));
        let events = Losses::of(|cause| u64::from(matches!(cause, TestLoss::Unmatched)));
        let error = events.check().unwrap_err();
        assert_eq!(error.kind(), ErrorKind::EventsLost);
        let text = "figures of this window are too low (test: unmatched 1 times)";
        assert_eq!(error.to_string(), text);
    }

    #[cfg(feature = "serde")]
    #[test]
    fn losses_round_trip_through_json() {
        let json = serde_json::to_string(&losses()).unwrap();
        let first = r#"[{"probe":"test","cause":"table_full","count":3,"scope":"processes"},"#;
        assert!(json.starts_with(first), "{json}");
        assert_eq!(serde_json::from_str::<Losses>(&json).unwrap(), losses());
    }
}
