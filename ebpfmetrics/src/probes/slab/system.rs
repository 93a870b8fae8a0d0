use super::{SlabSnapshot, SlabUsage};

/// Slab figures of the whole machine in a window.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
#[cfg_attr(feature = "serde", derive(serde::Serialize, serde::Deserialize), serde(default))]
#[non_exhaustive]
pub struct SlabSystem {
    /// Allocations and frees of interrupts on idle CPUs. They belong to no process.
    pub idle: SlabUsage,
}

impl SlabSnapshot {
    /// Allocations and frees of the whole machine: all processes and idle CPUs.
    pub fn sum_with_idle(&self) -> SlabUsage {
        self.sum() + self.system.idle
    }
}
