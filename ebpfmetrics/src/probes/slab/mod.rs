//! Kernel slab memory on behalf of processes.

mod decode;
mod probe;
mod record;
mod snapshot;

pub use probe::{SlabProbe, SlabProbeBuilder};
pub use snapshot::{SlabFolded, SlabProcess, SlabSnapshot, SlabUsage};
