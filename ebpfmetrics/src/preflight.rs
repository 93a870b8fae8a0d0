//! Checks whether all probes can be loaded.

use crate::{
    collect::{collector::Collector, engine},
    events::Events,
    kernel::checks::{Preflight, preflight_for},
    probes::{cpu::Cpu, disk::Disk, mem::Mem, slab::Slab},
};

/// Reports what the machine lacks and how to fix it. It loads nothing.
///
/// It works without privileges, and then reports that they are missing.
pub fn preflight() -> Preflight {
    preflight_for(&[
        (engine::PROCESS, engine::requirements()),
        (Cpu::NAME, Cpu::requirements()),
        (Disk::NAME, Disk::requirements()),
        (Mem::NAME, Mem::requirements()),
        (Slab::NAME, Slab::requirements()),
        (Events::NAME, Events::requirements()),
    ])
}
