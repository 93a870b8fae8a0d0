//! Memory per process.

mod decode;
mod fallback;
mod probe;
mod record;
mod snapshot;

pub use probe::{MemPeaks, MemProbe, MemProbeBuilder};
pub use snapshot::{MemFolded, MemProcess, MemSnapshot, MemSource, MemUsage};
