//! The built-in probes.

pub mod cpu;
pub mod disk;
