//! The built-in probes.

pub mod cpu;
pub mod mem;
pub mod slab;
