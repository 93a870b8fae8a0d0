//! Whether all probes can be loaded here.

use crate::{
    collect::{collector::Collector, engine},
    kernel::checks::{Preflight, preflight_for},
    probes::{cpu::Cpu, disk::Disk},
};

/// Reports what the machine lacks and how to fix it. It loads nothing.
///
/// It works without privileges, and reports then that they are missing.
pub fn preflight() -> Preflight {
    preflight_for(&[
        (engine::PROCESS, engine::requirements()),
        (Cpu::NAME, Cpu::requirements()),
        (Disk::NAME, Disk::requirements()),
    ])
}
