//! Block I/O per process and device.

mod assemble;
mod books;
mod decode;
mod devices;
mod probe;
mod record;
mod slow_io;
mod snapshot;
mod usage;

pub use probe::{DiskProbe, DiskProbeBuilder};
pub use slow_io::SlowIo;
pub use snapshot::{DiskDevice, DiskDeviceId, DiskFolded, DiskProcess, DiskSnapshot};
pub use usage::{
    DiskByClass, DiskClass, DiskCounters, DiskDeviceUsage, DiskLatency, DiskOperation, DiskUsage,
};
