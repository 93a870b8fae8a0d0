//! One module per probe, each with its records, its decoding and its driver.

use crate::{Probe, Requirements};

/// Declares the probes: one line each.
macro_rules! probes {
    ($($module:ident: $probe:ident,)*) => {
        $(
            mod $module;
            pub use $module::*;
        )*

        /// What each probe needs.
        pub(crate) fn requirements() -> Vec<(&'static str, Requirements)> {
            vec![$(($probe::NAME, $probe::requirements()),)*]
        }
    };
}

probes! {
    cpu: CpuProbe,
    disk: DiskProbe,
    events: Events,
    mem: MemProbe,
    slab: SlabProbe,
}
