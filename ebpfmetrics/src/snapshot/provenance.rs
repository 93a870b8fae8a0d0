use std::borrow::Cow;

/// Where the figures of a snapshot come from on this kernel.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
#[cfg_attr(feature = "serde", derive(serde::Serialize, serde::Deserialize))]
#[non_exhaustive]
pub struct Provenance {
    /// Name of the probe.
    pub probe: Cow<'static, str>,
    /// Release of the running kernel, as `uname -r` prints it.
    pub kernel_release: String,
    /// Source of each metric.
    pub sources: Vec<Source>,
}

impl Provenance {
    /// Describes the metrics of a probe on the running kernel.
    pub fn new(probe: impl Into<Cow<'static, str>>, sources: Vec<Source>) -> Self {
        let kernel_release = rustix::system::uname().release().to_string_lossy().into_owned();
        Self { probe: probe.into(), kernel_release, sources }
    }

    /// Source of a metric. `None` if the probe does not know the metric, or this kernel
    /// does not provide it.
    pub fn source(&self, metric: &str) -> Option<&str> {
        self.sources.iter().find(|source| source.metric == metric)?.source.as_deref()
    }
}

/// Source of one metric.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
#[cfg_attr(feature = "serde", derive(serde::Serialize, serde::Deserialize))]
pub struct Source {
    /// Name of the metric's field.
    pub metric: Cow<'static, str>,
    /// Hook and kernel field. `None` if this kernel does not provide the metric.
    pub source: Option<Cow<'static, str>>,
}

impl Source {
    /// Describes a metric that this kernel provides.
    pub fn new(metric: impl Into<Cow<'static, str>>, source: impl Into<Cow<'static, str>>) -> Self {
        Self { metric: metric.into(), source: Some(source.into()) }
    }

    /// Describes a metric that this kernel does not provide.
    pub fn missing(metric: impl Into<Cow<'static, str>>) -> Self {
        Self { metric: metric.into(), source: None }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn provenance() -> Provenance {
        let cpu_time = Source::new("cpu_time", "iter/task: task_struct::se.sum_exec_runtime");
        Provenance::new("cpu", vec![cpu_time, Source::missing("run_queue_wait")])
    }

    #[test]
    fn sources_are_found_by_metric() {
        let provenance = provenance();
        assert!(provenance.source("cpu_time").unwrap().starts_with("iter/task"));
        assert_eq!(provenance.source("run_queue_wait"), None);
        assert!(!provenance.kernel_release.is_empty());
    }

    #[cfg(feature = "serde")]
    #[test]
    fn provenance_round_trips_through_json() {
        let json = serde_json::to_string(&provenance()).unwrap();
        assert_eq!(serde_json::from_str::<Provenance>(&json).unwrap(), provenance());
    }
}
