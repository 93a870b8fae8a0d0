use std::collections::BTreeSet;

/// The kernel hooks that a probe needs.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Requirements {
    /// Tracepoints, by their names in the kernel.
    pub tracepoints: BTreeSet<&'static str>,
    /// BPF iterators, by their names in the kernel.
    pub iterators: BTreeSet<&'static str>,
}

impl Requirements {
    /// Everything that at least one of several probes needs.
    pub(crate) fn merged(parts: impl IntoIterator<Item = Self>) -> Self {
        parts.into_iter().fold(Self::default(), |mut all, part| {
            all.tracepoints.extend(part.tracepoints);
            all.iterators.extend(part.iterators);
            all
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn merged_requirements_contain_those_of_each_part() {
        let part = |tracepoint| Requirements {
            tracepoints: [tracepoint].into(),
            iterators: ["task"].into(),
        };
        let merged = Requirements::merged([part("sched_switch"), part("sched_process_exit")]);
        assert_eq!(merged.tracepoints, ["sched_process_exit", "sched_switch"].into());
        assert_eq!(merged.iterators, ["task"].into());
    }
}
