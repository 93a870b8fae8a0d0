//! The built-in probes.

pub mod cpu;
