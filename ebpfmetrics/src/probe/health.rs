use std::{borrow::Cow, iter::Sum, ops::AddAssign, time::Duration};

/// Resources used by a probe, and features unavailable on this machine.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
#[cfg_attr(feature = "serde", derive(serde::Serialize, serde::Deserialize), serde(default))]
#[non_exhaustive]
pub struct Health {
    /// Kernel memory of the maps in bytes, as the kernel accounts it (`memlock` in
    /// `/proc/self/fdinfo`).
    pub map_bytes: u64,
    /// Number of programs loaded.
    pub programs: usize,
    /// Features that are unavailable.
    pub degraded: Vec<Degraded>,
}

impl AddAssign for Health {
    fn add_assign(&mut self, more: Self) {
        self.map_bytes += more.map_bytes;
        self.programs += more.programs;
        self.degraded.extend(more.degraded);
    }
}

/// Adds the resources of several probes and lists all their unavailable features.
impl Sum for Health {
    fn sum<I: Iterator<Item = Self>>(parts: I) -> Self {
        parts.fold(Self::default(), |mut sum, part| {
            sum += part;
            sum
        })
    }
}

/// A feature that is unavailable on this machine.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
#[cfg_attr(feature = "serde", derive(serde::Serialize, serde::Deserialize))]
pub struct Degraded {
    /// What the snapshot lacks.
    pub feature: Cow<'static, str>,
    /// The reason.
    pub reason: String,
}

impl Degraded {
    /// Returns an entry if the feature is missing.
    pub fn when(
        missing: bool,
        feature: impl Into<Cow<'static, str>>,
        reason: impl Into<String>,
    ) -> Option<Self> {
        missing.then(|| Self { feature: feature.into(), reason: reason.into() })
    }

    /// Returns an entry if the walk over tasks does not see all processes of the machine.
    pub fn unless_all_seen(sees_all: bool) -> Option<Self> {
        Self::when(
            !sees_all,
            "processes of other PID namespaces",
            "the reader is not in the initial PID namespace: processes of other namespaces \
             appear only when they exit",
        )
    }
}

/// How often the programs of a probe ran and how long they took, since they were loaded.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
#[cfg_attr(feature = "serde", derive(serde::Serialize, serde::Deserialize), serde(default))]
#[non_exhaustive]
pub struct Cost {
    /// One entry per loaded program.
    pub programs: Vec<ProgramCost>,
}

/// How often one program ran and how long it took, since it was loaded.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
#[cfg_attr(feature = "serde", derive(serde::Serialize, serde::Deserialize), serde(default))]
#[non_exhaustive]
pub struct ProgramCost {
    /// Name of the program.
    pub program: Cow<'static, str>,
    /// Number of runs while statistics were on.
    pub run_count: u64,
    /// Time in the program while statistics were on. It includes the 10 to 20 ns that the
    /// measurement takes per run.
    #[cfg_attr(
        feature = "serde",
        serde(rename = "run_time_ns", with = "crate::snapshot::duration_ns")
    )]
    pub run_time: Duration,
}

impl ProgramCost {
    /// Describes one program.
    pub fn new(program: impl Into<Cow<'static, str>>, run_count: u64, run_time: Duration) -> Self {
        Self { program: program.into(), run_count, run_time }
    }

    /// Mean time per run in ns. `None` before the first run.
    pub fn ns_per_run(&self) -> Option<f64> {
        (self.run_count > 0).then(|| self.run_time.as_nanos() as f64 / self.run_count as f64)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn health_adds_up() {
        let degraded = Degraded::unless_all_seen(false).into_iter().collect();
        let part = Health { map_bytes: 10, programs: 2, degraded };
        let sum: Health = [part.clone(), Health::default(), part].into_iter().sum();
        assert_eq!((sum.map_bytes, sum.programs, sum.degraded.len()), (20, 4, 2));
        assert_eq!(Degraded::unless_all_seen(true), None);
    }

    #[test]
    fn the_mean_needs_a_run() {
        let cost = ProgramCost::new("x", 4, Duration::from_nanos(10));
        assert_eq!(cost.ns_per_run(), Some(2.5));
        assert_eq!(ProgramCost::default().ns_per_run(), None);
    }

    #[cfg(feature = "serde")]
    #[test]
    fn health_and_cost_round_trip_through_json() {
        let degraded = Degraded::when(true, "peaks", "Linux 5.8").into_iter().collect();
        let health = Health { map_bytes: 10, programs: 2, degraded };
        let json = serde_json::to_string(&health).unwrap();
        assert_eq!(serde_json::from_str::<Health>(&json).unwrap(), health);
        let cost = Cost { programs: vec![ProgramCost::new("x", 4, Duration::from_micros(1))] };
        let json = serde_json::to_string(&cost).unwrap();
        assert_eq!(json, r#"{"programs":[{"program":"x","run_count":4,"run_time_ns":1000}]}"#);
        assert_eq!(serde_json::from_str::<Cost>(&json).unwrap(), cost);
    }
}
