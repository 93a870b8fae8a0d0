//! CPU time per process.

mod decode;
mod ledger;
mod probe;
mod record;
mod snapshot;

pub use probe::{CpuAccounting, CpuProbe, CpuProbeBuilder};
pub use snapshot::{CpuFolded, CpuProcess, CpuSnapshot, CpuThread, CpuTime, CpuUsage};
