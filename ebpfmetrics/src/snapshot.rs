use std::{any::Any, sync::Arc, time::Duration};

use crate::{Error, ErrorKind, Result};

/// What every snapshot has, whatever its probe measures.
pub trait Snapshot: Any + Send {
    /// The time that the counters are of.
    fn window(&self) -> Window;

    /// What could not be counted in that window.
    fn losses(&self) -> &Losses;

    /// Where the figures come from on this kernel.
    fn provenance(&self) -> &Arc<Provenance>;
}

/// The time that the counters of a snapshot are of, on `CLOCK_MONOTONIC`.
///
/// It starts where the probe was loaded or last reset. The windows of
/// consecutive resets touch: the end of one is the start of the next.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[cfg_attr(feature = "serde", derive(serde::Serialize))]
pub struct Window {
    /// Start in ns.
    pub start_ns: u64,
    /// End in ns.
    pub end_ns: u64,
}

impl Window {
    /// How long the window is.
    pub fn duration(&self) -> Duration {
        Duration::from_nanos(self.end_ns.saturating_sub(self.start_ns))
    }

    /// A count per second of the window.
    pub fn per_second(&self, count: u64) -> f64 {
        let window = self.duration().as_secs_f64();
        if window > 0.0 { count as f64 / window } else { 0.0 }
    }

    /// A time in percent of the window; of a CPU time that is percent of one CPU.
    pub fn percent(&self, of: Duration) -> f64 {
        let window = self.duration().as_secs_f64();
        if window > 0.0 { of.as_secs_f64() / window * 100.0 } else { 0.0 }
    }
}

/// What a probe could not count in a window, by cause.
///
/// Every cause that the probe knows is listed, mostly with 0. Nothing is ever
/// lost without standing here.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Losses(Vec<(&'static str, u64)>);

impl Losses {
    /// Losses by cause, in the order that they are to be shown in.
    pub fn new(causes: impl IntoIterator<Item = (&'static str, u64)>) -> Self {
        Self(causes.into_iter().collect())
    }

    /// The losses of several probes; those of one name add up.
    pub(crate) fn sum<'a>(parts: impl IntoIterator<Item = &'a Self>) -> Self {
        let mut sum: Vec<(&'static str, u64)> = Vec::new();
        for (cause, count) in parts.into_iter().flat_map(Self::iter) {
            match sum.iter_mut().find(|(known, _)| *known == cause) {
                Some((_, total)) => *total += count,
                None => sum.push((cause, count)),
            }
        }
        Self(sum)
    }

    /// Every cause with its count.
    pub fn iter(&self) -> impl Iterator<Item = (&'static str, u64)> {
        self.0.iter().copied()
    }

    /// The count of one cause; `None` if the probe does not know it.
    pub fn get(&self, cause: &str) -> Option<u64> {
        self.iter().find(|(name, _)| *name == cause).map(|(_, count)| count)
    }

    /// The sum over all causes.
    pub fn total(&self) -> u64 {
        self.iter().map(|(_, count)| count).sum()
    }

    /// An error that names what was lost, for callers to whom a figure that may
    /// be too low is worse than none.
    ///
    /// # Errors
    /// [`ErrorKind::MapFull`] if a kernel map was too small (the cause ends in
    /// `_full`), else [`ErrorKind::EventsLost`].
    ///
    /// ```
    /// use ebpfmetrics::{ErrorKind, Losses};
    ///
    /// let losses = Losses::new([("exit_state_full", 3)]);
    /// assert_eq!(losses.check().unwrap_err().kind(), ErrorKind::MapFull);
    /// assert!(Losses::new([("exit_state_full", 0)]).check().is_ok());
    /// ```
    pub fn check(&self) -> Result<()> {
        if self.total() == 0 {
            return Ok(());
        }
        let lost: Vec<_> = self.iter().filter(|(_, count)| *count > 0).collect();
        let full = lost.iter().any(|(cause, _)| cause.ends_with("_full"));
        let text: Vec<_> = lost.iter().map(|(cause, count)| format!("{cause}: {count}")).collect();
        Err(Error::new(
            if full { ErrorKind::MapFull } else { ErrorKind::EventsLost },
            format!(
                "figures of this window are too low, events were not counted ({}){}",
                text.join(", "),
                if full { "; enlarge the table in the probe's builder" } else { "" }
            ),
        ))
    }
}

#[cfg(feature = "serde")]
impl serde::Serialize for Losses {
    fn serialize<S: serde::Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.collect_map(self.iter())
    }
}

/// Where the figures of a snapshot come from on this kernel.
#[derive(Clone, Debug, PartialEq, Eq)]
#[cfg_attr(feature = "serde", derive(serde::Serialize))]
#[non_exhaustive]
pub struct Provenance {
    /// The name of the probe.
    pub probe: &'static str,
    /// The release of the running kernel, as `uname -r` prints it.
    pub kernel_release: String,
    /// One entry per metric.
    pub sources: Vec<Source>,
}

impl Provenance {
    /// The provenance of a probe's metrics on the running kernel.
    pub fn new(probe: &'static str, sources: Vec<Source>) -> Self {
        let kernel_release = rustix::system::uname().release().to_string_lossy().into_owned();
        Self { probe, kernel_release, sources }
    }

    /// The sources of several probes under one name.
    pub(crate) fn of_all<'a>(
        probe: &'static str,
        parts: impl IntoIterator<Item = &'a Arc<Self>>,
    ) -> Self {
        let sources = parts.into_iter().flat_map(|part| part.sources.iter().cloned());
        Self::new(probe, sources.collect())
    }
}

/// Where one metric comes from.
#[derive(Clone, Debug, PartialEq, Eq)]
#[cfg_attr(feature = "serde", derive(serde::Serialize))]
pub struct Source {
    /// The metric, by the name of its field.
    pub metric: &'static str,
    /// Hook and kernel field; `None` if this kernel does not say.
    pub source: Option<&'static str>,
}
