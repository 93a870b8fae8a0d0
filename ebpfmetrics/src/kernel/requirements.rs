use std::collections::BTreeSet;

/// The kernel hooks that a probe needs.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Requirements {
    /// Tracepoints, by their names in the kernel.
    pub tracepoints: BTreeSet<&'static str>,
    /// BPF iterators, by their names in the kernel.
    pub iterators: BTreeSet<&'static str>,
}
