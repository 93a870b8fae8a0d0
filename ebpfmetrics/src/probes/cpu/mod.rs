//! CPU time per process.

mod decode;
mod probe;
mod record;
mod snapshot;
mod threads;

pub use probe::{CpuAccounting, CpuProbe, CpuProbeBuilder};
pub use snapshot::{CpuFolded, CpuProcess, CpuSnapshot, CpuThread, CpuTime, CpuUsage};
