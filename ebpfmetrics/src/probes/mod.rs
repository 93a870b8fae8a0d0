//! The built-in probes.

pub mod cpu;
pub mod disk;
pub mod mem;
pub mod slab;
